// millrace data prepare, data stats: what a job's text becomes.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/submission.h"
#include "common/progress.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/token_store.h"

namespace millrace::cli {
namespace {

void Print(const text::DataReport& report, bool json) {
  if (json) {
    const nlohmann::ordered_json result = {
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
    std::printf("%s\n", result.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return;
  }
  const auto count = [](uint64_t number) { return ShortCount(static_cast<double>(number)); };
  const auto part = [&count](const char* name, uint64_t documents, uint64_t bytes, uint64_t tokens) {
    std::printf("%-9s %8s bytes  %8s tokens  %8s document%s\n", name, count(bytes).c_str(), count(tokens).c_str(),
                count(documents).c_str(), documents == 1 ? "" : "s");
  };
  part("train", report.train_documents, report.train_bytes, report.train_tokens);
  part("held out", report.held_out_documents, report.held_out_bytes, report.held_out_tokens);
  std::printf("vocabulary of %u; %s duplicates and %s others left out\n", report.vocab_size,
              count(report.duplicates).c_str(), count(report.skipped).c_str());
  for (const std::string& skip : report.skips) std::printf("  %s\n", skip.c_str());
  if (report.skipped > report.skips.size()) std::printf("  …\n");
}

absl::Status RunDataPrepare(Arguments arguments) {
  std::string job_file, out;
  std::vector<std::string> overrides;
  text::PrepareOptions options;
  bool json = false;
  Flags flags("data prepare", "Reads and cleans a job's text and makes tokens of it, as training does.",
              "examples/tiny.yaml --out runs/tiny-data");
  flags.Positional("JOB.yaml", "the job file (docs/job-file.md)", &job_file).Required();
  flags.Text("out", "DIR", "folder for the tokens; nothing is done if it holds those of the same text", &out)
      .Required();
  flags.Switch("text", "writes the cleaned text too: train.txt and held_out.txt", &options.write_text);
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file, as in tokenizer.vocab_size=1024", &overrides);
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const v1::SubmitJobRequest job, ReadSubmission(job_file, overrides));
  MILLRACE_ASSIGN_OR_RETURN(const text::DataReport report,
                            text::PrepareData(job.spec(), job.base_directory(), out, options));
  Print(report, json);
  return absl::OkStatus();
}

absl::Status RunDataStats(Arguments arguments) {
  std::string directory;
  bool json = false;
  Flags flags("data stats", "Checks prepared data and prints what the text became.", "runs/tiny-data");
  flags.Positional("DIR", "folder that `millrace data prepare` made, or a job's data folder", &directory).Required();
  flags.Switch("json", "prints an object", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const text::TokenStore> store, text::TokenStore::Open(directory));
  Print(store->report(), json);
  return absl::OkStatus();
}

constexpr char kHelp[] =
    "Prepares a job's text, and tells what it became.\n\n"
    "  millrace data prepare JOB.yaml --out DIR    makes tokens of a job's text\n"
    "  millrace data stats DIR                     tells what the text became\n\n"
    "`millrace data prepare --help` and `millrace data stats --help` say more.\n\n"
    "Example:\n  millrace data prepare examples/tiny.yaml --out runs/tiny-data\n";

}  // namespace

absl::Status RunData(Arguments arguments) {
  if (arguments.empty()) return UsageError("data does what? `millrace data prepare` or `millrace data stats`");
  const std::string& name = arguments[0];
  if (name == "prepare") return RunDataPrepare(arguments.subspan(1));
  if (name == "stats") return RunDataStats(arguments.subspan(1));
  if (name == "--help" || name == "-h") {
    std::fputs(kHelp, stdout);
    return absl::OkStatus();
  }
  const std::string nearest = Nearest(name, std::vector<std::string>{"prepare", "stats"});
  return UsageError(absl::StrCat(
      "there is no command 'data ", name, "'; ",
      nearest.empty() ? "there are data prepare and data stats" : absl::StrCat("did you mean data ", nearest, "?")));
}

}  // namespace millrace::cli
