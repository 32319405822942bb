#include "coordinator/page_http.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "common/message_json.h"
#include "common/status.h"
#include "coordinator/checkpoint_shelf.h"
#include "web/files.h"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::string_view kRatings = "/api/v1/ratings/";
constexpr absl::string_view kApi = "/api/v1/";
constexpr absl::string_view kJobs = "/api/v1/jobs/";
constexpr absl::string_view kService = "/millrace.v1.Jobs/";
constexpr int kEventsAReply = 500;
// Events that are looked at for a reply with steps=last.
constexpr int kEventsARead = 4096;
constexpr int kMostEventsRead = 64 * kEventsARead;
// What a model wrote may be long.
constexpr size_t kEventBytesAReply = 2 << 20;
constexpr uint32_t kMostPromptTokens = 2048;
constexpr size_t kMostPromptBytes = 64 << 10;
// Every byte of the prompt written as \u0000, and the rest.
constexpr size_t kMostPromptBodyBytes = 6 * kMostPromptBytes + 4096;
constexpr size_t kTarBlock = 512;
// How often it is looked whether who downloads still may.
constexpr absl::Duration kLookAgain = absl::Seconds(1);
constexpr size_t kPieceBytes = 256 << 10;

// A call of the Jobs service: request and reply as JSON.
// `job`: set to the one that the request is about, if it is about one.
using Handler = std::function<absl::StatusOr<Json>(const PageHttp::Parts&, const Caller&, const std::string& body,
                                                   std::string* job)>;

absl::StatusOr<Json> ReplyOf(const grpc::Status& status, const google::protobuf::Message& reply) {
  MILLRACE_RETURN_IF_ERROR(FromGrpc(status));
  return ToJson(reply);
}

template <typename Request>
absl::StatusOr<Request> Parse(const std::string& body) {
  Request request;
  const auto parsed = google::protobuf::util::JsonStringToMessage(body, &request);
  if (parsed.ok()) return request;
  return absl::InvalidArgumentError(
      absl::StrCat("the body is no ", Request::descriptor()->name(), " in JSON: ", parsed.message().ToString()));
}

template <typename Request, typename Reply>
Handler Calls(grpc::Status (JobsService::*method)(grpc::ServerContext*, const Request*, Reply*)) {
  return [method](const PageHttp::Parts& parts, const Caller& caller, const std::string& body,
                  std::string* job) -> absl::StatusOr<Json> {
    MILLRACE_ASSIGN_OR_RETURN(const Request request, Parse<Request>(body));
    if constexpr (requires { request.job_id(); }) *job = request.job_id();
    Reply reply;
    if constexpr (std::is_same_v<Request, v1::SubmitJobRequest> || std::is_same_v<Request, v1::StartSweepRequest>) {
      return ReplyOf(parts.jobs->SubmitFor(caller.name, request, &reply), reply);
    } else {
      return ReplyOf((parts.jobs->*method)(nullptr, &request, &reply), reply);
    }
  };
}

const std::map<std::string, Handler, std::less<>>& Handlers() {
  static const auto* const handlers = new std::map<std::string, Handler, std::less<>>{
      {"SubmitJob", Calls(&JobsService::SubmitJob)},     {"ListJobs", Calls(&JobsService::ListJobs)},
      {"GetJob", Calls(&JobsService::GetJob)},           {"UpdateJob", Calls(&JobsService::UpdateJob)},
      {"GetCurves", Calls(&JobsService::GetCurves)},     {"CancelJob", Calls(&JobsService::CancelJob)},
      {"PauseJob", Calls(&JobsService::PauseJob)},       {"ResumeJob", Calls(&JobsService::ResumeJob)},
      {"DeleteJob", Calls(&JobsService::DeleteJob)},     {"ListCheckpoints", Calls(&JobsService::ListCheckpoints)},
      {"ListMembers", Calls(&JobsService::ListMembers)}, {"StartSweep", Calls(&JobsService::StartSweep)},
      {"GetSweep", Calls(&JobsService::GetSweep)},       {"ListSweeps", Calls(&JobsService::ListSweeps)},
      {"CancelSweep", Calls(&JobsService::CancelSweep)},
  };
  return *handlers;
}

