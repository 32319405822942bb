#include "coordinator/job_runner.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/numbers.h"
#include "common/job_file.h"
#include "coordinator/checkpoint_shelf.h"
#include "coordinator/simulated_cluster.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/token_store.h"

namespace millrace::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Kind = JobOutcome::Kind;

namespace fs = std::filesystem;

// One coordinator's life after another on the same directory, without a network.
class JobRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(::testing::TempDir()) /
                 absl::StrCat("runner-", ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(directory_);
    fs::create_directories(directory_ / "jobs" / "tiny");
    std::ofstream text(directory_ / "text.txt");
    for (int i = 0; i < 400; ++i) text << "Line " << i * 7919 % 1000 << " of the corpus says little.\n\n";
    text.close();
    Start();
  }
  void TearDown() override {
    Kill();
    fs::remove_all(directory_);
  }

  void Start() {
    auto store = JobStore::Open(directory_ / "coordinator.sqlite");
    ASSERT_OK(store);
    store_ = *std::move(store);
    book_ = *JobBook::Open(store_.get());
    board_ = std::make_unique<WorkBoard>();
    members_ = std::make_unique<Members>(Members::Options{.on_join =
                                                              [this](const Member& member) {
                                                                if (member.role == v1::WORKER) board_->Admit(member.id);
                                                              },
                                                          .on_loss =
                                                              [this](const Member& member, absl::string_view) {
                                                                member.role == v1::WORKER ? board_->Dismiss(member.id)
                                                                                          : board_->Wake();
                                                              }});
    JoinShard();
  }
  void Kill() {
    workers_.clear();
    members_.reset();
    board_.reset();
    book_.reset();
    store_.reset();
  }
  void JoinShard() {
    v1::JoinRequest request;
    request.set_role(v1::SHARD);
    request.set_name("s-1");
    request.set_address("simulated");
    shard_ = members_->Join(request, absl::Now())->member_id();
  }
  void AddWorker(SimulatedWorker::Script script = nullptr) {
    workers_.push_back(std::make_unique<SimulatedWorker>(absl::StrCat("w-", ++worker_names_), members_.get(),
                                                         board_.get(), &shards_, std::move(script)));
  }

  // A job of `max_steps` steps with 3 units each, evaluated every 5.
  v1::JobSpec Spec(uint64_t max_steps, std::vector<std::string> more = {}) {
    more.push_back(absl::StrCat("phases.0.stop.max_steps=", max_steps));
    const auto spec = ParseJob(absl::StrCat(R"(
name: tiny
data: {sources: [{path: text.txt}], held_out: 0.1, split: {order: file}}
tokenizer: {type: char}
model: {family: gpt2, layers: 1, hidden_size: 8, heads: 1, context: 8}
phases:
  - name: pretrain
    global_batch: 6
    microbatch: 2
    evaluate: {every_steps: 5, max_tokens: 200}
    stop: {max_steps: 20}
)"),
                               "tiny.yaml", more);
    EXPECT_OK(spec);
    return *spec;
  }
  void Submit(const v1::JobSpec& spec) {
    StoredJob job;
    *job.job.mutable_spec() = spec;
    job.base_directory = directory_;
    ASSERT_OK(book_->Add(job));
    std::ofstream(directory_ / "jobs" / "tiny" / "job.json") << "{}";
  }

  absl::StatusOr<JobOutcome> Run() {
    RunnerParts parts;
    parts.directory = directory_;
    parts.book = book_.get();
    parts.store = store_.get();
    parts.members = members_.get();
    parts.board = board_.get();
    parts.connect = [this](uint64_t epoch, const std::vector<std::string>&) { return shards_.Connect(epoch); };
    parts.announce = [](uint64_t) {};
    parts.metrics = &metrics_;
    control_ = std::make_unique<JobControl>([this] {
      members_->Wake();
      board_->Wake();
    });
    return RunJob(*book_->GetStored("tiny"), parts, *control_);
  }

  std::vector<v1::JobEvent> Events() {
    auto events = book_->Read("tiny", 0, 100'000);
    EXPECT_OK(events);
    return *events;
  }
  std::vector<uint64_t> EvaluatedSteps() {
    std::vector<uint64_t> steps;
    for (const v1::JobEvent& event : Events()) {
      if (event.has_evaluation()) steps.push_back(event.evaluation().step());
    }
    return steps;
  }
  std::vector<std::string> Texts() {
    std::vector<std::string> texts;
    for (const v1::JobEvent& event : Events()) {
      if (event.has_log()) texts.push_back(event.log().text());
    }
    return texts;
  }
  std::vector<std::string> OnShelf() {
    std::vector<std::string> names;
    for (const ShelfEntry& entry : Shelf().List()) names.push_back(entry.name);
    return names;
  }
  CheckpointShelf Shelf() { return CheckpointShelf(directory_ / "jobs" / "tiny"); }
  std::string LastDigest() {
    const auto last = Shelf().Find("last");
    EXPECT_OK(last);
    return last.ok() ? last->manifest.digest : "";
  }
  std::string Link(const char* name) {
    return fs::read_symlink(directory_ / "jobs" / "tiny" / "checkpoints" / name).string();
  }
  // The digest that an undisturbed run gives, found in a directory of its own.
  std::string UndisturbedDigest(const v1::JobSpec& spec) {
    JobRunnerTest::Fresh fresh(this);
    Submit(spec);
    AddWorker();
    const auto outcome = Run();
    EXPECT_OK(outcome);
    return LastDigest();
  }
  class Fresh {
   public:
    explicit Fresh(JobRunnerTest* test) : test_(test), kept_(test->directory_) {
      test_->Kill();
      test_->directory_ = kept_.string() + "-undisturbed";
      fs::remove_all(test_->directory_);
      fs::create_directories(test_->directory_ / "jobs" / "tiny");
      fs::copy(kept_ / "text.txt", test_->directory_ / "text.txt");
      test_->Start();
    }
    ~Fresh() {
      test_->Kill();
      fs::remove_all(test_->directory_);
      test_->directory_ = kept_;
      test_->Start();
    }

   private:
    JobRunnerTest* const test_;
    const fs::path kept_;
  };

  fs::path directory_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobBook> book_;
  std::unique_ptr<WorkBoard> board_;
  std::unique_ptr<Members> members_;
  std::string shard_;
  SimulatedShards shards_;
  Metrics registry_;
  CoordinatorMetrics metrics_{&registry_};
  std::unique_ptr<JobControl> control_;
  std::vector<std::unique_ptr<SimulatedWorker>> workers_;
  int worker_names_ = 0;
};

