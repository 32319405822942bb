// Reads the file that says which tokens a coordinator takes, and from whom.
//
//   file    := line*
//   line    := "" | "#" comment | NAME ROLE DIGEST        (fields parted by blanks or tabs)
//   NAME    := 1 to 64 of letters, digits, '.', '_', '-', '@'
//   ROLE    := "operator" | "viewer"
//   DIGEST  := SHA-256 of the token in hexadecimal, 64 digits
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/file_state.h"
#include "common/roles.h"

namespace millrace {

inline constexpr uint64_t kMaxTokensBytes = 1 << 20;
inline constexpr size_t kMaxTokenBytes = 256;

struct TokenOwner {
  std::string name;
  Role role = Role::kViewer;
  std::array<uint8_t, 32> digest = {};  // of the token
};

// INVALID_ARGUMENT names the first line that is wrong, as "`shown`:LINE". Two lines may have one name, not one token.
absl::StatusOr<std::vector<TokenOwner>> ParseTokens(absl::string_view text, absl::string_view shown);

// A new token: 256 bits of chance, in hexadecimal.
std::string NewToken();
// The line of a token. INVALID_ARGUMENT if the name or the role cannot stand there.
absl::StatusOr<std::string> TokenLine(absl::string_view name, absl::string_view role, absl::string_view token);

// What a file that holds a token holds, without blanks around it. INVALID_ARGUMENT if that is no token.
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

// The tokens of a file, which is read again when it has changed. Thread-safe.
class Tokens {
 public:
  static absl::StatusOr<std::unique_ptr<Tokens>> Open(std::string path);
  // Whose the token is. Takes as long for one token as for another. Where the changed file cannot be read, what it held
  // before holds on, and the log says why.
  std::optional<TokenOwner> Find(absl::string_view token);

 private:
  explicit Tokens(std::string path) : path_(std::move(path)) {}
  absl::Status Read() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  absl::Mutex mutex_;
  std::vector<TokenOwner> owners_ ABSL_GUARDED_BY(mutex_);
  FileState read_ ABSL_GUARDED_BY(mutex_);  // the file as it was when last read
};

}  // namespace millrace
