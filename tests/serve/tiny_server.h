// A model small enough to answer in microseconds, with a letter for each token.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/tiny_models.h"
#include "serve/served_model.h"
#include "testing/status.h"
#include "text/tokenizer.h"

namespace millrace::serve {

// Tokens are the characters from '0' on.
inline constexpr uint32_t kVocab = 37;
inline constexpr int64_t kContext = 80;

struct TinyModel {
  explicit TinyModel(const std::string& family = "llama", const std::string& precision = "f32", int threads = 1)
      : compute(kernels::DetectIsa(), threads) {
    network = model::NewNetwork(model::TinySpec(family, precision), kVocab);
    weights = model::RandomWeights(network->tensors(), 1);
    std::string letters;
    for (uint32_t i = 0; i < kVocab; ++i) letters += static_cast<char>('0' + i);
    auto made = text::TrainCharacters([&](const auto& each) { return each(letters); });
    EXPECT_OK(made);
    tokenizer = *std::move(made);
    served = {"tiny", &compute, network.get(), weights.data(), tokenizer.get(), nullptr, std::nullopt, "it is tiny"};
  }

  const kernels::Compute compute;
  std::unique_ptr<model::Network> network;
  std::vector<float> weights;
  std::unique_ptr<text::Tokenizer> tokenizer;
  ServedModel served;
};

}  // namespace millrace::serve
