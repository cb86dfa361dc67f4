/*
Bit patterns of floats, and BF16: the vocabulary that the other number headers share.

BF16 is the upper half of a float: the same sign and exponent, 8 significant bits instead of 24. A
BF16 value is therefore also a float, and this project's C code keeps BF16 tensors as floats whose
lower 16 bits are zero; `bf16_round` puts a float on that grid.

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_BITS_H
#define LLMC_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// UNROLL stands before a loop over a small array that a device thread keeps in registers, where an
// element is named, not indexed. C compilers decide for themselves. LANES is UNROLL before a loop
// whose turns are independent: a C compiler makes vector instructions of it.
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#define UNROLL _Pragma("unroll")
#define LANES _Pragma("unroll")
#else
#define HOST_DEVICE
#define UNROLL
#define LANES _Pragma("omp simd")
#endif

#define FLOAT_SIGN_BIT 0x80000000u
#define FLOAT_INFINITY_BITS 0x7f800000u     // absolute bits from here up are Inf or NaN
#define FLOAT_LARGEST 3.4028234663852886e38f

HOST_DEVICE static inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

HOST_DEVICE static inline float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

// The bits of |x|. As integers they order like the absolute values, with Inf and then NaN on top,
// so a maximum over them cannot lose a NaN as fmaxf would.
HOST_DEVICE static inline uint32_t float_abs_bits(float x) {
    return float_bits(x) & ~FLOAT_SIGN_BIT;
}

// RN16: round to nearest BF16, ties to even; overflow gives Inf. Adding just under half of the last
// kept bit, plus that bit itself, carries exactly when the value has to go up.
HOST_DEVICE static inline uint16_t bf16_from_float(float x) {
    uint32_t bits = float_bits(x);
    if ((bits & ~FLOAT_SIGN_BIT) > FLOAT_INFINITY_BITS) { return 0x7fff; }  // NaN, as cuda_bf16.h
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

HOST_DEVICE static inline float bf16_to_float(uint16_t half) {
    return bits_float((uint32_t)half << 16);
}

HOST_DEVICE static inline float bf16_round(float x) {
    return bf16_to_float(bf16_from_float(x));
}

#endif
