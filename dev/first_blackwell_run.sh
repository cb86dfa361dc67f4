#!/usr/bin/env bash
#
# dev/first_blackwell_run.sh OUT: what the first owner of a Blackwell GPU runs. Builds for the GPU
# that is here, tests it, trains 200 steps of d12 with and without FP4 tensor cores, measures speed
# and energy, and writes one report to send back: OUT/report.md, with all logs in OUT/logs.tar.gz.
# OUT is a new folder. Needs the CUDA toolkit and python3, no download; 5 to 10 minutes, on the slowest
# GPUs an hour.
#
# Nothing ends it early: a part that fails, or is not done within its time, is a line of the report.
# On a GPU without FP4 tensor cores it runs through as well, and those parts are "unavailable".
# Exit status 0 if no part failed.
#
# Do FP4 tensor cores train as their emulation does? Both multiply the same operands, bit for bit;
# the sums are added in another order and width. That moves roundings to BF16, some of those move
# a 4-bit code, and the two runs drift apart like two runs whose rounding noise differs. How far
# such runs come apart is measured here: two more emulated runs, with a half and a quarter of the
# micro-batch, make the same updates from the same weights and tokens, and differ in sums, tensor
# scales and random bits. With
#
#     D(x,y)  the root mean square, over the last 100 steps, of the difference of the losses
#
# native agrees if D(native, emulated) is at most twice the largest D of two emulated runs. Were it
# one more run of the same kind, and 100 differences worth n independent ones, it would miss that in
# 2 % of all cases for n = 3, in 0.01 % for n = 10 (simulated). In the C program, 0.9M parameters,
# ten such pairs (micro-batches as above, sums of 16 and of 48 terms) have D of 0.0017 to 0.0020;
# another seed gives 0.045, dY^T shifted by one block 0.61, swapped nibbles 0.0081. What training
# adapts to does not show in a curve: 1 % too much in alpha gives 0.0021, a wrong sign at every 64th
# element 0.0032. For these there are the tests and the self-test.
set -uo pipefail
usage="usage: dev/first_blackwell_run.sh OUT"
out=${1:?$usage}
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "$0")/.." || exit 1
if [ -e "$out/report.md" ]; then
    echo "error: $out has a report already; name a new folder" >&2
    exit 1
fi
WARMUP=3                # first steps that do not count for speed
. dev/bench/bench_common.sh
# Idle threads leave the cores to other programs; without it test_gpt2 took more than 5 minutes, not 9
# seconds, on 32 cores where another program kept one busy.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
reason=$(make -s print-WHY_NO_CUDA) || exit 1
[ -z "$reason" ] || fail "$reason"
# All parts run on one GPU, that which the Makefile compiles for: nvidia-smi's first that is 8.0 or newer.
export CUDA_DEVICE_ORDER=PCI_BUS_ID
CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index,compute_cap --format=csv,noheader |
                       awk -F '[,.]' '$2 >= 8 { print $1 + 0; exit }')
export CUDA_VISIBLE_DEVICES

STEPS=200 LAST_STEPS=100
logs=$out/logs runs=$out/logs/runs
scratch=$(mktemp -d) || exit 1      # the text stays here: it is not for passing on
mkdir -p "$runs"

# ---------------------------------------------------------------------------------------------
# Parts and their results

count_pass=0 count_fail=0 count_unavailable=0
part="" log="" status=0 started=0 child=""

# run NAME SECONDS COMMAND...: one part. Leaves its output in $log and its exit status in $status;
# 124 or 137 if time ran out. In the background, so that Ctrl-C is answered at once.
run() {
    local limit=$2
    part=$1 log="$logs/${1//[^A-Za-z0-9_]/_}.log" started=$SECONDS
    shift 2
    printf '%-34s ' "$part"
    echo "\$ $*" > "$log"
    timeout --kill-after=10 "$limit" "$@" >> "$log" 2>&1 < /dev/null &
    child=$!
    wait "$child"
    status=$?
    child=""
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        echo "error: still running after $limit s" >> "$log"
    fi
}

