// Trains one small job with the real command line, then uses the model with every subcommand that takes one.
//
//   commands_test MILLRACE      one ctest entry: the training is shared by all tests
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using millrace::testing::CommandLine;
using millrace::testing::Outcome;
using millrace::testing::Quoted;
using millrace::testing::ReadAll;
using millrace::testing::WriteAll;
using Json = nlohmann::json;

std::string* millrace_binary = new std::string;

class Commands : public ::testing::Test {
 protected:
  // The job's text: every combination of four word lists, except the withheld ones, eight times
  // over in a scrambled order.
  static std::string Sentences() {
    std::vector<std::string> sentences;
    for (int pass = 0; pass < 8; ++pass) {
      for (const std::string day : {"Today", "Tomorrow", "Monday", "Friday", "Sunday", "Easter"}) {
        for (const std::string verb : {"is", "was", "will be"}) {
          for (const std::string kind : {"sunny", "rainy", "cold", "windy", "quiet", "long"}) {
            for (const std::string thing : {"day", "morning", "week"}) {
              const std::string sentence = day + " " + verb + " a " + kind + " " + thing + ".";
              if (!Withheld().contains(sentence)) sentences.push_back(sentence);
            }
          }
        }
      }
    }
    uint64_t state = 12345;
    for (size_t i = sentences.size(); i > 1; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(sentences[i - 1], sentences[(state >> 33) % i]);
    }
    std::string text;
    for (const std::string& sentence : sentences) text += sentence + "\n";
    return text;
  }

  static const std::set<std::string>& Withheld() {
    static const auto* withheld = new std::set<std::string>{
        "Today is a sunny day.",      "Tomorrow will be a rainy day.", "Monday was a cold morning.",
        "Friday is a quiet morning.", "Sunday was a long week.",       "Easter will be a windy week.",
    };
    return *withheld;
  }

  static void SetUpTestSuite() {
    line_ = new CommandLine(*millrace_binary);
    work_ = &line_->work();
    ASSERT_FALSE(work_->empty());
    WriteAll(*work_ / "days.txt", Sentences());
    WriteAll(*work_ / "days.yaml", R"(
name: days
seed: 3
data:
  sources: [{path: days.txt}]
  clean: {dedup: none}
  held_out: 0.05
  split: {order: file}
tokenizer: {type: bpe, vocab_size: 300}
model: {family: llama, layers: 2, hidden_size: 32, heads: 2, context: 32}
phases:
  - name: pretrain
    global_batch: 8
    optimizer: {type: adamw, lr: 1.0e-2, schedule: linear, warmup_steps: 10}
    evaluate: {every_steps: 75}
    stop: {max_steps: 150}
)");
    const Outcome train = Run("train " + Quoted((*work_ / "days.yaml").string()) + " --workers 1 --shards 1 --dir " +
                              Quoted((*work_ / "cluster").string()));
    ASSERT_EQ(train.status, 0) << train.out << train.err;
    model_ = new std::string((*work_ / "cluster/jobs/days/checkpoints/best").string());
    ASSERT_TRUE(fs::exists(*model_)) << train.out;
  }

  static void TearDownTestSuite() { delete line_; }

  static Outcome Run(const std::string& arguments) { return line_->Run(arguments); }
  static Json RunJson(const std::string& arguments) { return line_->RunJson(arguments); }

  static std::string Model() { return " --model " + Quoted(*model_); }
  static fs::path Work(const std::string& name) { return *work_ / name; }

  static double LogProbability(const std::string& text) {
    return RunJson("score" + Model() + " --text " + Quoted(text))["log_probability"];
  }

  static CommandLine* line_;
  static const fs::path* work_;
  static std::string* model_;
};

CommandLine* Commands::line_ = nullptr;
const fs::path* Commands::work_ = nullptr;
std::string* Commands::model_ = nullptr;

TEST_F(Commands, ScorePrefersSentencesToTheirWordsInAnotherOrder) {
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"Today is a sunny day.", "Sunny today is a day."},
      {"Tomorrow will be a rainy day.", "Rainy tomorrow will be a day."},
      {"Monday was a cold morning.", "A cold Monday was morning."},
      {"Friday is a quiet morning.", "Is Friday quiet a morning."},
      {"Sunday was a long week.", "Sunday a was week long."},
      {"Easter will be a windy week.", "Easter be will a week windy."},
  };
  const std::string text = Sentences();
  for (const auto& [sentence, scrambled] : pairs) {
    ASSERT_EQ(text.find(sentence), std::string::npos) << "the model must not have seen it";
    EXPECT_GT(LogProbability(sentence), LogProbability(scrambled)) << sentence;
  }
}

