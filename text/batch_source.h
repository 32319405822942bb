// What a phase learns from, as microbatches: a function of (data, seed, phase, step, index) alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace millrace::text {

// In place of a pair's margin: neither response is better.
inline constexpr float kTie = -1;

// Sequences that go through the model together: row r predicts tokens[r][c + 1] from those of its sequence up to c.
// Those of an encoder are whole; workers hide some of their tokens (hidden_tokens.h).
struct TokenBatch {
  uint32_t rows = 0;
  uint32_t columns = 0;          // tokens a row, the last one's target included
  std::vector<uint32_t> tokens;  // [rows, columns]
  // [rows, columns]: 1 for a token that is a target which counts, never in column 0. Empty: all but column 0.
  std::vector<uint8_t> scored;
  // [rows, columns]: the column at which the token's sequence begins in its row. Empty: each row is one sequence.
  std::vector<uint32_t> starts;
  // What the objective knows of each row; empty: nothing. An encoder's: 1 if the second piece follows the first, else
  // 0. Pairs, whose rows are chosen, rejected, chosen, …: the margin, at least 0, or kTie, in both rows of the pair.
  // Labelled: +1 for a response that is wanted, else -1.
  std::vector<float> row_values;  // [rows]
  uint64_t bytes = 0;             // of text, of the predicted tokens

  uint64_t predictions() const {
    if (scored.empty()) return uint64_t{rows} * (columns - 1);
    uint64_t count = 0;
    for (const uint8_t counts : scored) count += counts;
    return count;
  }
};

// Constant: any thread. Steps count from 0: step s makes version s + 1.
class BatchSource {
 public:
  virtual ~BatchSource() = default;

  virtual uint32_t training_microbatches() const = 0;
  // Of the whole step.
  virtual uint64_t training_predictions(uint64_t step) const = 0;
  // Requires index < training_microbatches().
  virtual TokenBatch Training(uint64_t step, uint32_t index) const = 0;
  // The least number of steps in which all there is to train on is seen `epochs` times.
  virtual uint64_t StepsOf(double epochs) const = 0;

  virtual uint64_t evaluation_microbatches() const = 0;
  // In all of the evaluation.
  virtual uint64_t evaluation_predictions() const = 0;
  virtual uint64_t evaluation_bytes() const = 0;
  // Requires index < evaluation_microbatches().
  virtual TokenBatch Evaluation(uint64_t index) const = 0;

  virtual uint32_t vocab_size() const = 0;
  // Of the data and the tokenizer: what training on them is a function of.
  virtual const std::string& fingerprint() const = 0;
};

}  // namespace millrace::text
