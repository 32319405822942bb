// Products against oneDNN's, and whole training steps against the fastest product.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/products.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

using kernels::Isa;
using kernels::Precision;

constexpr double kWorst = 0.85;     // of oneDNN, f32
constexpr double kMean = 0.95;      // of oneDNN, f32
constexpr double kMeanBf16 = 0.85;  // of oneDNN, whose operands are bf16 already
constexpr double kWidened = 0.9;    // bf16 without the instruction, of f32
constexpr int kRounds = 5;          // of training, of which the median counts
constexpr double kRoundSeconds = 1.2;
constexpr char kNoBf16[] = "this processor has no bf16 instructions";

using Multiplication = void (ProductPair::*)(Precision);

// A way to multiply.
struct Way {
  Multiplication multiply;
  Precision precision;
};

// The fastest products that were seen, ours or oneDNN's: what training is measured against.
class Fastest {
 public:
  explicit Fastest(const Machine& machine) : compute_(machine.isa, machine.threads) {}

  void See(const Shape& shape, const Way& way, double rate) {
    std::vector<Seen>& seen = seen_[way.precision];
    seen.push_back({shape, way, rate});
    std::sort(seen.begin(), seen.end(), [](const Seen& a, const Seen& b) { return a.rate > b.rate; });
    if (seen.size() > kKept) seen.pop_back();
  }
  bool Knows(Precision precision) const { return seen_.count(precision) != 0; }

  // FLOP a second that the best of them reaches at present.
  double Now(Precision precision) {
    double fastest = 0;
    for (Seen& seen : seen_[precision]) {
      if (seen.pair == nullptr) seen.pair = std::make_unique<ProductPair>(seen.shape, &compute_);
      const double seconds = SecondsOfEach({[&] { (*seen.pair.*seen.way.multiply)(precision); }}, 0.01, 3)[0];
      fastest = std::max(fastest, seen.shape.flop() / seconds);
    }
    return fastest;
  }

 private:
  static constexpr size_t kKept = 3;
  struct Seen {
    Shape shape;
    Way way;
    double rate;
    std::unique_ptr<ProductPair> pair = nullptr;
  };

  const kernels::Compute compute_;
  std::map<Precision, std::vector<Seen>> seen_;
};

// Tells of each shape that is wanted how fast both ways are; returns how much faster the first one is. A neighbour may
// take a core for longer than a shape is looked at: one that misses its goal is looked at twice more, after all others,
// and the middle one of the three counts.
std::vector<double> Compare(const kernels::Compute& compute, const Way& first, const Way& second,
                            const std::string& group, double goal, Fastest* fastest, Report* report) {
  struct Compared {
    Shape shape;
    std::vector<double> rates, ratios;
  };
  const auto compare = [&](Compared* compared) {
    const Shape& shape = compared->shape;
    ProductPair pair(shape, &compute);
    const std::vector<std::vector<double>> seconds = SecondsInRounds(
        {[&] { (pair.*first.multiply)(first.precision); }, [&] { (pair.*second.multiply)(second.precision); }});
    compared->rates.push_back(shape.flop() / Median(seconds[0]));
    compared->ratios.push_back(MedianRatio(seconds[1], seconds[0]));
    if (fastest == nullptr) return;
    fastest->See(shape, first, compared->rates.back());
    fastest->See(shape, second, shape.flop() / Median(seconds[1]));
  };
  std::vector<Compared> all;
  for (const Model& model : kModels) {
    for (const Shape& shape : ShapesOf(model)) {
      if (!report->Wants(group + shape.name)) continue;
      all.push_back({shape, {}, {}});
      compare(&all.back());
    }
  }
  for (Compared& compared : all) {
    if (compared.ratios[0] >= goal) continue;
    compare(&compared);
    compare(&compared);
  }
  std::vector<double> ratios;
  for (const Compared& compared : all) {
    const double rate = Median(compared.rates), ratio = Median(compared.ratios);
    ratios.push_back(ratio);
    report->Add({group + compared.shape.name, rate / 1e9, "GFLOP/s", rate / ratio / 1e9, goal});
  }
  return ratios;
}

// For a table of a few rows, whose products were not measured.
void SeeLargeProducts(const Machine& machine, Precision precision, Fastest* fastest) {
  const kernels::Compute compute(machine.isa, machine.threads);
  for (const Shape& shape : ShapesOf(kModels[1])) {
    ProductPair pair(shape, &compute);
    const std::vector<double> seconds = SecondsOfEach({[&] { pair.Ours(precision); }, [&] { pair.OneDnn(precision); }});
    fastest->See(shape, {&ProductPair::Ours, precision}, shape.flop() / seconds[0]);
    fastest->See(shape, {&ProductPair::OneDnn, precision}, shape.flop() / seconds[1]);
  }
}

