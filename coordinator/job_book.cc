#include "coordinator/job_book.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

// Watchers may have seen events that a killed coordinator had not written yet; their sequences are not used again.
constexpr uint64_t kSequenceGap = 1000;
constexpr size_t kMostPending = 20'000;

// Of two jobs that wait.
bool GoesFirst(const StoredJob& a, const StoredJob& b) {
  const uint32_t a_priority = a.job.spec().priority(), b_priority = b.job.spec().priority();
  return a_priority != b_priority ? a_priority > b_priority : a.place < b.place;
}

}  // namespace

bool HasEnded(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

absl::StatusOr<std::unique_ptr<JobBook>> JobBook::Open(JobStore* store, Now now) {
  std::unique_ptr<JobBook> book(new JobBook(store, std::move(now)));
  MILLRACE_ASSIGN_OR_RETURN(std::vector<StoredJob> jobs, store->Load());
  absl::MutexLock lock(&book->mutex_);
  for (StoredJob& job : jobs) {
    Entry& entry = book->jobs_[job.job.id()];
    MILLRACE_ASSIGN_OR_RETURN(const uint64_t last, store->LastSequence(job.job.id()));
    entry.last_sequence = last == 0 || HasEnded(job.job.state()) ? last : last + kSequenceGap;
    entry.stored = std::move(job);
  }
  return book;
}

JobBook::Entry* JobBook::Find(absl::string_view job_id) {
  const auto entry = jobs_.find(job_id);
  return entry == jobs_.end() ? nullptr : &entry->second;
}

absl::Status JobBook::NotFound(absl::string_view job_id) const {
  std::vector<std::string> ids;
  for (const auto& [id, entry] : jobs_) ids.push_back(id);
  const size_t shown = std::min<size_t>(ids.size(), 20);
  return absl::NotFoundError(
      absl::StrCat("no job '", absl::CHexEscape(job_id.substr(0, 100)), "'; ",
                   ids.empty() ? "there are none"
                               : absl::StrCat("there are: ", absl::StrJoin(ids.begin(), ids.begin() + shown, ", ")),
                   ids.size() > shown ? ", …" : ""));
}

absl::StatusOr<v1::Job> JobBook::Add(StoredJob job) {
  absl::MutexLock writing(&writing_);
  job.job.set_state(v1::Job::QUEUED);
  job.job.set_submitted_unix_ms(absl::ToUnixMillis(now_()));
  MILLRACE_ASSIGN_OR_RETURN(job, store_->Insert(std::move(job)));
  const v1::Job added = job.job;
  absl::MutexLock lock(&mutex_);
  Entry& entry = jobs_[added.id()];
  entry.stored = std::move(job);
  v1::JobEvent event;
  event.mutable_state()->set_state(v1::Job::QUEUED);
  AppendLocked(&entry, std::move(event));
  return added;
}

absl::StatusOr<v1::Job> JobBook::Get(absl::string_view job_id) const {
  absl::MutexLock lock(&mutex_);
  const auto entry = jobs_.find(job_id);
  if (entry == jobs_.end()) return NotFound(job_id);
  v1::Job job = entry->second.stored.job;
  if (job.state() != v1::Job::QUEUED) return job;
  uint32_t position = 1;
  for (const auto& [id, other] : jobs_) {
    position += other.stored.job.state() == v1::Job::QUEUED && GoesFirst(other.stored, entry->second.stored);
  }
  job.set_queue_position(position);
  return job;
}

absl::StatusOr<StoredJob> JobBook::GetStored(absl::string_view job_id) const {
  absl::MutexLock lock(&mutex_);
  const auto entry = jobs_.find(job_id);
  if (entry == jobs_.end()) return NotFound(job_id);
  return entry->second.stored;
}

std::vector<v1::Job> JobBook::List() const {
  std::vector<StoredJob> stored;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, entry] : jobs_) {
      StoredJob& job = stored.emplace_back();
      job.job = entry.stored.job;
      job.place = entry.stored.place;
    }
  }
  std::vector<StoredJob*> waiting;
  for (StoredJob& job : stored) {
    if (job.job.state() == v1::Job::QUEUED) waiting.push_back(&job);
  }
  std::sort(waiting.begin(), waiting.end(), [](const StoredJob* a, const StoredJob* b) { return GoesFirst(*a, *b); });
  for (size_t i = 0; i < waiting.size(); ++i) waiting[i]->job.set_queue_position(static_cast<uint32_t>(i + 1));
  std::sort(stored.begin(), stored.end(), [](const StoredJob& a, const StoredJob& b) { return a.place < b.place; });
  std::vector<v1::Job> jobs;
  jobs.reserve(stored.size());
  for (StoredJob& job : stored) jobs.push_back(std::move(job.job));
  return jobs;
}

