#include "text/hidden_tokens.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::text {

TokensByText SpecialTokensOf(const Tokenizer& tokenizer) {
  TokensByText special;
  for (const AddedToken& token : tokenizer.added_tokens()) special[token.content] = token.id;
  return special;
}

absl::StatusOr<EncoderTokens> EncoderTokens::Create(const TokensByText& special, uint32_t vocab_size) {
  EncoderTokens made;
  made.vocab_size_ = vocab_size;
  const std::pair<const char*, uint32_t*> wanted[] = {
      {"[CLS]", &made.begin_}, {"[SEP]", &made.separator_}, {"[MASK]", &made.mask_}, {"[PAD]", &made.padding_}};
  for (const auto& [text, id] : wanted) {
    const auto found = special.find(text);
    if (found == special.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tokenizer lacks the special token ", text, ", which an encoder's sequences need"));
    }
    *id = found->second;
  }
  for (const auto& [text, id] : special) {
    if (id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("the special token ", text, " has id ", id, ", not below the vocabulary's ", vocab_size));
    }
    made.special_.push_back(id);
  }
  std::sort(made.special_.begin(), made.special_.end());
  made.special_.erase(std::unique(made.special_.begin(), made.special_.end()), made.special_.end());
  if (made.ordinary_tokens() == 0)
    return absl::InvalidArgumentError("the vocabulary has no token that stands for text");
  return made;
}

bool EncoderTokens::IsOrdinary(uint32_t id) const { return !std::binary_search(special_.begin(), special_.end(), id); }

uint32_t EncoderTokens::Ordinary(uint32_t rank) const {
  for (const uint32_t id : special_) {
    if (id > rank) break;
    ++rank;
  }
  return rank;
}

HiddenTokens Hide(const v1::MaskSpec& mask, const EncoderTokens& tokens, const Philox& key, uint64_t row,
                  absl::Span<const uint32_t> ids) {
  HiddenTokens made;
  made.shown.assign(ids.begin(), ids.end());
  std::vector<std::pair<uint32_t, uint32_t>> order;  // what is drawn for a token, and its column
  for (uint32_t column = 0; column < ids.size(); ++column) {
    if (tokens.IsOrdinary(ids[column])) order.emplace_back(key(row, column)[0], column);
  }
  if (order.empty()) return made;
  const auto ordinary = static_cast<double>(order.size());
  const auto count =
      std::clamp<size_t>(static_cast<size_t>(std::floor(mask.share() * ordinary + 0.5)), 1, order.size());
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < count; ++i) made.columns.push_back(order[i].second);
  std::sort(made.columns.begin(), made.columns.end());
  for (const uint32_t column : made.columns) {
    made.targets.push_back(ids[column]);
    const std::array<uint32_t, 4> words = key(row, column);
    const auto kind = static_cast<double>(UniformFloat(words[1]));
    if (kind < mask.masked()) {
      made.shown[column] = tokens.mask();
    } else if (kind < mask.masked() + mask.random()) {
      made.shown[column] = tokens.Ordinary(static_cast<uint32_t>(uint64_t{words[2]} * tokens.ordinary_tokens() >> 32));
    }
  }
  return made;
}

Philox EvaluationKey(absl::Span<const uint32_t> ids) {
  Philox key(0x4556414C);  // "EVAL"
  for (const uint32_t id : ids) key = key.Derive(id);
  return key;
}

std::vector<uint32_t> PiecesOf(const EncoderTokens& tokens, absl::Span<const uint32_t> ids) {
  std::vector<uint32_t> pieces(ids.size(), 0);
  const auto first = std::find(ids.begin(), ids.end(), tokens.separator());
  if (first != ids.end()) std::fill(pieces.begin() + (first - ids.begin()) + 1, pieces.end(), 1);
  return pieces;
}

}  // namespace millrace::text
