#include "bench/delayed_links.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

// A frame may be as large as a segment before it is cut for the wire: then one costs little more than a small one.
constexpr size_t kFrameBytes = (64 << 10) + 512;
constexpr unsigned int kOffloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

absl::StatusOr<int> OpenTap(const std::string& name) {
  const auto failed = [&](absl::string_view what) {
    return absl::UnavailableError(absl::StrCat("no TAP device ", name, ": ", what, ": ", std::strerror(errno)));
  };
  const int descriptor = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) return failed("/dev/net/tun");
  ifreq request = {};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  if (ioctl(descriptor, TUNSETIFF, &request) != 0 || ioctl(descriptor, TUNSETOFFLOAD, kOffloads) != 0) {
    const absl::Status status = failed("ioctl");
    close(descriptor);
    return status;
  }
  return descriptor;
}

}  // namespace

DelayedLinks::~DelayedLinks() {
  if (carrying_.joinable()) {
    const uint64_t one = 1;
    if (write(stop_, &one, sizeof(one)) != sizeof(one)) std::abort();  // it never fails
    carrying_.join();
  }
  if (stop_ >= 0) close(stop_);
  for (const int end : ends_) close(end);
}

absl::Status DelayedLinks::Add(const std::string& one_end, const std::string& other_end) {
  for (const std::string& name : {one_end, other_end}) {
    MILLRACE_ASSIGN_OR_RETURN(const int end, OpenTap(name));
    ends_.push_back(end);
  }
  return absl::OkStatus();
}

absl::Status DelayedLinks::Start() {
  stop_ = eventfd(0, EFD_CLOEXEC);
  if (stop_ < 0) return absl::UnavailableError("no event to stop links with");
  carrying_ = std::thread([this] { Carry(); });
  // Where it may: frames are not to wait for those who compute.
  const sched_param first = {.sched_priority = 1};
  pthread_setschedparam(carrying_.native_handle(), SCHED_FIFO, &first);
  return absl::OkStatus();
}

void DelayedLinks::Carry() {
  std::vector<pollfd> polled;
  for (const int end : ends_) polled.push_back({end, POLLIN, 0});
  polled.push_back({stop_, POLLIN, 0});
  std::string buffer(kFrameBytes, 0);
  while (polled.back().revents == 0) {
    const absl::Duration left =
        on_the_way_.empty() ? absl::Hours(1) : std::max(absl::ZeroDuration(), on_the_way_.front().due - absl::Now());
    const timespec most = absl::ToTimespec(left);
    if (ppoll(polled.data(), polled.size(), &most, nullptr) < 0) return;
    for (size_t i = 0; i < ends_.size(); ++i) {
      if (polled[i].revents == 0) continue;
      for (ssize_t size; (size = read(ends_[i], buffer.data(), buffer.size())) > 0;) {
        on_the_way_.push_back({absl::Now() + delay_, ends_[i ^ 1], buffer.substr(0, static_cast<size_t>(size))});
      }
    }
    for (const absl::Time now = absl::Now(); !on_the_way_.empty() && on_the_way_.front().due <= now;) {
      const Frame& frame = on_the_way_.front();
      // What an interface does not take is lost, as on any wire.
      const ssize_t written = write(frame.to, frame.bytes.data(), frame.bytes.size());
      (void)written;
      on_the_way_.pop_front();
    }
  }
}

}  // namespace millrace::bench
