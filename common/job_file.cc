#include "common/job_file.h"

#include <re2/re2.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status.h"
#include "common/yaml_message.h"

namespace millrace {
namespace {

uint32_t LargestDivisor(uint32_t number, uint32_t limit) {
  for (uint32_t divisor = std::min(number, limit); divisor > 1; --divisor) {
    if (number % divisor == 0) return divisor;
  }
  return 1;
}

absl::Status Divides(absl::string_view divisor_name, uint64_t divisor, absl::string_view number_name, uint64_t number) {
  if (divisor != 0 && number % divisor == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(divisor_name, " (", divisor, ") does not divide ", number_name, " (", number, ")"));
}

bool IsTransformer(const v1::ModelSpec& model) { return model.family() != "lstm" && model.family() != "cnn"; }

bool IsEncoder(const v1::ModelSpec& model) { return model.family() == "bert"; }

absl::Status CheckLabels(const v1::JobSpec& job) {
  constexpr int kMaxLabels = 64;
  constexpr size_t kMaxLabelBytes = 64;
  if (job.labels_size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat("labels: there are ", job.labels_size(), "; at most ", kMaxLabels));
  }
  for (const auto& [name, value] : job.labels()) {
    MILLRACE_RETURN_IF_ERROR(CheckName("labels", name));
    if (value.size() > kMaxLabelBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("labels.", name, ": ", Shown(value), " has more than ", kMaxLabelBytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckModel(const v1::ModelSpec& model) {
  if (model.has_kernel_size() && model.family() != "cnn") {
    return absl::InvalidArgumentError(
        absl::StrCat("model.kernel_size: the family ", model.family(), " has none; cnn has"));
  }
  if (!IsTransformer(model)) {
    const struct {
      const char* name;
      bool has;
    } of_transformers[] = {{"heads", model.has_heads()},
                           {"kv_heads", model.has_kv_heads()},
                           {"intermediate_size", model.has_intermediate_size()},
                           {"sliding_window", model.has_sliding_window()}};
    for (const auto& field : of_transformers) {
      if (!field.has) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("model.", field.name, ": the family ", model.family(), " has none; transformers have"));
    }
    return absl::OkStatus();
  }
  if (!model.has_heads()) {
    return absl::InvalidArgumentError(absl::StrCat("model.heads is missing: the family ", model.family(), " needs it"));
  }
  MILLRACE_RETURN_IF_ERROR(Divides("model.heads", model.heads(), "model.hidden_size", model.hidden_size()));
  if (model.has_sliding_window() && model.family() != "mistral" && model.family() != "qwen2") {
    return absl::InvalidArgumentError(
        absl::StrCat("model.sliding_window: the family ", model.family(), " has none; mistral and qwen2 have"));
  }
  if (model.family() == "gpt2" || IsEncoder(model)) {
    if (model.has_kv_heads() && model.kv_heads() != model.heads()) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.kv_heads: the family ", model.family(), " has as many as heads; use llama for others"));
    }
    if (!IsEncoder(model)) return absl::OkStatus();
    if (model.has_tied_embeddings() && !model.tied_embeddings()) {
      return absl::InvalidArgumentError("model.tied_embeddings: in the family bert they are always tied");
    }
    if (model.has_bias() && !model.bias()) {
      return absl::InvalidArgumentError("model.bias: the family bert always has biases");
    }
    return absl::OkStatus();
  }
  if (model.has_kv_heads()) {
    MILLRACE_RETURN_IF_ERROR(Divides("model.kv_heads", model.kv_heads(), "model.heads", model.heads()));
  }
  if (model.hidden_size() / model.heads() % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("model.hidden_size / model.heads is ",
                                                   model.hidden_size() / model.heads(),
                                                   "; rotary positions need an even number"));
  }
  return absl::OkStatus();
}

// What a phase whose answers people compare must say.
absl::Status CheckComparing(const v1::PhaseSpec& phase, const std::string& path) {
  if (phase.rollout().samples() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rollout.samples: two answers are compared, not ", phase.rollout().samples()));
  }
  if (phase.compare().from_size() > 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".compare.from: answers of one model or of two are compared, not of ", phase.compare().from_size()));
  }
  if (phase.global_batch() != 1 || phase.stop().max_steps() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nothing is trained where people compare answers; leave out global_batch and stop"));
  }
  return absl::OkStatus();
}

