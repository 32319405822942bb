#include "common/process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

// glibc 2.36's header leaves out the extern "C" that its functions need.
extern "C" {
#include <sys/pidfd.h>
}

namespace millrace {
namespace {

// Between fork and exec only what is safe after a fork of a threaded process may be called: system calls, no
// allocation. Reports errno through `report` and does not return.
[[noreturn]] void BecomeChild(const ChildProcess::Options& options, char* const* arguments, int input, int output,
                              pid_t parent, int report) {
  const auto fail = [report] {
    const int code = errno;
    (void)!write(report, &code, sizeof(code));
    _exit(127);
  };
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int number : {SIGINT, SIGTERM, SIGPIPE, SIGHUP}) signal(number, SIG_DFL);
  if (options.dies_with_parent) {
    setpgid(0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) fail();
    if (getppid() != parent) _exit(127);  // it ended before this was set
  } else {
    setsid();
  }
  if (dup2(input, 0) < 0) fail();
  if (output >= 0 && (dup2(output, 1) < 0 || dup2(output, 2) < 0)) fail();
  close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
  const auto limit = [&fail](auto resource, uint64_t most) {
    const rlimit both = {.rlim_cur = most, .rlim_max = most};
    if (most > 0 && setrlimit(resource, &both) != 0) fail();
  };
  limit(RLIMIT_AS, options.max_memory);
  limit(RLIMIT_FSIZE, options.max_written);
  if (!options.directory.empty() && chdir(options.directory.c_str()) != 0) fail();
  execv(arguments[0], arguments);
  fail();
  _exit(127);
}

}  // namespace

std::string Ending::Describe() const {
  if (signal != 0) return absl::StrCat("was killed by signal ", signal, " (", strsignal(signal), ")");
  return absl::StrCat("exited with status ", status);
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const Options& options) {
  if (options.arguments.empty()) return absl::InvalidArgumentError("no program to start");
  const std::string& program = options.arguments[0];
  std::vector<char*> arguments;
  for (const std::string& argument : options.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);

  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int output = -1;
  if (!options.log_file.empty()) {
    output = open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output < 0) {
      const int code = errno;
      for (int descriptor : {report[0], report[1], input}) close(descriptor);
      return absl::ErrnoToStatus(code, absl::StrCat("cannot write ", options.log_file));
    }
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) BecomeChild(options, arguments.data(), input, output, parent, report[1]);
  const int forked = errno;
  close(report[1]);
  close(input);
  if (output >= 0) close(output);
  if (pid < 0) {
    close(report[0]);
    return absl::ErrnoToStatus(forked, absl::StrCat("cannot start ", program));
  }
  int code = 0;
  ssize_t got;
  do {
    got = read(report[0], &code, sizeof(code));
  } while (got < 0 && errno == EINTR);
  close(report[0]);
  if (got == sizeof(code)) {
    waitpid(pid, nullptr, 0);
    return absl::ErrnoToStatus(code, absl::StrCat("cannot start ", program));
  }
  const int descriptor = pidfd_open(pid, 0);
  if (descriptor < 0) {
    code = errno;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return absl::ErrnoToStatus(code, absl::StrCat("cannot watch ", program));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, descriptor, options.dies_with_parent));
}

ChildProcess::~ChildProcess() {
  if (dies_with_parent_) {
    Signal(SIGKILL);
    Wait(absl::InfiniteFuture());
  }
  close(descriptor_);
}

void ChildProcess::Signal(int signal) {
  absl::MutexLock lock(&mutex_);
  if (!ending_.has_value()) kill(pid_, signal);
}

Ending ChildProcess::KillGroup() {
  {
    absl::MutexLock lock(&mutex_);
    // Until it is waited for, no other process can have its number; it leads the group of that number.
    if (!ending_.has_value()) kill(-pid_, SIGKILL);
  }
  return *Wait(absl::InfiniteFuture());
}

std::optional<Ending> ChildProcess::Wait(absl::Time deadline) {
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (ending_.has_value()) return ending_;
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        ending_ = WIFSIGNALED(status) ? Ending{.signal = WTERMSIG(status)} : Ending{.status = WEXITSTATUS(status)};
        return ending_;
      }
    }
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return std::nullopt;
    pollfd ended = {.fd = descriptor_, .events = POLLIN, .revents = 0};
    poll(&ended, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Minutes(1)))) + 1);
  }
}

absl::StatusOr<std::string> OwnProgram() {
  std::string path(4096, '\0');
  const ssize_t size = readlink("/proc/self/exe", path.data(), path.size());
  if (size <= 0 || static_cast<size_t>(size) == path.size()) return absl::ErrnoToStatus(errno, "cannot read /proc/self/exe");
  path.resize(static_cast<size_t>(size));
  return path;
}

}  // namespace millrace
