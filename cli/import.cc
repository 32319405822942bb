// millrace import: a model of other programs.
#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_folder.h"
#include "cli/model_source.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunImport(Arguments arguments) {
  std::string from, adapter, out;
  Flags flags(
      "import",
      "Reads a Hugging Face folder of the GPT-2, LLaMA, Mistral, Qwen2 or BERT family, checks it and writes a model "
      "folder: "
      "f32 in one file, whatever it was.",
      "--from hugging-face --out runs/imported");
  flags.Text("from", "DIR", "folder with config.json, tokenizer.json and safetensors, in one file or several", &from)
      .Required();
  flags.Text("adapter", "DIR", "folder of an adapter for it, as Hugging Face's peft writes it: to be trained on",
             &adapter);
  flags.Text("out", "M", "folder to make, for --model", &out).Required();
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_RETURN_IF_ERROR(CheckIsFree(out));
  MILLRACE_RETURN_IF_ERROR(CheckModelFolder(from));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open,
                            OpenModelFolder(from, /*threads=*/1, model::Weights::kStored));
  if (!adapter.empty()) MILLRACE_RETURN_IF_ERROR(open->language_model->AddAdapter(adapter));
  const model::LanguageModel& model = *open->language_model;
  MILLRACE_RETURN_IF_ERROR(WriteModelFolder(*open, out));
  std::printf("%s holds the model: %s, %lld parameters, a vocabulary of %u.\n", out.c_str(),
              model.network().spec().family().c_str(), static_cast<long long>(model.network().tensors().parameters()),
              model.network().vocab_size());
  return absl::OkStatus();
}

}  // namespace millrace::cli
