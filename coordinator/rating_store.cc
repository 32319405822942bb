#include "coordinator/rating_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "coordinator/rating_order.h"
#include "text/unicode.h"

namespace millrace::coordinator {
namespace {

// PRAGMA user_version; a file of a newer one is refused.
constexpr int kFormat = 1;

// AUTOINCREMENT: the sequence of a rating that was taken back is not given again.
constexpr char kTables[] = R"(
  CREATE TABLE IF NOT EXISTS rating_sets(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL,
      digest TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS rating_pairs(set_number INTEGER NOT NULL, pair INTEGER NOT NULL, record BLOB NOT NULL,
      ratings INTEGER NOT NULL, PRIMARY KEY(set_number, pair)) WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS rating_pairs_wanted ON rating_pairs(set_number, ratings, pair);
  CREATE TABLE IF NOT EXISTS ratings(sequence INTEGER PRIMARY KEY AUTOINCREMENT, set_number INTEGER NOT NULL,
      pair INTEGER NOT NULL, rater TEXT NOT NULL, record BLOB NOT NULL, UNIQUE(set_number, pair, rater));
  CREATE INDEX IF NOT EXISTS ratings_of_rater ON ratings(set_number, rater, sequence);
  PRAGMA user_version = 1;
)";

absl::Status Wrong(std::string what) { return absl::InvalidArgumentError(std::move(what)); }

absl::Status CheckText(absl::string_view text, absl::string_view what, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return Wrong(absl::StrCat(what, " has ", text.size(), " bytes; at most ", max_bytes));
  }
  if (text::FirstInvalidUtf8(text).has_value()) return Wrong(absl::StrCat(what, " is not UTF-8"));
  return absl::OkStatus();
}

absl::Status CheckAnswer(absl::string_view text, absl::string_view what) {
  MILLRACE_RETURN_IF_ERROR(CheckText(text, what, kMaxRatingTextBytes));
  if (absl::StripAsciiWhitespace(text).empty()) return Wrong(absl::StrCat(what, " is empty"));
  return absl::OkStatus();
}

bool IsPlain(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("._-", c); }

absl::Status CheckRating(const v1::Rating& rating) {
  MILLRACE_RETURN_IF_ERROR(CheckRaterName(rating.rater()));
  MILLRACE_RETURN_IF_ERROR(CheckText(rating.note(), "the note", kMaxRatingNoteBytes));
  if (!v1::Rating::Choice_IsValid(rating.choice()) || rating.choice() == v1::Rating::CHOICE_UNSPECIFIED) {
    return Wrong("the choice is none of A, B, TIE and SKIP");
  }
  if (rating.strength() > kMaxRatingStrength) {
    return Wrong(absl::StrCat("the strength is ", rating.strength(), "; 1 to ", kMaxRatingStrength, ", or 0 for none"));
  }
  if (rating.strength() > 0 && rating.choice() != v1::Rating::A && rating.choice() != v1::Rating::B) {
    return Wrong("a strength says by how much one answer is better; this rating prefers none");
  }
  return absl::OkStatus();
}

std::string DigestOf(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs) {
  Sha256 sum;
  // Field by field: protobuf does not promise the bytes of a message.
  const auto add = [&sum](absl::string_view part) { sum.Update(absl::StrCat(part.size(), "\n", part)); };
  add(set.title());
  add(absl::StrCat(set.raters(), " ", pairs.size()));
  for (const v1::RatingPair& pair : pairs) {
    add(absl::StrCat(pair.prompt_size()));
    for (const v1::RatingPair::Message& message : pair.prompt()) {
      add(message.role());
      add(message.content());
    }
    for (const std::string* part : {&pair.a(), &pair.b(), &pair.source_a(), &pair.source_b()}) add(*part);
  }
  return sum.HexDigest();
}

// Whether both say the same, whenever they say it.
bool SameRating(const v1::Rating& one, const v1::Rating& other) {
  return one.choice() == other.choice() && one.strength() == other.strength() && one.flagged() == other.flagged() &&
         one.note() == other.note();
}

template <typename Message>
absl::StatusOr<Message> Parse(const std::string& bytes) {
  Message message;
  if (!message.ParseFromString(bytes)) return absl::DataLossError("a record of the rating store cannot be read");
  return message;
}

}  // namespace

