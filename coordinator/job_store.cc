#include "coordinator/job_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

// PRAGMA user_version; a file of a newer one is refused.
constexpr int kFormat = 1;

constexpr char kTables[] = R"(
  CREATE TABLE IF NOT EXISTS jobs(id TEXT PRIMARY KEY, place INTEGER NOT NULL, record BLOB NOT NULL);
  CREATE TABLE IF NOT EXISTS job_files(id TEXT PRIMARY KEY, base_directory TEXT NOT NULL, job_yaml BLOB NOT NULL);
  CREATE TABLE IF NOT EXISTS events(job TEXT NOT NULL, sequence INTEGER NOT NULL, kind INTEGER NOT NULL,
      phase TEXT NOT NULL, step INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY(job, sequence)) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
  CREATE TABLE IF NOT EXISTS sweeps(id TEXT PRIMARY KEY, record BLOB NOT NULL);
  PRAGMA user_version = 1;
)";

struct Place {
  absl::string_view phase;
  uint64_t step = 0;
};

Place PlaceOf(const v1::JobEvent& event) {
  switch (event.event_case()) {
    case v1::JobEvent::kStep:
      return {event.step().phase(), event.step().step()};
    case v1::JobEvent::kEvaluation:
      return {event.evaluation().phase(), event.evaluation().step()};
    case v1::JobEvent::kCheckpoint:
      return {event.checkpoint().phase(), event.checkpoint().step()};
    case v1::JobEvent::kSamples:
      return {event.samples().phase(), event.samples().step()};
    default:
      return {};
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<Database> database, Database::Open(path));
  MILLRACE_RETURN_IF_ERROR(database->RefuseNewerFormat(kFormat));
  MILLRACE_RETURN_IF_ERROR(database->Execute(kTables));
  return std::unique_ptr<JobStore>(new JobStore(std::move(database)));
}

absl::StatusOr<uint64_t> JobStore::Count(absl::string_view name, uint64_t least) {
  uint64_t value = 0;
  {
    MILLRACE_ASSIGN_OR_RETURN(Statement query, database_->Prepare("SELECT value FROM counters WHERE name = ?1"));
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Bind(1, name).Step());
    if (row) value = static_cast<uint64_t>(query.Int(0));
  }
  value = std::max(value + 1, least);
  MILLRACE_ASSIGN_OR_RETURN(Statement write,
                            database_->Prepare("INSERT OR REPLACE INTO counters(name, value) VALUES(?1, ?2)"));
  MILLRACE_RETURN_IF_ERROR(write.Bind(1, name).Bind(2, static_cast<int64_t>(value)).Run());
  return value;
}

absl::StatusOr<StoredJob> JobStore::Insert(StoredJob job) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  MILLRACE_ASSIGN_OR_RETURN(job.place, Count("place", 1));
  const std::string name = job.job.spec().name();
  for (int number = 1;; ++number) {
    job.job.set_id(number == 1 ? name : absl::StrCat(name, "-", number));

    MILLRACE_ASSIGN_OR_RETURN(Statement again, database_->Prepare("SELECT 1 FROM jobs WHERE id = ?1"));
    MILLRACE_ASSIGN_OR_RETURN(const bool taken, again.Bind(1, job.job.id()).Step());
    if (!taken) break;
  }
  MILLRACE_ASSIGN_OR_RETURN(Statement insert,
                            database_->Prepare("INSERT INTO jobs(id, place, record) VALUES(?1, ?2, ?3)"));
  MILLRACE_RETURN_IF_ERROR(insert.Bind(1, job.job.id())
                               .Bind(2, static_cast<int64_t>(job.place))
                               .BindBlob(3, job.job.SerializeAsString())
                               .Run());
  MILLRACE_ASSIGN_OR_RETURN(
      Statement files, database_->Prepare("INSERT INTO job_files(id, base_directory, job_yaml) VALUES(?1, ?2, ?3)"));
  MILLRACE_RETURN_IF_ERROR(files.Bind(1, job.job.id()).Bind(2, job.base_directory).BindBlob(3, job.job_yaml).Run());
  MILLRACE_RETURN_IF_ERROR(transaction.Commit());
  return job;
}

absl::Status JobStore::Update(const v1::Job& job) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Statement update, database_->Prepare("UPDATE jobs SET record = ?2 WHERE id = ?1"));
  return update.Bind(1, job.id()).BindBlob(2, job.SerializeAsString()).Run();
}

absl::StatusOr<uint64_t> JobStore::MoveToEnd(const v1::Job& job) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t place, Count("place", 1));
  MILLRACE_ASSIGN_OR_RETURN(Statement update,
                            database_->Prepare("UPDATE jobs SET place = ?2, record = ?3 WHERE id = ?1"));
  MILLRACE_RETURN_IF_ERROR(
      update.Bind(1, job.id()).Bind(2, static_cast<int64_t>(place)).BindBlob(3, job.SerializeAsString()).Run());
  MILLRACE_RETURN_IF_ERROR(transaction.Commit());
  return place;
}