TEST_F(Commands, ScoreAddsUp) {
  const std::string text = "Today is a cold day.";
  const Json score = RunJson("score" + Model() + " --text " + Quoted(text));
  double sum = 0;
  std::string joined;
  size_t predictions = 0, bytes = 0;
  for (const Json& token : score["tokens"]) {
    joined += token["text"].get<std::string>();
    if (token["log_probability"].is_null()) continue;
    EXPECT_LE(token["log_probability"].get<double>(), 0);
    sum += token["log_probability"].get<double>();
    bytes += token["text"].get<std::string>().size();
    ++predictions;
  }
  EXPECT_EQ(joined, text);
  EXPECT_NEAR(score["log_probability"].get<double>(), sum, 1e-4);
  EXPECT_EQ(score["predictions"], predictions);
  EXPECT_NEAR(score["perplexity"].get<double>(), std::exp(-sum / predictions), 1e-3);
  EXPECT_NEAR(score["bits_per_byte"].get<double>(), -sum / std::log(2.0) / bytes, 1e-4);
  EXPECT_THAT(Run("score" + Model() + " --text " + Quoted(text)).out, HasSubstr("perplexity"));
}

TEST_F(Commands, CharactersOfSeveralTokensStayWhole) {
  const std::string text = "Gr\u00fc\u00dfe, \u4e16\u754c \U0001F642";
  const Json score = RunJson("score" + Model() + " --text " + Quoted(text));
  std::string joined;
  for (const Json& token : score["tokens"]) joined += token["text"].get<std::string>();
  EXPECT_EQ(joined, text);
  // A byte that belongs to no character still makes valid JSON.
  const Json broken = RunJson("score" + Model() + " --text " + Quoted("a\xff" "b\xc3"));
  joined.clear();
  for (const Json& token : broken["tokens"]) joined += token["text"].get<std::string>();
  EXPECT_EQ(joined, "a\uFFFDb\uFFFD");
}

TEST_F(Commands, ReadersMayHaveEnough) {
  for (const std::string command : {"generate --max-tokens 400", "score --json --text 'Today is a cold day.'"}) {
    const std::string closed = "bash -o pipefail -c " + Quoted(Quoted(*millrace_binary) + " " + command + Model() + " | true");
    EXPECT_EQ(std::system(closed.c_str()), 0) << command;
    const std::string full = Quoted(*millrace_binary) + " " + command + Model() + " >/dev/full 2>/dev/null";
    EXPECT_EQ(WEXITSTATUS(std::system(full.c_str())), 1) << command;
  }
}

TEST_F(Commands, EvalGivesTheLossThatTrainingReported) {
  ASSERT_EQ(Run("data prepare " + Quoted(Work("days.yaml").string()) + " --text --out " +
                Quoted(Work("data").string())).status, 0);
  const Json manifest = Json::parse(ReadAll(fs::path(*model_) / "manifest.json"));
  double reported = -1;
  for (const Json& evaluation : manifest["evaluations"]) {
    if (evaluation["step"] == manifest["step"]) reported = evaluation["loss"];
  }
  const std::string held_out = Quoted(Work("data/held_out.txt").string());
  const Json blocks = RunJson("eval" + Model() + " --data " + held_out);
  EXPECT_NEAR(blocks["loss"].get<double>(), reported, 1e-6);
  EXPECT_NEAR(blocks["perplexity"].get<double>(), std::exp(blocks["loss"].get<double>()), 1e-6);
  EXPECT_NEAR(blocks["bits_per_byte"].get<double>(),
              blocks["loss"].get<double>() * blocks["predictions"].get<double>() / std::log(2.0) /
                  blocks["bytes"].get<double>(), 1e-9);
  // The same tokens are predicted once each when windows overlap, with more context, hence better.
  const Json sliding = RunJson("eval" + Model() + " --stride 4 --data " + held_out);
  EXPECT_EQ(sliding["predictions"], blocks["predictions"]);
  EXPECT_EQ(sliding["bytes"], blocks["bytes"]);
  EXPECT_LT(sliding["loss"].get<double>(), blocks["loss"].get<double>());
}

