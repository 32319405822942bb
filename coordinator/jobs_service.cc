#include "coordinator/jobs_service.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/checksum.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "coordinator/checkpoint_shelf.h"

namespace millrace::coordinator {
namespace {

constexpr int kEventsARead = 256;
constexpr size_t kChunkBytes = 1 << 20;
// How soon a stream without news notices that its reader has gone.
constexpr absl::Duration kLookUp = absl::Seconds(1);

grpc::Status Answer(absl::StatusOr<v1::Job> job, v1::Job* reply) {
  if (!job.ok()) return ToGrpc(job.status());
  *reply = *std::move(job);
  return grpc::Status::OK;
}

// A file opened for reading, so that it stays readable when retention removes it.
class OpenFile {
 public:
  static absl::StatusOr<std::unique_ptr<OpenFile>> Open(const std::string& directory, const std::string& name) {
    const std::string path = absl::StrCat(directory, "/", name);
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
    auto file = std::unique_ptr<OpenFile>(new OpenFile(descriptor, name));
    struct stat about;
    if (fstat(descriptor, &about) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    file->size_ = static_cast<uint64_t>(about.st_size);
    return file;
  }
  ~OpenFile() { close(descriptor_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  const std::string& name() const { return name_; }
  uint64_t size() const { return size_; }

  absl::Status Read(uint64_t offset, size_t size, std::string* bytes) const {
    bytes->resize(size);
    for (size_t done = 0; done < size;) {
      const ssize_t got = pread(descriptor_, bytes->data() + done, size - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", name_));
      if (got == 0) return absl::DataLossError(absl::StrCat(name_, " became shorter while it was read"));
      done += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

 private:
  OpenFile(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {}
  const int descriptor_;
  const std::string name_;
  uint64_t size_ = 0;
};

}  // namespace

grpc::Status JobsService::SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest* request, v1::Job* reply) {
  return Answer(queue_->Submit(*request), reply);
}

grpc::Status JobsService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsReply* reply) {
  for (v1::Job& job : book_->List()) *reply->add_jobs() = std::move(job);
  return grpc::Status::OK;
}

grpc::Status JobsService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* reply) {
  return Answer(book_->Get(request->job_id()), reply);
}

grpc::Status JobsService::CancelJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(queue_->Cancel(request->job_id()), reply);
}

grpc::Status JobsService::PauseJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(queue_->Pause(request->job_id()), reply);
}

grpc::Status JobsService::ResumeJob(grpc::ServerContext*, const v1::JobRequest* request, v1::Job* reply) {
  return Answer(queue_->Resume(request->job_id()), reply);
}

grpc::Status JobsService::DeleteJob(grpc::ServerContext*, const v1::JobRequest* request, v1::DeleteJobReply*) {
  return ToGrpc(queue_->Delete(request->job_id()));
}

grpc::Status JobsService::WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                                   grpc::ServerWriter<v1::JobEvent>* writer) {
  uint64_t after = request->after_sequence();
  for (;;) {
    // The state before the events: if it has ended by now, its last event is among those read next.
    const absl::StatusOr<v1::Job> job = book_->Get(request->job_id());
    if (!job.ok()) return ToGrpc(job.status());
    const absl::StatusOr<std::vector<v1::JobEvent>> events = book_->Read(request->job_id(), after, kEventsARead);
    if (!events.ok()) return ToGrpc(events.status());
    for (const v1::JobEvent& event : *events) {
      after = event.sequence();
      if (!writer->Write(event)) return ToGrpc(absl::CancelledError("the watcher has gone"));
    }
    if (!events->empty()) continue;
    if (HasEnded(job->state()) || request->until_now()) return grpc::Status::OK;
    if (context->IsCancelled()) return ToGrpc(absl::CancelledError("the watcher has gone"));
    if (closed_) return ToGrpc(absl::UnavailableError("the coordinator is shutting down"));
    book_->AwaitEvent(request->job_id(), after, absl::Now() + kLookUp);
  }
}

grpc::Status JobsService::ListCheckpoints(grpc::ServerContext*, const v1::JobRequest* request,
                                          v1::ListCheckpointsReply* reply) {
  const absl::StatusOr<v1::Job> job = book_->Get(request->job_id());
  if (!job.ok()) return ToGrpc(job.status());
  const CheckpointShelf shelf(JobDirectory(directory_, job->id()));
  const std::vector<ShelfEntry> entries = shelf.List();
  const ShelfEntry* const best = Best(entries);
  for (const ShelfEntry& entry : entries) {
    v1::Checkpoint* const checkpoint = reply->add_checkpoints();
    checkpoint->set_phase(entry.manifest.phase);
    checkpoint->set_step(entry.manifest.step);
    checkpoint->set_directory(entry.directory);
    checkpoint->set_digest(entry.manifest.digest);
    checkpoint->set_best(&entry == best);
    checkpoint->set_last(&entry == &entries.back());
    if (entry.manifest.evaluation() != nullptr) checkpoint->set_held_out_loss(entry.manifest.evaluation()->loss);
    checkpoint->set_bytes(entry.manifest.bytes());
  }
  return grpc::Status::OK;
}

grpc::Status JobsService::FetchCheckpoint(grpc::ServerContext* context, const v1::FetchCheckpointRequest* request,
                                          grpc::ServerWriter<v1::FileChunk>* writer) {
  const absl::StatusOr<v1::Job> job = book_->Get(request->job_id());
  if (!job.ok()) return ToGrpc(job.status());
  const CheckpointShelf shelf(JobDirectory(directory_, job->id()));
  const absl::StatusOr<ShelfEntry> entry = shelf.Find(request->which());
  if (!entry.ok()) return ToGrpc(Annotate(entry.status(), absl::StrCat("job ", job->id())));
  std::vector<std::unique_ptr<OpenFile>> files;
  const auto add = [&](const std::string& name) -> absl::Status {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<OpenFile> file, OpenFile::Open(entry->directory, name));
    files.push_back(std::move(file));
    return absl::OkStatus();
  };
  for (const CheckpointManifest::FileSum& file : entry->manifest.files) {
    if (file.name == kOptimizerFile && !request->with_optimizer()) continue;
    if (const absl::Status added = add(file.name); !added.ok()) return ToGrpc(added);
  }
  if (const absl::Status added = add(kManifestFile); !added.ok()) return ToGrpc(added);
  for (const std::unique_ptr<OpenFile>& file : files) {
    uint64_t offset = 0;
    do {
      v1::FileChunk chunk;
      chunk.set_name(file->name());
      chunk.set_size(file->size());
      chunk.set_offset(offset);
      const size_t size = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, file->size() - offset));
      if (const absl::Status read = file->Read(offset, size, chunk.mutable_data()); !read.ok()) return ToGrpc(read);
      chunk.set_crc32c(Crc32c(chunk.data().data(), chunk.data().size()));
      offset += size;
      if (context->IsCancelled() || !writer->Write(chunk)) {
        return ToGrpc(absl::CancelledError("the reader has gone"));
      }
      if (closed_) return ToGrpc(absl::UnavailableError("the coordinator is shutting down"));
    } while (offset < file->size());
  }
  return grpc::Status::OK;
}

}  // namespace millrace::coordinator
