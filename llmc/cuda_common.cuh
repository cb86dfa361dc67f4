/*
What the device code shares: error checks, memory, the two storage types, 16-byte loads and stores,
and sums over a warp or a block.

A tensor is stored in float or in BF16; kernels that serve both take the type as the template
parameter `Real`. Arithmetic is always in float: a value is widened when loaded and rounded once, to
nearest, when stored. Sums have a fixed order, so that two runs give the same bits.
*/
#ifndef LLMC_CUDA_COMMON_CUH
#define LLMC_CUDA_COMMON_CUH

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cublasLt.h>
#include "bits.h"
#include "utils.h"

// ---------------------------------------------------------------------------------------------
// Errors and memory

#define cudaCheck(call)                                                                            \
    do {                                                                                           \
        cudaError_t status_of_call = (call);                                                       \
        check(status_of_call == cudaSuccess, "%s: %s%s", #call, cudaGetErrorString(status_of_call), \
              cuda_advice(status_of_call));                                                        \
    } while (0)

// What to do about an error, if there is something.
static inline const char* cuda_advice(cudaError_t status) {
    return status == cudaErrorNoKernelImageForDevice ? "; the program was compiled for another GPU: run "
           "make on this machine, or make GPU=90 for compute capability 9.0" : "";
}

#define cublasCheck(call)                                                                          \
    do {                                                                                           \
        cublasStatus_t status_of_call = (call);                                                    \
        check(status_of_call == CUBLAS_STATUS_SUCCESS, "%s: %s", #call,                            \
              cublasLtGetStatusString(status_of_call));                                            \
    } while (0)

// Integer quotient, rounded up. Both operands positive.
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))

// Device memory; `what` names its use in the error message. 0 bytes give NULL.
static inline void* cuda_malloc(size_t bytes, const char* what) {
    void* memory = NULL;
    if (bytes == 0) { return memory; }
    cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total_bytes = 0;
        cudaCheck(cudaMemGetInfo(&free_bytes, &total_bytes));
        check(0, "device memory is full: %s needs %.3f GiB, free are %.3f of %.3f GiB; "
                 "reduce -b or -t", what, (double)bytes / (1 << 30), (double)free_bytes / (1 << 30),
              (double)total_bytes / (1 << 30));
    }
    check(status == cudaSuccess, "cudaMalloc for %s: %s", what, cudaGetErrorString(status));
    return memory;
}

// ---------------------------------------------------------------------------------------------
// The storage types

HOST_DEVICE static inline float to_float(float x) { return x; }
HOST_DEVICE static inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// from_float<Real>(x): rounds to nearest, ties to even
template <typename Real> HOST_DEVICE static inline Real from_float(float x);
template <> HOST_DEVICE inline float from_float<float>(float x) { return x; }
template <> HOST_DEVICE inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// 16 bytes of a tensor, the most that one load or store moves: 4 floats or 8 BF16. Addresses are
// multiples of 16 bytes; the launchers check that the sizes make them so.
template <typename Real> struct alignas(16) Vec {
    static constexpr int size = 16 / sizeof(Real);
    Real at[16 / sizeof(Real)];
};

template <typename Real> __device__ static inline Vec<Real> vec_from_bits(uint4 bits) {
    Vec<Real> x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

template <typename Real> __device__ static inline uint4 vec_bits(Vec<Real> x) {
    uint4 bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

template <typename Real> __device__ static inline Vec<Real> vec_load(const Real* from) {
    return vec_from_bits<Real>(*(const uint4*)from);
}

template <typename Real> __device__ static inline void vec_store(Real* to, Vec<Real> x) {
    *(uint4*)to = vec_bits(x);
}

// The streaming variants mark the data as the first to leave the cache: for what is used once.
template <typename Real> __device__ static inline Vec<Real> vec_load_streaming(const Real* from) {
    return vec_from_bits<Real>(__ldcs((const uint4*)from));
}

template <typename Real> __device__ static inline void vec_store_streaming(Real* to, Vec<Real> x) {
    __stcs((uint4*)to, vec_bits(x));
}

// exp for a result of type Real. For BF16, which rounds to 2^-8, the hardware's exponential is
// exact enough: its relative error is at most (2 + 1.2 |x|) * 2^-23 [CUDA C++ Programming Guide].
template <typename Real> __device__ static inline float exp_for(float x);
template <> __device__ inline float exp_for<float>(float x) { return expf(x); }
template <> __device__ inline float exp_for<__nv_bfloat16>(float x) { return __expf(x); }

// ---------------------------------------------------------------------------------------------
// Sums over threads

// All 32 lanes take part and get the result, with the same bits: each step adds the same pair of
// numbers in both lanes.
__device__ static inline float warp_sum(float x) {
    for (int stride = 16; stride > 0; stride /= 2) { x += __shfl_xor_sync(0xffffffffu, x, stride); }
    return x;
}

__device__ static inline float warp_max(float x) {
    for (int stride = 16; stride > 0; stride /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, stride));
    }
    return x;
}

// All threads of a one-dimensional block of whole warps take part and get the result. `shared` may
// be used again right after the call.
__device__ static inline float block_sum(float x, float* shared /* (32) */) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) { shared[warp] = x; }
    __syncthreads();
    x = warp_sum(lane < warps ? shared[lane] : 0.0f);
    __syncthreads();
    return x;
}

// The same for the maximum. It drops NaN, as fmaxf does.
__device__ static inline float block_max(float x, float* shared /* (32) */) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    if (lane == 0) { shared[warp] = x; }
    __syncthreads();
    x = warp_max(lane < warps ? shared[lane] : -INFINITY);
    __syncthreads();
    return x;
}

// ---------------------------------------------------------------------------------------------
// Sums over rows
//
// The gradient of a bias is the sum of a column over all tokens. Atomic additions would make the
// order, and so the last bits, a matter of chance. Instead each block sums some of the rows and
// leaves a row of partial sums; this kernel then adds those up. Which rows a block sums depends on
// the shape only, so every GPU gives the same bits.

// A block is 32 columns x 32 warps; each warp sums every 32nd row of partials.
static __global__ void add_partial_sums_kernel(float* out, const float* partials, int rows,
                                               int cols) {
    __shared__ float sums[32][33];      // 33: the transposed reading below hits 32 different banks
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int col = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (col < cols) {
        #pragma unroll 8
        for (int row = warp; row < rows; row += 32) { sum += partials[(size_t)row * cols + col]; }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(sums[lane][warp]);   // now this warp holds one column
    col = blockIdx.x * 32 + warp;
    if (lane == 0 && col < cols) { out[col] += sum; }
}

// out (cols) += the sum over the rows of partials (rows, cols)
static inline void add_partial_sums(float* out, const float* partials, int rows, int cols,
                                    cudaStream_t stream) {
    add_partial_sums_kernel<<<CEIL_DIV(cols, 32), 1024, 0, stream>>>(out, partials, rows, cols);
    cudaCheck(cudaGetLastError());
}

#endif
