// Reads a subcommand's command line into variables, each flag with its help said once, and prints that help.
//
//   std::string model;
//   int64_t tokens = 100;
//   Flags flags("generate", "Continues a prompt.", "--model runs/quickstart/model --prompt \"In the beginning\"");
//   flags.Text("model", "M", "checkpoint folder, Hugging Face folder or JOB@best", &model).Required();
//   flags.Integer("max-tokens", "N", "tokens to make", &tokens, 1, 1 << 20);
//   MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
//
// On the command line: --name VALUE, --name=VALUE, --name and --no-name for switches; "--" ends the flags. A variable
// whose flag is absent keeps its value, which the help shows as the default.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::cli {

// The command was typed wrongly: exit status 2.
absl::Status UsageError(absl::string_view message);
bool IsUsageError(const absl::Status& status);
// --help was asked for and printed: exit status 0.
bool IsHelpShown(const absl::Status& status);

class Flags {
 public:
  struct Flag {
    std::string name;
    std::string placeholder;  // of the value; empty for switches
    std::string help;
    std::variant<std::string*, int64_t*, double*, bool*, std::vector<std::string>*> value;
    double min = 0;
    double max = 0;
    bool required = false;
    bool positional = false;
    bool given = false;

    Flag& Required() {
      required = true;
      return *this;
    }
  };

  // `example`: arguments of a typical call, without "millrace COMMAND".
  Flags(std::string command, std::string summary, std::string example);

  // The variables must outlive Parse. The returned reference is good until the next declaration.
  Flag& Text(std::string name, std::string placeholder, std::string help, std::string* value);
  Flag& Integer(std::string name, std::string placeholder, std::string help, int64_t* value, int64_t min, int64_t max);
  Flag& Number(std::string name, std::string placeholder, std::string help, double* value, double min, double max);
  Flag& Switch(std::string name, std::string help, bool* value);
  // May be given several times.
  Flag& List(std::string name, std::string placeholder, std::string help, std::vector<std::string>* values);
  // The next argument that is no flag.
  Flag& Positional(std::string name, std::string help, std::string* value);

  // OK; a usage error that names the argument and the nearest flag; or HelpShown after printing Help() to standard
  // output.
  absl::Status Parse(absl::Span<const std::string> arguments);
  // Whether the flag was on the command line.
  bool given(absl::string_view name) const;

  std::string Help() const;

 private:
  Flag& Add(Flag flag);
  Flag* Find(absl::string_view name);
  absl::Status Set(Flag* flag, absl::string_view text);

  const std::string command_;
  const std::string summary_;
  const std::string example_;
  std::vector<Flag> flags_;
};

// The one of `names` that `word` was most likely meant to be; empty when none is near.
std::string Nearest(absl::string_view word, absl::Span<const std::string> names);

}  // namespace millrace::cli
