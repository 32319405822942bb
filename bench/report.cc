#include "bench/report.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {

Report::Report(Options options) : options_(std::move(options)) {
  if (options_.json) return;
  std::printf("%-52s  %12s  %-10s  %12s  %6s  %5s\n", "row", "value", "unit", "limit", "ratio", "goal");
}

bool Report::Wants(absl::string_view name) const {
  return absl::StartsWith(name, options_.only) || absl::StartsWith(options_.only, name);
}

void Report::Add(const Row& row) {
  if (!absl::StartsWith(row.name, options_.only)) return;
  const double ratio = row.limit > 0 ? row.value / row.limit : 0;
  if (options_.json) {
    nlohmann::ordered_json line = {{"row", row.name}, {"value", row.value}, {"unit", row.unit}};
    if (row.limit > 0) line.update({{"limit", row.limit}, {"ratio", ratio}});
    if (row.goal > 0) line["goal"] = row.goal;
    std::printf("%s\n", line.dump().c_str());
  } else {
    std::string text = absl::StrFormat("%-52s  %12.5g  %-10s", row.name, row.value, row.unit);
    if (row.limit > 0) absl::StrAppendFormat(&text, "  %12.5g  %6.2f", row.limit, ratio);
    if (row.goal > 0) {
      const bool at_most = row.sense == Row::kAtMost;
      const bool reached = at_most ? ratio <= row.goal : ratio >= row.goal;
      absl::StrAppendFormat(&text, "  %5.4g  %s", row.goal, reached ? (at_most ? "at most" : "") : "missed");
    }
    std::printf("%s\n", text.c_str());
  }
  std::fflush(stdout);
}

void Report::Absent(absl::string_view name, absl::string_view reason) {
  if (!absl::StartsWith(name, options_.only)) return;
  if (options_.json) {
    std::printf("%s\n", nlohmann::ordered_json({{"row", name}, {"absent", reason}}).dump().c_str());
  } else {
    std::printf("%-52s  absent: %s\n", std::string(name).c_str(), std::string(reason).c_str());
  }
  std::fflush(stdout);
}

std::vector<std::vector<double>> SecondsInRounds(const std::vector<std::function<void()>>& works, double seconds,
                                                 int rounds) {
  using Clock = std::chrono::steady_clock;
  const auto time = [](const std::function<void()>& work, int64_t calls) {
    const Clock::time_point begun = Clock::now();
    for (int64_t i = 0; i < calls; ++i) work();
    return std::chrono::duration<double>(Clock::now() - begun).count();
  };
  std::vector<int64_t> calls;
  for (const std::function<void()>& work : works) {
    work();
    int64_t count = 1;
    // Doubled until a round is long enough to be measured.
    for (double taken = time(work, count); taken < seconds / 2; taken = time(work, count)) count *= 2;
    calls.push_back(count);
  }
  std::vector<std::vector<double>> taken(works.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < works.size(); ++i) {
      // Threads that the one before left spinning go to sleep; this one's wake up.
      std::this_thread::sleep_for(std::chrono::milliseconds(8));
      works[i]();
      taken[i].push_back(time(works[i], calls[i]) / static_cast<double>(calls[i]));
    }
  }
  return taken;
}

std::vector<double> SecondsOfEach(const std::vector<std::function<void()>>& works, double seconds, int rounds) {
  std::vector<double> medians;
  for (const std::vector<double>& taken : SecondsInRounds(works, seconds, rounds)) medians.push_back(Median(taken));
  return medians;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double MedianRatio(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < a.size(); ++i) ratios.push_back(a[i] / b[i]);
  return Median(std::move(ratios));
}

double GeometricMean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += std::log(value);
  return values.empty() ? 0 : std::exp(sum / static_cast<double>(values.size()));
}

}  // namespace millrace::bench
