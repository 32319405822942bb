#include "coordinator/job_runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <numbers>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "blocks/block_table.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/checkpoint_reader.h"
#include "coordinator/checkpoint_shelf.h"
#include "coordinator/checkpoint_writer.h"
#include "coordinator/evaluation_samples.h"
#include "coordinator/job_data.h"
#include "coordinator/planner.h"
#include "coordinator/progress_files.h"
#include "coordinator/pruning.h"
#include "coordinator/rating_examples.h"
#include "coordinator/rating_json.h"
#include "coordinator/stop_rules.h"
#include "text/chat_template.h"
#include "text/example_store.h"
#include "text/token_store.h"
#include "text/tokenizer.h"

namespace millrace::coordinator {
namespace {

// A step event at most this often, besides the first and last step and evaluated ones.
constexpr absl::Duration kStepEvents = absl::Milliseconds(250);
// Trouble with the shards at the same version: it is tried again after growing pauses, and other trouble than an
// unreachable shard ends the job after so many tries.
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
constexpr int kTries = 12;
// How often a phase that waits for people looks at what they said.
constexpr absl::Duration kRatingsLookedAt = absl::Milliseconds(500);
constexpr size_t kMostSideFiles = 16;
constexpr size_t kMostSideFileBytes = 16 << 20;

constexpr char kTokenizerFiles[][32] = {"tokenizer.json", "tokenizer_config.json"};

bool ShardTrouble(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsFailedPrecondition(status) ||
         absl::IsCancelled(status);
}

// What the results measured, by name: added up in their order.
std::map<std::string, double> Means(absl::Span<const v1::WorkResult> results) {
  std::map<std::string, std::pair<double, double>> sums;
  for (const v1::WorkResult& result : results) {
    for (const v1::Statistic& statistic : result.statistics()) {
      auto& [sum, count] = sums[statistic.name()];
      sum += statistic.sum();
      count += statistic.count();
    }
  }
  std::map<std::string, double> means;
  for (const auto& [name, sum] : sums) {
    const double mean = sum.first / sum.second;
    if (std::isfinite(mean)) means[name] = mean;
  }
  return means;
}

// What is told of prepared texts and examples alike.
template <typename Report>
v1::JobEvent PreparedEvent(const std::string& phase, const Report& report) {
  v1::JobEvent event;
  v1::DataEvent& about = *event.mutable_data();
  about.set_phase(phase);
  about.set_duplicates(report.duplicates);
  about.set_skipped(report.skipped);
  about.set_train_tokens(report.train_tokens);
  about.set_held_out_tokens(report.held_out_tokens);
  about.set_vocab_size(report.vocab_size);
  for (const std::string& skip : report.skips) about.add_skips(skip);
  return event;
}

// The cost of divergence for the next rollout, given that of this one (Ziegler et al. 2019, section 2.2).
double AdaptedKlCoefficient(double coefficient, double divergence, double target) {
  return coefficient * (1 + 0.1 * std::clamp((divergence - target) / target, -0.2, 0.2));
}

v1::JobEvent TextEvent(const std::string& phase, const text::DataReport& report) {
  v1::JobEvent event = PreparedEvent(phase, report);
  v1::DataEvent& about = *event.mutable_data();
  about.set_documents(report.documents);
  about.set_train_bytes(report.train_bytes);
  about.set_held_out_bytes(report.held_out_bytes);
  return event;
}

// Of several results, added up in their order.
struct LossTotal {
  double sum = 0;
  uint64_t predictions = 0;

  explicit LossTotal(absl::Span<const v1::WorkResult> results) {
    for (const v1::WorkResult& result : results) {
      sum += result.loss_sum();
      predictions += result.predictions();
    }
  }
};

// One checkpoint on its way from the shards to the shelf, on a thread of its own.
class CheckpointOnItsWay {
 public:
  // `place` moves the finished folder to the shelf and tells of it.
  CheckpointOnItsWay(std::unique_ptr<FleetCut> cut, std::unique_ptr<CheckpointWriter> writer,
                     std::function<absl::Status(const CheckpointManifest&)> place)
      : cut_(std::move(cut)), thread_([this, writer = std::move(writer), place = std::move(place)] {
          status_ = cut_->Read([&](const v1::SnapshotReply& block) { return writer->Add(block); });
          if (status_.ok()) {
            const absl::StatusOr<CheckpointManifest> manifest = writer->Finish();
            status_ = manifest.ok() ? place(*manifest) : manifest.status();
          }
          arrived_ = true;
        }) {}
  ~CheckpointOnItsWay() {
    if (!thread_.joinable()) return;
    cut_->Cancel();
    thread_.join();
  }

  absl::Status Finish() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  // Finish would not wait.
  bool arrived() const { return arrived_; }

 private:
  const std::unique_ptr<FleetCut> cut_;
  absl::Status status_;  // the thread's until it is joined
  std::atomic<bool> arrived_ = false;
  std::thread thread_;
};

class JobRun {
 public:
  JobRun(const StoredJob& job, const RunnerParts& parts, const JobControl& control)
      : id_(job.job.id()),
        spec_(job.job.spec()),
        base_directory_(job.base_directory),
        directory_(JobDirectory(parts.directory, id_)),
        parts_(parts),
        control_(control),
        shelf_(directory_) {}

  // The story of a job.
  absl::StatusOr<JobOutcome> Run() {
    MILLRACE_RETURN_IF_ERROR(PrepareData());
    JobOutcome outcome;
    for (int index = 0; index < spec_.phases_size(); ++index) {
      MILLRACE_RETURN_IF_ERROR(OpenPhase(index));
      MILLRACE_ASSIGN_OR_RETURN(outcome, TraitsOf(phase_->objective()).learns ? TrainPhase() : CollectRatings());
      if (outcome.kind != JobOutcome::Kind::kSucceeded) break;
    }
    return outcome;
  }

 private:
  absl::Status PrepareData();
  absl::StatusOr<bool> MustPrepare(const std::string& folder, const absl::Status& opened) const;
  absl::Status PrepareJob();
  absl::Status PreparePhase();
  absl::Status OpenSamples();
  absl::Status OpenPhase(int index);
  absl::StatusOr<JobOutcome> TrainPhase();
  absl::StatusOr<JobOutcome> CollectRatings();
  absl::StatusOr<JobOutcome> InCourses(const std::function<absl::StatusOr<JobOutcome>()>& course);

  // Samples the answers that people are to compare, as the set of this id.
  absl::StatusOr<JobOutcome> SamplingCourse(const std::string& id);
  // One course of training: from a checkpoint, on one set of shards, until the phase ends or something is lost.
  absl::StatusOr<JobOutcome> Course() {
    MILLRACE_RETURN_IF_ERROR(AwaitCluster());
    MILLRACE_RETURN_IF_ERROR(PlanModel());
    MILLRACE_RETURN_IF_ERROR(ConfigureShards());
    MILLRACE_ASSIGN_OR_RETURN(const uint64_t version, Restore());
    return Steps(version);
  }
  absl::Status AwaitCluster();
  absl::Status PlanModel();
  absl::Status ConfigureShards();
  absl::StatusOr<uint64_t> Restore();
  std::string StartOf(const std::string& from) const;
  absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenStart(const v1::ModelPart& part);
  absl::StatusOr<std::string> StartFolder(const std::string& from) const;
  void FillContents();
  absl::Status LoadShards(uint64_t version, const CheckpointReader* checkpoint);
  absl::Status FindAdapters();
  absl::Status Initialize();
  absl::StatusOr<std::string> FrozenModel() const;

  absl::StatusOr<JobOutcome> Steps(uint64_t version);
  absl::StatusOr<double> LearnFromRollout(uint64_t version, absl::Span<v1::WorkResult> answers);
  void Offer();
  void PrepareUnits(uint64_t version);
  absl::StatusOr<double> TrainLoss(uint64_t version, absl::Span<const v1::WorkResult> results);
  absl::StatusOr<bool> Evaluate(uint64_t version, absl::Span<const v1::WorkResult> results);
  absl::StatusOr<double> HeldOutLoss(uint64_t version, absl::Span<const v1::WorkResult> results, uint64_t wanted) const;
  absl::Status TellSamples(uint64_t version, const v1::WorkResult& result);
  absl::Status Commit(uint64_t version, double train_loss);
  absl::Status BeginCheckpoint(uint64_t version);
  absl::Status FinishCheckpoint();
  absl::Status PlaceCheckpoint(const CheckpointManifest& manifest, bool best, absl::Time begun);
  void RestartFiles(uint64_t version);
  void WriteFiles(v1::JobEvent event);

