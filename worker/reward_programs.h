// Says what an answer is worth by programs: its length, a regular expression, the right answer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/job.pb.h"

namespace re2 {
class RE2;
}

namespace millrace::worker {

// An answer as programs see it.
struct AnswerText {
  absl::string_view text;   // without the token that ends it
  int64_t tokens = 0;       // with it
  absl::string_view right;  // the prompt's answer; empty: there is none
};

// Constant after Create: any thread.
class RewardProgram {
 public:
  // INVALID_ARGUMENT for the type model, and for a pattern that is none.
  static absl::StatusOr<RewardProgram> Create(const v1::RewardSpec& spec);
  RewardProgram(RewardProgram&&) noexcept;
  ~RewardProgram();

  // In [0, 1], before its weight:
  //   length   max(0, 1 - |tokens - target| / target)
  //   pattern  whether the pattern matches somewhere in the text
  //   answer   whether the text is the right answer, but for white space around both
  //   number   whether the last number of the text and that of the right answer are equal: 1,000 and 1000.0 are
  double Reward(const AnswerText& answer) const;

 private:
  explicit RewardProgram(const v1::RewardSpec& spec);

  v1::RewardSpec spec_;
  std::unique_ptr<const re2::RE2> pattern_;
};

// The last number in a text, as digits with an optional sign, thousands and decimals; nothing if there is none.
std::optional<double> LastNumber(absl::string_view text);

}  // namespace millrace::worker
