#include "client/shard_group.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "blocks/placement.h"
#include "blocks/shared_plane.h"
#include "common/checksum.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"

namespace millrace::client {
namespace {

// For calls that have an answer at once, or after one step of the optimizer.
constexpr absl::Duration kCallDeadline = absl::Minutes(10);
// Of the blocks that wait for a shard: with more, whoever makes them waits until half are gone; fewer are not sent yet,
// as long as others come. Blocks may be small, and waking a thread costs more than moving them.
constexpr size_t kMaxWaitingBytes = 8 << 20;
constexpr size_t kWorthSending = 256 << 10;

}  // namespace

// One shard's connection and its calls in flight.
struct ShardGroup::Shard {
  std::string address;
  ThreadCache* threads = nullptr;
  std::unique_ptr<v1::ParameterServer::Stub> stub;
  std::vector<uint32_t> blocks;     // that it holds, in the table's order
  std::vector<uint32_t> trainable;  // of these

  // A call that Cancel can reach.
  class Call {
   public:
    explicit Call(Shard* shard) : shard_(shard) {
      absl::MutexLock lock(&shard_->mutex);
      shard_->calls.insert(this);
      if (shard_->cancelled) Cancel();
    }
    ~Call() {
      absl::MutexLock lock(&shard_->mutex);
      shard_->calls.erase(this);
      shard_->kept.erase(this);
    }
    grpc::ClientContext* context() { return &context_; }
    void SetDeadline() {
      context_.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kCallDeadline));
    }
    void Cancel() {
      cancelled_ = true;
      context_.TryCancel();
    }
    bool cancelled() const { return cancelled_; }
    // While it is kept, only a Cancel for good reaches it.
    void Keep(bool kept) {
      absl::MutexLock lock(&shard_->mutex);
      if (kept) {
        shard_->kept.insert(this);
      } else {
        shard_->kept.erase(this);
      }
    }

   private:
    Shard* const shard_;
    std::atomic<bool> cancelled_ = false;
    grpc::ClientContext context_;
  };

  absl::Mutex mutex;
  bool cancelled ABSL_GUARDED_BY(mutex) = false;
  std::set<Call*> calls ABSL_GUARDED_BY(mutex);
  std::set<Call*> kept ABSL_GUARDED_BY(mutex);  // of these

  absl::Mutex attach_mutex;
  // It has said that it does not see this process' memory, or there is none to share: not asked again.
  bool apart ABSL_GUARDED_BY(attach_mutex) = false;
  std::shared_ptr<Attachment> attachment ABSL_GUARDED_BY(attach_mutex);

  void Cancel(bool for_good) {
    absl::MutexLock lock(&mutex);
    cancelled |= for_good;
    for (Call* const call : calls) {
      if (for_good || !kept.contains(call)) call->Cancel();
    }
  }
  absl::Status Status(const grpc::Status& status) const { return Named(FromGrpc(status)); }
  absl::Status Named(const absl::Status& status) const { return Annotate(status, absl::StrCat("shard ", address)); }
  absl::Status Damaged(absl::string_view what, uint32_t block) const {
    return absl::DataLossError(absl::StrCat("shard ", address, ": ", what, " of block ", block, " on its way"));
  }

  // Memory shared with the shard, made when first asked for; null if there is none.
  std::shared_ptr<Attachment> Attached();
};

namespace {

// Reads what may still come, to the end.
template <typename Message, typename Stream>
grpc::Status ReadOut(Stream* stream) {
  Message ignored;
  while (stream->Read(&ignored)) {
  }
  return stream->Finish();
}

}  // namespace

// Memory that is shared with a shard as long as a call to it lasts.
class ShardGroup::Attachment {
 public:
  // NOT_FOUND: there is no memory that the shard sees. Otherwise why the call failed.
  static absl::StatusOr<std::shared_ptr<Attachment>> Make(Shard* shard) {
    absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> plane = blocks::SharedPlane::Create();
    if (!plane.ok()) return absl::NotFoundError(plane.status().message());
    auto made = std::make_shared<Attachment>(shard, *std::move(plane));
    MILLRACE_RETURN_IF_ERROR(made->Agree(shard->threads));
    return made;
  }
  Attachment(Shard* shard, std::unique_ptr<blocks::SharedPlane> plane) : plane_(std::move(plane)), call_(shard) {
    v1::AttachRequest request;
    request.set_memory(plane_->name());
    request.set_workers_digest(plane_->WorkersDigest());
    stream_ = shard->stub->Attach(call_.context(), request);
  }
  ~Attachment() { call_.Cancel(); }

