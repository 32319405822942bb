#include "common/access.h"

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/certificates.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status.h"

namespace millrace {
namespace {

using Metadata = grpc::AuthMetadataProcessor::InputMetadata;
using grpc::experimental::InterceptionHookPoints;

constexpr char kScheme[] = "bearer ";
constexpr char kLocal[] = "local";
// How often a stream's caller is looked at again.
constexpr absl::Duration kLookAgain = absl::Seconds(1);

absl::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

std::string Shown(absl::string_view text) { return absl::CHexEscape(text.substr(0, 120)); }

// Without the package: "Jobs/CancelJob".
std::string ShortMethod(absl::string_view method) {
  if (!absl::ConsumePrefix(&method, "/millrace.v1.")) absl::ConsumePrefix(&method, "/");
  return Shown(method);
}

std::string WhoMay(const MethodRule& rule) {
  std::string names;
  for (const Role role : AllRoles()) {
    if (Allows(rule, role)) absl::StrAppend(&names, names.empty() ? "" : " or ", RoleName(role));
  }
  return names;
}

bool HasCertificate(const grpc::AuthContext& connection) {
  return !connection.FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME).empty();
}

absl::Status CheckNotEnded(const grpc::AuthContext& connection, absl::Time now) {
  const std::vector<grpc::string_ref> shown = connection.FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME);
  if (shown.size() != 1) return absl::UnauthenticatedError("the call shows no certificate, or several");
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(View(shown[0]));
  if (!facts.ok()) return absl::UnauthenticatedError(facts.status().message());
  if (now <= facts->not_after) return absl::OkStatus();
  return absl::UnauthenticatedError(absl::StrCat("the certificate of '", CertificateName(connection), "' ended at ",
                                                 absl::FormatTime(facts->not_after, absl::UTCTimeZone()),
                                                 ": connect again with another"));
}

// Empty: none was brought.
absl::StatusOr<std::string> BearerToken(const Metadata& metadata) {
  const auto [first, end] = metadata.equal_range("authorization");
  if (first == end) return "";
  const absl::string_view value = View(first->second);
  if (std::next(first) != end || !absl::StartsWithIgnoreCase(value, kScheme)) {
    return absl::UnauthenticatedError("the authorization of a call is one 'Bearer TOKEN'");
  }
  return std::string(absl::StripAsciiWhitespace(value.substr(sizeof(kScheme) - 1)));
}

// Who makes the calls that are in a handler now, and how to ask again whether they may. A ServerContext has no room for
// it.
class CallersNow {
 public:
  static CallersNow& Get() {
    static CallersNow* const callers = new CallersNow;
    return *callers;
  }
  // `owner` says which of the calls it is that use the context's memory one after another.
  void Add(const grpc::ServerContextBase* context, const void* owner, std::string name,
           std::function<absl::Status()> check) {
    absl::MutexLock lock(&mutex_);
    callers_[context] = {owner, std::move(name), std::move(check), absl::Now() + kLookAgain};
  }
  void Remove(const grpc::ServerContextBase* context, const void* owner) {
    absl::MutexLock lock(&mutex_);
    const auto caller = callers_.find(context);
    if (caller != callers_.end() && caller->second.owner == owner) callers_.erase(caller);
  }
  std::string Find(const grpc::ServerContextBase* context) const {
    absl::MutexLock lock(&mutex_);
    const auto caller = callers_.find(context);
    return caller == callers_.end() ? "" : caller->second.name;
  }
  // Null: not due, or nobody was asked.
  std::function<absl::Status()> DueCheck(const grpc::ServerContextBase* context) {
    absl::MutexLock lock(&mutex_);
    const auto caller = callers_.find(context);
    if (caller == callers_.end()) return nullptr;
    const absl::Time now = absl::Now();
    if (now < caller->second.look_again) return nullptr;
    caller->second.look_again = now + kLookAgain;
    return caller->second.check;
  }

 private:
  mutable absl::Mutex mutex_;
  struct Known {
    const void* owner = nullptr;
    std::string name;
    std::function<absl::Status()> check;
    absl::Time look_again;
  };
  std::map<const grpc::ServerContextBase*, Known> callers_ ABSL_GUARDED_BY(mutex_);
};

// A message's text field, if it has one of that name.
std::string TextField(const google::protobuf::Message& message, const char* name) {
  const google::protobuf::FieldDescriptor* const field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr || field->is_repeated() ||
      field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_STRING) {
    return "";
  }
  return message.GetReflection()->GetString(message, field);
}

}  // namespace

std::string CertificateName(const grpc::AuthContext& connection) {
  const std::vector<grpc::string_ref> names = connection.FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME);
  return names.size() == 1 ? Shown(View(names[0])) : "";
}

