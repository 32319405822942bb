#include "serve/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"

namespace millrace::serve {
namespace {

// Rows of logits that are in memory at a time.
constexpr size_t kRows = 64;
constexpr char kEnded[] = "the server has ended";

// The `count` ids with the largest logits, the largest first; the smaller id of equals.
std::vector<uint32_t> Likeliest(absl::Span<const float> logits, int64_t count) {
  std::vector<uint32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0u);
  const auto kept = std::min(count, static_cast<int64_t>(ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + kept, ids.end(), [logits](uint32_t a, uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  ids.resize(static_cast<size_t>(kept));
  return ids;
}

bool HasPenalties(const Task& task) { return task.frequency_penalty != 0 || task.presence_penalty != 0; }

}  // namespace

// ---- replies ----

struct Reply::Channel {
  std::atomic<bool> cancelled = false;
  absl::Mutex mutex;
  absl::CondVar more;
  std::deque<Piece> pieces ABSL_GUARDED_BY(mutex);
  int64_t open ABSL_GUARDED_BY(mutex) = 0;  // samples whose last piece has not been read
  absl::Status error ABSL_GUARDED_BY(mutex);

  void Send(Piece piece) {
    absl::MutexLock lock(&mutex);
    pieces.push_back(std::move(piece));
    more.Signal();
  }
  void Fail(const absl::Status& status) {
    cancelled = true;
    absl::MutexLock lock(&mutex);
    error.Update(status);
    more.Signal();
  }
};

Reply::~Reply() { channel_->cancelled = true; }

absl::StatusOr<std::optional<Piece>> Reply::Next(absl::Duration patience) {
  absl::MutexLock lock(&channel_->mutex);
  const absl::Time deadline = absl::Now() + patience;
  while (channel_->pieces.empty() && channel_->error.ok() && channel_->open > 0) {
    if (channel_->more.WaitWithDeadline(&channel_->mutex, deadline)) break;
  }
  MILLRACE_RETURN_IF_ERROR(channel_->error);
  if (channel_->pieces.empty()) return std::nullopt;
  Piece piece = std::move(channel_->pieces.front());
  channel_->pieces.pop_front();
  if (piece.ending != Ending::kNone) --channel_->open;
  return piece;
}

bool Reply::done() const {
  absl::MutexLock lock(&channel_->mutex);
  return channel_->open == 0;
}

// ---- the engine from outside ----

struct Engine::Counts {
  Counts(Metrics* metrics, const std::string& model)
      : prompt_tokens(metrics->Counter("millrace_serve_tokens_total", "Tokens read of prompts and drawn.",
                                       {{"model", model}, {"kind", "prompt"}})),
        drawn_tokens(metrics->Counter("millrace_serve_tokens_total", "Tokens read of prompts and drawn.",
                                      {{"model", model}, {"kind", "drawn"}})),
        cancelled(metrics->Counter("millrace_serve_cancelled_total", "Sequences given up because nobody waited.",
                                   {{"model", model}})),
        waiting(
            metrics->Gauge("millrace_serve_waiting_sequences", "Sequences that wait for a seat.", {{"model", model}})),
        seats(metrics->Gauge("millrace_serve_seats", "Sequences that can be under way together.", {{"model", model}})),
        taken(metrics->Gauge("millrace_serve_taken_seats", "Sequences that are under way.", {{"model", model}})),
        first_token(metrics->Histogram("millrace_serve_first_token_duration_seconds",
                                       "Time from a request to the first token of an answer.", DurationBounds(),
                                       {{"model", model}})),
        token(metrics->Histogram("millrace_serve_token_duration_seconds",
                                 "Time from one token of an answer to the next.", DurationBounds(),
                                 {{"model", model}})) {}

  prometheus::Counter* const prompt_tokens;
  prometheus::Counter* const drawn_tokens;
  prometheus::Counter* const cancelled;
  prometheus::Gauge* const waiting;
  prometheus::Gauge* const seats;
  prometheus::Gauge* const taken;
  prometheus::Histogram* const first_token;
  prometheus::Histogram* const token;
};

Engine::Engine(const ServedModel& model, const EngineOptions& options, Metrics* metrics)
    : model_(model), options_(options), counts_(std::make_unique<Counts>(metrics, model.name)) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Start(const ServedModel& model, const EngineOptions& options,
                                                      Metrics* metrics) {
  const model::Network& network = *model.network;
  MILLRACE_RETURN_IF_ERROR(network.CheckExtends());
  if (network.output_embedding() < 0) {
    return absl::InvalidArgumentError("a model with a scalar head predicts no tokens");
  }
  if (options.sequences < 1 || options.waiting < 1 || options.prompt_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(options.sequences, " sequences, ", options.waiting, " waiting and ",
                                                   options.prompt_tokens,
                                                   " tokens of prompts a step: each must be at least 1"));
  }
  std::unique_ptr<Engine> engine(new Engine(model, options, metrics));
  MILLRACE_ASSIGN_OR_RETURN(
      engine->cache_, network.NewCache(options.sequences, model.context(), options.sequences + options.prompt_tokens));
  MILLRACE_RETURN_IF_ERROR(network.Begin(*model.compute, model.weights, engine->cache_.get()));
  engine->seats_.resize(static_cast<size_t>(options.sequences));
  const size_t rows = kRows * network.vocab_size();
  engine->gathered_.resize(kRows * static_cast<size_t>(network.hidden_size()));
  engine->logits_.resize(rows);
  engine->copies_.resize(rows);
  engine->counts_->seats->Set(static_cast<double>(options.sequences));
  engine->thread_ = std::thread([engine = engine.get()] { engine->Run(); });
  return engine;
}

Engine::~Engine() { End(); }

void Engine::End() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
    more_.Signal();
  }
  thread_.join();
}

