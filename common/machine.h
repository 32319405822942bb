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
// Memory that this process may have: the machine's, or its container's limit if that is less.
uint64_t MemoryLimit();
// How much of that is free or can be made free, by the word of the kernel at this moment.
uint64_t AvailableMemory();
// HOST:PID, for naming members of a cluster.
std::string ProcessName();

}  // namespace millrace
