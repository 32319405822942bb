#include "coordinator/sqlite.h"

#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

absl::Status Failure(sqlite3* connection, int code) {
  const char* file = connection != nullptr ? sqlite3_db_filename(connection, "main") : nullptr;
  const std::string message = absl::StrCat(file != nullptr ? file : "database", ": ",
                                           connection != nullptr ? sqlite3_errmsg(connection) : sqlite3_errstr(code));
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(absl::StrCat(message, "; free space on that disk"));
    case SQLITE_IOERR:
      // A full disk under the write-ahead log shows as this.
      return absl::ResourceExhaustedError(
          absl::StrCat(message, " (code ", code, "); is the disk full or failing? Free space on it"));
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(message, "; another coordinator runs on this directory"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(
          absl::StrCat(message, "; move the file away to start with an empty one: checkpoints do not depend on it"));
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
      return absl::PermissionDeniedError(absl::StrCat(message, "; the coordinator must be able to write there"));
    default:
      return absl::InternalError(absl::StrCat(message, " (code ", code, ")"));
  }
}

}  // namespace

Statement::~Statement() { sqlite3_finalize(statement_); }

Statement& Statement::Bind(int parameter, int64_t value) {
  sqlite3_bind_int64(statement_, parameter, value);
  return *this;
}

Statement& Statement::Bind(int parameter, absl::string_view text) {
  // A null pointer would bind NULL; so below.
  sqlite3_bind_text64(statement_, parameter, text.empty() ? "" : text.data(), text.size(), SQLITE_TRANSIENT,
                      SQLITE_UTF8);
  return *this;
}

Statement& Statement::BindBlob(int parameter, absl::string_view bytes) {
  sqlite3_bind_blob64(statement_, parameter, bytes.empty() ? "" : bytes.data(), bytes.size(), SQLITE_TRANSIENT);
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  sqlite3* const connection = sqlite3_db_handle(statement_);
  absl::Status failure = Failure(connection, sqlite3_extended_errcode(connection));
  sqlite3_reset(statement_);
  return failure;
}

absl::Status Statement::Run() {
  MILLRACE_ASSIGN_OR_RETURN(const bool row, Step());
  if (row) return absl::InternalError("a statement that gives no rows gave one");
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  return absl::OkStatus();
}

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Text(int column) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return bytes == nullptr ? std::string() : std::string(static_cast<const char*>(bytes), size);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path) {
  sqlite3* connection = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &connection,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  std::unique_ptr<Database> database(new Database(connection));
  if (code != SQLITE_OK) return Failure(connection, code);
  sqlite3_extended_result_codes(connection, 1);
  sqlite3_busy_timeout(connection, 500);
  // Exclusive before the log: then the log's index lives in memory, not in a mapped file that a full disk could tear.
  for (const char* sql : {"PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL",
                          "PRAGMA foreign_keys=ON", "BEGIN EXCLUSIVE", "COMMIT"}) {
    MILLRACE_RETURN_IF_ERROR(database->Execute(sql));
  }
  return database;
}

Database::~Database() { sqlite3_close_v2(connection_); }

absl::Status Database::Execute(const char* sql) {
  const int code = sqlite3_exec(connection_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Failure(connection_, code);
}

absl::Status Database::RefuseNewerFormat(int newest) {
  MILLRACE_ASSIGN_OR_RETURN(Statement query, Prepare("PRAGMA user_version"));
  MILLRACE_ASSIGN_OR_RETURN(const bool row, query.Step());
  const int64_t format = row ? query.Int(0) : 0;
  if (format <= newest) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(sqlite3_db_filename(connection_, "main"), ": format ", format,
                                                    "; this build knows up to ", newest, "; run a newer build"));
}

absl::StatusOr<Statement> Database::Prepare(absl::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v2(connection_, sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) return Failure(connection_, code);
  return Statement(statement);
}

absl::StatusOr<Transaction> Transaction::Begin(Database* database) {
  MILLRACE_RETURN_IF_ERROR(database->Execute("BEGIN IMMEDIATE"));
  return Transaction(database);
}

Transaction::~Transaction() {
  // Some errors have rolled back already; then this one says so, and that is well.
  if (database_ != nullptr) database_->Execute("ROLLBACK").IgnoreError();
}

absl::Status Transaction::Commit() {
  MILLRACE_RETURN_IF_ERROR(database_->Execute("COMMIT"));
  database_ = nullptr;
  return absl::OkStatus();
}

}  // namespace millrace::coordinator
