// Lays sequences of different lengths out as the rows of a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/objectives/token_scores.h"

namespace millrace::worker {

// Rows are as long as the longest sequence; behind the others there is padding, of a sequence of its own, that counts
// for nothing.
class PaddedRows {
 public:
  // Tokens from `first_scored` on count. Require sequences that are not empty, at least one, and no token before the
  // second that counts.
  struct Sequence {
    absl::Span<const uint32_t> ids;
    size_t first_scored = 1;
  };
  explicit PaddedRows(absl::Span<const Sequence> sequences);

  // Views of this.
  model::Batch batch() const;
  model::TokenMatrix tokens() const { return {ids_.data(), rows_, columns_, columns_, starts_.data()}; }
  // Index into [rows, columns] of a row's last token.
  size_t last(size_t row) const { return last_[row]; }

 private:
  int64_t rows_ = 0, columns_ = 0;
  std::vector<uint32_t> ids_, starts_;
  std::vector<uint8_t> scored_;
  std::vector<size_t> last_;
};

}  // namespace millrace::worker
