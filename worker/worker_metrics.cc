#include "worker/worker_metrics.h"

#include "worker/peak_flops.h"

namespace millrace::worker {
namespace {

std::string KindName(v1::WorkUnit::Kind kind) {
  switch (kind) {
    case v1::WorkUnit::PLAN:
      return "plan";
    case v1::WorkUnit::INITIALIZE:
      return "initialize";
    case v1::WorkUnit::TRAIN:
      return "train";
    case v1::WorkUnit::EVALUATE:
      return "evaluate";
    case v1::WorkUnit::ROLLOUT:
      return "rollout";
    case v1::WorkUnit::SAMPLE:
      return "sample";
    default:
      return "unknown";
  }
}

std::string PrecisionName(kernels::Precision precision) {
  return precision == kernels::Precision::kBf16 ? "bf16" : "f32";
}

}  // namespace

void WorkerMetrics::TellPeaks(const kernels::Compute& compute) {
  if (listen_.empty()) return;
  for (const kernels::Precision precision : {kernels::Precision::kF32, kernels::Precision::kBf16}) {
    metrics_
        .Gauge("millrace_worker_peak_flops", "Floating-point operations a second of the fastest product at the start.",
               {{"precision", PrecisionName(precision)}})
        ->Set(PeakFlops(compute, precision));
  }
}

void WorkerMetrics::Count(v1::WorkUnit::Kind kind, bool well, absl::Duration took, uint64_t predictions,
                          double model_flops, kernels::Precision precision) {
  const std::string name = KindName(kind);
  metrics_
      .Counter("millrace_worker_units_total", "Work units done, by kind and result.",
               {{"kind", name}, {"result", well ? "done" : "failed"}})
      ->Increment();
  metrics_
      .Histogram("millrace_worker_unit_duration_seconds", "Time that a work unit took, pulls and pushes included.",
                 DurationBounds(), {{"kind", name}})
      ->Observe(absl::ToDoubleSeconds(took));
  if (model_flops > 0) {
    metrics_
        .Counter("millrace_worker_model_flops_total", "Floating-point operations by the model's formula.",
                 {{"kind", name}, {"precision", PrecisionName(precision)}})
        ->Increment(model_flops);
  }
  if (predictions == 0 || kind == v1::WorkUnit::ROLLOUT || kind == v1::WorkUnit::SAMPLE) return;
  metrics_
      .Counter("millrace_worker_tokens_total", "What losses were means over (tokens, pairs, answers), by kind of unit.",
               {{"kind", name}})
      ->Increment(static_cast<double>(predictions));
}

}  // namespace millrace::worker
