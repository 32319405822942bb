#include "coordinator/page_http.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/checkpoint_manifest.h"
#include "coordinator/rating_store.h"
#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kOperatorToken[] = "operators-token-0123";
constexpr char kViewerToken[] = "viewers-token-01234";

class PageHttpTest : public ::testing::Test {
 protected:
  PageHttpTest() : folder_(std::filesystem::path(::testing::TempDir()) / absl::StrCat("page_http_test-", getpid())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    rating_store_ = *RatingStore::Open(folder_ / "ratings.sqlite");
    Serve(/*tokens=*/false);
  }
  ~PageHttpTest() override { std::filesystem::remove_all(folder_); }

  void Serve(bool tokens, bool for_this_machine = true, bool raters_have_token = false) {
    AccessOptions access;
    access.metrics = &metrics_;
    if (tokens) {
      const std::string path = folder_ / "tokens";
      std::ofstream(path) << *TokenLine("olga", "operator", kOperatorToken) << "\n"
                          << *TokenLine("vera", "viewer", kViewerToken) << "\n";
      access.tokens = *Tokens::Open(path);
    }
    access.audit = *AuditLog::Open(folder_ / "audit.jsonl");
    pages_.reset();
    access_ = std::make_unique<Access>(std::move(access));
    PageHttp::Parts parts;
    parts.directory = folder_;
    parts.jobs = &service_;
    parts.book = &jobs_.book();
    parts.access = access_.get();
    parts.for_this_machine = for_this_machine;
    parts.raters_have_token = raters_have_token;
    ratings_ = std::make_unique<RatingsHttp>(rating_store_.get(), raters_have_token ? "raters-token-0123" : "",
                                             [] { return absl::UnixEpoch(); });
    parts.ratings = ratings_.get();
    parts.prompt = [](const std::string& directory, const PromptRequest& request) -> absl::StatusOr<std::string> {
      return absl::StrCat(std::filesystem::path(directory).filename().string(), " ", request.prompt, " ",
                          request.max_tokens, " ", request.temperature, " ", request.seed);
    };
    pages_ = std::make_unique<PageHttp>(std::move(parts));
  }
  JobsService::Parts ServiceParts() {
    JobsService::Parts parts;
    parts.directory = folder_;
    parts.queue = &jobs_.queue();
    parts.book = &jobs_.book();
    parts.members = &members_;
    return parts;
  }

  HttpResponse Get(const std::string& path, const std::string& query = "") {
    HttpRequest request;
    request.method = "GET";
    request.path = path;
    request.query = query;
    request.host = host_;
    request.peer = "192.0.2.7:41000";
    request.authorization = authorization_;
    return pages_->Answer(request);
  }
  // The folder in which tar has unpacked what is answered.
  std::filesystem::path Opened(const HttpResponse& response) {
    const std::string archive = folder_ / "downloaded.tar";
    {
      std::ofstream out(archive, std::ios::binary);
      response.pieces([&out](absl::string_view piece) {
        out.write(piece.data(), static_cast<std::streamsize>(piece.size()));
        return true;
      });
    }
    const std::filesystem::path opened = folder_ / "opened";
    std::filesystem::create_directories(opened);
    EXPECT_EQ(std::system(absl::StrCat("tar -xf '", archive, "' -C '", opened.string(), "'").c_str()), 0);
    return opened;
  }
  HttpResponse Post(const std::string& path, const std::string& body) {
    HttpRequest request;
    request.method = "POST";
    request.path = path;
    request.host = host_;
    request.peer = "192.0.2.7:41000";
    request.authorization = authorization_;
    request.content_type = "application/json";
    request.body = body;
    return pages_->Answer(request);
  }
  Json Call(const std::string& method, const Json& request, int status = 200) {
    const HttpResponse response = Post("/api/v1/jobs/" + method, request.dump());
    EXPECT_EQ(response.status, status) << response.body;
    return Json::parse(response.body);
  }
  std::string Submit(const std::string& name) {
    const Json job =
        Call("SubmitJob", {{"job_yaml", kSimulatedJob}, {"base_directory", "/data"}, {"overrides", {"name=" + name}}});
    return job.value("id", "");
  }
  std::string Audited() {
    std::ifstream stream(folder_ / "audit.jsonl");
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  }
  // A checkpoint's folder with a model of so many bytes.
  void MakeCheckpoint(const std::string& job, size_t bytes, const std::string& phase = "p") {
    const std::filesystem::path directory = folder_ / "jobs" / job / "checkpoints" / absl::StrCat(phase, "-10");
    std::filesystem::create_directories(directory);
    std::ofstream(directory / kModelFile) << std::string(bytes, 'm');
    CheckpointManifest manifest;
    manifest.job = job;
    manifest.phase = phase;
    manifest.step = 10;
    manifest.digest = std::string(64, 'a');
    manifest.files = {{kModelFile, bytes, std::string(64, 'b')}};
    std::ofstream(directory / kManifestFile) << PrintManifest(manifest);
  }

