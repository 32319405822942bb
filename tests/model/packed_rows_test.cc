// Rows that hold several sequences, and targets of which some count: to each sequence it is as if it were alone, and to
// the sum as if only the scored tokens were there.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "model/objectives/causal_lm.h"
#include "model/tiny_models.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVocab = 37;
constexpr int64_t kColumns = 75;  // more than one block of attention

struct Packed {
  std::vector<int64_t> lengths;  // of the sequences, row after row
  std::vector<uint32_t> ids, starts;
  int64_t rows = 0;
};

// Odd beginnings, single tokens, a row that is one sequence, and one that begins after a block of attention.
Packed Pack() {
  Packed packed;
  packed.rows = 3;
  packed.lengths = {7, 1, 3, 64, 75, 69, 6};
  packed.ids = RandomIds(2, static_cast<size_t>(packed.rows * kColumns), kVocab);
  uint32_t column = 0;
  for (const int64_t length : packed.lengths) {
    packed.starts.insert(packed.starts.end(), static_cast<size_t>(length), column);
    column = (column + static_cast<uint32_t>(length)) % kColumns;
  }
  return packed;
}

struct Case {
  std::string family, precision;
};

class PackedRows : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    network_ = NewNetwork(TinySpec(GetParam().family, GetParam().precision), kVocab);
    weights_ = RandomWeights(network_->tensors(), 1);
  }

  std::vector<float> Outputs(const TokenMatrix& tokens, bool for_training = false) const {
    const auto memory = *network_->NewMemory(tokens.tokens(), tokens.columns, for_training);
    const auto outputs = network_->Forward(compute_, weights_.data(), tokens, {}, &NothingToWaitFor, memory.get());
    EXPECT_OK(outputs);
    return {*outputs, *outputs + tokens.tokens() * network_->hidden_size()};
  }

  // Adds to `gradients`; returns the loss.
  double Train(const Batch& batch, const std::vector<float>& weights, std::vector<float>* gradients,
               Trainable trainable = nullptr, const Philox* key = nullptr) const {
    CausalLm objective = *CausalLm::Create(network_.get(), &compute_, batch.rows * (batch.columns - 1),
                                           batch.columns - 1, /*for_training=*/true);
    const auto loss = objective.Gradients(weights.data(), batch, {key}, 0.01f, &NothingToWaitFor, gradients->data(),
                                          &NothingToWaitFor, trainable);
    EXPECT_OK(loss);
    return loss.value_or(NAN);
  }

  void ExpectSameWithinRounding(const std::vector<float>& one, const std::vector<double>& other) const {
    for (const TensorSpec& tensor : network_->tensors().tensors()) {
      double largest = 0;
      for (int64_t i = 0; i < tensor.size; ++i) {
        largest = std::max(largest, std::fabs(other[static_cast<size_t>(tensor.offset + i)]));
      }
      ASSERT_GT(largest, 0) << tensor.name;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        ASSERT_NEAR(one[at], other[at], 1e-5 * largest) << tensor.name << " " << i;
      }
    }
  }

  std::unique_ptr<Network> network_;
  std::vector<float> weights_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};
INSTANTIATE_TEST_SUITE_P(Families, PackedRows,
                         ::testing::Values(Case{"gpt2", "f32"}, Case{"gpt2", "bf16"}, Case{"llama", "f32"},
                                           Case{"llama", "bf16"}, Case{"mistral", "f32"}, Case{"mistral", "bf16"},
                                           Case{"qwen2", "f32"}, Case{"lstm", "f32"}, Case{"lstm", "bf16"},
                                           Case{"cnn", "f32"}, Case{"cnn", "bf16"}),
                         [](const auto& info) { return info.param.family + "_" + info.param.precision; });

TEST_P(PackedRows, GiveEachSequenceTheBitsThatItHasAlone) {
  const Packed packed = Pack();
  const TokenMatrix matrix = {packed.ids.data(), packed.rows, kColumns, kColumns, packed.starts.data()};
  for (const bool for_training : {false, true}) {
    const std::vector<float> together = Outputs(matrix, for_training);
    int64_t first = 0;
    for (const int64_t length : packed.lengths) {
      const std::vector<float> alone = Outputs({packed.ids.data() + first, 1, length, length});
      EXPECT_EQ(
          0, std::memcmp(together.data() + first * network_->hidden_size(), alone.data(), alone.size() * sizeof(float)))
          << "the sequence at " << first;
      first += length;
    }
  }
}

