#include "coordinator/job_queue.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/log.h"
#include "common/status.h"
#include "common/yaml_message.h"
#include "coordinator/checkpoint_manifest.h"

namespace millrace::coordinator {
namespace {

constexpr size_t kMaxJobBytes = 1 << 20;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxKeyBytes = 128;

absl::Status CheckSize(const v1::SubmitJobRequest& request) {
  size_t bytes = std::max(request.job_yaml().size(), request.spec().ByteSizeLong());
  for (const std::string& text : request.overrides()) bytes += text.size();
  if (bytes > kMaxJobBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the job is larger than ", kMaxJobBytes, " bytes"));
  }
  if (request.idempotency_key().size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(absl::StrCat("idempotency_key has more than ", kMaxKeyBytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status PlaceFiles(const std::string& directory, const StoredJob& job) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot make ", directory, ": ", error.message()));
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(job.job.spec(), &json, options).ok()) {
    return absl::InvalidArgumentError("the job cannot be written as JSON: a text in it is not UTF-8");
  }
  if (!job.job_yaml.empty()) {
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/job.yaml"), job.job_yaml));
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kJobFile), json);
}

}  // namespace

std::string JobDirectory(absl::string_view directory, absl::string_view job_id) {
  return absl::StrCat(directory, "/jobs/", job_id);
}

absl::StatusOr<StoredJob> JobQueue::Read(const v1::SubmitJobRequest& request) const {
  MILLRACE_RETURN_IF_ERROR(CheckSize(request));
  StoredJob read;
  v1::Job& job = read.job;
  read.base_directory = request.base_directory();
  read.job_yaml = request.job_yaml();
  *job.mutable_spec() = request.spec();
  if (request.job_yaml().empty() && !request.has_spec()) {
    if (request.template_job_id().empty()) {
      return absl::InvalidArgumentError("the request holds no job: job_yaml, spec or template_job_id is wanted");
    }
    MILLRACE_ASSIGN_OR_RETURN(const StoredJob model, options_.book->GetStored(request.template_job_id()));
    read.job_yaml = model.job_yaml;
    *job.mutable_spec() = model.job.spec();
    *job.mutable_overrides() = model.job.overrides();
    if (read.base_directory.empty()) read.base_directory = model.base_directory;
  }
  job.mutable_overrides()->MergeFrom(request.overrides());
  const std::vector<std::string> overrides(job.overrides().begin(), job.overrides().end());
  if (!read.job_yaml.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(*job.mutable_spec(), ParseJob(read.job_yaml, "job_yaml", overrides));
  } else {
    for (const std::string& override_text : overrides) {
      MILLRACE_RETURN_IF_ERROR(ApplyYamlOverride(override_text, "job", job.mutable_spec()));
    }
    FillDefaults(job.mutable_spec());
  }
  for (const auto& [name, value] : request.labels()) (*job.mutable_spec()->mutable_labels())[name] = value;
  MILLRACE_RETURN_IF_ERROR(ValidateJob(job.spec()));
  if (!read.base_directory.empty() && !std::filesystem::path(read.base_directory).is_absolute()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "base_directory '", absl::CHexEscape(read.base_directory.substr(0, 200)), "' is not an absolute path"));
  }
  job.set_idempotency_key(request.idempotency_key());
  return read;
}

absl::StatusOr<std::optional<v1::Job>> JobQueue::MadeBefore(const StoredJob& wanted,
                                                            const std::vector<v1::Job>& jobs) const {
  const std::string& key = wanted.job.idempotency_key();
  if (key.empty()) return std::nullopt;
  for (const v1::Job& job : jobs) {
    if (job.idempotency_key() != key || job.user() != wanted.job.user()) continue;
    // Labels and priority may have been changed since.
    v1::JobSpec was = job.spec(), is = wanted.job.spec();
    for (v1::JobSpec* const spec : {&was, &is}) {
      spec->clear_labels();
      spec->clear_priority();
    }
    MILLRACE_ASSIGN_OR_RETURN(const StoredJob stored, options_.book->GetStored(job.id()));
    if (google::protobuf::util::MessageDifferencer::Equals(was, is) && stored.base_directory == wanted.base_directory) {
      return job;
    }
    return absl::AlreadyExistsError(absl::StrCat("the idempotency key '", absl::CHexEscape(key), "' has made the job ",
                                                 job.id(), ", which is another than this one"));
  }
  return std::nullopt;
}