  bool EvaluationDue(uint64_t version) const {
    // Answers are also evaluated before anything is learnt from them: that is what training begins with.
    const bool due = (version > 0 || planner_->samples()) &&
                     (version % phase_->evaluate().every_steps() == 0 || version >= max_steps());
    return due && (evaluations_.empty() || evaluations_.back().step < version);
  }
  bool CheckpointDue(uint64_t version) const {
    const uint32_t every = phase_->checkpoint().has_every_steps() && phase_->checkpoint().every_steps() > 0
                               ? phase_->checkpoint().every_steps()
                               : phase_->evaluate().every_steps();
    return version > 0 && version % every == 0 && version != on_shelf_;
  }
  // Whether what follows is a function of the version alone: answers that are still to be learnt from are not kept.
  bool MayPauseAt(uint64_t version) const {
    return !planner_->samples() || version % StepsOfRollout(*phase_) == 0 || version >= max_steps();
  }
  uint64_t max_steps() const { return phase_->stop().max_steps(); }

  // Something was asked, or a shard is gone: nothing offered will complete.
  bool Interrupted() const {
    switch (control_.wish()) {
      case Wish::kNone:
        break;
      case Wish::kPause:
        // The step is finished first, if there is anybody to finish it. Called under the board's lock.
        if (!stepping_ || parts_.members->Living(v1::WORKER).empty()) return true;
        break;
      case Wish::kStop:
      case Wish::kCancel:
        return true;
    }
    // A shard that leaves waits for a checkpoint of this version, if there can be one.
    if (ShardLeaves() && (!stepping_ || MayPauseAt(reached_))) return true;
    return parts_.members->shard_losses() != shard_losses_;
  }
  bool ShardLeaves() const { return parts_.members->shard_departures() != shard_departures_; }
  bool Asked() const { return control_.wish() != Wish::kNone; }
  JobOutcome AsAsked() const {
    switch (control_.wish()) {
      case Wish::kPause:
        return {JobOutcome::Kind::kPaused, ""};
      case Wish::kCancel:
        return {JobOutcome::Kind::kCancelled, ""};
      default:
        return {JobOutcome::Kind::kStopped, ""};
    }
  }
  // Waits for the units offered; ABORTED becomes an error of the job.
  absl::StatusOr<std::vector<v1::WorkResult>> Await() {
    absl::StatusOr<std::vector<v1::WorkResult>> results = parts_.board->Await([this] { return Interrupted(); });
    if (absl::IsAborted(results.status())) return absl::InternalError(results.status().message());
    return results;
  }
  absl::StatusOr<uint64_t> NextEpoch() {
    MILLRACE_ASSIGN_OR_RETURN(const uint64_t epoch, parts_.store->NextEpoch());
    parts_.announce(epoch);
    return epoch;
  }
  v1::PhaseContext Context(uint64_t epoch) const;
  void Tell(Severity severity, absl::string_view text) const {
    Log(severity, text, {{"job", id_}, {"phase", phase_.has_value() ? phase_->name() : ""}, {"step", reached_}});
    parts_.book->Log(id_,
                     severity == Severity::kInfo      ? "info"
                     : severity == Severity::kWarning ? "warning"
                                                      : "error",
                     text);
  }

  const std::string id_;
  const v1::JobSpec spec_;
  const std::string base_directory_;
  const std::string directory_;  // of the job
  const RunnerParts parts_;
  const JobControl& control_;

  std::string data_directory() const { return absl::StrCat(directory_, "/data"); }
  // What people said in a phase.
  std::string RatingsFile(const std::string& phase) const {
    return absl::StrCat(std::filesystem::absolute(directory_).string(), "/ratings/", phase, ".jsonl");
  }
  // Of the present phase.
  std::string PhaseData() const { return absl::StrCat(directory_, "/phase-data/", phase_->name()); }

  // Of the present phase.
  std::optional<v1::PhaseSpec> phase_;  // with the steps that its epochs take
  uint32_t phase_index_ = 0;
  std::unique_ptr<Planner> planner_;
  std::unique_ptr<EvaluationSamples> samples_;  // null: nothing is written at evaluations
  std::unique_ptr<StopRules> rules_;
  std::vector<CheckpointManifest::Evaluation> evaluations_;  // what rules_ was fed
  uint64_t reached_ = 0;                                     // version
  uint64_t on_shelf_ = 0;                                    // last version that was checkpointed
  uint64_t tokens_ = 0;                                      // trained on, at reached_
  std::map<std::string, double> variables_;                  // what the objective adapts, by name
  std::map<std::string, double> rollout_statistics_;         // of the last rollout
  std::map<std::string, double> step_statistics_;            // of the last step
  double seconds_before_ = 0;                                // training before this course, all phases

  // Of the model, made anew for each phase, which may freeze other tensors.
  std::unique_ptr<blocks::BlockTable> blocks_;
  v1::TensorTable table_;
  std::vector<v1::ModelPart> parts_of_model_;
  std::vector<v1::Pruning> prunings_;
  bool begins_new_ = false;                          // a part of which what it begins with has nothing
  std::string tokenizer_of_adapter_;                 // of one that begins with a text
  std::map<std::string, v1::AdapterSpec> adapters_;  // of what models begin with
  std::map<std::string, std::string> side_files_;

  std::shared_ptr<PhaseMetrics> told_of_phase_;  // of one that learns
  std::unique_ptr<ProgressFiles> files_;         // null: they cannot be written

  // Of the present course.
  uint64_t shard_losses_ = 0;
  uint64_t shard_departures_ = 0;
  std::vector<std::string> addresses_;
  uint64_t epoch_ = 0;
  std::unique_ptr<ShardFleet> fleet_;
  std::atomic<bool> stepping_ = false;
  std::vector<v1::WorkUnit> prepared_;
  absl::Time course_began_;
  absl::Time step_began_;
  absl::Time told_;  // the last step event
  uint64_t told_tokens_ = 0;
  double tokens_per_second_ = 0;

