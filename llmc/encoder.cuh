/*
The encoder: a token's embedding plus its position's embedding, and the gradient of both tables.

Forward reads one row of each table. Backward is the opposite, a sum over all places where a row was
used: per position over the batch, per token over its occurrences. So that no two threads add to the
same number, the host first sorts the occurrences by token (token_index_build); each token then has
one block, which sums in a fixed order: no atomics, the same bits in every run.
*/
#ifndef LLMC_ENCODER_CUH
#define LLMC_ENCODER_CUH

#include "cuda_common.cuh"

#define ENCODER_ROWS 4      // that a block reads at a time, a warp each

// ---------------------------------------------------------------------------------------------
// Forward

// A warp per row (b,t).
template <typename Real>
static __global__ void encoder_forward_kernel(Real* out, const int* inp, const Real* wte,
                                              const Real* wpe, int N, int T, int C) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= N) { return; }
    const Real* token = wte + (size_t)inp[row] * C;
    const Real* position = wpe + (size_t)(row % T) * C;
    for (int c = threadIdx.x * Vec<Real>::size; c < C; c += 32 * Vec<Real>::size) {
        Vec<Real> x = vec_load(token + c), p = vec_load(position + c);
        for (int k = 0; k < Vec<Real>::size; k++) {
            x.at[k] = from_float<Real>(to_float(x.at[k]) + to_float(p.at[k]));
        }
        vec_store(out + (size_t)row * C + c, x);
    }
}

