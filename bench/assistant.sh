#!/usr/bin/env bash
# What examples/assistant.yaml comes to: how often answers to held-out prompts are right after SFT, PPO, GRPO and DPO,
# and how far each is from SFT's model, for three seeds; and whether one worker, and three of which some are killed while
# PPO samples and learns, end with the same bits as two.
#   bench/assistant.sh [MILLRACE]      default build/bin/millrace; about 20 minutes on 2 cores
# Goals: PPO and GRPO take 20 % of what SFT left to be right, at less than 10 nats an answer; 90 % of pairs are ordered
# rightly by the reward model; the job takes less than 25 minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
millrace=$(readlink -f "${1:-build/bin/millrace}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/examples"
examples/assistant/make-data "$work/runs/assistant-data"

# Beside what the example does: GRPO, and DPO, of which the answers are looked at by a phase that learns next to nothing.
cat examples/assistant.yaml - >"$work/examples/all.yaml" <<'END'
  - name: grpo
    objective: grpo
    from: sft@best
    data: {sources: [{path: ../runs/assistant-data/prompts.jsonl}], held_out: 0.1}
    rewards: [{type: answer}]
    rollout: {prompts: 32, samples: 8, max_tokens: 16, evaluation_prompts: 0}
    global_batch: 256
    microbatch: 32
    optimizer: {lr: 3.0e-4, schedule: constant, weight_decay: 0}
    evaluate: {every_steps: 40, max_tokens: 5000}
    stop: {max_steps: 40}
  - name: dpo
    objective: dpo
    from: sft@best
    data: {sources: [{path: ../runs/assistant-data/pairs.jsonl}], held_out: 0.05}
    global_batch: 32
    microbatch: 8
    optimizer: {lr: 5.0e-5, schedule: linear, weight_decay: 0}
    evaluate: {every_steps: 50, max_tokens: 5000}
    stop: {max_steps: 150}
  - name: look
    objective: grpo
    from: dpo@best
    reference: sft@best
    data: {sources: [{path: ../runs/assistant-data/prompts.jsonl}], held_out: 0.1}
    rewards: [{type: answer}]
    rollout: {prompts: 32, samples: 8, max_tokens: 16, evaluation_prompts: 0}
    global_batch: 256
    optimizer: {lr: 1.0e-12, weight_decay: 0}
    evaluate: {every_steps: 1, max_tokens: 5000}
    stop: {max_steps: 1}
END

# statistic PHASE STEP NAME: of the log in $work/log; STEP: a number, or last.
statistic() {
  awk -v phase="$1" -v step="$2" -v name="$3" '
    $1 == phase && $2 == "step" && /held-out loss/ && (step == "last" || $3 == step ":") {
      line = $0
      if (match(line, ", " name " [-0-9.]+")) found = substr(line, RSTART + length(name) + 3, RLENGTH - length(name) - 3)
    }
    END { print found }' "$work/log"
}

printf '%4s  %-8s  %8s  %8s  %10s  %8s\n' seed after right room kl met
for seed in 1 2 3; do
  began=$SECONDS
  "$millrace" train "$work/examples/all.yaml" --workers 2 --shards 2 --dir "$work/run-$seed" --set seed=$seed \
    >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  sft=$(statistic ppo 0 'reward answer')
  # row NAME RIGHT KL GOAL: the share of the room that SFT left, against the goal if there is one.
  row() {
    awk -v seed="$seed" -v name="$1" -v right="$2" -v kl="$3" -v goal="$4" -v sft="$sft" 'BEGIN {
      room = name == "sft" ? 0 : (right - sft) / (1 - sft)
      met = goal == "" ? "" : (room >= goal && kl < 10) ? "yes" : "NO"
      printf "%4d  %-8s  %8.3f  %8.2f  %10.3f  %8s\n", seed, name, right, room, kl, met }'
  }
  row sft "$sft" 0 ""
  row ppo "$(statistic ppo last 'reward answer')" "$(statistic ppo last kl)" 0.2
  row grpo "$(statistic grpo last 'reward answer')" "$(statistic grpo last kl)" 0.2
  row dpo "$(statistic look 0 'reward answer')" "$(statistic look 0 kl)" ""
  accuracy=$(statistic reward last accuracy)
  awk -v seed="$seed" -v a="$accuracy" -v s=$((SECONDS - began)) 'BEGIN {
    met = (a >= 0.9) ? "yes" : "NO"
    printf "%4d  pairs ordered rightly by the reward model: %.3f  %s; %d s in all\n", seed, a, met, s }'
done

# The example itself, seed 1, with 2 workers as above, with 1, and with 3 of which some are killed.
cp examples/assistant.yaml "$work/examples/assistant.yaml"
began=$SECONDS
"$millrace" train "$work/examples/assistant.yaml" --workers 1 --shards 1 --dir "$work/one" >"$work/log" 2>&1
printf 'examples/assistant.yaml with 1 worker: %d s\n' $((SECONDS - began))
"$millrace" train "$work/examples/assistant.yaml" --workers 3 --shards 2 --dir "$work/three" >"$work/log" 2>&1 &
train=$!
for step in 40 80 120; do
  until grep -q "^ppo step $step:" "$work/log"; do
    kill -0 "$train" || { cat "$work/log" >&2; exit 1; }
    sleep 0.2
  done
  pkill -KILL --oldest --parent "$train" --full ' worker '
done
wait "$train"
for run in run-1 one three; do
  last=$(ls "$work/$run/jobs/assistant/checkpoints" | grep '^ppo-' | sort -t- -k2 -n | tail -n 1)
  printf '%-6s  %s  %s\n' "$run" "$last" "$("$millrace" digest "$work/$run/jobs/assistant/checkpoints/$last" | cut -c1-16)"
done
