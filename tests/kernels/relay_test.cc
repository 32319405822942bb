#include "kernels/relay.h"

#include <vector>

#include "gtest/gtest.h"

namespace millrace::kernels {
namespace {

// Not a sum: what depends on the order of its terms.
uint64_t Next(uint64_t chain, int64_t row, int64_t column) {
  return chain * 6364136223846793005u + static_cast<uint64_t>(row * 31 + column);
}

TEST(Relay, EverySumMeetsItsRowsInOrder) {
  constexpr int64_t kColumns = 11;
  for (const int threads : {1, 2, 3, 5}) {
    const Compute compute(Isa::kScalar, threads);
    for (const int64_t rows : {1, 2, 99, 100, 201, 1000}) {
      for (int round = 0; round < 50; ++round) {
        const Relay relay(compute, rows, 100);
        ASSERT_GE(relay.legs(), 1);
        ASSERT_TRUE(relay.legs() == 1 || rows / relay.legs() >= 100);
        ASSERT_LE(relay.legs() * relay.lanes(), threads);
        std::vector<uint64_t> chains(kColumns), expected(kColumns);
        relay.Run([&](Relay::Leg& leg) {
          const int64_t first = leg.lane() * kColumns / relay.lanes();
          const int64_t past = (leg.lane() + 1) * kColumns / relay.lanes();
          EXPECT_EQ(leg.begin() % 2, 0);
          for (int64_t column = first; column < past; ++column) {
            leg.Await(column - first);
            uint64_t& chain = chains[static_cast<size_t>(column)];
            for (int64_t row = leg.begin(); row < leg.end(); ++row) chain = Next(chain, row, column);
            leg.Pass(column - first + 1);
          }
        });
        for (int64_t column = 0; column < kColumns; ++column) {
          uint64_t& chain = expected[static_cast<size_t>(column)];
          for (int64_t row = 0; row < rows; ++row) chain = Next(chain, row, column);
        }
        ASSERT_EQ(chains, expected) << threads << " threads, " << rows << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace millrace::kernels
