#!/bin/sh
# Speed against llm.c, in the same call on the same machine. Build llm.c yourself, as it describes:
#
#     LLMC_TRAIN=/path/to/llm.c/train_gpt2   dev/bench/bench_llmc.sh cpu
#     LLMC_TRAIN=/path/to/llm.c/train_gpt2cu dev/bench/bench_llmc.sh gpu
#
# cpu: d12, B 4, T 64, FP32: the shape that is fixed inside train_gpt2.c. THREADS=2 may be set.
# gpu: d12, B 64, T 1024, 524288 tokens a step, BF16; then NVFP4. BATCH=64, TOTAL=524288, STEPS=12
#      may be set. train_gpt2cu should be built with USE_CUDNN=1.
# Needs ./train_gpt2_fp32 or ./train_gpt2_nvfp4, and python3 (standard library) for random tokens.
set -eu
mode="${1:-}"
ours_dir="$(cd "$(dirname "$0")/../.." && pwd)"
. "$ours_dir/dev/bench/bench_common.sh"

[ -x "${LLMC_TRAIN:-}" ] || fail "set LLMC_TRAIN to the path of llm.c's train_gpt2 or train_gpt2cu"
llmc_train="$(realpath "$LLMC_TRAIN")"
case "$mode" in
    cpu) program="$ours_dir/train_gpt2_fp32" ;;
    gpu) program="$ours_dir/train_gpt2_nvfp4" ;;
    *) fail "usage: LLMC_TRAIN=path dev/bench/bench_llmc.sh cpu|gpu" ;;
esac
[ -x "$program" ] || fail "no $program; run: make $(basename "$program")"

# An override of OpenBLAS's choice of kernels would be measured in place of this machine: with
# OPENBLAS_CORETYPE=Haswell a processor with AVX-512 does little more than half of what it can.
unset OPENBLAS_CORETYPE

work="$(mktemp -d)"
trap 'rm -r "$work"' EXIT
cd "$work"

# llm.c opens its tokenizer in the current folder and uses its end-of-text token unchecked. This one
# prints a dot for each of 50257 tokens.
python3 -c 'import struct, sys; sys.stdout.buffer.write(
    struct.pack("<4i", 20240328, 2, 50257, 50256).ljust(1024, b"\0") + b"\1." * 50257)' \
    > gpt2_tokenizer.bin

# runs our program: recipe, further flags -> tokens/s of each step in the file named by the recipe
run_ours() {
    recipe="$1"
    shift
    "$program" -p "$recipe" -e d12 -i tokens.bin -j tokens.bin -o "log_$recipe" "$@" > out ||
        { cat out; fail "$program failed"; }
    speeds_of_log "log_$recipe/log.jsonl" > "$recipe"
}

bench_cpu() {
    WARMUP=1
    export OMP_NUM_THREADS="${THREADS:-2}"
    warn_if_busy
    echo "d12, B 4, T 64, FP32, $OMP_NUM_THREADS threads"
    python3 "$ours_dir/dev/bench/random_tokens.py" 50257 100000 tokens.bin
    # llm.c's program has no flags; it finds weights and text by name. Ours writes the weights.
    "$program" -p fp32 -e d12 -b 4 -t 64 -x 1 -i tokens.bin -j tokens.bin -n 1 -o weights > out ||
        { cat out; fail "$program failed"; }
    mv weights/model_00000001.bin gpt2_124M.bin
    mkdir -p dev/data/tinyshakespeare
    for split in train val; do
        ln tokens.bin "dev/data/tinyshakespeare/tiny_shakespeare_$split.bin"
    done
    run_ours fp32 -b 4 -t 64 -x 9
    # it would take 41 steps and generate text between them: 9 steps are enough
    stdbuf -oL "$llmc_train" > llmc_out &
    llmc=$!
    while kill -0 $llmc 2> /dev/null && ! grep -q '^step 8:' llmc_out; do sleep 1; done
    kill $llmc 2> /dev/null || true
    speeds_of_llmc llmc_out 256 > llmc
    ours="$(median < fp32)"
    theirs="$(median < llmc)"
    report "  train_gpt2_fp32 -p fp32" "$ours"
    report "  llm.c $(basename "$llmc_train")" "$theirs"
    report_ratio "  ours / llm.c" "$ours" "$theirs" 10
}

bench_gpu() {
    WARMUP=3
    B="${BATCH:-64}" total="${TOTAL:-524288}" steps="${STEPS:-12}"
    echo "d12, B $B, T 1024, $total tokens a step, $steps steps"
    python3 "$ours_dir/dev/bench/random_tokens.py" 50257 2000000 tokens.bin
    # -v 0 ends llm.c with a division by zero: it evaluates every 250 steps instead, so before the
    # first step and after the last, which is not part of a step's time
    "$llmc_train" -i tokens.bin -j tokens.bin -e d12 -b "$B" -t 1024 -d "$total" -x "$steps" \
        -v 250 -m 1 -s 0 -n 0 -l 6e-4 -c 0.1 > llmc_out || { cat llmc_out; fail "llm.c failed"; }
    speeds_of_llmc llmc_out "$total" > llmc
    run_ours bf16 -b "$B" -t 1024 -d "$total" -x "$steps"
    run_ours nvfp4 -b "$B" -t 1024 -d "$total" -x "$steps"
    theirs="$(median < llmc)"
    bf16="$(median < bf16)"
    nvfp4="$(median < nvfp4)"
    report "  llm.c $(basename "$llmc_train")" "$theirs"
    report "  train_gpt2_nvfp4 -p bf16" "$bf16"
    report "  train_gpt2_nvfp4 -p nvfp4" "$nvfp4"
    report_ratio "  our BF16 / llm.c" "$bf16" "$theirs" 0.85
    report_ratio "  our NVFP4 / our BF16" "$nvfp4" "$bf16" 0.55
}

bench_"$mode"
