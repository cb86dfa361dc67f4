/*
Causal self-attention, forward and backward. For each of B*NH heads, with Q, K, V of shape (T,HS):

    S = scale Q K^T      scale = 1/sqrt(HS)
    P = softmax of each row of S, over the keys up to the query
    O = P V

S and P are (T,T): at T = 1024 and HS = 64 each is sixteen times as large as Q, and moving them to
memory and back takes longer than computing them. Flash attention (Dao et al., arXiv 2205.14135 and 2307.08691)
never stores them. A block of threads owns some queries and streams the keys and values through
shared memory, one tile at a time:

                     keys ->    tile 0   tile 1   tile 2
    queries that    +---------+--------+--------+ .  .
    this block owns |         |   S of one tile |      nothing is computed behind the diagonal; only
                    +---------+--------+--------+      tiles that it cuts are masked

Softmax needs the maximum m of a row and the sum l of exp(s - m) before the row is complete. "Online
softmax" keeps both for the keys so far. When a tile raises the maximum from m to m', all that was
collected before had the wrong offset, and one factor corrects it:

    l <- l exp(m - m') + sum exp(s - m'),        O <- O exp(m - m') + exp(s - m') V

At the end O / l is the output. For the backward pass each row leaves one number, lse = m + log l:
P = exp(S - lse) then comes back from Q and K in one step.

Backward, with delta = rowsum(dO * O), the part of softmax's derivative that all keys share:

    dV = P^T dO,   dP = dO V^T,   dS = P (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q

dQ sums over keys, dK and dV over queries. One kernel owns queries and streams keys, another owns
keys and streams queries; the owner keeps the sum in registers and stores it once. Both compute S
and dP, which makes 7 matrix products. A single kernel would need 5, but its blocks would have to
add to dQ with atomics, in an order that changes from run to run. Here every sum has one order: two
runs give the same bits.

Where BF16 tensors are rounded (S, P, dP, m, l, lse, delta and all sums are FP32):

    forward     exp(s - m) before it multiplies V, but not in the sum l;  O / l when stored
    backward    P before it multiplies dO;  dS before it multiplies K or Q;  dQ, dK, dV when stored

m is the maximum of this tile of keys and those before it; the CPU program rounds relative to the same
one (KEY_TILE in layers_cpu.h).

BF16 tensors use the tensor cores (sm_80 or newer), at head sizes 16, 32, 64, 80, 96 and 128. Float
tensors use plain arithmetic, a warp for each row, at all multiples of 16 up to 128.
*/
#ifndef LLMC_ATTENTION_CUH
#define LLMC_ATTENTION_CUH

#include <math.h>
#include "cuda_common.cuh"

// ---------------------------------------------------------------------------------------------
// The instructions that C does not have

