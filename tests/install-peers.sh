#!/usr/bin/env bash
# Installs the foreign peers that the tests talk to (Debian, Ubuntu), as root or by sudo without a password. Where that
# is not possible it says what is missing and ends well: those tests skip then, and fail in CI.
# No installed service is started or enabled: the tests start their own, on loopback.
set -euo pipefail
packages=(
    chromium dcmtk openssl default-jre dicom3tools dicomscope fonts-dejavu-core fonts-dejavu-extra iproute2 orthanc
    orthanc-dicomweb pixelmed-apps postgresql prometheus rabbitmq-server redis-server xdotool
    xvfb
)
services=(orthanc postgresql prometheus rabbitmq-server redis-server)
policy=/usr/sbin/policy-rc.d

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }
give_up() { echo "peers: $1; tests that need ${missing[*]} will skip (fail in CI)" >&2; exit 0; }

# The viewer that is tested comes ready built from the npm registry, in the versions of tests/acceptance/ohif.py.
fetch_ohif() {
    local folder=.peers/ohif version
    for version in 3.13.2 3.11.1; do
        [ -e "$folder/ohif-app-$version.tgz" ] && continue
        command -v npm >/dev/null || { echo "peers: no npm; the tests in OHIF will skip (fail in CI)" >&2; return; }
        echo "peers: fetching OHIF $version"
        mkdir -p "$folder"
        npm pack --silent --pack-destination "$folder" "@ohif/app@$version" >/dev/null ||
            { echo "peers: OHIF $version cannot be fetched; its tests will skip (fail in CI)" >&2; return; }
    done
}
cd "$(dirname "$0")/.."
fetch_ohif

missing=()
command -v dpkg-query >/dev/null || { missing=("${packages[@]}"); give_up "not a Debian system"; }
for package in "${packages[@]}"; do is_installed "$package" || missing+=("$package"); done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then sudo=(env); else sudo=(sudo -n env); fi
"${sudo[@]}" true 2>/dev/null || give_up "neither root nor sudo without a password"

echo "peers: installing ${missing[*]}"
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
    trap '"${sudo[@]}" rm -f "$policy"' EXIT
fi
log=$(mktemp)
apt() { "${sudo[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; }
apt update || { cat "$log" >&2; give_up "apt-get update failed"; }
apt install --yes --no-install-recommends "${missing[@]}" || { cat "$log" >&2; give_up "apt-get install failed"; }
rm -f "$log"
for service in "${services[@]}"; do
    if [[ " ${missing[*]} " == *" $service "* ]]; then "${sudo[@]}" update-rc.d "$service" disable 2>/dev/null || true; fi
done
