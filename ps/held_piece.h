// Holds what is updated together: weights, state and gradient sums of one block, or of all blocks of a matrix
// for an optimizer that takes whole matrices.
//
// State travels with its block. Of the S values of state of a matrix of n elements, the block of the elements
// [begin, end) has the values [S begin / n, S end / n), rounded down: all of them in the order of the blocks, whatever
// the number of shards.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "kernels/compute.h"
#include "optim/optimizer.h"
#include "proto/millrace/v1/parameter_server.pb.h"
#include "ps/gradient_sum.h"

namespace millrace::ps {

// One step of the optimizer, the same for all pieces.
struct StepRule {
  const optim::Optimizer* optimizer = nullptr;
  uint64_t step = 0;            // 1, 2, …
  double factor = 1;            // the schedule's
  float clip_factor = 1;        // on gradients
  uint32_t gradient_bits = 16;  // of the next coding
  bool tracked = false;         // sensitivity takes the gradient in
  // Elements that become zero once the optimizer has changed them, by tensor; null: none.
  const std::map<uint32_t, std::vector<int64_t>>* zeroed = nullptr;
};

// Thread-safe. Blocks are named by their position within the piece, 0 to block_count() - 1.
class HeldPiece {
 public:
  // Of blocks [first_block, first_block + block_count) of `table`, which outlives the piece: all blocks of a matrix, or
  // one. `optimizer` is null for tensors that are not trained, which have neither state nor sums. `weight_bits`, 16 or
  // 32, is the width of pulled weights.
  HeldPiece(const blocks::BlockTable* table, uint32_t first_block, uint32_t block_count,
            const optim::Optimizer* optimizer, uint32_t units, uint32_t weight_bits);

  uint32_t first_block() const { return first_block_; }
  uint32_t block_count() const { return static_cast<uint32_t>(parts_.size()); }
  bool trainable() const { return trainable_; }
  // Updated by all threads together, so not to be called from one of them.
  bool whole_matrix() const { return about_.whole_matrix(); }
  // Memory that a copy of weights and state takes.
  size_t copy_bytes() const { return 4 * static_cast<size_t>(about_.size + state_size_); }

  // INVALID_ARGUMENT unless the request has as many weights and values of state (or none) as the block, and a coding;
  // DATA_LOSS for another checksum.
  absl::Status CheckLoad(uint32_t part, const v1::LoadRequest& request) const;
  // Sets a block's weights, state and coding as `request`, which has been checked, says.
  void Load(uint32_t part, const v1::LoadRequest& request);
  // All blocks are loaded: what they hold is `version`.
  void Start(uint64_t version);
  // Frees what is held. Everything below says that there is no such version.
  void Drop();

  // Copies weights, as bfloat16 if they are pulled at 16 bits, to `weights`, which has room for them, and coding;
  // false, and nothing is copied, if the block is not at `version`.
  bool Read(uint32_t part, uint64_t version, char* weights, v1::Coding* coding) const;
  size_t pulled_bytes(uint32_t part) const { return weight_bits_ / 8 * static_cast<size_t>(parts_[part].size); }
  // The same with state.
  bool Read(uint32_t part, uint64_t version, v1::SnapshotReply* reply) const;

  // Adds a unit's gradient: false if it has been added before. FAILED_PRECONDITION if the block is not at the request's
  // version; INVALID_ARGUMENT unless coding and `values`, whatever the request's own, are what the block takes.
  // Requires a trainable piece and a unit below `units`.
  absl::StatusOr<bool> Add(uint32_t part, const v1::PushRequest& request, absl::string_view values);
  // DATA_LOSS naming the block, unless the checksum is that of the request's values.
  absl::Status CheckSum(uint32_t part, const v1::PushRequest& request) const;

  // Of the sum of `part`'s gradients. 0 if not trainable or dropped.
  double SquaredNorm(uint32_t part) const;
  // Sums of the scores of `part`'s elements, as BlockTable::ScoresOf has them, and as they are now, or else once the
  // sum of the gradients is `tracked`. None if its sensitivity is not tracked, or dropped.
  std::vector<double> Scores(uint32_t part, bool tracked) const;
  uint64_t saturated() const;
  // Units of which the sum of `part` lacks the gradient: how many, and which, `most` of them at most. None if not
  // trainable.
  uint32_t missing_units(uint32_t part) const;
  std::vector<uint32_t> MissingUnits(uint32_t part, size_t most) const;

  // Applies a step to `version`, which the piece is at: weights and state change, codings follow the sums, sums start
  // anew, and the piece is at version + 1.
  void Step(const kernels::Compute& compute, const StepRule& rule, uint64_t version, std::vector<float>* scratch);

 private:
  struct Part {
    int64_t begin = 0;  // within the piece
    int64_t size = 0;
    int64_t state_begin = 0;  // within the piece's state
    int64_t state_size = 0;
    std::unique_ptr<GradientSum> sum;  // null if not trainable
  };

  const blocks::Block& BlockOf(uint32_t part) const { return table_->blocks()[first_block_ + part]; }
  std::string Name(uint32_t part) const { return table_->Name(BlockOf(part)); }
  absl::Status Damaged(uint32_t part) const;
  void ZeroElements(const StepRule& rule) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const blocks::TensorInfo& tensor() const { return table_->TensorOf(BlockOf(0)); }

  const blocks::BlockTable* const table_;
  const uint32_t first_block_;
  const bool trainable_;
  const uint32_t weight_bits_;
  optim::Piece about_;      // constant after construction
  int64_t state_size_ = 0;  // likewise: the optimizer's, then of each element its mean sensitivity, then its deviation
  int64_t sensitivity_begin_ = 0;  // likewise: where the means begin
  double multiplier_ = 1;          // likewise, on the learning rate

  // Held for writing by loads and steps; for reading by whatever copies weights or adds gradients (sums have their
  // own).
  mutable absl::Mutex mutex_;
  std::vector<Part> parts_;  // constant, but for the sums
  std::vector<float> weights_ ABSL_GUARDED_BY(mutex_);
  std::vector<float> state_ ABSL_GUARDED_BY(mutex_);
  std::vector<blocks::Coding> codings_ ABSL_GUARDED_BY(mutex_);  // by part
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool dropped_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::ps
