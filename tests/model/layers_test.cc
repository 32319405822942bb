// Each layer against plain loops in f64 and their finite differences.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/philox.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/families/causal_stack.h"
#include "model/families/network.h"
#include "model/layers/attention.h"
#include "model/layers/dropout.h"
#include "model/layers/embedding.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/layers/rope.h"
#include "model/objectives/causal_lm.h"
#include "testing/gradient_check.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using kernels::Precision;
using testing::CheckGradient;
using testing::Doubles;
using testing::Floats;
using testing::Layer;
using testing::Numbers;

constexpr float kUntouched = -777;
// bfloat16 has 8 bits: a rounded product is off by up to 2^-8 of it.
constexpr double kBf16Tolerance = 1.5e-2;

const kernels::Compute& TwoThreads() {
  static const kernels::Compute* const compute = new kernels::Compute(kernels::DetectIsa(), 2);
  return *compute;
}

absl::Status NothingToWaitFor(uint32_t) { return absl::OkStatus(); }

size_t Size(int64_t n) { return static_cast<size_t>(n); }

// What a gradient that is added to held before: it has to be there afterwards.
Floats Before(size_t n) { return Numbers(0xBEF, n); }
Floats Added(Floats sum) {
  const Floats before = Before(sum.size());
  for (size_t i = 0; i < sum.size(); ++i) sum[i] -= before[i];
  return sum;
}

// Rows of `width` floats, `stride` apart, with kUntouched between.
Floats Spread(const Floats& rows, int64_t width, int64_t stride) {
  const int64_t count = static_cast<int64_t>(rows.size()) / width;
  Floats spread(Size(count * stride), kUntouched);
  for (int64_t i = 0; i < count; ++i) std::copy_n(rows.data() + i * width, width, spread.data() + i * stride);
  return spread;
}
// The rows back; what lies between must be as it was.
Floats Gather(const Floats& spread, int64_t width, int64_t stride) {
  Floats rows;
  for (int64_t i = 0; i < static_cast<int64_t>(spread.size()); ++i) {
    if (i % stride < width) {
      rows.push_back(spread[Size(i)]);
    } else {
      EXPECT_EQ(spread[Size(i)], kUntouched) << i;
    }
  }
  return rows;
}

// ---- linear ----

struct LinearCase {
  const char* name;
  bool inputs_first = false;
  bool bias = false;
  int64_t gap = 0;  // between rows of outputs
  bool accumulate = false;
  Precision precision = Precision::kF32;
};

class LinearLayer : public ::testing::TestWithParam<LinearCase> {};
INSTANTIATE_TEST_SUITE_P(Layers, LinearLayer,
                         ::testing::Values(LinearCase{"Plain"}, LinearCase{"Bias", false, true},
                                           LinearCase{"Conv1D", true, true}, LinearCase{"Conv1DNoBias", true, false},
                                           LinearCase{"Strided", false, false, 3},
                                           LinearCase{"StridedBias", false, true, 3},
                                           LinearCase{"Conv1DStrided", true, false, 3},
                                           LinearCase{"Accumulated", false, true, 0, true},
                                           LinearCase{"Conv1DAccumulated", true, true, 0, true},
                                           LinearCase{"Bf16", false, true, 0, true, Precision::kBf16},
                                           LinearCase{"Conv1DBf16", true, true, 0, false, Precision::kBf16}),
                         [](const auto& info) { return info.param.name; });

TEST_P(LinearLayer, IsXWPlusB) {
  constexpr int64_t kRows = 7, kInputs = 13, kOutputs = 19;
  const LinearCase& about = GetParam();
  const Linear linear = {kInputs, kOutputs, about.inputs_first, about.precision};
  const int64_t stride = kOutputs + about.gap;
  Layer layer;
  layer.arguments = {{"x", Numbers(1, kRows * kInputs)}, {"weight", Numbers(2, kInputs * kOutputs)}};
  if (about.bias) layer.arguments.push_back({"bias", Numbers(3, kOutputs)});
  layer.truth = [&](const std::vector<Doubles>& a) {
    Doubles y;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t o = 0; o < kOutputs; ++o) {
        double sum = about.bias ? a[2][Size(o)] : 0;
        for (int64_t i = 0; i < kInputs; ++i) {
          sum += a[0][Size(r * kInputs + i)] * a[1][Size(about.inputs_first ? i * kOutputs + o : o * kInputs + i)];
        }
        y.push_back(sum);
      }
    }
    return y;
  };
  layer.forward = [&](const std::vector<Floats>& a) {
    Floats y(Size(kRows * stride), kUntouched);
    LinearForward(TwoThreads(), linear, a[0].data(), kRows, a[1].data(), about.bias ? a[2].data() : nullptr, y.data(),
                  stride);
    return Gather(y, kOutputs, stride);
  };
  layer.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    const Floats spread = Spread(dy, kOutputs, stride);
    // Without `accumulate` dx is overwritten, whatever it held.
    Floats dx = about.accumulate ? Before(a[0].size()) : Floats(a[0].size(), kUntouched);
    Floats dweight = Before(a[1].size()), dbias = Before(kOutputs);
    LinearBackward(TwoThreads(), linear, a[0].data(), kRows, a[1].data(), spread.data(), stride, dx.data(),
                   about.accumulate, dweight.data(), about.bias ? dbias.data() : nullptr);
    std::vector<Floats> gradients = {about.accumulate ? Added(dx) : dx, Added(dweight)};
    if (about.bias) gradients.push_back(Added(dbias));
    return gradients;
  };
  layer.elements = 1000;
  if (about.precision == Precision::kBf16) layer.tolerance = kBf16Tolerance;
  CheckGradient(layer);
}

TEST(LinearLayer, RoundsOperandsOfBf16Only) {
  // 1 + 2^-9 is 1 in bfloat16.
  const float x = 1.001953125f, weight = 1;
  float y = 0;
  LinearForward(TwoThreads(), {1, 1, false, Precision::kBf16}, &x, 1, &weight, nullptr, &y, 1);
  EXPECT_EQ(y, 1);
  LinearForward(TwoThreads(), {1, 1, false, Precision::kF32}, &x, 1, &weight, nullptr, &y, 1);
  EXPECT_EQ(y, x);
}

TEST(LinearLayer, LeavesOutAnInputGradientThatIsNotWanted) {
  const Floats x = Numbers(1, 6), weight = Numbers(2, 6), dy = Numbers(3, 4);
  Floats dx(6), wanted(6, 0.0f), alone(6, 0.0f);
  const Linear linear = {3, 2};
  LinearBackward(TwoThreads(), linear, x.data(), 2, weight.data(), dy.data(), 2, dx.data(), false, wanted.data(),
                 nullptr);
  LinearBackward(TwoThreads(), linear, x.data(), 2, weight.data(), dy.data(), 2, nullptr, false, alone.data(), nullptr);
  EXPECT_EQ(wanted, alone);
}

// ---- norms ----