absl::StatusOr<v1::Job> JobQueue::Submit(const v1::SubmitJobRequest& request, const std::string& user,
                                         const std::string& sweep_id) {
  MILLRACE_ASSIGN_OR_RETURN(StoredJob job, Read(request));
  job.job.set_user(user);
  job.job.set_sweep_id(sweep_id);
  if (options_.check != nullptr) MILLRACE_RETURN_IF_ERROR(options_.check(job));
  absl::MutexLock changing(&changing_);
  const std::vector<v1::Job> jobs = options_.book->List();
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<v1::Job> before, MadeBefore(job, jobs));
  if (before.has_value()) return *before;
  const auto unfinished = std::count_if(
      jobs.begin(), jobs.end(), [&](const v1::Job& other) { return !HasEnded(other.state()) && other.user() == user; });
  if (options_.jobs_per_user > 0 && unfinished >= options_.jobs_per_user) {
    return absl::ResourceExhaustedError(absl::StrCat(user.empty() ? "there are" : absl::StrCat(user, " has"), " ",
                                                     unfinished, " unfinished jobs, of at most ",
                                                     options_.jobs_per_user, "; wait for one to end or cancel it"));
  }
  if (request.validate_only()) return job.job;
  // The id, and so the folder, is known once the job is in the book; RunOne cannot start it before changing_ is free.
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job added, options_.book->Add(job));
  job.job = added;
  const std::string directory = JobDirectory(options_.directory, added.id());
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);  // what a deletion cut short may have left
  if (absl::Status placed = PlaceFiles(directory, job); !placed.ok()) {
    options_.book->Delete(added.id()).IgnoreError();
    std::filesystem::remove_all(directory, ignored);
    return placed;
  }
  options_.book->Update(added.id(), [&](v1::Job* entry) { entry->set_directory(directory); });
  MILLRACE_RETURN_IF_ERROR(options_.book->Flush());
  return options_.book->Get(added.id());
}

absl::StatusOr<v1::Job> JobQueue::Update(const v1::UpdateJobRequest& request) {
  absl::MutexLock changing(&changing_);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, options_.book->Get(request.job_id()));
  v1::JobSpec spec = job.spec();
  if (request.has_priority()) spec.set_priority(request.priority());
  for (const std::string& name : request.remove_labels()) {
    if (spec.mutable_labels()->erase(name) == 0) {
      return absl::NotFoundError(
          absl::StrCat("job ", job.id(), " has no label '", absl::CHexEscape(name.substr(0, kMaxNameBytes)), "'"));
    }
  }
  for (const auto& [name, value] : request.set_labels()) (*spec.mutable_labels())[name] = value;
  MILLRACE_RETURN_IF_ERROR(ValidateJob(spec));
  options_.book->Update(job.id(), [&](v1::Job* entry) { *entry->mutable_spec() = spec; });
  MILLRACE_RETURN_IF_ERROR(options_.book->Flush());
  return options_.book->Get(job.id());
}

bool JobQueue::AskRunning(absl::string_view job_id, Wish wish) {
  std::shared_ptr<JobControl> control;
  {
    absl::MutexLock lock(&mutex_);
    if (running_ != job_id) return false;
    control = control_;
  }
  control->Ask(wish);
  return true;
}

absl::StatusOr<v1::Job> JobQueue::Pause(absl::string_view job_id) {
  absl::MutexLock changing(&changing_);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, options_.book->Get(job_id));
  if (HasEnded(job.state())) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", job_id, " has ended (", v1::Job::State_Name(job.state()), "): nothing to pause"));
  }
  if (job.state() != v1::Job::PAUSED && !AskRunning(job_id, Wish::kPause)) {
    MILLRACE_RETURN_IF_ERROR(options_.book->SetState(job_id, v1::Job::PAUSED, [](v1::Job*) {}));
  }
  return options_.book->Get(job_id);
}

absl::StatusOr<v1::Job> JobQueue::Resume(absl::string_view job_id) {
  absl::MutexLock changing(&changing_);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, options_.book->Get(job_id));
  if (job.state() == v1::Job::SUCCEEDED) {
    return absl::FailedPreconditionError(absl::StrCat("job ", job_id, " has succeeded: nothing to resume"));
  }
  if (job.state() == v1::Job::PAUSED || job.state() == v1::Job::FAILED || job.state() == v1::Job::CANCELLED) {
    MILLRACE_RETURN_IF_ERROR(options_.book->Requeue(job_id));
  } else {
    absl::MutexLock lock(&mutex_);
    if (running_ == job_id && control_->wish() != Wish::kNone) {
      return absl::FailedPreconditionError(
          absl::StrCat("job ", job_id, " is still finishing its step before it pauses or ends; ask again then"));
    }
  }
  return options_.book->Get(job_id);
}

