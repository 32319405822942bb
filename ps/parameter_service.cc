#include "ps/parameter_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/checksum.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/machine.h"
#include "common/status.h"

namespace millrace::ps {
namespace {

absl::Status Superseded(uint64_t epoch) {
  return absl::FailedPreconditionError(absl::StrCat("epoch ", epoch, " has begun: what belongs to older ones is gone"));
}

absl::Status Closed() { return absl::UnavailableError("the shard is shutting down"); }

absl::Status Gone() { return absl::CancelledError("the caller gave up"); }

// A gauge that counts while it lives.
class Waiting {
 public:
  explicit Waiting(prometheus::Gauge* gauge) : gauge_(gauge) { gauge_->Increment(); }
  ~Waiting() { gauge_->Decrement(); }

 private:
  prometheus::Gauge* const gauge_;
};

void Count(const ShardMetrics::Traffic& traffic, size_t bytes) {
  traffic.blocks->Increment();
  traffic.bytes->Increment(static_cast<double>(bytes));
}

}  // namespace

ParameterService::ParameterService(int threads, ShardMetrics* metrics)
    : compute_(kernels::DetectIsa(), threads), metrics_(metrics), attachments_(metrics->attachments) {}

ParameterService::~ParameterService() { Close(); }

void ParameterService::Close() {
  Store store;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    store = std::move(store_);
  }
  if (store != nullptr) store->Close(Closed());
  attachments_.Close();
}

ParameterService::Store ParameterService::BeginEpoch(uint64_t epoch) {
  epoch_ = epoch;
  configuration_.clear();
  metrics_->epoch->Set(static_cast<double>(epoch));
  metrics_->parameters->Set(0);
  metrics_->version->Set(0);
  return std::move(store_);
}

void ParameterService::Announce(uint64_t epoch) {
  Store old;
  {
    absl::MutexLock lock(&mutex_);
    if (epoch <= epoch_) return;
    old = BeginEpoch(epoch);
  }
  if (old != nullptr) old->Close(Superseded(epoch));
}

bool ParameterService::HasWhatItShould() const {
  absl::ReaderMutexLock lock(&mutex_);
  return store_ == nullptr || store_->ready();
}

absl::StatusOr<ParameterService::Store> ParameterService::Find(uint64_t epoch) const {
  absl::ReaderMutexLock lock(&mutex_);
  return FindLocked(epoch);
}

absl::StatusOr<ParameterService::Store> ParameterService::FindLocked(uint64_t epoch) const {
  if (closed_) return Closed();
  if (epoch != epoch_) {
    return absl::FailedPreconditionError(
        epoch_ == 0 ? absl::StrCat("a call of epoch ", epoch, ": the shard has not been configured yet")
                    : absl::StrCat("a call of epoch ", epoch, "; the present one is ", epoch_));
  }
  if (store_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("the shard has not been configured for epoch ", epoch, " yet"));
  }
  return store_;
}

grpc::Status ParameterService::Ended(const char* call, const absl::Status& status) {
  if (!status.ok() && !absl::IsCancelled(status)) {
    metrics_->refused->Increment();
    Log(Severity::kInfo, "refused", {{"call", call}, {"error", std::string(status.message())}});
  }
  return ToGrpc(status);
}

// ---- configuration and loading ----

grpc::Status ParameterService::Configure(grpc::ServerContext*, const v1::ConfigureRequest* request,
                                         v1::ConfigureReply* reply) {
  return Ended("Configure", DoConfigure(*request, reply));
}