TEST_F(Commands, EvalDoesTasksOfSeveralModelsSideBySide) {
  std::string pairs;
  for (const std::string& sentence : Withheld()) {
    std::string backwards = sentence.substr(0, sentence.size() - 1);
    std::reverse(backwards.begin(), backwards.end());
    pairs += Json{{"good", sentence}, {"bad", backwards + "."}}.dump() + "\n";
  }
  WriteAll(Work("pairs.jsonl"), pairs);
  std::string text;
  for (const std::string& sentence : Withheld()) text += sentence + "\n";
  WriteAll(Work("document.jsonl"), Json{{"text", text}}.dump() + "\n");
  WriteAll(Work("tasks.yaml"), R"(tasks:
  - name: pairs
    type: choice
    data: [pairs.jsonl]
    choices: ["{{ good }}", "{{ bad }}"]
    answer_index: "0"
  - {name: document, type: perplexity, data: [document.jsonl], target: "{{ text }}", metrics: [bits_per_byte]}
  - {name: next, type: exact_match, data: [pairs.jsonl], prompt: "{{ good[:-4] }}", answer: "{{ good[-4:] }}",
     max_tokens: 8, stop: ["\n"], few_shot: 1, separator: "\n"}
)");
  const std::string call = "eval" + Model() + Model() + " --tasks " + Quoted(Work("tasks.yaml").string());
  const Json report = RunJson(call + " --out " + Quoted(Work("report").string()));
  ASSERT_EQ(report["tasks"].size(), 3u);
  const Json& acc = report["tasks"][0]["metrics"]["acc"];
  EXPECT_EQ(acc["results"][0]["value"], 1.0) << report;
  EXPECT_LT(acc["results"][0]["interval"][0], 1.0);
  EXPECT_EQ(acc["differences"][0]["value"], 0.0);
  EXPECT_EQ(acc["differences"][0]["p_value"], 1.0);
  EXPECT_EQ(report["tasks"][2]["examples"], Withheld().size());
  // A document's bits a byte are those that --data gives.
  const Json alone = RunJson("eval" + Model() + " --data " + Quoted(Work("document.jsonl").string()));
  EXPECT_NEAR(report["tasks"][1]["metrics"]["bits_per_byte"]["results"][1]["value"].get<double>(),
              alone["bits_per_byte"].get<double>(), 1e-12);
  // What was asked and what came can be looked at.
  const std::string records = ReadAll(Work("report/2/pairs.jsonl"));
  EXPECT_EQ(std::count(records.begin(), records.end(), '\n'), static_cast<ptrdiff_t>(Withheld().size()));
  const Json first = Json::parse(records.substr(0, records.find('\n')));
  const std::string sentence = *Withheld().begin();
  EXPECT_EQ(first["choices"][0]["text"], sentence);
  EXPECT_NEAR(first["choices"][0]["log_probability"].get<double>(), LogProbability(sentence), 1e-6);
  EXPECT_EQ(ReadAll(Work("report/1/next.jsonl")), ReadAll(Work("report/2/next.jsonl")));
  EXPECT_EQ(Json::parse(ReadAll(Work("report/report.json"))), report);
  // Threads change nothing.
  EXPECT_EQ(RunJson(call + " --threads 1").dump(), RunJson(call + " --threads 3").dump());
  const Outcome missing = Run(call + " --model /nowhere");
  EXPECT_EQ(missing.status, 1);
  EXPECT_EQ(missing.err, "millrace: there is no folder /nowhere\n") << "no model has been asked";
  const Outcome table = Run(call);
  EXPECT_THAT(table.out, HasSubstr("pairs     acc                   6  1.0000 ± 0.0000 [0.6097, 1.0000]"));
  EXPECT_THAT(table.out, HasSubstr("[2] - [1]"));
}

TEST_F(Commands, EvalDoesTheTasksOfTheExamples) {
  const std::string folder = MILLRACE_SOURCE_DIR "/examples/tasks/";
  const Json report = RunJson("eval" + Model() + " --tasks " + Quoted(folder + "tasks.yaml"));
  EXPECT_EQ(report["tasks"].size(), 4u);
  const Outcome refused = Run("eval" + Model() + " --tasks " + Quoted(folder + "programs.yaml"));
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, HasSubstr("task words runs a program on what the model has generated; --allow-programs"));
  const Json programs = RunJson("eval" + Model() + " --allow-programs --tasks " + Quoted(folder + "programs.yaml"));
  EXPECT_TRUE(programs["tasks"][0]["metrics"].contains("pass@5")) << programs;
}

