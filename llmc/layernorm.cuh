/*
Layer normalization of the rows of a matrix, with the residual addition that precedes it, and both
backward:

    norm = (x - mean) * rstd        rstd = 1 / sqrt(mean((x - mean)^2) + 1e-5)
    out  = norm * weight + bias

    dnorm   = dout * weight
    dx      = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm))
    dweight = sum over rows of dout * norm
    dbias   = sum over rows of dout

with means over the row [Ba, Kiros, Hinton, "Layer Normalization", 2016]. The kernels are bound by
memory: they hold a row in registers, so that every tensor passes once.
*/
#ifndef LLMC_LAYERNORM_CUH
#define LLMC_LAYERNORM_CUH

#include "cuda_common.cuh"

#define LAYERNORM_EPSILON 1e-5f
#define LAYERNORM_SLOTS 3           // vectors of a row that a thread holds: 768 = 3 * 32 * 8
#define LAYERNORM_MAX_THREADS 512   // more would leave backward too few registers for its sums
#define LAYERNORM_BLOCKS 1024       // at most so many partial sums in backward, whatever the GPU

// Who works on a row: up to 768 columns of BF16 (384 of float) one warp, with four rows to a block;
// beyond that a block of as many warps as it takes, up to 12288 (6144) columns. Slot s of a thread
// holds the columns from (s * blockDim.x + threadIdx.x) * Vec<Real>::size on.
template <typename Real> static inline dim3 layernorm_block(int N, int C) {
    int largest = LAYERNORM_MAX_THREADS * LAYERNORM_SLOTS * Vec<Real>::size;
    check(N > 0, "layernorm of N = %d rows", N);
    check(C > 0 && C % 16 == 0 && C <= largest, "layernorm of C = %d channels: not a multiple of "
          "16 up to %d", C, largest);
    int warps = CEIL_DIV(C / Vec<Real>::size, 32 * LAYERNORM_SLOTS);
    return warps == 1 ? dim3(32, 4) : dim3(32 * warps, 1);
}

// Sum over the threads of a row.
__device__ static inline float row_sum(float x, float* shared /* (32) */) {
    return blockDim.x == 32 ? warp_sum(x) : block_sum(x, shared);
}

// ---------------------------------------------------------------------------------------------
// Forward

// inp2 and residual_out are either both given or both NULL.
template <typename Real>
static __global__ void __launch_bounds__(LAYERNORM_MAX_THREADS)
layernorm_forward_kernel(Real* residual_out, Real* out, float* mean, float* rstd, const Real* inp1,
                         const Real* inp2, const Real* weight, const Real* bias, int N, int C) {
    __shared__ float shared[32];
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= N) { return; }
    size_t first = (size_t)row * C;

    Vec<Real> x[LAYERNORM_SLOTS];
    float sum = 0.0f;
    #pragma unroll
    for (int s = 0; s < LAYERNORM_SLOTS; s++) {
        int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
        if (c >= C) { continue; }
        x[s] = vec_load(inp1 + first + c);
        if (inp2 != NULL) {
            Vec<Real> y = vec_load(inp2 + first + c);
            for (int k = 0; k < Vec<Real>::size; k++) {
                x[s].at[k] = from_float<Real>(to_float(x[s].at[k]) + to_float(y.at[k]));
            }
        }
        for (int k = 0; k < Vec<Real>::size; k++) { sum += to_float(x[s].at[k]); }
    }
    float m = row_sum(sum, shared) / C;

    float squares = 0.0f;
    #pragma unroll
    for (int s = 0; s < LAYERNORM_SLOTS; s++) {
        int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
        if (c >= C) { continue; }
        for (int k = 0; k < Vec<Real>::size; k++) {
            float deviation = to_float(x[s].at[k]) - m;
            squares += deviation * deviation;
        }
    }
    float r = 1.0f / sqrtf(row_sum(squares, shared) / C + LAYERNORM_EPSILON);

    #pragma unroll
    for (int s = 0; s < LAYERNORM_SLOTS; s++) {
        int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
        if (c >= C) { continue; }
        Vec<Real> w = vec_load(weight + c), b = vec_load(bias + c), y;
        for (int k = 0; k < Vec<Real>::size; k++) {
            float norm = (to_float(x[s].at[k]) - m) * r;
            y.at[k] = from_float<Real>(norm * to_float(w.at[k]) + to_float(b.at[k]));
        }
        if (inp2 != NULL) { vec_store(residual_out + first + c, x[s]); }
        vec_store(out + first + c, y);
    }
    if (threadIdx.x == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}

