#!/usr/bin/env bash
# Checks the GPU of a machine without a network, which has Python with torch and Lightning, but not all packages of vatt:
#
#     scripts/gpu_check.sh wheels              # where there is a network: downloads the missing packages to .wheels
#     scripts/gpu_check.sh                     # on the GPU machine: installs them and runs `vatt doctor --gpu`
#     scripts/gpu_check.sh --only parity       # options of `vatt doctor --gpu`
#
# PYTHON=... chooses the interpreter, TARGET_PYTHON=3.12 the version of the GPU machine's, PACKAGES="..." what it lacks.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PYTHON="${PYTHON:-python3}"
TARGET_PYTHON="${TARGET_PYTHON:-3.12}"
PACKAGES="${PACKAGES:-av jsonargparse docstring_parser typeshed_client}"
WHEELS="$ROOT/.wheels"
SITE="$WHEELS/site"
MOST_BYTES=$((64 * 1024 * 1024)) # of the tree and the wheels, which travel together

# Downloads the versions of constraints.txt, and says how much the tree takes with them.
download_wheels() {
    local package requirements=() platforms=() sum
    for package in $PACKAGES; do
        requirements+=("$(grep -m 1 "^$package==" "$ROOT/constraints.txt")") ||
            fail "constraints.txt has no version of $package"
    done
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do # pip takes each by itself
        platforms+=(--platform "${tag}_x86_64")
    done
    rm -rf "$WHEELS"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
        --python-version "$TARGET_PYTHON" "${platforms[@]}" --dest "$WHEELS" "${requirements[@]}"
    ls -l "$WHEELS"/*.whl | awk '{ printf "%6.1f MiB  %s\n", $5 / 1048576, $NF }'
    sum=$(($(num_bytes "$WHEELS"/*.whl) + $(git -C "$ROOT" archive HEAD | wc -c)))
    awk -v sum="$sum" 'BEGIN { printf "%6.1f MiB  with the committed files\n", sum / 1048576 }'
    if ((sum > MOST_BYTES)); then
        fail "this is more than $((MOST_BYTES / 1048576)) MiB: leave out packages that the machine has (PACKAGES=...)"
    fi
}

check_gpu() {
    if [[ ! -d "$SITE" ]] && compgen -G "$WHEELS/*.whl" >/dev/null; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
            --target "$SITE" "$WHEELS"/*.whl
    fi
    PYTHONPATH="$SITE:$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m vatt.cli doctor --gpu "$@"
}

num_bytes() {
    cat -- "$@" | wc -c
}

fail() {
    echo "gpu_check.sh: $*" >&2
    exit 1
}

if [[ "${1:-}" == wheels ]]; then
    download_wheels
else
    check_gpu "$@"
fi
