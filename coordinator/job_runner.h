// Runs one job from text to trained model: the story of a job, read from top to bottom in job_runner.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/job_book.h"
#include "coordinator/job_control.h"
#include "coordinator/job_queue.h"
#include "coordinator/members.h"
#include "coordinator/rating_store.h"
#include "coordinator/shard_fleet.h"
#include "coordinator/work_board.h"

namespace millrace::coordinator {

// What a run works with; all outlive it.
struct RunnerParts {
  std::string directory;  // the coordinator's
  uint32_t shards = 1;    // how many a job waits for
  JobBook* book = nullptr;
  JobStore* store = nullptr;  // for epochs
  Members* members = nullptr;
  WorkBoard* board = nullptr;
  FleetConnector connect;
  std::function<void(uint64_t epoch)> announce;  // an epoch begins
  // The job has been evaluated, as the book says: called before the job goes on, which may be asked not to.
  std::function<void()> on_evaluation;
  CoordinatorMetrics* metrics = nullptr;
  RatingStore* ratings = nullptr;
  std::string rating_page;  // HOST:PORT where people compare answers; empty: not served
  std::function<absl::Time()> now = &absl::Now;
};

// Runs the job until it has succeeded or `control` asks otherwise, going on from its last checkpoint if it has one.
//
// Whatever happens to workers is made good by the work board. When a shard is lost, the run returns to the last
// checkpoint under a new epoch and goes on as soon as enough shards are there: the result is the same, because every
// step is a function of its version. A shard that says that it is to end is waited for with a checkpoint of the present
// version, so that nothing has to be computed again. An error means that the job cannot go on: text that cannot be read, a loss that
// is not finite, a full disk, a unit that fails again and again.
//
// All waiting ends soon when a wish is asked of `control`, given that its `wake` calls Wake of the members and the
// board.
absl::StatusOr<JobOutcome> RunJob(const StoredJob& job, const RunnerParts& parts, const JobControl& control);

}  // namespace millrace::coordinator
