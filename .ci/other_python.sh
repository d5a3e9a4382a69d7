#!/usr/bin/env bash
# Lint and the fast tests of each room on the newest other Python of this machine, with the newest versions of all packages
# but torch. The environment outlives the checkout, in ~/.cache/vatt-ci: torch for another Python than 3.11 may have to be
# the build with CUDA (7 GB). Where there is no such Python, or too little disk, a line says so.
#
#     .ci/other_python.sh set-up
#     .ci/other_python.sh test
set -euo pipefail
NEEDED_GIGABYTES=12

skip() {
    echo "other Python: skipped, $*"
    exit 0
}

find_other_python() { # prints the first of python3.13 and python3.12 that runs, from PATH or from pyenv
    local version candidate versions
    versions="$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")/versions"
    for version in 3.13 3.12; do
        for candidate in "python$version" "$versions/$version".*/bin/python; do
            if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
                command -v "$candidate"
                return
            fi
        done
    done
    return 1
}

PYTHON="$(find_other_python)" || skip "there is no Python 3.12 or 3.13 here"
VERSION="$("$PYTHON" --version)" # Python 3.13.0
VERSION="${VERSION#Python }"
VERSION="${VERSION%.*}"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/vatt-ci"
mkdir -p "$CACHE"
FREE_GIGABYTES=$(($(df -Pk "$CACHE" | tail -n 1 | { read -r _ _ _ free _ && echo "$free"; }) / 1024 / 1024))
if [[ ! -e "$CACHE/$VERSION/setup-dev.stamp" ]] && ((FREE_GIGABYTES < NEEDED_GIGABYTES)); then
    skip "$NEEDED_GIGABYTES GB of disk are needed in $CACHE, $FREE_GIGABYTES GB are free"
fi
export PYTHON VATT_VENV="$CACHE/$VERSION" VATT_CONSTRAINTS=""
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
set_up dev
if [[ "$1" == test ]]; then
    cd "$ROOT"
    "$VENV/bin/python" -m ruff check
    "$VENV/bin/python" -m pip list --format freeze
    # without those that train or export for a while, and without several processes that wait for each other
    LONG="test_ema or test_export or test_finetune or test_flops or test_loggers or test_media_log or test_recipes"
    bash scripts/test.sh -m "not slow and not gpu and not ddp" -k "not ($LONG or test_stopping)"
fi
