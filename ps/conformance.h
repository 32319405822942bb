// Says in one digest what this build computes on this processor, so that a cluster takes in only shards that agree.
#pragma once

#include <string>

namespace millrace::ps {

// SHA-256, in hex, over the results of every kernel, of some steps of every optimizer on blocks and whole matrices, of
// every schedule, and of coding gradients. Equal on every processor, or something is broken. Takes a fraction of a
// second.
std::string ConformanceDigest();

}  // namespace millrace::ps
