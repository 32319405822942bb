#include "client/coordinator_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/no_coordinator.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"

namespace millrace::client {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(60);
constexpr absl::Duration kShortestDelay = absl::Milliseconds(50);
constexpr absl::Duration kLongestDelay = absl::Seconds(2);
// How often a wait that cannot be woken looks whether it is still wanted.
constexpr absl::Duration kLook = absl::Milliseconds(100);
// How long a call that does not wait for its connection does so under TLS. A handshake goes on only while somebody
// waits for it, and a call that fails at once leaves it half made; it would be given up before the next call.
constexpr absl::Duration kHandshake = absl::Seconds(2);
// A stream that lasted so long was a living one, even if nothing came.
constexpr absl::Duration kLiving = absl::Seconds(1);
// How long a first Join waits for a member of its name to be found dead.
constexpr absl::Duration kNamePatience = absl::Seconds(20);

std::chrono::system_clock::time_point Deadline(absl::Duration from_now) {
  return absl::ToChronoTime(absl::Now() + from_now);
}

}  // namespace

// ---- CoordinatorClient ----

struct CoordinatorClient::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Jobs::Stub> jobs;
  std::unique_ptr<v1::Cluster::Stub> cluster;
  bool encrypted = false;
  absl::Duration patience;
  absl::Mutex mutex;
  std::set<grpc::ClientContext*> waiting ABSL_GUARDED_BY(mutex);   // NextWork calls in flight
  std::set<grpc::ClientContext*> watching ABSL_GUARDED_BY(mutex);  // WatchJob calls in flight
  bool watching_ended ABSL_GUARDED_BY(mutex) = false;

  // One WatchJob call; moves the request on to the last event given to `each`. Sets `alive` to the last time at which
  // the coordinator was there: it sent an event, or the call had lasted for some time when it broke.
  absl::Status Watch(const std::string& address, v1::WatchJobRequest* request,
                     absl::FunctionRef<bool(const v1::JobEvent&)> each, absl::Time* alive);

  bool WatchingEnded() {
    absl::MutexLock lock(&mutex);
    return watching_ended;
  }

  // `interruptible`: returns CANCELLED soon after InterruptWatching.
  absl::Status Connect(const std::string& address, bool interruptible = false) {
    if (channel->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY) return absl::OkStatus();
    const absl::Time deadline = absl::Now() + patience;
    // Nothing but its deadline ends a wait for a connection: it is cut into short ones.
    do {
      if (interruptible && WatchingEnded()) return absl::CancelledError("no longer watched");
      if (channel->WaitForConnected(absl::ToChronoTime(std::min(deadline, absl::Now() + kLook)))) {
        return absl::OkStatus();
      }
      if (const std::string trouble = HandshakeTrouble(channel); !trouble.empty()) return NotTrusted(address, trouble);
    } while (absl::Now() < deadline);
    return NoCoordinator(address, patience);
  }
};

CoordinatorClient::CoordinatorClient(Endpoint coordinator, absl::Duration patience)
    : address_(coordinator.address), impl_(std::make_unique<Impl>()) {
  impl_->channel = NewChannel(coordinator);
  impl_->encrypted = coordinator.credentials != nullptr;
  impl_->jobs = v1::Jobs::NewStub(impl_->channel);
  impl_->cluster = v1::Cluster::NewStub(impl_->channel);
  impl_->patience = patience;
}

CoordinatorClient::~CoordinatorClient() = default;

namespace {

// One unary call of the Jobs service.
template <typename Reply, typename Impl, typename Request, typename Method>
absl::StatusOr<Reply> Call(Impl* impl, const std::string& address, Method method, const Request& request) {
  MILLRACE_RETURN_IF_ERROR(impl->Connect(address));
  grpc::ClientContext context;
  context.set_deadline(Deadline(kCallDeadline));
  Reply reply;
  const absl::Status status = FromGrpc((impl->jobs.get()->*method)(&context, request, &reply));
  if (absl::IsUnavailable(status)) return Annotate(status, absl::StrCat("coordinator ", address));
  MILLRACE_RETURN_IF_ERROR(status);
  return reply;
}

v1::SweepRequest ForSweep(absl::string_view sweep_id) {
  v1::SweepRequest request;
  request.set_sweep_id(std::string(sweep_id));
  return request;
}

v1::JobRequest ForJob(absl::string_view job_id) {
  v1::JobRequest request;
  request.set_job_id(std::string(job_id));
  return request;
}

}  // namespace

