// millrace eval: how well a model predicts the text of files.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/progress.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/corpus.h"
#include "text/sources.h"

namespace millrace::cli {
namespace {

// A file that exists is read whatever its name is; folders and globs as a job's sources are.
absl::StatusOr<text::SourceFiles> FindData(const std::string& path) {
  std::error_code error;
  if (const auto status = std::filesystem::status(path, error);
      std::filesystem::exists(status) && !std::filesystem::is_directory(status)) {
    const absl::StatusOr<text::Format> format = text::FormatOf(path);
    text::SourceFiles found;
    found.files.push_back({path, path, format.ok() ? *format : text::Format::kText, "text", true});
    return found;
  }
  v1::DataSpec data;
  data.add_sources()->set_path(path);
  absl::StatusOr<text::SourceFiles> found = text::FindSources(data, "");
  if (found.ok()) return found;
  return absl::Status(found.status().code(),
                      absl::StrCat("--data: ", absl::StripPrefix(found.status().message(), "data.sources[0]: ")));
}

struct Documents {
  std::vector<uint32_t> tokens;  // each document as EncodeDocument gives it, one after another
  uint64_t documents = 0;
  std::vector<std::string> skips;
};

absl::StatusOr<Documents> ReadAll(const text::SourceFiles& found, const model::LanguageModel& model) {
  Documents all;
  all.skips = found.skips;
  for (const text::SourceFile& file : found.files) {
    text::CorpusSink sink;
    sink.skip = [&all](std::string why) { all.skips.push_back(std::move(why)); };
    sink.document = [&](absl::string_view document) -> absl::Status {
      const absl::StatusOr<std::vector<uint32_t>> ids = model.EncodeDocument(document);
      if (!ids.ok()) return Annotate(ids.status(), file.shown);
      all.tokens.insert(all.tokens.end(), ids->begin(), ids->end());
      ++all.documents;
      return absl::OkStatus();
    };
    MILLRACE_RETURN_IF_ERROR(text::ReadDocuments(file, {}, sink));
  }
  return all;
}

}  // namespace

absl::Status RunEval(Arguments arguments) {
  std::string path;
  int64_t stride = 0;
  bool json = false;
  ModelFlags model_flags;
  Flags flags("eval", "Prints how well a model predicts text: loss, perplexity, bits a byte.",
              "--model runs/quickstart/model --data runs/quickstart/data/held_out.txt");
  model_flags.Declare(&flags);
  flags
      .Text("data", "PATH", "a file, each one document (.jsonl: each line), also .gz or .zst; a folder or a glob",
            &path)
      .Required();
  flags.Integer("stride", "N",
                "tokens from one window of the model's context to the next; a small one lets each "
                "prediction see a long past; 0: the context, as in training",
                &stride, 0, 1 << 30);
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const text::SourceFiles found, FindData(path));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  model::LanguageModel& model = *open->language_model;
  MILLRACE_ASSIGN_OR_RETURN(const Documents text, ReadAll(found, model));
  for (const std::string& skip : text.skips) std::fprintf(stderr, "left out: %s\n", skip.c_str());
  if (text.documents == 0) return absl::InvalidArgumentError(absl::StrCat(path, " holds no text"));
  if (stride > model.context()) {
    return UsageError(absl::StrCat("--stride ", stride, " is more than the model's context of ", model.context()));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<float> predicted,
                            model.LogProbabilities(text.tokens, stride > 0 ? stride : model.context()));
  double sum = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < predicted.size(); ++i) {
    sum += predicted[i];
    const uint32_t id = text.tokens[i + 1];
    if (!model.tokenizer().IsSpecial(id)) bytes += model.tokenizer().TokenBytes(id).size();
  }
  const auto predictions = static_cast<double>(predicted.size());
  const double loss = -sum / predictions;
  const double bits_per_byte = -sum / std::numbers::ln2 / static_cast<double>(bytes);
  if (json) {
    const nlohmann::ordered_json result = {
        {"loss", loss},
        {"perplexity", std::exp(loss)},
        {"bits_per_byte", bits_per_byte},
        {"predictions", predicted.size()},
        {"bytes", bytes},
        {"tokens", text.tokens.size()},
        {"documents", text.documents},
        {"skipped", text.skips.size()},
        {"stride", stride > 0 ? stride : model.context()},
    };
    std::printf("%s\n", result.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("loss         %.4f nats a token\n", loss);
  std::printf("perplexity   %.4f\n", std::exp(loss));
  std::printf("bits a byte  %.4f\n", bits_per_byte);
  std::printf("text         %s tokens, %s bytes predicted, %s document%s\n", ShortCount(predictions).c_str(),
              ShortCount(static_cast<double>(bytes)).c_str(), ShortCount(static_cast<double>(text.documents)).c_str(),
              text.documents == 1 ? "" : "s");
  return absl::OkStatus();
}

}  // namespace millrace::cli