absl::StatusOr<std::unique_ptr<Reply>> Engine::Submit(std::vector<Task> tasks) {
  int64_t samples = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const std::vector<uint32_t>& prompt = tasks[i].prompt;
    const std::string name = tasks.size() == 1 ? "the prompt" : absl::StrCat("prompt ", i);
    const auto length = static_cast<int64_t>(prompt.size());
    if (length == 0) return absl::InvalidArgumentError(absl::StrCat(name, " is empty"));
    if (length > context()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " has ", length, " tokens where the context has ", context()));
    }
    MILLRACE_RETURN_IF_ERROR(Annotate(model_.network->CheckIds({prompt.data(), 1, length, length}), name));
    samples += tasks[i].samples;
  }
  auto channel = std::make_shared<Reply::Channel>();
  {
    absl::MutexLock lock(&channel->mutex);
    channel->open = samples;
  }
  auto reply = std::unique_ptr<Reply>(new Reply(channel));
  const absl::Time now = absl::Now();
  absl::MutexLock lock(&mutex_);
  if (ending_) return absl::UnavailableError(kEnded);
  DropCancelledWaiting();
  if (const int64_t waiting = CountWaiting(); waiting >= options_.waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting, " sequences wait already where ", options_.waiting, " may; try again later"));
  }
  for (size_t i = 0; i < tasks.size(); ++i) {
    auto job = std::make_shared<Job>();
    job->waiting = tasks[i].samples;
    job->task = std::move(tasks[i]);
    job->index = static_cast<int64_t>(i);
    job->channel = channel;
    job->submitted = now;
    queue_.push_back(std::move(job));
  }
  CountWaiting();
  more_.Signal();
  return reply;
}

// ---- its thread ----

void Engine::Run() {
  while (Admit()) {
    Step();
    DropCancelled();
  }
  const absl::Status ended = absl::UnavailableError(kEnded);
  for (const Seat& seat : seats_) {
    if (seat.job != nullptr) seat.job->channel->Fail(ended);
  }
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<Job>& job : queue_) job->channel->Fail(ended);
}

