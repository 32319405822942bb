// What is hidden in a microbatch, and what is said of it, whoever computes it.
#include "worker/masked_objective.h"

#include <memory>
#include <string>
#include <vector>

#include "common/job_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tensor_list.h"
#include "testing/status.h"
#include "worker/objective.h"

namespace millrace::worker {
namespace {

using ::testing::HasSubstr;

constexpr char kJob[] = R"(
name: masked
data: {sources: [{path: text.txt}]}
model: {family: bert, layers: 2, hidden_size: 16, heads: 2, context: 24, init_std: 0.3}
phases:
  - {name: x, objective: masked_lm, global_batch: 4, stop: {max_steps: 1}}
)";
constexpr uint32_t kVocab = 40, kPad = 36, kBegin = 37, kSeparator = 38, kMask = 39;

struct Bench {
  explicit Bench(const std::vector<std::string>& overrides = {}) {
    const absl::StatusOr<v1::JobSpec> job = ParseJob(kJob, "job.yaml", overrides);
    EXPECT_OK(job);
    context.set_seed(3);
    *context.mutable_model() = job->model();
    context.set_vocab_size(kVocab);
    *context.mutable_phase() = job->phases(0);
    auto& special = *context.mutable_special_tokens();
    special["[PAD]"] = kPad;
    special["[CLS]"] = kBegin;
    special["[SEP]"] = kSeparator;
    special["[MASK]"] = kMask;
    models = *PhaseModels::Create(context);
    table = *models->Table(context.phase());
    weights.resize(static_cast<size_t>(models->floats()));
    model::StartWeights(models->trained().network->tensors(), 10, weights.data());
  }
  absl::StatusOr<std::unique_ptr<Objective>> Make() {
    return MakeObjective(context.phase().objective(), {&compute, &context, models.get(), &table, weights.data()});
  }
  double Loss(Objective* objective, const v1::Microbatch& microbatch) {
    const absl::StatusOr<double> loss = objective->Loss({microbatch, model::IgnoreGroup}, &measured);
    EXPECT_OK(loss);
    return *loss;
  }
  double Gradients(Objective* objective, const v1::Microbatch& microbatch, const Philox& key,
                   std::vector<float>* gradients) {
    gradients->assign(static_cast<size_t>(models->trained_floats()), 0);
    const google::protobuf::Map<std::string, double> none;
    const absl::StatusOr<double> loss = objective->Gradients(
        {microbatch, model::IgnoreGroup, {&key}, 0.25, none, gradients->data(), model::IgnoreGroup}, &measured);
    EXPECT_OK(loss);
    return *loss;
  }

