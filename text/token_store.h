// Prepares a job's text as tokens on disk, and opens what was prepared.
//
// A store is a folder:
//   tokenizer.json, tokenizer_config.json
//   train.tokens, held_out.tokens
//   train.txt, held_out.txt       only if asked for: the cleaned text, documents one after another
//   manifest.json                 written last
//
// X.tokens, little-endian:
//   file    = magic version width vocab count zeros tokens
//   magic   = "MRTOKENS"                 8 bytes
//   version = u32, 1
//   width   = u32, bytes a token: 2 if vocab <= 65536, else 4
//   vocab   = u64, ids are below it
//   count   = u64, number of tokens
//   zeros   = 32 bytes
//   tokens  = count times u16 or u32     and nothing after them
//
// manifest.json:
//   {"format": "millrace token store", "version": 1,
//    "text": true | false,                 train.txt and held_out.txt are there
//    "inputs": {…}                         everything that the store is a function of: the SHA-256 of each
//                                          source, the cleaning, the split, the tokenizer's spec
//    "tokenizer": {"kind": "bpe" | "char", "vocab_size": N, "sha256": HEX},     of tokenizer.json
//    "train": {"tokens": N, "bytes": N, "documents": N, "sha256": HEX}, "held_out": {likewise},
//    "report": {…},                        the counts of DataReport
//    "fingerprint": HEX}                   SHA-256 over the sha256 of tokenizer.json, train.tokens and held_out.tokens,
//                                          in hex, each with a newline behind it
//
// With a tokenizer that has <|endoftext|> each document is preceded by it, so that every byte of the text is predicted;
// without (characters) documents follow each other directly. `bytes` is the text without separators.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/files.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/tokenizer.h"

namespace millrace::text {

// What became of the sources; the fields of DataEvent.
struct DataReport {
  uint64_t documents = 0;          // in the store, both parts
  uint64_t duplicates = 0;         // left out as equal to an earlier document
  uint64_t skipped = 0;            // files and documents left out for another reason
  std::vector<std::string> skips;  // why, the first kMaxSkips of them: "a.txt: byte 17 (0xff) is not UTF-8"
  uint64_t train_documents = 0;
  uint64_t held_out_documents = 0;
  uint64_t train_bytes = 0;
  uint64_t held_out_bytes = 0;
  uint64_t train_tokens = 0;
  uint64_t held_out_tokens = 0;
  uint32_t vocab_size = 0;
  bool reused = false;  // the folder held the store of the same inputs already
};
inline constexpr size_t kMaxSkips = 100;

struct PrepareOptions {
  bool write_text = false;  // also train.txt and held_out.txt
};

// Reads, cleans, splits and encodes the text of `job` into the folder `out_dir`, made if need be. Paths in the job are
// relative to `base_dir`. Requires a job with its defaults filled in. The manifest comes last: a store that was cut
// short does not open. Does nothing, with DataReport::reused, if `out_dir` holds the store of the same inputs.
absl::StatusOr<DataReport> PrepareData(const v1::JobSpec& job, const std::string& base_dir, const std::string& out_dir,
                                       const PrepareOptions& options = {});

// One *.tokens file's content: a view of memory that the caller keeps. Checks header, size and that ids are below
// vocab.
class TokenFile {
 public:
  static absl::StatusOr<TokenFile> Parse(absl::string_view bytes, absl::string_view name);
  // No tokens.
  TokenFile() = default;

  uint64_t size() const { return count_; }
  uint64_t vocab_size() const { return vocab_; }
  // Requires index < size().
  uint32_t operator[](uint64_t index) const;

 private:
  const char* tokens_ = nullptr;
  uint32_t width_ = 2;
  uint64_t vocab_ = 0;
  uint64_t count_ = 0;
};

// An open store, mapped into memory. Constant after Open: any thread.
class TokenStore {
 public:
  // Checks every file against the manifest. NOT_FOUND if `dir` holds no manifest (never prepared, or cut short);
  // DATA_LOSS naming the file that was cut or altered.
  static absl::StatusOr<std::shared_ptr<const TokenStore>> Open(const std::string& dir);

  const TokenFile& train() const { return train_; }
  const TokenFile& held_out() const { return held_out_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  uint32_t vocab_size() const { return tokenizer_->vocab_size(); }
  const DataReport& report() const { return report_; }
  // Of tokenizer and tokens: what training on them is a function of.
  const std::string& fingerprint() const { return fingerprint_; }
  // JSON text of the manifest's "inputs".
  const std::string& inputs() const { return inputs_; }
  // train.txt and held_out.txt were written too.
  bool has_text() const { return has_text_; }
  // Bytes of text that a token stands for: 0 for <|endoftext|>.
  uint32_t BytesOf(uint32_t id) const { return token_bytes_[id]; }

 private:
  TokenStore() = default;

  std::vector<MappedFile> maps_;
  TokenFile train_;
  TokenFile held_out_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<uint32_t> token_bytes_;  // [vocab_size]
  DataReport report_;
  std::string fingerprint_;
  std::string inputs_;
  bool has_text_ = false;
};

}  // namespace millrace::text
