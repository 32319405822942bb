// millrace serve: answers over HTTP with models.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "cli/stop_signal.h"
#include "common/log.h"
#include "common/machine.h"
#include "common/metrics.h"
#include "common/status.h"
#include "coordinator/ratings_http.h"
#include "serve/http.h"
#include "text/chat_template.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

// Seats for which nobody asked: so many at most, in this share of the memory that is free.
constexpr uint64_t kDefaultSequences = 64;
constexpr uint64_t kMemoryShare = 4;

struct NamedModel {
  std::string name;
  std::string model;  // as --model of the other commands
};

// NAME=MODEL, or MODEL, whose name is its last part.
NamedModel SplitName(const std::string& argument) {
  std::error_code error;
  if (const size_t equals = argument.find('='); equals != std::string::npos && !fs::exists(argument, error)) {
    return {argument.substr(0, equals), argument.substr(equals + 1)};
  }
  fs::path path(argument);
  if (!path.has_filename()) path = path.parent_path();
  return {path.filename().string(), argument};
}

serve::ServedModel Served(const std::string& name, const OpenModel& open, const kernels::Compute* compute,
                          model::NetworkWeights weights) {
  const model::LanguageModel& language_model = *open.language_model;
  serve::ServedModel served;
  served.name = name;
  served.compute = compute;
  served.network = &language_model.network();
  served.weights = weights;
  served.tokenizer = &language_model.tokenizer();
  if (!open.chat_template.ok()) {
    served.no_chat = absl::IsNotFound(open.chat_template.status()) ? "its folder says nothing of how it is asked"
                                                                   : std::string(open.chat_template.status().message());
    return served;
  }
  const absl::StatusOr<uint32_t> end = text::EndOfTurn(*open.chat_template, language_model.tokenizer());
  if (!end.ok()) {
    served.no_chat = std::string(end.status().message());
    return served;
  }
  served.chat_template = &*open.chat_template;
  served.end_of_turn = *end;
  return served;
}

}  // namespace

absl::Status RunServe(Arguments arguments) {
  std::vector<std::string> models, adapters;
  std::string host = "127.0.0.1", token_file;
  int64_t port = 8000, threads = 0, sequences = 0, patience = 30;
  bool log_json = false;
  serve::ServerOptions options;
  CoordinatorFlags where;
  Flags flags("serve",
              "Answers over HTTP with models, as OpenAI's API does (docs/serving.md). The first Ctrl-C lets what is "
              "under way finish.",
              "--model runs/quickstart/model --port 8000");
  flags
      .List("model", "[NAME=]M",
            "folder or JOB, JOB@best, JOB@last, JOB@STEP, and its name; may be given several times", &models)
      .Required();
  flags.List("adapter", "[NAME=]DIR",
             "folder of an adapter and the name under which the first model is served with it; may be given several "
             "times",
             &adapters);
  flags.Text("host", "HOST", "address at which to serve; nothing is encrypted", &host);
  flags.Integer("port", "P", "0: any, which is printed", &port, 0, 65535);
  flags.Text("api-token-file", "FILE", "file with the secret that requests must bring; default: none", &token_file);
  flags.Integer("sequences", "S", "answers under way together, for each model; 0: as memory allows; 1: no batching",
                &sequences, 0, 4096);
  flags.Integer("queue", "Q", "sequences that may wait for their turn; further requests are told to come again",
                &options.engine.waiting, 1, 1 << 20);
  flags.Integer("prompt-tokens", "T", "of prompts, read in one step: fewer let answers beside them flow",
                &options.engine.prompt_tokens, 1, 1 << 20);
  flags.Integer("patience", "SECONDS", "with a client that neither reads nor writes", &patience, 1, 3600);
  flags.Integer("threads", "T", "that compute, for each model; 0: one for each core", &threads, 0, 1024);
  flags.Switch("log-json", "writes each line of the log as a JSON object", &log_json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  SetLogOutput(stderr, log_json);
  if (!token_file.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(options.token, coordinator::ReadHttpToken(token_file));
  }
  // Before any other thread.
  StopSignal stop;
  std::vector<std::unique_ptr<OpenModel>> open;
  std::vector<std::unique_ptr<kernels::Compute>> computes;  // of adapters
  std::list<model::ActiveAdapter> active;
  std::vector<serve::ServedModel> served;
  std::vector<std::string> names;
  uint64_t sequence_bytes = 1;
  for (const std::string& argument : models) {
    const NamedModel named = SplitName(argument);
    if (named.name.empty() || named.model.empty()) {
      return UsageError(absl::StrCat("--model ", argument, ": name a folder, as NAME=FOLDER or FOLDER"));
    }
    MILLRACE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Find(named.model, where));
    MILLRACE_ASSIGN_OR_RETURN(open.emplace_back(),
                              OpenModelFolder(source.directory(), threads, model::Weights::kComputed));
    if (absl::Status extends = open.back()->language_model->network().CheckExtends(); !extends.ok()) {
      return Annotate(extends, absl::StrCat("--model ", argument));
    }
    served.push_back(Served(named.name, *open.back(), &open.back()->compute, open.back()->language_model->weights()));
    names.push_back(named.name);
    sequence_bytes = std::max(sequence_bytes, served.back().network->SequenceBytes());
  }
  model::LanguageModel& base = *open.front()->language_model;
  for (const std::string& argument : adapters) {
    const NamedModel named = SplitName(argument);
    if (named.name.empty() || named.model.empty()) {
      return UsageError(absl::StrCat("--adapter ", argument, ": name a folder, as NAME=FOLDER or FOLDER"));
    }
    MILLRACE_ASSIGN_OR_RETURN(const size_t number, base.LoadAdapter(named.model));
    active.push_back(base.adapter(number).active());
    computes.push_back(
        std::make_unique<kernels::Compute>(open.front()->compute.isa(), open.front()->compute.threads()));
    served.push_back(Served(named.name, *open.front(), computes.back().get(),
                            {base.weights().base, absl::MakeConstSpan(&active.back(), 1)}));
    names.push_back(named.name);
  }
  const uint64_t fitting = AvailableMemory() / kMemoryShare / served.size() / sequence_bytes;
  options.engine.sequences =
      sequences > 0 ? sequences : static_cast<int64_t>(std::clamp<uint64_t>(fitting, 1, kDefaultSequences));
  options.listen = absl::StrCat(host, ":", port);
  options.patience = absl::Seconds(patience);
  std::random_device random;
  options.first_seed = random() | uint64_t{random()} << 32;

  Metrics metrics;
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<serve::Server> server,
                            serve::Server::Start(options, served, &metrics));
  std::printf("serving %s at http://%s\n", absl::StrJoin(names, ", ").c_str(), server->address().c_str());
  std::fflush(stdout);
  Log(Severity::kInfo, "serving",
      {{"models", absl::StrJoin(names, ",")}, {"address", server->address()}, {"sequences", options.engine.sequences}});
  stop.notification()->WaitForNotification();
  Log(Severity::kInfo, "finishing what is under way");
  server->Drain();
  return absl::OkStatus();
}

}  // namespace millrace::cli
