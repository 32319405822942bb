#include "cli/model_folder.h"

#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/new_folder.h"
#include "common/files.h"
#include "common/status.h"
#include "model/formats/hugging_face.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

// Without a slash at the end.
fs::path Folder(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

}  // namespace

absl::Status CheckIsFree(const std::string& out) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(Folder(out), error))) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(out, " exists already; choose a new folder"));
}

absl::Status WriteModelFolder(const OpenModel& open, const std::string& out) {
  const model::LanguageModel& model = *open.language_model;
  const fs::path target = Folder(out);
  MILLRACE_RETURN_IF_ERROR(CheckIsFree(out));
  if (target.has_parent_path()) MILLRACE_RETURN_IF_ERROR(MakeDirectories(target.parent_path().string()));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<NewFolder> folder,
                            NewFolder::Make(absl::StrCat(target.string(), ".new-"), 0777));
  model::Configuration configuration;
  configuration.spec = model.decoder().spec();
  configuration.vocab_size = model.decoder().vocab_size();
  configuration.end_of_text = model.tokenizer().end_of_text();
  MILLRACE_RETURN_IF_ERROR(
      model::WriteModel(folder->path(), configuration, model.decoder().tensors(), model.weights().base));
  MILLRACE_RETURN_IF_ERROR(
      WriteFileAtomically(absl::StrCat(folder->path(), "/tokenizer.json"), model.tokenizer().ToJson()));
  MILLRACE_RETURN_IF_ERROR(
      WriteFileAtomically(absl::StrCat(folder->path(), "/tokenizer_config.json"), model.tokenizer().ConfigJson()));
  if (open.chat_template.ok()) {
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder->path(), "/", text::kChatTemplateFile),
                                                 open.chat_template->source()));
  }
  return folder->MoveTo(target.string());
}

}  // namespace millrace::cli
