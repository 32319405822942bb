#include "optim/optimizer.h"

#include "absl/strings/str_cat.h"

namespace millrace::optim {

absl::StatusOr<std::unique_ptr<Optimizer>> CreateOptimizer(const v1::OptimizerSpec& spec) {
  if (spec.type() == "sgd") return CreateSgd(spec);
  if (spec.type() == "momentum") return CreateMomentum(spec);
  if (spec.type() == "adamw") return CreateAdamW(spec);
  if (spec.type() == "adafactor") return CreateAdafactor(spec);
  if (spec.type() == "lion") return CreateLion(spec);
  if (spec.type() == "muon") return CreateMuon(spec);
  return absl::InvalidArgumentError(absl::StrCat("there is no optimizer '", spec.type(), "'"));
}

}  // namespace millrace::optim