// What a phase that learns from its own answers must say.
absl::Status CheckSampling(const v1::PhaseSpec& phase, const std::string& path) {
  const v1::RolloutSpec& rollout = phase.rollout();
  const v1::PolicySpec& policy = phase.policy();
  if (phase.rewards().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rewards is missing: ", phase.objective(),
                     " learns from what answers are worth, as in rewards: [{type: model, from: reward@best}]"));
  }
  const uint64_t answers = uint64_t{rollout.prompts()} * rollout.samples() * rollout.epochs();
  if (answers == 0 || answers % phase.global_batch() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".global_batch (", phase.global_batch(), ") does not divide rollout.prompts x samples x ",
                     "epochs (", rollout.prompts(), " x ", rollout.samples(), " x ", rollout.epochs(), ")"));
  }
  if (phase.objective() != "ppo" && rollout.samples() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".rollout.samples: ", phase.objective(),
                                                   " compares the answers to a prompt; at least 2 are wanted"));
  }
  // Checkpoints and evaluations lie where a rollout has been learnt from: what it holds need not be kept.
  const uint64_t steps = answers / phase.global_batch();
  const auto whole = [&](absl::string_view field, uint64_t value) {
    if (value % steps == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path, ".", field, ": ", value, " is no multiple of the ", steps,
                                                   " steps in which the answers of a rollout are learnt from"));
  };
  if (phase.stop().has_max_steps()) MILLRACE_RETURN_IF_ERROR(whole("stop.max_steps", phase.stop().max_steps()));
  MILLRACE_RETURN_IF_ERROR(whole("evaluate.every_steps", phase.evaluate().every_steps()));
  MILLRACE_RETURN_IF_ERROR(whole("checkpoint.every_steps", phase.checkpoint().every_steps()));
  if (policy.average() == "answers" && !rollout.has_max_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".rollout.max_tokens is missing: policy.average answers divides by it"));
  }
  if (policy.has_kl_target() && !(policy.kl_coefficient() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".policy.kl_coefficient: adapting it to kl_target needs one above 0 to begin with"));
  }
  for (int i = 0; i < phase.rewards_size(); ++i) {
    const v1::RewardSpec& reward = phase.rewards(i);
    const std::string field = absl::StrCat(path, ".rewards.", i);
    const auto needs = [&](absl::string_view type, absl::string_view name, bool has) {
      if (has == (reward.type() == type)) return absl::OkStatus();
      return absl::InvalidArgumentError(
          has ? absl::StrCat(field, ".", name, ": only for the type ", type, ", not ", reward.type())
              : absl::StrCat(field, ".", name, " is missing: the type ", type, " needs it"));
    };
    MILLRACE_RETURN_IF_ERROR(needs("model", "from", reward.has_from()));
    MILLRACE_RETURN_IF_ERROR(needs("length", "target", reward.has_target()));
    MILLRACE_RETURN_IF_ERROR(needs("pattern", "pattern", reward.has_pattern()));
    // Before hours of earlier phases, not behind them.
    if (const re2::RE2 pattern(reward.pattern(), re2::RE2::Quiet); !pattern.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".pattern: ", Shown(reward.pattern()), " is no regular expression: ", pattern.error()));
    }
  }
  return absl::OkStatus();
}

