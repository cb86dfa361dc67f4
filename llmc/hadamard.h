/*
The 16-point randomized Hadamard transform. It turns 16 numbers into 16 sums and differences of all
of them, so one outlier is spread over its block instead of deciding the block's scale alone. Being
orthogonal, it leaves dot products as they were: both operands of the weight-gradient GEMM are
transformed along the dimension that the GEMM contracts (tokens), and the transforms cancel.

    out_c = 1/4 * sum_r  sign_r * x_r * H[r][c],    H[r][c] = (-1)^popcount(r & c)

The signs keep a block with a constant part from sending all of it into out_0. They are
fixed, one vector for all layers and the whole run, the one TransformerEngine uses
[arXiv 2509.25149, 4.2, E.4.3].

Plain C11 that nvcc also compiles for the device.
*/
#ifndef LLMC_HADAMARD_H
#define LLMC_HADAMARD_H

#include "bits.h"

#define HADAMARD_SIZE 16
#define HADAMARD_SIGNS 0xD7E8u          // bit r set: sign_r is -1

// The signs and the sums, in place. Four rounds of butterflies with strides 1, 2, 4, 8:
// this order is part of the definition, because FP32 sums of BF16 values that differ by
// more than 2^12 are not exact.
HOST_DEVICE static inline void hadamard_sums(float* x /* (16) */) {
    UNROLL
    for (int r = 0; r < HADAMARD_SIZE; r++) {
        x[r] = HADAMARD_SIGNS >> r & 1u ? -x[r] : x[r];
    }
    UNROLL
    for (int stride = 1; stride < HADAMARD_SIZE; stride *= 2) {
        UNROLL
        for (int i = 0; i < HADAMARD_SIZE; i++) {
            if ((i & stride) == 0) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
        }
    }
}

// What becomes of a sum: a quarter of it, rounded to BF16. Never decreasing in its argument.
HOST_DEVICE static inline float hadamard_round(float sum) {
    return bf16_round(0.25f * sum);
}

// The transform, in place, of 16 BF16 values.
HOST_DEVICE static inline void hadamard_transform(float* x /* (16) */) {
    hadamard_sums(x);
    UNROLL
    for (int c = 0; c < HADAMARD_SIZE; c++) { x[c] = hadamard_round(x[c]); }
}

// out (cols, rows) = transpose of x (rows, cols), with groups of 16 consecutive rows of x
// transformed if hadamard is set. rows is a multiple of 16. This is the source of every operand of
// the weight-gradient GEMM.
static inline void hadamard_transpose(float* out, const float* x, int rows, int cols,
                                      int hadamard) {
    #pragma omp parallel for
    for (int row = 0; row < rows; row += HADAMARD_SIZE) {
        for (int col = 0; col < cols; col++) {
            float* group = out + (size_t)col * rows + row;
            for (int r = 0; r < HADAMARD_SIZE; r++) {
                group[r] = x[(size_t)(row + r) * cols + col];
            }
            if (hadamard) { hadamard_transform(group); }
        }
    }
}

#endif
