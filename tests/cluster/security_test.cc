// A cluster whose members and users show each other certificates, and what strangers get from it.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "cluster/tiny.h"
#include "common/credentials.h"
#include "common/grpc_channel.h"
#include "common/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

class SecurityTest : public ::testing::Test {
 protected:
  struct Outcome {
    int status = -1;
    std::string text;  // standard output and error
  };
  // `millrace ARGUMENTS`, to its end.
  Outcome Run(const std::vector<std::string>& arguments) {
    const std::string log = folder_ / absl::StrCat("run-", ++runs_, ".log");
    ChildProcess::Options options;
    options.arguments = arguments;
    options.arguments.insert(options.arguments.begin(), Millrace());
    options.log_file = log;
    const auto process = ChildProcess::Start(options);
    EXPECT_OK(process);
    const std::optional<Ending> ending = (*process)->Wait(absl::Now() + absl::Seconds(120));
    EXPECT_TRUE(ending.has_value()) << ReadAll(log);
    return {ending.has_value() && ending->signal == 0 ? ending->status : -1, ReadAll(log)};
  }
  // The same, of the coordinator.
  Outcome Ask(std::vector<std::string> arguments, const std::string& role) {
    const std::vector<std::string> flags = {"--coordinator", coordinator_->address(), "--tls", Certs(role)};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Run(arguments);
  }
  std::string Certs(const std::string& role) const { return folder_ / ("certs/" + role); }