// What a phase whose model writes at evaluations must say.
absl::Status CheckSamples(const v1::PhaseSpec& phase, const std::string& path) {
  constexpr int kMaxPrompts = 8;
  constexpr size_t kMaxPromptBytes = 4096;
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  if (!traits.learns || traits.trains_rewards || traits.hides) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": only for models that write text and are evaluated, not for ", phase.objective()));
  }
  const auto& prompts = phase.evaluate().samples().prompts();
  if (prompts.size() > kMaxPrompts) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".prompts: there are ", prompts.size(), "; at most ", kMaxPrompts));
  }
  for (int i = 0; i < prompts.size(); ++i) {
    if (prompts[i].size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".prompts.", i, ": ", prompts[i].size(), " bytes; at most ", kMaxPromptBytes));
    }
    if (prompts[i].empty() && !traits.data.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".prompts.", i, " is empty: in a phase of conversations a prompt is what a user says"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPhase(const v1::PhaseSpec& phase, const std::string& path) {
  MILLRACE_RETURN_IF_ERROR(CheckName(path + ".name", phase.name()));
  const uint32_t microbatch = phase.has_microbatch() ? phase.microbatch() : LargestDivisor(phase.global_batch(), 4);
  MILLRACE_RETURN_IF_ERROR(Divides(path + ".microbatch", microbatch, path + ".global_batch", phase.global_batch()));
  MILLRACE_RETURN_IF_ERROR(Divides(path + ".unit_microbatches", std::max(1u, phase.unit_microbatches()),
                                   path + ".global_batch / microbatch", phase.global_batch() / microbatch));
  if (!phase.stop().has_max_steps() && !phase.stop().has_max_epochs()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".stop: max_steps or max_epochs is needed"));
  }
  if (phase.replay() > 0 && phase.objective() == "causal_lm" && phase.has_data()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".replay: for sft; to mix texts, list the job's sources among the phase's own"));
  }
  if (phase.replay() > 0 && !phase.has_data()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".replay: a phase without data of its own trains on the job's text anyway; give it data, or no replay"));
  }
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  if (!traits.data.empty() && !phase.has_data()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".data is missing: the ", traits.data, " that ", phase.objective(), " learns from"));
  }
  if (phase.replay() > 0 && phase.objective() != "sft") {
    return absl::InvalidArgumentError(absl::StrCat(path, ".replay: only for sft, not ", phase.objective()));
  }
  if (phase.objective() == "kto" && microbatch < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".microbatch: kto measures its answers against those to other prompts of the microbatch; at least 2"));
  }
  const auto only = [&](absl::string_view field, bool has, bool may, absl::string_view objectives) {
    if (!has || may) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".", field, ": only for ", objectives, ", not ", phase.objective()));
  };
  MILLRACE_RETURN_IF_ERROR(only("centering", phase.has_centering(), traits.trains_rewards, "reward"));
  MILLRACE_RETURN_IF_ERROR(only("preference", phase.has_preference(), traits.prefers, "dpo, ipo, orpo and kto"));
  MILLRACE_RETURN_IF_ERROR(only("compare", phase.has_compare(), !traits.learns, "compare"));
  MILLRACE_RETURN_IF_ERROR(only("rollout", phase.has_rollout(), traits.samples, "compare, ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(
      only("rewards", phase.rewards_size() > 0, traits.samples && traits.learns, "ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(only("policy", phase.has_policy(), traits.samples && traits.learns, "ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(
      only("reference", phase.has_reference(), traits.has_reference, "dpo, ipo, kto, ppo, grpo and rloo"));
  MILLRACE_RETURN_IF_ERROR(only("mask", phase.has_mask(), traits.hides, "masked_lm"));
  if (phase.mask().masked() + phase.mask().random() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".mask: masked (", phase.mask().masked(), ") and random (",
                                                   phase.mask().random(),
                                                   ") are shares of the hidden tokens; together at most 1"));
  }
  if (phase.evaluate().has_samples()) MILLRACE_RETURN_IF_ERROR(CheckSamples(phase, path + ".evaluate.samples"));
  if (!traits.learns) return CheckComparing(phase, path);
  if (traits.samples) MILLRACE_RETURN_IF_ERROR(CheckSampling(phase, path));
  const v1::OptimizerSpec& optimizer = phase.optimizer();
  if (optimizer.betas_size() != 2 && optimizer.betas_size() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.betas: two numbers are wanted, not ", optimizer.betas_size()));
  }
  if (optimizer.has_gradient_bits() && optimizer.gradient_bits() != 16 && optimizer.gradient_bits() != 32) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.gradient_bits: 16 or 32 is wanted, not ", optimizer.gradient_bits()));
  }
  if (optimizer.has_weight_bits() && optimizer.weight_bits() != 32 && optimizer.weight_bits() != 16) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".optimizer.weight_bits: 16 or 32 is wanted, not ", optimizer.weight_bits()));
  }
  return absl::OkStatus();
}

// An encoder learns from hidden tokens, and nothing else does.
absl::Status CheckFamily(const v1::ModelSpec& model, const v1::PhaseSpec& phase, const std::string& path) {
  const bool hides = TraitsOf(phase.objective()).hides;
  if (IsEncoder(model) && !hides) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".objective: the family ", model.family(),
                                                   " is an encoder, which learns by masked_lm and not by ",
                                                   phase.objective()));
  }
  if (hides && !IsEncoder(model)) {
    return absl::InvalidArgumentError(absl::StrCat(path,
                                                   ".objective: masked_lm needs an encoder, as in model.family "
                                                   "bert; ",
                                                   model.family(), " predicts the next token"));
  }
  const uint32_t least = phase.mask().next_sentence() ? 5 : 3;
  if (hides && model.context() < least) {
    return absl::InvalidArgumentError(absl::StrCat("model.context: sequences of masked_lm have [CLS], [SEP] and text; ",
                                                   model.context(), " tokens are too few, at least ", least));
  }
  return absl::OkStatus();
}