struct NormCase {
  const char* name;
  NormKind kind;
  bool bias;
};

class NormLayer : public ::testing::TestWithParam<NormCase> {};
INSTANTIATE_TEST_SUITE_P(Layers, NormLayer,
                         ::testing::Values(NormCase{"LayerNorm", NormKind::kLayer, true},
                                           NormCase{"LayerNormNoBias", NormKind::kLayer, false},
                                           NormCase{"RmsNorm", NormKind::kRms, false}),
                         [](const auto& info) { return info.param.name; });

Doubles NormTruth(NormKind kind, const Doubles& x, const Doubles& gain, const Doubles* bias, double epsilon) {
  const size_t columns = gain.size();
  Doubles y(x.size());
  for (size_t r = 0; r < x.size() / columns; ++r) {
    const double* const row = x.data() + r * columns;
    double mean = 0, squares = 0;
    if (kind == NormKind::kLayer) {
      for (size_t c = 0; c < columns; ++c) mean += row[c] / static_cast<double>(columns);
    }
    for (size_t c = 0; c < columns; ++c) squares += (row[c] - mean) * (row[c] - mean) / static_cast<double>(columns);
    for (size_t c = 0; c < columns; ++c) {
      y[r * columns + c] =
          (row[c] - mean) / std::sqrt(squares + epsilon) * gain[c] + (bias == nullptr ? 0 : (*bias)[c]);
    }
  }
  return y;
}

TEST_P(NormLayer, NormalisesRows) {
  constexpr int64_t kRows = 9, kColumns = 37;
  constexpr float kEpsilon = 0.01f;
  const NormCase& about = GetParam();
  Layer layer;
  layer.arguments = {{"x", Numbers(1, kRows * kColumns, 2)}, {"gain", Numbers(2, kColumns)}};
  if (about.bias) layer.arguments.push_back({"bias", Numbers(3, kColumns)});
  layer.truth = [&](const std::vector<Doubles>& a) {
    return NormTruth(about.kind, a[0], a[1], about.bias ? &a[2] : nullptr, static_cast<double>(kEpsilon));
  };
  Floats mean(kRows), rstd(kRows);
  layer.forward = [&](const std::vector<Floats>& a) {
    Floats y(a[0].size());
    NormForward(TwoThreads(), about.kind, a[0].data(), a[1].data(), about.bias ? a[2].data() : nullptr, kEpsilon, kRows,
                kColumns, y.data(), mean.data(), rstd.data());
    return y;
  };
  layer.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    Floats dx = Before(a[0].size()), dgain = Before(kColumns), dbias = Before(kColumns);
    NormBackward(TwoThreads(), about.kind, a[0].data(), a[1].data(), mean.data(), rstd.data(), dy.data(), kRows,
                 kColumns, dx.data(), dgain.data(), about.bias ? dbias.data() : nullptr);
    std::vector<Floats> gradients = {Added(dx), Added(dgain)};
    if (about.bias) gradients.push_back(Added(dbias));
    return gradients;
  };
  layer.elements = 1000;
  CheckGradient(layer);
}

// ---- embeddings ----

class EmbeddingLayer : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Layers, EmbeddingLayer, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Positions" : "NoPositions"; });

TEST_P(EmbeddingLayer, LooksRowsUp) {
  constexpr int64_t kRows = 2, kColumns = 4, kRowStride = 5, kWidth = 35;
  // Repeated within a row and over rows; 4 and 2 lie between the rows; 5 does not occur.
  const std::vector<uint32_t> ids = {3, 0, 3, 3, 4, 1, 3, 0, 6, 2};
  const std::vector<uint32_t> positions = {0, 1, 2, 3, 4, 0, 1, 0};
  const Lookup lookup = {ids.data(), kRows, kColumns, kRowStride, positions.data()};
  const bool with_positions = GetParam();
  Layer layer;
  layer.arguments = {{"table", Numbers(1, 7 * kWidth)}};
  if (with_positions) layer.arguments.push_back({"positions", Numbers(2, 6 * kWidth)});
  layer.truth = [&](const std::vector<Doubles>& a) {
    Doubles y;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t column = 0; column < kColumns; ++column) {
        for (int64_t c = 0; c < kWidth; ++c) {
          y.push_back(a[0][ids[Size(row * kRowStride + column)] * kWidth + Size(c)] +
                      (with_positions ? a[1][positions[Size(row * kColumns + column)] * kWidth + Size(c)] : 0));
        }
      }
    }
    return y;
  };
  layer.forward = [&](const std::vector<Floats>& a) {
    Floats y(kRows * kColumns * kWidth);
    EmbeddingForward(TwoThreads(), lookup, a[0].data(), with_positions ? a[1].data() : nullptr, kWidth, y.data());
    return y;
  };
  layer.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    std::vector<Floats> gradients;
    for (const Floats& argument : a) gradients.push_back(Before(argument.size()));
    EmbeddingBackward(TwoThreads(), lookup, kWidth, dy.data(), gradients[0].data(),
                      with_positions ? gradients[1].data() : nullptr);
    for (Floats& gradient : gradients) gradient = Added(gradient);
    return gradients;
  };
  layer.elements = 1000;
  CheckGradient(layer);
}

// ---- rotary positions ----

constexpr int64_t kRopeRows = 2, kRopeColumns = 5, kRopeHeads = 3, kRopeSize = 8, kRopeStride = 31;
constexpr double kTheta = 100;

Doubles RopeTruth(const Doubles& x, int64_t heads, int64_t size, int64_t columns, int64_t first, double theta) {
  Doubles y(x.size());
  const int64_t half = size / 2;
  for (int64_t token = 0; token < static_cast<int64_t>(x.size()) / (heads * size); ++token) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(first + token % columns) *
                             std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(size));
        const size_t a = Size((token * heads + h) * size + i), b = a + Size(half);
        y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
        y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
      }
    }
  }
  return y;
}

Floats Turned(const Floats& x, int64_t first, bool backward) {
  const RopeTable table(first + kRopeColumns, kRopeSize, kTheta);
  Floats spread = Spread(x, kRopeHeads * kRopeSize, kRopeStride);
  std::vector<uint32_t> positions;
  for (int64_t i = 0; i < kRopeRows * kRopeColumns; ++i) {
    positions.push_back(static_cast<uint32_t>(first + i % kRopeColumns));
  }
  ApplyRope(TwoThreads(), table, kRopeRows * kRopeColumns, positions.data(), kRopeHeads, spread.data(), kRopeStride,
            backward);
  return Gather(spread, kRopeHeads * kRopeSize, kRopeStride);
}

