#!/usr/bin/env bash
#
# The CUDA trainer started by mpirun, as a user starts it: on the CPU (cuda_on_cpu), on the model of
# NCCL. That many ranks compute what one computes is proven in test_ranks_model.cu. On 4 GPUs, or 2:
#
#     CUDA=./train_gpt2_nvfp4 RANKS=4 dev/test/test_ranks_cuda.sh
#
# Seen failing: validation with fewer rows than -b, on the model's FP4 tensor cores, while the scales
# of rows that were there before stayed in the padding; an error inside NCCL while errors were only
# looked for when a collective had not ended (the run went on); NCCL aborted before the others were
# told (they waited); a GPU chosen by the rank's number where one is visible; GPUs not compared. Other
# faults: test_ranks_model.cu.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=dev/test/report.sh
. dev/test/report.sh

if ! command -v mpirun > /dev/null || [ -z "${CUDA:-$(make -s print-CPU_NCCL)}" ]; then
    echo "skip the CUDA trainer with several ranks: no Open MPI, or no nccl.h, here"
    exit 0
fi
cuda=${CUDA:-build/cpu/train_gpt2_nvfp4}    # the program
many=${RANKS:-4}                            # ranks
few=$((many / 2))
first=1e-6                                  # losses of the first update differ by at most
if [ "$cuda" = build/cpu/train_gpt2_nvfp4 ]; then make -s "$cuda" || exit 1; else first=1e-4; fi

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# the bytes of a text as tokens
tr '\n' ' ' < README.md | LC_ALL=C tr -cd ' -~' | head -c 16000 > "$work/text"
count=$(stat -c %s "$work/text")
{
    # shellcheck disable=SC2059
    printf "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' \
        $((20240520 & 255)) $((20240520 >> 8 & 255)) $((20240520 >> 16 & 255)) 1 \
        1 0 0 0 $((count & 255)) $((count >> 8 & 255)) 0 0)"
    head -c 1012 /dev/zero
    LC_ALL=C sed 's/./&\x00/g' "$work/text"
} > "$work/train.bin"

common=(-i "$work/train.bin" -j "$work/train.bin" -e "layers=2,channels=32,heads=2,vocab=256"
        -p "nvfp4,tail=0" -t 32 -x 4 -v 4 -vt 224 -n 2 -pr 0)

# ranks NUMBER PROGRAM ARGUMENT...: trains; what it prints goes to $work/out and $work/err
ranks() {
    local number=$1 program=$2
    shift 2
    timeout 120 mpirun --oversubscribe --bind-to none -np "$number" "$program" \
        "${common[@]}" "$@" > "$work/out" 2> "$work/err" < /dev/null
}
c=./train_gpt2_fp32

# field NAME STEP DIR: of the log's line of that step
field() { sed -n "s/^{\"step\":$2,.*\"$1\":\\([-0-9.e]*\\).*/\\1/p" "$work/$3/log.jsonl"; }

# near A B BOUND: relative
near() { awk -v a="$1" -v b="$2" -v bound="$3" \
         'BEGIN { d = a / b - 1; exit !(a != "" && b != "" && d < bound && -d < bound) }'; }

# ---------------------------------------------------------------------------------------------

ranks 1 "$cuda" -b 12 -o "$work/one"
report $? "1 rank, -b 12" "$(tail -n 1 "$work/err")"
ranks 2 "$cuda" -b 6 -z 1 -s 4 -sn 8 -o "$work/two"
report $? "2 ranks, -b 6 -z 1" "$(tail -n 1 "$work/err")"
ranks "$many" "$cuda" -b $((12 / many)) -z 2 -o "$work/many"
report $? "$many ranks, -b $((12 / many)) -z 2" "$(tail -n 1 "$work/err")"
wire=$(grep '^on the wire' "$work/out")
[ "$(grep -c '^step 4/4 |' "$work/out")" -eq 1 ] && [ "$(grep -c '^self-test' "$work/out")" -eq 1 ]
report $? "printed once" "by rank 0 of $many"

last="$(field loss 3 one) $(field loss 3 two) $(field loss 3 many)"
near "$(field loss 0 two)" "$(field loss 0 one)" $first &&
    near "$(field loss 0 many)" "$(field loss 0 one)" $first &&
    near "$(field loss 3 two)" "$(field loss 3 one)" 0.01 &&
    near "$(field loss 3 many)" "$(field loss 3 one)" 0.01 &&
    near "$(field val_loss 4 many)" "$(field val_loss 4 one)" 0.01
report $? "losses" "first equal to $first; last, 1, 2, $many ranks: $last; within 1 %"

# the same numbers of bytes as the C program counts
ranks "$many" $c -b $((12 / many)) -z 2 -o "$work/c_many" && [ -n "$wire" ] &&
    [ "$wire" = "$(grep '^on the wire' "$work/out")" ]
report $? "bytes on the wire" "as the C program's: $wire"
near "$(field loss 0 c_many)" "$(field loss 0 many)" 1e-3
report $? "loss of the first update" "C $(field loss 0 c_many), CUDA $(field loss 0 many)"

# ---------------------------------------------------------------------------------------------
# Checkpoints know nothing of ranks, nor of the program

