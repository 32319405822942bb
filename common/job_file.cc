#include "common/job_file.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <re2/re2.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status.h"
#include "proto/millrace/v1/field_options.pb.h"

namespace millrace {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMaxListItems = 10'000;

const v1::FieldRule& RuleOf(const FieldDescriptor& field) { return field.options().GetExtension(v1::rule); }

std::string Shown(absl::string_view text) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(text.substr(0, 80)), text.size() > 80 ? "…" : "", "'");
}

// Where a value stands: "job.yaml:12", or the override.
class Place {
 public:
  explicit Place(absl::string_view file) : file_(file) {}
  absl::Status Error(const YAML::Node& node, absl::string_view what) const { return Error(node.Mark(), what); }
  absl::Status Error(const YAML::Mark& mark, absl::string_view what) const {
    return absl::InvalidArgumentError(lines_ && !mark.is_null() ? absl::StrCat(file_, ":", mark.line + 1, ": ", what)
                                                                : absl::StrCat(file_, ": ", what));
  }
  static Place Override(absl::string_view override_text) {
    Place place(absl::StrCat("--set ", override_text));
    place.lines_ = false;
    return place;
  }

 private:
  std::string file_;
  bool lines_ = true;
};

size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string DidYouMean(absl::string_view word, const std::vector<std::string>& names) {
  const std::string* nearest = nullptr;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = word.size() > 100 ? least : EditDistance(word, name);
    if (distance < least) {
      least = distance;
      nearest = &name;
    }
  }
  return nearest == nullptr ? absl::StrCat("; it takes ", absl::StrJoin(names, ", "))
                            : absl::StrCat("; did you mean '", *nearest, "'?");
}

std::string UnknownField(const Descriptor& message, absl::string_view name, absl::string_view path) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return absl::StrCat("unknown field ", Shown(name), path.empty() ? "" : absl::StrCat(" in ", path),
                      DidYouMean(name, names));
}

std::string Join(absl::string_view path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

// ---- rules ----

// All digits of a whole number.
std::string Number(double value) {
  return std::fabs(value) < 1e15 && value == std::trunc(value) ? absl::StrCat(static_cast<int64_t>(value))
                                                               : absl::StrCat(value);
}

// Empty: the number is within the field's bounds.
std::string OutOfBounds(const v1::FieldRule& rule, double value) {
  if (!std::isfinite(value)) return "a finite number is wanted";
  if (rule.has_min() && (rule.exclusive_min() ? value <= rule.min() : value < rule.min())) {
    return absl::StrCat("it must be ", rule.exclusive_min() ? "above " : "at least ", Number(rule.min()));
  }
  if (rule.has_max() && (rule.exclusive_max() ? value >= rule.max() : value > rule.max())) {
    return absl::StrCat("it must be ", rule.exclusive_max() ? "below " : "at most ", Number(rule.max()));
  }
  return "";
}

std::string NotAmong(const v1::FieldRule& rule, absl::string_view word) {
  if (rule.one_of_size() == 0) return "";
  const std::vector<std::string> words(rule.one_of().begin(), rule.one_of().end());
  if (std::find(words.begin(), words.end(), word) != words.end()) return "";
  return absl::StrCat("there is no ", Shown(word), DidYouMean(word, words));
}

// As protobuf wants the text of its messages: no overlong forms, no surrogates (RFC 3629).
bool IsUtf8(absl::string_view text) {
  const auto byte = [text](size_t at) { return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u; };
  for (size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i), second = byte(i + 1);
    const size_t size = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (size == 0) return false;
    for (size_t k = 1; k < size; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    }
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
        (lead == 0xF4 && second > 0x8F)) {
      return false;
    }
    i += size;
  }
  return true;
}

// ---- YAML to message ----

class Mapper {
 public:
  explicit Mapper(const Place& place) : place_(place) {}

