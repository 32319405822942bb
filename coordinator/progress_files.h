// Writes what a job's steps and evaluations measured, and what its model wrote, into files of its folder, for tools
// that people use already.
//
//   metrics.jsonl    one JSON object a line
//   samples.jsonl    what the model wrote at evaluations, one JSON object a line
//   metrics.csv      the same under fixed columns
//   tensorboard/PHASE/events.out.tfevents.…    TensorBoard's event files, a run a phase
// docs/formats.md has the formats.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// A file that only grows. Each append is one call of the system, so that a killed process leaves whole records.
class GrowingFile {
 public:
  // Makes the file if it is absent. What follows its last whole record, as a crash of the machine may leave, is cut
  // off: `whole` says how many bytes of the file's text are whole records.
  static absl::StatusOr<std::unique_ptr<GrowingFile>> Open(const std::string& path, size_t (*whole)(absl::string_view));
  ~GrowingFile();
  GrowingFile(const GrowingFile&) = delete;
  GrowingFile& operator=(const GrowingFile&) = delete;

  // On an error the file is as before, as far as the system lets it.
  absl::Status Append(absl::string_view bytes);
  // Drops all but the first `size` bytes.
  absl::Status Cut(uint64_t size);
  bool empty() const { return size_ == 0; }

 private:
  GrowingFile(std::string path, int descriptor, uint64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

  const std::string path_;
  const int descriptor_;
  uint64_t size_;
};

// Of one job, over all of its phases. One thread at a time. Nothing waits for the disk.
class ProgressFiles {
 public:
  // Goes on with the files that are in the job's folder.
  static absl::StatusOr<std::unique_ptr<ProgressFiles>> Open(const std::string& directory);

  // Takes a step, an evaluation or samples in; other events are nothing to it. The event has its time.
  absl::Status Add(const v1::JobEvent& event);
  // The phase goes on after `step`: what was told of later steps counts no more. To be called before the first event of
  // each run of the phase.
  absl::Status Restart(absl::string_view phase, uint64_t step, int64_t unix_ms);

 private:
  explicit ProgressFiles(std::string directory) : directory_(std::move(directory)) {}
  absl::StatusOr<GrowingFile*> EventsOf(const std::string& phase, int64_t unix_ms);
  std::string SamplesPath() const { return directory_ + "/samples.jsonl"; }
  absl::Status OpenSamples();
  absl::Status AddSamples(const v1::SamplesEvent& samples, int64_t unix_ms);
  absl::Status CutSamples(const std::string& phase, uint64_t step);

  const std::string directory_;
  std::unique_ptr<GrowingFile> lines_;
  std::unique_ptr<GrowingFile> table_;
  std::unique_ptr<GrowingFile> samples_;                        // null: not opened yet
  std::map<std::string, std::unique_ptr<GrowingFile>> events_;  // by phase
};

// Bytes of the text that are whole lines.
size_t WholeLines(absl::string_view text);
// Bytes of the text that are whole records of an event file, each with its sums.
size_t WholeRecords(absl::string_view text);

}  // namespace millrace::coordinator