HttpResponse JsonReply(const Json& json) {
  return RatingsHttp::Reply(200, "application/json; charset=utf-8",
                            json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

HttpResponse Refusal(const absl::Status& status) {
  HttpResponse refused = RatingsHttp::Refuse(RatingsHttp::StatusOf(status), status.message());
  if (refused.status == 401) refused.headers.emplace_back("WWW-Authenticate", "Bearer");
  return refused;
}

// Who asks, for the audit log.
std::string PeerOf(const HttpRequest& request) { return absl::StrCat("http:", request.peer); }

// The token that a request brings; empty: none.
absl::string_view TokenOf(const HttpRequest& request) {
  absl::string_view token = request.authorization;
  return absl::ConsumePrefix(&token, "Bearer ") ? token : "";
}

// The header of a file in a tar archive (POSIX.1-1988, ustar).
constexpr size_t kMostFolderBytes = 155, kMostNameBytes = 100;
std::array<char, kTarBlock> TarHeader(const std::string& folder, const std::string& name, uint64_t size) {
  std::array<char, kTarBlock> header = {};
  const auto put = [&](size_t at, const std::string& text) {
    std::memcpy(header.data() + at, text.data(), text.size());
  };
  put(0, name);
  put(345, folder);
  put(100, "0000644");
  put(108, "0000000");
  put(116, "0000000");
  if (size < (uint64_t{1} << 33)) {
    put(124, absl::StrFormat("%011o", size));
  } else {
    header[124] = static_cast<char>(0x80);  // larger than the digits can say: in base 256 (GNU)
    for (int i = 0; i < 8; ++i) header[135 - i] = static_cast<char>(size >> (8 * i));
  }
  put(136, "00000000000");
  header[156] = '0';
  put(257, std::string("ustar\0", 6) + "00");
  std::fill_n(header.begin() + 148, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  put(148, absl::StrFormat("%06o", sum) + std::string("\0 ", 2));
  return header;
}

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using OpenedFile = std::unique_ptr<std::FILE, FileCloser>;

absl::StatusOr<uint64_t> NumberOf(const HttpRequest& request, const char* name) {
  const std::string text = request.Parameter(name);
  uint64_t number = 0;
  if (text.empty() || absl::SimpleAtoi(text, &number)) return number;
  return absl::InvalidArgumentError(absl::StrCat(name, " is no number"));
}

}  // namespace

HttpResponse PageHttp::Answer(const HttpRequest& request) {
  if (absl::StartsWith(request.path, kRatings)) return AnswerRatings(request);
  if (absl::StartsWith(request.path, kApi)) return AnswerJobs(request);
  for (const web::File& file : web::Files()) {
    if (file.path != request.path) continue;
    return request.method == "GET" || request.method == "HEAD" ? RatingsHttp::Reply(200, file.content_type, file.bytes)
                                                               : RatingsHttp::Refuse(405, "only GET reads the page");
  }
  return RatingsHttp::Refuse(404, "there is no such page; there are / and /rate");
}

HttpResponse PageHttp::AnswerRatings(const HttpRequest& request) const {
  if (request.body.size() > kMaxRatingBodyBytes) {
    return RatingsHttp::Refuse(413, absl::StrCat("the body of a rating has at most ", kMaxRatingBodyBytes, " bytes"));
  }
  if (parts_.is_loopback && !parts_.raters_have_token && !NamesThisMachine(request.host)) {
    return RatingsHttp::Refuse(403,
                               "without --http-token the rating page is at this machine's own address, as 127.0.0.1");
  }
  return parts_.ratings->Answer(request);
}

absl::StatusOr<Caller> PageHttp::Admit(const HttpRequest& request, absl::string_view method) const {
  const std::string full = absl::StrCat(kService, method);
  if (parts_.access->takes_tokens()) {
    return parts_.access->CheckToken(full, TokenOf(request), PeerOf(request));
  }
  if (!parts_.for_this_machine || parts_.raters_have_token) {
    return absl::PermissionDeniedError(
        "jobs are shown to others than this machine's users only with --tokens, to those who bring one");
  }
  if (!NamesThisMachine(request.host)) {
    return absl::PermissionDeniedError("without --tokens the dashboard is at this machine's own address, as 127.0.0.1");
  }
  return Caller{.name = "", .role = Role::kOperator};
}

HttpResponse PageHttp::AnswerJobs(const HttpRequest& request) {
  const absl::string_view action = absl::StripPrefix(request.path, kApi);
  const bool reads = request.method == "GET" || request.method == "HEAD";
  const bool posted = absl::StartsWith(request.path, kJobs) || action == "prompt";
  if (!posted && action != "events" && action != "checkpoint") {
    return RatingsHttp::Refuse(404, "there is no such request; there are jobs/METHOD, events, checkpoint and prompt");
  }
  const auto handler = Handlers().find(absl::StripPrefix(request.path, kJobs));
  if (absl::StartsWith(request.path, kJobs) && handler == Handlers().end()) {
    return RatingsHttp::Refuse(404, "the Jobs service has no such unary call (docs/api.md)");
  }
  if (posted ? request.method != "POST" : !reads) {
    return RatingsHttp::Refuse(405, absl::StrCat(action, posted ? " takes POST" : " takes GET"));
  }
  // A page of another site can send no such type without asking first.
  if (posted && !absl::StartsWith(request.content_type, "application/json")) {
    return RatingsHttp::Refuse(415, "the body must be sent as application/json");
  }
  const std::string method = handler != Handlers().end() ? handler->first
                             : action == "events"        ? "WatchJob"
                                                         : "FetchCheckpoint";
  const absl::StatusOr<Caller> caller = Admit(request, method);
  if (!caller.ok()) return Refusal(caller.status());
  if (action == "checkpoint") {
    absl::StatusOr<HttpResponse> archive = Checkpoint(request);
    return archive.ok() ? *std::move(archive) : Refusal(archive.status());
  }
  if (handler == Handlers().end()) {
    const absl::StatusOr<Json> reply = action == "events" ? Events(request) : Prompt(request);
    return reply.ok() ? JsonReply(*reply) : Refusal(reply.status());
  }
  std::string job;
  const absl::StatusOr<Json> reply = handler->second(parts_, *caller, request.body, &job);
  if (job.empty() && reply.ok()) job = reply->value("id", "");
  parts_.access->Record(absl::StrCat(kService, method), *caller, PeerOf(request), job, reply.status());
  return reply.ok() ? JsonReply(*reply) : Refusal(reply.status());
}

absl::StatusOr<Json> PageHttp::Events(const HttpRequest& request) const {
  MILLRACE_ASSIGN_OR_RETURN(uint64_t after, NumberOf(request, "after"));
  const std::string job = request.Parameter("job"), steps = request.Parameter("steps");
  if (!steps.empty() && steps != "last") return absl::InvalidArgumentError("steps is 'last', or is left out for all");
  const int a_read = steps.empty() ? kEventsAReply : kEventsARead;
  std::vector<v1::JobEvent> kept;
  std::optional<v1::JobEvent> last_step;
  size_t bytes = 0;
  const auto full = [&] { return kept.size() >= kEventsAReply || bytes >= kEventBytesAReply; };
  bool more = true;
  for (int read = 0; more && !full() && read < kMostEventsRead; read += a_read) {
    MILLRACE_ASSIGN_OR_RETURN(std::vector<v1::JobEvent> events, parts_.book->Read(job, after, a_read));
    more = events.size() == static_cast<size_t>(a_read);
    for (v1::JobEvent& event : events) {
      if (full()) {
        more = true;
        break;
      }
      after = event.sequence();
      if (!steps.empty() && event.has_step()) {
        last_step = std::move(event);
      } else {
        bytes += event.ByteSizeLong();
        kept.push_back(std::move(event));
      }
    }
  }
  if (last_step.has_value()) {
    const auto behind = std::find_if(
        kept.begin(), kept.end(), [&](const v1::JobEvent& event) { return event.sequence() > last_step->sequence(); });
    kept.insert(behind, *std::move(last_step));
  }
  Json list = Json::array();
  for (const v1::JobEvent& event : kept) list.push_back(ToJson(event));
  return Json{{"events", std::move(list)}, {"more", more}};
}

absl::StatusOr<Json> PageHttp::Prompt(const HttpRequest& request) {
  // Nested lists take many times their size: what is no prompt is not even read.
  if (request.body.size() > kMostPromptBodyBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body has ", request.body.size(), " bytes; at most ", kMostPromptBodyBytes));
  }
  const Json body = Json::parse(request.body, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) return absl::InvalidArgumentError("the body is no JSON object");
  for (const char* const name : {"max_tokens", "seed"}) {
    // Another number would be made to fit.
    if (body.contains(name) && !body[name].is_number_unsigned()) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is a whole number of at least 0"));
    }
  }
  if (body.contains("max_tokens") && body["max_tokens"].get<uint64_t>() > kMostPromptTokens) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is at most ", kMostPromptTokens));
  }
  PromptRequest asked;
  std::string job_id, which = "best";
  try {
    job_id = body.value("job", "");
    which = body.value("which", which);
    asked.prompt = body.value("prompt", "");
    asked.max_tokens = body.value("max_tokens", asked.max_tokens);
    asked.temperature = body.value("temperature", asked.temperature);
    asked.seed = body.value("seed", asked.seed);
  } catch (const Json::exception&) {
    return absl::InvalidArgumentError("job, which and prompt are text; max_tokens, temperature and seed are numbers");
  }
  if (asked.max_tokens == 0 || asked.max_tokens > kMostPromptTokens || !(asked.temperature >= 0) ||
      asked.temperature > 100 || asked.prompt.size() > kMostPromptBytes) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is 1 to ", kMostPromptTokens,
                                                   ", temperature 0 to 100, and the prompt has at most ",
                                                   kMostPromptBytes, " bytes"));
  }
  if (parts_.prompt == nullptr) return absl::UnavailableError("this coordinator cannot ask models");
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, parts_.book->Get(job_id));
  MILLRACE_ASSIGN_OR_RETURN(const ShelfEntry entry,
                            CheckpointShelf(JobDirectory(parts_.directory, job.id())).Find(which));
  if (!prompting_.TryLock()) return absl::ResourceExhaustedError("another prompt is being answered; try again");
  const absl::StatusOr<std::string> text = parts_.prompt(entry.directory, asked);
  prompting_.Unlock();
  MILLRACE_RETURN_IF_ERROR(text.status());
  return Json{{"text", *text}, {"checkpoint", entry.name}};
}

