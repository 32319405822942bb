#include "kernels/product.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"
#include "testing/bfloat16_edges.h"
#include "testing/isas.h"

namespace millrace::kernels {
namespace {

std::vector<float> Numbers(uint64_t key, int64_t n) {
  std::vector<float> numbers(static_cast<size_t>(n));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto words = Philox(key)(0, i);
    // Magnitudes from 2^-20 to 2^4, so that roundings differ for every other order of additions.
    numbers[i] = std::ldexp(2 * UniformFloat(words[0]) - 1, static_cast<int>(words[1] % 24) - 20);
  }
  return numbers;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  int64_t m, n, k;
  Precision precision;
  bool a_transposed, b_transposed, accumulate, bias;
};

// The product as each of `computes` does it and as it is defined.
void Compare(const std::vector<std::unique_ptr<Compute>>& computes, const Case& c) {
  const std::vector<float> a = Numbers(1, c.m * c.k), b = Numbers(2, c.k * c.n), bias = Numbers(3, c.n);
  const int64_t stride = c.n + 3;
  const std::vector<float> before = Numbers(4, c.m * stride);
  std::vector<float> result, defined = before;
  Product product = {.m = c.m, .n = c.n, .k = c.k};
  product.a = c.a_transposed ? Operand{a.data(), 1, c.m} : Operand{a.data(), c.k, 1};
  product.b = c.b_transposed ? Operand{b.data(), 1, c.k} : Operand{b.data(), c.n, 1};
  product.c_stride = stride;
  product.accumulate = c.accumulate;
  product.bias = c.bias ? bias.data() : nullptr;
  product.precision = c.precision;
  product.c = defined.data();
  MultiplyAsDefined(product);
  for (const auto& compute : computes) {
    result = before;
    product.c = result.data();
    Multiply(*compute, product);
    ASSERT_TRUE(SameBits(result, defined))
        << IsaName(compute->isa()) << ", " << compute->threads() << " threads: " << c.m << " x " << c.n << " x " << c.k
        << (c.precision == Precision::kBf16 ? " bf16" : " f32") << c.a_transposed << c.b_transposed << c.accumulate
        << c.bias;
  }
}

TEST(Product, EveryInstructionSetAndThreadCountGivesTheDefinedBits) {
  std::vector<std::unique_ptr<Compute>> computes;
  for (const Isa isa : testing::IsasHere()) {
    for (const int threads : {1, 3, 4}) computes.push_back(std::make_unique<Compute>(isa, threads));
  }
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    for (int flags = 0; flags < 16; ++flags) {
      const auto with = [&](int64_t m, int64_t n, int64_t k) {
        Compare(computes, {m, n, k, precision, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0});
      };
      with(1, 1, 1);
      with(3, 5, 2);
      with(14, 32, 8);
      with(15, 33, 7);
      with(28, 64, 256);
      with(31, 50, 257);
      with(64, 64, 64);
    }
    Compare(computes, {170, 97, 515, precision, false, false, false, true});
    Compare(computes, {200, 130, 64, precision, false, true, true, false});
    Compare(computes, {5, 2100, 33, precision, true, false, false, false});
    Compare(computes, {1, 1000, 801, precision, false, false, false, true});
    Compare(computes, {1, 45, 38, precision, false, false, true, true});
    Compare(computes, {1, 2110, 333, precision, true, false, true, false});
    for (const int m : {2, 3, 5, 6, 7}) {
      Compare(computes, {m, 1000, 801, precision, false, false, false, true});
      Compare(computes, {m, 45, 36, precision, false, false, true, true});
      Compare(computes, {m, 333, 17, precision, false, false, true, false});
    }
    Compare(computes, {3, 470, 400, precision, false, false, true, true});
    Compare(computes, {20, 40, 512, precision, false, false, false, false});
    // Cells across the columns, down the rows, and both; blocks of columns and of k.
    Compare(computes, {30, 500, 40, precision, true, false, true, false});
    Compare(computes, {500, 30, 40, precision, false, true, false, true});
    Compare(computes, {300, 310, 20, precision, true, false, false, false});
    Compare(computes, {15, 2100, 790, precision, true, false, false, true});
    Compare(computes, {13, 70, 1601, precision, true, true, true, true});
    // Parts of k: of all threads, of pairs of them, and with several blocks of columns.
    Compare(computes, {40, 70, 700, precision, true, false, true, false});
    Compare(computes, {130, 140, 401, precision, true, false, true, true});
    Compare(computes, {30, 300, 1201, precision, true, false, false, true});
    Compare(computes, {16, 900, 900, precision, true, false, true, false});
  }
}

