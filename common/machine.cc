#include "common/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace millrace {

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

std::string ProcessName() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host[0] == '\0' ? "host" : host, ":", getpid());
}

}  // namespace millrace
