// Compares rows with plain f64 arithmetic, and backward passes with finite differences of it.
#include "kernels/rows.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kRows = 6, kColumns = 21;
using Doubles = std::vector<double>;
using Floats = std::vector<float>;

Floats Numbers(uint64_t key, size_t n, float scale = 1) {
  Floats numbers(n);
  for (size_t i = 0; i < n; ++i) numbers[i] = scale * (2 * UniformFloat(Philox(key)(0, i)[0]) - 1);
  return numbers;
}
Doubles Wide(const Floats& x) { return {x.begin(), x.end()}; }

// d(sum of weights * f(x)) / dx.
Doubles Gradient(const std::function<Doubles(const Doubles&)>& f, Doubles x, const Floats& weights) {
  const auto value = [&] {
    const Doubles y = f(x);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * weights[i];
    return sum;
  };
  Doubles gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i];
    x[i] = before + 1e-5;
    const double above = value();
    x[i] = before - 1e-5;
    gradient[i] = (above - value()) / 2e-5;
    x[i] = before;
  }
  return gradient;
}

void ExpectNear(const Floats& values, const Doubles& truth, double tolerance) {
  ASSERT_EQ(values.size(), truth.size());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], truth[i], tolerance) << i;
}

Doubles LayerNormTruth(const Doubles& x, const Doubles& gain, const Doubles& bias) {
  Doubles y(x.size());
  for (int64_t r = 0; r < kRows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < kColumns; ++c) mean += x[r * kColumns + c] / kColumns;
    for (int64_t c = 0; c < kColumns; ++c) variance += std::pow(x[r * kColumns + c] - mean, 2) / kColumns;
    for (int64_t c = 0; c < kColumns; ++c) {
      y[r * kColumns + c] = (x[r * kColumns + c] - mean) / std::sqrt(variance + 1e-5) * gain[c] + bias[c];
    }
  }
  return y;
}

Doubles RmsNormTruth(const Doubles& x, const Doubles& gain) {
  Doubles y(x.size());
  for (int64_t r = 0; r < kRows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < kColumns; ++c) squares += std::pow(x[r * kColumns + c], 2) / kColumns;
    for (int64_t c = 0; c < kColumns; ++c)
      y[r * kColumns + c] = x[r * kColumns + c] / std::sqrt(squares + 1e-5) * gain[c];
  }
  return y;
}

Doubles SoftmaxTruth(const Doubles& x, double scale, bool causal, int64_t first_valid) {
  Doubles y(x.size(), 0.0);
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t valid = causal ? std::min(kColumns, first_valid + r) : kColumns;
    double sum = 0;
    for (int64_t c = 0; c < valid; ++c) sum += std::exp(scale * x[r * kColumns + c]);
    for (int64_t c = 0; c < valid; ++c) y[r * kColumns + c] = std::exp(scale * x[r * kColumns + c]) / sum;
  }
  return y;
}

class Rows : public ::testing::TestWithParam<int> {
 protected:
  const Compute compute_{DetectIsa(), GetParam()};
  const Floats x_ = Numbers(1, kRows*kColumns, 2), dy_ = Numbers(2, kRows*kColumns);
  const Floats gain_ = Numbers(3, kColumns), bias_ = Numbers(4, kColumns);
  Floats y_ = Floats(kRows * kColumns), dx_ = Floats(kRows * kColumns, 0.0f);
  Floats mean_ = Floats(kRows), rstd_ = Floats(kRows), dgain_ = Floats(kColumns, 0.0f), dbias_ = Floats(kColumns, 0.0f);
};