// A model is an earlier phase's checkpoint, or a folder. `earlier`: objectives by phase. `rewards`: of which kind it is
// to be.
absl::Status CheckStart(const std::string& from, bool rewards, const std::map<std::string, std::string>& earlier,
                        const std::string& path) {
  const std::optional<PhaseStart> start = ParsePhaseStart(from);
  if (!start.has_value()) return absl::OkStatus();
  uint64_t step = 0;
  if (start->which != "best" && start->which != "last" && !absl::SimpleAtoi(start->which, &step)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", Shown(start->which),
                                                   " is no checkpoint; best, last or a step is wanted, as in ",
                                                   start->phase, "@best"));
  }
  const auto found = earlier.find(start->phase);
  if (found == earlier.end()) {
    const auto name = [](std::string* out, const auto& phase) { out->append(phase.first); };
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": there is no earlier phase ", Shown(start->phase), "; ",
        earlier.empty() ? "none comes before" : absl::StrCat("there is ", absl::StrJoin(earlier, ", ", name)),
        ". A folder whose name has an @ is given as ./", from));
  }
  if (!TraitsOf(found->second).learns) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": phase ", start->phase, " has the objective compare, which trains no model"));
  }
  if (TraitsOf(found->second).trains_rewards != rewards) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": phase ", start->phase, " has the objective ", found->second, "; ",
                     rewards ? "one that trains a reward model is wanted" : "a reward model cannot continue text"));
  }
  return absl::OkStatus();
}

// Ratings are of an earlier phase in which people compare answers, and are pairs.
absl::Status CheckRatings(const v1::PhaseSpec& phase, const std::map<std::string, std::string>& earlier,
                          const std::string& path) {
  for (int i = 0; i < phase.data().sources_size(); ++i) {
    const std::optional<std::string> rated = RatedPhase(phase.data().sources(i));
    if (!rated.has_value()) continue;
    const std::string field = absl::StrCat(path, ".data.sources.", i, ".path");
    const auto found = earlier.find(*rated);
    if (found == earlier.end() || TraitsOf(found->second).learns) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": there is no earlier phase ", Shown(*rated), " of the objective compare"));
    }
    if (!TraitsOf(phase.objective()).pairs) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": ratings are pairs of answers, from which ", phase.objective(), " does not learn"));
    }
  }
  return absl::OkStatus();
}

// All models that a phase begins with.
absl::Status CheckStarts(const v1::JobSpec& job, int index, const std::map<std::string, std::string>& earlier) {
  const v1::PhaseSpec& phase = job.phases(index);
  const std::string path = absl::StrCat("phases.", index);
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  // A reward model may go on from either.
  const std::optional<PhaseStart> start = ParsePhaseStart(phase.from());
  const auto of = earlier.find(start.has_value() ? start->phase : "");
  const bool from_rewards = traits.trains_rewards && of != earlier.end() && TraitsOf(of->second).trains_rewards;
  MILLRACE_RETURN_IF_ERROR(CheckStart(phase.from(), from_rewards, earlier, path + ".from"));
  MILLRACE_RETURN_IF_ERROR(CheckStart(phase.reference(), false, earlier, path + ".reference"));
  for (int i = 0; i < phase.compare().from_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(
        CheckStart(phase.compare().from(i), false, earlier, absl::StrCat(path, ".compare.from.", i)));
  }
  for (int i = 0; i < phase.rewards_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(
        CheckStart(phase.rewards(i).from(), true, earlier, absl::StrCat(path, ".rewards.", i, ".from")));
  }
  const std::optional<PhaseStart> value = ParsePhaseStart(phase.policy().value_from());
  const auto value_of = earlier.find(value.has_value() ? value->phase : "");
  const bool value_from_rewards = value_of != earlier.end() && TraitsOf(value_of->second).trains_rewards;
  MILLRACE_RETURN_IF_ERROR(
      CheckStart(phase.policy().value_from(), value_from_rewards, earlier, path + ".policy.value_from"));
  const bool begins = traits.has_reference || traits.trains_rewards || !traits.learns || phase.objective() == "orpo";
  if (begins && phase.compare().from().empty() && StartOfPhase(job, index).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".from is missing: ", phase.objective(),
                                                   " begins with a trained model, of an earlier phase or a folder"));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<PhaseStart> ParsePhaseStart(absl::string_view from) {
  const size_t at = from.rfind('@');
  if (at == absl::string_view::npos || from.find('/') != absl::string_view::npos) return std::nullopt;
  return PhaseStart{std::string(from.substr(0, at)), std::string(from.substr(at + 1))};
}

