#!/usr/bin/env bash
#
# The conversion instructions in the quantizer's code, for each GPU that the program is built for:
# both on sm_100a and sm_103a, only the one to nearest on sm_120a and sm_121a, none elsewhere, nor
# where the suffix is missing; and none in the kernel that is to do without. Looks into the PTX and
# has ptxas translate it. `make test` runs it; it needs nvcc, no GPU.
#
# Fails with, planted in e2m1_sm100a.cuh: 103, 100 or 121 missing in the condition; the stochastic
# one claimed for 120; planted in quantize.cuh: quantize_kernel<0> asking for the instructions; the
# transpose always quantized by arithmetic.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. dev/test/report.sh

nvcc=$(make -s print-NVCC)
if [ -z "$nvcc" ]; then
    echo "skip conversion instructions: no nvcc on this machine"
    exit 0
fi
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT

# A launcher of every kernel in question.
cat > "$folder/quantize.cu" << 'END'
#include "llmc/quantize.cuh"
void launch(Nvfp4Matrix* m, __nv_bfloat16* x, Nvfp4Rounding r, E2m1Conversion c, char* reason) {
    quantize_activation(m, m, x, 16, 16, 1, r, r, c, 0);
    e2m1_probe(reason, E2M1_REASONS, 0);
}
END

# Counts both instructions in each kernel: "NEAREST+STOCHASTIC", of quantize_kernel<0>,
# quantize_kernel<1> and the probe's kernel.
count() {
    awk '/\.entry/              { kernel = 0 }
         /quantize_kernelILi0E/ { kernel = 1 }
         /quantize_kernelILi1E/ { kernel = 2 }
         /e2m1_run_kernel/      { kernel = 3 }
         /\.entry/              { seen[kernel] = 1 }
         /cvt\.rn\.satfinite\.e2m1x2\.f32/ { nearest[kernel]++ }
         /cvt\.rs\.satfinite\.e2m1x4\.f32/ { stochastic[kernel]++ }
         END {
             for (k = 1; k <= 3; k++) {
                 text = nearest[k] + 0 "+" stochastic[k] + 0
                 printf("%s%s", k == 1 ? "" : " ", seen[k] ? text : "absent")
             }
         }' "$1"
}

# A thread quantizes four blocks of 16, two in each direction: 8 instructions of two, 4 of four.
for arch in $(make -s print-ARCHS_ALL) 121a 100; do
    case $arch in
        100a | 103a) want="0+0 32+16 2+1" ;;
        120a | 121a) want="0+0 32+0 2+0" ;;
        *)           want="0+0 0+0 0+0" ;;
    esac
    mkdir "$folder/$arch"
    "$nvcc" -std=c++17 -O3 -I. -diag-suppress 177 -gencode "arch=compute_$arch,code=sm_$arch" \
        -cubin --keep --keep-dir "$folder/$arch" -o "$folder/$arch.cubin" "$folder/quantize.cu"
    status=$?
    found=$(count "$folder/$arch/quantize.ptx")
    [ "$status" -eq 0 ] && [ "$found" = "$want" ]
    report $? "instructions, sm_$arch" "kernel<0>, kernel<1>, probe: $found"
done
exit $((failures > 0))
