// Any text gives a job or an error; a job that is given keeps all rules and has all its defaults. What follows a zero
// byte is an override.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/job_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  std::vector<std::string> overrides;
  if (zero != absl::string_view::npos) overrides.emplace_back(input.substr(zero + 1));
  const auto job = millrace::ParseJob(input.substr(0, zero), "fuzz", overrides);
  if (!job.ok()) {
    if (job.status().message().empty()) abort();
    return 0;
  }
  millrace::v1::JobSpec again = *job;
  millrace::FillDefaults(&again);
  if (!millrace::ValidateJob(*job).ok() || again.SerializeAsString() != job->SerializeAsString()) abort();
  return 0;
}
