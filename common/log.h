// Writes what a process does, one event a line, with named fields.
//
//   Log(Severity::kInfo, "checkpoint", {{"job", id}, {"step", 300}, {"best", true}});
//
//   2026-11-24T10:11:12.345Z I checkpoint job=kjv step=300 best=true
//   {"time":"2026-11-24T10:11:12.345Z","severity":"info","text":"checkpoint","job":"kjv","step":300,"best":true}
#pragma once

#include <concepts>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <variant>

#include "absl/strings/string_view.h"

namespace millrace {

enum class Severity { kInfo, kWarning, kError };

struct LogField {
  LogField(absl::string_view name, absl::string_view text) : name(name), value(text) {}
  LogField(absl::string_view name, const std::string& text) : name(name), value(absl::string_view(text)) {}
  LogField(absl::string_view name, const char* text) : name(name), value(absl::string_view(text)) {}
  LogField(absl::string_view name, bool value) : name(name), value(value) {}
  LogField(absl::string_view name, double value) : name(name), value(value) {}
  template <std::integral Integer>
  LogField(absl::string_view name, Integer value) : name(name), value(static_cast<int64_t>(value)) {}

  absl::string_view name;
  std::variant<absl::string_view, bool, double, int64_t> value;
};

// Thread-safe: a line is written whole. Before SetLogOutput, to standard error as text.
void Log(Severity severity, absl::string_view text, std::initializer_list<LogField> fields = {});

// For main: where logs go (null: nowhere) and whether as JSON.
void SetLogOutput(std::FILE* output, bool json);

// The line that Log writes, without the line break, for an event at `unix_ms`.
std::string FormatLog(bool json, int64_t unix_ms, Severity severity, absl::string_view text,
                      std::initializer_list<LogField> fields);

}  // namespace millrace
