/*
Exponential and sums for the CPU program, written so that a compiler may vectorize them
without being allowed to reorder arithmetic (libm's expf is a call per element; -ffast-math
would change results).
*/
#ifndef LLMC_VECTOR_MATH_H
#define LLMC_VECTOR_MATH_H

#include <math.h>
#include "bits.h"

// e^x within 1 unit in the last place for x in [-87, 88] (all floats tried: 0.94); beyond, the value
// at the end of the range. x = n ln2 + r with |r| <= ln2/2; e^r by its Taylor polynomial, 2^n by
// writing the exponent bits.
static inline float vector_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;        // NaN stays NaN
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.693359375f, x);        // ln2 in two parts; the first has 9 bits, so that
    r = fmaf(n, 2.12194440e-4f, r);             // its product with n is exact
    float p = 1.0f / 5040.0f;
    p = fmaf(p, r, 1.0f / 720.0f);
    p = fmaf(p, r, 1.0f / 120.0f);
    p = fmaf(p, r, 1.0f / 24.0f);
    p = fmaf(p, r, 1.0f / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * bits_float((uint32_t)((int)n + 127) << 23);
}

// Sum of n values in 16 interleaved partial sums, added up in a fixed order.
static inline float vector_sum(const float* x, int n) {
    float lane[16] = { 0 };
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) { lane[j] += x[i + j]; }
    }
    for (int j = 0; i < n; i++, j++) { lane[j] += x[i]; }
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) { lane[j] += lane[j + half]; }
    }
    return lane[0];
}

// Dot product, summed likewise.
static inline float vector_dot(const float* x, const float* y, int n) {
    float lane[16] = { 0 };
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) { lane[j] = fmaf(x[i + j], y[i + j], lane[j]); }
    }
    for (int j = 0; i < n; i++, j++) { lane[j] = fmaf(x[i], y[i], lane[j]); }
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) { lane[j] += lane[j + half]; }
    }
    return lane[0];
}

static inline float vector_max(const float* x, int n) {
    float lane[16];
    for (int j = 0; j < 16; j++) { lane[j] = x[0]; }
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) { lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j]; }
    }
    for (int j = 0; i < n; i++, j++) { lane[j] = x[i] > lane[j] ? x[i] : lane[j]; }
    for (int j = 1; j < 16; j++) { lane[0] = lane[j] > lane[0] ? lane[j] : lane[0]; }
    return lane[0];
}

#endif
