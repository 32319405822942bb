#include "cli/model_folder.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/new_folder.h"
#include "common/files.h"
#include "common/status.h"
#include "model/formats/gguf.h"
#include "model/formats/hugging_face.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

// Without a slash at the end.
fs::path Folder(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

// As it was opened; the tokenizer knows better which token ends a text.
model::Configuration ConfigurationOf(const model::LanguageModel& model, model::Dtype dtype) {
  model::Configuration configuration = model.configuration();
  if (const auto end = model.tokenizer().end_of_text(); end.has_value()) configuration.end_of_text = end;
  configuration.dtype = dtype;
  return configuration;
}

// A new folder beside `target`, in which what is to be there is made.
absl::StatusOr<std::unique_ptr<NewFolder>> MakeBeside(const fs::path& target) {
  MILLRACE_RETURN_IF_ERROR(CheckIsFree(target.string()));
  if (target.has_parent_path()) MILLRACE_RETURN_IF_ERROR(MakeDirectories(target.parent_path().string()));
  return NewFolder::Make(absl::StrCat(target.string(), ".new-"), 0777);
}

absl::Status WriteAdapterInto(const OpenModel& open, const std::string& folder, const std::string& base) {
  const model::LanguageModel& model = *open.language_model;
  if (model.used_adapters().size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a folder holds one adapter; the model uses ", model.used_adapters().size()));
  }
  return model::WriteAdapter(folder, model.adapter(model.used_adapters()[0]), model.network().spec(), base,
                             open.compute);
}

}  // namespace

absl::Status CheckIsFree(const std::string& out) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(Folder(out), error))) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(out, " exists already; choose a new folder"));
}

absl::Status WriteModelFolder(const OpenModel& open, const std::string& out, model::Dtype dtype,
                              uint64_t max_file_bytes) {
  const model::LanguageModel& model = *open.language_model;
  const fs::path target = Folder(out);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<NewFolder> folder, MakeBeside(target));
  MILLRACE_RETURN_IF_ERROR(model::WriteModel(folder->path(), ConfigurationOf(model, dtype), model.network().tensors(),
                                             model.weights().base, max_file_bytes));
  MILLRACE_RETURN_IF_ERROR(
      WriteFileAtomically(absl::StrCat(folder->path(), "/tokenizer.json"), model.tokenizer().ToJson()));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder->path(), "/tokenizer_config.json"),
                                               model.tokenizer().ConfigJson(model.network().spec().family())));
  if (open.chat_template.ok()) {
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(folder->path(), "/", text::kChatTemplateFile), open.chat_template->source()));
  }
  if (!model.weights().adapters.empty()) MILLRACE_RETURN_IF_ERROR(WriteAdapterInto(open, folder->path(), ""));
  return folder->MoveTo(target.string());
}

absl::Status WriteAdapterFolder(const OpenModel& open, const std::string& out, const std::string& base) {
  const fs::path target = Folder(out);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<NewFolder> folder, MakeBeside(target));
  MILLRACE_RETURN_IF_ERROR(WriteAdapterInto(open, folder->path(), base));
  return folder->MoveTo(target.string());
}

absl::Status WriteModelGguf(const OpenModel& open, const std::string& out, model::Dtype dtype) {
  const model::LanguageModel& model = *open.language_model;
  const fs::path target = Folder(out);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<NewFolder> folder, MakeBeside(target));
  model::GgufAbout about;
  about.name = target.stem().string();
  if (open.chat_template.ok()) about.chat_template = open.chat_template->source();
  const std::string made = absl::StrCat(folder->path(), "/model.gguf");
  MILLRACE_RETURN_IF_ERROR(model::WriteGguf(made, ConfigurationOf(model, dtype), model.network().tensors(),
                                            model.weights().base, model.tokenizer(), about));
  // A second name: unlike renaming, it replaces nothing that is there.
  if (link(made.c_str(), target.c_str()) != 0) return ErrnoStatus(errno, "make", out);
  return SyncPath(target.has_parent_path() ? target.parent_path().string() : ".");
}

}  // namespace millrace::cli