TEST_P(PackedRows, GradientsAreTheSumOfTheSequences) {
  const Packed packed = Pack();
  const Batch batch = {packed.ids.data(), packed.rows, kColumns, 0, packed.starts.data()};
  std::vector<float> together(weights_.size(), 0.0f);
  const double loss = Train(batch, weights_, &together);
  double alone = 0;
  int64_t first = 0, predictions = 0;
  std::vector<double> sum(weights_.size(), 0);
  for (const int64_t length : packed.lengths) {
    if (length > 1) {
      std::vector<float> gradients(weights_.size(), 0.0f);
      alone += Train({packed.ids.data() + first, 1, length}, weights_, &gradients);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(gradients[i]);
      predictions += length - 1;
    }
    first += length;
  }
  EXPECT_EQ(batch.predictions(), predictions);
  EXPECT_NEAR(loss, alone, 1e-9);
  if (GetParam().precision == "f32") ExpectSameWithinRounding(together, sum);
}

TEST_P(PackedRows, SayNothingWhereEachRowIsOneSequence) {
  const std::vector<uint32_t> ids = RandomIds(2, 2 * kColumns, kVocab), starts(2 * kColumns, 0);
  const Philox key(3);
  std::vector<float> plain(weights_.size(), 0.0f), said(weights_.size(), 0.0f);
  const double loss = Train({ids.data(), 2, kColumns}, weights_, &plain, nullptr, &key);
  EXPECT_EQ(Train({ids.data(), 2, kColumns, 0, starts.data()}, weights_, &said, nullptr, &key), loss);
  EXPECT_EQ(plain, said);
}

TEST_P(PackedRows, OnlyScoredTargetsCount) {
  const Packed packed = Pack();
  // Runs and single ones; none in the second row.
  std::vector<uint8_t> scored(packed.ids.size(), 0);
  for (const int64_t at : {2, 3, 4, 9, 10, 40, 73, 74, 151, 160, 220}) scored[static_cast<size_t>(at)] = 1;
  const Batch batch = {packed.ids.data(), packed.rows, kColumns, 0, packed.starts.data(), scored.data()};
  ASSERT_EQ(batch.predictions(), 11);
  CausalLm objective = *CausalLm::Create(network_.get(), &compute_, packed.rows * (kColumns - 1), kColumns - 1,
                                         /*for_training=*/false);
  // All log-probabilities, from the same rows without a choice.
  Batch whole = batch;
  whole.scored = nullptr;
  std::vector<float> all(static_cast<size_t>(whole.predictions())), some(11), chosen;
  ASSERT_OK(objective.Loss(weights_.data(), whole, &NothingToWaitFor, all.data()));
  const auto loss = objective.Loss(weights_.data(), batch, &NothingToWaitFor, some.data());
  ASSERT_OK(loss);
  double sum = 0;
  size_t next = 0;
  for (int64_t row = 0; row < packed.rows; ++row) {
    for (int64_t column = 0; column < kColumns; ++column) {
      if (!whole.Counts(row, column)) continue;
      if (batch.Counts(row, column)) {
        chosen.push_back(all[next]);
        sum -= static_cast<double>(all[next]);
      }
      ++next;
    }
  }
  EXPECT_EQ(some, chosen);
  EXPECT_EQ(*loss, sum);
  // Training sees the same loss; along its gradients the loss rises by their length.
  std::vector<float> gradients(weights_.size(), 0.0f);
  EXPECT_EQ(Train(batch, weights_, &gradients), sum);
  if (GetParam().precision == "bf16") return;  // rounded operands make steps where differences are taken
  for (const TensorSpec& tensor : network_->tensors().tensors()) {
    double squares = 0;
    for (int64_t i = 0; i < tensor.size; ++i) {
      squares += std::pow(static_cast<double>(gradients[static_cast<size_t>(tensor.offset + i)]) / 0.01, 2);
    }
    const double length = std::sqrt(squares), step = 2e-3;
    ASSERT_GT(length, 0) << tensor.name;
    double losses[2];
    for (const int side : {0, 1}) {
      std::vector<float> moved = weights_;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        moved[at] +=
            static_cast<float>((side == 0 ? -step : step) * static_cast<double>(gradients[at]) / 0.01 / length);
      }
      losses[side] = *objective.Loss(moved.data(), batch, &NothingToWaitFor);
    }
    EXPECT_NEAR((losses[1] - losses[0]) / (2 * step), length, 0.01 * length + 0.02) << tensor.name;
  }
}

TEST_P(PackedRows, AScoreOfWhatIsScoredAnywayChangesNoBit) {
  const std::vector<uint32_t> ids = RandomIds(2, 2 * kColumns, kVocab);
  std::vector<uint8_t> scored(2 * kColumns, 1);
  scored[0] = scored[kColumns] = 0;
  std::vector<float> plain(weights_.size(), 0.0f), said(weights_.size(), 0.0f);
  const double loss = Train({ids.data(), 2, kColumns}, weights_, &plain);
  EXPECT_EQ(Train({ids.data(), 2, kColumns, 0, nullptr, scored.data()}, weights_, &said), loss);
  EXPECT_EQ(plain, said);
}

