#include "worker/policy_objective.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/objectives/advantages.h"

namespace millrace::worker {
namespace {

constexpr uint64_t kRolloutPurpose = 0x524F4C4C;     // "ROLL"
constexpr uint64_t kEvaluationPurpose = 0x4556414C;  // "EVAL"
// Answers that are scored together: bits do not depend on it.
constexpr size_t kScoredTogether = 16;
constexpr size_t kMaxPromptsAndAnswers = 1 << 20;  // of a microbatch

double Number(const google::protobuf::Map<std::string, double>& statistics, const char* name) {
  const auto found = statistics.find(name);
  return found == statistics.end() ? 0 : found->second;
}

}  // namespace

PolicyObjective::Valuer::Valuer(const ObjectiveSetting& setting, absl::string_view prefix)
    : model(setting.Model(prefix)),
      training(model.network, setting.compute, /*for_training=*/true),
      evaluation(model.network, setting.compute, /*for_training=*/false) {}

PolicyObjective::PolicyObjective(const ObjectiveSetting& setting, std::unique_ptr<text::Tokenizer> tokenizer,
                                 std::vector<std::optional<RewardProgram>> programs)
    : phase_(setting.context->phase()),
      name_(phase_.objective()),
      vocab_size_(setting.context->vocab_size()),
      context_(setting.models->context()),
      groups_(setting.models->groups()),
      temperature_(static_cast<float>(phase_.rollout().temperature())),
      key_(Philox(setting.context->seed()).Derive(kRolloutPurpose + (uint64_t{setting.context->phase_index()} << 32))),
      tokenizer_(std::move(tokenizer)),
      programs_(std::move(programs)),
      sampler_(setting, ""),
      policy_(setting.Model("")),
      reference_(setting.Model(kReference)),
      policy_passes_(policy_.network, setting.compute, /*for_training=*/true),
      reference_passes_(reference_.network, setting.compute, /*for_training=*/false) {
  if (name_ == "ppo") value_.emplace(setting, kValue);
  for (size_t i = 0; i < programs_.size(); ++i) {
    reward_models_.push_back(
        programs_[i].has_value() ? nullptr : std::make_unique<Valuer>(setting, RewardPrefix(static_cast<int>(i))));
  }
}

absl::StatusOr<std::unique_ptr<PolicyObjective>> PolicyObjective::Create(const ObjectiveSetting& setting) {
  const v1::PhaseContext& context = *setting.context;
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<text::Tokenizer> tokenizer,
                            text::ParseTokenizer(context.tokenizer_json(), "the phase's tokenizer"));
  if (tokenizer->vocab_size() != context.vocab_size() || context.end_of_turn() >= context.vocab_size()) {
    return absl::InvalidArgumentError(absl::StrCat("the phase's tokenizer has ", tokenizer->vocab_size(),
                                                   " tokens, and answers end with ", context.end_of_turn(),
                                                   ", where the model has ", context.vocab_size()));
  }
  std::vector<std::optional<RewardProgram>> programs;
  for (int i = 0; i < context.phase().rewards_size(); ++i) {
    std::optional<RewardProgram>& program = programs.emplace_back();
    if (context.phase().rewards(i).type() == "model") continue;
    absl::StatusOr<RewardProgram> made = RewardProgram::Create(context.phase().rewards(i));
    if (!made.ok()) return Annotate(made.status(), absl::StrCat("rewards.", i));
    program.emplace(*std::move(made));
  }
  return std::unique_ptr<PolicyObjective>(new PolicyObjective(setting, std::move(tokenizer), std::move(programs)));
}

