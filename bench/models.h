// The models that the tables are about, what trains them, and whole training steps of them in one process.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/compute.h"
#include "kernels/product.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::bench {

// A GPT-2.
struct Model {
  const char* name;
  int layers, hidden, heads, context, batch, vocab;

  int64_t tokens() const { return int64_t{batch} * context; }
  // Of a token in training: 6 times the parameters outside the position table, and attention's products.
  double flop() const;
};

inline constexpr Model kModels[] = {
    {"0.8M", 4, 128, 4, 64, 12, 65},
    {"10.8M", 6, 384, 6, 256, 8, 65},
    {"13.9M", 6, 384, 6, 256, 4, 8192},
};

absl::string_view PrecisionName(kernels::Precision precision);

// Writes a text of random characters, as many different ones as the model's vocabulary has.
absl::Status WriteRandomText(const std::string& path, const Model& model, uint64_t size);

// A job that trains the model with AdamW on the text at `path`, whose characters are its vocabulary.
absl::StatusOr<v1::JobSpec> JobOf(const Model& model, const std::string& path, kernels::Precision precision,
                                  int global_batch, int microbatch);

// Tokens a second of steps of `job` on random tokens: forward, backward, clipping and update, and nothing else.
absl::StatusOr<double> TrainInOneProcess(const v1::JobSpec& job, uint32_t vocab, kernels::Isa isa, int threads,
                                         double seconds);

}  // namespace millrace::bench
