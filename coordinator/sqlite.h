// Speaks to one SQLite database file: the few calls of its C interface that the stores need, with absl::Status.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct sqlite3;
struct sqlite3_stmt;

namespace millrace::coordinator {

// One prepared statement, used by one thread at a time. Parameters are numbered from 1, columns from 0.
class Statement {
 public:
  Statement(Statement&& other) noexcept : statement_(std::exchange(other.statement_, nullptr)) {}
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  Statement& Bind(int parameter, int64_t value);
  Statement& Bind(int parameter, absl::string_view text);
  Statement& BindBlob(int parameter, absl::string_view bytes);

  // True: a row is there. Errors name the file: RESOURCE_EXHAUSTED for a full disk, DATA_LOSS for a damaged file,
  // UNAVAILABLE where another process holds it.
  absl::StatusOr<bool> Step();
  // Runs a statement that gives no rows, and makes it ready for other parameters.
  absl::Status Run();

  int64_t Int(int column) const;
  std::string Text(int column) const;  // also a blob's bytes

 private:
  friend class Database;
  explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
  sqlite3_stmt* statement_;
};

// One connection, used by one thread at a time.
class Database {
 public:
  // Opens or makes the file for this process alone, with a write-ahead log.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  absl::Status Execute(const char* sql);
  // FAILED_PRECONDITION if a newer build than one that knows formats up to `newest` has written PRAGMA user_version.
  absl::Status RefuseNewerFormat(int newest);
  absl::StatusOr<Statement> Prepare(absl::string_view sql);

 private:
  explicit Database(sqlite3* connection) : connection_(connection) {}
  sqlite3* const connection_;
};

// All or nothing: rolls back unless committed.
class Transaction {
 public:
  static absl::StatusOr<Transaction> Begin(Database* database);
  Transaction(Transaction&& other) noexcept : database_(std::exchange(other.database_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();
  absl::Status Commit();

 private:
  explicit Transaction(Database* database) : database_(database) {}
  Database* database_;
};

}  // namespace millrace::coordinator
