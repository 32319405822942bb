// A network of hosts on this machine: namespaces on a bridge, whose links have the speed and the delay of a local
// network. One at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/delayed_links.h"

namespace millrace::bench {

class Network {
 public:
  // 1 Gbit/s each way, and 1 ms from one host to another. UNAVAILABLE says what this machine lacks for it.
  static absl::StatusOr<std::unique_ptr<Network>> Make(int hosts);
  // Nothing may run on the hosts any more.
  ~Network();

  // `command`, a program's path first, as it runs on a host, and listens there if it `serves`.
  std::vector<std::string> On(int host, std::vector<std::string> command, bool serves) const;

 private:
  explicit Network(int hosts);
  void Remove() const;

  const int hosts_;
  std::unique_ptr<DelayedLinks> links_;
};

}  // namespace millrace::bench