absl::Status ParameterService::DoConfigure(const v1::ConfigureRequest& request, v1::ConfigureReply* reply) {
  const uint64_t epoch = request.epoch();
  if (epoch == 0) return absl::InvalidArgumentError("epoch 0; epochs are numbered from 1");
  const std::string configuration = Sha256Hex(request.SerializeAsString());
  absl::MutexLock configuring(&configure_mutex_);
  Store old;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return Closed();
    if (epoch < epoch_) {
      return absl::FailedPreconditionError(absl::StrCat("epoch ", epoch, " is over: epoch ", epoch_,
                                                        " has begun; start the shard anew for a coordinator "
                                                        "that counts from the beginning"));
    }
    if (epoch == epoch_ && store_ != nullptr) {
      if (configuration != configuration_) {
        return absl::FailedPreconditionError(
            absl::StrCat("epoch ", epoch, " was configured otherwise; another configuration needs another epoch"));
      }
      reply->set_blocks(store_->blocks());
      reply->set_parameters(store_->parameters());
      return absl::OkStatus();
    }
    old = BeginEpoch(epoch);
  }
  // Before the new one takes memory.
  if (old != nullptr) old->Close(Superseded(epoch));
  old.reset();
  MILLRACE_ASSIGN_OR_RETURN(Store made, BlockStore::Create(request, &compute_));
  absl::MutexLock lock(&mutex_);
  if (closed_) return Closed();
  if (epoch_ != epoch) return Superseded(epoch_);
  reply->set_blocks(made->blocks());
  reply->set_parameters(made->parameters());
  metrics_->parameters->Set(static_cast<double>(made->parameters()));
  Log(Severity::kInfo, "configured",
      {{"epoch", epoch},
       {"job", request.job_id()},
       {"phase", request.phase()},
       {"shard", request.shard_index()},
       {"shards", request.shard_count()},
       {"blocks", made->blocks()},
       {"parameters", made->parameters()}});
  store_ = std::move(made);
  configuration_ = configuration;
  shard_index_ = request.shard_index();
  return absl::OkStatus();
}

grpc::Status ParameterService::Load(grpc::ServerContext* context, grpc::ServerReader<v1::LoadRequest>* stream,
                                    v1::LoadReply* reply) {
  return Ended("Load", DoLoad(stream, reply));
}

absl::Status ParameterService::DoLoad(grpc::ServerReader<v1::LoadRequest>* stream, v1::LoadReply* reply) {
  v1::LoadRequest request;
  Store store;
  while (stream->Read(&request)) {
    MILLRACE_ASSIGN_OR_RETURN(store, Find(request.epoch()));
    MILLRACE_RETURN_IF_ERROR(store->Load(request));
    Count(metrics_->load, request.weights().size() + request.state().size());
  }
  if (store == nullptr) {
    absl::ReaderMutexLock lock(&mutex_);
    MILLRACE_ASSIGN_OR_RETURN(store, FindLocked(epoch_));
  }
  reply->set_blocks_loaded(store->loaded());
  reply->set_complete(store->ready());
  reply->set_version(store->version());
  metrics_->version->Set(static_cast<double>(reply->version()));
  return absl::OkStatus();
}

// ---- pulls and pushes ----

grpc::Status ParameterService::Pull(grpc::ServerContext* context, const v1::PullRequest* request,
                                    grpc::ServerWriter<v1::PullReply>* stream) {
  return Ended("Pull", DoPull(context, *request, stream));
}

absl::StatusOr<ParameterService::Store> ParameterService::AwaitVersion(const v1::PullRequest& request,
                                                                       absl::FunctionRef<bool()> cancelled,
                                                                       std::vector<uint32_t>* blocks) {
  MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.epoch()));
  blocks->assign(request.blocks().begin(), request.blocks().end());
  MILLRACE_RETURN_IF_ERROR(store->CheckHeld(*blocks));
  if (blocks->empty()) *blocks = store->held();
  const Waiting waiting(metrics_->waiting_pulls);
  MILLRACE_RETURN_IF_ERROR(store->AwaitVersion(request.version(), cancelled));
  return store;
}

absl::Status ParameterService::DoPull(grpc::ServerContext* context, const v1::PullRequest& request,
                                      grpc::ServerWriter<v1::PullReply>* stream) {
  const absl::Time begun = absl::Now();
  std::vector<uint32_t> blocks;
  MILLRACE_ASSIGN_OR_RETURN(const Store store, AwaitVersion(
                                                   request, [context] { return context->IsCancelled(); }, &blocks));
  v1::PullReply reply;
  for (const uint32_t block : blocks) {
    reply.set_block(block);
    std::string* const weights = reply.mutable_weights();
    weights->resize(store->PulledBytes(block));
    MILLRACE_RETURN_IF_ERROR(store->Pull(block, request.version(), weights->data(), reply.mutable_coding()));
    reply.set_crc32c(Crc32c(weights->data(), weights->size()));
    if (!stream->Write(reply)) return Gone();
    Count(metrics_->pull, weights->size());
  }
  metrics_->pull_duration->Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  return absl::OkStatus();
}

