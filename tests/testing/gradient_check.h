// Compares a layer's outputs with a plain f64 forward pass, and its gradients with central differences of that pass.
//
//   Layer layer;
//   layer.arguments = {{"x", Numbers(1, 12)}, {"weight", Numbers(2, 20)}};
//   layer.truth = [](const std::vector<Doubles>& a) { … };                      // plain loops
//   layer.forward = [](const std::vector<Floats>& a) { … };                     // what is tested
//   layer.backward = [](const std::vector<Floats>& a, const Floats& dy) { … };  // gradients of all arguments
//   CheckGradient(layer);
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"

namespace millrace::testing {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// In (-scale, scale), a function of the arguments alone.
inline Floats Numbers(uint64_t key, size_t n, float scale = 1) {
  Floats numbers(n);
  for (size_t i = 0; i < n; ++i) numbers[i] = scale * (2 * UniformFloat(Philox(key)(0, i)[0]) - 1);
  return numbers;
}

inline Doubles Wide(const Floats& x) { return {x.begin(), x.end()}; }

struct Layer {
  struct Argument {
    std::string name;
    Floats value;
  };
  std::vector<Argument> arguments;
  std::function<Doubles(const std::vector<Doubles>& arguments)> truth;
  std::function<Floats(const std::vector<Floats>& arguments)> forward;
  std::function<std::vector<Floats>(const std::vector<Floats>& arguments, const Floats& dy)> backward;
  // Of the largest magnitude of a tensor: rounding errors stay below, a term that is wrong or missing does not.
  double tolerance = 2e-5;
  // Elements of each argument whose derivatives are compared one by one.
  size_t elements = 64;
};

// (a) Each output is the truth's. (b) So are the derivatives of (dy · output), for a random dy, by up to `elements`
// elements of each argument drawn without repetition; and by all of them together, along random directions in which
// each element goes up or down: no element goes unseen.
inline void CheckGradient(const Layer& layer) {
  std::vector<Floats> values;
  std::vector<Doubles> wide;
  for (const Layer::Argument& argument : layer.arguments) {
    values.push_back(argument.value);
    wide.push_back(Wide(argument.value));
  }
  const Floats output = layer.forward(values);
  const Doubles truth = layer.truth(wide);
  ASSERT_EQ(output.size(), truth.size());
  const auto largest = [](const Doubles& numbers) {
    double magnitude = 0;
    for (const double number : numbers) magnitude = std::max(magnitude, std::fabs(number));
    return magnitude;
  };
  const double output_scale = largest(truth);
  ASSERT_GT(output_scale, 0);
  for (size_t i = 0; i < output.size(); ++i) {
    ASSERT_NEAR(output[i], truth[i], layer.tolerance * output_scale) << "output " << i;
  }

  const Floats dy = Numbers(0xD1, output.size());
  const std::vector<Floats> gradients = layer.backward(values, dy);
  ASSERT_EQ(gradients.size(), values.size());
  const auto weighted = [&] {
    const Doubles y = layer.truth(wide);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * static_cast<double>(dy[i]);
    return sum;
  };
  constexpr double kStep = 1e-5;
  for (size_t a = 0; a < values.size(); ++a) {
    const std::string& name = layer.arguments[a].name;
    ASSERT_EQ(gradients[a].size(), values[a].size()) << name;
    const size_t size = values[a].size();

    std::vector<size_t> order(size);
    for (size_t i = 0; i < size; ++i) order[i] = i;
    const size_t count = std::min(size, layer.elements);
    Doubles slopes;
    for (size_t i = 0; i < count; ++i) {
      std::swap(order[i], order[i + Philox(0xD2)(a, i)[0] % (size - i)]);
      double& element = wide[a][order[i]];
      const double before = element;
      element = before + kStep;
      const double above = weighted();
      element = before - kStep;
      slopes.push_back((above - weighted()) / (2 * kStep));
      element = before;
    }
    const double scale = largest(slopes);
    ASSERT_GT(scale, 0) << name;
    for (size_t i = 0; i < count; ++i) {
      ASSERT_NEAR(gradients[a][order[i]], slopes[i], layer.tolerance * scale) << name << " " << order[i];
    }
    if (count == size) continue;

    for (uint64_t direction = 0; direction < 4; ++direction) {
      const auto sign = [&](size_t i) { return Philox(0xD3 + a)(direction, i)[0] % 2 == 0 ? 1.0 : -1.0; };
      const Doubles before = wide[a];
      double expected = 0;
      for (size_t i = 0; i < size; ++i) expected += sign(i) * static_cast<double>(gradients[a][i]);
      for (size_t i = 0; i < size; ++i) wide[a][i] = before[i] + kStep * sign(i);
      const double above = weighted();
      for (size_t i = 0; i < size; ++i) wide[a][i] = before[i] - kStep * sign(i);
      const double slope = (above - weighted()) / (2 * kStep);
      wide[a] = before;
      // Rounding errors of single elements add up like a random walk.
      ASSERT_NEAR(expected, slope, layer.tolerance * scale * std::sqrt(static_cast<double>(size)))
          << name << ", all together, direction " << direction;
    }
  }
}

}  // namespace millrace::testing
