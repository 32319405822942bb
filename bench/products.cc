#include "bench/products.h"

#include <omp.h>

#include <optional>
#include <unordered_map>

#include "absl/types/span.h"
#include "common/philox.h"
#include "dnnl.hpp"
#include "model/arena.h"

namespace millrace::bench {

std::vector<Shape> ShapesOf(const Model& model) {
  std::vector<Shape> shapes;
  const int64_t tokens = model.tokens(), hidden = model.hidden;
  const struct {
    const char* name;
    int64_t inputs, outputs;
    bool outputs_first;  // as the weights are stored
  } projections[] = {{"qkv", hidden, 3 * hidden, false},
                     {"attention-output", hidden, hidden, false},
                     {"mlp-up", hidden, 4 * hidden, false},
                     {"mlp-down", 4 * hidden, hidden, false},
                     {"logits", hidden, model.vocab, true}};
  const std::string prefix = std::string(model.name) + "/";
  for (const auto& p : projections) {
    const std::string name = prefix + p.name;
    shapes.push_back({name + "/forward", 1, tokens, p.outputs, p.inputs, false, p.outputs_first});
    shapes.push_back({name + "/input-gradient", 1, tokens, p.inputs, p.outputs, false, !p.outputs_first});
    shapes.push_back({name + "/weight-gradient", 1, p.outputs_first ? p.outputs : p.inputs,
                      p.outputs_first ? p.inputs : p.outputs, tokens, true, false});
  }
  const int64_t heads = int64_t{model.batch} * model.heads, size = model.hidden / model.heads;
  shapes.push_back({prefix + "heads/scores", heads, model.context, model.context, size, false, true});
  shapes.push_back({prefix + "heads/outputs", heads, model.context, size, model.context, false, false});
  shapes.push_back({prefix + "heads/value-gradient", heads, model.context, size, model.context, true, false});
  return shapes;
}

using dnnl::memory;

namespace {

// Operands lie as those of training do: on huge pages, one behind another.
model::Arena RoomFor(absl::Span<const int64_t> sizes) {
  model::Arena measure;
  for (const int64_t size : sizes) measure.Take(size);
  return model::Arena::Create(measure.taken()).value();
}

}  // namespace

struct ProductPair::State {
  // A matmul of oneDNN with its memories.
  struct Matmul {
    model::Arena room;
    dnnl::matmul primitive;
    std::unordered_map<int, memory> arguments;
  };

  Matmul Prepare(kernels::Precision precision);

  Shape shape;
  const kernels::Compute* compute;
  model::Arena room;
  float *a = nullptr, *b = nullptr, *c = nullptr;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::optional<Matmul> f32, bf16;
};

ProductPair::State::Matmul ProductPair::State::Prepare(kernels::Precision precision) {
  const auto descriptor = [&](int64_t rows, int64_t columns, bool transposed, memory::data_type type) {
    const memory::dims strides =
        transposed ? memory::dims{rows * columns, 1, rows} : memory::dims{rows * columns, columns, 1};
    return memory::desc({shape.batch, rows, columns}, type, strides);
  };
  const bool rounded = precision == kernels::Precision::kBf16;
  const auto type = rounded ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc of_a = descriptor(shape.m, shape.k, shape.a_transposed, type);
  const memory::desc of_b = descriptor(shape.k, shape.n, shape.b_transposed, type);
  const memory::desc of_c = descriptor(shape.m, shape.n, false, memory::data_type::f32);
  Matmul matmul;
  const auto floats = [](const memory::desc& desc) {
    return static_cast<int64_t>(desc.get_size() / sizeof(float)) + 1;
  };
  if (rounded) matmul.room = RoomFor({floats(of_a), floats(of_b)});
  const auto operand = [&](const memory::desc& desc, int64_t rows, int64_t columns, bool transposed, float* data) {
    memory plain(descriptor(rows, columns, transposed, memory::data_type::f32), engine, data);
    if (!rounded) return plain;
    memory made(desc, engine, matmul.room.Take(floats(desc)));
    dnnl::reorder(plain, made).execute(stream, plain, made);
    stream.wait();
    return made;
  };
  matmul.primitive = dnnl::matmul({dnnl::matmul::desc(of_a, of_b, of_c), engine});
  matmul.arguments = {{DNNL_ARG_SRC, operand(of_a, shape.m, shape.k, shape.a_transposed, a)},
                      {DNNL_ARG_WEIGHTS, operand(of_b, shape.k, shape.n, shape.b_transposed, b)},
                      {DNNL_ARG_DST, memory(of_c, engine, c)}};
  return matmul;
}

ProductPair::ProductPair(const Shape& shape, const kernels::Compute* compute) : state_(new State{shape, compute}) {
  const int64_t sizes[] = {shape.batch * shape.m * shape.k, shape.batch * shape.k * shape.n,
                           shape.batch * shape.m * shape.n};
  state_->room = RoomFor(sizes);
  const auto filled = [this](int64_t size, uint64_t key) {
    float* const values = state_->room.Take(size);
    for (int64_t i = 0; i < size; ++i) values[i] = UniformFloat(Philox(key)(0, static_cast<uint64_t>(i))[0]) - 0.5f;
    return values;
  };
  state_->a = filled(sizes[0], 1);
  state_->b = filled(sizes[1], 2);
  state_->c = state_->room.Take(sizes[2]);
}

ProductPair::~ProductPair() = default;

void ProductPair::Ours(kernels::Precision precision) {
  const Shape& shape = state_->shape;
  std::vector<kernels::Product> products;
  for (int64_t i = 0; i < shape.batch; ++i) {
    const float* const a = state_->a + i * shape.m * shape.k;
    const float* const b = state_->b + i * shape.k * shape.n;
    kernels::Product product = {.m = shape.m, .n = shape.n, .k = shape.k};
    product.a = shape.a_transposed ? kernels::Operand{a, 1, shape.m} : kernels::Operand{a, shape.k, 1};
    product.b = shape.b_transposed ? kernels::Operand{b, 1, shape.k} : kernels::Operand{b, shape.n, 1};
    product.c = state_->c + i * shape.m * shape.n;
    product.c_stride = shape.n;
    product.precision = precision;
    products.push_back(product);
  }
  if (shape.batch == 1) {
    kernels::Multiply(*state_->compute, products[0]);
  } else {
    kernels::MultiplyBatch(*state_->compute, products);
  }
}

void ProductPair::OneDnn(kernels::Precision precision) {
  std::optional<State::Matmul>& matmul = precision == kernels::Precision::kBf16 ? state_->bf16 : state_->f32;
  if (!matmul.has_value()) matmul = state_->Prepare(precision);
  matmul->primitive.execute(state_->stream, matmul->arguments);
  state_->stream.wait();
}

void SetUpOneDnn(kernels::Isa isa, int threads) {
  omp_set_num_threads(threads);
  dnnl::set_max_cpu_isa(isa == kernels::Isa::kAvx512Bf16 ? dnnl::cpu_isa::all
                        : isa == kernels::Isa::kAvx512   ? dnnl::cpu_isa::avx512_core
                                                         : dnnl::cpu_isa::avx2);
}

}  // namespace millrace::bench
