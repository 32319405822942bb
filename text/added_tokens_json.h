// Writes the field added_tokens of tokenizer.json.
#pragma once

#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "text/tokenizer.h"

namespace millrace::text {

nlohmann::ordered_json AddedTokensJson(absl::Span<const AddedToken> tokens);

}  // namespace millrace::text