bool Engine::Admit() {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    if (ending_) return false;
    DropCancelledWaiting();
    int64_t taken = 0;
    for (size_t i = 0; i < seats_.size(); ++i) {
      Seat& seat = seats_[i];
      if (seat.job == nullptr) {
        const auto next = std::find_if(queue_.begin(), queue_.end(), [](const auto& job) { return !job->reading; });
        if (next == queue_.end()) continue;
        seat = Seat();
        seat.job = *next;
        seat.job->reading = true;
        if (--seat.job->waiting == 0) queue_.erase(next);
        model_.network->ClearSequence(static_cast<int64_t>(i), cache_.get());
        reading_.push_back(i);
      }
      ++taken;
    }
    CountWaiting();
    counts_->taken->Set(static_cast<double>(taken));
    if (taken > 0) return true;
    more_.Wait(&mutex_);
  }
}

int64_t Engine::CountWaiting() {
  int64_t waiting = 0;
  for (const std::shared_ptr<Job>& job : queue_) waiting += job->waiting;
  counts_->waiting->Set(static_cast<double>(waiting));
  return waiting;
}

void Engine::DropCancelledWaiting() {
  std::erase_if(queue_, [this](const std::shared_ptr<Job>& job) {
    if (!job->channel->cancelled) return false;
    counts_->cancelled->Increment(static_cast<double>(job->waiting));
    return true;
  });
}

void Engine::DropCancelled() {
  for (size_t i = 0; i < seats_.size(); ++i) {
    if (seats_[i].job == nullptr || !seats_[i].job->channel->cancelled) continue;
    counts_->cancelled->Increment();
    Leave(i);
  }
}

void Engine::Leave(size_t seat) {
  std::erase(reading_, seat);
  seats_[seat] = Seat();
}

void Engine::Step() {
  std::vector<model::Network::Appended> appended;
  std::vector<Row> rows;
  int64_t outputs = 0;
  for (size_t i = 0; i < seats_.size(); ++i) {
    if (seats_[i].job == nullptr || seats_[i].sample < 0) continue;
    appended.push_back({static_cast<int64_t>(i), absl::MakeConstSpan(&seats_[i].last, 1)});
    rows.push_back({i, outputs++});
  }
  struct Part {
    size_t seat;
    int64_t first, count;  // of the outputs
  };
  std::vector<Part> parts;
  int64_t may_read = options_.prompt_tokens;
  for (const size_t i : reading_) {
    Seat& seat = seats_[i];
    const Task& task = seat.job->task;
    const auto length = static_cast<int64_t>(task.prompt.size());
    const int64_t count = std::min(may_read, length - seat.read);
    if (count == 0) break;
    may_read -= count;
    appended.push_back(
        {static_cast<int64_t>(i),
         absl::MakeConstSpan(task.prompt).subspan(static_cast<size_t>(seat.read), static_cast<size_t>(count))});
    parts.push_back({i, outputs, count});
    if (task.score_prompt && !seat.job->prompt_told) {
      if (seat.read == 0) seat.scored.push_back({task.prompt[0], std::nullopt, {}});
      for (int64_t at = 0; at < count && seat.read + at + 1 < length; ++at) {
        rows.push_back({i, outputs + at, seat.read + at + 1});
      }
    }
    outputs += count;
  }
  const float* const of_pass = model_.network->Extend(*model_.compute, model_.weights, appended, cache_.get());
  const int64_t hidden = model_.network->hidden_size();
  for (const Part& part : parts) {
    Seat& seat = seats_[part.seat];
    seat.read += part.count;
    counts_->prompt_tokens->Increment(static_cast<double>(part.count));
    if (!seat.job->task.embed) continue;
    seat.embedding.resize(static_cast<size_t>(hidden), 0.0f);
    kernels::AddRows(*model_.compute, of_pass + part.first * hidden, part.count, hidden, hidden, seat.embedding.data());
  }
  UseLogits(of_pass, rows);
  // Only now: prompts are scored, and who has just ended has left a seat.
  rows.clear();
  for (const Part& part : parts) {
    const Seat& seat = seats_[part.seat];
    if (seat.job == nullptr || seat.read < static_cast<int64_t>(seat.job->task.prompt.size())) continue;
    BeginSamples(part.seat, part.first + part.count - 1, &rows);
  }
  UseLogits(of_pass, rows);
}

