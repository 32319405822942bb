// millrace export: a model for other programs.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_folder.h"
#include "cli/model_source.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunExport(Arguments arguments) {
  std::string format = "hf", out;
  ModelFlags model_flags;
  Flags flags("export", "Writes a model for other programs. hf: a folder that Hugging Face's transformers loads.",
              "--model runs/quickstart/model --format hf --out hugging-face");
  model_flags.Declare(&flags);
  flags.Text("format", "F", "hf", &format);
  flags.Text("out", "DIR", "folder to make", &out).Required();
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (format != "hf") return UsageError(absl::StrCat("--format takes hf, not '", format, "'"));
  MILLRACE_RETURN_IF_ERROR(CheckIsFree(out));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open(model::Weights::kStored));
  MILLRACE_RETURN_IF_ERROR(WriteModelFolder(*open, out));
  std::printf("%s holds the model in Hugging Face's layout.\n", out.c_str());
  return absl::OkStatus();
}

}  // namespace millrace::cli