  CheckpointShelf shelf_;  // the checkpoint's thread's while one is on its way
  std::unique_ptr<CheckpointOnItsWay> checkpoint_;
};

// Prepares the data of all phases: what is wrong with it is told before anything is trained.
absl::Status JobRun::PrepareData() {
  MILLRACE_RETURN_IF_ERROR(shelf_.CleanUp());
  MILLRACE_RETURN_IF_ERROR(parts_.book->SetState(id_, v1::Job::PREPARING, [&](v1::Job* job) {
    if (job->started_unix_ms() == 0) job->set_started_unix_ms(absl::ToUnixMillis(parts_.now()));
    job->set_directory(directory_);
    job->clear_error();
  }));
  MILLRACE_RETURN_IF_ERROR(PrepareJob());
  for (const v1::PhaseSpec& phase : spec_.phases()) {
    phase_ = phase;
    // What people will say is not known yet.
    if (phase.has_data() && !LearnsFromRatings(phase)) MILLRACE_RETURN_IF_ERROR(PreparePhase());
    MILLRACE_RETURN_IF_ERROR(OpenSamples());
  }
  return absl::OkStatus();
}

// Removes what is damaged, and says whether `folder` has to be prepared: `opened` is how opening it ended.
absl::StatusOr<bool> JobRun::MustPrepare(const std::string& folder, const absl::Status& opened) const {
  if (opened.ok()) return false;  // by an earlier run
  if (!absl::IsNotFound(opened)) {
    Tell(Severity::kWarning, absl::StrCat("the prepared data is damaged and is made again: ", opened.message()));
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  return true;
}

absl::Status JobRun::PrepareJob() {
  const std::string folder = data_directory();
  MILLRACE_ASSIGN_OR_RETURN(const bool must, MustPrepare(folder, CheckPrepared(spec_, "", folder)));
  if (!must) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<text::DataReport> report,
                            PrepareJobData(spec_, base_directory_, folder));
  if (report.has_value()) parts_.book->Append(id_, TextEvent("", *report));
  return absl::OkStatus();
}

// Prepares the phase's own data, with what people said as a file.
absl::Status JobRun::PreparePhase() {
  const std::string folder = PhaseData();
  MILLRACE_ASSIGN_OR_RETURN(const bool must, MustPrepare(folder, CheckPrepared(spec_, phase_->objective(), folder)));
  if (!must) return absl::OkStatus();
  v1::PhaseSpec phase = *phase_;
  for (v1::SourceSpec& source : *phase.mutable_data()->mutable_sources()) {
    if (const std::optional<std::string> rated = RatedPhase(source); rated.has_value()) {
      source.set_path(RatingsFile(*rated));
    }
  }
  absl::StatusOr<PhaseReport> report = PreparePhaseData(spec_, phase, base_directory_, data_directory(), folder);
  if (!report.ok()) return Annotate(report.status(), absl::StrCat("phase ", phase.name()));
  if (const auto* const text = std::get_if<text::DataReport>(&*report); text != nullptr) {
    parts_.book->Append(id_, TextEvent(phase.name(), *text));
    return absl::OkStatus();
  }
  const auto& examples = std::get<text::ExampleReport>(*report);
  v1::JobEvent event = PreparedEvent(phase.name(), examples);
  v1::DataEvent& about = *event.mutable_data();
  about.set_documents(examples.examples);
  about.set_truncated(examples.truncated);
  about.set_scored_tokens(examples.train_scored);
  parts_.book->Append(id_, std::move(event));
  return absl::OkStatus();
}

absl::Status JobRun::OpenSamples() {
  samples_.reset();
  if (!phase_->evaluate().has_samples()) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(samples_, EvaluationSamples::Open(spec_, *phase_, data_directory(), base_directory_));
  return absl::OkStatus();
}

absl::Status JobRun::OpenPhase(int index) {
  phase_ = spec_.phases(index);
  phase_index_ = static_cast<uint32_t>(index);
  DataFolders folders{data_directory(), ""};
  if (phase_->has_data()) folders.phase = PhaseData();
  if (LearnsFromRatings(*phase_)) MILLRACE_RETURN_IF_ERROR(PreparePhase());
  MILLRACE_ASSIGN_OR_RETURN(planner_, Planner::Open(spec_, phase_index_, folders));
  if (phase_->stop().has_max_epochs()) {
    const uint64_t steps = std::max<uint64_t>(1, planner_->StepsOf(phase_->stop().max_epochs()));
    phase_->mutable_stop()->set_max_steps(phase_->stop().has_max_steps() ? std::min(steps, phase_->stop().max_steps())
                                                                         : steps);
  }
  FillPhaseSteps(&*phase_);
  if (planner_->samples() && TraitsOf(phase_->objective()).learns && max_steps() % StepsOfRollout(*phase_) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("phase ", phase_->name(), ": stop.max_steps ", max_steps(),
                                                   " is no multiple of the ", StepsOfRollout(*phase_),
                                                   " steps in which the answers of a rollout are learnt from"));
  }
  MILLRACE_RETURN_IF_ERROR(OpenSamples());
  rules_ = std::make_unique<StopRules>(phase_->stop());
  evaluations_.clear();
  blocks_.reset();
  reached_ = on_shelf_ = tokens_ = 0;
  rollout_statistics_.clear();
  return absl::OkStatus();
}

absl::StatusOr<JobOutcome> JobRun::TrainPhase() {
  // A phase whose last checkpoint satisfies its stop rule has been trained already.
  for (const ShelfEntry& entry : shelf_.List()) {
    if (entry.manifest.phase != phase_->name() || entry.manifest.evaluation() == nullptr) continue;
    StopRules rules(phase_->stop());
    for (const auto& evaluation : entry.manifest.evaluations) rules.Add(evaluation.step, evaluation.loss);
    if (std::string reason = rules.Reason(entry.manifest.step); !reason.empty()) {
      return JobOutcome{JobOutcome::Kind::kSucceeded, std::move(reason)};
    }
  }
  MILLRACE_RETURN_IF_ERROR(parts_.book->SetState(id_, v1::Job::RUNNING, [&](v1::Job* job) {
    job->set_phase(phase_->name());
    job->set_max_steps(max_steps());
  }));
  told_of_phase_ = parts_.metrics->BeginPhase(id_, phase_->name(), max_steps(), parts_.now());
  return InCourses([this] { return Course(); });
}

// Runs the course again as long as shards are lost.
absl::StatusOr<JobOutcome> JobRun::InCourses(const std::function<absl::StatusOr<JobOutcome>()>& course) {
  uint64_t furthest = 0;
  int tries = 0;
  for (;;) {
    stepping_ = false;
    course_began_ = parts_.now();
    absl::StatusOr<JobOutcome> outcome = course();
    stepping_ = false;
    parts_.board->Withdraw();
    checkpoint_.reset();  // one that was on its way is given up, unless it has arrived
    fleet_.reset();
    const bool left = ShardLeaves();
    parts_.members->Release();
    seconds_before_ += absl::ToDoubleSeconds(parts_.now() - course_began_);
    if (outcome.ok()) return outcome;
    if (Asked() && ShardTrouble(outcome.status())) return AsAsked();
    if (!ShardTrouble(outcome.status())) return outcome.status();

    tries = reached_ > furthest ? 1 : tries + 1;
    furthest = std::max(furthest, reached_);
    if (tries > kTries && absl::IsFailedPrecondition(outcome.status())) return outcome.status();
    const bool lost = parts_.members->shard_losses() != shard_losses_;
    const std::string what = left ? absl::StrCat("a shard leaves at step ", reached_,
                                                 reached_ == on_shelf_ ? ", which is checkpointed; goes on"
                                                                       : "; returns to the last checkpoint")
                                  : absl::StrCat("a shard was lost or does not answer at step ", reached_,
                                                 lost ? "" : absl::StrCat(": ", outcome.status().message()),
                                                 "; returns to the last checkpoint");
    Tell(Severity::kWarning,
         absl::StrCat(what, " as soon as ", parts_.shards, parts_.shards == 1 ? " shard is" : " shards are", " there"));
    parts_.metrics->recoveries->Increment();
    if (!lost && !left) control_.Pause(std::min(kLongestPause, kFirstPause * (1 << std::min(tries - 1, 10))));
  }
}

// A phase in which people compare answers: they are sampled once, and the phase ends when all pairs are rated.
absl::StatusOr<JobOutcome> JobRun::CollectRatings() {
  const std::string id = absl::StrCat(id_, "/", phase_->name());
  absl::StatusOr<v1::RatingSet> set = parts_.ratings->Get(id);
  MILLRACE_RETURN_IF_ERROR(parts_.book->SetState(id_, v1::Job::RUNNING, [&](v1::Job* job) {
    job->set_phase(phase_->name());
    job->set_step(set.ok() ? set->done() : 0);
    job->set_max_steps(set.ok() ? set->pairs() : phase_->rollout().prompts());
  }));
  if (absl::IsNotFound(set.status())) {
    MILLRACE_ASSIGN_OR_RETURN(const JobOutcome outcome, InCourses([&] { return SamplingCourse(id); }));
    if (outcome.kind != JobOutcome::Kind::kSucceeded) return outcome;
    set = parts_.ratings->Get(id);
  }
  MILLRACE_RETURN_IF_ERROR(set.status());
  if (set->done() < set->pairs()) {
    Tell(Severity::kInfo, absl::StrCat(set->pairs() - set->done(),
                                       " pairs of answers wait for people to compare them, as set ", id, ", ",
                                       parts_.rating_page.empty()
                                           ? "but the coordinator serves no page: start it again with --http HOST:PORT"
                                           : absl::StrCat("at http://", parts_.rating_page, "/rate")));
  }
  while (set->done() < set->pairs()) {
    control_.Pause(kRatingsLookedAt);
    if (Asked()) return AsAsked();
    set = parts_.ratings->Get(id);
    MILLRACE_RETURN_IF_ERROR(set.status());
    parts_.book->Update(id_, [&](v1::Job* job) {
      job->set_step(set->done());
      job->set_max_steps(set->pairs());
    });
  }
  std::string lines;
  MILLRACE_ASSIGN_OR_RETURN(const v1::ExportCounts counts,
                            ExportExamples(parts_.ratings, id, [&](absl::string_view piece) {
                              absl::StrAppend(&lines, piece);
                              return absl::OkStatus();
                            }));
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(absl::StrCat(directory_, "/ratings")));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(RatingsFile(phase_->name()), lines));
  Tell(Severity::kInfo,
       absl::StrCat(counts.examples(), " pairs were compared, ", counts.ties(), " of them ties; ", counts.flagged(),
                    " were flagged and ", counts.skipped(), " skipped by all, and are left out"));
  return JobOutcome{JobOutcome::Kind::kSucceeded, "rated"};
}

