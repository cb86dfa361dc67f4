#!/usr/bin/env bash
#
# Several ranks on this machine: the collectives for 2, 3 and 4 ranks, and what happens to a run
# when something happens to one of its ranks. Whatever it is, mpirun has to end with a status other
# than 0 and every other rank with a message that names the rank at fault and the collective.
#
# Arguments: names of tests, as collectives, kills (default: all). KILLS=N changes how many runs
# lose a rank to kill -9.
#
# Seen failing, each after a change of the source. multi_rank.h: own part first in the sum; last
# rank left out; only one round of a reduction; second round of a gather put in the place of the
# first; minimum for maximum; maximum of floats (drops NaN); doubles added as floats; bytes to
# oneself counted; gathers counted as other; barrier without communication; parts not scaled to
# bytes; broadcast from the last rank; agreement that compares nothing, or that every rank prints;
# no check of MPI, of several hosts, of MPI's rank. watchdog.h: end of a connection ignored; silence
# ignored; rank 0 tells nobody; SIGTERM not caught; own stop counted against the others; missing
# rank, missing rank 0 not noticed; no farewell; waiting for each other not noticed; work taken for
# that; no note; two processes of one rank accepted; sizes not compared. rendezvous.h: meeting file
# not read again. multi_rank_tcp.h: places one rank further; a greeting's rank not looked at; the list of
# places left in its file (each piece received over the one before: test_ranks_train.sh).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=dev/test/report.sh
. dev/test/report.sh

program=$PWD/build/test/test_multi_rank
KILLS=${KILLS:-20}
TIMEOUT=2               # seconds, where a test has to wait for it

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMP_NUM_THREADS=1

work=$(mktemp -d) || exit 1
job=                    # process id of the mpirun that is running
pids=()                 # of its ranks
trap 'if [ -n "$job" ]; then kill -9 "$job" "${pids[@]}" 2>/dev/null; fi; rm -rf "$work"' EXIT

now() { date +%s%N; }

# without_mpirun SIZE COMMAND...: as launchers do that know no MPI. by_hand=port: with PyTorch's variables
# and rank 0 at a port; hosts, memory: with Slurm's, for several hosts or for one.
without_mpirun() {
    local size=$1 rank pid started=() status=0 nodes=1 common
    shift
    [ "$by_hand" != hosts ] || nodes=2
    for ((rank = size - 1; rank >= 0; rank--)); do
        common=("SLURM_STEP_NUM_TASKS=$size" "SLURM_STEP_NUM_NODES=$nodes" "SLURM_JOB_ID=$$"
                "SLURM_PROCID=$rank" "SLURM_LOCALID=$rank")
        [ "$by_hand" != port ] || common=("WORLD_SIZE=$size" "RANK=$rank" "LOCAL_RANK=$rank"
                                          MASTER_ADDR=127.0.0.1 "MASTER_PORT=$((20000 + $$ % 10000))")
        env "${common[@]}" timeout -k 5 60 "$@" &
        started+=($!)
    done > "$work/out" 2>&1 < /dev/null
    for pid in "${started[@]}"; do wait "$pid" || status=$?; done
    return $status
}

# ranks SIZE COMMAND...: under mpirun, everything that is printed goes to $work/out
by_hand=
ranks() {
    if [ -n "$by_hand" ]; then
        without_mpirun "$@"
        return
    fi
    local size=$1
    shift
    timeout -k 5 60 mpirun --oversubscribe --bind-to none -np "$size" "$@" \
        > "$work/out" 2>&1 < /dev/null
}

# ---------------------------------------------------------------------------------------------
# Judging a run that had to fail

