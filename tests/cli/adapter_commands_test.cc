// Trains adapters with the real command line, then uses, merges, stacks, exports and imports them.
//
//   adapter_commands_test MILLRACE      one ctest entry: the training is shared by all tests
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>

#include "cli/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;
using millrace::testing::CommandLine;
using millrace::testing::Outcome;
using millrace::testing::Quoted;
using millrace::testing::ReadAll;
using millrace::testing::WriteAll;

std::string* millrace_binary = new std::string;

class AdapterCommands : public ::testing::Test {
 protected:
  // Sentences about what is, or about who eats what, over and over in a fixed disorder.
  static std::string Sentences(bool meals) {
    uint64_t state = meals ? 1 : 2;
    const auto pick = [&state](const std::vector<std::string>& words) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return words[(state >> 33) % words.size()];
    };
    std::string text;
    for (int i = 0; i < 1500; ++i) {
      text += pick({"Today", "Tomorrow", "Monday", "Friday"});
      if (meals) {
        text += " the " + pick({"cat", "dog", "bird"}) + " eats " + pick({"fish", "bread", "rice"}) + ".\n";
      } else {
        text += " is a " + pick({"sunny", "rainy", "cold"}) + " " + pick({"day", "morning", "week"}) + ".\n";
      }
    }
    return text;
  }

  static void SetUpTestSuite() {
    line_ = new CommandLine(*millrace_binary);
    ASSERT_FALSE(line_->work().empty());
    WriteAll(Work("days.txt"), Sentences(false));
    WriteAll(Work("meals.txt"), Sentences(true));
    std::string job = R"(
name: adapted
data: {sources: [{path: days.txt}, {path: meals.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 300}
model: {family: llama, layers: 2, hidden_size: 32, heads: 2, context: 40}
phases:
  - name: pretrain
    data: {sources: [{path: days.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}}
    global_batch: 8
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 60}
    stop: {max_steps: 60}
)";
    for (const std::string phase :
         {"lora, adapter: {type: lora, rank: 4, targets: [all-linear]}", "ia3, adapter: {type: ia3}",
          "prefix, adapter: {type: prefix_tuning, virtual_tokens: 4}",
          "deep, adapter: {type: p_tuning_v2, virtual_tokens: 4}"}) {
      job += "  - {name: " + phase + R"(, from: pretrain@best, global_batch: 8, stop: {max_steps: 40},
     data: {sources: [{path: meals.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}},
     optimizer: {lr: 2.0e-2, weight_decay: 0}, evaluate: {every_steps: 40, max_tokens: 2000}}
)";
    }
    WriteAll(Work("job.yaml"), job);
    const Outcome train =
        Run("train " + Quoted(Work("job.yaml")) + " --workers 1 --shards 1 --dir " + Quoted(Work("cluster")));
    ASSERT_EQ(train.status, 0) << train.out << train.err;
    const Outcome base =
        Run("export --model " + Checkpoint("lora-40") + " --without-adapter --out " + Quoted(Work("base")));
    ASSERT_EQ(base.status, 0) << base.err;
    for (const std::string name : {"lora", "ia3", "prefix", "deep"}) {
      const Outcome adapter = Run("export --model " + Checkpoint(name + "-40") +
                                  " --format peft --base ../base --out " + Quoted(Work(name)));
      ASSERT_EQ(adapter.status, 0) << adapter.err;
    }
  }
  static void TearDownTestSuite() { delete line_; }

  static Outcome Run(const std::string& arguments) { return line_->Run(arguments); }
  static std::string Work(const std::string& name) { return (line_->work() / name).string(); }
  static std::string Checkpoint(const std::string& name) {
    return Quoted(Work("cluster/jobs/adapted/checkpoints/" + name));
  }
  static std::string Base() { return "--model " + Quoted(Work("base")); }
  static std::string With(const std::string& adapter) { return " --adapter " + Quoted(Work(adapter)); }

  // Of a sentence of the adapted text.
  static double Score(const std::string& which) {
    return line_->RunJson("score " + which + " --text 'Monday the dog eats rice.'")["log_probability"];
  }

  static CommandLine* line_;
};

CommandLine* AdapterCommands::line_ = nullptr;

TEST_F(AdapterCommands, ModelsLearnByAdaptersAlone) {
  const double base = Score(Base());
  for (const std::string name : {"lora", "ia3", "prefix", "deep"}) {
    const double adapted = Score("--model " + Checkpoint(name + "-40"));
    // Deep prompts that begin at random learn little in so few steps.
    if (name != "deep") {
      EXPECT_GT(adapted, base + (name == "lora" ? 15 : 1)) << name;
    }
    EXPECT_GT(std::abs(adapted - base), 0.1) << name;
    // The model itself is what it was.
    const std::string before = Run("digest " + Checkpoint("pretrain-60")).out;
    EXPECT_EQ(Run("digest " + Quoted(Work("base"))).out, before);
    EXPECT_NE(Run("digest " + Checkpoint(name + "-40")).out, before);
  }
}

