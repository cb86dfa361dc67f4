# shellcheck shell=sh
# Functions for the scripts beside this one: how a speed is taken from what a program prints.
# A script that includes it has set WARMUP, the number of first steps that are not counted.

fail() {
    echo "error: $*" >&2
    exit 1
}

# What the programs here were built from, by the Makefile's stamp.
built_from() {
    for stamp in build/commit-*; do echo "commit ${stamp#build/commit-}"; done
}

# numbers, one a line -> their median
median() {
    sort -g | awk '{ x[NR] = $1 }
        END { if (NR == 0) { print "error: no speed was measured" > "/dev/stderr"; exit 1 }
              printf "%.0f\n", (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'
}

# our log.jsonl -> tokens/s of each step
speeds_of_log() {
    sed -n 's/.*"tok_s": *\([0-9.eE+]*\).*/\1/p' "$1" | tail -n +$((WARMUP + 1))
}

# what llm.c prints, tokens per step -> tokens/s of each step. Its CPU program ends a line with
# "(took 1234.5 ms)", its GPU program has "| 1234.5 ms |"; the tokens/s it prints is a running
# average.
speeds_of_llmc() {
    sed -n 's/^step.*[ |]\([0-9.]*\) ms.*/\1/p' "$1" | tail -n +$((WARMUP + 1)) |
        awk -v tokens="$2" '{ print tokens / ($1 / 1000) }'
}

# Both programs wait busily for their threads, so other work on the machine costs either of them
# many times its share, and not both the same.
warn_if_busy() {
    awk '$1 > 0.5 { print "warning: the machine is busy (load " $1 "): speeds mean little" }' \
        /proc/loadavg
}

# name, median tokens/s
report() { printf '%-42s %10s tokens/s\n' "$1" "$2"; }

# what is compared, ours, theirs, the ratio to reach
report_ratio() {
    awk -v what="$1" -v ours="$2" -v theirs="$3" -v goal="$4" 'BEGIN {
        printf "%-42s %10.2f   (goal %s: %s)\n", what, ours / theirs, goal,
               (ours >= goal * theirs) ? "reached" : "MISSED" }'
}
