#include "model/layers/embedding.h"

#include <algorithm>

namespace millrace::model {

void EmbeddingForward(const kernels::Compute& compute, const Lookup& lookup, const float* table,
                      const float* position_table, int64_t width, float* y) {
  compute.ParallelFor(lookup.rows * lookup.columns, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / lookup.columns, column = i % lookup.columns;
      const float* const from = table + static_cast<int64_t>(lookup.ids[row * lookup.row_stride + column]) * width;
      float* const to = y + i * width;
      if (position_table == nullptr) {
        std::copy_n(from, width, to);
        continue;
      }
      const float* const position = position_table + static_cast<int64_t>(lookup.positions[i]) * width;
      for (int64_t c = 0; c < width; ++c) to[c] = from[c] + position[c];
    }
  });
}

// Threads take columns of the tables, so that each row's sum is one chain in the order of the tokens.
void EmbeddingBackward(const kernels::Compute& compute, const Lookup& lookup, int64_t width, const float* dy,
                       float* dtable, float* dposition_table) {
  compute.ParallelFor(width, 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < lookup.rows * lookup.columns; ++i) {
      const float* const from = dy + i * width;
      if (dtable != nullptr) {
        const int64_t row = i / lookup.columns, column = i % lookup.columns;
        float* const to = dtable + static_cast<int64_t>(lookup.ids[row * lookup.row_stride + column]) * width;
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
      if (dposition_table != nullptr) {
        float* const to = dposition_table + static_cast<int64_t>(lookup.positions[i]) * width;
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
    }
  });
}

}  // namespace millrace::model
