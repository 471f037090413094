# shellcheck shell=bash
# The body of the batch scripts, read by each of them. Slurm runs a copy of the script from a folder of its own; this
# file and everything else is found from where `sbatch` was called, which must be the repository's root.
set -euo pipefail

# train CONFIG [key=value ...]: one rank per task, from the run's last checkpoint. Ends with 0 when the run is done or was
# stopped, queues the job again when it shall go on, and else ends with the exit code of the rank that failed first.
train() {
    enter
    local run code=0
    # Nothing is printed where there is nothing to do: the run has DONE or STOP in its folder.
    run=$("${HOST_PYTHON[@]}" -m launch job-began "$@")
    [ -n "$run" ] || return 0

    # In an array the number of the last task is that of the whole array.
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} hosts ends
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${hosts%%$'\n'*}
    # A port of the job's own, so that two jobs on one node do not meet, and below those that the system hands out.
    export MASTER_PORT=$((16000 + SLURM_JOB_ID % 16000))
    # When Slurm will end the job: the run saves before that, also where no signal comes.
    ends=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="${job:-$SLURM_JOB_ID}" --format=%e || true)
    LTX_JOB_ENDS_AT=$(date --date="$ends" +%s 2>/dev/null || true)
    export LTX_JOB_ENDS_AT
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST"
    echo "run: $run; what ranks print: $run/logs/ranks/${SLURM_JOB_ID}_*.log"

    local TASK
    task "$run"
    # With the first rank that ends badly the others are told to end, and have Slurm's KillWait to say what they know.
    step --kill-on-bad-exit=1 --wait=120 --unbuffered --output="$run/logs/ranks/%j_%t.log" --open-mode=append \
        "${TASK[@]}" "$@" 2>"$run/logs/$SLURM_JOB_ID.srun.log" || code=$?
    # To queue the job again is to have this script told to end, which must wait until all is arranged.
    trap '' TERM USR1 USR2
    "${HOST_PYTHON[@]}" -m launch job-ended "$run" "$code"
}

# task RUN: sets TASK to what each task of a training job runs, before its CONFIG: a rank.
task() {
    TASK=("${PYTHON[@]}" -m dist_trainer.train)
}

# shards STAGE ARGUMENTS...: a stage of `ltx-shards`. The tasks of an array, and of each its ranks, share the work.
shards() {
    enter
    local code=0
    # A rank that fails does not end the others, which do its work.
    step --kill-on-bad-exit=0 --wait=0 --unbuffered "${PYTHON[@]}" -m shards "$@" || code=$?
    exit "$code"
}

enter() {
    cd "$SLURM_SUBMIT_DIR"
    set +u # modules and conda read what may not be set
    # shellcheck source=slurm/site.sh
    source slurm/site.sh
    set -u
    [ -v HOST_PYTHON ] || HOST_PYTHON=("${PYTHON[@]}") # a site.sh that does not set it
    # Ranks get all that is set here, also where jobs are queued with --export=NONE.
    export SLURM_EXPORT_ENV=ALL
    # srun does not take this over from the script's header; where that has --cpus-per-gpu, it is not set.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_PER_GPU:-1}}}
}

# step WORDS...: srun in the background, so that signals to this script are acted on at once: to stop and come back
# (--signal=B:...) they go on to the ranks.
step() {
    srun "${SRUN[@]}" "$@" &
    local srun=$! code
    trap 'kill -USR1 "$srun" 2>/dev/null || true' USR1
    trap 'kill -USR2 "$srun" 2>/dev/null || true' USR2
    trap : TERM # comes to srun too
    while true; do
        code=0
        wait "$srun" || code=$?
        kill -0 "$srun" 2>/dev/null || return "$code"
    done
}
