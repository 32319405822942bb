// Learns from what its own answers are worth: ppo, grpo and rloo.
//
// A rollout answers prompts with the policy at one version and says what the answers are worth; then the policy learns
// from these experiences for some steps. The log-probabilities of both are of one engine, bit for bit
// (model/rollouts.h), at the sampling temperature. Nothing is dropped out.
//
//   ppo   Ouyang et al. 2022: reward of a token: -β (log π - log π_reference); of the last one besides what the answer
//         is worth; generalised advantages, whitened over the rollout; a value model
//   grpo  Shao et al. 2024: worth against the group of answers to the prompt; β k3 in the loss
//   rloo  Ahmadian et al. 2024: worth, less β times the answer's divergence, against the others' mean; a ratio an
//   answer
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/philox.h"
#include "model/objectives/policy.h"
#include "model/objectives/token_scores.h"
#include "model/objectives/token_values.h"
#include "text/tokenizer.h"
#include "worker/objective.h"
#include "worker/padded_rows.h"
#include "worker/reward_programs.h"
#include "worker/sampler.h"

namespace millrace::worker {

// Of experiences it counts tokens (rloo: answers); of prompts, answers.
class PolicyObjective : public Objective {
 public:
  static absl::StatusOr<std::unique_ptr<PolicyObjective>> Create(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  // Answers each prompt once: minus what the answers are worth. The same draws at every version.
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  // Learns from experiences.
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;
  absl::StatusOr<std::vector<v1::Experience>> Rollout(const RolloutPass& pass, Measured* measured) override;

 private:
  // What is known of an answer. [n]: its tokens.
  struct Answered : SampledAnswer {
    explicit Answered(SampledAnswer answer) : SampledAnswer(std::move(answer)) {}

    std::vector<float> reference_log_probabilities;  // [n]
    std::vector<float> values;                       // [n], of what precedes each; ppo
    double worth = 0;                                // its reward, before the divergence's cost
    double divergence = 0;                           // Σ k1 from the reference
  };

  // A model with a scalar head.
  struct Valuer {
    Valuer(const ObjectiveSetting& setting, absl::string_view prefix);
    ModelInUse model;
    PassMemory<model::TokenValues> training, evaluation;
  };

  PolicyObjective(const ObjectiveSetting& setting, std::unique_ptr<text::Tokenizer> tokenizer,
                  std::vector<std::optional<RewardProgram>> programs);

  absl::Status CheckExperience(const v1::Experience& experience) const;
  absl::StatusOr<std::vector<Answered>> Answer(const v1::Microbatch& microbatch, uint32_t samples, const Philox& key);
  absl::Status ScoreByReference(absl::Span<Answered> answers);
  static PaddedRows RowsOf(absl::Span<const Answered> answers);
  // Gives each answer's values, of all tokens of its sequence, in the order of the answers.
  absl::Status ForEachValued(absl::Span<const Answered> answers, Valuer* valuer,
                             absl::FunctionRef<void(size_t answer, absl::Span<const float> values)> each);
  absl::Status Value(absl::Span<Answered> answers);
  absl::Status Reward(absl::Span<Answered> answers, Measured* measured);
  // The reward model's of each answer.
  absl::StatusOr<std::vector<double>> RewardsByModel(size_t reward, absl::Span<const Answered> answers);
  void FillByPpo(const Answered& answer, double kl_coefficient, v1::Experience* experience, Measured* measured) const;
  absl::StatusOr<double> ValueGradients(const GradientPass& pass, const PaddedRows& rows,
                                        absl::Span<const v1::Experience* const> experiences, Measured* measured);

  const v1::PhaseSpec& phase_;
  const std::string& name_;
  const uint32_t vocab_size_;
  const int64_t context_;
  const uint32_t groups_;
  const float temperature_;
  const Philox key_;
  const std::unique_ptr<text::Tokenizer> tokenizer_;
  const std::vector<std::optional<RewardProgram>> programs_;  // by reward; nothing: a model
  Sampler sampler_;
  const ModelInUse policy_, reference_;
  PassMemory<model::TokenScores> policy_passes_, reference_passes_;
  std::optional<Valuer> value_;                         // ppo
  std::vector<std::unique_ptr<Valuer>> reward_models_;  // by reward; null: a program
};

}  // namespace millrace::worker