absl::StatusOr<JobOutcome> JobRun::SamplingCourse(const std::string& id) {
  MILLRACE_RETURN_IF_ERROR(AwaitCluster());
  MILLRACE_RETURN_IF_ERROR(PlanModel());
  MILLRACE_RETURN_IF_ERROR(ConfigureShards());
  MILLRACE_RETURN_IF_ERROR(LoadShards(0, nullptr));
  parts_.board->Offer(planner_->Rollout(epoch_, 0, {}));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::WorkResult> results, Await());
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<Planner::ComparedPair> sampled, planner_->Compared(results));
  const auto& from = phase_->compare().from();
  const std::string first = StartOf(from.empty() ? "" : from[0]);
  std::vector<v1::RatingPair> pairs;
  for (const Planner::ComparedPair& pair : sampled) {
    // Nobody can prefer one of two that are equal, or that say nothing.
    if (pair.answers[0] == pair.answers[1] || pair.answers[0].empty() || pair.answers[1].empty()) continue;
    v1::RatingPair& made = pairs.emplace_back();
    AddPrompt(pair.prompt, &made);
    made.set_a(pair.answers[0]);
    made.set_b(pair.answers[1]);
    made.set_source_a(first);
    made.set_source_b(from.size() > 1 ? from[1] : first);
  }
  if (pairs.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("phase ", phase_->name(), ": of all ", sampled.size(),
                                                   " pairs of answers both are equal, or one is empty; a higher ",
                                                   "rollout.temperature makes them differ"));
  }
  if (pairs.size() < sampled.size()) {
    Tell(Severity::kInfo, absl::StrCat(sampled.size() - pairs.size(), " of ", sampled.size(),
                                       " pairs are left out: their answers are equal, or one is empty"));
  }
  v1::RatingSet set;
  set.set_id(id);
  set.set_title(phase_->compare().title());
  set.set_raters(phase_->compare().raters());
  MILLRACE_RETURN_IF_ERROR(parts_.ratings->Create(set, pairs));
  return JobOutcome{JobOutcome::Kind::kSucceeded, ""};
}

absl::Status JobRun::AwaitCluster() {
  for (bool told = false;;) {
    shard_losses_ = parts_.members->shard_losses();
    shard_departures_ = parts_.members->shard_departures();
    const absl::Time until = told ? absl::InfiniteFuture() : absl::Now() + absl::Seconds(1);
    const bool there = parts_.members->Await(parts_.shards, 1, until, [this] { return Asked(); });
    if (Asked()) return absl::CancelledError("asked");
    const std::vector<Member> shards = parts_.members->Living(v1::SHARD);
    if (!there && !std::exchange(told, true)) {
      Tell(Severity::kInfo,
           absl::StrCat("waits for ", parts_.shards, " shards (", shards.size(), " are there) and at least 1 worker (",
                        parts_.board->workers(), " are there)"));
    }
    if (!there || shards.size() < parts_.shards) continue;
    addresses_.clear();
    std::vector<std::string> ids;
    for (const Member& shard : shards) {
      if (ids.size() == parts_.shards) break;
      ids.push_back(shard.id);
      addresses_.push_back(shard.address);
    }
    if (parts_.members->Hold(ids)) return absl::OkStatus();
  }
}

v1::PhaseContext JobRun::Context(uint64_t epoch) const {
  v1::PhaseContext context;
  context.set_epoch(epoch);
  context.set_job_id(id_);
  context.set_seed(spec_.seed());
  context.set_phase_index(phase_index_);
  *context.mutable_model() = spec_.model();
  context.set_vocab_size(planner_->vocab_size());
  *context.mutable_phase() = *phase_;
  for (const auto& [from, adapter] : adapters_) (*context.mutable_adapters())[from] = adapter;
  context.set_tokenizer_json(planner_->samples() ? planner_->tokenizer_json() : tokenizer_of_adapter_);
  if (planner_->samples()) {
    context.set_end_of_turn(planner_->end_of_turn());
  }
  for (const auto& [text, id] : planner_->special_tokens()) (*context.mutable_special_tokens())[text] = id;
  if (samples_ != nullptr) context.mutable_sample_ends()->Add(samples_->ends().begin(), samples_->ends().end());
  return context;
}

// The adapters of the models that the phase begins with, by what names these.
absl::Status JobRun::FindAdapters() {
  std::set<std::string> froms = {"", phase_->reference(), phase_->policy().value_from()};
  for (const v1::RewardSpec& reward : phase_->rewards()) froms.insert(reward.from());
  for (const std::string& from : phase_->compare().from()) froms.insert(from);
  adapters_.clear();
  for (const std::string& from : froms) {
    const std::string start = StartOf(from);
    if (start.empty()) continue;
    if (const std::optional<PhaseStart> named = ParsePhaseStart(start); named.has_value()) {
      for (const v1::PhaseSpec& phase : spec_.phases()) {
        if (phase.name() == named->phase && phase.has_adapter()) adapters_[from] = phase.adapter();
      }
      continue;
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string folder, StartFolder(start));
    std::error_code error;
    if (!std::filesystem::exists(absl::StrCat(folder, "/", kAdapterFile), error)) continue;
    if (!phase_->has_adapter()) {
      return absl::InvalidArgumentError(absl::StrCat("phase ", phase_->name(), " starts from ", start,
                                                     ", which holds an adapter: say which one as the phase's adapter"));
    }
    adapters_[from] = phase_->adapter();
  }
  if (phase_->adapter().has_init_text()) {
    MILLRACE_ASSIGN_OR_RETURN(tokenizer_of_adapter_,
                              ReadFile(absl::StrCat(data_directory(), "/", kTokenizerFiles[0]), 256 << 20));
  }
  return absl::OkStatus();
}

