#include "testing/cluster.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/credentials.h"
#include "common/job_file.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/http_exchange.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kLook = absl::Milliseconds(5);

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// Nothing that follows could mean anything.
[[noreturn]] void Abandon(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::abort();
}

}  // namespace

std::string Millrace() { return MILLRACE_BINARY; }

TemporaryFolder::TemporaryFolder() {
  char pattern[] = "/tmp/millrace-cluster-XXXXXX";
  if (mkdtemp(pattern) == nullptr) Abandon("cannot make a temporary folder");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  if (::testing::Test::HasFailure()) {
    std::fprintf(stderr, "files stay in %s\n", path_.c_str());
    return;
  }
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

Member::Member(std::string name, std::vector<std::string> arguments, std::string log_file, std::string address_file)
    : name_(std::move(name)),
      arguments_(std::move(arguments)),
      log_file_(std::move(log_file)),
      address_file_(std::move(address_file)) {
  Restart();
}

void Member::Restart() {
  if (!address_file_.empty()) {
    // The same address again, so that it is found where it was.
    if (fs::exists(address_file_)) {
      *(std::find(arguments_.begin(), arguments_.end(), "--listen") + 1) = address();
    }
    fs::remove(address_file_);
  }
  process_.reset();
  ChildProcess::Options options;
  options.arguments = arguments_;
  options.log_file = log_file_;
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(options);
  if (!process.ok()) Abandon(absl::StrCat(name_, ": ", process.status().message()));
  process_ = *std::move(process);
}

std::string Member::address() const {
  const absl::Time deadline = absl::Now() + kPatience;
  for (;;) {
    std::string address = ReadAll(address_file_);
    if (!address.empty()) return std::string(absl::StripAsciiWhitespace(address));
    if (!process_->running()) Abandon(absl::StrCat(name_, " ended before it served:\n", log()));
    if (absl::Now() > deadline) Abandon(absl::StrCat(name_, " does not serve:\n", log()));
    absl::SleepFor(kLook);
  }
}

std::string Member::log() const {
  const std::string text = ReadAll(log_file_);
  return text.size() > 4000 ? text.substr(text.size() - 4000) : text;
}

void Member::Kill() {
  process_->Signal(SIGKILL);
  process_->Wait(absl::InfiniteFuture());
}

void Member::Stop() { process_->Signal(SIGSTOP); }
void Member::Continue() { process_->Signal(SIGCONT); }

Ending Member::Terminate() {
  process_->Signal(SIGTERM);
  const std::optional<Ending> ending = process_->Wait(absl::Now() + absl::Seconds(30));
  if (ending.has_value()) return *ending;
  ADD_FAILURE() << name_ << " does not leave when asked:\n" << log();
  Kill();
  return {.signal = SIGKILL};
}

std::optional<Ending> Member::AwaitEnd(absl::Duration patience) { return process_->Wait(absl::Now() + patience); }

Cluster::Cluster(Options options) : options_(std::move(options)) {
  directory_ = options_.directory.empty() ? folder_ / "coordinator" : options_.directory;
  std::vector<std::string> arguments = {"coordinator",
                                        "--dir",
                                        directory_,
                                        "--shards",
                                        absl::StrCat(options_.shards),
                                        "--lease",
                                        absl::StrCat(options_.lease_seconds)};
  if (!options_.data_root.empty()) arguments.insert(arguments.end(), {"--data-root", options_.data_root});
  if (options_.page) arguments.insert(arguments.end(), {"--http", "127.0.0.1:0"});
  ServeMetrics("coordinator", &arguments);
  coordinator_ = NewMember("coordinator", std::move(arguments), /*serves=*/true);
  Connect();
  for (int i = 0; i < options_.shards; ++i) AddShard();
  for (int i = 0; i < options_.workers; ++i) {
    AddWorker(options_.max_isas.empty() ? "" : options_.max_isas[static_cast<size_t>(i) % options_.max_isas.size()]);
  }
}

Cluster::~Cluster() {
  if (::testing::Test::HasFailure()) std::fprintf(stderr, "%s\n", Logs().c_str());
  KillAll();
}

std::unique_ptr<Member> Cluster::NewMember(const std::string& name, std::vector<std::string> arguments, bool serves) {
  if (!options_.certificates.empty()) {
    const std::string role = arguments[0] == "ps" ? "shard" : arguments[0];
    arguments.insert(arguments.end(), {"--tls", CertificateOf(role)});
  }
  arguments.insert(arguments.begin(), Millrace());
  if (options_.health) {
    health_[name] = FreeAddress();
    arguments.insert(arguments.end(), {"--health", health_[name]});
  }
  std::string address_file;
  if (serves) {
    address_file = folder_ / (name + ".address");
    for (const std::string& argument :
         {std::string("--listen"), std::string("127.0.0.1:0"), std::string("--address-file"), address_file}) {
      arguments.push_back(argument);
    }
  }
  return std::make_unique<Member>(name, std::move(arguments), folder_ / (name + ".log"), address_file);
}

void Cluster::ServeMetrics(const std::string& role, std::vector<std::string>* arguments) {
  if (!options_.metrics) return;
  metrics_[role].push_back(FreeAddress());
  arguments->insert(arguments->end(), {"--metrics", metrics_[role].back()});
}

void Cluster::Connect() {
  Endpoint coordinator(coordinator_->address());
  if (!options_.certificates.empty()) {
    const absl::StatusOr<std::shared_ptr<const Tls>> tls = Tls::Open(CertificateOf("operator"));
    if (!tls.ok()) Abandon(std::string(tls.status().message()));
    coordinator.credentials = (*tls)->ForChannels(Role::kCoordinator);
  }
  client_ = std::make_unique<client::CoordinatorClient>(std::move(coordinator));
}

size_t Cluster::AddWorker(const std::string& max_isa) {
  const std::string name = absl::StrCat("worker-", workers_.size() + 1);
  std::vector<std::string> arguments = {"worker", "--coordinator", coordinator_->address(),       "--name",
                                        name,     "--threads",     absl::StrCat(options_.threads)};
  if (!max_isa.empty()) {
    arguments.push_back("--max-isa");
    arguments.push_back(max_isa);
  }
  if (!options_.share_memory) {
    arguments.push_back("--shared-memory");
    arguments.push_back("off");
  }
  ServeMetrics("worker", &arguments);
  workers_.push_back(NewMember(name, std::move(arguments), /*serves=*/false));
  return workers_.size() - 1;
}

size_t Cluster::AddShard() {
  const std::string name = absl::StrCat("shard-", shards_.size() + 1);
  std::vector<std::string> arguments = {"ps", "--coordinator", coordinator_->address(), "--name", name};
  ServeMetrics("shard", &arguments);
  shards_.push_back(NewMember(name, std::move(arguments), /*serves=*/true));
  return shards_.size() - 1;
}

double Cluster::ShardMetric(const std::string& name) const {
  double sum = 0;
  for (const std::string& address : metrics("shard")) {
    const std::string text = Exchange(address, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    const size_t at = text.find(absl::StrCat("\n", name, " "));
    double value = 0;
    if (at == std::string::npos ||
        !absl::SimpleAtod(text.substr(at + name.size() + 2, text.find('\n', at + 1) - at - name.size() - 2), &value)) {
      ADD_FAILURE() << name << " is not among the metrics of " << address << ":\n" << text;
    }
    sum += value;
  }
  return sum;
}

void Cluster::KillAll() {
  coordinator_->Kill();
  for (const auto& shard : shards_) shard->Kill();
  for (const auto& worker : workers_) worker->Kill();
}

void Cluster::StartAll() {
  coordinator_->Restart();
  Connect();
  for (const auto& shard : shards_) shard->Restart();
  for (const auto& worker : workers_) worker->Restart();
}

std::string Cluster::Submit(const std::string& job_file, const std::vector<std::string>& overrides) {
  v1::SubmitJobRequest request;
  const fs::path path =
      fs::path(job_file).is_absolute() ? fs::path(job_file) : fs::path(MILLRACE_SOURCE_DIR) / job_file;
  absl::StatusOr<v1::JobSpec> spec = ReadJobFile(path.string(), overrides);
  if (!spec.ok()) Abandon(std::string(spec.status().message()));
  *request.mutable_spec() = *std::move(spec);
  request.set_base_directory(path.parent_path().string());
  const absl::StatusOr<v1::Job> job = client_->SubmitJob(request);
  if (!job.ok()) Abandon(absl::StrCat("the job was not taken: ", job.status().message(), "\n", Logs()));
  return job->id();
}

v1::Job Cluster::Job(const std::string& job_id) {
  // A coordinator that was just killed breaks the call in flight; the next one reaches its successor.
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  for (;;) {
    absl::StatusOr<v1::Job> job = client_->GetJob(job_id);
    if (job.ok()) return *std::move(job);
    if (!absl::IsUnavailable(job.status()) || absl::Now() > deadline) {
      Abandon(absl::StrCat("no job: ", job.status().message(), "\n", Logs()));
    }
  }
}

v1::Job Cluster::Await(const std::string& job_id, const std::string& what,
                       const std::function<bool(const v1::Job&)>& holds, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  for (;;) {
    v1::Job job = Job(job_id);
    if (holds(job)) return job;
    const bool failed = job.state() == v1::Job::FAILED;
    if (failed || absl::Now() > deadline) {
      Abandon(absl::StrCat("waited ", failed ? "" : absl::FormatDuration(patience), " for ", what, "; the job is\n",
                           job.ShortDebugString(), "\n", Logs()));
    }
    absl::SleepFor(kLook);
  }
}

v1::Job Cluster::AwaitStep(const std::string& job_id, uint64_t step) {
  return Await(job_id, absl::StrCat("step ", step), [step](const v1::Job& job) { return job.step() >= step; });
}

v1::Job Cluster::AwaitSuccess(const std::string& job_id) {
  const v1::Job job = Await(job_id, "the job's end", [](const v1::Job& job) {
    return job.state() == v1::Job::SUCCEEDED || job.state() == v1::Job::FAILED || job.state() == v1::Job::CANCELLED;
  });
  EXPECT_EQ(job.state(), v1::Job::SUCCEEDED) << job.ShortDebugString();
  return job;
}

v1::Job Cluster::AwaitFailure(const std::string& job_id) {
  const v1::Job job = Await(job_id, "the job's failure", [](const v1::Job& job) {
    return job.state() == v1::Job::SUCCEEDED || job.state() == v1::Job::FAILED || job.state() == v1::Job::CANCELLED;
  });
  EXPECT_EQ(job.state(), v1::Job::FAILED) << job.ShortDebugString();
  return job;
}

std::string Cluster::Checkpoint(const std::string& job_id, const std::string& which) const {
  return absl::StrCat(directory_, "/jobs/", job_id, "/checkpoints/", which);
}

std::string Cluster::LastDigest(const std::string& job_id) const { return TensorDigest(Checkpoint(job_id, "last")); }

std::string Cluster::Logs() const {
  std::string text;
  std::vector<const Member*> members = {coordinator_.get()};
  for (const auto& shard : shards_) members.push_back(shard.get());
  for (const auto& worker : workers_) members.push_back(worker.get());
  for (const Member* member : members) absl::StrAppend(&text, "---- ", member->name(), "\n", member->log(), "\n");
  return text;
}

std::string TensorDigest(const std::string& checkpoint) {
  std::map<std::string, std::string> tensors;  // data by name, in the order of the names
  for (const char* const name : {"/model.safetensors", "/adapter_model.safetensors"}) {
    const std::string bytes = ReadAll(checkpoint + name);
    uint64_t header_bytes = 0;
    if (bytes.size() < sizeof(header_bytes)) continue;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    const std::string data = bytes.substr(8 + header_bytes);
    const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, header_bytes));
    for (const auto& [tensor_name, tensor] : header.items()) {
      if (tensor_name == "__metadata__") continue;
      EXPECT_EQ(tensor["dtype"], "F32") << tensor_name;
      const size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
      tensors[tensor_name] = data.substr(begin, end - begin);
    }
  }
  if (tensors.empty()) return absl::StrCat("no weights in ", checkpoint);
  EVP_MD_CTX* const sum = EVP_MD_CTX_new();
  EVP_DigestInit_ex(sum, EVP_sha256(), nullptr);
  for (const auto& [name, data] : tensors) {
    EVP_DigestUpdate(sum, name.c_str(), name.size() + 1);
    EVP_DigestUpdate(sum, data.data(), data.size());
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(sum, digest, &size);
  EVP_MD_CTX_free(sum);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) absl::StrAppend(&hex, absl::Hex(digest[i], absl::kZeroPad2));
  return hex;
}

