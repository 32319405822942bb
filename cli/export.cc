// millrace export: a model for other programs.
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_folder.h"
#include "cli/model_source.h"
#include "common/status.h"
#include "model/families/decoder.h"
#include "model/families/encoder.h"
#include "model/formats/dtype.h"

namespace millrace::cli {
namespace {

// "2GB", "500MiB", "10000": as Hugging Face has sizes, KB of 1000 and KiB of 1024 bytes. Nothing for another text.
std::optional<uint64_t> ParseBytes(absl::string_view text) {
  uint64_t unit = 1;
  struct Unit {
    absl::string_view suffix;
    uint64_t bytes;
  };
  for (const Unit& each : {Unit{"KiB", 1 << 10}, Unit{"MiB", 1 << 20}, Unit{"GiB", 1 << 30}, Unit{"KB", 1'000},
                           Unit{"MB", 1'000'000}, Unit{"GB", 1'000'000'000}}) {
    if (unit == 1 && absl::ConsumeSuffix(&text, each.suffix)) unit = each.bytes;
  }
  uint64_t count = 0;
  if (!absl::SimpleAtoi(text, &count) || count == 0 || count > std::numeric_limits<int64_t>::max() / unit) {
    return std::nullopt;
  }
  return count * unit;
}

}  // namespace

absl::Status RunExport(Arguments arguments) {
  std::string format = "hf", out, base, dtype_name = "f32", max_shard_size = "2GB";
  bool without_adapter = false;
  ModelFlags model_flags;
  Flags flags(
      "export",
      "Writes a model for other programs. hf: a folder that Hugging Face's transformers loads; gguf: a file that "
      "llama.cpp loads; peft: the adapter alone, as a folder that Hugging Face's peft loads. The others make an "
      "adapter "
      "part of the weights.",
      "--model runs/quickstart/model --format gguf --dtype q8_0 --out quickstart.gguf");
  model_flags.Declare(&flags);
  flags.Text("format", "F", "hf, gguf or peft", &format);
  flags.Text("dtype", "T", "of the weights: f32, f16, bf16 or, for gguf, q8_0", &dtype_name);
  flags.Text("max-shard-size", "N", "hf: bytes of a file of weights at most, as in 2GB or 500MiB", &max_shard_size);
  flags.Text("base", "NAME", "peft: what the adapter calls its base model: a folder, seen from --out, or a name",
             &base);
  flags.Switch("without-adapter", "hf, gguf: the model as it was before its adapter", &without_adapter);
  flags.Text("out", "PATH", "folder, or file of gguf, to make", &out).Required();
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (format != "hf" && format != "gguf" && format != "peft") {
    return UsageError(absl::StrCat("--format takes hf, gguf or peft, not '", format, "'"));
  }
  if (format == "peft") {
    for (const char* const name : {"dtype", "max-shard-size", "without-adapter"}) {
      if (flags.given(name)) return UsageError(absl::StrCat("--", name, " is not for --format peft"));
    }
  } else if (flags.given("base")) {
    return UsageError("--base is for --format peft");
  }
  const bool gguf = format == "gguf";
  const std::optional<model::Dtype> dtype = model::DtypeNamed(dtype_name);
  if (!dtype.has_value() || (!gguf && *dtype == model::Dtype::kQ8_0)) {
    return UsageError(absl::StrCat("--dtype takes f32, f16", gguf ? ", bf16 or q8_0" : " or bf16 with --format hf",
                                   ", not '", dtype_name, "'"));
  }
  if (gguf && flags.given("max-shard-size")) return UsageError("--max-shard-size is for --format hf");
  const std::optional<uint64_t> max_file_bytes = ParseBytes(max_shard_size);
  if (!max_file_bytes.has_value()) {
    return UsageError(absl::StrCat("--max-shard-size takes a number of bytes, as in 2GB, not '", max_shard_size, "'"));
  }
  MILLRACE_RETURN_IF_ERROR(CheckIsFree(out));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open(model::Weights::kStored));
  if (format == "peft") {
    MILLRACE_RETURN_IF_ERROR(WriteAdapterFolder(*open, out, base));
    std::printf("%s holds the adapter in the layout of Hugging Face's peft.\n", out.c_str());
    return absl::OkStatus();
  }
  if (without_adapter) MILLRACE_RETURN_IF_ERROR(open->language_model->UseAdapters({}));
  if (absl::Status merged = open->language_model->Merge(); !merged.ok()) {
    return Annotate(merged, "--format peft writes it beside the model, which --without-adapter writes");
  }
  if (!gguf) {
    if (const std::string& family = open->language_model->network().spec().family();
        !model::IsDecoder(family) && !model::IsEncoder(family)) {
      return absl::InvalidArgumentError(
          absl::StrCat("Hugging Face has no class for the family ", family,
                       ": nothing but millrace opens such a model; its checkpoint is a folder that can be copied"));
    }
    MILLRACE_RETURN_IF_ERROR(WriteModelFolder(*open, out, *dtype, *max_file_bytes));
    std::printf("%s holds the model in Hugging Face's layout.\n", out.c_str());
    return absl::OkStatus();
  }
  MILLRACE_RETURN_IF_ERROR(WriteModelGguf(*open, out, *dtype));
  std::printf("%s holds the model for llama.cpp.\n", out.c_str());
  const v1::ModelSpec& spec = open->language_model->network().spec();
  if (spec.has_sliding_window() && spec.sliding_window() < spec.context()) {
    std::printf("llama.cpp has no sliding window for %s: the file's context is the window's %u tokens, not %u.\n",
                spec.family().c_str(), spec.sliding_window(), spec.context());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