TEST_F(JobRunnerTest, AJobRunsFromTextToItsLastCheckpoint) {
  Submit(Spec(12));
  AddWorker();
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kSucceeded);
  EXPECT_EQ(outcome->stop_reason, "max_steps");
  EXPECT_EQ(shards_.commits, 12);
  EXPECT_THAT(EvaluatedSteps(), ElementsAre(5, 10, 12));
  EXPECT_EQ(book_->Get("tiny")->step(), 12u);
  const auto last = Shelf().Find("last");
  ASSERT_OK(last);
  EXPECT_EQ(last->name, "pretrain-12");
  EXPECT_EQ(Link("last"), "pretrain-12");
  EXPECT_FALSE(Link("best").empty());
  for (const char* file :
       {"model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json", "job.json", "manifest.json"}) {
    EXPECT_TRUE(fs::exists(fs::path(last->directory) / file)) << file;
  }
  bool data = false;
  std::vector<uint64_t> checkpoints;
  for (const v1::JobEvent& event : Events()) {
    data |= event.has_data() && event.data().train_tokens() > 1000 && event.data().vocab_size() > 10;
    if (event.has_checkpoint()) checkpoints.push_back(event.checkpoint().step());
  }
  EXPECT_TRUE(data);
  EXPECT_THAT(checkpoints, ElementsAre(5, 10, 12));
}

TEST_F(JobRunnerTest, WorkersThatComeAndDieChangeNothing) {
  const v1::JobSpec spec = Spec(23);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  int left = 10;
  AddWorker([&](const v1::WorkUnit&, v1::WorkResult*) { return --left > 0; });  // dies holding a unit
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult* result) {
    if (unit.version() == 3 && !result->failed() && unit.unit() == 0) {  // has trouble, and gets over it
      static std::atomic<int> times = 0;
      if (++times < 3) {
        result->set_failed(true);
        result->set_retryable(true);
      }
    }
    return true;
  });
  AddWorker();
  std::thread ticker([&, until = absl::Now() + absl::Seconds(60)] {
    while (absl::Now() < until) {
      if (book_->Get("tiny")->step() >= 23) return;
      board_->Tick();
      std::this_thread::yield();
    }
  });
  const auto outcome = Run();
  ticker.join();
  ASSERT_OK(outcome);
  EXPECT_EQ(LastDigest(), digest);
  EXPECT_THAT(EvaluatedSteps(), ElementsAre(5, 10, 15, 20, 23));
}

