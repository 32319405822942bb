// Files of sweeps: any bytes give trials within the bounds, each of which sets every field once, or an error.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/yaml_message.h"
#include "coordinator/sweeps.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  v1::SweepSpec sweep;
  const absl::string_view yaml(reinterpret_cast<const char*>(data), size);
  if (!ParseYaml(yaml, {"sweep.yaml", "sweep"}, &sweep).ok()) return 0;
  FillRuleDefaults(&sweep);
  const auto trials = coordinator::TrialsOf(sweep);
  if (!trials.ok()) {
    if (trials.status().message().size() > 2000) abort();
    return 0;
  }
  if (trials->empty() || trials->size() > coordinator::kMostTrials) abort();
  if (sweep.method() == "random" && trials->size() != sweep.trials()) abort();
  for (const std::vector<std::string>& trial : *trials) {
    if (trial.size() != static_cast<size_t>(sweep.parameters_size())) abort();
    for (int i = 0; i < sweep.parameters_size(); ++i) {
      if (!absl::StartsWith(trial[static_cast<size_t>(i)], absl::StrCat(sweep.parameters(i).field(), "="))) abort();
    }
  }
  return 0;
}
