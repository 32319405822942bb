// Writes down who changed something, or was refused: a file that only grows, one JSON object a line.
//
//   {"time": "2026-11-24T10:11:12.345Z", "who": NAME, "role": ROLE, "peer": ADDRESS, "method": "Jobs/CancelJob",
//    "job": JOB, "code": "OK", "message": ""}
//
// "who" is a token's name, a certificate's common name, or "local" where nobody is asked; "peer" begins with "ipv4:",
// "ipv6:" or "http:", and is empty where it is not known (docs/security.md); "job" is absent where the call is about
// none; "left_out" counts refusals before this line that came faster than they are written down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/line_budget.h"

namespace millrace {

struct AuditEntry {
  absl::Time time;
  std::string who;
  std::string role;  // empty: unknown
  std::string peer;  // empty: unknown
  std::string method;
  std::string job;  // empty: none
  std::string code;
  std::string message;
};

// One line with its end; what is too long is cut, what is no UTF-8 is replaced.
std::string FormatAudit(const AuditEntry& entry, uint64_t left_out);

// Thread-safe.
class AuditLog {
 public:
  // Makes the file, for its owner alone, if it is not there.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(const std::string& path);
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  // Returns once the line is on the disk; the log of the process says why if it is not.
  void Append(const AuditEntry& entry);
  // The same for a refusal. Strangers can cause any number of these: no more than 20 a second, after the first 200, are
  // written.
  void AppendRefusal(const AuditEntry& entry);

 private:
  AuditLog(int file, std::string path) : file_(file), path_(std::move(path)) {}
  void Write(const AuditEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int file_;
  const std::string path_;
  absl::Mutex mutex_;
  LineBudget refusals_ ABSL_GUARDED_BY(mutex_) = LineBudget(/*at_once=*/200, /*a_second=*/20);
};

}  // namespace millrace
