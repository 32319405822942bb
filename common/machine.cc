#include "common/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace {
namespace {

constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();

std::optional<uint64_t> FirstNumber(const char* path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

// The number behind `key` at the beginning of a line.
std::optional<uint64_t> NumberAfter(const char* path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t number = 0;
    if (words >> word && word == key && words >> number) return number;
  }
  return std::nullopt;
}

}  // namespace

std::string BuildDescription() {
#ifdef __clang__
  return absl::StrCat("millrace ", MILLRACE_VERSION, ", ", __VERSION__);
#else
  return absl::StrCat("millrace ", MILLRACE_VERSION, ", gcc ", __VERSION__);
#endif
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!absl::StartsWith(line, "model name")) continue;
    std::string name = line.substr(std::min(line.size(), line.find(':') + 1));
    for (char& c : name) c = absl::ascii_isprint(static_cast<unsigned char>(c)) ? c : ' ';
    absl::RemoveExtraAsciiWhitespace(&name);
    if (!name.empty()) return name.substr(0, 100);
  }
  return "unknown processor";
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  if (!(file >> size >> resident)) return 0;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t MemoryLimit() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  uint64_t limit = pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page) : kUnknown;
  // Of version 2 and version 1 of control groups: "max", or a number larger than any memory, where there is none.
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    limit = std::min(limit, FirstNumber(path).value_or(kUnknown));
  }
  return limit;
}

uint64_t AvailableMemory() {
  const std::optional<uint64_t> kib = NumberAfter("/proc/meminfo", "MemAvailable:");
  uint64_t available = kib.has_value() ? *kib << 10 : kUnknown;
  if (kib.has_value()) available += NumberAfter("/proc/meminfo", "SwapFree:").value_or(0) << 10;
  // The page cache counts as used in a control group, but gives way.
  const uint64_t used = std::max(NumberAfter("/sys/fs/cgroup/memory.stat", "anon").value_or(0),
                                 NumberAfter("/sys/fs/cgroup/memory/memory.stat", "total_rss").value_or(0));
  const uint64_t limit = MemoryLimit();
  return std::min(available, limit == kUnknown ? kUnknown : limit - std::min(limit, used));
}

std::string ProcessName() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host[0] == '\0' ? "host" : host, ":", getpid());
}

}  // namespace millrace
