/*
NVFP4: 4-bit floats that share scales. A matrix is stored in three parts; an element comes back as

    x  =  value(code)   *   block_scale          *   tensor_scale
          4 bits, E2M1      8 bits, E4M3,            32 bits, FP32,
                            one per 16 along K       one per matrix

Why two levels: E2M1 spans only 0.5 to 6, so a block needs its own scale; an 8-bit scale spans only
2^-9 to 448, so the matrix needs one too. In this file "scale" always multiplies towards real
numbers; the factor in the other direction is called "inverse".

The rules, in the order of the file (source: "Pretraining Large Language Models with NVFP4", arXiv
2509.25149, appendix B; order of operations as in TransformerEngine 2.14 and later):

    amax          = max |x| over the matrix
    inverse       = min(2688 / amax, FLT_MAX), or 1 if amax is 0      2688 = 6 * 448, the largest
    tensor_scale  = 1 / inverse                                       value(code) * block_scale
    block_scale   = E4M3(block_amax * (inverse * (1/6)))
    block_inverse = min(1 / (block_scale * tensor_scale), FLT_MAX)
    code          = E2M1(x * block_inverse), to nearest or stochastically

Plain C11 that nvcc also compiles for the device. The same input gives the same bits in both;
dev/test proves it for every float. To keep it true: no product feeds a sum unless it is exact (a
compiler would fuse the two and round once instead of twice), the order of operations is part of the
format, not a matter of taste, and subnormal floats count (no compiler flag that takes them as 0).
*/
#ifndef LLMC_NVFP4_H
#define LLMC_NVFP4_H

#include <math.h>
#include "bits.h"
#include "random.h"

#define NVFP4_BLOCK 16                  // elements along K that share a block scale
#define NVFP4_LARGEST_PRODUCT 2688.0f   // largest code value 6 times largest block scale 448

// ---------------------------------------------------------------------------------------------
// E2M1, the 4-bit element: sign, 2 exponent bits, 1 mantissa bit

// Codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. Shifted to where a float has sign,
// exponent and mantissa, the bits are those of the value / 2^126, because the biases differ by 126;
// 0.5 is subnormal in both. The product is exact.
HOST_DEVICE static inline float e2m1_to_float(uint8_t code) {
    uint32_t sign = (code & 8u) << 28, magnitude = (code & 7u) << 22;
    return bits_float(sign | magnitude) * 8.507059173023462e37f;    // 2^126
}

// |x| counted in codes is a curve of straight pieces, each half as steep as the one before: the
// values are 0.5, then 1, then 2 apart.
//
//     |x|       0 to 2    2 to 4     4 to 6       from 6
//     count     2 |x|     2 + |x|    4 + |x|/2    7
//
// It bends downwards only, so the right piece is everywhere the lowest of the four. Rounding keeps
// the order: the lowest of the rounded pieces is the rounded count. A tie goes to the even code,
// because 2 and 4 are even.
//
// Pieces are rounded by adding 2^23, from where on floats are the integers: the low bits of the sum
// are the count. Products with a power of two are exact, so a compiler may fuse them with the sum.
// As integers, bits of positive floats order like the floats, and NaN is above all: it gives 7.
#define E2M1_INTEGERS 8388608.0f        // 2^23

HOST_DEVICE static inline uint32_t smaller_bits(uint32_t a, uint32_t b) { return a < b ? a : b; }

HOST_DEVICE static inline uint32_t e2m1_sign(float x) { return float_bits(x) >> 31 << 3; }

// Nearest code of an x that is not NaN; that of a NaN has its sign.
HOST_DEVICE static inline uint32_t e2m1_nearest(float x) {
    float a = fabsf(x);
    uint32_t low = float_bits(a * 2.0f + E2M1_INTEGERS);
    uint32_t middle = float_bits(a + (E2M1_INTEGERS + 2.0f));
    uint32_t high = float_bits(a * 0.5f + (E2M1_INTEGERS + 4.0f));
    uint32_t least = smaller_bits(smaller_bits(low, middle),
                                  smaller_bits(high, float_bits(E2M1_INTEGERS + 7.0f)));
    return least - float_bits(E2M1_INTEGERS) + e2m1_sign(x);
}

