// Ratings from the command line and over HTTP, with a real coordinator.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "client/ratings_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/cluster.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

constexpr char kToken[] = "0123456789abcdef";

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// A coordinator alone, with its page and a token.
class Ratings : public ::testing::Test {
 protected:
  Ratings() {
    std::ofstream(folder_ / "token") << kToken << "\n";
    std::ofstream pairs(folder_ / "pairs.jsonl");
    for (int i = 0; i < kPairs; ++i) {
      pairs << Json{{"prompt", "question"}, {"a", absl::StrCat("good ", i)}, {"b", absl::StrCat("bad ", i)}} << "\n";
    }
    const std::string address_file = folder_ / "address";
    coordinator_ =
        std::make_unique<Member>("coordinator",
                                 std::vector<std::string>{Millrace(), "coordinator", "--dir", folder_ / "coordinator",
                                                          "--listen", "127.0.0.1:0", "--address-file", address_file,
                                                          "--http", "127.0.0.1:0", "--http-token", folder_ / "token"},
                                 folder_ / "log", address_file);
  }

  Outcome Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "ratings");
    for (const std::string& more : {std::string("--coordinator"), coordinator_->address()}) arguments.push_back(more);
    return RunMillrace(arguments);
  }
  std::string Page() {
    const auto sets = client::RatingsClient(coordinator_->address()).ListRatingSets();
    EXPECT_OK(sets);
    return sets.ok() ? sets->http_address() : "";
  }
  // The reply to a rating by ann.
  static std::string Rate(const std::string& page, int pair) {
    const Json body = {{"set", "set"}, {"rater", "ann"}, {"pair", pair}, {"choice", "tie"}};
    return Exchange(
        page, PostBytes("/api/v1/ratings/rate", body.dump(), absl::StrCat("Authorization: Bearer ", kToken, "\r\n")));
  }

  static constexpr int kPairs = 5000;
  const TemporaryFolder folder_;
  std::unique_ptr<Member> coordinator_;
};

TEST_F(Ratings, AreImportedListedAndExported) {
  const Outcome imported = Run({"import", "set", "--file", folder_ / "pairs.jsonl", "--title", "Which one?"});
  EXPECT_TRUE(imported.ending.well()) << imported.out;
  EXPECT_THAT(imported.out, HasSubstr("set: 5000 pairs, 0 of them done\nRate at http://127.0.0.1:"));
  EXPECT_TRUE(Run({"import", "set", "--file", folder_ / "pairs.jsonl", "--title", "Which one?"}).ending.well());
  const Outcome other = Run({"import", "set", "--file", folder_ / "pairs.jsonl", "--raters", "2"});
  EXPECT_EQ(other.ending.status, 1);
  EXPECT_THAT(other.out, HasSubstr("take another name"));

  EXPECT_THAT(Rate(Page(), 7), StartsWith("HTTP/1.1 200 "));
  const Outcome listed = Run({"list", "--json"});
  const Json list = Json::parse(listed.out, nullptr, false);
  ASSERT_TRUE(list.is_object()) << listed.out;
  EXPECT_EQ(list["sets"][0]["title"], "Which one?");
  EXPECT_EQ(list["sets"][0]["done"], 1);
  EXPECT_EQ(list["http_address"], Page());
  const Outcome exported = Run({"export", "set", "--out", folder_ / "out.jsonl", "--json"});
  EXPECT_EQ(Json::parse(exported.out, nullptr, false)["unrated"], kPairs - 1) << exported.out;
  const Json example = Json::parse(ReadAll(folder_ / "out.jsonl"), nullptr, false);
  EXPECT_EQ(example["chosen"], "good 7");
  EXPECT_EQ(example["tie"], true);
  const Outcome unknown = Run({"export", "none", "--out", folder_ / "none.jsonl"});
  EXPECT_EQ(unknown.ending.status, 1);
  EXPECT_THAT(unknown.out, HasSubstr("no rating set 'none'"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "none.jsonl"));
}

TEST_F(Ratings, BadPairsAreNamedByFileAndLine) {
  std::ofstream(folder_ / "bad.jsonl") << "{\"prompt\": \"p\", \"a\": \"1\", \"b\": \"2\"}\n\n{\"prompt\": \"p\"}\n";
  const Outcome bad = Run({"import", "set", "--file", folder_ / "bad.jsonl"});
  EXPECT_EQ(bad.ending.status, 1);
  EXPECT_THAT(bad.out, HasSubstr("bad.jsonl:3: there is no field 'a'"));
  std::ofstream(folder_ / "bad.jsonl") << "{\"prompt\": \"\xff\"}\n";
  EXPECT_THAT(Run({"import", "set", "--file", folder_ / "bad.jsonl"}).out, HasSubstr("bad.jsonl:1: "));
  EXPECT_EQ(Run({"import", "a b", "--file", folder_ / "pairs.jsonl"}).ending.status, 1);
  EXPECT_EQ(Run({"imprt"}).ending.status, 2);
}

TEST_F(Ratings, AConfirmedRatingSurvivesTheCoordinatorsDeath) {
  ASSERT_TRUE(Run({"import", "set", "--file", folder_ / "pairs.jsonl"}).ending.well());
  const std::string page = Page();
  EXPECT_THAT(Exchange(page, PostBytes("/api/v1/ratings/rate", "{}")), StartsWith("HTTP/1.1 401 "));
  int confirmed = 0;
  absl::Notification well_on;
  std::thread rater([&] {
    while (confirmed < kPairs && absl::StartsWith(Rate(page, confirmed), "HTTP/1.1 200 ")) {
      if (++confirmed == 50) well_on.Notify();
    }
    if (confirmed < 50) well_on.Notify();
  });
  well_on.WaitForNotification();
  coordinator_->Kill();
  rater.join();
  ASSERT_GE(confirmed, 50);
  ASSERT_LT(confirmed, kPairs) << "it was to be killed in the middle";
  coordinator_->Restart();
  const auto sets = client::RatingsClient(coordinator_->address()).ListRatingSets();
  ASSERT_OK(sets);
  EXPECT_GE(sets->sets(0).ratings(), static_cast<uint64_t>(confirmed));
  EXPECT_LE(sets->sets(0).ratings(), static_cast<uint64_t>(confirmed) + 1) << "at most the one under way";
}

TEST(RatingFlags, WantAPageForATokenAndAnAddressForAPage) {
  const TemporaryFolder folder;
  const Outcome token = RunMillrace({"coordinator", "--dir", folder / "c", "--http-token", folder / "token"});
  EXPECT_EQ(token.ending.status, 2) << token.out;
  EXPECT_THAT(token.out, HasSubstr("--http"));
  const Outcome address = RunMillrace({"coordinator", "--dir", folder / "c", "--http", "8080"});
  EXPECT_EQ(address.ending.status, 1);
  EXPECT_THAT(address.out, HasSubstr("'8080': it is no HOST:PORT"));
}

}  // namespace
}  // namespace millrace::testing