absl::Status PolicyObjective::CheckExperience(const v1::Experience& experience) const {
  const size_t bytes = experience.tokens().size(), all = bytes / sizeof(uint32_t);
  const auto wrong = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("an experience ", what));
  };
  if (bytes % sizeof(uint32_t) != 0 || all > static_cast<size_t>(context_) || experience.prompt_tokens() == 0 ||
      experience.prompt_tokens() >= all) {
    return wrong(absl::StrCat("of ", bytes, " bytes of tokens, ", experience.prompt_tokens(),
                              " tokens of them a prompt, in a context of ", context_));
  }
  const auto tokens = static_cast<int>(all - experience.prompt_tokens());
  const bool of_each_token = name_ == "ppo";
  if (experience.log_probabilities_size() != tokens || experience.advantages_size() != (of_each_token ? tokens : 1) ||
      experience.values_size() != (of_each_token ? tokens : 0) ||
      experience.returns_size() != (of_each_token ? tokens : 0) ||
      experience.reference_log_probabilities_size() != (name_ == "grpo" ? tokens : 0)) {
    return wrong(absl::StrCat("of ", tokens, " tokens with numbers of others"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PolicyObjective::Count(const v1::Microbatch& microbatch) const {
  if (static_cast<size_t>(microbatch.prompts_size()) * phase_.rollout().samples() > kMaxPromptsAndAnswers ||
      static_cast<size_t>(microbatch.experiences_size()) > kMaxPromptsAndAnswers) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), " is too large"));
  }
  if (microbatch.prompts_size() + microbatch.experiences_size() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("microbatch ", microbatch.index(), " has neither prompts nor experiences"));
  }
  uint64_t tokens = 0;
  for (const v1::Prompt& prompt : microbatch.prompts()) MILLRACE_RETURN_IF_ERROR(sampler_.Check(prompt));
  for (const v1::Experience& experience : microbatch.experiences()) {
    MILLRACE_RETURN_IF_ERROR(CheckExperience(experience));
    tokens += static_cast<uint64_t>(experience.log_probabilities_size());
  }
  if (microbatch.prompts_size() > 0) return static_cast<uint64_t>(microbatch.prompts_size());
  return name_ == "rloo" ? static_cast<uint64_t>(microbatch.experiences_size()) : tokens;
}

// ---- answers ----

PaddedRows PolicyObjective::RowsOf(absl::Span<const Answered> answers) {
  std::vector<PaddedRows::Sequence> sequences;
  for (const Answered& answer : answers) sequences.push_back(answer.sequence());
  return PaddedRows(sequences);
}

absl::StatusOr<std::vector<PolicyObjective::Answered>> PolicyObjective::Answer(const v1::Microbatch& microbatch,
                                                                               uint32_t samples, const Philox& key) {
  MILLRACE_ASSIGN_OR_RETURN(std::vector<SampledAnswer> sampled, sampler_.Sample(microbatch.prompts(), samples, key));
  std::vector<Answered> answers;
  for (SampledAnswer& answer : sampled) answers.emplace_back(std::move(answer));
  return answers;
}

