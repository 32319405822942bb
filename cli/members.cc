// millrace members: lists the workers and shards of a cluster.
#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunMembers(Arguments arguments) {
  bool json = false;
  CoordinatorFlags where;
  Flags flags("members", "Lists the workers and shards of a cluster.", "");
  flags.Switch("json", "prints an object", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListMembersReply reply, coordinator.ListMembers());
  if (json) {
    std::printf("%s\n", ToJson(reply).dump(2).c_str());
    return absl::OkStatus();
  }
  int width = 4;
  for (const v1::ClusterMember& member : reply.members()) {
    width = std::max(width, static_cast<int>(member.name().size()));
  }
  std::printf("%-*s  %-6s  %7s  %8s  %9s  %s\n", width, "NAME", "ROLE", "THREADS", "MEMORY", "HEARD", "PROCESSOR");
  uint32_t shards = 0;
  for (const v1::ClusterMember& member : reply.members()) {
    shards += member.role() == "shard";
    const double silent = absl::ToDoubleSeconds(absl::Now() - absl::FromUnixMillis(member.last_heard_unix_ms()));
    std::printf("%-*s  %-6s  %7u  %4.0f MiB  %5.1f s  %s\n", width, member.name().c_str(), member.role().c_str(),
                member.threads(), static_cast<double>(member.resident_bytes()) / (1 << 20), std::max(silent, 0.0),
                member.processor().c_str());
  }
  if (shards < reply.wanted_shards()) {
    std::printf("%u of %u shards are there: jobs wait for the others\n", shards, reply.wanted_shards());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