TEST_F(JobRunnerTest, ALostShardBringsTheRunBackToTheLastCheckpointAndTheSameEnd) {
  const v1::JobSpec spec = Spec(20);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  shards_.configured = 0;
  std::atomic<bool> killed = false;
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 13 && !killed.exchange(true)) {
      shards_.Kill();
      members_->Remove(shard_, "killed");
      shards_.Revive();
      JoinShard();  // a replacement
    }
    return true;
  });
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(shards_.configured, 2);
  EXPECT_EQ(LastDigest(), digest);
  EXPECT_THAT(EvaluatedSteps(), ElementsAre(5, 10, 15, 20));
  EXPECT_THAT(Texts(), Contains(HasSubstr("shard was lost")));
  EXPECT_THAT(Texts(), Contains(HasSubstr("goes on from checkpoint pretrain-10")));
  std::set<uint64_t> steps;
  for (const v1::JobEvent& event : Events()) {
    if (event.has_step()) {
      EXPECT_TRUE(steps.insert(event.step().step()).second) << event.step().step();
    }
  }
}

TEST_F(JobRunnerTest, AShardLostBeforeTheFirstCheckpointMeansNewWeights) {
  const v1::JobSpec spec = Spec(9);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  std::atomic<bool> killed = false;
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 3 && !killed.exchange(true)) {
      shards_.Kill();
      members_->Remove(shard_, "killed");
      shards_.Revive();
      JoinShard();
    }
    return true;
  });
  ASSERT_OK(Run());
  EXPECT_EQ(LastDigest(), digest);
}

TEST_F(JobRunnerTest, AShardThatDoesNotAnswerIsWaitedFor) {
  Submit(Spec(6));
  AddWorker();
  shards_.fail_commits = true;
  std::thread repair([&] {
    while (shards_.configured < 3) std::this_thread::yield();
    shards_.fail_commits = false;
  });
  const auto outcome = Run();
  repair.join();
  ASSERT_OK(outcome);
  EXPECT_THAT(Texts(), Contains(HasSubstr("shard s-1 does not answer")));
}

// Continues each prompt with its last token, as often as the version is old.
void WriteSamples(const v1::WorkUnit& unit, v1::WorkResult* result) {
  for (const v1::Prompt& prompt : unit.microbatches(0).prompts()) {
    v1::Experience& experience = *result->add_experiences();
    std::string tokens = prompt.tokens();
    for (uint64_t i = 0; i < unit.version(); ++i) tokens += prompt.tokens().substr(prompt.tokens().size() - 4);
    experience.set_tokens(tokens);
    experience.set_prompt_tokens(static_cast<uint32_t>(prompt.tokens().size() / 4));
  }
}

constexpr char kSamples[] = "phases.0.evaluate.samples={prompts: [sa, corp], max_tokens: 30}";

TEST_F(JobRunnerTest, SamplesAreToldOnceAtEachEvaluationWhoeverWritesThem) {
  Submit(Spec(12, {kSamples}));
  const auto counts = [](const v1::WorkUnit& unit) { return unit.kind() == v1::WorkUnit::SAMPLE; };
  std::atomic<bool> dead = false, lost = false;
  std::set<uint64_t> asked;
  // Whoever is asked first dies of it; the other loses the shards behind an evaluation, which brings them back to it.
  const auto script = [&](const v1::WorkUnit& unit, v1::WorkResult* result) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 7 && dead && !lost.exchange(true)) {
      shards_.Kill();
      members_->Remove(shard_, "killed");
      shards_.Revive();
      JoinShard();
    }
    if (!counts(unit) || result->failed()) return true;
    if (!dead.exchange(true)) return false;
    asked.insert(unit.version());
    WriteSamples(unit, result);
    return true;
  };
  AddWorker(script);
  AddWorker(script);
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_TRUE(lost);
  EXPECT_THAT(asked, ElementsAre(5, 10, 12));
  std::vector<std::string> told;
  for (const v1::JobEvent& event : Events()) {
    if (!event.has_samples()) continue;
    EXPECT_EQ(event.samples().phase(), "pretrain");
    for (const v1::Sample& sample : event.samples().samples()) {
      told.push_back(absl::StrCat(event.samples().step(), " ", sample.prompt(), " ", sample.text(), " ",
                                  sample.tokens(), sample.ended() ? " ended" : ""));
    }
  }
  EXPECT_THAT(told, ElementsAre("5 sa aaaaa 5", "5 corp ppppp 5", "10 sa aaaaaaaaaa 10", "10 corp pppppppppp 10",
                                "12 sa aaaaaaaaaaaa 12", "12 corp pppppppppppp 12"));
}

