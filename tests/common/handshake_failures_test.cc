#include "common/handshake_failures.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(HandshakeFailures, WhatGrpcSaysIsShortened) {
  // As gRPC 1.51 writes them.
  HandshakeFailure failure = ParseHandshakeFailure(
      "UNKNOWN:Tls handshake failed: SSL_ERROR_SSL: error:0A000086:SSL routines::certificate verify failed "
      "{tsi_code:10, tsi_error:\"TSI_PROTOCOL_FAILURE\", created_time:\"2026-11-29T22:14:33.454715404+00:00\", "
      "file_line:393, file:\"./src/core/lib/security/transport/security_handshaker.cc\"}");
  EXPECT_EQ(failure.error,
            "Tls handshake failed: SSL_ERROR_SSL: error:0A000086:SSL routines::certificate verify failed");
  EXPECT_EQ(failure.peer, "");
  failure = ParseHandshakeFailure(
      "UNKNOWN:Handshake read failed {file:\"./src/core/lib/security/transport/security_handshaker.cc\", "
      "file_line:487, "
      "created_time:\"2026-11-29T22:14:34.501473079+00:00\", children:[INTERNAL:Socket closed {fd:9, grpc_status:14, "
      "target_address:\"ipv4:127.0.0.1:54012\"}]}");
  EXPECT_EQ(failure.error, "Handshake read failed");
  EXPECT_EQ(failure.peer, "ipv4:127.0.0.1:54012");
  // Whatever a later version may write is one short line.
  EXPECT_LE(ParseHandshakeFailure(std::string(10'000, 'x')).error.size(), 300u);
  EXPECT_EQ(ParseHandshakeFailure("a\nb").error, "a\\nb");
  EXPECT_EQ(ParseHandshakeFailure("target_address:\"").peer, "");
}

}  // namespace
}  // namespace millrace
