#include "common/safetensors.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// A file of this header and so many bytes of data.
std::string File(const std::string& json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, '\0');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) { return ParseSafetensorsHeader(file, file.size()); }

// Why the file of this header is refused.
std::string Refusal(const std::string& json, size_t data_bytes = 16) {
  const absl::Status status = Parse(File(json, data_bytes)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << json;
  return std::string(status.message());
}

std::string Tensor(const std::string& name, const std::string& shape, int begin, int end,
                   const std::string& dtype = "F32") {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":[", begin, ",",
                      end, "]}");
}

TEST(Safetensors, LaysTensorsOutOneAfterAnother) {
  SafetensorsHeader header;
  header.metadata = {{"format", "pt"}};
  header.tensors = {{.name = "b", .dtype = "F32", .shape = {2, 3}},
                    {.name = "a", .dtype = "BF16", .shape = {5}},
                    {.name = "scalar", .dtype = "I64", .shape = {}},
                    {.name = "none", .dtype = "F32", .shape = {0, 7}}};
  const std::string start = LayOutSafetensors(&header);
  uint64_t length = 0;
  std::memcpy(&length, start.data(), 8);
  EXPECT_EQ(length, start.size() - 8);
  EXPECT_EQ(header.data_offset, start.size());
  EXPECT_EQ(start.size() % 64, 0u);
  EXPECT_EQ(header.data_bytes, 24u + 10 + 8);
  const std::string json = R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                           R"("a":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]},)"
                           R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[34,42]},)"
                           R"("none":{"dtype":"F32","shape":[0,7],"data_offsets":[42,42]}})";
  EXPECT_EQ(start.substr(8, json.size()), json);
  EXPECT_EQ(start.find_first_not_of(' ', 8 + json.size()), std::string::npos) << "not padded with spaces";
}

TEST(Safetensors, WhatIsWrittenReadsBack) {
  SafetensorsHeader header;
  header.metadata = {{"format", "pt"}, {"made by", "\"millrace\" \n é"}};
  header.tensors = {{.name = "transformer.wte.weight", .dtype = "F32", .shape = {2, 1}},
                    {.name = "é \"quoted\"", .dtype = "U8", .shape = {3}}};
  const TemporaryFolder folder;
  const std::string path = folder.Write("model.safetensors", LayOutSafetensors(&header) + "abcdefghxyz");
  const auto file = SafetensorsFile::Open(path);
  ASSERT_OK(file);
  EXPECT_EQ((*file)->header().metadata, header.metadata);
  ASSERT_EQ((*file)->header().tensors.size(), 2u);
  EXPECT_EQ((*file)->data(), "abcdefghxyz");
  const SafetensorsEntry* const first = (*file)->header().Find("transformer.wte.weight");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->dtype, "F32");
  EXPECT_THAT(first->shape, ElementsAre(2, 1));
  EXPECT_EQ((*file)->bytes(*first), "abcdefgh");
  const SafetensorsEntry* const second = (*file)->header().Find("é \"quoted\"");
  ASSERT_NE(second, nullptr);
  EXPECT_EQ((*file)->bytes(*second), "xyz");
  EXPECT_EQ((*file)->header().Find("transformer"), nullptr);
}

TEST(Safetensors, TensorsComeInTheOrderOfTheirData) {
  const auto header = Parse(File("{" + Tensor("a", "[2]", 8, 16) + "," + Tensor("b", "[2]", 0, 8) + "}", 16));
  ASSERT_OK(header);
  EXPECT_EQ(header->tensors[0].name, "b");
  EXPECT_EQ(header->tensors[1].name, "a");
  EXPECT_EQ(header->data_bytes, 16u);
}

TEST(Safetensors, AFileMayHaveNoTensors) {
  EXPECT_OK(Parse(File("{}", 0)));
  SafetensorsHeader none;
  EXPECT_OK(Parse(LayOutSafetensors(&none)));
}

TEST(Safetensors, GapsAndOverlapsAreRefused) {
  EXPECT_THAT(Refusal("{" + Tensor("a", "[1]", 0, 4) + "," + Tensor("b", "[2]", 8, 16) + "}"),
              HasSubstr("tensor 'b' starts at 8 where 4 is next"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[2]", 0, 8) + "," + Tensor("b", "[3]", 4, 16) + "}"),
              HasSubstr("tensor 'b' starts at 4 where 8 is next"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[3]", 4, 16) + "}"), HasSubstr("'a' starts at 4 where 0"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[3]", 0, 12) + "}"), HasSubstr("4 bytes follow the last tensor"));
}

TEST(Safetensors, ATensorHasTheSizeOfItsShape) {
  EXPECT_THAT(Refusal("{" + Tensor("a", "[5]", 0, 16) + "}"),
              HasSubstr("tensor 'a': its data_offsets have not the 20"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[4]", 16, 0) + "}"), HasSubstr("tensor 'a'"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[4294967296,4294967296]", 0, 16) + "}"), HasSubstr("too large"));
  EXPECT_THAT(Refusal("{" + Tensor("a", "[1,1,1,1,1,1,1,1,4]", 0, 16) + "}"), HasSubstr("too many dimensions"));
}

