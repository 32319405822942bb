// Answers the rating page's requests (docs/ratings.md has them all).
//
//   GET  /api/v1/ratings/sets                       {"sets": [SET, …]}
//   GET  /api/v1/ratings/state?set=ID&rater=NAME    STATE
//   POST /api/v1/ratings/rate                       STATE, once the rating is on the disk
//   POST /api/v1/ratings/undo                       STATE, asking for the pair again
//   GET  /api/v1/ratings/agreement?set=ID           {"method": "Cohen's" | "Fleiss'", "kappa": number | null, "items":
//   N,
//                                                    "raters": [{"rater", "rated", "skipped", "flagged", "compared",
//                                                                "equal"}, …]}
// coordinator/rating_json.h has the bodies. SET is {"id", "title", "raters", "pairs", "done", "ratings"}; STATE is
//   {"set": SET, "rater": NAME, "rated": N, "left": N, "last": pair | null,
//    "pair": null | {"pair": N, "prompt": [{"role", "content"}, …], "left": text, "right": text}}
// An error is {"error": {"message": text}} with status 400, 401, 404, 405, 409, 411, 413, 415, 500 or 503.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/http_server.h"
#include "coordinator/rating_store.h"

namespace millrace::coordinator {

// A note of the greatest length with every byte written as \u0000, and the rest.
inline constexpr size_t kMaxRatingBodyBytes = 32 << 10;

// Reads the secret that requests must bring: 16 to 256 letters, digits, '-' and '_', so that it can stand in a link.
// INVALID_ARGUMENT naming the file otherwise.
absl::StatusOr<std::string> ReadHttpToken(const std::string& path);

// Thread-safe.
class RatingsHttp {
 public:
  // `store` must outlive this. `token`: what "Authorization: Bearer" must bring for the API; empty: everybody may call.
  // `now`: the time that ratings are noted with.
  RatingsHttp(RatingStore* store, std::string token, absl::Time (*now)())
      : store_(store), token_(std::move(token)), now_(now) {}

  HttpResponse Answer(const HttpRequest& request) const;
  // An answer with the headers that guard a page: nothing from elsewhere, nothing inline, nobody may frame it.
  static HttpResponse Reply(int status, absl::string_view content_type, absl::string_view body);
  // HTTP's status for an error.
  static int StatusOf(const absl::Status& status);
  // The error as JSON.
  static HttpResponse Refuse(int status, absl::string_view why);

 private:
  absl::StatusOr<std::string> AnswerApi(const HttpRequest& request) const;
  absl::StatusOr<std::string> Sets() const;
  // `asked`: the pair to show, instead of the next one.
  absl::StatusOr<std::string> StateOf(const std::string& set_id, const std::string& rater,
                                      std::optional<uint64_t> asked = std::nullopt) const;
  absl::StatusOr<std::string> Rate(const HttpRequest& request) const;
  absl::StatusOr<std::string> Undo(const HttpRequest& request) const;
  absl::StatusOr<std::string> AgreementOfSet(const std::string& set_id) const;

  RatingStore* const store_;
  const std::string token_;
  absl::Time (*const now_)();
};

}  // namespace millrace::coordinator
