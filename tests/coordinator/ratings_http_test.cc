#include "coordinator/ratings_http.h"

#include <map>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "coordinator/rating_order.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/rating_sets.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::HasSubstr;
using testing::RatingPairs;
using testing::RatingSetOf;
using Json = nlohmann::json;

constexpr char kToken[] = "0123456789abcdef";

absl::Time Noon() { return absl::FromUnixMillis(43'200'000); }

class RatingsHttpTest : public ::testing::Test {
 protected:
  RatingsHttpTest() {
    auto store = RatingStore::Open(folder_ / "ratings.sqlite");
    EXPECT_OK(store);
    store_ = *std::move(store);
    EXPECT_OK(store_->Create(RatingSetOf("set", 1), RatingPairs(3)));
    http_ = std::make_unique<RatingsHttp>(store_.get(), "", &Noon);
  }

  HttpResponse Get(const std::string& path, const std::string& query = "") {
    HttpRequest request;
    request.method = "GET";
    request.path = path;
    request.query = query;
    return http_->Answer(request);
  }
  HttpResponse Post(const std::string& action, const Json& body) { return PostText(action, body.dump()); }
  HttpResponse PostText(const std::string& action, const std::string& body) {
    HttpRequest request;
    request.method = "POST";
    request.path = "/api/v1/ratings/" + action;
    request.content_type = "application/json";
    request.body = body;
    return http_->Answer(request);
  }
  // Of a reply with this status.
  Json BodyOf(const HttpResponse& response, int status = 200) {
    EXPECT_EQ(response.status, status) << response.body;
    EXPECT_EQ(response.content_type, "application/json; charset=utf-8");
    Json body = Json::parse(response.body, nullptr, false);
    if (status != 200) {
      EXPECT_TRUE(body["error"]["message"].is_string()) << response.body;
    }
    return body;
  }
  Json State() { return BodyOf(Get("/api/v1/ratings/state", "set=set&rater=ann")); }

  const text::TemporaryFolder folder_;
  std::unique_ptr<RatingStore> store_;
  std::unique_ptr<RatingsHttp> http_;
};

TEST_F(RatingsHttpTest, ItsAnswersAreGuarded) {
  const HttpResponse sets = Get("/api/v1/ratings/sets");
  const std::map<std::string, std::string> headers(sets.headers.begin(), sets.headers.end());
  EXPECT_THAT(headers.at("Content-Security-Policy"), HasSubstr("default-src 'none'"));
  EXPECT_EQ(headers.at("X-Content-Type-Options"), "nosniff");
  EXPECT_EQ(headers.at("Cache-Control"), "no-store");
}

TEST_F(RatingsHttpTest, ShowsAPairWithoutItsSources) {
  const Json state = State();
  EXPECT_EQ(state["set"]["pairs"], 3);
  EXPECT_EQ(state["rated"], 0);
  EXPECT_EQ(state["left"], 3);
  EXPECT_TRUE(state["last"].is_null());
  const uint64_t number = state["pair"]["pair"];
  const v1::RatingPair pair = testing::RatingPairOf(number);
  const bool swapped = RatingOrder("set", "ann").Swapped(number);
  EXPECT_EQ(state["pair"]["left"], swapped ? pair.b() : pair.a());
  EXPECT_EQ(state["pair"]["right"], swapped ? pair.a() : pair.b());
  EXPECT_EQ(state["pair"]["prompt"][0]["content"], pair.prompt(0).content());
  EXPECT_THAT(state.dump(), ::testing::Not(HasSubstr("sft@best")));
  EXPECT_EQ(State(), state);
}

TEST_F(RatingsHttpTest, RatesUndoesAndEnds) {
  Json state = State();
  for (int i = 0; i < 3; ++i) {
    const uint64_t number = state["pair"]["pair"];
    const bool good_is_left = absl::StartsWith(state["pair"]["left"].get<std::string>(), "good");
    const Json body = {{"set", "set"}, {"rater", "ann"}, {"pair", number}, {"choice", good_is_left ? "left" : "right"}};
    const Json next = BodyOf(Post("rate", body));
    EXPECT_EQ(next, BodyOf(Post("rate", body))) << "sent again, it changes nothing";
    EXPECT_EQ(next["rated"], i + 1);
    EXPECT_EQ(next["last"], number);
    EXPECT_EQ(store_->Read("set", number, 1)->at(0).ratings.at(0).choice(), v1::Rating::A);
    EXPECT_EQ(store_->Read("set", number, 1)->at(0).ratings.at(0).unix_ms(), 43'200'000);
    state = next;
  }
  EXPECT_TRUE(state["pair"].is_null());
  EXPECT_EQ(state["set"]["done"], 3);
  const uint64_t last = state["last"];
  const Json undo = {{"set", "set"}, {"rater", "ann"}, {"pair", last}};
  const Json undone = BodyOf(Post("undo", undo));
  EXPECT_EQ(undone["pair"]["pair"], last);
  EXPECT_EQ(undone["rated"], 2);
  EXPECT_EQ(BodyOf(Post("undo", undo)), undone);
}

