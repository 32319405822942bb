// What the table of bench/ looks like, by its quickest rows. How fast anything is does not matter here.
//
//   rows_test MILLRACE_BENCH MILLRACE
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
using millrace::testing::CommandLine;
using millrace::testing::Outcome;
using millrace::testing::Quoted;

std::string* bench_binary = new std::string;
std::string* millrace_binary = new std::string;

Outcome Bench(const std::string& arguments) {
  return CommandLine(*bench_binary).Run(Quoted(*millrace_binary) + " " + arguments);
}

std::vector<Json> Rows(const Outcome& outcome) {
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  std::vector<Json> rows;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

TEST(BenchRows, EachIsALineWithItsRatioToALimit) {
  for (const std::string name : {"optimizer/adamw", "compute/products/f32/0.8M/logits/forward"}) {
    const std::vector<Json> rows = Rows(Bench("--json --only " + name));
    ASSERT_FALSE(rows.empty());
    EXPECT_EQ(rows[0]["row"], name);
    for (const Json& row : rows) {
      EXPECT_THAT(row["row"].get<std::string>(), ::testing::StartsWith(name));
      EXPECT_FALSE(row["unit"].get<std::string>().empty());
      EXPECT_GT(row["goal"].get<double>(), 0);
      const double value = row["value"], limit = row["limit"];
      EXPECT_GT(value, 0);
      EXPECT_NEAR(row["ratio"].get<double>(), value / limit, 1e-6 * value / limit);
    }
  }
}

TEST(BenchRows, WhatTheProcessorLacksIsAbsentWithItsReason) {
  const std::vector<Json> rows = Rows(Bench("--json --only compute/0.8M/bf16 --max-isa avx2"));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["row"], "compute/0.8M/bf16");
  EXPECT_THAT(rows[0]["absent"].get<std::string>(), HasSubstr("no bf16 instructions"));
  EXPECT_FALSE(rows[0].contains("value"));
}

TEST(BenchRows, UnknownArgumentsGetTheUsage) {
  for (const std::string arguments : {"--rows 3", "--only", "--max-isa avx3"}) {
    const Outcome outcome = Bench(arguments);
    EXPECT_EQ(outcome.status, 2) << arguments;
    EXPECT_THAT(outcome.err, HasSubstr("--only")) << arguments;
  }
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: rows_test MILLRACE_BENCH MILLRACE\n");
    return 2;
  }
  *bench_binary = argv[1];
  *millrace_binary = argv[2];
  return RUN_ALL_TESTS();
}