ObjectiveTraits TraitsOf(absl::string_view objective) {
  ObjectiveTraits traits;
  traits.predicts_text = objective.empty() || objective == "causal_lm" || objective == "sft";
  if (objective.empty() || objective == "causal_lm") return traits;
  traits.hides = objective == "masked_lm";
  if (traits.hides) return traits;
  traits.data = "conversations";
  if (objective == "sft") return traits;
  traits.trains_rewards = objective == "reward";
  traits.learns = objective != "compare";
  traits.samples = objective == "compare" || objective == "ppo" || objective == "grpo" || objective == "rloo";
  traits.prefers = objective == "dpo" || objective == "ipo" || objective == "orpo" || objective == "kto";
  traits.has_reference = (traits.samples && traits.learns) || (traits.prefers && objective != "orpo");
  traits.pairs = traits.trains_rewards || (traits.prefers && objective != "kto");
  traits.data = traits.samples ? "prompts" : traits.pairs ? "pairs of answers" : "answers with labels";
  return traits;
}

std::optional<std::string> RatedPhase(const v1::SourceSpec& source) {
  const std::optional<PhaseStart> named = ParsePhaseStart(source.path());
  if (!named.has_value() || named->which != "ratings") return std::nullopt;
  return named->phase;
}

bool LearnsFromRatings(const v1::PhaseSpec& phase) {
  const auto& sources = phase.data().sources();
  return std::any_of(sources.begin(), sources.end(),
                     [](const v1::SourceSpec& source) { return RatedPhase(source).has_value(); });
}

std::string StartOfPhase(const v1::JobSpec& job, int phase) {
  if (!job.phases(phase).from().empty()) return job.phases(phase).from();
  while (--phase >= 0) {
    const ObjectiveTraits traits = TraitsOf(job.phases(phase).objective());
    if (traits.learns && !traits.trains_rewards) return job.phases(phase).name() + "@best";
  }
  return "";
}

uint32_t TextContext(const v1::ModelSpec& model, const v1::PhaseSpec& phase) {
  const std::string& type = phase.adapter().type();
  const bool before = type == "prompt_tuning" || type == "p_tuning" || type == "prefix_tuning" || type == "p_tuning_v2";
  return before ? model.context() - phase.adapter().virtual_tokens() : model.context();
}

uint64_t StepsOfRollout(const v1::PhaseSpec& phase) {
  return uint64_t{phase.rollout().prompts()} * phase.rollout().samples() * phase.rollout().epochs() /
         phase.global_batch();
}

void FillPhaseSteps(v1::PhaseSpec* phase) {
  if (phase->optimizer().has_decay_steps() || !phase->stop().has_max_steps()) return;
  phase->mutable_optimizer()->set_decay_steps(
      static_cast<uint32_t>(std::min<uint64_t>(phase->stop().max_steps(), std::numeric_limits<uint32_t>::max())));
}