absl::StatusOr<v1::Job> CoordinatorClient::SubmitJob(const v1::SubmitJobRequest& request) {
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::SubmitJob, request);
}

absl::StatusOr<std::vector<v1::Job>> CoordinatorClient::ListJobs(v1::ListJobsRequest request, size_t limit) {
  std::vector<v1::Job> jobs;
  request.set_page_size(static_cast<uint32_t>(std::min<size_t>(limit, 1000)));
  do {
    MILLRACE_ASSIGN_OR_RETURN(v1::ListJobsReply reply,
                              (Call<v1::ListJobsReply>(impl_.get(), address_, &v1::Jobs::Stub::ListJobs, request)));
    for (v1::Job& job : *reply.mutable_jobs()) {
      if (jobs.size() < limit) jobs.push_back(std::move(job));
    }
    request.set_page_token(reply.next_page_token());
  } while (!request.page_token().empty() && jobs.size() < limit);
  return jobs;
}

absl::StatusOr<v1::Job> CoordinatorClient::UpdateJob(const v1::UpdateJobRequest& request) {
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::UpdateJob, request);
}

absl::StatusOr<v1::GetCurvesReply> CoordinatorClient::GetCurves(const v1::GetCurvesRequest& request) {
  return Call<v1::GetCurvesReply>(impl_.get(), address_, &v1::Jobs::Stub::GetCurves, request);
}

absl::StatusOr<v1::ListMembersReply> CoordinatorClient::ListMembers() {
  return Call<v1::ListMembersReply>(impl_.get(), address_, &v1::Jobs::Stub::ListMembers, v1::ListMembersRequest());
}

absl::StatusOr<v1::Sweep> CoordinatorClient::StartSweep(const v1::StartSweepRequest& request) {
  return Call<v1::Sweep>(impl_.get(), address_, &v1::Jobs::Stub::StartSweep, request);
}

absl::StatusOr<v1::Sweep> CoordinatorClient::GetSweep(absl::string_view sweep_id) {
  return Call<v1::Sweep>(impl_.get(), address_, &v1::Jobs::Stub::GetSweep, ForSweep(sweep_id));
}

absl::StatusOr<std::vector<v1::Sweep>> CoordinatorClient::ListSweeps() {
  MILLRACE_ASSIGN_OR_RETURN(
      v1::ListSweepsReply reply,
      (Call<v1::ListSweepsReply>(impl_.get(), address_, &v1::Jobs::Stub::ListSweeps, v1::ListSweepsRequest())));
  return std::vector<v1::Sweep>(std::make_move_iterator(reply.mutable_sweeps()->begin()),
                                std::make_move_iterator(reply.mutable_sweeps()->end()));
}

absl::StatusOr<v1::Sweep> CoordinatorClient::CancelSweep(absl::string_view sweep_id) {
  return Call<v1::Sweep>(impl_.get(), address_, &v1::Jobs::Stub::CancelSweep, ForSweep(sweep_id));
}

absl::StatusOr<v1::Job> CoordinatorClient::GetJob(absl::string_view job_id) {
  v1::GetJobRequest request;
  request.set_job_id(std::string(job_id));
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::GetJob, request);
}

absl::StatusOr<v1::Job> CoordinatorClient::CancelJob(absl::string_view job_id) {
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::CancelJob, ForJob(job_id));
}

absl::StatusOr<v1::Job> CoordinatorClient::PauseJob(absl::string_view job_id) {
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::PauseJob, ForJob(job_id));
}

absl::StatusOr<v1::Job> CoordinatorClient::ResumeJob(absl::string_view job_id) {
  return Call<v1::Job>(impl_.get(), address_, &v1::Jobs::Stub::ResumeJob, ForJob(job_id));
}

absl::Status CoordinatorClient::DeleteJob(absl::string_view job_id) {
  return Call<v1::DeleteJobReply>(impl_.get(), address_, &v1::Jobs::Stub::DeleteJob, ForJob(job_id)).status();
}

