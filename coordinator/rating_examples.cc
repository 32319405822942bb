#include "coordinator/rating_examples.h"

#include <array>
#include <utility>
#include <vector>

#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kPairsARead = 256;

Json PromptOf(const v1::RatingPair& pair) {
  if (pair.prompt_size() == 1 && pair.prompt(0).role() == "user") return pair.prompt(0).content();
  Json messages = Json::array();
  for (const v1::RatingPair::Message& message : pair.prompt()) {
    messages.push_back({{"role", message.role()}, {"content", message.content()}});
  }
  return messages;
}

void Count(RatingOutcome outcome, v1::ExportCounts* counts) {
  switch (outcome) {
    case RatingOutcome::kUnrated:
      return counts->set_unrated(counts->unrated() + 1);
    case RatingOutcome::kSkipped:
      return counts->set_skipped(counts->skipped() + 1);
    case RatingOutcome::kFlagged:
      return counts->set_flagged(counts->flagged() + 1);
    case RatingOutcome::kTie:
      counts->set_ties(counts->ties() + 1);
      [[fallthrough]];
    case RatingOutcome::kA:
    case RatingOutcome::kB:
      return counts->set_examples(counts->examples() + 1);
  }
}

}  // namespace

RatingOutcome OutcomeOf(const RatedPair& rated) {
  if (rated.ratings.empty()) return RatingOutcome::kUnrated;
  std::array<int, v1::Rating::Choice_ARRAYSIZE> votes = {};
  for (const v1::Rating& rating : rated.ratings) {
    if (rating.flagged()) return RatingOutcome::kFlagged;
    ++votes[rating.choice()];
  }
  const int a = votes[v1::Rating::A], b = votes[v1::Rating::B], tie = votes[v1::Rating::TIE];
  if (a + b + tie == 0) return RatingOutcome::kSkipped;
  if (a > b && a > tie) return RatingOutcome::kA;
  if (b > a && b > tie) return RatingOutcome::kB;
  return RatingOutcome::kTie;
}

double MarginOf(const RatedPair& rated, RatingOutcome outcome) {
  if (outcome != RatingOutcome::kA && outcome != RatingOutcome::kB) return 0;
  const v1::Rating::Choice winner = outcome == RatingOutcome::kA ? v1::Rating::A : v1::Rating::B;
  uint64_t sum = 0, raters = 0;
  for (const v1::Rating& rating : rated.ratings) {
    if (rating.choice() != winner || rating.strength() == 0) continue;
    sum += rating.strength();
    ++raters;
  }
  return raters == 0 ? 0 : static_cast<double>(sum) / static_cast<double>(raters);
}

std::string ExampleLine(const RatedPair& rated, RatingOutcome outcome) {
  const v1::RatingPair& pair = rated.pair;
  const bool b_won = outcome == RatingOutcome::kB;
  Json line = Json::object();
  line["prompt"] = PromptOf(pair);
  line["chosen"] = b_won ? pair.b() : pair.a();
  line["rejected"] = b_won ? pair.a() : pair.b();
  if (const double margin = MarginOf(rated, outcome); margin > 0) line["margin"] = margin;
  if (outcome == RatingOutcome::kTie) line["tie"] = true;
  uint64_t raters = 0;
  Json notes = Json::array();
  for (const v1::Rating& rating : rated.ratings) {
    raters += rating.choice() != v1::Rating::SKIP;
    if (!rating.note().empty()) notes.push_back(rating.note());
  }
  line["raters"] = raters;
  line["source_chosen"] = b_won ? pair.source_b() : pair.source_a();
  line["source_rejected"] = b_won ? pair.source_a() : pair.source_b();
  line["notes"] = std::move(notes);
  return line.dump() + "\n";
}

absl::StatusOr<v1::ExportCounts> ExportExamples(RatingStore* store, absl::string_view set_id,
                                                absl::FunctionRef<absl::Status(absl::string_view lines)> sink) {
  v1::ExportCounts counts;
  for (uint64_t first = 0;; first += kPairsARead) {
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<RatedPair> pairs, store->Read(set_id, first, kPairsARead));
    std::string lines;
    for (const RatedPair& rated : pairs) {
      const RatingOutcome outcome = OutcomeOf(rated);
      Count(outcome, &counts);
      if (outcome >= RatingOutcome::kTie) lines += ExampleLine(rated, outcome);
    }
    if (!lines.empty()) MILLRACE_RETURN_IF_ERROR(sink(lines));
    if (pairs.size() < kPairsARead) return counts;
  }
}

}  // namespace millrace::coordinator
