#include "model/layers/lstm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/functions.h"

namespace millrace::model {
namespace {

constexpr int64_t kGrain = 1 << 12;  // elements

}  // namespace

LstmLayer::LstmLayer(int64_t hidden_size, kernels::Precision precision, const std::string& prefix, uint32_t index,
                     TensorList* tensors)
    : hidden_size_(hidden_size), linear_{hidden_size, 4 * hidden_size, false, precision}, tensors_(*tensors) {
  const auto add = [&](const char* name, std::vector<int64_t> shape) {
    TensorSpec spec;
    spec.name = absl::StrCat(prefix, name, "_l", index);
    spec.shape = std::move(shape);
    spec.group = index + 1;
    if (spec.shape.size() == 2) {
      spec.role = Role::kMatrix;
      // As PyTorch's nn.LSTM.
      spec.start = Start::kUniform;
      spec.start_size = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden_size)));
    }
    return tensors->Add(std::move(spec));
  };
  input_ = add("weight_ih", {4 * hidden_size, hidden_size});
  recurrent_ = add("weight_hh", {4 * hidden_size, hidden_size});
  bias_ = add("bias", {4 * hidden_size});
}

LstmLayer::Kept LstmLayer::PartsOf(float* kept, int64_t rows) const {
  const int64_t size = rows * hidden_size_;
  return {kept, kept + 4 * size, kept + 5 * size, kept + 6 * size};
}

void LstmLayer::Forward(const CausalPass& pass, const float* x, float* states, float* kept, float* y) const {
  const int64_t hidden = hidden_size_;
  const TimeOrder& order = pass.order;
  const Kept parts = PartsOf(kept, order.rows());
  const float* const recurrent = TensorAt(tensors_, pass.weights, recurrent_);
  LinearForward(pass.compute, linear_, x, order.rows(), TensorAt(tensors_, pass.weights, input_),
                TensorAt(tensors_, pass.weights, bias_), parts.gates, 4 * hidden);
  for (int64_t step = 0; step < order.steps(); ++step) {
    const int64_t first = order.row(step, 0), count = order.count(step);
    float* const before = parts.before + first * hidden;
    if (step > 0) {
      std::copy_n(y + order.row(step - 1, 0) * hidden, count * hidden, before);
    } else if (states == nullptr) {
      std::fill_n(before, count * hidden, 0.0f);
    } else {
      for (int64_t i = 0; i < count; ++i) std::copy_n(states + i * state_size(), hidden, before + i * hidden);
    }
    kernels::Product product = {.m = count, .n = 4 * hidden, .k = hidden};
    product.a = {before, hidden, 1};
    product.b = kernels::Operand{recurrent, hidden, 1}.Transposed();
    product.c = parts.gates + first * 4 * hidden;
    product.c_stride = 4 * hidden;
    product.accumulate = true;
    product.precision = linear_.precision;
    kernels::Multiply(pass.compute, product);
    pass.compute.ParallelFor(count, std::max<int64_t>(1, kGrain / hidden), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = first + i;
        float* const gates = parts.gates + row * 4 * hidden;
        float* const cells = parts.cells + row * hidden;
        float* const activated = parts.activated + row * hidden;
        kernels::Sigmoid(pass.compute.isa(), gates, gates, 2 * hidden);
        kernels::Tanh(pass.compute.isa(), gates + 2 * hidden, gates + 2 * hidden, hidden);
        kernels::Sigmoid(pass.compute.isa(), gates + 3 * hidden, gates + 3 * hidden, hidden);
        const float* cells_before = nullptr;
        if (step > 0) {
          cells_before = parts.cells + order.row(step - 1, i) * hidden;
        } else if (states != nullptr) {
          cells_before = states + i * state_size() + hidden;
        }
        for (int64_t c = 0; c < hidden; ++c) {
          const float kept_cell = gates[hidden + c] * (cells_before == nullptr ? 0.0f : cells_before[c]);
          cells[c] = kept_cell + gates[c] * gates[2 * hidden + c];
        }
        kernels::Tanh(pass.compute.isa(), cells, activated, hidden);
        for (int64_t c = 0; c < hidden; ++c) y[row * hidden + c] = gates[3 * hidden + c] * activated[c];
      }
    });
  }
  for (int64_t i = 0; states != nullptr && i < order.sequences(); ++i) {
    const int64_t last = order.row(order.length(i) - 1, i);
    std::copy_n(y + last * hidden, hidden, states + i * state_size());
    std::copy_n(parts.cells + last * hidden, hidden, states + i * state_size() + hidden);
  }
  ApplyDropout(pass.compute, pass.dropout, order.rows() * hidden, y);
}

