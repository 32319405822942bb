#!/usr/bin/env bash
# Runs every line of docs/sweeps.md's sh block, waiting for the sweep's end before what asks for its results.
#   sweeps_doc_test.sh MILLRACE SOURCE_FOLDER
set -euo pipefail
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")
document=$source/docs/sweeps.md

work=$(mktemp -d)
cd "$work"
clean_up() {
  "$millrace" down >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT
mkdir -p build/bin
ln -s "$millrace" build/bin/millrace
cp -r "$source/examples" examples

fail() {
  cat out err
  echo "$1" >&2
  exit 1
}

diff <(awk '/^```/ {inside = ($0 == "```yaml"); next} inside' "$document") <(grep -v '^#' examples/sweeps/lr.yaml) ||
  fail "docs/sweeps.md shows another examples/sweeps/lr.yaml"
mapfile -t lines < <(awk '/^```/ {inside = ($0 == "```sh"); next} inside' "$document")
ran=0
for line in "${lines[@]}"; do
  if [[ $line == *" sweep show "* ]]; then
    for _ in $(seq 600); do
      build/bin/millrace sweep show lr >out 2>err || fail "the sweep cannot be shown"
      [[ $(head -n 1 out) == "lr is running" ]] || break
      sleep 0.2
    done
  fi
  echo "== $line"
  timeout 120 bash -c "$line" </dev/null >out 2>err || fail "docs/sweeps.md's command failed: $line"
  cat out
  case $line in
    *" sweep list") grep -q '^lr  .*  6 trials' out || fail "the sweep is not listed" ;;
    *" sweep show "*)
      grep -q '^lr is succeeded' out || fail "the sweep has not ended well"
      [ "$(grep -c ' halved ' out)" = 3 ] || fail "three trials should have been given up"
      [ "$(grep -c '^\* ' out)" = 1 ] || fail "one trial should be the best"
      ;;
    *" jobs --sweep "*) [ "$(grep -c '^lr-[1-6] .*succeeded' out)" = 3 ] || fail "three trials should have succeeded" ;;
    *" curves "*) [ "$(grep -c '^lr-[12],pretrain,held_out_loss,20,' out)" = 2 ] || fail "curves lack the comparison" ;;
  esac
  ran=$((ran + 1))
done
[ "$ran" -ge 8 ] || fail "only $ran commands were found in docs/sweeps.md"
echo "$ran commands ran."