void AgainstOneDnn(const Machine& machine, Precision precision, Fastest* fastest, Report* report) {
  const kernels::Compute compute(machine.isa, machine.threads);
  const std::string group = absl::StrCat("compute/products/", PrecisionName(precision), "/");
  const bool f32 = precision == Precision::kF32;
  const double worst = f32 ? kWorst : 0;
  const std::vector<double> ratios = Compare(compute, {&ProductPair::Ours, precision},
                                             {&ProductPair::OneDnn, precision}, group, worst, fastest, report);
  if (ratios.empty()) return;
  report->Add({group + "geometric-mean", GeometricMean(ratios), "of oneDNN", 1, f32 ? kMean : kMeanBf16});
  report->Add({group + "worst", *std::min_element(ratios.begin(), ratios.end()), "of oneDNN", 1, worst});
}

// bf16 through f32 registers against f32, both ours, on the best instruction set without bf16.
void Widened(const Machine& machine, Report* report) {
  const kernels::Compute compute(std::min(machine.isa, Isa::kAvx512), machine.threads);
  const std::string group = "compute/products/bf16-widened/";
  const std::vector<double> ratios =
      Compare(compute, {&ProductPair::Ours, Precision::kBf16}, {&ProductPair::Ours, Precision::kF32}, group, /*goal=*/0,
              /*fastest=*/nullptr, report);  // the machine may have better instructions
  if (ratios.empty()) return;
  report->Add({group + "geometric-mean", GeometricMean(ratios), "of f32", 1, kWidened});
}

// Whole training steps, round after round, each beside what the fastest products reach just before and after it: a
// neighbour who is busy for some seconds takes from both.
absl::Status WholeSteps(const Machine& machine, Fastest* fastest, Report* report) {
  struct Row {
    const Model* model;
    Precision precision;
    std::string name;
    std::vector<double> rates;   // tokens a second
    std::vector<double> ratios;  // to the fastest products
  };
  std::vector<Row> rows;
  for (const Model& model : kModels) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      Row row = {&model, precision, absl::StrCat("compute/", model.name, "/", PrecisionName(precision)), {}, {}};
      if (!report->Wants(row.name)) continue;
      if (precision == Precision::kBf16 && machine.isa != Isa::kAvx512Bf16) {
        report->Absent(row.name, kNoBf16);
        continue;
      }
      if (!fastest->Knows(precision)) SeeLargeProducts(machine, precision, fastest);
      rows.push_back(std::move(row));
    }
  }
  for (int round = 0; round < kRounds; ++round) {
    for (Row& row : rows) {
      const Model& model = *row.model;
      MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(model, "none", row.precision, model.batch, model.batch));
      const double before = fastest->Now(row.precision);
      MILLRACE_ASSIGN_OR_RETURN(const double rate, TrainInOneProcess(job, static_cast<uint32_t>(model.vocab),
                                                                     machine.isa, machine.threads, kRoundSeconds));
      const double limit = (before + fastest->Now(row.precision)) / 2 / model.flop();
      row.rates.push_back(rate);
      row.ratios.push_back(rate / limit);
    }
  }
  for (const Row& row : rows) {
    const double rate = Median(row.rates);
    const bool small = row.model->hidden == 128, bf16 = row.precision == Precision::kBf16;
    report->Add(
        {row.name, rate, "tokens/s", rate / Median(row.ratios), small ? (bf16 ? 0.5 : 0.65) : (bf16 ? 0.7 : 0.8)});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchCompute(const Machine& machine, Report* report) {
  SetUpOneDnn(machine.isa, machine.threads);
  const bool has_bf16 = machine.isa == Isa::kAvx512Bf16;
  Fastest fastest(machine);
  AgainstOneDnn(machine, Precision::kF32, &fastest, report);
  if (has_bf16) {
    AgainstOneDnn(machine, Precision::kBf16, &fastest, report);
  } else {
    report->Absent("compute/products/bf16", kNoBf16);
  }
  if (report->Wants("compute/products/bf16-widened")) Widened(machine, report);
  return WholeSteps(machine, &fastest, report);
}

}  // namespace millrace::bench
