#include "common/log.h"

#include <cmath>

#include "absl/base/const_init.h"
#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

ABSL_CONST_INIT absl::Mutex mutex(absl::kConstInit);
std::FILE* output ABSL_GUARDED_BY(mutex) = nullptr;
bool output_set ABSL_GUARDED_BY(mutex) = false;
bool output_json ABSL_GUARDED_BY(mutex) = false;

std::string Time(int64_t unix_ms) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromUnixMillis(unix_ms), absl::UTCTimeZone());
}

// Without control characters; apostrophes, which need no escape, stay.
std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(absl::Utf8SafeCEscape(text), {{"\\\\", "\\\\"}, {"\\'", "'"}});
}

// Quoted if it would not read as one word; never a line break.
std::string Word(absl::string_view text) {
  bool plain = !text.empty();
  for (const char c : text) plain = plain && absl::ascii_isgraph(static_cast<unsigned char>(c)) && c != '"' && c != '=';
  return plain ? std::string(text) : absl::StrCat("\"", Escaped(text), "\"");
}

struct AsText {
  std::string operator()(absl::string_view text) const { return Word(text); }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(double value) const { return absl::StrCat(value); }
  std::string operator()(int64_t value) const { return absl::StrCat(value); }
};

struct AsJson {
  nlohmann::ordered_json operator()(absl::string_view text) const { return std::string(text); }
  nlohmann::ordered_json operator()(bool value) const { return value; }
  nlohmann::ordered_json operator()(double value) const { return value; }  // null if not finite
  nlohmann::ordered_json operator()(int64_t value) const { return value; }
};

}  // namespace

std::string FormatLog(bool json, int64_t unix_ms, Severity severity, absl::string_view text,
                      std::initializer_list<LogField> fields) {
  if (json) {
    nlohmann::ordered_json line;
    line["time"] = Time(unix_ms);
    line["severity"] = severity == Severity::kInfo ? "info" : severity == Severity::kWarning ? "warning" : "error";
    line["text"] = std::string(text);
    for (const LogField& field : fields) line[std::string(field.name)] = std::visit(AsJson(), field.value);
    return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  }
  std::string line = absl::StrCat(
      Time(unix_ms), severity == Severity::kInfo ? " I " : severity == Severity::kWarning ? " W " : " E ",
      Escaped(text));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.name, "=", std::visit(AsText(), field.value));
  }
  return line;
}

void Log(Severity severity, absl::string_view text, std::initializer_list<LogField> fields) {
  const int64_t now = absl::ToUnixMillis(absl::Now());
  absl::MutexLock lock(&mutex);
  std::FILE* const to = output_set ? output : stderr;
  if (to == nullptr) return;
  const std::string line = FormatLog(output_json, now, severity, text, fields) + "\n";
  std::fwrite(line.data(), 1, line.size(), to);
  std::fflush(to);
}

void SetLogOutput(std::FILE* to, bool json) {
  absl::MutexLock lock(&mutex);
  output = to;
  output_set = true;
  output_json = json;
}

}  // namespace millrace
