/*
NVFP4 quantization on the device: the same bits as the reference quantizer in nvfp4.h, for every
kind of operand, both directions in one pass over the BF16 source.

    operand                          blocks           from the source
    x, dY, W (rows, cols)            1x16 or 16x16    as stored
    their transposes (cols, rows)    1x16 or 16x16    16 consecutive rows form a block, Hadamard-
                                                      transformed where the recipe asks for it

A quantizer has to know the amax of the whole matrix before it can write the first code, so there
are two passes: quantize_amax, then quantize_launch.

Every number comes from the functions of nvfp4.h, random.h and hadamard.h; this file only moves the
data, and has the GPU find maxima and round to BF16 two values at a time, which gives the same bits.
Blocks of 16 never leave the thread that owns them, so no result depends on the launch shape.

The last step, to E2M1, may be left to the GPU's instructions (e2m1_sm100a.cuh) where the probe at
start-up found that they give the same codes. The host says so with an E2m1Conversion.

Nobody here writes the padding of the block scales. Who allocates a matrix zeroes them once. Codes
and sources start on multiples of 16 bytes.
*/
#ifndef LLMC_QUANTIZE_CUH
#define LLMC_QUANTIZE_CUH

#include "cuda_common.cuh"
#include "e2m1_sm100a.cuh"
#include "hadamard.h"
#include "nvfp4.h"

static inline void quantize_check_shape(int rows, int cols) {
    check(rows > 0 && cols > 0 && rows % NVFP4_BLOCK == 0 && cols % NVFP4_BLOCK == 0,
          "a (%d, %d) matrix cannot be quantized: both sizes have to be multiples of %d", rows,
          cols, NVFP4_BLOCK);
}

// ---------------------------------------------------------------------------------------------
// Pairs and blocks of BF16

// Two neighbouring BF16 values lie in one 32-bit word, the first in its lower half.
__device__ static inline float pair_value(uint32_t pair, int second) {
    return bits_float(second ? pair & 0xffff0000u : pair << 16);
}

#define BLOCK_PAIRS (NVFP4_BLOCK / 2)

__device__ static inline void block_values(float* x /* (16) */, const uint32_t* pairs /* (8) */) {
    UNROLL
    for (int i = 0; i < NVFP4_BLOCK; i++) { x[i] = pair_value(pairs[i / 2], i % 2); }
}

__device__ static inline __nv_bfloat162 pair_from_bits(uint32_t bits) {
    __nv_bfloat162 pair;
    memcpy((void*)&pair, &bits, sizeof(pair));
    return pair;
}

