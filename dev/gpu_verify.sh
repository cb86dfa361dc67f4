#!/usr/bin/env bash
#
# dev/gpu_verify.sh OUT [PART...]: everything that is claimed of the CUDA program on a GPU, but for
# many ranks (dev/gpu_ranks.sh) and long runs. Without PART all of:
#
#   tests       the test programs; the fallback where there are no FP4 tensor cores
#   reference   PyTorch and transformers; the C program's first step of d12
#   curves      the C program's losses; two runs and an interrupted one, the same bits
#   speed       steps of d12, every benchmark
#   sanitizer   memory errors and races
#
# The log goes to OUT/verify.log. About 6 minutes on one H200 with 16 cores. Needs the CUDA toolkit
# and a Python with PyTorch and transformers; token files as for `make run`.
#
#   LLMC="command" dev/gpu_verify.sh OUT    times llm.c between two of our own runs (bench_llmc.sh
#                                           says how it has to be built)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: dev/gpu_verify.sh OUT [PART...]}
shift
. dev/bench/bench_common.sh
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"     # idle threads leave the cores to other programs
failed=0

run() {         # SECONDS COMMAND...: prints the command, runs it, says how long it took
    local limit=$1 start=$SECONDS status
    shift
    printf '\n=== %s\n' "$*"
    timeout "$limit" "$@" 2>&1
    status=$?
    [ "$status" -eq 0 ] || { echo "FAILED with status $status: $*"; failed=1; }
    echo "    ($((SECONDS - start)) s)"
}

# STATUS PATTERN COMMAND...: the command has to end with this status, and to print such a line
expect() {
    local wanted=$1 pattern=$2 status
    shift 2
    printf '\n=== %s\n' "$*"
    timeout 60 "$@" > "$scratch/printed" 2>&1
    status=$?
    cat "$scratch/printed"
    if [ "$status" -ne "$wanted" ] || ! grep -qE -- "$pattern" "$scratch/printed"; then
        echo "FAILED: status $status instead of $wanted, or no line like '$pattern'"
        failed=1
    fi
}

