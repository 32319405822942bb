#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"
#include "text/token_store.h"

namespace millrace::text {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::JobSpec Job(const std::vector<std::string>& paths, const std::string& order, double held_out,
                const std::string& tokenizer, uint32_t vocab_size = 300) {
  v1::JobSpec job;
  for (const std::string& path : paths) {
    v1::SourceSpec& source = *job.mutable_data()->add_sources();
    source.set_path(path);
    source.set_format("auto");
    source.set_field("text");
  }
  v1::CleanSpec& clean = *job.mutable_data()->mutable_clean();
  clean.set_unicode("nfc");
  clean.set_strip_markup(true);
  clean.set_control(true);
  clean.set_dedup("exact");
  job.mutable_data()->set_held_out(held_out);
  job.mutable_data()->mutable_split()->set_order(order);
  job.mutable_data()->mutable_split()->set_window_bytes(256);
  job.mutable_tokenizer()->set_type(tokenizer);
  job.mutable_tokenizer()->set_vocab_size(vocab_size);
  return job;
}

std::string Paragraphs(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < 12; ++j)
      absl::StrAppend(&text, "the word ", i * 31 + j * 17 % 23, j % 5 == 0 ? " and " : " of ");
    text += "end.\n\n";
  }
  return text;
}

std::vector<uint32_t> Ids(const TokenFile& file) {
  std::vector<uint32_t> ids;
  for (uint64_t i = 0; i < file.size(); ++i) ids.push_back(file[i]);
  return ids;
}

TEST(PrepareData, CharactersInFileOrderAreCutAsNanoGptCuts) {
  TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 1003; ++i) text += i % 7 == 0 ? "é" : std::string(1, static_cast<char>('a' + i % 26));
  folder.Write("a.txt", text);
  v1::JobSpec job = Job({"a.txt"}, "file", 0.1, "char");
  const auto report = PrepareData(job, folder.path(), folder / "out", {.write_text = true});
  ASSERT_OK(report);
  const auto store = *TokenStore::Open(folder / "out");
  EXPECT_EQ(store->train().size(), 902u);  // int(1003 * 0.9)
  EXPECT_EQ(store->held_out().size(), 101u);
  EXPECT_EQ(store->tokenizer().Decode(Ids(store->train())) + store->tokenizer().Decode(Ids(store->held_out())), text);
  EXPECT_EQ(folder.Read("out/train.txt") + folder.Read("out/held_out.txt"), text);
  EXPECT_EQ(report->train_bytes + report->held_out_bytes, text.size());
  EXPECT_EQ(report->vocab_size, 27u);
}

TEST(PrepareData, TinyShakespeareHasNanoGptsCounts) {
  const std::string path = absl::StrCat(MILLRACE_SOURCE_DIR, "/../shared/data/tinyshakespeare.txt");
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not there";
  TemporaryFolder folder;
  v1::JobSpec job = Job({path}, "file", 0.1, "char");
  job.mutable_data()->mutable_clean()->set_dedup("none");
  const auto report = PrepareData(job, "", folder / "out");
  ASSERT_OK(report);
  // Printed by nanoGPT's data/shakespeare_char/prepare.py.
  EXPECT_EQ(report->train_tokens, 1003854u);
  EXPECT_EQ(report->held_out_tokens, 111540u);
  EXPECT_EQ(report->vocab_size, 65u);
}