absl::Status CheckRatingSetId(absl::string_view id) {
  bool well = !id.empty() && id.size() <= kMaxRatingSetIdBytes;
  char before = '/';
  for (const char c : id) {
    well &= IsPlain(c) || (c == '/' && before != '/');
    before = c;
  }
  if (well && before != '/') return absl::OkStatus();
  return Wrong(absl::StrCat("'", id.substr(0, kMaxRatingSetIdBytes), "' is no name of a rating set: 1 to ",
                            kMaxRatingSetIdBytes, " letters, digits, '.', '_' and '-', in parts joined by '/'"));
}

absl::Status CheckRaterName(absl::string_view name) {
  bool well = !name.empty() && name.size() <= kMaxRatingNameBytes && name.front() != ' ' && name.back() != ' ';
  for (const char c : name) well &= IsPlain(c) || c == '@' || c == ' ';
  if (well) return absl::OkStatus();
  return Wrong(absl::StrCat("a rater's name is 1 to ", kMaxRatingNameBytes,
                            " letters (a to z), digits, '.', '_', '-', '@' and spaces between them"));
}

absl::Status CheckRatingPair(const v1::RatingPair& pair) {
  if (pair.prompt().empty()) return Wrong("there is no prompt");
  std::string prompt;
  for (const v1::RatingPair::Message& message : pair.prompt()) {
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      return Wrong(
          absl::StrCat("a role in the prompt is '", message.role().substr(0, 64), "'; system, user or assistant"));
    }
    absl::StrAppend(&prompt, message.content());
    if (prompt.size() > kMaxRatingTextBytes) break;
  }
  MILLRACE_RETURN_IF_ERROR(CheckAnswer(prompt, "the prompt"));
  MILLRACE_RETURN_IF_ERROR(CheckAnswer(pair.a(), "answer a"));
  MILLRACE_RETURN_IF_ERROR(CheckAnswer(pair.b(), "answer b"));
  MILLRACE_RETURN_IF_ERROR(CheckText(pair.source_a(), "source_a", kMaxRatingSetIdBytes));
  MILLRACE_RETURN_IF_ERROR(CheckText(pair.source_b(), "source_b", kMaxRatingSetIdBytes));
  if (pair.a() == pair.b()) return Wrong("an identical pair: answers a and b are the same");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RatingStore>> RatingStore::Open(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<Database> database, Database::Open(path));
  MILLRACE_RETURN_IF_ERROR(database->RefuseNewerFormat(kFormat));
  MILLRACE_RETURN_IF_ERROR(database->Execute(kTables));
  return std::unique_ptr<RatingStore>(new RatingStore(std::move(database)));
}

absl::StatusOr<RatingStore::StoredSet> RatingStore::Find(absl::string_view set_id) {
  MILLRACE_ASSIGN_OR_RETURN(Statement query,
                            database_->Prepare("SELECT number, record, digest FROM rating_sets WHERE id = ?1"));
  MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Bind(1, set_id).Step());
  if (!row) {
    return absl::NotFoundError(absl::StrCat("there is no rating set '", set_id.substr(0, kMaxRatingSetIdBytes),
                                            "'; `millrace ratings list` lists them"));
  }
  MILLRACE_ASSIGN_OR_RETURN(v1::RatingSet set, Parse<v1::RatingSet>(query.Text(1)));
  return StoredSet{query.Int(0), std::move(set), query.Text(2)};
}

absl::Status RatingStore::AddProgress(StoredSet* stored) {
  MILLRACE_ASSIGN_OR_RETURN(Statement done, database_->Prepare("SELECT COUNT(*) FROM rating_pairs "
                                                               "WHERE set_number = ?1 AND ratings >= ?2"));
  MILLRACE_RETURN_IF_ERROR(done.Bind(1, stored->number).Bind(2, int64_t{stored->set.raters()}).Step().status());
  stored->set.set_done(static_cast<uint64_t>(done.Int(0)));
  MILLRACE_ASSIGN_OR_RETURN(Statement ratings,
                            database_->Prepare("SELECT COUNT(*) FROM ratings WHERE set_number = ?1"));
  MILLRACE_RETURN_IF_ERROR(ratings.Bind(1, stored->number).Step().status());
  stored->set.set_ratings(static_cast<uint64_t>(ratings.Int(0)));
  return absl::OkStatus();
}

