// A network of hosts on this machine: namespaces on a bridge, whose links are held to a speed. One at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace::bench {

class Network {
 public:
  // 1 Gbit/s each way, and 1 ms from one host to another: the kernel needs netem.
  static constexpr char kGigabitMillisecond[] = "netem rate 1gbit delay 500us limit 10000";
  // 1 Gbit/s each way: the token bucket, which more kernels have.
  static constexpr char kGigabit[] = "tbf rate 1gbit burst 256kb latency 50ms";

  // `shape` is what tc does at both ends of each link. UNAVAILABLE says what this machine lacks for it.
  static absl::StatusOr<std::unique_ptr<Network>> Make(int hosts, const std::string& shape);
  // Nothing may run on the hosts any more.
  ~Network();

  // `command`, a program's path first, as it runs on a host, and listens there if it `serves`.
  std::vector<std::string> On(int host, std::vector<std::string> command, bool serves) const;

 private:
  explicit Network(int hosts) : hosts_(hosts) {}
  void Remove() const;

  const int hosts_;
};

}  // namespace millrace::bench
