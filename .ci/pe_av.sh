#!/usr/bin/env bash
# Tests of PE-AV, in the environment of this checkout with timm and torchvision from a folder beside it (42 MB): where
# torchvision is installed, every process that loads transformers takes 3 s longer. torchvision's usual build is for torch
# with CUDA; beside torch for CPU it runs without its compiled operations (vatt/encoders/torchvision_loading.py).
#
#     .ci/pe_av.sh set-up
#     .ci/pe_av.sh test
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
set_up hf,lora,mteb # as for the stage before this one in .ci/run
FOLDER="$VENV/pe-av"
WANTED="$(grep -E '^(timm|torchvision)==' "$ROOT/constraints.txt")"

if [[ "$(cat "$FOLDER/installed" 2>/dev/null)" != "$WANTED" ]]; then
    rm -rf "$FOLDER"
    # shellcheck disable=SC2086 # two requirements
    stage "timm and torchvision" pip_install --no-deps --target "$FOLDER" $WANTED
    echo "$WANTED" >"$FOLDER/installed"
fi
if [[ "$1" == test ]]; then
    export PYTHONPATH="$FOLDER${PYTHONPATH:+:$PYTHONPATH}"
    bash "$ROOT/scripts/test.sh" tests/encoders/test_pe_av.py tests/encoders/test_transformers_loading.py -m "not gpu"
    bash "$ROOT/scripts/test.sh" tests/training/test_open_model.py -k pe-av -m "not gpu"
fi
