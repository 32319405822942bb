// Keeps the work units of one step: who holds which, what came back, what has to be computed again.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::coordinator {

// A unit waits, is leased to a holder, and is done once its first result is in. A unit whose holder goes, fails, or
// takes far too long waits again; since a unit's result does not depend on who computes it, a late result of an older
// lease is as good as any, and whichever comes first counts, once. Not thread-safe; time comes in.
class UnitLedger {
 public:
  struct Limits {
    // A lease older than the larger of this and `slowness` times the longest unit so far is given to another holder
    // too, should one ask: the reply that carried it may have been lost.
    absl::Duration overdue = absl::Seconds(60);
    double slowness = 20;
    // A unit that failed waits so long before it is tried again, doubled with each failure up to the second.
    absl::Duration first_delay = absl::Milliseconds(50);
    absl::Duration longest_delay = absl::Seconds(5);
    // So many failures of one unit end the job.
    int attempts = 20;
  };
  UnitLedger() : UnitLedger(Limits()) {}
  explicit UnitLedger(const Limits& limits) : limits_(limits) {}

  // Replaces all units by these, to be handed out in this order; leases of the former become stale. All have the same
  // epoch and version; (kind, unit) differ.
  void Offer(std::vector<v1::WorkUnit> units);
  void Clear() { Offer({}); }

  struct Lease {
    uint64_t id;
    const v1::WorkUnit* unit;  // valid until the next Offer
  };
  // Leases the first waiting unit to `holder`, if there is one.
  std::optional<Lease> Take(const std::string& holder, absl::Time now);

  enum class Verdict {
    kAccepted,    // counts
    kRepeated,    // the unit was done already
    kStale,       // of units that are no longer wanted, or not a result of that lease
    kWaitsAgain,  // the holder failed; another attempt follows
    kFailed,      // the unit cannot be done: see failure()
  };
  Verdict Report(const v1::WorkResult& result, absl::Time now);

  // Frees what `holder` holds; returns how many units wait again.
  int Release(const std::string& holder);
  // Gives the lease back as if it had never been made (the holder did not get the reply).
  void Return(uint64_t lease);
  // Frees overdue leases and ends delays that are over; returns how many units became available.
  int Tick(absl::Time now);

  bool available() const { return !waiting_.empty(); }
  bool complete() const { return done_ == entries_.size(); }
  // Of a unit that cannot be done; empty: none.
  const std::string& failure() const { return failure_; }
  // In the order of Offer; those of units that are not done are empty.
  std::vector<v1::WorkResult> TakeResults();

 private:
  struct Entry {
    v1::WorkUnit unit;
    v1::WorkResult result;
    bool done = false;
    int leases = 0;  // not overdue
    int failures = 0;
    absl::Time not_before = absl::InfinitePast();
  };
  struct Held {
    size_t entry;
    std::string holder;
    absl::Time since;
    bool overdue = false;
  };
  void Drop(std::map<uint64_t, Held>::iterator lease);

  const Limits limits_;
  std::vector<Entry> entries_;
  std::set<size_t> waiting_;       // entries to be handed out
  std::set<size_t> delayed_;       // entries waiting for not_before
  std::map<uint64_t, Held> held_;  // by lease
  size_t done_ = 0;
  uint64_t last_lease_ = 0;  // never reused, across Offers
  absl::Duration longest_ = absl::ZeroDuration();
  std::string failure_;
};

}  // namespace millrace::coordinator
