#include "cli/page_address.h"

#include "absl/strings/str_cat.h"
#include "client/ratings_client.h"
#include "common/status.h"

namespace millrace::cli {

absl::StatusOr<std::string> PageAddress(const Endpoint& coordinator) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListRatingSetsReply reply, client::RatingsClient(coordinator).ListRatingSets());
  return reply.http_address().empty() ? std::string() : absl::StrCat("http://", reply.http_address(), "/");
}

}  // namespace millrace::cli