std::map<v1::Job::State, uint64_t> JobBook::Endings() const {
  absl::MutexLock lock(&mutex_);
  return endings_;
}

uint64_t JobBook::Rewrites(absl::string_view job_id) const {
  absl::MutexLock lock(&mutex_);
  const auto entry = jobs_.find(job_id);
  return entry == jobs_.end() ? 0 : entry->second.rewrites;
}

absl::Status JobBook::Delete(absl::string_view job_id) {
  absl::MutexLock writing(&writing_);
  MILLRACE_RETURN_IF_ERROR(store_->Delete(job_id));
  absl::MutexLock lock(&mutex_);
  if (const auto entry = jobs_.find(job_id); entry != jobs_.end()) jobs_.erase(entry);
  ++changes_;
  changed_.SignalAll();
  return absl::OkStatus();
}

std::optional<std::string> JobBook::Next() const {
  absl::MutexLock lock(&mutex_);
  const Entry* next = nullptr;
  const auto goes_first = [](const StoredJob& a, const StoredJob& b) {
    const bool a_ran = a.job.state() != v1::Job::QUEUED, b_ran = b.job.state() != v1::Job::QUEUED;
    return a_ran != b_ran ? a_ran : a_ran ? a.place < b.place : GoesFirst(a, b);
  };
  for (const auto& [id, entry] : jobs_) {
    const v1::Job::State state = entry.stored.job.state();
    if (state != v1::Job::QUEUED && state != v1::Job::PREPARING && state != v1::Job::RUNNING) continue;
    if (next == nullptr || goes_first(entry.stored, next->stored)) next = &entry;
  }
  if (next == nullptr) return std::nullopt;
  return next->stored.job.id();
}

absl::Status JobBook::SetState(absl::string_view job_id, v1::Job::State state,
                               absl::FunctionRef<void(v1::Job*)> change) {
  absl::MutexLock writing(&writing_);
  {
    absl::MutexLock lock(&mutex_);
    Entry* const entry = Find(job_id);
    if (entry == nullptr) return NotFound(job_id);
    v1::Job& job = entry->stored.job;
    if (HasEnded(state) && !HasEnded(job.state())) ++endings_[state];
    job.set_state(state);
    change(&job);
    if (HasEnded(state)) job.set_ended_unix_ms(absl::ToUnixMillis(now_()));
    v1::JobEvent event;
    event.mutable_state()->set_state(state);
    event.mutable_state()->set_error(job.error());
    event.mutable_state()->set_stop_reason(job.stop_reason());
    AppendLocked(entry, std::move(event));
  }
  return FlushLocked();
}

absl::Status JobBook::Requeue(absl::string_view job_id) {
  absl::MutexLock writing(&writing_);
  v1::Job job;
  {
    absl::MutexLock lock(&mutex_);
    Entry* const entry = Find(job_id);
    if (entry == nullptr) return NotFound(job_id);
    job = entry->stored.job;
  }
  job.set_state(v1::Job::QUEUED);
  job.clear_error();
  job.clear_stop_reason();
  job.clear_ended_unix_ms();
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t place, store_->MoveToEnd(job));
  absl::MutexLock lock(&mutex_);
  Entry* const entry = Find(job_id);
  if (entry == nullptr) return NotFound(job_id);
  entry->stored.job = job;
  entry->stored.place = place;
  v1::JobEvent event;
  event.mutable_state()->set_state(v1::Job::QUEUED);
  AppendLocked(entry, std::move(event));
  return absl::OkStatus();
}

void JobBook::Update(absl::string_view job_id, absl::FunctionRef<void(v1::Job*)> change) {
  absl::MutexLock lock(&mutex_);
  Entry* const entry = Find(job_id);
  if (entry == nullptr) return;
  change(&entry->stored.job);
  entry->dirty = true;
}

void JobBook::AppendLocked(Entry* entry, v1::JobEvent event) {
  event.set_sequence(++entry->last_sequence);
  event.set_unix_ms(absl::ToUnixMillis(now_()));
  event.set_job_id(entry->stored.job.id());
  entry->pending.push_back(std::move(event));
  if (entry->pending.size() > kMostPending) {
    // The disk has been full for long: steps can be spared.
    std::erase_if(entry->pending, [](const v1::JobEvent& pending) { return pending.has_step(); });
  }
  ++changes_;
  changed_.SignalAll();
}

