#include "model/adapters/linear_adapter.h"

#include <algorithm>
#include <cmath>

#include "Eigen/Core"
#include "common/status.h"
#include "kernels/product.h"
#include "kernels/reduce.h"
#include "kernels/rows.h"

namespace millrace::model {
namespace {

constexpr int64_t kRowGrain = 16;

using Row = Eigen::Map<Eigen::ArrayXf>;
using ConstRow = Eigen::Map<const Eigen::ArrayXf>;

const float* At(const LinearAdapterPass& pass, int tensor) {
  return pass.weights + pass.adapter.tensors()[tensor].offset;
}
float* GradientAt(const LinearAdapterPass& pass, float* gradients, int tensor) {
  return gradients + pass.adapter.tensors()[tensor].offset;
}

template <typename Act>
void EachRow(const kernels::Compute& compute, int64_t rows, const Act& act) {
  compute.ParallelFor(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) act(row);
  });
}

// drop(x), in the memory's room for inputs if anything is dropped.
const float* Dropped(const kernels::Compute& compute, const LinearAdapterPass& pass, const float* x, int64_t rows,
                     int64_t inputs) {
  if (pass.dropout.rate == 0.0f) return x;
  float* const dropped = pass.memory.input();
  std::copy_n(x, rows * inputs, dropped);
  ApplyDropout(compute, pass.dropout, rows * inputs, dropped);
  return dropped;
}

// to[rows, rank] = s (E ⊙) from.
void Scale(const kernels::Compute& compute, const LinearAdapterPass& pass, const float* from, int64_t rows, float* to) {
  const int64_t rank = pass.at.rank;
  const float scale = pass.adapter.low_rank_scale();
  EachRow(compute, rows, [&](int64_t row) {
    Row scaled(to + row * rank, rank);
    scaled = ConstRow(from + row * rank, rank) * scale;
    if (pass.at.e >= 0) scaled *= ConstRow(At(pass, pass.at.e), rank);
  });
}

}  // namespace