# result pass|FAIL|unavailable TEXT: of the part that run named last.
result() {
    case $1 in
        pass) count_pass=$((count_pass + 1)) ;;
        FAIL) count_fail=$((count_fail + 1)) ;;
        *) count_unavailable=$((count_unavailable + 1)) ;;
    esac
    printf '%-12s %s\n' "$1" "$2"
    echo "| $part | $1 | ${2//|/\/} | $((SECONDS - started)) |" >> "$scratch/results"
}

# without NAME REASON: a part that is not run.
without() {
    part=$1 started=$SECONDS
    printf '%-34s ' "$part"
    result unavailable "$2"
}

# Why the part failed: its last line that says so, else its last line.
why() {
    local line
    line=$(grep -E '^(error|FAIL|skip)|[ :]error[ :]|\*\*\* ' "$log" | tail -n 1)
    [ -n "$line" ] || line=$(tail -n 1 "$log")
    echo "status $status: ${line:0:300}"
}

# show TITLE [COMMAND...]: a section of the report, with the output of the command, or the text of
# standard input.
show() {
    local title=$1
    shift
    {
        printf '\n## %s\n\n```\n' "$title"
        if [ $# -gt 0 ]; then "$@"; else cat; fi
        echo '```'
    } >> "$scratch/details"
}

fact() { echo "| $1 | ${2//|/\/} |" >> "$scratch/facts"; }

# ---------------------------------------------------------------------------------------------
# The report, written whatever happens

finish() {
    local summary="$count_pass pass, $count_fail FAIL, $count_unavailable unavailable"
    touch "$scratch/facts" "$scratch/results" "$scratch/details"
    {
        echo "# First run on ${gpu:-an unknown GPU}: $summary"
        printf '\nWritten by dev/first_blackwell_run.sh in %d s.\n\n' "$SECONDS"
        printf '| | |\n| --- | --- |\n'
        cat "$scratch/facts"
        printf '\n| part | result | | s |\n| --- | --- | --- | --- |\n'
        cat "$scratch/results" "$scratch/details"
    } > "$out/report.md"
    tar -C "$out" -czf "$out/logs.tar.gz" logs
    rm -rf "$scratch"
    echo
    echo "$summary"
    echo "Please send $out/report.md and $out/logs.tar.gz to where you got this program from," \
         "in an issue or by mail. They name GPU, driver, CPU and versions and hold no text."
}
interrupted() {
    if [ -n "$child" ]; then kill "$child" 2> /dev/null; else part="after $part"; fi
    result FAIL "interrupted"
    exit 130
}
trap finish EXIT
trap interrupted INT TERM

# ---------------------------------------------------------------------------------------------
# The machine

# query FIELD: what nvidia-smi says of the GPU
query() {
    nvidia-smi --query-gpu="$1" --format=csv,noheader -i "$CUDA_VISIBLE_DEVICES" 2>&1 | head -n 1
}

gpu=$(query name) capability=$(query compute_cap)
memory=$(query memory.total | tr -dc '0-9')      # MiB
if [ -z "$memory" ]; then                        # shared with the CPU (DGX Spark): half of it
    memory=$(awk '/^MemTotal/ { print int($2 / 2048) }' /proc/meminfo)
fi
fact "GPU" "$gpu, compute capability $capability, $(nvidia-smi -L 2> /dev/null | wc -l) of them"
fact "memory, power limit, most MHz" \
     "$memory MiB, $(query power.limit), $(query clocks.max.sm)"
fact "driver" "$(query driver_version)"
fact "CUDA toolkit" "$("$(make -s print-NVCC)" --version | grep -i release)"
fact "cuBLASLt" "$(python3 -c 'import ctypes, sys
print(ctypes.CDLL(sys.argv[1]).cublasLtGetVersion())' \
                   "$(make -s print-CUDA_HOME)/lib64/libcublasLt.so" 2>&1 | tail -n 1)"
fact "system" "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | tr -d '"'), Linux $(uname -r)"
fact "CPU" "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
fact "commit" "$(make -s print-COMMIT), compiled for sm_$(make -s print-ARCH)"

has_fp4=0
[ "${capability%%.*}" -ge 10 ] 2> /dev/null && has_fp4=1

# rows of a micro-batch; at d12 and T 1024 each takes about 0.45 GiB
B=8
[ "${memory:-0}" -lt 20000 ] || B=32
[ "${memory:-0}" -lt 40000 ] || B=64
TOKENS=65536            # of one update

# ---------------------------------------------------------------------------------------------
# Build

read -ra tests <<< "$(make -s print-CUDA_TESTS)"
mapfile -t benches < <(make -s print-BENCHES | tr ' ' '\n' | grep '^build/bench/cuda/')
programs=(train_gpt2_nvfp4 "${tests[@]}" "${benches[@]}")

run "build" 900 make -k -j "$(nproc)" "${programs[@]}"
missing=()
for program in "${programs[@]}"; do [ -x "$program" ] || missing+=("$program"); done
if [ ${#missing[@]} -eq 0 ]; then
    result pass "${#programs[@]} programs"
else
    result FAIL "not built: ${missing[*]}; $(why)"
fi

# The C program's results, which test_model compares with; it needs OpenBLAS.
run "oracles of the C program" 600 sh -c 'make test_gpt2 && ./test_gpt2'
if [ "$status" -eq 0 ]; then
    result pass "test_gpt2"
elif [ -x test_gpt2 ]; then
    result FAIL "$(why)"
else
    result unavailable "test_model will miss them; $(why)"
fi

# ---------------------------------------------------------------------------------------------
# Tests: each prints lines that begin with ok, FAIL or skip (dev/test/report.h)

for test in "${tests[@]}"; do
    name=$(basename "$test")
    if [ ! -x "$test" ]; then
        part=$name started=$SECONDS
        printf '%-34s ' "$part"
        result FAIL "not built"
        continue
    fi
    run "$name" 1200 "$test"
    ok_lines=$(grep -c '^ok ' "$log") fail_lines=$(grep -c '^FAIL ' "$log")
    skip_lines=$(grep -c '^skip ' "$log")
    if [ "$status" -ne 0 ] || [ "$fail_lines" -gt 0 ]; then
        result FAIL "$ok_lines ok, $fail_lines FAIL; $(why)"
        show "$name" grep -E '^(FAIL|skip|error)' "$log"
    elif [ "$ok_lines" -eq 0 ]; then
        result unavailable "$(sed -n 's/^skip //p' "$log" | head -n 1)"
    elif [ "$skip_lines" -gt 0 ]; then
        result pass "$ok_lines ok, $skip_lines skipped: $(sed -n 's/^skip //p' "$log" | head -n 1)"
        show "$name, skipped" grep '^skip ' "$log"
    else
        result pass "$ok_lines ok"
    fi
done

# ---------------------------------------------------------------------------------------------
# Text, one token a byte, so that nothing is downloaded: the C headers that are installed here (the
# toolkit alone has 18 MB), else the text of `make run`. And random tokens, to measure speed.

run "text" 180 python3 data/machine_text.py -tokens bytes -val 0.02 -out "$scratch/text" \
    -folders "/usr/include,$(make -s print-CUDA_HOME)/include"
text=("$scratch/text/train_*.bin" "$scratch/text/val_*.bin")
if [ "$status" -eq 0 ]; then
    result pass "$(sed -n 's/^training *\(.* tokens\).*/\1/p' "$log")"
elif [ -e data/quickstart_train.bin ] && [ -e data/quickstart_val.bin ]; then
    text=(data/quickstart_train.bin data/quickstart_val.bin)
    result pass "that of make run, since machine_text.py failed: $(why)"
else
    text=()
    result FAIL "$(why)"
fi

# ---------------------------------------------------------------------------------------------
# Training: the start-up self-test, then the loss curves

# trainer NAME SECONDS FLAG...: runs the trainer as a part. Returns its success.
trainer() {
    local name=$1 limit=$2
    shift 2
    run "$name" "$limit" ./train_gpt2_nvfp4 -pr 0 "$@"
    [ "$status" -eq 0 ]
}

# What the trainer prints before its first step: settings, self-test, paths, memory.
start_up() { sed '/^step [0-9]/,$d' "$log"; }

# A part that the trainer did not do: no fault if it asked for FP4 tensor cores on a GPU without
# them, or for a recipe that this version has not.
refused() {
    local message
    message=$(grep '^error:' "$log" | tail -n 1)
    if [ "$status" -eq 1 ] &&
       { [[ $has_fp4 -eq 0 && $message == "error: -g fp4: "*"not available"* ]] ||
         [[ $message == "error: -p "*": a recipe begins with"* ]]; }; then
        result unavailable "${message:7:300}"
    else
        result FAIL "$(why)"
    fi
}

random=$scratch/random.bin
python3 dev/bench/random_tokens.py 50257 2000000 "$random"

path=""
if trainer "start-up self-test" 120 -i "$random" -e d12 -b "$B" -t 1024 -x 1 -p nvfp4 -g auto; then
    path=$(sed -n 's/^gemm path *//p' "$log")
    if [[ $has_fp4 -eq 1 && ${path%%:*} != *fp4* ]]; then
        result FAIL "this GPU has FP4 tensor cores, and they are not used: $path"
    elif grep -q '^WARNING' "$log"; then
        result FAIL "$(grep '^WARNING' "$log" | head -n 1 | cut -c -300)"
    else
        result pass "$path"
    fi
else
    result FAIL "$(why)"
fi
show "Start-up, -g auto" start_up
fact "GEMM path" "${path:-none}"

# A GPU that has FP4 for some of the products refuses -g fp4, which is for all of them.
native=(-p nvfp4 -g fp4)
[[ ${path%%:*} != *fp4*emulated* && ${path%%:*} != *emulated*fp4* ]] || native=(-p nvfp4 -g auto)
emulated=(-p nvfp4 -g emulated)

# curve NAME FLAG...: 200 steps of d12 on the text, logged in $runs/NAME
curve() {
    local name=$1
    shift
    if [ ${#text[@]} -eq 0 ]; then
        without "d12, $name" "no text"
    elif trainer "d12, $name" 1800 -i "${text[0]}" -j "${text[1]}" -e d12,vocab=257 -t 1024 \
                 -d $TOKENS -x $STEPS -l 6e-4 -u 40 -v 100 -vt 131072 -seed 1 -o "$runs/$name" "$@"
    then
        result pass "$(grep '^step.* loss .* norm' "$log" | tail -n 1 | sed 's/^[^|]*| //')"
        finished+=("$runs/$name")
    else
        refused
    fi
}

finished=()
curve native "${native[@]}" -b "$B"
[ ${#text[@]} -eq 0 ] || show "Start-up, ${native[*]}" start_up
curve emulated "${emulated[@]}" -b "$B"
curve emulated_half "${emulated[@]}" -b $((B / 2))
curve emulated_quarter "${emulated[@]}" -b $((B / 4))
curve fp8 -p fp8 -b "$B"
curve bf16 -p bf16 -b "$B"
[ ${#finished[@]} -eq 0 ] ||
    show "Losses in nats a byte, $STEPS steps of $TOKENS bytes" dev/logs.py table "${finished[@]}"

# losses NAME: "step loss" of each training step of a curve
losses() { sed -n 's/^{"step":\([0-9]*\),"loss":\([^,]*\),.*/\1 \2/p' "$runs/$1/log.jsonl"; }

# distance X Y: D as above and the mean difference; "nan nan" if a curve is missing or incomplete
distance() {
    paste <(losses "$1" 2> /dev/null) <(losses "$2" 2> /dev/null) |
        awk -v steps=$STEPS -v last=$LAST_STEPS '
            NF != 4 || $1 != $3 || $2 $4 ~ /n/      { bad = 1 }
            $1 >= steps - last { d = $2 - $4; squares += d * d; sum += d; n++ }
            END {
                if (bad || n != last) { print "nan nan"; exit }
                printf "%.6f %+.6f\n", sqrt(squares / n), sum / n
            }'
}

# Compares the curves as the header says.
compare_curves() {
    local pair x y D mean noise=0 name absent="" verdict=FAIL
    part="native against emulated" log=$logs/curves.log started=$SECONDS
    printf '%-34s ' "$part"
    for pair in emulated:emulated_half emulated:emulated_quarter emulated_half:emulated_quarter \
                native:emulated; do
        x=${pair%:*} y=${pair#*:}
        read -r D mean < <(distance "$x" "$y")
        printf '%-14s %-17s D %-8s  mean %s\n' "$x" "$y" "$D" "$mean"
        # D ends up as that of the last pair, noise as the largest of the others; nan wins
        [ "$x" = native ] || noise=$(printf '%s\n' "$noise" "$D" | awk '
            $1 == "nan" || most == "nan" { most = "nan"; next }
            $1 > most { most = $1 }
            END { print most }')
    done > "$log"
    for name in native emulated emulated_half emulated_quarter; do
        [[ " ${finished[*]} " == *" $runs/$name "* ]] || absent+=" $name"
    done
    if [ -n "$absent" ]; then
        result unavailable "without$absent; emulated runs differ by up to $noise"
    else
        [ "$D" != nan ] && [ "$noise" != nan ] && verdict=pass
        awk -v D="$D" -v noise="$noise" 'BEGIN { exit !(D <= 2 * noise) }' || verdict=FAIL
        result $verdict "D = $D, bound 2 x $noise; mean difference $mean nats"
    fi
    show "Native against emulated, differences over the last $LAST_STEPS steps" cat "$log"
}
compare_curves

# ---------------------------------------------------------------------------------------------
# Speed and energy: d12 with GPT-2's vocabulary, as in the README

# speed NAME FLAG...: 8 updates of 524,288 tokens; medians of those after the third
speed() {
    local name=$1 tokens energy ratio
    shift
    if ! trainer "speed, $name" 900 -i "$random" -e d12 -b "$B" -t 1024 -d 524288 -x 8 \
                 -o "$runs/speed_$name" "$@"; then
        refused
        return
    fi
    tokens=$(speeds_of_log "$runs/speed_$name/log.jsonl" | median)
    # in nanojoules, since the median is printed without decimals
    energy=$(sed -n 's/^step \([0-9]*\).*| \([0-9.]*\) mJ\/token.*/\1 \2/p' "$log" |
             awk -v warmup=$WARMUP '$1 > warmup { print 1e6 * $2 }' | median 2> /dev/null |
             awk '{ printf "%.3f mJ/token", $1 / 1e6 }')
    [ "$name" != bf16 ] || bf16=$tokens
    ratio=$(awk -v a="$tokens" -v b="$bf16" 'BEGIN { if (b > 0) { printf "%.2f", a / b } }')
    result pass "$tokens tokens/s, ${ratio:-?} of BF16, ${energy:-no energy meter}"
}
bf16=0
speed bf16 -p bf16
speed fp8 -p fp8
speed emulated "${emulated[@]}"
speed native "${native[@]}"

for bench in "${benches[@]}"; do
    run "$(basename "$bench")" 600 "$bench"
    if [ "$status" -eq 0 ]; then
        result pass "numbers below"
        show "$(basename "$bench")" cat "$log"
    else
        result FAIL "$(why)"
        show "$(basename "$bench"), as far as it came" cat "$log"
    fi
done

[ "$count_fail" -eq 0 ]
