// The rating page in a real browser: real keys and taps, what the page shows, and what the coordinator's store then
// has.
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/http_server.h"
#include "coordinator/page_http.h"
#include "coordinator/rating_store.h"
#include "coordinator/ratings_http.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/browser.h"
#include "testing/rating_sets.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::AllOf;
using testing::Browser;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::kDesktop;
using testing::kTelephone;
using v1::Rating;

constexpr char kToken[] = "0123456789abcdef";

class PageTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    browser_ = new Browser;
    StartServer("127.0.0.1:0");
  }
  static void TearDownTestSuite() {
    server_.reset();
    delete browser_;
  }
  static void StartServer(const std::string& listen) {
    HttpServerOptions options;
    options.listen = listen;
    options.max_body_bytes = kMaxRatingBodyBytes;
    options.answer = [](const HttpRequest& request) { return answers_.load()->Answer(request); };
    options.refuse = &RatingsHttp::Refuse;
    auto server = HttpServer::Start(std::move(options));
    ASSERT_OK(server);
    server_ = *std::move(server);
  }

  PageTest() : store_(*RatingStore::Open(folder_ / "ratings.sqlite")) { Serve(""); }
  ~PageTest() override {
    if (tab_ != nullptr) {
      EXPECT_THAT(tab_->TakeComplaints(), IsEmpty());
    }
  }

  void Serve(const std::string& token) {
    http_ = std::make_unique<RatingsHttp>(store_.get(), token, &absl::Now);
    PageHttp::Parts parts;
    parts.ratings = http_.get();
    pages_ = std::make_unique<PageHttp>(std::move(parts));
    answers_ = pages_.get();
  }
  void Create(uint64_t pairs, uint32_t raters = 1) {
    ASSERT_OK(store_->Create(testing::RatingSetOf("set", raters), testing::RatingPairs(pairs)));
  }
  static std::string Address() { return absl::StrCat("http://", server_->address(), "/rate"); }

  // Opens the page and begins as ann.
  void Begin(testing::Screen screen) {
    tab_ = browser_->NewTab(screen);
    tab_->Load(Address());
    tab_->Await("document.activeElement.id === 'rater'");
    tab_->Type("ann");
    tab_->Press("Enter");
    AwaitPair();
  }
  void AwaitPair() { tab_->Await("document.querySelector('#left').textContent !== ''"); }
  void AwaitStatus(const std::string& text) {
    tab_->Await("document.querySelector('#status').textContent === " + nlohmann::json(text).dump());
  }
  std::string Text(const std::string& selector) {
    return tab_->Evaluate("document.querySelector('" + selector + "').innerText").get<std::string>();
  }
  // The number that the prompt shown has, which is the pair's.
  uint64_t Shown() { return std::stoull(Text("#prompt .text").substr(9)); }
  bool GoodIsLeft() { return absl::StartsWith(Text("#left"), "good"); }
  std::vector<Rating> Ratings(uint64_t pair) { return store_->Read("set", pair, 1)->at(0).ratings; }

  static Browser* browser_;
  static std::unique_ptr<HttpServer> server_;
  static std::atomic<PageHttp*> answers_;

  const text::TemporaryFolder folder_;
  const std::unique_ptr<RatingStore> store_;
  std::unique_ptr<RatingsHttp> http_;
  std::unique_ptr<PageHttp> pages_;
  std::unique_ptr<Browser::Tab> tab_;
};

Browser* PageTest::browser_ = nullptr;
std::unique_ptr<HttpServer> PageTest::server_;
std::atomic<PageHttp*> PageTest::answers_ = nullptr;

