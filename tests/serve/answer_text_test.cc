// Against the plain definition: the whole text, searched for each stop string.
#include "serve/answer_text.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"

namespace millrace::serve {
namespace {

// The text before the stop string that is completed first; of those completed together before the longest.
std::string Expected(const std::string& text, const std::vector<std::string>& stops, bool* stopped) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    *stopped = longest > 0;
    if (longest > 0) return text.substr(0, end - longest);
  }
  *stopped = false;
  return text;
}

TEST(AnswerText, CutsBeforeTheStopStringThatIsCompletedFirst) {
  const std::vector<std::vector<std::string>> cases = {
      {}, {"a"}, {"aab"}, {"abab", "bb"}, {"aabaaab", "baaa"}, {"ab", "aab"}, {"bbbb", "bab", "aaaaa"}};
  int cut = 0, whole = 0;
  for (const std::vector<std::string>& stops : cases) {
    for (uint64_t draw = 0; draw < 300; ++draw) {
      std::string text;
      const Philox philox(draw);
      for (uint64_t i = 0; i < 30; ++i) text += philox(0, i)[0] % 3 == 0 ? 'b' : 'a';
      bool stopped = false;
      const std::string expected = Expected(text, stops, &stopped);
      (stopped ? cut : whole) += 1;
      AnswerText answer(stops);
      std::string got;
      for (size_t at = 0, pieces = 0; at < text.size() && !answer.stopped(); ++pieces) {
        const size_t size = 1 + philox(1, pieces)[0] % 5;
        got += answer.Add(text.substr(at, size));
        at += size;
        ASSERT_EQ(got.size(), answer.certain());
        ASSERT_EQ(got, expected.substr(0, got.size())) << "given too early: " << text;
      }
      EXPECT_EQ(answer.stopped(), stopped) << text;
      got += answer.Finish();
      EXPECT_EQ(got, expected) << text;
      EXPECT_EQ(answer.certain(), expected.size());
    }
  }
  EXPECT_GT(cut, 100);
  EXPECT_GT(whole, 100);
}

TEST(AnswerText, HoldsBackNoMoreThanWhatMayBecomeAStop) {
  AnswerText answer({"<end>"});
  EXPECT_EQ(answer.Add("one <"), "one ");
  EXPECT_EQ(answer.Add("e"), "");
  EXPECT_EQ(answer.Add("gg> <en"), "<egg> ");
  EXPECT_EQ(answer.Finish(), "<en");
}

TEST(AnswerText, GivesWholeCharacters) {
  AnswerText answer({"\u00e9t"});
  EXPECT_EQ(answer.Add("a\xF0\x9F"), "a");
  EXPECT_EQ(answer.Add("\x99"), "");
  EXPECT_EQ(answer.Add("\x82\xC3"), "\U0001F642");
  EXPECT_EQ(answer.Add("\xA9"), "");
  EXPECT_EQ(answer.Add("t!"), "");
  EXPECT_TRUE(answer.stopped());
  EXPECT_EQ(answer.Finish(), "");
  // A character that is cut off by a stop string or by the end.
  AnswerText cut({"stop"});
  EXPECT_EQ(cut.Add("a\xC3stop"), "a\uFFFD");
  AnswerText ended({});
  EXPECT_EQ(ended.Add("a\xE4\xB8"), "a");
  EXPECT_EQ(ended.Finish(), "\uFFFD");
}

}  // namespace
}  // namespace millrace::serve
