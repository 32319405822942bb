// Blocks through gRPC, as a cluster's processes connect, against a plain socket, all over the loopback interface; and
// the same with TLS where each end shows a certificate. Blocks through shared memory against a copy in memory.
#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/processes.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "blocks/shared_plane.h"
#include "client/shard_group.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/status.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace millrace::bench {
namespace {

constexpr size_t kBytes = 64 << 20;
constexpr size_t kBlockBytes = 256 << 10;
constexpr double kGoal = 0.4;
constexpr double kSharedGoal = 0.7;

// Sends and takes blocks, and keeps none.
class Blocks final : public v1::ParameterServer::Service {
 public:
  grpc::Status Pull(grpc::ServerContext*, const v1::PullRequest*, grpc::ServerWriter<v1::PullReply>* stream) override {
    v1::PullReply reply;
    for (size_t sent = 0; sent < kBytes; sent += kBlockBytes) {
      reply.set_block(static_cast<uint32_t>(sent / kBlockBytes));
      reply.set_weights(block_);
      if (!stream->Write(reply)) break;
    }
    return grpc::Status::OK;
  }
  grpc::Status Push(grpc::ServerContext*, grpc::ServerReader<v1::PushRequest>* stream, v1::PushReply* reply) override {
    v1::PushRequest request;
    uint64_t added = 0;
    while (stream->Read(&request)) ++added;
    reply->set_blocks_added(added);
    return grpc::Status::OK;
  }

 private:
  const std::string block_ = std::string(kBlockBytes, 'b');
};

// Two ends of a connection.
class SocketPair {
 public:
  SocketPair() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    good_ = bind(listener, generic, size) == 0 && listen(listener, 1) == 0 &&
            getsockname(listener, generic, &size) == 0 && connect(from_, generic, size) == 0;
    if (good_) to_ = accept(listener, nullptr, nullptr);
    close(listener);
    const int yes = 1;
    setsockopt(from_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  }
  ~SocketPair() {
    close(from_);
    if (to_ >= 0) close(to_);
  }
  bool good() const { return good_ && to_ >= 0; }

  // The same bytes, in as large pieces.
  void Move() {
    std::thread sender([this] {
      for (size_t sent = 0; sent < kBytes;) {
        const size_t offset = sent % kBlockBytes;
        const ssize_t count = write(from_, out_.data() + offset, kBlockBytes - offset);
        if (count <= 0) return;
        sent += static_cast<size_t>(count);
      }
    });
    for (size_t received = 0; received < kBytes;) {
      const ssize_t count = read(to_, in_.data(), in_.size());
      if (count <= 0) break;
      received += static_cast<size_t>(count);
    }
    sender.join();
  }

 private:
  const int from_ = socket(AF_INET, SOCK_STREAM, 0);
  int to_ = -1;
  bool good_ = false;
  std::vector<char> out_ = std::vector<char>(kBlockBytes, 'b');
  std::vector<char> in_ = std::vector<char>(kBlockBytes);
};

// Memory that a shard and a worker share, each with a mapping of its own.
class SharedBlocks {
 public:
  SharedBlocks() {
    absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> worker = blocks::SharedPlane::Create();
    if (!worker.ok()) return;
    worker_ = *std::move(worker);
    absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> shard =
        blocks::SharedPlane::Open(worker_->name(), worker_->WorkersDigest());
    if (shard.ok()) shard_ = *std::move(shard);
  }
  bool good() const { return shard_ != nullptr; }

  // The same bytes from memory of the one to memory of the other.
  void Move() {
    const auto always = [] { return true; };
    std::thread sender([&] {
      for (size_t sent = 0; sent < kBytes; sent += kBlockBytes) {
        std::memcpy(*worker_->to_shard()->Reserve(kBlockBytes, always), from_.data() + sent, kBlockBytes);
        worker_->to_shard()->Commit("a block");
      }
    });
    for (size_t received = 0; received < kBytes; received += kBlockBytes) {
      std::memcpy(to_.data() + received, shard_->to_shard()->Next(always)->values.data(), kBlockBytes);
      shard_->to_shard()->Release();
    }
    sender.join();
  }
  void Copy() { std::memcpy(to_.data(), from_.data(), kBytes); }

