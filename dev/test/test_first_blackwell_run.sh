#!/usr/bin/env bash
#
# The logic of dev/first_blackwell_run.sh, without a GPU: the script runs as it is in a folder where
# nvidia-smi, make, timeout, the trainer, the tests and the text are stand-ins, once on a Blackwell
# GPU on which all is well, once on a Hopper GPU, and then with everything that can go wrong. `make
# test` runs it; it needs python3.
#
# Fails with, planted in first_blackwell_run.sh: 20 times the noise allowed; D without its root; the
# last pair's D for the largest; a loss of null taken for a number; every error of -g fp4 taken for
# a missing FP4; Hopper taken for Blackwell; an unused FP4 path, a warning, a crash or a missing
# program overlooked; the end at the first failure; another GPU than that which is compiled for; -g
# fp4 where only some products have FP4; the first steps counted; half micro-batches for quarters; a
# time-out not named; no logs packed; no report when interrupted.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. dev/test/report.sh
if ! command -v python3 > /dev/null; then
    echo "skip first_blackwell_run: no python3 on this machine"
    exit 0
fi
tree=$(mktemp -d) || exit 1
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/dev/bench" "$tree/data" "$tree/bin" "$tree/programs"
cp dev/first_blackwell_run.sh dev/logs.py "$tree/dev"
cp dev/bench/bench_common.sh "$tree/dev/bench"

# ---------------------------------------------------------------------------------------------
# Stand-ins. $tree/case says what is the matter, one word a line; `is` asks for one of them.

export TREE=$tree
write() {           # FILE, text on standard input: an executable file in the tree
    cat > "$tree/$1"
    chmod +x "$tree/$1"
}

write bin/is << 'END'
#!/bin/sh
grep -qx -- "$1" "$TREE/case"
END

write bin/nvidia-smi << 'END'
#!/bin/sh
if is hopper; then name="NVIDIA H200" capability=9.0; else name="NVIDIA B200" capability=10.0; fi
memory=180000
if is small; then memory=12000; fi
case $1 in
    -L) echo "GPU 0: $name" ;;
    --query-gpu=index,compute_cap)
        if is two; then echo "0, 7.5"; echo "1, $capability"; else echo "0, $capability"; fi ;;
    --query-gpu=name) echo "$name" ;;
    --query-gpu=compute_cap) echo "$capability" ;;
    --query-gpu=memory.total) if is shared; then echo "[N/A]"; else echo "$memory MiB"; fi ;;
    *) echo "[${1#--query-gpu=}]" ;;
esac
END

write bin/nvcc << 'END'
#!/bin/sh
echo "Cuda compilation tools, release 13.0"
END

# The first word is the option that matters; programs are built by copying them.
write bin/make << 'END'
#!/bin/sh
tests="build/test/cuda/test_gemm build/test/cuda/test_gemm_fp4 build/test/cuda/test_layers"
case "$*" in
    "-s print-WHY_NO_CUDA") if is no_gpu; then echo "no CUDA GPU on this machine"; fi ;;
    "-s print-CUDA_TESTS") echo "$tests" ;;
    "-s print-BENCHES") echo "build/bench/bench_cpu build/bench/cuda/bench_gemm" ;;
    "-s print-NVCC") echo "$TREE/bin/nvcc" ;;
    "-s print-CUDA_HOME") echo "$TREE" ;;
    "-s print-"*) echo "<${2#print-}>" ;;
    *)
        failed=0
        for target in "$@"; do
            name=${target##*/}
            [ -f "$TREE/programs/$name" ] || continue
            if is "unbuilt_$name"; then
                echo "error: $name does not compile" >&2
                failed=2
            else
                mkdir -p "$(dirname "$target")"
                cp "$TREE/programs/$name" "$target"
            fi
        done
        exit $failed ;;
esac
END

# timeout --kill-after=10 SECONDS COMMAND...: two seconds for what hangs
write bin/timeout << 'END'
#!/bin/sh
limit=$2
shift 2
if is "hangs_${1##*/}"; then limit=2; fi
exec /usr/bin/timeout --kill-after=1 "$limit" "$@"
END

write programs/test_gpt2 << 'END'
#!/bin/sh
echo "ok   everything"
END

for name in test_gemm test_gemm_fp4 test_layers bench_gemm; do
    write programs/$name << 'END'
#!/bin/sh
name=${0##*/}
if is "hangs_$name"; then sleep 60; fi
echo "ok   first check"
if is "fails_$name"; then echo "FAIL second check 7 of 9 differ"; exit 1; fi
if is "crashes_$name"; then kill -SEGV $$; fi
if is "skips_$name"; then echo "skip third check: no such instruction here"; fi
END
done
write programs/test_gemm_fp4 << 'END'
#!/bin/sh
if is hopper; then echo "skip test_gemm_fp4: this GPU has no FP4"; else echo "ok   products"; fi
END

# Losses fall from 5 to 2. Curves of the emulation differ by up to 0.002, that of FP4 by 0.0015.
write programs/train_gpt2_nvfp4 << 'END'
#!/bin/bash
out="" path=auto recipe="" B=0 steps=0
while [ $# -gt 0 ]; do
    case $1 in
        -g) path=$2 ;; -p) recipe=$2 ;; -b) B=$2 ;; -o) out=$2 ;; -x) steps=$2 ;;
    esac
    shift 2