namespace {

// The phase whose checkpoint a phase starts from; null: there is none.
const v1::PhaseSpec* PhaseOfStart(const v1::JobSpec& job, int phase) {
  std::string from = StartOfPhase(job, phase);
  if (job.phases(phase).compare().from_size() > 0) from = job.phases(phase).compare().from(0);
  const std::optional<PhaseStart> start = ParsePhaseStart(from);
  for (int i = 0; start.has_value() && i < phase; ++i) {
    if (job.phases(i).name() == start->phase) return &job.phases(i);
  }
  return nullptr;
}

absl::Status CheckAdapter(const v1::JobSpec& job, int index) {
  const v1::PhaseSpec& phase = job.phases(index);
  if (!phase.has_adapter()) return absl::OkStatus();
  const v1::AdapterSpec& adapter = phase.adapter();
  const std::string& type = adapter.type();
  const std::string path = absl::StrCat("phases.", index, ".adapter");
  const auto wrong = [&path](absl::string_view field, absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, field, ": ", what));
  };
  if (!IsTransformer(job.model()) || IsEncoder(job.model())) {
    return wrong(
        "", absl::StrCat("adapters are for decoder transformers; the family ", job.model().family(), " takes none"));
  }
  if (StartOfPhase(job, index).empty() && phase.compare().from().empty()) {
    return wrong("", "an adapter goes on a trained model, of an earlier phase or a folder; the phase starts from none");
  }
  const bool lora = type == "lora", adalora = type == "adalora";
  const bool low_rank = lora || adalora, linear = low_rank || type == "ia3";
  const bool table = type == "prompt_tuning" || type == "p_tuning_v2" || type == "llama_adapter";
  const struct {
    const char* name;
    bool has, may;
    const char* types;
  } only[] = {
      {".targets", adapter.targets_size() > 0, linear, "lora, adalora and ia3"},
      {".rank", adapter.has_rank(), low_rank, "lora and adalora"},
      {".alpha", adapter.has_alpha(), low_rank, "lora and adalora"},
      {".dropout", adapter.dropout() > 0, low_rank, "lora and adalora"},
      {".rank_stabilized", adapter.rank_stabilized(), lora, "lora"},
      {".dora", adapter.dora(), lora, "lora"},
      {".feedforward_targets", adapter.feedforward_targets_size() > 0, type == "ia3", "ia3"},
      {".virtual_tokens", adapter.has_virtual_tokens(), !linear, "those that have virtual tokens"},
      {".init_text", adapter.has_init_text(), type == "prompt_tuning", "prompt_tuning"},
      {".init_std", adapter.has_init_std(), table, "prompt_tuning, p_tuning_v2 and llama_adapter"},
      {".encoder_hidden_size", adapter.has_encoder_hidden_size(), type == "p_tuning" || type == "prefix_tuning",
       "p_tuning and prefix_tuning"},
      {".layers", adapter.has_layers(), type == "llama_adapter", "llama_adapter"},
      {".encoder", adapter.has_encoder(), type == "p_tuning", "p_tuning"},
      {".target_rank", adapter.has_target_rank(), adalora, "adalora"},
      {".warmup_steps", adapter.has_warmup_steps(), adalora, "adalora"},
      {".final_steps", adapter.has_final_steps(), adalora, "adalora"},
      {".allocate_every", adapter.has_allocate_every(), adalora, "adalora"},
      {".importance_decay", adapter.importance_decay_size() > 0, adalora, "adalora"},
      {".orthogonality", adapter.has_orthogonality(), adalora, "adalora"},
  };
  for (const auto& field : only) {
    if (field.has && !field.may) return wrong(field.name, absl::StrCat("only for ", field.types, ", not ", type));
  }
  if (adapter.layers() > job.model().layers()) {
    return wrong(".layers", absl::StrCat(adapter.layers(), " where the model has ", job.model().layers()));
  }
  if (job.model().context() < adapter.virtual_tokens() + 2) {
    return wrong(".virtual_tokens", absl::StrCat(adapter.virtual_tokens(), " leave no room for text in a context of ",
                                                 job.model().context()));
  }
  if (adapter.target_rank() > adapter.rank()) {
    return wrong(".target_rank", absl::StrCat(adapter.target_rank(), " where rank is ", adapter.rank()));
  }
  if (adalora && adapter.importance_decay_size() != 2) {
    return wrong(".importance_decay", absl::StrCat(adapter.importance_decay_size(), " numbers where two are wanted"));
  }
  const uint64_t steps = phase.stop().max_steps();
  if (adalora && phase.stop().has_max_steps() && uint64_t{adapter.warmup_steps()} + adapter.final_steps() >= steps) {
    return wrong("", absl::StrCat("warmup_steps of ", adapter.warmup_steps(), " and final_steps of ",
                                  adapter.final_steps(), " leave none of ", steps, " to choose what is kept"));
  }
  if (phase.trainable().has_last_layers()) {
    return wrong("", "with an adapter the model's own layers are not trained; drop trainable.last_layers");
  }
  const v1::PhaseSpec* const start = PhaseOfStart(job, index);
  if (start == nullptr || !start->has_adapter()) return absl::OkStatus();
  v1::AdapterSpec before = start->adapter(), now = adapter;
  for (v1::AdapterSpec* spec : {&before, &now}) {
    spec->clear_dropout();
    spec->clear_init_text();
    spec->clear_init_std();
    spec->clear_target_rank();
    spec->clear_warmup_steps();
    spec->clear_final_steps();
    spec->clear_allocate_every();
    spec->clear_importance_decay();
    spec->clear_orthogonality();
  }
  if (before.SerializeAsString() == now.SerializeAsString()) return absl::OkStatus();
  return wrong("", absl::StrCat("differs from that of phase ", Shown(start->name()),
                                ", which is trained on: leave it "
                                "out, or export that phase's model with its adapter merged and start from there"));
}

}  // namespace

