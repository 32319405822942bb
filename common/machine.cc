#include "common/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace millrace {
namespace {

constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();

std::optional<uint64_t> FirstNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

// The number behind `key` at the beginning of a line.
std::optional<uint64_t> NumberAfter(const std::string& path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t number = 0;
    if (words >> word && word == key && words >> number) return number;
  }
  return std::nullopt;
}

GroupMemory OwnGroups() {
  std::ifstream file("/proc/self/cgroup");
  return MemoryOfGroups({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}, "/sys/fs/cgroup");
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

GroupMemory MemoryOfGroups(const std::string& groups, const std::string& root) {
  GroupMemory least;
  // A line each: ID:CONTROLLERS:PATH, of version 2 without controllers.
  for (const absl::string_view line : absl::StrSplit(groups, '\n')) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const bool second = parts[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    if (!second && std::find(controllers.begin(), controllers.end(), "memory") == controllers.end()) continue;
    const std::string mount = second ? root : absl::StrCat(root, "/memory");
    // In a container the path may be the machine's, while what is mounted begins with the container: what is not found
    // limits nothing.
    std::string path = parts[2] == "/" ? "" : parts[2];
    for (;; path.resize(path.rfind('/'))) {
      const std::string group = absl::StrCat(mount, path, "/");
      // "max", or a number larger than any memory, where there is none.
      const std::optional<uint64_t> limit = FirstNumber(group + (second ? "memory.max" : "memory.limit_in_bytes"));
      if (limit.has_value()) {
        // The page cache counts as used in a control group, but gives way; shared memory does not.
        const std::string stat = group + "memory.stat";
        const uint64_t used = NumberAfter(stat, second ? "anon" : "total_rss").value_or(0) +
                              NumberAfter(stat, second ? "shmem" : "total_shmem").value_or(0);
        least.limit = std::min(least.limit, *limit);
        least.available = std::min(least.available, *limit - std::min(*limit, used));
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

uint64_t MemoryLimit() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  const uint64_t machine =
      pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page) : kUnknown;
  return std::min(machine, OwnGroups().limit);
}

uint64_t AvailableMemory() {
  const std::optional<uint64_t> kib = NumberAfter("/proc/meminfo", "MemAvailable:");
  uint64_t available = kib.has_value() ? *kib << 10 : kUnknown;
  if (kib.has_value()) available += NumberAfter("/proc/meminfo", "SwapFree:").value_or(0) << 10;
  return std::min(available, OwnGroups().available);
}

std::string ProcessName() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host[0] == '\0' ? "host" : host, ":", getpid());
}

}  // namespace millrace
