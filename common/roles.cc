#include "common/roles.h"

namespace millrace {
namespace {

constexpr Role kRoles[] = {Role::kCoordinator, Role::kShard, Role::kWorker, Role::kOperator, Role::kViewer};

constexpr auto kCoordinator = static_cast<uint8_t>(Role::kCoordinator);
constexpr auto kShard = static_cast<uint8_t>(Role::kShard);
constexpr auto kWorker = static_cast<uint8_t>(Role::kWorker);
constexpr auto kOperator = static_cast<uint8_t>(Role::kOperator);
constexpr auto kViewer = static_cast<uint8_t>(Role::kViewer);

constexpr MethodRule kRules[] = {
    {.method = "/millrace.v1.Jobs/SubmitJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/ListJobs", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/GetJob", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/WatchJob", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/CancelJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/PauseJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/ResumeJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/DeleteJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/ListCheckpoints", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/FetchCheckpoint", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/UpdateJob", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/GetCurves", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/ListMembers", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/StartSweep", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Jobs/GetSweep", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/ListSweeps", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Jobs/CancelSweep", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Ratings/CreateRatingSet", .roles = kOperator, .changes = true},
    {.method = "/millrace.v1.Ratings/ListRatingSets", .roles = kOperator | kViewer},
    {.method = "/millrace.v1.Ratings/ExportRatings", .roles = kOperator},
    {.method = "/millrace.v1.Cluster/Join", .roles = kShard | kWorker},
    {.method = "/millrace.v1.Cluster/Attend", .roles = kShard | kWorker},
    // Shards say by it that they leave.
    {.method = "/millrace.v1.Cluster/NextWork", .roles = kShard | kWorker},
    {.method = "/millrace.v1.ParameterServer/Configure", .roles = kCoordinator},
    // Workers load what a model begins with.
    {.method = "/millrace.v1.ParameterServer/Load", .roles = kCoordinator | kWorker},
    {.method = "/millrace.v1.ParameterServer/Pull", .roles = kWorker},
    {.method = "/millrace.v1.ParameterServer/Push", .roles = kWorker},
    {.method = "/millrace.v1.ParameterServer/Norms", .roles = kCoordinator},
    {.method = "/millrace.v1.ParameterServer/Commit", .roles = kCoordinator},
    {.method = "/millrace.v1.ParameterServer/Snapshot", .roles = kCoordinator},
    {.method = "/millrace.v1.ParameterServer/Attach", .roles = kWorker},
    {.method = "/millrace.v1.ParameterServer/GetStatus", .roles = kCoordinator | kOperator},
    {.method = "/grpc.health.v1.Health/Check", .roles = 0, .anybody = true},
    {.method = "/grpc.health.v1.Health/Watch", .roles = 0, .anybody = true},
    {.method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", .roles = kOperator | kViewer},
};

}  // namespace

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kCoordinator:
      return "coordinator";
    case Role::kShard:
      return "shard";
    case Role::kWorker:
      return "worker";
    case Role::kOperator:
      return "operator";
    case Role::kViewer:
      return "viewer";
  }
  return "";
}

std::optional<Role> ParseRole(absl::string_view name) {
  for (const Role role : kRoles) {
    if (RoleName(role) == name) return role;
  }
  return std::nullopt;
}

absl::Span<const Role> AllRoles() { return kRoles; }

absl::Span<const MethodRule> MethodRules() { return kRules; }

const MethodRule* FindMethodRule(absl::string_view method) {
  for (const MethodRule& rule : kRules) {
    if (rule.method == method) return &rule;
  }
  return nullptr;
}

}  // namespace millrace