  const std::filesystem::path folder_;
  std::string host_ = "127.0.0.1:8080";
  std::string authorization_;
  Metrics metrics_;
  SimulatedJobs jobs_{[](const v1::JobSpec&, uint64_t) { return 1.0; }};
  Members members_{Members::Options()};
  JobsService service_{ServiceParts()};
  std::unique_ptr<RatingStore> rating_store_;
  std::unique_ptr<RatingsHttp> ratings_;
  std::unique_ptr<Access> access_;
  std::unique_ptr<PageHttp> pages_;
};

TEST_F(PageHttpTest, ServesThePagesWithAStrictPolicy) {
  for (const char* path : {"/", "/rate"}) {
    const HttpResponse page = Get(path);
    EXPECT_EQ(page.status, 200);
    EXPECT_EQ(page.content_type, "text/html; charset=utf-8");
    EXPECT_THAT(page.body, HasSubstr("<!doctype html>"));
    EXPECT_THAT(page.body, ::testing::Not(HasSubstr("://"))) << path << " names something outside";
    const std::map<std::string, std::string> headers(page.headers.begin(), page.headers.end());
    EXPECT_THAT(headers.at("Content-Security-Policy"),
                AllOf(HasSubstr("default-src 'none'"), HasSubstr("frame-ancestors 'none'"),
                      ::testing::Not(HasSubstr("unsafe"))));
    EXPECT_EQ(headers.at("Referrer-Policy"), "no-referrer");
    EXPECT_EQ(headers.at("X-Content-Type-Options"), "nosniff");
  }
  for (const char* path : {"/style.css", "/dashboard.css", "/dashboard.js", "/chart.js", "/difference.js", "/rate.js",
                           "/api.js", "/icon.svg", "/dygraph.min.js", "/dygraph.min.css"}) {
    EXPECT_EQ(Get(path).status, 200) << path;
  }
  for (const char* path : {"/index", "/index.html", "/rate.html", "/etc/passwd"}) EXPECT_EQ(Get(path).status, 404);
  EXPECT_EQ(Post("/", "{}").status, 405);
}

TEST_F(PageHttpTest, CallsOfTheServiceAreRequests) {
  EXPECT_EQ(Submit("a"), "a");
  Call("UpdateJob", {{"job_id", "a"}, {"priority", 60}, {"set_labels", {{"team", "search"}}}});
  const Json listed = Call("ListJobs", {{"labels", {{"team", "search"}}}});
  EXPECT_EQ(listed["total"], 1);
  EXPECT_EQ(listed["jobs"][0]["spec"]["labels"], Json({{"team", "search"}}));
  EXPECT_TRUE(listed["jobs"][0]["submitted_unix_ms"].is_number());
  EXPECT_EQ(listed["jobs"][0]["state"], "QUEUED");
  EXPECT_EQ(Call("PauseJob", {{"job_id", "a"}})["state"], "PAUSED");
  EXPECT_THAT(Call("GetJob", {{"job_id", "none"}}, 404)["error"]["message"].get<std::string>(),
              HasSubstr("no job 'none'; there are: a"));
  EXPECT_THAT(Call("GetJob", {{"job", "a"}}, 400)["error"]["message"].get<std::string>(),
              HasSubstr("the body is no GetJobRequest in JSON"));
  Call("SubmitJob", {{"job_yaml", "name: x\n"}}, 400);
  Call("CancelJob", {{"job_id", "a"}});
  Call("CancelJob", {{"job_id", "a"}});
  Call("ResumeJob", {{"job_id", "a"}});
  EXPECT_EQ(Post("/api/v1/jobs/WatchJob", "{}").status, 404);
  EXPECT_EQ(Post("/api/v1/jobs/", "{}").status, 404);
  EXPECT_EQ(Post("/api/v1/other", "{}").status, 404);
  EXPECT_EQ(Get("/api/v1/jobs/ListJobs").status, 405);
  HttpRequest form;
  form.method = "POST";
  form.path = "/api/v1/jobs/CancelJob";
  form.host = host_;
  form.content_type = "text/plain";
  form.body = R"({"job_id": "a"})";
  EXPECT_EQ(pages_->Answer(form).status, 415);
  EXPECT_EQ(jobs_.book().Get("a")->state(), v1::Job::QUEUED);
}

