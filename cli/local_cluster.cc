#include "cli/local_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/process.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// A process that lives so long was started well.
constexpr absl::Duration kWellStarted = absl::Seconds(10);
constexpr int kQuickEnds = 6;
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
// How long a process may take to leave once asked.
constexpr absl::Duration kCoordinatorLeaves = absl::Seconds(60);
constexpr absl::Duration kMemberLeaves = absl::Seconds(10);
constexpr absl::Duration kCoordinatorServes = absl::Seconds(60);
constexpr size_t kMaxStateBytes = 1 << 20;

std::string StateFile(const std::string& directory) { return absl::StrCat(directory, "/cluster.json"); }
std::string LockFile(const std::string& directory) { return absl::StrCat(directory, "/cluster.lock"); }

// A file lock, held by this object until destroyed. An open-file-description lock, so that one can ask whether it is
// held without taking it.
class Lock {
 public:
  // FAILED_PRECONDITION: somebody holds it.
  static absl::StatusOr<std::unique_ptr<Lock>> Take(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
    std::unique_ptr<Lock> lock(new Lock(descriptor));
    struct flock whole = WholeFile();
    if (fcntl(descriptor, F_OFD_SETLK, &whole) != 0) return absl::FailedPreconditionError("locked");
    return lock;
  }
  static bool IsHeld(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return false;
    struct flock whole = WholeFile();
    const bool held = fcntl(descriptor, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
    close(descriptor);
    return held;
  }
  ~Lock() { close(descriptor_); }

 private:
  explicit Lock(int descriptor) : descriptor_(descriptor) {}
  static struct flock WholeFile() {
    struct flock whole = {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    return whole;
  }
  const int descriptor_;
};

// One place in the cluster and the process that fills it at present.
struct Place {
  std::string name;
  std::string log;
  std::vector<std::string> arguments;  // without the name
  int lives = 0;                       // processes started so far
  std::unique_ptr<ChildProcess> child;
  absl::Time started;
  int quick_ends = 0;
  absl::Time start_at;  // when there is no child
};

}  // namespace

struct LocalCluster::Impl {
  LocalClusterOptions options;
  std::unique_ptr<Lock> lock;
  int wake = -1;  // eventfd: the thread looks at what is wanted

  // The supervising thread's own.
  std::vector<Place> places;
  std::thread thread;

  mutable absl::Mutex mutex;
  mutable absl::CondVar changed ABSL_GUARDED_BY(mutex);
  std::string coordinator ABSL_GUARDED_BY(mutex);  // constant once set
  bool members_wanted ABSL_GUARDED_BY(mutex) = false;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  absl::Status status ABSL_GUARDED_BY(mutex);

  ~Impl() {
    if (wake >= 0) close(wake);
  }

  void Say(const std::string& text) const {
    if (options.say) options.say(text);
  }
  void Nudge() {
    const uint64_t one = 1;
    (void)!write(wake, &one, sizeof(one));
  }
  void GiveUp(const absl::Status& why) {
    absl::MutexLock lock(&mutex);
    if (status.ok()) status = why;
    changed.SignalAll();
  }
  bool Stopping() const {
    absl::MutexLock lock(&mutex);
    return stopping;
  }
  std::string LogOf(const std::string& name) const { return absl::StrCat(options.directory, "/logs/", name, ".log"); }

