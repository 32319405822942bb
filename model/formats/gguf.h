// Writes GGUF files (version 3), which llama.cpp and programs around it read.
//
//   file    = "GGUF" u32 3, u64 tensors, u64 pairs; pair…; tensor…; zeros to a multiple of 32; data…
//   pair    = string key, u32 type, value                types: 4 u32, 5 i32, 6 f32, 7 bool, 8 string, 9 array
//   array   = u32 type of the elements, u64 count, values
//   string  = u64 bytes, UTF-8
//   tensor  = string name, u32 dimensions, u64 each (the innermost first), u32 type, u64 offset in the data
//             types: 0 F32, 1 F16, 8 Q8_0, 30 BF16
//   data    = a tensor's values (model/formats/dtype.h), zeros to a multiple of 32
//
// All little-endian. Names of keys and tensors are those that llama.cpp's loader asks for. Architectures: gpt2, llama
// (mistral too: the same graph) and qwen2. Where their layouts differ from Hugging Face's:
//   - GPT-2's matrices [inputs, outputs] are written [outputs, inputs]; biases that a model lacks are zeros;
//   - llama's rotary pairs lie side by side: of each head, rows (2, size / 2) of q and k become (size / 2, 2). Not
//     qwen2's;
//   - no sliding window is known for these: the context is the window's if that is shorter, up to where both are equal.
//
// Matrices are stored as the configuration's dtype; vectors, GPT-2's position table and, with q8_0, rows that are no
// whole number of blocks stay F32.
//
// A byte-level BPE is "gpt2" with the pre-tokenizer "gpt-2". One token a character is said by "rwkv", which takes the
// longest token at each place; its vocabulary is written with the escapes \\, \t, \n, \r and \xHH.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "model/formats/config_json.h"
#include "model/tensor_list.h"
#include "text/tokenizer.h"

namespace millrace::model {

// What a GGUF file holds beside the weights.
struct GgufAbout {
  std::string name;           // general.name
  std::string chat_template;  // Jinja; empty: none
};

// Writes `path` atomically. The weights, laid out as the list says, pass through a small buffer. INVALID_ARGUMENT for a
// scalar head; a value that f16 does not hold, naming the tensor; and a tokenizer that llama.cpp cannot have, saying
// why: a BPE without a token that ends texts, two tokens that are written alike, or characters beyond ASCII, at whose
// unknown neighbours its loop would not end.
absl::Status WriteGguf(const std::string& path, const Configuration& configuration, const TensorList& tensors,
                       const float* memory, const text::Tokenizer& tokenizer, const GgufAbout& about);

}  // namespace millrace::model