absl::Status RatingStore::Create(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs) {
  MILLRACE_RETURN_IF_ERROR(CheckRatingSetId(set.id()));
  MILLRACE_RETURN_IF_ERROR(CheckText(set.title(), "the title", kMaxRatingTitleBytes));
  if (set.raters() < 1 || set.raters() > kMaxRatersAPair) {
    return Wrong(absl::StrCat(set.raters(), " raters a pair; 1 to ", kMaxRatersAPair));
  }
  if (pairs.empty() || pairs.size() > kMaxRatingPairs) {
    return Wrong(absl::StrCat(pairs.size(), " pairs; a set has 1 to ", kMaxRatingPairs));
  }
  size_t bytes = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(Annotate(CheckRatingPair(pairs[i]), absl::StrCat("pair ", i + 1)));
    bytes += pairs[i].ByteSizeLong();
  }
  if (bytes > kMaxRatingSetBytes) {
    return Wrong(absl::StrCat(bytes, " bytes of text; a set has at most ", kMaxRatingSetBytes, ": make two of it"));
  }
  const std::string digest = DigestOf(set, pairs);
  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<StoredSet> there = Find(set.id());
  if (absl::IsNotFound(there.status())) return Insert(set, pairs, digest);
  if (!there.ok()) return there.status();
  if (there->digest == digest) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("there is a rating set '", set.id(), "' of ", there->set.pairs(),
                   " pairs with other content (pairs, title or raters); take another name"));
}

absl::Status RatingStore::Insert(const v1::RatingSet& set, absl::Span<const v1::RatingPair> pairs,
                                 const std::string& digest) {
  v1::RatingSet record;
  record.set_id(set.id());
  record.set_title(set.title());
  record.set_raters(set.raters());
  record.set_pairs(pairs.size());
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  {
    MILLRACE_ASSIGN_OR_RETURN(Statement insert,
                              database_->Prepare("INSERT INTO rating_sets(id, record, digest) VALUES(?1, ?2, ?3)"));
    MILLRACE_RETURN_IF_ERROR(insert.Bind(1, set.id()).BindBlob(2, record.SerializeAsString()).Bind(3, digest).Run());
  }
  MILLRACE_ASSIGN_OR_RETURN(const StoredSet stored, Find(set.id()));
  MILLRACE_ASSIGN_OR_RETURN(
      Statement insert,
      database_->Prepare("INSERT INTO rating_pairs(set_number, pair, record, ratings) VALUES(?1, ?2, ?3, 0)"));
  for (size_t i = 0; i < pairs.size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(
        insert.Bind(1, stored.number).Bind(2, static_cast<int64_t>(i)).BindBlob(3, pairs[i].SerializeAsString()).Run());
  }
  return transaction.Commit();
}

absl::StatusOr<std::vector<v1::RatingSet>> RatingStore::List() {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::RatingSet> sets;
  MILLRACE_ASSIGN_OR_RETURN(Statement query,
                            database_->Prepare("SELECT number, record FROM rating_sets ORDER BY number"));
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return sets;
    StoredSet stored;
    stored.number = query.Int(0);
    MILLRACE_ASSIGN_OR_RETURN(stored.set, Parse<v1::RatingSet>(query.Text(1)));
    MILLRACE_RETURN_IF_ERROR(AddProgress(&stored));
    sets.push_back(std::move(stored.set));
  }
}

absl::StatusOr<v1::RatingSet> RatingStore::Get(absl::string_view set_id) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(StoredSet stored, Find(set_id));
  MILLRACE_RETURN_IF_ERROR(AddProgress(&stored));
  return std::move(stored.set);
}

absl::StatusOr<v1::RatingPair> RatingStore::Pair(absl::string_view set_id, uint64_t pair) {
  MILLRACE_ASSIGN_OR_RETURN(std::vector<RatedPair> pairs, Read(set_id, pair, 1));
  if (pairs.empty()) return Wrong(absl::StrCat("the set '", set_id, "' has no pair ", pair));
  return std::move(pairs[0].pair);
}

absl::StatusOr<std::optional<RatingStore::LastRating>> RatingStore::Last(int64_t set_number, absl::string_view rater) {
  MILLRACE_ASSIGN_OR_RETURN(
      Statement query, database_->Prepare("SELECT sequence, pair FROM ratings WHERE set_number = ?1 AND rater = ?2 "
                                          "ORDER BY sequence DESC LIMIT 1"));
  MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Bind(1, set_number).Bind(2, rater).Step());
  if (!row) return std::nullopt;
  return LastRating{query.Int(0), static_cast<uint64_t>(query.Int(1))};
}

