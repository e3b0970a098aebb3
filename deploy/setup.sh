#!/usr/bin/env bash
# Makes or mends .venv: the project (editable) with an extra's dependencies, and the starter model.
#
#   deploy/setup.sh daemon                           what running needs
#   deploy/setup.sh daemon,dev                       … and what the checks and tests need
#   deploy/setup.sh daemon mosquitto shellcheck      … and sees to these Debian packages in the same breath
#
# Nothing to do: done in a moment. Interrupted: run it again. $PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:?"usage: deploy/setup.sh daemon|daemon,dev [PACKAGE...]"}
shift
packages=("$@")
python=.venv/bin/python
# The version of the starter model is pinned in the engine's room, and nowhere else.
starter=$(sed -n 's/^STARTER_PACKAGE.*= *"\(.*\)".*$/\1/p' edged/engine/files.py)
[ -n "$starter" ] || { echo "edged: edged/engine/files.py has no STARTER_PACKAGE = \"name==version\"" >&2; exit 1; }

# What the state of .venv depends on.
wanted=$({ pwd; echo "$starter"; cat pyproject.toml; } | sha256sum)
for done in ".venv/.edged-$extras" .venv/.edged-daemon,dev; do
    if [ "$(cat "$done" 2>/dev/null)" = "$wanted" ] && "$python" -c '' 2>/dev/null; then
        exec deploy/packages.sh "${packages[@]}"
    fi
done

# An interpreter that is new enough and was built with all that edged uses. A pyenv shim may exist and not run, or lack
# a module whose library was missing when it was compiled: then the next one.
usable() { "$1" -c 'import sys, ctypes, sqlite3, ssl, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11}; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "edged: no Python 3.11 or later found (tried: ${PYTHON:-python3 and its versions}), with ctypes, sqlite3 and ssl." >&2
    echo "edged: install one, or name it: make setup PYTHON=/path/to/python3" >&2
    return 1
}

base=
# Whole, and made here: a virtual environment does not survive being moved or copied.
if ! { "$python" -m pip --version && grep -F "$PWD/.venv/" .venv/bin/pip; } >/dev/null 2>&1; then
    base=$(find_python)
    # Debian splits ensurepip, which makes virtual environments, from its Python.
    "$base" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
fi
deploy/packages.sh g++ "${packages[@]}"
if [ -n "$base" ]; then
    "$base" -c 'import ensurepip' 2>/dev/null || base=/usr/bin/python3
    echo "edged: making .venv with $("$base" --version) ($(command -v "$base"))"
    "$base" -m venv --clear .venv
fi

# One compiler job can take a gigabyte: on a small board fewer jobs than cores, or the kernel kills the compiler.
if [ -z "${CMAKE_BUILD_PARALLEL_LEVEL:-}" ] && [ -r /proc/meminfo ]; then
    cores=$(getconf _NPROCESSORS_ONLN)
    gigabytes=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
    CMAKE_BUILD_PARALLEL_LEVEL=$((gigabytes < 1 ? 1 : gigabytes < cores ? gigabytes : cores))
    export CMAKE_BUILD_PARALLEL_LEVEL
fi

# A compiler's mistake is mended on the way (the header says which); the quotes are for the compiler's shell.
export CXXFLAGS="${CXXFLAGS:+$CXXFLAGS }-include '$PWD/deploy/llama.h'"

log=.venv/setup.log
: >"$log"
# -v brings the compiler's progress into the log.
"$python" -m deploy.patiently "$log" "$python" -m pip install -v --disable-pip-version-check -e ".[$extras]"
"$python" -m deploy.patiently "$log" "$python" -m pip install --disable-pip-version-check --no-deps "$starter"
# pip keeps the llama.cpp that it compiled once, for ever: perhaps for another processor, or without that header.
if ! "$python" -m deploy.computes; then
    echo "edged: it is compiled anew"
    "$python" -m pip cache remove llama_cpp_python >>"$log" 2>&1 || true
    version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
    "$python" -m deploy.patiently "$log" \
        "$python" -m pip install -v --disable-pip-version-check --force-reinstall --no-deps "llama-cpp-python==$version"
    if ! "$python" -m deploy.computes; then
        echo "edged: that is so also after compiling it here; what the compiler said is in $log" >&2
        exit 1
    fi
fi
echo "$wanted" >".venv/.edged-$extras"
echo "edged: set up in .venv"
