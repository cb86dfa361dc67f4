#!/bin/sh
# Speed of train_gpt2_fp32 in FP32 against PyTorch on the CPU: same models, same batch shapes, same
# number of threads, the two taking turns so that both meet the same machine.
#
#     dev/bench/bench_cpu.sh
#
# Needs ./train_gpt2_fp32 (make train_gpt2_fp32), and a python3 with PyTorch (Debian:
# python3-torch); PYTHON=path names another. THREADS=2, ROUNDS=3, STEPS=10 may be set likewise.
set -eu
cd "$(dirname "$0")/../.."
. dev/bench/bench_common.sh

PYTHON="${PYTHON:-/usr/bin/python3}"
THREADS="${THREADS:-2}"
ROUNDS="${ROUNDS:-3}"
STEPS="${STEPS:-10}"
WARMUP=3
GOAL=0.7

# An override of OpenBLAS's choice of kernels would be measured in place of this machine: with
# OPENBLAS_CORETYPE=Haswell a processor with AVX-512 does little more than half of what it can.
unset OPENBLAS_CORETYPE

[ -x ./train_gpt2_fp32 ] || fail "no ./train_gpt2_fp32; run: make train_gpt2_fp32"
"$PYTHON" -c 'import torch' || fail "$PYTHON has no PyTorch; PYTHON=path names another"

# PyTorch's own threads are OpenMP's. With the pthread build of OpenBLAS, which Debian prefers,
# both kinds of threads wait busily for each other, and PyTorch is several times slower. So it gets
# the OpenMP build where that is installed (libopenblas0-openmp): it is measured at its best.
openmp_blas="/usr/lib/$(uname -m)-linux-gnu/openblas-openmp"
torch_libraries="${LD_LIBRARY_PATH:-}"
[ -d "$openmp_blas" ] && torch_libraries="$openmp_blas:$torch_libraries"

work="$(mktemp -d)"
trap 'rm -r "$work"' EXIT

# model, B, T, vocabulary
bench_model() {
    model="$1" B="$2" T="$3"
    echo "$model, B $B, T $T, $THREADS threads, FP32"
    "$PYTHON" dev/bench/random_tokens.py "$4" $((100 * B * T)) "$work/tokens.bin"
    : > "$work/ours"
    : > "$work/torch"
    for round in $(seq "$ROUNDS"); do
        rm -rf "$work/log"
        OMP_NUM_THREADS="$THREADS" ./train_gpt2_fp32 -p fp32 -e "$model" -b "$B" -t "$T" \
            -x $((WARMUP + STEPS)) -i "$work/tokens.bin" -j "$work/tokens.bin" -v 0 -s 0 -n 0 \
            -o "$work/log" > "$work/out" || { cat "$work/out"; exit 1; }
        speeds_of_log "$work/log/log.jsonl" >> "$work/ours"
        LD_LIBRARY_PATH="$torch_libraries" OMP_NUM_THREADS="$THREADS" "$PYTHON" \
            dev/reference/torch_train.py -model "$model" -B "$B" -T "$T" -threads "$THREADS" \
            -warmup "$WARMUP" -steps "$STEPS" > "$work/out"
        sed -n 's/^step.* \([0-9]*\) tokens\/s$/\1/p' "$work/out" | tail -n +$((WARMUP + 1)) \
            >> "$work/torch"
    done
    ours="$(median < "$work/ours")"
    torch="$(median < "$work/torch")"
    report "  train_gpt2_fp32 -p fp32" "$ours"
    report "  $(head -n 1 "$work/out" | cut -d, -f1)" "$torch"
    report_ratio "  ours / PyTorch" "$ours" "$torch" "$GOAL"
}

warn_if_busy
bench_model layers=4,channels=128,heads=4,vocab=257,context=128 16 128 257
bench_model d6 2 256 50257
