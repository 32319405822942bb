#include "coordinator/checkpoint_manifest.h"

#include <cmath>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "millrace checkpoint";
constexpr uint64_t kVersion = 1;
constexpr size_t kMaxStatistics = 1000;
constexpr uint64_t kMaxCount = uint64_t{1} << 53;  // what JSON numbers carry exactly everywhere

absl::Status Wrong(absl::string_view field, absl::string_view expected) {
  return absl::DataLossError(absl::StrCat(kManifestFile, ": '", field, "' is not ", expected));
}

absl::StatusOr<uint64_t> Count(const Json& object, const char* field) {
  const auto value = object.find(field);
  if (value == object.end() || !value->is_number_unsigned() || value->get<uint64_t>() > kMaxCount) {
    return Wrong(field, "a whole number");
  }
  return value->get<uint64_t>();
}

absl::StatusOr<double> Number(const Json& object, const char* field) {
  const auto value = object.find(field);
  if (value == object.end() || !value->is_number() || !std::isfinite(value->get<double>())) {
    return Wrong(field, "a finite number");
  }
  return value->get<double>();
}

absl::StatusOr<std::string> Text(const Json& object, const char* field) {
  const auto value = object.find(field);
  if (value == object.end() || !value->is_string() || value->get_ref<const std::string&>().size() > 4096) {
    return Wrong(field, "a text");
  }
  return value->get<std::string>();
}

absl::StatusOr<std::string> Sum(const Json& object, const char* field) {
  MILLRACE_ASSIGN_OR_RETURN(std::string sum, Text(object, field));
  bool good = sum.size() == 64;
  for (const char c : sum) good = good && (absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'));
  if (!good) return Wrong(field, "a SHA-256 in hex");
  return sum;
}

absl::StatusOr<std::string> PlainName(const Json& object, const char* field) {
  MILLRACE_ASSIGN_OR_RETURN(std::string name, Text(object, field));
  if (!IsPlainName(name)) {
    return Wrong(field, absl::StrCat("a plain name: '", absl::CHexEscape(name.substr(0, 100)), "'"));
  }
  return name;
}

absl::StatusOr<std::map<std::string, double>> Numbers(const Json& object, const char* field) {
  const auto value = object.find(field);
  if (value == object.end() || !value->is_object() || value->size() > kMaxStatistics) {
    return Wrong(field, "an object of numbers");
  }
  std::map<std::string, double> numbers;
  for (const auto& [name, number] : value->items()) {
    if (!number.is_number() || !std::isfinite(number.get<double>())) return Wrong(field, "an object of finite numbers");
    numbers[name] = number.get<double>();
  }
  return numbers;
}

absl::StatusOr<const Json*> List(const Json& object, const char* field) {
  const auto value = object.find(field);
  if (value == object.end() || !value->is_array()) return Wrong(field, "a list");
  for (const Json& element : *value) {
    if (!element.is_object()) return Wrong(field, "a list of objects");
  }
  return &*value;
}

}  // namespace

