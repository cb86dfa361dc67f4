/*
Sums over whole buffers: the squared norm of all gradients, and the losses of a batch. The order of
addition depends on the number of values only: the result is the same in every run and on every GPU.
*/
#ifndef LLMC_GLOBAL_NORM_CUH
#define LLMC_GLOBAL_NORM_CUH

#include "cuda_common.cuh"

#define GLOBAL_NORM_BLOCKS 2048     // at most so many partial sums, whatever the GPU

// A thread adds up in double, at one addition for four squares: the rounding errors of a thousand
// million floats would otherwise show.
static __global__ void sum_squares_kernel(float* partials, const float* values, size_t n) {
    __shared__ float shared[32];
    double sum = 0.0;
    size_t stride = (size_t)gridDim.x * blockDim.x * 4;
    #pragma unroll 4
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += stride) {
        Vec<float> x = vec_load_streaming(values + i);
        sum += (x.at[0] * x.at[0] + x.at[1] * x.at[1]) + (x.at[2] * x.at[2] + x.at[3] * x.at[3]);
    }
    float block_total = block_sum((float)sum, shared);
    if (threadIdx.x == 0) { partials[blockIdx.x] = block_total; }
}

// One block. add: to what out holds.
static __global__ void sum_values_kernel(float* out, const float* values, int n, int add) {
    __shared__ float shared[32];
    double sum = 0.0;
    #pragma unroll 8
    for (int i = threadIdx.x; i < n; i += blockDim.x) { sum += values[i]; }
    float total = block_sum((float)sum, shared);
    if (threadIdx.x == 0) { *out = add ? *out + total : total; }
}

// out (1) = sum of squares of values (n). scratch (GLOBAL_NORM_BLOCKS).
static inline void global_norm_squared(float* out, const float* values, size_t n, float* scratch,
                                       cudaStream_t stream) {
    check(n > 0 && n % 16 == 0, "norm of %zu values: not a multiple of 16", n);
    size_t blocks = CEIL_DIV(n / 4, 512);
    if (blocks > GLOBAL_NORM_BLOCKS) { blocks = GLOBAL_NORM_BLOCKS; }
    sum_squares_kernel<<<(unsigned)blocks, 512, 0, stream>>>(scratch, values, n);
    cudaCheck(cudaGetLastError());
    sum_values_kernel<<<1, 1024, 0, stream>>>(out, scratch, (int)blocks, 0);
    cudaCheck(cudaGetLastError());
}

// out (1) += sum of losses (n), in any number up to a few million.
static inline void sum_losses(float* out, const float* losses, int n, cudaStream_t stream) {
    check(n > 0, "sum of %d losses", n);
    sum_values_kernel<<<1, 1024, 0, stream>>>(out, losses, n, 1);
    cudaCheck(cudaGetLastError());
}

#endif
