#!/usr/bin/env bash
# Runs every `build/bin/millrace` line of README.md's sh blocks, in order, in a folder where examples/tiny.yaml stands
# in for the quickstart's job, and addresses of this machine for those of several. Roles run on beside the lines that
# follow. Lines that start anything else must be among the known ones.
#   readme_test.sh MILLRACE SOURCE_FOLDER
set -euo pipefail
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")

work=$(mktemp -d)
roles=()
# Asks the roles to end, and waits for them.
stop_roles() {
  local role status=0
  for role in "${roles[@]}"; do kill -TERM "$role" 2>/dev/null || true; done
  for role in "${roles[@]}"; do wait "$role" || status=$?; done
  roles=()
  return "$status"
}
clean_up() {
  stop_roles || true
  (cd "$work" && "$millrace" down >/dev/null 2>&1) || true
  rm -rf "$work"
}
trap clean_up EXIT
cd "$work"
mkdir -p build/bin runs/quickstart
ln -s "$millrace" build/bin/millrace
cp -r "$source/examples" examples
# The way through all phases in a few steps each.
sed -i -e 's/max_steps: [0-9]*/max_steps: 8/' -e 's/every_steps: [0-9]*/every_steps: 4/' examples/assistant.yaml
sed 's/^name:.*/name: quickstart/' "$source/examples/tiny.yaml" >examples/quickstart.yaml

echo "== standing in for ./quickstart"
"$millrace" train examples/quickstart.yaml --dir runs/quickstart/cluster
"$millrace" data prepare examples/quickstart.yaml --out runs/quickstart/data --text
ln -s cluster/jobs/quickstart/checkpoints/best runs/quickstart/model

# fail MESSAGE: with what the last command and the roles said.
fail() {
  cat out err
  tail -n 20 role-*.log 2>/dev/null || true
  echo "$1" >&2
  exit 1
}

# All of 127.0.0.0/8 is this machine: a part of it that nobody else uses.
network=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1))
golden=$(awk '$1 == "f32" {print $2}' "$source/tests/golden/tiny.digest")
mapfile -t lines < <(awk '/^```/ {inside = ($0 == "```sh"); next} inside' "$source/README.md")
ran=0
for line in "${lines[@]}"; do
  line=${line//10.0.0./$network.}
  case $line in
    "" | "#"*) ;;
    "build/bin/millrace coordinator "* | "build/bin/millrace ps "* | "build/bin/millrace worker "*)
      echo "== $line &"
      bash -c "exec $line" </dev/null >"role-${#roles[@]}.log" 2>&1 &
      roles+=($!)
      ran=$((ran + 1))
      ;;
    "build/bin/millrace serve "*)
      echo "== $line &"
      mkfifo serving
      bash -c "exec $line" </dev/null >serving 2>"role-${#roles[@]}.log" &
      roles+=($!)
      grep -qm1 '^serving ' serving || fail "README.md's server does not serve: $line"  # what it prints then
      rm serving
      ran=$((ran + 1))
      ;;
    "build/bin/millrace "* | "curl "*)
      if [[ $line == "curl "* ]] && ! command -v curl >/dev/null; then
        echo "== SKIPPED, there is no curl: $line"
        continue
      fi
      echo "== $line"
      timeout 300 bash -c "$line" </dev/null >out 2>err || fail "README.md's command failed: $line"
      head -n 5 out
      if [[ $line == "curl "*/v1/* ]]; then
        grep -q '"finish_reason":"length"' out || fail "no answer came: $line"
      elif [[ $line == "curl "* ]]; then
        grep -q '^millrace_' out || fail "no metrics came: $line"
      elif [[ $line == *" digest tiny@"* ]]; then
        [ "$(cat out)" = "$golden" ] || fail "the digest is not that of tests/golden/tiny.digest, $golden: $line"
      fi
      ran=$((ran + 1))
      ;;
    "examples/assistant/make-data "*)
      echo "== $line"
      bash -c "$line" || fail "README.md's command failed: $line"
      ran=$((ran + 1))
      ;;
    ./quickstart | ./test | "git clone "* | "cd millrace") ;;
    *)
      echo "README.md has a command that no test runs: $line" >&2
      exit 1
      ;;
  esac
done
stop_roles || fail "a role did not end well"
if [ "$ran" -lt 25 ]; then
  echo "only $ran commands were found in README.md" >&2
  exit 1
fi
echo "$ran commands ran."
