// Bounds what jobs may read: the folders that the coordinator was given as roots, and its jobs' own.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::coordinator {

class DataRoots {
 public:
  // `directory` is the coordinator's: models may come from the jobs in it. Without roots everything may be read.
  // NOT_FOUND names a root that is no folder.
  static absl::StatusOr<DataRoots> Open(const std::vector<std::string>& roots, const std::string& directory);

  enum class Depth {
    kPaths,  // what the job names
    kFiles,  // also each file that this leads to: found by a glob, or in a folder
  };
  // Looks at every path of the job, relative ones from `base_directory` on, with symbolic links resolved.
  // PERMISSION_DENIED names the field, the path, where it leads and the roots. What is not there is no concern of it.
  absl::Status Check(const v1::JobSpec& job, const std::string& base_directory, Depth depth) const;

 private:
  // One path of a job; nothing follows links while the walk goes on.
  struct Named {
    std::string field;
    std::string path;
  };
  absl::Status CheckOne(const Named& named, absl::string_view file, bool model) const;
  absl::Status CheckFolder(const Named& named, const std::string& path, bool model, Depth depth) const;
  absl::Status CheckSources(const std::string& field, const v1::DataSpec& data, const std::string& base,
                            Depth depth) const;

  std::vector<std::string> roots_;  // resolved; empty: everything
  std::string jobs_;                // resolved: where models may come from besides
};

}  // namespace millrace::coordinator