  absl::Status Map(const YAML::Node& node, absl::string_view path, Message* message) {
    if (!node.IsMap()) {
      return place_.Error(node, absl::StrCat(path.empty() ? "the job" : path, " must be fields, as in {",
                                             message->GetDescriptor()->field(0)->name(), ": …}"));
    }
    MILLRACE_RETURN_IF_ERROR(Spend(node, 1));
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return place_.Error(entry.first, "a field's name must be one word");
      const std::string& name = entry.first.Scalar();
      const FieldDescriptor* const field = message->GetDescriptor()->FindFieldByName(name);
      if (field == nullptr) return place_.Error(entry.first, UnknownField(*message->GetDescriptor(), name, path));
      if (!seen.insert(name).second)
        return place_.Error(entry.first, absl::StrCat(Join(path, name), " is given twice"));
      // The place of nothing would be that of the next thing.
      if (entry.second.IsNull()) return place_.Error(entry.first, absl::StrCat(Join(path, name), " is given no value"));
      MILLRACE_RETURN_IF_ERROR(Set(entry.second, Join(path, name), *field, message));
    }
    return absl::OkStatus();
  }

  // Replaces the whole field; a message's given fields are merged into what is there.
  absl::Status Set(const YAML::Node& node, const std::string& path, const FieldDescriptor& field, Message* message) {
    const Reflection& reflection = *message->GetReflection();
    const bool is_message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!field.is_repeated()) {
      return is_message ? Map(node, path, reflection.MutableMessage(message, &field))
                        : Scalar(node, path, field, message);
    }
    if (!node.IsSequence()) return place_.Error(node, absl::StrCat(path, " must be a list, as in [a, b]"));
    if (node.size() > kMaxListItems) return place_.Error(node, absl::StrCat(path, " has too many items"));
    reflection.ClearField(message, &field);
    int index = 0;
    for (const auto& item : node) {
      const std::string item_path = absl::StrCat(path, ".", index++);
      MILLRACE_RETURN_IF_ERROR(is_message ? Map(item, item_path, reflection.AddMessage(message, &field))
                                          : Scalar(item, item_path, field, message));
    }
    return absl::OkStatus();
  }

 private:
  // An alias repeats what its anchor holds: all values together take no more than a file may have.
  absl::Status Spend(const YAML::Node& node, size_t bytes) {
    if (bytes > bytes_left_) return place_.Error(node, "with all that its aliases repeat, the job is too large");
    bytes_left_ -= bytes;
    return absl::OkStatus();
  }

  absl::Status Scalar(const YAML::Node& node, const std::string& path, const FieldDescriptor& field, Message* message) {
    const Reflection& reflection = *message->GetReflection();
    const bool repeated = field.is_repeated();
    const auto wrong = [&](absl::string_view what) { return place_.Error(node, absl::StrCat(path, ": ", what)); };
    if (!node.IsScalar()) return wrong("a single value is wanted here");
    const std::string& text = node.Scalar();
    MILLRACE_RETURN_IF_ERROR(Spend(node, 1 + text.size()));
    const bool quoted = node.Tag() == "!";
    const v1::FieldRule& rule = RuleOf(field);
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING: {
        if (!IsUtf8(text)) return wrong("it is not UTF-8");
        if (std::string why = NotAmong(rule, text); !why.empty()) return wrong(why);
        repeated ? reflection.AddString(message, &field, text) : reflection.SetString(message, &field, text);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_BOOL: {
        if (quoted || (text != "true" && text != "false")) {
          return wrong(absl::StrCat("true or false is wanted, not ", Shown(text)));
        }
        reflection.SetBool(message, &field, text == "true");
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0;
        if (quoted || !absl::SimpleAtod(text, &value))
          return wrong(absl::StrCat("a number is wanted, not ", Shown(text)));
        if (std::string why = OutOfBounds(rule, value); !why.empty()) return wrong(absl::StrCat(why, ", not ", text));
        repeated ? reflection.AddDouble(message, &field, value) : reflection.SetDouble(message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_UINT32:
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value = 0;
        if (quoted || !absl::SimpleAtoi(text, &value)) {
          return wrong(absl::StrCat("a whole number of at least 0 is wanted, not ", Shown(text)));
        }
        if (std::string why = OutOfBounds(rule, static_cast<double>(value)); !why.empty()) {
          return wrong(absl::StrCat(why, ", not ", text));
        }
        if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64) {
          reflection.SetUInt64(message, &field, value);
          return absl::OkStatus();
        }
        if (value > std::numeric_limits<uint32_t>::max()) {
          return wrong(absl::StrCat("it must be at most ", std::numeric_limits<uint32_t>::max(), ", not ", text));
        }
        reflection.SetUInt32(message, &field, static_cast<uint32_t>(value));
        return absl::OkStatus();
      }
      default:
        return wrong("a type that job files do not have");
    }
  }

  const Place& place_;
  size_t bytes_left_ = kMaxJobFileBytes;
};

// Where documents start. YAML::Load reads the first and ignores what follows; YAML::LoadAll never ends on a stray ']'.
struct DocumentStarts : YAML::EventHandler {
  std::vector<YAML::Mark> marks;
  void OnDocumentStart(const YAML::Mark& mark) override { marks.push_back(mark); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

absl::StatusOr<YAML::Node> LoadYaml(const std::string& text, const Place& place) {
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentStarts documents;
    while (documents.marks.size() < 2 && parser.HandleNextDocument(documents)) {
    }
    if (documents.marks.size() > 1) {
      return place.Error(documents.marks[1], "here the document has ended; a job file is one document");
    }
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return place.Error(error.mark, absl::StrCat("this is not YAML: ", error.msg));
  }
}

absl::Status ApplyOverride(absl::string_view override_text, v1::JobSpec* job) {
  const Place place = Place::Override(override_text);
  const size_t equals = override_text.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return place.Error(YAML::Node(), "FIELD=VALUE is wanted, as in phases.0.stop.max_steps=20");
  }
  const std::vector<std::string> parts = absl::StrSplit(override_text.substr(0, equals), '.');
  MILLRACE_ASSIGN_OR_RETURN(const YAML::Node value, LoadYaml(std::string(override_text.substr(equals + 1)), place));
  Message* message = job;
  std::string path;
  for (size_t i = 0; i < parts.size(); ++i) {
    const FieldDescriptor* const field = message->GetDescriptor()->FindFieldByName(parts[i]);
    if (field == nullptr) return place.Error(YAML::Node(), UnknownField(*message->GetDescriptor(), parts[i], path));
    path = Join(path, parts[i]);
    if (i + 1 == parts.size()) return Mapper(place).Set(value, path, *field, message);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return place.Error(YAML::Node(),
                         absl::StrCat(path, " has no fields; ",
                                      field->is_repeated() ? "give the whole list" : "it is a single value"));
    }
    const Reflection& reflection = *message->GetReflection();
    if (!field->is_repeated()) {
      message = reflection.MutableMessage(message, field);
      continue;
    }
    const int size = reflection.FieldSize(*message, field);
    int index = 0;
    if (++i == parts.size() || !absl::SimpleAtoi(parts[i], &index) || index < 0 || index >= size) {
      return place.Error(YAML::Node(), absl::StrCat(path, " is a list of ", size, "; its items are numbered from 0"));
    }
    message = reflection.MutableRepeatedMessage(message, field, index);
    path = Join(path, parts[i]);
    if (i + 1 == parts.size()) return Mapper(place).Map(value, path, message);
  }
  return absl::OkStatus();
}

