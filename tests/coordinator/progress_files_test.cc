#include "coordinator/progress_files.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// ---- a reader of TensorBoard's files, by their description alone ----

// CRC-32C bit by bit, masked as TFRecord has it.
uint32_t MaskedSum(const std::string& bytes) {
  uint32_t sum = 0xffffffff;
  for (const char byte : bytes) {
    sum ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ (sum & 1 ? 0x82f63b78u : 0);
  }
  sum = ~sum;
  return ((sum >> 15) | (sum << 17)) + 0xa282ead8u;
}

uint64_t Number(const std::string& bytes, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = size; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes.at(at + i));
  return value;
}

// A field of a message in Protocol Buffers' encoding: its number, and a number or bytes.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;
  std::string bytes;
};
std::vector<Field> Fields(const std::string& message) {
  std::vector<Field> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(message.at(at++));
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t tag = varint();
    Field& field = fields.emplace_back();
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = Number(message, at, 8);
        at += 8;
        break;
      case 2: {
        const uint64_t size = varint();
        field.bytes = message.substr(at, size);
        EXPECT_EQ(field.bytes.size(), size);
        at += size;
        break;
      }
      case 5:
        field.value = Number(message, at, 4);
        at += 4;
        break;
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
        return fields;
    }
  }
  return fields;
}

// Texts of the last ReadEvents, by tag and step.
std::map<std::string, std::map<uint64_t, std::string>> texts_read;

// What a value of the plugin for texts holds: a tensor of one string.
std::string TextOf(const std::string& tensor, const std::string& metadata) {
  EXPECT_EQ(Fields(Fields(metadata).at(0).bytes).at(0).bytes, "text");
  std::string text;
  for (const Field& field : Fields(tensor)) {
    if (field.number == 1) {
      EXPECT_EQ(field.value, 7u);
    } else if (field.number == 2) {
      EXPECT_EQ(Fields(Fields(field.bytes).at(0).bytes).at(0).value, 1u);
    } else {
      EXPECT_EQ(field.number, 8u);
      text = field.bytes;
    }
  }
  return text;
}

// Values by step of each tag, as TensorBoard shows them: a start drops what is known of its step and later ones.
using Curves = std::map<std::string, std::map<uint64_t, float>>;
Curves ReadEvents(const std::string& file) {
  Curves curves;
  texts_read.clear();
  bool first = true;
  for (size_t at = 0; at < file.size();) {
    const uint64_t length = Number(file, at, 8);
    EXPECT_EQ(Number(file, at + 8, 4), MaskedSum(file.substr(at, 8)));
    const std::string data = file.substr(at + 12, length);
    EXPECT_EQ(Number(file, at + 12 + length, 4), MaskedSum(data));
    at += 12 + length + 4;
    uint64_t step = 0;
    for (const Field& field : Fields(data)) {
      switch (field.number) {
        case 1: {
          double seconds;
          std::memcpy(&seconds, &field.value, sizeof(seconds));
          EXPECT_GT(seconds, 1.0e9);
          break;
        }
        case 2:
          step = field.value;
          break;
        case 3:
          EXPECT_TRUE(first) << "a version that does not come first";
          EXPECT_EQ(field.bytes, "brain.Event:2");
          break;
        case 5:
          for (const Field& value : Fields(field.bytes)) {
            std::string tag, tensor, metadata;
            float number = 0;
            for (const Field& part : Fields(value.bytes)) {
              const auto bits = static_cast<uint32_t>(part.value);
              if (part.number == 1) tag = part.bytes;
              if (part.number == 2) std::memcpy(&number, &bits, sizeof(number));
              if (part.number == 8) tensor = part.bytes;
              if (part.number == 9) metadata = part.bytes;
            }
            if (tensor.empty()) {
              curves[tag][step] = number;
            } else {
              texts_read[tag][step] = TextOf(tensor, metadata);
            }
          }
          break;
        case 7:
          EXPECT_EQ(Fields(field.bytes).at(0).value, 1u);
          for (auto& [tag, points] : curves) points.erase(points.lower_bound(step), points.end());
          for (auto& [tag, texts] : texts_read) texts.erase(texts.lower_bound(step), texts.end());
          break;
        default:
          ADD_FAILURE() << "field " << field.number;
      }
    }
    first = false;
  }
  return curves;
}

