#include "common/machine.h"

#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "text/temporary_folder.h"

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

class GroupTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = std::filesystem::path(root()) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::string root() const { return folder_ / "cgroup"; }

 private:
  const text::TemporaryFolder folder_;
};

TEST_F(GroupTest, TheTightestOfAServiceAndItsSliceCounts) {
  Write("memory.stat", "anon 7000\nshmem 1\n");  // the first group has no limit
  Write("system.slice/memory.max", "1000\n");
  Write("system.slice/memory.stat", "anon 600\nfile 300\nshmem 100\n");
  Write("system.slice/a.service/memory.max", "800\n");
  Write("system.slice/a.service/memory.stat", "anon 50\nfile 700\nshmem 0\n");
  const GroupMemory memory = MemoryOfGroups("0::/system.slice/a.service\n", root());
  EXPECT_EQ(memory.limit, 800u);
  EXPECT_EQ(memory.available, 300u);
}

TEST_F(GroupTest, OfTheFirstVersion) {
  Write("memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("memory/memory.stat", "total_rss 7000\n");
  Write("memory/docker/1/memory.limit_in_bytes", "1000\n");
  Write("memory/docker/1/memory.stat", "rss 1\nshmem 2\ntotal_cache 900\ntotal_rss 600\ntotal_shmem 100\n");
  Write("cpu/docker/1/memory.limit_in_bytes", "5\n");
  const GroupMemory memory = MemoryOfGroups("8:pids:/\n4:cpu,memory:/docker/1\n1:cpu:/docker/1\n0::/\n", root());
  EXPECT_EQ(memory.limit, 1000u);
  EXPECT_EQ(memory.available, 300u);
}

// The path is the machine's, and the mount the container's own.
TEST_F(GroupTest, InAContainer) {
  Write("memory.max", "1000\n");
  Write("memory.stat", "anon 600\nshmem 0\n");
  const GroupMemory memory = MemoryOfGroups("0::/system.slice/docker-1.scope\n", root());
  EXPECT_EQ(memory.limit, 1000u);
  EXPECT_EQ(memory.available, 400u);
}

TEST_F(GroupTest, NoLimit) {
  Write("memory.max", "max\n");
  Write("memory.stat", "anon 600\nshmem 0\n");
  for (const char* groups : {"0::/\n", "0::/gone\n", "", "nonsense\n1:\n"}) {
    EXPECT_EQ(MemoryOfGroups(groups, root()).limit, UINT64_MAX) << groups;
    EXPECT_EQ(MemoryOfGroups(groups, root()).available, UINT64_MAX) << groups;
  }
}

}  // namespace
}  // namespace millrace