TEST_F(PageHttpTest, EveryUnaryCallIsThere) {
  const google::protobuf::ServiceDescriptor& service = *v1::Job::descriptor()->file()->FindServiceByName("Jobs");
  for (int i = 0; i < service.method_count(); ++i) {
    const google::protobuf::MethodDescriptor& method = *service.method(i);
    if (method.client_streaming() || method.server_streaming()) continue;
    // Refused for its body, not unknown.
    EXPECT_EQ(Post("/api/v1/jobs/" + method.name(), "[").status, 400) << method.name();
  }
}

TEST_F(PageHttpTest, EventsComePageByPage) {
  Submit("a");
  for (int i = 0; i < 700; ++i) jobs_.book().Log("a", "info", absl::StrCat("note ", i));
  Json page = Json::parse(Get("/api/v1/events", "job=a").body);
  EXPECT_EQ(page["events"].size(), 500u);
  EXPECT_EQ(page["more"], true);
  page = Json::parse(Get("/api/v1/events", absl::StrCat("job=a&after=", page["events"][499]["sequence"].dump())).body);
  EXPECT_EQ(page["events"].size(), 201u);
  EXPECT_EQ(page["more"], false);
  EXPECT_EQ(page["events"][200]["log"]["text"], "note 699");
  EXPECT_EQ(Get("/api/v1/events", "job=a&steps=first").status, 400);
  EXPECT_EQ(Get("/api/v1/events", "job=none").status, 404);
  EXPECT_EQ(Get("/api/v1/events", "job=a&after=x").status, 400);
}

TEST_F(PageHttpTest, OfManyStepsOnlyTheLastComesWhereThatIsAsked) {
  Submit("a");
  // As many as several reads of the store take, with a note behind every thousandth.
  constexpr uint64_t kSteps = 10'000;
  for (uint64_t step = 1; step <= kSteps; ++step) {
    v1::JobEvent event;
    event.mutable_step()->set_phase("p");
    event.mutable_step()->set_step(step);
    jobs_.book().Append("a", event);
    if (step % 1000 == 0) jobs_.book().Log("a", "info", absl::StrCat("note ", step));
  }
  Json page = Json::parse(Get("/api/v1/events", "job=a&steps=last").body);
  EXPECT_EQ(page["more"], false);
  ASSERT_EQ(page["events"].size(), 12u);  // its state, the last step and the notes
  EXPECT_EQ(page["events"][10]["step"]["step"], kSteps);
  EXPECT_EQ(page["events"][11]["log"]["text"], "note 10000");
  for (size_t i = 1; i < 12; ++i) EXPECT_LT(page["events"][i - 1]["sequence"], page["events"][i]["sequence"]);
  // Nothing comes twice, and what comes later is not missed.
  const std::string after = absl::StrCat("job=a&steps=last&after=", page["events"][11]["sequence"].dump());
  EXPECT_EQ(Json::parse(Get("/api/v1/events", after).body)["events"].size(), 0u);
  v1::JobEvent event;
  event.mutable_step()->set_step(kSteps + 1);
  jobs_.book().Append("a", event);
  page = Json::parse(Get("/api/v1/events", after).body);
  ASSERT_EQ(page["events"].size(), 1u);
  EXPECT_EQ(page["events"][0]["step"]["step"], kSteps + 1);
}

