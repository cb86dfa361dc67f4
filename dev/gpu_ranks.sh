#!/usr/bin/env bash
#
# dev/gpu_ranks.sh OUT [PART...]: everything that is claimed of many ranks on GPUs, on all GPUs of
# this host (2 or more). Without PART all but the last of:
#
#   tests     that N ranks compute what one computes: operands, gradients, ZeRO levels, bytes,
#             checkpoints
#   faults    20 times kill -9, SIGSTOP, a rank that does not start, no memory on one GPU; on the
#             first two GPUs
#   curves    losses of 200 updates with 1, 2, ... ranks beside those of one rank that sums
#             gradients over tokens in parts, as ranks do
#   speed     weak scaling of d12 and d48, BF16 and NVFP4, and where the rest goes
#   ctas      d12 in BF16, one micro-batch an update, with fewer of NCCL's blocks beside the GEMMs
#
# The log of a part goes to OUT/PART.log. NVLink multicast stays off (NCCL_NVLS_ENABLE=0). About 8
# minutes on 4 H100s. Needs the programs, build/test/cuda/test_ranks_model and
# build/parts{2,4,8}/train_gpt2_nvfp4 built; the token files of `make run`; and, for the fault "no
# memory", a Python with PyTorch.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: dev/gpu_ranks.sh OUT [tests|faults|curves|speed|ctas]...}
shift
WARMUP=3                # first steps that do not count for speed
. dev/bench/bench_common.sh
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export NCCL_NVLS_ENABLE=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
    CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd ,)