absl::Status CoordinatorClient::Impl::Watch(const std::string& address, v1::WatchJobRequest* request,
                                            absl::FunctionRef<bool(const v1::JobEvent&)> each, absl::Time* alive) {
  MILLRACE_RETURN_IF_ERROR(Connect(address, /*interruptible=*/true));
  const absl::Time connected = absl::Now();
  grpc::ClientContext context;
  {
    absl::MutexLock lock(&mutex);
    if (watching_ended) return absl::CancelledError("no longer watched");
    watching.insert(&context);
  }
  const std::unique_ptr<grpc::ClientReader<v1::JobEvent>> stream = jobs->WatchJob(&context, *request);
  v1::JobEvent event;
  bool wanted = true;
  while (wanted && stream->Read(&event)) {
    *alive = absl::Now();
    if (event.sequence() <= request->after_sequence()) continue;
    request->set_after_sequence(event.sequence());
    wanted = each(event);
  }
  if (!wanted) context.TryCancel();
  while (stream->Read(&event)) {
  }
  const absl::Status status = FromGrpc(stream->Finish());
  if (absl::Now() - connected > std::min(patience, kLiving)) *alive = absl::Now();
  absl::MutexLock lock(&mutex);
  watching.erase(&context);
  if (!wanted) return absl::OkStatus();
  if (watching_ended && !status.ok()) return absl::CancelledError("no longer watched");
  return absl::IsUnavailable(status) ? Annotate(status, absl::StrCat("coordinator ", address)) : status;
}

absl::Status CoordinatorClient::WatchJob(absl::string_view job_id, uint64_t after_sequence,
                                         absl::FunctionRef<bool(const v1::JobEvent&)> each) {
  v1::WatchJobRequest request;
  request.set_job_id(std::string(job_id));
  request.set_after_sequence(after_sequence);
  absl::Time alive = absl::Now();
  absl::Duration delay = kShortestDelay;
  for (;;) {
    const absl::Time before = alive;
    const absl::Status status = impl_->Watch(address_, &request, each, &alive);
    if (!absl::IsUnavailable(status) || absl::Now() - alive > impl_->patience) return status;
    if (alive > before) delay = kShortestDelay;
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->mutex.AwaitWithTimeout(absl::Condition(&impl_->watching_ended), delay)) {
      return absl::CancelledError("no longer watched");
    }
    delay = std::min(2 * delay, kLongestDelay);
  }
}

absl::Status CoordinatorClient::ReadEvents(absl::string_view job_id, uint64_t after_sequence,
                                           absl::FunctionRef<bool(const v1::JobEvent&)> each) {
  v1::WatchJobRequest request;
  request.set_job_id(std::string(job_id));
  request.set_after_sequence(after_sequence);
  request.set_until_now(true);
  absl::Time alive;
  return impl_->Watch(address_, &request, each, &alive);
}

void CoordinatorClient::InterruptWatching() {
  absl::MutexLock lock(&impl_->mutex);
  impl_->watching_ended = true;
  for (grpc::ClientContext* const context : impl_->watching) context->TryCancel();
}

absl::StatusOr<std::vector<v1::Checkpoint>> CoordinatorClient::ListCheckpoints(absl::string_view job_id) {
  MILLRACE_ASSIGN_OR_RETURN(
      v1::ListCheckpointsReply reply,
      (Call<v1::ListCheckpointsReply>(impl_.get(), address_, &v1::Jobs::Stub::ListCheckpoints, ForJob(job_id))));
  return std::vector<v1::Checkpoint>(std::make_move_iterator(reply.mutable_checkpoints()->begin()),
                                     std::make_move_iterator(reply.mutable_checkpoints()->end()));
}

namespace {

// Writes the chunks of a checkpoint into a new folder, which is removed again unless kept.
class ChunkFolder {
 public:
  explicit ChunkFolder(std::filesystem::path directory) : directory_(std::move(directory)) {}
  ~ChunkFolder() {
    if (file_ != nullptr) std::fclose(file_);
    std::error_code ignored;
    if (made_) std::filesystem::remove_all(directory_, ignored);
    if (kept_) return;
    for (const std::filesystem::path& parent : made_parents_) std::filesystem::remove(parent, ignored);  // if empty
  }