grpc::Status ParameterService::Push(grpc::ServerContext* context, grpc::ServerReader<v1::PushRequest>* stream,
                                    v1::PushReply* reply) {
  return Ended("Push", DoPush(stream, reply));
}

void ParameterService::CountPush(const v1::PushRequest& request, size_t bytes, bool added, v1::PushReply* reply) {
  Count(metrics_->push, bytes);
  if (added) {
    reply->set_blocks_added(reply->blocks_added() + 1);
    metrics_->saturated->Increment(static_cast<double>(request.saturated()));
  } else {
    reply->set_blocks_repeated(reply->blocks_repeated() + 1);
    metrics_->repeated->Increment();
  }
}

absl::Status ParameterService::DoPush(grpc::ServerReader<v1::PushRequest>* stream, v1::PushReply* reply) {
  v1::PushRequest request;
  while (stream->Read(&request)) {
    MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.epoch()));
    MILLRACE_ASSIGN_OR_RETURN(const bool added, store->Push(request));
    CountPush(request, request.values().size(), added, reply);
  }
  return absl::OkStatus();
}

// ---- through shared memory ----

grpc::Status ParameterService::Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                                      grpc::ServerWriter<v1::AttachReply>* stream) {
  const auto serve = [this](blocks::SharedPlane* plane, KeepWaiting goes_on) { return ServeShared(plane, goes_on); };
  absl::Status served = attachments_.Serve(context, *request, stream, serve);
  if (absl::IsCancelled(served)) {
    // The worker is gone, or it was Close.
    absl::ReaderMutexLock lock(&mutex_);
    if (closed_) served = Closed();
  }
  return Ended("Attach", served);
}

absl::Status ParameterService::ServeShared(blocks::SharedPlane* plane, KeepWaiting goes_on) {
  v1::SharedRequest request;
  v1::PushReply pushed;
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const SharedRing::Frame frame, plane->to_shard()->Next(goes_on));
    if (!request.ParseFromArray(frame.about.data(), static_cast<int>(frame.about.size()))) {
      return absl::InvalidArgumentError("a frame in shared memory is no SharedRequest");
    }
    switch (request.request_case()) {
      case v1::SharedRequest::kPull: {
        v1::PullRequest pull = request.pull();
        const auto* const blocks = reinterpret_cast<const uint32_t*>(frame.values.data());
        pull.mutable_blocks()->Add(blocks, blocks + frame.values.size() / sizeof(uint32_t));
        plane->to_shard()->Release();
        MILLRACE_RETURN_IF_ERROR(PullShared(pull, plane, goes_on));
        break;
      }
      case v1::SharedRequest::kPush: {
        MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.push().epoch()));
        MILLRACE_ASSIGN_OR_RETURN(const bool added, store->Push(request.push(), frame.values));
        CountPush(request.push(), frame.values.size(), added, &pushed);
        plane->to_shard()->Release();
        break;
      }
      case v1::SharedRequest::kPushed:
        plane->to_shard()->Release();
        MILLRACE_RETURN_IF_ERROR(plane->to_worker()->Reserve(0, goes_on).status());
        plane->to_worker()->Commit(pushed.SerializeAsString());
        pushed.Clear();
        break;
      default:
        return absl::InvalidArgumentError("a SharedRequest without a request");
    }
  }
}

