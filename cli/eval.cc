// millrace eval: how well a model predicts the text of files, and how well models do tasks.
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
#include "absl/types/span.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/progress.h"
#include "common/status.h"
#include "common/yaml_message.h"
#include "evaluation/questions.h"
#include "evaluation/report.h"
#include "evaluation/run_task.h"
#include "evaluation/tasks_file.h"
#include "model/masked_scores.h"
#include "nlohmann/json.hpp"
#include "text/corpus.h"
#include "text/readable_text.h"
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

struct TasksFlags {
  std::string out;
  bool allow_programs = false;
  bool json = false;
};

// How well an encoder tells what is hidden in the text.
absl::Status EvaluateHidden(const Documents& text, const model::LanguageModel& model, bool pairs, bool json) {
  v1::MaskSpec mask;
  mask.set_next_sentence(pairs);
  FillRuleDefaults(&mask);
  MILLRACE_ASSIGN_OR_RETURN(const model::MaskedScores scores, model::ScoreHidden(model, text.tokens, mask));
  if (json) {
    nlohmann::ordered_json result = {{"masked_loss", scores.masked_loss}, {"masked_accuracy", scores.masked_accuracy}};
    if (pairs) result["next_sentence_accuracy"] = scores.next_sentence_accuracy;
    result.update({{"sequences", scores.sequences},
                   {"hidden", scores.hidden},
                   {"tokens", text.tokens.size()},
                   {"documents", text.documents},
                   {"skipped", text.skips.size()}});
    std::printf("%s\n", result.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("masked loss             %.4f nats a hidden token\n", scores.masked_loss);
  std::printf("masked accuracy         %.2f %%\n", 100 * scores.masked_accuracy);
  if (pairs) std::printf("next-sentence accuracy  %.2f %%\n", 100 * scores.next_sentence_accuracy);
  std::printf("text                    %s sequences, %s hidden tokens, %s document%s\n",
              ShortCount(static_cast<double>(scores.sequences)).c_str(),
              ShortCount(static_cast<double>(scores.hidden)).c_str(),
              ShortCount(static_cast<double>(text.documents)).c_str(), text.documents == 1 ? "" : "s");
  return absl::OkStatus();
}

struct TextFlags {
  int64_t stride = 0;
  bool single = false;
  bool json = false;
};

// How well the model predicts the text at `path`.
absl::Status EvaluateText(const std::string& path, const ModelFlags& model_flags, const TextFlags& how) {
  const int64_t stride = how.stride;
  const bool json = how.json;
  MILLRACE_ASSIGN_OR_RETURN(const text::SourceFiles found, FindData(path));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  model::LanguageModel& model = *open->language_model;
  MILLRACE_ASSIGN_OR_RETURN(const Documents text, ReadAll(found, model));
  for (const std::string& skip : text.skips) std::fprintf(stderr, "left out: %s\n", skip.c_str());
  if (text.documents == 0) return absl::InvalidArgumentError(absl::StrCat(path, " holds no text"));
  if (model.encoder_tokens() != nullptr) {
    if (stride > 0) return UsageError("--stride: an encoder sees whole sequences");
    return EvaluateHidden(text, model, !how.single, json);
  }
  if (how.single) return UsageError("--single is for encoders");
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

// How well each of the models does the tasks of a file.
absl::Status EvaluateTasks(const std::string& path, const std::vector<std::string>& models,
                           const ModelFlags& model_flags, const TasksFlags& how) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::TasksFile tasks, evaluation::ReadTasksFile(path));
  if (!how.out.empty()) MILLRACE_RETURN_IF_ERROR(evaluation::CheckNewReport(how.out));
  const evaluation::RunOptions options = {std::filesystem::path(path).parent_path().string(), how.allow_programs};
  std::vector<std::vector<evaluation::Question>> questions;
  for (const v1::TaskSpec& task : tasks.tasks()) {
    MILLRACE_RETURN_IF_ERROR(evaluation::CheckAllowed(task, options));
    MILLRACE_ASSIGN_OR_RETURN(questions.emplace_back(), evaluation::MakeQuestions(task, options.folder));
  }
  // A model that is not there is not found out after hours with the first one.
  std::vector<ModelSource> sources;
  for (const std::string& name : models) {
    MILLRACE_ASSIGN_OR_RETURN(ModelSource source, ModelSource::Find(name, model_flags.where));
    sources.push_back(std::move(source));
  }
  std::vector<evaluation::ModelResults> results;
  for (size_t index = 0; index < models.size(); ++index) {
    const std::string& name = models[index];
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open,
                              model_flags.Open(sources[index], model::Weights::kComputed));
    if (absl::Status extends = open->language_model->network().CheckExtends(); !extends.ok()) {
      return Annotate(extends, absl::StrCat("--tasks: ", name));
    }
    const evaluation::ModelInUse model = {open->language_model.get(), &open->compute,
                                          open->chat_template.ok() ? &*open->chat_template : nullptr};
    evaluation::ModelResults& of_model = results.emplace_back();
    of_model.name = text::ReadableTextOf(name);
    for (int i = 0; i < tasks.tasks_size(); ++i) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), tasks.tasks(i).name().c_str());
      absl::StatusOr<evaluation::TaskResult> result =
          evaluation::RunTask(tasks.tasks(i), questions[static_cast<size_t>(i)], model, options);
      if (!result.ok()) return Annotate(result.status(), name);
      of_model.tasks.push_back(*std::move(result));
    }
  }
  const nlohmann::ordered_json report = evaluation::MakeReport(tasks, results);
  if (!how.out.empty()) MILLRACE_RETURN_IF_ERROR(evaluation::WriteReport(how.out, report, tasks, results));
  std::printf("%s", how.json ? absl::StrCat(report.dump(2), "\n").c_str() : evaluation::TableOf(report).c_str());
  return absl::OkStatus();
}

}  // namespace