  absl::Status Make() {
    std::error_code error;
    for (std::filesystem::path parent = directory_.parent_path(); !std::filesystem::exists(parent, error) && !error;
         parent = parent.parent_path()) {
      made_parents_.push_back(parent);
    }
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory_.parent_path().string()));
    if (!std::filesystem::create_directory(directory_, error)) {
      return error ? ErrnoStatus(error.value(), "make", directory_.string())
                   : absl::AlreadyExistsError(absl::StrCat(
                         directory_.string(), " exists already; remove it if no other fetch is writing it"));
    }
    made_ = true;
    return absl::OkStatus();
  }

  absl::Status Add(const v1::FileChunk& chunk) {
    if (file_ == nullptr || chunk.name() != name_) {
      MILLRACE_RETURN_IF_ERROR(Close());
      const bool plain = !chunk.name().empty() && chunk.name().size() <= 128 && chunk.name()[0] != '.' &&
                         chunk.name().find('/') == std::string::npos && chunk.name().find('\0') == std::string::npos;
      if (!plain || !names_.insert(chunk.name()).second) {
        return absl::DataLossError("the coordinator sent a file name that no checkpoint has");
      }
      name_ = chunk.name();
      size_ = chunk.size();
      written_ = 0;
      file_ = std::fopen((directory_ / name_).c_str(), "wbx");
      if (file_ == nullptr) return Failed("make");
    }
    if (chunk.offset() != written_ || chunk.size() != size_ || chunk.data().size() > size_ - written_) {
      return absl::DataLossError(
          absl::StrCat(name_, ": chunk at ", chunk.offset(), " where ", written_, " of ", size_, " bytes are there"));
    }
    if (Crc32c(chunk.data().data(), chunk.data().size()) != chunk.crc32c()) {
      return absl::DataLossError(absl::StrCat(name_, ": the chunk at ", chunk.offset(), " was damaged on its way"));
    }
    if (std::fwrite(chunk.data().data(), 1, chunk.data().size(), file_) != chunk.data().size()) return Failed("write");
    written_ += chunk.data().size();
    return absl::OkStatus();
  }

  absl::Status Close() {
    if (file_ == nullptr) return absl::OkStatus();
    if (written_ != size_) {
      return absl::DataLossError(absl::StrCat(name_, ": ", written_, " of ", size_, " bytes came"));
    }
    const bool written = std::fflush(file_) == 0 && fsync(fileno(file_)) == 0;
    if (!written) return Failed("write");
    return std::fclose(std::exchange(file_, nullptr)) != 0 ? Failed("write") : absl::OkStatus();
  }

  absl::Status MoveTo(const std::string& directory) {
    MILLRACE_RETURN_IF_ERROR(Close());
    if (names_.empty()) return absl::DataLossError("the coordinator sent no files");
    MILLRACE_RETURN_IF_ERROR(SyncPath(directory_.string()));
    std::error_code error;
    std::filesystem::rename(directory_, directory, error);
    if (error) return ErrnoStatus(error.value(), "make", directory);
    made_ = false;
    kept_ = true;
    return SyncPath(directory_.parent_path().string());
  }

 private:
  absl::Status Failed(absl::string_view what) { return ErrnoStatus(errno, what, (directory_ / name_).string()); }

  const std::filesystem::path directory_;
  bool made_ = false, kept_ = false;
  std::vector<std::filesystem::path> made_parents_;  // the deepest first
  std::set<std::string> names_;
  std::string name_;
  uint64_t size_ = 0, written_ = 0;
  std::FILE* file_ = nullptr;
};

}  // namespace

absl::Status CoordinatorClient::FetchCheckpoint(absl::string_view job_id, absl::string_view which, bool with_optimizer,
                                                const std::string& directory) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(directory, error))) {
    return absl::AlreadyExistsError(absl::StrCat(directory, " exists already; choose a new folder"));
  }
  MILLRACE_RETURN_IF_ERROR(impl_->Connect(address_));
  std::filesystem::path final_path = std::filesystem::absolute(directory).lexically_normal();
  if (final_path.filename().empty()) final_path = final_path.parent_path();  // "DIR/"
  ChunkFolder folder(final_path.string() + ".fetching");
  MILLRACE_RETURN_IF_ERROR(folder.Make());
  v1::FetchCheckpointRequest request;
  request.set_job_id(std::string(job_id));
  request.set_which(std::string(which));
  request.set_with_optimizer(with_optimizer);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReader<v1::FileChunk>> stream = impl_->jobs->FetchCheckpoint(&context, request);
  v1::FileChunk chunk;
  absl::Status status;
  while (status.ok() && stream->Read(&chunk)) status = folder.Add(chunk);
  if (!status.ok()) context.TryCancel();
  while (stream->Read(&chunk)) {
  }
  const absl::Status finished = FromGrpc(stream->Finish());
  MILLRACE_RETURN_IF_ERROR(Annotate(status, "fetching a checkpoint"));
  if (absl::IsUnavailable(finished)) return Annotate(finished, absl::StrCat("coordinator ", address_));
  MILLRACE_RETURN_IF_ERROR(finished);
  return Annotate(folder.MoveTo(final_path.string()), "fetching a checkpoint");
}