// ---- defaults ----

void FillMessage(Message* message) {
  const Descriptor& descriptor = *message->GetDescriptor();
  const Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!field.is_repeated()) {
        if (RuleOf(field).keep_absent() && !reflection.HasField(*message, &field)) continue;
        FillMessage(reflection.MutableMessage(message, &field));
      } else {
        for (int j = 0; j < reflection.FieldSize(*message, &field); ++j) {
          FillMessage(reflection.MutableRepeatedMessage(message, &field, j));
        }
      }
      continue;
    }
    const std::string& fallback = RuleOf(field).default_value();
    if (fallback.empty()) continue;
    if (field.is_repeated() ? reflection.FieldSize(*message, &field) > 0 : reflection.HasField(*message, &field))
      continue;
    // A default that its own rule refuses is our mistake; ValidateJob names it, and tests try them all.
    const Place place(field.full_name());
    const absl::StatusOr<YAML::Node> value = LoadYaml(fallback, place);
    if (value.ok()) Mapper(place).Set(*value, field.name(), field, message).IgnoreError();
  }
}

uint32_t LargestDivisor(uint32_t number, uint32_t limit) {
  for (uint32_t divisor = std::min(number, limit); divisor > 1; --divisor) {
    if (number % divisor == 0) return divisor;
  }
  return 1;
}

// ---- checks ----

absl::Status CheckRules(const Message& message, const std::string& path) {
  const Descriptor& descriptor = *message.GetDescriptor();
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const v1::FieldRule& rule = RuleOf(field);
    const std::string name = Join(path, field.name());
    const int size = field.is_repeated() ? reflection.FieldSize(message, &field)
                                         : static_cast<int>(reflection.HasField(message, &field));
    if (size == 0 && rule.required()) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is missing: ", rule.doc()));
    }
    for (int j = 0; j < size; ++j) {
      const bool repeated = field.is_repeated();
      const std::string item = repeated ? absl::StrCat(name, ".", j) : name;
      std::string why;
      switch (field.cpp_type()) {
        case FieldDescriptor::CPPTYPE_MESSAGE:
          MILLRACE_RETURN_IF_ERROR(CheckRules(
              repeated ? reflection.GetRepeatedMessage(message, &field, j) : reflection.GetMessage(message, &field),
              item));
          break;
        case FieldDescriptor::CPPTYPE_STRING: {
          const std::string text =
              repeated ? reflection.GetRepeatedString(message, &field, j) : reflection.GetString(message, &field);
          why = NotAmong(rule, text);
          if (text.find('\0') != std::string::npos) why = "it holds a zero byte";
          break;
        }
        case FieldDescriptor::CPPTYPE_DOUBLE:
          why = OutOfBounds(rule, repeated ? reflection.GetRepeatedDouble(message, &field, j)
                                           : reflection.GetDouble(message, &field));
          break;
        case FieldDescriptor::CPPTYPE_UINT32:
          why = OutOfBounds(rule, reflection.GetUInt32(message, &field));
          break;
        case FieldDescriptor::CPPTYPE_UINT64:
          why = OutOfBounds(rule, static_cast<double>(reflection.GetUInt64(message, &field)));
          break;
        default:
          break;
      }
      if (!why.empty()) return absl::InvalidArgumentError(absl::StrCat(item, ": ", why));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckName(absl::string_view field, const std::string& name) {
  bool plain = !name.empty() && name.size() <= 64 && name[0] != '.';
  for (const char c : name) {
    plain = plain && (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  }
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": ", Shown(name), " is no name: letters, digits, '-', '_' and '.', at most 64, the first no '.'"));
}

absl::Status Divides(absl::string_view divisor_name, uint64_t divisor, absl::string_view number_name, uint64_t number) {
  if (divisor != 0 && number % divisor == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(divisor_name, " (", divisor, ") does not divide ", number_name, " (", number, ")"));
}

absl::Status CheckModel(const v1::ModelSpec& model) {
  MILLRACE_RETURN_IF_ERROR(Divides("model.heads", model.heads(), "model.hidden_size", model.hidden_size()));
  if (model.has_sliding_window() && model.family() != "mistral" && model.family() != "qwen2") {
    return absl::InvalidArgumentError(
        absl::StrCat("model.sliding_window: the family ", model.family(), " has none; mistral and qwen2 have"));
  }
  if (model.family() == "gpt2") {
    if (model.has_kv_heads() && model.kv_heads() != model.heads()) {
      return absl::InvalidArgumentError("model.kv_heads: the family gpt2 has as many as heads; use llama for others");
    }
    return absl::OkStatus();
  }
  if (model.has_kv_heads()) {
    MILLRACE_RETURN_IF_ERROR(Divides("model.kv_heads", model.kv_heads(), "model.heads", model.heads()));
  }
  if (model.hidden_size() / model.heads() % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("model.hidden_size / model.heads is ",
                                                   model.hidden_size() / model.heads(),
                                                   "; rotary positions need an even number"));
  }
  return absl::OkStatus();
}

