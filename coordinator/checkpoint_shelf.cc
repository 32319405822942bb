#include "coordinator/checkpoint_shelf.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr char kBuilding[] = ".building-";
constexpr char kDamaged[] = ".damaged-";
constexpr char kReplaced[] = ".replaced-";

absl::Status Failed(absl::string_view what, const fs::path& path, const std::error_code& error) {
  return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot ", what, " ", path.string()));
}

absl::Status SyncFolder(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  const int failed = fsync(descriptor);
  const int reason = errno;
  close(descriptor);
  return failed != 0 ? absl::ErrnoToStatus(reason, absl::StrCat("cannot sync ", path)) : absl::OkStatus();
}

// Makes the link NAME → TARGET, replacing one that is there at once.
absl::Status PointLink(const std::string& directory, absl::string_view name, const std::string& target) {
  const std::string link = absl::StrCat(directory, "/", name);
  const std::string beside = absl::StrCat(directory, "/.", name, "-new");
  unlink(beside.c_str());
  if (symlink(target.c_str(), beside.c_str()) != 0 || rename(beside.c_str(), link.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot point ", link, " to ", target));
  }
  return absl::OkStatus();
}

const ShelfEntry* Better(const ShelfEntry* best, const ShelfEntry& entry) {
  if (entry.manifest.evaluation() == nullptr) return best;
  if (best == nullptr || entry.manifest.evaluation()->loss < best->manifest.evaluation()->loss) return &entry;
  return best;
}

}  // namespace

CheckpointShelf::CheckpointShelf(const std::string& job_directory)
    : directory_(absl::StrCat(job_directory, "/checkpoints")) {}

std::string CheckpointShelf::BuildingDirectory(absl::string_view name) const {
  return absl::StrCat(directory_, "/", kBuilding, name);
}

std::vector<ShelfEntry> CheckpointShelf::List() const {
  std::vector<ShelfEntry> entries;
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (!IsPlainName(name, 256) || it->is_symlink(ignored) || !it->is_directory(ignored)) continue;
    const absl::StatusOr<std::string> text =
        ReadFile(absl::StrCat(it->path().string(), "/", kManifestFile), kMaxManifestBytes);
    if (!text.ok()) continue;
    absl::StatusOr<CheckpointManifest> manifest = ParseManifest(*text);
    if (!manifest.ok() || name != absl::StrCat(manifest->phase, "-", manifest->step)) continue;
    entries.push_back({name, it->path().string(), *std::move(manifest)});
  }
  std::sort(entries.begin(), entries.end(), [](const ShelfEntry& a, const ShelfEntry& b) {
    return std::tie(a.manifest.phase_index, a.manifest.step, a.name) <
           std::tie(b.manifest.phase_index, b.manifest.step, b.name);
  });
  return entries;
}

const ShelfEntry* BestOfPhase(absl::Span<const ShelfEntry> entries, absl::string_view phase) {
  const ShelfEntry* best = nullptr;
  for (const ShelfEntry& entry : entries) {
    if (entry.manifest.phase == phase) best = Better(best, entry);
  }
  return best;
}

const ShelfEntry* Best(absl::Span<const ShelfEntry> entries) {
  for (size_t i = entries.size(); i > 0; --i) {
    if (const ShelfEntry* best = BestOfPhase(entries, entries[i - 1].manifest.phase); best != nullptr) return best;
  }
  return nullptr;
}

absl::StatusOr<ShelfEntry> CheckpointShelf::Find(absl::string_view which) const {
  const std::vector<ShelfEntry> entries = List();
  if (entries.empty()) return absl::NotFoundError("there is no checkpoint yet");
  if (which == "last") return entries.back();
  if (which == "best" || which.empty()) {
    if (const ShelfEntry* best = Best(entries); best != nullptr) return *best;
    return absl::NotFoundError("no checkpoint has been evaluated yet; ask for 'last'");
  }
  uint64_t step = 0;
  const bool is_step = absl::SimpleAtoi(which, &step);
  for (size_t i = entries.size(); i > 0; --i) {
    const ShelfEntry& entry = entries[i - 1];
    if (entry.name == which || (is_step && entry.manifest.step == step)) return entry;
  }
  std::vector<absl::string_view> names;
  for (const ShelfEntry& entry : entries) names.push_back(entry.name);
  return absl::NotFoundError(absl::StrCat("no checkpoint '", absl::CHexEscape(which.substr(0, 100)),
                                          "'; there are best, last, ", absl::StrJoin(names, ", ")));
}

absl::Status CheckpointShelf::CleanUp() {
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) return Failed("make", directory_, error);
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kBuilding) && !name.starts_with(kReplaced)) continue;
    std::error_code ignored;
    fs::remove_all(it->path(), ignored);
  }
  if (error) return Failed("read", directory_, error);
  return Point();
}

absl::Status CheckpointShelf::Place(const std::string& building, absl::string_view name) {
  const std::string target = absl::StrCat(directory_, "/", name);
  std::error_code error;
  if (fs::exists(target, error)) {
    const std::string replaced = absl::StrCat(directory_, "/", kReplaced, name);
    std::error_code ignored;
    fs::remove_all(replaced, ignored);
    fs::rename(target, replaced, error);
    if (error) return Failed("move away", target, error);
  }
  MILLRACE_RETURN_IF_ERROR(SyncFolder(building));
  fs::rename(building, target, error);
  if (error) return Failed("make", target, error);
  MILLRACE_RETURN_IF_ERROR(SyncFolder(directory_));
  std::error_code ignored;
  fs::remove_all(absl::StrCat(directory_, "/", kReplaced, name), ignored);
  return Point();
}

absl::Status CheckpointShelf::Point() const {
  const std::vector<ShelfEntry> entries = List();
  if (entries.empty()) return absl::OkStatus();
  MILLRACE_RETURN_IF_ERROR(PointLink(directory_, "last", entries.back().name));
  const ShelfEntry* const best = Best(entries);
  return best == nullptr ? absl::OkStatus() : PointLink(directory_, "best", best->name);
}

absl::Status CheckpointShelf::Retain(absl::string_view phase, uint32_t keep) {
  const std::vector<ShelfEntry> entries = List();
  const ShelfEntry* const best = BestOfPhase(entries, phase);
  bool last = true;
  for (size_t i = entries.size(); i > 0; --i) {
    const ShelfEntry& entry = entries[i - 1];
    if (entry.manifest.phase != phase) continue;
    if (std::exchange(last, false) || &entry == best) continue;
    if (keep > 0) {
      --keep;
      continue;
    }
    // The manifest first, so that what a crash leaves is no checkpoint.
    std::error_code error;
    fs::remove(absl::StrCat(entry.directory, "/", kManifestFile), error);
    if (!error) fs::remove_all(entry.directory, error);
    if (error) return Failed("remove", entry.directory, error);
  }
  return absl::OkStatus();
}

absl::Status CheckpointShelf::SetAside(const ShelfEntry& entry) {
  std::error_code error;
  for (int number = 1; number < 1000; ++number) {
    const std::string aside = absl::StrCat(directory_, "/", kDamaged, entry.name, "-", number);
    if (fs::exists(aside, error)) continue;
    fs::rename(entry.directory, aside, error);
    if (error) return Failed("move away", entry.directory, error);
    return Point();
  }
  return absl::ResourceExhaustedError(absl::StrCat("too many damaged checkpoints in ", directory_));
}

}  // namespace millrace::coordinator
