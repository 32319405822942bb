// Joins the runner, which offers the units of a step and waits for them, with the workers' calls, which take units and
// report results.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/unit_ledger.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::coordinator {

// Thread-safe. Nothing polls: a call that waits for work is woken by Offer, one that waits for results by the last one.
// A call that waits for work holds no thread: as many workers as there are may wait at once.
class WorkBoard {
 public:
  using Now = std::function<absl::Time()>;
  explicit WorkBoard(const UnitLedger::Limits& limits = {}, Now now = &absl::Now);
  // No call may be waiting.
  ~WorkBoard();

  // ---- workers ----
  void Admit(const std::string& worker);
  // Frees what the worker holds, and ends its calls.
  void Dismiss(const std::string& worker);
  int workers() const;

  // Takes the worker's results in; those that are stale, repeated, or of units that were leased to another count for
  // nothing.
  void Report(const std::string& worker, absl::Span<const v1::WorkResult> results);
  // Leases up to `limit` units to the worker as soon as there is work, in the order of the calls, and gives them to
  // `answer`: from this call, or later from the board's thread; none soon after `deadline`. A unit carries the phase's
  // context until the worker has reported a result of its epoch. NOT_FOUND: not admitted (any more).
  using Answer = std::function<void(absl::StatusOr<std::vector<v1::WorkUnit>>)>;
  void Take(const std::string& worker, uint32_t limit, absl::Time deadline, Answer answer);
  // Gives back units that never reached the worker.
  void Return(absl::Span<const v1::WorkUnit> units);

  // ---- the runner ----
  // From now on, workers get the units of this context's epoch; whatever was offered before is dropped.
  void SetContext(std::shared_ptr<const v1::PhaseContext> context);
  // Offers units (see UnitLedger::Offer), all of the context's epoch.
  void Offer(std::vector<v1::WorkUnit> units);
  void Withdraw() { Offer({}); }
  // Waits until every unit offered is done and returns the results in the order of the offer. CANCELLED when
  // `interrupted` (called under a lock, must not block) says so, after Wake(); ABORTED with what happened when a unit
  // cannot be done.
  absl::StatusOr<std::vector<v1::WorkResult>> Await(absl::FunctionRef<bool()> interrupted);
  // Has Await ask `interrupted` again.
  void Wake();

  // Frees overdue units and ends waits that are over; to be called a few times a second.
  void Tick();

  struct Counts {
    uint64_t accepted = 0, repeated = 0, stale = 0, failed = 0, freed = 0;
  };
  Counts counts() const;

 private:
  // A call for work that waits.
  struct Waiting {
    std::string worker;
    uint32_t limit;
    absl::Time deadline;
    Answer answer;
  };
  // What there is to answer now; nothing: it is to wait.
  std::optional<absl::StatusOr<std::vector<v1::WorkUnit>>> AnswerTo(const Waiting& waiting)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Has the thread look who can be answered.
  void Look() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The thread: answers those who wait, one after another, so that the runner goes on meanwhile.
  void Give();

  const Now now_;
  mutable absl::Mutex mutex_;
  absl::CondVar work_ ABSL_GUARDED_BY(mutex_);      // look_
  absl::CondVar progress_ ABSL_GUARDED_BY(mutex_);  // all done, a failure, or Wake
  UnitLedger ledger_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const v1::PhaseContext> context_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> known_epoch_ ABSL_GUARDED_BY(mutex_);   // worker → epoch whose context it has
  std::map<uint64_t, std::string> lease_holder_ ABSL_GUARDED_BY(mutex_);  // of the present offer
  Counts counts_ ABSL_GUARDED_BY(mutex_);
  std::list<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);  // only the thread removes
  bool look_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread giver_;  // the last: it uses the others
};

}  // namespace millrace::coordinator
