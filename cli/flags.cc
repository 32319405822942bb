#include "cli/flags.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

constexpr char kUsagePayload[] = "millrace/usage";
constexpr char kHelpPayload[] = "millrace/help";

size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string DefaultOf(const Flags::Flag& flag) {
  if (flag.required) return "required";
  if (const auto* text = std::get_if<std::string*>(&flag.value)) {
    return (*text)->empty() ? "" : absl::StrCat("default ", **text);
  }
  if (const auto* integer = std::get_if<int64_t*>(&flag.value)) return absl::StrCat("default ", **integer);
  if (const auto* number = std::get_if<double*>(&flag.value)) return absl::StrCat("default ", **number);
  return "";
}

}  // namespace

absl::Status UsageError(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord("1"));
  return status;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsagePayload).has_value(); }

bool IsHelpShown(const absl::Status& status) { return status.GetPayload(kHelpPayload).has_value(); }

std::string Nearest(absl::string_view word, absl::Span<const std::string> names) {
  std::string nearest;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = EditDistance(word, name);
    if (distance < least) {
      least = distance;
      nearest = name;
    }
  }
  return nearest;
}

Flags::Flags(std::string command, std::string summary, std::string example)
    : command_(std::move(command)), summary_(std::move(summary)), example_(std::move(example)) {}

Flags::Flag& Flags::Add(Flag flag) {
  flags_.push_back(std::move(flag));
  return flags_.back();
}

Flags::Flag& Flags::Text(std::string name, std::string placeholder, std::string help, std::string* value) {
  return Add({.name = std::move(name), .placeholder = std::move(placeholder), .help = std::move(help), .value = value});
}

Flags::Flag& Flags::Integer(std::string name, std::string placeholder, std::string help, int64_t* value, int64_t min,
                            int64_t max) {
  return Add({.name = std::move(name),
              .placeholder = std::move(placeholder),
              .help = std::move(help),
              .value = value,
              .min = static_cast<double>(min),
              .max = static_cast<double>(max)});
}

Flags::Flag& Flags::Number(std::string name, std::string placeholder, std::string help, double* value, double min,
                           double max) {
  return Add({.name = std::move(name),
              .placeholder = std::move(placeholder),
              .help = std::move(help),
              .value = value,
              .min = min,
              .max = max});
}

Flags::Flag& Flags::Switch(std::string name, std::string help, bool* value) {
  return Add({.name = std::move(name), .help = std::move(help), .value = value});
}

Flags::Flag& Flags::List(std::string name, std::string placeholder, std::string help,
                         std::vector<std::string>* values) {
  return Add({.name = std::move(name), .placeholder = std::move(placeholder), .help = std::move(help), .value = values});
}

Flags::Flag& Flags::Positional(std::string name, std::string help, std::string* value) {
  return Add({.name = std::move(name), .help = std::move(help), .value = value, .positional = true});
}

Flags::Flag* Flags::Find(absl::string_view name) {
  for (Flag& flag : flags_) {
    if (!flag.positional && flag.name == name) return &flag;
  }
  return nullptr;
}

bool Flags::given(absl::string_view name) const {
  return std::any_of(flags_.begin(), flags_.end(), [name](const Flag& flag) { return flag.name == name && flag.given; });
}

absl::Status Flags::Set(Flag* flag, absl::string_view text) {
  const std::string shown = flag->positional ? flag->name : absl::StrCat("--", flag->name);
  if (flag->given && !std::holds_alternative<std::vector<std::string>*>(flag->value)) {
    return UsageError(absl::StrCat(shown, " is given twice"));
  }
  flag->given = true;
  if (auto* value = std::get_if<std::string*>(&flag->value)) {
    **value = std::string(text);
  } else if (auto* values = std::get_if<std::vector<std::string>*>(&flag->value)) {
    (*values)->push_back(std::string(text));
  } else if (auto* integer = std::get_if<int64_t*>(&flag->value)) {
    int64_t parsed = 0;
    if (!absl::SimpleAtoi(text, &parsed) || static_cast<double>(parsed) < flag->min ||
        static_cast<double>(parsed) > flag->max) {
      return UsageError(absl::StrCat(shown, " takes a whole number from ", static_cast<int64_t>(flag->min), " to ",
                                     static_cast<int64_t>(flag->max), ", not '", text, "'"));
    }
    **integer = parsed;
  } else if (auto* number = std::get_if<double*>(&flag->value)) {
    double parsed = 0;
    if (!absl::SimpleAtod(text, &parsed) || !std::isfinite(parsed) || parsed < flag->min || parsed > flag->max) {
      return UsageError(
          absl::StrCat(shown, " takes a number from ", flag->min, " to ", flag->max, ", not '", text, "'"));
    }
    **number = parsed;
  }
  return absl::OkStatus();
}

