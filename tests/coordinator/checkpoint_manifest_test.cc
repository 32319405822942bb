#include "coordinator/checkpoint_manifest.h"

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::HasSubstr;

CheckpointManifest Example() {
  CheckpointManifest manifest;
  manifest.job = "kjv-2";
  manifest.phase = "pretrain";
  manifest.step = 300;
  manifest.parameters = 12;
  manifest.data = "fingerprint";
  manifest.digest = std::string(64, 'a');
  manifest.seconds_training = 0.1;
  manifest.tokens = 99;
  manifest.evaluations = {{100, 2.0 / 3.0, 1.5, 7, 8}, {300, 0.1, 1.25, 7, 8}};
  manifest.tensors = {{"wte \"quoted\"", std::string(64, '0')}};
  manifest.files = {{"model.safetensors", 1234, std::string(64, '1')}, {"job.json", 5, std::string(64, '2')}};
  return manifest;
}

TEST(CheckpointManifest, WhatIsPrintedReadsAlikeToTheLastBit) {
  const auto read = ParseManifest(PrintManifest(Example()));
  ASSERT_OK(read);
  EXPECT_EQ(*read, Example());
  ASSERT_NE(read->evaluation(), nullptr);
  EXPECT_EQ(read->evaluation()->loss, 0.1);
  EXPECT_EQ(read->bytes(), 1239u);
}

TEST(CheckpointManifest, EveryKindOfDamageIsNamed) {
  const std::string good = PrintManifest(Example());
  const auto error = [&](const char* from, const char* to) {
    const std::string bad = absl::StrReplaceAll(good, {{from, to}});
    EXPECT_NE(bad, good) << from;
    const auto read = ParseManifest(bad);
    return read.ok() ? "accepted" : std::string(read.status().message());
  };
  EXPECT_THAT(error("\"step\": 300,\n \"param", "\"step\": -300,\n \"param"), HasSubstr("'step'"));
  EXPECT_THAT(error("\"step\": 300,\n \"param", "\"step\": 200,\n \"param"), HasSubstr("'evaluations'"));
  EXPECT_THAT(error("kjv-2", "../kjv"), HasSubstr("'job'"));
  EXPECT_THAT(error("\"pretrain\"", "7"), HasSubstr("'phase'"));
  EXPECT_THAT(error("aaaaaaaaaa", "AAAAAAAAAA"), HasSubstr("'digest'"));
  EXPECT_THAT(error("model.safetensors", "model.safe/tensors"), HasSubstr("'name'"));
  EXPECT_THAT(error("job.json", "model.safetensors"), HasSubstr("'files'"));
  EXPECT_THAT(error("model.safetensors", "other"), HasSubstr("'files'"));
  EXPECT_THAT(error("\"version\": 1", "\"version\": 2"), HasSubstr("version 2"));
  EXPECT_THAT(error("millrace checkpoint", "something"), HasSubstr("'format'"));
  EXPECT_THAT(error("0.1,", "1e999,"), HasSubstr("JSON"));
  for (size_t size = 0; size + 2 < good.size(); size += 7) EXPECT_FALSE(ParseManifest(good.substr(0, size)).ok());
}

TEST(CheckpointManifest, HostileInputIsRefusedQuickly) {
  EXPECT_FALSE(ParseManifest(std::string(1 << 20, '[')).ok());
  EXPECT_FALSE(ParseManifest(std::string(kMaxManifestBytes + 1, ' ')).ok());
  EXPECT_FALSE(ParseManifest("").ok());
  EXPECT_FALSE(ParseManifest("null").ok());
}

TEST(PlainName, IsSafeAsAPartOfAPath) {
  for (const char* good : {"a", "kjv-2", "A_b.c", "x..y"}) EXPECT_TRUE(IsPlainName(good)) << good;
  for (const char* bad : {"", ".", "..", ".x", "a/b", "a\\b", "a b", "ä", "../../etc/passwd"}) {
    EXPECT_FALSE(IsPlainName(bad)) << bad;
  }
  EXPECT_FALSE(IsPlainName(absl::string_view("a\0b", 3)));
  EXPECT_FALSE(IsPlainName(std::string(65, 'a'), 64));
}

}  // namespace
}  // namespace millrace::coordinator
