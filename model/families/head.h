// Names what a decoder's outputs are turned into.
#pragma once

namespace millrace::model {

enum class Head {
  kLanguage,  // logits of the next token, by the output embedding [vocab_size, hidden_size]
  kScalar,    // one number a token, by "score.weight" [1, hidden_size]: a reward or a value (Hugging Face's
              // …ForSequenceClassification with one label)
};

}  // namespace millrace::model
