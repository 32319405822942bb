// Turns queries and keys by angles that grow with the position (Su et al. 2021, RoFormer), in the half-split layout of
// Hugging Face's LLaMA: element i of a head goes with element i + head_size / 2.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/compute.h"

namespace millrace::model {

// cos and sin of position * theta^(-2 i / head_size), computed in f64 and rounded once; [context, head_size / 2].
struct RopeTable {
  int64_t half = 0;
  std::vector<float> cosines;
  std::vector<float> sines;

  RopeTable() = default;
  // Requires an even head_size.
  RopeTable(int64_t context, int64_t head_size, double theta);
};

// In place, the first `heads` heads of each token's row; rows are `stride` apart. positions: [tokens]. `backward`:
// turns gradients back.
void ApplyRope(const kernels::Compute& compute, const RopeTable& table, int64_t tokens, const uint32_t* positions,
               int64_t heads, float* x, int64_t stride, bool backward);

}  // namespace millrace::model
