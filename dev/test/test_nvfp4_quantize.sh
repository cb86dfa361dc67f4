#!/usr/bin/env bash
#
# dev/nvfp4_quantize from outside: the golden vectors, made and hashed here in shell arithmetic and
# so without any of our C code; what the flags do; and that bad input ends with one message, a
# non-zero status and no OUT. `make test` runs it; it needs the program built, bash and od.
#
# "Fails with" names a fault that was planted in dev/nvfp4_quantize.c to see the check fail.
# shellcheck disable=SC2046     # $(repeat ...) is meant to become several words
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. dev/test/report.sh
program=$PWD/dev/nvfp4_quantize
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1

# write_bf16 FILE WORD...: 16-bit words in hexadecimal, little-endian
write_bf16() {
    local file=$1 text='' word
    shift
    for word in "$@"; do text+="\\x${word:2:2}\\x${word:0:2}"; done
    printf '%b' "$text" > "$file"
}

# bytes FILE FIRST COUNT: as hexadecimal text without spaces
bytes() { od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'; }

# fnv1a FILE FIRST COUNT: 32-bit FNV-1a hash of these bytes
fnv1a() {
    local hash=$((0x811c9dc5)) byte
    for byte in $(od -An -v -tu1 -j "$2" -N "$3" "$1"); do
        hash=$(( ((hash ^ byte) * 0x01000193) & 0xffffffff ))
    done
    printf '%08x' "$hash"
}

# ---------------------------------------------------------------------------------------------
# The golden input [nvfp4_spec 7.9]: 64 x 128, element i from the first word of Philox at counter
# (i,0,0,0) under key (1,2). x.bin holds it, xT.bin its transpose.

rows=64 cols=128 count=$((64 * 128)) mask=$((0xffffffff))
words=()
for ((i = 0; i < count; i++)); do
    ((c0 = i, c1 = 0, c2 = 0, c3 = 0, k0 = 1, k1 = 2))
    for ((round = 0; round < 10; round++)); do
        ((p0 = 0xD2511F53 * c0, p1 = 0xCD9E8D57 * c2,
          c0 = (p1 >> 32 & mask) ^ c1 ^ k0, c2 = (p0 >> 32 & mask) ^ c3 ^ k1,
          c1 = p1 & mask, c3 = p0 & mask,
          k0 = k0 + 0x9E3779B9 & mask, k1 = k1 + 0xBB67AE85 & mask))
    done
    printf -v word '%04x' $(( c0 >> 31 << 15 | 120 + (c0 >> 20 & 7) << 7 | c0 >> 8 & 127 ))
    words+=("$word")
done
transposed=()
for ((col = 0; col < cols; col++)); do
    for ((row = 0; row < rows; row++)); do transposed+=("${words[row * cols + col]}"); done
done
write_bf16 x.bin "${words[@]}"
write_bf16 xT.bin "${transposed[@]}"
hash=$(fnv1a x.bin 0 $((2 * count)))
[ "$hash" = 30376417 ]
report $? "golden input" "hash $hash"

# golden NAME AMAX HASH_CODES HASH_SCALES FIRST_CODES FIRST_SCALES FLAG...
golden() {
    local name=$1 amax=$2 hash_codes=$3 hash_scales=$4 first_codes=$5 first_scales=$6
    shift 6
    rm -f out.bin
    "$program" "$@" out.bin > messages 2>&1
    local status=$? scales=$((count / 16)) codes=$((count / 2)) found
    found="$(bytes out.bin 0 4) $(fnv1a out.bin $((4 + scales)) $codes) $(fnv1a out.bin 4 $scales)"
    found+=" $(bytes out.bin $((4 + scales)) 8) $(bytes out.bin 4 8)"
    [ $status -eq 0 ] && [ ! -s messages ] &&
        [ "$(wc -c < out.bin)" -eq $((4 + scales + codes)) ] &&
        [ "$found" = "$amax $hash_codes $hash_scales $first_codes $first_scales" ]
    report $? "$name" "$found"
}

# Fails with: codes before scales; scales written in the order of the tensor cores; seed read as 32
# bits; tag and step exchanged; -hadamard ignored; -block ignored.
size=(-r "$rows" -c "$cols")
seed=0x9ABCDEF012345678
raw=(0000ff3f eb4d54ed 43172ce7 0010af839b981335 757d797b777a7d7c)
wgrad=(00001e40 ef9f3084 c7051a60 8b85eade157642ca 787b727474756e76)
golden "1x16" "${raw[@]}" "${size[@]}" x.bin
golden "1x16, all flags" "${raw[@]}" "${size[@]}" -block 1x16 -round nearest -transpose 0 \
       -hadamard 0 -seed 5 -tag 6 -step 7 x.bin
golden "16x16" 0000ff3f aa980438 ce6dc345 00109d8189880112 7e7e7e7e7e7e7d7e \
       "${size[@]}" -block 16x16 x.bin
golden "stochastic" 0000ff3f 5b9f6ae4 43172ce7 0021af839b981325 757d797b777a7d7c \
       -round stochastic -seed $seed -tag 7 -step 3 "${size[@]}" x.bin
golden "stochastic, decimal and hex" 0000ff3f 5b9f6ae4 43172ce7 0021af839b981325 757d797b777a7d7c \
       -round stochastic -seed 11150031900141442680 -tag 0x7 -step 0x3 "${size[@]}" x.bin
golden "hadamard" "${wgrad[@]}" "${size[@]}" -transpose 1 -hadamard 1 x.bin
golden "hadamard along rows" "${wgrad[@]}" -r $cols -c $rows -hadamard 1 xT.bin
golden "hadamard, stochastic" 00001e40 8d246f60 c7051a60 8b85eade057642ca 787b727474756e76 \
       "${size[@]}" -transpose 1 -hadamard 1 -round stochastic -seed $seed -tag 9 -step 3 x.bin

# ---------------------------------------------------------------------------------------------
# Two ways to the same result

# same NAME: a.bin and b.bin exist and are equal
same() {
    cmp -s a.bin b.bin
    report $? "$1" "$(wc -c < a.bin) bytes"
    rm -f a.bin b.bin
}

# Fails with: -transpose ignored.
for block in 1x16 16x16; do
    "$program" "${size[@]}" -block $block -transpose 1 x.bin a.bin
    "$program" -r $cols -c $rows -block $block xT.bin b.bin
    same "transpose $block"
done

# The random bytes are numbered along the matrix as quantized, not along IN.
stochastic=(-round stochastic -seed 42 -tag 3 -step 9)
"$program" "${size[@]}" -transpose 1 "${stochastic[@]}" x.bin a.bin
"$program" -r $cols -c $rows "${stochastic[@]}" xT.bin b.bin
same "transpose, stochastic"

# A thread's share must not show.
OMP_NUM_THREADS=1 "$program" "${size[@]}" "${stochastic[@]}" x.bin a.bin
OMP_NUM_THREADS=3 "$program" "${size[@]}" "${stochastic[@]}" x.bin b.bin
same "threads"

# An OUT that exists is replaced.
"$program" "${size[@]}" x.bin a.bin
echo old > b.bin
"$program" "${size[@]}" x.bin b.bin
same "replaces OUT"

# ---------------------------------------------------------------------------------------------
# Small matrices, worked out by hand: amax, scales, codes as bytes

# by_hand NAME EXPECTED FLAG...
by_hand() {
    local name=$1 expected=$2 found
    shift 2
    rm -f out.bin
    "$program" "$@" out.bin
    found=$(od -An -v -tx1 out.bin | tr -d ' \n')
    [ "$found" = "$expected" ]
    report $? "$name" "${found:0:64}"
}

# repeat COUNT TEXT
repeat() {
    local n
    for ((n = 0; n < $1; n++)); do printf '%s ' "$2"; done
}

# One row. 2688 gives the matrix the inverse 1, so the second block has scale 1 and its elements are
# 0 1 2 3 4 5 6 0.5 and -0 -1 -2 -3 -4 -5 -6 3.5; 5 is a tie and goes to 4, so does 3.5.
# Fails with: a check that rows is a multiple of 16, which 1x16 blocks do not need.
write_bf16 row.bin 4528 $(repeat 15 0000) 0000 3f80 4000 4040 4080 40a0 40c0 3f00 \
           8000 bf80 c000 c040 c080 c0a0 c0c0 4060
by_hand "one row" "00002845""7e38""0700000000000000""20546617a8dcee6f" -r 1 -c 32 row.bin

write_bf16 zero.bin $(repeat 255 0000) 8000
zeros=$(repeat 127 00)
by_hand "zeros, and one -0" "00000000$(repeat 16 00 | tr -d ' ')${zeros// /}80" -r 16 -c 16 zero.bin

"$program" -h > messages 2>&1 && grep -q -- '-hadamard' messages
report $? "help" "$(wc -l < messages) lines"

# ---------------------------------------------------------------------------------------------
# Bad input: status 1, one line that says what is wrong, nothing written, an old OUT untouched

# bad PATTERN ARGUMENT...: the message must match the pattern. OUT is named out.bin.
bad() {
    local pattern=$1 status problem=''
    shift
    rm -f out.bin out.bin.tmp
    "$program" "$@" > messages 2>&1
    status=$?
    if [ $status -ne 1 ]; then problem="status $status"; fi
    if [ "$(wc -l < messages)" -ne 1 ]; then problem+=" $(wc -l < messages) lines"; fi
    if ! grep -q "^error: .*$pattern" messages; then problem+=" message: $(head -n 1 messages)"; fi
    if [ -e out.bin ] || [ -e out.bin.tmp ]; then problem+=" wrote OUT"; fi
    echo old > out.bin
    "$program" "$@" > /dev/null 2>&1
    if [ "$(cat out.bin)" != old ]; then problem+=" changed an old OUT"; fi
    [ -z "$problem" ]
    report $? "bad input" "${problem:-$(sed 's/^error: //; s/  (.*//' messages)}"
}

# Fails with: OUT opened for writing before IN is read; a file longer than the matrix accepted; the
# check for finite values or one of those for multiples of 16 left out; any word taken for -block
# and -round.
good=(-r 64 -c 128 x.bin)
bad "IN and OUT"
bad "IN and OUT"                 -r 64 -c 128
bad "IN and OUT"                 -r 64 -c 128 x.bin
bad "IN and OUT"                 -r 64 -c 128 x.bin out.bin more
bad "unknown flag x.bin"         -r 64 -c 128 x.bin out.bin more files
bad "rows and columns"           x.bin out.bin
bad "rows and columns"           -r 64 x.bin out.bin
bad "unknown flag -q"            -q 1 "${good[@]}" out.bin
bad "-r is given twice"          -r 64 "${good[@]}" out.bin
bad "-r 0: must be"              -r 0 -c 128 x.bin out.bin
bad "-c -128: must be"           -r 64 -c -128 x.bin out.bin
bad "-r 64x: not an integer"     -r 64x -c 128 x.bin out.bin
bad "-r : not an integer"        -r "" -c 128 x.bin out.bin
bad "-c 128.0: not an integer"   -r 64 -c 128.0 x.bin out.bin
bad "too large"                  -r 4294967360 -c 128 x.bin out.bin
bad "-block 1x32: must be"       -block 1x32 "${good[@]}" out.bin
bad "-round up: must be"         -round up "${good[@]}" out.bin
bad "-transpose 2: must be"      -transpose 2 "${good[@]}" out.bin
bad "-hadamard yes: not"         -hadamard yes "${good[@]}" out.bin
bad "-seed -1: not"              -seed -1 "${good[@]}" out.bin
bad "-seed 0x: not"              -seed 0x "${good[@]}" out.bin
bad "too large"                  -seed 18446744073709551616 "${good[@]}" out.bin
bad "-tag 0x100000000: must be"  -tag 0x100000000 "${good[@]}" out.bin
bad "-step 4294967296: must be"  -step 4294967296 "${good[@]}" out.bin
bad "cannot open nothing.bin"    -r 64 -c 128 nothing.bin out.bin
bad "x.bin has 16384 bytes"      -r 64 -c 112 x.bin out.bin
bad "x.bin has 16384 bytes"      -r 64 -c 144 x.bin out.bin
bad "x.bin has 16384 bytes"      -r 2147483647 -c 2147483632 x.bin out.bin
bad "bytes"                      -r 64 -c 128 . out.bin
bad "-c 8: .*multiple of 16"     -r 1024 -c 8 x.bin out.bin
bad "-r 8: .*multiple of 16"     -r 8 -c 1024 -transpose 1 x.bin out.bin
bad "-r 8: .*multiple of 16"     -r 8 -c 1024 -block 16x16 x.bin out.bin
bad "-c 8: .*multiple of 16"     -r 1024 -c 8 -block 16x16 -transpose 1 x.bin out.bin
bad "cannot write no/out.bin"    "${good[@]}" no/out.bin
for word in 7f80 ff80 7fc0 ffc1; do
    write_bf16 bad.bin $(repeat 20 3f80) $word $(repeat 43 3f80)
    bad "row 1, column 4 is"     -r 4 -c 16 bad.bin out.bin
done
write_bf16 bad.bin $(repeat 16 7f7f)
bad "Hadamard .* not finite"     -r 1 -c 16 -hadamard 1 bad.bin out.bin

[ $failures -eq 0 ]