TEST(Product, OperandsAreRoundedAsDefinedUpToTheEdges) {
  const std::vector<float> edges = testing::Bfloat16Edges();
  const auto size = static_cast<int64_t>(edges.size());
  const float one = 1;
  const Operand by_one = {&one, 1, 1};
  const struct {
    const char* name;
    int64_t m, n;
    Operand a, b;
  } forms[] = {{"rows of A", size, 1, {edges.data(), 1, 1}, by_one},
               {"a column of A", size, 1, {edges.data(), 1, size}, by_one},
               {"a row of B", 1, size, by_one, {edges.data(), size, 1}}};
  std::vector<float> result(edges.size()), defined(edges.size());
  for (const Isa isa : testing::IsasHere()) {
    const Compute compute(isa, 1);
    for (const auto& form : forms) {
      Product product = {.m = form.m, .n = form.n, .k = 1, .a = form.a, .b = form.b};
      product.c_stride = form.n;
      product.precision = Precision::kBf16;
      product.c = defined.data();
      MultiplyAsDefined(product);
      product.c = result.data();
      Multiply(compute, product);
      for (size_t i = 0; i < edges.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(result[i]), std::bit_cast<uint32_t>(defined[i]))
            << IsaName(isa) << ", " << form.name << ", of bits " << std::bit_cast<uint32_t>(edges[i]);
      }
    }
  }
}

TEST(Product, EmptySumsAreZero) {
  const Compute compute(DetectIsa(), 1);
  float c[2] = {7, 7};
  Product product = {.m = 1, .n = 2, .k = 0, .c = c, .c_stride = 2};
  Multiply(compute, product);
  EXPECT_EQ(c[0], 0);
  EXPECT_EQ(c[1], 0);
}

TEST(Product, BatchEqualsItsProducts) {
  const Compute compute(DetectIsa(), 2);
  constexpr int64_t kHeads = 5, kSize = 40;
  const std::vector<float> a = Numbers(1, kHeads * kSize * kSize), b = Numbers(2, kHeads * kSize * kSize);
  std::vector<float> batch(a.size()), single(a.size());
  std::vector<Product> products;
  for (int64_t head = 0; head < kHeads; ++head) {
    const int64_t at = head * kSize * kSize;
    Product product = {.m = kSize, .n = kSize, .k = kSize};
    product.a = {a.data() + at, kSize, 1};
    product.b = Operand{b.data() + at, kSize, 1}.Transposed();
    product.c = single.data() + at;
    product.c_stride = kSize;
    Multiply(compute, product);
    product.c = batch.data() + at;
    products.push_back(product);
  }
  MultiplyBatch(compute, products);
  EXPECT_TRUE(SameBits(batch, single));
}

// The definition itself is a product.
TEST(Product, DefinitionIsAccurate) {
  constexpr int64_t kSize = 30;
  const std::vector<float> a = Numbers(1, kSize * kSize), b = Numbers(2, kSize * kSize);
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    std::vector<float> c(kSize * kSize);
    Product product = {.m = kSize, .n = kSize, .k = kSize};
    product.a = {a.data(), kSize, 1};
    product.b = {b.data(), kSize, 1};
    product.c = c.data();
    product.c_stride = kSize;
    product.precision = precision;
    MultiplyAsDefined(product);
    for (int64_t i = 0; i < kSize; ++i) {
      for (int64_t j = 0; j < kSize; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t p = 0; p < kSize; ++p) {
          const double term = double{a[i * kSize + p]} * double{b[p * kSize + j]};
          sum += term;
          magnitude += std::fabs(term);
        }
        EXPECT_NEAR(c[i * kSize + j], sum, magnitude * (precision == Precision::kF32 ? 1e-6 : 1e-2));
      }
    }
  }
}

}  // namespace
}  // namespace millrace::kernels
