/*
How an operand of a matrix product is quantized: its format and every ingredient that a recipe
(recipe.h) may combine. One row of the recipe's table is one Quantizer. First the types, then what
they mean: the reference that quantizes any of them, and the parts of it that a kernel uses too.

    format     element        bits  block along K   block scale, a byte    tensor scale
    nvfp4      E2M1           4     16              E4M3                   amax / L
    mxfp4      E2M1           4     32              E8M0, a power of two   none
    mxfp8      E4M3           8     32              E8M0                   none
    fp8        E4M3 or E5M2   8     the matrix      none                   amax / L
    fp8block   E4M3           8     128             E8M0                   none

    x  =  value(code) * block scale * tensor scale

A last block may be shorter: 1600 columns are 12 blocks of 128 and one of 64. In square tiles the
same holds for rows. L is what the matrix's amax becomes, as code value * block scale; inverse is
L / amax, as in nvfp4.h:

                     L              block_scale
    nvfp4            6 * 448        E4M3(block_amax * (inverse * (1/6)))
      paper          the same       E4M3((block_amax / 6) * inverse)
      four over six  6 * 256        1/6 or 1/4 in place of 1/6: four_six.h
      unbiased       f * 448        1/f in place of 1/6, f = 6 * 16/17
      MS-EDEN        s * 256        1/s in place of 1/6, s = f / 0.93; then corrected: ms_eden.h
    fp8              448 or 57344   none

unbiased: rounding to E4M3 makes a block scale too small by 17/16 at most. The block's largest
element then becomes 17/16 * f = 6 instead of f: nothing is clipped, and stochastic rounding keeps
its expected value (except where block scales are subnormal).

Plain C11 that nvcc also compiles for the device; the same input gives the same bits in both.
*/
#ifndef LLMC_QUANTIZER_H
#define LLMC_QUANTIZER_H

#include "four_six.h"
#include "fp8.h"
#include "ms_eden.h"
#include "mx.h"
#include "nvfp4.h"

typedef enum {
    FORMAT_FP32, FORMAT_BF16,           // not quantized
    FORMAT_NVFP4, FORMAT_MXFP4, FORMAT_MXFP8, FORMAT_FP8, FORMAT_FP8BLOCK, NUM_FORMATS
} Format;

typedef enum { ROUND_NEAREST, ROUND_STOCHASTIC, ROUND_MS_EDEN } RoundingRule;
typedef enum { FOUR_SIX_OFF, FOUR_SIX_MSE, FOUR_SIX_MAE } FourSix;

typedef struct {
    Format format;
    int e5m2;                   // FP8 elements are E5M2 instead of E4M3
    int tile;                   // one scale for a square of block x block elements, not 1 x block
    RoundingRule rounding;
    FourSix four_six;           // a block's largest element may become 4 instead of 6
    int hadamard;               // points of the transform along K before: 16, 32, 64, 128; 0: none
    int fresh_signs;            // its signs are drawn for each micro-batch; 0: fixed ones
    int aligned;                // made from the codes that forward multiplied, not from the tensor
    int unbiased;               // scales leave room, 16/17, so that their rounding never clips
    int paper_order;            // block_amax / 6 first, then times the inverse [arXiv 2509.25149]
} Quantizer;

static inline const char* format_name(Format format) {
    static const char* names[NUM_FORMATS] = { "fp32", "bf16", "nvfp4", "mxfp4", "mxfp8", "fp8",
                                              "fp8block" };
    return names[format];
}

static inline int quantizer_equal(const Quantizer* a, const Quantizer* b) {
    return a->format == b->format && a->e5m2 == b->e5m2 && a->tile == b->tile
        && a->rounding == b->rounding && a->four_six == b->four_six && a->hadamard == b->hadamard
        && a->fresh_signs == b->fresh_signs && a->aligned == b->aligned
        && a->unbiased == b->unbiased && a->paper_order == b->paper_order;
}

// The base recipe's treatment, which has kernels of its own and travels between ranks as codes:
// NVFP4, to nearest or stochastically, perhaps after the 16-point transform with fixed signs.
static inline int quantizer_is_plain_nvfp4(const Quantizer* q) {
    return q->format == FORMAT_NVFP4 && q->rounding != ROUND_MS_EDEN && !q->four_six
        && (q->hadamard == 0 || q->hadamard == 16) && !q->fresh_signs && !q->aligned
        && !q->unbiased && !q->paper_order;
}

// NVFP4 to nearest, in 1x16 blocks or 16x16 tiles.
static inline Quantizer quantizer_nvfp4(int tile) {
    Quantizer q;
    memset(&q, 0, sizeof(q));
    q.format = FORMAT_NVFP4;
    q.tile = tile;
    return q;
}

// ---------------------------------------------------------------------------------------------
// Formats

