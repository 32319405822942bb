// Says who may call which method of which service. docs/security.md has the same table.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace {

// What a caller is, by its certificate or its token.
enum class Role : uint8_t {
  kCoordinator = 1,
  kShard = 2,
  kWorker = 4,
  kOperator = 8,  // people who submit and change jobs
  kViewer = 16,   // people who look at them
};

// "coordinator", "shard", …
absl::string_view RoleName(Role role);
std::optional<Role> ParseRole(absl::string_view name);
absl::Span<const Role> AllRoles();

// What a certificate's URI names begin with; the role follows.
inline constexpr char kRoleUri[] = "spiffe://millrace/";

// Those who may call a method. What is not in the table nobody may.
struct MethodRule {
  absl::string_view method;  // "/package.Service/Method"
  uint8_t roles;             // sum of Role
  bool anybody = false;      // who brings neither certificate nor token, too
  bool changes = false;      // something that people own: each call is in the audit log
};
absl::Span<const MethodRule> MethodRules();
// Null: there is none.
const MethodRule* FindMethodRule(absl::string_view method);

inline bool Allows(const MethodRule& rule, Role role) { return (rule.roles & static_cast<uint8_t>(role)) != 0; }

}  // namespace millrace
