// Prints what was measured: one row for each thing, as a ratio to a limit measured in the same run.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace millrace::bench {

struct Row {
  std::string name;  // "compute/10.8M/bf16": the group first
  double value = 0;
  std::string unit;
  double limit = 0;  // in the same unit; 0: none
  double goal = 0;   // the ratio of value to limit is to be at least this, or at most; 0: none
  enum Sense { kAtLeast, kAtMost } sense = kAtLeast;
};

// One thread.
class Report {
 public:
  struct Options {
    std::string only;   // rows whose names begin with this; all if empty
    bool json = false;  // a row a line instead of a table
  };
  explicit Report(Options options);

  // Whether rows of that name, or of names that begin with it, are to be measured.
  bool Wants(absl::string_view name) const;
  void Add(const Row& row);
  // A row that this machine cannot have, and why.
  void Absent(absl::string_view name, absl::string_view reason);

 private:
  const Options options_;
};

// Seconds that a call of each work takes, in each of a few rounds of calls that take about `seconds` each, after one
// that warms up: [i][round] is of works[i]. What is to be compared is measured in turn.
std::vector<std::vector<double>> SecondsInRounds(const std::vector<std::function<void()>>& works, double seconds = 0.02,
                                                 int rounds = 7);
// The median of the rounds of each.
std::vector<double> SecondsOfEach(const std::vector<std::function<void()>>& works, double seconds = 0.02,
                                  int rounds = 7);

double Median(std::vector<double> values);
// Of a[i] / b[i]: what was measured in turn, while a neighbour of the machine came or went.
double MedianRatio(const std::vector<double>& a, const std::vector<double>& b);
double GeometricMean(const std::vector<double>& values);

}  // namespace millrace::bench
