#include "common/job_file.h"

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/yaml_message.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/field_options.pb.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// The shortest job of docs/job-file.md, a field a line, so that mistakes have lines.
const char kJob[] = R"(name: mine
seed: 7
data:
  sources:
    - path: my-text/*.txt
tokenizer:
  type: bpe
model:
  layers: 4
  hidden_size: 128
  heads: 4
  context: 64
phases:
  - name: pretrain
    global_batch: 16
    stop:
      max_steps: 1000
)";

// kJob with one piece replaced.
std::string Changed(const std::string& from, const std::string& to) {
  EXPECT_TRUE(absl::StrContains(kJob, from)) << from;
  return absl::StrReplaceAll(kJob, {{from, to}});
}

std::string Refusal(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<v1::JobSpec> job = ParseJob(yaml, "job.yaml", overrides);
  EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument) << job.status();
  return std::string(job.status().message());
}

v1::JobSpec Parsed(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<v1::JobSpec> job = ParseJob(yaml, "job.yaml", overrides);
  EXPECT_OK(job);
  return job.ok() ? *job : v1::JobSpec();
}

TEST(JobFile, GivenFieldsAreTaken) {
  const v1::JobSpec job = Parsed(
      Changed("    global_batch: 16\n",
              "    global_batch: 16\n    optimizer: {type: muon, lr: 1.0e-3, betas: [0.5, 0.75], nesterov: false}\n"));
  EXPECT_EQ(job.name(), "mine");
  EXPECT_EQ(job.seed(), 7u);
  EXPECT_EQ(job.data().sources(0).path(), "my-text/*.txt");
  EXPECT_EQ(job.model().hidden_size(), 128u);
  const v1::PhaseSpec& phase = job.phases(0);
  EXPECT_EQ(phase.optimizer().type(), "muon");
  EXPECT_EQ(phase.optimizer().lr(), 1e-3);
  EXPECT_THAT(phase.optimizer().betas(), ElementsAre(0.5, 0.75));
  EXPECT_FALSE(phase.optimizer().nesterov());
  EXPECT_EQ(phase.stop().max_steps(), 1000u);
}

TEST(JobFile, AbsentFieldsGetTheirDefaults) {
  const v1::JobSpec job = Parsed(Changed("seed: 7\n", ""));
  EXPECT_EQ(job.seed(), 1u);
  EXPECT_EQ(job.data().held_out(), 0.02);
  EXPECT_TRUE(job.data().clean().strip_markup());
  EXPECT_EQ(job.data().sources(0).format(), "auto");
  EXPECT_EQ(job.model().family(), "gpt2");
  EXPECT_EQ(job.model().norm_epsilon(), 1e-5);
  EXPECT_TRUE(job.model().has_dropout());
  EXPECT_FALSE(job.tokenizer().has_path());
  const v1::PhaseSpec& phase = job.phases(0);
  EXPECT_EQ(phase.optimizer().type(), "adamw");
  EXPECT_THAT(phase.optimizer().betas(), ElementsAre(0.9, 0.95));
  EXPECT_EQ(phase.checkpoint().keep(), 3u);
  // Those that follow from other fields.
  EXPECT_EQ(job.model().kv_heads(), 4u);
  EXPECT_EQ(job.model().intermediate_size(), 512u);
  EXPECT_EQ(phase.microbatch(), 4u);
  EXPECT_EQ(phase.optimizer().decay_steps(), 1000u);
  EXPECT_EQ(phase.checkpoint().every_steps(), phase.evaluate().every_steps());
  // 8/3 of 128 is 341.3, rounded up to a multiple of 32.
  EXPECT_EQ(Parsed(kJob, {"model.family=llama"}).model().intermediate_size(), 352u);
  EXPECT_EQ(Parsed(kJob, {"model.family=qwen2"}).model().intermediate_size(), 352u);
  EXPECT_EQ(Parsed(kJob, {"phases.0.global_batch=9"}).phases(0).microbatch(), 3u);
  EXPECT_EQ(phase.optimizer().weight_bits(), 32u);
  EXPECT_EQ(Parsed(kJob, {"model.precision=bf16"}).phases(0).optimizer().weight_bits(), 16u);
  EXPECT_EQ(Parsed(kJob, {"phases.0.evaluate.every_steps=50"}).phases(0).checkpoint().every_steps(), 50u);
}

TEST(JobFile, FillingDefaultsAgainChangesNothing) {
  v1::JobSpec job = Parsed(kJob);
  const std::string once = job.SerializeAsString();
  FillDefaults(&job);
  EXPECT_EQ(job.SerializeAsString(), once);
  EXPECT_OK(ValidateJob(job));
}

// A default that its own rule refuses would be left out silently.
void ExpectDefaultsFilled(const google::protobuf::Message& message) {
  const Descriptor& descriptor = *message.GetDescriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const google::protobuf::Reflection& reflection = *message.GetReflection();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!field.is_repeated()) {
        const bool given = reflection.HasField(message, &field);
        if (field.options().GetExtension(v1::rule).keep_absent() && !given) continue;
        ExpectDefaultsFilled(reflection.GetMessage(message, &field));
      } else {
        if (field.name() == "rewards" && reflection.FieldSize(message, &field) == 0) continue;
        ASSERT_GT(reflection.FieldSize(message, &field), 0) << field.full_name();
        ExpectDefaultsFilled(reflection.GetRepeatedMessage(message, &field, 0));
      }
    } else if (!field.options().GetExtension(v1::rule).default_value().empty()) {
      EXPECT_TRUE(field.is_repeated() ? reflection.FieldSize(message, &field) > 0
                                      : reflection.HasField(message, &field))
          << field.full_name();
    }
  }
}
TEST(JobFile, EveryDefaultKeepsItsOwnRule) {
  // With what counts only where it is given.
  ExpectDefaultsFilled(Parsed("labels: {team: search}\n" + Changed("    global_batch: 16\n", R"(    global_batch: 16
    data: {sources: [{path: other.txt}]}
    trainable: {learning_rates: [{pattern: "*", multiplier: 2}]}
)")));
  EXPECT_FALSE(Parsed(kJob).phases(0).has_data());
  // What only some objectives have.
  const std::string more = std::string(kJob) + R"(
  - {name: p, objective: ppo, data: {sources: [{path: p.jsonl}]}, rewards: [{type: answer}], global_batch: 32,
     stop: {max_steps: 100}}
  - {name: d, objective: dpo, data: {sources: [{path: d.jsonl}]}, global_batch: 32, stop: {max_steps: 100}}
)";
  ExpectDefaultsFilled(Parsed(more).phases(1).rollout());
  ExpectDefaultsFilled(Parsed(more).phases(1).chat());
  ExpectDefaultsFilled(Parsed(more).phases(1).policy());
  ExpectDefaultsFilled(Parsed(more).phases(1).rewards(0));
  ExpectDefaultsFilled(Parsed(more).phases(2).preference());
}

TEST(JobFile, StepsThatEpochsTakeAreKnownLater) {
  const std::string job = Changed("      max_steps: 1000\n", "      max_epochs: 2\n");
  v1::PhaseSpec phase = Parsed(job).phases(0);
  EXPECT_FALSE(phase.optimizer().has_decay_steps());
  phase.mutable_stop()->set_max_steps(70);
  FillPhaseSteps(&phase);
  EXPECT_EQ(phase.optimizer().decay_steps(), 70u);
}

TEST(JobFile, APhaseStartsFromAnEarlierOneOrAFolder) {
  const std::string two = absl::StrCat(kJob, R"(  - name: more
    global_batch: 8
    from: FROM
    stop: {max_steps: 10}
)");
  const auto from = [&two](const std::string& from) { return absl::StrReplaceAll(two, {{"FROM", from}}); };
  for (const char* good : {"pretrain@best", "pretrain@last", "pretrain@300", "../models/gpt2", "./odd@name"}) {
    EXPECT_EQ(Parsed(from(good)).phases(1).from(), good);
  }
  EXPECT_EQ(Refusal(from("pretraining@best")),
            "job.yaml: phases.1.from: there is no earlier phase 'pretraining'; there is pretrain. A folder whose name "
            "has an @ is given as ./pretraining@best");
  EXPECT_THAT(Refusal(from("more@best")), HasSubstr("there is no earlier phase 'more'"));
  EXPECT_EQ(Refusal(from("pretrain@worst")),
            "job.yaml: phases.1.from: 'worst' is no checkpoint; best, last or a step is wanted, as in pretrain@best");
  EXPECT_THAT(Refusal(Changed("    global_batch: 16\n", "    global_batch: 16\n    from: a@best\n")),
              HasSubstr("there is no earlier phase 'a'; none comes before"));
}

TEST(JobFile, WhatNeedsDataOfItsOwnSaysSo) {
  EXPECT_THAT(Refusal(kJob, {"phases.0.replay=0.1"}), HasSubstr("phases.0.replay: a phase without data of its own"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.objective=sft"}),
              HasSubstr("phases.0.data is missing: the conversations that sft learns from"));
}

// A phase of each kind that learns from preferences or rewards.
constexpr char kAligned[] = R"(
  - {name: sft, objective: sft, data: {sources: [{path: s.jsonl}]}, global_batch: 8, stop: {max_steps: 8},
     chat: {template: chatml}}
  - {name: reward, objective: reward, data: {sources: [{path: p.jsonl}]}, global_batch: 8, stop: {max_steps: 8}}
  - name: ppo
    objective: ppo
    data: {sources: [{path: q.jsonl}]}
    rewards: [{type: model, from: reward@best}, {type: pattern, pattern: "^[a-z]+$"}]
    rollout: {prompts: 16, epochs: 2}
    global_batch: 8
    evaluate: {every_steps: 4}
    stop: {max_steps: 8}
  - {name: dpo, objective: dpo, from: sft@best, data: {sources: [{path: p.jsonl}]}, global_batch: 8, stop: {max_steps: 8}}
)";

TEST(JobFile, AlignmentHasItsDefaults) {
  const v1::JobSpec job = Parsed(absl::StrCat(kJob, kAligned + 1));
  EXPECT_EQ(job.phases(2).centering(), 0.01);
  EXPECT_EQ(job.phases(3).rollout().samples(), 1u);
  EXPECT_EQ(job.phases(3).policy().kl_coefficient(), 0.02);
  EXPECT_EQ(job.phases(3).policy().clip_high(), 0.2);
  EXPECT_EQ(StepsOfRollout(job.phases(3)), 4u);
  EXPECT_EQ(job.phases(4).preference().beta(), 0.1);
  // Asked as it was taught, unless a phase says otherwise.
  EXPECT_FALSE(job.phases(0).has_chat());
  for (int i = 1; i < 5; ++i) EXPECT_EQ(job.phases(i).chat().template_(), "chatml");
  // A reward model continues no text: who comes after it goes on from the last that does.
  EXPECT_EQ(StartOfPhase(job, 1), "pretrain@best");
  EXPECT_EQ(StartOfPhase(job, 3), "sft@best");
  EXPECT_EQ(StartOfPhase(job, 0), "");
  const v1::JobSpec grpo =
      Parsed(absl::StrCat(kJob, kAligned + 1),
             {"phases.3.objective=grpo", "phases.3.evaluate.every_steps=32", "phases.3.stop.max_steps=32"});
  EXPECT_EQ(grpo.phases(3).rollout().samples(), 8u);
  EXPECT_EQ(grpo.phases(3).policy().kl_coefficient(), 0);
}

TEST(JobFile, AlignmentThatCannotBeIsRefusedBeforeAnythingIsTrained) {
  const std::string job = absl::StrCat(kJob, kAligned + 1);
  const auto refusal = [&](const std::string& override_text) { return Refusal(job, {override_text}); };
  EXPECT_THAT(refusal("phases.3.rewards=[]"), HasSubstr("phases.3.rewards is missing: ppo learns from what"));
  EXPECT_THAT(refusal("phases.3.rewards.0.from=sft@best"),
              HasSubstr("phases.3.rewards.0.from: phase sft has the objective sft; one that trains a reward model"));
  EXPECT_THAT(refusal("phases.3.from=reward@best"),
              HasSubstr("phases.3.from: phase reward has the objective reward; a reward model cannot continue text"));
  EXPECT_THAT(refusal("phases.4.reference=reward@best"), HasSubstr("phases.4.reference: phase reward"));
  EXPECT_THAT(refusal("phases.3.rewards.1.pattern='('"), HasSubstr("rewards.1.pattern: '(' is no regular expression"));
  EXPECT_THAT(refusal("phases.3.rewards.1.type=length"),
              HasSubstr("rewards.1.target is missing: the type length needs it"));
  EXPECT_THAT(refusal("phases.3.rewards.1.from=reward@best"), HasSubstr("only for the type model, not pattern"));
  EXPECT_THAT(refusal("phases.3.rollout.prompts=13"),
              HasSubstr("phases.3.global_batch (8) does not divide rollout.prompts x samples x epochs (13 x 1 x 2)"));
  EXPECT_THAT(refusal("phases.3.stop.max_steps=6"), HasSubstr("phases.3.stop.max_steps: 6 is no multiple of the 4"));
  EXPECT_THAT(refusal("phases.3.evaluate.every_steps=3"), HasSubstr("every_steps: 3 is no multiple of the 4 steps"));
  EXPECT_THAT(refusal("phases.3.policy.average=answers"), HasSubstr("rollout.max_tokens is missing"));
  EXPECT_THAT(Refusal(job, {"phases.3.policy.kl_target=1", "phases.3.policy.kl_coefficient=0"}),
              HasSubstr("needs one above 0 to begin with"));
  EXPECT_THAT(Refusal(job, {"phases.3.objective=rloo", "phases.3.rollout.samples=1"}),
              HasSubstr("at least 2 are wanted"));
  EXPECT_THAT(refusal("phases.1.preference.beta=1"), HasSubstr("phases.1.preference: only for dpo, ipo, orpo and kto"));
  EXPECT_THAT(refusal("phases.1.rollout.prompts=1"),
              HasSubstr("phases.1.rollout: only for compare, ppo, grpo and rloo"));
  EXPECT_THAT(refusal("phases.4.centering=1"), HasSubstr("phases.4.centering: only for reward, not dpo"));
  EXPECT_THAT(Refusal(job, {"phases.4.objective=kto", "phases.4.microbatch=1"}), HasSubstr("at least 2"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.objective=dpo", "phases.0.data={sources: [{path: p.jsonl}]}"}),
              HasSubstr("phases.0.from is missing: dpo begins with a trained model"));
}

const char kAdapted[] = R"(
  - name: adapt
    adapter: {type: lora}
    global_batch: 16
    stop: {max_steps: 10}
  - name: more
    global_batch: 16
    stop: {max_steps: 10}
)";

TEST(JobFile, AdaptersHaveTheirDefaultsAndAreTrainedOn) {
  const std::string job = absl::StrCat(kJob, kAdapted + 1);
  const v1::AdapterSpec lora = Parsed(job).phases(1).adapter();
  EXPECT_THAT(lora.targets(), ElementsAre("c_attn"));
  EXPECT_EQ(lora.rank(), 8u);
  EXPECT_EQ(lora.alpha(), 8);
  // The next phase starts from it.
  EXPECT_EQ(Parsed(job).phases(2).adapter().SerializeAsString(), lora.SerializeAsString());
  EXPECT_FALSE(Parsed(job, {"phases.2.from=pretrain@best"}).phases(2).has_adapter());
  EXPECT_THAT(Parsed(job, {"model.family=llama"}).phases(1).adapter().targets(), ElementsAre("q_proj", "v_proj"));
  const v1::AdapterSpec ia3 = Parsed(job, {"phases.1.adapter={type: ia3}", "model.family=llama"}).phases(1).adapter();
  EXPECT_THAT(ia3.targets(), ElementsAre("k_proj", "v_proj", "down_proj"));
  EXPECT_THAT(ia3.feedforward_targets(), ElementsAre("down_proj"));
  const v1::AdapterSpec prefix = Parsed(job, {"phases.1.adapter={type: prefix_tuning}"}).phases(1).adapter();
  EXPECT_EQ(prefix.virtual_tokens(), 8u);
  EXPECT_EQ(prefix.encoder_hidden_size(), 128u);
  EXPECT_EQ(Parsed(job, {"phases.1.adapter={type: llama_adapter}"}).phases(1).adapter().layers(), 4u);
}

TEST(JobFile, AdaptersThatCannotBeAreRefusedBeforeAnythingIsTrained) {
  const std::string job = absl::StrCat(kJob, kAdapted + 1);
  const auto refusal = [&](const std::string& override_text) { return Refusal(job, {override_text}); };
  EXPECT_THAT(Refusal(kJob, {"phases.0.adapter={type: lora}"}),
              HasSubstr("phases.0.adapter: an adapter goes on a trained model"));
  EXPECT_THAT(refusal("phases.1.adapter={type: lorra}"), HasSubstr("did you mean 'lora'?"));
  EXPECT_THAT(refusal("phases.1.adapter={type: ia3, rank: 4}"),
              HasSubstr("phases.1.adapter.rank: only for lora and adalora, not ia3"));
  EXPECT_THAT(refusal("phases.1.adapter={type: lora, virtual_tokens: 4}"),
              HasSubstr("phases.1.adapter.virtual_tokens: only for those that have virtual tokens, not lora"));
  EXPECT_THAT(refusal("phases.1.adapter={type: p_tuning, init_text: x}"),
              HasSubstr("phases.1.adapter.init_text: only for prompt_tuning, not p_tuning"));
  EXPECT_THAT(refusal("phases.1.adapter={type: prompt_tuning, virtual_tokens: 63}"),
              HasSubstr("phases.1.adapter.virtual_tokens: 63 leave no room for text in a context of 64"));
  EXPECT_THAT(refusal("phases.1.adapter={type: llama_adapter, layers: 5}"),
              HasSubstr("phases.1.adapter.layers: 5 where the model has 4"));
  EXPECT_THAT(refusal("phases.2.adapter={type: lora, rank: 4}"),
              HasSubstr("phases.2.adapter: differs from that of phase 'adapt', which is trained on"));
  EXPECT_THAT(refusal("phases.1.trainable={last_layers: 1}"), HasSubstr("drop trainable.last_layers"));
  Parsed(job, {"phases.2.adapter={type: lora, dropout: 0.1}"});
}

TEST(JobFile, AnAdapterHasItsDefaultsAndWhatItLacksIsRefused) {
  const auto job = [](const std::string& adapter) {
    return std::vector<std::string>{"phases.0.from=folder", absl::StrCat("phases.0.adapter={", adapter, "}")};
  };
  const v1::AdapterSpec adalora = Parsed(kJob, job("type: adalora")).phases(0).adapter();
  EXPECT_EQ(adalora.rank(), 12u);
  EXPECT_EQ(adalora.alpha(), 12);
  EXPECT_EQ(adalora.target_rank(), 8u);
  EXPECT_EQ(adalora.warmup_steps(), 0u);
  EXPECT_TRUE(adalora.has_warmup_steps());
  EXPECT_TRUE(adalora.has_final_steps());
  EXPECT_EQ(adalora.allocate_every(), 1u);
  EXPECT_THAT(adalora.importance_decay(), ElementsAre(0.85, 0.85));
  EXPECT_EQ(adalora.orthogonality(), 0.5);
  EXPECT_THAT(adalora.targets(), ElementsAre("c_attn"));
  EXPECT_EQ(Parsed(kJob, job("type: adalora, rank: 4")).phases(0).adapter().target_rank(), 4u);
  EXPECT_EQ(Parsed(kJob, job("type: p_tuning")).phases(0).adapter().encoder(), "mlp");
  EXPECT_EQ(Parsed(kJob, job("type: p_tuning, encoder: lstm")).phases(0).adapter().encoder(), "lstm");
  EXPECT_FALSE(Parsed(kJob, job("type: lora")).phases(0).adapter().has_target_rank());
  const struct {
    const char* adapter;
    const char* said;
  } wrong[] = {
      {"type: lora, target_rank: 2", "adapter.target_rank: only for adalora, not lora"},
      {"type: ia3, orthogonality: 1", "adapter.orthogonality: only for adalora, not ia3"},
      {"type: lora, importance_decay: [0.1, 0.2]", "adapter.importance_decay: only for adalora, not lora"},
      {"type: adalora, dora: true", "adapter.dora: only for lora, not adalora"},
      {"type: adalora, rank: 4, target_rank: 5", "adapter.target_rank: 5 where rank is 4"},
      {"type: adalora, importance_decay: [0.5]", "adapter.importance_decay: 1 numbers where two are wanted"},
      {"type: adalora, importance_decay: [0.5, 1]", "importance_decay.1: it must be below 1, not 1"},
      {"type: adalora, warmup_steps: 600, final_steps: 400", "leave none of 1000"},
      {"type: prefix_tuning, encoder: lstm", "adapter.encoder: only for p_tuning, not prefix_tuning"},
  };
  for (const auto& [adapter, said] : wrong) EXPECT_THAT(Refusal(kJob, job(adapter)), HasSubstr(said));
  EXPECT_THAT(Refusal(kJob, {"phases.0.adapter={type: adalora}"}), HasSubstr("the phase starts from none"));
}

TEST(JobFile, AnAdapterThatIsTrainedOnMayHaveAnotherBudget) {
  const std::string job = absl::StrCat(kJob, "    from: folder\n    adapter: {type: adalora}\n",
                                       "  - {name: more, global_batch: 8, stop: {max_steps: 9}, from: pretrain@best, ",
                                       "adapter: {type: adalora, target_rank: 3, final_steps: 2}}\n");
  EXPECT_EQ(Parsed(job).phases(1).adapter().target_rank(), 3u);
  EXPECT_THAT(Refusal(job, {"phases.1.adapter.rank=6"}), HasSubstr("differs from that of phase 'pretrain'"));
}

TEST(JobFile, AJobWithoutTextSaysWhereItsTokensAndDataComeFrom) {
  const auto job = [](const std::string& tokenizer, const std::string& data) {
    return absl::StrCat("name: mine\n", tokenizer,
                        "model: {layers: 1, hidden_size: 8, heads: 1, context: 8}\nphases:\n",
                        "  - {name: sft, objective: sft, from: m, global_batch: 1, stop: {max_steps: 1}", data, "}\n");
  };
  const std::string tokenizer = "tokenizer: {path: m}\n", data = ", data: {sources: [{path: s.jsonl}]}";
  EXPECT_FALSE(Parsed(job(tokenizer, data)).has_data());
  EXPECT_THAT(Refusal(job("", data)), HasSubstr("data is missing: the text to learn from; a job without needs"));
  EXPECT_THAT(Refusal(job(tokenizer, "")), HasSubstr("phases.0.data is missing"));
  EXPECT_THAT(Refusal(job(tokenizer, data + ", replay: 0.1")), HasSubstr("phases.0.replay: the job has no text"));
}

TEST(JobFile, RatingsAreOfAnEarlierPhaseInWhichPeopleCompare) {
  const std::string job = absl::StrCat(kJob, kAligned + 1, R"(  - name: compare
    objective: compare
    compare: {from: [sft@best, pretrain@best]}
    data: {sources: [{path: q.jsonl}]}
  - {name: again, objective: reward, data: {sources: [{path: compare@ratings}]}, global_batch: 8, stop: {max_steps: 8}}
)");
  EXPECT_EQ(Parsed(job).phases(5).rollout().samples(), 2u);
  EXPECT_TRUE(LearnsFromRatings(Parsed(job).phases(6)));
  EXPECT_FALSE(LearnsFromRatings(Parsed(job).phases(2)));
  EXPECT_EQ(StartOfPhase(Parsed(job), 6), "dpo@best");
  EXPECT_THAT(Refusal(job, {"phases.6.data.sources.0.path=sft@ratings"}),
              HasSubstr("phases.6.data.sources.0.path: there is no earlier phase 'sft' of the objective compare"));
  EXPECT_THAT(Refusal(job, {"phases.6.objective=sft"}), HasSubstr("from which sft does not learn"));
  EXPECT_THAT(Refusal(job, {"phases.6.from=compare@best"}), HasSubstr("the objective compare, which trains no model"));
  EXPECT_THAT(Refusal(job, {"phases.5.rollout.samples=3"}), HasSubstr("two answers are compared, not 3"));
  EXPECT_THAT(Refusal(job, {"phases.5.compare.from=[sft@best, sft@last, pretrain@best]"}), HasSubstr("not of 3"));
  EXPECT_THAT(Refusal(job, {"phases.5.stop.max_steps=7"}), HasSubstr("leave out global_batch and stop"));
}

TEST(JobFile, EveryExampleParses) {
  int examples = 0;
  for (const auto& entry : std::filesystem::directory_iterator(MILLRACE_SOURCE_DIR "/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    ++examples;
    const absl::StatusOr<v1::JobSpec> job = ReadJobFile(entry.path().string(), {});
    EXPECT_OK(job);
  }
  EXPECT_GE(examples, 4);
}

TEST(JobFile, AFileThatCannotBeReadIsNamed) {
  const TemporaryFolder folder;
  EXPECT_EQ(ReadJobFile(folder / "none.yaml", {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadJobFile(folder / "none.yaml", {}).status().message()), HasSubstr(folder / "none.yaml"));
  const std::string large = folder.Write("large.yaml", std::string(kMaxYamlBytes + 1, '#'));
  EXPECT_THAT(std::string(ReadJobFile(large, {}).status().message()), HasSubstr(large));
  const std::string wrong = folder.Write("wrong.yaml", "nam: x\n");
  EXPECT_THAT(std::string(ReadJobFile(wrong, {}).status().message()),
              HasSubstr(wrong + ":1: unknown field 'nam'; did you mean 'name'?"));
}

TEST(JobFile, AnUnknownFieldHasItsLineAndTheNearestName) {
  EXPECT_EQ(Refusal(Changed("layers:", "layer:")),
            "job.yaml:9: unknown field 'layer' in model; did you mean 'layers'?");
  EXPECT_EQ(Refusal(Changed("seed:", "sede:")), "job.yaml:2: unknown field 'sede'; did you mean 'seed'?");
  EXPECT_EQ(Refusal(Changed("max_steps:", "maxsteps:")),
            "job.yaml:17: unknown field 'maxsteps' in phases.0.stop; did you mean 'max_steps'?");
  EXPECT_EQ(
      Refusal(Changed("max_steps:", "zzzzzz:")),
      "job.yaml:17: unknown field 'zzzzzz' in phases.0.stop; it takes max_steps, patience, min_delta, max_epochs");
  EXPECT_THAT(Refusal(Changed("name: mine", std::string(1000, 'x') + ": mine")),
              HasSubstr(absl::StrCat("job.yaml:1: unknown field '", std::string(80, 'x'), "…'")));
}

TEST(JobFile, AWrongWordHasTheNearestRightOne) {
  EXPECT_EQ(Refusal(Changed("type: bpe", "type: bep")),
            "job.yaml:7: tokenizer.type: there is no 'bep'; did you mean 'bpe'?");
  EXPECT_EQ(Refusal(Changed("type: bpe", "type: sentencepiece")),
            "job.yaml:7: tokenizer.type: there is no 'sentencepiece'; it takes bpe, char");
}

TEST(JobFile, AWrongTypeHasItsLine) {
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: four")),
            "job.yaml:9: model.layers: a whole number of at least 0 is wanted, not 'four'");
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: 4.5")),
            "job.yaml:9: model.layers: a whole number of at least 0 is wanted, not '4.5'");
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: -4")),
            "job.yaml:9: model.layers: a whole number of at least 0 is wanted, not '-4'");
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: \"4\"")),
            "job.yaml:9: model.layers: a whole number of at least 0 is wanted, not '4'");
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: [4]")), "job.yaml:9: model.layers: a single value is wanted here");
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers:")), "job.yaml:9: model.layers is given no value");
  EXPECT_EQ(Refusal(Changed("heads: 4", "tied_embeddings: yes")),
            "job.yaml:11: model.tied_embeddings: true or false is wanted, not 'yes'");
  EXPECT_EQ(Refusal(Changed("heads: 4", "dropout: much")),
            "job.yaml:11: model.dropout: a number is wanted, not 'much'");
  EXPECT_EQ(Refusal(Changed("tokenizer:\n  type: bpe", "tokenizer: bpe")),
            "job.yaml:6: tokenizer must be fields, as in {type: …}");
  EXPECT_EQ(Refusal(Changed("    - path: my-text/*.txt", "    path: my-text/*.txt")),
            "job.yaml:5: data.sources must be a list, as in [a, b]");
  EXPECT_EQ(Refusal(Changed("    - path: my-text/*.txt", "    - my-text/*.txt")),
            "job.yaml:5: data.sources.0 must be fields, as in {path: …}");
  EXPECT_EQ(Refusal(Changed("name: mine", "[name]: mine")), "job.yaml:1: a field's name must be one word");
}

TEST(JobFile, AValueOutOfBoundsHasItsLineAndTheBound) {
  EXPECT_EQ(Refusal(Changed("layers: 4", "layers: 0")), "job.yaml:9: model.layers: it must be at least 1, not 0");
  EXPECT_EQ(Refusal(Changed("context: 64", "context: 131073")),
            "job.yaml:12: model.context: it must be at most 131072, not 131073");
  EXPECT_EQ(Refusal(Changed("global_batch: 16", "global_batch: 1048577")),
            "job.yaml:15: phases.0.global_batch: it must be at most 1048576, not 1048577");
  EXPECT_EQ(Refusal(Changed("max_steps: 1000", "max_steps: 18446744073709551616")),
            "job.yaml:17: phases.0.stop.max_steps: a whole number of at least 0 is wanted, not '18446744073709551616'");
  EXPECT_EQ(Refusal(Changed("max_steps: 1000", "patience: 4294967296")),
            "job.yaml:17: phases.0.stop.patience: it must be at most 4294967295, not 4294967296");
  EXPECT_EQ(Refusal(Changed("heads: 4", "dropout: 1")), "job.yaml:11: model.dropout: it must be below 1, not 1");
  EXPECT_EQ(Refusal(Changed("heads: 4", "norm_epsilon: 0.0")),
            "job.yaml:11: model.norm_epsilon: it must be above 0, not 0.0");
  for (const char* number : {"nan", "inf", "1e999"}) {
    EXPECT_EQ(Refusal(Changed("heads: 4", absl::StrCat("rope_theta: ", number))),
              absl::StrCat("job.yaml:11: model.rope_theta: a finite number is wanted, not ", number));
  }
}

TEST(JobFile, AMissingFieldIsNamedWithItsMeaning) {
  EXPECT_THAT(Refusal(Changed("name: mine\n", "")), HasSubstr("job.yaml: name is missing: Name of the job"));
  EXPECT_THAT(Refusal(Changed("  layers: 4\n", "")), HasSubstr("model.layers is missing: Layers."));
  EXPECT_THAT(Refusal(Changed("      max_steps: 1000\n", "      patience: 1\n")),
              HasSubstr("phases.0.stop: max_steps or max_epochs is needed"));
  EXPECT_THAT(Refusal("name: mine\n"), HasSubstr("model.layers is missing"));
  EXPECT_THAT(Refusal(kJob, {"phases=[]"}), HasSubstr("phases is missing"));
}

TEST(JobFile, WhatMustHoldBetweenFieldsIsChecked) {
  EXPECT_THAT(Refusal(kJob, {"model.heads=3"}), HasSubstr("model.heads (3) does not divide model.hidden_size (128)"));
  EXPECT_THAT(Refusal(kJob, {"model.kv_heads=2"}), HasSubstr("model.kv_heads: the family gpt2"));
  EXPECT_THAT(Refusal(kJob, {"model.family=llama", "model.kv_heads=3"}),
              HasSubstr("model.kv_heads (3) does not divide model.heads (4)"));
  EXPECT_EQ(Parsed(kJob, {"model.family=llama", "model.kv_heads=2"}).model().kv_heads(), 2u);
  EXPECT_THAT(Refusal(kJob, {"model.family=llama", "model.hidden_size=12"}), HasSubstr("need an even number"));
  EXPECT_THAT(Refusal(kJob, {"model.family=llama", "model.sliding_window=8"}),
              HasSubstr("model.sliding_window: the family llama has none; mistral and qwen2 have"));
  EXPECT_EQ(Parsed(kJob, {"model.family=mistral", "model.sliding_window=8"}).model().sliding_window(), 8u);
  EXPECT_FALSE(Parsed(kJob, {"model.family=qwen2"}).model().has_sliding_window());
  const std::string baseline = Changed("  heads: 4\n", "");
  EXPECT_THAT(Refusal(baseline), HasSubstr("model.heads is missing: the family gpt2 needs it"));
  EXPECT_FALSE(Parsed(baseline, {"model.family=lstm"}).model().has_kv_heads());
  EXPECT_FALSE(Parsed(baseline, {"model.family=lstm"}).model().has_intermediate_size());
  EXPECT_EQ(Parsed(baseline, {"model.family=cnn"}).model().kernel_size(), 3u);
  EXPECT_THAT(Refusal(kJob, {"model.family=lstm"}),
              HasSubstr("model.heads: the family lstm has none; transformers have"));
  EXPECT_THAT(Refusal(baseline, {"model.family=cnn", "model.sliding_window=8"}), HasSubstr("model.sliding_window"));
  EXPECT_THAT(Refusal(kJob, {"model.kernel_size=3"}),
              HasSubstr("model.kernel_size: the family gpt2 has none; cnn has"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.microbatch=5"}),
              HasSubstr("phases.0.microbatch (5) does not divide phases.0.global_batch (16)"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.unit_microbatches=3"}), HasSubstr("phases.0.unit_microbatches (3)"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.optimizer.betas=[0.9]"}), HasSubstr("two numbers are wanted, not 1"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.optimizer.gradient_bits=24"}), HasSubstr("16 or 32 is wanted, not 24"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.optimizer.weight_bits=24"}), HasSubstr("16 or 32 is wanted, not 24"));
  EXPECT_THAT(Refusal(kJob, {"model.precision=bf16", "phases.0.optimizer.weight_bits=32"}),
              HasSubstr("phases.0.optimizer.weight_bits: a model of precision bf16 computes with 16"));
  EXPECT_THAT(Refusal(absl::StrCat(kJob, "  - {name: pretrain, global_batch: 1, stop: {max_steps: 1}}\n")),
              HasSubstr("phases.1.name: there is a phase 'pretrain' already"));
}

TEST(JobFile, OnlyWhatContinuesTextWritesSamples) {
  const v1::SamplesSpec samples =
      Parsed(kJob, {"phases.0.evaluate.samples={prompts: ['', a]}"}).phases(0).evaluate().samples();
  EXPECT_THAT(samples.prompts(), ElementsAre("", "a"));
  EXPECT_EQ(samples.max_tokens(), 64u);
  EXPECT_EQ(samples.temperature(), 0.8);
  EXPECT_EQ(samples.top_p(), 1);
  EXPECT_EQ(samples.seed(), 1u);
  EXPECT_FALSE(Parsed(kJob).phases(0).evaluate().has_samples());

  const std::string job = absl::StrCat(kJob, kAligned + 1);
  const auto refusal = [&](int phase, const std::string& fields) {
    return Refusal(job, {absl::StrCat("phases.", phase, ".evaluate.samples={", fields, "}")});
  };
  EXPECT_THAT(
      refusal(2, "prompts: [a]"),
      HasSubstr("phases.2.evaluate.samples: only for models that write text and are evaluated, not for reward"));
  EXPECT_THAT(
      Refusal(kJob, {"model.family=bert", "phases.0.objective=masked_lm", "phases.0.evaluate.samples={prompts: [a]}"}),
      HasSubstr("not for masked_lm"));
  EXPECT_THAT(refusal(1, "prompts: [a, '']"), HasSubstr("phases.1.evaluate.samples.prompts.1 is empty"));
  EXPECT_THAT(refusal(0, "prompts: []"), HasSubstr("samples.prompts is missing"));
  EXPECT_THAT(refusal(0, "prompts: [a, b, c, d, e, f, g, h, i]"), HasSubstr("prompts: there are 9; at most 8"));
  EXPECT_THAT(refusal(0, absl::StrCat("prompts: [", std::string(4097, 'a'), "]")),
              HasSubstr("prompts.0: 4097 bytes; at most 4096"));
  EXPECT_THAT(refusal(0, "prompts: [a], max_tokens: 2000"), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal(0, "prompts: [a], top_p: 0"), HasSubstr("top_p"));
}

TEST(JobFile, AnEncoderHasItsDefaults) {
  const std::vector<std::string> encoder = {"model.family=bert", "phases.0.objective=masked_lm"};
  v1::JobSpec job = Parsed(kJob, encoder);
  EXPECT_EQ(job.model().norm_epsilon(), 1e-12);
  EXPECT_EQ(job.model().intermediate_size(), 512u);
  EXPECT_EQ(job.model().kv_heads(), 4u);
  EXPECT_THAT(job.tokenizer().special_tokens(), ElementsAre("[PAD]", "[CLS]", "[SEP]", "[MASK]"));
  EXPECT_EQ(job.phases(0).mask().share(), 0.15);
  EXPECT_TRUE(job.phases(0).mask().next_sentence());
  ExpectDefaultsFilled(job.model());
  ExpectDefaultsFilled(job.phases(0).mask());
  const std::string once = job.SerializeAsString();
  FillDefaults(&job);
  EXPECT_EQ(job.SerializeAsString(), once);
  EXPECT_EQ(Parsed(kJob, {encoder[0], encoder[1], "model.norm_epsilon=1e-5"}).model().norm_epsilon(), 1e-5);
  EXPECT_FALSE(Parsed(kJob).phases(0).has_mask());
  EXPECT_EQ(Parsed(kJob).tokenizer().special_tokens_size(), 0);
}

TEST(JobFile, AnEncoderLearnsFromHiddenTokensAndNothingElseDoes) {
  const auto encoder = [](const std::string& more) {
    return Refusal(kJob, {"model.family=bert", "phases.0.objective=masked_lm", more});
  };
  EXPECT_THAT(Refusal(kJob, {"model.family=bert"}),
              HasSubstr("phases.0.objective: the family bert is an encoder, which learns by masked_lm and not by "
                        "causal_lm"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.objective=masked_lm"}),
              HasSubstr("phases.0.objective: masked_lm needs an encoder, as in model.family bert; gpt2 predicts"));
  EXPECT_THAT(Refusal(kJob, {"phases.0.mask.share=0.2"}), HasSubstr("phases.0.mask: only for masked_lm"));
  EXPECT_THAT(encoder("phases.0.mask.random=0.3"), HasSubstr("phases.0.mask: masked (0.8) and random (0.3)"));
  EXPECT_THAT(encoder("phases.0.mask.share=0"), HasSubstr("share"));
  EXPECT_THAT(encoder("model.tied_embeddings=false"), HasSubstr("model.tied_embeddings"));
  EXPECT_THAT(encoder("model.bias=false"), HasSubstr("model.bias"));
  EXPECT_THAT(encoder("model.kv_heads=2"), HasSubstr("model.kv_heads: the family bert"));
  EXPECT_THAT(encoder("model.heads=3"), HasSubstr("model.heads (3) does not divide"));
  EXPECT_THAT(encoder("model.sliding_window=8"), HasSubstr("model.sliding_window"));
  EXPECT_THAT(encoder("model.context=4"), HasSubstr("at least 5"));
  EXPECT_THAT(encoder("phases.0.rollout.samples=2"), HasSubstr("rollout"));
  const std::string two = std::string(kJob) + R"(
  - {name: a, objective: masked_lm, global_batch: 4, stop: {max_steps: 1}, adapter: {type: lora}}
)";
  EXPECT_THAT(Refusal(two, {"model.family=bert", "phases.0.objective=masked_lm"}),
              HasSubstr("phases.1.adapter: adapters are for decoder transformers; the family bert takes none"));
  for (const char* objective : {"sft", "dpo", "reward", "grpo"}) {
    EXPECT_THAT(Refusal(two, {"model.family=bert", "phases.0.objective=masked_lm",
                              absl::StrCat("phases.1.objective=", objective), "phases.1.data={sources: [{path: a}]}",
                              "phases.1.adapter={type: lora}", "phases.1.rewards=[]"}),
                HasSubstr("phases.1"))
        << objective;
  }
}

TEST(JobFile, NamesAreSafeInPaths) {
  for (const char* name : {"../up", "a/b", ".hidden", "a b", "é", "''"}) {
    EXPECT_THAT(Refusal(Changed("name: mine", absl::StrCat("name: ", name))), HasSubstr("is no name")) << name;
  }
  EXPECT_THAT(Refusal(Changed("name: mine", "name: " + std::string(65, 'x'))), HasSubstr("at most 64"));
  EXPECT_THAT(Refusal(Changed("my-text/*.txt", "\"a\\0b\"")), HasSubstr("data.sources.0.path: it holds a zero byte"));
  EXPECT_EQ(Parsed(Changed("name: mine", "name: GPT-2_x.1")).name(), "GPT-2_x.1");
}

TEST(JobFile, AFieldIsGivenOnce) {
  EXPECT_EQ(Refusal(Changed("seed: 7\n", "seed: 7\nseed: 8\n")), "job.yaml:3: seed is given twice");
  EXPECT_EQ(Refusal(Changed("  heads: 4\n", "  heads: 4\n  layers: 4\n")), "job.yaml:12: model.layers is given twice");
}

TEST(JobFile, WhatIsNotYamlHasItsLine) {
  EXPECT_THAT(Refusal(Changed("seed: 7", "seed: [7")),
              ::testing::ContainsRegex("^job\\.yaml:[0-9]+: this is not YAML: "));
  EXPECT_THAT(Refusal(Changed("seed: 7", "seed: *nowhere")), HasSubstr("job.yaml:2: this is not YAML"));
  EXPECT_THAT(Refusal(Changed("seed: 7", "seed: 7: 8")), HasSubstr("job.yaml:2: this is not YAML"));
}

TEST(JobFile, TextIsUtf8) {
  const std::string path = "é…😀\xef\xbf\xbf\xf4\x8f\xbf\xbf.txt";
  EXPECT_EQ(Parsed(Changed("my-text/*.txt", path)).data().sources(0).path(), path);
  for (const char* bytes : {"\xff", "\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\xaf",
                            "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xe2\x82"}) {
    EXPECT_EQ(Refusal(Changed("my-text/*.txt", absl::StrCat("a", bytes, "b"))),
              "job.yaml:5: data.sources.0.path: it is not UTF-8");
  }
}

TEST(JobFile, TabsDoNotIndent) {
  EXPECT_THAT(Refusal(Changed("  layers: 4", "\tlayers: 4")), HasSubstr("job.yaml:9: "));
  EXPECT_THAT(Refusal(Changed("      max_steps", "    \tmax_steps")), HasSubstr("job.yaml:17: "));
}

TEST(JobFile, AFileThatHoldsNoFieldsIsRefused) {
  for (const char* yaml : {"", "# nothing\n", "just words\n", "[a, b]\n", "~\n"}) {
    EXPECT_THAT(Refusal(yaml), HasSubstr("the job must be fields, as in {name: …}")) << yaml;
  }
}

TEST(JobFile, ASecondDocumentIsRefused) {
  EXPECT_THAT(Refusal(absl::StrCat(kJob, "---\nname: other\n")), HasSubstr("job.yaml:18: here the document has ended"));
  EXPECT_THAT(Refusal(absl::StrCat(kJob, "]\n")), HasSubstr("job.yaml:18: "));
  EXPECT_THAT(Refusal("]"), HasSubstr("job.yaml:1: "));
  EXPECT_EQ(Parsed(absl::StrCat("---\n", kJob)).name(), "mine");
}

TEST(JobFile, ALargeFileIsRefusedUnread) {
  EXPECT_THAT(Refusal(std::string(kMaxYamlBytes + 1, '#')), HasSubstr("a job file has at most 1048576"));
}

TEST(JobFile, DeepNestingIsRefused) {
  for (const char* open : {"[", "{a: ", "- ", "? "}) {
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += open;
    EXPECT_THAT(Refusal(deep), HasSubstr("job.yaml:1: this is not YAML")) << open;
  }
}

TEST(JobFile, AnchorsServeToRepeatAndNotToMultiply) {
  const std::string twice = absl::StrReplaceAll(
      kJob, {{"    global_batch: 16\n", "    global_batch: 16\n    optimizer: &same {type: lion}\n"}});
  const v1::JobSpec job =
      Parsed(absl::StrCat(twice, "  - {name: more, global_batch: 1, stop: {max_steps: 1}, optimizer: *same}\n"));
  EXPECT_EQ(job.phases(1).optimizer().type(), "lion");
  // 9 000 phases with 9 000 numbers each, in 60 KB.
  std::string bomb = "phases:\n- optimizer: &o {betas: [";
  for (int i = 0; i < 9000; ++i) bomb += "0,";
  bomb += "0]}\n";
  for (int i = 0; i < 9000; ++i) bomb += "- {optimizer: *o}\n";
  EXPECT_THAT(Refusal(bomb), HasSubstr("the job is too large"));
  std::string text_bomb = "name: &n " + std::string(100000, 'x') + "\ndata:\n  sources:\n";
  for (int i = 0; i < 9000; ++i) text_bomb += "  - path: *n\n";
  EXPECT_THAT(Refusal(text_bomb), HasSubstr("the job is too large"));
  // A list that holds itself.
  EXPECT_THAT(Refusal("phases: &p [*p]\n"), HasSubstr("phases.0 must be fields"));
  EXPECT_THAT(Refusal("data: &d {clean: *d}\n"), HasSubstr("unknown field 'clean' in data.clean"));
}

TEST(JobFile, AListHasABoundedLength) {
  std::string list = "data: {sources: [";
  for (int i = 0; i < 10001; ++i) list += "{},";
  EXPECT_THAT(Refusal(list + "{}]}\n"), HasSubstr("data.sources has too many items"));
}

TEST(JobFile, OverridesReachEveryField) {
  const v1::JobSpec job =
      Parsed(kJob, {"name=other", "phases.0.stop.max_steps=20", "model.dropout=0.25", "data.clean.lowercase=true",
                    "phases.0.optimizer.betas=[0.5, 0.25]", "data.sources.0.path=a=b.txt",
                    "tokenizer={vocab_size: 300}", "phases.0={microbatch: 8}", "phases.0.stop.max_steps=30"});
  EXPECT_EQ(job.name(), "other");
  EXPECT_EQ(job.model().dropout(), 0.25);
  EXPECT_TRUE(job.data().clean().lowercase());
  EXPECT_THAT(job.phases(0).optimizer().betas(), ElementsAre(0.5, 0.25));
  EXPECT_EQ(job.data().sources(0).path(), "a=b.txt");
  // Messages are merged into, later overrides win, and what follows from other fields follows from the last ones.
  EXPECT_EQ(job.tokenizer().vocab_size(), 300u);
  EXPECT_EQ(job.tokenizer().type(), "bpe");
  EXPECT_EQ(job.phases(0).name(), "pretrain");
  EXPECT_EQ(job.phases(0).microbatch(), 8u);
  EXPECT_EQ(job.phases(0).stop().max_steps(), 30u);
  EXPECT_EQ(job.phases(0).optimizer().decay_steps(), 30u);
  const v1::JobSpec lists = Parsed(kJob, {"data.sources=[{path: a}, {path: b}]", "data.sources.1.path=c"});
  ASSERT_EQ(lists.data().sources_size(), 2);
  EXPECT_EQ(lists.data().sources(1).path(), "c");
}

TEST(JobFile, LabelsAreNamesWithWords) {
  const v1::JobSpec job = Parsed("labels: {team: search, run: 7}\n" + std::string(kJob));
  EXPECT_EQ(job.labels().at("team"), "search");
  EXPECT_EQ(job.labels().at("run"), "7");
  EXPECT_EQ(Parsed(kJob, {"labels={a: b}"}).labels().at("a"), "b");
  EXPECT_EQ(Refusal("labels: [a]\n" + std::string(kJob)),
            "job.yaml:1: labels must be names with values, as in {name: value}");
  EXPECT_EQ(Refusal("labels: {a: b, a: c}\n" + std::string(kJob)), "job.yaml:1: labels.a is given twice");
  EXPECT_EQ(Refusal("labels: {a: [b]}\n" + std::string(kJob)), "job.yaml:1: labels.a: a single value is wanted here");
  EXPECT_THAT(Refusal("labels: {a/b: c}\n" + std::string(kJob)), HasSubstr("labels: 'a/b' is no name"));
  EXPECT_THAT(Refusal("labels: {a: " + std::string(65, 'x') + "}\n" + std::string(kJob)),
              HasSubstr("has more than 64 bytes"));
  EXPECT_EQ(Refusal(kJob, {"labels.a=b"}),
            "--set labels.a=b: labels has no fields; give all its names, as in {name: value}");
}

TEST(JobFile, AWrongOverrideIsQuoted) {
  EXPECT_EQ(Refusal(kJob, {"model.layer=3"}),
            "--set model.layer=3: unknown field 'layer' in model; did you mean 'layers'?");
  EXPECT_EQ(Refusal(kJob, {"modell.layers=3"}), "--set modell.layers=3: unknown field 'modell'; did you mean 'model'?");
  EXPECT_EQ(Refusal(kJob, {"model.layers=x"}),
            "--set model.layers=x: model.layers: a whole number of at least 0 is wanted, not 'x'");
  EXPECT_EQ(Refusal(kJob, {"model.layers=0"}), "--set model.layers=0: model.layers: it must be at least 1, not 0");
  EXPECT_EQ(Refusal(kJob, {"model.layers="}), "--set model.layers=: model.layers: a single value is wanted here");
  EXPECT_EQ(Refusal(kJob, {"model.layers.x=1"}),
            "--set model.layers.x=1: model.layers has no fields; it is a single value");
  EXPECT_EQ(Refusal(kJob, {"phases.0.optimizer.betas.0=1"}),
            "--set phases.0.optimizer.betas.0=1: phases.0.optimizer.betas has no fields; give the whole list");
  EXPECT_EQ(Refusal(kJob, {"model=3"}), "--set model=3: model must be fields, as in {family: …}");
  EXPECT_THAT(Refusal(kJob, {"model.layers=[1"}), HasSubstr("--set model.layers=[1: this is not YAML"));
  for (const char* text : {"model.layers", "", "=3"}) {
    EXPECT_EQ(Refusal(kJob, {text}),
              absl::StrCat("--set ", text, ": FIELD=VALUE is wanted, as in phases.0.stop.max_steps=20"));
  }
}

TEST(JobFile, AWrongIndexOfAnOverrideSaysHowManyThereAre) {
  for (const char* path :
       {"phases.1.name", "phases.-1.name", "phases.x.name", "phases.name", "phases..name", "phases.99999999999.name"}) {
    EXPECT_EQ(Refusal(kJob, {absl::StrCat(path, "=x")}),
              absl::StrCat("--set ", path, "=x: phases is a list of 1; its items are numbered from 0"));
  }
  EXPECT_THAT(Refusal(kJob, {"phases.=x"}), HasSubstr("phases is a list of 1"));
}

}  // namespace
}  // namespace millrace
