// Says what is served under one name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/compute.h"
#include "model/families/network.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace millrace::serve {

// All that it points to outlives whoever serves it. `compute` is used by its engine alone, the rest by any thread.
struct ServedModel {
  std::string name;
  const kernels::Compute* compute = nullptr;
  const model::Network* network = nullptr;  // predicts tokens: no scalar head
  model::NetworkWeights weights = nullptr;  // with adapters, if any, that go together
  const text::Tokenizer* tokenizer = nullptr;
  // How it is asked in conversations, and the token with which its answers end.
  const text::ChatTemplate* chat_template = nullptr;  // null: it cannot be, because of `no_chat`
  std::optional<uint32_t> end_of_turn;
  std::string no_chat;

  // Tokens that a prediction can look back on.
  int64_t context() const { return network->spec().context() - weights.virtual_tokens(); }
};

}  // namespace millrace::serve