done
echo "train $recipe $path $B $out" >> "$TREE/trained"
echo "$CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES" >> "$TREE/visible"
error() { echo "error: $1  (file.cu:1)" >&2; exit 1; }
[ "$recipe" != fp8 ] || error "-p fp8: a recipe begins with fp32, bf16 or nvfp4"
echo "train_gpt2_nvfp4, commit 0123456"
if [ "$recipe" = nvfp4 ]; then
    why="CUBLAS_STATUS_NOT_SUPPORTED"
    if is broken_memory; then error "out of memory: 5 MiB for scratch; reduce -b"; fi
    if is hopper || is auto_emulated; then
        [ "$path" != fp4 ] || error "-g fp4: FP4 products of fprop, dgrad are not available: $why"
        chosen=emulated
    elif is partly; then
        [ "$path" != fp4 ] || error "-g fp4: FP4 products of wgrad are not available: $why"
        chosen="fprop, dgrad fp4, wgrad emulated"
    else
        chosen=fp4
    fi
    [ "$path" != emulated ] || chosen=emulated
    if is warns; then echo "WARNING: the FP4 tensor cores multiply wrong" >&2; fi
    echo "gemm path         $chosen: some reason; FP4 path never yet run"
fi
shift_of_losses=0
case $recipe$path$B in
    nvfp4emulated64) shift_of_losses=0.001 ;;
    nvfp4emulated32) shift_of_losses=0.003 ;;
    nvfp4emulated16) shift_of_losses=0.002 ;;
    nvfp4fp4*) if is native_off; then shift_of_losses=0.0061; else shift_of_losses=-0.0005; fi ;;
esac
if [ "$path" = fp4 ] && is native_short; then steps=150; fi
if [ -n "$out" ]; then
    mkdir -p "$out"
    awk -v steps="$steps" -v off="$shift_of_losses" 'BEGIN {
        for (i = 0; i < steps; i++) {
            printf "{\"step\":%d,\"loss\":%.6f,\"norm\":1,\"lr\":0.1,\"ms\":10,\"tok_s\":%d}\n",
                i, 2 + 3 * exp(-i / 30) + off, 1000 * (i < 3 ? 1 : i - 2)
        } }' > "$out/log.jsonl"
fi
if [ "$path" = fp4 ] && is native_null; then
    sed -i '/"step":170,/s/"loss":[^,]*/"loss":null/' "$out/log.jsonl"
fi
for i in 1 3 4 5 6; do
    echo "step $i/$steps ($i %, 0:07 left) | loss 2.0 | norm 1.0 | 9 ms | 9 tok/s | 1.$i mJ/token"
done
END

write data/machine_text.py << 'END'
import os
import sys
if os.system("is no_text") == 0:
    sys.exit("error: fewer than two text files")
print("training    18,129,268 tokens  /somewhere/train_000000.bin")
END
write dev/bench/random_tokens.py << 'END'
END

# ---------------------------------------------------------------------------------------------
# Checks

# a_run WORD...: one run of the script with these words in the case file. Its status in $status,
# what it printed in $tree/printed, its report in $report.
a_run() {
    rm -rf "$tree/out" "$tree/build" "$tree/train_gpt2_nvfp4" "$tree/test_gpt2"
    rm -f "$tree/trained" "$tree/visible"
    printf '%s\n' "$@" > "$tree/case"
    PATH="$tree/bin:$PATH" "$tree/dev/first_blackwell_run.sh" "$tree/out" > "$tree/printed" 2>&1
    status=$?
    report=$tree/out/report.md
}

