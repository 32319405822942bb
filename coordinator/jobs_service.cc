#include "coordinator/jobs_service.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/access.h"
#include "common/checksum.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "coordinator/checkpoint_shelf.h"

namespace millrace::coordinator {
namespace {

constexpr int kEventsARead = 256;
constexpr size_t kChunkBytes = 1 << 20;
constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kLargestPage = 1000;
// How soon a stream without news notices that its reader has gone.
constexpr absl::Duration kLookUp = absl::Seconds(1);

template <typename Reply>
grpc::Status Answer(absl::StatusOr<Reply> answer, Reply* reply) {
  if (!answer.ok()) return ToGrpc(answer.status());
  *reply = *std::move(answer);
  return grpc::Status::OK;
}

bool Fits(const v1::ListJobsRequest& filters, const v1::Job& job) {
  const auto& states = filters.states();
  if (!states.empty() && std::find(states.begin(), states.end(), job.state()) == states.end()) return false;
  for (const auto& [name, value] : filters.labels()) {
    const auto label = job.spec().labels().find(name);
    if (label == job.spec().labels().end() || label->second != value) return false;
  }
  return (filters.user().empty() || filters.user() == job.user()) &&
         (filters.sweep_id().empty() || filters.sweep_id() == job.sweep_id()) &&
         absl::StartsWith(job.id(), filters.name_prefix());
}

// The job with what a list shows of its file.
v1::Job Brief(v1::Job job) {
  v1::JobSpec spec;
  spec.mutable_labels()->swap(*job.mutable_spec()->mutable_labels());
  for (const v1::PhaseSpec& phase : job.spec().phases()) spec.add_phases()->set_name(phase.name());
  *job.mutable_spec() = std::move(spec);
  return job;
}

// A page's token is the id of the job with which it starts: one that is gone meanwhile is an error rather than a gap.
absl::Status ListPage(const v1::ListJobsRequest& request, std::vector<v1::Job> jobs, v1::ListJobsReply* reply) {
  const uint32_t size = request.page_size() == 0 ? kDefaultPage : request.page_size();
  if (size > kLargestPage) {
    return absl::InvalidArgumentError(absl::StrCat("page_size is ", size, "; at most ", kLargestPage));
  }
  if (request.newest_first()) std::reverse(jobs.begin(), jobs.end());
  bool begun = request.page_token().empty();
  for (v1::Job& job : jobs) {
    if (!Fits(request, job)) continue;
    reply->set_total(reply->total() + 1);
    begun = begun || job.id() == request.page_token();
    if (!begun) continue;
    if (static_cast<uint32_t>(reply->jobs_size()) < size) {
      *reply->add_jobs() = request.brief() ? Brief(std::move(job)) : std::move(job);
    } else if (reply->next_page_token().empty()) {
      reply->set_next_page_token(job.id());
    }
  }
  if (begun) return absl::OkStatus();
  return absl::InvalidArgumentError("page_token: the job with which the page starts no longer fits; list them again");
}

// The names of kinds of events, and whether the request wants the event.
absl::Status CheckKinds(const v1::WatchJobRequest& request) {
  const google::protobuf::OneofDescriptor& kinds = *v1::JobEvent::descriptor()->FindOneofByName("event");
  for (const std::string& kind : request.kinds()) {
    std::vector<std::string> names;
    for (int i = 0; i < kinds.field_count(); ++i) names.push_back(kinds.field(i)->name());
    if (std::find(names.begin(), names.end(), kind) != names.end()) continue;
    return absl::InvalidArgumentError(absl::StrCat("kinds: there is no '", absl::CHexEscape(kind.substr(0, 100)),
                                                   "'; it takes ", absl::StrJoin(names, ", ")));
  }
  return absl::OkStatus();
}

bool IsWanted(const v1::WatchJobRequest& request, const v1::JobEvent& event) {
  if (request.kinds().empty()) return true;
  const auto* const field = v1::JobEvent::descriptor()->FindFieldByNumber(event.event_case());
  return field != nullptr &&
         std::find(request.kinds().begin(), request.kinds().end(), field->name()) != request.kinds().end();
}

// A file opened for reading, so that it stays readable when retention removes it.
class OpenFile {
 public:
  static absl::StatusOr<std::unique_ptr<OpenFile>> Open(const std::string& directory, const std::string& name) {
    const std::string path = absl::StrCat(directory, "/", name);
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
    auto file = std::unique_ptr<OpenFile>(new OpenFile(descriptor, name));
    struct stat about;
    if (fstat(descriptor, &about) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    file->size_ = static_cast<uint64_t>(about.st_size);
    return file;
  }
  ~OpenFile() { close(descriptor_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  const std::string& name() const { return name_; }
  uint64_t size() const { return size_; }

  absl::Status Read(uint64_t offset, size_t size, std::string* bytes) const {
    bytes->resize(size);
    for (size_t done = 0; done < size;) {
      const ssize_t got = pread(descriptor_, bytes->data() + done, size - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", name_));
      if (got == 0) return absl::DataLossError(absl::StrCat(name_, " became shorter while it was read"));
      done += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

 private:
  OpenFile(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {}
  const int descriptor_;
  const std::string name_;
  uint64_t size_ = 0;
};

}  // namespace

grpc::Status JobsService::SubmitJob(grpc::ServerContext* context, const v1::SubmitJobRequest* request, v1::Job* reply) {
  return SubmitFor(CallerOf(*context), *request, reply);
}

grpc::Status JobsService::SubmitFor(const std::string& user, const v1::SubmitJobRequest& request, v1::Job* reply) {
  return Answer(parts_.queue->Submit(request, user), reply);
}

grpc::Status JobsService::SubmitFor(const std::string& user, const v1::StartSweepRequest& request, v1::Sweep* reply) {
  return Answer(parts_.sweeps->Start(request, user), reply);
}

grpc::Status JobsService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request, v1::ListJobsReply* reply) {
  return ToGrpc(ListPage(*request, parts_.book->List(), reply));
}

grpc::Status JobsService::UpdateJob(grpc::ServerContext*, const v1::UpdateJobRequest* request, v1::Job* reply) {
  return Answer(parts_.queue->Update(*request), reply);
}

grpc::Status JobsService::GetCurves(grpc::ServerContext*, const v1::GetCurvesRequest* request,
                                    v1::GetCurvesReply* reply) {
  return Answer(curves_.Get(*request), reply);
}

grpc::Status JobsService::ListMembers(grpc::ServerContext*, const v1::ListMembersRequest*,
                                      v1::ListMembersReply* reply) {
  reply->set_wanted_shards(parts_.wanted_shards);
  for (const v1::MemberRole role : {v1::SHARD, v1::WORKER}) {
    for (const Member& member : parts_.members->Living(role)) {
      v1::ClusterMember* const listed = reply->add_members();
      listed->set_id(member.id);
      listed->set_role(role == v1::SHARD ? "shard" : "worker");
      listed->set_name(member.name);
      listed->set_address(member.address);
      listed->set_build(member.build);
      listed->set_processor(member.processor);
      listed->set_threads(member.threads);
      listed->set_resident_bytes(member.resident_bytes);
      listed->set_last_heard_unix_ms(absl::ToUnixMillis(member.last_heard));
    }
  }
  return grpc::Status::OK;
}

grpc::Status JobsService::StartSweep(grpc::ServerContext* context, const v1::StartSweepRequest* request,
                                     v1::Sweep* reply) {
  return SubmitFor(CallerOf(*context), *request, reply);
}

grpc::Status JobsService::GetSweep(grpc::ServerContext*, const v1::SweepRequest* request, v1::Sweep* reply) {
  return Answer(parts_.sweeps->Get(request->sweep_id()), reply);
}

grpc::Status JobsService::ListSweeps(grpc::ServerContext*, const v1::ListSweepsRequest*, v1::ListSweepsReply* reply) {
  for (v1::Sweep& sweep : parts_.sweeps->List()) *reply->add_sweeps() = std::move(sweep);
  return grpc::Status::OK;
}

grpc::Status JobsService::CancelSweep(grpc::ServerContext*, const v1::SweepRequest* request, v1::Sweep* reply) {
  return Answer(parts_.sweeps->Cancel(request->sweep_id()), reply);
}

grpc::Status JobsService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* reply) {
  return Answer(parts_.book->Get(request->job_id()), reply);
}

grpc::Status JobsService::CancelJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(parts_.queue->Cancel(request->job_id()), reply);
}

grpc::Status JobsService::PauseJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(parts_.queue->Pause(request->job_id()), reply);
}

grpc::Status JobsService::ResumeJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(parts_.queue->Resume(request->job_id()), reply);
}

grpc::Status JobsService::DeleteJob(grpc::ServerContext*, const v1::JobRequest* request, v1::DeleteJobReply*) {
  return ToGrpc(parts_.queue->Delete(request->job_id()));
}

grpc::Status JobsService::WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                                   grpc::ServerWriter<v1::JobEvent>* writer) {
  if (const absl::Status checked = CheckKinds(*request); !checked.ok()) return ToGrpc(checked);
  uint64_t after = request->after_sequence();
  for (;;) {
    if (const absl::Status allowed = StillAllowed(*context); !allowed.ok()) return ToGrpc(allowed);
    // The state before the events: if it has ended by now, its last event is among those read next.
    const absl::StatusOr<v1::Job> job = parts_.book->Get(request->job_id());
    if (!job.ok()) return ToGrpc(job.status());
    const absl::StatusOr<std::vector<v1::JobEvent>> events = parts_.book->Read(request->job_id(), after, kEventsARead);
    if (!events.ok()) return ToGrpc(events.status());
    for (const v1::JobEvent& event : *events) {
      after = event.sequence();
      if (IsWanted(*request, event) && !writer->Write(event))
        return ToGrpc(absl::CancelledError("the watcher has gone"));
    }
    if (!events->empty()) continue;
    if (HasEnded(job->state()) || request->until_now()) return grpc::Status::OK;
    if (context->IsCancelled()) return ToGrpc(absl::CancelledError("the watcher has gone"));
    if (closed_) return ToGrpc(absl::UnavailableError("the coordinator is shutting down"));
    parts_.book->AwaitEvent(request->job_id(), after, absl::Now() + kLookUp);
  }
}

grpc::Status JobsService::ListCheckpoints(grpc::ServerContext*, const v1::JobRequest* request,
                                          v1::ListCheckpointsReply* reply) {
  const absl::StatusOr<v1::Job> job = parts_.book->Get(request->job_id());
  if (!job.ok()) return ToGrpc(job.status());
  const CheckpointShelf shelf(JobDirectory(parts_.directory, job->id()));
  const std::vector<ShelfEntry> entries = shelf.List();
  const ShelfEntry* const best = Best(entries);
  for (const ShelfEntry& entry : entries) {
    v1::Checkpoint* const checkpoint = reply->add_checkpoints();
    checkpoint->set_phase(entry.manifest.phase);
    checkpoint->set_step(entry.manifest.step);
    checkpoint->set_directory(entry.directory);
    checkpoint->set_digest(entry.manifest.digest);
    checkpoint->set_best(&entry == best);
    checkpoint->set_last(&entry == &entries.back());
    if (entry.manifest.evaluation() != nullptr) checkpoint->set_held_out_loss(entry.manifest.evaluation()->loss);
    checkpoint->set_bytes(entry.manifest.bytes());
  }
  return grpc::Status::OK;
}

grpc::Status JobsService::FetchCheckpoint(grpc::ServerContext* context, const v1::FetchCheckpointRequest* request,
                                          grpc::ServerWriter<v1::FileChunk>* writer) {
  const absl::StatusOr<v1::Job> job = parts_.book->Get(request->job_id());
  if (!job.ok()) return ToGrpc(job.status());
  const CheckpointShelf shelf(JobDirectory(parts_.directory, job->id()));
  const absl::StatusOr<ShelfEntry> entry = shelf.Find(request->which());
  if (!entry.ok()) return ToGrpc(Annotate(entry.status(), absl::StrCat("job ", job->id())));
  std::vector<std::unique_ptr<OpenFile>> files;
  const auto add = [&](const std::string& name) -> absl::Status {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<OpenFile> file, OpenFile::Open(entry->directory, name));
    files.push_back(std::move(file));
    return absl::OkStatus();
  };
  for (const CheckpointManifest::FileSum& file : entry->manifest.files) {
    if (file.name == kOptimizerFile && !request->with_optimizer()) continue;
    if (const absl::Status added = add(file.name); !added.ok()) return ToGrpc(added);
  }
  if (const absl::Status added = add(kManifestFile); !added.ok()) return ToGrpc(added);
  for (const std::unique_ptr<OpenFile>& file : files) {
    uint64_t offset = 0;
    do {
      v1::FileChunk chunk;
      chunk.set_name(file->name());
      chunk.set_size(file->size());
      chunk.set_offset(offset);
      const size_t size = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, file->size() - offset));
      if (const absl::Status read = file->Read(offset, size, chunk.mutable_data()); !read.ok()) return ToGrpc(read);
      chunk.set_crc32c(Crc32c(chunk.data().data(), chunk.data().size()));
      offset += size;
      if (const absl::Status allowed = StillAllowed(*context); !allowed.ok()) return ToGrpc(allowed);
      if (context->IsCancelled() || !writer->Write(chunk)) {
        return ToGrpc(absl::CancelledError("the reader has gone"));
      }
      if (closed_) return ToGrpc(absl::UnavailableError("the coordinator is shutting down"));
    } while (offset < file->size());
  }
  return grpc::Status::OK;
}

}  // namespace millrace::coordinator