TEST(RopeLayer, TurnsPairsByThePosition) {
  for (const int64_t first : {0, 7}) {
    Layer layer;
    layer.arguments = {{"x", Numbers(1, kRopeRows * kRopeColumns * kRopeHeads * kRopeSize)}};
    layer.truth = [&](const std::vector<Doubles>& a) {
      return RopeTruth(a[0], kRopeHeads, kRopeSize, kRopeColumns, first, kTheta);
    };
    layer.forward = [&](const std::vector<Floats>& a) { return Turned(a[0], first, false); };
    layer.backward = [&](const std::vector<Floats>&, const Floats& dy) {
      return std::vector<Floats>{Turned(dy, first, true)};
    };
    layer.elements = 1000;
    CheckGradient(layer);
  }
}

TEST(RopeLayer, KeepsNormsAndTurnsBack) {
  const Floats x = Numbers(2, kRopeRows * kRopeColumns * kRopeHeads * kRopeSize);
  const Floats turned = Turned(x, 3, false);
  for (size_t head = 0; head < x.size() / kRopeSize; ++head) {
    double before = 0, after = 0;
    for (size_t i = head * kRopeSize; i < (head + 1) * kRopeSize; ++i) {
      before += static_cast<double>(x[i] * x[i]);
      after += static_cast<double>(turned[i] * turned[i]);
    }
    EXPECT_NEAR(after, before, 1e-5) << head;
  }
  const Floats back = Turned(turned, 3, true);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 1e-6) << i;
}

// ---- attention ----

struct AttentionCase {
  const char* name;
  int64_t columns, heads, kv_heads, size;
  float dropout = 0;
  Precision precision = Precision::kF32;
  int64_t window = 0;
  bool causal = true;
};

AttentionShape ShapeOf(const AttentionCase& about, int64_t rows) {
  AttentionShape shape;
  shape.rows = rows;
  shape.columns = about.columns;
  shape.heads = about.heads;
  shape.kv_heads = about.kv_heads;
  shape.head_size = about.size;
  // Queries, keys and values side by side, and a gap.
  shape.stride = (about.heads + 2 * about.kv_heads) * about.size + 5;
  shape.precision = about.precision;
  shape.window = about.window;
  shape.causal = about.causal;
  return shape;
}

// The first position that one sees.
int64_t FirstSeen(const AttentionShape& shape, int64_t position) {
  return shape.window == 0 || position < shape.window ? 0 : position + 1 - shape.window;
}

// The last position that one sees.
int64_t LastSeen(const AttentionShape& shape, int64_t position) { return shape.causal ? position : shape.columns - 1; }

// `kept` [rows, heads, columns, columns]: what each probability is multiplied by; empty: nothing is dropped.
Doubles AttentionTruth(const AttentionShape& shape, const Doubles& kept, const Doubles& q, const Doubles& k,
                       const Doubles& v) {
  const int64_t columns = shape.columns, heads = shape.heads, kv_heads = shape.kv_heads, size = shape.head_size;
  Doubles out(Size(shape.tokens() * heads * size), 0.0), p(Size(columns));
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = h * kv_heads / heads;
      for (int64_t t = 0; t < columns; ++t) {
        double sum = 0;
        for (int64_t s = FirstSeen(shape, t); s <= LastSeen(shape, t); ++s) {
          double score = 0;
          for (int64_t i = 0; i < size; ++i) {
            score += q[Size(((row * columns + t) * heads + h) * size + i)] *
                     k[Size(((row * columns + s) * kv_heads + kv) * size + i)];
          }
          p[Size(s)] = std::exp(score / std::sqrt(static_cast<double>(size)));
          sum += p[Size(s)];
        }
        for (int64_t s = FirstSeen(shape, t); s <= LastSeen(shape, t); ++s) {
          double weight = p[Size(s)] / sum;
          if (!kept.empty()) weight *= kept[Size(((row * heads + h) * columns + t) * columns + s)];
          for (int64_t i = 0; i < size; ++i) {
            out[Size(((row * columns + t) * heads + h) * size + i)] +=
                weight * v[Size(((row * columns + s) * kv_heads + kv) * size + i)];
          }
        }
      }
    }
  }
  return out;
}

// q, k and v of each token side by side, `stride` apart, as the network has them.
Floats Packed(const AttentionShape& shape, const Floats& q, const Floats& k, const Floats& v) {
  const int64_t width = shape.heads * shape.head_size, kv_width = shape.kv_heads * shape.head_size;
  Floats packed(Size(shape.tokens() * shape.stride), kUntouched);
  for (int64_t token = 0; token < shape.tokens(); ++token) {
    float* const to = packed.data() + token * shape.stride;
    std::copy_n(q.data() + token * width, width, to);
    std::copy_n(k.data() + token * kv_width, kv_width, to + width);
    std::copy_n(v.data() + token * kv_width, kv_width, to + width + kv_width);
  }
  return packed;
}

struct AttentionPass {
  Floats out, probabilities;
};

AttentionPass RunAttention(const AttentionShape& shape, const Floats& packed, const Dropout& dropout,
                           bool keep = true) {
  const int64_t width = shape.heads * shape.head_size, kv_width = shape.kv_heads * shape.head_size;
  AttentionPass pass;
  pass.out.resize(Size(shape.tokens() * width));
  if (keep) pass.probabilities.resize(Size(shape.tokens() * shape.heads * shape.columns));
  AttentionForward(TwoThreads(), shape, packed.data(), packed.data() + width, packed.data() + width + kv_width, dropout,
                   keep, keep ? pass.probabilities.data() : nullptr, pass.out.data());
  return pass;
}

std::vector<Floats> RunAttentionBackward(const AttentionShape& shape, const Floats& packed, const Dropout& dropout,
                                         const Floats& probabilities, const Floats& dout) {
  const int64_t width = shape.heads * shape.head_size, kv_width = shape.kv_heads * shape.head_size;
  Floats d(packed.size(), kUntouched);
  AttentionBackward(TwoThreads(), shape, packed.data(), packed.data() + width, packed.data() + width + kv_width,
                    dropout, probabilities.data(), dout.data(), d.data(), d.data() + width,
                    d.data() + width + kv_width);
  std::vector<Floats> gradients(3);
  for (int64_t i = 0; i < static_cast<int64_t>(d.size()); ++i) {
    const int64_t column = i % shape.stride;
    if (column < width + 2 * kv_width) {
      gradients[column < width ? 0 : column < width + kv_width ? 1 : 2].push_back(d[Size(i)]);
    } else {
      EXPECT_EQ(d[Size(i)], kUntouched) << i;
    }
  }
  return gradients;
}

