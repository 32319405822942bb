// Says what this process is and runs on, for joining a cluster and for metrics.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

// "millrace 0.1.0, gcc 12.2.0".
std::string BuildDescription();
// The processor's model name as the kernel knows it, in printable ASCII; "unknown processor" if it does not say.
std::string ProcessorName();
// Memory of this process that is resident; 0 if unknown.
uint64_t ResidentBytes();
// Memory that this process may have: the machine's, or the least limit of its control groups (of a container, or of
// systemd's) if that is less.
uint64_t MemoryLimit();
// How much of that is free or can be made free, by the word of the kernel at this moment.
uint64_t AvailableMemory();
// What control groups leave a process; the largest number where there is no limit.
struct GroupMemory {
  uint64_t limit = UINT64_MAX;
  uint64_t available = UINT64_MAX;
};
// Of the process' group and those above it, of version 2 or 1: `groups` is what the kernel writes in /proc/PID/cgroup,
// `root` where control groups are mounted.
GroupMemory MemoryOfGroups(const std::string& groups, const std::string& root);
// HOST:PID, for naming members of a cluster.
std::string ProcessName();

}  // namespace millrace