bool IsEncrypted(const grpc::AuthContext& connection) {
  const std::vector<grpc::string_ref> types = connection.FindPropertyValues(GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
  return types.size() == 1 && (types[0] == "tls" || types[0] == "ssl");
}

absl::StatusOr<Role> CertificateRole(const grpc::AuthContext& connection) {
  std::optional<Role> role;
  for (const grpc::string_ref& uri : connection.FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)) {
    absl::string_view name = View(uri);
    if (!absl::ConsumePrefix(&name, kRoleUri)) continue;
    const std::optional<Role> named = ParseRole(name);
    if (!named.has_value() || role.has_value()) {
      return absl::UnauthenticatedError(absl::StrCat("the certificate of '", CertificateName(connection),
                                                     "' names several roles, or one that there is not: ", kRoleUri,
                                                     Shown(name)));
    }
    role = named;
  }
  if (role.has_value()) return *role;
  return absl::UnauthenticatedError(absl::StrCat("the certificate of '", CertificateName(connection),
                                                 "' names no role: it needs the URI ", kRoleUri,
                                                 "ROLE as subject alternative name (docs/security.md)"));
}

// Runs in gRPC's thread for each call before it reaches a handler.
class Access::Checker : public grpc::AuthMetadataProcessor {
 public:
  explicit Checker(Access* access) : access_(access) {}
  // The log is written to the disk meanwhile.
  bool IsBlocking() const override { return access_->audit_ != nullptr; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* connection, OutputMetadata*,
                       OutputMetadata*) override {
    const auto path = metadata.find(":path");
    return ToGrpc(access_->Check(path == metadata.end() ? "" : View(path->second), *connection, metadata));
  }

 private:
  Access* const access_;
};

// Goes along with one call of people: keeps who makes it, and writes down what came of it.
class Access::Witness : public grpc::experimental::Interceptor {
 public:
  Witness(Access* access, const MethodRule* rule, grpc::experimental::ServerRpcInfo* call)
      : access_(access),
        rule_(rule),
        context_(call->server_context()),
        unary_(call->type() == grpc::experimental::ServerRpcInfo::Type::UNARY) {}
  // May come after the context has gone.
  ~Witness() override { CallersNow::Get().Remove(context_, this); }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) Meet();
    if (rule_->changes) {
      if (unary_ && methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE)) {
        const auto* const request = static_cast<const google::protobuf::Message*>(methods->GetRecvMessage());
        if (request != nullptr) job_ = TextField(*request, "job_id");
      }
      if (job_.empty() && methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
        const auto* const reply = static_cast<const google::protobuf::Message*>(methods->GetSendMessage());
        if (reply != nullptr) job_ = TextField(*reply, "id");
      }
      if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
        WriteDown(methods->GetSendStatus());
      }
    }
    methods->Proceed();
  }

 private:
  void Meet() {
    // What both have in common does not say who calls.
    if (const auto* const sync = dynamic_cast<const grpc::ServerContext*>(context_)) MeetIn(*sync);
    if (const auto* const callback = dynamic_cast<const grpc::CallbackServerContext*>(context_)) MeetIn(*callback);
  }

  template <typename Context>
  void MeetIn(const Context& context) {
    peer_ = context.peer();
    const std::shared_ptr<const grpc::AuthContext> connection = context.auth_context();
    if (connection == nullptr || !IsEncrypted(*connection)) return;
    const absl::StatusOr<Caller> caller = access_->Identify(*connection, context.client_metadata());
    // The file of tokens may have changed since the call was let in.
    who_ = caller.ok() ? caller->name : "";
    role_ = caller.ok() ? std::string(RoleName(caller->role)) : "";
    // Asked by the handler alone, while the call and so all of this is there.
    CallersNow::Get().Add(context_, this, who_, [this, &context, connection] {
      return access_->Check(rule_->method, *connection, context.client_metadata(), peer_);
    });
  }

  void WriteDown(const grpc::Status& status) {
    if (access_->audit_ == nullptr) return;
    AuditEntry entry;
    entry.time = absl::Now();
    entry.who = who_;
    entry.role = role_;
    entry.peer = peer_;
    entry.method = ShortMethod(rule_->method);
    entry.job = job_;
    entry.code = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
    entry.message = status.error_message();
    access_->audit_->Append(entry);
  }

  Access* const access_;
  const MethodRule* const rule_;
  grpc::ServerContextBase* const context_;
  const bool unary_;
  std::string who_ = kLocal;
  std::string role_{RoleName(Role::kOperator)};
  std::string peer_;
  std::string job_;
};

class Access::WitnessFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit WitnessFactory(Access* access) : access_(access) {}
  // None for the calls of members: they are many.
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* call) override {
    const MethodRule* const rule = FindMethodRule(call->method());
    if (rule == nullptr || !Allows(*rule, Role::kOperator)) return nullptr;
    return new Witness(access_, rule, call);
  }

 private:
  Access* const access_;
};

Access::Access(AccessOptions options)
    : tokens_(std::move(options.tokens)),
      audit_(std::move(options.audit)),
      metrics_(options.metrics),
      now_(std::move(options.now)),
      handshakes_(options.metrics) {
  for (const char* reason : {"missing", "token", "certificate", "role"}) Failures(reason);
}

Access::~Access() = default;

prometheus::Counter* Access::Failures(const char* reason) {
  return metrics_->Counter("millrace_auth_failures_total",
                           "Calls refused since the process started: their caller is unknown, or may not make them.",
                           {{"reason", reason}});
}

