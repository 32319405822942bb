// Runs the coordinator: takes jobs from users, keeps them in a queue that survives restarts, and trains one after
// another with whatever workers and shards have joined.
//
// Directory layout, every file written atomically:
//   DIR/coordinator.sqlite                         jobs, events, evaluations, checkpoints (job_store.h)
//   DIR/ratings.sqlite                             pairs of answers and what people said of them (rating_store.h)
//   DIR/audit.jsonl                                who changed what, and who was refused (common/audit_log.h)
//   DIR/jobs/JOB/job.yaml, job.json                as submitted, and with every default filled in
//   DIR/jobs/JOB/data/                             tokenizer and token stores (text/token_store.h)
//   DIR/jobs/JOB/metrics.jsonl, metrics.csv,
//                tensorboard/PHASE/                what steps and evaluations measured (progress_files.h)
//   DIR/jobs/JOB/checkpoints/PHASE-STEP/           one checkpoint (checkpoint_manifest.h)
//   DIR/jobs/JOB/checkpoints/best, last            symbolic links to two of them
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/credentials.h"
#include "coordinator/page_http.h"

namespace millrace::coordinator {

struct CoordinatorOptions {
  std::string directory;               // made if absent; one coordinator a directory (held by a lock file)
  std::string listen = "127.0.0.1:0";  // HOST:PORT; port 0: any
  std::string address_file;            // written with the bound HOST:PORT once serving; empty: none
  std::string metrics_listen;          // HOST:PORT of the Prometheus endpoint; empty: none
  std::string health_listen;           // HOST:PORT that tells live and ready (common/health.h); empty: none
  std::string http_listen;             // HOST:PORT of the dashboard and the rating page; empty: none
  std::string http_token_file;         // the secret that raters' requests must bring; empty: none
  AnswerPrompt prompt;                 // for the dashboard; null: models cannot be asked
  uint32_t shards = 1;                 // a job starts when so many shards are there
  uint32_t jobs_per_user = 0;          // unfinished ones that a user may have; 0: any number
  uint32_t units_per_call = 1;         // work units that one NextWork call hands out at most
  // What this build computes (worker/ and ps/ define them): members that report another digest are refused.
  std::string worker_conformance_digest;
  std::string shard_conformance_digest;
  absl::Duration heartbeat = absl::Seconds(1);  // how often members speak
  absl::Duration lease = absl::Seconds(10);     // silence after which a member is gone
  std::shared_ptr<const Tls> tls;               // null: plain TCP, on this machine alone
  bool plaintext = false;                       // plain TCP for others too
  std::string tokens_file;                      // who may come with a token (common/tokens.h); empty: nobody
  // Jobs may read what lies in these folders and nothing else; empty: what the process may. Required of a coordinator
  // that others reach.
  std::vector<std::string> data_roots;
  absl::Notification* stop = nullptr;  // required; notified: finish the step, checkpoint, return
};

// Serves the Jobs, Ratings and Cluster services with health and reflection until `stop` is notified. A running job is
// checkpointed, if its shards still answer, and goes on when a coordinator is started on the same directory.
absl::Status RunCoordinator(const CoordinatorOptions& options);

}  // namespace millrace::coordinator
