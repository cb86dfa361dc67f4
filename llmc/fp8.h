/*
FP8 elements: E4M3, which nvfp4.h has already as the type of its block scales, and E5M2. Both have a
sign; E5M2 has twice as many exponents and half as many steps between two of them, which suits
gradients [Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433].

             bits (sign, exponent, mantissa)   largest   smallest normal   smallest
    E4M3     1 4 3, bias 7                     448       2^-6              2^-9
    E5M2     1 5 2, bias 15                    57344     2^-14             2^-16

What is larger than the largest becomes the largest: E5M2 has an infinity, which is never made.

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_FP8_H
#define LLMC_FP8_H

#include <math.h>
#include "bits.h"
#include "nvfp4.h"

#define E4M3_LARGEST 448.0f
#define E5M2_LARGEST 57344.0f

// E5M2 is the upper half of FP16. Shifted to where a float has exponent and mantissa, the bits are
// those of the value / 2^112, because the biases differ by 112. The product is exact; 0x7c and 0xfc
// are infinities, bytes above them NaN.
HOST_DEVICE static inline float e5m2_to_float(uint8_t byte) {
    uint32_t magnitude = byte & 0x7fu;
    float x = magnitude > 0x7c ? bits_float(0x7fc00000u)
                               : bits_float(magnitude << 21) * 5.192296858534828e33f;    // 2^112
    if (magnitude == 0x7c) { x = bits_float(FLOAT_INFINITY_BITS); }
    return (byte & 0x80) ? -x : x;
}

// Nearest E5M2, ties to even, saturating at 57344: the method of e4m3_magnitude_from_float, for
// neighbours 2^(e-2) apart and e from -14 up. NaN gives 0x7f whatever its sign, as cuda_fp8.h.
HOST_DEVICE static inline uint8_t e5m2_from_float(float x) {
    if (x != x) { return 0x7f; }
    float a = fminf(fabsf(x), E5M2_LARGEST);
    uint32_t exponent = float_bits(a) >> 23;                        // e + 127
    if (exponent < 113) { exponent = 113; }
    uint32_t large = (exponent + 21) << 23;
    uint32_t count = float_bits(a + bits_float(large)) - large;     // 0 .. 8
    return (uint8_t)(float_bits(x) >> 31 << 7 | (((exponent - 113) << 2) + count));
}

// Quantizes 16 consecutive elements of a row, each to nearest.
HOST_DEVICE static inline void fp8_quantize_group(uint8_t* codes /* (16) */,
                                                  const float* x /* (16) */, float inverse,
                                                  int e5m2) {
    uint32_t code[16], words[4] = { 0, 0, 0, 0 };
    if (e5m2) {
        LANES
        for (int j = 0; j < 16; j++) { code[j] = e5m2_from_float(x[j] * inverse); }
    } else {
        LANES
        for (int j = 0; j < 16; j++) { code[j] = e4m3_from_float(x[j] * inverse); }
    }
    UNROLL
    for (int j = 0; j < 16; j++) { words[j / 4] |= code[j] << (8 * (j % 4)); }
    memcpy(codes, words, sizeof(words));
}

#endif
