#include "worker/reward_programs.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace millrace::worker {

RewardProgram::RewardProgram(const v1::RewardSpec& spec) : spec_(spec) {}
RewardProgram::RewardProgram(RewardProgram&&) noexcept = default;
RewardProgram::~RewardProgram() = default;

absl::StatusOr<RewardProgram> RewardProgram::Create(const v1::RewardSpec& spec) {
  if (spec.type() == "model") return absl::InvalidArgumentError("a reward model is no program");
  RewardProgram program(spec);
  if (spec.type() == "pattern") {
    auto pattern = std::make_unique<const re2::RE2>(spec.pattern(), re2::RE2::Quiet);
    if (!pattern->ok()) {
      return absl::InvalidArgumentError(absl::StrCat("pattern '", spec.pattern(), "': ", pattern->error()));
    }
    program.pattern_ = std::move(pattern);
  }
  return program;
}

double RewardProgram::Reward(const AnswerText& answer) const {
  if (spec_.type() == "length") {
    const double target = spec_.target();
    return std::max(0.0, 1.0 - std::abs(static_cast<double>(answer.tokens) - target) / target);
  }
  if (spec_.type() == "pattern") {
    return re2::RE2::PartialMatch(re2::StringPiece(answer.text.data(), answer.text.size()), *pattern_) ? 1 : 0;
  }
  if (spec_.type() == "number") {
    const std::optional<double> given = LastNumber(answer.text), right = LastNumber(answer.right);
    return given.has_value() && right.has_value() && *given == *right ? 1 : 0;
  }
  return absl::StripAsciiWhitespace(answer.text) == absl::StripAsciiWhitespace(answer.right) ? 1 : 0;
}

std::optional<double> LastNumber(absl::string_view text) {
  static const auto* const kNumber = new re2::RE2(R"((-?\d+(?:,\d{3})*(?:\.\d+)?))");
  re2::StringPiece rest(text.data(), text.size());
  std::string found, last;
  while (re2::RE2::FindAndConsume(&rest, *kNumber, &found)) last = found;
  double number = 0;
  if (!absl::SimpleAtod(absl::StrReplaceAll(last, {{",", ""}}), &number)) return std::nullopt;
  return number;
}

}  // namespace millrace::worker