rm "$work"/many/*_00000004.bin "$work"/c_many/*_00000004.bin
cp -r "$work/many" "$work/by_few"
cp -r "$work/many" "$work/by_c"

ranks "$many" "$cuda" -b $((12 / many)) -z 2 -y 1 -o "$work/many" &&
    grep -q '^resumed .*from step 2' "$work/out" &&
    [ "$(field loss 3 many)" = "$(echo "$last" | cut -d ' ' -f 3)" ]
report $? "saved by $many, resumed by $many" "last loss $(field loss 3 many)"
ranks $few "$cuda" -b $((12 / few)) -z 0 -y 1 -o "$work/by_few" &&
    near "$(field loss 3 by_few)" "$(field loss 3 many)" 0.01
report $? "saved by $many, resumed by $few" "last loss $(field loss 3 by_few)"
ranks 2 $c -b 6 -z 1 -y 1 -o "$work/by_c" && near "$(field loss 3 by_c)" "$(field loss 3 many)" 0.01
report $? "resumed by the C program" "last loss $(field loss 3 by_c)"
ranks 2 "$cuda" -b 6 -z 1 -y 1 -o "$work/c_many" &&
    grep -q '^resumed .*from step 2' "$work/out" &&
    near "$(field loss 3 c_many)" "$(field loss 3 many)" 0.01
report $? "resumed from the C program's" "last loss $(field loss 3 c_many)"

# What some launchers do: each rank sees one GPU, its own; and what a careless wrapper does.
number=0
[ "$cuda" != build/cpu/train_gpt2_nvfp4 ] || number=3       # the model has GPUs of any number
cat > "$work/visible" <<END
#!/usr/bin/env bash
CUDA_VISIBLE_DEVICES=\${ALL:-\$(($number + OMPI_COMM_WORLD_LOCAL_RANK))} exec $cuda "\$@"
END
chmod +x "$work/visible"
ranks 2 "$work/visible" -b 6 -z 1 -o "$work/visible_run"
report $? "each rank sees its GPU alone" "$(grep -m 1 -o '^step 4/.*norm [0-9.]*' "$work/out")"
ALL=$number ranks 2 "$work/visible" -b 6 -z 1 -o "$work/visible_run"
status=$?
[ $status -ne 0 ] && grep -q "error: ranks 0 and 1 of 2 have the same GPU" "$work/err"
report $? "both ranks see the same GPU" "$(grep -m 1 -o '^error: ranks.*GPU;' "$work/err")"

# without mpirun; the model of NCCL needs it
if [ "$cuda" != build/cpu/train_gpt2_nvfp4 ]; then
    for rank in 1 0; do
        env "RANK=$rank" WORLD_SIZE=2 "LOCAL_RANK=$rank" timeout 120 "$cuda" "${common[@]}" -b 6 -z 1 \
            -ra "$work/place" -o "$work/sockets" > "$work/out.$rank" 2> "$work/err.$rank" < /dev/null &
    done
    wait
    [ -n "$(field loss 3 two)" ] && [ "$(field loss 3 sockets)" = "$(field loss 3 two)" ]
    report $? "2 ranks without mpirun" "last loss $(field loss 3 sockets)$(cat "$work"/err.?)"
fi

# ---------------------------------------------------------------------------------------------
# Faults

common=(-i "$work/train.bin" -e "layers=2,channels=32,heads=2,vocab=256" -p "nvfp4,tail=0"
        -t 32 -x 100000 -pr 0 -b 6 -z 1)
if [ "$cuda" = build/cpu/train_gpt2_nvfp4 ]; then
    NCCL_MODEL_ERROR=1:9 ranks 2 "$cuda"
    status=$?
    [ $status -ne 0 ] && [ $status -ne 124 ] &&
        grep -q "error: rank 1 of 2, waiting in '.*': NCCL: remote process" "$work/err"
    report $? "an error inside NCCL" "$(grep -m 1 '^error: rank 1' "$work/err")"

    NCCL_MODEL_ERROR=1:9 NCCL_MODEL_ABORT_HANGS=1 ranks 2 "$cuda" -rt 2
    status=$?
    [ $status -ne 0 ] && [ $status -ne 124 ] &&
        grep -q "^error: rank 0 .*rank 1 has ended early" "$work/err"
    report $? "ncclCommAbort does not return" "$(grep -m 1 '^error: rank 0' "$work/err")"
fi

ranks 2 "$cuda" &
job=$!
for _ in $(seq 100); do
    sleep 0.2
    grep -q '^step 1/' "$work/out" && break
done
victim=$(for pid in $(pgrep -f "$cuda -i $work/"); do
    [ "$(cat "/proc/$pid/comm")" = train_gpt2_nvfp ] && echo "$pid"
done | tail -n 1)
kill -9 "$victim"
wait $job
status=$?
[ $status -ne 0 ] && [ $status -ne 124 ] &&
    grep -qE "^error: rank [01] of 2 ends, .* '.*' .*: rank [01] has died" "$work/err"
report $? "kill -9 of a rank" "$(grep -m 1 '^error: rank' "$work/err" | cut -c 1-150)"

exit $((failures > 0))