TEST(PrepareData, BpeSeparatesDocumentsAndPredictsEveryByte) {
  TemporaryFolder folder;
  folder.Write("a.txt", Paragraphs(200));
  const auto report =
      PrepareData(Job({"a.txt"}, "hash", 0.2, "bpe"), folder.path(), folder / "out", {.write_text = true});
  ASSERT_OK(report);
  const auto store = *TokenStore::Open(folder / "out");
  const uint32_t end = *store->tokenizer().end_of_text();
  EXPECT_EQ(store->BytesOf(end), 0u);
  for (const auto& [file, name, documents] :
       {std::tuple{&store->train(), "train.txt", report->train_documents},
        std::tuple{&store->held_out(), "held_out.txt", report->held_out_documents}}) {
    uint64_t separators = 0, bytes = 0;
    std::string text;
    for (const uint32_t id : Ids(*file)) {
      separators += id == end;
      bytes += store->BytesOf(id);
      if (id != end) text += store->tokenizer().TokenBytes(id);
    }
    EXPECT_EQ((*file)[0], end);
    EXPECT_EQ(separators, documents);
    EXPECT_EQ(text, folder.Read(absl::StrCat("out/", name)));
    EXPECT_EQ(bytes, text.size());
  }
  EXPECT_EQ(report->train_bytes, folder.Read("out/train.txt").size());
  EXPECT_EQ(report->documents, report->train_documents + report->held_out_documents);
  EXPECT_NEAR(
      static_cast<double>(report->held_out_bytes) / static_cast<double>(report->train_bytes + report->held_out_bytes),
      0.2, 0.12);
}

TEST(PrepareData, ADocumentsPartDependsOnItsTextAlone) {
  TemporaryFolder folder;
  std::string forward, backward, fewer;
  for (int i = 0; i < 400; ++i) {
    const std::string line = absl::StrCat("{\"text\": \"document ", i, " of several\\n\"}\n");
    forward += line;
    backward = line + backward;
    if (i % 3 != 0) fewer += line;
  }
  std::map<std::string, std::set<std::string>> held;
  for (const auto& [name, lines] : {std::pair{"forward", &forward}, {"backward", &backward}, {"fewer", &fewer}}) {
    folder.Write(absl::StrCat(name, ".jsonl"), *lines);
    ASSERT_OK(PrepareData(Job({absl::StrCat(name, ".jsonl")}, "hash", 0.1, "char"), folder.path(), folder / name,
                          {.write_text = true}));
    std::istringstream text(folder.Read(absl::StrCat(name, "/held_out.txt")));
    for (std::string line; std::getline(text, line);) held[name].insert(line);
  }
  EXPECT_GT(held["forward"].size(), 20u);
  EXPECT_LT(held["forward"].size(), 80u);
  EXPECT_EQ(held["forward"], held["backward"]);
  for (const std::string& document : held["fewer"]) EXPECT_TRUE(held["forward"].contains(document)) << document;
}

TEST(PrepareData, DuplicatesCountOnceAfterCleaning) {
  TemporaryFolder folder;
  folder.Write("a.jsonl",
               "{\"text\": \"caf\\u00e9 one\"}\n{\"text\": \"cafe\\u0301 one\"}\n{\"text\": \"two two\"}\n{\"text\": "
               "\"two two\"}\n");
  v1::JobSpec job = Job({"a.jsonl"}, "file", 0.5, "char");
  auto report = PrepareData(job, folder.path(), folder / "out");
  ASSERT_OK(report);
  EXPECT_EQ(report->documents, 2u);
  EXPECT_EQ(report->duplicates, 2u);
  job.mutable_data()->mutable_clean()->set_dedup("none");
  report = PrepareData(job, folder.path(), folder / "out");
  EXPECT_EQ(report->documents, 4u);
  EXPECT_EQ(report->duplicates, 0u);
}