// What dropout does to each probability, seen through values that are the unit vectors: then the outputs are the
// probabilities after it. What is dropped depends on key, site and place alone, hence not on queries, keys, values.
Doubles KeptByDropout(AttentionShape shape, const Dropout& dropout) {
  const int64_t columns = shape.columns, heads = shape.heads;
  shape.head_size = columns;
  shape.stride = (heads + 2 * shape.kv_heads) * columns;
  shape.precision = Precision::kF32;
  const Floats zeros_of_q(Size(shape.tokens() * heads * columns), 0.0f);
  const Floats zeros_of_k(Size(shape.tokens() * shape.kv_heads * columns), 0.0f);
  Floats units = zeros_of_k;
  for (int64_t i = 0; i < shape.tokens() * shape.kv_heads; ++i) {
    units[Size(i * columns + i / shape.kv_heads % columns)] = 1;
  }
  const AttentionPass pass = RunAttention(shape, Packed(shape, zeros_of_q, zeros_of_k, units), dropout);
  Doubles kept(Size(shape.rows * heads * columns * columns), 0.0);
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < columns; ++t) {
        for (int64_t s = 0; s <= LastSeen(shape, t); ++s) {
          // All scores are 0: those of all positions that are seen were equal.
          kept[Size(((row * heads + h) * columns + t) * columns + s)] =
              static_cast<double>(pass.out[Size(((row * columns + t) * heads + h) * columns + s)]) *
              static_cast<double>(LastSeen(shape, t) + 1 - FirstSeen(shape, t));
        }
      }
    }
  }
  return kept;
}

class AttentionLayer : public ::testing::TestWithParam<AttentionCase> {};
INSTANTIATE_TEST_SUITE_P(
    Layers, AttentionLayer,
    ::testing::Values(AttentionCase{"OneToken", 1, 2, 2, 4}, AttentionCase{"Short", 5, 3, 3, 4},
                      AttentionCase{"OneBlock", 64, 2, 2, 6}, AttentionCase{"PastABlock", 70, 2, 2, 6},
                      AttentionCase{"ThreeBlocks", 130, 2, 2, 3}, AttentionCase{"Grouped", 7, 6, 2, 4},
                      AttentionCase{"GroupedPastABlock", 70, 4, 2, 6}, AttentionCase{"OneForAll", 130, 3, 1, 4},
                      AttentionCase{"Dropped", 6, 3, 3, 4, 0.3f},
                      AttentionCase{"DroppedGroupedPastABlock", 70, 4, 2, 6, 0.3f},
                      AttentionCase{"Bf16", 5, 3, 3, 4, 0, Precision::kBf16},
                      AttentionCase{"Bf16GroupedPastABlock", 70, 4, 2, 6, 0, Precision::kBf16},
                      AttentionCase{"Window", 7, 2, 2, 4, 0, Precision::kF32, 3},
                      AttentionCase{"WindowOfItself", 5, 2, 2, 4, 0, Precision::kF32, 1},
                      AttentionCase{"WindowOfAll", 6, 2, 2, 4, 0, Precision::kF32, 6},
                      AttentionCase{"WindowBeyondAll", 6, 2, 2, 4, 0, Precision::kF32, 2147483647},
                      AttentionCase{"WindowGroupedPastABlock", 70, 4, 2, 6, 0, Precision::kF32, 10},
                      AttentionCase{"WindowOfABlock", 130, 2, 1, 3, 0, Precision::kF32, 64},
                      AttentionCase{"WindowPastABlock", 200, 2, 1, 3, 0, Precision::kF32, 67},
                      AttentionCase{"WindowDropped", 70, 2, 2, 4, 0.3f, Precision::kF32, 5},
                      AttentionCase{"WindowBf16", 70, 2, 2, 6, 0, Precision::kBf16, 9},
                      AttentionCase{"Encoder", 5, 3, 3, 4, 0, Precision::kF32, 0, false},
                      AttentionCase{"EncoderPastABlock", 70, 2, 2, 6, 0, Precision::kF32, 0, false},
                      AttentionCase{"EncoderThreeBlocks", 130, 2, 1, 3, 0, Precision::kF32, 0, false},
                      AttentionCase{"EncoderDropped", 70, 2, 2, 4, 0.3f, Precision::kF32, 0, false},
                      AttentionCase{"EncoderBf16", 70, 2, 2, 6, 0, Precision::kBf16, 0, false}),
    [](const auto& info) { return info.param.name; });

TEST_P(AttentionLayer, IsSoftmaxOfScoresTimesValues) {
  const AttentionCase& about = GetParam();
  const AttentionShape shape = ShapeOf(about, 2);
  const Dropout dropout = {Philox(5), 3, about.dropout};
  const Doubles kept = about.dropout > 0 ? KeptByDropout(shape, dropout) : Doubles();
  const size_t width = Size(shape.heads * shape.head_size), kv_width = Size(shape.kv_heads * shape.head_size);
  const size_t tokens = Size(shape.tokens());
  Layer layer;
  // Scores of some size, so that probabilities are far from equal.
  layer.arguments = {{"q", Numbers(1, tokens * width, 2)},
                     {"k", Numbers(2, tokens * kv_width, 2)},
                     {"v", Numbers(3, tokens * kv_width)}};
  layer.truth = [&](const std::vector<Doubles>& a) { return AttentionTruth(shape, kept, a[0], a[1], a[2]); };
  AttentionPass pass;
  layer.forward = [&](const std::vector<Floats>& a) {
    pass = RunAttention(shape, Packed(shape, a[0], a[1], a[2]), dropout);
    return pass.out;
  };
  layer.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    return RunAttentionBackward(shape, Packed(shape, a[0], a[1], a[2]), dropout, pass.probabilities, dy);
  };
  layer.elements = 40;
  if (about.columns == 1 || about.window == 1) {
    // With one token there is nothing to weigh: only values have gradients.
    const Floats packed = Packed(shape, layer.arguments[0].value, layer.arguments[1].value, layer.arguments[2].value);
    EXPECT_EQ(layer.forward({layer.arguments[0].value, layer.arguments[1].value, layer.arguments[2].value}),
              layer.arguments[2].value);
    const Floats dy = Numbers(9, pass.out.size());
    const std::vector<Floats> gradients =
        layer.backward({layer.arguments[0].value, layer.arguments[1].value, layer.arguments[2].value}, dy);
    EXPECT_EQ(gradients[0], Floats(width * tokens, 0.0f));
    EXPECT_EQ(gradients[1], Floats(kv_width * tokens, 0.0f));
    EXPECT_EQ(gradients[2], dy);
    return;
  }
  if (about.precision == Precision::kBf16) layer.tolerance = 2 * kBf16Tolerance;
  CheckGradient(layer);
}

TEST_P(AttentionLayer, KeepsProbabilitiesOnlyIfAsked) {
  const AttentionCase& about = GetParam();
  const AttentionShape shape = ShapeOf(about, 2);
  const Dropout dropout = {Philox(5), 3, about.dropout};
  const Floats packed = Numbers(4, Size(shape.tokens() * shape.stride), 2);
  EXPECT_EQ(RunAttention(shape, packed, dropout, /*keep=*/false).out, RunAttention(shape, packed, dropout).out);
}

