#!/usr/bin/env bash
#
# What `make run` does: trains one small GPT-2 on real text three times, with the same seed on the
# same tokens, once with each recipe (NVFP4, BF16, FP32), and shows how far they lie apart.
#
#   1. dev/setup.sh installs what is missing; SETUP=0 skips this
#   2. data/quickstart.py fetches a text and turns it into tokens, one token a byte
#   3. make builds the trainer: the CUDA program where there is a GPU and nvcc, else the C program
#   4. three runs, less than a minute each on two cores; logs in runs/quickstart/RECIPE
#   5. a table, some text that the NVFP4 model writes, and a plot: runs/quickstart/loss.png
set -euo pipefail
cd "$(dirname "$0")/.."

# How long an OpenMP thread waits busily for the others before it lets another process run. With the
# default of 300000, two processes on the same cores slow each other down tenfold.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

RUNS=runs/quickstart
RECIPES=(nvfp4 bf16 fp32)
SETTINGS=(
    -i data/quickstart_train.bin -j data/quickstart_val.bin
    -e "layers=4,channels=128,heads=4,vocab=257"
    -b 16 -t 64                     # 1024 tokens a step
    -x 600 -l 5e-3 -u 120 -q 0.1    # steps; learning rate: peak, warmup, final fraction
    -v 50 -vt 12800                 # validate every 50 steps
    -s 300 -sn 64                   # write some text at the beginning, halfway and at the end
)

step() { printf '\n--- %s\n' "$1"; }

if [ "${SETUP:-1}" != 0 ]; then
    step "looking for what is needed (SETUP=0 skips this)"
    dev/setup.sh
fi

step "getting a text and turning it into tokens"
python3 data/quickstart.py

if [ -n "$(make -s print-GPU)" ] && [ -n "$(make -s print-NVCC)" ]; then
    program=train_gpt2_nvfp4
    start=(mpirun -np 1 --bind-to none)
    if [ "$(id -u)" -eq 0 ]; then
        start+=(--allow-run-as-root)
    fi
else
    program=train_gpt2_fp32
    start=()
fi

step "building $program"
make -s "$program"

# tee hides the terminal from the program, which would choose plain lines
progress=0
if [ -t 1 ]; then
    progress=1
fi
runs=()
for recipe in "${RECIPES[@]}"; do
    out=$RUNS/$recipe
    runs+=("$out")
    mkdir -p "$out"
    step "training with the recipe $recipe"
    "${start[@]}" "./$program" "${SETTINGS[@]}" -p "$recipe" -o "$out" -pr "$progress" |
        tee "$out/output.txt"
done

step "text written by the NVFP4 model"
awk '/^--- generated/ { text = ""; inside = 1; next }     # the last one is of the trained model
     /^---$/          { inside = 0 }
     inside           { text = text $0 "\n" }
     END              { printf "%s", text }' "$RUNS/nvfp4/output.txt"

step "results"
dev/logs.py table "${runs[@]}"
entropy=$(python3 -c '
import json
print("%.4f" % json.load(open("data/quickstart.json"))["val_unigram_entropy"])')
printf '%-10s %10s %10s\n' "unigrams" "" "$entropy"
cat <<'TEXT'

Losses in nats a byte; the training loss is the mean of the last 20 steps. "unigrams" is the entropy
of the text's bytes: what a model reaches that knows only how frequent each byte is.
TEXT
dev/plot.sh -t "GPT-2, same data and seed" -y 1.5:4 -h "$entropy=unigram entropy" \
    "$RUNS/loss.png" "${runs[@]}"
echo "plot: $RUNS/loss.png"
