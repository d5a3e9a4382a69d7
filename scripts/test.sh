#!/usr/bin/env bash
# Sets up .venv with the development tools if needed, then runs the tests. Arguments go to pytest:
#
#     scripts/test.sh                          # the default run; ends with the 25 slowest tests
#     scripts/test.sh tests/features           # the tests of one room
#     scripts/test.sh -m slow                  # what takes minutes
#     scripts/test.sh -n 0 -k shards --pdb     # -n 0: in this process
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up dev

cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread in each worker
# Three of them on two cores: many tests wait for processes that they have started. Each takes tests
# that follow each other, so that what several tests share is made once.
"$VENV/bin/python" -m pytest -n 3 --dist worksteal --durations=25 "$@"
say_how_to_activate