TEST_F(JobRunnerTest, SamplesThatAreNotWhatWasAskedEndTheJob) {
  const struct {
    std::function<void(v1::WorkResult*)> spoil;
    const char* error;
  } cases[] = {
      {[](v1::WorkResult* result) { result->mutable_experiences()->RemoveLast(); }, "report 1 texts where 2"},
      {[](v1::WorkResult* result) { result->mutable_experiences(1)->mutable_tokens()->at(0) ^= 1; },
       "do not continue its prompt"},
      {[](v1::WorkResult* result) { result->mutable_experiences(0)->mutable_tokens()->append(120, '\0'); },
       "do not continue its prompt of 2 by 1 to 30"},
      {[](v1::WorkResult* result) { result->mutable_experiences(0)->mutable_tokens()->resize(8); }, "has 2 tokens"},
  };
  for (const auto& one : cases) {
    Fresh fresh(this);
    Submit(Spec(12, {kSamples}));
    AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult* result) {
      if (unit.kind() != v1::WorkUnit::SAMPLE) return true;
      WriteSamples(unit, result);
      one.spoil(result);
      return true;
    });
    const auto outcome = Run();
    EXPECT_EQ(outcome.status().code(), absl::StatusCode::kInternal) << one.error;
    EXPECT_THAT(std::string(outcome.status().message()), HasSubstr(one.error));
  }
}

TEST_F(JobRunnerTest, APromptThatTheTokenizerLacksIsNamedBeforeAnythingIsTrained) {
  Submit(Spec(12, {"phases.0.evaluate.samples={prompts: [sa, sä]}"}));
  AddWorker();
  const auto outcome = Run();
  EXPECT_EQ(outcome.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outcome.status().message()), HasSubstr("phase pretrain: evaluate.samples.prompts.1"));
  EXPECT_EQ(shards_.commits, 0);
}

TEST_F(JobRunnerTest, AStoppedAndAKilledCoordinatorGoOnToTheSameEnd) {
  const v1::JobSpec spec = Spec(20);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  const auto ask_at = [&](uint64_t version, Wish wish) {
    return [this, version, wish](const v1::WorkUnit& unit, v1::WorkResult*) {
      if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == version) control_->Ask(wish);
      return true;
    };
  };
  // Stopped by a signal: checkpoints where it is.
  AddWorker(ask_at(7, Wish::kStop));
  auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kStopped);
  // Step 8 may have been complete when the runner looked.
  EXPECT_THAT(OnShelf(),
              ::testing::AnyOf(ElementsAre("pretrain-5", "pretrain-7"), ElementsAre("pretrain-5", "pretrain-8")));
  Kill();
  Start();
  // Killed: nothing is written at its end, as with a job that is cancelled.
  AddWorker(ask_at(14, Wish::kCancel));
  outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kCancelled);
  EXPECT_THAT(OnShelf(), Contains("pretrain-10"));
  EXPECT_THAT(OnShelf(), ::testing::Not(Contains("pretrain-14")));
  Kill();
  Start();
  AddWorker();
  outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kSucceeded);
  EXPECT_EQ(LastDigest(), digest);
  EXPECT_THAT(EvaluatedSteps(), ElementsAre(5, 10, 15, 20));
  // Run again, a finished job has nothing to do, and needs nobody.
  Kill();
  Start();
  outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->stop_reason, "max_steps");
}