// out (N,C) = layernorm of inp (N,C); mean (N) and rstd (N) are for backward. weight, bias (C).
template <typename Real>
static void layernorm_forward(Real* out, float* mean, float* rstd, const Real* inp,
                              const Real* weight, const Real* bias, int N, int C,
                              cudaStream_t stream) {
    dim3 block = layernorm_block<Real>(N, C);
    layernorm_forward_kernel<<<CEIL_DIV(N, (int)block.y), block, 0, stream>>>(
        (Real*)NULL, out, mean, rstd, inp, (const Real*)NULL, weight, bias, N, C);
    cudaCheck(cudaGetLastError());
}

// residual_out (N,C) = inp1 + inp2, both (N,C); out (N,C) = layernorm of the residual as stored,
// that is rounded, because this is what backward will read. residual_out may be inp1 or inp2.
template <typename Real>
static void fused_residual_layernorm_forward(Real* residual_out, Real* out, float* mean,
                                             float* rstd, const Real* inp1, const Real* inp2,
                                             const Real* weight, const Real* bias, int N, int C,
                                             cudaStream_t stream) {
    dim3 block = layernorm_block<Real>(N, C);
    layernorm_forward_kernel<<<CEIL_DIV(N, (int)block.y), block, 0, stream>>>(
        residual_out, out, mean, rstd, inp1, inp2, weight, bias, N, C);
    cudaCheck(cudaGetLastError());
}

template <typename Real>
static __global__ void residual_forward_kernel(Real* out, const Real* inp1, const Real* inp2,
                                               size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * Vec<Real>::size;
    if (i >= n) { return; }
    Vec<Real> x = vec_load(inp1 + i), y = vec_load(inp2 + i);
    for (int k = 0; k < Vec<Real>::size; k++) {
        x.at[k] = from_float<Real>(to_float(x.at[k]) + to_float(y.at[k]));
    }
    vec_store(out + i, x);
}