absl::Status Flags::Parse(absl::Span<const std::string> arguments) {
  bool flags_ended = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view argument = arguments[i];
    if (!flags_ended && argument == "--") {
      flags_ended = true;
      continue;
    }
    if (!flags_ended && (argument == "--help" || argument == "-h")) {
      std::fputs(Help().c_str(), stdout);
      absl::Status shown = absl::CancelledError("help was shown");
      shown.SetPayload(kHelpPayload, absl::Cord("1"));
      return shown;
    }
    if (flags_ended || !absl::StartsWith(argument, "--")) {
      auto next = std::find_if(flags_.begin(), flags_.end(), [](const Flag& f) { return f.positional && !f.given; });
      if (next == flags_.end()) return UsageError(absl::StrCat("'", argument, "' is one argument too many"));
      MILLRACE_RETURN_IF_ERROR(Set(&*next, argument));
      continue;
    }
    absl::string_view name = absl::StripPrefix(argument, "--");
    std::optional<absl::string_view> value;
    if (const size_t equals = name.find('='); equals != absl::string_view::npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    }
    Flag* flag = Find(name);
    bool negated = false;
    if (flag == nullptr && absl::StartsWith(name, "no-")) {
      flag = Find(name.substr(3));
      negated = flag != nullptr && std::holds_alternative<bool*>(flag->value);
      if (!negated) flag = nullptr;
    }
    if (flag == nullptr) {
      std::vector<std::string> names;
      for (const Flag& known : flags_) {
        if (!known.positional) names.push_back(known.name);
      }
      const std::string nearest = Nearest(name, names);
      return UsageError(
          absl::StrCat("there is no --", name, nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?")));
    }
    if (auto* flag_switch = std::get_if<bool*>(&flag->value)) {
      if (value.has_value()) return UsageError(absl::StrCat("--", name, " takes no value"));
      **flag_switch = !negated;
      flag->given = true;
      continue;
    }
    if (!value.has_value()) {
      if (++i == arguments.size()) return UsageError(absl::StrCat("--", name, " needs a value"));
      value = arguments[i];
    }
    MILLRACE_RETURN_IF_ERROR(Set(flag, *value));
  }
  for (const Flag& flag : flags_) {
    if (flag.required && !flag.given) {
      return UsageError(absl::StrCat(flag.positional ? "" : "--", flag.name, " is missing"));
    }
  }
  return absl::OkStatus();
}

std::string Flags::Help() const {
  std::string usage = absl::StrCat("millrace ", command_);
  std::vector<std::pair<std::string, std::string>> rows;
  size_t width = 0;
  for (const Flag& flag : flags_) {
    if (flag.positional) {
      absl::StrAppend(&usage, flag.required ? " " : " [", flag.name, flag.required ? "" : "]");
    }
    std::string help = flag.help;
    const std::string fallback = flag.positional ? "" : DefaultOf(flag);
    if (!fallback.empty()) absl::StrAppend(&help, " (", fallback, ")");
    rows.emplace_back(flag.positional            ? flag.name
                      : flag.placeholder.empty() ? absl::StrCat("--", flag.name)
                                                 : absl::StrCat("--", flag.name, " ", flag.placeholder),
                      help);
    width = std::max(width, rows.back().first.size());
  }
  std::string text = absl::StrCat(summary_, "\n\n  ", usage, " [--flags]\n\n");
  for (const auto& [left, right] : rows) {
    absl::StrAppend(&text, "  ", left, std::string(width - left.size() + 2, ' '), right, "\n");
  }
  absl::StrAppend(&text, "\nExample:\n  millrace ", command_, " ", example_, "\n");
  return text;
}

}  // namespace millrace::cli
