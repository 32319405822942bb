// Lists a model's tensors: what they are called, how they are shaped, where they lie in memory and how they begin.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::model {

enum class Role {
  kMatrix,     // weight of a linear layer
  kEmbedding,  // token or position table, and an untied output projection
  kVector,     // biases, gains of norms
};

enum class Start {
  kZeros,
  kOnes,
  kNormal,
  kUniform,
  kRowNorms,  // of the matrix beside which the tensor stands: not by StartValues, which does not know it
};

struct TensorSpec {
  std::string name;            // as Hugging Face has it
  std::vector<int64_t> shape;  // row after row
  Role role = Role::kVector;
  bool rows_are_inputs = false;  // a matrix stored [inputs, outputs], as GPT-2's Conv1D
  uint32_t group = 0;            // 0 the embeddings, 1 … L the layers, L + 1 the rest
  Start start = Start::kZeros;
  float start_size = 0;  // kNormal: standard deviation; kUniform: the largest magnitude
  int64_t size = 0;      // elements; set by Add
  int64_t offset = 0;    // floats from the start of the memory; set by Add
};

// In the order of the forward pass. Memory for them is `floats()` long and aligned to 64 bytes; so is each tensor.
class TensorList {
 public:
  // Returns the tensor's index.
  int Add(TensorSpec spec);

  absl::Span<const TensorSpec> tensors() const { return tensors_; }
  const TensorSpec& operator[](int index) const { return tensors_[static_cast<size_t>(index)]; }
  int size() const { return static_cast<int>(tensors_.size()); }
  int64_t floats() const { return floats_; }
  // Elements of all tensors, without what alignment adds.
  int64_t parameters() const { return parameters_; }
  // -1 if there is none of this name.
  int Find(absl::string_view name) const;

 private:
  std::vector<TensorSpec> tensors_;
  int64_t floats_ = 0;
  int64_t parameters_ = 0;
};

// Which tensors are trained, by their index in the model's list. Null: all.
using Trainable = const std::vector<bool>*;

// Where a tensor lies in memory that is laid out as the list; null for index -1.
inline const float* TensorAt(const TensorList& tensors, const float* weights, int index) {
  return index < 0 ? nullptr : weights + tensors[index].offset;
}
// Null for a tensor that is not trained, too.
inline float* GradientAt(const TensorList& tensors, float* gradients, int index, Trainable trainable) {
  if (index < 0 || (trainable != nullptr && !(*trainable)[static_cast<size_t>(index)])) return nullptr;
  return gradients + tensors[index].offset;
}

// Fills in a tensor's values [begin, begin + values.size()) at the start of training: a function of seed, index and
// place alone. Normal deviates are Box and Muller's (1958), computed in f64. Requires begin % 4 == 0 and no kRowNorms.
void StartValues(const TensorSpec& spec, int index, uint64_t seed, int64_t begin, absl::Span<float> values);
// All tensors' start values, laid out as the list says.
void StartWeights(const TensorList& tensors, uint64_t seed, float* weights);

}  // namespace millrace::model