  kernels::Compute compute{kernels::DetectIsa(), 1};
  v1::PhaseContext context;
  std::unique_ptr<PhaseModels> models;
  v1::TensorTable table;
  std::vector<float> weights;
  Measured measured;
};

// Rows of two pieces of these lengths, drawn by the row's number; the second follows in even rows.
v1::Microbatch Rows(const std::vector<std::pair<uint32_t, uint32_t>>& pieces) {
  uint32_t columns = 0;
  for (const auto& [first, second] : pieces) columns = std::max(columns, first + second + 3);
  std::vector<uint32_t> ids, starts;
  std::vector<float> follows;
  for (const auto& [first, second] : pieces) {
    const size_t begin = ids.size();
    const uint32_t length = first + second + 3;
    ids.push_back(kBegin);
    for (uint32_t i = 0; i < first + second; ++i) {
      if (i == first) ids.push_back(kSeparator);
      ids.push_back(Philox(9)(first, i)[0] % kPad);
    }
    ids.push_back(kSeparator);
    ids.resize(begin + columns, kPad);
    starts.resize(begin + length, 0);
    starts.resize(begin + columns, length);
    follows.push_back(follows.size() % 2 == 0 ? 1.0f : 0.0f);
  }
  v1::Microbatch microbatch;
  microbatch.set_rows(static_cast<uint32_t>(pieces.size()));
  microbatch.set_columns(columns);
  microbatch.set_tokens(ids.data(), ids.size() * sizeof(uint32_t));
  microbatch.set_starts(starts.data(), starts.size() * sizeof(uint32_t));
  microbatch.set_row_values(follows.data(), follows.size() * sizeof(float));
  return microbatch;
}

double StatisticOf(const Measured& measured, const std::string& name, double* count = nullptr) {
  v1::WorkResult result;
  measured.Report(&result);
  for (const v1::Statistic& statistic : result.statistics()) {
    if (statistic.name() != name) continue;
    if (count != nullptr) *count = statistic.count();
    return statistic.sum();
  }
  ADD_FAILURE() << name;
  return 0;
}

TEST(MaskedObjectiveTest, CountsSequencesAndTellsOfHiddenTokens) {
  Bench bench;
  const std::unique_ptr<Objective> objective = *bench.Make();
  const v1::Microbatch microbatch = Rows({{10, 10}, {4, 3}});
  EXPECT_EQ(*objective->Count(microbatch), 2u);
  const double loss = bench.Loss(objective.get(), microbatch);
  double hidden = 0, rows = 0;
  const double masked_loss = StatisticOf(bench.measured, "masked_loss", &hidden);
  StatisticOf(bench.measured, "next_sentence_accuracy", &rows);
  EXPECT_EQ(hidden, 4);  // 3 of 20, 1 of 7
  EXPECT_EQ(rows, 2);
  EXPECT_GT(loss, 0);
  EXPECT_GT(masked_loss, 0);
}

TEST(MaskedObjectiveTest, EvaluationsHideByTheSequenceAlone) {
  Bench bench;
  const std::unique_ptr<Objective> objective = *bench.Make();
  // In another order, beside others, in rows that are longer, after training, by another worker.
  const double first = bench.Loss(objective.get(), Rows({{10, 10}}));
  const double both = bench.Loss(objective.get(), Rows({{10, 10}, {4, 3}, {10, 10}}));
  std::vector<float> gradients;
  bench.Gradients(objective.get(), Rows({{5, 5}}), Philox(1), &gradients);
  const std::unique_ptr<Objective> other = *bench.Make();
  EXPECT_EQ(bench.Loss(other.get(), Rows({{10, 10}})), first);
  const double second = both - 2 * first;
  // A row that is the second and does not follow.
  v1::Microbatch alone = Rows({{4, 3}});
  const float no = 0;
  alone.set_row_values(&no, sizeof(no));
  EXPECT_NEAR(bench.Loss(objective.get(), alone), second, 1e-9);
}

TEST(MaskedObjectiveTest, TrainingHidesByItsKey) {
  Bench bench;
  const v1::Microbatch microbatch = Rows({{10, 10}, {4, 3}});
  std::vector<float> one, again, other;
  const std::unique_ptr<Objective> objective = *bench.Make();
  const double loss = bench.Gradients(objective.get(), microbatch, Philox(1), &one);
  bench.Gradients(objective.get(), Rows({{5, 5}}), Philox(3), &other);
  EXPECT_EQ(bench.Gradients((*bench.Make()).get(), microbatch, Philox(1), &again), loss);
  EXPECT_EQ(again, one);
  EXPECT_NE(bench.Gradients(objective.get(), microbatch, Philox(2), &other), loss);
  EXPECT_NE(other, one);
}

TEST(MaskedObjectiveTest, WhatIsNoSequenceIsRefused) {
  Bench bench;
  const std::unique_ptr<Objective> objective = *bench.Make();
  const v1::Microbatch good = Rows({{10, 10}, {4, 3}});
  const auto message = [&](const v1::Microbatch& microbatch) {
    return std::string(objective->Count(microbatch).status().message());
  };
  v1::Microbatch bad = good;
  bad.mutable_row_values()->pop_back();
  EXPECT_THAT(message(bad), HasSubstr("7 bytes of what follows where 2 rows have 8"));
  bad = good;
  bad.mutable_tokens()->replace(0, 4, std::string(4, '\0'));
  EXPECT_THAT(message(bad), HasSubstr("row 0 does not begin with [CLS]"));
  EXPECT_THAT(message(Rows({{10, 12}})), HasSubstr("sequences of 25 tokens"));
  bad = Rows({{0, 1}});
  const uint32_t mask = kMask;
  bad.mutable_tokens()->replace(8, 4, reinterpret_cast<const char*>(&mask), 4);
  bad.mutable_tokens()->replace(4, 4, reinterpret_cast<const char*>(&mask), 4);
  EXPECT_THAT(message(bad), HasSubstr("row 0 has no token that could be hidden"));
  // Ids beyond the vocabulary are found where they are looked up.
  bad = good;
  const uint32_t beyond = kVocab;
  bad.mutable_tokens()->replace(4, 4, reinterpret_cast<const char*>(&beyond), 4);
  EXPECT_FALSE(objective->Loss({bad, model::IgnoreGroup}, &bench.measured).ok());
}

TEST(MaskedObjectiveTest, AnObjectiveNeedsItsTokensAndAnEncoder) {
  Bench bench;
  bench.context.mutable_special_tokens()->erase("[MASK]");
  EXPECT_THAT(bench.Make().status().message(), HasSubstr("[MASK]"));
  Bench decoder;
  EXPECT_THAT(MakeObjective("causal_lm", {&decoder.compute, &decoder.context, decoder.models.get(), &decoder.table,
                                          decoder.weights.data()})
                  .status()
                  .message(),
              HasSubstr("there is no objective 'causal_lm'"));
}

}  // namespace
}  // namespace millrace::worker