TEST_P(Rows, LayerNorm) {
  LayerNormRows(compute_, x_.data(), gain_.data(), bias_.data(), 1e-5f, kRows, kColumns, y_.data(), mean_.data(),
                rstd_.data());
  ExpectNear(y_, LayerNormTruth(Wide(x_), Wide(gain_), Wide(bias_)), 1e-5);
  LayerNormRowsBackward(compute_, x_.data(), gain_.data(), mean_.data(), rstd_.data(), dy_.data(), kRows, kColumns,
                        dx_.data(), dgain_.data(), dbias_.data());
  ExpectNear(dx_,
             Gradient([&](const Doubles& x) { return LayerNormTruth(x, Wide(gain_), Wide(bias_)); }, Wide(x_), dy_),
             1e-4);
  ExpectNear(
      dgain_,
      Gradient([&](const Doubles& gain) { return LayerNormTruth(Wide(x_), gain, Wide(bias_)); }, Wide(gain_), dy_),
      1e-4);
  ExpectNear(
      dbias_,
      Gradient([&](const Doubles& bias) { return LayerNormTruth(Wide(x_), Wide(gain_), bias); }, Wide(bias_), dy_),
      1e-4);
  LayerNormRows(compute_, x_.data(), gain_.data(), nullptr, 1e-5f, kRows, kColumns, y_.data(), mean_.data(),
                rstd_.data());
  ExpectNear(y_, LayerNormTruth(Wide(x_), Wide(gain_), Doubles(kColumns, 0.0)), 1e-5);
}

TEST_P(Rows, RmsNorm) {
  RmsNormRows(compute_, x_.data(), gain_.data(), 1e-5f, kRows, kColumns, y_.data(), rstd_.data());
  ExpectNear(y_, RmsNormTruth(Wide(x_), Wide(gain_)), 1e-5);
  RmsNormRowsBackward(compute_, x_.data(), gain_.data(), rstd_.data(), dy_.data(), kRows, kColumns, dx_.data(),
                      dgain_.data());
  ExpectNear(dx_, Gradient([&](const Doubles& x) { return RmsNormTruth(x, Wide(gain_)); }, Wide(x_), dy_), 1e-4);
  ExpectNear(dgain_, Gradient([&](const Doubles& gain) { return RmsNormTruth(Wide(x_), gain); }, Wide(gain_), dy_),
             1e-4);
}

TEST_P(Rows, Softmax) {
  for (const bool causal : {false, true}) {
    Floats y = x_;
    SoftmaxRows(y.data(), kRows, kColumns, 0.5f, causal, 4);
    ExpectNear(y, SoftmaxTruth(Wide(x_), 0.5, causal, 4), 1e-6);
    Floats dx = dy_;
    SoftmaxRowsBackward(y.data(), dx.data(), kRows, kColumns, 0.5f);
    ExpectNear(dx, Gradient([&](const Doubles& x) { return SoftmaxTruth(x, 0.5, causal, 4); }, Wide(x_), dy_), 1e-5);
  }
}

TEST_P(Rows, CrossEntropy) {
  const std::vector<uint32_t> targets = {0, 20, 3, 9, 9, 1};
  const auto losses = [&](const Doubles& x) {
    const Doubles y = SoftmaxTruth(x, 1, false, 0);
    Doubles loss;
    for (int64_t r = 0; r < kRows; ++r) loss.push_back(-std::log(y[r * kColumns + targets[static_cast<size_t>(r)]]));
    return loss;
  };
  Floats logits = x_, loss(kRows);
  const Floats d_loss = {0.25f, -1, 0, 2, 0.5f, 1};
  CrossEntropyRows(compute_, logits.data(), kRows, kColumns,
                   {.targets = targets.data(), .loss = loss.data(), .d_loss = d_loss.data()});
  ExpectNear(loss, losses(Wide(x_)), 1e-5);
  ExpectNear(logits, Gradient(losses, Wide(x_), d_loss), 1e-5);
  Floats bad = x_;
  bad[kColumns + 3] = NAN;
  CrossEntropyRows(compute_, bad.data(), kRows, kColumns, {.targets = targets.data(), .loss = loss.data()});
  EXPECT_TRUE(std::isnan(loss[1]));
  EXPECT_TRUE(std::isfinite(loss[0]));
}

