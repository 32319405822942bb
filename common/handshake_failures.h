// Counts and logs the TLS handshakes with this process' servers that fail: nothing else sees them, as there is no call
// yet.
//
// gRPC 1.51 tells of them only in its log, at the lowest level: that is what is read here. What else gRPC would write
// to standard error goes to the log of the process.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/metrics.h"

namespace prometheus {
class Counter;
}  // namespace prometheus

namespace millrace {

// Tells `metrics`, which must outlive it:
//   millrace_tls_handshake_failures_total
// and the log, no more than once a second after the first ten. Of several in a process each counts all.
class HandshakeFailures {
 public:
  explicit HandshakeFailures(Metrics* metrics);
  ~HandshakeFailures();
  HandshakeFailures(const HandshakeFailures&) = delete;
  HandshakeFailures& operator=(const HandshakeFailures&) = delete;

 private:
  prometheus::Counter* const counter_;
};

// What gRPC says of a failed handshake, without what is of use to its authors only; and whom it was with, if that is
// said.
struct HandshakeFailure {
  std::string error;
  std::string peer;  // "ipv4:10.0.0.7:51234"; empty: not known
};
HandshakeFailure ParseHandshakeFailure(absl::string_view message);

}  // namespace millrace
