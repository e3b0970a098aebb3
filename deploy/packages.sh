#!/usr/bin/env bash
# Sees to it that Debian packages are there, and installs only what is missing.
#
#   deploy/packages.sh g++ mosquitto          fails where one is missing and cannot be installed
#   deploy/packages.sh --optional systemd     says so and goes on; in CI (variable CI set) it fails as well
#
# As root, or where sudo asks for no password, it installs with apt-get; anyone else is told the one command to run.
set -euo pipefail

# Debian keeps servers in /usr/sbin, which is not in every user's PATH.
has() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]; }

# Whether what a package is wanted for is there, wherever it came from.
present() {
    case $1 in
        g++) { has "${CC:-cc}" || has gcc || has clang; } && { has "${CXX:-c++}" || has g++ || has clang++; } ;;
        mosquitto-clients) has mosquitto_pub && has mosquitto_sub ;;
        python3-venv) /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        systemd) has systemd-analyze ;;
        systemd-container) has systemd-nspawn ;;
        *) has "$1" ;;
    esac
}

optional=
if [ "${1:-}" = --optional ]; then
    shift
    [ -n "${CI:-}" ] || optional=yes
fi

missing=()
for package in "$@"; do
    present "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi

give_up() {
    if [ -n "$optional" ]; then
        echo "edged: goes on without ${missing[*]}: $1" >&2
        exit 0
    fi
    {
        echo "edged: missing on this machine: ${missing[*]} ($1)"
        echo "edged: please install what is missing, then run make again:"
        echo
        if command -v apt-get >/dev/null; then
            echo "    sudo apt-get update && sudo apt-get install -y ${missing[*]}"
        else
            echo "    (with your system's package manager; these are Debian's names) ${missing[*]}"
        fi
        echo
    } >&2
    exit 1
}

command -v apt-get >/dev/null || give_up "there is no apt-get here"
if [ ${#as_root[@]} -gt 0 ] && ! "${as_root[@]}" true 2>/dev/null; then
    give_up "installing it needs root, and sudo would ask for a password"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A fresh machine may be updating itself at this moment: wait for it.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
echo "edged: installing the Debian packages ${missing[*]}"
# A failing update (one mirror of several is away) is no reason not to try.
"${apt[@]}" update >"$log" 2>&1 || true
if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    give_up "apt-get install failed, its last words are above"
fi
for package in "${missing[@]}"; do
    present "$package" || give_up "apt-get installed $package, and still it is not found"
done