TEST_F(JobRunnerTest, APausedJobFinishesItsStepAndResumesBitIdentically) {
  const v1::JobSpec spec = Spec(20);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 12) control_->Ask(Wish::kPause);
    return true;
  });
  auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kPaused);
  EXPECT_THAT(OnShelf(), Contains("pretrain-13"));
  workers_.clear();
  AddWorker();
  outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->kind, Kind::kSucceeded);
  EXPECT_EQ(LastDigest(), digest);
}

TEST_F(JobRunnerTest, PauseAndCancelWorkWhileNobodyIsThere) {
  Submit(Spec(20));
  for (const auto& [wish, kind] : {std::pair{Wish::kPause, Kind::kPaused}, std::pair{Wish::kCancel, Kind::kCancelled},
                                   std::pair{Wish::kStop, Kind::kStopped}}) {
    std::thread user([&, wish = wish] {
      // Until Run has made its control and reached its waiting, Ask is repeated by the state's event.
      book_->AwaitEvent("tiny", book_->Read("tiny", 0, 100'000)->back().sequence(), absl::InfiniteFuture());
      control_->Ask(wish);
    });
    const auto outcome = Run();
    user.join();
    ASSERT_OK(outcome);
    EXPECT_EQ(outcome->kind, kind);
  }
}

TEST_F(JobRunnerTest, PatienceEndsThePhaseAndTheBestIsKept) {
  // Held-out losses by evaluation: the third is the best; three more without a better one end it.
  Submit(Spec(100, {"phases.0.stop.patience=3", "phases.0.checkpoint.keep=1"}));
  const std::map<uint64_t, double> losses = {{5, 3.0}, {10, 2.5}, {15, 2.0}, {20, 2.2}, {25, 2.1}, {30, 2.05}};
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult* result) {
    if (unit.kind() == v1::WorkUnit::EVALUATE) {
      result->set_loss_sum(losses.at(unit.version()) * static_cast<double>(result->predictions()));
    }
    return true;
  });
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->stop_reason, "patience");
  EXPECT_EQ(shards_.commits, 30);
  EXPECT_THAT(EvaluatedSteps(), ElementsAre(5, 10, 15, 20, 25, 30));
  EXPECT_EQ(Link("best"), "pretrain-15");
  EXPECT_EQ(Link("last"), "pretrain-30");
  EXPECT_THAT(OnShelf(), ElementsAre("pretrain-15", "pretrain-25", "pretrain-30"));
  EXPECT_EQ(book_->Get("tiny")->best_step(), 15u);
}

TEST_F(JobRunnerTest, TheBestIsCheckpointedEvenWhereNoCheckpointIsDue) {
  Submit(Spec(20, {"phases.0.checkpoint.every_steps=100"}));
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult* result) {
    if (unit.kind() == v1::WorkUnit::EVALUATE) {
      result->set_loss_sum((unit.version() == 10 ? 1.0 : 2.0) * static_cast<double>(result->predictions()));
    }
    return true;
  });
  ASSERT_OK(Run());
  EXPECT_THAT(OnShelf(), ElementsAre("pretrain-5", "pretrain-10", "pretrain-20"));
  EXPECT_EQ(Link("best"), "pretrain-10");
}

TEST_F(JobRunnerTest, MetricsTellOfThePhaseAndGoAMinuteAfterTheJob) {
  Submit(Spec(20));
  AddWorker();
  ASSERT_OK(Run());
  const std::string labels = "{phase=\"pretrain\",train_job=\"tiny\"}";
  const auto evaluations = static_cast<double>(EvaluatedSteps().size());
  const std::string text = registry_.Text();
  for (const auto& [name, value] : std::map<std::string, double>{{"steps_total", 20},
                                                                 {"step", 20},
                                                                 {"target_steps", 20},
                                                                 {"trained_tokens_total", 20 * 6 * 8},
                                                                 {"phase_tokens", 20 * 6 * 8},
                                                                 {"evaluations_total", evaluations},
                                                                 {"checkpoints_total", 4}}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("millrace_", name, labels, " ", value, "\n")));
  }
  v1::EvaluationEvent last;
  for (const v1::JobEvent& event : Events()) {
    if (event.has_evaluation()) last = event.evaluation();
  }
  double told = 0;
  const std::string line = absl::StrCat("\nmillrace_held_out_loss_nats", labels, " ");
  const size_t at = text.find(line);
  ASSERT_NE(at, std::string::npos) << text;
  ASSERT_TRUE(absl::SimpleAtod(text.substr(at + line.size(), text.find('\n', at + 1) - at - line.size()), &told));
  EXPECT_NEAR(told, last.loss(), 1e-9);

  // While the job runs they stay; a minute after its end they are gone.
  const absl::Time now = absl::Now();
  metrics_.DropEnded(now + absl::Hours(1));
  EXPECT_THAT(registry_.Text(), HasSubstr("train_job"));
  metrics_.EndJob("tiny", now);
  metrics_.DropEnded(now + absl::Seconds(30));
  EXPECT_THAT(registry_.Text(), HasSubstr("train_job"));
  metrics_.DropEnded(now + absl::Seconds(61));
  EXPECT_THAT(registry_.Text(), Not(HasSubstr("train_job")));
}

