// The instruction sets that a test can try on this machine.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "kernels/compute.h"

namespace millrace::testing {

// Those that this machine has; says which it lacks.
inline std::vector<kernels::Isa> IsasHere() {
  using kernels::Isa;
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa <= kernels::DetectIsa()) {
      isas.push_back(isa);
    } else {
      std::printf("SKIPPED: this processor has no %s\n", std::string(kernels::IsaName(isa)).c_str());
    }
  }
  return isas;
}

}  // namespace millrace::testing
