#!/usr/bin/env bash
# A person uses the dashboard of a cluster that really trains, in Chromium driven by Playwright (visit/visit.mjs).
# Without Chromium, or where npm cannot fetch Playwright, it is skipped aloud.
#   visit_test.sh MILLRACE SOURCE_FOLDER INSTALL_FOLDER
set -euo pipefail
millrace=$(readlink -f "$1")
source=$(readlink -f "$2")
install=$3

skip() {
  echo "SKIPPED: $1"
  exit 0
}
[ -x /usr/bin/chromium ] || skip "there is no /usr/bin/chromium; \`apt-get install chromium\`"
node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1 || skip "there is no node or no npm; \`apt-get install nodejs npm\`"
mkdir -p "$install"
cp "$source"/tests/web/visit/* "$install"
cd "$install"
# What is installed already needs no registry.
if ! npm ls >/dev/null 2>&1 && ! npm ci --no-audit --no-fund --ignore-scripts >npm.log 2>&1; then
  cat npm.log
  skip "Playwright cannot be installed from its registry"
fi

work=$(mktemp -d)
clean_up() {
  "$millrace" down --dir "$work" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT
# All of 127.0.0.0/8 is this machine: an address that nobody else uses.
http=127.$((RANDOM % 254 + 1)).$((RANDOM % 254 + 1)).1:8080
"$millrace" up --workers 2 --shards 2 --threads 1 --http "$http" --dir "$work" --detach | tee "$work/told"
coordinator=$(sed -n 's/^coordinator: \([^;]*\);.*/\1/p' "$work/told")
limit=150
[ -z "${MILLRACE_PICTURES:-}" ] || limit=900  # more is trained for them
timeout "$limit" node visit.mjs "http://$http" "$millrace" "$source" "$coordinator" ||
  { tail -n 20 "$work"/logs/*; exit 1; }