TEST_F(Commands, GenerateIsAFunctionOfTheSeed) {
  const std::string call = "generate" + Model() + " --prompt 'Today is' --max-tokens 24";
  const Json one = RunJson(call + " --seed 5");
  EXPECT_EQ(one, RunJson(call + " --seed 5"));
  EXPECT_NE(one["text"], RunJson(call + " --seed 6 --temperature 2")["text"]);
  EXPECT_EQ(one["tokens"].size(), 24u);
  // Greedy decoding needs no seed; top-k of 1 is greedy.
  const std::string greedy = RunJson(call + " --temperature 0 --seed 1")["text"];
  EXPECT_EQ(greedy, RunJson(call + " --temperature 0 --seed 2")["text"]);
  EXPECT_EQ(greedy, RunJson(call + " --top-k 1 --seed 3")["text"]);
  // The terminal gets the same text, after the prompt.
  EXPECT_THAT(Run(call + " --temperature 0").out, HasSubstr("Today is" + greedy));
}

TEST_F(Commands, GenerateSaysWhatTheTextSays) {
  const std::string text = RunJson("generate" + Model() + " --prompt 'Monday was a' --max-tokens 8 --temperature 0")["text"];
  const std::vector<std::string> kinds = {"sunny", "rainy", "cold", "windy", "quiet", "long"};
  EXPECT_TRUE(std::any_of(kinds.begin(), kinds.end(), [&text](const std::string& kind) {
    return text.find(kind) != std::string::npos;
  })) << text;
}

TEST_F(Commands, NearestListsOthersInOrder) {
  const Json nearest = RunJson("nearest" + Model() + " --token ' cold' --count 5");
  ASSERT_EQ(nearest["neighbours"].size(), 5u);
  double last = 1.0 + 1e-6;
  for (const Json& neighbour : nearest["neighbours"]) {
    EXPECT_NE(neighbour["id"], nearest["id"]);
    EXPECT_LE(neighbour["similarity"].get<double>(), last);
    last = neighbour["similarity"];
  }
}

TEST_F(Commands, EmbedGivesOneVectorATextOfTheModelsWidth) {
  const Json one = RunJson("embed" + Model() + " --text 'Today is a sunny day.'");
  ASSERT_EQ(one["embedding"].size(), 32u);
  const Json other = RunJson("embed" + Model() + " --text 'Monday was'");
  EXPECT_NE(one["embedding"], other["embedding"]);
}

TEST_F(Commands, ExportAndImportKeepTheModel) {
  const std::string exported = Work("hf").string(), imported = Work("imported").string();
  ASSERT_EQ(Run("export" + Model() + " --format hf --out " + Quoted(exported)).status, 0);
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_TRUE(fs::exists(fs::path(exported) / file)) << file;
  }
  EXPECT_EQ(Json::parse(ReadAll(fs::path(exported) / "config.json"))["model_type"], "llama");
  ASSERT_EQ(Run("import --from " + Quoted(exported) + " --out " + Quoted(imported)).status, 0);
  const std::string digest = RunJson("digest " + Quoted(*model_))["digest"];
  EXPECT_EQ(digest, RunJson("digest " + Quoted(exported))["digest"]);
  EXPECT_EQ(digest, RunJson("digest " + Quoted(imported))["digest"]);
  EXPECT_EQ(Json::parse(ReadAll(fs::path(*model_) / "manifest.json"))["digest"], digest);
  const std::string text = " --text 'Today is a cold day.'";
  EXPECT_EQ(RunJson("score" + Model() + text)["tokens"],
            RunJson("score --model " + Quoted(imported) + text)["tokens"]);
  // A folder that is there is not written over.
  const Outcome again = Run("export" + Model() + " --format hf --out " + Quoted(exported));
  EXPECT_EQ(again.status, 1);
  EXPECT_THAT(again.err, HasSubstr("exists"));
}