class ProgressFilesTest : public ::testing::Test {
 protected:
  ProgressFilesTest()
      : folder_(fs::path(::testing::TempDir()) /
                absl::StrCat("progress-", ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(folder_);
  }
  ~ProgressFilesTest() override { fs::remove_all(folder_); }

  std::unique_ptr<ProgressFiles> Open() {
    auto files = ProgressFiles::Open(folder_);
    EXPECT_OK(files);
    return *std::move(files);
  }
  static v1::JobEvent Step(uint64_t step, double loss, const std::string& phase = "pretrain") {
    v1::JobEvent event;
    event.set_unix_ms(1'700'000'000'000 + static_cast<int64_t>(step));
    v1::StepEvent& about = *event.mutable_step();
    about.set_phase(phase);
    about.set_step(step);
    about.set_max_steps(100);
    about.set_loss(loss);
    about.set_learning_rate(0.001);
    about.set_gradient_norm(0.1 + 0.2);  // 0.30000000000000004
    about.set_tokens(step * 64);
    about.set_tokens_per_second(1234.5);
    about.set_workers(2);
    return event;
  }
  static v1::JobEvent Evaluation(uint64_t step, double loss) {
    v1::JobEvent event;
    event.set_unix_ms(1'700'000'000'000 + static_cast<int64_t>(step));
    v1::EvaluationEvent& about = *event.mutable_evaluation();
    about.set_phase("pretrain");
    about.set_step(step);
    about.set_loss(loss);
    about.set_bytes(100);
    about.set_tokens(50);
    about.set_perplexity(8);
    about.set_bits_per_byte(1.5);
    about.set_best(true);
    return event;
  }
  std::string Read(const std::string& name) const {
    std::ifstream stream(folder_ / name, std::ios::binary);
    EXPECT_TRUE(stream.good()) << name;
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  }
  fs::path EventFile(const std::string& phase = "pretrain") const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_ / "tensorboard" / phase)) found.push_back(entry.path());
    EXPECT_EQ(found.size(), 1u);
    return found.at(0);
  }
  Curves ReadPhase(const std::string& phase = "pretrain") const {
    return ReadEvents(Read(fs::relative(EventFile(phase), folder_).string()));
  }
  static std::vector<std::string> Split(const std::string& text) {
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }
  std::vector<json> JsonLines() const {
    std::vector<json> lines;
    for (const std::string& line : Split(Read("metrics.jsonl"))) {
      lines.push_back(json::parse(line));
    }
    return lines;
  }
  // Rows as maps from column to cell.
  std::vector<std::map<std::string, std::string>> Rows() const {
    const std::vector<std::string> lines = Split(Read("metrics.csv"));
    const std::vector<std::string> columns = absl::StrSplit(lines.at(0), ',');
    std::vector<std::map<std::string, std::string>> rows;
    for (size_t i = 1; i < lines.size(); ++i) {
      const std::vector<std::string> cells = absl::StrSplit(lines[i], ',');
      EXPECT_EQ(cells.size(), columns.size()) << lines[i];
      auto& row = rows.emplace_back();
      for (size_t c = 0; c < std::min(cells.size(), columns.size()); ++c) row[columns[c]] = cells[c];
    }
    return rows;
  }

  const fs::path folder_;
};

