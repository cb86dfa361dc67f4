#!/usr/bin/env bash
#
# dev/gpu_recipes.sh OUT: every recipe on a GPU: the tests that are about recipes, then the speed of
# each preset on d12, 65,536 random tokens an update, medians of 12 without the first 3; the matrix
# products alone, cold and under load, which dev/plan is calibrated with; and what the guards cost:
# NVFP4 with and without them in turn, medians of 40. The log goes to OUT/recipes.log. About 4
# minutes on an H200.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: dev/gpu_recipes.sh OUT}
WARMUP=3                # first steps that do not count for speed
. dev/bench/bench_common.sh
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

everything() {
    local failed=0 recipe status
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    built_from
    for test in test_quantize_any test_recipes_cuda test_gemm_fp8; do
        printf '\n=== %s\n' "$test"
        timeout 120 "build/test/cuda/$test" > "$scratch/printed" 2>&1
        status=$?
        grep -vE '^ok ' "$scratch/printed"
        echo "status $status, $(grep -cE '^ok ' "$scratch/printed") ok"
        [ "$status" -eq 0 ] || failed=1
    done
    for runs in 20 300; do
        printf '\n=== bench_gemm %s\n' "$runs"
        timeout 90 build/bench/cuda/bench_gemm "$runs"
    done
    printf '\n=== d12, B 64, T 1024, 65,536 tokens an update\n'
    python3 dev/bench/random_tokens.py 50257 2000000 "$scratch/tokens.bin"
    for recipe in bf16 fp8 fp8block nvfp4 fp4all nvfp4+46 mxfp8 mxfp4 tetrajet quartet2 bf16; do
        if ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e d12 -b 64 -t 1024 -x 12 -p "$recipe" \
                -pr 0 -o "$scratch/run" > "$scratch/printed" 2>&1; then
            report "$recipe" "$(speeds_of_log "$scratch/run/log.jsonl" | median)"
            grep -E '^(gemm path|  gemm)' "$scratch/printed" | cut -c1-160
        else
            printf '%-42s %s\n' "$recipe" "$(tail -n 1 "$scratch/printed")"
            failed=1
        fi
        rm -rf "$scratch/run"
    done
    printf '\n=== nvfp4 without guards and with them\n'
    for guards in 0 1 0 1 0 1; do
        ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e d12 -b 64 -t 1024 -x 40 -p nvfp4 \
            -gd $guards -pr 0 -o "$scratch/run" > "$scratch/printed" 2>&1 || failed=1
        report "-gd $guards" "$(speeds_of_log "$scratch/run/log.jsonl" | median)"
        rm -rf "$scratch/run"
    done
    [ "$failed" -eq 0 ] && echo "every recipe ran" || echo "something FAILED"
}

everything 2>&1 | tee "$out/recipes.log"
