#include "model/layers/embedding.h"

#include <algorithm>

namespace millrace::model {

void EmbeddingForward(const kernels::Compute& compute, const float* table, const float* positions, const uint32_t* ids,
                      int64_t rows, int64_t columns, int64_t row_stride, int64_t first_position, int64_t width,
                      float* y) {
  compute.ParallelFor(rows * columns, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / columns, column = i % columns;
      const float* const from = table + static_cast<int64_t>(ids[row * row_stride + column]) * width;
      float* const to = y + i * width;
      if (positions == nullptr) {
        std::copy_n(from, width, to);
        continue;
      }
      const float* const position = positions + (first_position + column) * width;
      for (int64_t c = 0; c < width; ++c) to[c] = from[c] + position[c];
    }
  });
}

// Threads take columns of the tables, so that each row's sum is one chain in the order of the tokens.
void EmbeddingBackward(const kernels::Compute& compute, const uint32_t* ids, int64_t rows, int64_t columns,
                       int64_t row_stride, int64_t width, const float* dy, float* dtable, float* dpositions) {
  compute.ParallelFor(width, 32, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        const float* const from = dy + (row * columns + column) * width;
        float* const to = dtable + static_cast<int64_t>(ids[row * row_stride + column]) * width;
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
        if (dpositions == nullptr) continue;
        float* const position = dpositions + column * width;
        for (int64_t c = begin; c < end; ++c) position[c] += from[c];
      }
    }
  });
}

}  // namespace millrace::model