// Elements along K that share a block scale; 0: there are none.
HOST_DEVICE static inline int format_block(Format f) {
    return f == FORMAT_NVFP4 ? NVFP4_BLOCK : f == FORMAT_MXFP4 || f == FORMAT_MXFP8 ? 32
         : f == FORMAT_FP8BLOCK ? 128 : 0;
}

// Of an element.
HOST_DEVICE static inline int format_bits(Format f) {
    return f == FORMAT_NVFP4 || f == FORMAT_MXFP4 ? 4 : f == FORMAT_BF16 ? 16
         : f == FORMAT_FP32 ? 32 : 8;
}

// Where a quantized matrix (rows, cols) has what. cols is a multiple of 16. The scales of all
// formats lie in the order of nvfp4_scale_offset, which asks for the columns that NVFP4 would have
// with as many blocks.
HOST_DEVICE static inline size_t quantized_blocks(Format f, size_t cols) {
    size_t block = (size_t)format_block(f);
    return block > 0 ? (cols + block - 1) / block : 0;
}

HOST_DEVICE static inline size_t quantized_codes_size(Format f, size_t rows, size_t cols) {
    return rows * cols * (size_t)format_bits(f) / 8;
}

HOST_DEVICE static inline size_t quantized_scales_size(Format f, size_t rows, size_t cols) {
    return nvfp4_scales_size(rows, quantized_blocks(f, cols) * NVFP4_BLOCK);
}

HOST_DEVICE static inline size_t quantized_scale_offset(Format f, size_t row, size_t block,
                                                        size_t cols) {
    return nvfp4_scale_offset(row, block, quantized_blocks(f, cols) * NVFP4_BLOCK);
}

// ---------------------------------------------------------------------------------------------
// Scales

#define UNBIASED_LARGEST_PRODUCT (43008.0f / 17.0f)     // f * 448, f = 6 * 16/17
#define UNBIASED_BLOCK_FACTOR (17.0f / 96.0f)           // 1 / f

// L of the table above; 0: no tensor scale.
HOST_DEVICE static inline float quantizer_largest(Quantizer q) {
    if (q.format == FORMAT_FP8) { return q.e5m2 ? E5M2_LARGEST : E4M3_LARGEST; }
    if (q.format != FORMAT_NVFP4) { return 0.0f; }
    return q.rounding == ROUND_MS_EDEN ? MS_EDEN_LARGEST_PRODUCT
         : q.four_six ? FOUR_SIX_LARGEST_PRODUCT
         : q.unbiased ? UNBIASED_LARGEST_PRODUCT : NVFP4_LARGEST_PRODUCT;
}

// What quantizing needs to know of the whole matrix. Made from amax alone, so whoever agrees on
// amax agrees on all of it.
typedef struct {
    float scale;                // towards real numbers
    float inverse;              // towards codes
    float block_factor;         // turns a block's amax into its block scale
    float block_factor_four;    // the same if its largest element becomes 4
} TensorScale;

HOST_DEVICE static inline TensorScale quantizer_tensor_scale(Quantizer q, float amax) {
    float largest = quantizer_largest(q);
    float inverse = largest == 0.0f || amax == 0.0f ? 1.0f : fminf(largest / amax, FLOAT_LARGEST);
    TensorScale t;
    t.scale = 1.0f / inverse;
    t.inverse = inverse;
    t.block_factor = inverse * (q.rounding == ROUND_MS_EDEN ? MS_EDEN_BLOCK_FACTOR
                                : q.unbiased ? UNBIASED_BLOCK_FACTOR : 1.0f / 6.0f);
    t.block_factor_four = inverse * 0.25f;
    return t;
}

// The factor that turns a GEMM of two matrices' (code value * block scale) into real numbers: the
// product of both tensor scales, from the two amaxes and a constant of the quantizers, in this
// order. Operands of a GEMM have one format.
static inline float quantizer_alpha_factor(const Quantizer* a, const Quantizer* b) {
    double product = (double)quantizer_largest(*a) * (double)quantizer_largest(*b);
    return product == 0.0 ? 0.0f : (float)(1.0 / product);
}

HOST_DEVICE static inline float quantizer_alpha(float amax_a, float amax_b, float factor) {
    return factor == 0.0f ? 1.0f : (amax_a * amax_b) * factor;
}

// A block's scale; 0 for FP8, which has none.
HOST_DEVICE static inline uint8_t quantizer_block_scale(float block_amax, int four, TensorScale t,
                                                        Quantizer q) {
    if (q.format == FORMAT_FP8) { return 0; }
    if (q.format != FORMAT_NVFP4) {
        return mx_block_scale(block_amax, q.format == FORMAT_MXFP4 ? 6.0f : E4M3_LARGEST);
    }
    float ratio = q.paper_order ? (block_amax / 6.0f) * t.inverse
                                : block_amax * (four ? t.block_factor_four : t.block_factor);
    return (uint8_t)e4m3_magnitude_from_float(ratio);
}

