#!/usr/bin/env bash
# Runs every line of docs/ratings.md's sh blocks, in order, over the pairs of its json block, at an address of this
# machine that nobody else uses.
#   ratings_doc_test.sh MILLRACE SOURCE_FOLDER
. "$(dirname "$0")/document.sh"
needs curl
block ratings.md json >pairs.jsonl
address=$(own_address)

before() { :; }
after() {
  case $1 in
    *" up "* | *" list"*) grep -q "http://$address/rate" out || fail "it does not say where the page is: $1" ;;
    *"/sets") grep -q '"title":"Which answer is kinder?"' out || fail "the set is not listed: $1" ;;
    *"/rate") grep -q '"rated":1' out || fail "nothing was rated: $1" ;;
    *" import "*) grep -q '^tone: 2 pairs' out || fail "not all pairs came: $1" ;;
    *" --out tone.jsonl") grep -q 'left out: 2 not rated yet' out || fail "what is left out is not counted: $1" ;;
    *" export tone") grep -q '^{"prompt":"My plant died.".*"margin":2.0' out || fail "the example is missing: $1" ;;
  esac
}
run_lines ratings.md 9 "$address"
