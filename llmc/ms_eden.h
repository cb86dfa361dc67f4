/*
MS-EDEN [Quartet II, arXiv 2601.22813, section 4]: an unbiased NVFP4 whose elements are rounded to
nearest. Stochastic rounding of each element is unbiased too, but its squared error is 2.5 times as
large. After a rotation with random signs (hadamard.h) the error of rounding to nearest has no
preferred direction, but for one: on average it shortens the block. The factor that makes up for it
goes into the block's scale:

    y           = x * block_inverse                    in units of codes
    q           = E2M1(y), to nearest, clipping at 6
    S           = <y, y> / <y, q>                      1 if <y, q> is 0
    block_scale = E4M3(S * block_scale), stochastically: the only random rounding

Then <y, S q> = <y, y>: along y nothing is lost, and across y one error is as likely as its
opposite. A little clipping pays: a block's largest element becomes s = 6 * 16/17 / 0.93 = 6.07, or
up to 17/16 times that where its scale was rounded down; with 0.93 the error is least. The tensor
scale leaves the block scales room to grow: the largest is 256, of 448.

It is for 1x16 blocks: a factor of its own for each row of a square tile cannot be stored.

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_MS_EDEN_H
#define LLMC_MS_EDEN_H

#include "nvfp4.h"

// s = 6 * 16/17 / 0.93 as a fraction of whole numbers, so that what is made of it is rounded once.
#define MS_EDEN_LARGEST_PRODUCT (2457600.0f / 1581.0f)         // s * 256
#define MS_EDEN_BLOCK_FACTOR (1581.0f / 9600.0f)                // 1 / s

// E4M3 without sign, saturating at 448, of a >= 0: up with the probability of the position between
// the two neighbours, in steps of 2^-20. Divided by 2^120 a float has the exponent that E4M3 gives
// the value (e4m3_magnitude_to_float), subnormals included; its upper bits are the code, its lower
// 20 the position. They are exact from 2^-6 up and rounded to nearest below, so the expected value
// is a, or 2^-21 of a gap off at most.
HOST_DEVICE static inline uint32_t e4m3_magnitude_stochastic(float a, uint32_t random) {
    uint32_t bits = float_bits(fminf(a, 448.0f) * 7.52316384526264e-37f);    // 2^-120
    return (bits + (random >> 12)) >> 20;
}

// The block scale of 16 elements whose codes were made with `block_scale`, corrected by S. `random`
// is one word of the block's random bytes. 0 stays 0: such a block decodes to zeros.
HOST_DEVICE static inline uint8_t ms_eden_block_scale(uint8_t block_scale, const uint8_t* codes,
                                                      const float* x /* (16) */,
                                                      float block_inverse, uint32_t random) {
    if (block_scale == 0) { return 0; }
    float squares = 0.0f, products = 0.0f;
    UNROLL
    for (int j = 0; j < NVFP4_BLOCK; j++) {
        float y = x[j] * block_inverse;
        float q = e2m1_to_float(codes[j / 2] >> (4 * (j % 2)) & 15);
        squares = fmaf(y, y, squares);
        products = fmaf(y, q, products);
    }
    float S = products == 0.0f ? 1.0f : squares / products;
    return (uint8_t)e4m3_magnitude_stochastic(S * e4m3_magnitude_to_float(block_scale), random);
}

#endif