absl::StatusOr<HttpResponse> PageHttp::Checkpoint(const HttpRequest& request) const {
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, parts_.book->Get(request.Parameter("job")));
  MILLRACE_ASSIGN_OR_RETURN(const ShelfEntry entry,
                            CheckpointShelf(JobDirectory(parts_.directory, job.id())).Find(request.Parameter("which")));
  // Opened now, so that they stay readable when retention removes them.
  struct Part {
    std::string name;
    uint64_t size = 0;
    std::shared_ptr<std::FILE> file;
  };
  std::vector<Part> parts;
  std::vector<std::string> names;
  for (const CheckpointManifest::FileSum& file : entry.manifest.files) {
    if (file.name != kOptimizerFile) names.push_back(file.name);
  }
  names.push_back(kManifestFile);
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(entry.directory, "/", name);
    OpenedFile file(std::fopen(path.c_str(), "rbe"));
    std::error_code error;
    const uint64_t size = std::filesystem::file_size(path, error);
    if (file == nullptr || error) return absl::UnavailableError(absl::StrCat("cannot read ", path));
    parts.push_back({name, size, std::move(file)});
  }
  const std::string folder = absl::StrCat(job.id(), "-", entry.name);
  for (const Part& part : parts) {
    if (folder.size() <= kMostFolderBytes && part.name.size() <= kMostNameBytes) continue;
    return absl::FailedPreconditionError(absl::StrCat("an archive has no room for the name ", folder, "/", part.name));
  }
  HttpResponse response = RatingsHttp::Reply(200, "application/x-tar", "");
  response.headers.emplace_back("Content-Disposition", absl::StrCat("attachment; filename=\"", folder, ".tar\""));
  // It takes long: a token that is taken back meanwhile ends it.
  const bool asks = parts_.access->takes_tokens();
  response.pieces = [this, asks, token = std::string(TokenOf(request)), peer = PeerOf(request), parts,
                     folder](const HttpResponse::Send& send_piece) {
    absl::Time look_again = absl::Now() + kLookAgain;
    const auto send = [&](absl::string_view piece) {
      if (asks && absl::Now() >= look_again) {
        look_again = absl::Now() + kLookAgain;
        if (!parts_.access->CheckToken(absl::StrCat(kService, "FetchCheckpoint"), token, peer).ok()) return false;
      }
      return send_piece(piece);
    };
    std::string piece;
    for (const Part& part : parts) {
      const std::array<char, kTarBlock> header = TarHeader(folder, part.name, part.size);
      if (!send({header.data(), header.size()})) return;
      for (uint64_t done = 0; done < part.size; done += piece.size()) {
        piece.resize(static_cast<size_t>(std::min<uint64_t>(kPieceBytes, part.size - done)));
        // A file that became shorter would shift all that follows: rather end here, which the reader notices.
        if (std::fread(piece.data(), 1, piece.size(), part.file.get()) != piece.size() || !send(piece)) return;
      }
      if (part.size % kTarBlock != 0 && !send(std::string(kTarBlock - part.size % kTarBlock, '\0'))) return;
    }
    send(std::string(2 * kTarBlock, '\0'));
  };
  return response;
}

}  // namespace millrace::coordinator
