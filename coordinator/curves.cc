#include "coordinator/curves.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "coordinator/measurements.h"

namespace millrace::coordinator {
namespace {

constexpr int kEventsARead = 4096;
constexpr int kMostJobs = 100;
constexpr int kMostMetrics = 100;
constexpr uint32_t kDefaultPoints = 1000;
constexpr uint32_t kMostPoints = 10'000;
// What every job measures, sooner or later.
constexpr absl::string_view kAlways[] = {"train_loss", "held_out_loss", "learning_rate", "gradient_norm",
                                         "tokens_per_second"};
constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

}  // namespace

std::vector<size_t> LargestTriangles(absl::Span<const double> x, absl::Span<const double> y, size_t count) {
  std::vector<size_t> chosen = {0};
  chosen.reserve(count);
  const size_t inner = x.size() - 2;
  // Run i of the count - 2 holds the points from Begin(i) to Begin(i + 1).
  const auto begin = [&](size_t i) { return 1 + i * inner / (count - 2); };
  for (size_t i = 0; i + 2 < count; ++i) {
    const size_t first = begin(i), end = begin(i + 1);
    // The mean of the next run, or the last point.
    const size_t next_end = i + 3 < count ? begin(i + 2) : x.size();
    double next_x = 0, next_y = 0;
    for (size_t j = end; j < next_end; ++j) {
      next_x += x[j];
      next_y += y[j];
    }
    next_x /= static_cast<double>(next_end - end);
    next_y /= static_cast<double>(next_end - end);
    const size_t last = chosen.back();
    size_t best = first;
    double largest = -1;
    for (size_t j = first; j < end; ++j) {
      const double area = std::fabs((x[last] - next_x) * (y[j] - y[last]) - (x[last] - x[j]) * (next_y - y[last]));
      if (area > largest) {
        largest = area;
        best = j;
      }
    }
    chosen.push_back(best);
  }
  chosen.push_back(x.size() - 1);
  return chosen;
}

void Curves::Track::Add(uint64_t step, uint64_t trained_tokens, int64_t at,
                        absl::Span<const std::pair<std::string, double>> measured) {
  for (const auto& [name, value] : measured) {
    std::vector<double>& column = values[name];
    column.resize(steps.size(), kMissing);
    column.push_back(value);
  }
  steps.push_back(step);
  tokens.push_back(trained_tokens);
  unix_ms.push_back(at);
}

size_t Curves::Job::size() const {
  size_t size = 0;
  for (const Phase& phase : phases) size += phase.train.steps.size() + phase.held_out.steps.size();
  return size;
}

absl::StatusOr<Curves::Job*> Curves::Read(absl::string_view job_id) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job now, book_->Get(job_id));
  auto found = std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& job) { return job.id == job_id; });
  // Counted before the events are read: what is forgotten meanwhile is then seen next time.
  const uint64_t rewrites = book_->Rewrites(job_id);
  if (found != jobs_.end() && (found->rewrites != rewrites || found->submitted_unix_ms != now.submitted_unix_ms())) {
    jobs_.erase(found);
    found = jobs_.end();
  }
  if (found == jobs_.end()) {
    jobs_.emplace_front();
    jobs_.front().id = std::string(job_id);
    jobs_.front().rewrites = rewrites;
    jobs_.front().submitted_unix_ms = now.submitted_unix_ms();
  } else {
    jobs_.splice(jobs_.begin(), jobs_, found);
  }
  Job& job = jobs_.front();
  const auto phase_of = [&job](const std::string& name) -> Phase& {
    // The last phase mostly.
    for (auto phase = job.phases.rbegin(); phase != job.phases.rend(); ++phase) {
      if (phase->name == name) return *phase;
    }
    job.phases.push_back({name, {}, {}});
    return job.phases.back();
  };
  std::vector<std::pair<std::string, double>> measured;
  for (;;) {
    const absl::StatusOr<std::vector<v1::JobEvent>> events = book_->Read(job_id, job.last_sequence, kEventsARead);
    if (!events.ok()) {
      jobs_.pop_front();
      return events.status();
    }
    for (const v1::JobEvent& event : *events) {
      job.last_sequence = event.sequence();
      Measure(event, &measured);
      if (event.has_step()) {
        const v1::StepEvent& step = event.step();
        phase_of(step.phase()).train.Add(step.step(), step.tokens(), event.unix_ms(), measured);
      } else if (event.has_evaluation()) {
        const v1::EvaluationEvent& evaluation = event.evaluation();
        Phase& phase = phase_of(evaluation.phase());
        const uint64_t tokens = phase.train.tokens.empty() ? 0 : phase.train.tokens.back();
        phase.held_out.Add(evaluation.step(), tokens, event.unix_ms(), measured);
      }
    }
    if (events->size() < kEventsARead) break;
  }
  size_t kept = 0;
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    kept += it->size();
    it = it != jobs_.begin() && kept > kept_steps_ ? jobs_.erase(it) : std::next(it);
  }
  return &job;
}