TEST_F(ProgressFilesTest, AllThreeTellTheSame) {
  auto files = Open();
  ASSERT_OK(files->Restart("pretrain", 0, 1'700'000'000'000));
  v1::JobEvent step = Step(3, 2.5);
  (*step.mutable_step()->mutable_statistics())["kl"] = 0.25;
  (*step.mutable_step()->mutable_statistics())["reward"] = -1;
  ASSERT_OK(files->Add(step));
  ASSERT_OK(files->Add(Evaluation(4, 2.25)));
  v1::JobEvent other;
  other.mutable_log()->set_text("not a number");
  ASSERT_OK(files->Add(other));

  const std::vector<json> lines = JsonLines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], json({{"kind", "start"}, {"unix_ms", 1'700'000'000'000}, {"phase", "pretrain"}, {"step", 0}}));
  EXPECT_EQ(lines[1]["kind"], "step");
  EXPECT_EQ(lines[1]["gradient_norm"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(lines[1]["statistics"], json({{"kl", 0.25}, {"reward", -1.0}}));
  EXPECT_EQ(lines[2]["kind"], "evaluation");
  EXPECT_EQ(lines[2]["best"], true);
  EXPECT_EQ(lines[2]["perplexity"], 8.0);

  const auto rows = Rows();
  ASSERT_EQ(rows.size(), 3u);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const auto& [column, cell] : rows[i]) {
      if (column == "statistics") continue;
      if (cell.empty()) {
        EXPECT_FALSE(lines[i].contains(column)) << column;
      } else if (lines[i].at(column).is_number()) {
        double number = 0;
        EXPECT_TRUE(absl::SimpleAtod(cell, &number)) << cell;
        EXPECT_EQ(number, lines[i].at(column).get<double>()) << column;
      } else if (lines[i].at(column).is_boolean()) {
        EXPECT_EQ(cell, lines[i].at(column).dump());
      } else {
        EXPECT_EQ(cell, lines[i].at(column).get<std::string>());
      }
    }
  }
  EXPECT_EQ(rows[1].at("statistics"), "kl=0.25;reward=-1.0");

  Curves curves = ReadPhase();
  EXPECT_THAT(curves["train/loss"], ElementsAre(Pair(3, 2.5f)));
  EXPECT_THAT(curves["train/learning_rate"], ElementsAre(Pair(3, 0.001f)));
  EXPECT_THAT(curves["train/gradient_norm"], ElementsAre(Pair(3, 0.3f)));
  EXPECT_THAT(curves["train/tokens_per_second"], ElementsAre(Pair(3, 1234.5f)));
  EXPECT_THAT(curves["train/kl"], ElementsAre(Pair(3, 0.25f)));
  EXPECT_THAT(curves["train/reward"], ElementsAre(Pair(3, -1.0f)));
  EXPECT_THAT(curves["held_out/loss"], ElementsAre(Pair(4, 2.25f)));
  EXPECT_THAT(curves["held_out/bits_per_byte"], ElementsAre(Pair(4, 1.5f)));
}

TEST_F(ProgressFilesTest, AStartTakesBackWhatHappensAgain) {
  auto files = Open();
  ASSERT_OK(files->Restart("pretrain", 0, 1'700'000'000'000));
  for (uint64_t step = 1; step <= 10; ++step) ASSERT_OK(files->Add(Step(step, 10.0 + static_cast<double>(step))));
  files.reset();
  files = Open();
  ASSERT_OK(files->Restart("pretrain", 6, 1'700'000'001'000));
  for (uint64_t step = 7; step <= 8; ++step) ASSERT_OK(files->Add(Step(step, 1)));
  EXPECT_THAT(ReadPhase()["train/loss"], ElementsAre(Pair(1, 11.f), Pair(2, 12.f), Pair(3, 13.f), Pair(4, 14.f),
                                                     Pair(5, 15.f), Pair(6, 16.f), Pair(7, 1.f), Pair(8, 1.f)));
  // As docs/formats.md says that lines and rows are to be read.
  std::map<uint64_t, double> curve;
  for (const json& line : JsonLines()) {
    const uint64_t step = line["step"];
    if (line["kind"] == "start") curve.erase(curve.upper_bound(step), curve.end());
    if (line["kind"] == "step") curve[step] = line["loss"];
  }
  EXPECT_EQ(curve.size(), 8u);
  EXPECT_EQ(curve[6], 16);
  EXPECT_EQ(curve[7], 1);
  EXPECT_EQ(Rows().at(11).at("kind"), "start");
  EXPECT_EQ(Rows().at(11).at("step"), "6");
}

TEST_F(ProgressFilesTest, EachPhaseIsARunOfItsOwn) {
  auto files = Open();
  ASSERT_OK(files->Add(Step(1, 5, "pretrain")));
  ASSERT_OK(files->Add(Step(1, 4, "sft")));
  ASSERT_OK(files->Restart("sft", 0, 1'700'000'001'000));
  EXPECT_THAT(ReadPhase("pretrain")["train/loss"], ElementsAre(Pair(1, 5.f)));
  EXPECT_THAT(ReadPhase("sft")["train/loss"], IsEmpty());
}