void FillAdapterDefaults(const v1::ModelSpec& model, v1::AdapterSpec* adapter) {
  FillRuleDefaults(adapter);
  const bool gpt2 = model.family() == "gpt2";
  const std::string& type = adapter->type();
  const bool low_rank = type == "lora" || type == "adalora";
  if (low_rank || type == "ia3") {
    std::vector<absl::string_view> targets;
    if (gpt2) {
      targets.push_back("c_attn");
      if (!low_rank) targets.push_back("mlp.c_proj");
    } else {
      targets.push_back(low_rank ? "q_proj" : "k_proj");
      targets.push_back("v_proj");
      if (!low_rank) targets.push_back("down_proj");
    }
    if (adapter->targets().empty()) {
      for (const absl::string_view target : targets) adapter->add_targets(std::string(target));
      if (!low_rank && adapter->feedforward_targets().empty()) {
        adapter->add_feedforward_targets(std::string(targets.back()));
      }
    }
  }
  if (low_rank) {
    if (!adapter->has_rank()) adapter->set_rank(type == "lora" ? 8 : 12);
    if (!adapter->has_alpha()) adapter->set_alpha(adapter->rank());
  }
  if (type == "adalora") {
    if (!adapter->has_target_rank()) adapter->set_target_rank(std::min(8u, adapter->rank()));
    if (!adapter->has_warmup_steps()) adapter->set_warmup_steps(0);
    if (!adapter->has_final_steps()) adapter->set_final_steps(0);
    if (!adapter->has_allocate_every()) adapter->set_allocate_every(1);
    if (adapter->importance_decay().empty()) {
      for (int i = 0; i < 2; ++i) adapter->add_importance_decay(0.85);
    }
    if (!adapter->has_orthogonality()) adapter->set_orthogonality(0.5);
  }
  const bool prompts = type == "prompt_tuning" || type == "p_tuning" || type == "prefix_tuning" ||
                       type == "p_tuning_v2" || type == "llama_adapter";
  if (prompts && !adapter->has_virtual_tokens()) adapter->set_virtual_tokens(8);
  const bool random = type == "prompt_tuning" || type == "p_tuning_v2" || type == "llama_adapter";
  if (random && !adapter->has_init_std()) adapter->set_init_std(0.02);
  const bool network = type == "p_tuning" || type == "prefix_tuning";
  if (network && !adapter->has_encoder_hidden_size()) adapter->set_encoder_hidden_size(model.hidden_size());
  if (type == "p_tuning" && !adapter->has_encoder()) adapter->set_encoder("mlp");
  if (type == "llama_adapter" && !adapter->has_layers()) adapter->set_layers(model.layers());
}

namespace {

// BERT's epsilon, and the tokens of its sequences.
void FillEncoderDefaults(v1::JobSpec* job) {
  if (!job->model().has_norm_epsilon()) job->mutable_model()->set_norm_epsilon(1e-12);
  auto& tokens = *job->mutable_tokenizer()->mutable_special_tokens();
  for (const char* token : {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}) {
    if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) *tokens.Add() = token;
  }
}

}  // namespace