# judge STATUS SINCE MOST FAULTY SIZE PATTERN: the run in $work/out has ended with STATUS. It should
# have done so within MOST seconds after the moment SINCE, with a status other than 0 (124 means
# that it had to be ended), and with a message of every rank but FAULTY that matches PATTERN after
# "error: rank N of SIZE ends, waiting in 'NAME' (collective NUMBER): ". What is wrong goes to
# `verdict`.
judge() {
    local status=$1 time=$(($(now) - $2)) most=$3 faulty=$4 size=$5 pattern=$6 rank
    local place="(waiting in|at work after) '[a-z0-9 ]+'( .collective [0-9]+.)?"
    milliseconds=$((time / 1000000))
    verdict=
    if [ "$status" -eq 0 ] || [ "$status" -eq 124 ]; then verdict="status $status;"; fi
    if [ "$milliseconds" -gt $((most * 1000)) ]; then verdict+=" ended after $milliseconds ms;"; fi
    for ((rank = 0; rank < size; rank++)); do
        if [ "$rank" -ne "$faulty" ] &&
                ! grep -qE "^error: rank $rank of $size ends, $place: $pattern" "$work/out"; then
            verdict+=" no such message of rank $rank;"
        fi
    done
    if [ -n "$verdict" ]; then sed 's/^/    /' "$work/out"; fi
}

# report_judged NAME: of the run judged last
report_judged() {
    local message
    message=$(grep -m 1 -oE '^error: rank [0-9]+ of.*' "$work/out")
    report "${#verdict}" "$1" "${verdict:-after $milliseconds ms: ${message#error: }}"
}

# ends NAME SIZE FAULTY MOST PATTERN COMMAND...: a run that comes to such an end by itself
ends() {
    local name=$1 size=$2 faulty=$3 most=$4 pattern=$5 since
    shift 5
    since=$(now)
    ranks "$size" "$@"
    judge $? "$since" "$most" "$faulty" "$size" "$pattern"
    report_judged "$name"
}

# begin_loop SIZE TIMEOUT: a run in the background; returns when its ranks are at work
begin_loop() {
    local rank
    rm -rf "$work/pids"
    mkdir "$work/pids"
    ranks "$1" "$program" loop "$work/pids" -rt "$2" &
    job=$!
    pids=()
    for ((rank = 0; rank < $1; rank++)); do
        while [ ! -s "$work/pids/$rank" ] && kill -0 "$job" 2>/dev/null; do sleep 0.01; done
        pids+=("$(cat "$work/pids/$rank")")
    done
}

# end_loop SINCE MOST FAULTY SIZE PATTERN: waits for its end, and judges
end_loop() {
    wait "$job"
    judge $? "$@"
    job=
}

# ---------------------------------------------------------------------------------------------
# The tests

test_collectives() {
    local size
    for size in 2 3 4; do
        ranks "$size" "$program" check -rt 5
        report $? "collectives, $size ranks" "exit status${by_hand:+, without mpirun}"
        grep -E '^(ok|FAIL)|error' "$work/out"
    done
}

# one_kill NUMBER: to be run in the background; everything it calls sees this `work`
one_kill() {
    local work=$work/kill.$1 size=$((2 + RANDOM % 3)) rank since
    mkdir "$work"
    rank=$((RANDOM % size))
    begin_loop "$size" 10
    sleep "0.$((RANDOM % 3))$((RANDOM % 10))"
    since=$(now)
    kill -9 "${pids[rank]}"
    end_loop "$since" 5 "$rank" "$size" "rank $rank has died"
    if [ -n "$verdict" ]; then report_judged "kill -9 of rank $rank of $size"; fi
    echo "$milliseconds" > "$work/milliseconds"
}

test_kills() {
    local i longest bad
    for ((i = 0; i < KILLS; i++)); do
        one_kill "$i" &
        if [ $((i % 4)) -eq 3 ]; then wait; fi
    done > "$work/kills"
    wait
    cat "$work/kills"
    bad=$(grep -c ^FAIL "$work/kills")
    longest=$(sort -n "$work"/kill.*/milliseconds | tail -n 1)
    report "$bad" "kill -9 of a random rank" \
        "$KILLS times; the slowest run ended after $longest ms, its timeout being 10 s"
}

test_stops() {
    local rank since
    for rank in 0 2; do
        begin_loop 3 $TIMEOUT
        since=$(now)
        kill -STOP "${pids[rank]}"
        end_loop "$since" $((TIMEOUT + 3)) "$rank" 3 "rank $rank has been silent for [0-9]+ s"
        report_judged "SIGSTOP of rank $rank"
    done
}

