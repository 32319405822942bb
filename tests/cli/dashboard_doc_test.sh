#!/usr/bin/env bash
# Runs every line of docs/dashboard.md's sh block, in order, at an address of this machine that nobody else uses, and
# asks the job's model once it has one.
#   dashboard_doc_test.sh MILLRACE SOURCE_FOLDER
set -euo pipefail
command -v curl >/dev/null || {
  echo "curl is missing; ./test installs it" >&2
  exit 1
}
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")

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

address=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).1:8080
mapfile -t lines < <(awk '/^```/ {inside = ($0 == "```sh"); next} inside' "$source/docs/dashboard.md")
ran=0
for line in "${lines[@]}"; do
  line=${line//127.0.0.1:8080/$address}
  if [[ $line == *" down" ]]; then
    "$millrace" watch tiny >out 2>err || fail "the job does not succeed"
    curl --silent --fail --json '{"job": "tiny", "prompt": "The king", "max_tokens": 5}' "http://$address/api/v1/prompt" >out 2>err ||
      fail "the model cannot be asked"
    grep -q '"checkpoint":"pretrain-60"' out || fail "the best checkpoint was not asked"
  fi
  echo "== $line"
  timeout 120 bash -c "$line" </dev/null >out 2>err || fail "docs/dashboard.md's command failed: $line"
  case $line in
    *" up "*) grep -q "^dashboard: http://$address/$" out || fail "it does not say where the dashboard is" ;;
    *ListJobs) grep -q '"total":1' out || fail "the job is not listed" ;;
  esac
  ran=$((ran + 1))
done
[ "$ran" -ge 4 ] || fail "only $ran commands were found in docs/dashboard.md"
echo "$ran commands ran."
