// Keeps sets of pairs that people compare, and what they said, in one SQLite file.
//
// Tables:
//   rating_sets(number INTEGER PRIMARY KEY, id TEXT UNIQUE, record BLOB, digest TEXT)
//       record: RatingSet as created; digest: SHA-256 over it and its pairs, by which the same set is known
//   rating_pairs(set_number, pair INTEGER, record BLOB, ratings INTEGER)
//       pair: counted from 0 within the set; record: RatingPair; ratings: how many people have rated it
//   ratings(sequence INTEGER PRIMARY KEY, set_number, pair, rater TEXT, record BLOB)
//       sequence grows with each rating; record: Rating
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "coordinator/agreement.h"
#include "coordinator/sqlite.h"
#include "proto/millrace/v1/ratings.pb.h"

namespace millrace::coordinator {

inline constexpr uint64_t kMaxRatingPairs = 1'000'000;
inline constexpr size_t kMaxRatingSetBytes = 256 << 20;  // all texts of a set
inline constexpr size_t kMaxRatingTextBytes = 64 << 10;  // each prompt (its messages together), answer
inline constexpr size_t kMaxRatingTitleBytes = 1 << 10;
inline constexpr size_t kMaxRatingNoteBytes = 4 << 10;
inline constexpr size_t kMaxRatingNameBytes = 64;    // of raters
inline constexpr size_t kMaxRatingSetIdBytes = 128;  // also of sources
inline constexpr uint32_t kMaxRatersAPair = 16;
inline constexpr uint32_t kMaxRatingStrength = 3;

// INVALID_ARGUMENT saying what is wrong. Set ids are letters, digits and . _ - in parts joined by '/'; raters' names
// may have @ and inner spaces instead of '/'.
absl::Status CheckRatingSetId(absl::string_view id);
absl::Status CheckRaterName(absl::string_view name);
// Also that the answers differ: nobody could prefer one.
absl::Status CheckRatingPair(const v1::RatingPair& pair);

// A pair with what was said of it, in the order in which it was said.
struct RatedPair {
  v1::RatingPair pair;
  std::vector<v1::Rating> ratings;
};

// Where a rater stands.
struct RaterState {
  v1::RatingSet set;
  uint64_t rated = 0;            // pairs that this rater has rated
  uint64_t left = 0;             // pairs that this rater is still wanted for
  std::optional<uint64_t> next;  // the one to be rated now
  std::optional<uint64_t> last;  // the one rated last, which Undo takes back
};

// Thread-safe. Each change is on the disk when its call returns OK; on a full disk calls fail with RESOURCE_EXHAUSTED.
// An unknown set is NOT_FOUND. A call that looks for the next pair takes time with the number of pairs: tenths of a
// second for a million.
class RatingStore {
 public:
  static absl::StatusOr<std::unique_ptr<RatingStore>> Open(const std::string& path);

  // Makes a set of set.id, title, raters and these pairs, 1 to kMaxRatingPairs. OK, too, if it is there already with
  // the same content; ALREADY_EXISTS if with another. INVALID_ARGUMENT naming the pair, counted from 1, and its field.
  absl::Status Create(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs);

  // Removes the sets of a job, those whose ids begin with its id and a '/', with all that was said of them.
  absl::Status RemoveSetsOf(absl::string_view job_id);

  // In the order in which they came.
  absl::StatusOr<std::vector<v1::RatingSet>> List();
  absl::StatusOr<v1::RatingSet> Get(absl::string_view set_id);
  // INVALID_ARGUMENT if there is no such pair.
  absl::StatusOr<v1::RatingPair> Pair(absl::string_view set_id, uint64_t pair);

  // The next pair is one of those that fewest people have rated; pairs that `raters` people have rated are not wanted
  // any more, and neither is a pair that this rater has rated. A skip is a rating here: who skips is not asked again,
  // and a set comes to its end.
  absl::StatusOr<RaterState> State(absl::string_view set_id, absl::string_view rater);
  // Replaces what the same rater said of the pair before. The same again changes nothing: it can be sent until it is
  // confirmed.
  absl::Status Rate(absl::string_view set_id, uint64_t pair, const v1::Rating& rating);
  // Removes the rater's last rating, which must be that of `pair`; OK if the rater has none of this pair (any more).
  // FAILED_PRECONDITION if another was rated after it.
  absl::Status Undo(absl::string_view set_id, absl::string_view rater, uint64_t pair);

  // Up to `limit` pairs from `first` on, in order; empty past the end.
  absl::StatusOr<std::vector<RatedPair>> Read(absl::string_view set_id, uint64_t first, uint64_t limit);
  // How far the raters agree, over all that was said.
  absl::StatusOr<Agreement> GetAgreement(absl::string_view set_id);

 private:
  // A row of rating_sets.
  struct StoredSet {
    int64_t number = 0;
    v1::RatingSet set;  // without progress
    std::string digest;
  };

  explicit RatingStore(std::unique_ptr<Database> database) : database_(std::move(database)) {}
  absl::StatusOr<StoredSet> Find(absl::string_view set_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddProgress(StoredSet* stored) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Insert(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs, const std::string& digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What the rater rated last in this set, and its sequence.
  struct LastRating {
    int64_t sequence;
    uint64_t pair;
  };
  absl::StatusOr<std::optional<LastRating>> Last(int64_t set_number, absl::string_view rater)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CountRatings(int64_t set_number, uint64_t pair) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const std::unique_ptr<Database> database_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace millrace::coordinator
