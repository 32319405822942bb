#include "coordinator/checkpoint_reader.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace millrace::coordinator {

bool InPart(absl::string_view prefix, absl::string_view* name) {
  // What follows the prefix is no other part's.
  return absl::ConsumePrefix(name, prefix) && name->find('/') == absl::string_view::npos;
}

struct CheckpointReader::Impl {
  std::string directory;
  CheckpointManifest manifest;
  std::unique_ptr<SafetensorsFile> model;
  std::unique_ptr<SafetensorsFile> optimizer;                      // null: not there
  std::map<std::string, std::unique_ptr<SafetensorsFile>> others;  // of models beside the first, by name
  std::vector<absl::string_view> of_tensor;  // weights, by tensor of the checked table; of the checked parts'

  std::string Path(absl::string_view name) const { return absl::StrCat(directory, "/", name); }
};

CheckpointReader::CheckpointReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointReader::~CheckpointReader() = default;

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(const std::string& directory) {
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  MILLRACE_ASSIGN_OR_RETURN(const std::string manifest, ReadFile(impl->Path(kManifestFile), kMaxManifestBytes));
  MILLRACE_ASSIGN_OR_RETURN(impl->manifest, ParseManifest(manifest));
  MILLRACE_ASSIGN_OR_RETURN(impl->model, SafetensorsFile::Open(impl->Path(kModelFile)));
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> optimizer = SafetensorsFile::Open(impl->Path(kOptimizerFile));
  if (optimizer.ok()) {
    impl->optimizer = *std::move(optimizer);
  } else if (!absl::IsNotFound(optimizer.status())) {
    return optimizer.status();
  }
  return std::unique_ptr<CheckpointReader>(new CheckpointReader(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::OpenModel(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<CheckpointReader>> checkpoint = Open(directory);
  if (!absl::IsNotFound(checkpoint.status())) return checkpoint;
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  MILLRACE_ASSIGN_OR_RETURN(impl->model, SafetensorsFile::Open(impl->Path(kModelFile)));
  return std::unique_ptr<CheckpointReader>(new CheckpointReader(std::move(impl)));
}

const CheckpointManifest& CheckpointReader::manifest() const { return impl_->manifest; }
bool CheckpointReader::has_optimizer() const { return impl_->optimizer != nullptr; }

absl::Status CheckpointReader::Verify() const {
  const auto differs = [](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(what, " is not what was written: its SHA-256 differs from the manifest's"));
  };
  for (const CheckpointManifest::TensorSum& tensor : impl_->manifest.tensors) {
    const SafetensorsEntry* const entry = impl_->model->header().Find(tensor.name);
    if (entry == nullptr) {
      return absl::DataLossError(absl::StrCat(impl_->Path(kModelFile), " lacks tensor ", tensor.name));
    }
    if (Sha256Hex(impl_->model->bytes(*entry)) != tensor.sha256) {
      return differs(absl::StrCat("tensor ", tensor.name, " in ", impl_->Path(kModelFile)));
    }
  }
  for (const CheckpointManifest::FileSum& sum : impl_->manifest.files) {
    absl::StatusOr<MappedFile> file = MappedFile::Open(impl_->Path(sum.name));
    if (absl::IsNotFound(file.status()) && sum.name == kOptimizerFile) continue;  // a fetched copy
    if (!file.ok()) return absl::DataLossError(file.status().message());
    if (file->bytes().size() != sum.bytes) {
      return absl::DataLossError(absl::StrCat(impl_->Path(sum.name), " has ", file->bytes().size(), " bytes where ",
                                              sum.bytes, " were written"));
    }
    if (Sha256Hex(file->bytes()) != sum.sha256) return differs(impl_->Path(sum.name));
  }
  return absl::OkStatus();
}

absl::Status CheckpointReader::CheckTable(const blocks::BlockTable& blocks, const v1::ModelPart& part,
                                          const std::string& name_of_file) const {
  const SafetensorsFile* file = impl_->model.get();
  if (name_of_file != kModelFile) {
    std::unique_ptr<SafetensorsFile>& other = impl_->others[name_of_file];
    if (other == nullptr) {
      MILLRACE_ASSIGN_OR_RETURN(other, SafetensorsFile::Open(impl_->Path(name_of_file)));
    }
    file = other.get();
  }
  const auto wrong = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(impl_->Path(name_of_file), " is of another model: ", what));
  };
  std::set<absl::string_view> wanted(part.dropped().begin(), part.dropped().end());
  impl_->of_tensor.resize(blocks.tensors().size());
  for (size_t i = 0; i < blocks.tensors().size(); ++i) {
    const blocks::TensorInfo& tensor = blocks.tensors()[i];
    absl::string_view name = tensor.name;
    if (!InPart(part.prefix(), &name)) continue;
    wanted.insert(name);
    const SafetensorsEntry* const entry = file->header().Find(std::string(name));
    const auto fresh = part.fresh().find(std::string(name));
    if (entry != nullptr && entry->dtype == "F32" && entry->shape == tensor.shape) {
      impl_->of_tensor[i] = file->bytes(*entry);
    } else if (entry != nullptr) {
      return wrong(absl::StrCat("tensor ", name, " is ", entry->dtype, " [", absl::StrJoin(entry->shape, ", "),
                                "]; F32 [", absl::StrJoin(tensor.shape, ", "), "] is wanted"));
    } else if (fresh == part.fresh().end() ||
               fresh->second.size() != static_cast<size_t>(tensor.size) * sizeof(float)) {
      // As peft stores what a network made of virtual tokens.
      const bool made = file->header().Find("prompt_embeddings") != nullptr;
      return wrong(absl::StrCat("it has no tensor ", name,
                                made ? ", only the virtual tokens themselves, without the network that made them; to "
                                       "train these on, take prompt_tuning or, if they are keys and values, p_tuning_v2"
                                     : ""));
    } else {
      impl_->of_tensor[i] = fresh->second;
    }
  }
  for (const SafetensorsEntry& entry : file->header().tensors) {
    if (!wanted.contains(entry.name)) return wrong(absl::StrCat("it has a tensor ", entry.name, " besides"));
  }
  return absl::OkStatus();
}