TEST_P(Rows, EntropyAndTemperature) {
  const std::vector<uint32_t> targets = {0, 20, 3, 9, 9, 1};
  const Floats d_loss = {0.25f, -1, 0, 2, 0.5f, 1}, d_entropy = {1, 0.5f, -2, 0, 1, -1};
  for (const float temperature : {1.0f, 0.7f, 1.5f}) {
    const double inverse = 1 / static_cast<double>(temperature);
    const auto losses = [&](const Doubles& x) {
      const Doubles p = SoftmaxTruth(x, inverse, false, 0);
      Doubles loss;
      for (int64_t r = 0; r < kRows; ++r) loss.push_back(-std::log(p[r * kColumns + targets[static_cast<size_t>(r)]]));
      return loss;
    };
    const auto entropies = [&](const Doubles& x) {
      Doubles entropy(kRows, 0.0);
      const Doubles p = SoftmaxTruth(x, inverse, false, 0);
      for (size_t i = 0; i < p.size(); ++i) entropy[i / kColumns] -= p[i] * std::log(p[i]);
      return entropy;
    };
    Floats logits = x_, loss(kRows), entropy(kRows);
    kernels::CrossEntropy about = {.targets = targets.data(), .temperature = temperature, .loss = loss.data()};
    about.entropy = entropy.data();
    about.d_loss = d_loss.data();
    about.d_entropy = d_entropy.data();
    CrossEntropyRows(compute_, logits.data(), kRows, kColumns, about);
    ExpectNear(loss, losses(Wide(x_)), 1e-5);
    ExpectNear(entropy, entropies(Wide(x_)), 1e-5);
    Doubles both = Gradient(losses, Wide(x_), d_loss);
    const Doubles of_entropy = Gradient(entropies, Wide(x_), d_entropy);
    for (size_t i = 0; i < both.size(); ++i) both[i] += of_entropy[i];
    ExpectNear(logits, both, 1e-5);
    // What else is asked for changes no bit of the loss.
    Floats again = x_, alone(kRows);
    CrossEntropyRows(compute_, again.data(), kRows, kColumns,
                     {.targets = targets.data(), .temperature = temperature, .loss = alone.data()});
    EXPECT_EQ(alone, loss);
  }
}

TEST_P(Rows, SumsOverRows) {
  Floats y = bias_;
  AddRows(compute_, x_.data(), kRows, kColumns, kColumns, y.data());
  Doubles truth = Wide(bias_);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) truth[static_cast<size_t>(c)] += x_[static_cast<size_t>(r * kColumns + c)];
  }
  ExpectNear(y, truth, 1e-5);
  // Of the first half of the columns only.
  constexpr int64_t kHalf = kColumns / 2;
  Floats half(bias_.begin(), bias_.begin() + kHalf);
  AddRows(compute_, x_.data(), kRows, kHalf, kColumns, half.data());
  EXPECT_TRUE(std::equal(half.begin(), half.end(), y.begin()));
}

// The order in which rows are added up is defined, whatever the threads do.
TEST_P(Rows, SumsOverManyRowsHaveTheBitsOfOneAfterAnother) {
  constexpr int64_t kMany = 301, kWide = 70;
  Floats x(kMany * kWide), dy(kMany * kWide), mean(kMany), rstd(kMany), gain(kWide, 1.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = std::ldexp(std::sin(static_cast<float>(i)), static_cast<int>(i % 13) - 6);
    dy[i] = std::ldexp(std::cos(static_cast<float>(3 * i)), static_cast<int>(i % 17) - 8);
  }
  for (size_t r = 0; r < kMany; ++r) {
    mean[r] = std::sin(static_cast<float>(r));
    rstd[r] = 1.5f + std::cos(static_cast<float>(r));
  }
  Floats sums(kWide), layer(kWide), rms(kWide);
  AddRows(compute_, dy.data(), kMany, kWide, kWide, sums.data());
  LayerNormRowsBackward(compute_, x.data(), gain.data(), mean.data(), rstd.data(), dy.data(), kMany, kWide, nullptr,
                        layer.data(), nullptr);
  RmsNormRowsBackward(compute_, x.data(), gain.data(), rstd.data(), dy.data(), kMany, kWide, nullptr, rms.data());
  for (size_t c = 0; c < kWide; ++c) {
    float sum = 0, layer_sum = 0, rms_sum = 0;
    for (size_t r = 0; r < kMany; ++r) {
      const size_t at = r * kWide + c;
      sum += dy[at];
      layer_sum = std::fma(dy[at], (x[at] - mean[r]) * rstd[r], layer_sum);
      rms_sum = std::fma(dy[at], x[at] * rstd[r], rms_sum);
    }
    EXPECT_EQ(sums[c], sum) << c;
    EXPECT_EQ(layer[c], layer_sum) << c;
    EXPECT_EQ(rms[c], rms_sum) << c;
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Rows, ::testing::Values(1, 3));

}  // namespace
}  // namespace millrace::kernels