absl::StatusOr<RaterState> RatingStore::State(absl::string_view set_id, absl::string_view rater) {
  MILLRACE_RETURN_IF_ERROR(CheckRaterName(rater));
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(StoredSet stored, Find(set_id));
  MILLRACE_RETURN_IF_ERROR(AddProgress(&stored));
  RaterState state;
  {
    MILLRACE_ASSIGN_OR_RETURN(Statement rated,
                              database_->Prepare("SELECT COUNT(*) FROM ratings WHERE set_number = ?1 AND rater = ?2"));
    MILLRACE_RETURN_IF_ERROR(rated.Bind(1, stored.number).Bind(2, rater).Step().status());
    state.rated = static_cast<uint64_t>(rated.Int(0));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<LastRating> last, Last(stored.number, rater));
  if (last.has_value()) state.last = last->pair;

  MILLRACE_ASSIGN_OR_RETURN(
      Statement wanted,
      database_->Prepare("SELECT pair, ratings FROM rating_pairs AS wanted WHERE set_number = ?1 AND ratings < ?2 AND "
                         "NOT EXISTS (SELECT 1 FROM ratings WHERE set_number = ?1 AND pair = wanted.pair AND "
                         "rater = ?3) ORDER BY ratings"));
  wanted.Bind(1, stored.number).Bind(2, int64_t{stored.set.raters()}).Bind(3, rater);
  const RatingOrder order(set_id, rater);
  int64_t fewest = 0;
  uint64_t least_rank = 0;
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, wanted.Step());
    if (!row) break;
    ++state.left;
    const auto pair = static_cast<uint64_t>(wanted.Int(0));
    if (!state.next.has_value()) fewest = wanted.Int(1);
    if (wanted.Int(1) != fewest) continue;
    const uint64_t rank = order.Rank(pair);
    if (state.next.has_value() && rank >= least_rank) continue;
    state.next = pair;
    least_rank = rank;
  }
  state.set = std::move(stored.set);
  return state;
}

absl::Status RatingStore::CountRatings(int64_t set_number, uint64_t pair) {
  MILLRACE_ASSIGN_OR_RETURN(
      Statement count,
      database_->Prepare("UPDATE rating_pairs SET ratings = (SELECT COUNT(*) FROM ratings WHERE set_number = ?1 AND "
                         "pair = ?2) WHERE set_number = ?1 AND pair = ?2"));
  return count.Bind(1, set_number).Bind(2, static_cast<int64_t>(pair)).Run();
}

absl::Status RatingStore::Rate(absl::string_view set_id, uint64_t pair, const v1::Rating& rating) {
  MILLRACE_RETURN_IF_ERROR(CheckRating(rating));
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(const StoredSet stored, Find(set_id));
  if (pair >= stored.set.pairs()) return Wrong(absl::StrCat("the set '", set_id, "' has no pair ", pair));
  {
    MILLRACE_ASSIGN_OR_RETURN(
        Statement query,
        database_->Prepare("SELECT record FROM ratings WHERE set_number = ?1 AND pair = ?2 AND rater = ?3"));
    query.Bind(1, stored.number).Bind(2, static_cast<int64_t>(pair)).Bind(3, rating.rater());
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (row) {
      MILLRACE_ASSIGN_OR_RETURN(const v1::Rating before, Parse<v1::Rating>(query.Text(0)));
      if (SameRating(before, rating)) return absl::OkStatus();
    }
  }
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  {
    // REPLACE removes the row of the same pair and rater, and the new one gets a new sequence.
    MILLRACE_ASSIGN_OR_RETURN(
        Statement insert,
        database_->Prepare("INSERT OR REPLACE INTO ratings(set_number, pair, rater, record) VALUES(?1, ?2, ?3, ?4)"));
    MILLRACE_RETURN_IF_ERROR(insert.Bind(1, stored.number)
                                 .Bind(2, static_cast<int64_t>(pair))
                                 .Bind(3, rating.rater())
                                 .BindBlob(4, rating.SerializeAsString())
                                 .Run());
  }
  MILLRACE_RETURN_IF_ERROR(CountRatings(stored.number, pair));
  return transaction.Commit();
}

