#include "kernels/conformance.h"

#include <cstdint>
#include <vector>

#include "common/philox.h"
#include "kernels/functions.h"
#include "kernels/product.h"
#include "kernels/reduce.h"
#include "kernels/rows.h"

namespace millrace::kernels {
namespace {

// Numbers in (-scale, scale), with a denormal and zeros of both signs among them.
std::vector<float> Numbers(uint64_t key, int64_t n, float scale) {
  const Philox philox(key);
  std::vector<float> numbers(static_cast<size_t>(n));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = scale * (2.0f * UniformFloat(philox(0, i)[0]) - 1.0f);
    if (i % 101 == 7) numbers[i] = 0x1p-130f;
    if (i % 101 == 8) numbers[i] = -0.0f;
  }
  return numbers;
}

class Results {
 public:
  explicit Results(Sha256* sum) : sum_(sum) {}
  void Add(const std::vector<float>& numbers) { sum_->Update(numbers.data(), numbers.size() * sizeof(float)); }
  void Add(double number) { sum_->Update(&number, sizeof(number)); }

 private:
  Sha256* const sum_;
};

void AddProducts(const Compute& compute, Results* results) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    for (const Shape& shape :
         {Shape{1, 1, 1}, Shape{5, 17, 3}, Shape{14, 32, 64}, Shape{29, 65, 259}, Shape{40, 33, 515}}) {
      for (int transposed = 0; transposed < 4; ++transposed) {
        const std::vector<float> a = Numbers(1, shape.m * shape.k, 1.0f), b = Numbers(2, shape.k * shape.n, 3.0f);
        const std::vector<float> bias = Numbers(3, shape.n, 1.0f);
        std::vector<float> c = Numbers(4, shape.m * shape.n, 1.0f);
        Product product = {.m = shape.m, .n = shape.n, .k = shape.k};
        product.a = transposed & 1 ? Operand{a.data(), 1, shape.m} : Operand{a.data(), shape.k, 1};
        product.b = transposed & 2 ? Operand{b.data(), 1, shape.k} : Operand{b.data(), shape.n, 1};
        product.c = c.data();
        product.c_stride = shape.n;
        product.accumulate = transposed == 1;
        product.bias = transposed == 2 ? bias.data() : nullptr;
        product.precision = precision;
        Multiply(compute, product);
        results->Add(c);
      }
    }
  }
}

void AddRowResults(const Compute& compute, Results* results) {
  constexpr int64_t kRows = 9, kColumns = 37;
  const std::vector<float> x = Numbers(5, kRows * kColumns, 4.0f), dy = Numbers(6, kRows * kColumns, 1.0f);
  const std::vector<float> gain = Numbers(7, kColumns, 1.0f), bias = Numbers(8, kColumns, 1.0f);
  std::vector<float> y(x.size()), dx(x.size()), mean(kRows), rstd(kRows), dgain(kColumns), dbias(kColumns), loss(kRows);

  LayerNormRows(compute, x.data(), gain.data(), bias.data(), 1e-5f, kRows, kColumns, y.data(), mean.data(),
                rstd.data());
  LayerNormRowsBackward(compute, x.data(), gain.data(), mean.data(), rstd.data(), dy.data(), kRows, kColumns, dx.data(),
                        dgain.data(), dbias.data());
  for (const auto* part : {&y, &mean, &rstd, &dx, &dgain, &dbias}) results->Add(*part);
  RmsNormRows(compute, x.data(), gain.data(), 1e-5f, kRows, kColumns, y.data(), rstd.data());
  RmsNormRowsBackward(compute, x.data(), gain.data(), rstd.data(), dy.data(), kRows, kColumns, dx.data(), dgain.data());
  for (const auto* part : {&y, &rstd, &dx, &dgain}) results->Add(*part);

  y = x;
  SoftmaxRows(y.data(), kRows, kColumns, 0.3f, /*causal=*/true, 5);
  results->Add(y);
  dx = dy;
  SoftmaxRowsBackward(y.data(), dx.data(), kRows, kColumns, 0.3f);
  results->Add(dx);
  y = x;
  const uint32_t targets[kRows] = {0, 36, 5, 7, 11, 13, 17, 19, 23};
  const std::vector<float> d_loss(kRows, 0.125f);
  CrossEntropyRows(compute, y.data(), kRows, kColumns,
                   {.targets = targets, .loss = loss.data(), .d_loss = d_loss.data()});
  results->Add(y);
  results->Add(loss);
}

}  // namespace

void AddConformance(const Compute& compute, Sha256* sum) {
  Results results(sum);
  AddProducts(compute, &results);
  for (const int64_t n : {0, 1, 7, 16, 23, 1000}) {
    const std::vector<float> x = Numbers(9, n, 100.0f), y = Numbers(10, n, 0.01f);
    results.Add({Sum(x.data(), n), Dot(x.data(), y.data(), n), SumSquares(x.data(), n),
                 SumSquaresAround(x.data(), 3.0f, n), Max(x.data(), n), MaxMagnitude(x.data(), n)});
    results.Add(SumInF64(x.data(), n));
    results.Add(SumSquaresInF64(x.data(), n));
  }
  const std::vector<float> x = Numbers(11, 500, 90.0f), near = Numbers(12, 500, 2.0f), dy = Numbers(13, 500, 1.0f);
  std::vector<float> y(500), z(500);
  for (const auto& numbers : {x, near}) {
    for (const auto function : {&Exp, &Tanh, &Sigmoid, &Erf, &Gelu, &ErfGelu}) {
      function(compute.isa(), numbers.data(), y.data(), 500);
      results.Add(y);
    }
    for (const auto backward : {&GeluBackward, &ErfGeluBackward}) {
      backward(compute.isa(), numbers.data(), dy.data(), y.data(), 500);
      results.Add(y);
    }
    SwiGlu(compute.isa(), numbers.data(), dy.data(), y.data(), 500);
    results.Add(y);
    SwiGluBackward(compute.isa(), numbers.data(), near.data(), dy.data(), y.data(), z.data(), 500);
    results.Add(y);
    results.Add(z);
  }
  for (const double number : {0.001, 0.5, 1.0, 3.0, 77.0}) {
    for (const double value : {ExpInF64(number), LogInF64(number), CosInF64(number), SinInF64(number)})
      results.Add(value);
  }
  AddRowResults(compute, &results);
}

}  // namespace millrace::kernels
