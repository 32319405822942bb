#include "common/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace millrace {
namespace {

// The first `count` characters of UTF-8.
absl::string_view FirstCharacters(absl::string_view text, size_t count) {
  size_t end = 0;
  for (; end < text.size(); ++end) {
    const bool starts_one = (static_cast<unsigned char>(text[end]) & 0xC0) != 0x80;
    if (starts_one && count-- == 0) break;
  }
  return text.substr(0, end);
}

}  // namespace

ProgressLine::ProgressLine(std::FILE* out, bool terminal, absl::Duration every, std::function<absl::Time()> now)
    : out_(out), terminal_(terminal), every_(every), now_(std::move(now)) {}

ProgressLine::~ProgressLine() {
  if (terminal_ && !text_.empty()) std::fputs("\n", out_);
  std::fflush(out_);
}

void ProgressLine::Erase() { std::fputs("\r\x1b[K", out_); }

void ProgressLine::Draw() {
  size_t width = 80;
  winsize size = {};
  if (ioctl(fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) width = size.ws_col;
  const absl::string_view shown = FirstCharacters(text_, std::max<size_t>(width, 2) - 1);
  std::fwrite(shown.data(), 1, shown.size(), out_);
}

void ProgressLine::Show(absl::string_view text) {
  if (terminal_) {
    Erase();
    text_ = std::string(text);
    Draw();
    std::fflush(out_);
    return;
  }
  const absl::Time now = now_();
  if (now - printed_ < every_) return;
  printed_ = now;
  Print(text);
}

void ProgressLine::Print(absl::string_view line) {
  if (terminal_) Erase();
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fputc('\n', out_);
  if (terminal_) Draw();
  std::fflush(out_);
}

std::string ShortDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(std::llround(std::min(seconds, 1e12)));
  if (seconds < 9.95) return absl::StrFormat("%.1f s", seconds);
  if (whole < 60) return absl::StrFormat("%d s", whole);
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  if (whole < 86400) return absl::StrFormat("%d h %02d min", whole / 3600, whole % 3600 / 60);
  return absl::StrFormat("%d d %d h", whole / 86400, whole % 86400 / 3600);
}

std::string ShortCount(double count) {
  const char* unit = "";
  for (const char* larger : {" k", " M", " G", " T"}) {
    if (std::fabs(count) < 999.5) break;
    count /= 1000;
    unit = larger;
  }
  const int decimals = *unit == '\0' ? 0 : count < 9.995 ? 2 : count < 99.95 ? 1 : 0;
  return absl::StrFormat("%.*f%s", decimals, count, unit);
}

}  // namespace millrace