bool IsPlainName(absl::string_view name, size_t limit) {
  if (name.empty() || name.size() > limit || name[0] == '.') return false;
  for (const char c : name) {
    if (!absl::ascii_isalnum(c) && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

const CheckpointManifest::Evaluation* CheckpointManifest::evaluation() const {
  return !evaluations.empty() && evaluations.back().step == step ? &evaluations.back() : nullptr;
}

uint64_t CheckpointManifest::bytes() const {
  uint64_t sum = 0;
  for (const FileSum& file : files) sum += file.bytes;
  return sum;
}

std::string PrintManifest(const CheckpointManifest& manifest) {
  Json evaluations = Json::array();
  for (const auto& e : manifest.evaluations) {
    evaluations.push_back({{"step", e.step},
                           {"loss", e.loss},
                           {"bits_per_byte", e.bits_per_byte},
                           {"tokens", e.tokens},
                           {"bytes", e.bytes},
                           {"statistics", e.statistics}});
  }
  Json tensors = Json::array();
  for (const auto& t : manifest.tensors) tensors.push_back({{"name", t.name}, {"sha256", t.sha256}});
  Json files = Json::array();
  for (const auto& f : manifest.files) files.push_back({{"name", f.name}, {"bytes", f.bytes}, {"sha256", f.sha256}});
  const Json json = {{"format", kFormat},
                     {"version", kVersion},
                     {"job", manifest.job},
                     {"phase", manifest.phase},
                     {"phase_index", manifest.phase_index},
                     {"step", manifest.step},
                     {"parameters", manifest.parameters},
                     {"data", manifest.data},
                     {"digest", manifest.digest},
                     {"seconds_training", manifest.seconds_training},
                     {"tokens", manifest.tokens},
                     {"variables", manifest.variables},
                     {"evaluations", std::move(evaluations)},
                     {"tensors", std::move(tensors)},
                     {"files", std::move(files)}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view text) {
  if (text.size() > kMaxManifestBytes) {
    return absl::DataLossError(absl::StrCat(kManifestFile, ": ", text.size(), " bytes, more than any manifest has"));
  }
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::DataLossError(absl::StrCat(kManifestFile, " is not a JSON object"));
  MILLRACE_ASSIGN_OR_RETURN(const std::string format, Text(json, "format"));
  if (format != kFormat) return Wrong("format", absl::StrCat("'", kFormat, "'"));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t version, Count(json, "version"));
  if (version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(kManifestFile, ": version ", version, "; this build reads version ", kVersion));
  }
  CheckpointManifest manifest;
  MILLRACE_ASSIGN_OR_RETURN(manifest.job, PlainName(json, "job"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.phase, PlainName(json, "phase"));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t phase_index, Count(json, "phase_index"));
  if (phase_index > 1000) return Wrong("phase_index", "at most 1000");
  manifest.phase_index = static_cast<uint32_t>(phase_index);
  MILLRACE_ASSIGN_OR_RETURN(manifest.step, Count(json, "step"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.parameters, Count(json, "parameters"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.data, Text(json, "data"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.digest, Sum(json, "digest"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.seconds_training, Number(json, "seconds_training"));
  MILLRACE_ASSIGN_OR_RETURN(manifest.tokens, Count(json, "tokens"));
  if (json.contains("variables")) {
    MILLRACE_ASSIGN_OR_RETURN(manifest.variables, Numbers(json, "variables"));
  }

  MILLRACE_ASSIGN_OR_RETURN(const Json* evaluations, List(json, "evaluations"));
  for (const Json& element : *evaluations) {
    CheckpointManifest::Evaluation e;
    MILLRACE_ASSIGN_OR_RETURN(e.step, Count(element, "step"));
    MILLRACE_ASSIGN_OR_RETURN(e.loss, Number(element, "loss"));
    MILLRACE_ASSIGN_OR_RETURN(e.bits_per_byte, Number(element, "bits_per_byte"));
    MILLRACE_ASSIGN_OR_RETURN(e.tokens, Count(element, "tokens"));
    MILLRACE_ASSIGN_OR_RETURN(e.bytes, Count(element, "bytes"));
    MILLRACE_ASSIGN_OR_RETURN(e.statistics, Numbers(element, "statistics"));
    if (e.step > manifest.step || (!manifest.evaluations.empty() && e.step <= manifest.evaluations.back().step)) {
      return Wrong("evaluations", "in order of steps, up to the checkpoint's");
    }
    manifest.evaluations.push_back(e);
  }

  MILLRACE_ASSIGN_OR_RETURN(const Json* tensors, List(json, "tensors"));
  std::set<std::string> names;
  for (const Json& element : *tensors) {
    CheckpointManifest::TensorSum tensor;
    MILLRACE_ASSIGN_OR_RETURN(tensor.name, Text(element, "name"));
    MILLRACE_ASSIGN_OR_RETURN(tensor.sha256, Sum(element, "sha256"));
    if (tensor.name.empty() || !names.insert(tensor.name).second) return Wrong("tensors", "of distinct names");
    manifest.tensors.push_back(std::move(tensor));
  }

  MILLRACE_ASSIGN_OR_RETURN(const Json* files, List(json, "files"));
  names.clear();
  uint64_t bytes = 0;
  for (const Json& element : *files) {
    CheckpointManifest::FileSum file;
    MILLRACE_ASSIGN_OR_RETURN(file.name, PlainName(element, "name"));
    MILLRACE_ASSIGN_OR_RETURN(file.bytes, Count(element, "bytes"));
    MILLRACE_ASSIGN_OR_RETURN(file.sha256, Sum(element, "sha256"));
    bytes += file.bytes;
    if (file.name == kManifestFile || !names.insert(file.name).second || bytes > kMaxCount) {
      return Wrong("files", "of distinct files beside the manifest");
    }
    manifest.files.push_back(std::move(file));
  }
  if (!names.contains(kModelFile)) return Wrong("files", absl::StrCat("with a ", kModelFile));
  return manifest;
}

}  // namespace millrace::coordinator
