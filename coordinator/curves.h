// Draws curves of what jobs measured: out of their events, which are read once, and thinned to what a screen can show.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "coordinator/job_book.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// Thread-safe.
class Curves {
 public:
  // `book` outlives it. Of the jobs that were asked for last, the numbers of up to `kept_steps` steps and evaluations
  // stay in memory. A reply has up to `most_points`: those that a message has room for, and JSON as well.
  explicit Curves(JobBook* book, size_t kept_steps = 4'000'000, size_t most_points = 2'000'000)
      : book_(book), kept_steps_(kept_steps), most_points_(most_points) {}

  // As the service's GetCurves says. INVALID_ARGUMENT for bounds that are exceeded, NOT_FOUND for a job or a metric
  // that there is not; a metric that only some of the jobs have is fine, and so is a loss that none has yet.
  absl::StatusOr<v1::GetCurvesReply> Get(const v1::GetCurvesRequest& request);

 private:
  // What was measured at the same times.
  struct Track {
    std::vector<uint64_t> steps, tokens;
    std::vector<int64_t> unix_ms;
    std::map<std::string, std::vector<double>, std::less<>> values;  // NaN: not measured then
    void Add(uint64_t step, uint64_t trained_tokens, int64_t at,
             absl::Span<const std::pair<std::string, double>> measured);
  };
  struct Phase {
    std::string name;
    Track train, held_out;
  };
  struct Job {
    std::string id;
    uint64_t last_sequence = 0;
    uint64_t rewrites = 0;
    int64_t submitted_unix_ms = 0;  // another job of the same name has another
    std::vector<Phase> phases;
    size_t size() const;
  };
  // The job's numbers, brought up to date, at the front of the list.
  absl::StatusOr<Job*> Read(absl::string_view job_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  JobBook* const book_;
  const size_t kept_steps_;
  const size_t most_points_;
  absl::Mutex mutex_;
  std::list<Job> jobs_ ABSL_GUARDED_BY(mutex_);  // the last asked for first
};

// Which `count` points of y over x stand for all, in order: the first, the last and one of each of count - 2 runs of
// neighbours, by largest triangles. x rises. Requires count of at least 3 and more points than that.
// Steinarsson, "Downsampling Time Series for Visual Representation", University of Iceland 2013, section 4.2.
std::vector<size_t> LargestTriangles(absl::Span<const double> x, absl::Span<const double> y, size_t count);

}  // namespace millrace::coordinator