TEST_F(RatingsHttpTest, ListsSetsAndAgreement) {
  EXPECT_EQ(BodyOf(Get("/api/v1/ratings/sets"))["sets"][0]["id"], "set");
  ASSERT_OK(store_->Rate("set", 0, testing::RatingOf("ann", v1::Rating::A)));
  ASSERT_OK(store_->Rate("set", 0, testing::RatingOf("bob", v1::Rating::A)));
  ASSERT_OK(store_->Rate("set", 1, testing::RatingOf("ann", v1::Rating::B)));
  ASSERT_OK(store_->Rate("set", 1, testing::RatingOf("bob", v1::Rating::B)));
  const Json agreement = BodyOf(Get("/api/v1/ratings/agreement", "set=set"));
  EXPECT_EQ(agreement["method"], "Cohen's");
  EXPECT_EQ(agreement["kappa"], 1.0);
  EXPECT_EQ(agreement["items"], 2);
  EXPECT_EQ(agreement["raters"][1]["rater"], "bob");
  EXPECT_EQ(agreement["raters"][1]["equal"], 2);
}

TEST_F(RatingsHttpTest, RefusesWhatIsWrong) {
  BodyOf(Get("/api/v1/ratings/"), 404);
  BodyOf(Get("/api/v1/ratings/unknown"), 404);
  BodyOf(Get("/api/v1/ratings/rate"), 405);
  BodyOf(Post("state", {}), 405);
  BodyOf(Get("/api/v1/ratings/state", "set=none&rater=ann"), 404);
  BodyOf(Get("/api/v1/ratings/state", "set=set&rater=%3Cb%3E"), 400);
  BodyOf(Get("/api/v1/ratings/state"), 400);
  BodyOf(Get("/api/v1/ratings/agreement", "set=none"), 404);
  BodyOf(PostText("rate", "{"), 400);
  BodyOf(PostText("rate", "\xff"), 400);
  const Json rating = {{"set", "set"}, {"rater", "ann"}, {"pair", 0}, {"choice", "left"}};
  const auto with = [rating](const char* field, const Json& value) {
    Json changed = rating;
    changed[field] = value;
    return changed;
  };
  BodyOf(Post("rate", with("set", "none")), 404);
  BodyOf(Post("rate", with("pair", 3)), 400);
  BodyOf(Post("rate", with("rater", "")), 400);
  BodyOf(Post("rate", with("note", std::string(kMaxRatingNoteBytes + 1, 'x'))), 400);
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);

  HttpRequest form;
  form.method = "POST";
  form.path = "/api/v1/ratings/rate";
  form.content_type = "text/plain";
  form.body = rating.dump();
  BodyOf(http_->Answer(form), 415);
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);

  BodyOf(Post("rate", rating));
  BodyOf(Post("rate", with("pair", 1)));
  BodyOf(Post("undo", {{"set", "set"}, {"rater", "ann"}, {"pair", 0}}), 409);
}

TEST_F(RatingsHttpTest, WantsItsToken) {
  http_ = std::make_unique<RatingsHttp>(store_.get(), kToken, &Noon);
  HttpRequest request;
  request.method = "GET";
  request.path = "/api/v1/ratings/sets";
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer 0123456789abcdeX", "Bearer 0123456789abcdef0",
                            "Bearer 0123456789abcde", "Basic 0123456789abcdef", "0123456789abcdef"}) {
    request.authorization = wrong;
    const HttpResponse response = http_->Answer(request);
    BodyOf(response, 401);
    EXPECT_THAT(response.headers, ::testing::Contains(::testing::Pair("WWW-Authenticate", "Bearer")));
  }
  request.authorization = std::string("Bearer ") + kToken;
  BodyOf(http_->Answer(request), 200);
}

TEST(HttpToken, IsReadFromAFileThatHoldsNothingElse) {
  const text::TemporaryFolder folder;
  EXPECT_EQ(ReadHttpToken(folder.Write("token", " 0123456789abcdef\n")).value(), kToken);
  for (const std::string& wrong : {std::string(), std::string("short"), std::string("0123456789abcdef two"),
                                   std::string("0123456789abcde+"), std::string(257, 'x')}) {
    const absl::Status status = ReadHttpToken(folder.Write("token", wrong)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("/token holds no token"));
  }
  EXPECT_TRUE(absl::IsNotFound(ReadHttpToken(folder / "none").status()));
}

}  // namespace
}  // namespace millrace::coordinator
