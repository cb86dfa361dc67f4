/*
The encoder: a token's embedding plus its position's embedding, and the gradient of both tables.

Forward reads one row of each table. Backward is the opposite, a sum over all places where a row was
used: per position over the batch, per token over its occurrences. So that no two threads add to the
same number, the host first sorts the occurrences by token (token_index_build); a block then sums
the occurrences of one token in a fixed order: no atomics, the same bits in every run.

A few tokens are far more frequent than others (a line break of a source text may be a third of
all), and one block would be busy with them long after the rest is done. So a list of occurrences is
cut into pieces of a fixed length. The pieces of a long list leave partial sums, which a second
launch of the same kernel adds up: to it they are occurrences. Where a list is cut depends on the
list alone, so that is the same order on every GPU.
*/
#ifndef LLMC_ENCODER_CUH
#define LLMC_ENCODER_CUH

#include "cuda_common.cuh"

#define ENCODER_ROWS 4      // that a block reads at a time, a warp each
#define ENCODER_PIECE 256   // occurrences of a token that a block sums, at most

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

// What a kernel adds up: sum i takes the rows of its input which stand in positions[firsts[i]] up
// to, but not including, positions[firsts[i + 1]], and goes to row targets[i] of its output; or, if
// that is negative, is the partial sum number -1 - targets[i].
typedef struct {
    int count;
    const int* positions;
    const int* targets;         // (count)
    const int* firsts;          // (count + 1)
} RowSums;

// The occurrences of each token in a batch (B,T), places in ascending order, as sums for the
// gradient of wte. First `pieces`: rows b*T + t of dout; then `wholes`: rows of partial sums, for
// the tokens that occur more than ENCODER_PIECE times.
typedef struct { RowSums pieces, wholes; } TokenIndex;

// Partial sums of N occurrences, at most: a token has them if it occurs more than ENCODER_PIECE
// times, and then less than twice as many as it has full pieces.
static inline size_t token_partials(int N) { return (size_t)2 * (N / ENCODER_PIECE); }

// Integers that the index of N = B*T tokens takes, at most.
static inline size_t token_index_size(int N) { return 3 * ((size_t)N + token_partials(N)) + 2; }

// The same index in a copy of its integers: they began at `index`, the copy begins at `copy`.
static inline RowSums row_sums_at(RowSums sums, const int* index, const int* copy) {
    sums.positions = copy + (sums.positions - index);
    sums.targets = copy + (sums.targets - index);
    sums.firsts = copy + (sums.firsts - index);
    return sums;
}

static inline TokenIndex token_index_at(TokenIndex tokens, const int* index, const int* copy) {
    tokens.pieces = row_sums_at(tokens.pieces, index, copy);
    tokens.wholes = row_sums_at(tokens.wholes, index, copy);
    return tokens;
}

// On the host: a counting sort. Writes the arrays of the index of inp (N), with tokens in
// 0 .. V - 1, one after the other, so that one copy brings them to the device. Returns the index,
// which is on the host.
static inline TokenIndex token_index_build(int* index /* (token_index_size(N)) */, const int* inp,
                                           int N, int V) {
    size_t most_partials = token_partials(N);
    int* positions = index;                             // (N)
    int* targets = positions + N;                       // (N)
    int* firsts = targets + N;                          // (N + 1)
    int* whole_positions = firsts + N + 1;              // (most_partials)
    int* whole_targets = whole_positions + most_partials;
    int* whole_firsts = whole_targets + most_partials;  // (most_partials + 1)
    int* next = (int*)xcalloc((size_t)V * sizeof(int), "token counts");     // (V)
    for (int i = 0; i < N; i++) {
        check(inp[i] >= 0 && inp[i] < V, "token %d is outside the vocabulary of %d", inp[i], V);
        next[inp[i]]++;
    }
    int pieces = 0, wholes = 0, partials = 0, first = 0;
    for (int token = 0; token < V; token++) {
        int count = next[token], is_long = count > ENCODER_PIECE;
        next[token] = first;
        if (is_long) {
            whole_targets[wholes] = token;
            whole_firsts[wholes] = partials;
            wholes++;
        }
        for (int done = 0; done < count; done += ENCODER_PIECE) {
            targets[pieces] = is_long ? -1 - partials : token;
            firsts[pieces] = first + done;
            pieces++;
            if (is_long) {
                whole_positions[partials] = partials;
                partials++;
            }
        }
        first += count;
    }
    firsts[pieces] = N;
    whole_firsts[wholes] = partials;
    for (int i = 0; i < N; i++) { positions[next[inp[i]]++] = i; }
    free(next);
    TokenIndex tokens;
    tokens.pieces.count = pieces;
    tokens.pieces.positions = positions;
    tokens.pieces.targets = targets;
    tokens.pieces.firsts = firsts;
    tokens.wholes.count = wholes;
    tokens.wholes.positions = whole_positions;
    tokens.wholes.targets = whole_targets;
    tokens.wholes.firsts = whole_firsts;
    return tokens;
}

