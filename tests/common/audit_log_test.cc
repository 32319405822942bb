#include "common/audit_log.h"

#include <sys/stat.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using text::TemporaryFolder;
using Json = nlohmann::json;

std::vector<Json> Lines(const std::string& text) {
  std::vector<Json> lines;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    lines.push_back(Json::parse(line, nullptr, /*allow_exceptions=*/false));
    EXPECT_FALSE(lines.back().is_discarded()) << line;
  }
  return lines;
}

AuditEntry Entry(absl::Time time, const std::string& who) {
  AuditEntry entry;
  entry.time = time;
  entry.who = who;
  entry.method = "Jobs/CancelJob";
  entry.code = "OK";
  return entry;
}

TEST(AuditLog, GrowsAndIsItsOwnersAlone) {
  const TemporaryFolder folder;
  for (const char* who : {"alice", "bob"}) {
    const auto log = AuditLog::Open(folder / "audit.jsonl");
    ASSERT_OK(log);
    (*log)->Append(Entry(absl::UnixEpoch(), who));
  }
  const std::vector<Json> lines = Lines(folder.Read("audit.jsonl"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["who"], "alice");
  EXPECT_EQ(lines[0]["time"], "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(lines[1]["who"], "bob");
  struct stat about;
  ASSERT_EQ(stat((folder / "audit.jsonl").c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0600u);
}

TEST(AuditLog, AnEntryIsALineWhateverItHolds) {
  AuditEntry entry = Entry(absl::UnixEpoch(), "a\nb\"\xff\x01");
  entry.job = std::string(100'000, '\n');
  entry.message = std::string(100'000, '\xff');
  const std::string line = FormatAudit(entry, 0);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_LT(line.size(), 16'000u);
  EXPECT_EQ(Lines(line).size(), 1u);
}

TEST(AuditLog, AFloodOfRefusalsIsCountedRatherThanWritten) {
  const TemporaryFolder folder;
  const auto log = AuditLog::Open(folder / "audit.jsonl");
  ASSERT_OK(log);
  const absl::Time start = absl::UnixEpoch();
  for (int i = 0; i < 1000; ++i) (*log)->AppendRefusal(Entry(start, absl::StrCat(i)));
  EXPECT_EQ(Lines(folder.Read("audit.jsonl")).size(), 200u);
  // What is done is written all the same, and says what is missing before it.
  (*log)->Append(Entry(start, "alice"));
  (*log)->AppendRefusal(Entry(start + absl::Seconds(1), "later"));
  const std::vector<Json> lines = Lines(folder.Read("audit.jsonl"));
  ASSERT_EQ(lines.size(), 202u);
  EXPECT_EQ(lines[200]["left_out"], 800);
  EXPECT_FALSE(lines[201].contains("left_out"));
}

}  // namespace
}  // namespace millrace