TEST_P(PackedRows, RefuseWhatCannotBe) {
  CausalLm objective = *CausalLm::Create(network_.get(), &compute_, 20, 10, /*for_training=*/false);
  const std::vector<uint32_t> ids(10, 1);
  const auto message = [&](const std::vector<uint32_t>& starts, const std::vector<uint8_t>& scored) {
    const auto loss =
        objective.Loss(weights_.data(), {ids.data(), 2, 5, 0, starts.data(), scored.empty() ? nullptr : scored.data()},
                       &NothingToWaitFor);
    EXPECT_EQ(loss.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(loss.status().message());
  };
  EXPECT_THAT(message({0, 0, 2, 2, 2, 1, 1, 1, 1, 1}, {}), HasSubstr("row 1, column 0"));
  EXPECT_THAT(message({0, 0, 2, 0, 0, 0, 0, 0, 0, 0}, {}), HasSubstr("row 0, column 3: a sequence cannot begin at "
                                                                     "column 0 there; that of the token before or 3"));
  EXPECT_THAT(message({0, 0, 3, 3, 3, 0, 0, 0, 0, 0}, {}), HasSubstr("row 0, column 2"));
  EXPECT_THAT(message({0, 0, 2, 2, 2, 0, 0, 0, 0, 0}, {0, 0, 1, 0, 0, 0, 0, 0, 0, 0}),
              HasSubstr("row 0, column 2: the token is scored, but it begins a sequence"));
  EXPECT_THAT(message({0, 0, 2, 2, 2, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 1, 0, 0, 0, 0}), HasSubstr("row 1, column 0"));
  EXPECT_THAT(message({0, 0, 2, 2, 2, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
              HasSubstr("none is scored predicts nothing"));
}

// ---- tensors that are not trained ----

TEST_P(PackedRows, TrainedTensorsGetTheSameGradientsWhateverIsFrozen) {
  const Packed packed = Pack();
  const Philox key(3);
  const Batch batch = {packed.ids.data(), packed.rows, kColumns, 0, packed.starts.data()};
  const TensorList& tensors = network_->tensors();
  std::vector<float> all(weights_.size(), 0.0f);
  const double loss = Train(batch, weights_, &all, nullptr, &key);
  const auto expect = [&](const std::vector<bool>& trainable, const std::string& about) {
    // Memory of frozen tensors is not touched: what is written there would show.
    std::vector<float> some(weights_.size(), 0.0f);
    for (int i = 0; i < tensors.size(); ++i) {
      if (!trainable[static_cast<size_t>(i)]) {
        std::fill_n(some.data() + tensors[i].offset, tensors[i].size, -77.0f);
      }
    }
    EXPECT_EQ(Train(batch, weights_, &some, &trainable, &key), loss);
    for (int i = 0; i < tensors.size(); ++i) {
      const auto from = static_cast<std::ptrdiff_t>(tensors[i].offset);
      const std::vector<float> got(some.begin() + from, some.begin() + from + tensors[i].size);
      if (trainable[static_cast<size_t>(i)]) {
        ASSERT_EQ(got, std::vector<float>(all.begin() + from, all.begin() + from + tensors[i].size))
            << tensors[i].name << ", " << about;
      } else {
        ASSERT_THAT(got, ::testing::Each(-77.0f)) << tensors[i].name << ", " << about;
      }
    }
  };
  for (int i = 0; i < tensors.size(); ++i) {
    std::vector<bool> only(static_cast<size_t>(tensors.size()), false), from = only, but(only.size(), true);
    only[static_cast<size_t>(i)] = true;
    but[static_cast<size_t>(i)] = false;
    for (int j = i; j < tensors.size(); ++j) from[static_cast<size_t>(j)] = true;
    expect(only, "only " + tensors[i].name);
    expect(from, "from " + tensors[i].name);
    expect(but, "all but " + tensors[i].name);
  }
}

TEST_P(PackedRows, EveryGroupIsFinalWhateverIsFrozen) {
  const std::vector<uint32_t> ids = RandomIds(2, 20, kVocab);
  CausalLm objective = *CausalLm::Create(network_.get(), &compute_, 18, 9, /*for_training=*/true);
  std::vector<float> gradients(weights_.size(), 0.0f);
  std::vector<bool> trainable(static_cast<size_t>(network_->tensors().size()), false);
  for (const bool last : {false, true}) {
    trainable.back() = last;
    std::vector<uint32_t> final;
    const auto loss = objective.Gradients(
        weights_.data(), {ids.data(), 2, 10}, {}, 1, &NothingToWaitFor, gradients.data(),
        [&](uint32_t group) {
          final.push_back(group);
          return absl::OkStatus();
        },
        &trainable);
    ASSERT_OK(loss);
    EXPECT_THAT(final, ::testing::ElementsAre(3, 2, 1, 0));
  }
}

}  // namespace
}  // namespace millrace::model
