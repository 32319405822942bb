#!/usr/bin/env bash
# Held-out loss of the Shakespeare jobs in examples/, each on a local cluster of 2 workers and 2 shards.
#   bench/quality.sh [MILLRACE]      default build/bin/millrace; about 15 minutes on 2 cores
# Goals: nanoGPT's published 1.88 nats a character for shakespeare-char, 1.65 for the best recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
millrace=${1:-build/bin/millrace}
text=../shared/data/tinyshakespeare.txt
if [ ! -s "$text" ]; then
  echo "SKIPPED: $text is not there" >&2
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# row JOB GOAL [--set …]: trains and prints a row of the table.
row() {
  local job=$1 goal=$2
  shift 2
  local dir=$work/run began=$SECONDS
  rm -rf "$dir"
  "$millrace" train "examples/$job.yaml" --workers 2 --shards 2 --dir "$dir" "$@" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
  }
  local loss
  loss=$(sed -n 's/^ *best held-out loss *\([0-9.]*\).*/\1/p' "$work/log")
  printf '%-24s  %-44s  %6s  %6s  %6s  %5d\n' "$job" "$*" "$loss" "$goal" \
    "$(awk -v l="$loss" -v g="$goal" 'BEGIN {print l <= g ? "yes" : "NO"}')" $((SECONDS - began))
}

printf '%-24s  %-44s  %6s  %6s  %6s  %5s\n' job settings nats goal met s
for precision in f32 bf16; do
  row shakespeare-char 1.88 --set model.precision=$precision
done
for seed in 1 2 3; do
  row shakespeare-char-best 1.65 --set seed=$seed
done
row shakespeare-char-best 1.65 --set model.precision=bf16
