// Reads fields of the JSON objects that describe models and adapters.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace millrace::model {

using Json = nlohmann::ordered_json;

// INVALID_ARGUMENT naming `file` for what is no object. Objects within it are few: what lies deeper than 32, which
// would exhaust the parser's stack, is left out.
absl::StatusOr<Json> ParseJsonObject(absl::string_view json, absl::string_view file);

// Fields of one object, which outlives this. The first mistake is kept; it names the file and the field. Null counts as
// absent.
class JsonFields {
 public:
  static constexpr uint32_t kAnyCount = std::numeric_limits<int32_t>::max();

  JsonFields(const Json& object, absl::string_view file) : object_(object), file_(file) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }
  // From 1 to `most`; without a fallback it must be there.
  uint32_t Count(const char* name, uint32_t fallback = 0, uint32_t most = kAnyCount);
  double Number(const char* name, double fallback, double min, double max);
  bool Flag(const char* name, bool fallback);
  std::string Text(const char* name);  // empty: absent
  // Nothing where no single token is named.
  std::optional<uint32_t> Token(const char* name) const;
  // What changes the computation in a way that is not supported.
  void MustBe(const char* name, const Json& only);
  void MustBeAbsent(const char* name);

  void Wrong(absl::string_view name, absl::string_view what);
  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  const std::string file_;
  absl::Status status_;
};

}  // namespace millrace::model
