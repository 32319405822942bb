#!/usr/bin/env bash
# Installs the Debian packages of cmake/packages.txt that are missing, as root or through sudo; says nothing and
# needs no rights when none is. Called by ./quickstart and ./test; bench/run names further packages.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

mapfile -t wanted < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$folder/packages.txt")
wanted+=("$@")
missing=()
for package in "${wanted[@]}"; do
  if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "Millrace is built from Debian 12's packages and this machine has no apt-get. Missing: ${missing[*]}" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These packages are missing; ask an administrator to install them: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
  if [ ! -t 0 ]; then
    as_root=(sudo -n)  # nobody is there to type a password
  fi
fi

echo "Installing ${#missing[@]} packages with apt-get."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" \
    >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "apt-get $1 failed; its last lines stand above." >&2
    exit 1
  fi
}
apt update
apt install --no-install-recommends "${missing[@]}"