void Engine::BeginSamples(size_t seat, int64_t output, std::vector<Row>* rows) {
  std::erase(reading_, seat);
  const std::shared_ptr<Job> job = seats_[seat].job;
  const Task& task = job->task;
  if (!job->prompt_told) {
    Piece piece = {.task = job->index, .sample = -1, .tokens = std::move(seats_[seat].scored)};
    piece.embedding = std::move(seats_[seat].embedding);
    for (float& value : piece.embedding) value /= static_cast<float>(task.prompt.size());
    job->channel->Send(std::move(piece));
    job->prompt_told = true;
  }
  if (task.max_tokens == 0) {
    for (; job->begun < task.samples; ++job->begun) {
      job->channel->Send({.task = job->index, .sample = job->begun, .ending = Ending::kLength});
    }
    HasRead(job);
    Leave(seat);
    return;
  }
  for (size_t other = 0; other < seats_.size() && job->begun + 1 < task.samples; ++other) {
    if (seats_[other].job != nullptr) continue;
    model_.network->CopySequence(static_cast<int64_t>(seat), static_cast<int64_t>(other), cache_.get());
    BeginSample(other, job);
    rows->push_back({other, output});
  }
  BeginSample(seat, job);
  rows->push_back({seat, output});
  HasRead(job);
}

void Engine::HasRead(const std::shared_ptr<Job>& job) {
  absl::MutexLock lock(&mutex_);
  job->reading = false;
  job->waiting = job->task.samples - job->begun;
  if (job->waiting == 0) std::erase(queue_, job);
  CountWaiting();
}

void Engine::BeginSample(size_t seat, const std::shared_ptr<Job>& job) {
  Seat begun;
  begun.job = job;
  begun.sample = job->begun++;
  begun.key = model::SamplingKey(job->task.seed, static_cast<uint64_t>(begun.sample));
  begun.text = std::make_unique<AnswerText>(job->task.stop_strings);
  seats_[seat] = std::move(begun);
}

void Engine::UseLogits(const float* outputs, absl::Span<const Row> rows) {
  const model::Network& network = *model_.network;
  const int64_t hidden = network.hidden_size(), vocab = network.vocab_size();
  const model::Linear linear = {hidden, vocab, false, network.precision()};
  const float* const embedding = model_.weights.base + network.tensors()[network.output_embedding()].offset;
  for (; !rows.empty(); rows.remove_prefix(std::min(rows.size(), kRows))) {
    const absl::Span<const Row> some = rows.first(std::min(rows.size(), kRows));
    const auto count = static_cast<int64_t>(some.size());
    for (int64_t row = 0; row < count; ++row) {
      std::copy_n(outputs + some[static_cast<size_t>(row)].output * hidden, hidden, gathered_.data() + row * hidden);
    }
    model::LinearForward(*model_.compute, linear, gathered_.data(), count, embedding, nullptr, logits_.data(), vocab);
    const auto logits_of = [&](size_t row) {
      return absl::MakeConstSpan(logits_).subspan(row * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
    };
    std::vector<Token> tokens(some.size());
    std::vector<uint8_t> finite(some.size(), 1);
    model_.compute->ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
        const Seat& seat = seats_[some[row].seat];
        if (seat.job == nullptr) {  // it failed with rows before these
          finite[row] = 0;
          continue;
        }
        const Task& task = seat.job->task;
        const absl::Span<const float> logits = logits_of(row);
        for (const float logit : logits) finite[row] &= std::isfinite(logit) ? 1 : 0;
        if (finite[row] == 0) continue;
        if (some[row].predicts >= 0) {
          tokens[row].id = task.prompt[static_cast<size_t>(some[row].predicts)];
        } else {
          const float uniform = UniformFloat(seat.key(0, static_cast<uint64_t>(seat.drawn))[0]);
          if (seat.counts.empty()) {
            tokens[row].id = model::Sample(logits, task.sampling, uniform);
          } else {
            std::vector<float> penalised(logits.begin(), logits.end());
            for (const auto& [id, times] : seat.counts) {
              penalised[id] =
                  static_cast<float>(static_cast<double>(penalised[id]) -
                                     static_cast<double>(times) * task.frequency_penalty - task.presence_penalty);
            }
            tokens[row].id = model::Sample(penalised, task.sampling, uniform);
          }
        }
        if (!task.likeliest.has_value()) continue;
        for (const uint32_t id : Likeliest(logits, *task.likeliest)) tokens[row].likeliest.emplace_back(id, 0.0f);
      }
    });
    // Log-probabilities that are wanted, each from a copy of its row, which the kernel destroys.
    struct Want {
      size_t row;
      uint32_t id;
      float* result;
    };
    std::vector<Want> wants;
    for (size_t row = 0; row < some.size(); ++row) {
      if (finite[row] == 0 || !seats_[some[row].seat].job->task.likeliest.has_value()) continue;
      wants.push_back({row, tokens[row].id, &tokens[row].log_probability.emplace()});
      for (auto& [id, log_probability] : tokens[row].likeliest) wants.push_back({row, id, &log_probability});
    }
    std::vector<uint32_t> targets(kRows);
    std::vector<float> losses(kRows);
    for (size_t first = 0; first < wants.size(); first += kRows) {
      const size_t together = std::min(kRows, wants.size() - first);
      for (size_t i = 0; i < together; ++i) {
        const absl::Span<const float> logits = logits_of(wants[first + i].row);
        std::copy(logits.begin(), logits.end(), copies_.begin() + static_cast<std::ptrdiff_t>(i * logits.size()));
        targets[i] = wants[first + i].id;
      }
      kernels::CrossEntropyRows(*model_.compute, copies_.data(), static_cast<int64_t>(together), vocab,
                                {.targets = targets.data(), .loss = losses.data()});
      for (size_t i = 0; i < together; ++i) *wants[first + i].result = -losses[i];
    }
    for (size_t row = 0; row < some.size(); ++row) {
      const size_t seat = some[row].seat;
      if (seats_[seat].job == nullptr) continue;
      if (finite[row] == 0) {
        seats_[seat].job->channel->Fail(absl::InternalError("the model's logits are not finite"));
        Leave(seat);
      } else if (some[row].predicts >= 0) {
        seats_[seat].scored.push_back(std::move(tokens[row]));
      } else {
        Draw(seat, std::move(tokens[row]));
      }
    }
  }
}