// ---------------------------------------------------------------------------------------------
// Backward

// Adds what the warps of a block hold, in the order of the warps, into the columns of row (C) from
// c on, or stores it there if `overwrite` is set. Each lane holds one vector of columns, sum
// (Vec<Real>::size).
template <typename Real>
__device__ static inline void encoder_add_block(float* row, int overwrite, const float* sum, int c,
                                                int C) {
    __shared__ float sums[ENCODER_ROWS][32 * Vec<Real>::size];
    for (int k = 0; k < Vec<Real>::size; k++) {
        sums[threadIdx.y][threadIdx.x * Vec<Real>::size + k] = sum[k];
    }
    __syncthreads();
    int thread = threadIdx.y * 32 + threadIdx.x;
    for (int i = thread; i < 32 * Vec<Real>::size && c + i < C; i += 32 * ENCODER_ROWS) {
        float total = 0.0f;
        for (int y = 0; y < ENCODER_ROWS; y++) { total += sums[y][i]; }
        row[c + i] = overwrite ? total : row[c + i] + total;
    }
}

// A block owns 32 vectors of columns of one sum; warp y adds up every fourth of its rows.
template <typename Real>
static __global__ void row_sums_kernel(float* out /* (rows,C) */, float* partials /* (rows,C) */,
                                       const Real* inp /* (rows,C) */, RowSums sums, int C) {
    int first = sums.firsts[blockIdx.x], end = sums.firsts[blockIdx.x + 1];
    int target = sums.targets[blockIdx.x];
    int block_c = blockIdx.y * 32 * Vec<Real>::size;
    int c = block_c + threadIdx.x * Vec<Real>::size;
    float sum[Vec<Real>::size] = { 0.0f };
    if (c < C) {
        #pragma unroll 4
        for (int i = first + threadIdx.y; i < end; i += ENCODER_ROWS) {
            Vec<Real> x = vec_load(inp + (size_t)sums.positions[i] * C + c);
            for (int k = 0; k < Vec<Real>::size; k++) { sum[k] += to_float(x.at[k]); }
        }
    }
    int partial = target < 0;
    float* row = partial ? partials + (size_t)(-1 - target) * C : out + (size_t)target * C;
    encoder_add_block<Real>(row, partial, sum, block_c, C);
}

// Adds into rows of out, except for the partial sums, which are stored in partials.
template <typename Real>
static void row_sums(float* out, float* partials, const Real* inp, RowSums sums, int C,
                     cudaStream_t stream) {
    if (sums.count == 0) { return; }
    dim3 grid(sums.count, CEIL_DIV(C, 32 * Vec<Real>::size));
    row_sums_kernel<<<grid, dim3(32, ENCODER_ROWS), 0, stream>>>(out, partials, inp, sums, C);
    cudaCheck(cudaGetLastError());
}

// The sum for one position t, which occurs once in each of the B rows.
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
    encoder_add_block<Real>(dwpe + (size_t)t * C, 0, sum, block_c, C);
}

// Floats of scratch memory that encoder_backward of N = B*T tokens needs.
static inline size_t encoder_backward_scratch(int N, int C) { return token_partials(N) * C; }

// Adds into dwte (Vp,C) and dwpe (max_T,C) what dout (B,T,C) contributes. tokens: the index of the
// inputs that went forward, on the device. The classifier shares wte and adds to dwte too.
// scratch (encoder_backward_scratch(B*T, C)).
template <typename Real>
static void encoder_backward(float* dwte, float* dwpe, const Real* dout, TokenIndex tokens,
                             float* scratch, int B, int T, int C, cudaStream_t stream) {
    check(B > 0 && T > 0, "encoder of B = %d, T = %d", B, T);
    check(C > 0 && C % 16 == 0, "C = %d is not a multiple of 16", C);
    check(tokens.pieces.count > 0 && tokens.pieces.count <= B * T,
          "an index of %d pieces for %d tokens", tokens.pieces.count, B * T);
    row_sums(dwte, scratch, dout, tokens.pieces, C, stream);
    row_sums(dwte, (float*)NULL, (const float*)scratch, tokens.wholes, C, stream);
    dim3 positions(T, CEIL_DIV(C, 32 * Vec<Real>::size));
    wpe_backward_kernel<<<positions, dim3(32, ENCODER_ROWS), 0, stream>>>(dwpe, dout, B, T, C);
    cudaCheck(cudaGetLastError());
}

#endif
