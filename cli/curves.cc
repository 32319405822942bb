// millrace curves: prints what jobs measured, as CSV or JSON.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunCurves(Arguments arguments) {
  std::string job_id;
  std::vector<std::string> also, metrics;
  int64_t points = 1000;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("curves", "Prints what a job measured, step by step, as CSV.", "tiny --metric held_out_loss");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  flags.List("also", "JOB", "another job beside it", &also);
  flags.List("metric", "NAME", "only this: train_loss, held_out_loss, learning_rate, …; default: all", &metrics);
  flags.Integer("points", "N", "of a curve at most; longer ones keep their look", &points, 3, 10'000);
  flags.Switch("json", "prints an object", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  v1::GetCurvesRequest request;
  request.add_job_ids(job_id);
  for (const std::string& other : also) request.add_job_ids(other);
  for (const std::string& metric : metrics) request.add_metrics(metric);
  request.set_max_points(static_cast<uint32_t>(points));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::GetCurvesReply reply, coordinator.GetCurves(request));
  if (json) {
    std::printf("%s\n", ToJson(reply).dump().c_str());
    return absl::OkStatus();
  }
  std::printf("job,phase,metric,step,tokens,unix_ms,value\n");
  for (const v1::Curve& curve : reply.curves()) {
    for (int i = 0; i < curve.values_size(); ++i) {
      std::printf("%s,%s,%s,%llu,%llu,%lld,%.9g\n", curve.job_id().c_str(), curve.phase().c_str(),
                  curve.metric().c_str(), static_cast<unsigned long long>(curve.steps(i)),
                  static_cast<unsigned long long>(curve.tokens(i)), static_cast<long long>(curve.unix_ms(i)),
                  curve.values(i));
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
