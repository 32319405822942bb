#include "client/ratings_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/no_coordinator.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "proto/millrace/v1/ratings.grpc.pb.h"

namespace millrace::client {
namespace {

// A set of the largest size takes a minute or so.
constexpr absl::Duration kCallDeadline = absl::Minutes(10);
constexpr size_t kMessageBytes = 1 << 20;
// How often a wait for a connection looks whether there is trouble with it.
constexpr absl::Duration kLook = absl::Milliseconds(100);

}  // namespace

struct RatingsClient::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Ratings::Stub> stub;
  absl::Duration patience;

  absl::Status Connect(const std::string& address) const {
    const absl::Time deadline = absl::Now() + patience;
    do {
      if (channel->WaitForConnected(absl::ToChronoTime(std::min(deadline, absl::Now() + kLook)))) {
        return absl::OkStatus();
      }
      if (const std::string trouble = HandshakeTrouble(channel); !trouble.empty()) return NotTrusted(address, trouble);
    } while (absl::Now() < deadline);
    return NoCoordinator(address, patience);
  }
};

RatingsClient::RatingsClient(Endpoint coordinator, absl::Duration patience)
    : address_(coordinator.address), impl_(std::make_unique<Impl>()) {
  impl_->channel = NewChannel(coordinator);
  impl_->stub = v1::Ratings::NewStub(impl_->channel);
  impl_->patience = patience;
}

RatingsClient::~RatingsClient() = default;

absl::StatusOr<v1::RatingSet> RatingsClient::CreateRatingSet(const v1::RatingSet& set,
                                                             absl::Span<const v1::RatingPair> pairs) {
  MILLRACE_RETURN_IF_ERROR(impl_->Connect(address_));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  v1::RatingSet stored;
  const std::unique_ptr<grpc::ClientWriter<v1::CreateRatingSetRequest>> writer =
      impl_->stub->CreateRatingSet(&context, &stored);
  v1::CreateRatingSetRequest request;
  *request.mutable_set() = set;
  size_t bytes = 0;
  bool taken = true;
  for (const v1::RatingPair& pair : pairs) {
    *request.add_pairs() = pair;
    bytes += pair.ByteSizeLong();
    if (bytes < kMessageBytes) continue;
    // What went wrong is what Finish says.
    taken = writer->Write(request);
    if (!taken) break;
    request.Clear();
    bytes = 0;
  }
  if (taken && (request.has_set() || request.pairs_size() > 0)) writer->Write(request);
  writer->WritesDone();
  const absl::Status status = FromGrpc(writer->Finish());
  if (absl::IsUnavailable(status)) return Annotate(status, absl::StrCat("coordinator ", address_));
  MILLRACE_RETURN_IF_ERROR(status);
  return stored;
}

absl::StatusOr<v1::ListRatingSetsReply> RatingsClient::ListRatingSets() {
  MILLRACE_RETURN_IF_ERROR(impl_->Connect(address_));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  v1::ListRatingSetsReply reply;
  const absl::Status status = FromGrpc(impl_->stub->ListRatingSets(&context, v1::ListRatingSetsRequest(), &reply));
  if (absl::IsUnavailable(status)) return Annotate(status, absl::StrCat("coordinator ", address_));
  MILLRACE_RETURN_IF_ERROR(status);
  return reply;
}

absl::StatusOr<v1::ExportCounts> RatingsClient::ExportRatings(
    absl::string_view set_id, absl::FunctionRef<absl::Status(absl::string_view lines)> sink) {
  MILLRACE_RETURN_IF_ERROR(impl_->Connect(address_));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  v1::ExportRatingsRequest request;
  request.set_set_id(std::string(set_id));
  const std::unique_ptr<grpc::ClientReader<v1::ExportRatingsReply>> reader =
      impl_->stub->ExportRatings(&context, request);
  v1::ExportRatingsReply reply;
  absl::Status sunk;
  while (sunk.ok() && reader->Read(&reply)) {
    if (!reply.lines().empty()) sunk = sink(reply.lines());
  }
  if (!sunk.ok()) {
    context.TryCancel();
    reader->Finish();
    return sunk;
  }
  MILLRACE_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  if (!reply.has_counts()) return absl::DataLossError("the export ended before its end");
  return reply.counts();
}

}  // namespace millrace::client