  void MakeCertificates() {
    const Outcome made = Run({"certs", "--out", folder_ / "certs"});
    ASSERT_EQ(made.status, 0) << made.text;
  }
  void StartCoordinator(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"coordinator",
                                          "--dir",
                                          folder_ / "coordinator",
                                          "--listen",
                                          "127.0.0.1:0",
                                          "--shards",
                                          "2",
                                          "--tls",
                                          Certs("coordinator"),
                                          "--data-root",
                                          MILLRACE_SOURCE_DIR "/examples"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    coordinator_ = Start("coordinator", std::move(arguments), /*serves=*/true);
  }
  std::unique_ptr<Member> Start(const std::string& name, std::vector<std::string> arguments, bool serves) {
    const std::string address_file = serves ? folder_ / (name + ".address") : "";
    if (serves) {
      arguments.push_back("--address-file");
      arguments.push_back(address_file);
    }
    arguments.insert(arguments.begin(), Millrace());
    return std::make_unique<Member>(name, std::move(arguments), folder_ / (name + ".log"), address_file);
  }
  std::unique_ptr<Member> StartShard(const std::string& name, const std::string& role = "shard") {
    return Start(name,
                 {"ps", "--coordinator", coordinator_->address(), "--listen", "127.0.0.1:0", "--name", name, "--tls",
                  Certs(role)},
                 /*serves=*/true);
  }
  std::unique_ptr<Member> StartWorker(const std::string& name, const std::string& role = "worker",
                                      const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {
        "worker", "--coordinator", coordinator_->address(), "--name", name, "--threads", "1", "--tls", Certs(role)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Start(name, std::move(arguments), /*serves=*/false);
  }
  std::vector<Json> Audited() {
    std::vector<Json> lines;
    for (const std::string& line : std::vector<std::string>(
             absl::StrSplit(ReadAll(folder_ / "coordinator/audit.jsonl"), '\n', absl::SkipEmpty()))) {
      lines.push_back(Json::parse(line, nullptr, /*allow_exceptions=*/false));
      EXPECT_FALSE(lines.back().is_discarded()) << line;
    }
    return lines;
  }

  const TemporaryFolder folder_;
  std::unique_ptr<Member> coordinator_;
  int runs_ = 0;
};

const char* TinyFile() { return MILLRACE_SOURCE_DIR "/examples/tiny.yaml"; }

TEST_F(SecurityTest, AJobUnderTlsEndsWithTheBitsOfOneWithoutIt) {
  MakeCertificates();
  StartCoordinator();
  const auto first = StartShard("first"), second = StartShard("second");
  // One through shared memory, one through the network.
  const auto near = StartWorker("near"), far = StartWorker("far", "worker", {"--shared-memory", "off"});
  const Outcome submitted = Ask({"submit", TinyFile(), "--watch"}, "operator");
  EXPECT_EQ(submitted.status, 0) << submitted.text << coordinator_->log() << near->log() << first->log();
  const Outcome digest = Ask({"digest", "tiny@last"}, "viewer");
  EXPECT_EQ(digest.status, 0) << digest.text;
  EXPECT_EQ(digest.text, TinyDigest() + "\n");
  EXPECT_THAT(near->log(), HasSubstr("joined"));
  for (Member* const member : {near.get(), far.get(), first.get(), second.get(), coordinator_.get()}) {
    EXPECT_EQ(member->Terminate().status, 0) << member->log();
  }
}

TEST_F(SecurityTest, MembersComeBackWhenTheCoordinatorDoes) {
  MakeCertificates();
  StartCoordinator();
  const auto first = StartShard("first"), second = StartShard("second");
  const auto worker = StartWorker("worker");
  EXPECT_EQ(Ask({"submit", TinyFile(), "--set", "phases.0.stop.max_steps=20", "--watch"}, "operator").status, 0);
  coordinator_->Kill();
  // One that never was connected, and has failed to be by now.
  const auto late = StartWorker("late");
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  const auto await = [&](const char* text) {
    while (!absl::StrContains(late->log(), text)) {
      ASSERT_FALSE(late->AwaitEnd(absl::Milliseconds(20)).has_value()) << late->log();
      ASSERT_LT(absl::Now(), deadline) << "waited for '" << text << "':\n" << late->log();
    }
  };
  await("cannot join");
  coordinator_->Restart();
  await("joined");
  const Outcome again = Ask({"submit", TinyFile(), "--watch"}, "operator");
  EXPECT_EQ(again.status, 0) << again.text << coordinator_->log() << worker->log() << first->log();
  EXPECT_EQ(Ask({"digest", "tiny-2@last"}, "viewer").text, TinyDigest() + "\n");
}

TEST_F(SecurityTest, ACertificateOpensWhatItsRoleMay) {
  MakeCertificates();
  StartCoordinator();
  EXPECT_EQ(Ask({"submit", TinyFile()}, "operator").status, 0);
  for (const char* role : {"viewer", "worker", "shard", "coordinator"}) {
    const Outcome submit = Ask({"submit", TinyFile()}, role);
    EXPECT_EQ(submit.status, 1) << role;
    EXPECT_THAT(submit.text,
                AllOf(HasSubstr(absl::StrCat("a ", role)), HasSubstr("Jobs/SubmitJob"), HasSubstr("operator may")));
  }
  const Outcome list = Ask({"jobs"}, "viewer");
  EXPECT_THAT(list.text, HasSubstr("tiny"));
  EXPECT_EQ(Ask({"cancel", "tiny"}, "viewer").status, 1);
  EXPECT_EQ(Ask({"cancel", "tiny"}, "operator").status, 0);
  // A worker is no shard, and a viewer neither: they do not get in.
  const auto false_shard = StartShard("false-shard", "worker");
  ASSERT_TRUE(false_shard->AwaitEnd(absl::Seconds(60)).has_value());
  EXPECT_THAT(false_shard->log(), HasSubstr("does not let it join as SHARD"));
  const auto false_worker = StartWorker("false-worker", "viewer");
  ASSERT_TRUE(false_worker->AwaitEnd(absl::Seconds(60)).has_value());
  EXPECT_THAT(false_worker->log(), HasSubstr("may not call Cluster/Join"));
  // Nobody comes in without TLS.
  const Outcome plain = Run({"jobs", "--coordinator", coordinator_->address(), "--tls="});
  EXPECT_EQ(plain.status, 1);
  EXPECT_THAT(plain.text, HasSubstr("no coordinator answers"));

  std::vector<std::string> done;
  for (const Json& line : Audited()) {
    done.push_back(absl::StrCat(line["who"].get<std::string>(), " ", line["method"].get<std::string>(), " ",
                                line.value("job", "-"), " ", line["code"].get<std::string>()));
  }
  EXPECT_THAT(done,
              ::testing::IsSupersetOf({"operator Jobs/SubmitJob tiny OK", "worker Jobs/SubmitJob - PERMISSION_DENIED",
                                       "viewer Jobs/CancelJob - PERMISSION_DENIED", "operator Jobs/CancelJob tiny OK",
                                       "viewer Cluster/Join - PERMISSION_DENIED"}));
}

TEST_F(SecurityTest, AShardDoesForEachWhatItsRoleMay) {
  MakeCertificates();
  StartCoordinator();
  const auto shard = StartShard("shard");
  // The code of a call that has nothing in it: what a handler says of that is not PERMISSION_DENIED.
  const auto calls = [&](const std::string& role) {
    const auto tls = Tls::Open(Certs(role));
    EXPECT_OK(tls);
    const auto stub =
        v1::ParameterServer::NewStub(NewChannel(Endpoint(shard->address(), (*tls)->ForChannels(Role::kShard))));
    std::vector<std::string> may;
    const auto note = [&may](const char* method, const grpc::Status& status) {
      EXPECT_NE(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
      if (status.error_code() != grpc::StatusCode::PERMISSION_DENIED) may.emplace_back(method);
    };
    {
      grpc::ClientContext context;
      v1::ConfigureReply reply;
      note("Configure", stub->Configure(&context, {}, &reply));
    }
    {
      grpc::ClientContext context;
      v1::CommitReply reply;
      note("Commit", stub->Commit(&context, {}, &reply));
    }
    {
      grpc::ClientContext context;
      v1::PullReply reply;
      const auto reader = stub->Pull(&context, v1::PullRequest());
      while (reader->Read(&reply)) {
      }
      note("Pull", reader->Finish());
    }
    {
      grpc::ClientContext context;
      v1::SnapshotReply reply;
      const auto reader = stub->Snapshot(&context, v1::SnapshotRequest());
      while (reader->Read(&reply)) {
      }
      note("Snapshot", reader->Finish());
    }
    {
      grpc::ClientContext context;
      v1::PushReply reply;
      const auto writer = stub->Push(&context, &reply);
      writer->WritesDone();
      note("Push", writer->Finish());
    }
    {
      grpc::ClientContext context;
      const auto stream = stub->Attach(&context, v1::AttachRequest());
      v1::AttachReply reply;
      while (stream->Read(&reply)) {
      }
      note("Attach", stream->Finish());
    }
    return may;
  };
  using ::testing::ElementsAre;
  using ::testing::IsEmpty;
  EXPECT_THAT(calls("worker"), ElementsAre("Pull", "Push", "Attach"));
  EXPECT_THAT(calls("coordinator"), ElementsAre("Configure", "Commit", "Snapshot"));
  for (const char* role : {"shard", "operator", "viewer"}) EXPECT_THAT(calls(role), IsEmpty()) << role;
}

TEST_F(SecurityTest, ATokenStandsInForACertificateAndAppearsNowhere) {
  MakeCertificates();
  std::ofstream(folder_ / "tokens") << "# nobody yet\n";
  StartCoordinator({"--tokens", folder_ / "tokens"});
  fs::create_directory(folder_ / "ca");
  fs::copy_file(folder_ / "certs/ca.crt", folder_ / "ca/ca.crt");
  const auto with = [&](std::vector<std::string> arguments, const std::string& token_file) {
    const std::vector<std::string> flags = {"--coordinator", coordinator_->address(), "--tls",
                                            folder_ / "ca",  "--token-file",          token_file};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Run(arguments);
  };
  // The token and its line, which are written to standard output and error, in one file here.
  std::vector<std::string> secrets;
  std::string lines;
  for (const char* who : {"alice operator", "bob viewer"}) {
    const std::vector<std::string> words = absl::StrSplit(who, ' ');
    const Outcome made = Run({"certs", "token", words[0], words[1]});
    std::vector<std::string> written = absl::StrSplit(made.text, '\n', absl::SkipEmpty());
    ASSERT_EQ(written.size(), 2u) << made.text;
    const bool first_is_line = absl::StartsWith(written[0], words[0]);
    lines += written[first_is_line ? 0 : 1] + "\n";
    secrets.push_back(written[first_is_line ? 1 : 0]);
    std::ofstream(folder_ / words[0]) << secrets.back() << "\n";
  }
  EXPECT_THAT(with({"jobs"}, folder_ / "bob").text, HasSubstr("nobody has this token"));
  std::ofstream(folder_ / "tokens.new") << lines;
  fs::rename(folder_ / "tokens.new", folder_ / "tokens");
  EXPECT_EQ(with({"submit", TinyFile()}, folder_ / "alice").status, 0);
  const Outcome list = with({"jobs"}, folder_ / "bob");
  EXPECT_EQ(list.status, 0) << list.text;
  const Outcome refused = with({"cancel", "tiny"}, folder_ / "bob");
  EXPECT_THAT(refused.text, HasSubstr("a viewer ('bob') may not call Jobs/CancelJob"));
  EXPECT_EQ(with({"cancel", "tiny"}, folder_ / "alice").status, 0);
  // Without a certificate, a token is what is missing.
  EXPECT_THAT(Run({"jobs", "--coordinator", coordinator_->address(), "--tls", folder_ / "ca"}).text,
              HasSubstr("tls.crt"));
  // Nor does it go out in the clear.
  EXPECT_THAT(Run({"jobs", "--coordinator", "192.0.2.1:7400", "--tls=", "--token-file", folder_ / "bob"}).text,
              HasSubstr("a token is sent under TLS only"));
  EXPECT_EQ(coordinator_->Terminate().status, 0);

  const std::string audit = ReadAll(folder_ / "coordinator/audit.jsonl");
  EXPECT_THAT(audit, AllOf(HasSubstr("\"alice\""), HasSubstr("\"bob\"")));
  for (const std::string& secret : secrets) {
    EXPECT_THAT(audit, Not(HasSubstr(secret)));
    EXPECT_THAT(coordinator_->log(), Not(HasSubstr(secret)));
    EXPECT_THAT(ReadAll(folder_ / "coordinator/coordinator.sqlite"), Not(HasSubstr(secret)));
  }
}

TEST_F(SecurityTest, JobsReadNothingOutsideTheRoots) {
  MakeCertificates();
  StartCoordinator();
  const Outcome refused =
      Ask({"submit", TinyFile(), "--set", "data.sources=[{path: /etc/passwd, format: txt}]"}, "operator");
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.text, AllOf(HasSubstr("data.sources.0.path: /etc/passwd"), HasSubstr("--data-root"),
                                  HasSubstr(MILLRACE_SOURCE_DIR "/examples")));
  EXPECT_THAT(Ask({"jobs"}, "viewer").text, Not(HasSubstr("tiny")));
}

TEST_F(SecurityTest, ServersRefusePlainTcpBeyondThisMachine) {
  const Outcome coordinator = Run({"coordinator", "--dir", folder_ / "c", "--listen", "0.0.0.0:0", "--tls="});
  EXPECT_EQ(coordinator.status, 1);
  EXPECT_THAT(coordinator.text, AllOf(HasSubstr("0.0.0.0:0"), HasSubstr("--tls DIR"), HasSubstr("--plaintext")));
  const Outcome without_root =
      Run({"coordinator", "--dir", folder_ / "c", "--listen", "0.0.0.0:0", "--tls=", "--plaintext"});
  EXPECT_EQ(without_root.status, 1);
  EXPECT_THAT(without_root.text, HasSubstr("--data-root"));
  const Outcome shard = Run({"ps", "--coordinator", "127.0.0.1:1", "--listen", "0.0.0.0:0", "--tls="});
  EXPECT_EQ(shard.status, 1);
  EXPECT_THAT(shard.text, AllOf(HasSubstr("--tls DIR"), HasSubstr("--plaintext")));
  EXPECT_FALSE(fs::exists(folder_ / "c"));
  const Outcome tokens = Run({"coordinator", "--dir", folder_ / "c", "--tokens", "x", "--tls="});
  EXPECT_EQ(tokens.status, 2);
  EXPECT_THAT(tokens.text, HasSubstr("--tls"));
  // With --plaintext they serve.
  const auto plain = Start(
      "plain",
      {"coordinator", "--dir", folder_ / "plain", "--listen", "0.0.0.0:0", "--plaintext", "--data-root", "/", "--tls="},
      /*serves=*/true);
  EXPECT_THAT(plain->address(), HasSubstr("0.0.0.0:"));
}

TEST_F(SecurityTest, CertsKeepsItsAuthorityAndItsKeysToItself) {
  MakeCertificates();
  const std::string ca = ReadAll(folder_ / "certs/ca.crt"), certificate = ReadAll(Certs("worker") + "/tls.crt");
  MakeCertificates();
  EXPECT_EQ(ReadAll(folder_ / "certs/ca.crt"), ca);
  EXPECT_NE(ReadAll(Certs("worker") + "/tls.crt"), certificate);
  for (const char* role : {"coordinator", "shard", "worker", "operator", "viewer"}) {
    EXPECT_EQ(fs::status(Certs(role) + "/tls.key").permissions(), fs::perms::owner_read | fs::perms::owner_write);
    EXPECT_EQ(ReadAll(Certs(role) + "/ca.crt"), ca);
    EXPECT_FALSE(fs::exists(Certs(role) + "/ca.key"));
  }
  EXPECT_EQ(fs::status(folder_ / "certs/ca.key").permissions(), fs::perms::owner_read | fs::perms::owner_write);
  const Outcome wrong = Run({"certs", "--out", folder_ / "certs", "--host", "a,b"});
  EXPECT_EQ(wrong.status, 2);
  EXPECT_THAT(wrong.text, HasSubstr("--host"));
  EXPECT_EQ(Run({"certs", "token", "alice", "worker"}).status, 1);
}

}  // namespace
}  // namespace millrace::testing
