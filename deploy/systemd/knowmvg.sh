#!/bin/sh
# /usr/local/sbin/knowmvg: the command `knowmvg` for root of a host with systemd. It gives it what the units have: their
# user, /etc/knowmvg/environment, config.yaml and the two passwords, so that what it writes (a restored file, a backup)
# belongs to the node. It runs in /etc/knowmvg: name files and folders by their whole path, where that user may read or
# write them. The audit trail names who called it.
set -eu
secrets=$(mktemp -d /run/knowmvg-command.XXXXXX)
trap 'rm -rf "$secrets"' EXIT
trap 'exit 130' HUP INT TERM
install -o knowmvg -g knowmvg -m 400 /etc/knowmvg/database_password /etc/knowmvg/broker_password "$secrets"
chown knowmvg:knowmvg "$secrets"
cd /etc/knowmvg
set -a
. /etc/knowmvg/environment
KNOWMVG__DATABASE__PASSWORD_FILE=$secrets/database_password
KNOWMVG__BROKER__PASSWORD_FILE=$secrets/broker_password
HOME=/var/lib/knowmvg LOGNAME=${SUDO_USER:-$(id -un)}
set +a
umask 077
setpriv --reuid=knowmvg --regid=knowmvg --init-groups /opt/knowmvg/bin/knowmvg "$@"
