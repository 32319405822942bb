// Shows how work goes on: one line that is written over on a terminal, plain lines now and then when piped.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace millrace {

// Own thread only. On a terminal the present text stays the last line; when piped it is printed if the last one was
// printed at least `every` ago, so that a log stays readable.
class ProgressLine {
 public:
  // `out` must outlive this. `terminal`: whether it is one (isatty).
  ProgressLine(std::FILE* out, bool terminal, absl::Duration every = absl::Seconds(5),
               std::function<absl::Time()> now = &absl::Now);
  // Leaves the terminal's cursor on a line of its own.
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Replaces the present text: one line, no line breaks. Cut to the terminal's width.
  void Show(absl::string_view text);
  // Adds a line that stays, above the present text.
  void Print(absl::string_view line);

 private:
  void Draw();
  void Erase();

  std::FILE* const out_;
  const bool terminal_;
  const absl::Duration every_;
  const std::function<absl::Time()> now_;
  std::string text_;      // as it stands on the terminal
  absl::Time printed_ = absl::InfinitePast();
};

// "4.5 s", "45 s", "3 min 20 s", "2 h 05 min", "3 d 4 h".
std::string ShortDuration(double seconds);
// "950", "12.3 k", "4.56 M": three figures.
std::string ShortCount(double count);

}  // namespace millrace
