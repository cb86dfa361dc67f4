/*
Do the block scales of an operand still fit its format? What is counted of a quantized matrix, for
the C program and the CUDA program:

    blocks        all of them
    underflows    blocks whose scale is 0 although there is something in them: they are multiplied
                  as zeros
    largest       blocks with the largest scale of the format. One is normal, that of the matrix's
                  amax, or a whole tile of a weight. Many say that the amax is too small: what is
                  above it is clipped

NVFP4's scales, E4M3, end at 448 and have a 0. The powers of two of the MX formats end at 2^127,
where no BF16 tensor gets them, and at 2^-127, byte 0: the end of FP32. FP8 has no block scales, and
nothing is counted. When this is done, and when it is an alarm: guards.h.

Plain C11 that nvcc also compiles for the device.
*/
#ifndef LLMC_SCALE_COUNTS_H
#define LLMC_SCALE_COUNTS_H

#include "quantizer.h"

// Three counters side by side.
enum { SCALES_BLOCKS, SCALES_UNDERFLOWS, SCALES_LARGEST, NUM_SCALE_COUNTS };

HOST_DEVICE static inline int scale_is_largest(uint8_t byte, Format f) {
    return byte >= (f == FORMAT_NVFP4 ? 0x7e : 254);
}

// Is there anything in a block of a row? With scale 0 the codes are those of x * FLT_MAX: 0 only if
// x is 0, or subnormal.
HOST_DEVICE static inline int block_has_codes(const Nvfp4Matrix* q, size_t row, size_t block,
                                              Format f) {
    size_t cols = (size_t)q->cols, size = (size_t)format_block(f), left = block * size;
    size_t right = left + size < cols ? left + size : cols;
    for (size_t at = row * cols + left; at < row * cols + right; at++) {    // without signs
        int code = format_bits(f) == 8 ? q->codes[at] & 127
                                       : q->codes[at / 2] >> (4 * (at % 2)) & 7;
        if (code != 0) { return 1; }
    }
    return 0;
}

// Adds the blocks of a matrix to the counts. The reference, for host memory.
static inline void scales_count(uint64_t* counts /* (NUM_SCALE_COUNTS) */, const Nvfp4Matrix* q,
                                Format f) {
    size_t rows = (size_t)q->rows, cols = (size_t)q->cols, blocks = quantized_blocks(f, cols);
    uint64_t underflows = 0, largest = 0;
    #pragma omp parallel for reduction(+ : underflows, largest)
    for (size_t row = 0; row < rows; row++) {
        for (size_t block = 0; block < blocks; block++) {
            uint8_t byte = q->block_scales[quantized_scale_offset(f, row, block, cols)];
            underflows += byte == 0 && block_has_codes(q, row, block, f);
            largest += (uint64_t)scale_is_largest(byte, f);
        }
    }
    counts[SCALES_BLOCKS] += rows * blocks;
    counts[SCALES_UNDERFLOWS] += underflows;
    counts[SCALES_LARGEST] += largest;
}

#endif
