# Sourced by tests that run a document's commands, with MILLRACE and SOURCE_FOLDER as their arguments: a folder of their
# own with the program and the examples in it, and what they share.
set -euo pipefail
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

# fail MESSAGE: with what the last command said.
fail() {
  cat out err
  echo "$1" >&2
  exit 1
}

# needs PROGRAM: ./test installs it.
needs() {
  command -v "$1" >/dev/null && return
  echo "$1 is missing; ./test installs it" >&2
  exit 1
}

# block DOCUMENT KIND: the lines of the document's blocks of that kind.
block() { awk -v fence="\`\`\`$2" '/^```/ {inside = ($0 == fence); next} inside' "$source/docs/$1"; }

# All of 127.0.0.0/8 is this machine: a port of it that nobody else uses.
own_address() { echo "127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).1:8080"; }

# run_lines DOCUMENT LEAST [ADDRESS]: every line of the document's sh blocks, at least so many, in order. `before LINE`
# and `after LINE` are the test's; the line's output is in out and err. ADDRESS stands in for the document's.
run_lines() {
  local lines line ran=0
  mapfile -t lines < <(block "$1" sh)
  for line in "${lines[@]}"; do
    if [ $# -gt 2 ]; then
      line=${line//127.0.0.1:8080/$3}
      line=${line//0.0.0.0:8080/$3}
    fi
    before "$line"
    echo "== $line"
    timeout 120 bash -c "$line" </dev/null >out 2>err || fail "docs/$1's command failed: $line"
    cat out
    after "$line"
    ran=$((ran + 1))
  done
  [ "$ran" -ge "$2" ] || fail "only $ran commands were found in docs/$1"
  echo "$ran commands ran."
}
