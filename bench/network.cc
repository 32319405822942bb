#include "bench/network.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "bench/processes.h"
#include "common/files.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

constexpr char kIp[] = "/sbin/ip";
constexpr char kBridge[] = "mrbench";
// Of what each end of a link sends: the kernel's token bucket.
constexpr char kGigabit[] = "tbf rate 1gbit burst 256kb latency 50ms";
// On each link, of which two lie between hosts. Not by the kernel's netem, which many lack.
constexpr absl::Duration kDelay = absl::Microseconds(500);

// Of the namespace, and of the link's end at the bridge.
std::string Host(int host) { return absl::StrCat(kBridge, "-", host); }
std::string Address(int host) { return absl::StrCat("10.213.7.", 10 + host); }

// With what it said last if it fails.
absl::Status Run(const std::string& script) {
  const TemporaryFolder folder;
  const std::string log = folder.path() + "/log";
  if (std::system(absl::StrCat("exec >", log, " 2>&1; set -e; PATH=$PATH:/sbin:/usr/sbin\n", script).c_str()) == 0) {
    return absl::OkStatus();
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::string said, ReadFile(log, 1 << 16));
  return absl::UnavailableError(absl::StripAsciiWhitespace(said));
}

}  // namespace

Network::Network(int hosts) : hosts_(hosts), links_(std::make_unique<DelayedLinks>(kDelay)) {}

absl::StatusOr<std::unique_ptr<Network>> Network::Make(int hosts) {
  if (geteuid() != 0) return absl::UnavailableError("only root makes network namespaces");
  std::unique_ptr<Network> network(new Network(hosts));
  network->Remove();  // what one left that was killed
  std::string script = absl::StrCat("ip link add ", kBridge, " type bridge\nip addr add 10.213.7.1/24 dev ", kBridge,
                                    "\nip link set ", kBridge, " up\n");
  for (int i = 0; i < hosts; ++i) {
    const std::string host = Host(i), inner = absl::StrCat(kBridge, "+", i);
    MILLRACE_RETURN_IF_ERROR(network->links_->Add(host, inner));
    absl::StrAppend(&script, "ip netns add ", host, "\nip link set ", inner, " netns ", host,
                    " name eth0\nip link set ", host, " master ", kBridge, " up\nip -n ", host, " addr add ",
                    Address(i), "/24 dev eth0\nip -n ", host, " link set eth0 up\nip -n ", host,
                    " link set lo up\ntc qdisc add dev ", host, " root ", kGigabit, "\ntc -n ", host,
                    " qdisc add dev eth0 root ", kGigabit, "\n");
  }
  MILLRACE_RETURN_IF_ERROR(Annotate(Run(script), "no network"));
  MILLRACE_RETURN_IF_ERROR(network->links_->Start());
  return network;
}

Network::~Network() {
  links_.reset();  // and with it the devices
  Remove();
}

void Network::Remove() const {
  std::string script = absl::StrCat("ip link del ", kBridge, " || true\n");
  for (int i = 0; i < hosts_; ++i) absl::StrAppend(&script, "ip netns del ", Host(i), " || true\n");
  Run(script).IgnoreError();
}

std::vector<std::string> Network::On(int host, std::vector<std::string> command, bool serves) const {
  const std::string prefix[] = {kIp, "netns", "exec", Host(host)};
  command.insert(command.begin(), std::begin(prefix), std::end(prefix));
  if (serves) command.insert(command.end(), {"--listen", absl::StrCat(Address(host), ":0"), "--plaintext"});
  return command;
}

}  // namespace millrace::bench
