#include "coordinator/unit_ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::coordinator {

void UnitLedger::Offer(std::vector<v1::WorkUnit> units) {
  entries_.clear();
  waiting_.clear();
  delayed_.clear();
  held_.clear();
  done_ = 0;
  failure_.clear();
  entries_.reserve(units.size());
  for (v1::WorkUnit& unit : units) {
    waiting_.insert(waiting_.end(), entries_.size());
    entries_.emplace_back().unit = std::move(unit);
  }
}

std::optional<UnitLedger::Lease> UnitLedger::Take(const std::string& holder, absl::Time now) {
  if (waiting_.empty()) return std::nullopt;
  const size_t index = *waiting_.begin();
  waiting_.erase(waiting_.begin());
  Entry& entry = entries_[index];
  ++entry.leases;
  const uint64_t id = ++last_lease_;
  held_.emplace(id, Held{index, holder, now});
  return Lease{id, &entry.unit};
}

void UnitLedger::Drop(std::map<uint64_t, Held>::iterator lease) {
  Entry& entry = entries_[lease->second.entry];
  if (!lease->second.overdue) --entry.leases;
  if (!entry.done && entry.leases == 0 && !delayed_.contains(lease->second.entry)) waiting_.insert(lease->second.entry);
  held_.erase(lease);
}

UnitLedger::Verdict UnitLedger::Report(const v1::WorkResult& result, absl::Time now) {
  const auto lease = held_.find(result.lease());
  if (lease == held_.end()) return Verdict::kStale;
  const size_t index = lease->second.entry;
  Entry& entry = entries_[index];
  const v1::WorkUnit& unit = entry.unit;
  if (result.epoch() != unit.epoch() || result.kind() != unit.kind() || result.version() != unit.version() ||
      result.unit() != unit.unit()) {
    return Verdict::kStale;
  }
  const absl::Duration took = now - lease->second.since;
  if (entry.done) {
    Drop(lease);
    return Verdict::kRepeated;
  }
  if (result.failed()) {
    ++entry.failures;
    if (!result.retryable() || entry.failures >= limits_.attempts) {
      failure_ =
          absl::StrCat(v1::WorkUnit::Kind_Name(unit.kind()), " unit ", unit.unit(), " at version ", unit.version(),
                       " failed", entry.failures > 1 ? absl::StrCat(" ", entry.failures, " times") : std::string(),
                       ": ", result.error().empty() ? "the worker gave no reason" : result.error());
      return Verdict::kFailed;
    }
    const absl::Duration delay =
        std::min(limits_.longest_delay, limits_.first_delay * (int64_t{1} << std::min(entry.failures - 1, 20)));
    entry.not_before = now + delay;
    delayed_.insert(index);
    waiting_.erase(index);
    Drop(lease);
    return Verdict::kWaitsAgain;
  }
  longest_ = std::max(longest_, took);
  entry.done = true;
  entry.result = result;
  ++done_;
  waiting_.erase(index);
  delayed_.erase(index);
  Drop(lease);
  return Verdict::kAccepted;
}

int UnitLedger::Release(const std::string& holder) {
  const size_t before = waiting_.size();
  for (auto lease = held_.begin(); lease != held_.end();) {
    const auto next = std::next(lease);
    if (lease->second.holder == holder) Drop(lease);
    lease = next;
  }
  return static_cast<int>(waiting_.size() - before);
}

void UnitLedger::Return(uint64_t lease) {
  if (const auto held = held_.find(lease); held != held_.end()) Drop(held);
}

int UnitLedger::Tick(absl::Time now) {
  const size_t before = waiting_.size();
  for (auto index = delayed_.begin(); index != delayed_.end();) {
    if (entries_[*index].not_before <= now) {
      waiting_.insert(*index);
      index = delayed_.erase(index);
    } else {
      ++index;
    }
  }
  const absl::Duration overdue = std::max(limits_.overdue, limits_.slowness * longest_);
  for (auto& [id, held] : held_) {
    if (held.overdue || now - held.since < overdue) continue;
    held.overdue = true;
    Entry& entry = entries_[held.entry];
    --entry.leases;
    if (!entry.done && entry.leases == 0 && !delayed_.contains(held.entry)) waiting_.insert(held.entry);
  }
  return static_cast<int>(waiting_.size() - before);
}

std::vector<v1::WorkResult> UnitLedger::TakeResults() {
  std::vector<v1::WorkResult> results;
  results.reserve(entries_.size());
  for (Entry& entry : entries_) results.push_back(std::move(entry.result));
  return results;
}

}  // namespace millrace::coordinator