TEST_F(PageTest, RatesWithKeys) {
  Create(8);
  Begin(kDesktop);
  EXPECT_EQ(Text("#title"), "Which answer is better?");
  EXPECT_EQ(Text("#mine-text"), "0 of 8");

  // The answer on the left, by both of its keys, and the one on the right.
  const struct {
    const char* key;
    bool left;
    const char* said;
  } sides[] = {{"1", true, "Saved: answer 1 is better."},
               {"ArrowLeft", true, "Saved: answer 1 is better."},
               {"2", false, "Saved: answer 2 is better."},
               {"ArrowRight", false, "Saved: answer 2 is better."}};
  uint64_t rated = 0;
  for (const auto& side : sides) {
    const uint64_t pair = Shown();
    const Rating::Choice choice = GoodIsLeft() == side.left ? Rating::A : Rating::B;
    tab_->Press(side.key);
    tab_->Await(absl::StrCat("document.querySelector('#mine-text').textContent === '", ++rated, " of 8'"));
    AwaitStatus(side.said);
    ASSERT_EQ(Ratings(pair).size(), 1u);
    EXPECT_EQ(Ratings(pair)[0].choice(), choice) << side.key;
    EXPECT_EQ(Ratings(pair)[0].rater(), "ann");
    EXPECT_GT(Ratings(pair)[0].unix_ms(), 0);
  }
  EXPECT_EQ(Text("#all-text"), "4 of 8");

  uint64_t pair = Shown();
  tab_->Press("t");
  AwaitStatus("Saved: a tie.");
  EXPECT_EQ(Ratings(pair).at(0).choice(), Rating::TIE);

  pair = Shown();
  tab_->Press("s");
  AwaitStatus("Saved: skipped.");
  EXPECT_EQ(Ratings(pair).at(0).choice(), Rating::SKIP);

  // Strength twice, a flag, and a note in which keys are letters.
  pair = Shown();
  tab_->Press("m");
  tab_->Press("m");
  tab_->Press("f");
  tab_->Press("n");
  tab_->Await("document.activeElement.id === 'note'");
  tab_->Press("1");
  tab_->Type(" clear answer, 2 typos");
  EXPECT_THAT(Ratings(pair), IsEmpty());
  tab_->Press("Escape");
  tab_->Press("2");
  AwaitStatus("Saved: answer 2 is better.");
  ASSERT_EQ(Ratings(pair).size(), 1u);
  EXPECT_EQ(Ratings(pair)[0].strength(), 2u);
  EXPECT_TRUE(Ratings(pair)[0].flagged());
  EXPECT_EQ(Ratings(pair)[0].note(), "1 clear answer, 2 typos");

  // None of that stays for the next pair.
  pair = Shown();
  tab_->Press("0");
  tab_->Await("!document.querySelector('#finished').hidden");
  EXPECT_EQ(Ratings(pair).at(0).choice(), Rating::TIE);
  EXPECT_FALSE(Ratings(pair)[0].flagged());
  EXPECT_EQ(Ratings(pair)[0].note(), "");
  EXPECT_EQ(Text("#all-text"), "8 of 8");

  // Back to the start.
  for (int left = 7; left >= 0; --left) {
    tab_->Press("u");
    tab_->Await(absl::StrCat("document.querySelector('#mine-text').textContent === '", left, " of 8'"));
    if (left == 7) {
      EXPECT_EQ(Shown(), pair) << "what was undone is asked again";
    }
  }
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);
  tab_->Press("u");
  EXPECT_EQ(tab_->Evaluate("document.querySelector('#undo').getAttribute('aria-disabled')"), "true");
}

TEST_F(PageTest, ShowsTheSameAfterAReload) {
  Create(30);
  Begin(kDesktop);
  const uint64_t pair = Shown();
  const std::string left = Text("#left");
  for (int time = 0; time < 2; ++time) {
    tab_->Reload();
    AwaitPair();
    EXPECT_EQ(Shown(), pair);
    EXPECT_EQ(Text("#left"), left);
  }
}

TEST_F(PageTest, ShowsMarkupAsText) {
  std::vector<v1::RatingPair> pairs = testing::RatingPairs(1);
  const std::string markup = "<img src=x onerror='window.broken = true'>\n  <b>&amp;</b>";
  pairs[0].mutable_prompt(0)->set_content(markup);
  pairs[0].set_a(markup + "a");
  pairs[0].set_b(markup + "b");
  ASSERT_OK(store_->Create(testing::RatingSetOf("set", 1), pairs));
  Begin(kDesktop);
  EXPECT_EQ(Text("#prompt .text"), markup);
  EXPECT_THAT(Text("#left"), HasSubstr(markup));
  EXPECT_EQ(tab_->Evaluate("document.querySelectorAll('main img, main b').length"), 0);
  EXPECT_EQ(tab_->Evaluate("window.broken === undefined"), true);
}