// What turns the block's elements into code units.
HOST_DEVICE static inline float quantizer_block_inverse(uint8_t block_scale, TensorScale t,
                                                        Quantizer q) {
    if (q.format == FORMAT_FP8) { return t.inverse; }
    if (q.format != FORMAT_NVFP4) { return e8m0_inverse(block_scale); }
    Nvfp4TensorScale tensor = { t.scale, t.block_factor };
    return nvfp4_block_inverse(block_scale, tensor);
}

// ---------------------------------------------------------------------------------------------
// 16 elements

// Adds to errors[0], errors[1] what these 16 elements lose if their block's largest becomes 6, 4.
// A tile adds its rows in order. The largest becomes 4 if errors[1] < errors[0].
HOST_DEVICE static inline void quantizer_errors(float* errors /* (2) */, const float* x /* (16) */,
                                                float block_amax, TensorScale t, Quantizer q) {
    int absolute = q.four_six == FOUR_SIX_MAE;
    errors[0] += four_six_error(x, block_amax, t.block_factor, t.scale, absolute);
    errors[1] += four_six_error(x, block_amax, t.block_factor_four, t.scale, absolute);
}

// Quantizes 16 consecutive elements of a row; codes gets 8 bytes (4 bit) or 16. Returns the block's
// scale byte, the same for all groups of a block; 0 for FP8. four: see quantizer_errors. How to
// round is q's to say; `rounding` and the group's number in the matrix name the random bytes.
HOST_DEVICE static inline uint8_t quantizer_group(uint8_t* codes, const float* x /* (16) */,
                                                  float block_amax, int four, TensorScale t,
                                                  Quantizer q, Nvfp4Rounding rounding,
                                                  uint64_t group) {
    uint8_t block_scale = quantizer_block_scale(block_amax, four, t, q);
    float inverse = quantizer_block_inverse(block_scale, t, q);
    if (format_bits(q.format) == 8) {
        fp8_quantize_group(codes, x, inverse, q.e5m2);
        return block_scale;
    }
    rounding.stochastic = q.rounding == ROUND_STOCHASTIC;
    nvfp4_quantize_block(codes, x, inverse, rounding, group);
    if (q.rounding == ROUND_MS_EDEN) {
        uint32_t random = nvfp4_random_bytes(rounding, group).word[0];
        return ms_eden_block_scale(block_scale, codes, x, inverse, random);
    }
    return block_scale;
}

// ---------------------------------------------------------------------------------------------
// Back to numbers

// The value of element code number `index`.
HOST_DEVICE static inline float quantized_value(Quantizer q, const uint8_t* codes, size_t index) {
    if (format_bits(q.format) == 8) {
        return q.e5m2 ? e5m2_to_float(codes[index]) : e4m3_to_float(codes[index]);
    }
    return e2m1_to_float(codes[index / 2] >> (4 * (index % 2)) & 15);
}

// The value of a block's scale byte.
HOST_DEVICE static inline float quantized_block_value(Format f, uint8_t byte) {
    return f == FORMAT_FP8 ? 1.0f : f == FORMAT_NVFP4 ? e4m3_to_float(byte) : e8m0_to_float(byte);
}

// ---------------------------------------------------------------------------------------------
// The reference (host): short rather than fast, and what kernels must equal

// Quantizes one block or tile: rows top to bottom - 1, columns left to right - 1.
static inline void quantized_make_block(Nvfp4Matrix* out, const float* x, size_t top, size_t bottom,
                                        size_t left, size_t right, TensorScale t, Quantizer q,
                                        Nvfp4Rounding rounding) {
    size_t cols = (size_t)out->cols, group_bytes = quantized_codes_size(q.format, 1, 16);
    uint32_t amax_bits = 0;
    for (size_t row = top; row < bottom; row++) {
        uint32_t a = nvfp4_amax_bits(x + row * cols + left, right - left);
        amax_bits = a > amax_bits ? a : amax_bits;
    }
    float block_amax = bits_float(amax_bits), errors[2] = { 0.0f, 0.0f };
    for (size_t row = top; row < bottom && q.four_six; row++) {
        quantizer_errors(errors, x + row * cols + left, block_amax, t, q);
    }
    int four = errors[1] < errors[0];
    for (size_t row = top; row < bottom; row++) {
        for (size_t col = left; col < right; col += 16) {
            uint8_t byte = quantizer_group(out->codes + (row * cols + col) / 16 * group_bytes,
                                           x + row * cols + col, block_amax, four, t, q, rounding,
                                           nvfp4_random_block(rounding, row, col / 16, cols));
            if (q.format != FORMAT_FP8) {
                size_t block = col / (size_t)format_block(q.format);
                out->block_scales[quantized_scale_offset(q.format, row, block, cols)] = byte;
            }
        }
    }
}

