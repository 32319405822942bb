#include "coordinator/sweeps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/philox.h"
#include "common/status.h"
#include "common/yaml_message.h"

namespace millrace::coordinator {
namespace {

constexpr size_t kMaxNameBytes = 48;
constexpr int kMostParameters = 64;
constexpr size_t kMaxSweepBytes = 1 << 20;
// Of the requests of all trials.
constexpr size_t kMaxTrialsBytes = 256 << 20;
constexpr int kEventsARead = 1024;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

absl::Status CheckParameter(const v1::SweepSpec& sweep, const v1::SweepParameter& parameter, const std::string& path) {
  const auto wrong = [&](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat(path, ": ", what)); };
  const bool range = parameter.has_min() || parameter.has_max();
  if (parameter.values().empty() == !range) return wrong("either values or min and max are wanted");
  if (range && sweep.method() == "grid") return wrong("a grid is made of values; random takes min and max");
  if (range && !(parameter.has_min() && parameter.has_max() && parameter.min() < parameter.max())) {
    return wrong("min must be below max");
  }
  if (parameter.log() && !(range && parameter.min() > 0)) return wrong("log needs a min above 0");
  if (parameter.whole() && !range) return wrong("whole is for min and max");
  return absl::OkStatus();
}

absl::Status CheckSweep(const v1::SweepSpec& sweep) {
  if (sweep.ByteSizeLong() > kMaxSweepBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the sweep is larger than ", kMaxSweepBytes, " bytes"));
  }
  if (sweep.parameters_size() > kMostParameters) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameters: there are ", sweep.parameters_size(), "; at most ", kMostParameters));
  }
  MILLRACE_RETURN_IF_ERROR(CheckRules(sweep));
  MILLRACE_RETURN_IF_ERROR(CheckName("name", sweep.name()));
  if (sweep.name().size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("name: at most ", kMaxNameBytes, " bytes"));
  }
  if ((sweep.method() == "random") != sweep.has_trials()) {
    return absl::InvalidArgumentError(sweep.has_trials() ? "trials: a grid has as many as combinations"
                                                         : "trials is missing: how many draws random makes");
  }
  std::set<std::string> fields;
  for (int i = 0; i < sweep.parameters_size(); ++i) {
    const std::string path = absl::StrCat("parameters.", i);
    MILLRACE_RETURN_IF_ERROR(CheckParameter(sweep, sweep.parameters(i), path));
    if (sweep.parameters(i).field() == "name" || !fields.insert(sweep.parameters(i).field()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".field: ", Shown(sweep.parameters(i).field()), " is set otherwise"));
    }
  }
  const auto& steps = sweep.halving().steps();
  if (!std::is_sorted(steps.begin(), steps.end(), std::less_equal<>())) {
    return absl::InvalidArgumentError("halving.steps must rise");
  }
  return absl::OkStatus();
}

// A trial stops at each comparison: it must evaluate there, and go on behind it.
absl::Status CheckComparisons(const v1::SweepSpec& sweep, const v1::JobSpec& job) {
  const v1::PhaseSpec& phase = job.phases(job.phases_size() - 1);
  for (const uint32_t step : sweep.halving().steps()) {
    if (step % phase.evaluate().every_steps() != 0) {
      return absl::InvalidArgumentError(absl::StrCat("halving.steps: phase ", phase.name(), " evaluates every ",
                                                     phase.evaluate().every_steps(), " steps, not at step ", step));
    }
    if (phase.stop().has_max_steps() && step >= phase.stop().max_steps()) {
      return absl::InvalidArgumentError(absl::StrCat("halving.steps: phase ", phase.name(), " ends at step ",
                                                     phase.stop().max_steps(), ", before anything is gained at ",
                                                     step));
    }
  }
  return absl::OkStatus();
}