absl::Status PolicyObjective::ScoreByReference(absl::Span<Answered> answers) {
  for (size_t begin = 0; begin < answers.size(); begin += kScoredTogether) {
    const absl::Span<Answered> some = answers.subspan(begin, kScoredTogether);
    const PaddedRows rows = RowsOf(some);
    const model::Batch batch = rows.batch();
    MILLRACE_ASSIGN_OR_RETURN(model::TokenScores* const scores, reference_passes_.For(batch.rows, batch.columns - 1));
    MILLRACE_RETURN_IF_ERROR(scores->Forward(reference_.weights(), batch, {}, model::IgnoreGroup));
    std::vector<float> log_probabilities(static_cast<size_t>(scores->predictions()));
    scores->Score(temperature_, absl::MakeSpan(log_probabilities), {});
    auto next = log_probabilities.begin();
    for (Answered& answer : some) {
      answer.reference_log_probabilities.assign(next, next + static_cast<ptrdiff_t>(answer.tokens()));
      next += static_cast<ptrdiff_t>(answer.tokens());
      for (size_t t = 0; t < answer.tokens(); ++t) {
        answer.divergence += model::K1(static_cast<double>(answer.log_probabilities[t]),
                                       static_cast<double>(answer.reference_log_probabilities[t]));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status PolicyObjective::ForEachValued(
    absl::Span<const Answered> answers, Valuer* valuer,
    absl::FunctionRef<void(size_t answer, absl::Span<const float> values)> each) {
  for (size_t begin = 0; begin < answers.size(); begin += kScoredTogether) {
    const absl::Span<const Answered> some = answers.subspan(begin, kScoredTogether);
    const PaddedRows rows = RowsOf(some);
    const model::TokenMatrix tokens = rows.tokens();
    MILLRACE_ASSIGN_OR_RETURN(model::TokenValues* const passes, valuer->evaluation.For(tokens.rows, tokens.columns));
    std::vector<float> values(static_cast<size_t>(tokens.tokens()));
    MILLRACE_RETURN_IF_ERROR(
        passes->Forward(valuer->model.weights(), tokens, {}, model::IgnoreGroup, absl::MakeSpan(values)));
    const auto columns = static_cast<size_t>(tokens.columns);
    for (size_t row = 0; row < some.size(); ++row) {
      each(begin + row, absl::MakeConstSpan(values).subspan(row * columns, some[row].ids.size()));
    }
  }
  return absl::OkStatus();
}

absl::Status PolicyObjective::Value(absl::Span<Answered> answers) {
  return ForEachValued(answers, &*value_, [&](size_t at, absl::Span<const float> values) {
    // What a token is expected to lead to is the value of the one before.
    const absl::Span<const float> before = values.subspan(answers[at].prompt_tokens - 1, answers[at].tokens());
    answers[at].values.assign(before.begin(), before.end());
  });
}

absl::StatusOr<std::vector<double>> PolicyObjective::RewardsByModel(size_t reward, absl::Span<const Answered> answers) {
  std::vector<double> rewards;
  MILLRACE_RETURN_IF_ERROR(ForEachValued(
      answers, reward_models_[reward].get(),
      [&rewards](size_t, absl::Span<const float> values) { rewards.push_back(static_cast<double>(values.back())); }));
  return rewards;
}

absl::Status PolicyObjective::Reward(absl::Span<Answered> answers, Measured* measured) {
  const auto count = static_cast<double>(answers.size());
  for (size_t i = 0; i < programs_.size(); ++i) {
    const v1::RewardSpec& spec = phase_.rewards(static_cast<int>(i));
    std::vector<double> rewards;
    if (programs_[i].has_value()) {
      for (const Answered& answer : answers) {
        const std::string text = tokenizer_->Decode(answer.said());
        rewards.push_back(programs_[i]->Reward({text, static_cast<int64_t>(answer.tokens()), answer.prompt->answer()}));
      }
    } else {
      MILLRACE_ASSIGN_OR_RETURN(rewards, RewardsByModel(i, answers));
    }
    double sum = 0;
    for (size_t at = 0; at < answers.size(); ++at) {
      sum += rewards[at];
      answers[at].worth += spec.weight() * rewards[at];
    }
    // Those of one type are told apart by their place.
    bool alone = true;
    for (size_t other = 0; other < programs_.size(); ++other) {
      alone = alone && (other == i || phase_.rewards(static_cast<int>(other)).type() != spec.type());
    }
    measured->Add(alone ? absl::StrCat("reward_", spec.type()) : absl::StrCat("reward_", spec.type(), "_", i), sum,
                  count);
  }
  double worth = 0, divergence = 0, tokens = 0, log_probabilities = 0, ended = 0;
  for (Answered& answer : answers) {
    if (!answer.ended) answer.worth -= phase_.policy().missing_end_penalty();
    answer.worth = std::clamp(answer.worth, -phase_.policy().reward_clip(), phase_.policy().reward_clip());
    if (!std::isfinite(answer.worth)) return absl::InvalidArgumentError("the reward of an answer is not finite");
    worth += answer.worth;
    divergence += answer.divergence;
    tokens += static_cast<double>(answer.tokens());
    ended += answer.ended ? 1 : 0;
    for (const float log_probability : answer.log_probabilities) {
      log_probabilities += static_cast<double>(log_probability);
    }
  }
  measured->Add("reward", worth, count);
  measured->Add("kl", divergence, count);
  measured->Add("length", tokens, count);
  measured->Add("ended", ended, count);
  measured->Add("entropy", -log_probabilities, tokens);
  return absl::OkStatus();
}

absl::StatusOr<double> PolicyObjective::Loss(const LossPass& pass, Measured* measured) {
  if (pass.microbatch.prompts().empty()) return absl::InvalidArgumentError("an evaluation without prompts");
  MILLRACE_RETURN_IF_ERROR(AwaitGroups(pass.need, groups_));
  MILLRACE_ASSIGN_OR_RETURN(std::vector<Answered> answers,
                            Answer(pass.microbatch, /*samples=*/1, key_.Derive(kEvaluationPurpose)));
  MILLRACE_RETURN_IF_ERROR(ScoreByReference(absl::MakeSpan(answers)));
  MILLRACE_RETURN_IF_ERROR(Reward(absl::MakeSpan(answers), measured));
  double loss = 0;
  for (const Answered& answer : answers) loss -= answer.worth;
  return loss;
}

void PolicyObjective::FillByPpo(const Answered& answer, double kl_coefficient, v1::Experience* experience,
                                Measured* measured) const {
  std::vector<double> rewards, values(answer.values.begin(), answer.values.end()), advantages(answer.tokens());
  for (size_t t = 0; t < answer.tokens(); ++t) {
    rewards.push_back(-kl_coefficient * model::K1(static_cast<double>(answer.log_probabilities[t]),
                                                  static_cast<double>(answer.reference_log_probabilities[t])));
  }
  rewards.back() += answer.worth;
  model::GeneralizedAdvantages(rewards, values, phase_.policy().gamma(), phase_.policy().lambda(),
                               absl::MakeSpan(advantages));
  experience->mutable_values()->Add(answer.values.begin(), answer.values.end());
  experience->mutable_advantages()->Add(advantages.begin(), advantages.end());
  double sum = 0, squares = 0, value = 0;
  for (size_t t = 0; t < answer.tokens(); ++t) {
    experience->add_returns(advantages[t] + values[t]);
    sum += advantages[t];
    squares += advantages[t] * advantages[t];
    value += values[t];
  }
  const auto tokens = static_cast<double>(answer.tokens());
  measured->Add("advantage", sum, tokens);
  measured->Add("advantage_square", squares, tokens);
  measured->Add("value", value, tokens);
}

absl::StatusOr<std::vector<v1::Experience>> PolicyObjective::Rollout(const RolloutPass& pass, Measured* measured) {
  if (pass.microbatch.prompts().empty()) return absl::InvalidArgumentError("a rollout without prompts");
  const uint32_t samples = phase_.rollout().samples();
  const double kl_coefficient = Number(pass.statistics, "kl_coefficient");
  MILLRACE_RETURN_IF_ERROR(AwaitGroups(pass.need, groups_));
  MILLRACE_ASSIGN_OR_RETURN(std::vector<Answered> answers, Answer(pass.microbatch, samples, key_));
  MILLRACE_RETURN_IF_ERROR(ScoreByReference(absl::MakeSpan(answers)));
  if (value_.has_value()) MILLRACE_RETURN_IF_ERROR(Value(absl::MakeSpan(answers)));
  MILLRACE_RETURN_IF_ERROR(Reward(absl::MakeSpan(answers), measured));
  // Of all answers to one prompt, one after another.
  std::vector<double> advantages(answers.size());
  if (name_ != "ppo") {
    std::vector<double> worths;
    for (const Answered& answer : answers) {
      worths.push_back(answer.worth - (name_ == "rloo" ? kl_coefficient * answer.divergence : 0));
    }
    double alike = 0;
    for (size_t begin = 0; begin < answers.size(); begin += samples) {
      const auto group = absl::MakeConstSpan(worths).subspan(begin, samples);
      const auto into = absl::MakeSpan(advantages).subspan(begin, samples);
      if (name_ == "grpo") {
        alike += model::GroupAdvantages(group, phase_.policy().scale_by_deviation(), into) == 0 ? 1 : 0;
      } else {
        model::LeaveOneOutAdvantages(group, into);
        alike += std::count(group.begin(), group.end(), group[0]) == samples ? 1 : 0;
      }
    }
    measured->Add("groups_alike", alike, static_cast<double>(answers.size() / samples));
  }
  std::vector<v1::Experience> experiences;
  for (size_t i = 0; i < answers.size(); ++i) {
    const Answered& answer = answers[i];
    v1::Experience& experience = experiences.emplace_back();
    experience.set_tokens(answer.ids.data(), answer.ids.size() * sizeof(uint32_t));
    experience.set_prompt_tokens(static_cast<uint32_t>(answer.prompt_tokens));
    experience.mutable_log_probabilities()->Add(answer.log_probabilities.begin(), answer.log_probabilities.end());
    if (name_ == "ppo") {
      FillByPpo(answer, kl_coefficient, &experience, measured);
      continue;
    }
    experience.add_advantages(advantages[i]);
    if (name_ == "grpo") {
      experience.mutable_reference_log_probabilities()->Add(answer.reference_log_probabilities.begin(),
                                                            answer.reference_log_probabilities.end());
    }
  }
  return experiences;
}

// ---- learning ----

absl::StatusOr<double> PolicyObjective::Gradients(const GradientPass& pass, Measured* measured) {
  const v1::PolicySpec& spec = phase_.policy();
  model::PolicyOptions options;
  options.clip_low = spec.clip();
  options.clip_high = spec.clip_high();
  options.dual_clip = spec.dual_clip();
  options.entropy_coefficient = spec.entropy_coefficient();
  if (name_ == "grpo") options.kl_coefficient = Number(pass.statistics, "kl_coefficient");
  // An answer whose advantage is 0 adds zeros, unless something else is learnt of it: it need not be computed.
  const bool every = name_ == "ppo" || options.kl_coefficient > 0 || options.entropy_coefficient > 0;
  std::vector<const v1::Experience*> experiences;
  for (const v1::Experience& experience : pass.microbatch.experiences()) {
    if (every || experience.advantages(0) != 0) experiences.push_back(&experience);
  }
  if (experiences.empty()) {
    if (pass.microbatch.experiences().empty()) return absl::InvalidArgumentError("a step without experiences");
    experiences.push_back(&pass.microbatch.experiences(0));
  }
  std::vector<std::vector<uint32_t>> ids;
  std::vector<PaddedRows::Sequence> sequences;
  for (const v1::Experience* const experience : experiences) ids.push_back(IdsOf(experience->tokens()));
  for (size_t i = 0; i < ids.size(); ++i) sequences.push_back({ids[i], experiences[i]->prompt_tokens()});
  const PaddedRows rows(sequences);
  const model::Batch batch = rows.batch();

  MILLRACE_ASSIGN_OR_RETURN(model::TokenScores* const scores, policy_passes_.For(batch.rows, batch.columns - 1));
  const auto need = policy_.Own(pass.need);
  MILLRACE_RETURN_IF_ERROR(scores->Forward(policy_.weights(), batch, {}, need));
  const auto tokens = static_cast<size_t>(scores->predictions());
  const bool with_entropy = options.entropy_coefficient > 0;
  std::vector<float> log_probabilities(tokens), entropies(with_entropy ? tokens : 0);
  scores->Score(temperature_, absl::MakeSpan(log_probabilities), absl::MakeSpan(entropies));

  std::vector<float> derivatives(tokens), d_entropies(entropies.size());
  model::PolicyStatistics statistics;
  double loss = 0;
  if (name_ == "rloo") {
    std::vector<model::PolicyResponse> responses;
    size_t next = 0;
    for (const v1::Experience* const experience : experiences) {
      model::PolicyResponse& response = responses.emplace_back();
      response.advantage = experience->advantages(0);
      for (const float old : experience->log_probabilities()) {
        response.old_log_probability += static_cast<double>(old);
        response.log_probability += static_cast<double>(log_probabilities[next++]);
      }
    }
    std::vector<double> d_responses(responses.size());
    loss = model::SequencePolicyLoss(responses, options, pass.scale, absl::MakeSpan(d_responses), &statistics);
    derivatives.clear();
    for (size_t i = 0; i < experiences.size(); ++i) {
      derivatives.insert(derivatives.end(), static_cast<size_t>(experiences[i]->log_probabilities_size()),
                         static_cast<float>(d_responses[i]));
    }
  } else {
    std::vector<float> old, reference;
    std::vector<double> advantages;
    for (const v1::Experience* const experience : experiences) {
      const auto count = static_cast<size_t>(experience->log_probabilities_size());
      old.insert(old.end(), experience->log_probabilities().begin(), experience->log_probabilities().end());
      reference.insert(reference.end(), experience->reference_log_probabilities().begin(),
                       experience->reference_log_probabilities().end());
      if (experience->advantages_size() == static_cast<int>(count)) {
        advantages.insert(advantages.end(), experience->advantages().begin(), experience->advantages().end());
      } else {
        advantages.insert(advantages.end(), count, experience->advantages(0));
      }
    }
    if (name_ == "ppo" && spec.whiten()) {
      const double mean = Number(pass.statistics, "advantage");
      const double variance = Number(pass.statistics, "advantage_square") - mean * mean;
      model::Whiten(mean, std::sqrt(std::max(0.0, variance)), absl::MakeSpan(advantages));
    }
    if (options.kl_coefficient == 0) reference.clear();
    loss = model::PolicyLoss({log_probabilities, old, advantages, reference, entropies}, options, pass.scale,
                             absl::MakeSpan(derivatives), absl::MakeSpan(d_entropies), &statistics);
  }
  const auto final = policy_.Own(pass.final);
  MILLRACE_RETURN_IF_ERROR(scores->Backward({derivatives, d_entropies, temperature_}, &policy_.trainable,
                                            pass.gradients + policy_.offset, final));
  const auto count = static_cast<double>(statistics.count);
  measured->Add("clipped", static_cast<double>(statistics.clipped), count);
  measured->Add("ratio", statistics.ratio, count);
  measured->Add("kl_of_update", statistics.divergence, count);
  if (value_.has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(const double value_loss, ValueGradients(pass, rows, experiences, measured));
    loss += spec.value_coefficient() * value_loss;
  }
  return loss;
}

absl::StatusOr<double> PolicyObjective::ValueGradients(const GradientPass& pass, const PaddedRows& rows,
                                                       absl::Span<const v1::Experience* const> experiences,
                                                       Measured* measured) {
  const model::TokenMatrix tokens = rows.tokens();
  const ModelInUse& model = value_->model;
  MILLRACE_ASSIGN_OR_RETURN(model::TokenValues* const passes, value_->training.For(tokens.rows, tokens.columns));
  std::vector<float> all(static_cast<size_t>(tokens.tokens())), d_all(all.size());
  const auto need = model.Own(pass.need);
  MILLRACE_RETURN_IF_ERROR(passes->Forward(model.weights(), tokens, {}, need, absl::MakeSpan(all)));
  // Of the tokens before those that the answers are made of.
  std::vector<size_t> places;
  std::vector<float> values, old;
  std::vector<double> returns;
  for (size_t row = 0; row < experiences.size(); ++row) {
    const v1::Experience& experience = *experiences[row];
    for (int t = 0; t < experience.values_size(); ++t) {
      places.push_back(row * static_cast<size_t>(tokens.columns) + experience.prompt_tokens() - 1 +
                       static_cast<size_t>(t));
      values.push_back(all[places.back()]);
      old.push_back(experience.values(t));
      returns.push_back(experience.returns(t));
    }
  }
  std::vector<float> derivatives(values.size());
  model::ValueStatistics statistics;
  const double loss =
      model::ValueLoss(values, old, returns, phase_.policy().value_clip(),
                       pass.scale * phase_.policy().value_coefficient(), absl::MakeSpan(derivatives), &statistics);
  for (size_t i = 0; i < places.size(); ++i) d_all[places[i]] = derivatives[i];
  const auto final = model.Own(pass.final);
  MILLRACE_RETURN_IF_ERROR(passes->Backward(d_all, &model.trainable, pass.gradients + model.offset, final));
  const auto count = static_cast<double>(statistics.count);
  measured->Add("value_loss", statistics.loss, count);
  measured->Add("value_clipped", static_cast<double>(statistics.clipped), count);
  return loss;
}

}  // namespace millrace::worker