# The terminal's Ctrl-Z, or a cluster that suspends a job: everybody stops and goes on.
test_pause() {
    begin_loop 3 $TIMEOUT
    kill -STOP "${pids[@]}"
    sleep $((2 * TIMEOUT))
    kill -CONT "${pids[@]}"
    sleep 1
    kill -0 "${pids[@]}" 2>/dev/null
    report $? "all ranks stopped, then continued" "for twice the timeout; they are at work again"
    kill -TERM "${pids[1]}"
    end_loop "$(now)" 5 1 3 "rank 1 was told to end .SIGTERM."
    report_judged "SIGTERM of one rank"
}

test_missing() {
    local rank pattern
    for rank in 0 2; do
        pattern="for [0-9]+ s (these ranks have|rank 0 has) not started.*"
        if [ "$rank" -ne 0 ]; then pattern+=": $rank\$"; fi
        # shellcheck disable=SC2016
        ends "rank $rank does not start" 3 "$rank" $((TIMEOUT + 4)) "$pattern" \
            sh -c 'if [ "$OMPI_COMM_WORLD_RANK" = "$0" ]; then exec sleep 30; fi; exec "$@"' \
            "$rank" "$program" loop "" -rt $TIMEOUT
    done
}

test_errors() {
    local rank early="ended early; what it printed says why"
    ends "no memory left on rank 1" 3 1 20 "rank 1 has $early" "$program" memory 1 -rt 10
    grep -q '^error: out of memory: 16 MiB for activations' "$work/out"
    report $? "its own message" "$(grep -m 1 'out of memory' "$work/out")"
    for rank in 0 2; do
        ends "an error on rank $rank" 3 "$rank" 10 "rank $rank has $early" \
            "$program" error "$rank" -rt 10
    done
    ends "rank 1 ends without a reason" 3 1 10 "rank 1 has $early" "$program" quit 1 -rt 10
    ends "rank 1 in another collective" 3 9 10 \
        "for [0-9]+ s all ranks have been waiting for each other: 0: 'amax' 1: 'a broadcast of" \
        "$program" apart 1 -rt 1
}

test_long_work() {
    ranks 3 "$program" work 0 -rt 1
    report $? "rank 0 works for 2.5 timeouts" "and the others wait for it"
    grep -q "^note: .* waiting: 1: 'the first after it' 2: .* at work, after: 0: 'the last" \
        "$work/out"
    report $? "its note" "$(grep -m 1 '^note' "$work/out")"
}

test_agreement() {
    ranks 4 "$program" agree 2 -rt 10
    report $((!$?)) "a setting that differs" "ends mpirun with an error"
    grep -q "^error: -b differs between ranks: '8' (rank 0 1 3) '4' (rank 2)$" "$work/out"
    report $? "its message" "$(grep -m 1 '^error' "$work/out")"
    report $(($(grep -c '^error' "$work/out") - 1)) "its only message" "no other rank adds to it"
}

# ---------------------------------------------------------------------------------------------
# Without MPI

# says NAME PATTERN COMMAND...: ends with an error and this message
says() {
    local name=$1 pattern=$2
    shift 2
    timeout 60 "$@" > "$work/out" 2>&1 && echo "it did not fail" > "$work/out"
    grep -qE "^error: .*$pattern" "$work/out"
    report $? "$name" "$(grep -m 1 -E "$pattern" "$work/out" || cat "$work/out")"
}