TEST_F(PageTest, HelpOpensAndClosesAndKeepsKeysToItself) {
  Create(2);
  Begin(kDesktop);
  tab_->Press("?");
  tab_->Await("document.querySelector('#help').open");
  tab_->Press("1");
  tab_->Press("Escape");
  tab_->Await("!document.querySelector('#help').open");
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);
  tab_->Press("t");
  AwaitStatus("Saved: a tie.");
}

TEST_F(PageTest, WorksWithButtonsAlone) {
  Create(3);
  Begin(kDesktop);
  // From the prompt's heading, which has the focus, to the first choice with Tab alone: over the summary of the
  // details.
  tab_->Await("document.activeElement.id === 'prompt-heading'");
  for (int i = 0; i < 5 && tab_->Evaluate("document.activeElement.dataset.choice || ''") != "left"; ++i) {
    tab_->Press("Tab");
  }
  const uint64_t pair = Shown();
  const Rating::Choice choice = GoodIsLeft() ? Rating::A : Rating::B;
  tab_->Press("Enter");
  AwaitStatus("Saved: answer 1 is better.");
  EXPECT_EQ(Ratings(pair).at(0).choice(), choice);
  tab_->Click("#undo");
  AwaitStatus("Undone: rate this pair again.");
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);
}

TEST_F(PageTest, ShowsAgreement) {
  Create(2, /*raters=*/2);
  for (uint64_t pair = 0; pair < 2; ++pair) {
    ASSERT_OK(store_->Rate("set", pair, testing::RatingOf("bob", pair == 0 ? Rating::A : Rating::B)));
  }
  Begin(kDesktop);
  for (int i = 0; i < 2; ++i) {
    const bool good_is_left = GoodIsLeft();
    const bool a_wins = Shown() == 0;
    tab_->Press(good_is_left == a_wins ? "1" : "2");
    tab_->Await(absl::StrCat("document.querySelector('#mine-text').textContent === '", i + 1, " of 2'"));
  }
  tab_->Click("#agreement summary");
  tab_->Await("document.querySelectorAll('#raters tr').length === 2");
  EXPECT_EQ(Text("#kappa"), "Cohen's kappa 1.00 over 2 pairs");
  EXPECT_THAT(Text("#raters"), HasSubstr("100 %"));
}

TEST_F(PageTest, SaysNothingIsSavedWhileTheConnectionIsLostAndThenSavesOnce) {
  Create(2);
  Begin(kDesktop);
  const uint64_t pair = Shown();
  const std::string address = server_->address();
  server_.reset();
  tab_->Press("1");
  tab_->Await("!document.querySelector('#trouble').hidden");
  EXPECT_THAT(Text("#trouble"),
              AllOf(HasSubstr("Connection lost"), HasSubstr("Your rating is not saved yet. Trying again")));
  EXPECT_EQ(Text("#mine-text"), "0 of 2");
  EXPECT_EQ(Shown(), pair);
  tab_->Press("2");  // not now
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);
  const Rating::Choice choice = GoodIsLeft() ? Rating::A : Rating::B;
  StartServer(address);
  AwaitStatus("Saved: answer 1 is better.");
  tab_->Await("document.querySelector('#trouble').hidden");
  EXPECT_EQ(Text("#mine-text"), "1 of 2");
  EXPECT_EQ(store_->Get("set")->ratings(), 1u);
  EXPECT_EQ(Ratings(pair).at(0).choice(), choice);
  // The browser notes each attempt that failed.
  for (const std::string& complaint : tab_->TakeComplaints()) EXPECT_THAT(complaint, HasSubstr("ERR_CONNECTION"));
}

TEST_F(PageTest, TakesTheTokenFromTheLinkOnce) {
  Create(1);
  Serve(kToken);
  tab_ = browser_->NewTab(kDesktop);
  tab_->Load(Address());
  tab_->Await("!document.querySelector('#trouble').hidden");
  EXPECT_THAT(Text("#trouble"), HasSubstr("wants its token"));
  EXPECT_EQ(tab_->TakeComplaints().size(), 1u) << "one request was refused";
  // What is behind # alone loads nothing: the page does.
  tab_->Load(absl::StrCat(Address(), "#token=", kToken));
  tab_->Await("document.activeElement.id === 'rater'");
  EXPECT_EQ(tab_->Evaluate("location.href"), Address());
  tab_->Type("ann");
  tab_->Press("Enter");
  AwaitPair();
  tab_->Reload();
  AwaitPair();
  tab_->Press("1");
  AwaitStatus("Saved: answer 1 is better.");
  // Links of before had it in the query.
  tab_ = browser_->NewTab(kDesktop);
  tab_->Load(absl::StrCat(Address(), "?token=", kToken));
  tab_->Await("document.activeElement.id === 'rater'");
  EXPECT_EQ(tab_->Evaluate("location.href"), Address());
}