TEST_F(PageHttpTest, AReplyOfLongTextsIsCutShort) {
  Submit("a");
  constexpr uint64_t kEvents = 300;
  for (uint64_t step = 1; step <= kEvents; ++step) {
    v1::JobEvent event;
    event.mutable_samples()->set_step(step);
    event.mutable_samples()->add_samples()->set_text(std::string(20'000, 'x'));
    jobs_.book().Append("a", event);
  }
  uint64_t seen = 0, after = 0, replies = 0;
  for (bool more = true; more; ++replies) {
    const std::string body = Get("/api/v1/events", absl::StrCat("job=a&steps=last&after=", after)).body;
    EXPECT_LT(body.size(), 3u << 20);
    const Json page = Json::parse(body);
    for (const Json& event : page["events"]) {
      after = event["sequence"];
      if (!event.contains("samples")) continue;
      EXPECT_EQ(event["samples"]["step"], ++seen);
    }
    more = page["more"];
    ASSERT_LT(replies, 10u);
  }
  EXPECT_EQ(seen, kEvents);
  EXPECT_GT(replies, 1u);
}

TEST_F(PageHttpTest, ABriefListHasWhatAListShows) {
  Submit("a");
  Call("UpdateJob", {{"job_id", "a"}, {"set_labels", {{"team", "search"}}}});
  const Json whole = Call("ListJobs", {{"page_size", 1}})["jobs"][0];
  Json brief = Call("ListJobs", {{"page_size", 1}, {"brief", true}})["jobs"][0];
  EXPECT_EQ(brief["spec"]["labels"], Json({{"team", "search"}}));
  EXPECT_EQ(brief["spec"]["phases"].size(), 1u);
  EXPECT_EQ(brief["spec"]["phases"][0]["name"], "p");
  EXPECT_LT(brief.dump().size(), whole.dump().size() / 2);
  brief["spec"] = whole["spec"];
  EXPECT_EQ(brief, whole);
}

TEST_F(PageHttpTest, ACheckpointIsAnArchiveThatTarReads) {
  Submit("a");
  MakeCheckpoint("a", 300'000);
  const HttpResponse response = Get("/api/v1/checkpoint", "job=a&which=last");
  ASSERT_EQ(response.status, 200) << response.body;
  const std::filesystem::path opened = Opened(response);
  std::ifstream model(opened / "a-p-10" / kModelFile);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(model), {}), std::string(300'000, 'm'));
  EXPECT_TRUE(std::filesystem::exists(opened / "a-p-10" / kManifestFile));
  EXPECT_EQ(Get("/api/v1/checkpoint", "job=a&which=77").status, 404);
  EXPECT_EQ(Get("/api/v1/checkpoint", "job=a&which=../../..").status, 404);
}

TEST_F(PageHttpTest, AnArchiveHasLongNamesWhole) {
  const std::string name(64, 'n');
  EXPECT_EQ(Submit(name), name);
  MakeCheckpoint(name, 5, std::string(64, 'p'));
  const HttpResponse response = Get("/api/v1/checkpoint", absl::StrCat("job=", name, "&which=last"));
  ASSERT_EQ(response.status, 200) << response.body;
  const std::filesystem::path opened = Opened(response);
  EXPECT_TRUE(std::filesystem::exists(opened / absl::StrCat(name, "-", std::string(64, 'p'), "-10") / kModelFile));
}

TEST_F(PageHttpTest, ADownloadEndsWithItsToken) {
  Submit("a");
  MakeCheckpoint("a", 10);
  Serve(/*tokens=*/true);
  authorization_ = absl::StrCat("Bearer ", kViewerToken);
  const HttpResponse response = Get("/api/v1/checkpoint", "job=a&which=last");
  ASSERT_EQ(response.status, 200) << response.body;
  std::ofstream(folder_ / "tokens") << "";
  // Pieces come until it is looked at the token again.
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  bool ended = false;
  while (!ended && absl::Now() < give_up) {
    int pieces = 0;
    response.pieces([&](absl::string_view) {
      const absl::Time next_look = absl::Now() + absl::Milliseconds(1100);
      while (pieces == 0 && absl::Now() < next_look) std::this_thread::yield();
      ++pieces;
      return true;
    });
    ended = pieces == 1;
  }
  EXPECT_TRUE(ended);
}

TEST_F(PageHttpTest, AModelIsAsked) {
  Submit("a");
  MakeCheckpoint("a", 10);
  const Json reply = Json::parse(
      Post("/api/v1/prompt", R"({"job": "a", "which": "p-10", "prompt": "Hi", "max_tokens": 7, "seed": 3})").body);
  EXPECT_EQ(reply["text"], "p-10 Hi 7 0.8 3");
  for (const char* wrong :
       {"[]", "{", R"({"job": "a", "max_tokens": 0})", R"({"job": "a", "max_tokens": 2049})",
        R"({"job": "a", "max_tokens": 4294967297})", R"({"job": "a", "max_tokens": 1e300})",
        R"({"job": "a", "max_tokens": -1})", R"({"job": "a", "seed": -1})", R"({"job": "a", "seed": 1e300})",
        R"({"job": "a", "seed": 0.5})", R"({"job": "a", "temperature": -1})", R"({"job": 1})"}) {
    EXPECT_EQ(Post("/api/v1/prompt", wrong).status, 400) << wrong;
  }
  EXPECT_THAT(Post("/api/v1/prompt", std::string(1 << 20, '[')).body, HasSubstr("the body has 1048576 bytes"));
  EXPECT_EQ(Post("/api/v1/prompt", R"({"job": "none"})").status, 404);
}

TEST_F(PageHttpTest, WithoutTokensOnlyThisMachineIsAnswered) {
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1", "127.3.2.1:80", "[::1]:8080", "[::1]"}) {
    host_ = host;
    EXPECT_EQ(Post("/api/v1/jobs/ListJobs", "{}").status, 200) << host;
    EXPECT_EQ(Get("/api/v1/ratings/sets").status, 200) << host;
  }
  for (const char* host : {"", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.evil"}) {
    host_ = host;
    EXPECT_EQ(Post("/api/v1/jobs/ListJobs", "{}").status, 403) << host;
    EXPECT_EQ(Get("/api/v1/ratings/sets").status, 403) << host;
  }
  host_ = "127.0.0.1";
  Serve(false, /*for_this_machine=*/false);
  EXPECT_EQ(Post("/api/v1/jobs/ListJobs", "{}").status, 403);
  Serve(false, true, /*raters_have_token=*/true);
  EXPECT_EQ(Get("/api/v1/events", "job=a").status, 403);
  // Who brings the token may call the page what they like.
  host_ = "millrace.example";
  EXPECT_EQ(Get("/api/v1/ratings/sets").status, 401);
  authorization_ = "Bearer raters-token-0123";
  EXPECT_EQ(Get("/api/v1/ratings/sets").status, 200);
}

TEST_F(PageHttpTest, ATokenSaysWhoMayWhat) {
  Submit("before");
  Serve(/*tokens=*/true, /*for_this_machine=*/false);
  host_ = "millrace.example";
  EXPECT_EQ(Post("/api/v1/jobs/ListJobs", "{}").status, 401);
  authorization_ = "Bearer wrong";
  EXPECT_EQ(Post("/api/v1/jobs/ListJobs", "{}").status, 401);
  authorization_ = absl::StrCat("Bearer ", kViewerToken);
  EXPECT_EQ(Call("ListJobs", Json::object())["total"], 1);
  EXPECT_EQ(Get("/api/v1/events", "job=before").status, 200);
  EXPECT_THAT(Call("CancelJob", {{"job_id", "before"}}, 403)["error"]["message"].get<std::string>(),
              HasSubstr("a viewer ('vera') may not call Jobs/CancelJob: operator may"));
  authorization_ = absl::StrCat("Bearer ", kOperatorToken);
  EXPECT_EQ(Submit("mine"), "mine");
  EXPECT_EQ(jobs_.book().Get("mine")->user(), "olga");
  Call("CancelJob", {{"job_id", "before"}});
  const std::string audited = Audited();
  EXPECT_THAT(audited,
              HasSubstr(R"("who":"olga","role":"operator","peer":"http:192.0.2.7:41000","method":"Jobs/SubmitJob",)"
                        R"("job":"mine")"));
  EXPECT_THAT(audited, HasSubstr(R"("who":"","role":"","peer":"http:192.0.2.7:41000","method":"Jobs/ListJobs")"));
  EXPECT_THAT(audited, HasSubstr(R"("method":"Jobs/CancelJob","job":"before","code":"OK")"));
  EXPECT_THAT(audited, HasSubstr(R"("who":"vera","role":"viewer")"));
  EXPECT_THAT(audited, ::testing::Not(HasSubstr("token-0")));
}

}  // namespace
}  // namespace millrace::coordinator
