// Cuts a model's tensors into blocks: the unit of placement, transfer, deduplication and checksums.
//
// Each tensor is cut into contiguous runs of kMaxBlockElements, the last one shorter. Blocks are numbered over the
// tensors in the table's order. Both ends of the wire compute this from the table alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::blocks {

inline constexpr int64_t kMaxBlockElements = 65'536;
inline constexpr int64_t kMaxTensors = 1 << 16;
inline constexpr int64_t kMaxParameters = int64_t{1} << 36;
inline constexpr uint32_t kMaxGroups = 4096;

struct Block {
  uint32_t index = 0;   // in the table
  uint32_t tensor = 0;  // index into tensors()
  int64_t begin = 0;    // first element within the tensor
  int64_t size = 0;     // elements
  uint32_t group = 0;   // the tensor's
};

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;
  bool trainable = true;
  v1::Tensor::Role role = v1::Tensor::VECTOR;
  bool rows_are_inputs = false;
  uint32_t group = 0;
  double learning_rate_multiplier = 1;
  v1::Sensitivity sensitivity;
  int64_t size = 0;          // elements
  uint32_t first_block = 0;  // its blocks are consecutive
  uint32_t block_count = 0;

  bool tracked() const { return sensitivity.by() != v1::Sensitivity::BY_UNSPECIFIED; }
  // How many scores a tracked tensor has, and which of them an element counts for.
  int64_t scores() const;
  int64_t ScoreOf(int64_t element) const;
};

// Of a tensor: [first, first + count).
struct ScoreRange {
  int64_t first = 0;
  int64_t count = 0;
};

// Constant after Create: any thread.
class BlockTable {
 public:
  // INVALID_ARGUMENT names the tensor that has no name, a name twice, no size, no role, too many dimensions, or a group
  // below the one before, an impossible learning rate or a sensitivity that cannot be tracked (groups come in the order
  // of the forward pass).
  static absl::StatusOr<BlockTable> Create(const v1::TensorTable& table);

  absl::Span<const TensorInfo> tensors() const { return tensors_; }
  absl::Span<const Block> blocks() const { return blocks_; }
  // Elements of all tensors.
  int64_t parameters() const { return parameters_; }
  // Groups are 0 … groups() - 1; some may be empty.
  uint32_t groups() const { return static_cast<uint32_t>(groups_.size()); }
  // Blocks of trainable and other tensors of the group, in order. Requires group < groups().
  absl::Span<const uint32_t> BlocksOfGroup(uint32_t group) const { return groups_[group]; }
  const TensorInfo& TensorOf(const Block& block) const { return tensors_[block.tensor]; }
  // The scores to which elements of the block contribute; none if its tensor is not tracked.
  ScoreRange ScoresOf(const Block& block) const;
  // "transformer.wte.weight[65536, 98304)".
  std::string Name(const Block& block) const;

 private:
  BlockTable() = default;
  std::vector<TensorInfo> tensors_;
  std::vector<Block> blocks_;
  std::vector<std::vector<uint32_t>> groups_;
  int64_t parameters_ = 0;
};

// Width of a weight that is pulled: 32 bits (f32) or 16 (bfloat16). Left out: 32.
inline uint32_t WeightBits(const v1::OptimizerSpec& optimizer) {
  return optimizer.has_weight_bits() ? optimizer.weight_bits() : 32;
}

}  // namespace millrace::blocks