TEST_F(PageTest, FitsATelephone) {
  std::vector<v1::RatingPair> pairs = testing::RatingPairs(2);
  for (v1::RatingPair& pair : pairs) {
    for (int i = 0; i < 80; ++i) pair.mutable_a()->append(" word").append(i == 40 ? 200 : 0, 'x');
  }
  ASSERT_OK(store_->Create(testing::RatingSetOf("set", 1), pairs));
  Begin(kTelephone);
  EXPECT_EQ(tab_->Evaluate("document.documentElement.scrollWidth <= innerWidth"), true) << "nothing sticks out";
  const nlohmann::json boxes =
      tab_->Evaluate("[...document.querySelectorAll('.answer')].map((e) => e.getBoundingClientRect().toJSON())");
  EXPECT_LE(boxes[0]["bottom"], boxes[1]["top"]) << "one above the other";
  EXPECT_EQ(tab_->Evaluate("[...document.querySelectorAll('button, summary')].filter((e) => e.checkVisibility())"
                           ".map((e) => [e.innerText, e.getBoundingClientRect()])"
                           ".filter(([, r]) => r.width < 44 || r.height < 44).map(([text]) => text)"),
            nlohmann::json::array())
      << "too small for a thumb";
  EXPECT_EQ(tab_->Evaluate("[...document.querySelectorAll('#actions button')].every((e) => {"
                           "const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight; })"),
            true)
      << "the choices are at hand without scrolling";
  const uint64_t pair = Shown();
  const Rating::Choice choice = GoodIsLeft() ? Rating::B : Rating::A;
  tab_->Click("button[data-choice=right]");
  AwaitStatus("Saved: answer 2 is better.");
  EXPECT_EQ(Ratings(pair).at(0).choice(), choice);
}

TEST_F(PageTest, ShowsAnswersSideBySideOnADesktop) {
  Create(1);
  Begin(kDesktop);
  const nlohmann::json boxes =
      tab_->Evaluate("[...document.querySelectorAll('.answer')].map((e) => e.getBoundingClientRect().toJSON())");
  EXPECT_LE(boxes[0]["right"], boxes[1]["left"]);
  EXPECT_EQ(boxes[0]["top"], boxes[1]["top"]);
  EXPECT_EQ(boxes[0]["width"], boxes[1]["width"]);
}

TEST_F(PageTest, IsReadableAndNamedInBothModes) {
  Create(1);
  Begin(kDesktop);
  tab_->Press("f");
  tab_->Click("#agreement summary");
  std::vector<nlohmann::json> papers;
  for (const bool dark : {false, true}) {
    tab_->SetDarkMode(dark);
    EXPECT_EQ(tab_->PoorContrasts(), nlohmann::json::array()) << (dark ? "dark" : "light");
    papers.push_back(tab_->Evaluate("getComputedStyle(document.body).backgroundColor"));
  }
  EXPECT_NE(papers[0], papers[1]);
  EXPECT_EQ(tab_->Evaluate("[...document.querySelectorAll('input, select, textarea, progress')]"
                           ".filter((e) => e.labels.length === 0).map((e) => e.id)"),
            nlohmann::json::array());
  EXPECT_EQ(tab_->Evaluate("[...document.querySelectorAll('[aria-labelledby], [aria-describedby]')].filter((e) => "
                           "document.getElementById(e.getAttribute('aria-labelledby') ?? "
                           "e.getAttribute('aria-describedby')) === null).length"),
            0);
  EXPECT_EQ(tab_->Evaluate("document.querySelector('#status').getAttribute('aria-live')"), "polite");
}

}  // namespace
}  // namespace millrace::coordinator