absl::Status JobStore::Delete(absl::string_view job_id) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  for (const char* sql :
       {"DELETE FROM events WHERE job = ?1", "DELETE FROM job_files WHERE id = ?1", "DELETE FROM jobs WHERE id = ?1"}) {
    MILLRACE_ASSIGN_OR_RETURN(Statement statement, database_->Prepare(sql));
    MILLRACE_RETURN_IF_ERROR(statement.Bind(1, job_id).Run());
  }
  return transaction.Commit();
}

absl::StatusOr<std::vector<StoredJob>> JobStore::Load() {
  absl::MutexLock lock(&mutex_);
  std::vector<StoredJob> jobs;
  MILLRACE_ASSIGN_OR_RETURN(Statement query,
                            database_->Prepare("SELECT j.id, j.place, j.record, f.base_directory, f.job_yaml FROM jobs "
                                               "j JOIN job_files f ON f.id = j.id ORDER BY j.place"));
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return jobs;
    StoredJob& job = jobs.emplace_back();
    if (!job.job.ParseFromString(query.Text(2)) || job.job.id() != query.Text(0)) {
      return absl::DataLossError(absl::StrCat("job store: the record of job '", query.Text(0), "' is damaged"));
    }
    job.place = static_cast<uint64_t>(query.Int(1));
    job.base_directory = query.Text(3);
    job.job_yaml = query.Text(4);
  }
}

absl::Status JobStore::PutSweep(const v1::Sweep& sweep) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Statement put,
                            database_->Prepare("INSERT OR REPLACE INTO sweeps(id, record) VALUES(?1, ?2)"));
  return put.Bind(1, sweep.id()).BindBlob(2, sweep.SerializeAsString()).Run();
}

absl::StatusOr<std::vector<v1::Sweep>> JobStore::LoadSweeps() {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::Sweep> sweeps;
  MILLRACE_ASSIGN_OR_RETURN(Statement query, database_->Prepare("SELECT id, record FROM sweeps"));
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return sweeps;
    if (!sweeps.emplace_back().ParseFromString(query.Text(1)) || sweeps.back().id() != query.Text(0)) {
      return absl::DataLossError(absl::StrCat("job store: the record of sweep '", query.Text(0), "' is damaged"));
    }
  }
}

absl::StatusOr<uint64_t> JobStore::NextEpoch(uint64_t least) {
  absl::MutexLock lock(&mutex_);
  return Count("epoch", least);
}

absl::Status JobStore::AppendEvents(const v1::Job& job, absl::Span<const v1::JobEvent> events) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  MILLRACE_ASSIGN_OR_RETURN(
      Statement insert, database_->Prepare("INSERT OR REPLACE INTO events(job, sequence, kind, phase, step, record) "
                                           "VALUES(?1, ?2, ?3, ?4, ?5, ?6)"));
  for (const v1::JobEvent& event : events) {
    const Place place = PlaceOf(event);
    MILLRACE_RETURN_IF_ERROR(insert.Bind(1, event.job_id())
                                 .Bind(2, static_cast<int64_t>(event.sequence()))
                                 .Bind(3, static_cast<int64_t>(event.event_case()))
                                 .Bind(4, place.phase)
                                 .Bind(5, static_cast<int64_t>(place.step))
                                 .BindBlob(6, event.SerializeAsString())
                                 .Run());
  }
  MILLRACE_ASSIGN_OR_RETURN(Statement update, database_->Prepare("UPDATE jobs SET record = ?2 WHERE id = ?1"));
  MILLRACE_RETURN_IF_ERROR(update.Bind(1, job.id()).BindBlob(2, job.SerializeAsString()).Run());
  return transaction.Commit();
}

absl::StatusOr<std::vector<v1::JobEvent>> JobStore::ReadEvents(absl::string_view job_id, uint64_t after, int limit) {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::JobEvent> events;
  if (after >= static_cast<uint64_t>(INT64_MAX)) return events;
  MILLRACE_ASSIGN_OR_RETURN(
      Statement query,
      database_->Prepare(
          "SELECT sequence, record FROM events WHERE job = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3"));
  query.Bind(1, job_id).Bind(2, static_cast<int64_t>(after)).Bind(3, int64_t{limit});
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return events;
    if (!events.emplace_back().ParseFromString(query.Text(1))) {
      return absl::DataLossError(absl::StrCat("job store: event ", query.Int(0), " of job '", job_id, "' is damaged"));
    }
  }
}

absl::StatusOr<uint64_t> JobStore::LastSequence(absl::string_view job_id) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Statement query, database_->Prepare("SELECT MAX(sequence) FROM events WHERE job = ?1"));
  MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Bind(1, job_id).Step());
  return row ? static_cast<uint64_t>(query.Int(0)) : 0;
}

absl::Status JobStore::Supersede(absl::string_view job_id, absl::string_view phase, uint64_t step) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Statement erase,
                            database_->Prepare("DELETE FROM events WHERE job = ?1 AND phase = ?2 AND step > ?3"));
  return erase.Bind(1, job_id).Bind(2, phase).Bind(3, static_cast<int64_t>(step)).Run();
}

}  // namespace millrace::coordinator