absl::Status RatingStore::Undo(absl::string_view set_id, absl::string_view rater, uint64_t pair) {
  MILLRACE_RETURN_IF_ERROR(CheckRaterName(rater));
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(const StoredSet stored, Find(set_id));
  if (pair >= stored.set.pairs()) return Wrong(absl::StrCat("the set '", set_id, "' has no pair ", pair));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<LastRating> last, Last(stored.number, rater));
  if (!last.has_value() || last->pair != pair) {
    MILLRACE_ASSIGN_OR_RETURN(
        Statement query,
        database_->Prepare("SELECT 1 FROM ratings WHERE set_number = ?1 AND pair = ?2 AND rater = ?3"));
    query.Bind(1, stored.number).Bind(2, static_cast<int64_t>(pair)).Bind(3, rater);
    MILLRACE_ASSIGN_OR_RETURN(const bool rated, query.Step());
    if (!rated) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("pair ", pair, " is not the one that ", rater, " rated last; load the page again"));
  }
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  {
    MILLRACE_ASSIGN_OR_RETURN(Statement remove, database_->Prepare("DELETE FROM ratings WHERE sequence = ?1"));
    MILLRACE_RETURN_IF_ERROR(remove.Bind(1, last->sequence).Run());
  }
  MILLRACE_RETURN_IF_ERROR(CountRatings(stored.number, pair));
  return transaction.Commit();
}

absl::Status RatingStore::RemoveSetsOf(absl::string_view job_id) {
  const std::string prefix = absl::StrCat(job_id, "/");
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(database_.get()));
  constexpr char kOfJob[] = "(SELECT number FROM rating_sets WHERE substr(id, 1, length(?1)) = ?1)";
  for (const std::string& statement : {absl::StrCat("DELETE FROM ratings WHERE set_number IN ", kOfJob),
                                       absl::StrCat("DELETE FROM rating_pairs WHERE set_number IN ", kOfJob),
                                       absl::StrCat("DELETE FROM rating_sets WHERE number IN ", kOfJob)}) {
    MILLRACE_ASSIGN_OR_RETURN(Statement remove, database_->Prepare(statement));
    MILLRACE_RETURN_IF_ERROR(remove.Bind(1, prefix).Run());
  }
  return transaction.Commit();
}

absl::StatusOr<std::vector<RatedPair>> RatingStore::Read(absl::string_view set_id, uint64_t first, uint64_t limit) {
  absl::MutexLock lock(&mutex_);
  MILLRACE_ASSIGN_OR_RETURN(const StoredSet stored, Find(set_id));
  std::vector<RatedPair> pairs;
  if (first >= stored.set.pairs()) return pairs;
  const uint64_t end = first + std::min(limit, stored.set.pairs() - first);
  MILLRACE_ASSIGN_OR_RETURN(
      Statement query, database_->Prepare("SELECT record FROM rating_pairs WHERE set_number = ?1 AND pair >= ?2 AND "
                                          "pair < ?3 ORDER BY pair"));
  query.Bind(1, stored.number).Bind(2, static_cast<int64_t>(first)).Bind(3, static_cast<int64_t>(end));
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) break;
    RatedPair& rated = pairs.emplace_back();
    MILLRACE_ASSIGN_OR_RETURN(rated.pair, Parse<v1::RatingPair>(query.Text(0)));
  }
  if (pairs.size() != end - first)
    return absl::DataLossError(absl::StrCat("pairs of the set '", set_id, "' are missing"));
  MILLRACE_ASSIGN_OR_RETURN(
      Statement ratings, database_->Prepare("SELECT pair, record FROM ratings WHERE set_number = ?1 AND pair >= ?2 AND "
                                            "pair < ?3 ORDER BY sequence"));
  ratings.Bind(1, stored.number).Bind(2, static_cast<int64_t>(first)).Bind(3, static_cast<int64_t>(end));
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const bool row, ratings.Step());
    if (!row) return pairs;
    MILLRACE_ASSIGN_OR_RETURN(v1::Rating rating, Parse<v1::Rating>(ratings.Text(1)));
    pairs[static_cast<uint64_t>(ratings.Int(0)) - first].ratings.push_back(std::move(rating));
  }
}

absl::StatusOr<Agreement> RatingStore::GetAgreement(absl::string_view set_id) {
  std::vector<PairRating> ratings;
  {
    absl::MutexLock lock(&mutex_);
    MILLRACE_ASSIGN_OR_RETURN(const StoredSet stored, Find(set_id));
    MILLRACE_ASSIGN_OR_RETURN(Statement query,
                              database_->Prepare("SELECT pair, record FROM ratings WHERE set_number = ?1"));
    query.Bind(1, stored.number);
    for (;;) {
      MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      MILLRACE_ASSIGN_OR_RETURN(v1::Rating rating, Parse<v1::Rating>(query.Text(1)));
      ratings.push_back({static_cast<uint64_t>(query.Int(0)), std::move(rating)});
    }
  }
  return AgreementOf(ratings);
}

}  // namespace millrace::coordinator