TEST_F(Commands, ExportSplitsAndRoundsAsAsked) {
  const fs::path folder = Work("split");
  ASSERT_EQ(Run("export" + Model() + " --dtype f16 --max-shard-size 20KB --out " + Quoted(folder.string())).status, 0);
  EXPECT_TRUE(fs::exists(folder / "model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(folder / "model.safetensors"));
  EXPECT_EQ(Json::parse(ReadAll(folder / "config.json"))["dtype"], "float16");
  EXPECT_EQ(Json::parse(ReadAll(folder / "generation_config.json"))["eos_token_id"],
            Json::parse(ReadAll(folder / "config.json"))["eos_token_id"]);
  const std::string text = " --text 'Today is a cold day.'";
  const Json exact = RunJson("score" + Model() + text);
  const Json rounded = RunJson("score --model " + Quoted(folder.string()) + text);
  EXPECT_NEAR(exact["log_probability"].get<double>(), rounded["log_probability"].get<double>(), 0.1);
  const fs::path imported = Work("joined");
  ASSERT_EQ(Run("import --from " + Quoted(folder.string()) + " --out " + Quoted(imported.string())).status, 0);
  EXPECT_TRUE(fs::exists(imported / "model.safetensors"));
  EXPECT_EQ(RunJson("score --model " + Quoted(imported.string()) + text)["tokens"], rounded["tokens"]);
}

TEST_F(Commands, ExportMakesAGgufFile) {
  const fs::path file = Work("gguf/model.gguf");
  ASSERT_EQ(Run("export" + Model() + " --format gguf --dtype q8_0 --out " + Quoted(file.string())).status, 0);
  const std::string bytes = ReadAll(file);
  EXPECT_EQ(bytes.substr(0, 8), std::string("GGUF\x03\0\0\0", 8));
  EXPECT_EQ(bytes.size() % 32, 0u);
  // Nothing else is left, and what is there is not written over.
  EXPECT_EQ(std::distance(fs::directory_iterator(file.parent_path()), fs::directory_iterator()), 1);
  const Outcome again = Run("export" + Model() + " --format gguf --out " + Quoted(file.string()));
  EXPECT_EQ(again.status, 1);
  EXPECT_THAT(again.err, HasSubstr("exists"));
  EXPECT_EQ(ReadAll(file), bytes);
}

TEST_F(Commands, ModelsAreFoundByJob) {
  const std::string dir = " --dir " + Quoted(Work("cluster").string());
  const Json by_folder = RunJson("score" + Model() + " --text Today");
  EXPECT_EQ(by_folder["tokens"], RunJson("score --model days@best --text Today" + dir)["tokens"]);
  EXPECT_EQ(by_folder["tokens"], RunJson("score --model days --text Today" + dir)["tokens"]);
  EXPECT_EQ(RunJson("digest days@150" + dir)["digest"], RunJson("digest days@last" + dir)["digest"]);
  const Outcome absent = Run("score --model days@7777 --text Today" + dir);
  EXPECT_EQ(absent.status, 1);
  EXPECT_THAT(absent.err, HasSubstr("150"));
}

TEST_F(Commands, ModelsOfARunningClusterAreFetched) {
  const std::string dir = " --dir " + Quoted(Work("cluster").string());
  const std::string digest = RunJson("digest days@last" + dir)["digest"];
  const fs::path temporary = Work("temporary");
  fs::create_directory(temporary);
  ASSERT_EQ(setenv("TMPDIR", temporary.c_str(), 1), 0);
  ASSERT_EQ(Run("up --detach" + dir).status, 0);
  EXPECT_EQ(digest, RunJson("digest days@last" + dir)["digest"]);
  EXPECT_EQ(RunJson("score" + Model() + " --text Today")["tokens"],
            RunJson("score --model days --text Today" + dir)["tokens"]);
  const Outcome absent = Run("score --model days@7777 --text Today" + dir);
  EXPECT_EQ(absent.status, 1);
  EXPECT_THAT(absent.err, HasSubstr("pretrain-150"));
  EXPECT_EQ(Run("down" + dir).status, 0);
  unsetenv("TMPDIR");
  EXPECT_TRUE(fs::is_empty(temporary)) << "fetched models are removed";
}

// Rewrites a folder's model.safetensors as two files of bf16 and their index, as large models come.
void SplitIntoBf16(const fs::path& folder) {
  const std::string whole = ReadAll(folder / "model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  const Json header = Json::parse(whole.substr(8, length));
  Json headers[2] = {Json::object(), Json::object()}, map;
  std::string data[2];
  int which = 0;
  for (const auto& [name, about] : header.items()) {
    if (name == "__metadata__") continue;
    which = 1 - which;
    const size_t begin = data[which].size();
    const uint64_t from = about["data_offsets"][0], to = about["data_offsets"][1];
    for (uint64_t at = from; at < to; at += 4) data[which] += whole.substr(8 + length + at + 2, 2);
    headers[which][name] = {
        {"dtype", "BF16"}, {"shape", about["shape"]}, {"data_offsets", {begin, data[which].size()}}};
    map[name] = "model-" + std::to_string(which) + ".safetensors";
  }
  for (const int i : {0, 1}) {
    const std::string text = headers[i].dump();
    length = text.size();
    WriteAll(folder / ("model-" + std::to_string(i) + ".safetensors"),
             std::string(reinterpret_cast<const char*>(&length), 8) + text + data[i]);
  }
  WriteAll(folder / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  fs::remove(folder / "model.safetensors");
}

TEST_F(Commands, ImportTakesSeveralFilesOfBf16) {
  const fs::path folder = Work("bf16");
  ASSERT_EQ(Run("export" + Model() + " --out " + Quoted(folder.string())).status, 0);
  SplitIntoBf16(folder);
  EXPECT_THAT(Run("digest " + Quoted(folder.string())).err, HasSubstr("millrace import"));
  const std::string imported = Work("from-bf16").string();
  const Outcome outcome = Run("import --from " + Quoted(folder.string()) + " --out " + Quoted(imported));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(RunJson("digest " + Quoted(imported))["parameters"], RunJson("digest " + Quoted(*model_))["parameters"]);
  const std::string text = " --text 'Today is a cold day.'";
  const Json exact = RunJson("score" + Model() + text), rounded = RunJson("score --model " + Quoted(imported) + text);
  EXPECT_NEAR(exact["log_probability"].get<double>(), rounded["log_probability"].get<double>(), 0.5);
  EXPECT_NE(exact["log_probability"], rounded["log_probability"]);
  fs::remove(folder / "model-1.safetensors");
  const Outcome half = Run("import --from " + Quoted(folder.string()) + " --out " + Quoted(Work("half").string()));
  EXPECT_EQ(half.status, 1);
  EXPECT_THAT(half.err, HasSubstr("model-1.safetensors"));
  EXPECT_FALSE(fs::exists(Work("half")));
}

TEST_F(Commands, NothingHalfMadeStays) {
  const fs::path folder = Work("full");
  fs::create_directory(folder);
  // No file may be larger than 16 blocks of 1024 bytes: the weights do not fit.
  const std::string command = "bash -c " + Quoted("ulimit -f 16; trap '' XFSZ; " + Quoted(*millrace_binary) + " export" +
                                                  Model() + " --out " + Quoted((folder / "hf").string())) +
                              " >/dev/null 2>&1";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
  EXPECT_TRUE(fs::is_empty(folder));
}

TEST_F(Commands, DataStatsTellWhatTheTextBecame) {
  const std::string data = Quoted(Work("stats").string());
  ASSERT_EQ(Run("data prepare " + Quoted(Work("days.yaml").string()) + " --text --out " + data).status, 0);
  const Json stats = RunJson("data stats " + data);
  EXPECT_EQ(stats["train_bytes"], fs::file_size(Work("stats/train.txt")));
  EXPECT_EQ(stats["held_out_bytes"], fs::file_size(Work("stats/held_out.txt")));
  EXPECT_EQ(ReadAll(Work("stats/train.txt")) + ReadAll(Work("stats/held_out.txt")), Sentences());
  EXPECT_GT(stats["train_tokens"].get<int>(), 1000);
  EXPECT_LE(stats["vocab_size"].get<int>(), 300);
  fs::resize_file(Work("stats/train.tokens"), fs::file_size(Work("stats/train.tokens")) / 2);
  const Outcome truncated = Run("data stats " + data);
  EXPECT_EQ(truncated.status, 1);
  EXPECT_THAT(truncated.err, HasSubstr("train.tokens"));
}

TEST_F(Commands, FlippedBitIsNoticed) {
  const fs::path damaged = Work("damaged");
  fs::copy(fs::canonical(*model_), damaged, fs::copy_options::recursive);
  std::string weights = ReadAll(damaged / "model.safetensors");
  weights[weights.size() - 5] ^= 0x10;
  WriteAll(damaged / "model.safetensors", weights);
  for (const std::string& command : {"digest " + Quoted(damaged.string()),
                                     "generate --prompt x --max-tokens 2 --model " + Quoted(damaged.string())}) {
    const Outcome outcome = Run(command);
    EXPECT_EQ(outcome.status, 1) << command;
    EXPECT_THAT(outcome.err, HasSubstr("model.safetensors")) << command;
    EXPECT_THAT(outcome.err, HasSubstr("SHA-256")) << command;
  }
}

TEST_F(Commands, MistakesAreExplained) {
  WriteAll(Work("typo.yaml"), "tasks:\n  - name: a\n    typ: choice\n");
  const std::vector<std::tuple<std::string, int, std::string>> cases = {
      {"generate --prompt x", 2, "--model is missing"},
      {"generate" + Model() + " --prompt x --temprature 1", 2, "did you mean --temperature?"},
      {"generate" + Model() + " --prompt x --top-p 1.5", 2, "--top-p"},
      {"score --model /nowhere/at/all --text x", 1, "/nowhere/at/all"},
      {"score --model /tmp --text x", 1, "config.json"},
      {"score" + Model() + " --text ''", 1, "empty"},
      {"eval" + Model() + " --data /nowhere.txt", 1, "/nowhere.txt"},
      {"eval --data x", 2, "--model is missing"},
      {"eval" + Model(), 2, "--data and --tasks: one of them"},
      {"eval" + Model() + " --data x --tasks y", 2, "--data and --tasks: one of them"},
      {"eval" + Model() + Model() + " --data x", 2, "several models are compared with --tasks only"},
      {"eval" + Model() + " --data x --out y", 2, "--out goes with --tasks"},
      {"eval" + Model() + " --tasks x --stride 2", 2, "--stride goes with --data"},
      {"eval" + Model() + " --tasks /nowhere.yaml", 1, "/nowhere.yaml"},
      {"eval" + Model() + " --tasks " + Quoted(Work("typo.yaml").string()), 1,
       "typo.yaml:3: unknown field 'typ' in tasks.0; did you mean 'type'?"},
      {"nearest" + Model() + " --token 'Nebuchadnezzar'", 1, "token"},
      {"nearest" + Model() + " --token 'Sunday is'", 1, "\"Sunday\" \" is\""},
      {"export" + Model() + " --format onnx --out /tmp/x", 2, "hf, gguf or peft"},
      {"export" + Model() + " --dtype q8_0 --out /tmp/x", 2, "f32, f16 or bf16 with --format hf"},
      {"export" + Model() + " --format gguf --dtype f8 --out /tmp/x", 2, "bf16 or q8_0, not 'f8'"},
      {"export" + Model() + " --format gguf --max-shard-size 1GB --out /tmp/x", 2, "--format hf"},
      {"export" + Model() + " --max-shard-size 2TB --out /tmp/x", 2, "as in 2GB, not '2TB'"},
      {"export" + Model() + " --max-shard-size 0 --out /tmp/x", 2, "not '0'"},
      {"export" + Model() + " --max-shard-size 18446744073GB --out /tmp/x", 2, "as in 2GB"},
      {"data stats /nowhere", 1, "/nowhere"},
      {"data", 2, "data prepare"},
      {"data prepar", 2, "did you mean data prepare?"},
      {"data prepare /nowhere.yaml --out /tmp/x", 1, "/nowhere.yaml"},
      {"digest", 2, "CHECKPOINT is missing"},
      {"digest days@", 1, "JOB@STEP"},
      {"import --from /tmp --out /nowhere/x", 1, "config.json"},
      {"genrate", 2, "did you mean generate?"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.status, status) << arguments << "\n" << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
  }
}

TEST_F(Commands, EveryHelpShowsAnExample) {
  for (const std::string command :
       {"generate", "score", "eval", "embed", "nearest", "export", "import", "digest", "data prepare", "data stats"}) {
    const Outcome outcome = Run(command + " --help");
    EXPECT_EQ(outcome.status, 0) << command;
    EXPECT_THAT(outcome.out, HasSubstr("Example:\n  millrace " + command)) << command;
  }
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: commands_test MILLRACE\n");
    return 2;
  }
  *millrace_binary = fs::absolute(argv[1]).string();
  return RUN_ALL_TESTS();
}
