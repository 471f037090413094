#!/bin/bash
# Full fine-tuning on SLURM:  sbatch slurm/full_ft.sh [CONFIG] [key=value ...]
# Submit from the repository's root, after `make`. One task per GPU; a resubmitted job goes on from its last checkpoint.
#SBATCH --job-name=ltx-full-ft
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
# A port of the job's own, so that two jobs on one node do not meet.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

srun --kill-on-bad-exit=1 --wait=60 --unbuffered \
    .venv/bin/python -m dist_trainer.train "${1:-configs/full_ft.yaml}" "${@:2}"