// From the last step to the first. What a step gives to the h' of its rows is added to dy of the step before, and what
// it gives to their c' takes the place of that c, which nothing needs any more.
void LstmLayer::Backward(const CausalPass& pass, const float* x, float* kept, float* dy, bool input_wanted,
                         Trainable trainable, float* gradients) const {
  const int64_t hidden = hidden_size_;
  const TimeOrder& order = pass.order;
  const Kept parts = PartsOf(kept, order.rows());
  const float* const recurrent = TensorAt(tensors_, pass.weights, recurrent_);
  ApplyDropout(pass.compute, pass.dropout, order.rows() * hidden, dy);
  for (int64_t step = order.steps(); step-- > 0;) {
    const int64_t first = order.row(step, 0), count = order.count(step), going_on = order.count(step + 1);
    pass.compute.ParallelFor(count, std::max<int64_t>(1, kGrain / hidden), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = first + i;
        float* const gates = parts.gates + row * 4 * hidden;
        const float* const activated = parts.activated + row * hidden;
        const float* const d_cells_after = i < going_on ? parts.cells + row * hidden : nullptr;
        float* const cells_before = step > 0 ? parts.cells + order.row(step - 1, i) * hidden : nullptr;
        const float* const dh = dy + row * hidden;
        for (int64_t c = 0; c < hidden; ++c) {
          const float in = gates[c], forget = gates[hidden + c], made = gates[2 * hidden + c],
                      out = gates[3 * hidden + c];
          const float after = d_cells_after == nullptr ? 0.0f : d_cells_after[c];
          const float d_cell = after + dh[c] * out * (1.0f - activated[c] * activated[c]);
          const float before = cells_before == nullptr ? 0.0f : cells_before[c];
          gates[c] = d_cell * made * in * (1.0f - in);
          gates[hidden + c] = d_cell * before * forget * (1.0f - forget);
          gates[2 * hidden + c] = d_cell * in * (1.0f - made * made);
          gates[3 * hidden + c] = dh[c] * activated[c] * out * (1.0f - out);
          if (cells_before != nullptr) cells_before[c] = d_cell * forget;
        }
      }
    });
    if (step == 0) break;
    kernels::Product product = {.m = count, .n = hidden, .k = 4 * hidden};
    product.a = {parts.gates + first * 4 * hidden, 4 * hidden, 1};
    product.b = {recurrent, hidden, 1};
    product.c = dy + order.row(step - 1, 0) * hidden;
    product.c_stride = hidden;
    product.accumulate = true;
    product.precision = linear_.precision;
    kernels::Multiply(pass.compute, product);
  }
  LinearBackward(pass.compute, linear_, parts.before, order.rows(), recurrent, parts.gates, 4 * hidden, nullptr, false,
                 GradientAt(tensors_, gradients, recurrent_, trainable), nullptr);
  LinearBackward(pass.compute, linear_, x, order.rows(), TensorAt(tensors_, pass.weights, input_), parts.gates,
                 4 * hidden, input_wanted ? dy : nullptr, false, GradientAt(tensors_, gradients, input_, trainable),
                 GradientAt(tensors_, gradients, bias_, trainable));
}

}  // namespace millrace::model
