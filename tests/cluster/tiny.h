// The tiny job and the digest that it must end with, on every cluster and whatever happens to it.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::testing {

inline constexpr char kTinyJob[] = "examples/tiny.yaml";
inline constexpr uint64_t kTinySteps = 60;
// The tiny job with this override is over only after some seconds: time to do something to it. Its digest is "long".
inline constexpr char kLonger[] = "phases.0.stop.max_steps=400";

// tests/golden/tiny.digest has a line "NAME DIGEST" each: of the job with precision f32 and bf16, and of the longer one.
inline std::string TinyDigest(const std::string& which = "f32") {
  std::ifstream file(MILLRACE_SOURCE_DIR "/tests/golden/tiny.digest");
  for (std::string name, digest; file >> name >> digest;) {
    if (name == which) return digest;
  }
  ADD_FAILURE() << "tests/golden/tiny.digest has no line for " << which;
  return "";
}

}  // namespace millrace::testing