absl::StatusOr<v1::NextWorkReply> CoordinatorClient::NextWork(const v1::NextWorkRequest& request) {
  if (impl_->encrypted) impl_->channel->WaitForConnected(Deadline(kHandshake));
  grpc::ClientContext context;
  context.set_deadline(Deadline(absl::Milliseconds(request.wait_ms()) + kCallDeadline));
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->waiting.insert(&context);
  }
  v1::NextWorkReply reply;
  const absl::Status status = FromGrpc(impl_->cluster->NextWork(&context, request, &reply));
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->waiting.erase(&context);
  }
  MILLRACE_RETURN_IF_ERROR(Annotate(status, absl::StrCat("coordinator ", address_)));
  return reply;
}

void CoordinatorClient::InterruptNextWork() {
  absl::MutexLock lock(&impl_->mutex);
  for (grpc::ClientContext* const context : impl_->waiting) context->TryCancel();
}

// ---- Membership ----

struct Membership::Impl {
  Options options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Cluster::Stub> stub;
  std::thread thread;

  mutable absl::Mutex mutex;
  std::string member_id ABSL_GUARDED_BY(mutex);
  absl::Status status ABSL_GUARDED_BY(mutex);
  bool ended ABSL_GUARDED_BY(mutex) = false;  // for good: `status` says why
  bool leaving ABSL_GUARDED_BY(mutex) = false;
  bool broken ABSL_GUARDED_BY(mutex) = false;                  // the present stream's end was seen
  grpc::ClientContext* call ABSL_GUARDED_BY(mutex) = nullptr;  // to be cancelled on leaving
  mutable absl::CondVar changed ABSL_GUARDED_BY(mutex);

  void Run();
  absl::StatusOr<v1::JoinReply> JoinOnce();
  void Attend(const v1::JoinReply& joined);
  void End(const absl::Status& why) {
    absl::MutexLock lock(&mutex);
    ended = true;
    status = why;
    changed.SignalAll();
  }
  // Waits for `time` unless leaving.
  bool Pause(absl::Duration time) {
    absl::MutexLock lock(&mutex);
    const absl::Time until = absl::Now() + time;
    while (!leaving && !changed.WaitWithDeadline(&mutex, until)) {
    }
    return !leaving;
  }
};

absl::StatusOr<v1::JoinReply> Membership::Impl::JoinOnce() {
  if (options.coordinator.credentials != nullptr) channel->WaitForConnected(Deadline(kHandshake));
  grpc::ClientContext context;
  context.set_deadline(Deadline(absl::Seconds(5)));
  {
    absl::MutexLock lock(&mutex);
    if (leaving) return absl::CancelledError("leaving");
    call = &context;
  }
  v1::JoinReply reply;
  const absl::Status joined = FromGrpc(stub->Join(&context, options.join, &reply));
  absl::MutexLock lock(&mutex);
  call = nullptr;
  if (!joined.ok()) return joined;
  return reply;
}

void Membership::Impl::Run() {
  absl::Duration delay = kShortestDelay;
  const absl::Time started = absl::Now();
  bool ever_joined = false;
  std::string trouble;
  for (;;) {
    const absl::StatusOr<v1::JoinReply> joined = JoinOnce();
    if (joined.ok()) {
      ever_joined = true;
      delay = kShortestDelay;
      Attend(*joined);
    } else if (absl::IsPermissionDenied(joined.status()) || absl::IsInvalidArgument(joined.status()) ||
               absl::IsUnauthenticated(joined.status()) ||
               (absl::IsAlreadyExists(joined.status()) && !ever_joined && absl::Now() - started > kNamePatience)) {
      return End(Annotate(joined.status(), absl::StrCat("coordinator ", options.coordinator.address)));
    }
    if (!joined.ok() && options.coordinator.credentials != nullptr && trouble != joined.status().message()) {
      // Without TLS there is but one reason: it is not there yet.
      trouble = std::string(joined.status().message());
      Log(Severity::kWarning, "cannot join", {{"coordinator", options.coordinator.address}, {"error", trouble}});
    }
    if (!Pause(delay)) return End(absl::CancelledError("left"));
    delay = std::min(2 * delay, kLongestDelay);
  }
}