// What a phase whose answers people compare must say.
absl::Status CheckComparing(const v1::PhaseSpec& phase, const std::string& path) {
  if (phase.rollout().samples() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rollout.samples: two answers are compared, not ", phase.rollout().samples()));
  }
  if (phase.compare().from_size() > 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".compare.from: answers of one model or of two are compared, not of ", phase.compare().from_size()));
  }
  if (phase.global_batch() != 1 || phase.stop().max_steps() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nothing is trained where people compare answers; leave out global_batch and stop"));
  }
  return absl::OkStatus();
}

// What a phase that learns from its own answers must say.
absl::Status CheckSampling(const v1::PhaseSpec& phase, const std::string& path) {
  const v1::RolloutSpec& rollout = phase.rollout();
  const v1::PolicySpec& policy = phase.policy();
  if (phase.rewards().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rewards is missing: ", phase.objective(),
                     " learns from what answers are worth, as in rewards: [{type: model, from: reward@best}]"));
  }
  const uint64_t answers = uint64_t{rollout.prompts()} * rollout.samples() * rollout.epochs();
  if (answers == 0 || answers % phase.global_batch() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".global_batch (", phase.global_batch(), ") does not divide rollout.prompts x samples x ",
                     "epochs (", rollout.prompts(), " x ", rollout.samples(), " x ", rollout.epochs(), ")"));
  }
  if (phase.objective() != "ppo" && rollout.samples() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".rollout.samples: ", phase.objective(),
                                                   " compares the answers to a prompt; at least 2 are wanted"));
  }
  // Checkpoints and evaluations lie where a rollout has been learnt from: what it holds need not be kept.
  const uint64_t steps = answers / phase.global_batch();
  const auto whole = [&](absl::string_view field, uint64_t value) {
    if (value % steps == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path, ".", field, ": ", value, " is no multiple of the ", steps,
                                                   " steps in which the answers of a rollout are learnt from"));
  };
  if (phase.stop().has_max_steps()) MILLRACE_RETURN_IF_ERROR(whole("stop.max_steps", phase.stop().max_steps()));
  MILLRACE_RETURN_IF_ERROR(whole("evaluate.every_steps", phase.evaluate().every_steps()));
  MILLRACE_RETURN_IF_ERROR(whole("checkpoint.every_steps", phase.checkpoint().every_steps()));
  if (policy.average() == "answers" && !rollout.has_max_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rollout.max_tokens is missing: policy.average answers divides by it"));
  }
  if (policy.has_kl_target() && !(policy.kl_coefficient() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".policy.kl_coefficient: adapting it to kl_target needs one above 0 to begin with"));
  }
  for (int i = 0; i < phase.rewards_size(); ++i) {
    const v1::RewardSpec& reward = phase.rewards(i);
    const std::string field = absl::StrCat(path, ".rewards.", i);
    const auto needs = [&](absl::string_view type, absl::string_view name, bool has) {
      if (has == (reward.type() == type)) return absl::OkStatus();
      return absl::InvalidArgumentError(
          has ? absl::StrCat(field, ".", name, ": only for the type ", type, ", not ", reward.type())
              : absl::StrCat(field, ".", name, " is missing: the type ", type, " needs it"));
    };
    MILLRACE_RETURN_IF_ERROR(needs("model", "from", reward.has_from()));
    MILLRACE_RETURN_IF_ERROR(needs("length", "target", reward.has_target()));
    MILLRACE_RETURN_IF_ERROR(needs("pattern", "pattern", reward.has_pattern()));
    // Before hours of earlier phases, not behind them.
    if (const re2::RE2 pattern(reward.pattern(), re2::RE2::Quiet); !pattern.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".pattern: ", Shown(reward.pattern()), " is no regular expression: ", pattern.error()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPhase(const v1::PhaseSpec& phase, const std::string& path) {
  MILLRACE_RETURN_IF_ERROR(CheckName(path + ".name", phase.name()));
  const uint32_t microbatch = phase.has_microbatch() ? phase.microbatch() : LargestDivisor(phase.global_batch(), 4);
  MILLRACE_RETURN_IF_ERROR(Divides(path + ".microbatch", microbatch, path + ".global_batch", phase.global_batch()));
  MILLRACE_RETURN_IF_ERROR(Divides(path + ".unit_microbatches", std::max(1u, phase.unit_microbatches()),
                                   path + ".global_batch / microbatch", phase.global_batch() / microbatch));
  if (!phase.stop().has_max_steps() && !phase.stop().has_max_epochs()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".stop: max_steps or max_epochs is needed"));
  }
  if (phase.replay() > 0 && phase.objective() == "causal_lm" && phase.has_data()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".replay: for sft; to mix texts, list the job's sources among the phase's own"));
  }
  if (phase.replay() > 0 && !phase.has_data()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".replay: a phase without data of its own trains on the job's text anyway; give it data, or no replay"));
  }
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  if (!traits.data.empty() && !phase.has_data()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".data is missing: the ", traits.data, " that ", phase.objective(), " learns from"));
  }
  if (phase.replay() > 0 && phase.objective() != "sft") {
    return absl::InvalidArgumentError(absl::StrCat(path, ".replay: only for sft, not ", phase.objective()));
  }
  if (phase.objective() == "kto" && microbatch < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".microbatch: kto measures its answers against those to other prompts of the microbatch; at least 2"));
  }
  const auto only = [&](absl::string_view field, bool has, bool may, absl::string_view objectives) {
    if (!has || may) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".", field, ": only for ", objectives, ", not ", phase.objective()));
  };
  MILLRACE_RETURN_IF_ERROR(only("centering", phase.has_centering(), traits.trains_rewards, "reward"));
  MILLRACE_RETURN_IF_ERROR(only("preference", phase.has_preference(), traits.prefers, "dpo, ipo, orpo and kto"));
  MILLRACE_RETURN_IF_ERROR(only("compare", phase.has_compare(), !traits.learns, "compare"));
  MILLRACE_RETURN_IF_ERROR(only("rollout", phase.has_rollout(), traits.samples, "compare, ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(
      only("rewards", phase.rewards_size() > 0, traits.samples && traits.learns, "ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(only("policy", phase.has_policy(), traits.samples && traits.learns, "ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(
      only("reference", phase.has_reference(), traits.has_reference, "dpo, ipo, kto, ppo, grpo and rloo"));
  if (!traits.learns) return CheckComparing(phase, path);
  if (traits.samples) MILLRACE_RETURN_IF_ERROR(CheckSampling(phase, path));
  const v1::OptimizerSpec& optimizer = phase.optimizer();
  if (optimizer.betas_size() != 2 && optimizer.betas_size() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.betas: two numbers are wanted, not ", optimizer.betas_size()));
  }
  if (optimizer.has_gradient_bits() && optimizer.gradient_bits() != 16 && optimizer.gradient_bits() != 32) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.gradient_bits: 16 or 32 is wanted, not ", optimizer.gradient_bits()));
  }
  if (optimizer.has_weight_bits() && optimizer.weight_bits() != 32 && optimizer.weight_bits() != 16) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.weight_bits: 16 or 32 is wanted, not ", optimizer.weight_bits()));
  }
  return absl::OkStatus();
}

