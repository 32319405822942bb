#include "coordinator/ratings_service.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/access.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "coordinator/rating_examples.h"

namespace millrace::coordinator {

grpc::Status RatingsService::CreateRatingSet(grpc::ServerContext* context,
                                             grpc::ServerReader<v1::CreateRatingSetRequest>* reader,
                                             v1::RatingSet* reply) {
  v1::RatingSet set;
  std::vector<v1::RatingPair> pairs;
  size_t bytes = 0;
  v1::CreateRatingSetRequest request;
  for (bool first = true; reader->Read(&request); first = false) {
    if (const absl::Status allowed = StillAllowed(*context); !allowed.ok()) return ToGrpc(allowed);
    if (first != request.has_set()) {
      return ToGrpc(absl::InvalidArgumentError("the set belongs into the first message, and only there"));
    }
    if (first) set = request.set();
    bytes += request.ByteSizeLong();
    // What Create would refuse need not be gathered first.
    if (bytes > 2 * kMaxRatingSetBytes || pairs.size() + request.pairs().size() > kMaxRatingPairs) {
      return ToGrpc(absl::InvalidArgumentError(absl::StrCat("a set has at most ", kMaxRatingPairs, " pairs and ",
                                                            kMaxRatingSetBytes, " bytes of text: make two of it")));
    }
    for (v1::RatingPair& pair : *request.mutable_pairs()) pairs.push_back(std::move(pair));
  }
  if (const absl::Status created = store_->Create(set, pairs); !created.ok()) return ToGrpc(created);
  const absl::StatusOr<v1::RatingSet> stored = store_->Get(set.id());
  if (!stored.ok()) return ToGrpc(stored.status());
  *reply = *stored;
  return grpc::Status::OK;
}

grpc::Status RatingsService::ListRatingSets(grpc::ServerContext*, const v1::ListRatingSetsRequest*,
                                            v1::ListRatingSetsReply* reply) {
  absl::StatusOr<std::vector<v1::RatingSet>> sets = store_->List();
  if (!sets.ok()) return ToGrpc(sets.status());
  for (v1::RatingSet& set : *sets) *reply->add_sets() = std::move(set);
  reply->set_http_address(http_address_);
  return grpc::Status::OK;
}

grpc::Status RatingsService::ExportRatings(grpc::ServerContext* context, const v1::ExportRatingsRequest* request,
                                           grpc::ServerWriter<v1::ExportRatingsReply>* writer) {
  const auto write = [context, writer](absl::string_view lines) -> absl::Status {
    MILLRACE_RETURN_IF_ERROR(StillAllowed(*context));
    v1::ExportRatingsReply reply;
    reply.set_lines(std::string(lines));
    return writer->Write(reply) ? absl::OkStatus() : absl::CancelledError("the reader has gone");
  };
  const absl::StatusOr<v1::ExportCounts> counts = ExportExamples(store_, request->set_id(), write);
  if (!counts.ok()) return ToGrpc(counts.status());
  v1::ExportRatingsReply last;
  *last.mutable_counts() = *counts;
  return ToGrpc(writer->Write(last) ? absl::OkStatus() : absl::CancelledError("the reader has gone"));
}

}  // namespace millrace::coordinator
