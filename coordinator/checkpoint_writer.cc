#include "coordinator/checkpoint_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "coordinator/checkpoint_reader.h"

namespace millrace::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPiece = 1 << 20;

absl::Status WriteAt(int file, const std::string& path, absl::string_view bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

std::string TensorName(uint32_t block) { return absl::StrCat("block.", block, ".state"); }

// Sums and sizes of a whole file, read back from the page cache.
absl::StatusOr<CheckpointManifest::FileSum> SumUp(const std::string& directory, const std::string& name) {
  MILLRACE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(absl::StrCat(directory, "/", name)));
  return CheckpointManifest::FileSum{name, file.bytes().size(), Sha256Hex(file.bytes())};
}

}  // namespace

struct CheckpointWriter::Impl {
  std::string directory;
  const blocks::BlockTable* blocks = nullptr;
  CheckpointManifest manifest;
  std::vector<std::string> side_files;
  // Of weights; the first is the model's.
  struct File {
    std::string name;
    SafetensorsHeader header;
    int descriptor = -1;
  };
  std::vector<File> files;
  // Where each tensor goes: a file and its place in the header; no file: nowhere, it is frozen.
  struct Place {
    int file = -1;
    size_t entry = 0;
  };
  std::vector<Place> places;
  bool finished = false;

  absl::Mutex mutex;
  // By block; the state of a model fits in memory no worse than the model, and its size is known only now.
  std::vector<std::string> states ABSL_GUARDED_BY(mutex);
  std::vector<int64_t> codings ABSL_GUARDED_BY(mutex);  // [blocks, 2]
  std::vector<bool> there ABSL_GUARDED_BY(mutex);
  size_t missing ABSL_GUARDED_BY(mutex) = 0;

  ~Impl() {
    for (const File& file : files) {
      if (file.descriptor >= 0) close(file.descriptor);
    }
    std::error_code ignored;
    if (!finished && !directory.empty()) fs::remove_all(directory, ignored);
  }
  std::string Path(absl::string_view name) const { return absl::StrCat(directory, "/", name); }

  absl::Status Open(File* file);
  absl::Status Link(const std::string& frozen_model);
  absl::Status WriteOptimizer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
};

CheckpointWriter::CheckpointWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointWriter::~CheckpointWriter() = default;

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(
    const std::string& directory, const blocks::BlockTable* blocks, absl::Span<const v1::ModelPart> parts,
    const std::string& frozen_model, CheckpointManifest manifest,
    const std::map<std::string, std::string>& side_files) {
  auto impl = std::make_unique<Impl>();
  std::error_code ignored;
  fs::remove_all(directory, ignored);
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory));
  impl->directory = directory;
  impl->blocks = blocks;
  impl->manifest = std::move(manifest);
  impl->manifest.parameters = 0;
  for (const auto& [name, text] : side_files) {
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(impl->Path(name), text));
    impl->side_files.push_back(name);
  }
  impl->places.resize(blocks->tensors().size());
  if (!frozen_model.empty()) {
    MILLRACE_RETURN_IF_ERROR(impl->Link(frozen_model));
    for (const blocks::TensorInfo& tensor : blocks->tensors()) {
      absl::string_view name = tensor.name;
      if (InPart(parts[0].prefix(), &name)) impl->manifest.parameters += static_cast<uint64_t>(tensor.size);
    }
    parts.remove_prefix(1);
  }
  for (const v1::ModelPart& part : parts) {
    if (part.file().empty()) continue;
    const auto index = static_cast<int>(impl->files.size());
    Impl::File& file = impl->files.emplace_back();
    file.name = part.file();
    for (size_t i = 0; i < blocks->tensors().size(); ++i) {
      const blocks::TensorInfo& tensor = blocks->tensors()[i];
      absl::string_view name = tensor.name;
      if (!InPart(part.prefix(), &name)) continue;
      impl->places[i] = {index, file.header.tensors.size()};
      file.header.tensors.push_back({std::string(name), "F32", tensor.shape});
      if (index == 0) impl->manifest.parameters += static_cast<uint64_t>(tensor.size);
    }
    MILLRACE_RETURN_IF_ERROR(impl->Open(&file));
  }
  {
    absl::MutexLock lock(&impl->mutex);
    impl->states.resize(blocks->blocks().size());
    impl->codings.resize(2 * blocks->blocks().size());
    impl->there.resize(blocks->blocks().size());
    for (const blocks::Block& block : blocks->blocks()) impl->missing += impl->places[block.tensor].file >= 0 ? 1 : 0;
  }
  return std::unique_ptr<CheckpointWriter>(new CheckpointWriter(std::move(impl)));
}

std::vector<uint32_t> CheckpointWriter::left_out() const {
  std::vector<uint32_t> tensors;
  for (uint32_t i = 0; i < impl_->places.size(); ++i) {
    if (impl_->places[i].file < 0) tensors.push_back(i);
  }
  return tensors;
}

// Lays the file's tensors out and reserves their space.
absl::Status CheckpointWriter::Impl::Open(File* file) {
  file->header.metadata["format"] = "pt";  // transformers asks for it
  const std::string start = LayOutSafetensors(&file->header);
  const std::string path = Path(file->name);
  file->descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file->descriptor < 0) return ErrnoStatus(errno, "write", path);
  const int reserved =
      posix_fallocate(file->descriptor, 0, static_cast<off_t>(file->header.data_offset + file->header.data_bytes));
  if (reserved != 0) return ErrnoStatus(reserved, "write", path);
  return WriteAt(file->descriptor, path, start, 0);
}