// out (n) = inp1 (n) + inp2 (n): a residual addition without a layernorm behind it. out may be one
// of the inputs.
template <typename Real>
static void residual_forward(Real* out, const Real* inp1, const Real* inp2, size_t n,
                             cudaStream_t stream) {
    check(n > 0 && n % 16 == 0, "residual of %zu values: not a multiple of 16", n);
    size_t blocks = CEIL_DIV(n / Vec<Real>::size, 256);
    residual_forward_kernel<<<(unsigned)blocks, 256, 0, stream>>>(out, inp1, inp2, n);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Backward

// The threads of a row keep the sums of their columns in registers over all rows they visit. At the
// end the warps of a block hand them on, through shared memory, from first to last, and the last
// one writes the block's row of partials.
template <typename Real>
static __global__ void __launch_bounds__(LAYERNORM_MAX_THREADS)
layernorm_backward_kernel(Real* dinp, float* dweight_partials, float* dbias_partials,
                          const Real* dout, const Real* inp, const Real* weight, const float* mean,
                          const float* rstd, int N, int C) {
    __shared__ float shared[32];
    __shared__ float handed_on[2][32 * LAYERNORM_SLOTS * Vec<Real>::size];  // of one warp's row
    float dweight[LAYERNORM_SLOTS][Vec<Real>::size], dbias[LAYERNORM_SLOTS][Vec<Real>::size];
    #pragma unroll
    for (int s = 0; s < LAYERNORM_SLOTS; s++) {
        for (int k = 0; k < Vec<Real>::size; k++) { dweight[s][k] = dbias[s][k] = 0.0f; }
    }
    for (int row = blockIdx.x * blockDim.y + threadIdx.y; row < N; row += gridDim.x * blockDim.y) {
        size_t first = (size_t)row * C;
        float m = mean[row], r = rstd[row];
        Vec<Real> x[LAYERNORM_SLOTS], d[LAYERNORM_SLOTS];
        #pragma unroll
        for (int s = 0; s < LAYERNORM_SLOTS; s++) {
            int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
            if (c >= C) { continue; }
            d[s] = vec_load(dout + first + c);
            x[s] = vec_load(inp + first + c);
        }
        float sum = 0.0f, sum_norm = 0.0f;      // of dnorm, and of dnorm * norm
        #pragma unroll
        for (int s = 0; s < LAYERNORM_SLOTS; s++) {
            int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
            if (c >= C) { continue; }
            Vec<Real> w = vec_load(weight + c);
            for (int k = 0; k < Vec<Real>::size; k++) {
                float norm = (to_float(x[s].at[k]) - m) * r;
                float dnorm = to_float(d[s].at[k]) * to_float(w.at[k]);
                sum += dnorm;
                sum_norm += dnorm * norm;
                dweight[s][k] += to_float(d[s].at[k]) * norm;
                dbias[s][k] += to_float(d[s].at[k]);
            }
        }
        float mean_dnorm = row_sum(sum, shared) / C;
        float mean_dnorm_norm = row_sum(sum_norm, shared) / C;
        #pragma unroll
        for (int s = 0; s < LAYERNORM_SLOTS; s++) {
            int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
            if (c >= C) { continue; }
            Vec<Real> w = vec_load(weight + c), old = vec_load(dinp + first + c);
            for (int k = 0; k < Vec<Real>::size; k++) {
                float norm = (to_float(x[s].at[k]) - m) * r;
                float dnorm = to_float(d[s].at[k]) * to_float(w.at[k]);
                float dx = r * (dnorm - mean_dnorm - norm * mean_dnorm_norm);
                x[s].at[k] = from_float<Real>(to_float(old.at[k]) + dx);
            }
        }
        #pragma unroll
        for (int s = 0; s < LAYERNORM_SLOTS; s++) {
            int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
            if (c < C) { vec_store(dinp + first + c, x[s]); }
        }
    }

    float* dweight_out = dweight_partials + (size_t)blockIdx.x * C;
    float* dbias_out = dbias_partials + (size_t)blockIdx.x * C;
    for (int y = 0; y < blockDim.y; y++) {
        int last = y == blockDim.y - 1;
        #pragma unroll
        for (int s = 0; s < LAYERNORM_SLOTS; s++) {
            int c = (s * blockDim.x + threadIdx.x) * Vec<Real>::size;
            if (threadIdx.y != y || c >= C) { continue; }
            for (int k = 0; k < Vec<Real>::size; k++) {
                float w = dweight[s][k] + (y > 0 ? handed_on[0][c + k] : 0.0f);
                float b = dbias[s][k] + (y > 0 ? handed_on[1][c + k] : 0.0f);
                *(last ? &dweight_out[c + k] : &handed_on[0][c + k]) = w;
                *(last ? &dbias_out[c + k] : &handed_on[1][c + k]) = b;
            }
        }
        __syncthreads();
    }
}

// Floats of scratch memory that layernorm_backward needs.
static inline size_t layernorm_backward_scratch(int C) { return (size_t)2 * LAYERNORM_BLOCKS * C; }

// Adds into all three outputs: dinp (N,C), where two branches of the residual stream meet, and
// dweight (C), dbias (C), which collect micro-batches. dout, inp (N,C); inp is what went forward,
// with its mean (N) and rstd (N). scratch (layernorm_backward_scratch(C)).
template <typename Real>
static void layernorm_backward(Real* dinp, float* dweight, float* dbias, const Real* dout,
                               const Real* inp, const Real* weight, const float* mean,
                               const float* rstd, float* scratch, int N, int C,
                               cudaStream_t stream) {
    dim3 block = layernorm_block<Real>(N, C);
    int blocks = CEIL_DIV(N, (int)block.y);
    if (blocks > LAYERNORM_BLOCKS) { blocks = LAYERNORM_BLOCKS; }
    float* dweight_partials = scratch;                              // (blocks, C)
    float* dbias_partials = scratch + (size_t)blocks * C;           // (blocks, C)
    layernorm_backward_kernel<<<blocks, block, 0, stream>>>(dinp, dweight_partials, dbias_partials,
                                                            dout, inp, weight, mean, rstd, N, C);
    cudaCheck(cudaGetLastError());
    add_partial_sums(dweight, dweight_partials, blocks, C, stream);
    add_partial_sums(dbias, dbias_partials, blocks, C, stream);
}

#endif
