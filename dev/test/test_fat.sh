#!/usr/bin/env bash
#
# `make fat`: looks into the file and finds machine code for every GPU that the README names, each
# with the same kernels, and PTX that newer GPUs can translate. `make test` runs it; it needs nvcc
# and python3, and builds the program (half a minute on two cores). cuobjdump would list the same,
# but not every toolkit has it. Whether the conversion instructions are inside is for
# test_instructions.sh.
#
#   dev/test/test_fat.sh [PROGRAM]      another program, as it is
#
# Fails with, planted in the Makefile: 103a missing in ARCHS_ALL; 100 without its a; PTX for 100a,
# for 120, none. Planted in the file: a kernel of one architecture renamed; cut after half.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. dev/test/report.sh

# 80 runs on 8.x, 90a on Hopper, 100a, 103a and 120a on Blackwell, the PTX on 11.0, 12.1 and newer
EXPECTED="compute_100 sm_100a sm_103a sm_120a sm_80 sm_90a"

program=${1:-build/fat/train_gpt2_nvfp4}
for tool in python3 "$(make -s print-NVCC)"; do
    if ! command -v "$tool" > /dev/null; then
        echo "skip make fat: no ${tool:-nvcc} on this machine"
        exit 0
    fi
done
# a make of its own: `make test` hands down settings that are for its own recipes
if [ $# -eq 0 ] && ! env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s fat; then
    report 1 "make fat" "the program does not build"
    exit 1
fi

# Prints the architectures in the program, sorted, then for each that has machine code the number of
# its kernels and a hash of their names.
#
# The code is in containers: 16 bytes of header with a magic number and the size of what follows,
# then entries, each with a header of its own. Layout of the entries as seen in what nvcc 12 and 13
# write; other offsets would give other architectures than those expected.
#
#     byte 0  uint16  1 PTX, 2 machine code       byte 28  uint32  architecture: 80, 90, ...
#     byte 4  uint32  size of the header          byte 40  uint64  flags; bit 20: suffix a,
#     byte 8  uint64  size of the code                             bit 21: suffix f
found=$(python3 - "$program" << 'PYTHON'
import re
import struct
import sys
import zlib

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
data = open(sys.argv[1], "rb").read()
containers = []
start = data.find(MAGIC)
while start >= 0:
    size, = struct.unpack_from("<Q", data, start + 8)
    containers.append((size, start + 16))
    start = data.find(MAGIC, start + 16)
if not containers:
    sys.exit("no container of GPU code in it")
size, at = max(containers)      # nvcc adds a small one with no kernels
end = at + size
names, kernels = [], []
while at < end:
    kind, _, header, code_size = struct.unpack_from("<HHIQ", data, at)
    architecture, = struct.unpack_from("<I", data, at + 28)
    flags, = struct.unpack_from("<Q", data, at + 40)
    suffix = "a" * (flags >> 20 & 1) + "f" * (flags >> 21 & 1)
    names.append({1: "compute", 2: "sm"}[kind] + f"_{architecture}{suffix}")
    if kind == 2:
        code = data[at + header:at + header + code_size]
        texts = sorted(set(re.findall(rb"\0\.text\.(\w+)", code)))
        kernels.append(f"{len(texts)} {zlib.crc32(b' '.join(texts)):08x}")
    at += header + code_size
print(" ".join(sorted(names)))
print("\n".join(kernels))
PYTHON
)
report $? "GPU code is readable" "$program"
{
    read -r architectures
    mapfile -t kernels
} <<< "$found"

[ "$architectures" = "$EXPECTED" ]
report $? "architectures" "$architectures"

different=$(printf '%s\n' "${kernels[@]}" | sort -u)
count=${different%% *}
[ "$(wc -l <<< "$different")" -eq 1 ] && [ "${count:-0}" -ge 40 ]
report $? "every one has every kernel" "$(tr '\n' ';' <<< "$different")"

exit $((failures > 0))