TEST_F(ProgressFilesTest, SamplesStandOnceWhateverHappensAgain) {
  const auto samples = [](uint64_t step, const std::string& text, const std::string& phase = "pretrain") {
    v1::JobEvent event;
    event.set_unix_ms(1'700'000'000'000 + static_cast<int64_t>(step));
    event.mutable_samples()->set_phase(phase);
    event.mutable_samples()->set_step(step);
    for (const char* prompt : {"In the\n", ""}) {
      v1::Sample& sample = *event.mutable_samples()->add_samples();
      sample.set_prompt(prompt);
      sample.set_text(text);
      sample.set_tokens(3);
      sample.set_ended(step == 20);
    }
    return event;
  };
  auto files = Open();
  EXPECT_FALSE(fs::exists(folder_ / "samples.jsonl"));
  ASSERT_OK(files->Restart("first", 0, 1'700'000'000'000));
  EXPECT_FALSE(fs::exists(folder_ / "samples.jsonl"));
  ASSERT_OK(files->Add(samples(30, "early", "first")));
  ASSERT_OK(files->Restart("pretrain", 0, 1'700'000'000'000));
  ASSERT_OK(files->Add(samples(10, "ten")));
  ASSERT_OK(files->Add(samples(20, "a \"b\"\nc")));
  const std::string undisturbed = Read("samples.jsonl");
  const std::vector<std::string> lines = Split(undisturbed);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(json::parse(lines[4]), json({{"phase", "pretrain"},
                                         {"step", 20},
                                         {"prompt", "In the\n"},
                                         {"text", "a \"b\"\nc"},
                                         {"tokens", 3},
                                         {"ended", true}}));
  ReadPhase();
  EXPECT_EQ(texts_read["samples/0"][20], "    In the\n    \n\n→\n\n    a \"b\"\n    c");
  EXPECT_THAT(texts_read["samples/1"], ElementsAre(Pair(10, "    \n\n→\n\n    ten"), Pair(20, ::testing::_)));

  // Behind step 10 again, from a new process; then from the phase's beginning.
  for (const uint64_t after : {10, 0}) {
    files = Open();
    ASSERT_OK(files->Restart("pretrain", after, 1'700'000'001'000));
    EXPECT_EQ(Split(Read("samples.jsonl")).size(), after == 0 ? 2u : 4u);
    if (after == 0) {
      ASSERT_OK(files->Add(samples(10, "ten")));
    }
    ASSERT_OK(files->Add(samples(20, "a \"b\"\nc")));
    EXPECT_EQ(Read("samples.jsonl"), undisturbed);
  }
  ReadPhase();
  EXPECT_THAT(texts_read["samples/1"], ElementsAre(Pair(10, ::testing::_), Pair(20, ::testing::_)));
}

// What a machine that lost its power may leave: any beginning of a file, or zeros where its last bytes were.
TEST_F(ProgressFilesTest, ATornEndIsCutOffWhereverItIsTorn) {
  {
    auto files = Open();
    for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(files->Add(Step(step, 2)));
  }
  const std::string lines = Read("metrics.jsonl"), table = Read("metrics.csv");
  const fs::path event_file = EventFile();
  const std::string events = Read(fs::relative(event_file, folder_).string());
  for (const bool zeros : {false, true}) {
    for (size_t lost = 1; lost < 120; lost += 7) {
      const auto tear = [&](const fs::path& path, std::string whole) {
        whole.resize(whole.size() - lost);
        if (zeros) whole.resize(whole.size() + lost, '\0');
        std::ofstream(path, std::ios::binary | std::ios::trunc) << whole;
      };
      tear(folder_ / "metrics.jsonl", lines);
      tear(folder_ / "metrics.csv", table);
      tear(event_file, events);
      auto files = Open();
      ASSERT_OK(files->Add(Step(4, 1)));
      EXPECT_EQ(JsonLines().back()["step"], 4);
      EXPECT_EQ(Rows().back().at("step"), "4");
      const auto curve = ReadPhase()["train/loss"];
      ASSERT_GE(curve.size(), 2u);
      EXPECT_EQ(curve.begin()->first, 1u);
      EXPECT_EQ(curve.rbegin()->first, 4u);
    }
  }
}

TEST_F(ProgressFilesTest, AKilledProcessLeavesAllThatItTold) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto files = ProgressFiles::Open(folder_);
    for (uint64_t step = 1; step <= 20; ++step) (*files)->Add(Step(step, 2)).IgnoreError();
    if (write(pipe_ends[1], "x", 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte;
  ASSERT_EQ(read(pipe_ends[0], &byte, 1), 1);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  EXPECT_EQ(JsonLines().size(), 20u);
  EXPECT_EQ(Rows().size(), 20u);
  EXPECT_EQ(ReadPhase()["train/loss"].size(), 20u);
}

TEST_F(ProgressFilesTest, AFolderThatCannotBeWrittenIsNamed) {
  fs::create_directories(folder_ / "metrics.csv");
  const absl::Status status = ProgressFiles::Open(folder_).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr((folder_ / "metrics.csv").string()));
}

}  // namespace
}  // namespace millrace::coordinator
