#include "text/markup.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/clean.h"

namespace millrace::text {
namespace {

TEST(Html, GivesTheTextThatABrowserShows) {
  const auto text = HtmlToText(
      "<!doctype html><html><head><title>T</title><style>p{}</style></head><body><script>var a = '<p>no</p>';</script>"
      "<h1>A &amp;\n  B</h1><p>One <b>bold</b>, two<br>three &eacute;&#x1F642;</p><ul><li>x</li><li>y</li></ul>"
      "<pre>  keep\n    this</pre><div>a</div><div>b</div><table><tr><td>1</td><td>2</td></tr></table><!-- gone "
      "--></body></html>");
  ASSERT_OK(text);
  EXPECT_EQ(*text, "A & B\n\nOne bold, two\nthree é🙂\n\nx\ny\n\n  keep\n    this\n\na\nb\n\n1 2\n");
}

TEST(Html, SurvivesBrokenAndDeeplyNestedPages) {
  EXPECT_EQ(*HtmlToText("<p>unclosed <b>bold<p>next</i>"), "unclosed bold\n\nnext\n");
  EXPECT_EQ(*HtmlToText(""), "");
  std::string deep;
  for (int i = 0; i < 20000; ++i) deep += "<div>";
  EXPECT_EQ(*HtmlToText(deep + "x"), "x\n");
  EXPECT_EQ(HtmlToText(std::string(kMaxHtmlBytes + 1, 'x')).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Markdown, LeavesWhatTheMarksMark) {
  EXPECT_EQ(
      MarkdownToText(
          "---\ntitle: x\n---\n# Title #\n\nSome *emphasis*, __strong__ and `code_x`; snake_case_name, 2 * 3.\n"
          "A [link](http://x.org \"t\") and ![image](a.png), <b>bold</b>, <https://a.b>.\n\n"
          "> quoted\n\n- one\n- [x] two\n1. three\n\n```cpp\nint *a_b = *c;\n```\n\nSetext\n======\n\n"
          "| a | b |\n|---|---|\n| 1 | 2 |\n\n[ref]: http://y\n<!-- comment -->\\*kept\\* R&amp;D\n"),
      "Title\n\nSome emphasis, strong and code_x; snake_case_name, 2 * 3.\nA link and image, bold, https://a.b.\n\n"
      "quoted\n\none\ntwo\nthree\n\nint *a_b = *c;\n\nSetext\n\na b\n1 2\n\n*kept* R&D\n");
}

v1::CleanSpec Spec(const std::string& unicode, bool control, bool lowercase, bool punctuation) {
  v1::CleanSpec spec;
  spec.set_unicode(unicode);
  spec.set_control(control);
  spec.set_lowercase(lowercase);
  spec.set_punctuation(punctuation);
  return spec;
}

TEST(Clean, EachStepDoesItsOwnAndNothingElse) {
  const std::string text = "\ufeffA\r\nB\rC\x01\u0085\tÉ e\u0301 ﬁ “x” — y…\u00a0İ  ";
  EXPECT_EQ(*Clean(Spec("none", false, false, false), text), text);
  EXPECT_EQ(*Clean(Spec("none", true, false, false), text), "A\nB\nC\tÉ e\u0301 ﬁ “x” — y…\u00a0İ  ");
  EXPECT_EQ(*Clean(Spec("nfc", true, false, false), text), "A\nB\nC\tÉ é ﬁ “x” — y…\u00a0İ  ");
  EXPECT_EQ(*Clean(Spec("nfkc", true, false, false), text), "A\nB\nC\tÉ é fi “x” — y... İ  ");
  EXPECT_EQ(*Clean(Spec("nfc", true, true, false), text), "a\nb\nc\té é ﬁ “x” — y…\u00a0i\u0307  ");
  EXPECT_EQ(*Clean(Spec("nfc", true, false, true), text), "A\nB\nC\tÉ é ﬁ \"x\" - y... İ  ");
  EXPECT_FALSE(Clean(Spec("nfc", true, false, false), "a\xff").ok());
}

}  // namespace
}  // namespace millrace::text
