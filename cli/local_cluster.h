// Runs a cluster on this machine: a coordinator, shards and workers as child processes of this same program.
//
// In the cluster's directory, which is the coordinator's:
//   logs/NAME.log    output of each process: coordinator, shard-1…, worker-1…
//   cluster.lock     locked while the cluster runs
//   cluster.json     while it runs: {"coordinator": "HOST:PORT", "supervisor": PID,
//                                    "processes": [{"name": NAME, "pid": PID, "log": PATH}, …]}
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::cli {

struct LocalClusterOptions {
  std::string program;                // the millrace binary
  std::string directory;              // made if absent
  int shards = 1;
  int workers = 1;
  int threads = 0;                    // of each worker; 0: this machine's cores shared out
  std::vector<std::string> max_isas;  // of the workers in turn; empty: what the processor has
  std::string listen = "127.0.0.1:0";  // of the coordinator
  std::string http;                    // where it serves the rating page; empty: nowhere
  std::string http_token_file;         // empty: none
  bool plaintext = false;               // it may listen to other machines
  std::vector<std::string> data_roots;  // outside of which its jobs may read nothing; empty: no bounds
  double lease_seconds = 10;
  // Told what happens to processes, from the supervising thread.
  std::function<void(absl::string_view)> say;
};

// A process that ends is started again: at once, then after growing pauses if it ends soon each time; after some such
// failures the cluster is given up and status() says why, with the end of the process' log.
//
// A coordinator started again serves at the same address. Thread-safe.
class LocalCluster {
 public:
  // Returns once the coordinator serves. FAILED_PRECONDITION if a cluster runs in the directory already.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(LocalClusterOptions options);
  // Starts the shards and workers.
  void StartMembers();
  // Stops.
  ~LocalCluster();

  std::string coordinator() const;
  absl::Status status() const;
  // Waits until the cluster is given up or `done` says so, which is asked after each Wake.
  void Await(const std::function<bool()>& done) const;
  void Wake();

  // The coordinator first, so that it can checkpoint with the others' help, then the rest. Idempotent.
  void Stop();

 private:
  struct Impl;
  explicit LocalCluster(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

// What cluster.json says of a cluster that runs.
struct RunningCluster {
  std::string coordinator;
  pid_t supervisor = 0;
  struct Process {
    std::string name;
    pid_t pid = 0;
    std::string log;
  };
  std::vector<Process> processes;
};
// NOT_FOUND: no cluster runs there.
absl::StatusOr<RunningCluster> FindRunningCluster(const std::string& directory);

// Processors this process may run on.
int Cores();
// The last lines of a file, each indented; for messages.
std::string LogTail(const std::string& path, int lines);

}  // namespace millrace::cli
