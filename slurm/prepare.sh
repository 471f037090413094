#!/bin/bash
# A stage of the data preparation on SLURM, as an array whose tasks share the work:
#   sbatch slurm/prepare.sh encode clips/dataset.jsonl --model LTXV_2B_0.9.5 --out data/mine --buckets 768x448x89
#   sbatch --array=0-31%8 slurm/prepare.sh caption clips/dataset.jsonl
# Submit from the repository's root, after `make`. The words are those of `ltx-shards`; docs/data.md tells the stages. A task
# that is killed loses the unit it was at; the others do it. Submitted again, a stage goes on where it was.
#SBATCH --job-name=ltx-prepare
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
source "$SLURM_SUBMIT_DIR/slurm/lib/run.sh"
shards "$@"