TEST_F(AdapterCommands, AnExportedAdapterDoesWhatTheCheckpointDoes) {
  for (const std::string name : {"lora", "ia3", "prefix", "deep"}) {
    const double expected = Score("--model " + Checkpoint(name + "-40"));
    EXPECT_EQ(Score(Base() + With(name)), expected) << name;
    // Its config says where its base model is.
    EXPECT_EQ(Score("--model " + Quoted(Work(name))), expected) << name;
    const std::string sampled = " --prompt 'Monday the' --max-tokens 20 --seed 3";
    EXPECT_EQ(Run("generate " + Base() + With(name) + sampled).out,
              Run("generate --model " + Checkpoint(name + "-40") + sampled).out);
  }
}

TEST_F(AdapterCommands, MergedWeightsDoTheSame) {
  for (const std::string name : {"lora", "ia3"}) {
    const std::string merged = Work(name + "-merged");
    const Outcome exported = Run("export " + Base() + With(name) + " --out " + Quoted(merged));
    ASSERT_EQ(exported.status, 0) << exported.err;
    EXPECT_FALSE(fs::exists(merged + "/adapter_config.json"));
    EXPECT_NEAR(Score("--model " + Quoted(merged)), Score(Base() + With(name)), 2e-4);
  }
  const Outcome prefix = Run("export " + Base() + With("prefix") + " --out " + Quoted(Work("never")));
  EXPECT_EQ(prefix.status, 1);
  EXPECT_THAT(prefix.err, HasSubstr("p_tuning_v2 cannot become part of the model's weights; lora and ia3 can"));
  EXPECT_FALSE(fs::exists(Work("never")));
}

TEST_F(AdapterCommands, AdaptersAreUsedOneBehindTheOther) {
  const double both = Score(Base() + With("lora") + With("ia3"));
  EXPECT_GT(std::abs(both - Score(Base() + With("lora"))), 1e-3);
  EXPECT_GT(std::abs(both - Score(Base() + With("ia3"))), 1e-3);
  const Outcome exported = Run("export " + Base() + With("lora") + With("ia3") + " --out " + Quoted(Work("both")));
  ASSERT_EQ(exported.status, 0) << exported.err;
  EXPECT_NEAR(Score("--model " + Quoted(Work("both"))), both, 2e-4);
  const Outcome two = Run("score " + Base() + With("deep") + With("prefix") + " --text x");
  EXPECT_EQ(two.status, 1);
  EXPECT_THAT(two.err, HasSubstr("cannot be used together"));
}

TEST_F(AdapterCommands, AnImportedAdapterIsTrainedOn) {
  ASSERT_EQ(Run("import --from " + Quoted(Work("base")) + With("lora") + " --out " + Quoted(Work("imported"))).status,
            0);
  EXPECT_EQ(Run("digest " + Quoted(Work("imported"))).out, Run("digest " + Checkpoint("lora-40")).out);
  const std::string job = R"(
name: again
data: {sources: [{path: meals.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}}
tokenizer: {path: base/tokenizer.json}
model: {family: llama, layers: 2, hidden_size: 32, heads: 2, context: 40}
phases:
  - {name: more, from: imported, ADAPTER global_batch: 8, stop: {max_steps: 20},
     optimizer: {lr: 1.0e-2, weight_decay: 0}, evaluate: {every_steps: 20}}
)";
  const auto train = [&](const std::string& name, const std::string& adapter) {
    std::string text = job;
    text.replace(text.find("ADAPTER"), 7, adapter);
    WriteAll(Work(name + ".yaml"), text);
    return Run("train " + Quoted(Work(name + ".yaml")) + " --workers 1 --shards 1 --dir " + Quoted(Work(name)));
  };
  const Outcome more = train("more", "adapter: {type: lora, rank: 4, targets: [all-linear]},");
  ASSERT_EQ(more.status, 0) << more.out << more.err;
  EXPECT_THAT(more.out, HasSubstr("adapter/ of phase more starts from "));
  EXPECT_GT(Score("--model " + Quoted(Work("more/jobs/again/checkpoints/best"))), Score(Base() + With("lora")));

  const Outcome none = train("none", "");
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("which holds an adapter: say which one as the phase's adapter"));
  const Outcome other = train("other", "adapter: {type: lora, rank: 2, targets: [all-linear]},");
  EXPECT_EQ(other.status, 1);
  EXPECT_THAT(other.err, HasSubstr("lora_A.weight is F32 [4, 32]; F32 [2, 32] is wanted"));
}