std::string Draw(const v1::SweepParameter& parameter, const Philox& philox, uint64_t trial, uint64_t number) {
  const auto words = philox(trial, number);
  const double uniform = static_cast<double>((uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
  if (!parameter.values().empty()) {
    return parameter.values(static_cast<int>(uniform * static_cast<double>(parameter.values_size())));
  }
  const double low = parameter.log() ? std::log(parameter.min()) : parameter.min();
  const double high = parameter.log() ? std::log(parameter.max()) : parameter.max();
  double value = low + uniform * (high - low);
  if (parameter.log()) value = std::exp(value);
  return parameter.whole() ? absl::StrFormat("%.0f", value) : absl::StrFormat("%.6g", value);
}

bool IsHalved(const v1::Trial& trial) { return trial.stop_reason() == "halved"; }

}  // namespace

absl::StatusOr<std::vector<std::vector<std::string>>> TrialsOf(const v1::SweepSpec& sweep) {
  MILLRACE_RETURN_IF_ERROR(CheckSweep(sweep));
  std::vector<std::vector<std::string>> trials;
  if (sweep.method() == "random") {
    const Philox philox(sweep.seed());
    for (uint32_t trial = 0; trial < sweep.trials(); ++trial) {
      std::vector<std::string>& overrides = trials.emplace_back();
      for (int i = 0; i < sweep.parameters_size(); ++i) {
        overrides.push_back(absl::StrCat(sweep.parameters(i).field(), "=",
                                         Draw(sweep.parameters(i), philox, trial, static_cast<uint64_t>(i))));
      }
    }
    return trials;
  }
  trials.emplace_back();
  // The last parameter changes from one trial to the next.
  for (const v1::SweepParameter& parameter : sweep.parameters()) {
    if (trials.size() * static_cast<size_t>(parameter.values_size()) > kMostTrials) {
      return absl::InvalidArgumentError(absl::StrCat("parameters: these are more than ", kMostTrials, " combinations"));
    }
    std::vector<std::vector<std::string>> longer;
    for (const std::vector<std::string>& trial : trials) {
      for (const std::string& value : parameter.values()) {
        longer.push_back(trial);
        longer.back().push_back(absl::StrCat(parameter.field(), "=", value));
      }
    }
    trials = std::move(longer);
  }
  return trials;
}

std::vector<size_t> Survivors(const std::vector<double>& losses, double keep) {
  std::vector<size_t> order;
  for (size_t i = 0; i < losses.size(); ++i) {
    if (!std::isnan(losses[i])) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return losses[a] < losses[b]; });
  const auto kept = static_cast<size_t>(std::ceil(keep * static_cast<double>(losses.size())));
  if (order.size() > kept) order.resize(std::max<size_t>(kept, 1));
  std::sort(order.begin(), order.end());
  return order;
}

absl::StatusOr<std::unique_ptr<Sweeps>> Sweeps::Open(JobStore* store, JobBook* book, JobQueue* queue) {
  std::unique_ptr<Sweeps> sweeps(new Sweeps(store, book, queue));
  MILLRACE_ASSIGN_OR_RETURN(std::vector<v1::Sweep> stored, store->LoadSweeps());
  absl::MutexLock lock(&sweeps->mutex_);
  for (v1::Sweep& sweep : stored) sweeps->sweeps_[sweep.id()] = std::move(sweep);
  return sweeps;
}

absl::Status Sweeps::NotFound(absl::string_view sweep_id) const {
  std::vector<std::string> ids;
  for (const auto& [id, sweep] : sweeps_) {
    if (ids.size() < 20) ids.push_back(id);
  }
  return absl::NotFoundError(
      absl::StrCat("no sweep '", absl::CHexEscape(sweep_id.substr(0, 100)), "'; ",
                   ids.empty() ? "there are none" : absl::StrCat("there are: ", absl::StrJoin(ids, ", "))));
}

