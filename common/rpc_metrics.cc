#include "common/rpc_metrics.h"

#include <google/protobuf/descriptor.h>

#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace millrace {
namespace {

// Whether a path is that of a method that this program knows. Clients may ask for anything, and each name would be a
// series for ever.
bool IsKnown(absl::string_view path) {
  if (path == "/grpc.health.v1.Health/Check" || path == "/grpc.health.v1.Health/Watch") return true;
  const std::string name = absl::StrReplaceAll(absl::StripPrefix(path, "/"), {{"/", "."}});
  return google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name) != nullptr;
}

// gRPC's codes are Abseil's; what is none of them counts as unknown.
std::string CodeName(grpc::StatusCode code) {
  std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
  return name.empty() ? "UNKNOWN" : name;
}

class Method {
 public:
  Method(Metrics* metrics, std::string name)
      : metrics_(metrics),
        name_(std::move(name)),
        duration_(metrics->Histogram("millrace_rpc_duration_seconds", "Time from a call's beginning to its status.",
                                     DurationBounds(), {{"method", name_}})) {}

  void Count(grpc::StatusCode code, absl::Duration took) {
    duration_->Observe(absl::ToDoubleSeconds(took));
    Counter(code)->Increment();
  }

 private:
  prometheus::Counter* Counter(grpc::StatusCode code) {
    absl::MutexLock lock(&mutex_);
    prometheus::Counter*& counter = counters_[code];
    if (counter == nullptr) {
      counter = metrics_->Counter("millrace_rpcs_total", "Calls answered, by method and code.",
                                  {{"method", name_}, {"code", CodeName(code)}});
    }
    return counter;
  }

  Metrics* const metrics_;
  const std::string name_;
  prometheus::Histogram* const duration_;
  absl::Mutex mutex_;
  std::map<grpc::StatusCode, prometheus::Counter*> counters_ ABSL_GUARDED_BY(mutex_);
};

// Calls share it: some may end after the server has let go of its factory.
class Methods {
 public:
  explicit Methods(Metrics* metrics) : metrics_(metrics) {}

  Method* Find(absl::string_view path) {
    absl::MutexLock lock(&mutex_);
    if (const auto found = methods_.find(path); found != methods_.end()) return &found->second;
    if (!IsKnown(path)) path = kOther;
    absl::string_view name = absl::StripPrefix(path, "/");
    name = absl::StripPrefix(name, "millrace.v1.");
    return &methods_.try_emplace(std::string(path), metrics_, std::string(name)).first->second;
  }

 private:
  static constexpr absl::string_view kOther = "other";

  Metrics* const metrics_;
  absl::Mutex mutex_;
  std::map<std::string, Method, std::less<>> methods_ ABSL_GUARDED_BY(mutex_);  // by path
};

// One call. The library calls Intercept of one call one after another.
class CountedCall : public grpc::experimental::Interceptor {
 public:
  CountedCall(std::shared_ptr<Methods> methods, absl::string_view path)
      : methods_(std::move(methods)), method_(methods_->Find(path)) {}
  ~CountedCall() override {
    if (!counted_) method_->Count(grpc::StatusCode::CANCELLED, absl::Now() - begun_);
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    if (batch->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      method_->Count(batch->GetSendStatus().error_code(), absl::Now() - begun_);
      counted_ = true;
    }
    batch->Proceed();
  }

 private:
  const std::shared_ptr<Methods> methods_;
  Method* const method_;
  const absl::Time begun_ = absl::Now();
  bool counted_ = false;
};

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Metrics* metrics) : methods_(std::make_shared<Methods>(metrics)) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* call) override {
    return new CountedCall(methods_, call->method() == nullptr ? "" : call->method());
  }

 private:
  const std::shared_ptr<Methods> methods_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> CountRpcs(Metrics* metrics) {
  return std::make_unique<Factory>(metrics);
}

}  // namespace millrace