absl::Status RunEval(Arguments arguments) {
  std::string data, tasks;
  std::vector<std::string> models;
  int64_t stride = 0;
  bool single = false;
  TasksFlags how;
  ModelFlags model_flags;
  Flags flags(
      "eval",
      "Prints how well a model predicts text: loss, perplexity, bits a byte, or of an encoder how well it tells "
      "hidden tokens and whether one piece of text follows another; or how well one or several do the tasks "
      "of a file (docs/evaluation.md), side by side.",
      "--model runs/quickstart/model --data runs/quickstart/data/held_out.txt");
  model_flags.DeclareForSeveral(&flags, &models);
  flags.Text("data", "PATH", "a file, each one document (.jsonl: each line), also .gz or .zst; a folder or a glob",
             &data);
  flags.Integer("stride", "N",
                "with --data: tokens from one window of the model's context to the next; a small one lets each "
                "prediction see a long past; 0: the context, as in training",
                &stride, 0, 1 << 30);
  flags.Switch("single",
               "with --data, of encoders: sequences are one piece of text, as mask.next_sentence: false trains",
               &single);
  flags.Text("tasks", "FILE", "tasks to do, instead of --data", &tasks);
  flags.Text("out", "DIR", "with --tasks: a folder for what each model said to each example", &how.out);
  flags.Switch("allow-programs", "with --tasks: lets tasks run their programs on what the model has generated",
               &how.allow_programs);
  flags.Switch("json", "prints an object", &how.json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (data.empty() == tasks.empty()) return UsageError("--data and --tasks: one of them");
  for (const char* flag : {"out", "allow-programs"}) {
    if (tasks.empty() && flags.given(flag)) return UsageError(absl::StrCat("--", flag, " goes with --tasks"));
  }
  if (!tasks.empty()) {
    for (const char* flag : {"stride", "single"}) {
      if (flags.given(flag)) return UsageError(absl::StrCat("--", flag, " goes with --data"));
    }
    return EvaluateTasks(tasks, models, model_flags, how);
  }
  if (models.size() != 1) return UsageError("several models are compared with --tasks only");
  model_flags.model = models[0];
  return EvaluateText(data, model_flags, {stride, single, how.json});
}

}  // namespace millrace::cli
