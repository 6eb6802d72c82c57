#!/usr/bin/env bash
# Installs what the tests that need services use, from Debian's packages, and only what is missing:
#   packaging/install_services.sh
# Needs root and apt-get. Anyone else is told what is missing, and gets exit code 1 if anything is.
set -euo pipefail

# A program of each package, as it is found in PATH; PostgreSQL's servers lie beside one another, outside of it.
declare -A programs=([slurm-wlm]=slurmctld [munge]=munged [chromium]=chromium [nginx]=nginx)

is_missing() {
  if [[ $1 == postgresql ]]; then
    ! compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null
  else
    ! PATH="$PATH:/usr/sbin:/sbin" command -v "${programs[$1]}" >/dev/null
  fi
}

missing=()
for package in postgresql slurm-wlm munge chromium nginx; do
  if is_missing "$package"; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

how="apt-get install --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "missing for the tests that need services, and there is no apt-get to install them: ${missing[*]}" >&2
  exit 1
fi
if ((EUID != 0)); then
  echo "missing for the tests that need services; as root: $how" >&2
  exit 1
fi

echo "installing for the tests that need services: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# The packages would start services of their own, which nobody asked for; this is Debian's way to say no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