// Stochastic rounding of an x that is not NaN: up with the probability of the position between the
// two neighbours, in steps of 1/256. `random` is a byte, 0..255. `fixed` is the count in 256ths,
// cut off, from the same pieces; its low byte says in how many of 256 cases adding the random byte
// carries into the next code.
// A value on the grid stays; the expected value is at most 1/256 of a gap too small, because digits
// behind the eighth are cut off.
HOST_DEVICE static inline uint32_t e2m1_stochastic(float x, uint32_t random) {
    float a = 512.0f * fabsf(x);                        // 256 * 2 |x|
    uint32_t low = (uint32_t)(int)(a < 3072.0f ? a : 3072.0f);
    uint32_t fixed = smaller_bits(smaller_bits(low, 512u + low / 2u), 1024u + low / 4u);
    return ((fixed + random) >> 8) + e2m1_sign(x);
}

// Both of any x. NaN gives +6 whatever its sign, as the hardware does; the quantizers never let it
// come to that.
HOST_DEVICE static inline uint8_t e2m1_from_float(float x) {
    return (uint8_t)(x != x ? 7u : e2m1_nearest(x));
}

HOST_DEVICE static inline uint8_t e2m1_from_float_stochastic(float x, uint32_t random) {
    return (uint8_t)(x != x ? 7u : e2m1_stochastic(x, random));
}

// Two codes to a byte: the even-numbered element in the low nibble.
HOST_DEVICE static inline uint8_t e2m1_pack(uint8_t even, uint8_t odd) {
    return (uint8_t)(even | odd << 4);
}

// ---------------------------------------------------------------------------------------------
// E4M3, the 8-bit block scale: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinity

// Without sign, for block scales, which are never NaN; then with all that the format has. The
// largest value is 448 (0x7e); 0x7f and 0xff are NaN.

// As for E2M1, but the distance of the biases is 120.
HOST_DEVICE static inline float e4m3_magnitude_to_float(uint32_t byte /* 0 .. 0x7e */) {
    return bits_float(byte << 20) * 1.329227995784916e36f;          // 2^120
}

// Nearest E4M3, ties to even, saturating at 448, of a >= 0. Neighbours are 2^(e-3) apart, where e
// is the exponent of a, or -6, which subnormals share. Adding 2^(e-3+23), from where on floats are
// as far apart, rounds to them; the low bits of the sum count them.
HOST_DEVICE static inline uint32_t e4m3_magnitude_from_float(float a) {
    a = fminf(a, 448.0f);
    uint32_t exponent = float_bits(a) >> 23;                        // e + 127
    if (exponent < 121) { exponent = 121; }
    uint32_t large = (exponent + 20) << 23;
    uint32_t count = float_bits(a + bits_float(large)) - large;     // 0 .. 16
    return ((exponent - 121) << 3) + count;                         // 16 carries into the exponent
}

HOST_DEVICE static inline float e4m3_to_float(uint8_t byte) {
    uint32_t magnitude = byte & 0x7fu;
    float x = magnitude == 0x7f ? bits_float(0x7fc00000u) : e4m3_magnitude_to_float(magnitude);
    return (byte & 0x80) ? -x : x;
}

// NaN gives 0x7f whatever its sign, as cuda_fp8.h.
HOST_DEVICE static inline uint8_t e4m3_from_float(float x) {
    if (x != x) { return 0x7f; }
    return (uint8_t)(float_bits(x) >> 31 << 7 | e4m3_magnitude_from_float(fabsf(x)));
}

// ---------------------------------------------------------------------------------------------
// Scales

// What a quantizer needs to know of the whole matrix. Made from amax alone, so whoever agrees on
// amax agrees on all of it.
typedef struct {
    float scale;                // towards real numbers
    float inverse_by_6;         // turns a block's amax into its block scale
} Nvfp4TensorScale;

HOST_DEVICE static inline Nvfp4TensorScale nvfp4_tensor_scale(float amax) {
    float inverse = amax == 0.0f ? 1.0f : fminf(NVFP4_LARGEST_PRODUCT / amax, FLOAT_LARGEST);
    Nvfp4TensorScale s;
    s.scale = 1.0f / inverse;
    s.inverse_by_6 = inverse * (1.0f / 6.0f);
    return s;
}

