/*
AdamW for one parameter: the formula that the C program and the CUDA kernel (adamw.cuh) share, so
that equal gradients give equal weights, to the bit, on both.

    g  = grad * grad_scale
    m  = beta1 m + (1 - beta1) g                     running mean of the gradient
    v  = beta2 v + (1 - beta2) g^2                   and of its square
    w -= learning_rate (m' / (sqrt(v') + eps) + weight_decay w)

with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t), which undo the start at zero. The decay is
not part of the gradient: it skips m and v [Loshchilov and Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019].

Plain C11 that nvcc also compiles for the device. The same input gives the same bits in both: no
product feeds a sum except inside fmaf, and division and square root are rounded correctly.
*/
#ifndef LLMC_ADAMW_H
#define LLMC_ADAMW_H

#include <math.h>
#include "bits.h"

// What is common to all parameters of a tensor in one step.
typedef struct {
    float learning_rate, beta1, beta2, eps, weight_decay;
    float correction1, correction2;     // 1 - beta^t, from adamw_correction
    float grad_scale;                   // multiplies every gradient: clipping by the global norm
} AdamW;

// 1 - beta^t for step t = 1, 2, ... (host only)
static inline float adamw_correction(float beta, int t) {
    return (float)(1.0 - pow((double)beta, (double)t));
}

// AdamW as GPT-2 pretraining uses it (beta 0.9 and 0.95, eps 1e-8); `step` counts updates from 0.
static inline AdamW adamw_step(float learning_rate, float weight_decay, float grad_scale,
                               int step) {
    AdamW a;
    a.learning_rate = learning_rate;
    a.beta1 = 0.9f;
    a.beta2 = 0.95f;
    a.eps = 1e-8f;
    a.weight_decay = weight_decay;
    a.correction1 = adamw_correction(a.beta1, step + 1);
    a.correction2 = adamw_correction(a.beta2, step + 1);
    a.grad_scale = grad_scale;
    return a;
}

// Updates one weight and its two moments.
HOST_DEVICE static inline void adamw_element(float* weight, float* m, float* v, float grad,
                                             AdamW a) {
    float g = grad * a.grad_scale;
    float new_m = fmaf(a.beta1, *m, (1.0f - a.beta1) * g);
    float new_v = fmaf(a.beta2, *v, (1.0f - a.beta2) * (g * g));
    float direction = (new_m / a.correction1) / (sqrtf(new_v / a.correction2) + a.eps);
    *weight = fmaf(-a.learning_rate, fmaf(a.weight_decay, *weight, direction), *weight);
    *m = new_m;
    *v = new_v;
}

#endif