 private:
  std::unique_ptr<blocks::SharedPlane> worker_, shard_;
  const std::vector<char> from_ = std::vector<char>(kBytes, 'b');
  std::vector<char> to_ = std::vector<char>(kBytes);
};

// A shard that sends and takes blocks, and a worker's connection to it.
class Connection {
 public:
  // Plain without certificates.
  static absl::StatusOr<std::unique_ptr<Connection>> Make(const Certificates* certificates) {
    auto made = std::make_unique<Connection>();
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&made->service_};
    if (certificates != nullptr) options.credentials = certificates->ForServer();
    MILLRACE_ASSIGN_OR_RETURN(made->server_, GrpcServer::Start(options));
    made->stub_ = v1::ParameterServer::NewStub(
        NewChannel(made->server_->address(), certificates != nullptr ? certificates->ForClient() : nullptr));
    return made;
  }

  void Pull() {
    grpc::ClientContext context;
    const auto stream = stub_->Pull(&context, {});
    v1::PullReply reply;
    size_t received = 0;
    while (stream->Read(&reply)) received += reply.weights().size();
    good_ &= stream->Finish().ok() && received == kBytes;
  }
  void Push() {
    grpc::ClientContext context;
    v1::PushReply reply;
    const auto stream = stub_->Push(&context, &reply);
    v1::PushRequest request;
    for (size_t sent = 0; sent < kBytes; sent += kBlockBytes) {
      request.set_values(block_);
      good_ &= stream->Write(request);
    }
    stream->WritesDone();
    good_ &= stream->Finish().ok() && reply.blocks_added() == kBytes / kBlockBytes;
  }
  bool good() const { return good_; }

 private:
  Blocks service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::ParameterServer::Stub> stub_;
  const std::string block_ = std::string(kBlockBytes, 'b');
  bool good_ = true;
};

// A worker's calls to a real shard, in a process of its own, with 64 MB of weights: through memory that they share.
class SharedShard {
 public:
  static absl::StatusOr<std::unique_ptr<SharedShard>> Make(const Machine& machine, const std::string& folder) {
    // As a worker does; but here all of a push is made before, and would be given back to the kernel within it.
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 4 * kBytes);
    auto made = std::make_unique<SharedShard>();
    MILLRACE_ASSIGN_OR_RETURN(
        made->coordinator_, StartRole({machine.program, "coordinator", "--dir", folder}, "coordinator", folder, true));
    MILLRACE_ASSIGN_OR_RETURN(
        made->shard_,
        StartRole({machine.program, "ps", "--coordinator", made->coordinator_.address}, "shard", folder, true));
    MILLRACE_RETURN_IF_ERROR(made->Load());
    return made;
  }

  absl::Status Pull() {
    return group_->Pull(0, [this](uint32_t block, absl::string_view weights, const blocks::Coding&) {
      std::memcpy(pulled_.data() + size_t{block} * kBlockBytes, weights.data(), weights.size());
      return absl::OkStatus();
    });
  }
  // Seconds that two units' gradients take, from when they are coded in 16 bits. What the shard has had before it takes
  // in, but does not add.
  absl::StatusOr<double> Push(bool again) {
    std::vector<std::string> values(2 * blocks_->blocks().size(), std::string(kBlockBytes / 2, '\1'));
    const absl::Time begun = absl::Now();
    auto value = values.begin();
    for (int i = 0; i < 2; ++i) {
      const std::unique_ptr<client::GradientPush> push = group_->Push(0, again ? 0 : unit_++);
      for (uint32_t block = 0; block < blocks_->blocks().size(); ++block) {
        MILLRACE_RETURN_IF_ERROR(push->Add(block, kCoding, *std::move(value++), 0));
      }
      MILLRACE_RETURN_IF_ERROR(push->Finish());
    }
    return absl::ToDoubleSeconds(absl::Now() - begun);
  }

 private:
  static constexpr blocks::Coding kCoding = {16, -20};

  absl::Status Load() {
    v1::ConfigureRequest configure;
    v1::Tensor& tensor = *configure.mutable_table()->add_tensors();
    tensor.set_name("weight");
    tensor.add_shape(kBytes / sizeof(float) / 1024);
    tensor.add_shape(1024);
    tensor.set_trainable(true);
    tensor.set_role(v1::Tensor::MATRIX);
    MILLRACE_ASSIGN_OR_RETURN(blocks::BlockTable table, blocks::BlockTable::Create(configure.table()));
    blocks_.emplace(std::move(table));
    MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(kModels[0], "none", kernels::Precision::kF32, 1, 1));
    *configure.mutable_optimizer() = job.phases(0).optimizer();
    configure.set_max_steps(1);
    configure.set_units_per_step(1000);
    group_ = std::make_unique<client::ShardGroup>(1, std::vector<std::string>{shard_.address}, /*share_memory=*/true);
    group_->Place(&*blocks_, configure.optimizer());
    MILLRACE_RETURN_IF_ERROR(group_->Configure(configure));
    return group_->Load(0, [](uint32_t, v1::LoadRequest* request) {
      request->set_weights(std::string(kBlockBytes, '\1'));
      *request->mutable_coding() = blocks::CodingToProto(kCoding);
      return absl::OkStatus();
    });
  }

  Role coordinator_, shard_;
  std::optional<blocks::BlockTable> blocks_;
  std::unique_ptr<client::ShardGroup> group_;
  std::vector<char> pulled_ = std::vector<char>(kBytes);
  uint32_t unit_ = 0;
};

}  // namespace

