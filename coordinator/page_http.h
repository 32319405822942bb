// Serves the coordinator's pages over HTTP: the dashboard, the rating page, and the requests of both.
//
//   GET  /, /rate, /dashboard.js, …        the pages and what they are made of
//        /api/v1/ratings/…                 ratings_http.h
//   POST /api/v1/jobs/METHOD               a unary call of the Jobs service (docs/api.md): request and reply as JSON
//   GET  /api/v1/events?job=ID&after=N     {"events": [JobEvent, …], "more": whether others are there}: those behind N;
//                                          with steps=last, of a reply's steps only the last
//   GET  /api/v1/checkpoint?job=ID&which=W a checkpoint's files but the optimizer's, as a tar archive
//   POST /api/v1/prompt                    {"job", "which", "prompt", "max_tokens", "temperature", "seed"}: {"text"},
//                                          what a checkpoint's model says
// In JSON fields have their names in the protos, 64-bit numbers are numbers. An error is {"error": {"message": text}}
// with status 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 429, 500 or 503.
//
// Whoever may not call a method of the Jobs service by common/roles.h may not here. With a file of tokens a request
// brings one; without, requests are answered where only this machine's can come and nobody is asked who they are, and
// to that by its own name. So are raters' where they need no token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/access.h"
#include "common/http_server.h"
#include "coordinator/job_book.h"
#include "coordinator/jobs_service.h"
#include "coordinator/ratings_http.h"
#include "nlohmann/json_fwd.hpp"

namespace millrace::coordinator {

// A job file and what it is wrapped in.
inline constexpr size_t kMaxPageBodyBytes = 4 << 20;

struct PromptRequest {
  std::string prompt;
  uint32_t max_tokens = 100;
  double temperature = 0.8;
  uint64_t seed = 1;
};
// What the model in a checkpoint's folder says to a prompt.
using AnswerPrompt = std::function<absl::StatusOr<std::string>(const std::string& directory, const PromptRequest&)>;

// Thread-safe.
class PageHttp {
 public:
  // All outlive it.
  struct Parts {
    std::string directory;  // the coordinator's
    JobsService* jobs = nullptr;
    JobBook* book = nullptr;
    const RatingsHttp* ratings = nullptr;
    Access* access = nullptr;
    bool is_loopback = true;       // nobody else than this machine's users reaches the pages
    bool for_this_machine = true;  // and nobody is asked who they are
    bool raters_have_token = false;
    AnswerPrompt prompt;  // null: models cannot be asked
  };
  explicit PageHttp(Parts parts) : parts_(std::move(parts)) {}

  HttpResponse Answer(const HttpRequest& request);

 private:
  HttpResponse AnswerRatings(const HttpRequest& request) const;
  HttpResponse AnswerJobs(const HttpRequest& request);
  // Who asks, if it may call this method of the Jobs service. UNAUTHENTICATED, PERMISSION_DENIED.
  absl::StatusOr<Caller> Admit(const HttpRequest& request, absl::string_view method) const;
  absl::StatusOr<nlohmann::ordered_json> Events(const HttpRequest& request) const;
  absl::StatusOr<nlohmann::ordered_json> Prompt(const HttpRequest& request);
  absl::StatusOr<HttpResponse> Checkpoint(const HttpRequest& request) const;

  const Parts parts_;
  absl::Mutex prompting_;  // one prompt at a time
};

}  // namespace millrace::coordinator