// Four 8x8 matrices of BF16 from shared memory. Lane 8i+r gives the address of row r of matrix i,
// 16 bytes. Lane l receives elements 2(l%4) and 2(l%4)+1 of row l/4 of matrix i in to[i].
__device__ static inline void matrices_load(uint32_t to[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

// The same with each matrix transposed: lane l receives rows 2(l%4) and 2(l%4)+1 of column l/4.
__device__ static inline void matrices_load_transposed(uint32_t to[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

// The tensor cores: c (16,8) += a (16,16) @ b (16,8), spread over a warp as drawn below.
__device__ static inline void multiply_add(float c[4], const uint32_t a[4], uint32_t b0,
                                           uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 or 4 bytes from global to shared memory in the background. If not `inside`, reads
// nothing and writes zeros. copy_async_wait waits for all copies that this thread has begun.
__device__ static inline void copy_async_16(void* to, const void* from, int inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

__device__ static inline void copy_async_4(void* to, const void* from, int inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 4 : 0)
                 : "memory");
}

__device__ static inline void copy_async_wait(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// 2^x within 2 units in the last place; results below 2^-126 become 0.
__device__ static inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two BF16, rounded to nearest, in one register; the first in the lower half.
__device__ static inline uint32_t bf16_pair(float first, float second) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

// ---------------------------------------------------------------------------------------------
// Fragments: how a 16x16 matrix lies in the registers of a warp
//
// Cut it into four 8x8 quarters, numbered down and then right:      rows 0-7  | 0 | 2 |
//                                                                   rows 8-15 | 1 | 3 |
//
//   left operand a   uint32_t a[4]: a[i] is quarter i; lane l has row l/4, columns 2(l%4), 2(l%4)+1
//   right operand b  uint32_t b[4]: b[i] is quarter i; lane l has column l/4, rows 2(l%4), 2(l%4)+1
//   sum c            float c[2][4]: c[0] is quarters 0 and 1, c[1] is 2 and 3, 2 elements of each;
//                    the lanes as in a left operand
//
//   left, sum:  columns  01 23 45 67               right:  rows 01   lanes  0  4  8 12 16 20 24 28
//       row 0   lanes     0  1  2  3                            23          1  5  9 13 17 21 25 29
//       row 1             4  5  6  7   and so on                45          2  6 10 14 18 22 26 30
//
// So a sum becomes a left operand by rounding, without leaving its lane: S turns into the P of P V.
// The dK, dV kernel computes S^T = K Q^T, because P^T and dS^T have to be left operands there.

#define LOG2_E 1.44269504f              // exp(x) = 2^(x log2(e)); the hardware has only powers of 2
#define ATTENTION_WARPS 4
#define ATTENTION_THREADS (32 * ATTENTION_WARPS)

// A warp owns this many bands of 16 rows. With two, each fragment from shared memory is used twice;
// above HS 64 there are registers for one only.
__host__ __device__ static constexpr int attention_bands(int HS) { return HS <= 64 ? 2 : 1; }
__host__ __device__ static constexpr int attention_owned(int HS) {      // rows of a block
    return 16 * attention_bands(HS) * ATTENTION_WARPS;
}

// Rows of a streamed tile. At HS 128 the backward kernels have to stay within the 99 KiB of shared
// memory that a block can have on consumer GPUs.
#define FORWARD_TILE 64
__host__ __device__ static constexpr int backward_tile(int HS) { return HS <= 96 ? 64 : 32; }

// Distance between rows in shared memory, in elements: an odd multiple of 16 bytes, so that the 8
// rows of a matrix that is loaded lie in different banks.
__host__ __device__ static constexpr int attention_pitch(int HS) { return HS + 8; }

// Row and column of element e of part n of a sum: c[n][e].
__device__ static inline int sum_row(int e) { return threadIdx.x % 32 / 4 + e / 2 * 8; }
__device__ static inline int sum_column(int n, int e) {
    return 8 * n + threadIdx.x % 4 * 2 + e % 2;
}

// The fragment whose first row and column are at `from`, in shared memory: as a left operand, as a
// right operand, and as a right operand after transposing it, as K is in Q K^T.
template <int HS>
__device__ static inline void left_load(uint32_t a[4], const __nv_bfloat16* from) {
    int lane = threadIdx.x % 32;
    matrices_load(a, from + lane % 16 * attention_pitch(HS) + lane / 16 * 8);
}

template <int HS>
__device__ static inline void right_load(uint32_t b[4], const __nv_bfloat16* from) {
    int lane = threadIdx.x % 32;
    matrices_load_transposed(b, from + lane % 16 * attention_pitch(HS) + lane / 16 * 8);
}

template <int HS>
__device__ static inline void right_load_transposed(uint32_t b[4], const __nv_bfloat16* from) {
    int lane = threadIdx.x % 32;
    matrices_load(b, from + (lane / 16 * 8 + lane % 8) * attention_pitch(HS) + lane / 8 % 2 * 8);
}

__device__ static inline void left_from_sum(uint32_t a[4], float c[2][4]) {
    for (int i = 0; i < 4; i++) { a[i] = bf16_pair(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]); }
}

// c += a @ b
__device__ static inline void product_add(float c[2][4], const uint32_t a[4], const uint32_t b[4]) {
    multiply_add(c[0], a, b[0], b[1]);
    multiply_add(c[1], a, b[2], b[3]);
}

// ---------------------------------------------------------------------------------------------
// What the three BF16 kernels share

// Begins to copy `rows` rows of a head, from row `first` on, to shared memory: tile (rows,pitch).
// Rows from T on become zero. from (T,HS), its rows `stride` elements apart.
template <int HS>
__device__ static inline void tile_copy(__nv_bfloat16* tile, const __nv_bfloat16* from, int stride,
                                        int first, int rows, int T) {
    from += (size_t)first * stride;
    #pragma unroll
    for (int j = 0; j < rows * (HS / 8) / ATTENTION_THREADS; j++) {
        int i = j * ATTENTION_THREADS + threadIdx.x, row = i / (HS / 8), column = i % (HS / 8) * 8;
        copy_async_16(tile + row * attention_pitch(HS) + column, from + row * stride + column,
                      first + row < T);
    }
}

// The same for two tensors used together, K and V or Q and dO: pair (2,rows,pitch).
template <int HS>
__device__ static inline void pair_copy(__nv_bfloat16* pair, const __nv_bfloat16* one,
                                        int one_stride, const __nv_bfloat16* two, int two_stride,
                                        int first, int rows, int T) {
    tile_copy<HS>(pair, one, one_stride, first, rows, T);
    tile_copy<HS>(pair + rows * attention_pitch(HS), two, two_stride, first, rows, T);
}

// Rounds and stores the sums of 16 rows, from row `first` on, times a factor: factor[0] for the
// rows with sum_row below 8, factor[1] for the others. They pass through `scratch` (16,pitch),
// shared memory that only this warp uses, to leave in pieces of 16 bytes. to (T,HS), its rows
// `stride` apart.
template <int HS>
__device__ static inline void rows_store(__nv_bfloat16* to, int stride, int first, int T,
                                         float c[HS / 8][4], const float factor[2],
                                         __nv_bfloat16* scratch) {
    __syncwarp();
    #pragma unroll
    for (int i = 0; i < HS / 4; i++) {
        int n = i / 2, e = i % 2 * 2;
        __nv_bfloat16* at = scratch + sum_row(e) * attention_pitch(HS) + sum_column(n, e);
        *(uint32_t*)at = bf16_pair(c[n][e] * factor[i % 2], c[n][e + 1] * factor[i % 2]);
    }
    __syncwarp();
    for (int i = threadIdx.x % 32; i < 16 * (HS / 8); i += 32) {
        int row = i / (HS / 8), column = i % (HS / 8) * 8;
        if (first + row < T) {
            vec_store(to + (size_t)(first + row) * stride + column,
                      vec_load(scratch + row * attention_pitch(HS) + column));
        }
    }
}

// The grid is (heads of a group, blocks of rows, groups of heads). Blocks start in this order:
// those of one group run together and find its K and V in the L2 cache, and in a group the
// heaviest, which the kernels give the lowest blockIdx.y, start first. In the last group some
// blocks may have no head.
#define HEADS_OF_A_GROUP 32

static inline dim3 attention_grid(int heads, int T, int owned) {
    int group = heads < HEADS_OF_A_GROUP ? heads : HEADS_OF_A_GROUP;
    return dim3((unsigned)group, (unsigned)CEIL_DIV(T, owned), (unsigned)CEIL_DIV(heads, group));
}

__device__ static inline int attention_head(void) { return blockIdx.z * gridDim.x + blockIdx.x; }

// ---------------------------------------------------------------------------------------------
// Forward

// Online softmax for 16 rows. s (16,FORWARD_TILE) comes with q k, -infinity where masked, and
// leaves with exp(scale (q k - row_max)). row_max is the maximum of q k so far; row_sum and o
// belong to it and are corrected when it grows. The 4 lanes that share a row have the same row_max,
// but each only its own part of row_sum. scale_log2 = scale log2(e).
template <int HS>
__device__ static inline void softmax_online(float s[FORWARD_TILE / 8][4], float o[HS / 8][4],
                                             float row_max[2], float row_sum[2], float scale_log2) {
    #pragma unroll
    for (int half = 0; half < 2; half++) {          // rows with sum_row below 8, and the others
        int e = 2 * half;
        float largest = row_max[half], sum = 0.0f;
        for (int n = 0; n < FORWARD_TILE / 8; n++) {
            largest = fmaxf(largest, fmaxf(s[n][e], s[n][e + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        float correction = exp2_fast((row_max[half] - largest) * scale_log2);
        for (int n = 0; n < FORWARD_TILE / 8; n++) {
            s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, -largest * scale_log2));
            s[n][e + 1] = exp2_fast(fmaf(s[n][e + 1], scale_log2, -largest * scale_log2));
            sum += s[n][e] + s[n][e + 1];
        }
        for (int n = 0; n < HS / 8; n++) {
            o[n][e] *= correction;
            o[n][e + 1] *= correction;
        }
        row_sum[half] = row_sum[half] * correction + sum;
        row_max[half] = largest;
    }
}

// Divides the sums by the sum of their row and stores them, and lse (T) of this head.
template <int HS>
__device__ static inline void forward_store(__nv_bfloat16* out, float* lse, int stride, int first,
                                            int T, float o[HS / 8][4], const float row_max[2],
                                            const float row_sum[2], float scale,
                                            __nv_bfloat16* scratch) {
    float factor[2];
    for (int half = 0; half < 2; half++) {
        int query = first + sum_row(2 * half);
        float sum = row_sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        factor[half] = 1.0f / sum;
        if (query < T && threadIdx.x % 4 == 0) { lse[query] = row_max[half] * scale + logf(sum); }
    }
    rows_store<HS>(out, stride, first, T, o, factor, scratch);
}

// A block owns attention_owned(HS) queries and streams the keys up to the diagonal: tiles of K and
// V. Registers hold Q, O and the softmax statistics of the 16 or 32 queries of a warp.
template <int HS>
__global__ static void __launch_bounds__(ATTENTION_THREADS, 2)
attention_forward_kernel(__nv_bfloat16* out /* (B,T,NH,HS) */, float* lse /* (B,NH,T) */,
                         const __nv_bfloat16* qkv /* (B,T,3,NH,HS) */, int B, int T, int NH,
                         float scale) {
    constexpr int BANDS = attention_bands(HS), OWNED = attention_owned(HS), TILE = FORWARD_TILE;
    constexpr int PITCH = attention_pitch(HS), STAGE = 2 * TILE * PITCH;
    extern __shared__ __align__(16) __nv_bfloat16 shared[];     // q (OWNED,PITCH); 2 stages of k, v
    int head = attention_head(), out_stride = NH * HS, stride = 3 * NH * HS;
    if (head >= B * NH) { return; }
    const __nv_bfloat16* q = qkv + (size_t)(head / NH) * T * stride + head % NH * HS;
    const __nv_bfloat16* k = q + out_stride;
    const __nv_bfloat16* v = k + out_stride;
    int block_first = (int)(gridDim.y - 1 - blockIdx.y) * OWNED;    // the last queries see most
    int own_row = threadIdx.x / 32 * 16 * BANDS;
    int first = block_first + own_row, last = first + 16 * BANDS - 1;       // queries of this warp
    int keys = min(block_first + OWNED, T);
    __nv_bfloat16* own = shared + own_row * PITCH;
    __nv_bfloat16* stages = shared + OWNED * PITCH;

    tile_copy<HS>(shared, q, stride, block_first, OWNED, T);
    pair_copy<HS>(stages, k, stride, v, stride, 0, TILE, T);
    copy_async_wait();
    __syncthreads();
    uint32_t q_own[BANDS][HS / 16][4];
    float o[BANDS][HS / 8][4] = { 0 }, row_max[BANDS][2], row_sum[BANDS][2] = { 0 };
    #pragma unroll
    for (int m = 0; m < BANDS; m++) {
        row_max[m][0] = row_max[m][1] = -INFINITY;
        for (int d = 0; d < HS / 16; d++) {
            left_load<HS>(q_own[m][d], own + 16 * m * PITCH + 16 * d);
        }
    }

    for (int first_key = 0; first_key < keys; first_key += TILE) {
        // Behind the barrier this tile has arrived for all threads, and all have finished with the
        // tile before: the next one may take its place while this one is computed on.
        copy_async_wait();
        __syncthreads();
        int stage = first_key / TILE % 2, next_key = first_key + TILE;
        if (next_key < keys) {
            pair_copy<HS>(stages + (1 - stage) * STAGE, k, stride, v, stride, next_key, TILE, T);
        }
        if (first_key > last) { continue; }         // behind the diagonal of this warp
        const __nv_bfloat16* k_tile = stages + stage * STAGE;
        const __nv_bfloat16* v_tile = k_tile + TILE * PITCH;

        float s[BANDS][TILE / 8][4] = { 0 };
        #pragma unroll
        for (int d = 0; d < HS / 16; d++) {
            for (int n = 0; n < TILE / 16; n++) {
                uint32_t b[4];
                right_load_transposed<HS>(b, k_tile + 16 * n * PITCH + 16 * d);
                for (int m = 0; m < BANDS; m++) { product_add(&s[m][2 * n], q_own[m][d], b); }
            }
        }
        #pragma unroll
        for (int m = 0; m < BANDS; m++) {
            for (int i = 0; i < TILE / 2 && next_key > first; i++) {        // cut by the diagonal
                int query = first + 16 * m + sum_row(i % 4), key = first_key + sum_column(i / 4, i);
                if (key > query) { s[m][i / 4][i % 4] = -INFINITY; }
            }
            softmax_online<HS>(s[m], o[m], row_max[m], row_sum[m], scale * LOG2_E);
        }
        #pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            uint32_t p[BANDS][4];
            for (int m = 0; m < BANDS; m++) { left_from_sum(p[m], &s[m][2 * n]); }
            for (int d = 0; d < HS / 16; d++) {
                uint32_t b[4];
                right_load<HS>(b, v_tile + 16 * n * PITCH + 16 * d);
                for (int m = 0; m < BANDS; m++) { product_add(&o[m][2 * d], p[m], b); }
            }
        }
    }

    out += (size_t)(head / NH) * T * out_stride + head % NH * HS;
    #pragma unroll
    for (int m = 0; m < BANDS; m++) {
        forward_store<HS>(out, lse + (size_t)head * T, out_stride, first + 16 * m, T, o[m],
                          row_max[m], row_sum[m], scale, own + 16 * m * PITCH);
    }
}

// ---------------------------------------------------------------------------------------------
// Backward

// delta (B,NH,T) = rowsum(dout * out), dout and out (B,T,NH,HS). 8 lanes share a row: at HS 64 in
// BF16 each of them takes 16 bytes.
template <typename Real>
__global__ static void attention_delta_kernel(float* delta, const Real* dout, const Real* out,
                                              int B, int T, int NH, int HS) {
    size_t row = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 8;       // (b, t, h)
    int inside = row < (size_t)B * T * NH;
    float sum = 0.0f;
    for (int i = threadIdx.x % 8 * Vec<Real>::size; inside && i < HS; i += 8 * Vec<Real>::size) {
        Vec<Real> d = vec_load(dout + row * HS + i), o = vec_load(out + row * HS + i);
        for (int j = 0; j < Vec<Real>::size; j++) {
            sum = fmaf(to_float(d.at[j]), to_float(o.at[j]), sum);
        }
    }
    for (int step = 4; step > 0; step /= 2) { sum += __shfl_xor_sync(0xffffffffu, sum, step); }
    if (inside && threadIdx.x % 8 == 0) {
        size_t h = row % NH, t = row / NH % T, b = row / NH / T;
        delta[(b * NH + h) * T + t] = sum;
    }
}

// The rest is the same in the dQ kernel and, transposed, in the dK, dV kernel. x and dx are the
// owned rows of a warp, in registers; y and dy are 16 streamed rows:
//
//                  x   dx   y   dy    rows of s   columns of s
//     dQ           Q   dO   K   V     queries     keys
//     dK, dV       K   V    Q   dO    keys        queries

// Takes the rows of this warp into registers. pair (2,owned,pitch) has arrived.
template <int HS>
__device__ static inline void owned_load(uint32_t x[][HS / 16][4], uint32_t dx[][HS / 16][4],
                                         const __nv_bfloat16* pair) {
    constexpr int BANDS = attention_bands(HS), PITCH = attention_pitch(HS);
    const __nv_bfloat16* own = pair + threadIdx.x / 32 * 16 * BANDS * PITCH;
    #pragma unroll
    for (int i = 0; i < BANDS * HS / 16; i++) {
        int m = i % BANDS, d = i / BANDS;
        left_load<HS>(x[m][d], own + 16 * m * PITCH + 16 * d);
        left_load<HS>(dx[m][d], own + (attention_owned(HS) + 16 * m) * PITCH + 16 * d);
    }
}

// s = x y^T and dp = dx dy^T
template <int HS>
__device__ static inline void scores_compute(float s[][2][4], float dp[][2][4],
                                             const uint32_t x[][HS / 16][4],
                                             const uint32_t dx[][HS / 16][4],
                                             const __nv_bfloat16* y, const __nv_bfloat16* dy) {
    #pragma unroll
    for (int i = 0; i < attention_bands(HS) * 8; i++) {
        s[i / 8][i / 4 % 2][i % 4] = dp[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }
    #pragma unroll
    for (int d = 0; d < HS / 16; d++) {
        uint32_t b[4], db[4];
        right_load_transposed<HS>(b, y + 16 * d);
        right_load_transposed<HS>(db, dy + 16 * d);
        for (int m = 0; m < attention_bands(HS); m++) {
            product_add(s[m], x[m][d], b);
            product_add(dp[m], dx[m][d], db);
        }
    }
}

// Sets s to -infinity where the key comes after the query: where row - column, times `sign`, is
// above 0. `distance` is that of the first row and column; sign is 1 if rows are keys, -1 if
// columns are.
template <int HS>
__device__ static inline void scores_mask(float s[][2][4], int distance, int sign) {
    #pragma unroll
    for (int i = 0; i < attention_bands(HS) * 8; i++) {
        int row = i / 8 * 16 + sum_row(i % 4), column = sum_column(i / 4 % 2, i);
        if (sign * (distance + row - column) > 0) { s[i / 8][i / 4 % 2][i % 4] = -INFINITY; }
    }
}

// One element: from s to P = exp(scale s - lse), from dp to dS. offset = log2(e) lse.
__device__ static inline void scores_to_gradient(float* s, float* dp, float scale_log2,
                                                 float offset, float delta) {
    *s = exp2_fast(fmaf(*s, scale_log2, -offset));
    *dp = *s * (*dp - delta);
}

// Begins to copy lse and delta of `tile` queries, from query `first` on, to statistics (2,tile):
// each of the first 2 tile threads copies one number from its source, which is lse (T) or delta (T)
// of the head. Zeros from T on: there Q and dO are zero as well, and so is all that these rows add.
__device__ static inline void statistics_copy(float* statistics, const float* source, int first,
                                              int tile, int T) {
    int i = threadIdx.x, query = first + i % tile;
    if (i < 2 * tile) { copy_async_4(statistics + i, source + query, query < T); }
}

// A block owns attention_owned(HS) keys and streams the queries from the diagonal on: tiles of Q
// and dO with their lse and delta. Registers hold K, V, dK and dV of the 16 or 32 keys of a warp.
template <int HS>
__global__ static void __launch_bounds__(ATTENTION_THREADS, 2)
attention_backward_dkv_kernel(__nv_bfloat16* dqkv /* (B,T,3,NH,HS) */,
                              const __nv_bfloat16* dout /* (B,T,NH,HS) */,
                              const __nv_bfloat16* qkv /* (B,T,3,NH,HS) */,
                              const float* lse /* (B,NH,T) */, const float* delta /* (B,NH,T) */,
                              int B, int T, int NH, float scale) {
    constexpr int BANDS = attention_bands(HS), OWNED = attention_owned(HS);
    constexpr int TILE = backward_tile(HS), PITCH = attention_pitch(HS), STAGE = 2 * TILE * PITCH;
    extern __shared__ __align__(16) __nv_bfloat16 shared[];     // k, v; 2 stages of q, dout
    __shared__ float statistics[2][2][TILE];                    // 2 stages of lse, delta
    int head = attention_head(), out_stride = NH * HS, stride = 3 * NH * HS;
    if (head >= B * NH) { return; }
    size_t at = (size_t)(head / NH) * T * stride + head % NH * HS;
    const __nv_bfloat16* q = qkv + at;
    dout += (size_t)(head / NH) * T * out_stride + head % NH * HS;
    const float* source = (threadIdx.x < TILE ? lse : delta) + (size_t)head * T;
    int block_first = blockIdx.y * OWNED;               // the first keys are seen by most queries
    int own_row = threadIdx.x / 32 * 16 * BANDS, first = block_first + own_row;     // of this warp
    __nv_bfloat16* stages = shared + 2 * OWNED * PITCH;

    int stage = block_first / TILE % 2;                 // of a tile: its number is even or odd
    pair_copy<HS>(shared, q + out_stride, stride, q + 2 * out_stride, stride, block_first, OWNED,
                  T);
    pair_copy<HS>(stages + stage * STAGE, q, stride, dout, out_stride, block_first, TILE, T);
    statistics_copy(statistics[stage][0], source, block_first, TILE, T);
    copy_async_wait();
    __syncthreads();
    uint32_t k_own[BANDS][HS / 16][4], v_own[BANDS][HS / 16][4];
    float dk[BANDS][HS / 8][4] = { 0 }, dv[BANDS][HS / 8][4] = { 0 };
    owned_load<HS>(k_own, v_own, shared);

    #pragma unroll 1
    for (int first_query = block_first; first_query < T; first_query += 16) {
        int r = first_query % TILE, next = first_query + TILE;
        stage = first_query / TILE % 2;
        if (r == 0) {                                   // a new tile; as in forward
            copy_async_wait();
            __syncthreads();
            if (next < T) {
                pair_copy<HS>(stages + (1 - stage) * STAGE, q, stride, dout, out_stride, next, TILE,
                              T);
                statistics_copy(statistics[1 - stage][0], source, next, TILE, T);
            }
        }
        if (first_query + 15 < first) { continue; }     // these queries see no key of this warp
        const __nv_bfloat16* q_rows = stages + stage * STAGE + r * PITCH;
        const __nv_bfloat16* dout_rows = q_rows + TILE * PITCH;
        float p[BANDS][2][4], ds[BANDS][2][4];
        scores_compute<HS>(p, ds, k_own, v_own, q_rows, dout_rows);
        if (first_query < first + 16 * BANDS - 1) { scores_mask<HS>(p, first - first_query, 1); }
        float offset[2][2], delta_own[2][2];        // of the queries of this lane
        for (int i = 0; i < 4; i++) {
            int query = r + sum_column(i / 2, i);
            offset[i / 2][i % 2] = LOG2_E * statistics[stage][0][query];
            delta_own[i / 2][i % 2] = statistics[stage][1][query];
        }
        uint32_t p_left[BANDS][4], ds_left[BANDS][4];
        #pragma unroll
        for (int m = 0; m < BANDS; m++) {
            for (int i = 0; i < 8; i++) {
                scores_to_gradient(&p[m][i / 4][i % 4], &ds[m][i / 4][i % 4], scale * LOG2_E,
                                   offset[i / 4][i % 2], delta_own[i / 4][i % 2]);
            }
            left_from_sum(p_left[m], p[m]);
            left_from_sum(ds_left[m], ds[m]);
        }
        #pragma unroll
        for (int d = 0; d < HS / 16; d++) {
            uint32_t b[4], db[4];
            right_load<HS>(db, dout_rows + 16 * d);
            right_load<HS>(b, q_rows + 16 * d);
            for (int m = 0; m < BANDS; m++) {
                product_add(&dv[m][2 * d], p_left[m], db);
                product_add(&dk[m][2 * d], ds_left[m], b);
            }
        }
    }

    float dk_factor[2] = { scale, scale }, dv_factor[2] = { 1.0f, 1.0f };
    __nv_bfloat16* dk_head = dqkv + at + out_stride;
    __nv_bfloat16* scratch = shared + own_row * PITCH;
    #pragma unroll
    for (int m = 0; m < BANDS; m++) {
        rows_store<HS>(dk_head, stride, first + 16 * m, T, dk[m], dk_factor, scratch);
        rows_store<HS>(dk_head + out_stride, stride, first + 16 * m, T, dv[m], dv_factor, scratch);
    }
}

// A block owns attention_owned(HS) queries and streams the keys up to the diagonal: tiles of K and
// V. Registers hold Q, dO, lse, delta and dQ of the 16 or 32 queries of a warp.
template <int HS>
__global__ static void __launch_bounds__(ATTENTION_THREADS, 2)
attention_backward_dq_kernel(__nv_bfloat16* dqkv /* (B,T,3,NH,HS) */,
                             const __nv_bfloat16* dout /* (B,T,NH,HS) */,
                             const __nv_bfloat16* qkv /* (B,T,3,NH,HS) */,
                             const float* lse /* (B,NH,T) */, const float* delta /* (B,NH,T) */,
                             int B, int T, int NH, float scale) {
    constexpr int BANDS = attention_bands(HS), OWNED = attention_owned(HS);
    constexpr int TILE = backward_tile(HS), PITCH = attention_pitch(HS), STAGE = 2 * TILE * PITCH;
    extern __shared__ __align__(16) __nv_bfloat16 shared[];     // q, dout; 2 stages of k, v
    int head = attention_head(), out_stride = NH * HS, stride = 3 * NH * HS;
    if (head >= B * NH) { return; }
    size_t at = (size_t)(head / NH) * T * stride + head % NH * HS;
    const __nv_bfloat16* q = qkv + at;
    const __nv_bfloat16* k = q + out_stride;
    const __nv_bfloat16* v = k + out_stride;
    dout += (size_t)(head / NH) * T * out_stride + head % NH * HS;
    int block_first = (int)(gridDim.y - 1 - blockIdx.y) * OWNED;    // the last queries see most
    int own_row = threadIdx.x / 32 * 16 * BANDS;
    int first = block_first + own_row, last = first + 16 * BANDS - 1;       // queries of this warp
    int keys = min(block_first + OWNED, T);
    __nv_bfloat16* stages = shared + 2 * OWNED * PITCH;

    pair_copy<HS>(shared, q, stride, dout, out_stride, block_first, OWNED, T);
    pair_copy<HS>(stages, k, stride, v, stride, 0, TILE, T);
    copy_async_wait();
    __syncthreads();
    uint32_t q_own[BANDS][HS / 16][4], dout_own[BANDS][HS / 16][4];
    float dq[BANDS][HS / 8][4] = { 0 }, offset[BANDS][2], delta_own[BANDS][2];
    owned_load<HS>(q_own, dout_own, shared);
    #pragma unroll
    for (int i = 0; i < 2 * BANDS; i++) {
        int query = first + i / 2 * 16 + sum_row(i % 2 * 2);
        size_t row = (size_t)head * T + query;
        offset[i / 2][i % 2] = query < T ? LOG2_E * lse[row] : 0.0f;
        delta_own[i / 2][i % 2] = query < T ? delta[row] : 0.0f;
    }

    #pragma unroll 1
    for (int first_key = 0; first_key < keys; first_key += 16) {
        int r = first_key % TILE, stage = first_key / TILE % 2, next = first_key + TILE;
        if (r == 0) {                                   // a new tile; as in forward
            copy_async_wait();
            __syncthreads();
            if (next < keys) {
                pair_copy<HS>(stages + (1 - stage) * STAGE, k, stride, v, stride, next, TILE, T);
            }
        }
        if (first_key > last) { continue; }             // behind the diagonal of this warp
        const __nv_bfloat16* k_rows = stages + stage * STAGE + r * PITCH;
        float p[BANDS][2][4], ds[BANDS][2][4];
        scores_compute<HS>(p, ds, q_own, dout_own, k_rows, k_rows + TILE * PITCH);
        if (first_key + 15 > first) { scores_mask<HS>(p, first - first_key, -1); }
        uint32_t ds_left[BANDS][4];
        #pragma unroll
        for (int m = 0; m < BANDS; m++) {
            for (int i = 0; i < 8; i++) {
                scores_to_gradient(&p[m][i / 4][i % 4], &ds[m][i / 4][i % 4], scale * LOG2_E,
                                   offset[m][i % 4 / 2], delta_own[m][i % 4 / 2]);
            }
            left_from_sum(ds_left[m], ds[m]);
        }
        #pragma unroll
        for (int d = 0; d < HS / 16; d++) {
            uint32_t b[4];
            right_load<HS>(b, k_rows + 16 * d);
            for (int m = 0; m < BANDS; m++) { product_add(&dq[m][2 * d], ds_left[m], b); }
        }
    }

    float factor[2] = { scale, scale };
    __nv_bfloat16* scratch = shared + own_row * PITCH;
    #pragma unroll
    for (int m = 0; m < BANDS; m++) {
        rows_store<HS>(dqkv + at, stride, first + 16 * m, T, dq[m], factor, scratch);
    }
}

// ---------------------------------------------------------------------------------------------
// float: plain arithmetic. A warp owns a row; lane l holds its elements l, l+32, l+64 and l+96

__device__ static inline void row_load(float x[4], const float* row, int HS) {
    for (int j = 0; j < 4; j++) {
        int i = threadIdx.x % 32 + 32 * j;
        x[j] = i < HS ? row[i] : 0.0f;
    }
}

__device__ static inline void row_store(float* row, const float x[4], float factor, int HS) {
    for (int j = 0; j < 4; j++) {
        int i = threadIdx.x % 32 + 32 * j;
        if (i < HS) { row[i] = x[j] * factor; }
    }
}

// The product of the owned row x with another, known to all lanes.
__device__ static inline float row_dot(const float x[4], const float* row, int HS) {
    float y[4];
    row_load(y, row, HS);
    return warp_sum(x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]);
}

// sum += factor * row
__device__ static inline void row_add(float sum[4], float factor, const float* row, int HS) {
    float y[4];
    row_load(y, row, HS);
    for (int j = 0; j < 4; j++) { sum[j] = fmaf(factor, y[j], sum[j]); }
}

#define ROWS_OF_A_BLOCK 4

// The row (b, t, h) that this warp owns, counted in the order (B,T,NH).
__device__ static inline size_t owned_row(void) {
    return (size_t)blockIdx.x * ROWS_OF_A_BLOCK + threadIdx.x / 32;
}

__global__ static void attention_forward_float_kernel(float* out /* (B,T,NH,HS) */,
                                                      float* lse /* (B,NH,T) */,
                                                      const float* qkv /* (B,T,3,NH,HS) */, int B,
                                                      int T, int NH, int HS, float scale) {
    size_t row = owned_row(), C = (size_t)NH * HS, stride = 3 * C;
    if (row >= (size_t)B * T * NH) { return; }
    size_t h = row % NH, t = row / NH % T, b = row / NH / T;
    const float* k = qkv + b * T * stride + C + h * HS;
    float q[4], o[4] = { 0 }, largest = -INFINITY, sum = 0.0f;
    row_load(q, k - C + t * stride, HS);
    for (size_t key = 0; key <= t; key++, k += stride) {
        float s = scale * row_dot(q, k, HS), before = largest;
        largest = fmaxf(before, s);
        float correction = expf(before - largest), p = expf(s - largest);
        sum = sum * correction + p;
        for (int j = 0; j < 4; j++) { o[j] *= correction; }
        row_add(o, p, k + C, HS);
    }
    row_store(out + row * HS, o, 1.0f / sum, HS);
    if (threadIdx.x % 32 == 0) { lse[(b * NH + h) * T + t] = largest + logf(sum); }
}

// Row t is a query, with dQ summed over the keys up to t, and then a key, with dK and dV summed
// over the queries from t on.
__global__ static void attention_backward_float_kernel(float* dqkv /* (B,T,3,NH,HS) */,
                                                       const float* dout /* (B,T,NH,HS) */,
                                                       const float* qkv /* (B,T,3,NH,HS) */,
                                                       const float* lse /* (B,NH,T) */,
                                                       const float* delta /* (B,NH,T) */, int B,
                                                       int T, int NH, int HS, float scale) {
    size_t row = owned_row(), C = (size_t)NH * HS, stride = 3 * C;
    if (row >= (size_t)B * T * NH) { return; }
    size_t h = row % NH, t = row / NH % T, b = row / NH / T;
    size_t at = b * T * stride + h * HS;
    const float* q = qkv + at;
    const float* k = q + C;
    dout += b * T * C + h * HS;
    lse += (b * NH + h) * T;
    delta += (b * NH + h) * T;
    float x[4], dx[4], dq[4] = { 0 }, dk[4] = { 0 }, dv[4] = { 0 };
    row_load(x, q + t * stride, HS);
    row_load(dx, dout + t * C, HS);
    for (size_t key = 0; key <= t; key++) {
        const float* k_row = k + key * stride;
        float p = expf(scale * row_dot(x, k_row, HS) - lse[t]);
        row_add(dq, p * (row_dot(dx, k_row + C, HS) - delta[t]), k_row, HS);
    }
    row_load(x, k + t * stride, HS);
    row_load(dx, k + C + t * stride, HS);
    for (size_t query = t; query < (size_t)T; query++) {
        const float* q_row = q + query * stride;
        const float* dout_row = dout + query * C;
        float p = expf(scale * row_dot(x, q_row, HS) - lse[query]);
        row_add(dk, p * (row_dot(dx, dout_row, HS) - delta[query]), q_row, HS);
        row_add(dv, p, dout_row, HS);
    }
    dqkv += at + t * stride;
    row_store(dqkv, dq, scale, HS);
    row_store(dqkv + C, dk, scale, HS);
    row_store(dqkv + 2 * C, dv, 1.0f, HS);
}

// ---------------------------------------------------------------------------------------------
// Launchers. All tensors begin at multiples of 16 bytes.

// Calls launch<HS>(...), for BF16.
#define ATTENTION_FOR_HEAD_SIZE(HS, launch, ...)                                                   \
    switch (HS) {                                                                                  \
        case 16:  launch<16>(__VA_ARGS__); break;                                                  \
        case 32:  launch<32>(__VA_ARGS__); break;                                                  \
        case 64:  launch<64>(__VA_ARGS__); break;                                                  \
        case 80:  launch<80>(__VA_ARGS__); break;                                                  \
        case 96:  launch<96>(__VA_ARGS__); break;                                                  \
        case 128: launch<128>(__VA_ARGS__); break;                                                 \
        default:  check(0, "head size %d: BF16 attention takes 16, 32, 64, 80, 96 or 128", HS);    \
    }

static inline void attention_check(int B, int T, int NH, int HS) {
    check(B >= 1 && T >= 1 && NH >= 1, "attention with B = %d, T = %d, NH = %d", B, T, NH);
    check(HS % 16 == 0 && HS >= 16 && HS <= 128, "head size %d is no multiple of 16 up to 128", HS);
}

// Shared memory of a block beyond 48 KiB has to be asked for, kernel by kernel.
static inline void attention_shared_memory(const void* kernel, size_t bytes) {
    int device, limit;
    cudaCheck(cudaGetDevice(&device));
    cudaCheck(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(bytes <= (size_t)limit, "attention needs %zu bytes of shared memory for a block, "
          "this GPU has %d", bytes, limit);
    cudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)bytes));
}

template <int HS>
static inline void attention_forward_bf16(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv,
                                          int B, int T, int NH, cudaStream_t stream) {
    size_t rows = attention_owned(HS) + 4 * FORWARD_TILE;
    size_t bytes = rows * attention_pitch(HS) * sizeof(__nv_bfloat16);
    dim3 grid = attention_grid(B * NH, T, attention_owned(HS));
    attention_shared_memory((const void*)attention_forward_kernel<HS>, bytes);
    attention_forward_kernel<HS><<<grid, ATTENTION_THREADS, bytes, stream>>>(
        out, lse, qkv, B, T, NH, 1.0f / sqrtf((float)HS));
    cudaCheck(cudaGetLastError());
}

// out (B,T,NH,HS) and lse (B,NH,T), the logarithm of the sum of exp(scale q k), from qkv
// (B,T,3,NH,HS)
static inline void attention_forward(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv,
                                     int B, int T, int NH, int HS, cudaStream_t stream) {
    attention_check(B, T, NH, HS);
    ATTENTION_FOR_HEAD_SIZE(HS, attention_forward_bf16, out, lse, qkv, B, T, NH, stream);
}

static inline void attention_forward(float* out, float* lse, const float* qkv, int B, int T, int NH,
                                     int HS, cudaStream_t stream) {
    attention_check(B, T, NH, HS);
    unsigned blocks = (unsigned)CEIL_DIV((size_t)B * T * NH, ROWS_OF_A_BLOCK);
    attention_forward_float_kernel<<<blocks, 32 * ROWS_OF_A_BLOCK, 0, stream>>>(
        out, lse, qkv, B, T, NH, HS, 1.0f / sqrtf((float)HS));
    cudaCheck(cudaGetLastError());
}

template <typename Real>
static inline void attention_delta(float* delta, const Real* dout, const Real* out, int B, int T,
                                   int NH, int HS, cudaStream_t stream) {
    unsigned blocks = (unsigned)CEIL_DIV((size_t)B * T * NH, 256 / 8);
    attention_delta_kernel<Real><<<blocks, 256, 0, stream>>>(delta, dout, out, B, T, NH, HS);
    cudaCheck(cudaGetLastError());
}

template <int HS>
static inline void attention_backward_bf16(__nv_bfloat16* dqkv, const __nv_bfloat16* dout,
                                           const __nv_bfloat16* qkv, const float* lse,
                                           const float* delta, int B, int T, int NH,
                                           cudaStream_t stream) {
    size_t rows = 2 * attention_owned(HS) + 4 * backward_tile(HS);
    size_t bytes = rows * attention_pitch(HS) * sizeof(__nv_bfloat16);
    dim3 grid = attention_grid(B * NH, T, attention_owned(HS));
    float scale = 1.0f / sqrtf((float)HS);
    attention_shared_memory((const void*)attention_backward_dkv_kernel<HS>, bytes);
    attention_backward_dkv_kernel<HS><<<grid, ATTENTION_THREADS, bytes, stream>>>(
        dqkv, dout, qkv, lse, delta, B, T, NH, scale);
    cudaCheck(cudaGetLastError());
    attention_shared_memory((const void*)attention_backward_dq_kernel<HS>, bytes);
    attention_backward_dq_kernel<HS><<<grid, ATTENTION_THREADS, bytes, stream>>>(
        dqkv, dout, qkv, lse, delta, B, T, NH, scale);
    cudaCheck(cudaGetLastError());
}

// dqkv (B,T,3,NH,HS) from dout (B,T,NH,HS), and from qkv, out and lse of forward. Every element of
// dqkv is assigned. delta (B,NH,T) is scratch.
static inline void attention_backward(__nv_bfloat16* dqkv, const __nv_bfloat16* dout,
                                      const __nv_bfloat16* qkv, const __nv_bfloat16* out,
                                      const float* lse, float* delta, int B, int T, int NH, int HS,
                                      cudaStream_t stream) {
    attention_check(B, T, NH, HS);
    attention_delta(delta, dout, out, B, T, NH, HS, stream);
    ATTENTION_FOR_HEAD_SIZE(HS, attention_backward_bf16, dqkv, dout, qkv, lse, delta, B, T, NH,
                            stream);
}

static inline void attention_backward(float* dqkv, const float* dout, const float* qkv,
                                      const float* out, const float* lse, float* delta, int B,
                                      int T, int NH, int HS, cudaStream_t stream) {
    attention_check(B, T, NH, HS);
    attention_delta(delta, dout, out, B, T, NH, HS, stream);
    unsigned blocks = (unsigned)CEIL_DIV((size_t)B * T * NH, ROWS_OF_A_BLOCK);
    attention_backward_float_kernel<<<blocks, 32 * ROWS_OF_A_BLOCK, 0, stream>>>(
        dqkv, dout, qkv, lse, delta, B, T, NH, HS, 1.0f / sqrtf((float)HS));
    cudaCheck(cudaGetLastError());
}

#endif
