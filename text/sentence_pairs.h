// Makes the sequences that an encoder is pre-trained on of a text's tokens (Devlin et al. 2019, "BERT", section 3.1,
// task 2, and appendix A.2).
//
// Each document, what lies between separators, is cut from its start into parts of up to context - 3 tokens. Part i
// makes a sequence "[CLS] A [SEP] B [SEP]": A is its beginning, up to a cut that is drawn between a quarter and three
// quarters of it. With probability 1/2 B is the rest, which follows A; else as many tokens from anywhere in another
// part, which is drawn among all. Cuts need not be ends of sentences: Devlin et al. call sentence what is any run of
// text.
//
// Without pairs a part of up to context - 2 tokens makes "[CLS] A [SEP]".
//
// A document's last part is shorter; one that cannot be cut is left out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/philox.h"
#include "text/batch_source.h"
#include "text/hidden_tokens.h"
#include "text/token_store.h"

namespace millrace::text {

struct PairOptions {
  uint32_t context = 0;
  bool pairs = true;
  std::optional<uint32_t> separator;  // of documents
};

// Constant after Create: any thread.
class SentencePairs {
 public:
  using TokenAt = std::function<uint32_t(uint64_t index)>;
  // Of tokens [0, count), which stay readable. INVALID_ARGUMENT if there are too few to make a sequence, or no other to
  // take B from; `what` names the text.
  static absl::StatusOr<SentencePairs> Create(TokenAt at, uint64_t count, const PairOptions& options,
                                              const EncoderTokens& tokens, absl::string_view what);

  // Parts, each of which makes a sequence.
  uint64_t size() const { return parts_.size(); }
  // Ordinary tokens of a part.
  uint32_t TokensOf(uint64_t part) const { return parts_[part].count; }

  // A function of the tokens, the part and the key.
  struct Row {
    std::vector<uint32_t> ids;
    bool follows = false;  // with pairs
  };
  Row Make(uint64_t part, const Philox& key) const;

 private:
  struct Part {
    uint64_t begin = 0;
    uint32_t count = 0;
  };

  SentencePairs(TokenAt at, const PairOptions& options, const EncoderTokens& tokens)
      : at_(std::move(at)), options_(options), tokens_(tokens) {}
  void AddDocument(uint64_t begin, uint64_t end);
  void Append(uint64_t begin, uint64_t count, std::vector<uint32_t>* ids) const;

  TokenAt at_;
  PairOptions options_;
  EncoderTokens tokens_;
  std::vector<Part> parts_;
};

// Rows of one microbatch, filled up with [PAD] to the longest; row_values say which follow, if there are pairs.
TokenBatch BatchOfRows(const std::vector<SentencePairs::Row>& rows, bool pairs, const EncoderTokens& tokens);

}  // namespace millrace::text
