// millrace embed: a text as a vector.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::cli {

absl::Status RunEmbed(Arguments arguments) {
  std::string text;
  bool json = false;
  ModelFlags model_flags;
  Flags flags("embed",
              "Prints a text as a vector: the mean of the model's last outputs over its tokens (the last ones that the "
              "context holds). An encoder's see those behind them too.",
              "--model runs/quickstart/model --text \"the king\" --json");
  model_flags.Declare(&flags);
  flags.Text("text", "TEXT", "what to embed", &text).Required();
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (text.empty()) return absl::InvalidArgumentError("--text is empty: there is nothing to embed");
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  model::LanguageModel& model = *open->language_model;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, model.EncodeDocument(text));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<float> embedding, model.Embed(ids));
  if (json) {
    std::printf("%s\n", nlohmann::ordered_json{{"embedding", embedding}}.dump().c_str());
  } else {
    const auto number = [](std::string* out, float value) { absl::StrAppendFormat(out, "%.6g", value); };
    std::printf("%s\n", absl::StrJoin(embedding, " ", number).c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