absl::Status JobRun::PlanModel() {
  if (blocks_ != nullptr) return absl::OkStatus();
  MILLRACE_RETURN_IF_ERROR(FindAdapters());
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t epoch, NextEpoch());
  parts_.board->SetContext(std::make_shared<v1::PhaseContext>(Context(epoch)));
  v1::WorkUnit unit;
  unit.set_kind(v1::WorkUnit::PLAN);
  unit.set_epoch(epoch);
  parts_.board->Offer({unit});
  absl::StatusOr<std::vector<v1::WorkResult>> results = Await();
  // A job may have several phases with such a field.
  if (!results.ok()) return Annotate(results.status(), absl::StrCat("phase ", phase_->name()));
  v1::WorkResult& plan = results->front();
  absl::StatusOr<blocks::BlockTable> blocks = blocks::BlockTable::Create(plan.table());
  if (!blocks.ok()) return absl::InternalError(absl::StrCat("the worker's plan: ", blocks.status().message()));
  side_files_.clear();
  size_t bytes = 0;
  const std::set<std::string> ours = {kManifestFile, kModelFile, kOptimizerFile, kJobFile};
  for (auto& [name, text] : *plan.mutable_files()) {
    bytes += text.size();
    if (!IsPlainName(name) || ours.contains(name) || bytes > kMostSideFileBytes ||
        side_files_.size() >= kMostSideFiles) {
      return absl::InternalError("the worker's plan: side files that no checkpoint has");
    }
    side_files_.emplace(name, std::move(text));
  }
  for (const char* name : kTokenizerFiles) {
    const std::string path = absl::StrCat(data_directory(), "/", name);
    if (!std::filesystem::exists(path)) continue;
    MILLRACE_ASSIGN_OR_RETURN(side_files_[name], ReadFile(path, 256 << 20));
  }
  // What learns from conversations is asked as it was taught.
  if (ExamplesOf(phase_->objective()).has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer, text::LoadTokenizer(data_directory()));
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatTemplate chat,
                              text::ChatTemplate::Load(phase_->chat(), *tokenizer, base_directory_));
    side_files_[text::kChatTemplateFile] = chat.source();
  }
  MILLRACE_ASSIGN_OR_RETURN(side_files_[kJobFile], ReadFile(absl::StrCat(directory_, "/", kJobFile), 16 << 20));
  parts_of_model_.assign(plan.parts().begin(), plan.parts().end());
  for (const blocks::TensorInfo& tensor : blocks->tensors()) {
    const auto holds = [&tensor](const v1::ModelPart& part) {
      absl::string_view name = tensor.name;
      return InPart(part.prefix(), &name);
    };
    if (std::count_if(parts_of_model_.begin(), parts_of_model_.end(), holds) != 1) {
      return absl::InternalError(absl::StrCat("the worker's plan: tensor ", tensor.name, " is not of one part"));
    }
  }
  if (parts_of_model_[0].file() != kModelFile) {
    return absl::InternalError("the worker's plan: the first part is not the model that is trained");
  }
  std::set<std::string> files = ours;
  files.erase(kModelFile);
  for (const v1::ModelPart& part : parts_of_model_) {
    if (part.file().empty()) continue;
    if (!IsPlainName(part.file()) || side_files_.contains(part.file()) || !files.insert(part.file()).second) {
      return absl::InternalError("the worker's plan: files of weights that no checkpoint has");
    }
  }
  prunings_.assign(plan.pruning().begin(), plan.pruning().end());
  for (const v1::Pruning& pruning : prunings_) {
    const absl::Status possible = CheckPruning(pruning, *blocks, max_steps());
    if (!possible.ok()) return Annotate(possible, absl::StrCat("phase ", phase_->name()));
  }
  FillContents();
  table_ = std::move(*plan.mutable_table());
  blocks_ = std::make_unique<blocks::BlockTable>(*std::move(blocks));
  return absl::OkStatus();
}

absl::Status JobRun::ConfigureShards() {
  MILLRACE_ASSIGN_OR_RETURN(epoch_, NextEpoch());
  MILLRACE_ASSIGN_OR_RETURN(fleet_, parts_.connect(epoch_, addresses_));
  FleetSetup setup;
  setup.job_id = id_;
  setup.phase = phase_->name();
  setup.table = table_;
  setup.optimizer = phase_->optimizer();
  setup.max_steps = max_steps();
  setup.units_per_step = planner_->training_units();
  MILLRACE_RETURN_IF_ERROR(Annotate(fleet_->Configure(setup), "configuring the shards"));
  auto context = std::make_shared<v1::PhaseContext>(Context(epoch_));
  *context->mutable_table() = table_;
  for (const v1::ModelPart& part : parts_of_model_) {
    if (!part.content().empty()) (*context->mutable_contents())[part.prefix()] = part.content();
  }
  for (const std::string& address : addresses_) context->add_shard_addresses(address);
  parts_.board->SetContext(std::move(context));
  return absl::OkStatus();
}

// Brings the shards to the phase's last good checkpoint, or else to its beginning; returns the version.
absl::StatusOr<uint64_t> JobRun::Restore() {
  std::optional<ShelfEntry> from;
  std::unique_ptr<CheckpointReader> reader;
  while (reader == nullptr) {
    from.reset();
    for (ShelfEntry& entry : shelf_.List()) {
      if (entry.manifest.phase == phase_->name()) from = std::move(entry);
    }
    if (!from.has_value()) break;
    absl::StatusOr<std::unique_ptr<CheckpointReader>> opened = CheckpointReader::Open(from->directory);
    absl::Status good = opened.status();
    if (good.ok()) good = (*opened)->Verify();
    if (good.ok() && !(*opened)->has_optimizer())
      good = absl::DataLossError(absl::StrCat(kOptimizerFile, " is missing"));
    if (good.ok()) {
      reader = *std::move(opened);
    } else if (absl::IsDataLoss(good) || absl::IsNotFound(good)) {
      Tell(Severity::kError, absl::StrCat("checkpoint ", from->name, " is damaged and set aside: ", good.message()));
      MILLRACE_RETURN_IF_ERROR(shelf_.SetAside(*from));
    } else {
      return absl::InternalError(absl::StrCat("checkpoint ", from->name, ": ", good.message()));
    }
  }

  uint64_t version = 0;
  evaluations_.clear();
  rules_ = std::make_unique<StopRules>(phase_->stop());
  tokens_ = 0;
  on_shelf_ = 0;
  planner_->ForgetRollout();
  variables_.clear();
  if (planner_->samples()) variables_["kl_coefficient"] = phase_->policy().kl_coefficient();
  if (reader != nullptr) {
    variables_ = reader->manifest().variables;
    version = on_shelf_ = reader->manifest().step;
    evaluations_ = reader->manifest().evaluations;
    for (const auto& evaluation : evaluations_) rules_->Add(evaluation.step, evaluation.loss);
    tokens_ = reader->manifest().tokens;
    seconds_before_ = std::max(seconds_before_, reader->manifest().seconds_training);
    if (reader->manifest().data != planner_->data_fingerprint()) {
      return absl::InternalError(absl::StrCat("checkpoint ", from->name, " was trained on other data (fingerprint ",
                                              reader->manifest().data, ") than the phase has now (",
                                              planner_->data_fingerprint(), ")"));
    }
    MILLRACE_RETURN_IF_ERROR(LoadShards(version, reader.get()));
    Tell(Severity::kInfo, absl::StrCat("goes on from checkpoint ", from->name));
  } else if (StartOf(parts_of_model_[0].from()).empty()) {
    MILLRACE_RETURN_IF_ERROR(Initialize());
    Tell(Severity::kInfo, absl::StrCat("phase ", phase_->name(), " starts from new weights"));
  } else {
    MILLRACE_RETURN_IF_ERROR(LoadShards(0, nullptr));
  }
  // What was told of later steps will be told again.
  MILLRACE_RETURN_IF_ERROR(parts_.book->Supersede(id_, phase_->name(), version));
  parts_.book->Update(id_, [&](v1::Job* job) {
    job->set_step(version);
    job->set_best_step(rules_->best_step());
    job->set_best_held_out_loss(rules_->best_loss());
    job->set_held_out_loss(evaluations_.empty() ? 0 : evaluations_.back().loss);
  });
  RestartFiles(version);
  reached_ = version;
  told_of_phase_->Return(version, tokens_);
  return version;
}

// What ModelPart.from stands for; empty: new weights.
std::string JobRun::StartOf(const std::string& from) const {
  return from.empty() ? StartOfPhase(spec_, static_cast<int>(phase_index_)) : from;
}

// Says what the models begin with, by its sums, so that workers keep what is frozen and known. Of a model that cannot
// be opened nothing is said: LoadShards says why.
void JobRun::FillContents() {
  for (v1::ModelPart& part : parts_of_model_) {
    const std::string from = StartOf(part.from());
    const absl::StatusOr<std::string> folder = StartFolder(from);
    part.clear_content();
    if (from.empty() || !folder.ok()) continue;
    const auto reader = CheckpointReader::OpenModel(*folder);
    if (!reader.ok()) continue;
    std::string digest = (*reader)->manifest().digest;
    if (digest.empty()) {
      const auto file = MappedFile::Open(absl::StrCat(*folder, "/", kModelFile));
      if (file.ok()) digest = Sha256Hex(file->bytes());
    }
    // The seed draws what the model lacks.
    if (!digest.empty()) part.set_content(absl::StrCat(digest, " ", spec_.seed()));
  }
}

