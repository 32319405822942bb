// millrace_batches JOB.yaml DATA STEPS OUT [FIELD=VALUE…]: writes the tokens that the first phase of a job trains on,
// in their order, for other programs to train on.
//
// DATA is the job's folder of tokens (DIR/jobs/JOB/data). OUT/train.u32 and OUT/held_out.u32 hold u32, little-endian,
// in rows of context + 1 tokens: a row's last `context` tokens are predicted. What is held out may end with a shorter
// row. Prints the context.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/status.h"
#include "coordinator/planner.h"

namespace millrace {
namespace {

// Only the last row may be shorter.
absl::Status Append(const std::vector<v1::WorkUnit>& units, uint32_t columns, std::string* tokens) {
  bool ended = false;
  for (const v1::WorkUnit& unit : units) {
    for (const v1::Microbatch& microbatch : unit.microbatches()) {
      if (ended || microbatch.columns() > columns) {
        return absl::InternalError(absl::StrCat("a row of ", microbatch.columns(), " tokens among those of ", columns));
      }
      ended = microbatch.columns() < columns;
      tokens->append(microbatch.tokens());
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  uint64_t steps = 0;
  if (arguments.size() < 4 || !absl::SimpleAtoi(arguments[2], &steps)) {
    return absl::InvalidArgumentError("usage: millrace_batches JOB.yaml DATA STEPS OUT [FIELD=VALUE…]");
  }
  const std::vector<std::string> overrides(arguments.begin() + 4, arguments.end());
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, ReadJobFile(arguments[0], overrides));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<coordinator::Planner> planner,
                            coordinator::Planner::Open(job, /*phase_index=*/0, {.job = arguments[1]}));
  const uint32_t context = TextContext(job.model(), job.phases(0));
  std::string train, held_out;
  for (uint64_t step = 0; step < steps; ++step) {
    MILLRACE_RETURN_IF_ERROR(Append(planner->Training(/*epoch=*/1, step), context + 1, &train));
  }
  MILLRACE_RETURN_IF_ERROR(Append(planner->Evaluation(/*epoch=*/1, /*version=*/0), context + 1, &held_out));
  std::filesystem::create_directories(arguments[3]);
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(arguments[3], "/train.u32"), train));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(arguments[3], "/held_out.u32"), held_out));
  std::printf("%u\n", context);
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace

int main(int count, char** arguments) {
  const absl::Status status = millrace::Run(std::vector<std::string>(arguments + 1, arguments + count));
  if (status.ok()) return 0;
  std::fprintf(stderr, "millrace_batches: %s\n", std::string(status.message()).c_str());
  return 1;
}