void FillDefaults(v1::JobSpec* job) {
  const v1::ChatSpec* chat = nullptr;  // of the last phase that has one
  for (v1::PhaseSpec& phase : *job->mutable_phases()) {
    const ObjectiveTraits traits = TraitsOf(phase.objective());
    if (!traits.data.empty() && !phase.has_chat()) {
      *phase.mutable_chat() = chat == nullptr ? v1::ChatSpec() : *chat;
    }
    if (phase.has_chat()) chat = &phase.chat();
    if (traits.samples) phase.mutable_rollout();
    if (traits.samples && traits.learns) phase.mutable_policy();
    if (!traits.learns) {
      // Nothing is trained: what every phase must say has one value.
      phase.mutable_compare();
      if (!phase.has_global_batch()) phase.set_global_batch(1);
      if (!phase.stop().has_max_steps()) phase.mutable_stop()->set_max_steps(1);
      if (!phase.rollout().has_samples()) phase.mutable_rollout()->set_samples(2);
    }
    if (traits.prefers) phase.mutable_preference();
    if (traits.trains_rewards && !phase.has_centering()) phase.set_centering(0.01);
    if (traits.hides) phase.mutable_mask();
  }
  v1::ModelSpec& model = *job->mutable_model();
  if (IsEncoder(model)) FillEncoderDefaults(job);
  FillRuleDefaults(job);
  if (model.family() == "cnn" && !model.has_kernel_size()) model.set_kernel_size(3);
  if (!model.has_kv_heads() && model.has_heads() && IsTransformer(model)) model.set_kv_heads(model.heads());
  if (!model.has_intermediate_size() && model.has_hidden_size() && IsTransformer(model)) {
    const uint64_t hidden = model.hidden_size();
    model.set_intermediate_size(
        static_cast<uint32_t>(model.family() == "gpt2" || IsEncoder(model) ? 4 * hidden : (8 * hidden + 95) / 96 * 32));
  }
  for (int i = 0; i < job->phases_size(); ++i) {
    v1::PhaseSpec& phase = *job->mutable_phases(i);
    if (!phase.has_adapter()) {
      if (const v1::PhaseSpec* start = PhaseOfStart(*job, i); start != nullptr && start->has_adapter()) {
        *phase.mutable_adapter() = start->adapter();
      }
    }
    if (phase.has_adapter()) FillAdapterDefaults(model, phase.mutable_adapter());
  }
  for (v1::PhaseSpec& phase : *job->mutable_phases()) {
    if (!phase.has_microbatch() && phase.has_global_batch())
      phase.set_microbatch(LargestDivisor(phase.global_batch(), 4));
    if (!phase.stop().has_max_epochs()) FillPhaseSteps(&phase);
    if (!phase.optimizer().has_weight_bits()) {
      phase.mutable_optimizer()->set_weight_bits(model.precision() == "bf16" ? 16 : 32);
    }
    if (const ObjectiveTraits traits = TraitsOf(phase.objective()); traits.samples && traits.learns) {
      if (!phase.rollout().has_samples()) {
        phase.mutable_rollout()->set_samples(phase.objective() == "ppo" ? 1 : phase.objective() == "grpo" ? 8 : 4);
      }
      v1::PolicySpec& policy = *phase.mutable_policy();
      if (!policy.has_clip_high()) policy.set_clip_high(policy.clip());
      if (!policy.has_kl_coefficient()) {
        policy.set_kl_coefficient(phase.objective() == "ppo" ? 0.02 : phase.objective() == "grpo" ? 0 : 0.05);
      }
    }
    if (!phase.checkpoint().has_every_steps()) {
      phase.mutable_checkpoint()->set_every_steps(phase.evaluate().every_steps());
    }
  }
}

absl::Status ValidateJob(const v1::JobSpec& job) {
  MILLRACE_RETURN_IF_ERROR(CheckRules(job, ""));
  MILLRACE_RETURN_IF_ERROR(CheckName("name", job.name()));
  MILLRACE_RETURN_IF_ERROR(CheckLabels(job));
  MILLRACE_RETURN_IF_ERROR(CheckModel(job.model()));
  if (!job.has_data() && !job.tokenizer().has_path()) {
    return absl::InvalidArgumentError(
        "data is missing: the text to learn from; a job without needs tokenizer.path, and data in each phase");
  }
  std::map<std::string, std::string> earlier;  // objectives by phase
  for (int i = 0; i < job.phases_size(); ++i) {
    const std::string path = absl::StrCat("phases.", i);
    MILLRACE_RETURN_IF_ERROR(CheckPhase(job.phases(i), path));
    MILLRACE_RETURN_IF_ERROR(CheckFamily(job.model(), job.phases(i), path));
    if (job.model().precision() == "bf16" && job.phases(i).optimizer().weight_bits() == 32) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".optimizer.weight_bits: a model of precision bf16 computes with 16, not 32"));
    }
    if (!job.has_data() && (!job.phases(i).has_data() || job.phases(i).replay() > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, job.phases(i).has_data() ? ".replay" : ".data is missing", ": the job has no text"));
    }
    MILLRACE_RETURN_IF_ERROR(CheckStarts(job, i, earlier));
    MILLRACE_RETURN_IF_ERROR(CheckAdapter(job, i));
    MILLRACE_RETURN_IF_ERROR(CheckRatings(job.phases(i), earlier, path));
    if (!earlier.emplace(job.phases(i).name(), job.phases(i).objective()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".name: there is a phase ", Shown(job.phases(i).name()), " already"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::JobSpec> ParseJob(absl::string_view yaml, absl::string_view file_name,
                                     absl::Span<const std::string> overrides) {
  v1::JobSpec job;
  MILLRACE_RETURN_IF_ERROR(ParseYaml(yaml, {std::string(file_name), "job"}, &job));
  for (const std::string& override_text : overrides) {
    MILLRACE_RETURN_IF_ERROR(ApplyYamlOverride(override_text, "job", &job));
  }
  FillDefaults(&job);
  MILLRACE_RETURN_IF_ERROR(Annotate(ValidateJob(job), file_name));
  return job;
}

absl::StatusOr<v1::JobSpec> ReadJobFile(const std::string& path, absl::Span<const std::string> overrides) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path, kMaxYamlBytes));
  return ParseJob(yaml, path, overrides);
}

}  // namespace millrace
