// Hides tokens of the sequences that an encoder learns from (Devlin et al. 2019, "BERT", section 3.1, task 1).
//
// A sequence is "[CLS] A [SEP]" or "[CLS] A [SEP] B [SEP]"; behind it a row is filled up with [PAD]. Of its ordinary
// tokens, those that stand for text, round(share * their number) are hidden, at least one: which ones, is a draw
// without replacement. Of the hidden ones a share is shown as [MASK], another as any ordinary token, and the others as
// they are. All of it is a function of the key, the row's number and the tokens' positions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/philox.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/tokenizer.h"

namespace millrace::text {

// Tokens with a meaning of their own, by their text.
using TokensByText = std::map<std::string, uint32_t>;
TokensByText SpecialTokensOf(const Tokenizer& tokenizer);

// Those of an encoder's sequences. Constant after Create.
class EncoderTokens {
 public:
  // INVALID_ARGUMENT if `special` lacks one of them, has ids that are not below `vocab_size`, or is all there is.
  static absl::StatusOr<EncoderTokens> Create(const TokensByText& special, uint32_t vocab_size);

  uint32_t begin() const { return begin_; }          // [CLS]
  uint32_t separator() const { return separator_; }  // [SEP]
  uint32_t mask() const { return mask_; }            // [MASK]
  uint32_t padding() const { return padding_; }      // [PAD]
  // Whether the token stands for text.
  bool IsOrdinary(uint32_t id) const;
  uint32_t ordinary_tokens() const { return vocab_size_ - static_cast<uint32_t>(special_.size()); }
  // The ordinary token of this rank. Requires rank < ordinary_tokens().
  uint32_t Ordinary(uint32_t rank) const;

 private:
  uint32_t vocab_size_ = 0, begin_ = 0, separator_ = 0, mask_ = 0, padding_ = 0;
  std::vector<uint32_t> special_;  // ascending
};

// A sequence as it is shown, and what is hidden in it.
struct HiddenTokens {
  std::vector<uint32_t> shown;    // [ids]
  std::vector<uint32_t> columns;  // where something is hidden, ascending
  std::vector<uint32_t> targets;  // what
};

// Nothing is hidden in a sequence without ordinary tokens.
HiddenTokens Hide(const v1::MaskSpec& mask, const EncoderTokens& tokens, const Philox& key, uint64_t row,
                  absl::Span<const uint32_t> ids);

// The key with which evaluations hide, as row 0: of the sequence alone, so that all hide the same.
Philox EvaluationKey(absl::Span<const uint32_t> ids);

// By token of a sequence whether it is of the first piece (0, with its [SEP] and [CLS]) or the second (1).
std::vector<uint32_t> PiecesOf(const EncoderTokens& tokens, absl::Span<const uint32_t> ids);

}  // namespace millrace::text
