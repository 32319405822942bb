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

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace millrace {

// Holds the metrics of a process; what it returns lives as long as it does and is thread-safe. Metrics of one name
// that differ in their labels may be asked for one after another, with the same help. Process metrics
// (process_resident_memory_bytes) are there from the start.
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
  struct Impl;
  const std::unique_ptr<Impl> impl_;
  std::string address_;
};

// Bounds for durations from a millisecond to a minute, in seconds.
std::vector<double> DurationBounds();

}  // namespace millrace