TEST_F(AdapterCommands, VirtualTokensOfPeftAreTrainedOnWithoutTheirNetwork) {
  ASSERT_EQ(
      Run("import --from " + Quoted(Work("base")) + With("prefix") + " --out " + Quoted(Work("with-tokens"))).status,
      0);
  const auto train = [&](const std::string& type) {
    WriteAll(Work(type + ".yaml"), R"(
name: again
data: {sources: [{path: meals.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}}
tokenizer: {path: base/tokenizer.json}
model: {family: llama, layers: 2, hidden_size: 32, heads: 2, context: 40}
phases:
  - {name: more, from: with-tokens, global_batch: 8, stop: {max_steps: 5}, evaluate: {every_steps: 5},
     optimizer: {lr: 1.0e-2, weight_decay: 0}, adapter: {type: )" +
                                       type + ", virtual_tokens: 4}}\n");
    return Run("train " + Quoted(Work(type + ".yaml")) + " --workers 1 --shards 1 --dir " + Quoted(Work(type)));
  };
  const Outcome with_network = train("prefix_tuning");
  EXPECT_EQ(with_network.status, 1);
  EXPECT_THAT(with_network.err, HasSubstr("only the virtual tokens themselves"));
  EXPECT_THAT(with_network.err, HasSubstr("p_tuning_v2"));
  const Outcome alone = train("p_tuning_v2");
  EXPECT_EQ(alone.status, 0) << alone.err;
}

TEST_F(AdapterCommands, GgufHasTheMergedModel) {
  EXPECT_EQ(Run("export " + Base() + With("lora") + " --format gguf --out " + Quoted(Work("lora.gguf"))).status, 0);
  EXPECT_NE(ReadAll(Work("lora.gguf")), "");
}

TEST_F(AdapterCommands, MistakesAreExplained) {
  const std::string score = " --text 'Monday the dog eats rice.'";
  const auto damaged = [](const std::string& name, const std::string& from) {
    fs::copy(Work(from), Work(name));
    return Work(name) + "/adapter_config.json";
  };
  const auto expect = [&](const std::string& adapter, const std::string& message) {
    const Outcome outcome = Run("score " + Base() + With(adapter) + score);
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr(message));
  };
  expect("nowhere", "nowhere/adapter_config.json");

  Json config = Json::parse(ReadAll(damaged("unknown", "lora")));
  config["peft_type"] = "OFT";
  WriteAll(Work("unknown/adapter_config.json"), config.dump());
  expect("unknown", "peft_type \"OFT\" is not supported; LORA, ADALORA, IA3");

  config = Json::parse(ReadAll(damaged("saved", "lora")));
  config["modules_to_save"] = {"lm_head"};
  WriteAll(Work("saved/adapter_config.json"), config.dump());
  expect("saved", "modules_to_save is [\"lm_head\"], which is not supported");

  config = Json::parse(ReadAll(damaged("rank", "lora")));
  config["r"] = 5;
  WriteAll(Work("rank/adapter_config.json"), config.dump());
  expect("rank", "has shape [4, 32] where this model needs [5, 32]");

  config = Json::parse(ReadAll(damaged("targets", "lora")));
  config["target_modules"] = {"c_attn"};
  WriteAll(Work("targets/adapter_config.json"), config.dump());
  expect("targets", "no linear layer is called 'c_attn'; there are self_attn.q_proj, ");

  config = Json::parse(ReadAll(damaged("fewer", "lora")));
  config["target_modules"] = {"q_proj"};
  WriteAll(Work("fewer/adapter_config.json"), config.dump());
  expect("fewer", "is not one of such an adapter of this model");

  damaged("short", "lora");
  fs::resize_file(Work("short/adapter_model.safetensors"),
                  fs::file_size(Work("short/adapter_model.safetensors")) - 100);
  expect("short", "adapter_model.safetensors");

  config = Json::parse(ReadAll(damaged("homeless", "lora")));
  config["base_model_name_or_path"] = nullptr;
  WriteAll(Work("homeless/adapter_config.json"), config.dump());
  const Outcome homeless = Run("score --model " + Quoted(Work("homeless")) + score);
  EXPECT_EQ(homeless.status, 1);
  EXPECT_THAT(homeless.err, HasSubstr("base_model_name_or_path is missing"));

  const Outcome usage = Run("export " + Base() + " --format peft --dtype f16 --out " + Quoted(Work("never")));
  EXPECT_EQ(usage.status, 2);
  EXPECT_THAT(usage.err, HasSubstr("--dtype is not for --format peft"));
  const Outcome none = Run("export " + Base() + " --format peft --out " + Quoted(Work("never")));
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("a folder holds one adapter; the model uses 0"));
  EXPECT_FALSE(fs::exists(Work("never")));
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: adapter_commands_test MILLRACE\n");
    return 2;
  }
  *millrace_binary = fs::absolute(argv[1]).string();
  return RUN_ALL_TESTS();
}
