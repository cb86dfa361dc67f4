/*
AdamW on the GPU: adamw_element (adamw.h) for every element of a tensor, and the BF16 copy of the
new weights that the kernels work with.
*/
#ifndef LLMC_ADAMW_CUH
#define LLMC_ADAMW_CUH

#include "adamw.h"
#include "cuda_common.cuh"

// Four elements per thread. All is used once in a step: streaming.
static __global__ void adamw_update_kernel(float* master, __nv_bfloat16* working, const float* grad,
                                           float* m, float* v, size_t n, AdamW settings) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) { return; }
    Vec<float> weights = vec_load_streaming(master + i), grads = vec_load_streaming(grad + i);
    Vec<float> ms = vec_load_streaming(m + i), vs = vec_load_streaming(v + i);
    for (int k = 0; k < 4; k++) {
        adamw_element(&weights.at[k], &ms.at[k], &vs.at[k], grads.at[k], settings);
    }
    vec_store_streaming(master + i, weights);
    vec_store_streaming(m + i, ms);
    vec_store_streaming(v + i, vs);
    if (working != NULL) {
        ushort4 rounded;
        rounded.x = bf16_from_float(weights.at[0]);
        rounded.y = bf16_from_float(weights.at[1]);
        rounded.z = bf16_from_float(weights.at[2]);
        rounded.w = bf16_from_float(weights.at[3]);
        *(ushort4*)(working + i) = rounded;
    }
}

// One step for a tensor of n parameters: updates master, m and v (n) from grad (n), and sets
// working (n), which may be NULL, to master rounded to BF16.
static inline void adamw_update(float* master, __nv_bfloat16* working, const float* grad, float* m,
                                float* v, size_t n, AdamW settings, cudaStream_t stream) {
    check(n > 0 && n % 16 == 0, "adamw of %zu parameters: not a multiple of 16", n);
    size_t blocks = CEIL_DIV(n / 4, 256);
    adamw_update_kernel<<<(unsigned)blocks, 256, 0, stream>>>(master, working, grad, m, v, n,
                                                              settings);
    cudaCheck(cudaGetLastError());
}

static __global__ void adamw_add_gradient_kernel(float* sum, const float* grad, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) { return; }
    Vec<float> a = vec_load(sum + i), b = vec_load_streaming(grad + i);
    for (int k = 0; k < 4; k++) { a.at[k] += b.at[k]; }
    vec_store(sum + i, a);
}

// sum (n) += grad (n): what this rank owns of gradients that were summed over the ranks. n may be
// 0.
static inline void adamw_add_gradient(float* sum, const float* grad, size_t n,
                                      cudaStream_t stream) {
    check(n % 16 == 0, "a gradient of %zu parameters: not a multiple of 16", n);
    if (n == 0) { return; }
    adamw_add_gradient_kernel<<<(unsigned)CEIL_DIV(n / 4, 256), 256, 0, stream>>>(sum, grad, n);
    cudaCheck(cudaGetLastError());
}

static __global__ void round_to_working_kernel(__nv_bfloat16* working, const float* master,
                                               size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { working[i] = from_float<__nv_bfloat16>(master[i]); }
}

// working (n) = master (n) rounded to BF16: for masters that did not come from adamw_update.
static inline void round_to_working(__nv_bfloat16* working, const float* master, size_t n,
                                    cudaStream_t stream) {
    size_t blocks = CEIL_DIV(n, 256);
    round_to_working_kernel<<<(unsigned)blocks, 256, 0, stream>>>(working, master, n);
    cudaCheck(cudaGetLastError());
}

#endif
