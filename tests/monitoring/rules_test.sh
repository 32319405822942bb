#!/usr/bin/env bash
# rules_test.sh FOLDER SOURCE: promtool's own checks of deploy/prometheus, and the alerts' tests. FOLDER has promtool,
# or else the path does; without it the test is skipped.
set -euo pipefail
promtool=$1/promtool
[ -x "$promtool" ] || promtool=$(command -v promtool) || {
  echo "SKIPPED: there is no promtool; ./test fetches it" >&2
  exit 77
}
cd "$2/deploy/prometheus"
"$promtool" check config prometheus.yml
# Where Prometheus runs in Kubernetes the rules lie beside its configuration.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r kubernetes/prometheus.yml rules "$work"
"$promtool" check config "$work/prometheus.yml"
"$promtool" test rules tests/alerts_test.yml

# Each alert has a case in which it fires and one in which it does not; the one that fires always has no other.
for alert in $(sed -n 's/^ *- alert: //p' rules/alerts.yml); do
  grep -q "name: $alert fires" tests/alerts_test.yml || { echo "$alert has no case in which it fires" >&2; exit 1; }
  [ "$alert" = MillraceWatchdog ] || grep -q "name: $alert does not fire" tests/alerts_test.yml ||
    { echo "$alert has no case in which it does not fire" >&2; exit 1; }
done
