#include "common/handshake_failures.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/line_budget.h"
#include "common/log.h"

namespace millrace {
namespace {

constexpr size_t kMaxErrorBytes = 300;

// Who is told; gRPC's log is the process'.
class Listeners {
 public:
  static Listeners& Get() {
    static Listeners* const listeners = new Listeners;
    return *listeners;
  }
  void Add(prometheus::Counter* counter) {
    absl::MutexLock lock(&mutex_);
    counters_.insert(counter);
  }
  void Remove(prometheus::Counter* counter) {
    absl::MutexLock lock(&mutex_);
    counters_.erase(counter);
  }

 private:
  Listeners() {
    KeepGrpc();  // which may have been told how much to write
    least_ = gpr_should_log(GPR_LOG_SEVERITY_DEBUG)  ? GPR_LOG_SEVERITY_DEBUG
             : gpr_should_log(GPR_LOG_SEVERITY_INFO) ? GPR_LOG_SEVERITY_INFO
                                                     : GPR_LOG_SEVERITY_ERROR;
    gpr_set_log_function([](gpr_log_func_args* args) { Get().Hear(*args); });
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_DEBUG);
  }

  void Hear(const gpr_log_func_args& args) {
    const absl::string_view file = args.file;
    absl::string_view message = args.message;
    if (absl::EndsWith(file, "/chttp2_server.cc") && absl::ConsumePrefix(&message, "Handshaking failed: ")) {
      return Count(message);
    }
    // The same from further below; also of connections that this process makes, of which who makes them tells.
    if (absl::EndsWith(file, "/ssl_transport_security.cc") && absl::StartsWith(message, "Handshake failed")) return;
    if (args.severity < least_) return;
    Log(args.severity == GPR_LOG_SEVERITY_ERROR ? Severity::kError : Severity::kInfo, "grpc",
        {{"at", absl::StrCat(file.substr(file.rfind('/') + 1), ":", args.line)}, {"text", message}});
  }

  void Count(absl::string_view message) {
    uint64_t left_out = 0;
    {
      absl::MutexLock lock(&mutex_);
      for (prometheus::Counter* const counter : counters_) counter->Increment();
      if (!lines_.Take(absl::Now())) return;
      left_out = lines_.left_out();
      lines_.Told();
    }
    const HandshakeFailure failure = ParseHandshakeFailure(message);
    Log(Severity::kWarning, "a TLS handshake failed",
        {{"error", failure.error},
         {"peer", failure.peer.empty() ? "not known" : failure.peer},
         {"left_out", left_out}});
  }

  gpr_log_severity least_;
  absl::Mutex mutex_;
  std::set<prometheus::Counter*> counters_ ABSL_GUARDED_BY(mutex_);
  LineBudget lines_ ABSL_GUARDED_BY(mutex_) = LineBudget(/*at_once=*/10, /*a_second=*/1);
};

}  // namespace

HandshakeFailure ParseHandshakeFailure(absl::string_view message) {
  constexpr absl::string_view kPeer = "target_address:\"";
  HandshakeFailure failure;
  if (const size_t at = message.find(kPeer); at != absl::string_view::npos) {
    const absl::string_view rest = message.substr(at + kPeer.size());
    failure.peer = absl::CHexEscape(rest.substr(0, std::min(rest.find('"'), kMaxErrorBytes)));
  }
  message = message.substr(0, message.find(" {"));
  absl::ConsumePrefix(&message, "UNKNOWN:");
  failure.error = absl::CHexEscape(message.substr(0, kMaxErrorBytes));
  return failure;
}

HandshakeFailures::HandshakeFailures(Metrics* metrics)
    : counter_(metrics->Counter("millrace_tls_handshake_failures_total",
                                "TLS handshakes with this process' servers that failed since it started.")) {
  Listeners::Get().Add(counter_);
}

HandshakeFailures::~HandshakeFailures() { Listeners::Get().Remove(counter_); }

}  // namespace millrace