# meet NAME ADDRESS PATTERN RANK-SIZE...: these processes, started by hand, all print PATTERN
meet() {
    local name=$1 address=$2 pattern=$3 rank number=0
    shift 3
    rm -f "$work"/met.*
    for rank in "$@"; do
        number=$((number + 1))
        timeout 60 "$program" meet "${rank%-*}" "${rank#*-}" "$address" 1 \
            > "$work/met.$number" 2>&1 &
    done
    wait
    cat "$work"/met.* > "$work/out"
    [ "$(grep -cE "$pattern" "$work/out")" -eq $# ]
    report $? "$name" "$(head -n 1 "$work/out")"
}

test_meeting() {
    local port=$((20000 + RANDOM % 10000))
    echo "another.host:1" > "$work/meeting"
    meet "meeting in memory"            "@llmc-test-$$"     '^rank . met'   0-3 1-3 2-3
    meet "meeting at a port"            "localhost:$port"   '^rank . met'   2-3 1-3 0-3
    meet "meeting by a file"            "$work/meeting"     '^rank . met'   1-3 2-3 0-3
    meet "rank 1 of 3 is not there"     "localhost:$port"   'error.*not been able to connect: 1$' 0-3 2-3
    meet "rank 0 is not there"          "localhost:$port"   'error.*rank 0 has not started' 1-3 2-3
    # who is late finds that rank 0 has ended already
    local late='rank 0 has (not started|died)'
    meet "two are rank 1" "@llmc-test-$$" "error.*(two processes are rank 1|$late)" \
        1-3 1-3 0-3
    meet "they disagree on the size" "@llmc-test-$$" \
        "error.*(was started as one of . ranks, rank|$late)" 1-3 2-4 0-3
    says "no place to meet" 'neither HOST:PORT nor /FILE' "$program" meet 0 2 here 1
}

# What a launcher tells the program, without the launcher.
test_launchers() {
    if ! gcc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -I. -o "$work/without" \
            dev/test/test_multi_rank.c -lm -pthread; then
        report 1 "a program without MPI" "does not compile"
        return
    fi
    "$work/without" > "$work/out" 2>&1
    report $? "a program without MPI" "runs alone"
    says "mpirun and no MPI" 'by mpirun as one of 2 ranks, but .* without MPI; .*dev/setup.sh' \
        env OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
        "$work/without"
    says "several hosts, no -ra" 'several hosts: -ra HOST:PORT' \
        env OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1 "$program"
    says "another launcher" "not by Open MPI's mpirun or Slurm" env PMI_SIZE=2 "$program"
    says "no RANK" 'WORLD_SIZE=2, but no RANK' env WORLD_SIZE=2 "$program"
    says "a RANK too large" 'RANK=2 .*of WORLD_SIZE=2' env WORLD_SIZE=2 RANK=2 "$program"
    # shellcheck disable=SC2016
    says "srun and another MPI" 'started as rank [01] of 2, but MPI says 0 of 1; .*srun --mpi=pmix' \
        env SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_JOB_ID=$$ PMIX_RANK=0 \
        sh -c 'SLURM_PROCID=1 "$0" & SLURM_PROCID=0 "$0"; wait $!' "$program"
    test_without_mpirun
}

# The same collectives and the same ends, of a program that was built without MPI.
test_without_mpirun() {
    local since program=$work/without
    by_hand=port
    test_collectives
    begin_loop 3 10
    since=$(now)
    kill -9 "${pids[1]}"
    end_loop "$since" 5 1 3 "rank 1 has died"
    report_judged "without mpirun, kill -9"
    begin_loop 3 $TIMEOUT
    since=$(now)
    kill -STOP "${pids[2]}"
    (sleep $((TIMEOUT + 2)); kill -9 "${pids[2]}") &    # mpirun would do it
    end_loop "$since" $((TIMEOUT + 3)) 2 3 "rank 2 has been silent for [0-9]+ s"
    report_judged "without mpirun, SIGSTOP"
    by_hand=memory
    ranks 3 "$program" check -rt 5
    report $? "without mpirun, one host" "$(grep -c ^ok "$work/out") tests"
    by_hand=hosts
    ranks 3 "$program" check -rt 5 -ra "$work/place"
    report $? "without mpirun, by a file" "$(grep -c ^ok "$work/out") tests"
    [ ! -e "$work/place.data" ]
    report $? "without mpirun, files left" ""
    by_hand=
}

# ---------------------------------------------------------------------------------------------

with_mpi=(collectives kills stops pause missing errors long_work agreement)
without_mpi=(meeting launchers)
if ! command -v mpirun > /dev/null || [ -z "$(make -s print-MPI_LIBS)" ]; then
    echo "skip several ranks: no Open MPI here; dev/setup.sh installs it"
    with_mpi=()
fi
if [ $# -eq 0 ]; then
    set -- "${without_mpi[@]}" "${with_mpi[@]}"
fi
for name in "$@"; do
    "test_$name"
done
[ "$failures" -eq 0 ]
