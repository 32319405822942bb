// The tiny job and the digest that it must end with, on every cluster and whatever happens to it.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::testing {

inline constexpr char kTinyJob[] = "examples/tiny.yaml";
inline constexpr uint64_t kTinySteps = 60;

// tests/golden/tiny.digest has a line "PRECISION DIGEST" each.
inline std::string TinyDigest(const std::string& precision = "f32") {
  std::ifstream file(MILLRACE_SOURCE_DIR "/tests/golden/tiny.digest");
  for (std::string name, digest; file >> name >> digest;) {
    if (name == precision) return digest;
  }
  ADD_FAILURE() << "tests/golden/tiny.digest has no line for " << precision;
  return "";
}

}  // namespace millrace::testing
