// Calls the coordinator: its jobs for users, its work for workers, and membership for workers and shards.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/grpc_channel.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::client {

// One connection to a coordinator. Thread-safe. Calls fail with UNAVAILABLE naming the address when nobody answers
// there within `patience` (they wait so long for the connection; NextWork does not wait), and with UNAUTHENTICATED
// where TLS finds that it must not be trusted.
class CoordinatorClient {
 public:
  explicit CoordinatorClient(Endpoint coordinator, absl::Duration patience = absl::Seconds(10));
  ~CoordinatorClient();
  CoordinatorClient(const CoordinatorClient&) = delete;
  CoordinatorClient& operator=(const CoordinatorClient&) = delete;

  const std::string& address() const { return address_; }

  // ---- for users ----
  absl::StatusOr<v1::Job> SubmitJob(const v1::SubmitJobRequest& request);
  // All that fit the filters, page after page; up to `limit`.
  absl::StatusOr<std::vector<v1::Job>> ListJobs(v1::ListJobsRequest request = {}, size_t limit = SIZE_MAX);
  absl::StatusOr<v1::Job> GetJob(absl::string_view job_id);
  absl::StatusOr<v1::Job> CancelJob(absl::string_view job_id);
  absl::StatusOr<v1::Job> PauseJob(absl::string_view job_id);
  absl::StatusOr<v1::Job> ResumeJob(absl::string_view job_id);
  absl::Status DeleteJob(absl::string_view job_id);
  absl::StatusOr<v1::Job> UpdateJob(const v1::UpdateJobRequest& request);
  absl::StatusOr<v1::GetCurvesReply> GetCurves(const v1::GetCurvesRequest& request);
  absl::StatusOr<v1::ListMembersReply> ListMembers();
  absl::StatusOr<v1::Sweep> StartSweep(const v1::StartSweepRequest& request);
  absl::StatusOr<v1::Sweep> GetSweep(absl::string_view sweep_id);
  absl::StatusOr<std::vector<v1::Sweep>> ListSweeps();
  absl::StatusOr<v1::Sweep> CancelSweep(absl::string_view sweep_id);
  // Gives every event after `after_sequence` to `each`, in order, each once, until the job has ended or `each` returns
  // false (both OK). A broken connection is made again from the last event for up to `patience`.
  absl::Status WatchJob(absl::string_view job_id, uint64_t after_sequence,
                        absl::FunctionRef<bool(const v1::JobEvent&)> each);
  // The same for the events there are now: does not wait for more.
  absl::Status ReadEvents(absl::string_view job_id, uint64_t after_sequence,
                          absl::FunctionRef<bool(const v1::JobEvent&)> each);
  // Makes WatchJob return CANCELLED, now and from now on.
  void InterruptWatching();
  absl::StatusOr<std::vector<v1::Checkpoint>> ListCheckpoints(absl::string_view job_id);
  // Copies a checkpoint ("best", "last" or a step) into `directory`, which is made and must not exist yet; checks each
  // chunk's checksum. On failure nothing is left behind.
  absl::Status FetchCheckpoint(absl::string_view job_id, absl::string_view which, bool with_optimizer,
                               const std::string& directory);

  // ---- for workers ----
  // Reports results and waits for work up to request.wait_ms. NOT_FOUND: the coordinator does not know this member
  // (any more); wait for Membership to join again.
  absl::StatusOr<v1::NextWorkReply> NextWork(const v1::NextWorkRequest& request);
  // Makes the NextWork calls in flight return CANCELLED now. Later calls are not affected.
  void InterruptNextWork();

 private:
  struct Impl;
  const std::string address_;
  const std::unique_ptr<Impl> impl_;
};

// Keeps a worker or a shard a member of the cluster: joins, sends heartbeats, and joins again under a new member id
// when the coordinator was restarted or the connection broke. Has its own connection, so that heartbeats never queue
// behind other traffic.
class Membership {
 public:
  struct Options {
    Endpoint coordinator;
    v1::JoinRequest join;                          // as the member introduces itself
    std::function<void(uint64_t epoch)> on_epoch;  // drop what belongs to an epoch below; from the own thread
    std::function<void()> on_leave;                // the coordinator asks the member to leave
    std::function<uint64_t()> resident_bytes;      // for heartbeats; may be empty
  };
  // Returns once joined; waits for a coordinator that is not there yet until `*stop` is notified (CANCELLED).
  // PERMISSION_DENIED, UNAUTHENTICATED and INVALID_ARGUMENT are returned at once.
  static absl::StatusOr<std::unique_ptr<Membership>> Join(Options options, const absl::Notification* stop);
  // Leaves: ends the stream, which frees whatever the member holds.
  ~Membership();

  // Says that the member is to end and waits until the coordinator lets it go (NextWorkRequest.drain): for a shard,
  // until a job that needs what it holds is safe. DEADLINE_EXCEEDED after `grace`.
  absl::Status AwaitRelease(absl::Duration grace);

  // The present id; empty while joining again. A changed id means that leases of the old one are void.
  std::string member_id() const;
  // Waits until there is an id other than `previous` or membership has ended (see status()) or `timeout` has passed.
  std::string AwaitNewId(absl::string_view previous, absl::Duration timeout) const;
  // OK while membership lasts or can be renewed; else why not (PERMISSION_DENIED: refused when joining again).
  absl::Status status() const;

 private:
  struct Impl;
  explicit Membership(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::client
