// millrace data prepare, data stats: what a job's text becomes.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/submission.h"
#include "common/job_file.h"
#include "common/progress.h"
#include "common/status.h"
#include "coordinator/job_data.h"
#include "nlohmann/json.hpp"
#include "text/example_store.h"
#include "text/token_store.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string Count(uint64_t number) { return ShortCount(static_cast<double>(number)); }

Json JsonOf(const text::DataReport& report) {
  return {
      {"documents", report.documents},
      {"duplicates", report.duplicates},
      {"skipped", report.skipped},
      {"skips", report.skips},
      {"train_documents", report.train_documents},
      {"held_out_documents", report.held_out_documents},
      {"train_bytes", report.train_bytes},
      {"held_out_bytes", report.held_out_bytes},
      {"train_tokens", report.train_tokens},
      {"held_out_tokens", report.held_out_tokens},
      {"vocab_size", report.vocab_size},
  };
}

Json JsonOf(const text::ExampleReport& report) {
  return {
      {"examples", report.examples},
      {"duplicates", report.duplicates},
      {"skipped", report.skipped},
      {"skips", report.skips},
      {"truncated", report.truncated},
      {"train_examples", report.train_examples},
      {"held_out_examples", report.held_out_examples},
      {"train_tokens", report.train_tokens},
      {"held_out_tokens", report.held_out_tokens},
      {"train_scored", report.train_scored},
      {"held_out_scored", report.held_out_scored},
      {"vocab_size", report.vocab_size},
  };
}

// The end of either.
template <typename Report>
void PrintLeftOut(const Report& report) {
  std::printf("vocabulary of %u; %s duplicates and %s others left out\n", report.vocab_size,
              Count(report.duplicates).c_str(), Count(report.skipped).c_str());
  for (const std::string& skip : report.skips) std::printf("  %s\n", skip.c_str());
  if (report.skipped > report.skips.size()) std::printf("  …\n");
}

void Print(const text::DataReport& report) {
  const auto part = [](const char* name, uint64_t documents, uint64_t bytes, uint64_t tokens) {
    std::printf("%-9s %8s bytes  %8s tokens  %8s document%s\n", name, Count(bytes).c_str(), Count(tokens).c_str(),
                Count(documents).c_str(), documents == 1 ? "" : "s");
  };
  part("train", report.train_documents, report.train_bytes, report.train_tokens);
  part("held out", report.held_out_documents, report.held_out_bytes, report.held_out_tokens);
  PrintLeftOut(report);
}

void Print(const text::ExampleReport& report) {
  const auto part = [](const char* name, uint64_t examples, uint64_t tokens, uint64_t scored) {
    std::printf("%-9s %8s tokens, %8s of them learnt  %8s example%s\n", name, Count(tokens).c_str(),
                Count(scored).c_str(), Count(examples).c_str(), examples == 1 ? "" : "s");
  };
  part("train", report.train_examples, report.train_tokens, report.train_scored);
  part("held out", report.held_out_examples, report.held_out_tokens, report.held_out_scored);
  if (report.truncated > 0) std::printf("%s were cut to fit the context\n", Count(report.truncated).c_str());
  PrintLeftOut(report);
}

void Print(const Json& json) { std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str()); }

absl::Status RunDataPrepare(Arguments arguments) {
  std::string job_file, out;
  std::vector<std::string> overrides;
  text::PrepareOptions options;
  bool json = false;
  Flags flags("data prepare",
              "Reads and cleans a job's text, and its phases', and makes tokens of it, as training does.",
              "examples/tiny.yaml --out runs/tiny-data");
  flags.Positional("JOB.yaml", "the job file (docs/job-file.md)", &job_file).Required();
  flags.Text("out", "DIR", "folder for the tokens; nothing is done if it holds those of the same text", &out)
      .Required();
  flags.Switch("text", "writes the cleaned text too: train.txt and held_out.txt", &options.write_text);
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file, as in tokenizer.vocab_size=1024", &overrides);
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const v1::SubmitJobRequest job, ReadSubmission(job_file, overrides));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<text::DataReport> text,
                            coordinator::PrepareJobData(job.spec(), job.base_directory(), out, options));
  Json all = text.has_value() ? JsonOf(*text) : Json::object();
  if (text.has_value() && !json) Print(*text);
  for (const v1::PhaseSpec& phase : job.spec().phases()) {
    // What people will say is not known.
    if (!phase.has_data() || LearnsFromRatings(phase)) continue;
    const absl::StatusOr<coordinator::PhaseReport> report = coordinator::PreparePhaseData(
        job.spec(), phase, job.base_directory(), out, absl::StrCat(out, "/phases/", phase.name()));
    if (!report.ok()) return Annotate(report.status(), absl::StrCat("phase ", phase.name()));
    if (!json) std::printf("phase %s\n", phase.name().c_str());
    std::visit(
        [&](const auto& of) {
          all["phases"][phase.name()] = JsonOf(of);
          if (!json) Print(of);
        },
        *report);
  }
  if (json) Print(all);
  return absl::OkStatus();
}

absl::Status RunDataStats(Arguments arguments) {
  std::string directory;
  bool json = false;
  Flags flags("data stats", "Checks prepared data and prints what the text became.", "runs/tiny-data");
  flags
      .Positional("DIR", "folder that `millrace data prepare` made (of a phase: DIR/phases/PHASE), or a job's",
                  &directory)
      .Required();
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  const auto show = [json](const auto& report) {
    if (json) {
      Print(JsonOf(report));
    } else {
      Print(report);
    }
    return absl::OkStatus();
  };
  if (std::filesystem::exists(absl::StrCat(directory, "/train.examples"))) {
    MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const text::ExampleStore> store,
                              text::ExampleStore::Open(directory));
    return show(store->report());
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const text::TokenStore> store, text::TokenStore::Open(directory));
  return show(store->report());
}

constexpr char kHelp[] =
    "Prepares a job's text, and tells what it became.\n\n"
    "  millrace data prepare JOB.yaml --out DIR    makes tokens of a job's text\n"
    "  millrace data stats DIR                     tells what the text became\n\n"
    "`millrace data prepare --help` and `millrace data stats --help` say more.\n\n"
    "Example:\n  millrace data prepare examples/tiny.yaml --out runs/tiny-data\n";

}  // namespace

absl::Status RunData(Arguments arguments) {
  static constexpr CommandGroup::Part kParts[] = {{"prepare", RunDataPrepare}, {"stats", RunDataStats}};
  return RunGroup(
      {"data", kParts, "data prepare and data stats", "`millrace data prepare` or `millrace data stats`", kHelp},
      arguments);
}

}  // namespace millrace::cli