absl::StatusOr<v1::Sweep> Sweeps::Start(const v1::StartSweepRequest& request, const std::string& user) {
  v1::Sweep sweep;
  *sweep.mutable_spec() = request.sweep();
  FillRuleDefaults(sweep.mutable_spec());
  sweep.set_user(user);
  sweep.set_state(v1::Sweep::RUNNING);
  sweep.set_started_unix_ms(absl::ToUnixMillis(absl::Now()));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::vector<std::string>> trials, TrialsOf(sweep.spec()));
  if (!request.job().idempotency_key().empty() || request.job().validate_only()) {
    return absl::InvalidArgumentError("job: idempotency_key and validate_only are for jobs of their own");
  }
  if (request.job().ByteSizeLong() * trials.size() > kMaxTrialsBytes) {
    return absl::InvalidArgumentError(absl::StrCat("job: ", trials.size(), " trials of ", request.job().ByteSizeLong(),
                                                   " bytes are more than ", kMaxTrialsBytes, " in all"));
  }
  absl::MutexLock lock(&mutex_);
  std::string id = sweep.spec().name();
  for (int number = 2; sweeps_.count(id) > 0; ++number) id = absl::StrCat(sweep.spec().name(), "-", number);
  sweep.set_id(id);
  std::vector<v1::SubmitJobRequest> requests;
  for (const std::vector<std::string>& overrides : trials) {
    v1::SubmitJobRequest& one = requests.emplace_back(request.job());
    for (const std::string& override_text : overrides) one.add_overrides(override_text);
    one.add_overrides(absl::StrCat("name=", id, "-", requests.size()));
    one.set_validate_only(true);
    const absl::StatusOr<v1::Job> checked = queue_->Submit(one, user, id);
    if (!checked.ok()) return Annotate(checked.status(), absl::StrCat("trial ", requests.size()));
    MILLRACE_RETURN_IF_ERROR(CheckComparisons(sweep.spec(), checked->spec()));
    one.set_validate_only(false);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const absl::StatusOr<v1::Job> job = queue_->Submit(requests[i], user, id);
    if (!job.ok()) {
      for (const v1::Trial& trial : sweep.trials()) {
        queue_->Cancel(trial.job_id()).IgnoreError();
        queue_->Delete(trial.job_id()).IgnoreError();
      }
      return Annotate(job.status(), absl::StrCat("trial ", i + 1));
    }
    v1::Trial* const trial = sweep.add_trials();
    trial->set_job_id(job->id());
    trial->mutable_overrides()->Assign(trials[i].begin(), trials[i].end());
  }
  MILLRACE_RETURN_IF_ERROR(store_->PutSweep(sweep));
  sweeps_[id] = sweep;
  Refresh(&sweep);
  Log(Severity::kInfo, "sweep starts", {{"sweep", id}, {"trials", static_cast<int>(requests.size())}});
  return sweep;
}

void Sweeps::Refresh(v1::Sweep* sweep) const {
  bool ended = true;
  const v1::Trial* best = nullptr;
  for (v1::Trial& trial : *sweep->mutable_trials()) {
    const absl::StatusOr<v1::Job> job = book_->Get(trial.job_id());
    if (!job.ok()) {
      trial.set_state(v1::Job::CANCELLED);
      if (trial.stop_reason().empty()) trial.set_stop_reason("deleted");
      continue;
    }
    trial.set_state(job->state());
    trial.set_step(job->step());
    trial.set_best_held_out_loss(job->best_held_out_loss());
    trial.set_stop_reason(job->stop_reason());
    ended = ended && HasEnded(job->state());
    if (job->state() != v1::Job::SUCCEEDED) continue;
    if (best == nullptr || trial.best_held_out_loss() < best->best_held_out_loss()) best = &trial;
  }
  sweep->set_best_job_id(best == nullptr ? "" : best->job_id());
  if (ended && sweep->state() == v1::Sweep::RUNNING) sweep->set_state(v1::Sweep::SUCCEEDED);
}

absl::StatusOr<v1::Sweep> Sweeps::Get(absl::string_view sweep_id) {
  absl::MutexLock lock(&mutex_);
  const auto found = sweeps_.find(sweep_id);
  if (found == sweeps_.end()) return NotFound(sweep_id);
  v1::Sweep sweep = found->second;
  Refresh(&sweep);
  return sweep;
}

std::vector<v1::Sweep> Sweeps::List() {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::Sweep> sweeps;
  for (const auto& [id, sweep] : sweeps_) {
    sweeps.push_back(sweep);
    Refresh(&sweeps.back());
  }
  std::stable_sort(sweeps.begin(), sweeps.end(),
                   [](const v1::Sweep& a, const v1::Sweep& b) { return a.started_unix_ms() < b.started_unix_ms(); });
  return sweeps;
}

absl::StatusOr<v1::Sweep> Sweeps::Cancel(absl::string_view sweep_id) {
  absl::MutexLock lock(&mutex_);
  const auto found = sweeps_.find(sweep_id);
  if (found == sweeps_.end()) return NotFound(sweep_id);
  v1::Sweep& sweep = found->second;
  Refresh(&sweep);
  if (sweep.state() == v1::Sweep::RUNNING) {
    for (const v1::Trial& trial : sweep.trials()) {
      if (!HasEnded(trial.state())) queue_->Cancel(trial.job_id()).IgnoreError();
    }
    sweep.set_state(v1::Sweep::CANCELLED);
  }
  Refresh(&sweep);
  MILLRACE_RETURN_IF_ERROR(store_->PutSweep(sweep));
  return sweep;
}

