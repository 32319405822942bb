#include "optim/optimizer.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace::optim {
namespace {

// The rules beside OptimizerSpec's fields, since a spec comes over the network: a missing value would be a zero.
absl::Status CheckSpec(const v1::OptimizerSpec& spec) {
  const auto wrong = [](absl::string_view field, double found, absl::string_view right) {
    return absl::InvalidArgumentError(absl::StrCat("optimizer.", field, " is ", found, "; ", right, " is wanted"));
  };
  const auto share = [](double number) { return number >= 0 && number < 1; };
  const auto positive = [](double number) { return number > 0 && number <= 100; };
  if (!positive(spec.lr())) return wrong("lr", spec.lr(), "more than 0, at most 100");
  if (spec.betas_size() != 2) return wrong("betas' count", spec.betas_size(), "2");
  for (const double beta : spec.betas()) {
    if (!share(beta)) return wrong("betas", beta, "0 or more, less than 1");
  }
  if (!(spec.epsilon() > 0 && spec.epsilon() <= 1)) return wrong("epsilon", spec.epsilon(), "more than 0, at most 1");
  if (!(spec.weight_decay() >= 0 && spec.weight_decay() <= 100)) {
    return wrong("weight_decay", spec.weight_decay(), "0 to 100");
  }
  if (!share(spec.momentum())) return wrong("momentum", spec.momentum(), "0 or more, less than 1");
  if (!positive(spec.muon_lr())) return wrong("muon_lr", spec.muon_lr(), "more than 0, at most 100");
  if (spec.muon_iterations() < 1 || spec.muon_iterations() > 20) {
    return wrong("muon_iterations", spec.muon_iterations(), "1 to 20");
  }
  if (spec.schedule() != "constant" && spec.schedule() != "cosine" && spec.schedule() != "linear" &&
      spec.schedule() != "wsd") {
    return absl::InvalidArgumentError(absl::StrCat("there is no schedule '", absl::Utf8SafeCEscape(spec.schedule()),
                                                   "'; known are constant, cosine, linear and wsd"));
  }
  if (!(spec.min_lr_ratio() >= 0 && spec.min_lr_ratio() <= 1)) {
    return wrong("min_lr_ratio", spec.min_lr_ratio(), "0 to 1");
  }
  if (!(spec.decay_fraction() >= 0 && spec.decay_fraction() <= 1)) {
    return wrong("decay_fraction", spec.decay_fraction(), "0 to 1");
  }
  if (spec.gradient_bits() != 16 && spec.gradient_bits() != 32) {
    return wrong("gradient_bits", spec.gradient_bits(), "16 or 32");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> CreateOptimizer(const v1::OptimizerSpec& spec) {
  if (const absl::Status right = CheckSpec(spec); !right.ok()) return right;
  if (spec.type() == "sgd") return CreateSgd(spec);
  if (spec.type() == "momentum") return CreateMomentum(spec);
  if (spec.type() == "adamw") return CreateAdamW(spec);
  if (spec.type() == "adafactor") return CreateAdafactor(spec);
  if (spec.type() == "lion") return CreateLion(spec);
  if (spec.type() == "muon") return CreateMuon(spec);
  return absl::InvalidArgumentError(absl::StrCat("there is no optimizer '", absl::Utf8SafeCEscape(spec.type()),
                                                 "'; known are sgd, momentum, adamw, adafactor, lion and muon"));
}

}  // namespace millrace::optim
