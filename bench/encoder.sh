#!/usr/bin/env bash
# How well encoders learn: the share of hidden held-out tokens that they tell, and of pairs of pieces of text of which
# they tell whether the second follows.
#   topics  made here: 1500 documents of 29 words, each of one of four topics of six words. A piece from elsewhere is of
#           another topic three times out of four, so that 7 of 8 pairs can be told at most.
#   kjv     the King James Bible, from Debian's bible-kjv
#   bench/encoder.sh [MILLRACE] [STEPS]      default build/bin/millrace, 4500 (of kjv); 13 minutes on 2 cores that are
#   shared
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
millrace=${1:-build/bin/millrace}
steps=${2:-4500}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

awk 'BEGIN {
  split("sea ship sail wave fish shore|mill corn flour wheel sack stone|king crown sword throne court queen|wood tree leaf bird nest root", topics, "|")
  x = 1
  for (document = 0; document < 1500; ++document) {
    x = x * 16807 % 2147483647
    split(topics[1 + int(x / 65536) % 4], words, " ")
    line = ""
    for (word = 0; word < 29; ++word) {
      x = x * 16807 % 2147483647
      line = line (word ? " " : "") words[1 + int(x / 65536) % 6]
    }
    printf "{\"text\": \"%s\"}\n", line
  }
}' >"$work/topics.jsonl"

# row NAME STEPS: trains NAME.yaml and prints what its best checkpoint says of the held-out text.
row() {
  local began=$SECONDS
  "$millrace" train "$work/$1.yaml" --workers 2 --shards 1 --dir "$work/$1" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
  }
  local manifest=$work/$1/jobs/$1/checkpoints/best/manifest.json seconds=$((SECONDS - began))
  # last NAME: the last number of that name.
  last() { grep -o "\"$1\": *[0-9.e+-]*" "$manifest" | tail -n 1 | sed 's/.*: *//'; }
  printf '%-7s  %10d  %6d  %11.4f  %15.4f  %22.4f  %7d\n' "$1" "$(last parameters)" "$2" "$(last masked_loss)" \
    "$(last masked_accuracy)" "$(last next_sentence_accuracy)" "$seconds"
}

printf '%-7s  %10s  %6s  %11s  %15s  %22s  %7s\n' text parameters steps masked_loss masked_accuracy \
  next_sentence_accuracy seconds
cat >"$work/topics.yaml" <<YAML
name: topics
seed: 1
data: {sources: [{path: topics.jsonl}], held_out: 0.1, clean: {dedup: none}}
tokenizer: {type: bpe, vocab_size: 330}
model: {family: bert, layers: 2, hidden_size: 32, heads: 2, context: 32}
phases:
  - name: pretrain
    objective: masked_lm
    global_batch: 16
    microbatch: 8
    optimizer: {type: muon, lr: 3.0e-3, schedule: wsd, decay_fraction: 0.5, warmup_steps: 20}
    evaluate: {every_steps: 100}
    stop: {max_steps: 500}
YAML
row topics 500

if ! bible -f Gen1:1-Rev22:21 >"$work/kjv.txt" 2>/dev/null; then
  echo "SKIPPED: bible (Debian's bible-kjv) is not there; ./quickstart installs it" >&2
  exit 0
fi
cat >"$work/kjv.yaml" <<YAML
name: kjv
seed: 1
data: {sources: [{path: kjv.txt}], held_out: 0.02}
tokenizer: {type: bpe, vocab_size: 1024}
model: {family: bert, layers: 3, hidden_size: 128, heads: 4, context: 64, precision: bf16}
phases:
  - name: pretrain
    objective: masked_lm
    global_batch: 32
    microbatch: 16
    optimizer: {type: muon, muon_lr: 0.005, lr: 1.0e-3, weight_decay: 0.1, clip_norm: 1.0,
                schedule: wsd, warmup_steps: 100, decay_fraction: 0.4}
    evaluate: {every_steps: $((steps / 12 > 0 ? steps / 12 : 1))}
    stop: {max_steps: $steps}
YAML
row kjv "$steps"
