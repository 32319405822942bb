#include "coordinator/work_board.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::coordinator {

WorkBoard::WorkBoard(const UnitLedger::Limits& limits, Now now)
    : now_(std::move(now)), ledger_(limits), giver_([this] { Give(); }) {}

WorkBoard::~WorkBoard() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
    Look();
  }
  giver_.join();
}

void WorkBoard::Admit(const std::string& worker) {
  absl::MutexLock lock(&mutex_);
  known_epoch_.emplace(worker, 0);
}

void WorkBoard::Dismiss(const std::string& worker) {
  absl::MutexLock lock(&mutex_);
  if (known_epoch_.erase(worker) == 0) return;
  counts_.freed += ledger_.Release(worker);
  Look();
  progress_.SignalAll();
}

int WorkBoard::workers() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(known_epoch_.size());
}

void WorkBoard::Report(const std::string& worker, absl::Span<const v1::WorkResult> results) {
  if (results.empty()) return;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = now_();
  for (const v1::WorkResult& result : results) {
    const auto holder = lease_holder_.find(result.lease());
    // Leases are numbered one after another: another's is soon guessed.
    const bool its_own = holder != lease_holder_.end() && holder->second == worker;
    const UnitLedger::Verdict verdict = its_own ? ledger_.Report(result, now) : UnitLedger::Verdict::kStale;
    switch (verdict) {
      case UnitLedger::Verdict::kAccepted:
        ++counts_.accepted;
        break;
      case UnitLedger::Verdict::kRepeated:
        ++counts_.repeated;
        break;
      case UnitLedger::Verdict::kStale:
        ++counts_.stale;
        break;
      case UnitLedger::Verdict::kWaitsAgain:
      case UnitLedger::Verdict::kFailed:
        ++counts_.failed;
        break;
    }
    const bool worked = verdict == UnitLedger::Verdict::kAccepted || verdict == UnitLedger::Verdict::kRepeated;
    if (const auto known = known_epoch_.find(worker); worked && known != known_epoch_.end()) {
      known->second = result.epoch();
    }
  }
  if (ledger_.complete() || !ledger_.failure().empty()) progress_.SignalAll();
}

std::optional<absl::StatusOr<std::vector<v1::WorkUnit>>> WorkBoard::AnswerTo(const Waiting& waiting) {
  const auto known = known_epoch_.find(waiting.worker);
  if (known == known_epoch_.end()) {
    return absl::NotFoundError(absl::StrCat("no worker '", waiting.worker, "' here (any more); join again"));
  }
  const absl::Time now = now_();
  std::vector<v1::WorkUnit> units;
  while (units.size() < waiting.limit) {
    const std::optional<UnitLedger::Lease> lease = ledger_.Take(waiting.worker, now);
    if (!lease) break;
    v1::WorkUnit& unit = units.emplace_back(*lease->unit);
    unit.set_lease(lease->id);
    if (context_ != nullptr && known->second != unit.epoch()) *unit.mutable_context() = *context_;
    lease_holder_.emplace(lease->id, waiting.worker);
  }
  if (units.empty() && now < waiting.deadline) return std::nullopt;
  return units;
}

void WorkBoard::Take(const std::string& worker, uint32_t limit, absl::Time deadline, Answer answer) {
  Waiting waiting = {worker, limit, deadline, std::move(answer)};
  std::optional<absl::StatusOr<std::vector<v1::WorkUnit>>> now;
  {
    absl::MutexLock lock(&mutex_);
    // Units that are there while others wait are on their way to those.
    if (waiting_.empty() || !ledger_.available()) now = AnswerTo(waiting);
    if (!now.has_value()) {
      waiting_.push_back(std::move(waiting));
      return;
    }
  }
  waiting.answer(*std::move(now));
}

void WorkBoard::Look() {
  look_ = true;
  work_.Signal();
}

void WorkBoard::Give() {
  mutex_.Lock();
  while (!closing_) {
    look_ = false;
    for (auto next = waiting_.begin(); next != waiting_.end();) {
      const auto waiting = next++;
      std::optional<absl::StatusOr<std::vector<v1::WorkUnit>>> now = AnswerTo(*waiting);
      if (!now.has_value()) continue;
      const Answer answer = std::move(waiting->answer);
      waiting_.erase(waiting);  // only here: `next` stays good while others add
      mutex_.Unlock();
      answer(*std::move(now));
      mutex_.Lock();
    }
    while (!look_ && !closing_) work_.Wait(&mutex_);
  }
  mutex_.Unlock();
}

void WorkBoard::Return(absl::Span<const v1::WorkUnit> units) {
  absl::MutexLock lock(&mutex_);
  for (const v1::WorkUnit& unit : units) {
    // An Offer may have come in between: then the lease is unknown, and that is well.
    ledger_.Return(unit.lease());
  }
  if (ledger_.available()) Look();
}

void WorkBoard::SetContext(std::shared_ptr<const v1::PhaseContext> context) {
  absl::MutexLock lock(&mutex_);
  context_ = std::move(context);
  ledger_.Clear();
  lease_holder_.clear();
}

void WorkBoard::Offer(std::vector<v1::WorkUnit> units) {
  absl::MutexLock lock(&mutex_);
  ledger_.Offer(std::move(units));
  lease_holder_.clear();
  Look();
}

absl::StatusOr<std::vector<v1::WorkResult>> WorkBoard::Await(absl::FunctionRef<bool()> interrupted) {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    if (!ledger_.failure().empty()) return absl::AbortedError(ledger_.failure());
    if (ledger_.complete()) return ledger_.TakeResults();
    if (interrupted()) return absl::CancelledError("interrupted");
    progress_.Wait(&mutex_);
  }
}

void WorkBoard::Wake() {
  absl::MutexLock lock(&mutex_);
  progress_.SignalAll();
}

void WorkBoard::Tick() {
  absl::MutexLock lock(&mutex_);
  counts_.freed += ledger_.Tick(now_());
  Look();
}

WorkBoard::Counts WorkBoard::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

}  // namespace millrace::coordinator
