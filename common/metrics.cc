#include "common/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <exception>

#include "absl/strings/str_cat.h"
#include "common/machine.h"

namespace millrace {
namespace {

// Reads what the system knows of the process when it is asked.
class ProcessMetrics : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    prometheus::MetricFamily family;
    family.name = "process_resident_memory_bytes";
    family.help = "Resident memory of the process.";
    family.type = prometheus::MetricType::Gauge;
    prometheus::ClientMetric metric;
    metric.gauge.value = static_cast<double>(ResidentBytes());
    family.metric.push_back(metric);
    return {family};
  }
};

}  // namespace

struct Metrics::Impl {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<ProcessMetrics> process = std::make_shared<ProcessMetrics>();
  std::unique_ptr<prometheus::Exposer> exposer;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
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

std::vector<double> DurationBounds() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60};
}

}  // namespace millrace
