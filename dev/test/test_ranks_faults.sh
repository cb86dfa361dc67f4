#!/usr/bin/env bash
#
# A trainer loses a rank: killed, stopped, missing, out of memory. What the other ranks print, and
# when, is the matter of test_multi_rank.sh; here it is that they end in time and the checkpoints
# survive. A run that was killed and resumed again and again must end with the very losses of one that
# was left alone. It is the C trainer, but dev/gpu_ranks.sh gives the other one, on GPUs:
#
#     PROGRAM=./train_gpt2_nvfp4 RANKS=2 KILLS=20 dev/test/test_ranks_faults.sh
#
# Seen failing, each after a change of the source: m written in place of v into the checkpoint;
# file_commit without its rename; the watchdog deaf to the end of a connection; -y 0 for -y 1.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=dev/test/report.sh
. dev/test/report.sh

if ! command -v mpirun > /dev/null || [ -z "${PROGRAM:-$(make -s print-MPI_LIBS)}" ]; then
    echo "skip faults of the trainer: no Open MPI here; dev/setup.sh installs it"
    exit 0
fi
PROGRAM=${PROGRAM:-./train_gpt2_fp32}
RANKS=${RANKS:-3}
KILLS=${KILLS:-6}
STEPS=150
END_SECONDS=60          # the other ranks have to end within
last_rank=$((RANKS - 1))
of="rank [0-$last_rank] of $RANKS"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
work=$(mktemp -d) || exit 1
job=
trap 'if [ -n "$job" ]; then kill -9 "$job" 2>/dev/null; fi; rm -rf "$work"' EXIT

# The text of README.md, one token a byte.
{
    # shellcheck disable=SC2059
    printf '\x88\xd8\x34\x01\x01\0\0\0\x80\x3e\0\0'
    head -c 1012 /dev/zero
    LC_ALL=C tr -cd ' -~' < README.md | head -c 16000 | LC_ALL=C sed 's/./&\x00/g'
} > "$work/train.bin"

# train DIRECTORY [ARGUMENT]...: in the background, by all ranks, a checkpoint after every step
train() {
    local directory=$1
    shift
    timeout -k 5 100 mpirun --oversubscribe --bind-to none -np "$RANKS" \
        "${before[@]}" "$PROGRAM" -i "$work/train.bin" -p nvfp4,tail=0 \
        -e layers=2,channels=64,heads=2,vocab=256 -b "$rows" -t 32 -z 2 -x $STEPS \
        -n 1 -nk 3 -pr 0 -o "$work/$directory" "$@" \
        > "$work/out" 2>&1 < /dev/null &
    job=$!
}
before=()       # what stands before the program
rows=2          # of a rank

# losses DIRECTORY: step and loss of each
losses() {
    sed -n 's/^{\("step":[0-9]*\),.*\("loss":[^,}]*\).*/\1 \2/p' "$work/$1/log.jsonl" 2>/dev/null
}

# steps DIRECTORY: how many steps have been logged
steps() { losses "$1" | wc -l; }

# hurt SIGNAL AFTER: waits until another AFTER steps are done, and sends the signal to a random rank
hurt() {
    local steps pids name
    name=$(basename "$PROGRAM")
    steps=$(($(steps b) + $2))
    while [ "$(steps b)" -lt "$steps" ] && kill -0 "$job" 2>/dev/null; do sleep 0.02; done
    mapfile -t pids < <(pgrep -P "$(pgrep -P "$job")" -x "${name:0:15}" 2>/dev/null)
    rank=$((RANDOM % RANKS))
    sleep "0.0$((RANDOM % 10))"
    hurt_at=$SECONDS
    if [ ${#pids[@]} -eq "$RANKS" ]; then kill "-$1" "${pids[rank]}"; fi
}

# judge NAME PATTERN [COUNT]: the run must end with an error, in time, and all ranks but one, or
# COUNT of them, must say so
judge() {
    wait "$job"
    local status=$? count seconds=$((SECONDS - hurt_at))
    job=
    count=$(grep -cE "^error: $of ends, .*$2" "$work/out")
    if [ "$status" -eq 0 ] || [ "$status" -eq 124 ] || [ "$count" -lt "${3:-$last_rank}" ] ||
       [ "$seconds" -gt $END_SECONDS ]; then
        sed 's/^/    /' "$work/out"
        report 1 "$1" "status $status after $seconds s, $count ranks say why"
    else
        report 0 "$1" "after $seconds s: $(grep -m 1 -oE "$of ends, .*" "$work/out")"
    fi
}

train a
wait "$job"
report $? "a run left alone" "$(steps a) steps, $(losses a | tail -n 1)"
if [ "$failures" -gt 0 ]; then
    cat "$work/out"
    exit 1
fi

for ((i = 0; i < KILLS; i++)); do
    train b -y 1
    hurt 9 $((1 + RANDOM % 4))
    judge "kill -9 at step $(steps b)" "rank [0-$last_rank] has died"
done
train b -y 1 -rt 2
hurt STOP 1
judge "SIGSTOP at step $(steps b)" "rank [0-$last_rank] has been silent"

# shellcheck disable=SC2016
before=(sh -c 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then exec sleep 30; fi; exec "$@"' sh)
hurt_at=$SECONDS
train c -rt 5
judge "rank 1 does not start" "for [0-9]+ s these ranks have not started"

# Memory: of the C trainer's rank 1 less than it asks for; of the other's GPU, what is left beside a
# program that holds most of it (dev/gpu_ranks.sh starts that).
# shellcheck disable=SC2016
before=(sh -c 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then ulimit -v 1500000; fi; exec "$@"' sh)
memory="out of memory: .* MiB for"
rows=100000
if [ "$PROGRAM" != ./train_gpt2_fp32 ]; then
    before=() memory="device memory is full: .* GiB" rows=${FULL_ROWS:-0}
fi
if [ "$rows" -gt 0 ]; then
    hurt_at=$SECONDS
    train c
    judge "out of memory" "rank 1 has ended early"
    grep -qE "^error: $memory" "$work/out"
    report $? "its own message" "$(grep -m 1 -E "^error: $memory" "$work/out")"
fi

before=() rows=2
train b -y 1
wait "$job" && grep -qE '^resumed +from step [1-9]' "$work/out"
report $? "resumed to the end" "$(grep -m 1 '^resumed' "$work/out" | sed "s|$work/||")"
[ "$(losses a)" = "$(losses b)" ] && [ "$(steps b)" -eq $STEPS ]
report $? "losses of both runs" "$(steps a) and $(steps b) steps, $(losses b | tail -n 1)"
cmp "$work/a/model_$(printf %08d $STEPS).bin" "$work/b/model_$(printf %08d $STEPS).bin" > /dev/null
report $? "the models" "equal, byte for byte"
[ "$failures" -eq 0 ]
