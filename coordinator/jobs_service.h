// Serves users: jobs, their events, curves and checkpoints, sweeps, and who is in the cluster.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <string>

#include "coordinator/curves.h"
#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "coordinator/members.h"
#include "coordinator/sweeps.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"

namespace millrace::coordinator {

class JobsService : public v1::Jobs::Service {
 public:
  // What it serves from; all must outlive the server.
  struct Parts {
    std::string directory;  // the coordinator's
    JobQueue* queue = nullptr;
    JobBook* book = nullptr;
    Sweeps* sweeps = nullptr;
    const Members* members = nullptr;
    uint32_t wanted_shards = 1;
  };
  explicit JobsService(const Parts& parts) : parts_(parts), curves_(parts.book) {}

  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest*, v1::Job*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsReply*) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest*, v1::Job*) override;
  grpc::Status UpdateJob(grpc::ServerContext*, const v1::UpdateJobRequest*, v1::Job*) override;
  grpc::Status GetCurves(grpc::ServerContext*, const v1::GetCurvesRequest*, v1::GetCurvesReply*) override;
  grpc::Status ListMembers(grpc::ServerContext*, const v1::ListMembersRequest*, v1::ListMembersReply*) override;
  grpc::Status StartSweep(grpc::ServerContext*, const v1::StartSweepRequest*, v1::Sweep*) override;
  grpc::Status GetSweep(grpc::ServerContext*, const v1::SweepRequest*, v1::Sweep*) override;
  grpc::Status ListSweeps(grpc::ServerContext*, const v1::ListSweepsRequest*, v1::ListSweepsReply*) override;
  grpc::Status CancelSweep(grpc::ServerContext*, const v1::SweepRequest*, v1::Sweep*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*, grpc::ServerWriter<v1::JobEvent>*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status PauseJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status DeleteJob(grpc::ServerContext*, const v1::JobRequest*, v1::DeleteJobReply*) override;
  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::JobRequest*, v1::ListCheckpointsReply*) override;
  grpc::Status FetchCheckpoint(grpc::ServerContext*, const v1::FetchCheckpointRequest*,
                               grpc::ServerWriter<v1::FileChunk>*) override;

  // As the calls of these requests by a user of this name do.
  grpc::Status SubmitFor(const std::string& user, const v1::SubmitJobRequest& request, v1::Job* reply);
  grpc::Status SubmitFor(const std::string& user, const v1::StartSweepRequest& request, v1::Sweep* reply);

  // Ends the streams, before the server shuts down.
  void Close() {
    closed_ = true;
    parts_.book->Wake();
  }

 private:
  const Parts parts_;
  Curves curves_;
  std::atomic<bool> closed_ = false;
};

}  // namespace millrace::coordinator