absl::Status ParameterService::PullShared(const v1::PullRequest& request, blocks::SharedPlane* plane,
                                          KeepWaiting goes_on) {
  const absl::Time begun = absl::Now();
  std::vector<uint32_t> blocks;
  const auto cancelled = [&] { return !goes_on(); };
  MILLRACE_ASSIGN_OR_RETURN(const Store store, AwaitVersion(request, cancelled, &blocks));
  v1::PullReply reply;
  for (size_t i = 0; i < blocks.size(); ++i) {
    reply.set_block(blocks[i]);
    const size_t size = store->PulledBytes(blocks[i]);
    MILLRACE_ASSIGN_OR_RETURN(char* const weights, plane->to_worker()->Reserve(size, goes_on));
    MILLRACE_RETURN_IF_ERROR(store->Pull(blocks[i], request.version(), weights, reply.mutable_coding()));
    plane->to_worker()->Commit(reply.SerializeAsString(), /*more=*/i + 1 < blocks.size());
    Count(metrics_->pull, size);
  }
  metrics_->pull_duration->Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  return absl::OkStatus();
}

// ---- steps ----

grpc::Status ParameterService::Norms(grpc::ServerContext*, const v1::NormsRequest* request, v1::NormsReply* reply) {
  return Ended("Norms", DoNorms(*request, reply));
}

absl::Status ParameterService::DoNorms(const v1::NormsRequest& request, v1::NormsReply* reply) {
  MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.epoch()));
  const absl::Time begun = absl::Now();
  MILLRACE_RETURN_IF_ERROR(store->Norms(request, reply));
  metrics_->norms_duration->Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  return absl::OkStatus();
}

grpc::Status ParameterService::Commit(grpc::ServerContext*, const v1::CommitRequest* request, v1::CommitReply* reply) {
  return Ended("Commit", DoCommit(*request, reply));
}

absl::Status ParameterService::DoCommit(const v1::CommitRequest& request, v1::CommitReply* reply) {
  MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.epoch()));
  const absl::Time begun = absl::Now();
  bool applied = false;
  MILLRACE_ASSIGN_OR_RETURN(*reply, store->Commit(request, &applied));
  metrics_->copy_bytes->Set(static_cast<double>(store->copy_bytes()));
  if (!applied) return absl::OkStatus();
  metrics_->commit_duration->Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  metrics_->version->Set(static_cast<double>(reply->version()));
  return absl::OkStatus();
}

// ---- snapshots and status ----

grpc::Status ParameterService::Snapshot(grpc::ServerContext* context, const v1::SnapshotRequest* request,
                                        grpc::ServerWriter<v1::SnapshotReply>* stream) {
  return Ended("Snapshot", DoSnapshot(*request, stream));
}

absl::Status ParameterService::DoSnapshot(const v1::SnapshotRequest& request,
                                          grpc::ServerWriter<v1::SnapshotReply>* stream) {
  MILLRACE_ASSIGN_OR_RETURN(const Store store, Find(request.epoch()));
  const absl::Time begun = absl::Now();
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Cuts::Cut> cut, store->Hold(request.version(), request.left_out()));
  v1::SnapshotReply reply;
  reply.set_cut(true);
  if (!stream->Write(reply)) return Gone();
  reply.Clear();
  for (const uint32_t block : store->held()) {
    if (cut->LeavesOut(block)) continue;
    MILLRACE_RETURN_IF_ERROR(store->Read(cut.get(), block, &reply));
    metrics_->copy_bytes->Set(static_cast<double>(store->copy_bytes()));
    reply.set_crc32c(
        Crc32c(reply.state().data(), reply.state().size(), Crc32c(reply.weights().data(), reply.weights().size())));
    if (!stream->Write(reply)) return Gone();
    Count(metrics_->snapshot, reply.weights().size() + reply.state().size());
  }
  metrics_->snapshot_duration->Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  return absl::OkStatus();
}

grpc::Status ParameterService::GetStatus(grpc::ServerContext*, const v1::ShardStatusRequest*, v1::ShardStatus* reply) {
  Store store;
  {
    absl::ReaderMutexLock lock(&mutex_);
    reply->set_epoch(epoch_);
    store = store_;
    if (store != nullptr) reply->set_shard_index(shard_index_);
  }
  reply->set_resident_bytes(ResidentBytes());
  if (store == nullptr) return grpc::Status::OK;
  reply->set_version(store->version());
  reply->set_ready(store->ready());
  reply->set_parameters(store->parameters());
  return grpc::Status::OK;
}

}  // namespace millrace::ps
