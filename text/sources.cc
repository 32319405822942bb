#include "text/sources.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "text/byte_stream.h"

namespace millrace::text {
namespace {

namespace fs = std::filesystem;

bool IsHidden(const fs::path& path) { return absl::StartsWith(path.filename().string(), "."); }

// Regular files below `folder` by full path; what cannot be listed goes to `skips`. Folders' symbolic links are not
// followed.
void FilesBelow(const fs::path& folder, std::vector<std::string>* files, std::vector<std::string>* skips) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::error_code status_error;
    if (IsHidden(it->path())) continue;
    if (it->is_directory(status_error)) {
      if (!it->is_symlink(status_error)) FilesBelow(it->path(), files, skips);
    } else {
      files->push_back(it->path().string());
    }
  }
  if (error) skips->push_back(absl::StrCat(folder.string(), ": cannot be listed (", error.message(), ")"));
}

// Paths that match the components of `pattern` from `depth` on, below `folder`.
void MatchGlob(const fs::path& folder, const std::vector<std::string>& pattern, size_t depth,
               std::set<std::string>* matches) {
  if (depth == pattern.size()) {
    matches->insert(folder.string());
    return;
  }
  const std::string& component = pattern[depth];
  std::error_code error;
  if (component.find_first_of("*?[") == std::string::npos) {
    const fs::path next = folder / component;
    if (fs::exists(next, error)) MatchGlob(next, pattern, depth + 1, matches);
    return;
  }
  if (component == "**") MatchGlob(folder, pattern, depth + 1, matches);
  fs::directory_iterator it(folder.empty() ? fs::path(".") : folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code status_error;
    if (component == "**") {
      if (!IsHidden(name) && it->is_directory(status_error) && !it->is_symlink(status_error))
        MatchGlob(folder / name, pattern, depth, matches);
    } else if (fnmatch(component.c_str(), name.c_str(), FNM_PERIOD) == 0) {
      MatchGlob(folder / name, pattern, depth + 1, matches);
    }
  }
}

std::optional<Format> FormatNamed(const std::string& name) {
  if (name == "txt") return Format::kText;
  if (name == "md") return Format::kMarkdown;
  if (name == "html") return Format::kHtml;
  if (name == "jsonl") return Format::kJsonLines;
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Format> FormatOf(const std::string& path) {
  fs::path name = fs::path(path).filename();
  if (PackingOf(path) != Packing::kPlain) name = name.stem();
  const std::string ending = absl::AsciiStrToLower(name.extension().string());
  if (ending == ".txt" || ending == ".text") return Format::kText;
  if (ending == ".md" || ending == ".markdown") return Format::kMarkdown;
  if (ending == ".html" || ending == ".htm" || ending == ".xhtml") return Format::kHtml;
  if (ending == ".jsonl" || ending == ".ndjson") return Format::kJsonLines;
  return absl::NotFoundError(
      absl::StrCat(path, ": its ending tells no format (.txt, .md, .html, .jsonl, each also .gz or .zst)"));
}

absl::StatusOr<SourceFiles> FindSources(const v1::DataSpec& data, const std::string& base_dir) {
  SourceFiles found;
  std::set<std::string> seen;
  if (data.sources().empty()) return absl::InvalidArgumentError("data.sources is empty");
  for (int i = 0; i < data.sources_size(); ++i) {
    const v1::SourceSpec& source = data.sources(i);
    const std::string where = absl::StrCat("data.sources[", i, "]: ");
    if (source.path().empty()) return absl::InvalidArgumentError(where + "path is empty");
    const fs::path given(source.path());
    const fs::path path =
        (given.is_absolute() || base_dir.empty() ? given : fs::path(base_dir) / given).lexically_normal();
    const std::optional<Format> format = FormatNamed(source.format());
    if (!format && !source.format().empty() && source.format() != "auto") {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "format is '", source.format(), "'; auto, txt, md, html or jsonl"));
    }

    std::vector<std::string> paths;
    bool single = false;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (fs::is_directory(status)) {
      FilesBelow(path, &paths, &found.skips);
    } else if (fs::exists(status)) {
      paths = {path.string()};
      single = true;
    } else if (source.path().find_first_of("*?[") != std::string::npos) {
      std::vector<std::string> pattern;
      for (const fs::path& component : path.relative_path()) pattern.push_back(component.string());
      if (!pattern.empty() && pattern.back() == "**") pattern.push_back("*");  // everything below
      std::set<std::string> matches;
      MatchGlob(path.root_path(), pattern, 0, &matches);
      for (const std::string& match : matches) {
        if (fs::is_directory(match, error)) continue;
        paths.push_back(match);
      }
    } else if (error && error != std::errc::no_such_file_or_directory) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat(where, path.string()));
    } else {
      return absl::NotFoundError(absl::StrCat(where, path.string(), " does not exist"));
    }
    std::sort(paths.begin(), paths.end());

    size_t usable = 0;
    for (const std::string& file : paths) {
      SourceFile entry;
      entry.path = file;
      // As the job names it, so that a store does not depend on where the job file lies.
      const fs::path shown = given.is_absolute() || base_dir.empty()
                                 ? fs::path(file)
                                 : fs::path(file).lexically_relative(fs::path(base_dir).lexically_normal());
      entry.shown = shown.empty() ? file : shown.string();
      entry.field = source.field().empty() ? "text" : source.field();
      entry.explicitly_named = single;
      if (format) {
        entry.format = *format;
      } else if (const absl::StatusOr<Format> by_ending = FormatOf(entry.shown); by_ending.ok()) {
        entry.format = *by_ending;
      } else if (single) {
        return absl::InvalidArgumentError(absl::StrCat(where, by_ending.status().message(), "; say it with format:"));
      } else {
        found.skips.push_back(std::string(by_ending.status().message()));
        continue;
      }
      ++usable;
      const fs::path canonical = fs::weakly_canonical(file, error);
      if (!seen.insert(canonical.empty() ? file : canonical.string()).second) continue;
      found.files.push_back(std::move(entry));
    }
    if (usable == 0) {
      const std::string why = found.skips.empty() ? "" : absl::StrCat("; left out: ", found.skips.back());
      return absl::NotFoundError(absl::StrCat(where, path.string(), " names no file with text", why));
    }
  }
  return found;
}

}  // namespace millrace::text
