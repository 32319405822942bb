// Prepares conversations, preferences and prompts as tokens on disk, and opens what was prepared.
//
// A store is a folder:
//   tokenizer.json
//   train.examples, held_out.examples
//   manifest.json                  written last
//
// X.examples, little-endian:
//   file     = header tokens records answers
//   header   = magic version kind vocab records tokens answers zeros              64 bytes
//     magic    = "MREXAMPL"        8 bytes
//     version  = u32, 2
//     kind     = u32               ExampleKind
//     vocab    = u64               ids are below it, and it is at most 2^31
//     records, tokens, answers = u64 each: numbers of the first two, bytes of the last
//     zeros    = 16 bytes
//   tokens   = u32 each: id + 2^31 if the token is scored; those of record after record without gaps
//   record   = first answer length second scored value answer_bytes zero          40 bytes
//     first    = u64               its first token
//     answer   = u64               its first byte in `answers`
//     length   = u32               tokens of its sequence; pairs: of prompt and chosen response
//     second   = u32               pairs: tokens of prompt and rejected response, which follow; else 0
//     scored   = u32               its scored tokens
//     value    = f32               pairs: the margin, or kTie; labelled: +1 or -1; else 0
//     answer_bytes = u32
//     zero     = u32
//   answers  = JSON, those of record after record without gaps                    prompts only
//     {"messages": [{"role": ROLE, "content": TEXT}, …], "answer": TEXT}          what is asked, and the right answer
//
// manifest.json:
//   {"format": "millrace example store", "version": 2, "kind": "sft" | "pairs" | "labelled" | "prompts",
//    "inputs": {…}                         everything that the store is a function of
//    "end_of_turn": ID,                    the token with which the assistant's turn ends
//    "tokenizer": {"kind": "bpe" | "char", "vocab_size": N, "sha256": HEX},     of tokenizer.json
//    "train": {"records": N, "tokens": N, "scored": N, "sha256": HEX}, "held_out": {likewise},
//    "report": {…},                        the counts of ExampleReport
//    "fingerprint": HEX}                   SHA-256 over the sha256 of tokenizer.json, train.examples and
//                                          held_out.examples, in hex, each with a newline behind it
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/files.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/examples.h"
#include "text/tokenizer.h"

namespace millrace::text {

// What became of the lines.
struct ExampleReport {
  uint64_t examples = 0;           // in the store, both parts
  uint64_t duplicates = 0;         // left out as equal to an earlier one
  uint64_t skipped = 0;            // files and lines left out for another reason
  std::vector<std::string> skips;  // why, the first kMaxSkips of them: "a.jsonl:3: empty response"
  uint64_t truncated = 0;          // examples of which a response was cut to fit the context
  uint64_t train_examples = 0;
  uint64_t held_out_examples = 0;
  uint64_t train_tokens = 0;
  uint64_t held_out_tokens = 0;
  uint64_t train_scored = 0;  // tokens that are learnt
  uint64_t held_out_scored = 0;
  uint32_t vocab_size = 0;
  bool reused = false;  // the folder held the store of the same inputs already
};

// Reads, cleans, splits and encodes the examples of `data`, JSON Lines files, into the folder `out_dir`, made if need
// be. Requires specs with their defaults filled in. Paths are relative to `base_dir`. The part of an example is a
// function of the example (split.order hash: of its SHA-256; file: the last of them are held out).
//
// A sequence has at most context + 1 tokens, the last one a target only. What is beyond is cut off its end; an example
// of which nothing is scored then is skipped, as is a prompt (kPrompts) of more than context - 1 tokens.
//
// INVALID_ARGUMENT if a file has lines but nothing usable, saying what was found and what was wanted; if a part is
// empty; if the template does not end the assistant's turn with a special token (EndOfTurn). Does nothing, with
// ExampleReport::reused, if `out_dir` holds the store of the same inputs. The manifest comes last: a store that was cut
// short does not open.
absl::StatusOr<ExampleReport> PrepareExamples(ExampleKind kind, const v1::DataSpec& data, const v1::ChatSpec& chat,
                                              const Tokenizer& tokenizer, uint32_t context, const std::string& base_dir,
                                              const std::string& out_dir);

struct ExampleRecord {
  uint64_t first = 0;         // index of its first token
  uint32_t length = 0;        // tokens of its sequence; pairs: of the chosen one
  uint32_t second = 0;        // pairs: tokens of the rejected one, which follow
  uint32_t scored = 0;        // scored tokens, of both
  float value = 0;            // TokenBatch::row_values
  absl::string_view details;  // prompts: ParsePromptDetails
};

// A prompt in words, as records keep it.
struct PromptDetails {
  std::vector<Message> messages;
  std::string answer;  // empty if there is none
};
std::string PrintPromptDetails(const PromptDetails& details);
// DATA_LOSS if it is none.
absl::StatusOr<PromptDetails> ParsePromptDetails(absl::string_view json);

// One *.examples file's content: a view of memory that the caller keeps.
class ExampleFile {
 public:
  // Checks all that the grammar says; the first token of a sequence is never scored, sequences of prompts have no
  // scored tokens, all others at least one.
  static absl::StatusOr<ExampleFile> Parse(absl::string_view bytes, absl::string_view name);
  // No records.
  ExampleFile() = default;

  ExampleKind kind() const { return kind_; }
  uint64_t vocab_size() const { return vocab_; }
  uint64_t size() const { return records_; }
  uint64_t tokens() const { return tokens_; }
  uint64_t scored() const { return scored_; }
  uint32_t longest() const { return longest_; }  // tokens of the longest sequence
  // Requires index < size().
  ExampleRecord operator[](uint64_t index) const;
  // Require token < tokens().
  uint32_t id(uint64_t token) const;
  bool is_scored(uint64_t token) const;

 private:
  const char* data_ = nullptr;  // behind the header
  ExampleKind kind_ = ExampleKind::kSft;
  uint64_t vocab_ = 0;
  uint64_t records_ = 0;
  uint64_t tokens_ = 0;
  uint64_t scored_ = 0;
  uint32_t longest_ = 0;
};

// An open store, mapped into memory. Constant after Open: any thread.
class ExampleStore {
 public:
  // Checks every file against the manifest. NOT_FOUND if `dir` holds no manifest (never prepared, or cut short);
  // DATA_LOSS naming the file that was cut or altered.
  static absl::StatusOr<std::shared_ptr<const ExampleStore>> Open(const std::string& dir);

  ExampleKind kind() const { return train_.kind(); }
  const ExampleFile& train() const { return train_; }
  const ExampleFile& held_out() const { return held_out_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  uint32_t vocab_size() const { return tokenizer_->vocab_size(); }
  // The token with which the assistant's turn ends.
  uint32_t end_of_turn() const { return end_of_turn_; }
  const ExampleReport& report() const { return report_; }
  // Of tokenizer and examples: what training on them is a function of.
  const std::string& fingerprint() const { return fingerprint_; }
  // JSON text of the manifest's "inputs".
  const std::string& inputs() const { return inputs_; }
  // Bytes of text that a token stands for: 0 for an added token.
  uint32_t BytesOf(uint32_t id) const { return token_bytes_[id]; }

 private:
  ExampleStore() = default;

  std::vector<MappedFile> maps_;
  ExampleFile train_;
  ExampleFile held_out_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<uint32_t> token_bytes_;  // [vocab_size]
  uint32_t end_of_turn_ = 0;
  ExampleReport report_;
  std::string fingerprint_;
  std::string inputs_;
};

}  // namespace millrace::text
