// Expectations of success that say what went wrong instead.
#pragma once

#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/grpc_status.h"

// Of an absl::Status, an absl::StatusOr or a grpc::Status; more may be told with <<.
#define EXPECT_OK(expression) EXPECT_PRED_FORMAT1(::millrace::testing::IsOk, expression)
#define ASSERT_OK(expression) ASSERT_PRED_FORMAT1(::millrace::testing::IsOk, expression)

namespace millrace::testing {

inline ::testing::AssertionResult IsOk(const char* expression, const absl::Status& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << expression << " is not OK: " << status;
}

template <typename Value>
::testing::AssertionResult IsOk(const char* expression, const absl::StatusOr<Value>& result) {
  return IsOk(expression, result.status());
}

inline ::testing::AssertionResult IsOk(const char* expression, const grpc::Status& status) {
  return IsOk(expression, FromGrpc(status));
}

}  // namespace millrace::testing
