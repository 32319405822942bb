#include "common/progress.h"

#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

// A file that is not a terminal.
class Output {
 public:
  Output() : file_(std::tmpfile()) {}
  ~Output() { std::fclose(file_); }
  std::FILE* file() const { return file_; }
  std::string Text() const {
    std::rewind(file_);
    std::string text;
    for (int c; (c = std::fgetc(file_)) != EOF;) text.push_back(static_cast<char>(c));
    return text;
  }

 private:
  std::FILE* const file_;
};

// Erases the present line of a terminal.
const char kErase[] = "\r\x1b[K";

TEST(ProgressLine, TerminalLineIsWrittenOver) {
  const Output output;
  {
    ProgressLine line(output.file(), /*terminal=*/true);
    line.Show("step 1");
    line.Show("step 2");
    line.Print("checkpoint");
  }
  EXPECT_EQ(output.Text(),
            std::string() + kErase + "step 1" + kErase + "step 2" + kErase + "checkpoint\nstep 2" + "\n");
}

TEST(ProgressLine, NothingShownLeavesNothing) {
  const Output output;
  { const ProgressLine line(output.file(), /*terminal=*/true); }
  EXPECT_EQ(output.Text(), "");
}

TEST(ProgressLine, PipedLinesAreRareButWhatIsPrintedStays) {
  const Output output;
  absl::Time now = absl::UnixEpoch();
  {
    ProgressLine line(output.file(), /*terminal=*/false, absl::Seconds(5), [&now] { return now; });
    line.Show("step 1");
    now += absl::Seconds(4);
    line.Show("step 2");
    line.Print("checkpoint");
    now += absl::Seconds(1);
    line.Show("step 3");
    line.Show("step 4");
  }
  EXPECT_EQ(output.Text(), "step 1\ncheckpoint\nstep 3\n");
}

// Shows `text` on a terminal of this width and gives what arrives there.
std::string OnTerminal(unsigned short columns, const std::string& text) {
  int outside = -1, inside = -1;
  winsize size = {};
  size.ws_row = 24;
  size.ws_col = columns;
  EXPECT_EQ(openpty(&outside, &inside, nullptr, nullptr, &size), 0);
  std::FILE* const file = fdopen(inside, "w");
  ProgressLine(file, isatty(inside)).Show(text);
  std::fclose(file);
  std::string arrived;
  char bytes[1024];
  for (ssize_t got; (got = read(outside, bytes, sizeof(bytes))) > 0;) arrived.append(bytes, static_cast<size_t>(got));
  close(outside);
  return arrived;
}

TEST(ProgressLine, IsCutToTheTerminalsWidth) {
  EXPECT_EQ(OnTerminal(11, "0123456789abcdef"), std::string() + kErase + "0123456789\r\n");
  EXPECT_EQ(OnTerminal(11, "01234567"), std::string() + kErase + "01234567\r\n");
}

TEST(ProgressLine, CutsBetweenCharacters) {
  EXPECT_EQ(OnTerminal(4, "aé…xyz"), std::string() + kErase + "aé…\r\n");
  EXPECT_EQ(OnTerminal(6, "ééééé"), std::string() + kErase + "ééééé\r\n");
}

TEST(Progress, DurationsReadWell) {
  EXPECT_EQ(ShortDuration(0), "0.0 s");
  EXPECT_EQ(ShortDuration(4.5), "4.5 s");
  EXPECT_EQ(ShortDuration(9.96), "10 s");
  EXPECT_EQ(ShortDuration(45), "45 s");
  EXPECT_EQ(ShortDuration(59.6), "1 min 00 s");
  EXPECT_EQ(ShortDuration(200), "3 min 20 s");
  EXPECT_EQ(ShortDuration(7500), "2 h 05 min");
  EXPECT_EQ(ShortDuration(3 * 86400 + 4 * 3600), "3 d 4 h");
  EXPECT_EQ(ShortDuration(-1), "?");
  EXPECT_EQ(ShortDuration(std::nan("")), "?");
  EXPECT_EQ(ShortDuration(std::numeric_limits<double>::infinity()), "?");
}

TEST(Progress, CountsHaveThreeFigures) {
  EXPECT_EQ(ShortCount(0), "0");
  EXPECT_EQ(ShortCount(950), "950");
  EXPECT_EQ(ShortCount(999.6), "1.00 k");
  EXPECT_EQ(ShortCount(12300), "12.3 k");
  EXPECT_EQ(ShortCount(456000), "456 k");
  EXPECT_EQ(ShortCount(999600), "1.00 M");
  EXPECT_EQ(ShortCount(4.56e6), "4.56 M");
  EXPECT_EQ(ShortCount(7.8e9), "7.80 G");
  EXPECT_EQ(ShortCount(1.5e15), "1500 T");
}

}  // namespace
}  // namespace millrace
