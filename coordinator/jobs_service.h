// Serves users: jobs, their events and their checkpoints.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <string>

#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"

namespace millrace::coordinator {

class JobsService : public v1::Jobs::Service {
 public:
  // `queue` and `book` must outlive the server; `directory` is the coordinator's.
  JobsService(std::string directory, JobQueue* queue, JobBook* book)
      : directory_(std::move(directory)), queue_(queue), book_(book) {}

  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest*, v1::Job*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsReply*) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest*, v1::Job*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*, grpc::ServerWriter<v1::JobEvent>*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status PauseJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override;
  grpc::Status DeleteJob(grpc::ServerContext*, const v1::JobRequest*, v1::DeleteJobReply*) override;
  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::JobRequest*, v1::ListCheckpointsReply*) override;
  grpc::Status FetchCheckpoint(grpc::ServerContext*, const v1::FetchCheckpointRequest*,
                               grpc::ServerWriter<v1::FileChunk>*) override;

  // Ends the streams, before the server shuts down.
  void Close() {
    closed_ = true;
    book_->Wake();
  }

 private:
  const std::string directory_;
  JobQueue* const queue_;
  JobBook* const book_;
  std::atomic<bool> closed_ = false;
};

}  // namespace millrace::coordinator