bool Sweeps::NoteLoss(const v1::SweepSpec& spec, v1::Trial* trial) {
  const absl::StatusOr<v1::Job> job = book_->Get(trial->job_id());
  if (!job.ok()) return false;
  const std::string& phase = job->spec().phases(job->spec().phases_size() - 1).name();
  const auto& steps = spec.halving().steps();
  bool noted = false;
  uint64_t& read = read_[trial->job_id()];
  while (trial->rung_losses_size() < steps.size()) {
    const absl::StatusOr<std::vector<v1::JobEvent>> events = book_->Read(trial->job_id(), read, kEventsARead);
    if (!events.ok() || events->empty()) return noted;
    for (const v1::JobEvent& event : *events) {
      read = event.sequence();
      if (!event.has_evaluation() || event.evaluation().phase() != phase || trial->rung_losses_size() >= steps.size() ||
          event.evaluation().step() != steps.Get(trial->rung_losses_size())) {
        continue;
      }
      trial->add_rung_losses(event.evaluation().loss());
      noted = true;
    }
  }
  return noted;
}

void Sweeps::Compare(v1::Sweep* sweep) {
  const uint32_t comparisons = static_cast<uint32_t>(sweep->spec().halving().steps_size());
  uint32_t rung = comparisons;
  for (const v1::Trial& trial : sweep->trials()) {
    if (!HasEnded(trial.state())) rung = std::min(rung, trial.rung());
  }
  if (rung == comparisons) return;
  // Those of an earlier attempt at this comparison that was cut short are compared again.
  std::vector<v1::Trial*> compared;
  std::vector<double> losses;
  for (v1::Trial& trial : *sweep->mutable_trials()) {
    if (trial.rung() != rung || (trial.state() == v1::Job::CANCELLED && !IsHalved(trial))) continue;
    const bool measured = static_cast<uint32_t>(trial.rung_losses_size()) > rung;
    if (!HasEnded(trial.state()) && !(measured && trial.state() == v1::Job::PAUSED)) return;  // not so far yet
    compared.push_back(&trial);
    // One that ended well before the comparison, by its patience, is measured by its best.
    losses.push_back(trial.state() == v1::Job::FAILED ? kNone
                     : measured                       ? trial.rung_losses(static_cast<int>(rung))
                                                      : trial.best_held_out_loss());
  }
  const std::vector<size_t> survivors = Survivors(losses, sweep->spec().halving().keep());
  for (size_t i = 0; i < compared.size(); ++i) {
    v1::Trial& trial = *compared[i];
    const bool stays = std::binary_search(survivors.begin(), survivors.end(), i);
    if (!HasEnded(trial.state())) {
      const absl::Status done =
          stays ? queue_->Resume(trial.job_id()).status() : queue_->Cancel(trial.job_id(), "halved").status();
      if (!done.ok()) {
        Log(Severity::kWarning, "a trial could not be told what was decided",
            {{"job", trial.job_id()}, {"error", std::string(done.message())}});
        return;  // the next Tick compares again
      }
    }
  }
  for (const size_t i : survivors) compared[i]->set_rung(rung + 1);
  Log(Severity::kInfo, "sweep compared",
      {{"sweep", sweep->id()},
       {"step", sweep->spec().halving().steps(static_cast<int>(rung))},
       {"compared", static_cast<int>(compared.size())},
       {"go_on", static_cast<int>(survivors.size())}});
}

void Sweeps::Store(const v1::Sweep& sweep) {
  if (const absl::Status stored = store_->PutSweep(sweep); !stored.ok()) {
    Log(Severity::kError, "a sweep could not be stored",
        {{"sweep", sweep.id()}, {"error", std::string(stored.message())}});
  }
}

void Sweeps::Tick() {
  absl::MutexLock lock(&mutex_);
  for (auto& [id, sweep] : sweeps_) {
    if (sweep.state() != v1::Sweep::RUNNING) continue;
    const std::string before = sweep.SerializeAsString();
    Refresh(&sweep);
    if (sweep.spec().has_halving()) {
      for (v1::Trial& trial : *sweep.mutable_trials()) {
        NoteLoss(sweep.spec(), &trial);
        const bool waits = static_cast<uint32_t>(trial.rung_losses_size()) > trial.rung();
        if (waits && (trial.state() == v1::Job::RUNNING || trial.state() == v1::Job::QUEUED)) {
          queue_->Pause(trial.job_id()).IgnoreError();  // it may just have ended
        }
      }
      Refresh(&sweep);
      Compare(&sweep);
      Refresh(&sweep);
    }
    for (const v1::Trial& trial : sweep.trials()) {
      if (HasEnded(trial.state())) read_.erase(trial.job_id());
    }
    if (sweep.SerializeAsString() != before) Store(sweep);
  }
}

}  // namespace millrace::coordinator
