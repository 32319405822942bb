// Finds and opens the model that --model names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/new_folder.h"
#include "kernels/compute.h"
#include "model/language_model.h"
#include "text/chat_template.h"

namespace millrace::cli {

// A model folder that may be read while this lives.
class ModelSource {
 public:
  // `model`: a folder, or else JOB, JOB@best, JOB@last or JOB@STEP; JOB alone means its best checkpoint. That of a
  // running cluster is copied into a temporary folder; a cluster that is down is read from its directory. A checkpoint
  // is compared with its sums first (CheckModelFolder).
  static absl::StatusOr<ModelSource> Find(const std::string& model, const CoordinatorFlags& where);

  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  std::unique_ptr<NewFolder> fetched_;  // null: the folder is not ours
};

// NOT_FOUND naming the folder, or config.json if it lacks that. If it has a manifest.json, DATA_LOSS naming the file
// that is not what was written.
absl::Status CheckModelFolder(const std::string& directory);

// A model ready for use, and what it computes with.
struct OpenModel {
  OpenModel(kernels::Isa isa, int threads) : compute(isa, threads) {}

  kernels::Compute compute;
  std::unique_ptr<model::LanguageModel> language_model;
  // How it is asked. NOT_FOUND if the folder says nothing of it.
  absl::StatusOr<text::ChatTemplate> chat_template = absl::NotFoundError("not opened");
};
// `threads`: 0 for one a core.
absl::StatusOr<std::unique_ptr<OpenModel>> OpenModelFolder(const std::string& directory, int64_t threads,
                                                           model::Weights weights);

// The flags by which a subcommand gets its model.
struct ModelFlags {
  std::string model;                  // --model
  std::vector<std::string> adapters;  // --adapter: used one behind the other
  int64_t threads = 0;                // --threads
  CoordinatorFlags where;

  void Declare(Flags* flags);
  // For subcommands that take several, one after another: `models` has what `model` of a copy is to be.
  void DeclareForSeveral(Flags* flags, std::vector<std::string>* models);
  absl::StatusOr<std::unique_ptr<OpenModel>> Open(model::Weights weights = model::Weights::kComputed) const;
  // With the adapters, of one of several that has been found.
  absl::StatusOr<std::unique_ptr<OpenModel>> Open(const ModelSource& source, model::Weights weights) const;

 private:
  void DeclareUse(Flags* flags);
};

}  // namespace millrace::cli