HOST_DEVICE static inline uint8_t nvfp4_block_scale(float block_amax, Nvfp4TensorScale tensor) {
    return (uint8_t)e4m3_magnitude_from_float(block_amax * tensor.inverse_by_6);
}

// Block scale 0 (a block 450,000 times smaller than the matrix's amax) gives FLT_MAX: its codes
// become +-6, but the block still decodes to 0.
HOST_DEVICE static inline float nvfp4_block_inverse(uint8_t block_scale, Nvfp4TensorScale tensor) {
    float scale = e4m3_magnitude_to_float(block_scale) * tensor.scale;
    return fminf(1.0f / scale, FLOAT_LARGEST);
}

// The factor that turns a GEMM of two matrices' (code value * block scale) into real numbers: the
// product of both tensor scales, computed from the two amaxes in this order.
HOST_DEVICE static inline float nvfp4_alpha(float amax_a, float amax_b) {
    return (amax_a * amax_b) * (1.0f / (NVFP4_LARGEST_PRODUCT * NVFP4_LARGEST_PRODUCT));
}

// ---------------------------------------------------------------------------------------------
// A quantized matrix, and where its parts lie

// cols, the dimension that a GEMM contracts, is a multiple of 16; so is rows where tiles are 16x16.
// Matrices in other formats are kept in the same struct (quantizer.h): where an element has 8 bits, codes
// are (rows, cols).
typedef struct {
    int rows, cols;
    uint8_t* codes;             // (rows, cols / 2), two codes to a byte
    uint8_t* block_scales;      // nvfp4_scales_size bytes in the order of nvfp4_scale_offset
    float* amax;                // (1)
} Nvfp4Matrix;

HOST_DEVICE static inline size_t nvfp4_codes_size(size_t rows, size_t cols) {
    return rows * cols / 2;
}

// Scale bytes including padding, which must be zero: the tensor cores read whole tiles.
HOST_DEVICE static inline size_t nvfp4_scales_size(size_t rows, size_t cols) {
    size_t row_tiles = (rows + 127) / 128;
    size_t block_tiles = (cols / NVFP4_BLOCK + 3) / 4;
    return row_tiles * block_tiles * 512;
}

// Where the scale of (row, block) lives. The FP4 tensor cores read scales in tiles of 128 rows x 4
// blocks, 512 bytes each, tiles row-major (cuBLAS documentation, "1D block scaling factors
// layout"). Inside a tile the 128 rows are folded four-wide:
//
//   byte:      0  1  2  3 | 4  5  6  7 | 8  9 10 11 |12 13 14 15
//   line r:    row r      | row r+32   | row r+64   | row r+96      r = 0..31, 4 blocks of each
//
// The emulated path uses the same layout although it would not need to: the quantizer then does not
// know who will read its output, and one test covers both.
HOST_DEVICE static inline size_t nvfp4_scale_offset(size_t row, size_t block, size_t cols) {
    size_t block_tiles = (cols / NVFP4_BLOCK + 3) / 4;
    size_t tile = (row / 128) * block_tiles + block / 4;
    return tile * 512 + (row % 32) * 16 + (row % 128) / 32 * 4 + block % 4;
}

// ---------------------------------------------------------------------------------------------
// How to quantize

// Which random bytes a matrix draws. `tag` tells which operand of the model it is (operand_tag in
// recipe.h), so that no two share numbers; `step` counts micro-batches over the whole run, or, for W,
// updates.
typedef struct {
    int stochastic;             // 0: to nearest, and the rest is not read
    uint64_t seed;
    uint32_t tag, step;
    // Where the matrix stands if it is a part of a larger one, of which other ranks hold the rest.
    uint32_t row_blocks;        // blocks in a row of the larger one; 0: the matrix is whole
    uint64_t first_block;       // number in the larger one of the block that is the first here
} Nvfp4Rounding;

// The number of block `block` of row `row`, counted along the rows of the whole matrix.
HOST_DEVICE static inline uint64_t nvfp4_random_block(Nvfp4Rounding rounding, uint64_t row,
                                                      uint64_t block, uint64_t cols) {
    uint64_t across = rounding.row_blocks > 0 ? rounding.row_blocks : cols / NVFP4_BLOCK;
    return rounding.first_block + row * across + block;
}