TEST(PrepareData, SameInputsAreNotPreparedAgainAndOthersAre) {
  TemporaryFolder folder;
  folder.Write("a.txt", Paragraphs(50));
  folder.Write("bad.txt", "\xff");
  v1::JobSpec job = Job({"*.txt"}, "file", 0.1, "bpe");
  const auto first = PrepareData(job, folder.path(), folder / "out");
  ASSERT_OK(first);
  EXPECT_FALSE(first->reused);
  const std::string fingerprint = (*TokenStore::Open(folder / "out"))->fingerprint();
  const auto second = PrepareData(job, folder.path(), folder / "out");
  ASSERT_OK(second);
  EXPECT_TRUE(second->reused);
  EXPECT_EQ(second->documents, first->documents);
  EXPECT_EQ(second->skips, first->skips);
  EXPECT_EQ(second->skips, std::vector<std::string>{"bad.txt: byte 0 (0xff) is not UTF-8"});
  EXPECT_EQ(second->skipped, 1u);
  EXPECT_EQ(second->train_tokens, first->train_tokens);
  EXPECT_EQ(second->held_out_bytes, first->held_out_bytes);

  // Another folder, another place of the job: the same tokens.
  fs::create_directories(folder / "elsewhere");
  fs::copy(folder / "a.txt", folder / "elsewhere/a.txt");
  fs::copy(folder / "bad.txt", folder / "elsewhere/bad.txt");
  ASSERT_OK(PrepareData(job, folder / "elsewhere", folder / "out2"));
  EXPECT_EQ((*TokenStore::Open(folder / "out2"))->fingerprint(), fingerprint);

  EXPECT_FALSE(PrepareData(job, folder.path(), folder / "out", {.write_text = true})->reused);
  EXPECT_TRUE(PrepareData(job, folder.path(), folder / "out", {.write_text = true})->reused);
  job.mutable_tokenizer()->set_vocab_size(290);
  EXPECT_FALSE(PrepareData(job, folder.path(), folder / "out")->reused);
  EXPECT_TRUE(PrepareData(job, folder.path(), folder / "out")->reused);
  job.mutable_data()->mutable_clean()->set_lowercase(true);
  EXPECT_FALSE(PrepareData(job, folder.path(), folder / "out")->reused);
  folder.Write("a.txt", Paragraphs(51));
  EXPECT_FALSE(PrepareData(job, folder.path(), folder / "out")->reused);
  EXPECT_NE((*TokenStore::Open(folder / "out"))->fingerprint(), fingerprint);
}