fi
export CUDA_VISIBLE_DEVICES
IFS=, read -r -a devices <<< "$CUDA_VISIBLE_DEVICES"
gpus=${#devices[@]}
[ "$gpus" -ge 2 ] || fail "this host has $gpus GPU; several ranks need several"
most=2
while [ $((2 * most)) -le "$gpus" ]; do most=$((2 * most)); done     # a power of two
failed=0

# run SECONDS COMMAND...: prints the command, runs it, says how long it took
run() {
    local limit=$1 start=$SECONDS status
    shift
    printf '\n=== %s\n' "$*"
    timeout "$limit" "$@" 2>&1
    status=$?
    [ "$status" -eq 0 ] || { echo "FAILED with status $status: $*"; failed=1; }
    echo "    ($((SECONDS - start)) s)"
}

# train RANKS FIRST PROGRAM ARGUMENT...: on as many GPUs, the first of which is FIRST
train() {
    local ranks=$1 first=$2
    shift 2
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${devices[*]:first:ranks}") \
        timeout 240 mpirun --oversubscribe --bind-to none -np "$ranks" "$@"
}

part_tests() {
    run 180 build/test/cuda/test_ranks_model
    run 180 build/test/cuda/test_ranks_model d12 256
    run 180 env CUDA=./train_gpt2_nvfp4 RANKS=$((most < 4 ? most : 4)) dev/test/test_ranks_cuda.sh
}

# Most of the second GPU's memory is held while a run asks for more than is left there.
part_faults() {
    local holder
    python3 -c "
import torch, time
held = torch.empty(int(0.97 * torch.cuda.mem_get_info(1)[0]), dtype=torch.uint8, device='cuda:1')
time.sleep(400)" &
    holder=$!
    sleep 8
    run 120 env PROGRAM=./train_gpt2_nvfp4 RANKS=2 KILLS=0 FULL_ROWS=20000 \
        dev/test/test_ranks_faults.sh
    kill $holder
    wait $holder 2>/dev/null
    run 400 env PROGRAM=./train_gpt2_nvfp4 RANKS=2 KILLS=20 dev/test/test_ranks_faults.sh
}

part_curves() {
    local recipe sums ranks
    for recipe in bf16 nvfp4; do
        local settings=(-i data/quickstart_train.bin -j data/quickstart_val.bin -t 128 -l 1e-3 -u 20
                        -e "layers=4,channels=128,heads=4,vocab=257" -x 200 -v 200 -vt 65536
                        -p "$recipe" -pr 0)
        train 1 0 ./train_gpt2_nvfp4 "${settings[@]}" -b 16 -o "$scratch/$recipe/one" \
            > "$scratch/printed" 2>&1 || tail -n 3 "$scratch/printed" &
        local others=()
        for sums in 2 4 8; do
            train 1 $((sums / 2 % gpus)) "build/parts$sums/train_gpt2_nvfp4" "${settings[@]}" \
                -b 16 -o "$scratch/$recipe/sums_in_${sums}_parts" > "$scratch/printed.$sums" 2>&1 ||
                tail -n 3 "$scratch/printed.$sums" &
            others+=("$scratch/$recipe/sums_in_${sums}_parts")
        done
        wait
        for ((ranks = 2; ranks <= most; ranks *= 2)); do
            train "$ranks" 0 ./train_gpt2_nvfp4 "${settings[@]}" -b $((16 / ranks)) -z 1 \
                -o "$scratch/$recipe/${ranks}_ranks" > "$scratch/printed" 2>&1 ||
                tail -n 3 "$scratch/printed"
            others+=("$scratch/$recipe/${ranks}_ranks")
        done
        printf '\n=== %s, 200 updates, against one rank\n' "$recipe"
        python3 dev/logs.py distance "$scratch/$recipe/one" "${others[@]}" || failed=1
    done
}

# speed_of MODEL ROWS TIMES RANKS FIRST RECIPE ARGUMENT...: tokens/s of all ranks, into a file that
# also says which GPU was the first. ROWS of a GPU, which has TIMES micro-batches in an update.
speed_of() {
    local model=$1 rows=$2 times=$3 ranks=$4 first=$5 recipe=$6 name
    shift 6
    name="$model.$times.$ranks.$recipe$(printf '%s' "$@")"
    [ "$ranks" -gt 1 ] || name+=".$first"
    train "$ranks" "$first" ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e "$model" -b "$rows" \
        -t 1024 -d $((rows * 1024 * times * ranks)) -x 7 -p "$recipe" -pr 0 "$@" \
        -o "$scratch/$name" > "$scratch/$name.txt" 2>&1 || tail -n 2 "$scratch/$name.txt"
    if [ -f "$scratch/$name/log.jsonl" ]; then
        echo "$first $(speeds_of_log "$scratch/$name/log.jsonl" | median)" > "$scratch/$name.speed"
    fi
}

# efficiency MODEL ROWS TIMES: a table of what the runs have left. Several GPUs are held against the
# same GPUs, each alone.
efficiency() {
    local model=$1 rows=$2 times=$3 speed first ranks what gpu
    printf '\n=== %s, B %s, T 1024, %s micro-batches an update: tokens/s\n' "$@"
    for what in bf16-z1 nvfp4-z1 nvfp4-z1-amaxlocal; do
        for ((ranks = 2; ranks <= most; ranks *= 2)); do
            read -r first speed 2>/dev/null \
                < "$scratch/$model.$times.$ranks.$what.speed" || continue
            for ((gpu = first; gpu < first + ranks; gpu++)); do
                cat "$scratch/$model.$times.1.${what%%-*}.$gpu.speed" 2>/dev/null
            done | awk -v n="$ranks" -v s="$speed" -v what="$what" '
                { sum += $2; alone = alone " " sprintf("%d", $2) }
                END { printf "%-20s %d GPUs %10d, %.4f of the sum of each alone,%s\n",
                             what, n, s, NR == n ? s / sum : 0, alone }'
            grep '^on the wire' "$scratch/$model.$times.$ranks.$what.txt"
        done
    done
}

# As many runs at a time as there are GPUs for.
part_speed() {
    local model rows times ranks spec slots job gpu recipe
    python3 dev/bench/random_tokens.py 50257 2000000 "$scratch/tokens.bin"
    for spec in d12:64:1 d12:64:8 d48:8:8; do
        IFS=: read -r model rows times <<< "$spec"
        for recipe in bf16 nvfp4; do
            for ((gpu = 0; gpu < gpus; gpu++)); do
                speed_of "$model" "$rows" "$times" 1 "$gpu" "$recipe" &
            done
            wait
        done
        for ((ranks = 2; ranks <= most; ranks *= 2)); do
            slots=$((gpus / ranks)) job=0
            for what in "bf16 -z 1" "nvfp4 -z 1" "nvfp4 -z 1 -amax local"; do
                # shellcheck disable=SC2086
                speed_of "$model" "$rows" "$times" "$ranks" $((job % slots * ranks)) $what &
                job=$((job + 1))
                [ $((job % slots)) -ne 0 ] || wait
            done
            wait
        done
        efficiency "$model" "$rows" "$times"
    done
}

part_ctas() {
    local gpu ctas
    python3 dev/bench/random_tokens.py 50257 2000000 "$scratch/tokens.bin"
    for ((gpu = 0; gpu < gpus; gpu++)); do speed_of d12 64 1 1 "$gpu" bf16 & done
    wait
    for ctas in as_it_likes 2 4 8 16; do
        printf '\n=== NCCL_MAX_CTAS %s\n' "$ctas"
        if [ "$ctas" = as_it_likes ]; then speed_of d12 64 1 "$most" 0 bf16 -z 1
        else NCCL_MAX_CTAS=$ctas speed_of d12 64 1 "$most" 0 bf16 -z 1; fi
        efficiency d12 64 1
        rm -f "$scratch/d12.1.$most.bf16-z1.speed"
    done
}

parts=("$@")
[ $# -gt 0 ] || parts=(tests faults curves speed)
for part in "${parts[@]}"; do
    case $part in tests|faults|curves|speed|ctas) ;; *) fail "no part '$part'" ;; esac
    {
        nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
        built_from
        "part_$part"
        echo
        [ "$failed" -eq 0 ] && echo "$part: done" || echo "$part: something FAILED"
    } 2>&1 | tee "$out/$part.log"
done
