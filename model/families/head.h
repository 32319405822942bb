// Names what a network's outputs are turned into.
#pragma once

#include "model/layers/linear.h"
#include "model/layers/norm.h"

namespace millrace::model {

enum class Head {
  kLanguage,  // logits: of the next token, by the output embedding [vocab_size, hidden_size]; an encoder's by
              // MaskedHead
  kScalar,    // one number a token, by "score.weight" [1, hidden_size]: a reward or a value (Hugging Face's
              // …ForSequenceClassification with one label)
};

// What turns an encoder's outputs h into predictions (Devlin et al. 2019, "BERT"), as indices into its tensors, all of
// the last group:
//
//   logits of a hidden token = E LayerNorm(GELU(transform(h of its place))) + bias,  E: the input embedding
//   logits of whether the second piece of text follows the first one: yes, no
//                            = next_sentence(tanh(pooler(h of the sequence's first token)))
struct MaskedHead {
  LinearTensors pooler;         // [hidden_size, hidden_size]; the first of the group
  int bias = -1;                // [vocab_size]
  LinearTensors transform;      // [hidden_size, hidden_size]
  NormTensors norm;             // [hidden_size]
  LinearTensors next_sentence;  // [2, hidden_size]
};

}  // namespace millrace::model
