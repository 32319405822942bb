// Runs a cluster of real processes of the millrace binary, on ports of the system's choice, in a temporary folder.
//
//   Cluster cluster({.workers = 2, .shards = 2});
//   const std::string job = cluster.Submit("examples/tiny.yaml", {"phases.0.stop.max_steps=20"});
//   cluster.worker(0).Kill();
//   cluster.AwaitEnd(job);
//   EXPECT_EQ(cluster.LastDigest(job), …);
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/coordinator_client.h"
#include "common/process.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::testing {

// A folder in /tmp that goes with the object, unless a test in it has failed.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// The binary under test.
std::string Millrace();

// One process of the cluster.
class Member {
 public:
  Member(std::string name, std::vector<std::string> arguments, std::string log_file, std::string address_file);

  const std::string& name() const { return name_; }
  // HOST:PORT; waits until the process serves.
  std::string address() const;
  std::string log() const;
  bool running() const { return process_ != nullptr && process_->running(); }

  void Kill();         // SIGKILL, and waits for the end
  void Stop();         // SIGSTOP: alive but silent
  void Continue();     // SIGCONT
  Ending Terminate();  // SIGTERM, and waits for the end; kills and fails the test after 30 s
  std::optional<Ending> AwaitEnd(absl::Duration patience);
  // The same again, under the same name and address if it had one.
  void Restart();

 private:
  const std::string name_;
  std::vector<std::string> arguments_;
  const std::string log_file_;
  const std::string address_file_;
  std::unique_ptr<ChildProcess> process_;
};

// Failures are test failures (ADD_FAILURE or a fatal abort that says what was waited for, with the ends of the logs).
class Cluster {
 public:
  struct Options {
    int workers = 1;
    int shards = 1;
    int threads = 1;                    // of each worker
    std::vector<std::string> max_isas;  // of the workers in turn; empty: no limit
    bool share_memory = true;           // workers with shards
    double lease_seconds = 10;
    std::string directory;     // of the coordinator; empty: a temporary one
    std::string data_root;     // jobs may read nothing outside of it; empty: no such bound
    std::string certificates;  // with a folder for each role and one for the operator; empty: plain TCP
    bool page = false;         // the coordinator serves the rating page
    bool metrics = false;      // every process serves metrics
    bool health = false;       // all tell their health
  };
  explicit Cluster(Options options);
  ~Cluster();

  Member& coordinator() { return *coordinator_; }
  Member& worker(size_t i) { return *workers_.at(i); }
  Member& shard(size_t i) { return *shards_.at(i); }
  size_t workers() const { return workers_.size(); }
  // Where a member tells its health.
  const std::string& health(const Member& member) const { return health_.at(member.name()); }
  client::CoordinatorClient& client() { return *client_; }
  const std::string& directory() const { return directory_; }

  // Starts one more; returns its index.
  size_t AddWorker(const std::string& max_isa = "");
  size_t AddShard();
  // Every process at once, as a power failure does.
  void KillAll();
  // Everything again in the same folder.
  void StartAll();

  // Returns the job's id.
  std::string Submit(const std::string& job_file, const std::vector<std::string>& overrides = {});
  v1::Job Job(const std::string& job_id);
  // Waits until `what` holds of the job.
  v1::Job Await(const std::string& job_id, const std::string& what, const std::function<bool(const v1::Job&)>& holds,
                absl::Duration patience = absl::Seconds(60));
  v1::Job AwaitStep(const std::string& job_id, uint64_t step);
  // Waits for the job's end; it must be a success.
  v1::Job AwaitSuccess(const std::string& job_id);
  v1::Job AwaitFailure(const std::string& job_id);

  std::string Checkpoint(const std::string& job_id, const std::string& which) const;
  // Of the final checkpoint, by TensorDigest.
  std::string LastDigest(const std::string& job_id) const;
  // Sum over the shards of a metric's present value, named as in Prometheus' text: "a_total{b=\"c\"}".
  double ShardMetric(const std::string& name) const;
  // HOST:PORT of the metrics of the processes of a role: coordinator, shard or worker.
  const std::vector<std::string>& metrics(const std::string& role) const { return metrics_.at(role); }
  // The ends of all logs.
  std::string Logs() const;

 private:
  std::unique_ptr<Member> NewMember(const std::string& name, std::vector<std::string> arguments, bool serves);
  std::string CertificateOf(const std::string& role) const { return options_.certificates + "/" + role; }
  void Connect();
  void ServeMetrics(const std::string& role, std::vector<std::string>* arguments);

  Options options_;
  TemporaryFolder folder_;
  std::string directory_;
  std::unique_ptr<Member> coordinator_;
  std::vector<std::unique_ptr<Member>> workers_;
  std::vector<std::unique_ptr<Member>> shards_;
  std::map<std::string, std::vector<std::string>> metrics_;
  std::map<std::string, std::string> health_;  // addresses, by the members' names
  std::unique_ptr<client::CoordinatorClient> client_;
};

// SHA-256 over the tensors of a checkpoint's model.safetensors and, if there is one, its adapter, as docs/formats.md
// defines it, computed from the files alone, without Millrace's own reader or checksums.
std::string TensorDigest(const std::string& checkpoint);

// Output and status of `millrace ARGUMENTS`.
struct Outcome {
  Ending ending;
  std::string out;  // standard output and error
};
Outcome RunMillrace(const std::vector<std::string>& arguments, absl::Duration patience = absl::Seconds(60));

// HOST:PORT where nobody listens now.
std::string FreeAddress();

// The instruction sets that `--max-isa` takes on this machine, the plainest first.
std::vector<std::string> InstructionSets();

}  // namespace millrace::testing