absl::StatusOr<v1::GetCurvesReply> Curves::Get(const v1::GetCurvesRequest& request) {
  const uint32_t points = request.max_points() == 0 ? kDefaultPoints : request.max_points();
  if (request.job_ids().empty()) return absl::InvalidArgumentError("job_ids is empty: curves of which jobs?");
  if (request.job_ids_size() > kMostJobs || request.metrics_size() > kMostMetrics) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", kMostJobs, " jobs and ", kMostMetrics, " metrics are drawn at once"));
  }
  if (points < 3 || points > kMostPoints) {
    return absl::InvalidArgumentError(absl::StrCat("max_points must be 3 to ", kMostPoints, ", not ", points));
  }
  absl::MutexLock lock(&mutex_);
  v1::GetCurvesReply reply;
  std::set<std::string> there;
  std::vector<double> x, y;
  std::vector<size_t> rows;
  size_t drawn = 0;
  for (const std::string& job_id : request.job_ids()) {
    MILLRACE_ASSIGN_OR_RETURN(const Job* const job, Read(job_id));
    for (const Phase& phase : job->phases) {
      for (const Track* const track : {&phase.train, &phase.held_out}) {
        for (const auto& [metric, values] : track->values) {
          there.insert(metric);
          const bool wanted = request.metrics().empty() || std::find(request.metrics().begin(), request.metrics().end(),
                                                                     metric) != request.metrics().end();
          if (!wanted || (!request.phase().empty() && request.phase() != phase.name)) continue;
          x.clear();
          y.clear();
          rows.clear();
          for (size_t i = 0; i < values.size(); ++i) {
            if (std::isnan(values[i])) continue;
            rows.push_back(i);
            x.push_back(static_cast<double>(track->steps[i]));
            y.push_back(values[i]);
          }
          if (rows.empty()) continue;
          v1::Curve* const curve = reply.add_curves();
          curve->set_job_id(job->id);
          curve->set_phase(phase.name);
          curve->set_metric(metric);
          curve->set_points(rows.size());
          if (rows.size() > points) {
            std::vector<size_t> chosen = LargestTriangles(x, y, points);
            for (size_t& row : chosen) row = rows[row];
            rows = std::move(chosen);
          }
          drawn += rows.size();
          if (drawn > most_points_) {
            return absl::InvalidArgumentError(absl::StrCat("the curves have more than ", most_points_,
                                                           " points: ask for fewer jobs, metrics or max_points"));
          }
          for (const size_t row : rows) {
            curve->add_steps(track->steps[row]);
            curve->add_tokens(track->tokens[row]);
            curve->add_unix_ms(track->unix_ms[row]);
            curve->add_values(values[row]);
          }
        }
      }
    }
  }
  for (const std::string& metric : request.metrics()) {
    const bool known = std::find(std::begin(kAlways), std::end(kAlways), metric) != std::end(kAlways);
    if (known || there.empty() || there.count(metric) > 0) continue;
    return absl::NotFoundError(absl::StrCat("no metric '", absl::CHexEscape(metric.substr(0, 100)),
                                            "'; there are: ", absl::StrJoin(there, ", ")));
  }
  return reply;
}

}  // namespace millrace::coordinator
