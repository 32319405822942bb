#include "ps/held_piece.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/bfloat16.h"
#include "ps/shards.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kUnits = 2;

// A matrix of two blocks, the second one of 10,464 elements.
v1::TensorTable Table() {
  v1::TensorTable table;
  AddTensor("matrix", {76, 1000}, v1::Tensor::MATRIX, true, 0, &table);
  return table;
}

class HeldPieceTest : public ::testing::Test {
 protected:
  void Hold(const std::string& optimizer, uint32_t weight_bits = 32) {
    optimizer_ = *optim::CreateOptimizer(OptimizerOf(optimizer));
    piece_ = std::make_unique<HeldPiece>(&table_, 0, 2, optimizer_.get(), kUnits, weight_bits);
  }
  v1::LoadRequest LoadOf(uint32_t part, const std::string& state = "") const {
    v1::LoadRequest request;
    request.set_block(part);
    request.set_weights(Bytes(Numbers(1, part, table_.blocks()[part].size, 1.0f)));
    request.set_state(state);
    const std::string bytes = absl::StrCat(request.weights(), request.state());
    request.set_crc32c(Crc32c(bytes.data(), bytes.size()));
    return request;
  }
  v1::PushRequest PushOf(uint32_t part, uint32_t unit, uint64_t version) const {
    v1::PushRequest request;
    request.set_version(version);
    request.set_unit(unit);
    std::string values;
    EXPECT_OK(blocks::Encode(Numbers(2 + unit, part, table_.blocks()[part].size, 1.0f), {}, &values));
    *request.mutable_coding() = blocks::CodingToProto({});
    request.set_crc32c(Crc32c(values.data(), values.size()));
    request.set_values(values);
    return request;
  }
  void Start(uint64_t version) {
    for (const uint32_t part : {0u, 1u}) {
      ASSERT_OK(piece_->CheckLoad(part, LoadOf(part)));
      piece_->Load(part, LoadOf(part));
    }
    piece_->Start(version);
  }
  void Step(uint64_t version) {
    StepRule rule;
    rule.optimizer = optimizer_.get();
    rule.step = version + 1;
    std::vector<float> scratch;
    piece_->Step(compute_, rule, version, &scratch);
  }

  absl::StatusOr<bool> Add(uint32_t part, const v1::PushRequest& request) {
    return piece_->Add(part, request, request.values());
  }
  // Into pulled_.
  bool Pull(uint32_t part, uint64_t version) {
    pulled_.resize(piece_->pulled_bytes(part));
    v1::Coding coding;
    return piece_->Read(part, version, pulled_.data(), &coding);
  }

  std::string pulled_;
  const blocks::BlockTable table_ = BlocksOf(Table());
  const kernels::Compute compute_{kernels::DetectIsa(), 1};
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::unique_ptr<HeldPiece> piece_;
};

// A push that passed the store's check before a commit began must not get into the next step.
TEST_F(HeldPieceTest, LatePushGetsIntoNoOtherStep) {
  Hold("muon");
  Start(4);
  EXPECT_EQ(*Add(1, PushOf(1, 0, 4)), true);
  Step(4);
  EXPECT_EQ(piece_->missing_units(1), kUnits);
  const absl::Status late = Add(1, PushOf(1, 1, 4)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(late)) << late;
  EXPECT_THAT(std::string(late.message()), HasSubstr("matrix[65536, 76000) is at version 5"));
  EXPECT_EQ(piece_->missing_units(1), kUnits);
}