__device__ static inline uint32_t pair_bits(__nv_bfloat162 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

// Two maxima at a time. For a matrix whose amax is known to be finite: __hmax2 would drop a NaN.
__device__ static inline float block_amax(const uint32_t* pairs /* (8) */) {
    __nv_bfloat162 amax = __habs2(pair_from_bits(pairs[0]));
    UNROLL
    for (int i = 1; i < BLOCK_PAIRS; i++) {
        amax = __hmax2(amax, __habs2(pair_from_bits(pairs[i])));
    }
    return fmaxf(__low2float(amax), __high2float(amax));
}

// hadamard_transform of a block. The GPU rounds two quarters of sums to BF16 at a time; it gives
// the bits of bf16_round for every float, as test_numbers_cuda.cu sees.
__device__ static inline void block_hadamard(uint32_t* pairs /* (8) */) {
    float x[NVFP4_BLOCK];
    block_values(x, pairs);
    hadamard_sums(x);
    UNROLL
    for (int i = 0; i < BLOCK_PAIRS; i++) {
        pairs[i] = pair_bits(__floats2bfloat162_rn(0.25f * x[2 * i], 0.25f * x[2 * i + 1]));
    }
}

// ---------------------------------------------------------------------------------------------
// amax

#define AMAX_THREADS 128

// A thread owns two neighbouring columns and reads 16 rows of them at a time, 64 bytes in
// flight; a warp reads 128 bytes of each row. The maxima are taken over bit patterns, which
// keeps NaN and Inf. The transform's rounding never decreases: the largest sum, rounded, is
// the largest rounded sum.
static __global__ void amax_kernel(uint32_t* amax, uint32_t* amaxT,
                                   const __nv_bfloat16* x /* (rows, cols) */, int rows, int cols,
                                   int hadamard) {
    __shared__ uint32_t shared_amax[2];
    if (threadIdx.x < 2) { shared_amax[threadIdx.x] = 0; }
    __syncthreads();

    uint32_t largest = 0, largest_sum = 0;
    int col = 2 * (int)(blockIdx.x * AMAX_THREADS + threadIdx.x);
    int last_row = col < cols ? rows : 0;
    for (int row = 16 * (int)blockIdx.y; row < last_row; row += 16 * (int)gridDim.y) {
        const __nv_bfloat16* x_col = x + (size_t)row * cols + col;
        uint32_t pairs[16];
        UNROLL
        for (int r = 0; r < 16; r++) { pairs[r] = *(const uint32_t*)(x_col + (size_t)r * cols); }
        UNROLL
        for (int second = 0; second < 2; second++) {
            float values[16];
            UNROLL
            for (int r = 0; r < 16; r++) {
                values[r] = pair_value(pairs[r], second);
                largest = max(largest, float_abs_bits(values[r]));
            }
            if (hadamard) {
                hadamard_sums(values);
                UNROLL
                for (int r = 0; r < 16; r++) {
                    largest_sum = max(largest_sum, float_abs_bits(values[r]));
                }
            }
        }
    }
    uint32_t largestT = hadamard ? float_bits(hadamard_round(bits_float(largest_sum))) : largest;

    largest = __reduce_max_sync(0xffffffffu, largest);
    largestT = __reduce_max_sync(0xffffffffu, largestT);
    if (threadIdx.x % 32 == 0) {
        atomicMax(&shared_amax[0], largest);
        atomicMax(&shared_amax[1], largestT);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        if (amax != NULL) { atomicMax(amax, shared_amax[0]); }
        if (amaxT != NULL) { atomicMax(amaxT, shared_amax[1]); }
    }
}

// amax (1) = max |x| over x (rows, cols); amaxT (1) = the same over the transposed x, which differs
// only if groups of 16 rows are Hadamard-transformed first. Either may be NULL. A NaN or Inf in x
// gives a result that is not finite.
static inline void quantize_amax(float* amax, float* amaxT, const __nv_bfloat16* x, int rows,
                                 int cols, int hadamard, cudaStream_t stream) {
    quantize_check_shape(rows, cols);
    if (amax != NULL) { cudaCheck(cudaMemsetAsync(amax, 0, sizeof(float), stream)); }
    if (amaxT != NULL) { cudaCheck(cudaMemsetAsync(amaxT, 0, sizeof(float), stream)); }
    int column_blocks = CEIL_DIV(cols, 2 * AMAX_THREADS);
    int row_blocks = CEIL_DIV(4096, column_blocks);     // fills any GPU a few times over
    if (row_blocks > rows / 16) { row_blocks = rows / 16; }
    amax_kernel<<<dim3(column_blocks, row_blocks), AMAX_THREADS, 0, stream>>>(
        (uint32_t*)amax, (uint32_t*)amaxT, x, rows, cols, hadamard);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Quantization

#define QUANTIZE_THREADS 256
#define TILE_ROWS 64
#define TILE_COLS 128
#define BLOCKS_ACROSS (TILE_COLS / NVFP4_BLOCK)

// nvfp4_quantize_block by the GPU's instructions, which give the same codes: e2m1_probe has seen to
// it. Returns 1; or 0, nothing done, if this rounding is left to arithmetic.
__device__ static inline int quantize_block_by_instruction(uint8_t* codes /* (8) */,
                                                           const float* x /* (16) */,
                                                           float block_inverse,
                                                           Nvfp4Rounding rounding, uint64_t block,
                                                           E2m1Conversion conversion) {
    if (!(rounding.stochastic ? conversion.stochastic : conversion.nearest)) { return 0; }
    float scaled[NVFP4_BLOCK];
    UNROLL
    for (int j = 0; j < NVFP4_BLOCK; j++) { scaled[j] = x[j] * block_inverse; }
    uint16_t fours[NVFP4_BLOCK / 4];
    int done = 1;
    if (rounding.stochastic) {
        Philox bytes = nvfp4_random_bytes(rounding, block);
        UNROLL
        for (int i = 0; i < NVFP4_BLOCK / 4; i++) {
            done &= e2m1x4_stochastic(&fours[i], scaled + 4 * i, bytes.word[i], conversion.order);
        }
    } else {
        UNROLL
        for (int i = 0; i < NVFP4_BLOCK / 4; i++) {
            done &= e2m1x4_nearest(&fours[i], scaled + 4 * i);
        }
    }
    if (done) { memcpy(codes, fours, sizeof(fours)); }
    return done;
}

// Quantizes 16 values and stores them as block `block` of row `row`. amax is theirs, or their
// tile's. Row and block are unsigned: that their upper halves are 0 saves 64-bit arithmetic.
template <int MAY_USE_INSTRUCTION>
__device__ static inline void quantize_store(Nvfp4Matrix out, uint32_t row, uint32_t block,
                                             const uint32_t* pairs /* (8) */, float amax,
                                             Nvfp4TensorScale tensor, Nvfp4Rounding rounding,
                                             E2m1Conversion conversion) {
    uint32_t cols = (uint32_t)out.cols;
    size_t index = (size_t)row * (cols / NVFP4_BLOCK) + block;
    uint8_t block_scale = nvfp4_block_scale(amax, tensor);
    float block_inverse = nvfp4_block_inverse(block_scale, tensor);
    uint64_t drawn = nvfp4_random_block(rounding, row, block, cols);
    float x[NVFP4_BLOCK];
    block_values(x, pairs);
    uint8_t codes[8];
    if (!MAY_USE_INSTRUCTION || !quantize_block_by_instruction(codes, x, block_inverse, rounding,
                                                               drawn, conversion)) {
        nvfp4_quantize_block(codes, x, block_inverse, rounding, drawn);
    }
    uint2 words;
    memcpy(&words, codes, sizeof(words));
    ((uint2*)out.codes)[index] = words;
    out.block_scales[nvfp4_scale_offset(row, block, cols)] = block_scale;
}

// A block of threads quantizes one tile of 64 x 128, which passes through shared memory
// to be read in the other direction. A thread owns two blocks of 16 along the columns,
// then two along the rows:
//
//   along columns   8 neighbouring lanes take the 8 blocks of a row: 256 bytes read, 64 bytes of
//                   codes written
//   along rows      a lane takes two neighbouring columns, 4 neighbouring lanes take the 4 groups
//                   of 16 rows: together 32 bytes of codes, one sector, of each column
//
// In shared memory, word w of a row in group g stands at w ^ 8g, so that the 4 x 8 words which a
// warp reads at once along the rows lie in 32 different banks.
//
// `out` or `outT` may lack memory (codes NULL) and is then left out. If tile16 is set, the amax of
// a block is that of its 16x16 tile; both directions then give the same codes and scales.
//
// There are two versions, so that arithmetic, all there is on most GPUs, does not carry the other's
// machine code: it does not read `conversion`.
template <int MAY_USE_INSTRUCTION>
static __global__ void __launch_bounds__(QUANTIZE_THREADS, 4)
quantize_kernel(Nvfp4Matrix out, Nvfp4Matrix outT, const __nv_bfloat16* x /* (rows, cols) */,
                int rows, int cols, int hadamard, int tile16, Nvfp4Rounding rounding,
                Nvfp4Rounding roundingT, E2m1Conversion conversion) {
    __shared__ uint4 tile[TILE_ROWS][TILE_COLS / 8];
    __shared__ uint32_t tile_amax[TILE_ROWS / 16 * BLOCKS_ACROSS];  // of each 16x16 tile, as bits
    __shared__ Nvfp4TensorScale tensor, tensorT;
    int first_row = (int)blockIdx.y * TILE_ROWS, first_col = (int)blockIdx.x * TILE_COLS;
    if (threadIdx.x < TILE_ROWS / 16 * BLOCKS_ACROSS) { tile_amax[threadIdx.x] = 0; }
    __syncthreads();

    // divisions: one thread of the block for all
    if (threadIdx.x == 0 && out.codes != NULL) { tensor = nvfp4_tensor_scale(*out.amax); }
    if (threadIdx.x == 32 && outT.codes != NULL) { tensorT = nvfp4_tensor_scale(*outT.amax); }

    // this thread's blocks along the columns: block b of the tile, in rows r and r + 32
    int b = (int)threadIdx.x % BLOCKS_ACROSS, r = (int)threadIdx.x / BLOCKS_ACROSS;
    int col = first_col + 16 * b;
    uint32_t pairs[2][8];
    UNROLL
    for (int k = 0; k < 2; k++) {
        int row = first_row + r + 32 * k, group = (r + 32 * k) / 16;
        if (row >= rows || col >= cols) { continue; }
        const uint4* from = (const uint4*)(x + (size_t)row * cols + col);
        uint4 low = from[0], high = from[1];
        tile[r + 32 * k][(2 * b) ^ (2 * group)] = low;
        tile[r + 32 * k][(2 * b + 1) ^ (2 * group)] = high;
        memcpy(&pairs[k][0], &low, sizeof(low));
        memcpy(&pairs[k][4], &high, sizeof(high));
        if (tile16) {
            atomicMax(&tile_amax[group * BLOCKS_ACROSS + b], float_bits(block_amax(pairs[k])));
        }
    }
    __syncthreads();

    if (out.codes != NULL) {
        UNROLL
        for (int k = 0; k < 2; k++) {
            int row = first_row + r + 32 * k, group = (r + 32 * k) / 16;
            if (row >= rows || col >= cols) { continue; }
            float amax = tile16 ? bits_float(tile_amax[group * BLOCKS_ACROSS + b])
                                : block_amax(pairs[k]);
            quantize_store<MAY_USE_INSTRUCTION>(out, (uint32_t)row, (uint32_t)col / 16, pairs[k],
                                                amax, tensor, rounding, conversion);
        }
    }

    int group = (int)threadIdx.x % 4, word = (int)threadIdx.x / 4;
    int rowT = first_row + 16 * group, colT = first_col + 2 * word;
    if (outT.codes != NULL && rowT < rows && colT < cols) {
        const uint32_t* words = (const uint32_t*)tile;
        uint32_t across[16];            // rows of two columns
        UNROLL
        for (int i = 0; i < 16; i++) {
            across[i] = words[(16 * group + i) * (TILE_COLS / 2) + (word ^ (8 * group))];
        }
        UNROLL
        for (int second = 0; second < 2; second++) {
            uint32_t down[BLOCK_PAIRS];     // pairs along one of them
            UNROLL
            for (int i = 0; i < BLOCK_PAIRS; i++) {
                down[i] = __byte_perm(across[2 * i], across[2 * i + 1], second ? 0x7632 : 0x5410);
            }
            if (hadamard) { block_hadamard(down); }
            float amax = tile16 ? bits_float(tile_amax[group * BLOCKS_ACROSS + word / 8])
                                : block_amax(down);
            quantize_store<MAY_USE_INSTRUCTION>(outT, (uint32_t)(colT + second),
                                                (uint32_t)rowT / 16, down, amax, tensorT,
                                                roundingT, conversion);
        }
    }
}

// x_q (rows, cols) = x (rows, cols), and xT_q (cols, rows) = the transpose of x, that is, blocks of 16
// consecutive rows of x, Hadamard-transformed if that flag is set; in 1x16 blocks or, with tile16, in
// 16x16 tiles, the same in both directions. Either may be NULL. Both matrices' amax must have been set by
// quantize_amax with the same flag.
static inline void quantize_launch(const Nvfp4Matrix* x_q, const Nvfp4Matrix* xT_q,
                                   const __nv_bfloat16* x, int rows, int cols, int hadamard,
                                   int tile16, Nvfp4Rounding rounding, Nvfp4Rounding roundingT,
                                   E2m1Conversion conversion, cudaStream_t stream) {
    quantize_check_shape(rows, cols);
    check(x_q == NULL || (x_q->rows == rows && x_q->cols == cols),
          "a (%d, %d) matrix is quantized into one of (%d, %d)", rows, cols, x_q->rows, x_q->cols);
    check(xT_q == NULL || (xT_q->rows == cols && xT_q->cols == rows),
          "the transpose of a (%d, %d) matrix is quantized into one of (%d, %d)", rows, cols,
          xT_q->rows, xT_q->cols);
    check(CEIL_DIV(rows, TILE_ROWS) <= 65535, "%d rows are more than one launch covers: reduce -b",
          rows);
    Nvfp4Matrix out, outT;
    memset(&out, 0, sizeof(out));
    memset(&outT, 0, sizeof(outT));
    if (x_q != NULL) { out = *x_q; }
    if (xT_q != NULL) { outT = *xT_q; }
    dim3 grid(CEIL_DIV(cols, TILE_COLS), CEIL_DIV(rows, TILE_ROWS));
    if (conversion.nearest || conversion.stochastic) {
        quantize_kernel<1><<<grid, QUANTIZE_THREADS, 0, stream>>>(
            out, outT, x, rows, cols, hadamard, tile16, rounding, roundingT, conversion);
    } else {
        quantize_kernel<0><<<grid, QUANTIZE_THREADS, 0, stream>>>(
            out, outT, x, rows, cols, hadamard, tile16, rounding, roundingT, conversion);
    }
    cudaCheck(cudaGetLastError());
}

// In 1x16 blocks. (The self-test, tests and benchmarks call this and quantize_weight.)
static inline void quantize_activation(const Nvfp4Matrix* x_q, const Nvfp4Matrix* xT_q,
                                       const __nv_bfloat16* x, int rows, int cols, int hadamard,
                                       Nvfp4Rounding rounding, Nvfp4Rounding roundingT,
                                       E2m1Conversion conversion, cudaStream_t stream) {
    quantize_launch(x_q, xT_q, x, rows, cols, hadamard, 0, rounding, roundingT, conversion, stream);
}

// w_q (OC, C) = w (OC, C) and wT_q (C, OC) = its transpose, to nearest, amax included. In
// 16x16 tiles (tile16) wT_q has the codes and scales of w_q; otherwise each has 1x16
// blocks along its own rows.
static inline void quantize_weight(const Nvfp4Matrix* w_q, const Nvfp4Matrix* wT_q,
                                   const __nv_bfloat16* w, int OC, int C, int tile16,
                                   E2m1Conversion conversion, cudaStream_t stream) {
    Nvfp4Rounding nearest;
    memset(&nearest, 0, sizeof(nearest));
    quantize_amax(w_q->amax, wT_q->amax, w, OC, C, 0, stream);
    quantize_launch(w_q, wT_q, w, OC, C, 0, tile16, nearest, nearest, conversion, stream);
}

// ---------------------------------------------------------------------------------------------
// Expansion

#define EXPAND_THREADS_X 32         // 256 columns
#define EXPAND_THREADS_Y 8          // 8 rows

// A thread expands half a block: 4 bytes of codes into one 16-byte store.
static __global__ void expand_kernel(__nv_bfloat16* out /* (rows, cols) */, Nvfp4Matrix in) {
    int col = 8 * (int)(blockIdx.x * EXPAND_THREADS_X + threadIdx.x);
    int first_row = (int)(blockIdx.y * EXPAND_THREADS_Y + threadIdx.y);
    if (col >= in.cols) { return; }
    for (int row = first_row; row < in.rows; row += (int)gridDim.y * EXPAND_THREADS_Y) {
        size_t first = (size_t)row * in.cols + col;
        size_t block = (size_t)col / NVFP4_BLOCK;
        uint32_t codes = *(const uint32_t*)(in.codes + first / 2);
        float scale = e4m3_to_float(in.block_scales[nvfp4_scale_offset(row, block, in.cols)]);
        Vec<__nv_bfloat16> values;
        UNROLL
        for (int i = 0; i < 8; i++) {
            values.at[i] = from_float<__nv_bfloat16>(e2m1_to_float(codes >> (4 * i) & 15) * scale);
        }
        vec_store(out + first, values);
    }
}

// out (rows, cols) = code value * block scale, exact in BF16: see nvfp4_expand in nvfp4.h.
static inline void quantize_expand(__nv_bfloat16* out, const Nvfp4Matrix* in, cudaStream_t stream) {
    quantize_check_shape(in->rows, in->cols);
    int column_blocks = CEIL_DIV(in->cols, 8 * EXPAND_THREADS_X);
    int row_blocks = CEIL_DIV(16384, column_blocks);
    int most = CEIL_DIV(in->rows, EXPAND_THREADS_Y);
    dim3 grid(column_blocks, row_blocks < most ? row_blocks : most);
    expand_kernel<<<grid, dim3(EXPAND_THREADS_X, EXPAND_THREADS_Y), 0, stream>>>(out, *in);
    cudaCheck(cudaGetLastError());
}

#endif
