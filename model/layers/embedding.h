// Looks rows of tables up: token embeddings and learned positions.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::model {

// Which tokens are looked up: `rows` rows of `columns` ids that lie `row_stride` apart, and their positions
// [rows * columns].
struct Lookup {
  const uint32_t* ids = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  const uint32_t* positions = nullptr;
};

// y[i] = table[id of i] + position_table[position of i]; `position_table` may be null. Rows of tables and y are `width`
// long. Requires ids and positions that the tables have.
void EmbeddingForward(const kernels::Compute& compute, const Lookup& lookup, const float* table,
                      const float* position_table, int64_t width, float* y);

// dtable[id] += dy of each token with this id, one after another in the tokens' order; dposition_table likewise. Each
// may be null.
void EmbeddingBackward(const kernels::Compute& compute, const Lookup& lookup, int64_t width, const float* dy,
                       float* dtable, float* dposition_table);

}  // namespace millrace::model
