#include "common/log.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

using ::testing::IsEmpty;

constexpr int64_t kTime = 1795515072345;  // 2026-11-24T10:11:12.345Z

std::string Text(Severity severity, absl::string_view text, std::initializer_list<LogField> fields) {
  return FormatLog(/*json=*/false, kTime, severity, text, fields);
}

// Logs into a file of its own for as long as it lives.
class CapturedLog {
 public:
  explicit CapturedLog(bool json) : file_(std::tmpfile()) { SetLogOutput(file_, json); }
  ~CapturedLog() {
    SetLogOutput(stderr, /*json=*/false);
    std::fclose(file_);
  }
  std::vector<std::string> Lines() const {
    std::rewind(file_);
    std::string text;
    for (int c; (c = std::fgetc(file_)) != EOF;) text.push_back(static_cast<char>(c));
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    EXPECT_THAT(lines.back(), IsEmpty()) << "the last line does not end";
    lines.pop_back();
    return lines;
  }

 private:
  std::FILE* const file_;
};

TEST(Log, TextLinesHaveTimeSeverityAndFields) {
  EXPECT_EQ(Text(Severity::kInfo, "checkpoint", {{"job", "kjv"}, {"step", 300}, {"best", true}, {"loss", 1.5}}),
            "2026-11-24T10:11:12.345Z I checkpoint job=kjv step=300 best=true loss=1.5");
  EXPECT_EQ(Text(Severity::kWarning, "late", {}), "2026-11-24T10:11:12.345Z W late");
  EXPECT_EQ(Text(Severity::kError, "lost", {{"shard", std::string("s1")}, {"code", -1}}),
            "2026-11-24T10:11:12.345Z E lost shard=s1 code=-1");
}

TEST(Log, TextFieldsThatAreNoPlainWordAreQuoted) {
  EXPECT_EQ(Text(Severity::kInfo, "x", {{"a", "two words"}, {"b", ""}, {"c", "k=v"}, {"d", "say \"hi\""}}),
            "2026-11-24T10:11:12.345Z I x a=\"two words\" b=\"\" c=\"k=v\" d=\"say \\\"hi\\\"\"");
  EXPECT_EQ(Text(Severity::kInfo, "x", {{"a", "líne\nbreak\x1b[31m"}}),
            "2026-11-24T10:11:12.345Z I x a=\"líne\\nbreak\\033[31m\"");
}

TEST(Log, ApostrophesStay) {
  EXPECT_EQ(Text(Severity::kInfo, "it's \\'", {{"a", "it's \\'"}}),
            "2026-11-24T10:11:12.345Z I it's \\\\' a=\"it's \\\\'\"");
}

TEST(Log, NoTextBreaksTheLine) {
  EXPECT_EQ(Text(Severity::kInfo, "one\ntwo\r\x1b", {}), "2026-11-24T10:11:12.345Z I one\\ntwo\\r\\033");
  for (const bool json : {false, true}) {
    const std::string line = FormatLog(json, kTime, Severity::kInfo, "a\nb", {{"c", "d\ne"}});
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  }
}

TEST(Log, JsonLinesHoldTheFieldsInOrderAndByType) {
  EXPECT_EQ(FormatLog(/*json=*/true, kTime, Severity::kInfo, "checkpoint",
                      {{"job", "kjv"}, {"step", 300}, {"best", true}, {"loss", 1.5}}),
            R"({"time":"2026-11-24T10:11:12.345Z","severity":"info","text":"checkpoint",)"
            R"("job":"kjv","step":300,"best":true,"loss":1.5})");
}

TEST(Log, JsonLinesParseWhateverTheBytes) {
  const std::string line =
      FormatLog(/*json=*/true, kTime, Severity::kError, "quote \" and \n and \xff",
                {{"nan", std::nan("")}, {"most", std::numeric_limits<int64_t>::max()}, {"bytes", "\xc3(\x01"}});
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(json.is_object()) << line;
  EXPECT_EQ(json["severity"], "error");
  EXPECT_EQ(json["text"], "quote \" and \n and \ufffd");
  EXPECT_TRUE(json["nan"].is_null());
  EXPECT_EQ(json["most"], std::numeric_limits<int64_t>::max());
  EXPECT_EQ(json["bytes"], "\ufffd(\x01");
}

TEST(Log, LinesOfManyThreadsStayWhole) {
  const CapturedLog log(/*json=*/true);
  constexpr int kThreads = 8, kLines = 200;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([thread] {
      for (int i = 0; i < kLines; ++i) Log(Severity::kInfo, "line", {{"id", thread * kLines + i}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<int> ids;
  for (const std::string& line : log.Lines()) {
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(json.is_object()) << line;
    ids.insert(json["id"].get<int>());
  }
  EXPECT_EQ(ids.size(), size_t{kThreads * kLines});
}

TEST(Log, CanBeTurnedOff) {
  const CapturedLog log(/*json=*/false);
  SetLogOutput(nullptr, /*json=*/false);
  Log(Severity::kError, "unseen");
  EXPECT_THAT(log.Lines(), IsEmpty());
}

}  // namespace
}  // namespace millrace
