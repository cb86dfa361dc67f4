#!/usr/bin/env bash
#
# dev/gpu_ablations.sh OUT TRAIN VAL PART...: what formats, schemes and ingredients do to the loss of
# d6 (30M parameters) on 500M tokens, and the headline at d12 on 302M. TRAIN and VAL are token files
# (globs) of GPT-2 tokens. Every GPU of the host, or of CUDA_VISIBLE_DEVICES, takes the next run of
# the parts named, in their order; a run of d6 takes 5 to 8 minutes on an H200, one of d12 9 to 16.
# A part may also be one run, as RECIPE:SEED or d12/RECIPE:SEED. Finished runs in OUT are not
# repeated, interrupted ones go on from their last checkpoint; so the same command, or one with other
# parts or GPUs, goes on where another ended, or helps one that is still at work. The report in OUT is
# of all runs there.
#
#   base      the noise, and the gap: BF16 and NVFP4 with 2 seeds
#   best      Quartet II with the last or the first block in BF16
#   without   NVFP4 without each ingredient in turn
#   stack     on top of that the forward pass in BF16 for the last 18 %
#   schemes   Four Over Six, Quartet II, TetraJet, FP4 All the Way
#   formats   FP8 per tensor and in blocks, MXFP4, MXFP8
#   late      forward or backward alone in BF16 for the last 18 %
#   noise     BF16 with a third seed
#   d12       the headline
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. dev/bench/bench_common.sh
usage="usage: dev/gpu_ablations.sh OUT TRAIN VAL PART... (see its first lines)"
out=${1:?$usage} train=${2:?$usage} val=${3:?$usage}
shift 3
[ $# -gt 0 ] || { echo "$usage"; exit 1; }
mkdir -p "$out"

# RECIPE:SEED of the runs of a part
runs_of() {
    case $1 in
        base)    echo nvfp4:1 bf16:1 nvfp4:2 bf16:2 ;;
        best)    echo quartet2,tail=1:1 quartet2,tail=0,front=1:1 ;;
        noise)   echo bf16:3 ;;
        without) echo nvfp4,tail=0:1 nvfp4,hadamard=0:1 nvfp4,stochastic=0:1 nvfp4,tile=0:1 ;;
        stack)   echo quartet2,tail=1,forward=bf16@0.82:1 quartet2,tail=0,front=1,forward=bf16@0.82:1 ;;
        schemes) echo quartet2:1 nvfp4+46:1 tetrajet:1 fp4all:1 ;;
        formats) echo fp8:1 mxfp4:1 fp8block:1 mxfp8:1 ;;
        late)    echo nvfp4,forward=bf16@0.82:1 nvfp4,backward=bf16@0.82:1 nvfp4,all=bf16@0.82:1 ;;
        d12)     echo bf16:1 nvfp4:1 quartet2,tail=0,front=2,forward=bf16@0.82:1 fp8:1 ;;
        *:[0-9]*) echo "${1#d12/}" ;;
        *)       echo "$usage" >&2; return 1 ;;
    esac
}

# branch FOLDER: a recipe that ends in a switch @0.82 goes on from the checkpoint of update 3000 of a
# run that was the same up to then (0.82 * 3815 = 3128): without the switch, or with another
branch() {
    local seed=${1##*_} base=${1%,*@0.82_seed*} run
    if [ "$base" = "$1" ] || [ -f "$1/log.jsonl" ]; then return; fi
    for run in "${base}_$seed" "$base",*@0.82_"$seed"; do
        if [ -f "$run/state_00003000.bin" ]; then
            cp "$run"/*_00003000.bin "$1"
            sed '/^{"step":3000,/,$d' "$run/log.jsonl" > "$1/log.jsonl"
            return
        fi
    done
}

# served GPU FOLDER STEPS: validation losses of the model that was trained, as it may be served: in
# BF16, and in NVFP4 with the tail in BF16, in 16x16 tiles or in 1x16 blocks with Four Over Six.
# Of recipes where that is a question.
served() {
    local recipe model
    case ${2##*/} in bf16_*|nvfp4_*|quartet2*|*@*) ;; *) return ;; esac
    model="$2/model_$(printf %08d "$3").bin"
    for recipe in bf16 nvfp4 nvfp4+46,tile=0; do
        printf '%s %s\n' "$recipe" "$(CUDA_VISIBLE_DEVICES=$1 ./train_gpt2_nvfp4 -e "$model" \
            -i "$train" -j "$val" -b 64 -t 1024 -x 0 -v 1 -vt 1048576 -p "$recipe" -pr 0 2>&1 |
            tail -n 1 | grep -o '[0-9.]*$')"
    done > "$2/served.txt"
}

# train GPU MODEL RECIPE SEED: unless it is done, or another GPU is at it, which holds the lock
train() {
    local gpu=$1 model=$2 steps=3815 warmup=200 folder="$out/$2/$3_seed$4"
    if [ "$model" = d12 ]; then steps=2304 warmup=150; fi
    mkdir -p "$folder"
    exec 9> "$folder/lock"
    flock -n 9 || return
    grep -q "^{\"step\":$steps,\"val_loss\"" "$folder/log.jsonl" 2>/dev/null && return
    branch "$folder"
    CUDA_VISIBLE_DEVICES=$gpu ./train_gpt2_nvfp4 -i "$train" -j "$val" -e "$model" -b 64 -t 1024 \
        -d 131072 -x "$steps" -k cosine -l 6e-4 -u "$warmup" -q 0 -v 200 -vt 1048576 -n 1000 \
        -p "$3" -seed "$4" -o "$folder" -y 1 -pr 0 >> "$folder/output.txt" 2>&1
    served "$gpu" "$folder" "$steps"
    echo "$model $3, seed $4, GPU $gpu: $(grep val_loss "$folder/log.jsonl" | tail -n 1) ($SECONDS s)"
}

# work GPU: takes one run after the other that is not done or taken
work() {
    local part model run
    for part in "${parts[@]}"; do
        model=d6
        case $part in d12|d12/*) model=d12 ;; esac
        for run in $(runs_of "$part"); do train "$1" "$model" "${run%:*}" "${run#*:}"; done
    done
}

parts=("$@")
for part in "${parts[@]}"; do runs_of "$part" > /dev/null || exit 1; done
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
built_from
gpus=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd ,)}
for gpu in ${gpus//,/ }; do work "$gpu" & done
wait
plots=$(python3 -c "import matplotlib" 2>/dev/null || echo --no-plots)
for model in d6 d12; do
    # shellcheck disable=SC2086
    [ ! -f "$out/$model/bf16_seed1/log.jsonl" ] ||
        dev/compare --logs "$out/$model" -o "$out/$model" --force $plots
done
