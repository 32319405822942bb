#include "common/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>

#include <exception>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/machine.h"

namespace millrace {
namespace {

// Reads what the system knows of the process when it is asked.
class ProcessMetrics : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    rusage used = {};
    getrusage(RUSAGE_SELF, &used);
    const double seconds =
        absl::ToDoubleSeconds(absl::DurationFromTimeval(used.ru_utime) + absl::DurationFromTimeval(used.ru_stime));
    return {
        One("process_resident_memory_bytes", "Resident memory of the process.", prometheus::MetricType::Gauge,
            static_cast<double>(ResidentBytes())),
        One("process_memory_limit_bytes",
            "Memory that the process may have: the machine's, or the least limit of its control groups.",
            prometheus::MetricType::Gauge, static_cast<double>(MemoryLimit())),
        One("process_available_memory_bytes", "How much of that is free or can be made free.",
            prometheus::MetricType::Gauge, static_cast<double>(AvailableMemory())),
        One("process_cpu_seconds_total", "Time of processors that the process has used.",
            prometheus::MetricType::Counter, seconds),
        One("process_start_time_seconds", "Unix time at which the process started.", prometheus::MetricType::Gauge,
            started_),
    };
  }

 private:
  static prometheus::MetricFamily One(const char* name, const char* help, prometheus::MetricType type, double value) {
    prometheus::MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = type;
    prometheus::ClientMetric metric;
    if (type == prometheus::MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family.metric.push_back(metric);
    return family;
  }

  const double started_ = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
};

}  // namespace

struct Metrics::Impl {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<ProcessMetrics> process = std::make_shared<ProcessMetrics>();
  std::unique_ptr<prometheus::Exposer> exposer;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {
  Gauge("millrace_build_info", "1; the label says what was built.", {{"build", BuildDescription()}})->Set(1);
}
Metrics::~Metrics() = default;

prometheus::Counter* Metrics::Counter(const std::string& name, const std::string& help, const Labels& labels) {
  return &prometheus::BuildCounter().Name(name).Help(help).Register(*impl_->registry).Add(labels);
}

prometheus::Gauge* Metrics::Gauge(const std::string& name, const std::string& help, const Labels& labels) {
  return &prometheus::BuildGauge().Name(name).Help(help).Register(*impl_->registry).Add(labels);
}

prometheus::Histogram* Metrics::Histogram(const std::string& name, const std::string& help,
                                          const std::vector<double>& bounds, const Labels& labels) {
  return &prometheus::BuildHistogram().Name(name).Help(help).Register(*impl_->registry).Add(labels, bounds);
}

absl::Status Metrics::Serve(const std::string& listen) {
  if (listen.empty()) return absl::OkStatus();
  try {
    impl_->exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/1);
    impl_->exposer->RegisterCollectable(impl_->registry);
    impl_->exposer->RegisterCollectable(impl_->process);
    const std::vector<int> ports = impl_->exposer->GetListeningPorts();
    address_ = absl::StrCat(listen.substr(0, listen.rfind(':') + 1), ports.empty() ? 0 : ports.front());
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics at ", listen, ": ", error.what()));
  }
  return absl::OkStatus();
}

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = impl_->registry->Collect();
  for (prometheus::MetricFamily& family : impl_->process->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

template <typename T, typename Builder>
T* MetricGroup::Find(Builder builder, const std::string& name, const std::string& help, Metrics::Labels labels) {
  labels.insert(labels_.begin(), labels_.end());
  prometheus::Family<T>& family = builder.Name(name).Help(help).Register(*metrics_->impl_->registry);
  T* const metric = &family.Add(labels);
  removals_.try_emplace(metric, [&family, metric] { family.Remove(metric); });
  return metric;
}

MetricGroup::~MetricGroup() {
  for (const auto& [metric, remove] : removals_) remove();
}

prometheus::Counter* MetricGroup::Counter(const std::string& name, const std::string& help,
                                          const Metrics::Labels& labels) {
  return Find<prometheus::Counter>(prometheus::BuildCounter(), name, help, labels);
}

prometheus::Gauge* MetricGroup::Gauge(const std::string& name, const std::string& help, const Metrics::Labels& labels) {
  return Find<prometheus::Gauge>(prometheus::BuildGauge(), name, help, labels);
}

std::vector<double> DurationBounds() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60};
}

}  // namespace millrace