void Membership::Impl::Attend(const v1::JoinReply& joined) {
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::Heartbeat, v1::Notice>> stream = stub->Attend(&context);
  {
    absl::MutexLock lock(&mutex);
    call = &context;
    broken = false;
    if (leaving) context.TryCancel();
    member_id = joined.member_id();
    changed.SignalAll();
  }
  std::thread reader([&] {
    v1::Notice notice;
    while (stream->Read(&notice)) {
      if (notice.epoch() > 0 && options.on_epoch) options.on_epoch(notice.epoch());
      if (notice.leave() && options.on_leave) options.on_leave();
    }
    absl::MutexLock lock(&mutex);
    broken = true;
    changed.SignalAll();
  });
  const absl::Duration heartbeat = absl::Milliseconds(std::clamp<uint32_t>(joined.heartbeat_ms(), 10, 60000));
  for (;;) {
    v1::Heartbeat beat;
    beat.set_member_id(joined.member_id());
    if (options.resident_bytes) beat.set_resident_bytes(options.resident_bytes());
    if (!stream->Write(beat)) break;
    absl::MutexLock lock(&mutex);
    const absl::Time next = absl::Now() + heartbeat;
    while (!leaving && !broken && !changed.WaitWithDeadline(&mutex, next)) {
    }
    if (leaving || broken) break;
  }
  bool polite;
  {
    absl::MutexLock lock(&mutex);
    polite = leaving && !broken;
  }
  if (polite) {
    // The coordinator ends the stream when it has read this; the destructor cancels after a moment if it does not.
    stream->WritesDone();
    absl::MutexLock lock(&mutex);
    const absl::Time until = absl::Now() + absl::Seconds(1);
    while (!broken && !changed.WaitWithDeadline(&mutex, until)) {
    }
  }
  context.TryCancel();
  reader.join();
  stream->Finish();
  absl::MutexLock lock(&mutex);
  call = nullptr;
  member_id.clear();
  changed.SignalAll();
}

Membership::Membership(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<Membership>> Membership::Join(Options options, const absl::Notification* stop) {
  auto impl = std::make_unique<Impl>();
  impl->channel = NewChannel(options.coordinator);
  impl->stub = v1::Cluster::NewStub(impl->channel);
  impl->options = std::move(options);
  Impl* const inside = impl.get();
  std::unique_ptr<Membership> membership(new Membership(std::move(impl)));
  inside->thread = std::thread([inside] { inside->Run(); });
  absl::MutexLock lock(&inside->mutex);
  for (;;) {
    if (!inside->member_id.empty()) return membership;
    if (inside->ended) return inside->status;
    // Only who is no member yet may go without a word.
    if (stop != nullptr && stop->HasBeenNotified()) break;
    // A Notification cannot wake a CondVar: look at it now and then, while there is no coordinator.
    inside->changed.WaitWithTimeout(&inside->mutex, absl::Milliseconds(50));
  }
  return absl::CancelledError(
      absl::StrCat("stopped before a coordinator answered at ", inside->options.coordinator.address));
}

Membership::~Membership() {
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->leaving = true;
    // A Join in flight is cut short; an open stream is ended politely by Attend.
    if (impl_->call != nullptr && impl_->member_id.empty()) impl_->call->TryCancel();
    impl_->changed.SignalAll();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
}

absl::Status Membership::AwaitRelease(absl::Duration grace) {
  v1::NextWorkRequest request;
  request.set_member_id(member_id());
  request.set_drain(true);
  grpc::ClientContext context;
  context.set_deadline(Deadline(grace));
  v1::NextWorkReply reply;
  // By the connection that stands: a new one might have to find the coordinator first.
  return FromGrpc(impl_->stub->NextWork(&context, request, &reply));
}

std::string Membership::member_id() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->member_id;
}

std::string Membership::AwaitNewId(absl::string_view previous, absl::Duration timeout) const {
  absl::MutexLock lock(&impl_->mutex);
  const absl::Time deadline = absl::Now() + timeout;
  while ((impl_->member_id.empty() || impl_->member_id == previous) && !impl_->ended &&
         !impl_->changed.WaitWithDeadline(&impl_->mutex, deadline)) {
  }
  return impl_->member_id;
}

absl::Status Membership::status() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->status;
}

}  // namespace millrace::client