// A model is an earlier phase's checkpoint, or a folder. `earlier`: objectives by phase. `rewards`: of which kind it is
// to be.
absl::Status CheckStart(const std::string& from, bool rewards, const std::map<std::string, std::string>& earlier,
                        const std::string& path) {
  const std::optional<PhaseStart> start = ParsePhaseStart(from);
  if (!start.has_value()) return absl::OkStatus();
  uint64_t step = 0;
  if (start->which != "best" && start->which != "last" && !absl::SimpleAtoi(start->which, &step)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", Shown(start->which),
                                                   " is no checkpoint; best, last or a step is wanted, as in ",
                                                   start->phase, "@best"));
  }
  const auto found = earlier.find(start->phase);
  if (found == earlier.end()) {
    const auto name = [](std::string* out, const auto& phase) { out->append(phase.first); };
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": there is no earlier phase ", Shown(start->phase), "; ",
        earlier.empty() ? "none comes before" : absl::StrCat("there is ", absl::StrJoin(earlier, ", ", name)),
        ". A folder whose name has an @ is given as ./", from));
  }
  if (!TraitsOf(found->second).learns) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": phase ", start->phase, " has the objective compare, which trains no model"));
  }
  if (TraitsOf(found->second).trains_rewards != rewards) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": phase ", start->phase, " has the objective ", found->second, "; ",
                     rewards ? "one that trains a reward model is wanted" : "a reward model cannot continue text"));
  }
  return absl::OkStatus();
}

// Ratings are of an earlier phase in which people compare answers, and are pairs.
absl::Status CheckRatings(const v1::PhaseSpec& phase, const std::map<std::string, std::string>& earlier,
                          const std::string& path) {
  for (int i = 0; i < phase.data().sources_size(); ++i) {
    const std::optional<std::string> rated = RatedPhase(phase.data().sources(i));
    if (!rated.has_value()) continue;
    const std::string field = absl::StrCat(path, ".data.sources.", i, ".path");
    const auto found = earlier.find(*rated);
    if (found == earlier.end() || TraitsOf(found->second).learns) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": there is no earlier phase ", Shown(*rated), " of the objective compare"));
    }
    if (!TraitsOf(phase.objective()).pairs) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": ratings are pairs of answers, from which ", phase.objective(), " does not learn"));
    }
  }
  return absl::OkStatus();
}