  void Run();
  void Supervise();
  void StartCoordinator();
  void AddMembers(const std::string& address);
  absl::Status StartPlace(Place* place);
  void Ended(Place* place, const Ending& ending);
  void WriteState();
  void StopAll();
};

absl::Status LocalCluster::Impl::StartPlace(Place* place) {
  ChildProcess::Options child;
  child.arguments = {options.program};
  child.arguments.insert(child.arguments.end(), place->arguments.begin(), place->arguments.end());
  ++place->lives;
  // The coordinator may not know yet that the former process has died: the next one goes by another name.
  if (place != &places[0]) {
    child.arguments.push_back("--name");
    child.arguments.push_back(place->lives == 1 ? place->name : absl::StrCat(place->name, ".", place->lives));
  }
  // The environment may name certificates for another cluster: this one stays on this machine.
  child.arguments.push_back("--tls=");
  child.log_file = place->log;
  MILLRACE_ASSIGN_OR_RETURN(place->child, ChildProcess::Start(child));
  place->started = absl::Now();
  return absl::OkStatus();
}

void LocalCluster::Impl::WriteState() {
  Json state;
  {
    absl::MutexLock lock(&mutex);
    state["coordinator"] = coordinator;
  }
  state["supervisor"] = getpid();
  state["processes"] = Json::array();
  for (const Place& place : places) {
    if (place.child == nullptr) continue;
    state["processes"].push_back({{"name", place.name}, {"pid", place.child->pid()}, {"log", place.log}});
  }
  const absl::Status written = WriteFileAtomically(StateFile(options.directory), state.dump(2) + "\n");
  if (!written.ok()) Say(std::string(written.message()));
}

void LocalCluster::Impl::StartCoordinator() {
  const std::string address_file = absl::StrCat(options.directory, "/coordinator.address");
  std::error_code ignored;
  fs::remove(address_file, ignored);
  Place place;
  place.name = "coordinator";
  place.log = LogOf(place.name);
  place.arguments = {"coordinator",    "--dir",    options.directory,
                     "--listen",       options.listen, "--address-file", address_file,
                     "--shards",       absl::StrCat(options.shards),
                     "--lease",        absl::StrCat(options.lease_seconds)};
  if (options.plaintext) place.arguments.push_back("--plaintext");
  for (const std::string& root : options.data_roots) place.arguments.push_back(absl::StrCat("--data-root=", root));
  if (!options.http.empty()) {
    place.arguments.insert(place.arguments.end(), {"--http", options.http});
    if (!options.http_token_file.empty()) {
      place.arguments.insert(place.arguments.end(), {"--http-token", options.http_token_file});
    }
  }
  places.push_back(std::move(place));
  Place& coordinator_place = places[0];
  if (absl::Status started = StartPlace(&coordinator_place); !started.ok()) return GiveUp(started);
  const absl::Time deadline = absl::Now() + kCoordinatorServes;
  for (;;) {
    std::ifstream file(address_file);
    std::string address;
    if (file >> address) {
      // Whatever happens later, it is to be found at the same address.
      coordinator_place.arguments[4] = address;
      absl::MutexLock lock(&mutex);
      coordinator = address;
      changed.SignalAll();
      return;
    }
    const std::optional<Ending> ending = coordinator_place.child->Wait(absl::Now() + absl::Milliseconds(10));
    if (ending.has_value()) {
      return GiveUp(absl::UnavailableError(absl::StrCat("the coordinator ", ending->Describe(), "; ",
                                                        coordinator_place.log, " ends:\n",
                                                        LogTail(coordinator_place.log, 5))));
    }
    if (absl::Now() > deadline) {
      return GiveUp(absl::DeadlineExceededError(absl::StrCat("the coordinator does not serve after ",
                                                             absl::FormatDuration(kCoordinatorServes), "; see ",
                                                             coordinator_place.log)));
    }
  }
}

void LocalCluster::Impl::AddMembers(const std::string& address) {
  for (int i = 0; i < options.shards; ++i) {
    Place place;
    place.name = absl::StrCat("shard-", i + 1);
    place.log = LogOf(place.name);
    place.arguments = {"ps", "--coordinator", address};
    places.push_back(std::move(place));
  }
  for (int i = 0; i < options.workers; ++i) {
    Place place;
    place.name = absl::StrCat("worker-", i + 1);
    place.log = LogOf(place.name);
    const int threads = options.threads > 0 ? options.threads : std::max(1, Cores() / std::max(1, options.workers));
    place.arguments = {"worker", "--coordinator", address, "--threads", absl::StrCat(threads)};
    if (!options.max_isas.empty()) {
      place.arguments.push_back("--max-isa");
      place.arguments.push_back(options.max_isas[static_cast<size_t>(i) % options.max_isas.size()]);
    }
    places.push_back(std::move(place));
  }
  for (Place& place : places) {
    if (place.child != nullptr) continue;
    if (absl::Status started = StartPlace(&place); !started.ok()) return GiveUp(started);
  }
  WriteState();
}

void LocalCluster::Impl::Ended(Place* place, const Ending& ending) {
  const absl::Time now = absl::Now();
  const pid_t pid = place->child->pid();
  place->child.reset();
  place->quick_ends = now - place->started < kWellStarted ? place->quick_ends + 1 : 1;
  if (place->quick_ends >= kQuickEnds) {
    return GiveUp(absl::UnavailableError(absl::StrCat(place->name, " ended ", place->quick_ends,
                                                      " times in a row soon after its start; the last time it ",
                                                      ending.Describe(), "; ", place->log, " ends:\n",
                                                      LogTail(place->log, 5))));
  }
  const absl::Duration pause =
      place->quick_ends <= 1 ? absl::ZeroDuration()
                             : std::min(kLongestPause, kFirstPause * (1 << (place->quick_ends - 2)));
  place->start_at = now + pause;
  Say(absl::StrCat(place->name, " (process ", pid, ") ", ending.Describe(), "; it is started again"));
}

void LocalCluster::Impl::Supervise() {
  bool members_added = false;
  for (;;) {
    bool add = false;
    std::string address;
    {
      absl::MutexLock lock(&mutex);
      if (stopping) return;
      add = members_wanted && !members_added;
      address = coordinator;
    }
    if (add) {
      AddMembers(address);
      members_added = true;
    }
    std::vector<pollfd> watched = {{.fd = wake, .events = POLLIN, .revents = 0}};
    absl::Time next_start = absl::InfiniteFuture();
    for (const Place& place : places) {
      if (place.child != nullptr) {
        watched.push_back({.fd = place.child->descriptor(), .events = POLLIN, .revents = 0});
      } else {
        next_start = std::min(next_start, place.start_at);
      }
    }
    const absl::Duration left = std::clamp(next_start - absl::Now(), absl::ZeroDuration(), absl::Minutes(1));
    poll(watched.data(), watched.size(), static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (watched[0].revents != 0) {
      uint64_t count;
      (void)!read(wake, &count, sizeof(count));
    }
    {
      absl::MutexLock lock(&mutex);
      if (stopping || !status.ok()) return;
    }
    bool changes = false;
    for (Place& place : places) {
      if (place.child == nullptr) continue;
      if (const std::optional<Ending> ending = place.child->Wait(absl::InfinitePast()); ending.has_value()) {
        Ended(&place, *ending);
        changes = true;
      }
    }
    for (Place& place : places) {
      if (place.child != nullptr || place.start_at > absl::Now()) continue;
      if (absl::Status started = StartPlace(&place); !started.ok()) return GiveUp(started);
      changes = true;
    }
    if (changes) WriteState();
  }
}

void LocalCluster::Impl::StopAll() {
  const auto leave = [this](Place* place, absl::Time deadline) {
    if (place->child == nullptr || place->child->Wait(deadline).has_value()) return;
    Say(absl::StrCat(place->name, " (process ", place->child->pid(), ") does not leave and is killed"));
    place->child->Signal(SIGKILL);
    place->child->Wait(absl::InfiniteFuture());
  };
  if (places.empty()) return;
  if (places[0].child != nullptr) places[0].child->Signal(SIGTERM);
  leave(&places[0], absl::Now() + kCoordinatorLeaves);
  for (Place& place : places) {
    if (place.child != nullptr) place.child->Signal(SIGTERM);
  }
  const absl::Time deadline = absl::Now() + kMemberLeaves;
  for (Place& place : places) leave(&place, deadline);
  places.clear();
}

// Children end with the thread that started them, so this thread starts them all and stays to their end.
void LocalCluster::Impl::Run() {
  StartCoordinator();
  bool well;
  {
    absl::MutexLock lock(&mutex);
    well = status.ok();
  }
  if (well) {
    WriteState();
    Supervise();
  }
  {
    absl::MutexLock lock(&mutex);
    while (!stopping) changed.Wait(&mutex);
  }
  StopAll();
  std::error_code ignored;
  fs::remove(StateFile(options.directory), ignored);
}

LocalCluster::LocalCluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(LocalClusterOptions options) {
  std::error_code error;
  const fs::path directory = fs::absolute(options.directory).lexically_normal();
  options.directory = directory.filename().empty() ? directory.parent_path().string() : directory.string();
  fs::create_directories(absl::StrCat(options.directory, "/logs"), error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot make ", options.directory, "/logs: ", error.message()));
  }
  auto impl = std::make_unique<Impl>();
  absl::StatusOr<std::unique_ptr<Lock>> lock = Lock::Take(LockFile(options.directory));
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(absl::StrCat("a cluster runs in ", options.directory,
                                                      " already; `millrace down --dir ", options.directory,
                                                      "` stops it"));
  }
  if (!lock.ok()) return lock.status();
  impl->lock = *std::move(lock);
  impl->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (impl->wake < 0) return absl::ErrnoToStatus(errno, "cannot make an eventfd");
  impl->options = std::move(options);
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(std::move(impl)));
  Impl& inside = *cluster->impl_;
  inside.thread = std::thread([&inside] { inside.Run(); });
  {
    absl::MutexLock waiting(&inside.mutex);
    while (inside.coordinator.empty() && inside.status.ok()) inside.changed.Wait(&inside.mutex);
    if (inside.status.ok()) return cluster;
  }
  const absl::Status status = cluster->status();
  cluster->Stop();
  return status;
}

