#!/usr/bin/env bash
#
# dev/gpu_steps.sh OUT: how long a training step takes, d12 to d48, BF16 and NVFP4 by each path that
# this GPU has: the measurements that `dev/plan -check` is held against. 5 updates of 524,288 random
# tokens each; medians of tokens/s without the first 2. Logs go to OUT/MODEL_RECIPE/log.jsonl. About
# 4 minutes on an H200, which has the memory for these micro-batches; on a smaller GPU give fewer
# rows for d12 as the second argument (64, 32, 16, ...), the others follow.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: dev/gpu_steps.sh OUT [ROWS]} rows=${2:-64}
WARMUP=2                # first steps that do not count for speed
. dev/bench/bench_common.sh
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 dev/bench/random_tokens.py 50257 2000000 "$scratch/tokens.bin"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
built_from

for model in d12:1 d24:2 d36:4 d48:8; do
    name=${model%:*} B=$((rows / ${model#*:}))
    [ "$B" -ge 1 ] || continue
    for run in "bf16 auto" "nvfp4 emulated" "nvfp4 fp4"; do
        read -r recipe path <<< "$run"
        folder="$out/${name}_${recipe}_$path"
        if ./train_gpt2_nvfp4 -i "$scratch/tokens.bin" -e "$name" -b "$B" -t 1024 -d 524288 -x 5 \
                -p "$recipe" -g "$path" -pr 0 -o "$folder" > "$folder.txt" 2>&1; then
            report "$name, B $B, $recipe, -g $path" \
                   "$(speeds_of_log "$folder/log.jsonl" | median)"
        else
            printf '%-42s %s\n' "$name, B $B, $recipe, -g $path" "$(tail -n 1 "$folder.txt")"
        fi
    done
done
