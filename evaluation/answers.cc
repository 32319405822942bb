#include "evaluation/answers.h"

#include <re2/re2.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "text/clean.h"
#include "text/unicode.h"

namespace millrace::evaluation {

AnswerRule::AnswerRule(const v1::TaskSpec& task) : last_(task.extract_which() == "last") {
  for (const std::string& step : task.normalize()) {
    strip_ = strip_ || step == "strip";
    lowercase_ = lowercase_ || step == "lowercase";
    punctuation_ = punctuation_ || step == "punctuation";
  }
}
AnswerRule::AnswerRule(AnswerRule&&) noexcept = default;
AnswerRule::~AnswerRule() = default;

absl::StatusOr<AnswerRule> AnswerRule::Create(const v1::TaskSpec& task) {
  AnswerRule rule(task);
  if (!task.has_extract()) return rule;
  rule.pattern_ = std::make_unique<const re2::RE2>(task.extract(), re2::RE2::Quiet);
  if (!rule.pattern_->ok()) {
    return absl::InvalidArgumentError(absl::StrCat("extract '", task.extract(), "': ", rule.pattern_->error()));
  }
  return rule;
}

std::optional<std::string> AnswerRule::Extract(absl::string_view generated) const {
  if (pattern_ == nullptr) return std::string(generated);
  const re2::StringPiece text(generated.data(), generated.size());
  re2::StringPiece groups[2];
  const int wanted = std::min(2, pattern_->NumberOfCapturingGroups() + 1);
  std::optional<std::string> found;
  for (size_t from = 0; from <= text.size();) {
    if (!pattern_->Match(text, from, text.size(), re2::RE2::UNANCHORED, groups, wanted)) break;
    const re2::StringPiece& answer = groups[wanted - 1];
    found = answer.data() == nullptr ? "" : std::string(answer.data(), answer.size());
    if (!last_) break;
    // Behind an empty match the search goes on one byte later, or it would find it again.
    const auto end = static_cast<size_t>(groups[0].data() - text.data()) + groups[0].size();
    from = groups[0].empty() ? end + 1 : end;
  }
  return found;
}

std::string AnswerRule::Normalize(absl::string_view answer) const {
  std::string text = text::WellFormed(answer);
  if (lowercase_) {
    v1::CleanSpec lower;
    lower.set_unicode("none");
    lower.set_lowercase(true);
    lower.set_control(false);
    // Only ICU's own failure could be one: the text is well formed.
    if (absl::StatusOr<std::string> made = text::Clean(lower, text); made.ok()) text = *std::move(made);
  }
  if (punctuation_) {
    text.erase(std::remove_if(text.begin(), text.end(),
                              [](char c) { return absl::ascii_ispunct(static_cast<unsigned char>(c)); }),
               text.end());
  }
  return strip_ ? std::string(absl::StripAsciiWhitespace(text)) : text;
}

absl::string_view BeforeStop(absl::string_view text, const google::protobuf::RepeatedPtrField<std::string>& stop) {
  size_t end = text.size();
  for (const std::string& one : stop) end = std::min(end, text.find(one));
  return text.substr(0, end);
}

uint64_t CountWords(absl::string_view text) {
  uint64_t words = 1;
  for (bool in_space = false; !text.empty();) {
    const text::Character next = text::FirstCharacter(text);
    const bool space = text::Classify(next.code) == text::CharacterClass::kSpace;
    if (space && !in_space) ++words;
    in_space = space;
    text.remove_prefix(next.bytes);
  }
  return words;
}

}  // namespace millrace::evaluation
