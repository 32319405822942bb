#include "coordinator/data_roots.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/status.h"
#include "text/named_templates.h"
#include "text/sources.h"

namespace millrace::coordinator {
namespace {

namespace fs = std::filesystem;

std::string Shown(absl::string_view path) { return absl::CHexEscape(path.substr(0, 300)); }

// Where the path leads once every link on the way is followed; of what is not there, the part that is.
absl::StatusOr<std::string> Resolved(const std::string& path) {
  std::error_code error;
  const fs::path resolved = fs::weakly_canonical(path, error);
  if (error) return absl::PermissionDeniedError(absl::StrCat(Shown(path), ": ", error.message()));
  return resolved.string();
}

bool LiesIn(absl::string_view path, absl::string_view root) {
  if (root == "/") return true;
  return absl::StartsWith(path, root) && (path.size() == root.size() || path[root.size()] == '/');
}

std::string From(const std::string& base, const std::string& path) {
  return (fs::path(base) / path).lexically_normal().string();
}

// The part of a path in front of the first name that is a pattern.
std::string BeforePattern(const std::string& path) {
  fs::path before;
  for (const fs::path& name : fs::path(path)) {
    if (name.string().find_first_of("*?[") != std::string::npos) break;
    before /= name;
  }
  return before.string();
}

}  // namespace

absl::StatusOr<DataRoots> DataRoots::Open(const std::vector<std::string>& roots, const std::string& directory) {
  DataRoots opened;
  for (const std::string& root : roots) {
    std::error_code error;
    const fs::path resolved = fs::canonical(root, error);
    if (error || !fs::is_directory(resolved, error)) {
      return absl::NotFoundError(absl::StrCat("--data-root ", root, " is no folder"));
    }
    opened.roots_.push_back(resolved.string());
  }
  MILLRACE_ASSIGN_OR_RETURN(opened.jobs_, Resolved(absl::StrCat(directory, "/jobs")));
  return opened;
}

absl::Status DataRoots::CheckOne(const Named& named, absl::string_view file, bool model) const {
  MILLRACE_ASSIGN_OR_RETURN(const std::string resolved, Resolved(std::string(file)));
  for (const std::string& root : roots_) {
    if (LiesIn(resolved, root)) return absl::OkStatus();
  }
  if (model && LiesIn(resolved, jobs_)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(named.field, ": ", Shown(named.path), " leads to ", Shown(resolved),
                                                  ", outside of what jobs may read here: ", absl::StrJoin(roots_, ", "),
                                                  " (--data-root of the coordinator)"));
}

absl::Status DataRoots::CheckFolder(const Named& named, const std::string& path, bool model, Depth depth) const {
  MILLRACE_RETURN_IF_ERROR(CheckOne(named, path, model));
  if (depth != Depth::kFiles) return absl::OkStatus();
  std::error_code error;
  if (!fs::is_directory(path, error)) return absl::OkStatus();
  for (fs::directory_iterator it(path, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    MILLRACE_RETURN_IF_ERROR(CheckOne(named, it->path().string(), model));
  }
  return absl::OkStatus();
}

absl::Status DataRoots::CheckSources(const std::string& field, const v1::DataSpec& data, const std::string& base,
                                     Depth depth) const {
  for (int i = 0; i < data.sources_size(); ++i) {
    const v1::SourceSpec& source = data.sources(i);
    if (RatedPhase(source).has_value()) continue;  // the coordinator writes that file
    const Named named{absl::StrCat(field, ".sources.", i, ".path"), source.path()};
    const std::string path = From(base, source.path());
    // Before anything is listed: messages about what is there tell of it too. A name with a pattern may also be a
    // file's.
    MILLRACE_RETURN_IF_ERROR(CheckOne(named, BeforePattern(path), false));
    MILLRACE_RETURN_IF_ERROR(CheckOne(named, path, false));
    if (depth != Depth::kFiles) continue;
    v1::DataSpec one = data;
    one.clear_sources();
    *one.add_sources() = source;
    const absl::StatusOr<text::SourceFiles> found = text::FindSources(one, base);
    if (!found.ok()) continue;  // preparing the data says the same, with what is wrong
    for (const text::SourceFile& file : found->files) MILLRACE_RETURN_IF_ERROR(CheckOne(named, file.path, false));
  }
  return absl::OkStatus();
}

absl::Status DataRoots::Check(const v1::JobSpec& job, const std::string& base_directory, Depth depth) const {
  if (roots_.empty()) return absl::OkStatus();
  MILLRACE_RETURN_IF_ERROR(CheckSources("data", job.data(), base_directory, depth));
  const auto file = [&](const std::string& field, const std::string& path) -> absl::Status {
    if (path.empty()) return absl::OkStatus();
    return CheckFolder({field, path}, From(base_directory, path), false, depth);
  };
  // A phase of this job, or a folder.
  const auto start = [&](const std::string& field, const std::string& from) -> absl::Status {
    if (from.empty() || ParsePhaseStart(from).has_value()) return absl::OkStatus();
    return CheckFolder({field, from}, From(base_directory, from), true, depth);
  };
  MILLRACE_RETURN_IF_ERROR(file("tokenizer.path", job.tokenizer().path()));
  for (int i = 0; i < job.phases_size(); ++i) {
    const v1::PhaseSpec& phase = job.phases(i);
    const std::string field = absl::StrCat("phases.", i);
    MILLRACE_RETURN_IF_ERROR(CheckSources(absl::StrCat(field, ".data"), phase.data(), base_directory, depth));
    MILLRACE_RETURN_IF_ERROR(start(absl::StrCat(field, ".from"), phase.from()));
    MILLRACE_RETURN_IF_ERROR(start(absl::StrCat(field, ".reference"), phase.reference()));
    MILLRACE_RETURN_IF_ERROR(start(absl::StrCat(field, ".policy.value_from"), phase.policy().value_from()));
    for (int j = 0; j < phase.rewards_size(); ++j) {
      MILLRACE_RETURN_IF_ERROR(start(absl::StrCat(field, ".rewards.", j, ".from"), phase.rewards(j).from()));
    }
    for (int j = 0; j < phase.compare().from_size(); ++j) {
      MILLRACE_RETURN_IF_ERROR(start(absl::StrCat(field, ".compare.from.", j), phase.compare().from(j)));
    }
    const std::string& chat = phase.chat().template_();
    if (chat.empty() || text::NamedTemplate(chat).has_value()) continue;
    MILLRACE_RETURN_IF_ERROR(file(absl::StrCat(field, ".chat.template"), chat));
    // What a file of a template says is completed by what lies beside it.
    const fs::path beside = fs::path(From(base_directory, chat)).parent_path() / "tokenizer_config.json";
    MILLRACE_RETURN_IF_ERROR(file(absl::StrCat(field, ".chat.template"), beside.string()));
  }
  return absl::OkStatus();
}

}  // namespace millrace::coordinator
