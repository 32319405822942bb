#include "text/corpus.h"

#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/byte_stream.h"
#include "text/sources.h"
#include "text/temporary_folder.h"

namespace millrace::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Gzip(const std::string& bytes) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string Zstd(const std::string& bytes) {
  std::string packed(ZSTD_compressBound(bytes.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 3));
  return packed;
}

struct Collected {
  std::vector<std::string> documents;
  std::vector<std::string> skips;
  absl::Status status;
};

Collected Collect(const std::string& path, Format format, uint64_t window = 0, const std::string& field = "text") {
  Collected collected;
  SourceFile file;
  file.path = path;
  file.shown = path.substr(path.rfind('/') + 1);
  file.format = format;
  file.field = field;
  CorpusSink sink;
  sink.document = [&](absl::string_view text) {
    collected.documents.emplace_back(text);
    return absl::OkStatus();
  };
  sink.skip = [&](std::string why) { collected.skips.push_back(std::move(why)); };
  collected.status = ReadDocuments(file, {.strip_markup = true, .window_bytes = window}, sink);
  return collected;
}

std::vector<std::string> Shown(const SourceFiles& files) {
  std::vector<std::string> shown;
  for (const SourceFile& file : files.files) shown.push_back(file.shown);
  return shown;
}

v1::DataSpec Data(const std::vector<std::string>& paths) {
  v1::DataSpec data;
  for (const std::string& path : paths) data.add_sources()->set_path(path);
  return data;
}

TEST(Sources, FilesFoldersAndGlobsInOrder) {
  TemporaryFolder folder;
  for (const char* name :
       {"b.txt", "a.md", "sub/c.html.gz", "sub/deep/d.jsonl.zst", "sub/e.bin", ".hidden.txt", "z.txt"})
    folder.Write(name, "x");
  const auto all = FindSources(Data({"."}), folder.path());
  ASSERT_OK(all);
  EXPECT_THAT(Shown(*all), ElementsAre("a.md", "b.txt", "sub/c.html.gz", "sub/deep/d.jsonl.zst", "z.txt"));
  EXPECT_EQ(all->files[2].format, Format::kHtml);
  EXPECT_EQ(all->files[3].format, Format::kJsonLines);
  EXPECT_THAT(all->skips, ElementsAre(HasSubstr("e.bin")));

  EXPECT_THAT(Shown(*FindSources(Data({"z.txt", "*.txt"}), folder.path())), ElementsAre("z.txt", "b.txt"));
  EXPECT_THAT(Shown(*FindSources(Data({"**/*.zst", "sub/**"}), folder.path())),
              ElementsAre("sub/deep/d.jsonl.zst", "sub/c.html.gz"));
  EXPECT_THAT(Shown(*FindSources(Data({"[ab].*"}), folder.path())), ElementsAre("a.md", "b.txt"));
  EXPECT_THAT(Shown(*FindSources(Data({folder / "b.txt"}), "/elsewhere")), ElementsAre(folder / "b.txt"));
}

TEST(Sources, WhatNamesNothingIsAnError) {
  TemporaryFolder folder;
  folder.Write("a.bin", "x");
  EXPECT_THAT(std::string(FindSources(Data({"none.txt"}), folder.path()).status().message()),
              HasSubstr("none.txt does not exist"));
  EXPECT_THAT(std::string(FindSources(Data({"*.txt"}), folder.path()).status().message()),
              HasSubstr("data.sources[0]"));
  EXPECT_THAT(std::string(FindSources(Data({"a.bin"}), folder.path()).status().message()),
              HasSubstr("tells no format"));
  v1::DataSpec data = Data({"a.bin"});
  data.mutable_sources(0)->set_format("txt");
  EXPECT_OK(FindSources(data, folder.path()));
}