// What a part begins with, checked.
absl::StatusOr<std::unique_ptr<CheckpointReader>> JobRun::OpenStart(const v1::ModelPart& part) {
  const std::string from = StartOf(part.from());
  const std::string what = absl::StrCat(part.prefix(), part.prefix().empty() ? "phase " : " of phase ", phase_->name());
  MILLRACE_ASSIGN_OR_RETURN(const std::string folder, StartFolder(from));
  const bool is_phase = ParsePhaseStart(from).has_value();
  const std::string shown =
      is_phase ? absl::StrCat("checkpoint ", std::filesystem::path(folder).filename().string()) : folder;
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader = CheckpointReader::OpenModel(folder);
  if (absl::IsNotFound(reader.status()) && !is_phase) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " starts from ", from, ", which holds no ", kModelFile, " (", folder,
                     "); a checkpoint, or a folder that `millrace import` made, is wanted"));
  }
  absl::Status good = reader.status();
  if (good.ok()) good = (*reader)->Verify();
  const std::string& file = part.start_file().empty() ? kModelFile : part.start_file();
  if (good.ok() && part.may_be_new() && !(*reader)->Has(file)) {
    (*reader)->TakeFresh(*blocks_, part);
    begins_new_ = true;
    Tell(Severity::kInfo, absl::StrCat("phase ", phase_->name(), " trains a new adapter"));
    return reader;
  }
  if (good.ok()) good = (*reader)->CheckTable(*blocks_, part, file);
  if (!good.ok()) return absl::InternalError(absl::StrCat(what, " starts from ", shown, ": ", good.message()));
  Tell(Severity::kInfo, absl::StrCat(what, " starts from ", shown));
  return reader;
}

// The folder that `from` names: an earlier phase's checkpoint, or a folder.
absl::StatusOr<std::string> JobRun::StartFolder(const std::string& from) const {
  const std::optional<PhaseStart> named = ParsePhaseStart(from);
  if (!named.has_value()) return (std::filesystem::path(base_directory_) / from).lexically_normal().string();
  const PhaseStart& start = *named;
  const std::vector<ShelfEntry> entries = shelf_.List();
  const ShelfEntry* found = start.which == "best" ? BestOfPhase(entries, start.phase) : nullptr;
  for (const ShelfEntry& entry : entries) {
    if (entry.manifest.phase != start.phase) continue;
    if (start.which == "last" || start.which == absl::StrCat(entry.manifest.step)) found = &entry;
  }
  if (found != nullptr) return found->directory;
  return absl::InternalError(absl::StrCat(
      "phase ", phase_->name(), " starts from ", start.phase, "@", start.which, ", a checkpoint that is not there; ",
      start.phase, " has ",
      absl::StrJoin(entries, ", ", [](std::string* out, const ShelfEntry& entry) { out->append(entry.name); })));
}

// Brings the shards to `version`: to a checkpoint of the phase, or without one to its beginning. What checkpoints do
// not hold, because it is frozen, comes from where it began.
absl::Status JobRun::LoadShards(uint64_t version, const CheckpointReader* checkpoint) {
  begins_new_ = false;
  std::vector<std::unique_ptr<CheckpointReader>> starts;
  std::vector<const CheckpointReader*> reader_of(blocks_->tensors().size());
  std::vector<bool> with_state(blocks_->tensors().size());
  for (const v1::ModelPart& part : parts_of_model_) {
    const bool held = checkpoint != nullptr && !part.file().empty();
    if (held) {
      if (absl::Status fits = checkpoint->CheckTable(*blocks_, part, part.file()); !fits.ok()) {
        return absl::InternalError(fits.message());
      }
    } else {
      MILLRACE_ASSIGN_OR_RETURN(starts.emplace_back(), OpenStart(part));
    }
    for (size_t i = 0; i < reader_of.size(); ++i) {
      absl::string_view name = blocks_->tensors()[i].name;
      if (!InPart(part.prefix(), &name)) continue;
      reader_of[i] = held ? checkpoint : starts.back().get();
      with_state[i] = held;
    }
  }
  MILLRACE_RETURN_IF_ERROR(Annotate(fleet_->Load(version,
                                                 [&](uint32_t block, v1::LoadRequest* request) {
                                                   const uint32_t tensor = blocks_->blocks()[block].tensor;
                                                   return reader_of[tensor]->ReadBlock(*blocks_, block,
                                                                                       with_state[tensor], request);
                                                 }),
                                    "loading a checkpoint into the shards"));
  // Zeros until a worker has made what is new.
  return begins_new_ ? Initialize() : absl::OkStatus();
}

// The file of the first part, if nothing of it is trained; else nothing.
absl::StatusOr<std::string> JobRun::FrozenModel() const {
  for (const blocks::TensorInfo& tensor : blocks_->tensors()) {
    absl::string_view name = tensor.name;
    if (tensor.trainable && InPart(parts_of_model_[0].prefix(), &name)) return "";
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::string folder, StartFolder(StartOf(parts_of_model_[0].from())));
  return absl::StrCat(folder, "/", kModelFile);
}

absl::Status JobRun::Initialize() {
  v1::WorkUnit unit;
  unit.set_kind(v1::WorkUnit::INITIALIZE);
  unit.set_epoch(epoch_);
  parts_.board->Offer({unit});
  return Await().status();
}

// Makes what Offer will offer at `version`, while the workers compute.
void JobRun::PrepareUnits(uint64_t version) {
  prepared_.clear();
  if (version < max_steps()) {
    prepared_ = planner_->RolloutDue(version) ? planner_->Rollout(epoch_, version, variables_)
                                              : planner_->Training(epoch_, version);
  }
  if (EvaluationDue(version)) {
    // The longest first: others score meanwhile.
    if (samples_ != nullptr) prepared_.push_back(samples_->Unit(epoch_, version));
    for (v1::WorkUnit& unit : planner_->Evaluation(epoch_, version)) prepared_.push_back(std::move(unit));
  }
}

void JobRun::Offer() { parts_.board->Offer(std::move(prepared_)); }

// Invariant at the top of the loop: the shards are at `version`, and its units are offered: those of the next step, or
// of the answers that it learns from, and those that evaluate this version if that is due. Nothing is committed before
// all are in, so that an evaluation needs no copy of the weights and decides before the next step counts.
absl::StatusOr<JobOutcome> JobRun::Steps(uint64_t version) {
  told_ = step_began_ = parts_.now();
  told_tokens_ = tokens_;
  PrepareUnits(version);
  Offer();
  stepping_ = true;
  for (;;) {
    const bool answering = version < max_steps() && planner_->RolloutDue(version);
    if (version < max_steps() && !answering) PrepareUnits(version + 1);
    absl::StatusOr<std::vector<v1::WorkResult>> results = Await();
    if (!results.ok()) {
      const bool stopping = Asked() && control_.wish() != Wish::kCancel;
      if (absl::IsCancelled(results.status()) && (stopping || (ShardLeaves() && !Asked())) && version > 0) {
        // Nobody is there to finish the step, or there is no time: the shards still hold this version.
        if (version != on_shelf_ && MayPauseAt(version)) MILLRACE_RETURN_IF_ERROR(BeginCheckpoint(version));
        MILLRACE_RETURN_IF_ERROR(FinishCheckpoint());
        if (stopping) return AsAsked();
      }
      return results.status();
    }
    if (checkpoint_ != nullptr && checkpoint_->arrived()) MILLRACE_RETURN_IF_ERROR(FinishCheckpoint());
    bool evaluated = false, best = false;
    const bool last = version >= max_steps();
    const size_t training = last ? 0 : answering ? planner_->rollout_units() : planner_->training_units();
    double train_loss = 0;
    if (!last && !answering) {
      MILLRACE_ASSIGN_OR_RETURN(train_loss, TrainLoss(version, absl::MakeSpan(*results).subspan(0, training)));
    }
    if (EvaluationDue(version)) {
      const size_t sampling = samples_ == nullptr ? 0 : 1;
      MILLRACE_ASSIGN_OR_RETURN(best, Evaluate(version, absl::MakeSpan(*results).subspan(training + sampling)));
      if (sampling > 0) MILLRACE_RETURN_IF_ERROR(TellSamples(version, (*results)[training]));
      evaluated = true;
    }
    const std::string reason = rules_->Reason(version);
    if (best || (evaluated && version > 0 && version == on_shelf_) || CheckpointDue(version) || !reason.empty()) {
      MILLRACE_RETURN_IF_ERROR(BeginCheckpoint(version));
    }
    if (!reason.empty()) {
      MILLRACE_RETURN_IF_ERROR(FinishCheckpoint());
      return JobOutcome{JobOutcome::Kind::kSucceeded, reason};
    }
    // Looked at here too: where results are there as soon as they are awaited, Await has no time to be interrupted.
    if (control_.wish() == Wish::kCancel) return absl::CancelledError("asked");
    if (answering) {
      MILLRACE_ASSIGN_OR_RETURN(train_loss, LearnFromRollout(version, absl::MakeSpan(*results).subspan(0, training)));
    }
    const Wish wish = control_.wish();
    const bool leaving = ShardLeaves();
    const bool pausing = (wish == Wish::kPause || wish == Wish::kStop || leaving) && MayPauseAt(version + 1);
    // The next units go out before the commit: workers' pulls wait at the shards for the version.
    if (!pausing) Offer();
    MILLRACE_RETURN_IF_ERROR(Commit(version, train_loss));
    ++version;
    if (pausing) {
      MILLRACE_RETURN_IF_ERROR(BeginCheckpoint(version));
      MILLRACE_RETURN_IF_ERROR(FinishCheckpoint());
      if (leaving && wish == Wish::kNone) return absl::UnavailableError("a shard leaves");
      return AsAsked();
    }
  }
}