void CheckpointReader::TakeFresh(const blocks::BlockTable& blocks, const v1::ModelPart& part) const {
  impl_->of_tensor.resize(blocks.tensors().size());
  for (size_t i = 0; i < blocks.tensors().size(); ++i) {
    absl::string_view name = blocks.tensors()[i].name;
    if (!InPart(part.prefix(), &name)) continue;
    const auto fresh = part.fresh().find(std::string(name));
    impl_->of_tensor[i] = fresh == part.fresh().end() ? absl::string_view() : fresh->second;
  }
}

bool CheckpointReader::Has(const std::string& name_of_file) const {
  std::error_code error;
  return std::filesystem::exists(impl_->Path(name_of_file), error);
}

absl::Status CheckpointReader::ReadBlock(const blocks::BlockTable& blocks, uint32_t block, bool with_state,
                                         v1::LoadRequest* request) const {
  const blocks::Block& about = blocks.blocks()[block];
  const absl::string_view tensor = impl_->of_tensor[about.tensor];
  const size_t begin = static_cast<size_t>(about.begin) * sizeof(float);
  const size_t size = static_cast<size_t>(about.size) * sizeof(float);
  request->set_weights(tensor.empty() ? std::string(size, '\0') : std::string(tensor.substr(begin, size)));
  if (!with_state) return absl::OkStatus();
  if (impl_->optimizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(impl_->Path(kOptimizerFile), " is missing"));
  }
  const SafetensorsHeader& header = impl_->optimizer->header();
  if (const SafetensorsEntry* const state = header.Find(absl::StrCat("block.", block, ".state")); state != nullptr) {
    if (state->dtype != "F32") return absl::DataLossError(absl::StrCat(impl_->Path(kOptimizerFile), ": ", state->name));
    request->set_state(std::string(impl_->optimizer->bytes(*state)));
  }
  const SafetensorsEntry* const codings = header.Find("codings");
  const auto count = static_cast<int64_t>(blocks.blocks().size());
  if (codings == nullptr || codings->dtype != "I64" || codings->shape != std::vector<int64_t>{count, 2}) {
    return absl::DataLossError(absl::StrCat(impl_->Path(kOptimizerFile), " lacks the blocks' codings"));
  }
  int64_t coding[2];
  std::memcpy(coding, impl_->optimizer->bytes(*codings).data() + size_t{block} * sizeof(coding), sizeof(coding));
  if (coding[0] == 0) return absl::OkStatus();
  if (coding[0] < 0 || coding[0] > 64 || coding[1] < -1000 || coding[1] > 1000) {
    return absl::DataLossError(absl::StrCat(impl_->Path(kOptimizerFile), ": no coding of block ", block));
  }
  request->mutable_coding()->set_bits(static_cast<uint32_t>(coding[0]));
  request->mutable_coding()->set_exponent(static_cast<int32_t>(coding[1]));
  return absl::OkStatus();
}

}  // namespace millrace::coordinator
