#!/usr/bin/env bash
# Uses the jobs API of a real coordinator from Python and from Node. Without Debian's grpcio, or where npm cannot
# fetch the Node packages, that half is skipped aloud.
#   languages_test.sh MILLRACE SOURCE_FOLDER INSTALL_FOLDER
set -euo pipefail
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")
install=$3
here=$source/tests/client/languages

work=$(mktemp -d)
coordinator=
clean_up() {
  [ -z "$coordinator" ] || { kill -TERM "$coordinator" && wait "$coordinator" || true; }
  rm -rf "$work"
}
trap clean_up EXIT
"$millrace" coordinator --dir "$work/cluster" --address-file "$work/address" >"$work/log" 2>&1 &
coordinator=$!
for _ in $(seq 200); do
  [ ! -s "$work/address" ] || break
  sleep 0.05
done
address=$(tr -d '\n' <"$work/address")

if /usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null; then
  mkdir "$work/stubs"
  (cd "$source" && protoc -I. --python_out="$work/stubs" --grpc_out="$work/stubs" \
    --plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin proto/millrace/v1/*.proto)
  timeout 60 /usr/bin/python3 "$here/ask.py" "$address" "$work/stubs" "$source/examples/tiny.yaml" ||
    { cat "$work/log"; exit 1; }
else
  echo "SKIPPED: Python has no grpcio; \`apt-get install python3-grpcio\`"
fi

if ! node --version >/dev/null 2>&1 || ! npm --version >/dev/null 2>&1; then
  echo "SKIPPED: there is no node or no npm; \`apt-get install nodejs npm\`"
  exit 0
fi
mkdir -p "$install"
cp "$here"/package.json "$here"/package-lock.json "$here"/ask.mjs "$install"
cd "$install"
# What is installed already needs no registry.
if ! npm ls >/dev/null 2>&1 && ! npm ci --no-audit --no-fund --ignore-scripts >npm.log 2>&1; then
  echo "SKIPPED: the Node packages cannot be installed from their registry:"
  cat npm.log
  exit 0
fi
timeout 60 node ask.mjs "$address" "$source" "$source/examples/tiny.yaml" || { cat "$work/log"; exit 1; }
