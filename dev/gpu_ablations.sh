#!/usr/bin/env bash
#
# dev/gpu_ablations.sh OUT TRAIN VAL PART: what formats, schemes and ingredients do to the loss of d6
# (30M parameters) on 500M tokens, and the headline at d12 on 302M. TRAIN and VAL are token files
# (globs) of GPT-2 tokens. The runs are cut into parts that fit into a short loan of a GPU; a run of
# d6 takes some 7 minutes on an H200, one of d12 some 13 (by the speeds in README). With several GPUs
# a part runs on all. Give every part the same OUT: finished runs are not repeated, and the report
# there is of all that have been made, once BF16's are among them.
#
#   base      the noise, and the gap: BF16 with 3 seeds, NVFP4 with 2
#   formats   FP8 per tensor and in blocks, MXFP8, MXFP4
#   without   NVFP4 without each ingredient in turn
#   schemes   Four Over Six, Quartet II, TetraJet, FP4 All the Way
#   stack     what is published to help, together: with and without a BF16 tail, late switch
#   late      forward or backward alone in BF16 for the last 18 %
#   d12       the headline
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
usage="usage: dev/gpu_ablations.sh OUT TRAIN VAL base|formats|without|schemes|stack|late|d12"
out=${1:?$usage} train=${2:?$usage} val=${3:?$usage} part=${4:?$usage}

seeds=(1)
case $part in
    base)    recipes=(bf16 nvfp4) seeds=(1 2) ;;
    formats) recipes=(fp8 fp8block mxfp8 mxfp4) ;;
    without) recipes=(nvfp4,hadamard=0 nvfp4,stochastic=0 nvfp4,tile=0 nvfp4,tail=0) ;;
    schemes) recipes=(nvfp4+46 quartet2 tetrajet fp4all) ;;
    stack)   recipes=(quartet2,tail=1 quartet2,oscireset=8 quartet2,tail=1,forward=bf16@0.82) ;;
    late)    recipes=(nvfp4,forward=bf16@0.82 nvfp4,backward=bf16@0.82 nvfp4,all=bf16@0.82) ;;
    d12)     recipes=(bf16 fp8 nvfp4 quartet2,tail=2) ;;
    *)       echo "$usage"; exit 1 ;;
esac
model=d6 steps=3815 rate=6e-4 warmup=200 folder=$out/d6
if [ "$part" = d12 ]; then model=d12 steps=2304 warmup=150 folder=$out/d12; fi

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
git log -1 --format='commit %h %s' 2>/dev/null
plots=$(python3 -c "import matplotlib" 2>/dev/null || echo --no-plots)
compare() {             # the part's first recipe stands in for BF16, which may lie elsewhere
    dev/compare --baseline "${recipes[0]}" "$@" -i "$train" -j "$val" -e "$model" -b 64 -t 1024 \
        -d 131072 -x "$steps" -k cosine -l "$rate" -u "$warmup" -q 0 -v 200 -vt 1048576 -n 0 \
        -o "$folder" $plots
}
compare -p "${recipes[@]}" -seed "${seeds[@]}"
if [ "$part" = base ]; then compare -p bf16 -seed 3; fi
if [ -f "$folder/bf16_seed1/log.jsonl" ]; then dev/compare --logs "$folder" -o "$folder" $plots; fi
