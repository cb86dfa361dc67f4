/*
Random numbers without a generator: Philox4x32-10, a function from (key, counter) to 128 random
bits. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

There is no state, hence nothing to save, to seed per thread, or to keep in step between ranks. Who
needs a number says which one: the key is the run's seed, the counter names the use. Its third word
keeps the uses apart; all of them are listed here, and no use may take another's:

    third word                       use
    0 .. 2^31-1                      stochastic rounding: operand_tag (recipe.h); and with
                                     both words before it all ones the signs of a rotation
    RANDOM_INIT + tensor             initial weights, one draw per element
    RANDOM_SHUFFLE                   order of the training rows
    RANDOM_SAMPLE                    generated text

Plain C11 that nvcc also compiles for the device.
*/
#ifndef LLMC_RANDOM_H
#define LLMC_RANDOM_H

#include <math.h>
#include "bits.h"

#define RANDOM_INIT    0x80000000u
#define RANDOM_SHUFFLE 0x90000000u
#define RANDOM_SAMPLE  0xa0000000u

typedef struct { uint32_t word[4]; } Philox;

// Ten rounds; each multiplies two words, swaps halves and mixes in the key, which advances by the
// Weyl constants (golden ratio and sqrt(3) - 1, as 32-bit fractions).
HOST_DEVICE static inline Philox philox4x32(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2,
                                            uint32_t c3) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    Philox out;
    out.word[0] = c0;
    out.word[1] = c1;
    out.word[2] = c2;
    out.word[3] = c3;
    return out;
}

// Uniform in [0, 1) from the upper 24 bits of a random word; every result is exact.
HOST_DEVICE static inline float random_uniform(uint32_t word) {
    return (float)(word >> 8) * (1.0f / 16777216.0f);
}

// Standard normal number for one element of an initialization tensor (Box-Muller, host only).
// Computed in double and rounded once, so that the last-bit freedom of the math libraries
// practically never shows in the result.
static inline float random_normal(uint64_t seed, uint32_t tensor, uint64_t element) {
    Philox p = philox4x32(seed, (uint32_t)element, (uint32_t)(element >> 32), RANDOM_INIT + tensor,
                          0);
    double u = ((double)p.word[0] + 0.5) / 4294967296.0;    // in (0, 1): the logarithm is finite
    double v = ((double)p.word[1] + 0.5) / 4294967296.0;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

#endif
