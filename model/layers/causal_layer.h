// Says what layers offer whose outputs depend on a token and on a state of fixed size that the tokens before it leave
// behind: no positions, no keys and values.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/layers/dropout.h"
#include "model/tensor_list.h"

namespace millrace::model {

// Tokens of several sequences in the order of time: those that come first in their sequences, then those that come
// second, and so on. A step of all sequences is one run of rows, and its sequences are the first ones of those of the
// step before.
class TimeOrder {
 public:
  // `lengths` of the sequences, at least 1, the longest first.
  void Set(absl::Span<const int64_t> lengths);

  int64_t rows() const { return first_.back(); }
  int64_t steps() const { return static_cast<int64_t>(first_.size()) - 1; }
  int64_t sequences() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  // Sequences that have so many steps and one more; 0 behind the last step.
  int64_t count(int64_t step) const { return step < steps() ? row(step + 1, 0) - row(step, 0) : 0; }
  // Of a step of a sequence. Requires that it has this step.
  int64_t row(int64_t step, int64_t sequence) const { return first_[static_cast<size_t>(step)] + sequence; }

 private:
  std::vector<int64_t> lengths_;
  std::vector<int64_t> first_ = {0};  // row of each step, and their number
};

// What a pass through a layer computes with.
struct CausalPass {
  const kernels::Compute& compute;
  const float* weights;  // laid out as the model's tensors
  const TimeOrder& order;
  Dropout dropout;
  float* scratch;  // [rows, scratch_size]
};

// Rows are in the order of time. Constant.
class CausalLayer {
 public:
  virtual ~CausalLayer() = default;

  // The index of the layer's first tensor; the others follow it.
  virtual int first_tensor() const = 0;
  // Floats a token: what Forward keeps for Backward, and what both need while they run.
  virtual int64_t kept_size() const = 0;
  virtual int64_t scratch_size(bool for_training) const = 0;
  // Floats a sequence: what a later token needs of the ones before it; zeros before the first.
  virtual int64_t state_size() const = 0;

  // x, y: [rows, hidden_size], which do not overlap. `states` [sequences, state_size]: those before these tokens become
  // those after them; null: zeros, and not wanted. kept: [rows, kept_size]. Without dropout the bits of a sequence are
  // the same alone and beside others, and in one pass or several.
  virtual void Forward(const CausalPass& pass, const float* x, float* states, float* kept, float* y) const = 0;

  // After Forward without states, once: the gradient `dy` of y becomes that of x, or, unless `input_wanted`, is
  // destroyed. Adds to the gradients of the layer's trainable tensors.
  virtual void Backward(const CausalPass& pass, const float* x, float* kept, float* dy, bool input_wanted,
                        Trainable trainable, float* gradients) const = 0;
};

}  // namespace millrace::model
