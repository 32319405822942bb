#include "common/machine.h"

#include <sys/mman.h>

#include <cstring>
#include <string>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(Machine, SaysWhatItIs) {
  EXPECT_EQ(BuildDescription().rfind("millrace ", 0), 0u);
  EXPECT_FALSE(ProcessorName().empty());
  EXPECT_NE(ProcessName().find(":"), std::string::npos);
}

TEST(Machine, MemoryInUseCounts) {
  constexpr size_t kBytes = size_t{256} << 20;
  const uint64_t resident = ResidentBytes(), available = AvailableMemory();
  ASSERT_GT(MemoryLimit(), 2 * kBytes);
  EXPECT_LT(MemoryLimit(), uint64_t{1} << 50);
  EXPECT_GT(available, 0u);
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  EXPECT_LT(ResidentBytes(), resident + kBytes / 2);  // promised only
  std::memset(memory, 1, kBytes);
  EXPECT_GE(ResidentBytes(), resident + kBytes / 2);
  munmap(memory, kBytes);
  EXPECT_LT(ResidentBytes(), resident + kBytes / 2);
}

}  // namespace
}  // namespace millrace
