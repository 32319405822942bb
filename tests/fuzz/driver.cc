// Runs a libFuzzer target without libFuzzer, so that every compiler's ordinary test run covers it: each seed as it
// is, then mutations of the seeds.
//
//   NAME_fuzz_driver [SEED_FOLDER [ITERATIONS [ONLY_ITERATION]]]
//
// A mutation is a function of the seeds and its number alone. A crash prints the number; giving it as ONLY_ITERATION
// runs that input again. Stops early, with success, after kTimeBudget.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/philox.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr auto kTimeBudget = std::chrono::milliseconds(1500);
constexpr size_t kMaxInput = 1 << 16;

volatile sig_atomic_t current_iteration = 0;

extern "C" void ReportIteration(int signal_number) {
  char text[] = "fuzz driver: died at iteration 0000000000\n";
  int value = current_iteration;
  for (size_t i = sizeof(text) - 3; value > 0; --i, value /= 10) text[i] = static_cast<char>('0' + value % 10);
  if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0) _exit(2);
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

// Draws that depend on (iteration, number of the draw).
class Draws {
 public:
  explicit Draws(uint64_t iteration) : iteration_(iteration) {}
  uint64_t Next() {
    const auto words = millrace::Philox(0x66757a7a)(iteration_, count_++);
    return words[0] | uint64_t{words[1]} << 32;
  }
  size_t Below(size_t bound) { return bound == 0 ? 0 : Next() % bound; }

 private:
  uint64_t iteration_;
  uint64_t count_ = 0;
};

// Numbers that lengths, counts and offsets go wrong at.
constexpr uint64_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
                               0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};

std::string Mutate(const std::vector<std::string>& seeds, uint64_t iteration) {
  Draws draws(iteration);
  std::string input = seeds[draws.Below(seeds.size())];
  const size_t changes = 1 + draws.Below(8);
  for (size_t change = 0; change < changes; ++change) {
    const size_t at = draws.Below(input.size() + 1);
    switch (draws.Below(8)) {
      case 0:  // flip a bit
        if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << draws.Below(8)));
        break;
      case 1:  // any byte
        if (at < input.size()) input[at] = static_cast<char>(draws.Next());
        break;
      case 2:  // cut off the end
        input.resize(at);
        break;
      case 3:  // drop a run
        input.erase(at, 1 + draws.Below(16));
        break;
      case 4:  // insert noise
        for (size_t i = draws.Below(16); i > 0; --i) input.insert(input.begin() + at, static_cast<char>(draws.Next()));
        break;
      case 5: {  // an edge number, 1 to 8 bytes wide
        const uint64_t edge = kEdges[draws.Below(std::size(kEdges))];
        const size_t width = size_t{1} << draws.Below(4);
        for (size_t i = 0; i < width && at + i < input.size(); ++i) input[at + i] = static_cast<char>(edge >> 8 * i);
        break;
      }
      case 6: {  // repeat a run
        const std::string run = input.substr(at, draws.Below(64));
        input.insert(draws.Below(input.size() + 1), run);
        break;
      }
      case 7: {  // splice with another seed
        const std::string& other = seeds[draws.Below(seeds.size())];
        input = input.substr(0, at) + other.substr(draws.Below(other.size() + 1));
        break;
      }
    }
  }
  if (input.size() > kMaxInput) input.resize(kMaxInput);
  return input;
}

void Run(const std::string& input) {
  // A copy of exactly this size, so that sanitizers see a read past the end.
  std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

int main(int argc, char** argv) {
  for (int number : {SIGSEGV, SIGABRT, SIGFPE, SIGBUS, SIGILL}) signal(number, ReportIteration);
  std::vector<std::string> seeds;
  if (argc > 1 && std::filesystem::is_directory(argv[1])) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    for (const auto& file : files) {
      std::ifstream stream(file, std::ios::binary);
      seeds.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
  }
  const size_t files = seeds.size();
  for (const char* plain : {"", "{}", "[]", "a: [b, {c: 1}]\n", "{\"a\": [1, 2.5e300, null, \"\\u00e9\"]}"}) {
    seeds.emplace_back(plain);
  }
  for (const std::string& seed : seeds) Run(seed);

  const int iterations = argc > 2 ? std::atoi(argv[2]) : 4000;
  const int only = argc > 3 ? std::atoi(argv[3]) : 0;
  const auto start = std::chrono::steady_clock::now();
  int done = 0;
  for (int i = 1; i <= iterations; ++i) {
    if (only != 0 && i != only) continue;
    current_iteration = i;
    Run(Mutate(seeds, i));
    ++done;
    if (std::chrono::steady_clock::now() - start > kTimeBudget) break;
  }
  std::printf("%zu seed files, %d mutations\n", files, done);
  return 0;
}
