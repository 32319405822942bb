#include "model/formats/json_fields.h"

#include "absl/strings/str_cat.h"

namespace millrace::model {
namespace {

std::string Shown(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(absl::string_view json, absl::string_view file) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth < 32; };
  Json object = Json::parse(json.begin(), json.end(), shallow, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(file, " is not a JSON object"));
  return object;
}

uint32_t JsonFields::Count(const char* name, uint32_t fallback, uint32_t most) {
  if (!Has(name)) {
    if (fallback == 0) Wrong(name, "is missing");
    return fallback;
  }
  const Json& value = object_[name];
  if (!value.is_number_integer() || value < 1 || value > most) {
    Wrong(name,
          absl::StrCat("must be a whole number ", most == kAnyCount ? "above 0" : absl::StrCat("between 1 and ", most),
                       ", not ", Shown(value)));
    return 1;
  }
  return value.get<uint32_t>();
}

double JsonFields::Number(const char* name, double fallback, double min, double max) {
  if (!Has(name)) return fallback;
  const Json& value = object_[name];
  if (!value.is_number() || !(value.get<double>() >= min) || !(value.get<double>() <= max)) {
    Wrong(name, absl::StrCat("must be a number between ", min, " and ", max, ", not ", Shown(value)));
    return fallback;
  }
  return value.get<double>();
}

bool JsonFields::Flag(const char* name, bool fallback) {
  if (!Has(name)) return fallback;
  if (!object_[name].is_boolean()) {
    Wrong(name, absl::StrCat("must be true or false, not ", Shown(object_[name])));
    return fallback;
  }
  return object_[name].get<bool>();
}

std::string JsonFields::Text(const char* name) {
  if (!Has(name)) return "";
  if (!object_[name].is_string()) {
    Wrong(name, "must be a string");
    return "";
  }
  return object_[name].get<std::string>();
}

std::optional<uint32_t> JsonFields::Token(const char* name) const {
  if (!Has(name)) return std::nullopt;
  const Json& value = object_[name];
  if (!value.is_number_integer() || value < 0 || value >= std::numeric_limits<int32_t>::max()) return std::nullopt;
  return value.get<uint32_t>();
}

void JsonFields::MustBe(const char* name, const Json& only) {
  if (Has(name) && object_[name] != only) {
    Wrong(name, absl::StrCat("is ", Shown(object_[name]), ", which is not supported; ", Shown(only), " is"));
  }
}

void JsonFields::MustBeAbsent(const char* name) {
  if (Has(name)) Wrong(name, absl::StrCat("is ", Shown(object_[name]), ", which is not supported"));
}

void JsonFields::Wrong(absl::string_view name, absl::string_view what) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(file_, ": ", name, " ", what));
}

}  // namespace millrace::model