Outcome RunMillrace(const std::vector<std::string>& arguments, absl::Duration patience) {
  const TemporaryFolder folder;
  ChildProcess::Options options;
  options.arguments = arguments;
  options.arguments.insert(options.arguments.begin(), Millrace());
  options.log_file = folder / "out";
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(options);
  if (!process.ok()) Abandon(std::string(process.status().message()));
  const std::optional<Ending> ending = (*process)->Wait(absl::Now() + patience);
  if (!ending.has_value()) {
    ADD_FAILURE() << "millrace " << absl::StrJoin(arguments, " ") << " goes on after " << patience;
    (*process)->Signal(SIGKILL);
  }
  return {ending.value_or(Ending{.signal = SIGKILL}), ReadAll(options.log_file)};
}

std::string FreeAddress() {
  // Below the ports that the system gives to connections, which might take one before it is served.
  constexpr uint16_t kFirst = 20'000, kPorts = 12'000;
  std::random_device random;
  for (;;) {
    const auto port = static_cast<uint16_t>(kFirst + random() % kPorts);
    const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    where.sin_port = htons(port);
    const bool free = bind(descriptor, reinterpret_cast<const sockaddr*>(&where), sizeof(where)) == 0;
    close(descriptor);
    if (free) return absl::StrCat("127.0.0.1:", port);
  }
}

std::vector<std::string> InstructionSets() {
  // From the processor's own word, so that a set that Millrace fails to detect is not skipped.
  std::ifstream file("/proc/cpuinfo");
  std::vector<std::string> flags;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) == 0) {
      flags = absl::StrSplit(line, absl::ByAnyChar(" :\t"), absl::SkipEmpty());
      break;
    }
  }
  const auto has = [&flags](const char* flag) { return std::find(flags.begin(), flags.end(), flag) != flags.end(); };
  std::vector<std::string> sets = {"scalar", "avx2"};
  if (has("avx512f") && has("avx512bw") && has("avx512dq") && has("avx512vl")) {
    sets.push_back("avx512");
    if (has("avx512_bf16")) sets.push_back("avx512_bf16");
  }
  return sets;
}

}  // namespace millrace::testing
