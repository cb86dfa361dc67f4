/*
Draws the next token from the model's distribution: softmax at temperature 1, every token possible.

C11 that also compiles as C++17.
*/
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include <math.h>

// uniform is in [0, 1). The sums are in double: with 50,000 tokens the FP32 rounding errors of the
// cumulative sum would reach the probability of a rare token. Padding columns are not passed in.
static inline int sample_token(const float* logits /* (V) */, int V, float uniform) {
    float largest = logits[0];
    for (int v = 1; v < V; v++) { largest = fmaxf(largest, logits[v]); }
    double sum = 0.0;
    for (int v = 0; v < V; v++) { sum += exp((double)(logits[v] - largest)); }
    double target = uniform * sum, cumulative = 0.0;
    for (int v = 0; v < V - 1; v++) {
        cumulative += exp((double)(logits[v] - largest));
        if (target < cumulative) { return v; }
    }
    return V - 1;
}

#endif
