# Run by `cargo xtask setup`, as root: install.sh PACKAGE... -- SERVICE...
# PACKAGE may be FIRST/SECOND: the second where apt does not know the first.
#
# Installs the packages without leaving their services running or enabled: the demo and the tests start private
# servers of their own, and nobody asked for a redis that comes up at boot.
set -eu
export DEBIAN_FRONTEND=noninteractive

# Debian's documented way to keep a package from starting its service (invoke-rc.d(8), deb-systemd-invoke(1)).
# An administrator's own policy stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

apt-get update -q

packages=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    package=${1%%/*}
    apt-cache show "$package" >/dev/null 2>&1 || package=${1##*/}
    packages="$packages $package"
    shift
done
[ $# -eq 0 ] || shift

# shellcheck disable=SC2086 # package names hold no spaces
apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 $packages

for service in "$@"; do
    if command -v systemctl >/dev/null; then
        systemctl disable --quiet "$service" || echo "note: could not disable the service $service" >&2
    elif command -v update-rc.d >/dev/null; then
        update-rc.d "$service" disable || echo "note: could not disable the service $service" >&2
    fi
done