// All models that a phase begins with.
absl::Status CheckStarts(const v1::JobSpec& job, int index, const std::map<std::string, std::string>& earlier) {
  const v1::PhaseSpec& phase = job.phases(index);
  const std::string path = absl::StrCat("phases.", index);
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  // A reward model may go on from either.
  const std::optional<PhaseStart> start = ParsePhaseStart(phase.from());
  const auto of = earlier.find(start.has_value() ? start->phase : "");
  const bool from_rewards = traits.trains_rewards && of != earlier.end() && TraitsOf(of->second).trains_rewards;
  MILLRACE_RETURN_IF_ERROR(CheckStart(phase.from(), from_rewards, earlier, path + ".from"));
  MILLRACE_RETURN_IF_ERROR(CheckStart(phase.reference(), false, earlier, path + ".reference"));
  for (int i = 0; i < phase.compare().from_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(
        CheckStart(phase.compare().from(i), false, earlier, absl::StrCat(path, ".compare.from.", i)));
  }
  for (int i = 0; i < phase.rewards_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(
        CheckStart(phase.rewards(i).from(), true, earlier, absl::StrCat(path, ".rewards.", i, ".from")));
  }
  const std::optional<PhaseStart> value = ParsePhaseStart(phase.policy().value_from());
  const auto value_of = earlier.find(value.has_value() ? value->phase : "");
  const bool value_from_rewards = value_of != earlier.end() && TraitsOf(value_of->second).trains_rewards;
  MILLRACE_RETURN_IF_ERROR(
      CheckStart(phase.policy().value_from(), value_from_rewards, earlier, path + ".policy.value_from"));
  const bool begins = traits.has_reference || traits.trains_rewards || !traits.learns || phase.objective() == "orpo";
  if (begins && phase.compare().from().empty() && StartOfPhase(job, index).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".from is missing: ", phase.objective(),
                                                   " begins with a trained model, of an earlier phase or a folder"));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<PhaseStart> ParsePhaseStart(absl::string_view from) {
  const size_t at = from.rfind('@');
  if (at == absl::string_view::npos || from.find('/') != absl::string_view::npos) return std::nullopt;
  return PhaseStart{std::string(from.substr(0, at)), std::string(from.substr(at + 1))};
}

ObjectiveTraits TraitsOf(absl::string_view objective) {
  ObjectiveTraits traits;
  traits.predicts_text = objective.empty() || objective == "causal_lm" || objective == "sft";
  if (objective.empty() || objective == "causal_lm") return traits;
  traits.data = "conversations";
  if (objective == "sft") return traits;
  traits.trains_rewards = objective == "reward";
  traits.learns = objective != "compare";
  traits.samples = objective == "compare" || objective == "ppo" || objective == "grpo" || objective == "rloo";
  traits.prefers = objective == "dpo" || objective == "ipo" || objective == "orpo" || objective == "kto";
  traits.has_reference = (traits.samples && traits.learns) || (traits.prefers && objective != "orpo");
  traits.pairs = traits.trains_rewards || (traits.prefers && objective != "kto");
  traits.data = traits.samples ? "prompts" : traits.pairs ? "pairs of answers" : "answers with labels";
  return traits;
}

std::optional<std::string> RatedPhase(const v1::SourceSpec& source) {
  const std::optional<PhaseStart> named = ParsePhaseStart(source.path());
  if (!named.has_value() || named->which != "ratings") return std::nullopt;
  return named->phase;
}

bool LearnsFromRatings(const v1::PhaseSpec& phase) {
  const auto& sources = phase.data().sources();
  return std::any_of(sources.begin(), sources.end(),
                     [](const v1::SourceSpec& source) { return RatedPhase(source).has_value(); });
}

std::string StartOfPhase(const v1::JobSpec& job, int phase) {
  if (!job.phases(phase).from().empty()) return job.phases(phase).from();
  while (--phase >= 0) {
    const ObjectiveTraits traits = TraitsOf(job.phases(phase).objective());
    if (traits.learns && !traits.trains_rewards) return job.phases(phase).name() + "@best";
  }
  return "";
}

uint32_t TextContext(const v1::ModelSpec& model, const v1::PhaseSpec& phase) {
  const std::string& type = phase.adapter().type();
  const bool before = type == "prompt_tuning" || type == "p_tuning" || type == "prefix_tuning" || type == "p_tuning_v2";
  return before ? model.context() - phase.adapter().virtual_tokens() : model.context();
}

uint64_t StepsOfRollout(const v1::PhaseSpec& phase) {
  return uint64_t{phase.rollout().prompts()} * phase.rollout().samples() * phase.rollout().epochs() /
         phase.global_batch();
}

void FillPhaseSteps(v1::PhaseSpec* phase) {
  if (phase->optimizer().has_decay_steps() || !phase->stop().has_max_steps()) return;
  phase->mutable_optimizer()->set_decay_steps(
      static_cast<uint32_t>(std::min<uint64_t>(phase->stop().max_steps(), std::numeric_limits<uint32_t>::max())));
}

