// Finds the answer in what a model has generated and makes it comparable with the right one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/evaluation.pb.h"

namespace re2 {
class RE2;
}

namespace millrace::evaluation {

// How the answers of an exact_match task are compared. Constant after Create: any thread.
class AnswerRule {
 public:
  // By extract, extract_which and normalize. INVALID_ARGUMENT if extract is no regular expression.
  static absl::StatusOr<AnswerRule> Create(const v1::TaskSpec& task);
  AnswerRule(AnswerRule&&) noexcept;
  ~AnswerRule();

  // What the expression finds: its first group if it has one, else all of the match; nothing if it matches nowhere.
  // The text itself without an expression.
  std::optional<std::string> Extract(absl::string_view generated) const;

  // In this order, each if asked for: lower case (ICU, root locale), ASCII punctuation left out, ASCII white space
  // taken off both ends. Bytes that are not UTF-8 become U+FFFD.
  std::string Normalize(absl::string_view answer) const;

 private:
  explicit AnswerRule(const v1::TaskSpec& task);

  std::unique_ptr<const re2::RE2> pattern_;  // null: none
  bool last_ = false;
  bool strip_ = false, lowercase_ = false, punctuation_ = false;
};

// What comes before the first place at which one of `stop` begins; all of it if there is none.
absl::string_view BeforeStop(absl::string_view text, const google::protobuf::RepeatedPtrField<std::string>& stop);

// One more than there are runs of white space, also at the ends: lm-evaluation-harness counts so (re.split(r"\s+")),
// and perplexities are comparable only if words are. Requires UTF-8.
uint64_t CountWords(absl::string_view text);

}  // namespace millrace::evaluation
