#include "common/tokens.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using text::TemporaryFolder;

// printf secret | sha256sum
constexpr char kDigest[] = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

TEST(ParseTokens, ReadsNamesAndRoles) {
  const auto owners = ParseTokens(absl::StrCat("# people\n\n alice\toperator  ", kDigest, "\n"), "tokens");
  ASSERT_OK(owners);
  ASSERT_EQ(owners->size(), 1u);
  EXPECT_EQ((*owners)[0].name, "alice");
  EXPECT_EQ((*owners)[0].role, Role::kOperator);
  EXPECT_EQ((*owners)[0].digest[0], 0x2b);
}

TEST(ParseTokens, NamesTheLineThatIsWrong) {
  const std::string good = absl::StrCat("alice operator ", kDigest, "\n");
  const std::vector<std::pair<std::string, const char*>> wrong = {
      {"bob viewer", "2 fields"},
      {"bob viewer secret-token", "not a SHA-256"},
      {absl::StrCat("bob worker ", kDigest), "not a role that tokens have"},
      {absl::StrCat("b/b viewer ", kDigest), "is not a name"},
      {absl::StrCat(std::string(65, 'b'), " viewer ", kDigest), "is not a name"},
      {absl::StrCat("bob viewer ", kDigest), "another line has the same token"},
      {absl::StrCat("bob viewer ", kDigest, " more"), "4 fields"},
  };
  for (const auto& [line, why] : wrong) {
    const absl::Status status = ParseTokens(absl::StrCat(good, line, "\n"), "tokens").status();
    // What is wrong may be a token by itself: it is not repeated.
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("tokens:2: "), HasSubstr(why), Not(HasSubstr("secret-token"))))
        << line;
  }
}

TEST(Tokens, OfALineThatWasMadeAreFound) {
  const TemporaryFolder folder;
  const std::string alices = NewToken(), bobs = NewToken();
  EXPECT_NE(alices, bobs);
  EXPECT_EQ(alices.size(), 64u);
  folder.Write("tokens",
               absl::StrCat(*TokenLine("alice", "operator", alices), "\n", *TokenLine("bob", "viewer", bobs)));
  const auto tokens = Tokens::Open(folder / "tokens");
  ASSERT_OK(tokens);
  EXPECT_EQ((*tokens)->Find(alices)->name, "alice");
  EXPECT_EQ((*tokens)->Find(bobs)->role, Role::kViewer);
  for (const std::string& none :
       {std::string(), std::string("x"), alices + "0", alices.substr(1), std::string(300, 'a')}) {
    EXPECT_FALSE((*tokens)->Find(none).has_value()) << none;
  }
  EXPECT_FALSE(TokenLine("a b", "viewer", "x").ok());
  EXPECT_FALSE(TokenLine("a", "coordinator", "x").ok());
}

TEST(Tokens, AreReadAgainWhenTheFileHasChanged) {
  const TemporaryFolder folder;
  const std::string first = NewToken(), second = NewToken();
  folder.Write("tokens", *TokenLine("alice", "operator", first));
  const auto tokens = Tokens::Open(folder / "tokens");
  ASSERT_OK(tokens);
  // Another file takes its place, as editors and Kubernetes do.
  folder.Write("next", *TokenLine("alice", "operator", second) + "\n");
  std::filesystem::rename(folder / "next", folder / "tokens");
  EXPECT_FALSE((*tokens)->Find(first).has_value());
  EXPECT_TRUE((*tokens)->Find(second).has_value());
  // A mistake in it, or its absence, locks nobody out.
  folder.Write("next", "alice operator");
  std::filesystem::rename(folder / "next", folder / "tokens");
  EXPECT_TRUE((*tokens)->Find(second).has_value());
  std::filesystem::remove(folder / "tokens");
  EXPECT_TRUE((*tokens)->Find(second).has_value());
  folder.Write("tokens", "# nobody\n");
  EXPECT_FALSE((*tokens)->Find(second).has_value());
}

TEST(ReadTokenFile, WantsOneWord) {
  const TemporaryFolder folder;
  EXPECT_EQ(*ReadTokenFile(folder.Write("a", " abc\n")), "abc");
  for (const std::string& text : {std::string(), std::string("a b"), std::string("a\nb"), std::string(257, 'a')}) {
    EXPECT_THAT(std::string(ReadTokenFile(folder.Write("b", text)).status().message()), HasSubstr(folder / "b"));
  }
}

}  // namespace
}  // namespace millrace
