#include "model/continuation_scores.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/objectives/causal_lm.h"

namespace millrace::model {
namespace {

// Tokens that go through the model together.
constexpr int64_t kScoredTokens = 2048;

// A sequence whose tokens from `first_scored` on are predicted.
struct Window {
  size_t continuation = 0;
  int64_t begin = 0;         // in the context and continuation behind each other
  int64_t end = 0;           // at least two tokens behind it
  int64_t first_scored = 0;  // there too; above begin

  int64_t size() const { return end - begin; }
};

// Those of one continuation, and what is cut.
uint64_t AppendWindows(size_t index, const ContinuationTokens& of, int64_t context, std::vector<Window>* windows) {
  const auto before = static_cast<int64_t>(of.context.size()), after = static_cast<int64_t>(of.ids.size());
  const int64_t all = before + after;
  if (after <= context) {
    const int64_t begin = std::max<int64_t>(0, all - (context + 1));
    windows->push_back({index, begin, all, before});
    return static_cast<uint64_t>(begin);
  }
  uint64_t cut = 0;
  for (int64_t begin = 0; begin < all - 1; begin += context) {
    const int64_t end = std::min(all, begin + context + 1);
    if (end <= before) {
      cut += static_cast<uint64_t>(context);
      continue;
    }
    windows->push_back({index, begin, end, std::max(before, begin + 1)});
  }
  return cut;
}

// Windows laid into the rows of one batch.
class Packed {
 public:
  // `columns`: of a row, with the last token, which is a target only.
  explicit Packed(int64_t columns) : columns_(columns) {}

  // Finds room for the window in a row that has some, or in a new one while there are fewer than `rows`.
  bool Add(const Window& window, int64_t rows) {
    auto room = room_.lower_bound(window.size());
    int64_t row;
    if (room != room_.end()) {
      row = room->second;
      room_.erase(room);
    } else if (static_cast<int64_t>(used_.size()) < rows) {
      row = static_cast<int64_t>(used_.size());
      used_.push_back(0);
    } else {
      return false;
    }
    int64_t& used = used_[static_cast<size_t>(row)];
    placed_.push_back({window, row, used});
    used += window.size();
    if (columns_ - used >= 2) room_.emplace(columns_ - used, row);
    return true;
  }

  // Scores them; each log-probability goes to its place in `scores`.
  absl::Status Score(absl::Span<const ContinuationTokens> continuations, const NetworkWeights& weights,
                     CausalLm* causal_lm, std::vector<ContinuationScore>* scores) {
    const auto rows = static_cast<int64_t>(used_.size()), cells = rows * columns_;
    std::vector<uint32_t> ids(static_cast<size_t>(cells)), starts(static_cast<size_t>(cells));
    std::vector<uint8_t> scored(static_cast<size_t>(cells));
    std::sort(placed_.begin(), placed_.end(),
              [](const Placed& a, const Placed& b) { return a.row != b.row ? a.row < b.row : a.column < b.column; });
    for (const Placed& placed : placed_) {
      const ContinuationTokens& of = continuations[placed.window.continuation];
      const auto before = static_cast<int64_t>(of.context.size());
      for (int64_t i = 0; i < placed.window.size(); ++i) {
        const int64_t from = placed.window.begin + i;
        const auto at = static_cast<size_t>(placed.row * columns_ + placed.column + i);
        ids[at] = from < before ? of.context[static_cast<size_t>(from)] : of.ids[static_cast<size_t>(from - before)];
        starts[at] = static_cast<uint32_t>(placed.column);
        scored[at] = from >= placed.window.first_scored ? 1 : 0;
      }
    }
    // What is left of a row is sequences of one token, of which each attends to itself.
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = used_[static_cast<size_t>(row)]; column < columns_; ++column) {
        starts[static_cast<size_t>(row * columns_ + column)] = static_cast<uint32_t>(column);
      }
    }
    Batch batch = {ids.data(), rows, columns_};
    batch.starts = starts.data();
    batch.scored = scored.data();
    std::vector<float> log_probabilities(static_cast<size_t>(batch.predictions()));
    MILLRACE_RETURN_IF_ERROR(causal_lm->Loss(weights, batch, &IgnoreGroup, log_probabilities.data()).status());
    const float* next = log_probabilities.data();
    for (const Placed& placed : placed_) {
      const auto before = static_cast<int64_t>(continuations[placed.window.continuation].context.size());
      float* const to = (*scores)[placed.window.continuation].log_probabilities.data();
      const int64_t count = placed.window.end - placed.window.first_scored;
      std::copy_n(next, count, to + (placed.window.first_scored - before));
      next += count;
    }
    return absl::OkStatus();
  }

 private:
  struct Placed {
    Window window;
    int64_t row = 0;
    int64_t column = 0;
  };

  int64_t columns_;
  std::vector<int64_t> used_;             // of each row
  std::multimap<int64_t, int64_t> room_;  // left in it -> row
  std::vector<Placed> placed_;
};

}  // namespace

absl::StatusOr<std::vector<ContinuationScore>> ScoreContinuations(const Network& network,
                                                                  const kernels::Compute& compute,
                                                                  const NetworkWeights& weights,
                                                                  absl::Span<const ContinuationTokens> continuations) {
  std::vector<ContinuationScore> scores(continuations.size());
  std::vector<Window> windows;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const ContinuationTokens& of = continuations[i];
    if (of.context.empty() || of.ids.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("continuation ", i, " has ", of.context.empty() ? "no token before it" : "no tokens"));
    }
    for (const std::vector<uint32_t>* ids : {&of.context, &of.ids}) {
      for (const uint32_t id : *ids) {
        if (id < network.vocab_size()) continue;
        return absl::InvalidArgumentError(absl::StrCat("continuation ", i, ": token id ", id,
                                                       " is not below the vocabulary's ", network.vocab_size()));
      }
    }
    scores[i].log_probabilities.resize(of.ids.size());
    scores[i].cut = AppendWindows(i, of, network.spec().context() - weights.virtual_tokens(), &windows);
  }
  if (windows.empty()) return scores;
  // Long ones first: the short ones fill up what those leave.
  std::stable_sort(windows.begin(), windows.end(),
                   [](const Window& a, const Window& b) { return a.size() > b.size(); });
  const int64_t columns = windows.front().size();
  const int64_t rows = std::max<int64_t>(1, kScoredTokens / (columns - 1));
  MILLRACE_ASSIGN_OR_RETURN(CausalLm causal_lm, CausalLm::Create(&network, &compute, rows * (columns - 1), columns - 1,
                                                                 /*for_training=*/false));
  Packed packed(columns);
  for (const Window& window : windows) {
    if (packed.Add(window, rows)) continue;
    MILLRACE_RETURN_IF_ERROR(packed.Score(continuations, weights, &causal_lm, &scores));
    packed = Packed(columns);
    packed.Add(window, rows);
  }
  MILLRACE_RETURN_IF_ERROR(packed.Score(continuations, weights, &causal_lm, &scores));
  return scores;
}

}  // namespace millrace::model
