/*
The end of the forward pass and the start of the backward pass in one kernel: cross-entropy of the
logits, and its gradient, which overwrites them.

    loss    = log(sum_v exp(logit_v)) - logit_target            v over the vocabulary
    dlogits = (softmax(logits) - onehot(target)) * dloss

The logits are the largest tensor of the program (6.6 GB at 65,536 tokens), so they are written once
and, where the cache holds a row until it is read a second time, read once.
*/
#ifndef LLMC_CLASSIFIER_CUH
#define LLMC_CLASSIFIER_CUH

#include "cuda_common.cuh"

// Widens the logits of the columns c .. c + size - 1. Those from V on are padding: -infinity, whose
// exponential is 0, keeps them out of every sum.
template <typename Real>
__device__ static inline void classifier_widen(float* x /* (size) */, Vec<Real> logits, int c,
                                               int V) {
    for (int k = 0; k < Vec<Real>::size; k++) { x[k] = to_float(logits.at[k]); }
    if (c + Vec<Real>::size > V) {
        for (int k = 0; k < Vec<Real>::size; k++) { x[k] = c + k < V ? x[k] : -INFINITY; }
    }
}

// A block per row (b,t). Each thread first goes forward over its share of the row, with a running
// maximum; when that grows, the sum so far is scaled down [Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018]. Then it goes backward, so that what it read last,
// which is most likely still in the cache, comes first.
template <typename Real>
static __global__ void __launch_bounds__(1024)
fused_classifier_kernel(Real* logits, float* losses, const int* targets, float dloss, int V, int Vp,
                        int write_dlogits) {
    __shared__ float shared[32];
    Real* row = logits + (size_t)blockIdx.x * Vp;
    int target = targets[blockIdx.x];
    // read before the barriers below: behind them, other threads overwrite it
    float target_logit = threadIdx.x == 0 ? to_float(row[target]) : 0.0f;
    const int stride = blockDim.x * Vec<Real>::size;

    float max = -INFINITY, sum = 0.0f;
    #pragma unroll 4
    for (int c = threadIdx.x * Vec<Real>::size; c < V; c += stride) {
        float x[Vec<Real>::size];
        classifier_widen(x, vec_load(row + c), c, V);
        float new_max = max;
        for (int k = 0; k < Vec<Real>::size; k++) { new_max = fmaxf(new_max, x[k]); }
        sum *= exp_for<Real>(max - new_max);
        max = new_max;
        for (int k = 0; k < Vec<Real>::size; k++) { sum += exp_for<Real>(x[k] - max); }
    }
    float row_max = block_max(max, shared);
    float row_sum = block_sum(sum * exp_for<Real>(max - row_max), shared);
    if (threadIdx.x == 0) { losses[blockIdx.x] = logf(row_sum) + row_max - target_logit; }
    if (!write_dlogits) { return; }

    float factor = dloss / row_sum;
    int last = (Vp - 1) / stride * stride + threadIdx.x * Vec<Real>::size;
    for (int c = last < Vp ? last : last - stride; c >= 0; c -= stride) {
        float x[Vec<Real>::size];
        classifier_widen(x, vec_load(row + c), c, V);
        Vec<Real> d;
        for (int k = 0; k < Vec<Real>::size; k++) {
            float gradient = exp_for<Real>(x[k] - row_max) * factor;
            d.at[k] = from_float<Real>(c + k == target ? gradient - dloss : gradient);
        }
        vec_store_streaming(row + c, d);
    }
}

// losses (B,T) = cross-entropy of logits (B,T,Vp) against targets (B,T), which are in 0 .. V - 1;
// the columns from V on do not count. If write_dlogits is set, logits become the gradient of
// dloss * (sum of losses), with 0 in the columns from V on; else they stay, and dloss is not read.
template <typename Real>
static void fused_classifier(Real* logits, float* losses, const int* targets, float dloss, int B,
                             int T, int V, int Vp, int write_dlogits, cudaStream_t stream) {
    check(B > 0 && T > 0, "classifier of B = %d, T = %d", B, T);
    check(V > 0 && V <= Vp && Vp % 16 == 0, "a vocabulary of V = %d, padded to Vp = %d: not a "
          "multiple of 16 that holds it", V, Vp);
    fused_classifier_kernel<<<B * T, 1024, 0, stream>>>(logits, losses, targets, dloss, V, Vp,
                                                        write_dlogits);
    cudaCheck(cudaGetLastError());
}

#endif