// The 16 random bytes of one block of 16: byte j % 4 (from the low end) of word j / 4 belongs to
// element j. `block` counts along the rows of the whole matrix: row * (cols / 16) + column / 16. So
// the bits depend on (seed, step, operand, element) and nothing else: not on launch shape, GPU or
// number of GPUs. This also makes resume exact, since there is no generator state to save.
HOST_DEVICE static inline Philox nvfp4_random_bytes(Nvfp4Rounding rounding, uint64_t block) {
    return philox4x32(rounding.seed, (uint32_t)block, (uint32_t)(block >> 32), rounding.tag,
                      rounding.step);
}

HOST_DEVICE static inline uint32_t nvfp4_random_byte(Philox bytes, int element) {
    return bytes.word[element / 4] >> (8 * (element % 4)) & 255u;
}

// Quantizes 16 consecutive elements of a row whose block scale is known.
HOST_DEVICE static inline void nvfp4_quantize_block(uint8_t* codes /* (8) */,
                                                    const float* x /* (16) */, float block_inverse,
                                                    Nvfp4Rounding rounding, uint64_t block) {
    uint32_t code[NVFP4_BLOCK];
    if (rounding.stochastic) {
        Philox bytes = nvfp4_random_bytes(rounding, block);
        uint32_t random[NVFP4_BLOCK];
        UNROLL
        for (int j = 0; j < NVFP4_BLOCK; j++) { random[j] = nvfp4_random_byte(bytes, j); }
        LANES
        for (int j = 0; j < NVFP4_BLOCK; j++) {
            code[j] = e2m1_stochastic(x[j] * block_inverse, random[j]);
        }
    } else {
        LANES
        for (int j = 0; j < NVFP4_BLOCK; j++) { code[j] = e2m1_nearest(x[j] * block_inverse); }
    }
    uint32_t words[2] = { 0, 0 };               // eight codes each, the first in the lowest nibble
    UNROLL
    for (int j = NVFP4_BLOCK - 1; j >= 0; j--) { words[j / 8] = words[j / 8] * 16u + code[j]; }
    memcpy(codes, words, sizeof(words));
}

// ---------------------------------------------------------------------------------------------
// The reference quantizer (host): short rather than fast, and what llmc/quantize.cuh must equal. Training
// in C runs quantized_make (quantizer.h), for all formats, or coded_quantize (weights_cpu.h), for weights
// of which ranks hold parts: the same bits.

// Largest |x| of n values, as bits; FLOAT_INFINITY_BITS or more says that one is not finite.
static inline uint32_t nvfp4_amax_bits(const float* x, size_t n) {
    uint32_t amax = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = float_abs_bits(x[i]);
        amax = a > amax ? a : amax;
    }
    return amax;
}

// The same of a matrix x (rows, cols), with all threads.
static inline uint32_t nvfp4_matrix_amax_bits(const float* x, size_t rows, size_t cols) {
    uint32_t amax = 0;
    #pragma omp parallel for reduction(max : amax)
    for (size_t row = 0; row < rows; row++) {
        uint32_t row_amax = nvfp4_amax_bits(x + row * cols, cols);
        amax = row_amax > amax ? row_amax : amax;
    }
    return amax;
}

