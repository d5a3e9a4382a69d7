#!/usr/bin/env bash
# Pre-training on a SLURM cluster: a process for each GPU, stopped before the time limit or when the
# job is pre-empted, and queued again until it is done. From the checkout, set up on a shared disk:
#
#     sbatch --nodes=4 scripts/slurm_pretrain.sh --config pretrain_ma_medium --out /disk/runs/ma \
#         --train '{/disk/howto100m: 1, /disk/audioset: 1}'
#
# Arguments before the script go to sbatch and override the lines below, those after it to `vatt fit`.
#SBATCH --job-name=vatt
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=vatt-%j.log
set -uo pipefail

VATT="${VATT:-${SLURM_SUBMIT_DIR:-.}/.venv/bin/vatt}"
if [[ " $* " != *" --run.dir"* && " $* " != *" --out"* ]]; then
    echo "give --out: a job that is queued again goes on in the same directory" >&2
    exit 2
fi

# since SLURM 22.05 srun does not take this over: the readers of a GPU would share one core
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi

# 5 minutes before the limit SLURM sends SIGTERM to the processes: they save and exit with 143. If
# one ends in another way the others would wait for it: --kill-on-bad-exit ends them.
srun --kill-on-bad-exit=1 "$VATT" fit "$@" --ckpt_path last \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
code=$?
if [[ $code == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
