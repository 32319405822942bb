#include "model/layers/gated_convolution.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/functions.h"

namespace millrace::model {
namespace {

constexpr int64_t kGrain = 1 << 12;  // elements

}  // namespace

GatedConvolution::GatedConvolution(int64_t hidden_size, int64_t kernel_size, float epsilon,
                                   kernels::Precision precision, const std::string& prefix, uint32_t group,
                                   TensorList* tensors)
    : hidden_size_(hidden_size),
      kernel_size_(kernel_size),
      epsilon_(epsilon),
      linear_{kernel_size * hidden_size, 2 * hidden_size, false, precision},
      tensors_(*tensors) {
  const auto add = [&](const char* name, std::vector<int64_t> shape, Role role, Start start) {
    TensorSpec spec;
    spec.name = prefix + name;
    spec.shape = std::move(shape);
    spec.role = role;
    spec.group = group;
    spec.start = start;
    // As PyTorch's nn.Conv1d.
    spec.start_size = static_cast<float>(1.0 / std::sqrt(static_cast<double>(linear_.inputs)));
    return tensors->Add(std::move(spec));
  };
  norm_.gain = add("norm.weight", {hidden_size}, Role::kVector, Start::kOnes);
  norm_.bias = add("norm.bias", {hidden_size}, Role::kVector, Start::kZeros);
  convolution_.weight = add("conv.weight", {linear_.outputs, linear_.inputs}, Role::kMatrix, Start::kUniform);
  convolution_.bias = add("conv.bias", {linear_.outputs}, Role::kVector, Start::kZeros);
}

GatedConvolution::Kept GatedConvolution::PartsOf(float* kept, int64_t rows) const {
  const int64_t size = rows * hidden_size_;
  return {kept, kept + size, kept + 3 * size, kept + 3 * size + rows};
}

void GatedConvolution::Unfold(const CausalPass& pass, const float* normed, const float* states, float* unfolded) const {
  const int64_t hidden = hidden_size_, past = kernel_size_ - 1;
  pass.compute.ParallelFor(pass.order.steps(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t step = begin; step < end; ++step) {
      for (int64_t sequence = 0; sequence < pass.order.count(step); ++sequence) {
        float* to = unfolded + pass.order.row(step, sequence) * linear_.inputs;
        for (int64_t from = step - past; from <= step; ++from, to += hidden) {
          if (from >= 0) {
            std::copy_n(normed + pass.order.row(from, sequence) * hidden, hidden, to);
          } else if (states == nullptr) {
            std::fill_n(to, hidden, 0.0f);
          } else {
            std::copy_n(states + (sequence * past + past + from) * hidden, hidden, to);
          }
        }
      }
    }
  });
}

void GatedConvolution::Forward(const CausalPass& pass, const float* x, float* states, float* kept, float* y) const {
  const int64_t hidden = hidden_size_, rows = pass.order.rows(), past = kernel_size_ - 1;
  const Kept parts = PartsOf(kept, rows);
  NormForward(pass.compute, NormKind::kLayer, x, TensorAt(tensors_, pass.weights, norm_.gain),
              TensorAt(tensors_, pass.weights, norm_.bias), epsilon_, rows, hidden, parts.normed, parts.mean,
              parts.rstd);
  Unfold(pass, parts.normed, states, pass.scratch);
  LinearForward(pass.compute, linear_, pass.scratch, rows, TensorAt(tensors_, pass.weights, convolution_.weight),
                TensorAt(tensors_, pass.weights, convolution_.bias), parts.halves, 2 * hidden);
  const int64_t grain = std::max<int64_t>(1, kGrain / hidden);
  pass.compute.ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* const halves = parts.halves + row * 2 * hidden;
      kernels::Sigmoid(pass.compute.isa(), halves + hidden, halves + hidden, hidden);
      for (int64_t c = 0; c < hidden; ++c) y[row * hidden + c] = halves[c] * halves[hidden + c];
    }
  });
  ApplyDropout(pass.compute, pass.dropout, rows * hidden, y);
  pass.compute.ParallelFor(rows * hidden, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] + y[i];
  });
  for (int64_t sequence = 0; states != nullptr && sequence < pass.order.sequences(); ++sequence) {
    float* const window = states + sequence * state_size();
    const int64_t length = pass.order.length(sequence);
    // From the front: what is read of the window lies behind what is written.
    for (int64_t at = 0; at < past; ++at) {
      const int64_t from = length - past + at;
      std::copy_n(from >= 0 ? parts.normed + pass.order.row(from, sequence) * hidden : window + (length + at) * hidden,
                  hidden, window + at * hidden);
    }
  }
}

void GatedConvolution::Backward(const CausalPass& pass, const float* x, float* kept, float* dy, bool input_wanted,
                                Trainable trainable, float* gradients) const {
  const int64_t hidden = hidden_size_, rows = pass.order.rows(), past = kernel_size_ - 1;
  const Kept parts = PartsOf(kept, rows);
  float* const unfolded = pass.scratch;
  float* const d_unfolded = unfolded + rows * linear_.inputs;
  float* const d_branch = d_unfolded + rows * linear_.inputs;
  const int64_t grain = std::max<int64_t>(1, kGrain / hidden);
  std::copy_n(dy, rows * hidden, d_branch);
  ApplyDropout(pass.compute, pass.dropout, rows * hidden, d_branch);
  pass.compute.ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* const halves = parts.halves + row * 2 * hidden;
      for (int64_t c = 0; c < hidden; ++c) {
        const float made = halves[c], gate = halves[hidden + c], dz = d_branch[row * hidden + c];
        halves[c] = dz * gate;
        halves[hidden + c] = dz * made * gate * (1.0f - gate);
      }
    }
  });
  float* const d_gain = GradientAt(tensors_, gradients, norm_.gain, trainable);
  float* const d_bias = GradientAt(tensors_, gradients, norm_.bias, trainable);
  const bool below_wanted = input_wanted || d_gain != nullptr || d_bias != nullptr;
  Unfold(pass, parts.normed, nullptr, unfolded);
  LinearBackward(pass.compute, linear_, unfolded, rows, TensorAt(tensors_, pass.weights, convolution_.weight),
                 parts.halves, 2 * hidden, below_wanted ? d_unfolded : nullptr, false,
                 GradientAt(tensors_, gradients, convolution_.weight, trainable),
                 GradientAt(tensors_, gradients, convolution_.bias, trainable));
  if (!below_wanted) return;
  float* const d_normed = d_branch;
  pass.compute.ParallelFor(pass.order.steps(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t step = begin; step < end; ++step) {
      for (int64_t sequence = 0; sequence < pass.order.count(step); ++sequence) {
        float* const to = d_normed + pass.order.row(step, sequence) * hidden;
        std::fill_n(to, hidden, 0.0f);
        // Of the tokens that look at this one: from its own on.
        for (int64_t by = step; by < std::min(step + kernel_size_, pass.order.length(sequence)); ++by) {
          const float* const from =
              d_unfolded + pass.order.row(by, sequence) * linear_.inputs + (past - (by - step)) * hidden;
          for (int64_t c = 0; c < hidden; ++c) to[c] += from[c];
        }
      }
    }
  });
  NormBackward(pass.compute, NormKind::kLayer, x, TensorAt(tensors_, pass.weights, norm_.gain), parts.mean, parts.rstd,
               d_normed, rows, hidden, input_wanted ? dy : nullptr, d_gain, d_bias);
}

}  // namespace millrace::model