TEST_P(AttentionLayer, NeverLooksAhead) {
  const AttentionCase& about = GetParam();
  if (!about.causal) return;
  const AttentionShape shape = ShapeOf(about, 1);
  const size_t width = Size(shape.heads * shape.head_size);
  const Floats packed = Numbers(4, Size(shape.tokens() * shape.stride), 2);
  const Dropout dropout = {Philox(5), 3, about.dropout};
  const AttentionPass pass = RunAttention(shape, packed, dropout);
  for (const int64_t later : {about.columns - 1, about.columns / 2}) {
    // Tokens from `later` on change.
    Floats changed = packed;
    for (size_t i = Size(later * shape.stride); i < changed.size(); ++i) changed[i] = -3 * changed[i] + 1;
    const Floats out = RunAttention(shape, changed, dropout).out;
    const size_t before = Size(later) * width;
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(before), pass.out.begin()));
    if (about.dropout == 0) {
      EXPECT_FALSE(std::equal(out.begin() + static_cast<std::ptrdiff_t>(before), out.end(),
                              pass.out.begin() + static_cast<std::ptrdiff_t>(before)));
    }
    // What earlier outputs want, later tokens get nothing of.
    Floats dout = Numbers(6, pass.out.size());
    std::fill(dout.begin() + static_cast<std::ptrdiff_t>(before), dout.end(), 0.0f);
    for (const Floats& gradient : RunAttentionBackward(shape, packed, dropout, pass.probabilities, dout)) {
      const size_t of_earlier = gradient.size() / Size(about.columns) * Size(later);
      for (size_t i = of_earlier; i < gradient.size(); ++i) ASSERT_EQ(gradient[i], 0.0f) << i;
    }
  }
}

TEST_P(AttentionLayer, NeverLooksBeforeTheWindow) {
  const AttentionCase& about = GetParam();
  if (about.window == 0 || about.window >= about.columns) return;
  const AttentionShape shape = ShapeOf(about, 1);
  const size_t width = Size(shape.heads * shape.head_size);
  const Floats packed = Numbers(4, Size(shape.tokens() * shape.stride), 2);
  const Dropout dropout = {Philox(5), 3, about.dropout};
  const AttentionPass pass = RunAttention(shape, packed, dropout);
  // Tokens up to `last` change; those from `free` on do not see them.
  for (const int64_t last : {int64_t{0}, (about.columns - about.window) / 2}) {
    Floats changed = packed;
    for (size_t i = 0; i < Size((last + 1) * shape.stride); ++i) changed[i] = -3 * changed[i] + 1;
    const Floats out = RunAttention(shape, changed, dropout).out;
    const size_t free = Size(last + about.window) * width;
    EXPECT_TRUE(std::equal(out.begin() + static_cast<std::ptrdiff_t>(free), out.end(),
                           pass.out.begin() + static_cast<std::ptrdiff_t>(free)));
    if (about.dropout == 0 && about.window > 1) {
      EXPECT_FALSE(std::equal(out.end() - static_cast<std::ptrdiff_t>(out.size() - free + width),
                              out.begin() + static_cast<std::ptrdiff_t>(free),
                              pass.out.begin() + static_cast<std::ptrdiff_t>(free - width)));
    }
    // What outputs from there on want, those tokens get nothing of.
    Floats dout = Numbers(6, pass.out.size());
    std::fill(dout.begin(), dout.begin() + static_cast<std::ptrdiff_t>(free), 0.0f);
    for (const Floats& gradient : RunAttentionBackward(shape, packed, dropout, pass.probabilities, dout)) {
      const size_t of_changed = gradient.size() / Size(about.columns) * Size(last + 1);
      for (size_t i = 0; i < of_changed; ++i) ASSERT_EQ(gradient[i], 0.0f) << i;
    }
  }
}

TEST_P(AttentionLayer, ContinuesWithTheBitsOfTheWhole) {
  const AttentionCase& about = GetParam();
  if (about.dropout > 0 || !about.causal) return;
  const AttentionShape shape = ShapeOf(about, 1);
  const int64_t width = shape.heads * shape.head_size, kv_width = shape.kv_heads * shape.head_size;
  const size_t tokens = Size(about.columns);
  // Values of all magnitudes: sums of products of bf16, which are exact for alike ones, then hang on their order.
  Floats v = Numbers(3, tokens * Size(kv_width));
  for (size_t i = 0; i < v.size(); ++i) v[i] = std::ldexp(v[i], static_cast<int>(i * 7 % 23) - 11);
  const Floats q = Numbers(1, tokens * Size(width), 2), k = Numbers(2, tokens * Size(kv_width), 2);
  const Floats packed = Packed(shape, q, k, v);
  const Floats whole = RunAttention(shape, packed, {}).out;
  for (const int64_t chunk : {int64_t{1}, int64_t{3}, int64_t{65}}) {
    for (int64_t past = 0; past < about.columns; past += chunk) {
      const int64_t count = std::min(chunk, about.columns - past);
      const Continuation about_chunk = {0, count, past, k.data(), v.data()};
      Floats out(Size(count * width));
      AttentionExtend(TwoThreads(), shape, packed.data() + past * shape.stride, absl::MakeConstSpan(&about_chunk, 1),
                      out.data());
      ASSERT_EQ(0, std::memcmp(out.data(), whole.data() + past * width, out.size() * sizeof(float)))
          << chunk << " from " << past;
    }
  }
}

TEST(AttentionLayer, EveryHeadOfEverySequenceDropsOnItsOwn) {
  // The square of 9 columns is no multiple of 4, of which a draw has as many.
  const AttentionShape shape = ShapeOf({"", 9, 3, 3, 4}, 40);
  const Doubles kept = KeptByDropout(shape, {Philox(5), 3, 0.5f});
  const size_t square = 81, heads = kept.size() / square;
  for (size_t other = 1; other < 7; ++other) {
    // Of the pairs of heads `other` apart: places where both can look, and where they differ.
    int places = 0, different = 0;
    for (size_t head = 0; head + other < heads; ++head) {
      for (size_t i = 0; i < square; ++i) {
        if (i % 9 > i / 9) continue;
        ++places;
        different += (kept[head * square + i] == 0) != (kept[(head + other) * square + i] == 0);
      }
    }
    EXPECT_NEAR(different, 0.5 * places, 4 * std::sqrt(0.25 * places)) << other;
  }
}

// ---- dropout ----

Floats Dropped(const Dropout& dropout, const Floats& x) {
  Floats y = x;
  ApplyDropout(TwoThreads(), dropout, static_cast<int64_t>(y.size()), y.data());
  return y;
}

TEST(DropoutLayer, DropsItsShareAndScalesTheRest) {
  constexpr size_t kCount = 100'003;
  const Floats x = Numbers(1, kCount);
  for (const float rate : {0.1f, 0.5f, 0.9f}) {
    const Floats y = Dropped({Philox(7), 2, rate}, x);
    size_t zeros = 0, neighbours = 0;
    for (size_t i = 0; i < kCount; ++i) {
      if (y[i] == 0) {
        ++zeros;
        neighbours += i > 0 && y[i - 1] == 0;
      } else {
        ASSERT_NEAR(y[i], x[i] / (1 - rate), 2e-7f * std::fabs(y[i])) << i;
      }
    }
    const double p = static_cast<double>(rate), n = kCount;
    EXPECT_NEAR(static_cast<double>(zeros), n * p, 4 * std::sqrt(n * p * (1 - p))) << rate;
    // Neighbours are dropped independently of each other.
    EXPECT_NEAR(static_cast<double>(neighbours), n * p * p, 6 * std::sqrt(n * p * p * (1 - p * p))) << rate;
  }
  EXPECT_EQ(Dropped({Philox(7), 2, 0.0f}, x), x);
}

