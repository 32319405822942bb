// Requests to the coordinator's pages: a first line with the path, a second with the query, then the body. Any bytes
// get an answer that says what is wrong with them, or what they ask for; none is an error of the server's own. The
// jobs, the sweeps and the ratings of the requests before are there.
#include <google/protobuf/descriptor.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/access.h"
#include "common/log.h"
#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "coordinator/job_store.h"
#include "coordinator/jobs_service.h"
#include "coordinator/members.h"
#include "coordinator/page_http.h"
#include "coordinator/rating_store.h"
#include "coordinator/ratings_http.h"
#include "coordinator/sweeps.h"
#include "nlohmann/json.hpp"

namespace {

using namespace millrace;
using namespace millrace::coordinator;

constexpr int kRequestsAWorld = 500;
constexpr uint32_t kJobsAUser = 30;

template <typename T>
T OrAbort(absl::StatusOr<T> made) {
  if (!made.ok()) abort();
  return *std::move(made);
}

// A coordinator without a cluster, whose files lie in memory where there is such a folder.
class World {
 public:
  World() {
    std::string name =
        std::filesystem::exists("/dev/shm") ? "/dev/shm/page_http_fuzz-XXXXXX" : "/tmp/page_http_fuzz-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) abort();
    folder_ = name;
    store_ = OrAbort(JobStore::Open(folder_ + "/coordinator.sqlite"));
    book_ = OrAbort(JobBook::Open(store_.get()));
    ratings_ = OrAbort(RatingStore::Open(folder_ + "/ratings.sqlite"));
    JobQueue::Options queue;
    queue.directory = folder_;
    queue.book = book_.get();
    queue.jobs_per_user = kJobsAUser;
    queue.run = [](const StoredJob&, const JobControl&) { return JobOutcome(); };
    queue.forget = [this](const std::string& job) { return ratings_->RemoveSetsOf(job); };
    queue.wake = [] {};
    queue_ = std::make_unique<JobQueue>(std::move(queue));
    sweeps_ = OrAbort(Sweeps::Open(store_.get(), book_.get(), queue_.get()));
    JobsService::Parts jobs;
    jobs.directory = folder_;
    jobs.queue = queue_.get();
    jobs.book = book_.get();
    jobs.sweeps = sweeps_.get();
    jobs.members = &members_;
    jobs_ = std::make_unique<JobsService>(jobs);
    AccessOptions access;
    access.metrics = &metrics_;
    access_ = std::make_unique<Access>(std::move(access));
    rating_requests_ = std::make_unique<RatingsHttp>(ratings_.get(), "", [] { return absl::UnixEpoch(); });
    PageHttp::Parts pages;
    pages.directory = folder_;
    pages.jobs = jobs_.get();
    pages.book = book_.get();
    pages.ratings = rating_requests_.get();
    pages.access = access_.get();
    pages.prompt = [](const std::string&, const PromptRequest& request) { return request.prompt; };
    pages_ = std::make_unique<PageHttp>(std::move(pages));
    Fill();
  }
  ~World() {
    pages_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  HttpResponse Answer(const HttpRequest& request) { return pages_->Answer(request); }

 private:
  // A job that has been trained for some steps, and pairs to be rated.
  void Fill() {
    v1::SubmitJobRequest request;
    request.set_job_yaml(R"({name: a, tokenizer: {path: t}, model: {layers: 1, hidden_size: 8, heads: 1, context: 8},
      phases: [{name: p, data: {sources: [{path: a.txt}]}, global_batch: 1, stop: {max_steps: 40}}]})");
    request.set_base_directory("/data");
    if (!queue_->Submit(request).ok()) abort();
    for (uint64_t step = 1; step <= 20; ++step) {
      v1::JobEvent event;
      event.mutable_step()->set_phase("p");
      event.mutable_step()->set_step(step);
      event.mutable_step()->set_loss(1.0 / static_cast<double>(step));
      book_->Append("a", event);
    }
    v1::RatingSet set;
    set.set_id("s");
    set.set_title("Which is better?");
    set.set_raters(1);
    std::vector<v1::RatingPair> pairs(3);
    for (v1::RatingPair& pair : pairs) {
      v1::RatingPair::Message* const said = pair.add_prompt();
      said->set_role("user");
      said->set_content("Hi");
      pair.set_a("Hello.");
      pair.set_b("What?");
    }
    if (!ratings_->Create(set, pairs).ok()) abort();
  }

  std::string folder_;
  Metrics metrics_;
  Members members_{Members::Options()};
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobBook> book_;
  std::unique_ptr<RatingStore> ratings_;
  std::unique_ptr<JobQueue> queue_;
  std::unique_ptr<Sweeps> sweeps_;
  std::unique_ptr<JobsService> jobs_;
  std::unique_ptr<Access> access_;
  std::unique_ptr<RatingsHttp> rating_requests_;
  std::unique_ptr<PageHttp> pages_;
};

// Most requests are to what there is: of the others little more can be said than that they are refused.
std::string PathOf(const std::string& line) {
  static const auto* const paths = [] {
    auto* const all = new std::vector<std::string>{
        "events",       "checkpoint",        "prompt",      "ratings/sets", "ratings/state",
        "ratings/rate", "ratings/agreement", "ratings/undo"};
    const google::protobuf::ServiceDescriptor& jobs = *v1::Job::descriptor()->file()->FindServiceByName("Jobs");
    for (int i = 0; i < jobs.method_count(); ++i) all->push_back(absl::StrCat("jobs/", jobs.method(i)->name()));
    return all;
  }();
  if (std::find(paths->begin(), paths->end(), line) != paths->end()) return line;
  uint32_t sum = 0;
  for (const char c : line) sum = 31 * sum + static_cast<uint8_t>(c);
  return sum % 16 == 0 ? line : (*paths)[sum / 16 % paths->size()];
}

void Check(const HttpRequest& request, const HttpResponse& response) {
  constexpr int kStatuses[] = {200, 400, 403, 404, 405, 409, 413, 415, 429, 503};
  if (std::find(std::begin(kStatuses), std::end(kStatuses), response.status) == std::end(kStatuses)) abort();
  if (!absl::StartsWith(response.content_type, "application/json")) return;
  const nlohmann::json body = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) abort();
  if (response.status != 200 && !body["error"]["message"].is_string()) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static std::unique_ptr<World> world;
  SetLogOutput(nullptr, /*json=*/false);
  static int asked = 0;
  if (asked++ % kRequestsAWorld == 0) {
    world.reset();
    world = std::make_unique<World>();
  }
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const size_t first = std::min(bytes.find('\n'), size), second = std::min(bytes.find('\n', first + 1), size);
  HttpRequest request;
  request.path = "/api/v1/" + PathOf(bytes.substr(0, first));
  if (first < size) request.query = bytes.substr(first + 1, second - first - 1);
  if (second < size) request.body = bytes.substr(second + 1);
  request.method = request.body.empty() ? "GET" : "POST";
  request.content_type = "application/json";
  request.host = "127.0.0.1:80";
  request.peer = "127.0.0.1:50000";
  Check(request, world->Answer(request));
  return 0;
}