# expect NAME TEXT PART=RESULT...: of the run before; the line of the first PART has to contain TEXT
expect() {
    local name=$1 text=$2 pair wrong="" line
    shift 2
    for pair in "$@"; do
        line=$(grep -F "| ${pair%=*} | ${pair##*=} |" "$report")
        [ -n "$line" ] || wrong+=" ${pair%=*} is not ${pair##*=};"
        [[ $line == *"$text"* ]] || wrong+=" ${pair%=*} says $line;"
        text=""
    done
    [ -z "$wrong" ]
    report $? "$name" "${wrong:-$# parts as expected}"
}

# counts NAME STATUS PASS FAIL UNAVAILABLE: the script's exit status and its sums
counts() {
    local last
    last=$(grep -E '^[0-9]+ pass, ' "$tree/printed")
    [ "$status" -eq "$2" ] && [ "$last" = "$3 pass, $4 FAIL, $5 unavailable" ] &&
        grep -q "^# First run on NVIDIA .*: $last$" "$report"
    report $? "$1" "status $status, $last"
}

# says NAME PATTERN FILE: a line of the file
says() {
    grep -qE -- "$2" "$3"
    report $? "$1" "$2"
}

# All is well: build, oracles, 3 tests, text, start-up, 5 curves and their comparison, 3 speeds, one
# bench. FP8 is not there twice.
a_run blackwell
counts "blackwell" 0 17 0 2
expect "blackwell, build and tests" "5 programs" "build=pass" "test_gemm_fp4=pass" \
       "test_layers=pass"
expect "blackwell, start-up" "fp4: some reason" "start-up self-test=pass"
expect "blackwell, curves" "loss 2.0" "d12, native=pass" "d12, emulated_quarter=pass" \
       "d12, bf16=pass"
expect "blackwell, agreement" "D = 0.001500, bound 2 x 0.002000; mean difference -0.001500" \
       "native against emulated=pass"
expect "blackwell, FP8" "a recipe begins with" "d12, fp8=unavailable" "speed, fp8=unavailable"
# the first three steps do not count; the printout has the 4th, 5th and 6th of the others
expect "blackwell, speed" "3000 tokens/s, 1.00 of BF16, 1.500 mJ/token" "speed, native=pass"
expect "blackwell, text" "18,129,268 tokens" "text=pass"
says "the machine" '^\| GPU \| NVIDIA B200, compute capability 10.0, 1 of them \|$' "$report"
says "the path" '^\| GEMM path \| fp4: some reason' "$report"
says "the commit" '^\| commit \| <COMMIT>, compiled for sm_<ARCH> \|$' "$report"
says "the losses" '^native +2\.0[0-9]+ ' "$report"
says "what to do" "send $tree/out/report.md and $tree/out/logs.tar.gz" "$tree/printed"
tar -tzf "$tree/out/logs.tar.gz" > "$tree/packed"
says "logs are packed" '^logs/runs/native/log.jsonl$' "$tree/packed"
says "logs are packed" '^logs/test_gemm_fp4.log$' "$tree/packed"
says "micro-batches" '^train nvfp4 emulated 16 .*/emulated_quarter$' "$tree/trained"
says "micro-batches" '^train nvfp4 fp4 64 .*/native$' "$tree/trained"

# again into the same folder
"$tree/dev/first_blackwell_run.sh" "$tree/out" > "$tree/printed" 2>&1
[ $? -eq 1 ] && grep -q "has a report already" "$tree/printed"
report $? "a folder with a report" "$(head -n 1 "$tree/printed")"

# A GPU without FP4 tensor cores: 1 test, the native curve, its comparison and its speed are missing
a_run hopper
counts "hopper" 0 13 0 6
expect "hopper, tests" "this GPU has no FP4" "test_gemm_fp4=unavailable" "test_gemm=pass"
expect "hopper, start-up" "emulated: some reason" "start-up self-test=pass"
expect "hopper, native" "-g fp4: FP4 products of fprop, dgrad are not available" \
       "d12, native=unavailable" "speed, native=unavailable" "speed, emulated=pass"
expect "hopper, agreement" "without native; emulated runs differ by up to 0.002000" \
       "native against emulated=unavailable"