TEST(PrepareData, AGivenTokenizerIsUsed) {
  TemporaryFolder folder;
  folder.Write("a.txt", Paragraphs(50));
  v1::JobSpec job = Job({"a.txt"}, "file", 0.1, "bpe");
  job.mutable_tokenizer()->set_path(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/text/bpe_pairs.json"));
  const auto report = PrepareData(job, folder.path(), folder / "out");
  ASSERT_OK(report);
  EXPECT_EQ(report->vocab_size, 306u);
  EXPECT_EQ((*TokenStore::Open(folder / "out"))->train()[0], 301u);
  job.mutable_tokenizer()->set_path("none.json");
  EXPECT_THAT(std::string(PrepareData(job, folder.path(), folder / "out").status().message()), HasSubstr("none.json"));
  // Characters that a given tokenizer lacks are named.
  job.mutable_tokenizer()->set_path(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/text/char.json"));
  folder.Write("a.txt", Paragraphs(50) + "Ω");
  EXPECT_THAT(std::string(PrepareData(job, folder.path(), folder / "out").status().message()),
              HasSubstr("is none of the"));
}

TEST(PrepareData, ErrorsSayWhatIsWrongAndWhatIsPossible) {
  TemporaryFolder folder;
  const auto error = [&](const v1::JobSpec& job) {
    return std::string(PrepareData(job, folder.path(), folder / "out").status().message());
  };
  folder.Write("a.txt", Paragraphs(3));
  EXPECT_THAT(error(Job({"none.txt"}, "file", 0.1, "bpe")), HasSubstr("none.txt does not exist"));
  EXPECT_THAT(error(Job({"a.txt"}, "file", 0.1, "bpe", 60000)),
              HasSubstr("vocab_size 60000 is larger than the training text supports: at most "));
  EXPECT_THAT(error(Job({"a.txt"}, "hash", 0.001, "char")), HasSubstr("order: file"));
  folder.Write("empty.txt", "");
  EXPECT_THAT(error(Job({"empty.txt"}, "file", 0.1, "char")), HasSubstr("empty.txt: empty"));
  folder.Write("bad.txt", "abc\xff");
  EXPECT_THAT(error(Job({"bad.txt"}, "file", 0.1, "char")), HasSubstr("bad.txt: byte 3 (0xff)"));
  folder.Write("one.txt", "x");
  EXPECT_THAT(error(Job({"one.txt"}, "file", 0.1, "char")), HasSubstr("too short"));
  folder.Write("file", "");
  EXPECT_THAT(
      std::string(
          PrepareData(Job({"a.txt"}, "file", 0.1, "char"), folder.path(), folder / "file/out").status().message()),
      HasSubstr("file/out"));
  // Nothing half-made is left behind.
  EXPECT_TRUE(!fs::exists(folder / "out") || fs::is_empty(folder / "out"));
  if (geteuid() == 0) return;  // root reads everything
  fs::permissions(folder / "a.txt", fs::perms::none);
  EXPECT_THAT(error(Job({"a.txt"}, "file", 0.1, "char")), HasSubstr("a.txt"));
}

TEST(TokenStore, NoticesWhatWasCutOrAltered) {
  TemporaryFolder folder;
  folder.Write("a.txt", Paragraphs(50));
  const v1::JobSpec job = Job({"a.txt"}, "file", 0.1, "bpe");
  ASSERT_OK(PrepareData(job, folder.path(), folder / "out"));
  EXPECT_EQ(TokenStore::Open(folder / "nowhere").status().code(), absl::StatusCode::kNotFound);
  for (const std::string name : {"train.tokens", "held_out.tokens", "tokenizer.json", "manifest.json"}) {
    const std::string whole = folder.Read("out/" + name);
    folder.Write("out/" + name, whole.substr(0, whole.size() - 2));
    const absl::Status cut = TokenStore::Open(folder / "out").status();
    EXPECT_EQ(cut.code(), absl::StatusCode::kDataLoss) << name << cut;
    EXPECT_THAT(std::string(cut.message()), HasSubstr(name));
    if (name.ends_with(".tokens")) {
      EXPECT_THAT(std::string(cut.message()), HasSubstr("truncated"));
    }
    std::string flipped = whole;
    flipped[flipped.size() / 2] ^= 1;
    folder.Write("out/" + name, flipped);
    if (name != "manifest.json") {
      EXPECT_EQ(TokenStore::Open(folder / "out").status().code(), absl::StatusCode::kDataLoss) << name;
    }
    folder.Write("out/" + name, whole);
    EXPECT_OK(TokenStore::Open(folder / "out"));
    fs::remove(folder / ("out/" + name));
    EXPECT_FALSE(TokenStore::Open(folder / "out").ok());
    folder.Write("out/" + name, whole);
  }
  // A broken store is made anew.
  folder.Write("out/train.tokens", "x");
  const auto again = PrepareData(job, folder.path(), folder / "out");
  ASSERT_OK(again);
  EXPECT_FALSE(again->reused);
  EXPECT_OK(TokenStore::Open(folder / "out"));
}

TEST(TokenFile, ChecksItsHeaderAndIds) {
  std::string file("MRTOKENS\1\0\0\0\2\0\0\0\5\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0", 32);
  file += std::string(32, '\0') + std::string("\4\0\0\0\1\0", 6);
  const auto parsed = TokenFile::Parse(file, "f");
  ASSERT_OK(parsed);
  EXPECT_THAT(Ids(*parsed), ElementsAre(4, 0, 1));
  const auto message = [](const std::string& bytes) {
    return std::string(TokenFile::Parse(bytes, "f").status().message());
  };
  EXPECT_THAT(message(""), HasSubstr("no token file"));
  EXPECT_THAT(message(file + "x"), HasSubstr("too long"));
  EXPECT_THAT(message(file.substr(0, 69)), HasSubstr("truncated"));
  std::string changed = file;
  changed[64] = 5;
  EXPECT_THAT(message(changed), HasSubstr("token 5, beyond its vocabulary of 5"));
  changed = file;
  changed[8] = 2;
  EXPECT_THAT(message(changed), HasSubstr("version 2"));
  changed = file;
  changed[12] = 4;
  EXPECT_FALSE(TokenFile::Parse(changed, "f").ok());
  changed = file;
  changed.replace(24, 8, std::string(8, '\xff'));
  EXPECT_THAT(message(changed), HasSubstr("truncated"));
}

}  // namespace
}  // namespace millrace::text