TEST_F(JobRunnerTest, ALossThatIsNotFiniteEndsTheJobNamingTheStep) {
  Submit(Spec(20));
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult* result) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 7) result->set_loss_sum(std::nan(""));
    return true;
  });
  const auto outcome = Run();
  EXPECT_THAT(outcome.status().message(), HasSubstr("loss is not finite at step 8 of phase pretrain"));
  EXPECT_THAT(OnShelf(), ElementsAre("pretrain-5"));
}

TEST_F(JobRunnerTest, ADamagedCheckpointIsSetAsideWithItsTensorNamedAndTheOneBeforeUsed) {
  const v1::JobSpec spec = Spec(20);
  const std::string digest = UndisturbedDigest(spec);
  Submit(spec);
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.kind() == v1::WorkUnit::TRAIN && unit.version() == 12) control_->Ask(Wish::kPause);
    return true;
  });
  ASSERT_OK(Run());
  const fs::path file = directory_ / "jobs" / "tiny" / "checkpoints" / "pretrain-13" / "model.safetensors";
  std::fstream model(file, std::ios::in | std::ios::out | std::ios::binary);
  model.seekg(-4, std::ios::end);
  const char flipped = static_cast<char>(model.peek() ^ 0x10);
  model.seekp(-4, std::ios::end);
  model.put(flipped);
  model.close();
  workers_.clear();
  AddWorker();
  ASSERT_OK(Run());
  EXPECT_THAT(Texts(), Contains(::testing::AllOf(HasSubstr("pretrain-13 is damaged"), HasSubstr("head.weight"))));
  EXPECT_THAT(Texts(), Contains(HasSubstr("goes on from checkpoint pretrain-10")));
  EXPECT_EQ(LastDigest(), digest);
}

TEST_F(JobRunnerTest, TheSecondPhaseStartsFromTheBestOfTheFirst) {
  v1::JobSpec spec = Spec(10);
  *spec.add_phases() = spec.phases(0);
  spec.mutable_phases(1)->set_name("more");
  Submit(spec);
  std::vector<uint64_t> versions;
  std::atomic<bool> second = false;
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.context().phase().name() == "more" && unit.kind() != v1::WorkUnit::PLAN) second = true;
    if (unit.context().phase().name() == "more") {
      EXPECT_NE(unit.kind(), v1::WorkUnit::INITIALIZE);
    }
    return true;
  });
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_TRUE(second);
  EXPECT_EQ(Link("last"), "more-10");
  EXPECT_EQ(shards_.commits, 20);
  EXPECT_THAT(Texts(), Contains(HasSubstr("phase more starts from checkpoint pretrain-")));
}

