#include "common/audit_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/log.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

constexpr size_t kMaxFieldBytes = 256;
constexpr size_t kMaxMessageBytes = 1024;

std::string Cut(const std::string& text, size_t most = kMaxFieldBytes) {
  return text.size() <= most ? text : absl::StrCat(text.substr(0, most), "...");
}

}  // namespace

std::string FormatAudit(const AuditEntry& entry, uint64_t left_out) {
  nlohmann::ordered_json line;
  line["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", entry.time, absl::UTCTimeZone());
  line["who"] = Cut(entry.who);
  line["role"] = Cut(entry.role);
  line["peer"] = Cut(entry.peer);
  line["method"] = Cut(entry.method);
  if (!entry.job.empty()) line["job"] = Cut(entry.job);
  line["code"] = entry.code;
  line["message"] = Cut(entry.message, kMaxMessageBytes);
  if (left_out > 0) line["left_out"] = left_out;
  return absl::StrCat(line.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace), "\n");
}

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return ErrnoStatus(errno, "write", path);
  std::unique_ptr<AuditLog> log(new AuditLog(file, path));
  return log;
}

AuditLog::~AuditLog() { close(file_); }

void AuditLog::Append(const AuditEntry& entry) {
  absl::MutexLock lock(&mutex_);
  Write(entry);
}

void AuditLog::AppendRefusal(const AuditEntry& entry) {
  absl::MutexLock lock(&mutex_);
  if (refusals_.Take(entry.time)) Write(entry);
}

void AuditLog::Write(const AuditEntry& entry) {
  const std::string line = FormatAudit(entry, refusals_.left_out());
  // One write, so that the line is whole whoever else appends.
  const ssize_t written = write(file_, line.data(), line.size());
  const bool whole = written == static_cast<ssize_t>(line.size());
  if (whole && fdatasync(file_) == 0) {
    refusals_.Told();
    return;
  }
  const absl::Status status = written >= 0 && !whole ? absl::DataLossError(absl::StrCat("cannot write all to ", path_))
                                                     : ErrnoStatus(errno, "write", path_);
  Log(Severity::kError, "the audit log lacks a line", {{"error", std::string(status.message())}, {"line", line}});
}

}  // namespace millrace