absl::StatusOr<Caller> Access::Identify(const grpc::AuthContext& connection, const Metadata& metadata) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string token, BearerToken(metadata));
  if (!token.empty()) {
    if (tokens_ == nullptr) return absl::UnauthenticatedError("this server takes no tokens: bring a certificate");
    const std::optional<TokenOwner> owner = tokens_->Find(token);
    if (!owner.has_value()) return absl::UnauthenticatedError("nobody has this token");
    return Caller{.name = owner->name, .role = owner->role};
  }
  if (!HasCertificate(connection)) {
    return absl::UnauthenticatedError(absl::StrCat("bring a certificate (--tls DIR with tls.crt and tls.key)",
                                                   tokens_ != nullptr ? " or a token (--token-file FILE)" : "",
                                                   ": this server has to know who calls"));
  }
  MILLRACE_ASSIGN_OR_RETURN(const Role role, CertificateRole(connection));
  if (role == Role::kOperator || role == Role::kViewer) MILLRACE_RETURN_IF_ERROR(CheckNotEnded(connection, now_()));
  std::string name = CertificateName(connection);
  return Caller{.name = name.empty() ? absl::StrCat(kRoleUri, RoleName(role)) : std::move(name), .role = role};
}

absl::Status Access::Check(absl::string_view method, const grpc::AuthContext& connection, const Metadata& metadata,
                           const std::string& peer) {
  const MethodRule* const rule = FindMethodRule(method);
  if (rule != nullptr && rule->anybody) return absl::OkStatus();
  const bool token = metadata.find("authorization") != metadata.end();
  return Decide(method, Identify(connection, metadata),
                token                        ? "token"
                : HasCertificate(connection) ? "certificate"
                                             : "missing",
                CertificateName(connection), peer);
}

absl::StatusOr<Caller> Access::CheckToken(absl::string_view method, absl::string_view token, const std::string& peer) {
  absl::StatusOr<Caller> caller = absl::UnauthenticatedError("bring a token: this coordinator has to know who asks");
  if (!token.empty()) {
    const std::optional<TokenOwner> owner = tokens_ == nullptr ? std::nullopt : tokens_->Find(token);
    if (owner.has_value()) {
      caller = Caller{.name = owner->name, .role = owner->role};
    } else {
      caller = absl::UnauthenticatedError("nobody has this token");
    }
  }
  MILLRACE_RETURN_IF_ERROR(Decide(method, caller, token.empty() ? "missing" : "token", "", peer));
  return caller;
}

absl::Status Access::Decide(absl::string_view method, const absl::StatusOr<Caller>& caller, const char* reason,
                            const std::string& name, const std::string& peer) {
  const MethodRule* const rule = FindMethodRule(method);
  absl::Status status = caller.status();
  if (caller.ok()) {
    reason = "role";
    if (rule == nullptr) {
      status = absl::PermissionDeniedError(
          absl::StrCat("nobody may call ", ShortMethod(method), ": there is no rule for it"));
    } else if (!Allows(*rule, caller->role)) {
      status = absl::PermissionDeniedError(absl::StrCat("a ", RoleName(caller->role), " ('", caller->name,
                                                        "') may not call ", ShortMethod(method), ": ", WhoMay(*rule),
                                                        " may"));
    }
  }
  if (status.ok()) return status;
  Failures(reason)->Increment();
  if (audit_ != nullptr) {
    AuditEntry entry;
    entry.time = absl::Now();
    entry.who = caller.ok() ? caller->name : name;
    if (caller.ok()) entry.role = std::string(RoleName(caller->role));
    entry.peer = peer;
    entry.method = ShortMethod(method);
    entry.code = absl::StatusCodeToString(status.code());
    entry.message = std::string(status.message());
    audit_->AppendRefusal(entry);
  }
  return status;
}

void Access::Record(absl::string_view method, const Caller& caller, const std::string& peer, const std::string& job,
                    const absl::Status& outcome) {
  const MethodRule* const rule = FindMethodRule(method);
  if (audit_ == nullptr || rule == nullptr || !rule->changes) return;
  AuditEntry entry;
  entry.time = absl::Now();
  entry.who = caller.name.empty() ? std::string(kLocal) : caller.name;
  entry.role = std::string(RoleName(caller.role));
  entry.peer = peer;
  entry.method = ShortMethod(method);
  entry.job = job;
  entry.code = absl::StatusCodeToString(outcome.code());
  entry.message = std::string(outcome.message());
  audit_->Append(entry);
}

std::shared_ptr<grpc::AuthMetadataProcessor> Access::Processor() { return std::make_shared<Checker>(this); }

std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> Access::Interceptors() {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<WitnessFactory>(this));
  return factories;
}

std::string CallerOf(const grpc::ServerContextBase& context) { return CallersNow::Get().Find(&context); }

absl::Status StillAllowed(const grpc::ServerContextBase& context) {
  const std::function<absl::Status()> check = CallersNow::Get().DueCheck(&context);
  return check == nullptr ? absl::OkStatus() : check();
}

}  // namespace millrace
