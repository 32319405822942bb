// millrace_bench: measures Millrace against the limits of the machine. bench/run builds and starts it.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "bench/groups.h"
#include "bench/report.h"
#include "cli/local_cluster.h"
#include "common/machine.h"
#include "kernels/compute.h"

namespace {

constexpr char kUsage[] =
    "usage: millrace_bench PROGRAM [--only PATTERN] [--json] [--max-isa ISA]\n"
    "  PROGRAM    the millrace binary, for rows that need processes\n"
    "  --only     rows whose names begin with PATTERN\n"
    "  --json     a row a line\n"
    "  --max-isa  holds our kernels and oneDNN's to avx2, avx512 or avx512_bf16\n";

int Usage() {
  std::fputs(kUsage, stderr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace millrace;  // a program's main
  if (argc < 2) return Usage();
  bench::Machine machine = {kernels::DetectIsa(), cli::Cores(), argv[1]};
  bench::Report::Options options;
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool more = i + 1 < argc;
    if (argument == "--json") {
      options.json = true;
    } else if (argument == "--only" && more) {
      options.only = argv[++i];
    } else if (argument == "--max-isa" && more) {
      const absl::StatusOr<kernels::Isa> isa = kernels::ParseIsa(argv[++i]);
      if (!isa.ok()) return Usage();
      machine.isa = std::min(machine.isa, *isa);
    } else {
      return Usage();
    }
  }
  std::fprintf(stderr, "%s, %d cores, %s\n", ProcessorName().c_str(), machine.threads,
               std::string(kernels::IsaName(machine.isa)).c_str());
  bench::Report report(options);
  const struct {
    const char* name;
    absl::Status (*measure)(const bench::Machine&, bench::Report*);
    bool only_if_asked = false;
  } groups[] = {{"compute", &bench::BenchCompute},
                {"optimizer", &bench::BenchOptimizer},
                {"transport", &bench::BenchTransport},
                {"bytes", &bench::BenchBytes},
                {"distribution", &bench::BenchDistribution},
                {"growth/coordinator", &bench::BenchCoordinatorGrowth},
                {"growth/shard", &bench::BenchShardGrowth},
                {"text", &bench::BenchText},
                {"generation", &bench::BenchGeneration},
                {"serving", &bench::BenchServing, /*only_if_asked=*/true}};
  bool failed = false;
  for (const auto& group : groups) {
    if (!report.Wants(group.name) || (group.only_if_asked && options.only.empty())) continue;
    const absl::Status measured = group.measure(machine, &report);
    if (measured.ok()) continue;
    std::fprintf(stderr, "%s: %s\n", group.name, std::string(measured.message()).c_str());
    failed = true;
  }
  return failed ? 1 : 0;
}