absl::StatusOr<LinearAdapterMemory> LinearAdapterMemory::Create(const Adapter& adapter,
                                                                absl::Span<const LinearSite> sites, int64_t tokens,
                                                                bool for_training) {
  LinearAdapterMemory memory;
  memory.tokens_ = tokens;
  int64_t rank = 0, inputs = 0, outputs = 0, matrix = 0;
  size_t layers = 0;
  for (const LinearSite& site : sites) {
    layers = std::max(layers, site.layer + 1);
    const Adapter::AtLinear& at = adapter.at(site.layer, site.module);
    if (!at.any()) continue;
    rank = std::max(rank, at.rank);
    inputs = std::max(inputs, site.inputs);
    outputs = std::max(outputs, site.outputs);
    if (at.magnitude >= 0) matrix = std::max(matrix, site.inputs * site.outputs);
  }
  memory.sites_.resize(layers * kModules);
  const auto lay_out = [&](Arena* arena) {
    // DoRA's norms outlive a pass in any case.
    Site shared;
    if (!for_training) {
      shared.low = arena->Take(tokens * rank);
      shared.scaled = arena->Take(tokens * rank);
      shared.plain = arena->Take(tokens * outputs);
    }
    for (const LinearSite& about : sites) {
      const Adapter::AtLinear& at = adapter.at(about.layer, about.module);
      Site& site = memory.sites_[about.layer * kModules + static_cast<size_t>(about.module)];
      site = shared;
      if (at.magnitude >= 0) site.norms = arena->Take(about.outputs);
      if (!for_training) continue;
      if (at.e >= 0) site.low = arena->Take(tokens * at.rank);
      if (at.a >= 0) site.scaled = arena->Take(tokens * at.rank);
      if (at.magnitude >= 0 || (at.scale >= 0 && !at.of_inputs)) site.plain = arena->Take(tokens * about.outputs);
    }
    if (for_training) memory.d_low_ = arena->Take(tokens * rank);
    memory.input_ = arena->Take(tokens * inputs);
    memory.output_ = arena->Take(tokens * outputs);
    memory.matrix_ = arena->Take(matrix);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(memory.arena_, Arena::Create(measure.taken()));
  lay_out(&memory.arena_);
  return memory;
}

const float* AdaptedInput(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                          const float* x, int64_t rows) {
  if (pass.at.scale < 0 || !pass.at.of_inputs) return x;
  const int64_t inputs = linear.inputs;
  EachRow(compute, rows, [&](int64_t row) {
    Row(pass.memory.input() + row * inputs, inputs) =
        ConstRow(x + row * inputs, inputs) * ConstRow(At(pass, pass.at.scale), inputs);
  });
  return pass.memory.input();
}

void AdaptOutput(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear, const float* x,
                 int64_t rows, const float* weight, const float* bias, float* y, int64_t y_stride) {
  const Adapter::AtLinear& at = pass.at;
  const int64_t outputs = linear.outputs;
  if (at.scale >= 0) {
    if (at.of_inputs) return;
    EachRow(compute, rows, [&](int64_t row) {
      Row out(y + row * y_stride, outputs);
      Row(pass.kept.plain + row * outputs, outputs) = out;
      out *= ConstRow(At(pass, at.scale), outputs);
    });
    return;
  }
  float* const low = at.e >= 0 ? pass.kept.low : pass.kept.scaled;
  LinearForward(compute, {linear.inputs, at.rank, false, linear.precision},
                Dropped(compute, pass, x, rows, linear.inputs), rows, At(pass, at.a), nullptr, low, at.rank);
  Scale(compute, pass, low, rows, pass.kept.scaled);
  kernels::Product product = {.m = rows, .n = outputs, .k = at.rank};
  product.a = {pass.kept.scaled, at.rank, 1};
  product.b = kernels::Operand{At(pass, at.b), at.rank, 1}.Transposed();
  product.c = y;
  product.c_stride = y_stride;
  product.accumulate = true;
  product.precision = linear.precision;
  kernels::Multiply(compute, product);
  if (at.magnitude < 0) return;
  if (!pass.norms_known) {
    RowNorms(compute, pass.adapter, at, pass.weights, linear, weight, pass.memory.matrix(), pass.kept.norms);
  }
  const ConstRow magnitude(At(pass, at.magnitude), outputs), norms(pass.kept.norms, outputs);
  EachRow(compute, rows, [&](int64_t row) {
    Row out(y + row * y_stride, outputs);
    Row(pass.kept.plain + row * outputs, outputs) = out;
    out *= magnitude / norms;
    if (bias != nullptr) out += ConstRow(bias, outputs);
  });
}

void AdaptedOutputBackward(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                           const float* x, int64_t rows, float* dy, int64_t dy_stride, float* gradients) {
  const Adapter::AtLinear& at = pass.at;
  const int64_t outputs = linear.outputs;
  if (at.scale >= 0 && at.of_inputs) return;
  if (at.scale >= 0 || at.magnitude >= 0) {
    // y = f ⊙ plain (+ b), f = l, or m / n with n as a constant.
    const ConstRow factor(At(pass, at.scale >= 0 ? at.scale : at.magnitude), outputs);
    float* const products = pass.memory.output();
    EachRow(compute, rows, [&](int64_t row) {
      Row out(dy + row * dy_stride, outputs);
      Row product(products + row * outputs, outputs);
      product = out * ConstRow(pass.kept.plain + row * outputs, outputs);
      out *= factor;
      if (at.magnitude < 0) return;
      const ConstRow norms(pass.kept.norms, outputs);
      product /= norms;
      out /= norms;
    });
    kernels::AddRows(compute, products, rows, outputs, outputs,
                     GradientAt(pass, gradients, at.scale >= 0 ? at.scale : at.magnitude));
  }
  if (at.a < 0) return;
  const int64_t rank = at.rank;
  float* const d_scaled = pass.memory.d_low();
  LinearBackward(compute, {rank, outputs, false, linear.precision}, pass.kept.scaled, rows, At(pass, at.b), dy,
                 dy_stride, d_scaled, false, GradientAt(pass, gradients, at.b), nullptr);
  if (at.e >= 0) {
    const float scale = pass.adapter.low_rank_scale();
    EachRow(compute, rows, [&](int64_t row) {
      // `low` is not needed afterwards.
      Row low(pass.kept.low + row * rank, rank);
      low = low * scale * ConstRow(d_scaled + row * rank, rank);
    });
    kernels::AddRows(compute, pass.kept.low, rows, rank, rank, GradientAt(pass, gradients, at.e));
  }
  Scale(compute, pass, d_scaled, rows, d_scaled);
  LinearBackward(compute, {linear.inputs, rank, false, linear.precision},
                 Dropped(compute, pass, x, rows, linear.inputs), rows, At(pass, at.a), d_scaled, rank, nullptr, false,
                 GradientAt(pass, gradients, at.a), nullptr);
}

void AdaptedInputBackward(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                          const float* x, int64_t rows, float* dx, bool accumulate, float* gradients) {
  const Adapter::AtLinear& at = pass.at;
  const int64_t inputs = linear.inputs;
  float* const d_input = pass.memory.input();
  if (at.scale >= 0) {
    if (!at.of_inputs) return;
    const ConstRow scale(At(pass, at.scale), inputs);
    EachRow(compute, rows, [&](int64_t row) {
      Row own(d_input + row * inputs, inputs);
      if (dx != nullptr) {
        Row out(dx + row * inputs, inputs);
        if (accumulate) {
          out += own * scale;
        } else {
          out = own * scale;
        }
      }
      own *= ConstRow(x + row * inputs, inputs);
    });
    kernels::AddRows(compute, d_input, rows, inputs, inputs, GradientAt(pass, gradients, at.scale));
    return;
  }
  if (dx == nullptr) return;
  const bool drops = pass.dropout.rate > 0.0f;
  LinearBackward(compute, {inputs, at.rank, false, linear.precision}, nullptr, rows, At(pass, at.a),
                 pass.memory.d_low(), at.rank, drops ? d_input : dx, !drops, nullptr, nullptr);
  if (!drops) return;
  ApplyDropout(compute, pass.dropout, rows * inputs, d_input);
  kernels::Add(compute, d_input, rows * inputs, dx);
}

namespace {

// to += s B (E ⊙) A, stored as the layer's weight.
void AddProducts(const kernels::Compute& compute, const Adapter& adapter, const Adapter::AtLinear& at,
                 const float* adapter_weights, const Linear& linear, bool inputs_first, float* to) {
  const TensorList& tensors = adapter.tensors();
  const float* const a = adapter_weights + tensors[at.a].offset;
  const float* const b = adapter_weights + tensors[at.b].offset;
  std::vector<float> scaled(static_cast<size_t>(at.rank * linear.inputs));
  for (int64_t i = 0; i < at.rank; ++i) {
    Row row(scaled.data() + i * linear.inputs, linear.inputs);
    row = ConstRow(a + i * linear.inputs, linear.inputs) * adapter.low_rank_scale();
    if (at.e >= 0) row *= adapter_weights[tensors[at.e].offset + i];
  }
  const kernels::Operand down = {scaled.data(), linear.inputs, 1}, up = {b, at.rank, 1};
  kernels::Product product;
  product.m = inputs_first ? linear.inputs : linear.outputs;
  product.n = inputs_first ? linear.outputs : linear.inputs;
  product.k = at.rank;
  product.a = inputs_first ? down.Transposed() : up;
  product.b = inputs_first ? up.Transposed() : down;
  product.c = to;
  product.c_stride = product.n;
  product.accumulate = true;
  kernels::Multiply(compute, product);
}

}  // namespace

void RowNorms(const kernels::Compute& compute, const Adapter& adapter, const Adapter::AtLinear& at,
              const float* adapter_weights, const Linear& linear, const float* weight, float* matrix, float* norms) {
  EachRow(compute, linear.outputs, [&](int64_t row) {
    float* const to = matrix + row * linear.inputs;
    for (int64_t i = 0; i < linear.inputs; ++i) {
      to[i] = linear.inputs_first ? weight[i * linear.outputs + row] : weight[row * linear.inputs + i];
    }
  });
  if (adapter_weights != nullptr) {
    AddProducts(compute, adapter, at, adapter_weights, linear, /*inputs_first=*/false, matrix);
  }
  EachRow(compute, linear.outputs, [&](int64_t row) {
    norms[row] = std::sqrt(kernels::SumSquares(matrix + row * linear.inputs, linear.inputs));
  });
}

void MergeLinear(const kernels::Compute& compute, const Adapter& adapter, const Adapter::AtLinear& at,
                 const float* adapter_weights, const Linear& linear, float* weight, float* bias) {
  if (!at.any()) return;
  // weight[output, input] *= rows[output], or columns[input].
  const auto scale = [&](const float* rows, const float* columns) {
    const int64_t width = linear.inputs_first ? linear.outputs : linear.inputs;
    const float* const across = linear.inputs_first ? columns : rows;
    const float* const along = linear.inputs_first ? rows : columns;
    EachRow(compute, linear.inputs_first ? linear.inputs : linear.outputs, [&](int64_t row) {
      Row values(weight + row * width, width);
      if (across != nullptr) values *= across[row];
      if (along != nullptr) values *= ConstRow(along, width);
    });
  };
  if (at.scale >= 0) {
    const float* const factors = adapter_weights + adapter.tensors()[at.scale].offset;
    scale(at.of_inputs ? nullptr : factors, at.of_inputs ? factors : nullptr);
    if (!at.of_inputs && bias != nullptr) Row(bias, linear.outputs) *= ConstRow(factors, linear.outputs);
    return;
  }
  std::vector<float> gains;
  if (at.magnitude >= 0) {
    std::vector<float> matrix(static_cast<size_t>(linear.outputs * linear.inputs));
    gains.resize(static_cast<size_t>(linear.outputs));
    RowNorms(compute, adapter, at, adapter_weights, linear, weight, matrix.data(), gains.data());
    Row(gains.data(), linear.outputs) =
        ConstRow(adapter_weights + adapter.tensors()[at.magnitude].offset, linear.outputs) /
        ConstRow(gains.data(), linear.outputs);
  }
  AddProducts(compute, adapter, at, adapter_weights, linear, linear.inputs_first, weight);
  if (!gains.empty()) scale(gains.data(), nullptr);
}

}  // namespace millrace::model