absl::Status BenchTransport(const Machine& machine, Report* report) {
  const TemporaryFolder folder;
  MILLRACE_ASSIGN_OR_RETURN(const Certificates certificates, Certificates::Make(folder.path()));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> plain, Connection::Make(nullptr));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> mutual, Connection::Make(&certificates));
  SocketPair sockets;
  if (!sockets.good()) return absl::UnavailableError("no connection over the loopback interface");
  const std::vector<double> seconds =
      SecondsOfEach({[&] { plain->Pull(); }, [&] { plain->Push(); }, [&] { mutual->Pull(); }, [&] { mutual->Push(); },
                     [&] { sockets.Move(); }},
                    0.2);
  if (!plain->good() || !mutual->good()) return absl::UnavailableError("a call failed");
  std::vector<double> rates;  // GB/s
  for (const double taken : seconds) rates.push_back(static_cast<double>(kBytes) / taken / 1e9);
  report->Add({"transport/pull", rates[0], "GB/s", rates[4], kGoal});
  report->Add({"transport/push", rates[1], "GB/s", rates[4], kGoal});
  report->Add({"transport/pull/mtls", rates[2], "GB/s", rates[0]});
  report->Add({"transport/push/mtls", rates[3], "GB/s", rates[1]});
  SharedBlocks shared;
  if (!shared.good()) {
    report->Absent("transport/shared-memory", "the kernel shares no memory");
    return absl::OkStatus();
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<SharedShard> shard, SharedShard::Make(machine, folder.path()));
  absl::Status called;
  std::vector<double> added, again;
  const auto push = [&](std::vector<double>* all) {
    const absl::StatusOr<double> seconds = shard->Push(all == &again);
    if (seconds.ok()) all->push_back(*seconds);
    called.Update(seconds.status());
  };
  const std::vector<double> taken =
      SecondsOfEach({[&] { shared.Move(); }, [&] { shared.Copy(); }, [&] { called.Update(shard->Pull()); },
                     [&] { push(&added); }, [&] { push(&again); }},
                    0.2);
  MILLRACE_RETURN_IF_ERROR(called);
  const double copied = static_cast<double>(kBytes) / taken[1] / 1e9;
  report->Add({"transport/shared-memory", static_cast<double>(kBytes) / taken[0] / 1e9, "GB/s", copied, kSharedGoal});
  report->Add(
      {"transport/pull/shared-memory", static_cast<double>(kBytes) / taken[2] / 1e9, "GB/s", copied, kSharedGoal});
  report->Add(
      {"transport/push/shared-memory", static_cast<double>(kBytes) / Median(again) / 1e9, "GB/s", copied, kSharedGoal});
  report->Add(
      {"transport/push/shared-memory/added", static_cast<double>(kBytes) / Median(added) / 1e9, "GB/s", copied});
  return absl::OkStatus();
}

}  // namespace millrace::bench
