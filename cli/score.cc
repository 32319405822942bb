// millrace score: how likely a text is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/status.h"
#include "model/masked_scores.h"
#include "nlohmann/json.hpp"
#include "text/readable_text.h"

namespace millrace::cli {
namespace {

struct ScoredToken {
  uint32_t id = 0;
  std::string text;                      // readable; with those before it the text up to here
  std::optional<float> log_probability;  // absent for a token that nothing precedes
};

}  // namespace

absl::Status RunScore(Arguments arguments) {
  std::string text;
  bool json = false;
  ModelFlags model_flags;
  Flags flags("score",
              "Prints how likely a text is: each token's log-probability, perplexity, bits a byte. Of an encoder: each "
              "token's when it alone is hidden, which add up to the pseudo-log-likelihood.",
              "--model runs/quickstart/model --text \"And God said, Let there be light.\"");
  model_flags.Declare(&flags);
  flags.Text("text", "TEXT", "what to score, taken for the beginning of a document", &text).Required();
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (text.empty()) return absl::InvalidArgumentError("--text is empty: there is nothing to score");
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  model::LanguageModel& model = *open->language_model;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, model.EncodeDocument(text));
  const bool encoder = model.encoder_tokens() != nullptr;
  const size_t first = model.tokenizer().end_of_text().has_value() ? 1 : 0;
  // Of the tokens that something precedes, an encoder's of all but what separates documents.
  std::vector<float> predicted;
  if (encoder) {
    MILLRACE_ASSIGN_OR_RETURN(predicted, model::PseudoLogProbabilities(model, absl::MakeConstSpan(ids).subspan(first)));
  } else {
    // In a text longer than the context each prediction sees at least the half of it.
    MILLRACE_ASSIGN_OR_RETURN(predicted, model.LogProbabilities(ids, std::max<int64_t>(1, model.context() / 2)));
  }
  std::vector<ScoredToken> tokens;
  text::ReadableText readable;
  double sum = 0;
  uint64_t bytes = 0;
  for (size_t i = first; i < ids.size(); ++i) {
    const std::string of_token = model.tokenizer().TokenBytes(ids[i]);
    ScoredToken token = {ids[i], readable.Add(of_token), std::nullopt};
    if (i + 1 == ids.size()) token.text += readable.Finish();
    if (encoder || i > 0) {
      token.log_probability = predicted[encoder ? i - first : i - 1];
      sum += *token.log_probability;
      bytes += of_token.size();
    }
    tokens.push_back(std::move(token));
  }
  const size_t predictions = predicted.size();
  const double perplexity = std::exp(-sum / static_cast<double>(predictions));
  const double bits_per_byte = -sum / std::numbers::ln2 / static_cast<double>(bytes);
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const ScoredToken& token : tokens) {
      nlohmann::ordered_json of_token = {{"id", token.id}, {"text", token.text}, {"log_probability", nullptr}};
      if (token.log_probability.has_value()) of_token["log_probability"] = *token.log_probability;
      list.push_back(std::move(of_token));
    }
    const nlohmann::ordered_json result = {
        {"log_probability", sum},         {"predictions", predictions}, {"perplexity", perplexity},
        {"bits_per_byte", bits_per_byte}, {"tokens", std::move(list)},
    };
    std::printf("%s\n", result.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("log-probability  %.4f nats, %zu tokens predicted\n", sum, predictions);
  std::printf("perplexity       %.4f\n", perplexity);
  std::printf("bits a byte      %.4f\n\n", bits_per_byte);
  for (const ScoredToken& token : tokens) {
    if (token.log_probability.has_value()) {
      std::printf("  %9.4f  %s\n", *token.log_probability, text::QuotedText(token.text).c_str());
    } else {
      std::printf("  %9s  %s\n", "-", text::QuotedText(token.text).c_str());
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
