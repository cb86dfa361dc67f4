/*
The bias of a linear layer: added to every row of the GEMM's output, and backward the sum over the
rows of its gradient.
*/
#ifndef LLMC_BIAS_CUH
#define LLMC_BIAS_CUH

#include "cuda_common.cuh"

// Both kernels give a block 32 vectors of columns (threadIdx.x) and let its 8 warps (threadIdx.y)
// walk down the rows, so that a warp reads 512 consecutive bytes.
#define BIAS_WARPS 8
#define BIAS_ADD_ROWS 4             // rows per warp, forward
#ifndef BIAS_BACKWARD_BLOCKS        // what another order of sums does to a run: dev/gpu_ranks.sh
#define BIAS_BACKWARD_BLOCKS 512    // at most so many partial sums per column, whatever the GPU
#endif

static inline void bias_check(int N, int OC) {
    check(N > 0, "bias for N = %d rows", N);
    check(OC > 0 && OC % 16 == 0, "bias of OC = %d channels: not a multiple of 16", OC);
}

template <typename Real>
static __global__ void bias_add_kernel(Real* out, const Real* bias, int N, int OC) {
    int c = (blockIdx.y * 32 + threadIdx.x) * Vec<Real>::size;
    if (c >= OC) { return; }
    Vec<Real> b = vec_load(bias + c), x[BIAS_ADD_ROWS];
    int first = blockIdx.x * BIAS_WARPS * BIAS_ADD_ROWS + threadIdx.y;
    #pragma unroll
    for (int i = 0; i < BIAS_ADD_ROWS; i++) {
        int row = first + i * BIAS_WARPS;
        if (row < N) { x[i] = vec_load(out + (size_t)row * OC + c); }
    }
    #pragma unroll
    for (int i = 0; i < BIAS_ADD_ROWS; i++) {
        int row = first + i * BIAS_WARPS;
        if (row >= N) { continue; }
        for (int k = 0; k < Vec<Real>::size; k++) {
            x[i].at[k] = from_float<Real>(to_float(x[i].at[k]) + to_float(b.at[k]));
        }
        vec_store(out + (size_t)row * OC + c, x[i]);
    }
}

// out (N,OC) += bias (OC) in every row, rounded to Real.
template <typename Real>
static void bias_add(Real* out, const Real* bias, int N, int OC, cudaStream_t stream) {
    bias_check(N, OC);
    dim3 block(32, BIAS_WARPS);
    dim3 grid(CEIL_DIV(N, BIAS_WARPS * BIAS_ADD_ROWS), CEIL_DIV(OC, 32 * Vec<Real>::size));
    bias_add_kernel<<<grid, block, 0, stream>>>(out, bias, N, OC);
    cudaCheck(cudaGetLastError());
}

// One row of partials per block in x; its warps take every (8 * gridDim.x)-th row, and are then
// added in the order of their numbers.
template <typename Real>
static __global__ void bias_backward_kernel(float* partials, const Real* dout, int N, int OC) {
    __shared__ float sums[BIAS_WARPS][32 * Vec<Real>::size];
    int block_c = blockIdx.y * 32 * Vec<Real>::size;
    int c = block_c + threadIdx.x * Vec<Real>::size;
    int stride = gridDim.x * BIAS_WARPS;
    float sum[Vec<Real>::size] = { 0.0f };
    if (c < OC) {
        #pragma unroll 4
        for (int row = blockIdx.x * BIAS_WARPS + threadIdx.y; row < N; row += stride) {
            Vec<Real> d = vec_load(dout + (size_t)row * OC + c);
            for (int k = 0; k < Vec<Real>::size; k++) { sum[k] += to_float(d.at[k]); }
        }
    }
    for (int k = 0; k < Vec<Real>::size; k++) {
        sums[threadIdx.y][threadIdx.x * Vec<Real>::size + k] = sum[k];
    }
    __syncthreads();
    int i = threadIdx.y * 32 + threadIdx.x;     // as many threads as columns, or more
    if (i < 32 * Vec<Real>::size && block_c + i < OC) {
        float total = 0.0f;
        for (int y = 0; y < BIAS_WARPS; y++) { total += sums[y][i]; }
        partials[(size_t)blockIdx.x * OC + block_c + i] = total;
    }
}

// Floats of scratch memory that bias_backward needs.
static inline size_t bias_backward_scratch(int OC) { return (size_t)BIAS_BACKWARD_BLOCKS * OC; }

// dbias (OC) += the column sums of dout (N,OC). scratch (bias_backward_scratch(OC)).
template <typename Real>
static void bias_backward(float* dbias, const Real* dout, float* scratch, int N, int OC,
                          cudaStream_t stream) {
    bias_check(N, OC);
    int blocks = CEIL_DIV(N, BIAS_WARPS);
    if (blocks > BIAS_BACKWARD_BLOCKS) { blocks = BIAS_BACKWARD_BLOCKS; }
    dim3 block(32, BIAS_WARPS), grid(blocks, CEIL_DIV(OC, 32 * Vec<Real>::size));
    bias_backward_kernel<<<grid, block, 0, stream>>>(scratch, dout, N, OC);
    cudaCheck(cudaGetLastError());
    add_partial_sums(dbias, scratch, blocks, OC, stream);
}

#endif