# another error than that FP4 is missing is a failure on any GPU
a_run hopper broken_memory
expect "hopper, out of memory" "out of memory: 5 MiB" "d12, native=FAIL" "d12, emulated=FAIL" \
       "start-up self-test=FAIL" "native against emulated=unavailable" "d12, bf16=pass"

# FP4 tensor cores that are there and not used; then used for some products
a_run auto_emulated
expect "FP4 is not used" "they are not used" "start-up self-test=FAIL" "d12, native=FAIL" \
       "speed, native=FAIL"
[ "$status" -eq 1 ]
report $? "FP4 is not used, status" "$status"
a_run partly warns
counts "FP4 for some products" 1 16 1 2
expect "a warning" "multiply wrong" "start-up self-test=FAIL" "d12, native=pass"
says "FP4 for some products, flag" '^train nvfp4 auto 64 .*/native$' "$tree/trained"

# Curves that differ, end early, or have a loss that is no number
a_run native_off
counts "native differs" 1 16 1 2
expect "native differs" "D = 0.005100, bound 2 x 0.002000" "native against emulated=FAIL"
a_run native_short
expect "native is short" "D = nan" "native against emulated=FAIL" "d12, native=pass"
a_run native_null
expect "native has a null" "D = nan" "native against emulated=FAIL"

# Everything that can happen to tests and programs; the rest goes on
a_run hangs_test_gemm fails_test_gemm_fp4 crashes_test_layers hangs_bench_gemm
expect "a test hangs" "still running after 1200 s" "test_gemm=FAIL" "bench_gemm=FAIL"
expect "a test crashes" "status 139" "test_layers=FAIL" "d12, native=pass"
a_run fails_test_layers skips_test_gemm
expect "a check fails" "1 ok, 1 FAIL; status 1: FAIL second check 7 of 9 differ" "test_layers=FAIL"
expect "a check is skipped" "1 ok, 1 skipped: third check: no such instruction" "test_gemm=pass"
says "what failed is shown" '^FAIL second check 7 of 9 differ$' "$report"
a_run unbuilt_test_gemm unbuilt_test_gpt2 unbuilt_bench_gemm
expect "a test does not compile" \
       "not built: build/test/cuda/test_gemm build/bench/cuda/bench_gemm; status 2: error:" \
       "build=FAIL" "test_gemm=FAIL" "bench_gemm=FAIL" "test_layers=pass"
expect "no OpenBLAS" "test_gpt2 does not compile" "oracles of the C program=unavailable"

# Without text, with that of make run, with little memory
a_run no_text
expect "no text" "fewer than two text files" "text=FAIL" "start-up self-test=pass" \
       "d12, native=unavailable" "native against emulated=unavailable" "speed, native=pass"
touch "$tree/data/quickstart_train.bin" "$tree/data/quickstart_val.bin"
a_run no_text
expect "text of make run" "that of make run" "text=pass" "d12, native=pass"
a_run small
says "little memory" '^train nvfp4 emulated 2 .*/emulated_quarter$' "$tree/trained"

a_run shared
half=$(awk '/^MemTotal/ { print int($2 / 2048) }' /proc/meminfo)
says "memory of the CPU" "^\\| memory, .* \\| $half MiB" "$report"

# The first GPU is too old: all parts run on the second
a_run two
[ "$(sort -u "$tree/visible")" = "PCI_BUS_ID 1" ]
report $? "the GPU that is compiled for" "$(sort -u "$tree/visible")"

# No GPU: nothing is begun
a_run no_gpu
[ $status -eq 1 ] && [ ! -e "$report" ] && grep -q "^error: no CUDA GPU" "$tree/printed"
report $? "no GPU" "$(head -n 1 "$tree/printed")"

# Interrupted while a test runs: the report of what there is, at once
rm -rf "$tree/out"
echo "hangs_test_gemm" > "$tree/case"
PATH="$tree/bin:$PATH" "$tree/dev/first_blackwell_run.sh" "$tree/out" > "$tree/printed" 2>&1 &
child=$!
for ((i = 0; i < 100; i++)); do
    [ ! -e "$tree/out/logs/test_gemm.log" ] || break
    sleep 0.1
done
kill -TERM $child
wait $child
status=$?
counts "interrupted" 130 2 1 0
expect "interrupted, parts" "interrupted" "test_gemm=FAIL" "build=pass"

exit $((failures > 0))
