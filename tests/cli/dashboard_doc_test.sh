#!/usr/bin/env bash
# Runs every line of docs/dashboard.md's sh block, in order, at an address of this machine that nobody else uses, and
# asks the job's model once it has one.
#   dashboard_doc_test.sh MILLRACE SOURCE_FOLDER
. "$(dirname "$0")/document.sh"
needs curl
address=$(own_address)

before() {
  [[ $1 == *" down" ]] || return 0
  "$millrace" watch tiny >out 2>err || fail "the job does not succeed"
  curl --silent --fail --json '{"job": "tiny", "prompt": "The king", "max_tokens": 5}' "http://$address/api/v1/prompt" \
    >out 2>err || fail "the model cannot be asked"
  grep -q '"checkpoint":"pretrain-60"' out || fail "the best checkpoint was not asked"
}
after() {
  case $1 in
    *" up "*) grep -q "^dashboard: http://$address/$" out || fail "it does not say where the dashboard is" ;;
    *ListJobs) grep -q '"total":1' out || fail "the job is not listed" ;;
  esac
}
run_lines dashboard.md 4 "$address"