TEST(DropoutLayer, DropsByKeyAndSiteAlone) {
  const Floats ones(10'000, 1.0f);
  const Dropout dropout = {Philox(7), 2, 0.5f};
  const Floats kept = Dropped(dropout, ones);
  EXPECT_EQ(Dropped(dropout, ones), kept);
  const auto differences = [&](const Dropout& other) {
    const Floats others = Dropped(other, ones);
    int count = 0;
    for (size_t i = 0; i < kept.size(); ++i) count += others[i] != kept[i];
    return count;
  };
  // Half of the elements, by chance.
  EXPECT_NEAR(differences({Philox(8), 2, 0.5f}), 5000, 250);
  EXPECT_NEAR(differences({Philox(7), 3, 0.5f}), 5000, 250);
  // A part of the site is what it is of the whole, on any number of threads.
  Floats part(1000);
  ApplyDropout(dropout, 4000, 1000, ones.data(), part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), kept.begin() + 4000));
  Floats one_thread = ones;
  ApplyDropout(kernels::Compute(kernels::DetectIsa(), 1), dropout, 10'000, one_thread.data());
  EXPECT_EQ(one_thread, kept);
}

TEST(DropoutLayer, GradientsAreDroppedWhereValuesWere) {
  const Floats x = Numbers(1, 5000), dy = Numbers(2, 5000);
  const Dropout dropout = {Philox(9), 4, 0.25f};
  const Floats y = Dropped(dropout, x), dx = Dropped(dropout, dy);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(dx[i] == 0, y[i] == 0) << i;
    ASSERT_NEAR(dx[i] * x[i], dy[i] * y[i], 1e-6f) << i;
  }
}

// ---- whole networks in plain f64 ----

struct PlainModel {
  v1::ModelSpec spec;
  uint32_t vocab = 0;
  const TensorList* list = nullptr;
  const std::vector<Doubles>* tensors = nullptr;  // in the list's order

  int64_t hidden() const { return spec.hidden_size(); }
  const Doubles* Find(const std::string& name) const {
    const int index = list->Find(name);
    return index < 0 ? nullptr : &(*tensors)[Size(index)];
  }
  const Doubles& Get(const std::string& name) const { return *Find(name); }

  Doubles Norm(const std::string& name, const Doubles& x) const {
    const bool layer_norm = spec.family() == "gpt2" || IsCausalStack(spec.family());
    return NormTruth(layer_norm ? NormKind::kLayer : NormKind::kRms, x, Get(name + ".weight"), Find(name + ".bias"),
                     spec.norm_epsilon());
  }
  Doubles Product(const std::string& name, const Doubles& x, size_t outputs) const {
    const Doubles& w = Get(name + ".weight");
    const Doubles* const bias = Find(name + ".bias");
    const size_t inputs = w.size() / outputs;
    Doubles y;
    for (size_t row = 0; row < x.size() / inputs; ++row) {
      for (size_t o = 0; o < outputs; ++o) {
        double sum = bias == nullptr ? 0 : (*bias)[o];
        for (size_t i = 0; i < inputs; ++i) {
          sum += x[row * inputs + i] * (spec.family() == "gpt2" ? w[i * outputs + o] : w[o * inputs + i]);
        }
        y.push_back(sum);
      }
    }
    return y;
  }

