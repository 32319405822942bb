#include "worker/padded_rows.h"

#include <algorithm>

namespace millrace::worker {

PaddedRows::PaddedRows(absl::Span<const Sequence> sequences) : rows_(static_cast<int64_t>(sequences.size())) {
  size_t columns = 0;
  for (const Sequence& sequence : sequences) columns = std::max(columns, sequence.ids.size());
  columns_ = static_cast<int64_t>(columns);
  ids_.resize(sequences.size() * columns);
  starts_.resize(ids_.size());
  scored_.resize(ids_.size());
  for (size_t row = 0; row < sequences.size(); ++row) {
    const Sequence& sequence = sequences[row];
    const size_t begin = row * columns, length = sequence.ids.size();
    std::copy(sequence.ids.begin(), sequence.ids.end(), ids_.begin() + static_cast<ptrdiff_t>(begin));
    for (size_t i = sequence.first_scored; i < length; ++i) scored_[begin + i] = 1;
    for (size_t i = length; i < columns; ++i) starts_[begin + i] = static_cast<uint32_t>(length);
    last_.push_back(begin + length - 1);
  }
}

model::Batch PaddedRows::batch() const {
  model::Batch batch;
  batch.ids = ids_.data();
  batch.rows = rows_;
  batch.columns = columns_;
  batch.starts = starts_.data();
  batch.scored = scored_.data();
  return batch;
}

}  // namespace millrace::worker
