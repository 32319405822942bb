// Looks rows of tables up: token embeddings and learned positions.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::model {

// y[i] = table[ids[i]] + positions[i % columns + first_position] for `rows` sequences of `columns` tokens, whose ids
// are `row_stride` apart. `positions` may be null. Rows of all are `width` long. Requires ids that the table has.
void EmbeddingForward(const kernels::Compute& compute, const float* table, const float* positions, const uint32_t* ids,
                      int64_t rows, int64_t columns, int64_t row_stride, int64_t first_position, int64_t width,
                      float* y);

// dtable[id] += dy of each token with this id, one after another in the tokens' order; dpositions likewise (may be
// null), from position 0.
void EmbeddingBackward(const kernels::Compute& compute, const uint32_t* ids, int64_t rows, int64_t columns,
                       int64_t row_stride, int64_t width, const float* dy, float* dtable, float* dpositions);

}  // namespace millrace::model