  // The normalised outputs [rows * columns, hidden].
  Doubles Outputs(const TokenMatrix& tokens) const {
    if (IsCausalStack(spec.family())) return StackOutputs(tokens);
    const size_t width = Size(hidden());
    const bool gpt2 = spec.family() == "gpt2";
    const Doubles& table = Get(gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight");
    Doubles x;
    for (int64_t row = 0; row < tokens.rows; ++row) {
      for (int64_t column = 0; column < tokens.columns; ++column) {
        const size_t id = tokens.ids[row * tokens.row_stride + column];
        for (size_t c = 0; c < width; ++c) {
          x.push_back(table[id * width + c] + (gpt2 ? Get("transformer.wpe.weight")[Size(column) * width + c] : 0));
        }
      }
    }
    AttentionShape shape;
    shape.rows = tokens.rows;
    shape.columns = tokens.columns;
    shape.heads = spec.heads();
    shape.kv_heads = spec.kv_heads();
    shape.head_size = hidden() / spec.heads();
    shape.window = spec.sliding_window();
    const size_t kv_width = Size(shape.kv_heads * shape.head_size);
    for (uint32_t i = 0; i < spec.layers(); ++i) {
      const std::string name = (gpt2 ? "transformer.h." : "model.layers.") + std::to_string(i);
      const Doubles normed = Norm(name + (gpt2 ? ".ln_1" : ".input_layernorm"), x);
      Doubles q, k, v;
      if (gpt2) {
        const Doubles qkv = Product(name + ".attn.c_attn", normed, 3 * width);
        for (size_t at = 0; at < qkv.size(); ++at)
          (at / width % 3 == 0 ? q : at / width % 3 == 1 ? k : v).push_back(qkv[at]);
      } else {
        q = RopeTruth(Product(name + ".self_attn.q_proj", normed, width), shape.heads, shape.head_size, shape.columns,
                      0, spec.rope_theta());
        k = RopeTruth(Product(name + ".self_attn.k_proj", normed, kv_width), shape.kv_heads, shape.head_size,
                      shape.columns, 0, spec.rope_theta());
        v = Product(name + ".self_attn.v_proj", normed, kv_width);
      }
      const Doubles attended = AttentionTruth(shape, {}, q, k, v);
      Add(Product(name + (gpt2 ? ".attn.c_proj" : ".self_attn.o_proj"), attended, width), &x);
      const Doubles mlp_normed = Norm(name + (gpt2 ? ".ln_2" : ".post_attention_layernorm"), x);
      Doubles activated;
      if (gpt2) {
        for (const double u : Product(name + ".mlp.c_fc", mlp_normed, spec.intermediate_size())) {
          activated.push_back(u / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (u + 0.044715 * u * u * u))));
        }
      } else {
        activated = Product(name + ".mlp.up_proj", mlp_normed, spec.intermediate_size());
        const Doubles gate = Product(name + ".mlp.gate_proj", mlp_normed, spec.intermediate_size());
        for (size_t at = 0; at < gate.size(); ++at) activated[at] *= gate[at] / (1 + std::exp(-gate[at]));
      }
      Add(Product(name + (gpt2 ? ".mlp.c_proj" : ".mlp.down_proj"), activated, width), &x);
    }
    return Norm(gpt2 ? "transformer.ln_f" : "model.norm", x);
  }

  // The same of lstm and cnn: sequence by sequence, token by token.
  Doubles StackOutputs(const TokenMatrix& tokens) const {
    const size_t width = Size(hidden());
    Doubles all;
    for (int64_t row = 0; row < tokens.rows; ++row) {
      std::vector<Doubles> x;
      for (int64_t column = 0; column < tokens.columns; ++column) {
        const auto from = Get("embed_tokens.weight").begin() +
                          static_cast<int64_t>(tokens.ids[row * tokens.row_stride + column] * width);
        x.emplace_back(from, from + hidden());
      }
      for (uint32_t i = 0; i < spec.layers(); ++i) {
        x = spec.family() == "lstm" ? Lstm(i, x) : GatedConvolution(absl::StrCat("layers.", i, "."), x);
      }
      for (const Doubles& token : x) {
        const Doubles normed = Norm("norm", token);
        all.insert(all.end(), normed.begin(), normed.end());
      }
    }
    return all;
  }
  std::vector<Doubles> Lstm(uint32_t layer, const std::vector<Doubles>& x) const {
    const size_t width = Size(hidden());
    const Doubles& of_input = Get(absl::StrCat("lstm.weight_ih_l", layer));
    const Doubles& of_state = Get(absl::StrCat("lstm.weight_hh_l", layer));
    const Doubles& bias = Get(absl::StrCat("lstm.bias_l", layer));
    Doubles h(width), c(width);
    std::vector<Doubles> y;
    for (const Doubles& token : x) {
      Doubles gates = bias;
      for (size_t o = 0; o < 4 * width; ++o) {
        for (size_t i = 0; i < width; ++i)
          gates[o] += token[i] * of_input[o * width + i] + h[i] * of_state[o * width + i];
      }
      const auto sigmoid = [&](size_t o) { return 1 / (1 + std::exp(-gates[o])); };
      for (size_t i = 0; i < width; ++i) {
        c[i] = sigmoid(width + i) * c[i] + sigmoid(i) * std::tanh(gates[2 * width + i]);
        h[i] = sigmoid(3 * width + i) * std::tanh(c[i]);
      }
      y.push_back(h);
    }
    return y;
  }
  std::vector<Doubles> GatedConvolution(const std::string& prefix, const std::vector<Doubles>& x) const {
    const size_t width = Size(hidden()), kernel = spec.kernel_size();
    const Doubles& weight = Get(prefix + "conv.weight");
    std::vector<Doubles> normed, y;
    for (size_t t = 0; t < x.size(); ++t) {
      normed.push_back(Norm(prefix + "norm", x[t]));
      Doubles halves = Get(prefix + "conv.bias");
      for (size_t back = 0; back < std::min(kernel, t + 1); ++back) {
        for (size_t o = 0; o < 2 * width; ++o) {
          for (size_t i = 0; i < width; ++i) {
            halves[o] += normed[t - back][i] * weight[(o * kernel + kernel - 1 - back) * width + i];
          }
        }
      }
      y.push_back(x[t]);
      for (size_t i = 0; i < width; ++i) y[t][i] += halves[i] / (1 + std::exp(-halves[width + i]));
    }
    return y;
  }

  // log p of each prediction of [rows, columns] ids, the last one of a row a target only.
  Doubles LogProbabilities(const Batch& batch) const {
    const size_t width = Size(hidden());
    const int64_t columns = batch.columns - 1;
    const Doubles outputs = Outputs({batch.ids, batch.rows, columns, batch.columns});
    const Doubles* embedding = Find("lm_head.weight");
    if (embedding == nullptr) {
      embedding = &(*tensors)[0];
    }
    Doubles result;
    for (int64_t i = 0; i < batch.rows * columns; ++i) {
      const uint32_t target = batch.ids[i / columns * batch.columns + i % columns + 1];
      double sum = 0, of_target = 0;
      for (uint32_t token = 0; token < vocab; ++token) {
        double logit = 0;
        for (size_t c = 0; c < width; ++c) logit += outputs[Size(i) * width + c] * (*embedding)[token * width + c];
        sum += std::exp(logit);
        if (token == target) of_target = logit;
      }
      result.push_back(of_target - std::log(sum));
    }
    return result;
  }

 private:
  static void Add(const Doubles& x, Doubles* y) {
    for (size_t i = 0; i < x.size(); ++i) (*y)[i] += x[i];
  }
};

struct NetworkCase {
  const char* name;
  const char* family;
  uint32_t layers;
  uint32_t kv_heads;
  bool tied;
  bool bias;
  const char* precision = "f32";
  uint32_t window = 0;
};

class NetworkLayers : public ::testing::TestWithParam<NetworkCase> {
 protected:
  static constexpr uint32_t kVocab = 11;
  static constexpr int64_t kRows = 2, kColumns = 6;

  void SetUp() override {
    const NetworkCase& about = GetParam();
    v1::ModelSpec& spec = plain_.spec;
    spec.set_family(about.family);
    spec.set_layers(about.layers);
    spec.set_hidden_size(16);
    spec.set_heads(4);
    spec.set_kv_heads(about.kv_heads);
    spec.set_intermediate_size(20);
    spec.set_kernel_size(3);
    spec.set_context(9);
    spec.set_precision(about.precision);
    spec.set_dropout(0);
    spec.set_tied_embeddings(about.tied);
    spec.set_rope_theta(50);
    spec.set_norm_epsilon(1e-3);
    spec.set_init_std(0.4);
    spec.set_bias(about.bias);
    if (about.window != 0) spec.set_sliding_window(about.window);
    auto network = CreateNetwork(spec, kVocab);
    ASSERT_OK(network);
    network_ = *std::move(network);
    plain_.vocab = kVocab;
    plain_.list = &network_->tensors();
    for (int64_t i = 0; i < kRows * (kColumns + 1); ++i) ids_.push_back(Philox(4)(0, Size(i))[0] % kVocab);
    for (int i = 0; i < network_->tensors().size(); ++i) {
      const TensorSpec& tensor = network_->tensors()[i];
      Floats value = Numbers(100 + Size(i), Size(tensor.size), 0.5f);
      if (tensor.start == Start::kOnes) {
        for (float& gain : value) gain += 1;
      }
      layer_.arguments.push_back({tensor.name, value});
    }
    layer_.elements = 30;
    if (spec.precision() == "bf16") layer_.tolerance = 6 * kBf16Tolerance;
  }

  Floats Weights(const std::vector<Floats>& arguments) const {
    Floats weights(Size(network_->tensors().floats()), 0.0f);
    for (int i = 0; i < network_->tensors().size(); ++i) {
      std::copy(arguments[Size(i)].begin(), arguments[Size(i)].end(), weights.data() + network_->tensors()[i].offset);
    }
    return weights;
  }
  std::vector<Floats> Tensors(const Floats& memory) const {
    std::vector<Floats> tensors;
    for (const TensorSpec& tensor : network_->tensors().tensors()) {
      tensors.emplace_back(memory.data() + tensor.offset, memory.data() + tensor.offset + tensor.size);
    }
    return tensors;
  }