void JobBook::Append(absl::string_view job_id, v1::JobEvent event) {
  absl::MutexLock lock(&mutex_);
  if (Entry* const entry = Find(job_id); entry != nullptr) AppendLocked(entry, std::move(event));
}

void JobBook::Log(absl::string_view job_id, absl::string_view severity, absl::string_view text) {
  v1::JobEvent event;
  event.mutable_log()->set_severity(std::string(severity));
  event.mutable_log()->set_text(std::string(text));
  Append(job_id, std::move(event));
}

absl::Status JobBook::Supersede(absl::string_view job_id, absl::string_view phase, uint64_t step) {
  absl::MutexLock writing(&writing_);
  {
    absl::MutexLock lock(&mutex_);
    Entry* const entry = Find(job_id);
    if (entry == nullptr) return NotFound(job_id);
    const auto happens_again = [&](const v1::JobEvent& event) {
      return (event.has_step() && event.step().phase() == phase && event.step().step() > step) ||
             (event.has_evaluation() && event.evaluation().phase() == phase && event.evaluation().step() > step) ||
             (event.has_samples() && event.samples().phase() == phase && event.samples().step() > step) ||
             (event.has_checkpoint() && event.checkpoint().phase() == phase && event.checkpoint().step() > step);
    };
    std::erase_if(entry->pending, happens_again);
    ++entry->rewrites;
  }
  return store_->Supersede(job_id, phase, step);
}

absl::Status JobBook::Flush() {
  absl::MutexLock writing(&writing_);
  return FlushLocked();
}

absl::Status JobBook::FlushLocked() {
  struct Batch {
    v1::Job job;
    std::vector<v1::JobEvent> events;
  };
  std::vector<Batch> batches;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [id, entry] : jobs_) {
      if (entry.pending.empty() && !entry.dirty) continue;
      batches.push_back({entry.stored.job, entry.pending});
      entry.dirty = false;
    }
  }
  absl::Status status;
  for (const Batch& batch : batches) {
    const absl::Status written = store_->AppendEvents(batch.job, batch.events);
    absl::MutexLock lock(&mutex_);
    Entry* const entry = Find(batch.job.id());
    if (entry == nullptr) continue;
    if (written.ok()) {
      const uint64_t last = batch.events.empty() ? 0 : batch.events.back().sequence();
      std::erase_if(entry->pending, [last](const v1::JobEvent& pending) { return pending.sequence() <= last; });
    } else {
      entry->dirty = true;
      status.Update(written);
    }
  }
  return status;
}

absl::StatusOr<std::vector<v1::JobEvent>> JobBook::Read(absl::string_view job_id, uint64_t after, int limit) {
  absl::MutexLock writing(&writing_);
  {
    absl::MutexLock lock(&mutex_);
    const Entry* const entry = Find(job_id);
    if (entry == nullptr) return NotFound(job_id);
    if (!entry->pending.empty() && entry->pending.front().sequence() <= after + 1) {
      // The usual case of a watcher that keeps up: no disk.
      std::vector<v1::JobEvent> events;
      for (const v1::JobEvent& event : entry->pending) {
        if (event.sequence() > after && static_cast<int>(events.size()) < limit) events.push_back(event);
      }
      return events;
    }
  }
  MILLRACE_ASSIGN_OR_RETURN(std::vector<v1::JobEvent> events, store_->ReadEvents(job_id, after, limit));
  if (static_cast<int>(events.size()) == limit) return events;
  absl::MutexLock lock(&mutex_);
  if (const Entry* const entry = Find(job_id); entry != nullptr) {
    for (const v1::JobEvent& event : entry->pending) {
      if (event.sequence() > after && static_cast<int>(events.size()) < limit) events.push_back(event);
    }
  }
  return events;
}

void JobBook::AwaitEvent(absl::string_view job_id, uint64_t after, absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    const auto entry = jobs_.find(job_id);
    if (entry == jobs_.end() || entry->second.last_sequence > after) return;
    if (changed_.WaitWithDeadline(&mutex_, deadline)) return;
  }
}

void JobBook::AwaitChange(uint64_t* seen) const {
  absl::MutexLock lock(&mutex_);
  while (changes_ == *seen) changed_.Wait(&mutex_);
  *seen = changes_;
}

void JobBook::Wake() {
  absl::MutexLock lock(&mutex_);
  ++changes_;
  changed_.SignalAll();
}

}  // namespace millrace::coordinator
