// Serves users: rating sets and what became of them.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "coordinator/rating_store.h"
#include "proto/millrace/v1/ratings.grpc.pb.h"

namespace millrace::coordinator {

class RatingsService : public v1::Ratings::Service {
 public:
  // `store` must outlive the server; `http_address`: where the page is served, empty for nowhere.
  RatingsService(RatingStore* store, std::string http_address)
      : store_(store), http_address_(std::move(http_address)) {}

  grpc::Status CreateRatingSet(grpc::ServerContext*, grpc::ServerReader<v1::CreateRatingSetRequest>*,
                               v1::RatingSet*) override;
  grpc::Status ListRatingSets(grpc::ServerContext*, const v1::ListRatingSetsRequest*,
                              v1::ListRatingSetsReply*) override;
  grpc::Status ExportRatings(grpc::ServerContext*, const v1::ExportRatingsRequest*,
                             grpc::ServerWriter<v1::ExportRatingsReply>*) override;

 private:
  RatingStore* const store_;
  const std::string http_address_;
};

}  // namespace millrace::coordinator