// Takes the answers of a rollout at `version` in, and computes the first step that learns from them; returns its loss.
absl::StatusOr<double> JobRun::LearnFromRollout(uint64_t version, absl::Span<v1::WorkResult> answers) {
  rollout_statistics_ = Means(answers);
  std::map<std::string, double> statistics = rollout_statistics_;
  statistics.insert(variables_.begin(), variables_.end());
  MILLRACE_RETURN_IF_ERROR(planner_->TakeRollout(version, answers, statistics));
  rollout_statistics_["kl_coefficient"] = variables_["kl_coefficient"];
  if (phase_->policy().has_kl_target()) {
    variables_["kl_coefficient"] =
        AdaptedKlCoefficient(variables_["kl_coefficient"], rollout_statistics_["kl"], phase_->policy().kl_target());
  }
  prepared_ = planner_->Training(epoch_, version);
  Offer();
  PrepareUnits(version + 1);
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::WorkResult> results, Await());
  return TrainLoss(version, results);
}

// The mean of the step after `version`.
absl::StatusOr<double> JobRun::TrainLoss(uint64_t version, absl::Span<const v1::WorkResult> results) {
  const auto [sum, predictions] = LossTotal(results);
  const uint64_t wanted = planner_->training_predictions(version);
  if (predictions != wanted) {
    return absl::InternalError(absl::StrCat("step ", version + 1, ": workers report ", predictions,
                                            " predictions where the units have ", wanted));
  }
  if (!std::isfinite(sum)) {
    parts_.metrics->CountNonfinite("train_loss");
    return absl::InvalidArgumentError(absl::StrCat(
        "the loss is not finite at step ", version + 1, " of phase ", phase_->name(), " (", sum,
        "); try a lower learning rate, a longer warm-up or a smaller clip_norm; the last checkpoint is of step ",
        on_shelf_));
  }
  step_statistics_ = Means(results);
  step_statistics_.insert(rollout_statistics_.begin(), rollout_statistics_.end());
  return sum / static_cast<double>(predictions);
}

// The mean loss of an evaluation at `version`, of `wanted` predictions.
absl::StatusOr<double> JobRun::HeldOutLoss(uint64_t version, absl::Span<const v1::WorkResult> results,
                                           uint64_t wanted) const {
  const auto [sum, predictions] = LossTotal(results);
  if (predictions != wanted || predictions == 0) {
    return absl::InternalError(absl::StrCat("evaluation at step ", version, ": workers report ", predictions,
                                            " predictions where the units have ", wanted));
  }
  if (!std::isfinite(sum)) {
    parts_.metrics->CountNonfinite("held_out_loss");
    return absl::InvalidArgumentError(absl::StrCat("the held-out loss is not finite at step ", version, " of phase ",
                                                   phase_->name(), " (", sum, "); the last checkpoint is of step ",
                                                   on_shelf_));
  }
  return sum / static_cast<double>(predictions);
}

// Takes the evaluation of `version` in; returns whether it is the best so far.
absl::StatusOr<bool> JobRun::Evaluate(uint64_t version, absl::Span<const v1::WorkResult> results) {
  CheckpointManifest::Evaluation evaluation;
  evaluation.step = version;
  evaluation.tokens = planner_->evaluation_predictions();
  MILLRACE_ASSIGN_OR_RETURN(evaluation.loss,
                            HeldOutLoss(version, results.subspan(0, planner_->evaluation_units()), evaluation.tokens));
  evaluation.bytes = planner_->evaluation_bytes();
  evaluation.bits_per_byte = evaluation.bytes == 0 ? 0
                                                   : evaluation.loss * static_cast<double>(evaluation.tokens) /
                                                         std::numbers::ln2 / static_cast<double>(evaluation.bytes);
  evaluation.statistics = Means(results.subspan(0, planner_->evaluation_units()));
  if (const uint64_t retained = planner_->retained_predictions(); retained > 0) {
    MILLRACE_ASSIGN_OR_RETURN(evaluation.statistics["retained_loss"],
                              HeldOutLoss(version, results.subspan(planner_->evaluation_units()), retained));
  }
  // What training begins with is told, and no checkpoint of the phase.
  const bool best = version > 0 && rules_->Add(version, evaluation.loss);
  if (version > 0) evaluations_.push_back(evaluation);

  v1::JobEvent event;
  v1::EvaluationEvent& about = *event.mutable_evaluation();
  about.set_phase(phase_->name());
  about.set_step(version);
  about.set_loss(evaluation.loss);
  if (evaluation.bytes > 0) about.set_perplexity(std::exp(evaluation.loss));
  about.set_bits_per_byte(evaluation.bits_per_byte);
  about.set_tokens(evaluation.tokens);
  about.set_bytes(evaluation.bytes);
  about.set_best(best);
  about.mutable_statistics()->insert(evaluation.statistics.begin(), evaluation.statistics.end());
  WriteFiles(event);
  parts_.book->Append(id_, std::move(event));
  parts_.book->Update(id_, [&](v1::Job* job) {
    job->set_held_out_loss(evaluation.loss);
    if (version == 0) return;
    job->set_best_step(rules_->best_step());
    job->set_best_held_out_loss(rules_->best_loss());
  });
  if (parts_.on_evaluation) parts_.on_evaluation();
  uint64_t rises = 0;
  for (size_t i = evaluations_.size(); i > 1 && evaluations_[i - 1].loss > evaluations_[i - 2].loss; --i) ++rises;
  told_of_phase_->Evaluated(evaluation.loss, version > 0 ? std::optional(rules_->best_loss()) : std::nullopt, rises,
                            evaluation.statistics);
  Log(Severity::kInfo, "evaluated",
      {{"job", id_},
       {"phase", phase_->name()},
       {"step", version},
       {"loss", evaluation.loss},
       {"bits_per_byte", evaluation.bits_per_byte},
       {"best", best}});
  return best;
}

absl::Status JobRun::TellSamples(uint64_t version, const v1::WorkResult& result) {
  MILLRACE_ASSIGN_OR_RETURN(v1::SamplesEvent samples, samples_->Read(version, result));
  v1::JobEvent event;
  *event.mutable_samples() = std::move(samples);
  WriteFiles(event);
  parts_.book->Append(id_, std::move(event));
  return absl::OkStatus();
}

