/*
Scales that are powers of two: E8M0, a byte that is the exponent of a float and nothing else. The
formats MXFP4 and MXFP8 [OCP Microscaling Formats 1.0] share one among 32 elements, the block-wise
FP8 of DeepSeek-V3 [arXiv 2412.19437, 3.3] one among 128. There is no tensor scale: the range of
E8M0 is that of FP32.

    block_scale = 2^(byte - 127)      byte 0 .. 254;  255 is NaN and is never made

The OCP text scales a block so that its largest element comes to lie in the upper half of the
elements' range, where it may be beyond the largest one and saturate. Here the scale is the smallest
one with which no element does [as in arXiv 2506.08027], so rounding is free of clipping, and
stochastic rounding free of bias:

    block_scale = smallest power of two, from 2^-127 up, with largest * block_scale >= block_amax
    code        = element(x / block_scale)          largest: 6 of E2M1, 448 of E4M3

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_MX_H
#define LLMC_MX_H

#include "bits.h"

// 2^-127 is a subnormal float; the bit that makes it one also makes a NaN of 255.
HOST_DEVICE static inline float e8m0_to_float(uint8_t byte) {
    uint32_t half = byte == 0 || byte == 255 ? 0x400000u : 0u;
    return bits_float((uint32_t)byte << 23 | half);
}

// 1 / e8m0_to_float(byte), exactly, of a byte up to 253.
HOST_DEVICE static inline float e8m0_inverse(uint8_t byte) {
    return bits_float((254u - byte) << 23);
}

// The block scale for elements up to `largest`, 6 or 448. It and block_amax are both m * 2^k with m
// from 1 to 2: the scale's exponent is the difference of their k, and one more if block_amax has
// the larger m. Of a subnormal block_amax the bits are no such m and k, but its scale is 2^-127 in
// any case. No result is above 253.
HOST_DEVICE static inline uint8_t mx_block_scale(float block_amax, float largest) {
    uint32_t amax = float_bits(block_amax), most = float_bits(largest);
    int byte = (int)(amax >> 23) - (int)(most >> 23) + 127;
    byte += (amax & 0x7fffffu) > (most & 0x7fffffu);
    return (uint8_t)(byte > 0 ? byte : 0);
}

// x * e8m0_inverse(block_scale) is exact, but for results that are subnormal: those are so small
// that their code is 0 with any rounding.

#endif
