/*
OsciReset on the GPU: the weights that oscillate between two codes are found and set, as osci_reset.h
explains. A thread per weight; every number comes from that header.
*/
#ifndef LLMC_OSCI_RESET_CUH
#define LLMC_OSCI_RESET_CUH

#include "cuda_common.cuh"
#include "osci_reset.h"

// What osci_reset.h watches, of the parameters that a rank owns; NULL if the recipe does without.
typedef struct {
    float* d_w;                 // (own)
    float* d_q;                 // (own)
    float* w_before;            // (own)    as they were before the update
    float* q_before;            // (own)
    unsigned long long* resets; // (1)      weights that were set, each counted on one rank
} Oscillation;

// `count` elements of a quantized weight, from its element number `first` on. The vectors of
// Oscillation and the masters begin at the first of them.
typedef struct {
    Nvfp4Matrix w_q;
    Quantizer quantizer;
    size_t first, count;
    size_t counted_first, counted_end;  // of these, counted on this rank
    float* masters;
} OsciPart;

template <typename Real>
static __global__ void osci_kernel(OsciPart part, Oscillation o,
                                   const Real* working /* (count) */, OsciPhase phase, int age,
                                   float threshold) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= part.count) { return; }
    float scale = quantizer_tensor_scale(part.quantizer, *part.w_q.amax).scale;
    float w = to_float(working[i]);
    float value = osci_reset_value(part.w_q.codes, part.w_q.block_scales, (size_t)part.w_q.cols,
                                   part.first + i, part.quantizer, scale);
    if (phase == OSCI_BEFORE) {
        o.w_before[i] = w;
        o.q_before[i] = value;
    } else if (phase == OSCI_AFTER) {
        osci_reset_add(&o.d_w[i], &o.d_q[i], o.w_before[i], w, o.q_before[i], value, age);
    } else if (osci_reset_is_due(o.d_w[i], o.d_q[i], threshold)) {
        part.masters[i] = value;
        if (i >= part.counted_first && i < part.counted_end) { atomicAdd(o.resets, 1ull); }
    }
}

// `offset`: where among the rank's own parameters the part begins; `masters` (own) are all of them.
template <typename Real>
static void osci_reset_watch(OsciPart part, Oscillation o, float* masters, const Real* working,
                             size_t offset, OsciPhase phase, int age, float threshold,
                             cudaStream_t stream) {
    if (part.count == 0) { return; }
    o.d_w += offset;
    o.d_q += offset;
    o.w_before += offset;
    o.q_before += offset;
    part.masters = masters + offset;
    osci_kernel<Real><<<(unsigned)CEIL_DIV(part.count, 256), 256, 0, stream>>>(
        part, o, working, phase, age, threshold);
    cudaCheck(cudaGetLastError());
}

#endif
