#include "common/tokens.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/log.h"
#include "common/status.h"

namespace millrace {
namespace {

constexpr size_t kMaxNameBytes = 64;
constexpr size_t kShownBytes = 80;

std::array<uint8_t, 32> Digest(absl::string_view token) {
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

std::string Shown(absl::string_view text) { return absl::CHexEscape(text.substr(0, kShownBytes)); }

bool IsOwnerName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-' || c == '@';
  });
}

absl::StatusOr<TokenOwner> ParseOwner(absl::string_view name, absl::string_view role) {
  if (!IsOwnerName(name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", Shown(name), "' is not a name: at most ", kMaxNameBytes,
                                                   " letters, digits, '.', '_', '-' and '@'"));
  }
  const std::optional<Role> parsed = ParseRole(role);
  if (parsed != Role::kOperator && parsed != Role::kViewer) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", Shown(role), "' is not a role that tokens have: operator or viewer"));
  }
  TokenOwner owner;
  owner.name = std::string(name);
  owner.role = *parsed;
  return owner;
}

absl::StatusOr<TokenOwner> ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  // What stands there may be a token itself, put there by mistake: it is not repeated.
  if (fields.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat(fields.size(), " fields; a line is NAME ROLE SHA256-OF-TOKEN"));
  }
  MILLRACE_ASSIGN_OR_RETURN(TokenOwner owner, ParseOwner(fields[0], fields[1]));
  if (fields[2].size() != 64 || !std::all_of(fields[2].begin(), fields[2].end(), [](char c) {
        return absl::ascii_isxdigit(static_cast<unsigned char>(c));
      })) {
    return absl::InvalidArgumentError(
        "the third field is not a SHA-256 in hexadecimal, 64 digits: `millrace certs token` prints a whole line");
  }
  const std::string digest = absl::HexStringToBytes(fields[2]);
  std::copy(digest.begin(), digest.end(), owner.digest.begin());
  return owner;
}

}  // namespace

absl::StatusOr<std::vector<TokenOwner>> ParseTokens(absl::string_view text, absl::string_view shown) {
  std::vector<TokenOwner> owners;
  std::set<std::array<uint8_t, 32>> digests;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    absl::StatusOr<TokenOwner> owner = ParseLine(line);
    if (!owner.ok()) return Annotate(owner.status(), absl::StrCat(shown, ":", number));
    if (!digests.insert(owner->digest).second) {
      return absl::InvalidArgumentError(absl::StrCat(shown, ":", number, ": another line has the same token"));
    }
    owners.push_back(*std::move(owner));
  }
  return owners;
}

std::string NewToken() {
  std::string bytes(32, '\0');
  // Without chance there are no secrets.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size())) != 1) std::abort();
  return absl::BytesToHexString(bytes);
}

absl::StatusOr<std::string> TokenLine(absl::string_view name, absl::string_view role, absl::string_view token) {
  MILLRACE_ASSIGN_OR_RETURN(const TokenOwner owner, ParseOwner(name, role));
  const std::array<uint8_t, 32> digest = Digest(token);
  return absl::StrCat(
      owner.name, " ", RoleName(owner.role), " ",
      absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size())));
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 16));
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  const bool plain = std::all_of(token.begin(), token.end(),
                                 [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); });
  if (token.empty() || token.size() > kMaxTokenBytes || !plain) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no token: one word of at most ", kMaxTokenBytes,
                                                   " printable characters, as `millrace certs token` makes it"));
  }
  return std::string(token);
}

absl::StatusOr<std::unique_ptr<Tokens>> Tokens::Open(std::string path) {
  std::unique_ptr<Tokens> tokens(new Tokens(std::move(path)));
  absl::MutexLock lock(&tokens->mutex_);
  MILLRACE_RETURN_IF_ERROR(tokens->Read());
  return tokens;
}

absl::Status Tokens::Read() {
  // Before the content: a change in between is found by the next look.
  read_ = FileState::Of(path_);
  if (!read_.there()) return ErrnoStatus(errno, "read", path_);
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMaxTokensBytes));
  MILLRACE_ASSIGN_OR_RETURN(owners_, ParseTokens(text, path_));
  return absl::OkStatus();
}

std::optional<TokenOwner> Tokens::Find(absl::string_view token) {
  if (token.empty() || token.size() > kMaxTokenBytes) return std::nullopt;
  const std::array<uint8_t, 32> digest = Digest(token);
  absl::MutexLock lock(&mutex_);
  const FileState now = FileState::Of(path_);
  if (now != read_) {
    if (!now.there()) read_ = {};  // said once
    const absl::Status read = now.there() ? Read() : absl::NotFoundError(absl::StrCat("there is no ", path_));
    if (!read.ok()) {
      Log(Severity::kError, "the tokens are those that were there before", {{"error", std::string(read.message())}});
    }
  }
  const TokenOwner* found = nullptr;
  for (const TokenOwner& owner : owners_) {
    if (CRYPTO_memcmp(owner.digest.data(), digest.data(), digest.size()) == 0) found = &owner;
  }
  if (found == nullptr) return std::nullopt;
  return *found;
}

}  // namespace millrace
