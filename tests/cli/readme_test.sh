#!/usr/bin/env bash
# Runs every `build/bin/millrace` line of README.md's sh blocks, in order, in a folder where examples/tiny.yaml stands
# in for the quickstart's job. Lines that start anything else must be among the known ones.
#   readme_test.sh MILLRACE SOURCE_FOLDER
set -euo pipefail
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")

work=$(mktemp -d)
clean_up() {
  (cd "$work" && "$millrace" down >/dev/null 2>&1) || true
  rm -rf "$work"
}
trap clean_up EXIT
cd "$work"
mkdir -p build/bin runs/quickstart
ln -s "$millrace" build/bin/millrace
cp -r "$source/examples" examples
sed 's/^name:.*/name: quickstart/' "$source/examples/tiny.yaml" >examples/quickstart.yaml

echo "== standing in for ./quickstart"
"$millrace" train examples/quickstart.yaml --dir runs/quickstart/cluster
"$millrace" data prepare examples/quickstart.yaml --out runs/quickstart/data --text
ln -s cluster/jobs/quickstart/checkpoints/best runs/quickstart/model

mapfile -t lines < <(awk '/^```/ {inside = ($0 == "```sh"); next} inside' "$source/README.md")
ran=0
for line in "${lines[@]}"; do
  case $line in
    "" | "#"*) ;;
    "build/bin/millrace "*)
      echo "== $line"
      if ! timeout 300 bash -c "$line" </dev/null >out 2>err; then
        cat out err
        echo "README.md's command failed: $line" >&2
        exit 1
      fi
      head -n 5 out
      ran=$((ran + 1))
      ;;
    ./quickstart | ./test | "git clone "* | "cd millrace") ;;
    *)
      echo "README.md has a command that no test runs: $line" >&2
      exit 1
      ;;
  esac
done
if [ "$ran" -lt 10 ]; then
  echo "only $ran commands were found in README.md" >&2
  exit 1
fi
echo "$ran commands ran."