TEST_F(JobRunnerTest, APhaseWithTextOfItsOwnTellsWhatIsRetainedOfTheJobs) {
  // Of the same characters.
  std::ifstream text(directory_ / "text.txt");
  std::string other{std::istreambuf_iterator<char>(text), std::istreambuf_iterator<char>()};
  std::reverse(other.begin(), other.end());
  std::ofstream(directory_ / "other.txt") << other;
  v1::JobSpec spec = Spec(10);
  *spec.add_phases() = spec.phases(0);
  v1::PhaseSpec& more = *spec.mutable_phases(1);
  more.set_name("more");
  *more.mutable_data() = spec.data();
  more.mutable_data()->mutable_sources(0)->set_path("other.txt");
  Submit(spec);
  std::set<std::string> tokens_of_phase[2];
  AddWorker([&](const v1::WorkUnit& unit, v1::WorkResult*) {
    if (unit.kind() == v1::WorkUnit::TRAIN) {
      tokens_of_phase[shards_.commits >= 10].insert(unit.microbatches(0).tokens());
    }
    return true;
  });
  const auto outcome = Run();
  ASSERT_OK(outcome);
  int evaluations = 0;
  for (const v1::JobEvent& event : Events()) {
    if (!event.has_evaluation()) continue;
    ++evaluations;
    const auto& statistics = event.evaluation().statistics();
    EXPECT_EQ(statistics.contains("retained_loss"), event.evaluation().phase() == "more");
    if (statistics.contains("retained_loss")) {
      EXPECT_GT(statistics.at("retained_loss"), 0);
    }
  }
  EXPECT_EQ(evaluations, 4);
  for (const std::string& tokens : tokens_of_phase[1]) EXPECT_FALSE(tokens_of_phase[0].contains(tokens));
}

TEST_F(JobRunnerTest, EpochsBecomeSteps) {
  v1::JobSpec spec = Spec(10);
  v1::StopSpec& stop = *spec.mutable_phases(0)->mutable_stop();
  stop.clear_max_steps();
  stop.set_max_epochs(0.5);
  spec.mutable_phases(0)->mutable_optimizer()->clear_decay_steps();
  Submit(spec);
  AddWorker();
  const auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_EQ(outcome->stop_reason, "max_steps");
  // Half of the text's windows of 8 tokens, 6 a step.
  const auto store = text::TokenStore::Open(directory_ / "jobs" / "tiny" / "data");
  ASSERT_OK(store);
  const uint64_t windows = (*store)->train().size() / 8 - 1;
  EXPECT_EQ(static_cast<uint64_t>(shards_.commits), (windows + 11) / 12);
}

TEST_F(JobRunnerTest, APhaseMayStartFromAnyEarlierStepOrAFolder) {
  v1::JobSpec spec = Spec(10);
  *spec.add_phases() = spec.phases(0);
  spec.mutable_phases(1)->set_name("more");
  spec.mutable_phases(1)->set_from("pretrain@5");
  Submit(spec);
  AddWorker();
  auto outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_THAT(Texts(), Contains("phase more starts from checkpoint pretrain-5"));

  // The same weights lie in a folder; with nothing but the weights in it.
  const fs::path checkpoints = directory_ / "jobs" / "tiny" / "checkpoints";
  fs::create_directory(directory_ / "model");
  fs::copy(checkpoints / "pretrain-5" / "model.safetensors", directory_ / "model" / "model.safetensors");
  const std::string digest = LastDigest();
  fs::remove_all(checkpoints / "more-5");
  fs::remove_all(checkpoints / "more-10");
  spec.mutable_phases(1)->set_from("./model");
  ASSERT_OK(book_->Delete("tiny"));
  Submit(spec);
  outcome = Run();
  ASSERT_OK(outcome);
  EXPECT_THAT(Texts(), Contains(AllOf(HasSubstr("phase more starts from "), HasSubstr("/model"))));
  EXPECT_EQ(LastDigest(), digest);
}

TEST_F(JobRunnerTest, AFolderWithoutAModelIsAClearError) {
  v1::JobSpec spec = Spec(5);
  spec.mutable_phases(0)->set_from("./nowhere");
  Submit(spec);
  AddWorker();
  const auto outcome = Run();
  EXPECT_TRUE(absl::IsInvalidArgument(outcome.status())) << outcome.status();
  EXPECT_THAT(outcome.status().message(),
              AllOf(HasSubstr("phase pretrain starts from ./nowhere, which holds no model.safetensors"),
                    HasSubstr("millrace import")));
}

TEST_F(JobRunnerTest, MissingTextIsAClearError) {
  v1::JobSpec spec = Spec(5);
  spec.mutable_data()->mutable_sources(0)->set_path("nowhere.txt");
  Submit(spec);
  AddWorker();
  const auto outcome = Run();
  EXPECT_FALSE(outcome.ok());
  EXPECT_THAT(outcome.status().message(), HasSubstr("nowhere.txt"));
}

}  // namespace
}  // namespace millrace::coordinator
