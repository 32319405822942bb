#include "text/readable_text.h"

#include <string>

#include "gtest/gtest.h"

namespace millrace::text {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

TEST(ReadableText, CharactersComeWhole) {
  const std::string text = "a\u00fc\u4e16\U0001F642z";
  ReadableText readable;
  std::string joined;
  for (const char byte : text) {
    const std::string piece = readable.Add(std::string(1, byte));
    // One character at a time, with its last byte.
    EXPECT_TRUE(piece.empty() || piece.size() == ((piece[0] & 0x80) == 0 ? 1
                                                  : piece[0] == '\xC3'   ? 2
                                                  : piece[0] == '\xE4'   ? 3
                                                                         : 4));
    joined += piece;
  }
  EXPECT_EQ(joined, text);
  EXPECT_EQ(readable.Finish(), "");
}

TEST(ReadableText, WhatIsNoCharacterIsReplaced) {
  EXPECT_EQ(ReadableTextOf("a\x80z"), std::string("a") + kReplacement + "z");
  EXPECT_EQ(ReadableTextOf("a\xE4\xB8"), std::string("a") + kReplacement);
  EXPECT_EQ(ReadableTextOf(""), "");
  ReadableText readable;
  EXPECT_EQ(readable.Add("\xE4"), "");
  EXPECT_EQ(readable.Add("z"), std::string(kReplacement) + "z");  // nothing waits longer than it can
  // Beginnings that no byte completes: overlong forms, surrogates, above U+10FFFF.
  for (const char* bytes : {"\xC0", "\xE0\x80", "\xED\xA0", "\xF0\x80", "\xF4\x90", "\xF5"}) {
    EXPECT_NE(readable.Add(bytes), "") << bytes;
    EXPECT_EQ(readable.Finish(), "") << bytes;
  }
}

TEST(ReadableText, QuotedTextIsOneLine) {
  EXPECT_EQ(QuotedText(" a\n\"\xC3"), std::string("\" a\\n\\\"") + kReplacement + "\"");
}

}  // namespace
}  // namespace millrace::text
