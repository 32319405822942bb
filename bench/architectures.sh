#!/usr/bin/env bash
# Held-out loss of a transformer, an LSTM and gated convolutions on the quickstart's text, each with as many parameters
# (within 0.3 %) and as much compute as the quickstart's LLaMA, and at the best of several learning rates.
#   bench/architectures.sh [MILLRACE] [STEPS]      default build/bin/millrace, 2200; about an hour on 2 cores
# FLOP a token, forward and backward: 6 x (parameters, of which all but the gains and biases are operands of products, and
# a tied embedding is one) + 12 x layers x width x mean positions seen, for attention. Steps of the others make up for
# attention. Elementwise work is not counted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
millrace=${1:-build/bin/millrace}
steps=${2:-2200}
text=runs/quickstart/corpus/kjv.txt
if [ ! -s "$text" ]; then
  echo "SKIPPED: $text is not there; ./quickstart makes it" >&2
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
context=128

# job MODEL STEPS RATE: a job file that differs from examples/quickstart.yaml in these.
job() {
  cat <<YAML
name: architecture
seed: 1
data: {sources: [{path: $PWD/$text}], held_out: 0.02, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 2048}
model: {$1, context: $context, precision: bf16}
phases:
  - name: pretrain
    global_batch: 8
    microbatch: 4
    optimizer: {type: muon, muon_lr: $(awk -v r="$3" 'BEGIN {print 0.02 * r}'),
                lr: $(awk -v r="$3" 'BEGIN {print 8.0e-3 * r}'), weight_decay: 0.1, clip_norm: 1.0,
                schedule: wsd, warmup_steps: $((steps / 44 + 1)), decay_fraction: 0.5}
    evaluate: {every_steps: $(($2 / 8 > 0 ? $2 / 8 : 1))}
    stop: {max_steps: $2}
YAML
}

# field NAME: the first number of that name in the manifest of the best checkpoint.
field() {
  grep -o "\"$1\": *[0-9.e+-]*" "$work/run/jobs/architecture/checkpoints/best/manifest.json" | head -n 1 | sed 's/.*: *//'
}

# FLOP a token that the transformer has beside those of its parameters.
attention=$((12 * 4 * 128 * (context + 1) / 2))

# train_at RATE: sets loss, parameters and seconds (of cores) of `model` trained for `count` steps at that rate.
train_at() {
  local spent
  rm -rf "$work/run"
  job "$model" "$count" "$1" >"$work/job.yaml"
  spent=$( (TIMEFORMAT='%U %S'; time "$millrace" train "$work/job.yaml" --workers 2 --shards 2 --dir "$work/run" \
    >"$work/log" 2>&1) 2>&1) || {
    cat "$work/log" >&2
    exit 1
  }
  seconds=$(awk '{printf "%d", $1 + $2 + 0.5}' <<<"$spent")
  loss=$(sed -n 's/^ *best held-out loss *\([0-9.]*\).*/\1/p' "$work/log")
  parameters=$(field parameters)
  echo "  $name, learning rate x $1: $loss in $seconds s of a core" >&2
}

below() { awk -v a="$1" -v b="$2" 'BEGIN {exit !(a < b)}'; }

# row NAME MODEL ATTENTION: trains at half, once and twice the rate, and further where the best of them lies at an end;
# prints the best.
row() {
  local name=$1 model=$2 of_attention=$3 count=$steps loss parameters seconds
  [ "$of_attention" -gt 0 ] || count=$(awk -v s="$steps" -v p="$transformer" -v a="$attention" \
    'BEGIN {printf "%d", s * (6 * p + a) / (6 * p) + 0.5}')
  local lowest=0.5 highest=2 rate best= best_rate best_seconds
  local queue="0.5 1 2"
  while [ -n "$queue" ]; do
    for rate in $queue; do
      train_at "$rate"
      if [ -z "$best" ] || below "$loss" "$best"; then
        best=$loss best_rate=$rate best_seconds=$seconds
      fi
    done
    queue=
    if [ "$best_rate" = "$lowest" ]; then
      queue=$(awk -v r="$lowest" 'BEGIN {print r / 2}') lowest=$queue
    elif [ "$best_rate" = "$highest" ]; then
      queue=$(awk -v r="$highest" 'BEGIN {print r * 2}') highest=$queue
    fi
  done
  counted=$parameters
  printf '%-12s  %10d  %9d  %6d  %10.3f  %4s  %8.4f  %6d\n' "$name" "$parameters" $((6 * parameters + of_attention)) \
    "$count" "$(awk -v f=$((6 * parameters + of_attention)) -v t=$((count * 8 * context)) 'BEGIN {print f * t / 1e12}')" \
    "$best_rate" "$best" "$best_seconds"
}

printf '%-12s  %10s  %9s  %6s  %10s  %4s  %8s  %6s\n' family parameters FLOP/tok steps TFLOP lr nats/tok core_s
row transformer "family: llama, layers: 4, hidden_size: 128, heads: 4" "$attention"
transformer=$counted
row lstm "family: lstm, layers: 2, hidden_size: 202, init_std: 0.1" 0
row cnn "family: cnn, layers: 8, hidden_size: 129, kernel_size: 3" 0
