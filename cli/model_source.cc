#include "cli/model_source.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "cli/local_cluster.h"
#include "client/coordinator_client.h"
#include "common/status.h"
#include "coordinator/checkpoint_manifest.h"
#include "coordinator/checkpoint_reader.h"
#include "coordinator/checkpoint_shelf.h"
#include "model/formats/peft.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kModelHelp[] =
    "folder of a checkpoint or in Hugging Face's layout, or JOB, JOB@best, JOB@last, JOB@STEP";

// The folder of one of a job's checkpoints, in the directory of a cluster that is down.
absl::StatusOr<std::string> FindOnShelf(const std::string& cluster, const std::string& job, const std::string& which) {
  const std::string jobs = absl::StrCat(cluster, "/jobs");
  std::error_code error;
  if (!fs::is_directory(absl::StrCat(jobs, "/", job), error)) {
    std::vector<std::string> names;
    for (fs::directory_iterator it(jobs, error), end; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return absl::NotFoundError(
        absl::StrCat("there is no folder '", job, "', and no job of that name in ", cluster,
                     names.empty() ? "" : absl::StrCat(", which has ", absl::StrJoin(names, ", ")),
                     "; --dir or --coordinator HOST:PORT name another cluster"));
  }
  const coordinator::CheckpointShelf shelf(absl::StrCat(jobs, "/", job));
  const absl::StatusOr<coordinator::ShelfEntry> entry = shelf.Find(which);
  if (!entry.ok()) return Annotate(entry.status(), absl::StrCat("job ", job));
  return entry->directory;
}

}  // namespace

absl::StatusOr<ModelSource> ModelSource::Find(const std::string& model, const CoordinatorFlags& where) {
  ModelSource source;
  std::error_code error;
  if (const fs::file_status status = fs::status(model, error); fs::exists(status)) {
    if (!fs::is_directory(status)) {
      return absl::InvalidArgumentError(absl::StrCat(model, " is a file; name the folder that holds the model"));
    }
    // What the links best and last point to may change.
    source.directory_ = fs::is_symlink(model, error) ? fs::canonical(model, error).string() : model;
    MILLRACE_RETURN_IF_ERROR(CheckModelFolder(source.directory_));
    return source;
  }
  const size_t at = model.rfind('@');
  const std::string job = model.substr(0, at);
  const std::string which = at == std::string::npos ? "best" : model.substr(at + 1);
  if (!coordinator::IsPlainName(job)) return absl::NotFoundError(absl::StrCat("there is no folder ", model));
  if (which.empty()) return absl::InvalidArgumentError(absl::StrCat(model, ": name JOB@best, JOB@last or JOB@STEP"));

  const absl::StatusOr<Endpoint> address = where.Address();
  const bool down = where.coordinator.empty() && absl::IsNotFound(address.status());
  if (!address.ok() && !down) return address.status();
  if (down) {
    MILLRACE_ASSIGN_OR_RETURN(source.directory_, FindOnShelf(where.directory, job, which));
  } else {
    const fs::path temporary = fs::temp_directory_path(error);
    if (error) return absl::FailedPreconditionError("there is no folder for temporary files; TMPDIR names one");
    MILLRACE_ASSIGN_OR_RETURN(source.fetched_, NewFolder::Make((temporary / "millrace-model-").string(), 0700));
    source.directory_ = absl::StrCat(source.fetched_->path(), "/checkpoint");
    client::CoordinatorClient coordinator(*address);
    MILLRACE_RETURN_IF_ERROR(
        Annotate(coordinator.FetchCheckpoint(job, which, /*with_optimizer=*/false, source.directory_),
                 absl::StrCat("there is no folder '", model, "', and asking the coordinator at ", address->address, " for it")));
  }
  MILLRACE_RETURN_IF_ERROR(CheckModelFolder(source.directory_));
  return source;
}

absl::Status CheckModelFolder(const std::string& directory) {
  std::error_code error;
  if (!fs::exists(directory, error)) return absl::NotFoundError(absl::StrCat("there is no folder ", directory));
  const bool adapter = fs::exists(absl::StrCat(directory, "/", model::kAdapterConfigFile), error);
  if (!adapter && !fs::exists(absl::StrCat(directory, "/config.json"), error)) {
    return absl::NotFoundError(absl::StrCat(directory, " holds no model: it has no config.json"));
  }
  if (!fs::exists(absl::StrCat(directory, "/", coordinator::kManifestFile), error)) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<coordinator::CheckpointReader> reader,
                            coordinator::CheckpointReader::Open(directory));
  return reader->Verify();
}

absl::StatusOr<std::unique_ptr<OpenModel>> OpenModelFolder(const std::string& directory, int64_t threads,
                                                           model::Weights weights) {
  auto open = std::make_unique<OpenModel>(kernels::DetectIsa(), threads > 0 ? static_cast<int>(threads) : Cores());
  MILLRACE_ASSIGN_OR_RETURN(open->language_model, model::LanguageModel::Open(directory, &open->compute, weights));
  v1::ChatSpec chat;
  std::string folder = directory;
  std::error_code error;
  if (!fs::exists(absl::StrCat(directory, "/config.json"), error)) {
    MILLRACE_ASSIGN_OR_RETURN(folder, model::BaseOfAdapter(directory));
  }
  chat.set_template_(fs::absolute(folder).string());
  open->chat_template = text::ChatTemplate::Load(chat, open->language_model->tokenizer(), /*base_dir=*/"");
  return open;
}

void ModelFlags::Declare(Flags* flags) {
  flags->Text("model", "M", kModelHelp, &model).Required();
  DeclareUse(flags);
}

void ModelFlags::DeclareForSeveral(Flags* flags, std::vector<std::string>* models) {
  flags->List("model", "M", absl::StrCat(kModelHelp, "; several are compared"), models).Required();
  DeclareUse(flags);
}

void ModelFlags::DeclareUse(Flags* flags) {
  flags->List("adapter", "DIR",
              "folder of an adapter (a checkpoint, or in peft's layout) to use with the model; may be given several "
              "times: one is used behind the other",
              &adapters);
  flags->Integer("threads", "T", "that compute; 0: one for each core", &threads, 0, 1024);
  where.Declare(flags);
}

absl::StatusOr<std::unique_ptr<OpenModel>> ModelFlags::Open(model::Weights weights) const {
  MILLRACE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Find(model, where));
  return Open(source, weights);
}

absl::StatusOr<std::unique_ptr<OpenModel>> ModelFlags::Open(const ModelSource& source, model::Weights weights) const {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<OpenModel> open, OpenModelFolder(source.directory(), threads, weights));
  for (const std::string& adapter : adapters) MILLRACE_RETURN_IF_ERROR(open->language_model->AddAdapter(adapter));
  return open;
}

}  // namespace millrace::cli