  PlainModel plain_;
  std::unique_ptr<Network> network_;
  std::vector<uint32_t> ids_;
  Layer layer_;
};
INSTANTIATE_TEST_SUITE_P(Layers, NetworkLayers,
                         ::testing::Values(NetworkCase{"Gpt2", "gpt2", 1, 4, true, true},
                                           NetworkCase{"Gpt2NoBias", "gpt2", 1, 4, true, false},
                                           NetworkCase{"Gpt2Untied", "gpt2", 2, 4, false, true},
                                           NetworkCase{"Llama", "llama", 1, 4, false, false},
                                           NetworkCase{"LlamaGrouped", "llama", 2, 2, false, false},
                                           NetworkCase{"LlamaTied", "llama", 1, 1, true, false},
                                           NetworkCase{"Gpt2Bf16", "gpt2", 1, 4, true, true, "bf16"},
                                           NetworkCase{"LlamaBf16", "llama", 1, 2, false, false, "bf16"},
                                           NetworkCase{"Mistral", "mistral", 1, 2, false, false},
                                           NetworkCase{"MistralWindow", "mistral", 2, 2, false, false, "f32", 3},
                                           NetworkCase{"Qwen2", "qwen2", 2, 2, true, false},
                                           NetworkCase{"Qwen2Window", "qwen2", 1, 4, false, false, "f32", 2},
                                           NetworkCase{"Lstm", "lstm", 2, 0, true, true},
                                           NetworkCase{"LstmBf16", "lstm", 1, 0, false, true, "bf16"},
                                           NetworkCase{"Cnn", "cnn", 2, 0, false, true},
                                           NetworkCase{"CnnBf16", "cnn", 1, 0, true, true, "bf16"}),
                         [](const auto& info) { return info.param.name; });

TEST_P(NetworkLayers, OutputsAndTheirGradientsAreThePlainOnes) {
  const TokenMatrix tokens = {ids_.data(), kRows, kColumns, kColumns + 1};
  const auto memory = *network_->NewMemory(tokens.tokens(), kColumns, /*for_training=*/true);
  const size_t count = Size(tokens.tokens()) * 16;
  // An untied output projection has no part in this.
  const bool untied = !GetParam().tied;
  if (untied) layer_.arguments.pop_back();
  const Floats output_embedding = untied ? Floats(kVocab * 16, 0.0f) : Floats();
  const auto with_head = [&](std::vector<Floats> a) {
    if (untied) a.push_back(output_embedding);
    return a;
  };
  layer_.truth = [&](const std::vector<Doubles>& a) {
    plain_.tensors = &a;
    return plain_.Outputs(tokens);
  };
  layer_.forward = [&](const std::vector<Floats>& a) {
    const auto outputs =
        network_->Forward(TwoThreads(), Weights(with_head(a)).data(), tokens, {}, &NothingToWaitFor, memory.get());
    EXPECT_OK(outputs);
    return Floats(*outputs, *outputs + count);
  };
  layer_.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    std::copy(dy.begin(), dy.end(), network_->OutputGradient(memory.get()));
    Floats gradients(Size(network_->tensors().floats()), 0.0f);
    const absl::Status done = network_->Backward(TwoThreads(), Weights(with_head(a)).data(), tokens, {}, nullptr,
                                                 gradients.data(), &NothingToWaitFor, memory.get());
    EXPECT_OK(done);
    std::vector<Floats> tensors = Tensors(gradients);
    if (untied) tensors.pop_back();
    return tensors;
  };
  CheckGradient(layer_);
}

TEST_P(NetworkLayers, CrossEntropyAndItsGradientsAreThePlainOnes) {
  constexpr float kScale = 0.125f;
  const Batch batch = {ids_.data(), kRows, kColumns + 1};
  CausalLm objective =
      *CausalLm::Create(network_.get(), &TwoThreads(), kRows * kColumns, kColumns, /*for_training=*/true);
  layer_.truth = [&](const std::vector<Doubles>& a) {
    plain_.tensors = &a;
    double loss = 0;
    for (const double log_probability : plain_.LogProbabilities(batch)) loss -= log_probability;
    return Doubles{static_cast<double>(kScale) * loss};
  };
  layer_.forward = [&](const std::vector<Floats>& a) {
    Floats unused(Size(network_->tensors().floats()));
    const auto loss =
        objective.Gradients(Weights(a).data(), batch, {}, kScale, &NothingToWaitFor, unused.data(), &NothingToWaitFor);
    EXPECT_OK(loss);
    // The loss comes without the scale.
    return Floats{kScale * static_cast<float>(*loss)};
  };
  layer_.backward = [&](const std::vector<Floats>& a, const Floats& dy) {
    Floats gradients = Before(Size(network_->tensors().floats()));
    const auto loss = objective.Gradients(Weights(a).data(), batch, {}, kScale * dy[0], &NothingToWaitFor,
                                          gradients.data(), &NothingToWaitFor);
    EXPECT_OK(loss);
    return Tensors(Added(gradients));
  };
  CheckGradient(layer_);
}

TEST_P(NetworkLayers, LossCountsWhatIsScored) {
  const Batch whole = {ids_.data(), kRows, kColumns + 1};
  std::vector<Floats> values;
  std::vector<Doubles> wide;
  for (const Layer::Argument& argument : layer_.arguments) {
    values.push_back(argument.value);
    wide.push_back(testing::Wide(argument.value));
  }
  plain_.tensors = &wide;
  const Doubles expected = plain_.LogProbabilities(whole);
  CausalLm objective =
      *CausalLm::Create(network_.get(), &TwoThreads(), kRows * kColumns, kColumns, /*for_training=*/false);
  Floats log_probabilities(expected.size());
  const double tolerance = GetParam().precision == std::string("bf16") ? 0.3 : 1e-4;
  for (const int64_t first_scored : {0, 2, 5}) {
    Batch batch = whole;
    batch.first_scored = first_scored;
    const auto loss = objective.Loss(Weights(values).data(), batch, &NothingToWaitFor, log_probabilities.data());
    ASSERT_OK(loss);
    double sum = 0, own_sum = 0;
    size_t counted = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (static_cast<int64_t>(i) % kColumns < first_scored) continue;
      EXPECT_NEAR(log_probabilities[counted], expected[i], tolerance) << i;
      sum -= expected[i];
      own_sum -= static_cast<double>(log_probabilities[counted++]);
    }
    EXPECT_EQ(batch.predictions(), static_cast<int64_t>(counted));
    EXPECT_NEAR(*loss, sum, 12 * tolerance) << first_scored;
    EXPECT_NEAR(*loss, own_sum, 1e-9) << first_scored;
  }
}

}  // namespace
}  // namespace millrace::model