// out (B,T,C) = wte (Vp,C) [inp (B,T)] + wpe (max_T,C) [t]. Tokens are in 0 .. Vp - 1; T <= max_T.
template <typename Real>
static void encoder_forward(Real* out, const int* inp, const Real* wte, const Real* wpe, int B,
                            int T, int C, cudaStream_t stream) {
    check(B > 0 && T > 0, "encoder of B = %d, T = %d", B, T);
    check(C > 0 && C % 16 == 0, "C = %d is not a multiple of 16", C);
    dim3 block(32, ENCODER_ROWS);
    encoder_forward_kernel<<<CEIL_DIV(B * T, ENCODER_ROWS), block, 0, stream>>>(out, inp, wte, wpe,
                                                                                 B * T, T, C);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// The occurrences of each token

// Token tokens[i] occurs at the places b*T + t that stand in positions[firsts[i]] up to, but not
// including, positions[firsts[i + 1]], in ascending order. Pointers on the device.
typedef struct {
    int distinct;               // number of different tokens
    const int* positions;       // (B*T)
    const int* tokens;          // (distinct), ascending
    const int* firsts;          // (distinct + 1)
} TokenIndex;

// Integers that the index of N = B*T tokens takes, at most.
static inline size_t token_index_size(int N) { return (size_t)3 * N + 1; }

// On the host: a counting sort. Writes the three arrays of the index of inp (N), with tokens in
// 0 .. V - 1, one after the other, so that one copy brings them to the device. Returns the number
// of different tokens.
static inline int token_index_build(int* index /* (token_index_size(N)) */, const int* inp, int N,
                                    int V) {
    int* positions = index;
    int* tokens = index + N;
    int* firsts = index + 2 * (size_t)N;
    int* next = (int*)xcalloc((size_t)V * sizeof(int), "token counts");     // (V)
    for (int i = 0; i < N; i++) {
        check(inp[i] >= 0 && inp[i] < V, "token %d is outside the vocabulary of %d", inp[i], V);
        next[inp[i]]++;
    }
    int distinct = 0, first = 0;
    for (int token = 0; token < V; token++) {
        int count = next[token];
        next[token] = first;
        if (count > 0) {
            tokens[distinct] = token;
            firsts[distinct] = first;
            distinct++;
        }
        first += count;
    }
    firsts[distinct] = N;
    for (int i = 0; i < N; i++) { positions[next[inp[i]]++] = i; }
    free(next);
    return distinct;
}

// The index whose arrays token_index_build wrote for N tokens; `index` is its copy on the device.
static inline TokenIndex token_index_view(const int* index, int N, int distinct) {
    TokenIndex view;
    view.distinct = distinct;
    view.positions = index;
    view.tokens = index + N;
    view.firsts = index + 2 * (size_t)N;
    return view;
}

// ---------------------------------------------------------------------------------------------
// Backward

// Adds what the warps of a block hold, in the order of the warps, into the columns of row (C) from
// c on. Each lane holds one vector of columns, sum (Vec<Real>::size).
template <typename Real>
__device__ static inline void encoder_add_block(float* row, const float* sum, int c, int C) {
    __shared__ float sums[ENCODER_ROWS][32 * Vec<Real>::size];
    for (int k = 0; k < Vec<Real>::size; k++) {
        sums[threadIdx.y][threadIdx.x * Vec<Real>::size + k] = sum[k];
    }
    __syncthreads();
    int thread = threadIdx.y * 32 + threadIdx.x;
    for (int i = thread; i < 32 * Vec<Real>::size && c + i < C; i += 32 * ENCODER_ROWS) {
        float total = 0.0f;
        for (int y = 0; y < ENCODER_ROWS; y++) { total += sums[y][i]; }
        row[c + i] += total;
    }
}

// A block owns 32 vectors of columns of one token's gradient; warp y sums every fourth occurrence.
template <typename Real>
static __global__ void wte_backward_kernel(float* dwte, const Real* dout, TokenIndex index, int C) {
    int first = index.firsts[blockIdx.x], end = index.firsts[blockIdx.x + 1];
    int block_c = blockIdx.y * 32 * Vec<Real>::size;
    int c = block_c + threadIdx.x * Vec<Real>::size;
    float sum[Vec<Real>::size] = { 0.0f };
    if (c < C) {
        #pragma unroll 4
        for (int i = first + threadIdx.y; i < end; i += ENCODER_ROWS) {
            Vec<Real> d = vec_load(dout + (size_t)index.positions[i] * C + c);
            for (int k = 0; k < Vec<Real>::size; k++) { sum[k] += to_float(d.at[k]); }
        }
    }
    encoder_add_block<Real>(dwte + (size_t)index.tokens[blockIdx.x] * C, sum, block_c, C);
}

// The same for one position t, which occurs once in each of the B rows.
template <typename Real>
static __global__ void wpe_backward_kernel(float* dwpe, const Real* dout, int B, int T, int C) {
    int t = blockIdx.x;
    int block_c = blockIdx.y * 32 * Vec<Real>::size;
    int c = block_c + threadIdx.x * Vec<Real>::size;
    float sum[Vec<Real>::size] = { 0.0f };
    if (c < C) {
        #pragma unroll 4
        for (int b = threadIdx.y; b < B; b += ENCODER_ROWS) {
            Vec<Real> d = vec_load(dout + ((size_t)b * T + t) * C + c);
            for (int k = 0; k < Vec<Real>::size; k++) { sum[k] += to_float(d.at[k]); }
        }
    }
    encoder_add_block<Real>(dwpe + (size_t)t * C, sum, block_c, C);
}

// Adds into dwte (Vp,C) and dwpe (max_T,C) what dout (B,T,C) contributes. index: of the inputs that
// went forward. The classifier shares wte and adds to dwte too.
template <typename Real>
static void encoder_backward(float* dwte, float* dwpe, const Real* dout, TokenIndex index, int B,
                             int T, int C, cudaStream_t stream) {
    check(B > 0 && T > 0, "encoder of B = %d, T = %d", B, T);
    check(C > 0 && C % 16 == 0, "C = %d is not a multiple of 16", C);
    check(index.distinct > 0 && index.distinct <= B * T, "an index of %d different tokens among %d",
          index.distinct, B * T);
    int column_blocks = CEIL_DIV(C, 32 * Vec<Real>::size);
    dim3 block(32, ENCODER_ROWS);
    dim3 tokens(index.distinct, column_blocks), positions(T, column_blocks);
    wte_backward_kernel<<<tokens, block, 0, stream>>>(dwte, dout, index, C);
    cudaCheck(cudaGetLastError());
    wpe_backward_kernel<<<positions, block, 0, stream>>>(dwpe, dout, B, T, C);
    cudaCheck(cudaGetLastError());
}

#endif
