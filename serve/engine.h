// Answers prompts with a model, many at a time: continuous batching (Yu et al. 2022, "Orca", section 3.1) over a cache
// of keys and values with one seat a sequence.
//
// One thread steps. In each step every answer that is under way is extended by a token and prompts are read on, all
// together in one pass; who is done leaves its seat, and the next sequence in the queue takes it. A step reads a
// bounded number of prompt tokens, so that a long prompt does not hold up the answers beside it. The network defines
// each element of a pass by itself, so that an answer is a function of the model, the prompt, its options and its seed,
// whatever goes on beside it; batching changes no bit. One seat is no batching.
//
// Samples of one prompt share its reading: the keys and values are copied to as many seats as are free.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/philox.h"
#include "model/families/network.h"
#include "model/sampling.h"
#include "serve/answer_text.h"
#include "serve/served_model.h"

namespace millrace::serve {

// What is wanted of one prompt.
struct Task {
  std::vector<uint32_t> prompt;
  int64_t samples = 1;     // answers
  int64_t max_tokens = 0;  // of an answer; 0: the prompt is only read
  model::SamplingOptions sampling;
  // Taken off the logits of tokens that the answer has already: the one for each time, the other once. Before the
  // temperature; log-probabilities are without them.
  double frequency_penalty = 0;
  double presence_penalty = 0;
  uint64_t seed = 0;                      // sample 0 draws as LanguageModel::Generate does
  std::vector<uint32_t> stop_tokens;      // end an answer and are no part of it
  std::vector<std::string> stop_strings;  // the same, wherever tokens begin and end
  // Absent: no log-probabilities; else those of the answer's tokens and of so many likeliest ones.
  std::optional<int64_t> likeliest;
  bool score_prompt = false;  // the same of the prompt's tokens; requires `likeliest`
  bool embed = false;         // the mean of the prompt's outputs
};

// Log-probabilities are in nats, before temperature, penalties and cuts: the bits of LanguageModel::LogProbabilities.
struct Token {
  uint32_t id = 0;
  std::optional<float> log_probability;               // absent if not wanted, and for a prompt's first token
  std::vector<std::pair<uint32_t, float>> likeliest;  // the likeliest first; the smaller id of equals
};

enum class Ending { kNone, kStop, kLength };

// Something of an answer. All that is said of a task's prompt comes first, in a piece of its own with sample -1.
struct Piece {
  int64_t task = 0;  // index in what was submitted
  int64_t sample = 0;
  std::string text;              // UTF-8, whole characters
  std::vector<Token> tokens;     // those of whose text something has been given; the prompt's if it is scored
  int64_t drawn = 0;             // tokens drawn since the piece before, one that ended the answer included
  std::vector<float> embedding;  // [hidden_size], with a prompt that is embedded
  Ending ending = Ending::kNone;
};

// What comes of one submission. Pieces wait here for as long as their reader likes, which the engine never does; they
// are no more than max_tokens allows. One thread reads.
class Reply {
 public:
  // Gives up what is still under way.
  ~Reply();

  // The next piece; nullopt if none came within `patience`, or if there are no more (done()). INTERNAL if the model
  // gives no numbers, UNAVAILABLE if the engine ends; nothing comes after an error.
  absl::StatusOr<std::optional<Piece>> Next(absl::Duration patience);
  // Whether every sample of every task has ended and all pieces were read.
  bool done() const;

 private:
  friend class Engine;
  struct Channel;
  explicit Reply(std::shared_ptr<Channel> channel) : channel_(std::move(channel)) {}
  const std::shared_ptr<Channel> channel_;
};

struct EngineOptions {
  int64_t sequences = 1;        // seats: answers and prompts under way at a time
  int64_t waiting = 256;        // sequences that may wait for a seat
  int64_t prompt_tokens = 256;  // of prompts, read in one step
};

// Submit may be called by any thread.
class Engine {
 public:
  // INVALID_ARGUMENT for a network with a scalar head and options below 1; RESOURCE_EXHAUSTED if there is not so much
  // memory. `metrics` outlives the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Start(const ServedModel& model, const EngineOptions& options,
                                                       Metrics* metrics);
  ~Engine();

