#!/bin/bash
# Full fine-tuning on SLURM:  sbatch slurm/full_ft.sh [CONFIG] [key=value ...]
# Submit from the repository's root, after `make`. One task per GPU. Before its time ends, when it is preempted, or when
# a node dies, the job is queued again and goes on from its last checkpoint; so does a job submitted again.
#SBATCH --job-name=ltx-full-ft
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
# A port of the job's own, so that two jobs on one node do not meet.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# When Slurm will end the job; the run saves before that, also where no signal comes.
LTX_JOB_ENDS_AT=$(date --date="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s 2>/dev/null || true)
export MASTER_ADDR MASTER_PORT LTX_JOB_ENDS_AT OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

code=0
srun --kill-on-bad-exit=1 --wait=60 --unbuffered \
    .venv/bin/python -m dist_trainer.train "${1:-configs/full_ft.yaml}" "${@:2}" || code=$?
if [ "$code" -eq 85 ]; then
    echo "saved; queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 300  # until Slurm ends this script: an exit code of its own would end the job for good
fi
exit "$code"