TEST(Safetensors, ShapesAreWholeNumbers) {
  for (const char* shape : {"[-4]", "[4.0]", "[\"4\"]", "[null]", "[[4]]", "[18446744073709551615]", "[1e3]"}) {
    EXPECT_THAT(Refusal("{" + Tensor("a", shape, 0, 16) + "}"), HasSubstr("tensor 'a': its shape is no shape"))
        << shape;
  }
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}})"), HasSubstr("not two numbers"));
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}})"), HasSubstr("not two numbers"));
}

TEST(Safetensors, UnknownDtypesAreRefused) {
  EXPECT_THAT(Refusal("{" + Tensor("a", "[4]", 0, 16, "F128") + "}"),
              HasSubstr("tensor 'a': dtype 'F128' is not known"));
  EXPECT_EQ(DtypeBytes("BF16"), 2u);
  EXPECT_EQ(DtypeBytes("F64"), 8u);
  EXPECT_EQ(DtypeBytes("BOOL"), 1u);
  EXPECT_EQ(DtypeBytes("f32"), 0u);
}

TEST(Safetensors, ANameOccursOnce) {
  EXPECT_THAT(Refusal("{" + Tensor("a", "[2]", 0, 8) + "," + Tensor("a", "[2]", 8, 16) + "}"),
              HasSubstr("'a' occurs twice"));
  // The second would take the first one's place, and nothing would be missing.
  EXPECT_THAT(
      Refusal("{" + Tensor("a", "[2]", 0, 8) + "," + Tensor("b", "[2]", 8, 16) + "," + Tensor("a", "[2]", 0, 8) + "}"),
      HasSubstr("'a' occurs twice"));
  EXPECT_THAT(Refusal(R"({"a":{"dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16]}})"),
              HasSubstr("'shape' occurs twice"));
  EXPECT_THAT(Refusal(R"({"__metadata__":{"x":"1","x":"2"}})", 0), HasSubstr("'x' occurs twice"));
}

TEST(Safetensors, ATruncatedFileNamesTheFirstTensorThatIsNotAllThere) {
  const std::string json =
      "{" + Tensor("a", "[2]", 0, 8) + "," + Tensor("b", "[2]", 8, 16) + "," + Tensor("c", "[2]", 16, 24) + "}";
  const std::string file = File(json, 24);
  ASSERT_OK(Parse(file));
  EXPECT_THAT(Refusal(json, 23), HasSubstr("ends within tensor 'c'"));
  EXPECT_THAT(Refusal(json, 15), HasSubstr("ends within tensor 'b': it has 15 bytes of data, the tensor ends at 16"));
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_EQ(Parse(file.substr(0, size)).status().code(), absl::StatusCode::kDataLoss) << size;
  }
}

TEST(Safetensors, AHugeHeaderIsRefusedUnread) {
  for (const uint64_t length :
       {uint64_t{17}, uint64_t{kMaxSafetensorsHeaderBytes + 1}, ~uint64_t{0}, ~uint64_t{0} - 8}) {
    std::string file = File(std::string(16, ' '), 0);
    std::memcpy(file.data(), &length, 8);
    const absl::Status status = Parse(file).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("header would have ", length, " bytes")));
  }
}

TEST(Safetensors, AHeaderIsAnObjectOfTensors) {
  for (const char* json : {"", "[]", "null", "{", "{\"a\":}", "nonsense", "{} {}", "\xff"}) {
    EXPECT_THAT(Refusal(json), HasSubstr("its header is not a JSON object")) << json;
  }
  EXPECT_THAT(Refusal("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"),
              HasSubstr("its header is not a JSON object"));
  for (const char* json : {R"({"a":1})", R"({"a":{}})", R"({"a":{"dtype":"F32","shape":[4]}})",
                           R"({"a":{"dtype":1,"shape":[4],"data_offsets":[0,16]}})",
                           R"({"a":{"dtype":"F32","shape":4,"data_offsets":[0,16]}})"}) {
    EXPECT_THAT(Refusal(json), HasSubstr("tensor 'a': its header has no dtype, shape and data_offsets")) << json;
  }
  EXPECT_THAT(Refusal(R"({"__metadata__":[]})", 0), HasSubstr("__metadata__ is not an object"));
  EXPECT_THAT(Refusal(R"({"__metadata__":{"a":1}})", 0), HasSubstr("value that is not text"));
}

// A header of many names is read in time that grows with it, not with its square.
TEST(Safetensors, ManyTensorsAreReadSoon) {
  constexpr size_t kMany = 100000;
  std::string json = "{";
  for (size_t i = 0; i < kMany; ++i) absl::StrAppend(&json, i == 0 ? "" : ",", Tensor(absl::StrCat(i), "[0]", 0, 0));
  const auto header = Parse(File(json + "}", 0));
  ASSERT_OK(header);
  EXPECT_EQ(header->tensors.size(), kMany);
}

TEST(Safetensors, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  for (const std::string& path : {folder.Write("short.safetensors", "x"), folder / "missing.safetensors"}) {
    const absl::Status status = SafetensorsFile::Open(path).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

}  // namespace
}  // namespace millrace
