/*
OsciReset [TetraJet-v2, arXiv 2510.27527]: a weight that lies near the border between two codes may
change its code again and again while it hardly moves. What forward reads then swings by the
distance of the codes for nothing. Such weights are found by watching and set to the middle of the
interval whose code they have, so that it takes a real move to leave it.

    over the updates of a window:   d_w = sum of |w - w before|
                                    d_q = sum of |Q(w) - Q(w before)|
    at its end, where d_q / d_w >= threshold:   master = Q(w)          not where d_w = 0

w is what the quantizer reads, the weight in the recipe's base format; Q(w) is what it makes of it,
code value * block scale * tensor scale. Watched are weights whose fprop is quantized both before
and after the update. Windows begin at the update `first`, then every `period` updates; recipe.h
has the numbers.

Whatever else is needed follows from the masters: a checkpoint inside a window holds d_w and d_q,
and no other holds anything.

Plain C11 that nvcc also compiles for the device. The same input gives the same bits in both.
*/
#ifndef LLMC_OSCI_RESET_H
#define LLMC_OSCI_RESET_H

#include <math.h>
#include "quantizer.h"
#include "recipe.h"

// What is done in an update: w and Q(w) are kept before it; their changes are added to the sums
// after it; masters of oscillating weights are set to Q(w).
typedef enum { OSCI_BEFORE, OSCI_AFTER, OSCI_RESET } OsciPhase;

// Updates of the window before update `step`, if that lies in a window, else -1.
static inline int osci_reset_age(const OsciReset* r, int step) {
    if (r->threshold == 0.0f || step < r->first) { return -1; }
    int age = (step - r->first) % r->period;
    return age < r->window ? age : -1;
}

// Does the window end with this update?
static inline int osci_reset_ends(const OsciReset* r, int step) {
    int age = osci_reset_age(r, step);
    return age >= 0 && age == r->window - 1;
}

// Do the sums of earlier updates matter to update `step`?
static inline int osci_reset_continues(const OsciReset* r, int step) {
    return osci_reset_age(r, step) > 0;
}

// Is the weight of this layer watched in update `step`?
static inline int osci_reset_watches(const Recipe* r, int layer, int linear, int step) {
    return recipe_quantizes_at(r, FPROP, layer, linear, step)
        && recipe_quantizes_at(r, FPROP, layer, linear, step + 1);
}

// Q(w) of element number `index` of a quantized weight (rows, cols); tensor_scale: its own.
HOST_DEVICE static inline float osci_reset_value(const uint8_t* codes, const uint8_t* block_scales,
                                                 size_t cols, size_t index, Quantizer q,
                                                 float tensor_scale) {
    float value = quantized_value(q, codes, index);
    if (q.format != FORMAT_FP8) {
        size_t block = index % cols / (size_t)format_block(q.format);
        size_t offset = quantized_scale_offset(q.format, index / cols, block, cols);
        value *= quantized_block_value(q.format, block_scales[offset]);
    }
    return value * tensor_scale;
}

// One update of one weight. age: osci_reset_age of the update.
HOST_DEVICE static inline void osci_reset_add(float* d_w, float* d_q, float w_before, float w,
                                              float q_before, float q, int age) {
    *d_w = (age == 0 ? 0.0f : *d_w) + fabsf(w - w_before);
    *d_q = (age == 0 ? 0.0f : *d_q) + fabsf(q - q_before);
}

// Is the weight set to Q(w)? At the end of a window.
HOST_DEVICE static inline int osci_reset_is_due(float d_w, float d_q, float threshold) {
    return d_w > 0.0f && d_q / d_w >= threshold;
}

#endif