namespace {

// The phase whose checkpoint a phase starts from; null: there is none.
const v1::PhaseSpec* PhaseOfStart(const v1::JobSpec& job, int phase) {
  std::string from = StartOfPhase(job, phase);
  if (job.phases(phase).compare().from_size() > 0) from = job.phases(phase).compare().from(0);
  const std::optional<PhaseStart> start = ParsePhaseStart(from);
  for (int i = 0; start.has_value() && i < phase; ++i) {
    if (job.phases(i).name() == start->phase) return &job.phases(i);
  }
  return nullptr;
}

absl::Status CheckAdapter(const v1::JobSpec& job, int index) {
  const v1::PhaseSpec& phase = job.phases(index);
  if (!phase.has_adapter()) return absl::OkStatus();
  const v1::AdapterSpec& adapter = phase.adapter();
  const std::string& type = adapter.type();
  const std::string path = absl::StrCat("phases.", index, ".adapter");
  const auto wrong = [&path](absl::string_view field, absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, field, ": ", what));
  };
  if (StartOfPhase(job, index).empty() && phase.compare().from().empty()) {
    return wrong("", "an adapter goes on a trained model, of an earlier phase or a folder; the phase starts from none");
  }
  const bool linear = type == "lora" || type == "ia3", lora = type == "lora";
  const bool table = type == "prompt_tuning" || type == "p_tuning_v2" || type == "llama_adapter";
  const struct {
    const char* name;
    bool has, may;
    const char* types;
  } only[] = {
      {".targets", adapter.targets_size() > 0, linear, "lora and ia3"},
      {".rank", adapter.has_rank(), lora, "lora"},
      {".alpha", adapter.has_alpha(), lora, "lora"},
      {".dropout", adapter.dropout() > 0, lora, "lora"},
      {".rank_stabilized", adapter.rank_stabilized(), lora, "lora"},
      {".dora", adapter.dora(), lora, "lora"},
      {".feedforward_targets", adapter.feedforward_targets_size() > 0, type == "ia3", "ia3"},
      {".virtual_tokens", adapter.has_virtual_tokens(), !linear, "those that have virtual tokens"},
      {".init_text", adapter.has_init_text(), type == "prompt_tuning", "prompt_tuning"},
      {".init_std", adapter.has_init_std(), table, "prompt_tuning, p_tuning_v2 and llama_adapter"},
      {".encoder_hidden_size", adapter.has_encoder_hidden_size(), type == "p_tuning" || type == "prefix_tuning",
       "p_tuning and prefix_tuning"},
      {".layers", adapter.has_layers(), type == "llama_adapter", "llama_adapter"},
  };
  for (const auto& field : only) {
    if (field.has && !field.may) return wrong(field.name, absl::StrCat("only for ", field.types, ", not ", type));
  }
  if (adapter.layers() > job.model().layers()) {
    return wrong(".layers", absl::StrCat(adapter.layers(), " where the model has ", job.model().layers()));
  }
  if (job.model().context() < adapter.virtual_tokens() + 2) {
    return wrong(".virtual_tokens", absl::StrCat(adapter.virtual_tokens(), " leave no room for text in a context of ",
                                                 job.model().context()));
  }
  if (phase.trainable().has_last_layers()) {
    return wrong("", "with an adapter the model's own layers are not trained; drop trainable.last_layers");
  }
  const v1::PhaseSpec* const start = PhaseOfStart(job, index);
  if (start == nullptr || !start->has_adapter()) return absl::OkStatus();
  v1::AdapterSpec before = start->adapter(), now = adapter;
  for (v1::AdapterSpec* spec : {&before, &now}) {
    spec->clear_dropout();
    spec->clear_init_text();
    spec->clear_init_std();
  }
  if (before.SerializeAsString() == now.SerializeAsString()) return absl::OkStatus();
  return wrong("", absl::StrCat("differs from that of phase ", Shown(start->name()),
                                ", which is trained on: leave it "
                                "out, or export that phase's model with its adapter merged and start from there"));
}

}  // namespace

void FillAdapterDefaults(const v1::ModelSpec& model, v1::AdapterSpec* adapter) {
  FillMessage(adapter);
  const bool gpt2 = model.family() == "gpt2";
  const std::string& type = adapter->type();
  const bool low_rank = type == "lora" || type == "adalora";
  if (low_rank || type == "ia3") {
    std::vector<absl::string_view> targets;
    if (gpt2) {
      targets.push_back("c_attn");
      if (!low_rank) targets.push_back("mlp.c_proj");
    } else {
      targets.push_back(low_rank ? "q_proj" : "k_proj");
      targets.push_back("v_proj");
      if (!low_rank) targets.push_back("down_proj");
    }
    if (adapter->targets().empty()) {
      for (const absl::string_view target : targets) adapter->add_targets(std::string(target));
      if (!low_rank && adapter->feedforward_targets().empty()) {
        adapter->add_feedforward_targets(std::string(targets.back()));
      }
    }
  }
  if (low_rank) {
    if (!adapter->has_rank()) adapter->set_rank(type == "lora" ? 8 : 12);
    if (!adapter->has_alpha()) adapter->set_alpha(adapter->rank());
  }
  const bool prompts = type == "prompt_tuning" || type == "p_tuning" || type == "prefix_tuning" ||
                       type == "p_tuning_v2" || type == "llama_adapter";
  if (prompts && !adapter->has_virtual_tokens()) adapter->set_virtual_tokens(8);
  const bool random = type == "prompt_tuning" || type == "p_tuning_v2" || type == "llama_adapter";
  if (random && !adapter->has_init_std()) adapter->set_init_std(0.02);
  const bool network = type == "p_tuning" || type == "prefix_tuning";
  if (network && !adapter->has_encoder_hidden_size()) adapter->set_encoder_hidden_size(model.hidden_size());
  if (type == "llama_adapter" && !adapter->has_layers()) adapter->set_layers(model.layers());
}

