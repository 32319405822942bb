#include "common/http_server.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace {
namespace {

using testing::Connection;
using ::testing::EndsWith;
using testing::Exchange;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Answers with what it was asked.
HttpResponse Echo(const HttpRequest& request) {
  HttpResponse response;
  response.content_type = "text/plain";
  EXPECT_THAT(request.peer, StartsWith("127.0.0.1:"));
  response.body = absl::StrCat(request.method, "|", request.path, "|", request.Parameter("ab"), "|",
                               request.authorization, "|", request.content_type, "|", request.body);
  response.headers = {{"X-More", "yes"}};
  return response;
}

HttpServerOptions EchoOptions(const std::string& listen = "127.0.0.1:0") {
  HttpServerOptions options;
  options.listen = listen;
  options.max_body_bytes = 1000;
  options.patience = absl::Milliseconds(100);
  options.answer = &Echo;
  options.refuse = [](int status, absl::string_view why) {
    return HttpResponse{status, "text/plain", std::string(why), {}};
  };
  return options;
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() {
    auto server = HttpServer::Start(EchoOptions());
    EXPECT_OK(server);
    server_ = *std::move(server);
  }
  std::string Send(const std::string& bytes) { return Exchange(server_->address(), bytes); }

  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, GivesRequestsWholeAndSendsAnswersWhole) {
  const std::string reply = Send(
      "POST /x%20y/../z?x=9&ab=1%262+3&c=3 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Type: text/x\r\n"
      "Content-Length: 5\r\n\r\nhello");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Type: text/plain\r\n"));
  EXPECT_THAT(reply, HasSubstr("X-More: yes\r\n"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\nPOST|/z|1&2 3|Bearer t|text/x|hello"));
  EXPECT_THAT(Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), EndsWith("\r\n\r\nGET|/||||"));
  EXPECT_THAT(Send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"), EndsWith("\r\n\r\n")) << "no body";
}

TEST_F(HttpServerTest, RefusesBodiesThatAreTooLargeOrOfUnknownSize) {
  EXPECT_THAT(Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n"),
              ::testing::AllOf(StartsWith("HTTP/1.1 413 "), EndsWith("the body has 1001 bytes; at most 1000")));
  EXPECT_THAT(Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775807\r\n\r\n"),
              StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(Send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
              StartsWith("HTTP/1.1 411 "));
  EXPECT_THAT(Send("POST / HTTP/1.1\r\nHost: h\r\n\r\n"), StartsWith("HTTP/1.1 411 "));
}

TEST_F(HttpServerTest, SurvivesWhatIsNoHttp) {
  for (const std::string& bytes : {std::string("\r\n\r\n"), std::string("nonsense\r\n\r\n"), std::string(20000, 'x'),
                                   std::string("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
                                   absl::StrCat("GET / HTTP/1.1\r\nX: ", std::string(20000, 'x'), "\r\n\r\n")}) {
    EXPECT_THAT(Send(bytes), ::testing::Not(HasSubstr("200 OK"))) << bytes.substr(0, 40);
  }
  EXPECT_THAT(Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), StartsWith("HTTP/1.1 200 "));
}

TEST(HttpServer, DoesNotWaitForWhoIsSlow) {
  const auto server = HttpServer::Start(EchoOptions());
  ASSERT_OK(server);
  // More at a time than there are threads, each announcing a body that never comes.
  std::vector<std::thread> slow;
  for (int i = 0; i < 20; ++i) {
    slow.emplace_back([&] {
      EXPECT_THAT(Exchange((*server)->address(), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf"),
                  ::testing::Not(HasSubstr("200 OK")));
    });
  }
  EXPECT_THAT(Exchange((*server)->address(), "GET / HTTP/1.1\r\nHost: h\r\n\r\n"), StartsWith("HTTP/1.1 200 "));
  for (std::thread& thread : slow) thread.join();
}

// Sends more and more single bytes until the server has answered or hung up, more often than its patience.
std::string Dribble(const std::string& address, const std::string& begin, char more) {
  Connection connection(address);
  connection.Send(begin);
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  while (!connection.AwaitBytes(absl::Milliseconds(20))) {
    if (absl::Now() > give_up) return "still reads";
    connection.Send(std::string(1, more));
  }
  return connection.ReadAll();
}

TEST(HttpServer, GivesUpWhoSendsSlowly) {
  const auto server = HttpServer::Start(EchoOptions());
  ASSERT_OK(server);
  EXPECT_THAT(Dribble((*server)->address(), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", 'x'),
              ::testing::AllOf(StartsWith("HTTP/1.1 408 "), EndsWith("the body comes too slowly")));
  EXPECT_THAT(Dribble((*server)->address(), "GET / HTTP/1.1\r\nX: ", 'x'),
              ::testing::AllOf(::testing::Not(HasSubstr("still reads")), ::testing::Not(HasSubstr("200 OK"))));
}

TEST(HttpServer, ThisMachineHasFewNames) {
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1", "127.3.2.1:80", "[::1]:8080", "[::1]"}) {
    EXPECT_TRUE(NamesThisMachine(host)) << host;
  }
  for (const char* host :
       {"", ":", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.evil", "127.1.2.3.4",
        "127.", "127.0.0.1:80:80", "[::2]", "::1", "0.0.0.0", "evil.example:127.0.0.1", "localhost\n"}) {
    EXPECT_FALSE(NamesThisMachine(host)) << host;
  }
}

TEST(HttpServer, SendsPiecesAsTheyComeToBe) {
  HttpServerOptions options = EchoOptions();
  absl::Notification first_read;
  options.answer = [&](const HttpRequest&) {
    HttpResponse response;
    response.content_type = "text/plain";
    response.pieces = [&](const HttpResponse::Send& send) {
      EXPECT_TRUE(send("one"));
      first_read.WaitForNotification();
      EXPECT_TRUE(send(""));
      EXPECT_TRUE(send("and the other"));
    };
    return response;
  };
  const auto server = HttpServer::Start(std::move(options));
  ASSERT_OK(server);
  Connection connection((*server)->address());
  connection.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(connection.ReadUntil("one\r\n"), EndsWith("\r\n\r\n3\r\none\r\n")) << "before the rest is there";
  first_read.Notify();
  EXPECT_EQ(connection.ReadAll(), "d\r\nand the other\r\n0\r\n\r\n");
  const std::string older = Exchange((*server)->address(), "GET / HTTP/1.0\r\nHost: h\r\n\r\n");
  EXPECT_THAT(older, EndsWith("\r\n\r\noneand the other"));
  EXPECT_THAT(older, ::testing::Not(HasSubstr("chunked")));
  EXPECT_THAT(Exchange((*server)->address(), "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"), EndsWith("\r\n\r\n"));
}

TEST(HttpServer, TellsWhoHasHungUp) {
  HttpServerOptions options = EchoOptions();
  absl::Notification asked, noticed;
  options.answer = [&](const HttpRequest& request) {
    EXPECT_FALSE(request.gone());
    asked.Notify();
    while (!request.gone()) std::this_thread::yield();
    noticed.Notify();
    return HttpResponse();
  };
  const auto server = HttpServer::Start(std::move(options));
  ASSERT_OK(server);
  {
    Connection connection((*server)->address());
    connection.Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
    asked.WaitForNotification();
  }
  noticed.WaitForNotification();
}

TEST(HttpServer, GivesUpWhoTakesNothing) {
  HttpServerOptions options = EchoOptions();
  absl::Notification given_up;
  options.answer = [&](const HttpRequest&) {
    HttpResponse response;
    response.pieces = [&](const HttpResponse::Send& send) {
      const std::string piece(1 << 20, 'x');
      while (send(piece)) {
      }
      given_up.Notify();
    };
    return response;
  };
  const auto server = HttpServer::Start(std::move(options));
  ASSERT_OK(server);
  Connection connection((*server)->address());
  connection.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  given_up.WaitForNotification();
}

TEST(HttpServer, DrainFinishesWhatIsInFlightAndRefusesTheRest) {
  HttpServerOptions options = EchoOptions();
  absl::Notification asked, may_answer;
  options.answer = [&](const HttpRequest& request) {
    if (request.path == "/slow") {
      asked.Notify();
      may_answer.WaitForNotification();
    }
    return Echo(request);
  };
  const auto server = HttpServer::Start(std::move(options));
  ASSERT_OK(server);
  const std::string& address = (*server)->address();
  std::string slow;
  std::thread client([&] { slow = Exchange(address, "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"); });
  asked.WaitForNotification();
  std::thread drain([&] { (*server)->Drain(); });
  std::string reply;
  do {
    reply = Exchange(address, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  } while (reply.starts_with("HTTP/1.1 200 "));
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  may_answer.Notify();
  drain.join();
  client.join();
  EXPECT_THAT(slow, StartsWith("HTTP/1.1 200 "));
}

TEST(HttpServer, NamesAddressesThatCannotBeServed) {
  for (const char* listen : {"", "8080", ":8080", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:80s",
                             "127.0.0.1:1,127.0.0.1:2"}) {
    const absl::Status status = HttpServer::Start(EchoOptions(listen)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << listen << ": " << status;
  }
  const auto first = HttpServer::Start(EchoOptions());
  ASSERT_OK(first);
  const absl::Status taken = HttpServer::Start(EchoOptions((*first)->address())).status();
  EXPECT_TRUE(absl::IsUnavailable(taken)) << taken;
  EXPECT_THAT(taken.message(), HasSubstr((*first)->address()));
}

TEST(HttpServer, ServesAgainAtTheSameAddress) {
  auto server = HttpServer::Start(EchoOptions("localhost:0"));
  ASSERT_OK(server);
  const std::string address = (*server)->address();
  EXPECT_THAT(address, StartsWith("localhost:"));
  server->reset();
  server = HttpServer::Start(EchoOptions(address));
  ASSERT_OK(server);
  EXPECT_THAT(
      Exchange(absl::StrCat("127.0.0.1", address.substr(address.rfind(':'))), "GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
      StartsWith("HTTP/1.1 200 "));
}

}  // namespace
}  // namespace millrace