// Applies the step after `version`, whose gradients are all in.
absl::Status JobRun::Commit(uint64_t version, double train_loss) {
  v1::NormsRequest asked;
  asked.set_version(version);
  std::vector<PruningStep> steps;
  for (const v1::Pruning& pruning : prunings_) {
    steps.push_back(PruningAt(pruning, *blocks_, version + 1, max_steps()));
    asked.set_scores(asked.scores() || steps.back().kept.has_value());
    asked.set_tracked(asked.tracked() || steps.back().tracked);
  }
  MILLRACE_ASSIGN_OR_RETURN(const FleetNorms norms, fleet_->Norms(asked));
  const double norm = std::sqrt(norms.squared_norm);
  if (!std::isfinite(norm)) {
    parts_.metrics->CountNonfinite("gradient");
    return absl::InvalidArgumentError(absl::StrCat(
        "the gradient is not finite at step ", version + 1, " of phase ", phase_->name(),
        "; try a lower learning rate, a longer warm-up or a smaller clip_norm; the last checkpoint is of step ",
        on_shelf_));
  }
  const double clip_norm = phase_->optimizer().clip_norm();
  v1::CommitRequest commit;
  commit.set_version(version);
  commit.set_clip_factor(clip_norm > 0 ? static_cast<float>(std::min(1.0, clip_norm / (norm + 1e-6))) : 1.0f);
  commit.set_tracked(asked.tracked());
  for (size_t i = 0; i < prunings_.size(); ++i) {
    if (!steps[i].kept.has_value()) continue;
    uint64_t left = CandidatesOf(prunings_[i], *blocks_);
    for (v1::ZeroedElements& zeroed : Prune(prunings_[i], *blocks_, norms.scores, *steps[i].kept)) {
      left -= static_cast<uint64_t>(zeroed.elements_size());
      *commit.add_zeroed() = std::move(zeroed);
    }
    if (i == 0) step_statistics_["rank"] = static_cast<double>(left) / prunings_[i].groups_size();
  }
  MILLRACE_ASSIGN_OR_RETURN(const double learning_rate, fleet_->Commit(commit));

  reached_ = version + 1;
  const uint64_t step_tokens = planner_->training_tokens(version);
  tokens_ += step_tokens;
  const absl::Time now = parts_.now();
  told_of_phase_->Applied({.step = reached_,
                           .tokens = step_tokens,
                           .phase_tokens = tokens_,
                           .saturated = norms.saturated,
                           .loss = train_loss,
                           .gradient_norm = norm,
                           .learning_rate = learning_rate},
                          step_statistics_, now);
  parts_.metrics->step_duration->Observe(absl::ToDoubleSeconds(now - step_began_));
  step_began_ = now;
  parts_.book->Update(id_, [&](v1::Job* job) {
    job->set_step(reached_);
    job->set_train_loss(train_loss);
  });

  const bool first = version == 0, last = reached_ >= max_steps();
  if (!first && !last && !EvaluationDue(reached_) && now - told_ < kStepEvents) return absl::OkStatus();
  const double seconds = absl::ToDoubleSeconds(now - told_);
  if (seconds > 0) {
    const double rate = static_cast<double>(tokens_ - told_tokens_) / seconds;
    tokens_per_second_ = tokens_per_second_ == 0 ? rate : 0.7 * tokens_per_second_ + 0.3 * rate;
  }
  told_ = now;
  told_tokens_ = tokens_;
  v1::JobEvent event;
  v1::StepEvent& about = *event.mutable_step();
  about.set_phase(phase_->name());
  about.set_step(reached_);
  about.set_max_steps(max_steps());
  about.set_loss(train_loss);
  about.set_learning_rate(learning_rate);
  about.set_gradient_norm(norm);
  about.set_tokens(tokens_);
  about.set_tokens_per_second(tokens_per_second_);
  if (tokens_per_second_ > 0) {
    about.set_eta_seconds(static_cast<double>((max_steps() - reached_) * step_tokens) / tokens_per_second_);
  }
  about.set_saturated(norms.saturated);
  about.set_workers(static_cast<uint32_t>(parts_.board->workers()));
  about.set_seconds_training(seconds_before_ + absl::ToDoubleSeconds(now - course_began_));
  about.mutable_statistics()->insert(step_statistics_.begin(), step_statistics_.end());
  WriteFiles(event);
  parts_.book->Append(id_, std::move(event));
  told_of_phase_->SetTokensPerSecond(tokens_per_second_);
  return absl::OkStatus();
}

// The files are for people: training goes on without them, to the next run or recovery.
void JobRun::RestartFiles(uint64_t version) {
  absl::StatusOr<std::unique_ptr<ProgressFiles>> files = ProgressFiles::Open(directory_);
  absl::Status status = files.status();
  if (status.ok()) status = (*files)->Restart(phase_->name(), version, absl::ToUnixMillis(parts_.now()));
  files_ = status.ok() ? *std::move(files) : nullptr;
  if (!status.ok()) Tell(Severity::kWarning, absl::StrCat("progress is not written to files: ", status.message()));
}

void JobRun::WriteFiles(v1::JobEvent event) {
  if (files_ == nullptr) return;
  event.set_unix_ms(absl::ToUnixMillis(parts_.now()));
  const absl::Status written = files_->Add(event);
  if (written.ok()) return;
  Tell(Severity::kWarning, absl::StrCat("progress is no longer written to files: ", written.message()));
  files_.reset();
}

// Starts writing `version`, which the shards are at, and returns as soon as they hold it.
absl::Status JobRun::BeginCheckpoint(uint64_t version) {
  MILLRACE_RETURN_IF_ERROR(FinishCheckpoint());
  const absl::Time begun = parts_.now();
  CheckpointManifest manifest;
  manifest.job = id_;
  manifest.phase = phase_->name();
  manifest.phase_index = phase_index_;
  manifest.step = version;
  manifest.data = planner_->data_fingerprint();
  manifest.seconds_training = seconds_before_ + absl::ToDoubleSeconds(begun - course_began_);
  manifest.tokens = tokens_;
  manifest.evaluations = evaluations_;
  manifest.variables = variables_;
  const std::string name = absl::StrCat(phase_->name(), "-", version);
  MILLRACE_ASSIGN_OR_RETURN(const std::string frozen_model, FrozenModel());
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<CheckpointWriter> writer,
                            CheckpointWriter::Create(shelf_.BuildingDirectory(name), blocks_.get(), parts_of_model_,
                                                     frozen_model, std::move(manifest), side_files_));
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<FleetCut> cut, fleet_->Snapshot(version, writer->left_out()));
  const bool best = !evaluations_.empty() && evaluations_.back().step == version && rules_->best_step() == version;
  checkpoint_ = std::make_unique<CheckpointOnItsWay>(
      std::move(cut), std::move(writer),
      [this, best, begun](const CheckpointManifest& finished) { return PlaceCheckpoint(finished, best, begun); });
  on_shelf_ = version;
  return absl::OkStatus();
}

absl::Status JobRun::FinishCheckpoint() {
  if (checkpoint_ == nullptr) return absl::OkStatus();
  const absl::Status finished = checkpoint_->Finish();
  checkpoint_.reset();
  return Annotate(finished, "writing a checkpoint");
}

// On the checkpoint's thread.
absl::Status JobRun::PlaceCheckpoint(const CheckpointManifest& manifest, bool best, absl::Time begun) {
  const std::string name = absl::StrCat(manifest.phase, "-", manifest.step);
  // Events up to here are durable before the checkpoint that later runs go on from.
  MILLRACE_RETURN_IF_ERROR(parts_.book->Flush());
  MILLRACE_RETURN_IF_ERROR(shelf_.Place(shelf_.BuildingDirectory(name), name));
  MILLRACE_RETURN_IF_ERROR(shelf_.Retain(manifest.phase, phase_->checkpoint().keep()));
  v1::JobEvent event;
  v1::CheckpointEvent& about = *event.mutable_checkpoint();
  about.set_phase(manifest.phase);
  about.set_step(manifest.step);
  about.set_directory(absl::StrCat(shelf_.directory(), "/", name));
  about.set_digest(manifest.digest);
  about.set_best(best);
  parts_.book->Append(id_, std::move(event));
  const absl::Time now = parts_.now();
  told_of_phase_->Checkpoint(now);
  parts_.metrics->checkpoint_duration->Observe(absl::ToDoubleSeconds(now - begun));
  Log(Severity::kInfo, "checkpoint",
      {{"job", id_}, {"phase", manifest.phase}, {"step", manifest.step}, {"digest", manifest.digest}, {"best", best}});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobOutcome> RunJob(const StoredJob& job, const RunnerParts& parts, const JobControl& control) {
  return JobRun(job, parts, control).Run();
}

}  // namespace millrace::coordinator