absl::StatusOr<v1::Job> JobQueue::Cancel(absl::string_view job_id, const std::string& stop_reason) {
  absl::MutexLock changing(&changing_);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, options_.book->Get(job_id));
  if (job.state() == v1::Job::SUCCEEDED || job.state() == v1::Job::FAILED) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", job_id, " has ended (", v1::Job::State_Name(job.state()), "): nothing to cancel"));
  }
  if (job.state() != v1::Job::CANCELLED && !AskRunning(job_id, Wish::kCancel)) {
    MILLRACE_RETURN_IF_ERROR(options_.book->SetState(job_id, v1::Job::CANCELLED,
                                                     [&](v1::Job* entry) { entry->set_stop_reason(stop_reason); }));
  }
  return options_.book->Get(job_id);
}

absl::Status JobQueue::Delete(absl::string_view job_id) {
  absl::MutexLock changing(&changing_);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, options_.book->Get(job_id));
  const bool runs = running() == job_id;
  if (runs || !(HasEnded(job.state()) || job.state() == v1::Job::PAUSED)) {
    return absl::FailedPreconditionError(absl::StrCat("job ", job_id, " is ", v1::Job::State_Name(job.state()),
                                                      runs ? " and running" : "", "; cancel it first"));
  }
  // The book first: a folder without a job is only space, a job without its folder would be broken.
  // What is kept elsewhere would be taken for that of a later job of the same name.
  MILLRACE_RETURN_IF_ERROR(options_.forget(job.id()));
  MILLRACE_RETURN_IF_ERROR(options_.book->Delete(job_id));
  std::error_code error;
  const std::string directory = JobDirectory(options_.directory, job.id());
  std::filesystem::remove_all(directory, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot remove ", directory, ": ", error.message()));
  return absl::OkStatus();
}

void JobQueue::Run() {
  uint64_t seen = 0;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
    }
    if (const std::optional<std::string> next = options_.book->Next(); next.has_value()) {
      RunOne(*next);
    } else {
      options_.book->AwaitChange(&seen);
    }
  }
}

void JobQueue::RunOne(const std::string& job_id) {
  auto control = std::make_shared<JobControl>(options_.wake);
  StoredJob job;
  {
    absl::MutexLock changing(&changing_);
    absl::StatusOr<StoredJob> stored = options_.book->GetStored(job_id);
    const v1::Job::State state = stored.ok() ? stored->job.state() : v1::Job::CANCELLED;
    if (HasEnded(state) || state == v1::Job::PAUSED) return;  // a user was quicker
    job = *std::move(stored);
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    running_ = job_id;
    control_ = control;
  }
  Log(Severity::kInfo, "job starts", {{"job", job_id}});
  const absl::StatusOr<JobOutcome> outcome = options_.run(job, *control);

  absl::MutexLock changing(&changing_);
  {
    absl::MutexLock lock(&mutex_);
    running_.clear();
    control_.reset();
  }
  // What was asked while the run was ending: it is nobody else's any more to be carried out.
  const bool cancelled =
      outcome.ok() && (outcome->kind == JobOutcome::Kind::kCancelled ||
                       (outcome->kind == JobOutcome::Kind::kPaused && control->wish() == Wish::kCancel));
  absl::Status recorded;
  if (!outcome.ok()) {
    Log(Severity::kError, "job failed", {{"job", job_id}, {"error", std::string(outcome.status().message())}});
    recorded = options_.book->SetState(
        job_id, v1::Job::FAILED, [&](v1::Job* entry) { entry->set_error(std::string(outcome.status().message())); });
  } else if (outcome->kind == JobOutcome::Kind::kSucceeded) {
    recorded = options_.book->SetState(job_id, v1::Job::SUCCEEDED,
                                       [&](v1::Job* entry) { entry->set_stop_reason(outcome->stop_reason); });
  } else if (cancelled) {
    recorded = options_.book->SetState(job_id, v1::Job::CANCELLED,
                                       [](v1::Job* entry) { entry->set_stop_reason("cancelled"); });
  } else if (outcome->kind == JobOutcome::Kind::kPaused) {
    recorded = options_.book->SetState(job_id, v1::Job::PAUSED, [](v1::Job*) {});
  } else {
    recorded = options_.book->Flush();
  }
  if (!recorded.ok()) {
    // In memory the state holds; after a restart the job would go on from its last checkpoint.
    Log(Severity::kError, "the job's state could not be stored",
        {{"job", job_id}, {"error", std::string(recorded.message())}});
  }
  if (const absl::StatusOr<v1::Job> job_now = options_.book->Get(job_id); job_now.ok()) {
    Log(Severity::kInfo, "job rests",
        {{"job", job_id}, {"state", v1::Job::State_Name(job_now->state())}, {"stop_reason", job_now->stop_reason()}});
  }
}

void JobQueue::Stop() {
  std::shared_ptr<JobControl> control;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    control = control_;
  }
  if (control != nullptr) control->Ask(Wish::kStop);
  options_.book->Wake();
}

std::string JobQueue::running() const {
  absl::MutexLock lock(&mutex_);
  return running_;
}

}  // namespace millrace::coordinator
