#include "model/arena.h"

#include <cstdint>

#include "common/machine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using ::testing::HasSubstr;

TEST(Arena, GivesOutWhatWasMeasured) {
  Arena measure;
  EXPECT_EQ(measure.Take(1), nullptr);
  EXPECT_EQ(measure.Take(17), nullptr);
  absl::StatusOr<Arena> arena = Arena::Create(measure.taken());
  ASSERT_OK(arena);
  float* const first = arena->Take(1);
  float* const second = arena->Take(17);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 64, 0u);
  EXPECT_GE(second, first + 1);
  for (int i = 0; i < 17; ++i) EXPECT_EQ(second[i], 0.0f);
  second[16] = 1;
  EXPECT_EQ(arena->taken(), measure.taken());
  EXPECT_DEATH(arena->Take(1), "an arena of 48 floats was asked for 64");
}

TEST(Arena, RefusesMoreThanThereIs) {
  const auto limit = static_cast<int64_t>(MemoryLimit() / sizeof(float));
  const absl::StatusOr<Arena> arena = Arena::Create(2 * limit);
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(arena.status().message()), HasSubstr("out of memory"));
}

}  // namespace
}  // namespace millrace::model