LocalCluster::~LocalCluster() { Stop(); }

void LocalCluster::StartMembers() {
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->members_wanted = true;
  }
  impl_->Nudge();
}

std::string LocalCluster::coordinator() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->coordinator;
}

absl::Status LocalCluster::status() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->status;
}

void LocalCluster::Await(const std::function<bool()>& done) const {
  absl::MutexLock lock(&impl_->mutex);
  while (impl_->status.ok() && !done()) impl_->changed.Wait(&impl_->mutex);
}

void LocalCluster::Wake() {
  absl::MutexLock lock(&impl_->mutex);
  impl_->changed.SignalAll();
}

void LocalCluster::Stop() {
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->stopping = true;
    impl_->changed.SignalAll();
  }
  impl_->Nudge();
  if (impl_->thread.joinable()) impl_->thread.join();
}

absl::StatusOr<RunningCluster> FindRunningCluster(const std::string& directory) {
  const absl::Status none =
      absl::NotFoundError(absl::StrCat("no cluster runs in ", directory, "; `millrace up --dir ", directory,
                                       "` starts one"));
  if (!Lock::IsHeld(LockFile(directory))) return none;
  const absl::StatusOr<std::string> text = ReadFile(StateFile(directory), kMaxStateBytes);
  if (absl::IsNotFound(text.status())) return none;
  if (!text.ok()) return text.status();
  const Json state = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  RunningCluster cluster;
  const auto bad = [&] { return absl::DataLossError(absl::StrCat(StateFile(directory), " is damaged")); };
  if (!state.is_object() || !state.contains("coordinator") || !state["coordinator"].is_string() ||
      !state.contains("supervisor") || !state["supervisor"].is_number_integer() || !state.contains("processes") ||
      !state["processes"].is_array()) {
    return bad();
  }
  cluster.coordinator = state["coordinator"].get<std::string>();
  cluster.supervisor = state["supervisor"].get<pid_t>();
  if (cluster.supervisor <= 1) return bad();
  for (const Json& process : state["processes"]) {
    if (!process.is_object() || !process.value("name", Json()).is_string() ||
        !process.value("pid", Json()).is_number_integer() || !process.value("log", Json()).is_string()) {
      return bad();
    }
    cluster.processes.push_back({process["name"].get<std::string>(), process["pid"].get<pid_t>(),
                                 process["log"].get<std::string>()});
  }
  return cluster;
}

int Cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

std::string LogTail(const std::string& path, int lines) {
  std::ifstream stream(path, std::ios::binary);
  stream.seekg(0, std::ios::end);
  const std::streamoff size = stream.tellg();
  stream.seekg(std::max<std::streamoff>(0, size - 16384));
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::vector<std::string> all = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  if (all.size() > static_cast<size_t>(lines)) all.erase(all.begin(), all.end() - lines);
  for (std::string& line : all) line = "  " + line;
  return all.empty() ? "  (nothing)" : absl::StrJoin(all, "\n");
}

}  // namespace millrace::cli
