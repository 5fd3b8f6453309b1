#!/bin/bash
#SBATCH --job-name=bidsharm
#SBATCH --cpus-per-task=2
#SBATCH --mem=6G
#SBATCH --time=02:00:00
#
# One subject per task of a SLURM array, all on one output folder.
#
#   array.sh BIDS_DIR OUTPUT_DIR [options of bidsharm participant]
#       submits an array over all subjects, and the group level behind it. The same command again goes on: what is done
#       is passed over, what failed is tried again.
#   sbatch --array=1-100 array.sh BIDS_DIR OUTPUT_DIR [options]
#       the array alone: task N is the N-th subject by name.
#
# What may be set in the environment:
#   SUBJECTS="03 07"          only these (default: all)
#   SBATCH_OPTIONS="..."      for sbatch, over the #SBATCH lines above: --partition, --account, --mem, --time ...
#   TASKS=50                  at most so many tasks at once (default: as many as SLURM gives)
#   LEARN_FIRST=yes           the first subject goes ahead and learns the target; the others do not wait for it on a node
#   WORK_DIR=/scratch/work    keep intermediate files there, to go on within a subject (default: they go away)
#   BIDSHARM=/env/bin/bidsharm   the program (default: bidsharm on the PATH)
#   IMAGE=/images/bidsharm.sif   run it in Apptainer or Singularity instead
#   BINDS="/data/ref /models"    folders that options name, for the image (bound under their own names, read-only)
#   CONTAINER_OPTIONS="--nv"     more for apptainer
set -euo pipefail

if [ $# -lt 2 ]; then
    echo 'usage: array.sh BIDS_DIR OUTPUT_DIR [options of bidsharm]' >&2
    exit 2
fi
bids=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2

subjects() { # one label a line, in order
    if [ -n "${SUBJECTS:-}" ]; then
        printf '%s\n' $SUBJECTS | sed 's/^sub-//'
    else
        find -L "$bids" -mindepth 1 -maxdepth 1 -type d -name 'sub-*' -printf '%f\n' | sed 's/^sub-//' | LC_ALL=C sort
    fi
}

run() { # bidsharm, from an environment or an image
    if [ -z "${IMAGE:-}" ]; then
        "${BIDSHARM:-bidsharm}" "$@"
        return
    fi
    local program binds=(-B "$bids:$bids:ro" -B "$out:$out") place
    program=$(command -v apptainer || command -v singularity) || { echo 'There is no apptainer.' >&2; exit 78; }
    for place in ${BINDS:-}; do binds+=(-B "$place:$place:ro"); done
    if [ -n "${WORK_DIR:-}" ]; then binds+=(-B "$WORK_DIR:$WORK_DIR"); fi
    # shellcheck disable=SC2086
    "$program" run --cleanenv --containall "${binds[@]}" ${CONTAINER_OPTIONS:-} "$IMAGE" "$@"
}

task() { # the subject of this task
    local number=$((SLURM_ARRAY_TASK_ID + ${ARRAY_OFFSET:-0})) label memory cpus=${SLURM_CPUS_PER_TASK:-1} places=()
    if [ -n "${ARRAY_LIST:-}" ]; then label=$(sed -n "${number}p" "$ARRAY_LIST"); else label=$(subjects | sed -n "${number}p"); fi
    if [ -z "$label" ]; then
        echo "There is no subject number $number."
        return 0
    fi
    memory=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * cpus))}
    if [ "$memory" -gt 0 ]; then places+=(--mem "${memory}M"); fi
    if [ -n "${WORK_DIR:-}" ]; then
        mkdir -p "$WORK_DIR/sub-$label"
        places+=(--work-dir "$WORK_DIR/sub-$label")
    fi
    echo "sub-$label on $(hostname), job ${SLURM_ARRAY_JOB_ID:-?}_$SLURM_ARRAY_TASK_ID"
    run "$bids" "$out" participant --participant-label "$label" --nprocs "$cpus" --skip-bids-validation \
        ${places[@]+"${places[@]}"} "$@"
}

hand_over() { # sbatch with what all jobs have in common; prints the number of the job
    # shellcheck disable=SC2086
    sbatch --parsable --output="$logs/%x-%A_%a.out" ${SBATCH_OPTIONS:-} "$@" | cut -d';' -f1
}

submit() {
    local script count most first=1 start end offset jobs=() after=() number
    script=$(realpath "${BASH_SOURCE[0]}")
    logs=$out/logs/array/$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$logs"
    # The list is fixed now: a subject that is added later must not shift the others.
    subjects > "$logs/subjects.txt"
    count=$(wc -l < "$logs/subjects.txt")
    if [ "$count" -eq 0 ]; then
        echo "There is no subject in $bids." >&2
        exit 3
    fi
    export ARRAY_LIST=$logs/subjects.txt
    if [ "${LEARN_FIRST:-no}" = yes ]; then
        number=$(ARRAY_OFFSET=0 hand_over --array=1 "$script" "$bids" "$out" "$@")
        jobs+=("$number")
        after=(--dependency="afterany:$number")
        first=2
    fi
    # Clusters limit the largest index of an array, often to 1000.
    most=$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')
    most=$((${most:-1001} - 1))
    for ((start = first; start <= count; start += most)); do
        end=$((start + most - 1 < count ? start + most - 1 : count))
        offset=$((start - 1))
        number=$(ARRAY_OFFSET=$offset hand_over ${after[@]+"${after[@]}"} --array="1-$((end - offset))${TASKS:+%$TASKS}" \
            "$script" "$bids" "$out" "$@")
        jobs+=("$number")
    done
    after=(--dependency="afterany:$(IFS=:; echo "${jobs[*]}")")
    number=$(ARRAY_GROUP=yes hand_over ${after[@]+"${after[@]}"} --output="$logs/group-%j.out" "$script" "$bids" "$out" "$@")
    echo "$count subjects: arrays ${jobs[*]}, then the group level: $number"
    echo "logs: $logs"
}

if [ "${ARRAY_GROUP:-}" = yes ]; then
    run "$bids" "$out" group "$@"
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    task "$@"
else
    submit "$@"
fi