void Engine::Draw(size_t seat_index, Token token) {
  Seat& seat = seats_[seat_index];
  const Task& task = seat.job->task;
  const absl::Time now = absl::Now();
  if (seat.drawn == 0) {
    counts_->first_token->Observe(absl::ToDoubleSeconds(now - seat.job->submitted));
  } else {
    counts_->token->Observe(absl::ToDoubleSeconds(now - seat.last_at));
  }
  counts_->drawn_tokens->Increment();
  seat.last_at = now;
  seat.last = token.id;
  ++seat.drawn;
  Piece piece = {.task = seat.job->index, .sample = seat.sample};
  if (std::find(task.stop_tokens.begin(), task.stop_tokens.end(), token.id) != task.stop_tokens.end()) {
    piece.ending = Ending::kStop;
  } else {
    if (HasPenalties(task)) ++seat.counts[token.id];
    const std::string bytes = model_.tokenizer->TokenBytes(token.id);
    seat.unsaid.emplace_back(seat.bytes, std::move(token));
    seat.bytes += bytes.size();
    piece.text = seat.text->Add(bytes);
    if (seat.text->stopped()) {
      piece.ending = Ending::kStop;
    } else if (seat.drawn == std::min(task.max_tokens, context() + 1 - static_cast<int64_t>(task.prompt.size()))) {
      piece.ending = Ending::kLength;
    }
  }
  if (piece.ending != Ending::kNone) piece.text += seat.text->Finish();
  const bool all = piece.ending != Ending::kNone && !seat.text->stopped();
  while (!seat.unsaid.empty() && (all || seat.unsaid.front().first < seat.text->certain())) {
    piece.tokens.push_back(std::move(seat.unsaid.front().second));
    seat.unsaid.pop_front();
  }
  const bool ended = piece.ending != Ending::kNone;
  if (ended || !piece.text.empty() || !piece.tokens.empty()) {
    piece.drawn = seat.drawn - seat.told;
    seat.told = seat.drawn;
    seat.job->channel->Send(std::move(piece));
  }
  if (ended) Leave(seat_index);
}

}  // namespace millrace::serve
