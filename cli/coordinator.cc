// millrace coordinator: the role that plans.
#include "coordinator/coordinator.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "cli/page_flags.h"
#include "cli/role_flags.h"
#include "cli/stop_signal.h"
#include "common/status.h"
#include "kernels/compute.h"
#include "model/sampling.h"
#include "ps/conformance.h"
#include "text/readable_text.h"
#include "worker/conformance.h"

namespace millrace::cli {

namespace {

// Half of the machine's cores: the coordinator has its own work to do.
absl::StatusOr<std::string> AnswerPrompt(const std::string& directory, const coordinator::PromptRequest& request) {
  const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency() / 2);
  MILLRACE_RETURN_IF_ERROR(CheckModelFolder(directory));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open,
                            OpenModelFolder(directory, threads, model::Weights::kComputed));
  model::LanguageModel& model = *open->language_model;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, model.EncodeDocument(request.prompt));
  model::SamplingOptions sampling;
  sampling.temperature = request.temperature;
  text::ReadableText readable;
  std::string text;
  MILLRACE_RETURN_IF_ERROR(model.Generate(ids, sampling, request.max_tokens, request.seed, [&](uint32_t id, float) {
    text += readable.Add(model.tokenizer().TokenBytes(id));
    return true;
  }));
  return text + readable.Finish();
}

}  // namespace

absl::Status RunCoordinatorRole(Arguments arguments) {
  std::string directory;
  PageFlags page;
  int64_t shards = 1, units_per_call = 1, jobs_per_user = 0;
  double lease = 10;
  std::string tokens;
  std::vector<std::string> data_roots;
  ServerFlags server;
  Flags flags("coordinator", "Runs the coordinator: takes jobs, leases their work to the members of its cluster.",
              "--dir runs/cluster --listen 0.0.0.0:7400 --shards 2 --tls certs/coordinator --data-root /data");
  flags.Text("dir", "DIR", "jobs, their state and their checkpoints", &directory).Required();
  flags.Integer("shards", "M", "a job starts when so many shards are there", &shards, 1, 1024);
  flags.Number("lease", "SECONDS", "silence after which a member counts as lost", &lease, 0.1, 3600);
  flags.Integer("units-per-call", "N", "work units that a worker gets at once at most", &units_per_call, 1, 1024);
  flags.Integer("jobs-per-user", "N", "unfinished jobs that a user may have; 0: any number", &jobs_per_user, 0,
                1'000'000);
  flags.Text("tokens", "FILE", "who may come with a token, as lines of `millrace certs token`; needs --tls", &tokens);
  flags.List("data-root", "DIR", "jobs may read what lies in it, and nothing outside; several may be given",
             &data_roots);
  page.Declare(&flags);
  server.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_RETURN_IF_ERROR(page.Check());
  if (!tokens.empty() && server.tls.directory.empty()) {
    return UsageError("--tokens: tokens come under TLS only; --tls DIR names the coordinator's certificates");
  }
  server.SetLog();
  StopSignal stop;
  coordinator::CoordinatorOptions options;
  options.directory = directory;
  options.listen = server.listen;
  options.address_file = server.address_file;
  options.metrics_listen = server.metrics;
  options.health_listen = server.health;
  options.http_listen = page.http;
  options.http_token_file = page.token_file;
  options.shards = static_cast<uint32_t>(shards);
  options.jobs_per_user = static_cast<uint32_t>(jobs_per_user);
  options.prompt = &AnswerPrompt;
  options.units_per_call = static_cast<uint32_t>(units_per_call);
  options.lease = absl::Seconds(lease);
  options.heartbeat = absl::Seconds(lease / 10);
  options.worker_conformance_digest = worker::ConformanceDigest(kernels::Compute(kernels::DetectIsa(), 1));
  options.shard_conformance_digest = ps::ConformanceDigest();
  options.tokens_file = tokens;
  options.data_roots = data_roots;
  MILLRACE_ASSIGN_OR_RETURN(options.tls, server.tls.Open());
  options.plaintext = server.plaintext;
  options.stop = stop.notification();
  return coordinator::RunCoordinator(options);
}

}  // namespace millrace::cli
