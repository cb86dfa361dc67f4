/*
Four Over Six [arXiv 2512.02010]: an NVFP4 block may map its largest element to 4 instead of 6. E2M1
has no value between 4 and 6, so with 6 the elements near 5/6 of the largest lose most; with 4 the
grid is even at the top, at the price of coarser steps for small elements. Each block takes what
loses less:

    D_M        = E4M3(block_amax * (inverse * (1/M)))          M = 6, 4
    value_M    = E2M1(x * block_inverse_M) * D_M * tensor_scale
    error_M    = sum of (value_M - x)^2, or of |value_M - x|   over the block
    M          = 4 if error_4 < error_6, else 6

The format stays NVFP4; no reader has to know. The tensor scale makes the matrix's amax 6 * 256, not
6 * 448: its block may want the scale 256 * 6/4 = 384, which E4M3 has, whereas 448 * 6/4 it lacks.

The choice depends on the rounding errors, so together with stochastic rounding it would be biased:
it is for rounding to nearest only.

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_FOUR_SIX_H
#define LLMC_FOUR_SIX_H

#include "nvfp4.h"

#define FOUR_SIX_LARGEST_PRODUCT 1536.0f        // 6 * 256

// What 16 elements lose with D_M = E4M3(block_amax * block_factor): squares or absolute values,
// summed from element 0 on. Where squares leave the range of FP32 both candidates give 0, or
// infinity, and the block keeps 6. The product with D is exact (nvfp4_expand).
HOST_DEVICE static inline float four_six_error(const float* x /* (16) */, float block_amax,
                                               float block_factor, float scale, int absolute) {
    Nvfp4TensorScale tensor = { scale, block_factor };
    uint8_t block_scale = nvfp4_block_scale(block_amax, tensor);
    float block_inverse = nvfp4_block_inverse(block_scale, tensor);
    float D = e4m3_magnitude_to_float(block_scale), d[NVFP4_BLOCK], error = 0.0f;
    LANES
    for (int j = 0; j < NVFP4_BLOCK; j++) {
        float value = e2m1_to_float((uint8_t)e2m1_nearest(x[j] * block_inverse)) * D;
        d[j] = fmaf(value, scale, -x[j]);
    }
    UNROLL
    for (int j = 0; j < NVFP4_BLOCK; j++) {
        error = absolute ? error + fabsf(d[j]) : fmaf(d[j], d[j], error);
    }
    return error;
}

#endif
