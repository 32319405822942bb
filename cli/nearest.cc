// millrace nearest: tokens whose embeddings are like that of a token.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/readable_text.h"

namespace millrace::cli {
namespace {

// The one token that the text is.
absl::StatusOr<uint32_t> OneToken(const text::Tokenizer& tokenizer, const std::string& text) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, tokenizer.Encode(text));
  if (ids.size() == 1) return ids[0];
  const auto quoted = [&tokenizer](std::string* out, uint32_t id) {
    absl::StrAppend(out, text::QuotedText(tokenizer.TokenBytes(id)));
  };
  return absl::InvalidArgumentError(
      absl::StrCat("--token ", text::QuotedText(text), " is not one token of this model but ", ids.size(), ": ",
                   absl::StrJoin(ids, " ", quoted), "; most words that follow a space are tokens with that space"));
}

}  // namespace

absl::Status RunNearest(Arguments arguments) {
  std::string token;
  int64_t count = 10;
  bool json = false;
  ModelFlags model_flags;
  Flags flags("nearest", "Lists the tokens whose embeddings are nearest to that of a token, by cosine.",
              "--model runs/quickstart/model --token \" king\"");
  model_flags.Declare(&flags);
  flags.Text("token", "TEXT", "one token's text, with the space that begins it if any", &token).Required();
  flags.Integer("count", "N", "how many", &count, 1, 1 << 20);
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (token.empty()) return absl::InvalidArgumentError("--token is empty");
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  const text::Tokenizer& tokenizer = open->language_model->tokenizer();
  MILLRACE_ASSIGN_OR_RETURN(const uint32_t id, OneToken(tokenizer, token));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<model::LanguageModel::Neighbour> neighbours,
                            open->language_model->Nearest(id, count));
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const model::LanguageModel::Neighbour& neighbour : neighbours) {
      list.push_back({{"id", neighbour.id},
                      {"token", text::ReadableTextOf(tokenizer.TokenBytes(neighbour.id))},
                      {"similarity", neighbour.similarity}});
    }
    const nlohmann::ordered_json result = {
        {"id", id}, {"token", text::ReadableTextOf(token)}, {"neighbours", std::move(list)}};
    std::printf("%s\n", result.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("nearest to %s:\n", text::QuotedText(token).c_str());
  for (const model::LanguageModel::Neighbour& neighbour : neighbours) {
    std::printf("  %7.4f  %s\n", neighbour.similarity, text::QuotedText(tokenizer.TokenBytes(neighbour.id)).c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
