#!/usr/bin/env bash
# From a fresh clone to a trained model and its report: sets up .venv if needed, then runs `vatt demo`.
# Arguments go to `vatt demo`; results are in runs/demo of this checkout unless --out names another folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up

"$VENV/bin/python" -m vatt.cli demo --out "$ROOT/runs/demo" "$@" # of two --out the last counts
say_how_to_activate