void FillDefaults(v1::JobSpec* job) {
  const v1::ChatSpec* chat = nullptr;  // of the last phase that has one
  for (v1::PhaseSpec& phase : *job->mutable_phases()) {
    const ObjectiveTraits traits = TraitsOf(phase.objective());
    if (!traits.data.empty() && !phase.has_chat()) {
      *phase.mutable_chat() = chat == nullptr ? v1::ChatSpec() : *chat;
    }
    if (phase.has_chat()) chat = &phase.chat();
    if (traits.samples) phase.mutable_rollout();
    if (traits.samples && traits.learns) phase.mutable_policy();
    if (!traits.learns) {
      // Nothing is trained: what every phase must say has one value.
      phase.mutable_compare();
      if (!phase.has_global_batch()) phase.set_global_batch(1);
      if (!phase.stop().has_max_steps()) phase.mutable_stop()->set_max_steps(1);
      if (!phase.rollout().has_samples()) phase.mutable_rollout()->set_samples(2);
    }
    if (traits.prefers) phase.mutable_preference();
    if (traits.trains_rewards && !phase.has_centering()) phase.set_centering(0.01);
  }
  FillMessage(job);
  v1::ModelSpec& model = *job->mutable_model();
  if (!model.has_kv_heads() && model.has_heads()) model.set_kv_heads(model.heads());
  if (!model.has_intermediate_size() && model.has_hidden_size()) {
    const uint64_t hidden = model.hidden_size();
    model.set_intermediate_size(
        static_cast<uint32_t>(model.family() == "gpt2" ? 4 * hidden : (8 * hidden + 95) / 96 * 32));
  }
  for (int i = 0; i < job->phases_size(); ++i) {
    v1::PhaseSpec& phase = *job->mutable_phases(i);
    if (!phase.has_adapter()) {
      if (const v1::PhaseSpec* start = PhaseOfStart(*job, i); start != nullptr && start->has_adapter()) {
        *phase.mutable_adapter() = start->adapter();
      }
    }
    if (phase.has_adapter()) FillAdapterDefaults(model, phase.mutable_adapter());
  }
  for (v1::PhaseSpec& phase : *job->mutable_phases()) {
    if (!phase.has_microbatch() && phase.has_global_batch())
      phase.set_microbatch(LargestDivisor(phase.global_batch(), 4));
    if (!phase.stop().has_max_epochs()) FillPhaseSteps(&phase);
    if (!phase.optimizer().has_weight_bits()) {
      phase.mutable_optimizer()->set_weight_bits(model.precision() == "bf16" ? 16 : 32);
    }
    if (const ObjectiveTraits traits = TraitsOf(phase.objective()); traits.samples && traits.learns) {
      if (!phase.rollout().has_samples()) {
        phase.mutable_rollout()->set_samples(phase.objective() == "ppo" ? 1 : phase.objective() == "grpo" ? 8 : 4);
      }
      v1::PolicySpec& policy = *phase.mutable_policy();
      if (!policy.has_clip_high()) policy.set_clip_high(policy.clip());
      if (!policy.has_kl_coefficient()) {
        policy.set_kl_coefficient(phase.objective() == "ppo" ? 0.02 : phase.objective() == "grpo" ? 0 : 0.05);
      }
    }
    if (!phase.checkpoint().has_every_steps()) {
      phase.mutable_checkpoint()->set_every_steps(phase.evaluate().every_steps());
    }
  }
}

absl::Status ValidateJob(const v1::JobSpec& job) {
  MILLRACE_RETURN_IF_ERROR(CheckRules(job, ""));
  MILLRACE_RETURN_IF_ERROR(CheckName("name", job.name()));
  MILLRACE_RETURN_IF_ERROR(CheckModel(job.model()));
  if (!job.has_data() && !job.tokenizer().has_path()) {
    return absl::InvalidArgumentError(
        "data is missing: the text to learn from; a job without needs tokenizer.path, and data in each phase");
  }
  std::map<std::string, std::string> earlier;  // objectives by phase
  for (int i = 0; i < job.phases_size(); ++i) {
    const std::string path = absl::StrCat("phases.", i);
    MILLRACE_RETURN_IF_ERROR(CheckPhase(job.phases(i), path));
    if (job.model().precision() == "bf16" && job.phases(i).optimizer().weight_bits() == 32) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".optimizer.weight_bits: a model of precision bf16 computes with 16, not 32"));
    }
    if (!job.has_data() && (!job.phases(i).has_data() || job.phases(i).replay() > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, job.phases(i).has_data() ? ".replay" : ".data is missing", ": the job has no text"));
    }
    MILLRACE_RETURN_IF_ERROR(CheckStarts(job, i, earlier));
    MILLRACE_RETURN_IF_ERROR(CheckAdapter(job, i));
    MILLRACE_RETURN_IF_ERROR(CheckRatings(job.phases(i), earlier, path));
    if (!earlier.emplace(job.phases(i).name(), job.phases(i).objective()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".name: there is a phase ", Shown(job.phases(i).name()), " already"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::JobSpec> ParseJob(absl::string_view yaml, absl::string_view file_name,
                                     absl::Span<const std::string> overrides) {
  const Place place(file_name);
  if (yaml.size() > kMaxJobFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, " has ", yaml.size(), " bytes; a job file has at most ", kMaxJobFileBytes));
  }
  v1::JobSpec job;
  MILLRACE_ASSIGN_OR_RETURN(const YAML::Node node, LoadYaml(std::string(yaml), place));
  try {
    MILLRACE_RETURN_IF_ERROR(Mapper(place).Map(node, "", &job));
    for (const std::string& override_text : overrides) MILLRACE_RETURN_IF_ERROR(ApplyOverride(override_text, &job));
  } catch (const YAML::Exception& error) {
    return place.Error(error.mark, error.msg);
  }
  FillDefaults(&job);
  MILLRACE_RETURN_IF_ERROR(Annotate(ValidateJob(job), file_name));
  return job;
}

absl::StatusOr<v1::JobSpec> ReadJobFile(const std::string& path, absl::Span<const std::string> overrides) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path, kMaxJobFileBytes));
  return ParseJob(yaml, path, overrides);
}

}  // namespace millrace
