#!/usr/bin/env bash
# Runs every line of docs/ratings.md's sh blocks, in order, over the pairs of its json block, at an address of this
# machine that nobody else uses.
#   ratings_doc_test.sh MILLRACE SOURCE_FOLDER
set -euo pipefail
command -v curl >/dev/null || {
  echo "curl is missing; ./test installs it" >&2
  exit 1
}
millrace=$(readlink -f "$1")
document=$(readlink -f "$2")/docs/ratings.md

work=$(mktemp -d)
cd "$work"
clean_up() {
  "$millrace" down >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT
mkdir -p build/bin
ln -s "$millrace" build/bin/millrace
awk '/^```/ {inside = ($0 == "```json"); next} inside' "$document" >pairs.jsonl

fail() {
  cat out err
  echo "$1" >&2
  exit 1
}

# All of 127.0.0.0/8 is this machine.
address=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).1:8080
mapfile -t lines < <(awk '/^```/ {inside = ($0 == "```sh"); next} inside' "$document")
ran=0
for line in "${lines[@]}"; do
  line=${line//127.0.0.1:8080/$address}
  line=${line//0.0.0.0:8080/$address}
  echo "== $line"
  timeout 120 bash -c "$line" </dev/null >out 2>err || fail "docs/ratings.md's command failed: $line"
  cat out
  case $line in
    *" up "* | *" list"*) grep -q "http://$address/" out || fail "it does not say where the page is: $line" ;;
    *"/sets") grep -q '"title":"Which answer is kinder?"' out || fail "the set is not listed: $line" ;;
    *"/rate") grep -q '"rated":1' out || fail "nothing was rated: $line" ;;
    *" import "*) grep -q '^tone: 2 pairs' out || fail "not all pairs came: $line" ;;
    *" --out tone.jsonl") grep -q 'left out: 2 not rated yet' out || fail "what is left out is not counted: $line" ;;
    *" export tone") grep -q '^{"prompt":"My plant died.".*"margin":2.0' out || fail "the example is missing: $line" ;;
  esac
  ran=$((ran + 1))
done
[ "$ran" -ge 9 ] || fail "only $ran commands were found in docs/ratings.md"
echo "$ran commands ran."
