/*
What the tests of number formats share: counting differences, and the definitions of formats and
roundings in double, by search, which the headers' arithmetic is compared with. Prints and counts
through report.h. C11 and C++.
*/
#ifndef TEST_NUMBER_CHECK_H
#define TEST_NUMBER_CHECK_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/bits.h"
#include "../../llmc/random.h"
#include "report.h"

// Counts values that are not what they should be, and keeps the description of the first.
typedef struct {
    long checked, differ;
    char first[200];
} Comparison;

static inline void compare(Comparison* c, int equal, const char* format, ...) {
    if (!equal && c->differ == 0) {
        va_list values;
        va_start(values, format);
        vsnprintf(c->first, sizeof(c->first), format, values);
        va_end(values);
    }
    c->checked++;
    c->differ += !equal;
}

static inline void compare_report(const Comparison* c, const char* name, const char* what) {
    report(c->differ == 0 && c->checked > 0, name, "%ld %s, %ld differ%s%s", c->checked, what,
           c->differ, c->differ ? "; first: " : "", c->first);
}

// 32 random bits, number n of the stream `use`.
static inline uint32_t random_word(uint32_t use, uint64_t n) {
    return philox4x32(20260101, (uint32_t)n, (uint32_t)(n >> 32), use, 0).word[0];
}

static inline void* allocate(size_t bytes) {
    void* memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL) {
        printf("FAIL out of memory: %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

#define FNV1A_32_START 0x811c9dc5u

// FNV-1a, 32 bits, of more bytes behind those that gave `hash`.
static inline uint32_t fnv1a_32_add(uint32_t hash, const uint8_t* bytes, size_t n) {
    for (size_t i = 0; i < n; i++) { hash = (hash ^ bytes[i]) * 0x01000193u; }
    return hash;
}

static inline uint32_t fnv1a_32(const uint8_t* bytes, size_t n) {
    return fnv1a_32_add(FNV1A_32_START, bytes, n);
}

// ---------------------------------------------------------------------------------------------
// Formats and roundings

// The values of the non-negative codes, from the definition of each format. E2M1: codes 0..7.
static const double E2M1_VALUES[8] = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 };

// E4M3: bytes 0..0x7e.
static inline double e4m3_value(int byte) {
    int exponent = byte / 8, mantissa = byte % 8;
    return exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
}

// The index of the value nearest to a >= 0, by looking at all of them; of two equally near ones the
// even index. The differences that decide are exact in double.
static inline int nearest_index(double a, const double* values, int count) {
    if (a >= values[count - 1]) { return count - 1; }
    int best = 0;
    for (int i = 1; i < count; i++) {
        double difference = fabs(values[i] - a) - fabs(values[best] - a);
        if (difference < 0 || (difference == 0 && i % 2 == 0)) { best = i; }
    }
    return best;
}

// One point of the comparisons below, with both signs.
static inline void compare_nearest(Comparison* c, float a, uint8_t (*encode)(float),
                                   uint8_t sign_bit, const double* values, int count) {
    uint8_t expected = (uint8_t)nearest_index(a, values, count);
    uint8_t positive = encode(a), negative = encode(-a);
    compare(c, positive == expected && negative == (expected | sign_bit),
            "+-%a gives %02x, %02x instead of %02x", a, positive, negative, expected);
}

// 1M points spread over the format's range, 1M of any magnitude, each midpoint and each value with
// their neighbours up to 2 units in the last place.
static inline void compare_format(Comparison* c, uint8_t (*encode)(float), uint8_t sign_bit,
                                  const double* values, int count, int lowest_exponent,
                                  int highest_exponent) {
    int exponents = highest_exponent - lowest_exponent + 1;
    for (uint32_t n = 0; n < 1000000; n++) {
        uint32_t word = random_word(1, n);
        int exponent = lowest_exponent + (int)(n % (uint32_t)exponents);
        float a = ldexpf(1.0f + (float)(word & 0x7fffff) / 0x800000, exponent);
        compare_nearest(c, a, encode, sign_bit, values, count);
        float any = bits_float(word & ~FLOAT_SIGN_BIT);
        if (isfinite(any)) { compare_nearest(c, any, encode, sign_bit, values, count); }
    }
    for (int i = 0; i < count; i++) {
        float value = (float)values[i];
        float midpoint = i + 1 < count ? (float)((values[i] + values[i + 1]) / 2) : FLT_MAX;
        for (int ulps = -2; ulps <= 2; ulps++) {
            float beside_value = bits_float(float_bits(value) + (uint32_t)ulps);
            float beside_midpoint = bits_float(float_bits(midpoint) + (uint32_t)ulps);
            if (beside_value >= 0) {
                compare_nearest(c, beside_value, encode, sign_bit, values, count);
            }
            if (beside_midpoint < INFINITY) {
                compare_nearest(c, beside_midpoint, encode, sign_bit, values, count);
            }
        }
    }
}

// Rounds a >= 0 with a random byte, by the words of the definition: the position between the two
// neighbours, cut to 8 binary digits, plus the random byte; a carry means up.
static inline int stochastic_reference(double a, int random) {
    if (a >= 6) { return 7; }
    int low = 0;
    while (E2M1_VALUES[low + 1] <= a) { low++; }
    double position = (a - E2M1_VALUES[low]) / (E2M1_VALUES[low + 1] - E2M1_VALUES[low]);
    return low + (floor(256 * position) + random >= 256);
}

// The same sums by halving: transform both halves, then add and subtract them. Unrolled, these are
// strides 1, 2, 4, 8, in this order, so even the roundings have to be the same.
static inline void hadamard_halves(float* x, int n) {
    if (n == 1) { return; }
    hadamard_halves(x, n / 2);
    hadamard_halves(x + n / 2, n / 2);
    for (int i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2];
        x[i] = a + b;
        x[i + n / 2] = a - b;
    }
}

#endif
