// Publishes what a process counts to Prometheus (docs/metrics.md has the table of all metrics).
//
//   Metrics metrics;
//   prometheus::Counter* steps = metrics.Counter("millrace_steps_total", "Optimizer steps applied.");
//   MILLRACE_RETURN_IF_ERROR(metrics.Serve("127.0.0.1:9400"));
//   steps->Increment();
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace millrace {

// Holds the metrics of a process; what it returns lives as long as it does and is thread-safe. Metrics of one name
// that differ in their labels may be asked for one after another, with the same help. millrace_build_info and what the
// system knows of the process (process_…) are there from the start.
class Metrics {
 public:
  using Labels = std::map<std::string, std::string>;

  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Names: "millrace_", base units, "_total" for counters.
  prometheus::Counter* Counter(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Gauge* Gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  // Upper bounds of the buckets, ascending; one for the rest is added.
  prometheus::Histogram* Histogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                                   const Labels& labels = {});

  // Serves http://HOST:PORT/metrics; nothing happens if `listen` is empty. UNAVAILABLE if it cannot be bound.
  absl::Status Serve(const std::string& listen);

  // HOST:PORT as served (port 0 asks for any); empty if not served.
  const std::string& address() const { return address_; }

  // What a scrape would get.
  std::string Text() const;

 private:
  friend class MetricGroup;
  struct Impl;
  const std::unique_ptr<Impl> impl_;
  std::string address_;
};

// Metrics that have labels in common and go with the group: those of something that ends, so that a process that lives
// on does not tell of it for ever. Not thread-safe; the metrics are. No two groups with equal labels at a time.
class MetricGroup {
 public:
  // `metrics` must outlive this.
  MetricGroup(Metrics* metrics, Metrics::Labels labels) : metrics_(metrics), labels_(std::move(labels)) {}
  ~MetricGroup();
  MetricGroup(const MetricGroup&) = delete;
  MetricGroup& operator=(const MetricGroup&) = delete;

  // As those of Metrics, with the group's labels besides; they live as long as the group.
  prometheus::Counter* Counter(const std::string& name, const std::string& help, const Metrics::Labels& labels = {});
  prometheus::Gauge* Gauge(const std::string& name, const std::string& help, const Metrics::Labels& labels = {});

 private:
  // The one with these labels, made if need be.
  template <typename T, typename Builder>
  T* Find(Builder builder, const std::string& name, const std::string& help, Metrics::Labels labels);

  Metrics* const metrics_;
  const Metrics::Labels labels_;
  std::map<void*, std::function<void()>> removals_;  // by metric
};

// Bounds for durations from a millisecond to a minute, in seconds.
std::vector<double> DurationBounds();

}  // namespace millrace
