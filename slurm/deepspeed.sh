#!/bin/bash
# Training on SLURM through DeepSpeed's launcher:  sbatch slurm/deepspeed.sh [CONFIG] [key=value ...]
# For those who want its options (LTX_DEEPSPEED holds more of them, such as --bind_cores_to_rank); full_ft.sh does the same
# with less in between. One launcher per node, which starts a rank per GPU; no ssh. It counts GPUs from 0, so take whole
# nodes. Submit from the repository's root, after `make`; slurm/site.sh holds what differs from cluster to cluster. The
# job comes back as that of full_ft.sh does.
#SBATCH --job-name=ltx-deepspeed
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
source "$SLURM_SUBMIT_DIR/slurm/lib/run.sh"

task() {
    local file="$1/logs/$SLURM_JOB_ID.hosts" slots=${SLURM_GPUS_ON_NODE:-1} more
    scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$slots/" >"$file"
    read -ra more <<<"${LTX_DEEPSPEED:-}"
    local cpus=${SLURM_CPUS_PER_TASK:-1}
    export OMP_NUM_THREADS=$((cpus > slots ? cpus / slots : 1))
    # The launcher would die of the signals that ask for a save before the ranks have saved: it is made deaf to them.
    # shellcheck disable=SC2016 # the number of each node, there
    TASK=(bash -c 'trap "" USR1 USR2 TERM; exec "${@/#--node_rank=%n/--node_rank=$SLURM_NODEID}"' deepspeed
        "${PYTHON[@]}" -m deepspeed.launcher.runner --no_ssh --node_rank=%n --hostfile="$file" "${more[@]}"
        --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --no_local_rank --module dist_trainer.train)
}
if [ "$SLURM_NTASKS" -ne "$SLURM_JOB_NUM_NODES" ]; then
    echo "error: $SLURM_NTASKS tasks on $SLURM_JOB_NUM_NODES nodes: each task is a launcher, which starts the ranks of its" \
        "node; submit with --ntasks-per-node=1 and without --ntasks" >&2
    exit 2
fi
export LTX_RANKS_PER_TASK=${SLURM_GPUS_ON_NODE:-1}
train "${@:-configs/full_ft.yaml}"