// The blocks' gradients make one matrix, of the shape and storage that the table says.
TEST_F(HeldPieceTest, StepOfAMatrixEqualsThePlainOptimizers) {
  for (const bool rows_are_inputs : {false, true}) {
    v1::TensorTable described = Table();
    described.mutable_tensors(0)->set_rows_are_inputs(rows_are_inputs);
    const blocks::BlockTable table = BlocksOf(described);
    optimizer_ = *optim::CreateOptimizer(OptimizerOf("muon"));
    piece_ = std::make_unique<HeldPiece>(&table, 0, 2, optimizer_.get(), kUnits, 32);
    Start(0);
    std::vector<float> weights, gradient, state(76'000, 0.0f);
    for (const uint32_t part : {0u, 1u}) {
      const std::vector<float> loaded = Floats(LoadOf(part).weights());
      weights.insert(weights.end(), loaded.begin(), loaded.end());
      GradientSum sum(table.blocks()[part].size, kUnits);
      for (uint32_t unit = 0; unit < kUnits; ++unit) {
        ASSERT_TRUE(*Add(part, PushOf(part, unit, 0)));
        ASSERT_TRUE(*sum.Add(unit, PushOf(part, unit, 0).values(), {}, 0));
      }
      std::vector<float> decoded(loaded.size());
      sum.Decode({}, decoded.data());
      for (const float value : decoded) gradient.push_back(value * 0.5f);
    }
    StepRule rule;
    rule.optimizer = optimizer_.get();
    rule.step = 1;
    rule.factor = 0.75;
    rule.clip_factor = 0.5f;
    std::vector<float> scratch;
    piece_->Step(compute_, rule, 0, &scratch);

    optim::Piece matrix;
    matrix.size = 76'000;
    matrix.role = v1::Tensor::MATRIX;
    matrix.decays = true;
    matrix.rows = 76;
    matrix.columns = 1000;
    matrix.rows_are_inputs = rows_are_inputs;
    optimizer_->Update(compute_, matrix, 1, 0.75, gradient.data(), weights.data(), state.data());
    v1::SnapshotReply first, second;
    ASSERT_TRUE(piece_->Read(0, 1, &first));
    ASSERT_TRUE(piece_->Read(1, 1, &second));
    EXPECT_EQ(Floats(first.weights() + second.weights()), weights) << rows_are_inputs;
    EXPECT_EQ(Floats(first.state() + second.state()), state) << rows_are_inputs;
  }
}

TEST_F(HeldPieceTest, GivesOutHalfTheBytesWhereAsked) {
  Hold("muon", /*weight_bits=*/16);
  Start(4);
  const std::vector<float> weights = Floats(LoadOf(1).weights());
  ASSERT_EQ(piece_->pulled_bytes(1), 2 * weights.size());
  ASSERT_TRUE(Pull(1, 4));
  for (size_t i = 0; i < weights.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, pulled_.data() + 2 * i, sizeof(half));
    ASSERT_EQ(half, kernels::RoundToBf16(weights[i])) << i;
  }
  v1::SnapshotReply whole;
  ASSERT_TRUE(piece_->Read(1, 4, &whole));
  EXPECT_EQ(whole.weights(), LoadOf(1).weights());
}

TEST_F(HeldPieceTest, GivesOutItsVersionAlone) {
  Hold("muon");
  EXPECT_FALSE(Pull(0, 0));  // not loaded
  Start(4);
  EXPECT_FALSE(Pull(0, 3));
  EXPECT_FALSE(Pull(0, 5));
  ASSERT_TRUE(Pull(1, 4));
  EXPECT_EQ(pulled_, LoadOf(1).weights());
  Step(4);
  v1::SnapshotReply read;
  EXPECT_FALSE(Pull(1, 4));
  EXPECT_FALSE(piece_->Read(1, 4, &read));
  ASSERT_TRUE(piece_->Read(1, 5, &read));
  EXPECT_NE(read.weights(), LoadOf(1).weights());
}

// S = 76 + 1000 values of Adafactor's over 76,000 elements: the first block has 1076 * 65536 / 76000 = 927.8 of them.
TEST_F(HeldPieceTest, StateOfAMatrixIsCutInProportionAndComesBackWhole) {
  Hold("adafactor");
  EXPECT_EQ(piece_->copy_bytes(), 4u * (76'000 + 1076));
  Start(0);
  for (const uint32_t part : {0u, 1u}) {
    for (uint32_t unit = 0; unit < kUnits; ++unit) ASSERT_TRUE(*Add(part, PushOf(part, unit, 0)));
  }
  Step(0);
  v1::SnapshotReply first, second;
  ASSERT_TRUE(piece_->Read(0, 1, &first));
  ASSERT_TRUE(piece_->Read(1, 1, &second));
  EXPECT_EQ(first.state().size(), 4u * 927);
  EXPECT_EQ(second.state().size(), 4u * (1076 - 927));
  // Squares of sums of two numbers in (-1, 1): none of the state is missing.
  for (const float value : Floats(first.state() + second.state())) EXPECT_GT(value, 0.0f);

  Hold("adafactor");
  ASSERT_OK(piece_->CheckLoad(0, LoadOf(0, first.state())));
  EXPECT_TRUE(absl::IsInvalidArgument(piece_->CheckLoad(0, LoadOf(0, second.state()))));
  EXPECT_TRUE(absl::IsInvalidArgument(piece_->CheckLoad(1, LoadOf(1, first.state()))));
  piece_->Load(0, LoadOf(0, first.state()));
  piece_->Load(1, LoadOf(1, second.state()));
  piece_->Start(1);
  v1::SnapshotReply again;
  ASSERT_TRUE(piece_->Read(1, 1, &again));
  EXPECT_EQ(again.state(), second.state());
  ASSERT_TRUE(piece_->Read(0, 1, &again));
  EXPECT_EQ(again.state(), first.state());
}

TEST_F(HeldPieceTest, DroppedPieceHasNothing) {
  Hold("muon");
  Start(0);
  piece_->Drop();
  v1::PullReply pulled;
  EXPECT_FALSE(Pull(0, 0));
  EXPECT_TRUE(absl::IsFailedPrecondition(Add(0, PushOf(0, 0, 0)).status()));
  EXPECT_EQ(piece_->SquaredNorm(0), 0);
  Step(0);
  piece_->Load(0, LoadOf(0));
}

}  // namespace
}  // namespace millrace::ps
