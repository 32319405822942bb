#include "model/layers/causal_layer.h"

#include <algorithm>

namespace millrace::model {

void TimeOrder::Set(absl::Span<const int64_t> lengths) {
  lengths_.assign(lengths.begin(), lengths.end());
  first_.assign(1, 0);
  const int64_t steps = lengths.empty() ? 0 : lengths.front();
  auto count = static_cast<int64_t>(lengths.size());
  for (int64_t step = 0; step < steps; ++step) {
    while (length(count - 1) <= step) --count;
    first_.push_back(first_.back() + count);
  }
}

}  // namespace millrace::model
