#!/bin/bash
# Full fine-tuning on SLURM:  sbatch slurm/full_ft.sh [CONFIG] [key=value ...]
# Submit from the repository's root, after `make`; slurm/site.sh holds what differs from cluster to cluster. One task per
# GPU. The job is queued again, and goes on from its last checkpoint, before its time ends, when it is preempted, when a
# node dies and when it crashes; so does a job submitted again, on any number of nodes.
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
source "$SLURM_SUBMIT_DIR/slurm/lib/run.sh"
train "${@:-configs/full_ft.yaml}"
