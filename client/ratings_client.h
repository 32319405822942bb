// Calls the coordinator about rating sets.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/grpc_channel.h"
#include "proto/millrace/v1/ratings.pb.h"

namespace millrace::client {

// One connection to a coordinator. Thread-safe. Calls fail with UNAVAILABLE naming the address when nobody answers
// there within `patience`.
class RatingsClient {
 public:
  explicit RatingsClient(Endpoint coordinator, absl::Duration patience = absl::Seconds(10));
  ~RatingsClient();
  RatingsClient(const RatingsClient&) = delete;
  RatingsClient& operator=(const RatingsClient&) = delete;

  // Makes a set of set.id, title and raters; OK if it is there with the same content, ALREADY_EXISTS if with another.
  absl::StatusOr<v1::RatingSet> CreateRatingSet(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs);
  absl::StatusOr<v1::ListRatingSetsReply> ListRatingSets();
  // Gives the lines of examples to `sink` in pieces, in order.
  absl::StatusOr<v1::ExportCounts> ExportRatings(absl::string_view set_id,
                                                 absl::FunctionRef<absl::Status(absl::string_view lines)> sink);

 private:
  struct Impl;
  const std::string address_;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::client
