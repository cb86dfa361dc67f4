#!/usr/bin/env bash
#
# dev/gpu_compare.sh OUT TRAIN VAL: the loss of d12 in NVFP4 against BF16, with two seeds each so
# that the noise is known. TRAIN and VAL are token files (globs) of GPT-2 tokens. 768 updates of
# 131,072 tokens: 100.7M tokens, which should be distinct. Same seed: same initial weights, same
# tokens in the same order. One run a GPU at a time, as many GPUs as there are; 4 runs, about 4
# minutes each on an H200. Logs go to OUT/RECIPE_SEED/log.jsonl.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: dev/gpu_compare.sh OUT TRAIN VAL} train=${2:?} val=${3:?}
mkdir -p "$out"
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)

train_one() {   # GPU RECIPE SEED
    CUDA_VISIBLE_DEVICES=$1 ./train_gpt2_nvfp4 -i "$train" -j "$val" -e d12 -b 64 -t 1024 \
        -d 131072 -x 768 -k cosine -l 6e-4 -u 150 -q 0 -c 0.1 -v 32 -vt 1048576 -s 768 -sn 128 \
        -p "$2" -seed "$3" -pr 0 \
        -o "$out/$2_seed$3" > "$out/$2_seed$3.txt" 2>&1
    echo "$2 seed $3 on GPU $1: status $?, $(grep validation "$out/$2_seed$3.txt" | tail -n 1)"
}

lane() {        # GPU, then RECIPE SEED pairs, one after the other
    local gpu=$1
    shift
    while [ $# -gt 0 ]; do
        train_one "$gpu" "$1" "$2"
        shift 2
    done
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [ "$gpus" -ge 2 ]; then
    lane 0 nvfp4 1 bf16 1 &
    lane 1 nvfp4 2 bf16 2 &
    wait
else
    lane 0 nvfp4 1 bf16 1 nvfp4 2 bf16 2
fi
for seed in 1 2; do python3 dev/logs.py table "$out/nvfp4_seed$seed" "$out/bf16_seed$seed"; done