// The model's file, of which nothing is trained.
absl::Status CheckpointWriter::Impl::Link(const std::string& frozen_model) {
  File& file = files.emplace_back();
  file.name = kModelFile;
  const std::string path = Path(kModelFile);
  std::error_code error;
  fs::create_hard_link(frozen_model, path, error);
  // Another file system, or one without links.
  if (error) fs::copy_file(frozen_model, path, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot copy ", frozen_model, " to ", path));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> linked, SafetensorsFile::Open(path));
  file.header = linked->header();
  file.descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  return file.descriptor < 0 ? ErrnoStatus(errno, "open", path) : absl::OkStatus();
}

absl::Status CheckpointWriter::Add(const v1::SnapshotReply& reply) {
  const auto all = impl_->blocks->blocks();
  if (reply.block() >= all.size()) return absl::InternalError(absl::StrCat("there is no block ", reply.block()));
  const blocks::Block& block = all[reply.block()];
  const Impl::Place place = impl_->places[block.tensor];
  if (place.file < 0) {
    return absl::InternalError(absl::StrCat("block ", impl_->blocks->Name(block), " came, which is left out"));
  }
  const auto bytes = static_cast<size_t>(block.size) * sizeof(float);
  // A state holds whole values, a few for each weight at most.
  if (reply.weights().size() != bytes || reply.state().size() % sizeof(float) != 0 ||
      reply.state().size() > 4 * bytes + 4096) {
    return absl::InternalError(absl::StrCat("block ", impl_->blocks->Name(block), " came with ", reply.weights().size(),
                                            " bytes of weights and ", reply.state().size(), " of state"));
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->there[reply.block()]) {
      return absl::InternalError(absl::StrCat("block ", impl_->blocks->Name(block), " came twice"));
    }
    impl_->there[reply.block()] = true;
    impl_->states[reply.block()] = reply.state();
    impl_->codings[2 * size_t{reply.block()}] = reply.coding().bits();
    impl_->codings[2 * size_t{reply.block()} + 1] = reply.coding().exponent();
  }
  const Impl::File& file = impl_->files[static_cast<size_t>(place.file)];
  MILLRACE_RETURN_IF_ERROR(WriteAt(file.descriptor, impl_->Path(file.name), reply.weights(),
                                   file.header.data_offset + file.header.tensors[place.entry].begin +
                                       static_cast<uint64_t>(block.begin) * sizeof(float)));
  absl::MutexLock lock(&impl_->mutex);
  --impl_->missing;
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Impl::WriteOptimizer() {
  SafetensorsHeader header;
  for (uint32_t block = 0; block < states.size(); ++block) {
    if (states[block].empty()) continue;
    header.tensors.push_back({TensorName(block), "F32", {static_cast<int64_t>(states[block].size() / sizeof(float))}});
  }
  header.tensors.push_back({"codings", "I64", {static_cast<int64_t>(states.size()), 2}});
  const std::string start = LayOutSafetensors(&header);
  const std::string path = Path(kOptimizerFile);
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return ErrnoStatus(errno, "write", path);
  absl::Status status = WriteAt(file, path, start, 0);
  size_t next = 0;
  for (uint32_t block = 0; status.ok() && block < states.size(); ++block) {
    if (states[block].empty()) continue;
    status = WriteAt(file, path, states[block], header.data_offset + header.tensors[next++].begin);
  }
  if (status.ok()) {
    status = WriteAt(file, path, {reinterpret_cast<const char*>(codings.data()), codings.size() * sizeof(int64_t)},
                     header.data_offset + header.tensors[next].begin);
  }
  if (status.ok() && fsync(file) != 0) status = ErrnoStatus(errno, "write", path);
  close(file);
  states.clear();
  return status;
}

absl::StatusOr<CheckpointManifest> CheckpointWriter::Finish() {
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->missing > 0)
      return absl::InternalError(absl::StrCat(impl_->missing, " blocks of the model are missing"));
    MILLRACE_RETURN_IF_ERROR(impl_->WriteOptimizer());
  }
  for (const Impl::File& file : impl_->files) {
    if (fsync(file.descriptor) != 0) return ErrnoStatus(errno, "write", impl_->Path(file.name));
  }
  CheckpointManifest& manifest = impl_->manifest;
  {
    std::vector<MappedFile> mapped;
    std::vector<std::pair<std::string, absl::string_view>> by_name;
    for (const Impl::File& file : impl_->files) {
      if (file.name != kModelFile && file.name != kAdapterFile) continue;
      MILLRACE_ASSIGN_OR_RETURN(MappedFile whole, MappedFile::Open(impl_->Path(file.name)));
      mapped.push_back(std::move(whole));
      const absl::string_view data = mapped.back().bytes().substr(file.header.data_offset);
      for (const SafetensorsEntry& entry : file.header.tensors) {
        const absl::string_view values = data.substr(entry.begin, entry.end - entry.begin);
        if (file.name == kModelFile) manifest.tensors.push_back({entry.name, Sha256Hex(values)});
        by_name.emplace_back(entry.name, values);
      }
    }
    std::sort(by_name.begin(), by_name.end());
    Sha256 digest;
    for (const auto& [name, values] : by_name) digest.Update(name).Update(absl::string_view("\0", 1)).Update(values);
    manifest.digest = digest.HexDigest();
  }
  std::vector<std::string> names = {kOptimizerFile};
  for (const Impl::File& file : impl_->files) names.push_back(file.name);
  names.insert(names.end(), impl_->side_files.begin(), impl_->side_files.end());
  for (const std::string& name : names) {
    MILLRACE_ASSIGN_OR_RETURN(CheckpointManifest::FileSum sum, SumUp(impl_->directory, name));
    manifest.files.push_back(std::move(sum));
  }
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(impl_->Path(kManifestFile), PrintManifest(manifest)));
  impl_->finished = true;
  return manifest;
}

}  // namespace millrace::coordinator