// Quantizes x (rows, cols), BF16 values in row-major order; cols is a multiple of 16. out's buffers
// are as large as quantized_codes_size and quantized_scales_size say. *out->amax is set: that of x
// or, if x is a part of a larger matrix, of the whole. It is finite. A tile's scale byte is written
// for each of its rows, so that readers need not know which it was.
static inline void quantized_make(Nvfp4Matrix* out, const float* x, Quantizer q,
                                  Nvfp4Rounding rounding) {
    size_t rows = (size_t)out->rows, cols = (size_t)out->cols;
    size_t block = q.format == FORMAT_FP8 ? 16 : (size_t)format_block(q.format);
    size_t tile = q.tile && q.format != FORMAT_FP8 ? block : 1;
    TensorScale t = quantizer_tensor_scale(q, *out->amax);
    size_t scale_bytes = quantized_scales_size(q.format, rows, cols);
    if (scale_bytes > 0) { memset(out->block_scales, 0, scale_bytes); }

    #pragma omp parallel for
    for (size_t top = 0; top < rows; top += tile) {
        size_t bottom = top + tile < rows ? top + tile : rows;
        for (size_t left = 0; left < cols; left += block) {
            size_t right = left + block < cols ? left + block : cols;
            quantized_make_block(out, x, top, bottom, left, right, t, q, rounding);
        }
    }
}

// out = the transpose, same codes and scales: only of a matrix quantized in tiles, or in FP8, whose
// scales mean the same in both directions. out's buffers are those of a (cols, rows) matrix; rows
// is a multiple of 16, too.
static inline void quantized_transpose(Nvfp4Matrix* out, const Nvfp4Matrix* in, Quantizer q) {
    size_t rows = (size_t)in->rows, cols = (size_t)in->cols, block = (size_t)format_block(q.format);
    size_t scale_bytes = quantized_scales_size(q.format, cols, rows);
    *out->amax = *in->amax;
    if (scale_bytes > 0) { memset(out->block_scales, 0, scale_bytes); }
    #pragma omp parallel for
    for (size_t col = 0; col < cols; col++) {
        if (format_bits(q.format) == 8) {
            for (size_t row = 0; row < rows; row++) {
                out->codes[col * rows + row] = in->codes[row * cols + col];
            }
        } else {
            for (size_t row = 0; row < rows; row += 2) {
                uint8_t even = in->codes[(row * cols + col) / 2] >> (4 * (col % 2)) & 15;
                uint8_t odd = in->codes[((row + 1) * cols + col) / 2] >> (4 * (col % 2)) & 15;
                out->codes[(col * rows + row) / 2] = e2m1_pack(even, odd);
            }
        }
        for (size_t b = 0; b < quantized_blocks(q.format, rows); b++) {
            out->block_scales[quantized_scale_offset(q.format, col, b, rows)] =
                in->block_scales[quantized_scale_offset(q.format, b * block, col / block, cols)];
        }
    }
}

// out (rows, cols) = code value * block scale, without the tensor scale: what enters the GEMM. Each
// product is exact in BF16. NVFP4: see nvfp4_expand. With powers of two a product has the at most 4
// significant bits of its code; and if it is subnormal, it has no digit behind the last one of BF16
// because x had none, and rounding to a code adds none. (It is finite up to an amax of 2^127.)
static inline void quantized_expand(float* out, const Nvfp4Matrix* in, Quantizer q) {
    size_t rows = (size_t)in->rows, cols = (size_t)in->cols;
    int four_bits = format_bits(q.format) == 4;
    float values[256];
    for (int c = 0; c < (four_bits ? 16 : 256); c++) {
        uint8_t code = (uint8_t)c;
        values[c] = quantized_value(q, &code, 0);
    }
    #pragma omp parallel for
    for (size_t row = 0; row < rows; row++) {
        for (size_t left = 0; left < cols; left += 16) {
            float scale = 1.0f;
            if (q.format != FORMAT_FP8) {
                size_t block = left / (size_t)format_block(q.format);
                size_t offset = quantized_scale_offset(q.format, row, block, cols);
                scale = quantized_block_value(q.format, in->block_scales[offset]);
            }
            size_t first = row * cols + left;
            const uint8_t* codes = in->codes + (four_bits ? first / 2 : first);
            for (int j = 0; j < 16; j++) {
                int code = four_bits ? codes[j / 2] >> (4 * (j % 2)) & 15 : codes[j];
                out[first + (size_t)j] = values[code] * scale;
            }
        }
    }
}

#endif