  // False once the shard is gone, or the call was cancelled.
  bool alive() const { return !ended_ && !call_.cancelled(); }

 private:
  friend class Use;

  absl::Status Agree(ThreadCache* threads) {
    v1::AttachReply reply;
    const bool answered = stream_->Read(&reply);
    watching_ = threads->Start([this] {
      status_ = ReadOut<v1::AttachReply>(stream_.get());
      ended_ = true;
      plane_->Interrupt();
    });
    if (!answered) return FromGrpc(Await());
    if (reply.shards_digest() != plane_->ShardsDigest()) {
      return absl::NotFoundError("the shard does not see this process' memory");
    }
    call_.Keep(true);
    return absl::OkStatus();
  }
  const grpc::Status& Await() {
    watching_.Join();
    return status_;
  }

  const std::unique_ptr<blocks::SharedPlane> plane_;
  Shard::Call call_;
  std::unique_ptr<grpc::ClientReader<v1::AttachReply>> stream_;
  std::atomic<bool> busy_ = false;
  std::atomic<bool> ended_ = false;
  grpc::Status status_;         // once it has ended
  ThreadCache::Work watching_;  // for the end; waited for when destroyed
};

// One pull or push through memory that is shared with a shard; there is one at a time.
class ShardGroup::Use {
 public:
  // Null while there is another.
  static std::unique_ptr<Use> Begin(std::shared_ptr<Attachment> of) {
    if (of == nullptr || of->busy_.exchange(true)) return nullptr;
    return std::unique_ptr<Use>(new Use(std::move(of)));
  }
  // Unless it came to its end, what is left in the memory is nobody's.
  ~Use() {
    if (!done_) Cancel();
    of_->call_.Keep(true);
    of_->busy_ = false;
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  // False if the attachment has ended.
  bool Write(const v1::SharedRequest& request, const void* values, size_t size, bool more) {
    SharedRing* const ring = of_->plane_->to_shard();
    const absl::StatusOr<char*> room = ring->Reserve(size, goes_on_);
    if (!room.ok() || of_->ended_) return false;
    if (size > 0) std::memcpy(*room, values, size);
    ring->Commit(request.SerializeAsString(), more);
    return true;
  }
  // The values of the next frame, good until Release, and what is said of them. CANCELLED if the attachment has ended.
  template <typename Reply>
  absl::StatusOr<absl::string_view> Read(Reply* reply) {
    MILLRACE_ASSIGN_OR_RETURN(const SharedRing::Frame frame, of_->plane_->to_worker()->Next(goes_on_));
    if (!reply->ParseFromArray(frame.about.data(), static_cast<int>(frame.about.size()))) {
      return absl::DataLossError(absl::StrCat("a frame in shared memory is no ", reply->GetTypeName()));
    }
    return frame.values;
  }
  void Release() { of_->plane_->to_worker()->Release(); }
  // It came to its end.
  void Done() { done_ = true; }
  // Ends the attachment, from any thread.
  void Cancel() { of_->call_.Cancel(); }
  // Why the attachment ended, once it has.
  const grpc::Status& Why() { return of_->Await(); }

 private:
  explicit Use(std::shared_ptr<Attachment> of) : of_(std::move(of)) { of_->call_.Keep(false); }

  const std::shared_ptr<Attachment> of_;
  const std::function<bool()> goes_on_ = [this] { return !of_->ended_; };
  bool done_ = false;
};

std::shared_ptr<ShardGroup::Attachment> ShardGroup::Shard::Attached() {
  absl::MutexLock lock(&attach_mutex);
  if (attachment != nullptr && !attachment->alive()) attachment.reset();
  if (attachment == nullptr && !apart) {
    absl::StatusOr<std::shared_ptr<Attachment>> made = Attachment::Make(this);
    if (made.ok()) attachment = *std::move(made);
    // Of another build, perhaps.
    apart = absl::IsNotFound(made.status()) || absl::IsUnimplemented(made.status());
  }
  return attachment;
}

ShardGroup::ShardGroup(uint64_t epoch, std::vector<std::string> addresses, bool share_memory,
                       const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : epoch_(epoch), addresses_(std::move(addresses)), share_memory_(share_memory) {
  for (const std::string& address : addresses_) {
    auto shard = std::make_unique<Shard>();
    shard->address = address;
    shard->threads = &threads_;
    shard->stub = v1::ParameterServer::NewStub(NewChannel(address, credentials));
    shards_.push_back(std::move(shard));
  }
}

ShardGroup::~ShardGroup() = default;

std::unique_ptr<ShardGroup::Use> ShardGroup::BeginUse(Shard* shard) const {
  return Use::Begin(share_memory_ ? shard->Attached() : nullptr);
}

void ShardGroup::Place(const blocks::BlockTable* blocks, const v1::OptimizerSpec& optimizer) {
  blocks_ = blocks;
  weight_bytes_ = blocks::WeightBits(optimizer) / 8;
  shard_of_ = blocks::PlaceBlocks(*blocks, optimizer, static_cast<uint32_t>(shards_.size()));
  for (const auto& shard : shards_) {
    shard->blocks.clear();
    shard->trainable.clear();
  }
  for (const blocks::Block& block : blocks->blocks()) {
    Shard& shard = *shards_[shard_of_[block.index]];
    shard.blocks.push_back(block.index);
    if (blocks->TensorOf(block).trainable) shard.trainable.push_back(block.index);
  }
}

void ShardGroup::Cancel() {
  for (const auto& shard : shards_) shard->Cancel(/*for_good=*/true);
}

absl::Status ShardGroup::OnEach(absl::FunctionRef<absl::Status(Shard&)> call) {
  absl::Mutex mutex;
  absl::Status first;
  const auto run = [&](Shard& shard) {
    const absl::Status status = call(shard);
    if (status.ok()) return;
    {
      absl::MutexLock lock(&mutex);
      if (!first.ok()) return;
      first = status;
    }
    for (const auto& other : shards_) other->Cancel(/*for_good=*/false);
  };
  std::vector<ThreadCache::Work> others;
  for (size_t i = 1; i < shards_.size(); ++i) {
    others.push_back(threads_.Start([&run, shard = shards_[i].get()] { run(*shard); }));
  }
  run(*shards_[0]);
  others.clear();
  return first;
}

// ---- for workers ----

absl::Status ShardGroup::Take(Shard& shard, absl::Span<const uint32_t> wanted, const v1::PullReply& reply,
                              absl::string_view weights, size_t* next, Sink sink) const {
  const uint32_t block = reply.block();
  if (*next == wanted.size() || block != wanted[*next]) {
    return absl::InternalError(absl::StrCat("shard ", shard.address, " sent block ", block, " out of order"));
  }
  ++*next;
  if (weights.size() != weight_bytes_ * static_cast<size_t>(blocks_->blocks()[block].size)) {
    return shard.Damaged("the weights were damaged", block);
  }
  const absl::StatusOr<blocks::Coding> coding = blocks::CodingFromProto(reply.coding());
  return coding.ok() ? sink(block, weights, *coding) : shard.Named(coding.status());
}

absl::Status ShardGroup::Pull(uint64_t version, Sink sink, Which which) {
  return OnEach([&](Shard& shard) -> absl::Status {
    const std::vector<uint32_t>& wanted = which == Which::kAll ? shard.blocks : shard.trainable;
    if (wanted.empty()) return absl::OkStatus();
    v1::PullRequest request;
    request.set_epoch(epoch_);
    request.set_version(version);
    if (wanted.size() < shard.blocks.size()) request.mutable_blocks()->Add(wanted.begin(), wanted.end());
    std::unique_ptr<Use> use;
    if (static_cast<size_t>(request.blocks_size()) * sizeof(uint32_t) <= SharedRing::kMostValues) {
      use = BeginUse(&shard);
    }
    size_t next = 0;
    absl::Status status = use == nullptr ? PullMessages(shard, request, wanted, &next, sink)
                                         : PullShared(shard, std::move(request), wanted, &next, use.get(), sink);
    if (status.ok() && next != wanted.size()) {
      status =
          absl::InternalError(absl::StrCat("shard ", shard.address, " sent ", next, " of ", wanted.size(), " blocks"));
    }
    return status;
  });
}

absl::Status ShardGroup::PullMessages(Shard& shard, const v1::PullRequest& request, absl::Span<const uint32_t> wanted,
                                      size_t* next, Sink sink) const {
  Shard::Call call(&shard);
  const std::unique_ptr<grpc::ClientReader<v1::PullReply>> stream = shard.stub->Pull(call.context(), request);
  v1::PullReply reply;
  absl::Status status;
  while (status.ok() && stream->Read(&reply)) {
    const std::string& weights = reply.weights();
    status = Crc32c(weights.data(), weights.size()) == reply.crc32c()
                 ? Take(shard, wanted, reply, weights, next, sink)
                 : shard.Damaged("the weights were damaged", reply.block());
  }
  if (!status.ok()) call.Cancel();
  const absl::Status finished = shard.Status(ReadOut<v1::PullReply>(stream.get()));
  return status.ok() ? finished : status;
}

absl::Status ShardGroup::PullShared(Shard& shard, v1::PullRequest request, absl::Span<const uint32_t> wanted,
                                    size_t* next, Use* use, Sink sink) const {
  // There may be more blocks than what is said of a frame has room for.
  google::protobuf::RepeatedField<uint32_t> blocks;
  blocks.Swap(request.mutable_blocks());
  v1::SharedRequest shared;
  *shared.mutable_pull() = std::move(request);
  bool goes_on =
      use->Write(shared, blocks.data(), static_cast<size_t>(blocks.size()) * sizeof(uint32_t), /*more=*/false);
  v1::PullReply reply;
  while (goes_on && *next < wanted.size()) {
    const absl::StatusOr<absl::string_view> weights = use->Read(&reply);
    goes_on = !absl::IsCancelled(weights.status());
    if (!goes_on) break;
    if (!weights.ok()) return shard.Named(weights.status());
    MILLRACE_RETURN_IF_ERROR(Take(shard, wanted, reply, *weights, next, sink));
    use->Release();
  }
  if (!goes_on) return shard.Status(use->Why());
  use->Done();
  return absl::OkStatus();
}

class ShardGroup::Pusher : public GradientPush {
 public:
  Pusher(ShardGroup* group, uint64_t version, uint32_t unit) : group_(group), version_(version), unit_(unit) {
    lanes_.resize(group->shards_.size());
  }

  ~Pusher() override {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = given_up_ = true;
      changed_.SignalAll();
    }
    for (const auto& lane : lanes_) {
      if (lane == nullptr || !lane->sending.joinable()) continue;
      lane->Cancel();
      lane->sending.Join();
    }
  }

  absl::Status Add(uint32_t block, const blocks::Coding& coding, std::string values, uint64_t saturated) override {
    const uint32_t index = group_->shard_of_[block];
    if (lanes_[index] == nullptr) {
      Shard* const shard = group_->shards_[index].get();
      lanes_[index] = std::make_unique<Lane>(shard, group_->BeginUse(shard));
      lanes_[index]->sending = group_->threads_.Start([this, lane = lanes_[index].get()] { Send(lane); });
    }
    Lane& lane = *lanes_[index];
    v1::PushRequest request;
    request.set_epoch(group_->epoch_);
    request.set_version(version_);
    request.set_unit(unit_);
    request.set_block(block);
    *request.mutable_coding() = blocks::CodingToProto(coding);
    request.set_values(std::move(values));
    request.set_saturated(saturated);
    absl::MutexLock lock(&mutex_);
    while (status_.ok() && lane.full) changed_.Wait(&mutex_);
    if (!status_.ok()) return status_;
    lane.waiting_bytes += request.values().size();
    lane.waiting.push_back(std::move(request));
    lane.full = lane.waiting_bytes > kMaxWaitingBytes;
    if (!lane.sends && lane.waiting_bytes >= kWorthSending) {
      lane.sends = true;
      changed_.SignalAll();
    }
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
      changed_.SignalAll();
    }
    for (const auto& lane : lanes_) {
      if (lane != nullptr) lane->sending.Join();
    }
    absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  struct Lane {
    Lane(Shard* shard, std::unique_ptr<Use> use) : shard(shard), call(shard), use(std::move(use)) {}
    void Cancel() {
      call.Cancel();
      if (use != nullptr) use->Cancel();
    }

    Shard* const shard;
    Shard::Call call;                // unless there is memory to use
    const std::unique_ptr<Use> use;  // null if not
    ThreadCache::Work sending;
    // Guarded by mutex_.
    std::deque<v1::PushRequest> waiting;
    size_t waiting_bytes = 0;
    bool sends = false;  // until none waits
    bool full = false;
  };

  // The next block that waits; nothing once no more are to be sent.
  std::optional<v1::PushRequest> Next(Lane* lane) {
    absl::MutexLock lock(&mutex_);
    while (!lane->sends && !ended_ && status_.ok()) changed_.Wait(&mutex_);
    if (lane->waiting.empty() || given_up_ || !status_.ok()) return std::nullopt;
    v1::PushRequest request = std::move(lane->waiting.front());
    lane->waiting.pop_front();
    lane->waiting_bytes -= request.values().size();
    lane->sends = !lane->waiting.empty();
    if (lane->full && lane->waiting_bytes <= kMaxWaitingBytes / 2) {
      lane->full = false;
      changed_.SignalAll();
    }
    return request;
  }

  // Until no more are to be sent. How the call ended, or what the shard said.
  absl::Status SendMessages(Lane* lane, uint64_t* sent, v1::PushReply* reply) {
    const std::unique_ptr<grpc::ClientWriter<v1::PushRequest>> stream =
        lane->shard->stub->Push(lane->call.context(), reply);
    while (std::optional<v1::PushRequest> request = Next(lane)) {
      ++*sent;
      request->set_crc32c(Crc32c(request->values().data(), request->values().size()));
      if (!stream->Write(*request)) break;  // Finish says why
    }
    stream->WritesDone();
    return lane->shard->Status(stream->Finish());
  }

  absl::Status SendShared(Lane* lane, uint64_t* sent, v1::PushReply* reply) {
    static_assert(blocks::kMaxBlockElements * sizeof(int64_t) <= SharedRing::kMostValues);
    v1::SharedRequest shared;
    bool goes_on = true;
    while (goes_on) {
      std::optional<v1::PushRequest> request = Next(lane);
      if (!request.has_value()) break;
      ++*sent;
      const std::string values = std::move(*request->mutable_values());
      request->clear_values();
      *shared.mutable_push() = *std::move(request);
      goes_on = lane->use->Write(shared, values.data(), values.size(), /*more=*/true);
    }
    shared.set_pushed(true);
    goes_on = goes_on && lane->use->Write(shared, nullptr, 0, /*more=*/false);
    if (goes_on) {
      const absl::Status read = lane->use->Read(reply).status();
      goes_on = !absl::IsCancelled(read);
      if (goes_on && !read.ok()) return lane->shard->Named(read);
    }
    if (!goes_on) return lane->shard->Status(lane->use->Why());
    lane->use->Release();
    lane->use->Done();
    return absl::OkStatus();
  }

  void Send(Lane* lane) {
    v1::PushReply reply;
    uint64_t sent = 0;
    absl::Status status = lane->use == nullptr ? SendMessages(lane, &sent, &reply) : SendShared(lane, &sent, &reply);
    if (status.ok() && reply.blocks_added() + reply.blocks_repeated() != sent) {
      status =
          absl::InternalError(absl::StrCat("shard ", lane->shard->address, " took ",
                                           reply.blocks_added() + reply.blocks_repeated(), " of ", sent, " blocks"));
    }
    absl::MutexLock lock(&mutex_);
    if (status_.ok() && !status.ok()) status_ = status;
    changed_.SignalAll();
  }

  ShardGroup* const group_;
  const uint64_t version_;
  const uint32_t unit_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // the caller's thread's; null until a block goes there
  absl::Mutex mutex_;
  absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

std::unique_ptr<GradientPush> ShardGroup::Push(uint64_t version, uint32_t unit) {
  return std::make_unique<Pusher>(this, version, unit);
}

absl::Status ShardGroup::Load(uint64_t version,
                              absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source) {
  return LoadBlocks(
      version, /*again=*/false, [](uint32_t) { return true; }, source);
}

absl::Status ShardGroup::Replace(uint64_t version, absl::FunctionRef<bool(uint32_t block)> which,
                                 absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source) {
  return LoadBlocks(version, /*again=*/true, which, source);
}

absl::Status ShardGroup::LoadBlocks(uint64_t version, bool again, absl::FunctionRef<bool(uint32_t block)> which,
                                    absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source) {
  return OnEach([&](Shard& shard) -> absl::Status {
    Shard::Call call(&shard);
    v1::LoadReply reply;
    const std::unique_ptr<grpc::ClientWriter<v1::LoadRequest>> stream = shard.stub->Load(call.context(), &reply);
    absl::Status filled;
    for (const uint32_t block : shard.blocks) {
      if (!which(block)) continue;
      v1::LoadRequest request;
      request.set_again(again);
      filled = source(block, &request);
      if (!filled.ok()) break;
      request.set_epoch(epoch_);
      request.set_version(version);
      request.set_block(block);
      request.set_crc32c(Crc32c(request.state().data(), request.state().size(),
                                Crc32c(request.weights().data(), request.weights().size())));
      if (!stream->Write(request)) break;
    }
    if (!filled.ok()) call.Cancel();
    stream->WritesDone();
    const absl::Status finished = shard.Status(stream->Finish());
    MILLRACE_RETURN_IF_ERROR(filled);
    MILLRACE_RETURN_IF_ERROR(finished);
    if (!reply.complete() && !shard.blocks.empty()) {
      return absl::InternalError(absl::StrCat("shard ", shard.address, " has ", reply.blocks_loaded(), " of ",
                                              shard.blocks.size(), " blocks after all were loaded"));
    }
    return absl::OkStatus();
  });
}

// ---- for the coordinator ----

absl::Status ShardGroup::Configure(const v1::ConfigureRequest& request) {
  return OnEach([&](Shard& shard) -> absl::Status {
    v1::ConfigureRequest own = request;
    own.set_epoch(epoch_);
    own.set_shard_count(static_cast<uint32_t>(shards_.size()));
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      if (shards_[i].get() == &shard) own.set_shard_index(i);
    }
    Shard::Call call(&shard);
    call.SetDeadline();
    v1::ConfigureReply reply;
    MILLRACE_RETURN_IF_ERROR(shard.Status(shard.stub->Configure(call.context(), own, &reply)));
    if (reply.blocks() != shard.blocks.size()) {
      return absl::InternalError(absl::StrCat("shard ", shard.address, " holds ", reply.blocks(), " blocks where ",
                                              shard.blocks.size(), " are placed there: another build?"));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<ShardGroup::BlockNorms> ShardGroup::Norms(v1::NormsRequest request) {
  request.set_epoch(epoch_);
  BlockNorms norms;
  norms.scores.resize(shard_of_.size());
  norms.squared.resize(shard_of_.size());
  absl::Mutex mutex;
  MILLRACE_RETURN_IF_ERROR(OnEach([&](Shard& shard) -> absl::Status {
    Shard::Call call(&shard);
    call.SetDeadline();
    v1::NormsReply reply;
    MILLRACE_RETURN_IF_ERROR(shard.Status(shard.stub->Norms(call.context(), request, &reply)));
    bool right = reply.blocks_size() == reply.squared_norms_size() &&
                 static_cast<size_t>(reply.blocks_size()) == shard.blocks.size();
    absl::MutexLock lock(&mutex);
    for (int i = 0; right && i < reply.blocks_size(); ++i) {
      right = reply.blocks(i) == shard.blocks[static_cast<size_t>(i)];
      if (right) norms.squared[reply.blocks(i)] = reply.squared_norms(i);
    }
    size_t scored = 0;
    for (const uint32_t block : shard.blocks) {
      scored += request.scores() && blocks_->ScoresOf(blocks_->blocks()[block]).count > 0 ? 1 : 0;
    }
    right = right && static_cast<size_t>(reply.scores_size()) == scored;
    for (int i = 0; right && i < reply.scores_size(); ++i) {
      const v1::BlockScores& scores = reply.scores(i);
      right = scores.block() < shard_of_.size() && shards_[shard_of_[scores.block()]].get() == &shard &&
              norms.scores[scores.block()].empty() &&
              scores.sums_size() == blocks_->ScoresOf(blocks_->blocks()[scores.block()]).count;
      if (right) norms.scores[scores.block()].assign(scores.sums().begin(), scores.sums().end());
    }
    norms.saturated += reply.saturated();
    return right ? absl::OkStatus()
                 : absl::InternalError(
                       absl::StrCat("shard ", shard.address, " sent norms or scores of other blocks than it holds"));
  }));
  return norms;
}

absl::StatusOr<double> ShardGroup::Commit(v1::CommitRequest request) {
  request.set_epoch(epoch_);
  const uint64_t version = request.version();
  double learning_rate = 0;
  MILLRACE_RETURN_IF_ERROR(OnEach([&](Shard& shard) -> absl::Status {
    Shard::Call call(&shard);
    call.SetDeadline();
    v1::CommitReply reply;
    MILLRACE_RETURN_IF_ERROR(shard.Status(shard.stub->Commit(call.context(), request, &reply)));
    if (reply.version() != version + 1) {
      return absl::InternalError(absl::StrCat("shard ", shard.address, " is at version ", reply.version(), " after ",
                                              version, " was committed"));
    }
    if (&shard == shards_[0].get()) learning_rate = reply.learning_rate();
    return absl::OkStatus();
  }));
  return learning_rate;
}

class ShardGroup::Cut : public ShardSnapshot {
 public:
  struct Stream {
    explicit Stream(Shard* shard) : shard(shard), call(shard) {}
    Shard* const shard;
    Shard::Call call;
    std::unique_ptr<grpc::ClientReader<v1::SnapshotReply>> reader;
  };
  explicit Cut(ShardGroup* group) : group_(group), streams_(group->shards_.size()) {}

  ~Cut() override {
    for (const auto& stream : streams_) {
      if (stream == nullptr || stream->reader == nullptr) continue;
      stream->call.Cancel();
      Drain(stream.get()).IgnoreError();
    }
  }

  // Waits for the first reply, which says that the version is held.
  absl::Status Open(Shard* shard, const v1::SnapshotRequest& request) {
    auto stream = std::make_unique<Stream>(shard);
    stream->reader = shard->stub->Snapshot(stream->call.context(), request);
    v1::SnapshotReply reply;
    const bool replied = stream->reader->Read(&reply);
    if (replied && reply.cut()) {
      for (size_t i = 0; i < streams_.size(); ++i) {
        if (group_->shards_[i].get() == shard) streams_[i] = std::move(stream);
      }
      return absl::OkStatus();
    }
    // A call that has ended says why.
    if (replied) stream->call.Cancel();
    const absl::Status status = Drain(stream.get());
    return status.ok() ? absl::InternalError(absl::StrCat("shard ", shard->address, " made no cut")) : status;
  }

  absl::Status Read(absl::FunctionRef<absl::Status(const v1::SnapshotReply& block)> sink) override {
    return group_->OnEach([&](Shard& shard) -> absl::Status {
      Stream* stream = nullptr;
      for (const auto& candidate : streams_) {
        if (candidate->shard == &shard) stream = candidate.get();
      }
      v1::SnapshotReply reply;
      absl::Status status;
      while (status.ok() && stream->reader->Read(&reply)) {
        const bool known = reply.block() < group_->shard_of_.size() &&
                           group_->shards_[group_->shard_of_[reply.block()]].get() == &shard;
        if (!known) {
          status = absl::InternalError(absl::StrCat("shard ", shard.address, " sent a block that it does not hold"));
        } else if (Crc32c(reply.state().data(), reply.state().size(),
                          Crc32c(reply.weights().data(), reply.weights().size())) != reply.crc32c()) {
          status = shard.Damaged("the snapshot was damaged", reply.block());
        } else {
          status = sink(reply);
        }
      }
      if (!status.ok()) stream->call.Cancel();
      const absl::Status finished = Drain(stream);
      return status.ok() ? finished : status;
    });
  }

  void Cancel() override {
    for (const auto& stream : streams_) stream->call.Cancel();
  }

 private:
  absl::Status Drain(Stream* stream) {
    v1::SnapshotReply reply;
    while (stream->reader->Read(&reply)) {
    }
    const absl::Status status = stream->shard->Status(stream->reader->Finish());
    stream->reader.reset();
    return status;
  }

  ShardGroup* const group_;
  std::vector<std::unique_ptr<Stream>> streams_;  // by shard; each its thread's while there is one
};

absl::StatusOr<std::unique_ptr<ShardSnapshot>> ShardGroup::Snapshot(uint64_t version,
                                                                    absl::Span<const uint32_t> left_out) {
  v1::SnapshotRequest request;
  request.set_epoch(epoch_);
  request.set_version(version);
  request.mutable_left_out()->Add(left_out.begin(), left_out.end());
  auto cut = std::make_unique<Cut>(this);
  MILLRACE_RETURN_IF_ERROR(OnEach([&](Shard& shard) { return cut->Open(&shard, request); }));
  return cut;
}

}  // namespace millrace::client