TEST(Corpus, PackedFilesReadAsPlainOnes) {
  TemporaryFolder folder;
  std::string text;
  for (uint64_t i = 0; i < 1000000; ++i) absl::StrAppend(&text, i * i % 10007, i % 11 == 0 ? "\n" : " ");
  EXPECT_THAT(Collect(folder.Write("a.txt", text), Format::kText).documents, ElementsAre(text));
  EXPECT_THAT(Collect(folder.Write("a.txt.gz", Gzip(text)), Format::kText).documents, ElementsAre(text));
  EXPECT_THAT(Collect(folder.Write("a.txt.zst", Zstd(text)), Format::kText).documents, ElementsAre(text));
  // More comes out of the last packed bytes than one read takes.
  const std::string runs(3 << 20, 'x');
  EXPECT_THAT(Collect(folder.Write("c.txt.gz", Gzip(runs)), Format::kText).documents, ElementsAre(runs));
  EXPECT_THAT(Collect(folder.Write("c.txt.zst", Zstd(runs)), Format::kText).documents, ElementsAre(runs));
  // Members and frames one after another are one file.
  EXPECT_THAT(Collect(folder.Write("b.txt.gz", Gzip("one ") + Gzip("two")), Format::kText).documents,
              ElementsAre("one two"));
  EXPECT_THAT(Collect(folder.Write("b.txt.zst", Zstd("one ") + Zstd("two")), Format::kText).documents,
              ElementsAre("one two"));
}

TEST(Corpus, DamagedAndCutPackedFilesAreErrors) {
  TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 5000; ++i) absl::StrAppend(&text, i * 7919 % 10007, " ");
  for (const auto& [name, packed] :
       {std::pair<std::string, std::string>{"a.txt.gz", Gzip(text)}, {"a.txt.zst", Zstd(text)}}) {
    const Collected cut = Collect(folder.Write(name, packed.substr(0, packed.size() / 2)), Format::kText);
    EXPECT_EQ(cut.status.code(), absl::StatusCode::kDataLoss) << cut.status;
    EXPECT_THAT(std::string(cut.status.message()), HasSubstr(name));
    EXPECT_EQ(Collect(folder.Write(name, "plain text"), Format::kText).status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(Collect(folder.Write(name, ""), Format::kText).status.code(), absl::StatusCode::kDataLoss);
  }
}

TEST(Corpus, DecompressionBombsAreStopped) {
  TemporaryFolder folder;
  const std::string zeros(64 << 20, '\n');
  for (const auto& [name, packed] :
       {std::pair<std::string, std::string>{"a.txt.gz", Gzip(zeros)}, {"a.txt.zst", Zstd(zeros)}}) {
    const Collected collected = Collect(folder.Write(name, packed), Format::kText);
    EXPECT_EQ(collected.status.code(), absl::StatusCode::kResourceExhausted) << collected.status;
    EXPECT_THAT(std::string(collected.status.message()), HasSubstr("bomb"));
  }
}

TEST(Corpus, SkipsWhatIsNotUtf8WithItsPlace) {
  TemporaryFolder folder;
  const Collected bad = Collect(folder.Write("bad.txt",
                                             "good\xff"
                                             "bad"),
                                Format::kText);
  EXPECT_OK(bad.status);
  EXPECT_TRUE(bad.documents.empty());
  EXPECT_THAT(bad.skips, ElementsAre("bad.txt: byte 4 (0xff) is not UTF-8"));
  EXPECT_THAT(Collect(folder.Write("empty.txt", ""), Format::kText).skips, ElementsAre("empty.txt: empty"));
  EXPECT_THAT(Collect(folder.Write("bom.txt", "\xEF\xBB\xBFtext"), Format::kText).documents, ElementsAre("text"));
  EXPECT_THAT(Collect(folder.Write("utf16.txt", std::string("\xFF\xFEt\0", 4)), Format::kText).skips,
              ElementsAre(HasSubstr("UTF-16")));
  // In a file that is cut into windows only the window goes, and the offset is the file's.
  std::string text;
  while (text.size() < 3000) text += "A paragraph of some length that goes on.\n\n";
  std::string broken = text;
  broken[1500] = '\x80';
  const Collected windows = Collect(folder.Write("windows.txt", broken), Format::kText, 500);
  EXPECT_THAT(windows.skips, ElementsAre("windows.txt: byte 1500 (0x80) is not UTF-8"));
  EXPECT_EQ(windows.documents.size() + 1,
            Collect(folder.Write("whole.txt", text), Format::kText, 500).documents.size());
}

