#!/usr/bin/env bash
# Runs every line of docs/sweeps.md's sh block, waiting for the sweep's end before what asks for its results.
#   sweeps_doc_test.sh MILLRACE SOURCE_FOLDER
. "$(dirname "$0")/document.sh"

before() {
  [[ $1 == *" sweep show "* ]] || return 0
  for _ in $(seq 600); do
    build/bin/millrace sweep show lr >out 2>err || fail "the sweep cannot be shown"
    [[ $(head -n 1 out) == "lr is running" ]] || return 0
    sleep 0.2
  done
}
after() {
  case $1 in
    *" sweep list") grep -q '^lr  .*  6 trials' out || fail "the sweep is not listed" ;;
    *" sweep show "*)
      grep -q '^lr is succeeded' out || fail "the sweep has not ended well"
      [ "$(grep -c ' halved ' out)" = 3 ] || fail "three trials should have been given up"
      [ "$(grep -c '^\* ' out)" = 1 ] || fail "one trial should be the best"
      ;;
    *" jobs --sweep "*) [ "$(grep -c '^lr-[1-6] .*succeeded' out)" = 3 ] || fail "three trials should have succeeded" ;;
    *" curves "*) [ "$(grep -c '^lr-[12],pretrain,held_out_loss,20,' out)" = 2 ] || fail "curves lack the comparison" ;;
  esac
}
diff <(block sweeps.md yaml) <(grep -v '^#' examples/sweeps/lr.yaml) >&2 ||
  { echo "docs/sweeps.md shows another examples/sweeps/lr.yaml" >&2 && exit 1; }
run_lines sweeps.md 8
