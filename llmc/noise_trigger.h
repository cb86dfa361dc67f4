/*
When quantization stops helping: the rule that decides about "@auto" (recipe.h), for the C and the
CUDA program.

Stochastic rounding adds noise to a gradient. The loss still falls with it as long as the gradient
is the larger of the two; from the expected fall of the loss in one update one finds that noise
becomes what limits training where [Chmiel et al., arXiv 2505.19115, section 4]

    RMS(gradient) < sqrt(3) * RMS(noise of the gradient)

Here both are taken over the weights of the linear layers of which any GEMM is quantized, all ranks
together. The gradient is that of the update, before clipping, and so with its noise. The noise
comes from a difference: one micro-batch goes through the model twice, with the same weights and
other random bits. Two draws differ by twice the variance of one; the micro-batches of an update
draw independently, and so do ranks, whose differences are added before they are squared:

    noise^2 of the update = micro_steps * (sum of squares of the difference) / 2

A recipe without random bits has no noise, and the rule never fires.

C11 that also compiles as C++17.
*/
#ifndef LLMC_NOISE_TRIGGER_H
#define LLMC_NOISE_TRIGGER_H

#include <math.h>
#include "recipe.h"

// Measured is every 200th of the run, but not more often than every 10 updates: it costs one more
// micro-batch in the C program, two in the CUDA program. A function of the step alone, so a resumed run
// measures when the other would have.
static inline int noise_trigger_due(const Recipe* r, int num_steps, int step) {
    int every = num_steps / 200 > 10 ? num_steps / 200 : 10;
    return recipe_waits(r) && step > 0 && step % every == 0;
}

// Of random bits, for the second time; Linear.seed. The first time it is the run's.
static inline uint64_t noise_trigger_seed(uint64_t seed) {
    return seed ^ 0x6e6f697365206f66u;
}

// Does the gradient of this layer's weight count?
static inline int noise_trigger_counts(const Recipe* r, int layer, int linear) {
    return recipe_quantizes(r, FPROP, layer, linear) || recipe_quantizes(r, DGRAD, layer, linear)
        || recipe_quantizes(r, WGRAD, layer, linear);
}

// RMS(gradient) / RMS(noise), from sums of squares over all of these weights: of the gradient of
// the update, and of the difference of one micro-batch's shares in it.
static inline double noise_trigger_ratio(double gradient, double difference, int micro_steps) {
    double noise = 0.5 * (double)micro_steps * difference;
    return noise > 0.0 ? sqrt(gradient / noise) : INFINITY;
}

// Do automatic rules hold from the next update on?
static inline int noise_trigger_fires(double ratio) { return ratio * ratio < 3.0; }

#endif