// Quantizes x (rows, cols), BF16 values in row-major order, with one scale per block_rows x 16
// elements: block_rows is 1, or 16 for weights. A 16x16 tile's scale byte is written for each of
// its rows, so that readers need not know which it was. *out->amax is set: that of x or, if x is a
// part of a larger matrix, of the whole. It is finite.
//
// The weight is quantized in 16x16 tiles, not in 1x16 rows: forward uses W, backward uses W^T, and
// with square tiles both see the same numbers. With rows, backward would differentiate a slightly
// different network from the one that ran forward.
static inline void nvfp4_quantize_scaled(Nvfp4Matrix* out, const float* x, int block_rows,
                                         Nvfp4Rounding rounding) {
    size_t rows = (size_t)out->rows, cols = (size_t)out->cols, blocks = cols / NVFP4_BLOCK;
    Nvfp4TensorScale tensor = nvfp4_tensor_scale(*out->amax);
    memset(out->block_scales, 0, nvfp4_scales_size(rows, cols));

    #pragma omp parallel for
    for (size_t top = 0; top < rows; top += (size_t)block_rows) {
        for (size_t block = 0; block < blocks; block++) {
            uint32_t block_amax = 0;
            for (size_t row = top; row < top + (size_t)block_rows; row++) {
                uint32_t a = nvfp4_amax_bits(x + row * cols + block * NVFP4_BLOCK, NVFP4_BLOCK);
                block_amax = a > block_amax ? a : block_amax;
            }
            uint8_t block_scale = nvfp4_block_scale(bits_float(block_amax), tensor);
            float block_inverse = nvfp4_block_inverse(block_scale, tensor);
            for (size_t row = top; row < top + (size_t)block_rows; row++) {
                out->block_scales[nvfp4_scale_offset(row, block, cols)] = block_scale;
                size_t index = row * blocks + block;
                nvfp4_quantize_block(out->codes + index * (NVFP4_BLOCK / 2),
                                     x + index * NVFP4_BLOCK, block_inverse, rounding,
                                     nvfp4_random_block(rounding, row, block, cols));
            }
        }
    }
}

// The same of a whole matrix, amax included. Returns 0; or -1 if an element is Inf or NaN, and then
// only *out->amax, not finite either, is set.
static inline int nvfp4_quantize(Nvfp4Matrix* out, const float* x, int block_rows,
                                 Nvfp4Rounding rounding) {
    uint32_t amax = nvfp4_matrix_amax_bits(x, (size_t)out->rows, (size_t)out->cols);
    *out->amax = bits_float(amax);
    if (amax >= FLOAT_INFINITY_BITS) { return -1; }
    nvfp4_quantize_scaled(out, x, block_rows, rounding);
    return 0;
}

// out = the transpose, same codes and scales: only for a matrix quantized in 16x16 tiles, whose
// scales mean the same in both directions. out's buffers are those of a (cols, rows) matrix.
static inline void nvfp4_transpose(Nvfp4Matrix* out, const Nvfp4Matrix* in) {
    size_t rows = (size_t)in->rows, cols = (size_t)in->cols;
    *out->amax = *in->amax;
    memset(out->block_scales, 0, nvfp4_scales_size(cols, rows));
    #pragma omp parallel for
    for (size_t col = 0; col < cols; col++) {
        for (size_t row = 0; row < rows; row += 2) {
            uint8_t even = in->codes[(row * cols + col) / 2] >> (4 * (col % 2)) & 15;
            uint8_t odd = in->codes[((row + 1) * cols + col) / 2] >> (4 * (col % 2)) & 15;
            out->codes[(col * rows + row) / 2] = e2m1_pack(even, odd);
        }
        for (size_t block = 0; block < rows / NVFP4_BLOCK; block++) {
            out->block_scales[nvfp4_scale_offset(col, block, rows)] =
                in->block_scales[nvfp4_scale_offset(block * NVFP4_BLOCK, col / NVFP4_BLOCK, cols)];
        }
    }
}

// out (rows, cols) = code value * block scale, without the tensor scale: what enters the GEMM. Each
// product is exact in BF16: E2M1 has 2 significant bits and E4M3 has 4, so it has at most 6 of
// BF16's 8. The tensor scales go into the GEMM's alpha.
static inline void nvfp4_expand(float* out, const Nvfp4Matrix* in) {
    size_t cols = (size_t)in->cols, blocks = cols / NVFP4_BLOCK;
    float values[16];
    for (int code = 0; code < 16; code++) { values[code] = e2m1_to_float((uint8_t)code); }
    #pragma omp parallel for
    for (size_t row = 0; row < (size_t)in->rows; row++) {
        for (size_t block = 0; block < blocks; block++) {
            float scale = e4m3_to_float(in->block_scales[nvfp4_scale_offset(row, block, cols)]);
            const uint8_t* codes = in->codes + (row * blocks + block) * (NVFP4_BLOCK / 2);
            float* x = out + (row * blocks + block) * NVFP4_BLOCK;
            for (int j = 0; j < NVFP4_BLOCK / 2; j++) {
                x[2 * j] = values[codes[j] & 15] * scale;
                x[2 * j + 1] = values[codes[j] >> 4] * scale;
            }
        }
    }
}

#endif
