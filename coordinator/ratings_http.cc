#include "coordinator/ratings_http.h"

#include <openssl/crypto.h>

#include <initializer_list>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/rating_json.h"
#include "coordinator/rating_order.h"
#include "nlohmann/json.hpp"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kJson[] = "application/json; charset=utf-8";
constexpr absl::string_view kApi = "/api/v1/ratings/";
constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 256;

// A link's token leaves in no Referer.
const std::vector<std::pair<std::string, std::string>>& GuardHeaders() {
  static const auto* headers = new std::vector<std::pair<std::string, std::string>>{
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
       "form-action 'none'; frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
      {"Cache-Control", "no-store"},
  };
  return *headers;
}

Json JsonOf(const v1::RatingSet& set) {
  return {{"id", set.id()},       {"title", set.title()}, {"raters", set.raters()},
          {"pairs", set.pairs()}, {"done", set.done()},   {"ratings", set.ratings()}};
}

bool IsTokenCharacter(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_'; }

}  // namespace

absl::StatusOr<std::string> ReadHttpToken(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, 2 * kMaxTokenBytes));
  const std::string token(absl::StripAsciiWhitespace(bytes));
  bool well = token.size() >= kMinTokenBytes && token.size() <= kMaxTokenBytes;
  for (const char c : token) well &= IsTokenCharacter(c);
  if (well) return token;
  return absl::InvalidArgumentError(absl::StrCat(path, " holds no token: ", kMinTokenBytes, " to ", kMaxTokenBytes,
                                                 " letters, digits, '-' and '_', as `openssl rand -hex 16` makes"));
}

HttpResponse RatingsHttp::Reply(int status, absl::string_view content_type, absl::string_view body) {
  return {status, std::string(content_type), std::string(body), GuardHeaders()};
}

int RatingsHttp::StatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

HttpResponse RatingsHttp::Refuse(int status, absl::string_view why) {
  const Json error = {{"error", {{"message", std::string(why)}}}};
  return Reply(status, kJson, error.dump(-1, ' ', false, Json::error_handler_t::replace));
}

HttpResponse RatingsHttp::Answer(const HttpRequest& request) const {
  const bool reads = request.method == "GET" || request.method == "HEAD";
  if (!token_.empty()) {
    absl::string_view token = request.authorization;
    if (!absl::ConsumePrefix(&token, "Bearer ") || token.size() != token_.size() ||
        CRYPTO_memcmp(token.data(), token_.data(), token_.size()) != 0) {
      HttpResponse refused = Refuse(401, "this coordinator wants its token");
      refused.headers.emplace_back("WWW-Authenticate", "Bearer");
      return refused;
    }
  }
  const absl::string_view action = absl::StripPrefix(request.path, kApi);
  const bool writes = action == "rate" || action == "undo";
  if (!writes && action != "sets" && action != "state" && action != "agreement") {
    return Refuse(404, "there is no such request; there are sets, state, rate, undo and agreement");
  }
  if (writes ? request.method != "POST" : !reads) {
    return Refuse(405, absl::StrCat(action, writes ? " takes POST" : " takes GET"));
  }
  // A page of another site can send no such type without asking first.
  if (writes && !absl::StartsWith(request.content_type, "application/json")) {
    return Refuse(415, "the body must be sent as application/json");
  }
  const absl::StatusOr<std::string> body = AnswerApi(request);
  if (body.ok()) return Reply(200, kJson, *body);
  const int status = StatusOf(body.status());
  if (status >= 500) {
    Log(Severity::kError, "a rating request failed",
        {{"request", action}, {"error", std::string(body.status().message())}});
  }
  return Refuse(status, body.status().message());
}

absl::StatusOr<std::string> RatingsHttp::AnswerApi(const HttpRequest& request) const {
  const absl::string_view action = absl::StripPrefix(request.path, kApi);
  if (action == "sets") return Sets();
  if (action == "state") return StateOf(request.Parameter("set"), request.Parameter("rater"));
  if (action == "rate") return Rate(request);
  if (action == "undo") return Undo(request);
  return AgreementOfSet(request.Parameter("set"));
}

absl::StatusOr<std::string> RatingsHttp::Sets() const {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::RatingSet> sets, store_->List());
  Json list = Json::array();
  for (const v1::RatingSet& set : sets) list.push_back(JsonOf(set));
  return Json{{"sets", std::move(list)}}.dump();
}

absl::StatusOr<std::string> RatingsHttp::StateOf(const std::string& set_id, const std::string& rater,
                                                 std::optional<uint64_t> asked) const {
  MILLRACE_ASSIGN_OR_RETURN(const RaterState state, store_->State(set_id, rater));
  Json json = {{"set", JsonOf(state.set)}, {"rater", rater}, {"rated", state.rated}, {"left", state.left}};
  json["last"] = state.last.has_value() ? Json(*state.last) : Json();
  json["pair"] = nullptr;
  if (const std::optional<uint64_t> next = asked.has_value() ? asked : state.next; next.has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(const v1::RatingPair pair, store_->Pair(set_id, *next));
    Json prompt = Json::array();
    for (const v1::RatingPair::Message& message : pair.prompt()) {
      prompt.push_back({{"role", message.role()}, {"content", message.content()}});
    }
    const bool swapped = RatingOrder(set_id, rater).Swapped(*next);
    json["pair"] = {{"pair", *next},
                    {"prompt", std::move(prompt)},
                    {"left", swapped ? pair.b() : pair.a()},
                    {"right", swapped ? pair.a() : pair.b()}};
  }
  return json.dump();
}

absl::StatusOr<std::string> RatingsHttp::Rate(const HttpRequest& request) const {
  MILLRACE_ASSIGN_OR_RETURN(RateRequest rate, ParseRateRequest(request.body));
  rate.rating.set_unix_ms(absl::ToUnixMillis(now_()));
  MILLRACE_RETURN_IF_ERROR(store_->Rate(rate.set_id, rate.pair, rate.rating));
  return StateOf(rate.set_id, rate.rating.rater());
}

absl::StatusOr<std::string> RatingsHttp::Undo(const HttpRequest& request) const {
  MILLRACE_ASSIGN_OR_RETURN(const UndoRequest undo, ParseUndoRequest(request.body));
  MILLRACE_RETURN_IF_ERROR(store_->Undo(undo.set_id, undo.rater, undo.pair));
  return StateOf(undo.set_id, undo.rater, undo.pair);
}

absl::StatusOr<std::string> RatingsHttp::AgreementOfSet(const std::string& set_id) const {
  MILLRACE_ASSIGN_OR_RETURN(const Agreement agreement, store_->GetAgreement(set_id));
  Json raters = Json::array();
  for (const RaterAgreement& rater : agreement.raters) {
    raters.push_back({{"rater", rater.rater},
                      {"rated", rater.rated},
                      {"skipped", rater.skipped},
                      {"flagged", rater.flagged},
                      {"compared", rater.compared},
                      {"equal", rater.equal}});
  }
  Json json = {{"method", agreement.fleiss ? "Fleiss'" : "Cohen's"}};
  json["kappa"] = agreement.kappa.value.has_value() ? Json(*agreement.kappa.value) : Json();
  json["items"] = agreement.kappa.items;
  json["raters"] = std::move(raters);
  return json.dump();
}

}  // namespace millrace::coordinator