TEST(Corpus, JsonLinesTakeAFieldAndSkipBadLines) {
  TemporaryFolder folder;
  const std::string path = folder.Write(
      "a.jsonl",
      "{\"text\": \"one\", \"meta\": {\"body\": \"deep\"}}\n\n{\"text\": 5}\nnot json\n{\"other\": \"x\"}\r\n"
      "{\"text\": \"caf\\u00e9 \\ud83d\\ude42\"}\n{\"text\": \"\"}\n{\"text\": \"a\xff\"}\n[1]\n{\"text\": \"last\"}");
  const Collected collected = Collect(path, Format::kJsonLines);
  ASSERT_OK(collected.status);
  EXPECT_THAT(collected.documents, ElementsAre("one", "café 🙂", "last"));
  EXPECT_THAT(collected.skips, ElementsAre("a.jsonl:3: the field 'text' is no string", "a.jsonl:4: not JSON",
                                           "a.jsonl:5: there is no field 'text'", "a.jsonl:7: empty",
                                           HasSubstr("a.jsonl:8: byte "), "a.jsonl:9: not a JSON object"));
  EXPECT_THAT(Collect(path, Format::kJsonLines, 0, "meta.body").documents, ElementsAre("deep"));
}

TEST(Corpus, UnreadableAndOddFilesAreErrorsThatNameThem) {
  TemporaryFolder folder;
  EXPECT_THAT(std::string(Collect(folder / "none.txt", Format::kText).status.message()), HasSubstr("none.txt"));
  const Collected directory = Collect(folder.path(), Format::kText);
  EXPECT_THAT(std::string(directory.status.message()), HasSubstr("is not a regular file"));
}

std::vector<std::string> Cut(const std::string& text, uint64_t window, size_t piece) {
  std::vector<std::string> documents;
  uint64_t expected_offset = 0;
  ParagraphCutter cutter(window, [&](absl::string_view document, uint64_t offset) {
    EXPECT_EQ(offset, expected_offset);
    expected_offset += document.size();
    documents.emplace_back(document);
    return absl::OkStatus();
  });
  for (size_t at = 0; at < text.size(); at += piece) EXPECT_OK(cutter.Add(absl::string_view(text).substr(at, piece)));
  EXPECT_OK(cutter.Finish());
  return documents;
}

TEST(ParagraphCutter, CutsAtParagraphsOnceThereIsEnough) {
  EXPECT_THAT(Cut("aaaa\nbb\n\ncc\n\n  dddd\n \t\n\nee\n", 6, 1000),
              ElementsAre("aaaa\nbb\n\n", "cc\n\n  dddd\n \t\n\n", "ee\n"));
  EXPECT_THAT(Cut("short\n\nall", 100, 1000), ElementsAre("short\n\nall"));
  // No blank line: at a line's end after 4 windows; no line either: after 8.
  EXPECT_THAT(Cut("0123456789\n0123456789\n", 2, 1000), ElementsAre("0123456789\n", "0123456789\n"));
  EXPECT_THAT(Cut(std::string(40, 'x'), 2, 1000),
              ElementsAre(std::string(16, 'x'), std::string(16, 'x'), std::string(8, 'x')));
  EXPECT_THAT(Cut("0123456789abcdeéx", 2, 1000), ElementsAre("0123456789abcdeé", "x"));
}

TEST(ParagraphCutter, DoesNotDependOnHowTheTextArrives) {
  std::string text;
  for (int i = 0; i < 2000; ++i)
    absl::StrAppend(&text, "wörd", i * 7919 % 97, i % 13 == 0 ? "\n" : " ", i % 29 == 0 ? "\n\n" : "",
                    i % 31 == 0 ? " \n" : "");
  const std::vector<std::string> whole = Cut(text, 300, text.size());
  EXPECT_GT(whole.size(), 10u);
  std::string joined;
  for (const std::string& document : whole) joined += document;
  EXPECT_EQ(joined, text);
  for (const size_t piece : {1, 7, 100, 4097}) EXPECT_EQ(Cut(text, 300, piece), whole) << piece;
}

}  // namespace
}  // namespace millrace::text
