// Finds the files that a job's sources name.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::text {

enum class Format { kText, kMarkdown, kHtml, kJsonLines };

struct SourceFile {
  std::string path;   // as opened
  std::string shown;  // as the job names it, for messages and fingerprints
  Format format = Format::kText;
  std::string field;  // kJsonLines
  // Named by the job itself: not being able to read it is an error, not a skip.
  bool explicitly_named = false;
};

struct SourceFiles {
  std::vector<SourceFile> files;
  std::vector<std::string> skips;  // files of folders and globs that are left out, and why
};

// Files in the order of the sources and, within a source, of their paths' bytes; a file that two sources name counts
// once, where it comes first. A path is a file, a folder (with everything below, hidden files left out) or a glob (*, ?
// and [...] within a name, ** for any number of folders). INVALID_ARGUMENT or NOT_FOUND for a source that names
// nothing, or a single file whose ending tells no format.
absl::StatusOr<SourceFiles> FindSources(const v1::DataSpec& data, const std::string& base_dir);

// txt, text; md, markdown; html, htm, xhtml; jsonl, ndjson; below .gz and .zst. NOT_FOUND for other endings.
absl::StatusOr<Format> FormatOf(const std::string& path);

}  // namespace millrace::text