  // Ends at once: replies that are under way get UNAVAILABLE, and so does Submit.
  void End();

  const ServedModel& model() const { return model_; }
  // Tokens of the longest prompt; with its answer a sequence may have one more.
  int64_t context() const { return model_.context(); }

  // Queues all samples of all tasks, or none. INVALID_ARGUMENT for a prompt that is empty or longer than the context or
  // has an id beyond the vocabulary; RESOURCE_EXHAUSTED if as many sequences wait already as may.
  absl::StatusOr<std::unique_ptr<Reply>> Submit(std::vector<Task> tasks);

 private:
  // A task of which samples are to be begun.
  struct Job {
    Task task;
    int64_t index = 0;
    std::shared_ptr<Reply::Channel> channel;
    absl::Time submitted;
    int64_t begun = 0;         // samples
    bool prompt_told = false;  // its piece is sent
    // Under the engine's mutex_:
    int64_t waiting = 0;   // samples without a seat
    bool reading = false;  // a seat reads the prompt
  };

  // A sequence of the cache and what is made of it.
  struct Seat {
    std::shared_ptr<Job> job;  // null: free
    int64_t sample = -1;       // -1 while the prompt is read
    // While the prompt is read:
    int64_t read = 0;              // tokens of it that are in the cache
    std::vector<Token> scored;     // its tokens up to here, if it is scored
    std::vector<float> embedding;  // the sum of its outputs, if it is embedded
    // Then:
    Philox key{0};
    std::unique_ptr<AnswerText> text;
    size_t bytes = 0;                             // of the tokens in `text`
    std::deque<std::pair<size_t, Token>> unsaid;  // with the byte at which each begins
    std::map<uint32_t, int64_t> counts;           // of tokens drawn, if there are penalties
    int64_t drawn = 0, told = 0;                  // tokens; those that pieces have counted
    uint32_t last = 0;                            // the token drawn last
    absl::Time last_at;
  };

  // A row of outputs that is to become logits.
  struct Row {
    size_t seat = 0;
    int64_t output = 0;     // index in the outputs of the pass
    int64_t predicts = -1;  // the prompt's token that is scored; -1: one is drawn
  };

  struct Counts;

  Engine(const ServedModel& model, const EngineOptions& options, Metrics* metrics);
  void Run();
  // Samples in the queue; tells the metric.
  int64_t CountWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Give up what nobody waits for any more: in the queue, and in seats.
  void DropCancelledWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropCancelled();
  // Where seats are free, lets them read the first prompts of the queue. Returns false if the engine is to end; waits if
  // there is nothing to do.
  bool Admit() ABSL_LOCKS_EXCLUDED(mutex_);
  void Step();
  // The prompt in `seat` has been read; `output` is that of its last token. Tells of it and begins samples, whose rows
  // are added.
  void BeginSamples(size_t seat, int64_t output, std::vector<Row>* rows);
  void BeginSample(size_t seat, const std::shared_ptr<Job>& job);
  // The job's prompt has been read. If there were too few seats for its samples, it is read again when there are some:
  // to keep it would keep a seat.
  void HasRead(const std::shared_ptr<Job>& job) ABSL_LOCKS_EXCLUDED(mutex_);
  // Scores what is to be scored and draws what is to be drawn, one row after another.
  void UseLogits(const float* outputs, absl::Span<const Row> rows);
  void Draw(size_t seat, Token token);
  void Leave(size_t seat);

  const ServedModel model_;
  const EngineOptions options_;
  const std::unique_ptr<Counts> counts_;
  // Own thread only.
  model::Network::OwnedCache cache_;
  std::vector<Seat> seats_;
  std::vector<size_t> reading_;  // seats whose prompt is read, the first come first
  std::vector<float> gathered_, logits_, copies_;

  absl::Mutex mutex_;
  absl::CondVar more_;
  std::deque<std::shared_ptr<Job>> queue_ ABSL_GUARDED_BY(mutex_);  // those with samples that wait
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace millrace::serve