part_tests() {
    # the C program writes the oracles that test_model reads
    run 120 ./test_gpt2
    for test in build/test/cuda/*; do
        [ -x "$test" ] && [ "${test%.d}" = "$test" ] && run 120 "$test"
    done

    # Where there are no FP4 tensor cores, cuBLASLt is asked for FP4 products all the same and says
    # so; -g auto then emulates them, and -g fp4 refuses to run
    local short=(-i data/quickstart_train.bin -e "layers=2,channels=128,heads=2,vocab=257"
                 -b 2 -t 80 -x 1 -p nvfp4)
    local missing='not available: .*CUBLAS_STATUS_NOT_SUPPORTED' capability
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
    if [ "${capability%%.*}" -lt 10 ]; then
        expect 0 '^gemm path +emulated: FP4 not available' ./train_gpt2_nvfp4 "${short[@]}" -g auto
        expect 0 "^  gemm fp4 +$missing" ./train_gpt2_nvfp4 "${short[@]}" -g auto
        expect 1 "^error: -g fp4: .* $missing" ./train_gpt2_nvfp4 "${short[@]}" -g fp4
    else
        expect 0 '^gemm path +fp4: FP4 passed the self-test' ./train_gpt2_nvfp4 "${short[@]}" -g fp4
    fi
    expect 0 '^gemm path +emulated: -g emulated' ./train_gpt2_nvfp4 "${short[@]}" -g emulated
}

part_reference() {
    # PyTorch in FP32 on this GPU against both programs, and our model file read by transformers
    run 120 python3 dev/reference/make_reference.py -model d12 -B 4 -T 64 -lr 1e-4 -device cuda \
        -o "$scratch/d12"
    run 120 build/test/cuda/test_model "$scratch/d12_model.bin" "$scratch/d12_state.bin"
    run 120 ./test_gpt2 "$scratch/d12_model.bin" "$scratch/d12_state.bin"
    run 60 python3 dev/reference/safetensors_export.py "$scratch/d12_model.bin" "$scratch/d12_hf"
    run 60 python3 dev/reference/hf_check.py "$scratch/d12_hf" "$scratch/d12_model.bin" \
        "$scratch/d12_state.bin"

    # the first step of d12 in the C program and in this one
    run 120 ./test_gpt2 d12 nvfp4 2 512 "$scratch/oracle_d12.bin"
    run 120 build/test/cuda/test_model "$scratch/oracle_d12.bin"
}

part_curves() {
    # 50 updates in FP32, C and CUDA; then the losses under nvfp4, with a second run that
    # must have the same bits
    local small=(-i data/quickstart_train.bin -j data/quickstart_val.bin
                 -e "layers=4,channels=128,heads=4,vocab=257" -b 16 -t 128 -l 1e-3 -u 20)
    run 120 ./train_gpt2_fp32 "${small[@]}" -x 50 -p fp32 -o "$out/c_fp32"
    run 60 ./train_gpt2_nvfp4 "${small[@]}" -x 50 -p fp32 -o "$out/cuda_fp32"
    run 10 python3 dev/logs.py compare "$out/cuda_fp32" "$out/c_fp32" 1e-4
    for recipe in bf16 nvfp4; do
        run 240 ./train_gpt2_fp32 "${small[@]}" -x 400 -v 20 -vt 65536 -p "$recipe" \
            -o "$out/c_$recipe"
        run 60 ./train_gpt2_nvfp4 "${small[@]}" -x 400 -v 20 -vt 65536 -p "$recipe" \
            -o "$out/cuda_$recipe"
        run 60 ./train_gpt2_nvfp4 "${small[@]}" -x 400 -v 20 -vt 65536 -p "$recipe" \
            -o "$out/cuda_${recipe}_again"
        run 10 python3 dev/logs.py compare "$out/cuda_$recipe" "$out/cuda_${recipe}_again" 0
        run 10 python3 dev/logs.py table "$out/cuda_$recipe" "$out/c_$recipe"
    done
    # interrupted after 100 updates, in the middle of an epoch, and resumed: the
    # losses of the whole run
    local resumed=("${small[@]}" -x 200 -p nvfp4 -n 100)
    run 60 ./train_gpt2_nvfp4 "${resumed[@]}" -o "$out/whole"
    run 60 ./train_gpt2_nvfp4 "${resumed[@]}" -o "$out/parts"
    rm "$out"/parts/*_00000200.bin
    run 60 ./train_gpt2_nvfp4 "${resumed[@]}" -o "$out/parts" -y 1
    run 10 cmp "$out/whole/model_00000200.bin" "$out/parts/model_00000200.bin"
    rm "$out"/whole/*.bin "$out"/parts/*.bin
}

part_speed() {
    # d12, T 1024, 524,288 tokens an update
    python3 dev/bench/random_tokens.py 50257 2000000 "$scratch/tokens.bin"
    local d12=(-i "$scratch/tokens.bin" -e d12 -b 64 -t 1024 -d 524288 -x 8)
    run 60 ./train_gpt2_nvfp4 "${d12[@]}" -p bf16
    [ -z "${LLMC:-}" ] || run 90 sh -c "$LLMC"
    run 60 ./train_gpt2_nvfp4 "${d12[@]}" -p nvfp4
    run 60 ./train_gpt2_nvfp4 "${d12[@]}" -p bf16
    run 60 ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e d12 -b 16 -t 1024 -x 4 -p fp32
    # what guards cost where they cost most, with one micro-batch an update; in 3 of the 30 updates
    # that count they look at scales
    printf '\n=== guards, d12, B 64, T 1024\n'
    for guards in 0 1 0 1; do
        timeout 60 ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e d12 -b 64 -t 1024 -x 33 -p nvfp4 \
            -gd "$guards" -pr 0 -o "$scratch/guards" > "$scratch/printed" 2>&1 || failed=1
        sed -n 's/.*"ms": *\([0-9.]*\).*/\1/p' "$scratch/guards/log.jsonl" | tail -n 30 |
            awk -v gd="$guards" '{ sum += $1 } END { printf "guards %d: %.2f ms an update\n", gd, sum / NR }'
        rm -rf "$scratch/guards"
    done
    for bench in build/bench/cuda/*; do
        [ -x "$bench" ] && [ "${bench%.d}" = "$bench" ] && run 60 "$bench"
    done
}

part_sanitizer() {
    # Memory errors and races, a short run of each recipe. racecheck does not follow the mbarriers by
    # which cuBLAS's kernels for Hopper (nvjet) order shared memory, and reports hazards there; in
    # ours there must be none. (Excluding those kernels crashes the sanitizer of CUDA 13.0.)
    local tiny=(-i data/quickstart_train.bin -j data/quickstart_val.bin
                -e "layers=2,channels=128,heads=2,vocab=257" -b 2 -t 80 -x 2 -v 2 -vt 240 -s 2 -sn 2)
    for recipe in fp32 bf16 nvfp4 nvfp4,tail=0,tile=0 fp8block quartet2; do
        run 120 compute-sanitizer --tool memcheck --error-exitcode 9 \
            ./train_gpt2_nvfp4 "${tiny[@]}" -p "$recipe"
        printf '\n=== racecheck, recipe %s\n' "$recipe"
        timeout 120 compute-sanitizer --tool racecheck ./train_gpt2_nvfp4 "${tiny[@]}" -p "$recipe" \
            > "$scratch/races" 2>&1 || { echo "FAILED with status $?"; failed=1; }
        echo "hazards: $(grep -c 'Race reported' "$scratch/races"); those outside nvjet kernels:"
        if grep 'Race reported' "$scratch/races" | grep -v nvjet; then failed=1; fi
    done
}

parts=("$@")
[ $# -gt 0 ] || parts=(tests reference curves speed sanitizer)
for part in "${parts[@]}"; do
    declare -F "part_$part" > /dev/null || { echo "error: no part '$part'"; exit 1; }
done
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    built_from
    for part in "${parts[@]}"; do "part_$part"; done
    echo
    [ "$failed" -eq 0 ] && echo "verified: ${parts[*]}" || echo "something FAILED"
} 2>&1 | tee "$out/verify.log"
