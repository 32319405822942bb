#include "common/yaml_message.h"

#include <google/protobuf/descriptor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
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
  // `holds`: what the whole is called.
  Mapper(const Place& place, absl::string_view holds) : place_(place), holds_(holds) {}

  absl::Status Map(const YAML::Node& node, absl::string_view path, Message* message) {
    if (!node.IsMap()) {
      return place_.Error(node,
                          absl::StrCat(path.empty() ? absl::StrCat("the ", holds_) : path, " must be fields, as in {",
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
    if (field.is_map()) return Words(node, path, field, message);
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
    if (bytes > bytes_left_)
      return place_.Error(node, absl::StrCat("with all that its aliases repeat, the ", holds_, " is too large"));
    bytes_left_ -= bytes;
    return absl::OkStatus();
  }

  // Names with a text each.
  absl::Status Words(const YAML::Node& node, const std::string& path, const FieldDescriptor& field, Message* message) {
    if (!node.IsMap()) return place_.Error(node, absl::StrCat(path, " must be names with values, as in {name: value}"));
    if (node.size() > kMaxListItems) return place_.Error(node, absl::StrCat(path, " has too many names"));
    const Reflection& reflection = *message->GetReflection();
    const Descriptor& entry_type = *field.message_type();
    reflection.ClearField(message, &field);
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return place_.Error(entry.first, absl::StrCat(path, ": a name must be one word"));
      const std::string& name = entry.first.Scalar();
      if (!seen.insert(name).second) {
        return place_.Error(entry.first, absl::StrCat(Join(path, name), " is given twice"));
      }
      if (entry.second.IsNull()) return place_.Error(entry.first, absl::StrCat(Join(path, name), " is given no value"));
      Message* const added = reflection.AddMessage(message, &field);
      MILLRACE_RETURN_IF_ERROR(Scalar(entry.first, path, *entry_type.map_key(), added));
      MILLRACE_RETURN_IF_ERROR(Scalar(entry.second, Join(path, name), *entry_type.map_value(), added));
    }
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
        repeated ? reflection.AddUInt32(message, &field, static_cast<uint32_t>(value))
                 : reflection.SetUInt32(message, &field, static_cast<uint32_t>(value));
        return absl::OkStatus();
      }
      default:
        return wrong("a type that YAML is not read into");
    }
  }

  const Place& place_;
  const std::string holds_;
  size_t bytes_left_ = kMaxYamlBytes;
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

absl::StatusOr<YAML::Node> LoadYaml(const std::string& text, const Place& place, absl::string_view holds) {
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentStarts documents;
    while (documents.marks.size() < 2 && parser.HandleNextDocument(documents)) {
    }
    if (documents.marks.size() > 1) {
      return place.Error(documents.marks[1],
                         absl::StrCat("here the document has ended; a ", holds, " file is one document"));
    }
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return place.Error(error.mark, absl::StrCat("this is not YAML: ", error.msg));
  }
}

}  // namespace

std::string Shown(absl::string_view text) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(text.substr(0, 80)), text.size() > 80 ? "…" : "", "'");
}

absl::Status ParseYaml(absl::string_view yaml, const YamlFile& file, Message* message) {
  const Place place(file.name);
  if (yaml.size() > kMaxYamlBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.name, " has ", yaml.size(), " bytes; a ", file.holds, " file has at most ", kMaxYamlBytes));
  }
  MILLRACE_ASSIGN_OR_RETURN(const YAML::Node node, LoadYaml(std::string(yaml), place, file.holds));
  try {
    return Mapper(place, file.holds).Map(node, "", message);
  } catch (const YAML::Exception& error) {
    return place.Error(error.mark, error.msg);
  }
}

absl::Status ApplyYamlOverride(absl::string_view override_text, const std::string& holds, Message* message) {
  const Place place = Place::Override(override_text);
  const size_t equals = override_text.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return place.Error(YAML::Node(), "FIELD=VALUE is wanted, as in phases.0.stop.max_steps=20");
  }
  const std::vector<std::string> parts = absl::StrSplit(override_text.substr(0, equals), '.');
  MILLRACE_ASSIGN_OR_RETURN(const YAML::Node value,
                            LoadYaml(std::string(override_text.substr(equals + 1)), place, holds));
  try {
    std::string path;
    for (size_t i = 0; i < parts.size(); ++i) {
      const FieldDescriptor* const field = message->GetDescriptor()->FindFieldByName(parts[i]);
      if (field == nullptr) return place.Error(YAML::Node(), UnknownField(*message->GetDescriptor(), parts[i], path));
      path = Join(path, parts[i]);
      if (i + 1 == parts.size()) return Mapper(place, holds).Set(value, path, *field, message);
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) {
        return place.Error(YAML::Node(), absl::StrCat(path, " has no fields; ",
                                                      field->is_map()        ? "give all its names, as in {name: value}"
                                                      : field->is_repeated() ? "give the whole list"
                                                                             : "it is a single value"));
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
      if (i + 1 == parts.size()) return Mapper(place, holds).Map(value, path, message);
    }
  } catch (const YAML::Exception& error) {
    return place.Error(YAML::Node(), error.msg);
  }
  return absl::OkStatus();
}

void FillRuleDefaults(Message* message) {
  const Descriptor& descriptor = *message->GetDescriptor();
  const Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!field.is_repeated()) {
        if (RuleOf(field).keep_absent() && !reflection.HasField(*message, &field)) continue;
        FillRuleDefaults(reflection.MutableMessage(message, &field));
      } else {
        for (int j = 0; j < reflection.FieldSize(*message, &field); ++j) {
          FillRuleDefaults(reflection.MutableRepeatedMessage(message, &field, j));
        }
      }
      continue;
    }
    const std::string& fallback = RuleOf(field).default_value();
    if (fallback.empty()) continue;
    if (field.is_repeated() ? reflection.FieldSize(*message, &field) > 0 : reflection.HasField(*message, &field))
      continue;
    // A default that its own rule refuses is our mistake; CheckRules names it, and tests try them all.
    const Place place(field.full_name());
    const absl::StatusOr<YAML::Node> value = LoadYaml(fallback, place, "default");
    if (value.ok()) Mapper(place, "default").Set(*value, field.name(), field, message).IgnoreError();
  }
}

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
          why = OutOfBounds(rule, repeated ? reflection.GetRepeatedUInt32(message, &field, j)
                                           : reflection.GetUInt32(message, &field));
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

}  // namespace millrace
