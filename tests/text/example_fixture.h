// Prepares examples with a tokenizer of bytes, so that tokens can be counted by hand.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/example_store.h"
#include "text/temporary_folder.h"
#include "text/tokenizer.h"

namespace millrace::text {

class ExampleFixture : public ::testing::Test {
 protected:
  // <|endoftext|>, the 256 bytes and `special`: one token a byte.
  static std::unique_ptr<Tokenizer> Bytes(const std::vector<std::string>& special = {}) {
    BpeTraining training;
    training.vocab_size = 257;
    training.special_tokens = special;
    auto tokenizer = TrainBpe(training, [](const auto& each) { return each("ab"); });
    EXPECT_OK(tokenizer);
    return *std::move(tokenizer);
  }

  static v1::DataSpec Data(const std::string& path, double held_out = 0.5, const std::string& order = "file") {
    v1::DataSpec data;
    data.add_sources()->set_path(path);
    data.mutable_clean()->set_unicode("nfc");
    data.mutable_clean()->set_control(true);
    data.mutable_clean()->set_dedup("exact");
    data.set_held_out(held_out);
    data.mutable_split()->set_order(order);
    return data;
  }

  absl::StatusOr<ExampleReport> Prepare(ExampleKind kind, const std::string& lines, uint32_t context = 1000,
                                        double held_out = 0.5, const std::string& order = "file") {
    folder_.Write("a.jsonl", lines);
    return PrepareExamples(kind, Data("a.jsonl", held_out, order), {}, *tokenizer_, context, folder_.path(),
                           folder_ / "out");
  }

  std::shared_ptr<const ExampleStore> Store(ExampleKind kind, const std::string& lines, uint32_t context = 1000,
                                            double held_out = 0.5) {
    const auto report = Prepare(kind, lines, context, held_out);
    EXPECT_OK(report);
    auto store = ExampleStore::Open(folder_ / "out");
    EXPECT_OK(store);
    return *store;
  }

  // A sequence as text; scored tokens between < and >.
  static std::string Show(const ExampleStore& store, const ExampleFile& part, uint64_t first, uint32_t length) {
    std::string shown;
    for (uint64_t i = first; i < first + length; ++i) {
      const bool before = i > first && part.is_scored(i - 1);
      if (part.is_scored(i) != before) shown += before ? ">" : "<";
      shown += store.tokenizer().IsSpecial(part.id(i)) ? "$" : store.tokenizer().TokenBytes(part.id(i));
    }
    return length > 0 && part.is_scored(first + length - 1) ? shown + ">" : shown;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_ = Bytes();
};

}  // namespace millrace::text
