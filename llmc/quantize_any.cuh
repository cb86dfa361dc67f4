/*
Every quantizer that a recipe can ask for, on the device: the same bits as quantized_make in
quantizer.h. The base recipe has a kernel of its own in quantize.cuh, which gives the same bits as
this one where both apply.

    quantize_any_amax   amax (1) of a tensor x of BF16, of its transpose, or of both, after the
                        transform if there is one
    quantize_any        codes and scales of either or both, from the amaxes

A block of threads takes a tile of 128 x 128 elements to shared memory. 128 is the largest block and
the largest transform, and tiles begin at its multiples: no block, square of blocks or transform lies
in two tiles. Then it goes through the tile in one direction, and through it again in the other:

    a thread    owns 16 elements along K, in registers: an item
    8 threads   neighbours, own 128 along K: a transform of more than 16 points, and the amax of a
                block of more than 16 elements, go through shuffles between them
    squares     first all threads find the amax of each square of the tile together

Every number comes from the functions of quantizer.h and hadamard.h. They ask for the format again
and again; the kernels are compiled for each format, so that the answers cost nothing. Nobody here
writes the padding of the block scales: who allocates a matrix zeroes them once.
*/
#ifndef LLMC_QUANTIZE_ANY_CUH
#define LLMC_QUANTIZE_ANY_CUH

#include "hadamard.h"
#include "quantize.cuh"
#include "quantizer.h"

#define ANY_TILE 128
#define ANY_GROUPS (ANY_TILE / 16)              // items in a row of a tile
#define ANY_THREADS 256
#define ANY_SQUARES (ANY_TILE / 16 * ANY_GROUPS)    // most squares in a tile

// Do the kernels of quantize.cuh make this operand, or transpose? They transform along the rows of
// what is stored, and squares not at all.
static inline int quantize_is_fast(const Quantizer* q, int transposed) {
    return quantizer_is_plain_nvfp4(q) && (q->hadamard == 0 || (transposed && !q->tile));
}

// What is made of x, or of its transpose.
typedef struct {
    Nvfp4Matrix matrix;         // codes NULL: nothing
    Quantizer q;
    Rotation rotation;          // along the matrix's columns
    Nvfp4Rounding rounding;
} AnyOutput;

static inline AnyOutput any_output(const Nvfp4Matrix* matrix, Quantizer q, Rotation rotation,
                                   Nvfp4Rounding rounding) {
    AnyOutput o;
    o.matrix = *matrix;
    o.q = q;
    o.rotation = rotation;
    o.rounding = rounding;
    return o;
}

// ---------------------------------------------------------------------------------------------
// A tile of x in shared memory

// A row is 16 vectors of 8 elements. In rows 16 g to 16 g + 15, vector v stands at v ^ g, so that
// the 8 items of a row and the 8 of a column lie in different banks.
typedef uint4 AnyTile[ANY_TILE][ANY_TILE / 8];

// This block's tile of x (rows, cols). What lies outside of x is 0, which changes no amax.
__device__ static inline void any_load(AnyTile tile, const __nv_bfloat16* x, int rows, int cols) {
    int first_row = (int)blockIdx.x * ANY_TILE, first_col = (int)blockIdx.y * ANY_TILE;
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_TILE / 8; i += ANY_THREADS) {
        int row = i / (ANY_TILE / 8), vector = i % (ANY_TILE / 8);
        int from_row = first_row + row, from_col = first_col + 8 * vector;
        uint4 loaded = make_uint4(0, 0, 0, 0);
        if (from_row < rows && from_col < cols) {
            loaded = *(const uint4*)(x + (size_t)from_row * cols + from_col);
        }
        tile[row][vector ^ (row / 16)] = loaded;
    }
    __syncthreads();
}

// An item: elements 16 group to 16 group + 15 of row `row` of the tile, or of its transpose.
template <int TRANSPOSED>
__device__ static inline void any_item(float* x /* (16) */, const AnyTile tile, int row,
                                       int group) {
    if (TRANSPOSED) {
        const uint32_t* word = (const uint32_t*)tile[16 * group] + ((row / 2) ^ (4 * group));
        UNROLL
        for (int j = 0; j < 16; j++) { x[j] = pair_value(word[j * (ANY_TILE / 2)], row % 2); }
    } else {
        uint4 loaded[2] = { tile[row][(2 * group) ^ (row / 16)],
                            tile[row][(2 * group + 1) ^ (row / 16)] };
        uint32_t pairs[8];
        memcpy(pairs, loaded, sizeof(pairs));
        block_values(x, pairs);
    }
}

// rotation_apply without its rounding, of the item `group` of a row, by the threads that have the
// row's items. The butterflies are those of hadamard_butterflies, in the same order.
__device__ static inline void any_rotate(float* x /* (16) */, const Rotation* r, int group) {
    int position = 16 * group % r->size;
    uint32_t signs = r->signs[position / 32] >> (position % 32);
    UNROLL
    for (int j = 0; j < 16; j++) { x[j] = signs >> j & 1u ? -x[j] : x[j]; }
    hadamard_butterflies(x, 16);
    for (int stride = 1; 16 * stride < r->size; stride *= 2) {
        UNROLL
        for (int j = 0; j < 16; j++) {
            float other = __shfl_xor_sync(0xffffffffu, x[j], stride);
            x[j] = group & stride ? other - x[j] : x[j] + other;
        }
    }
}

// The largest |x| as bits, which keeps NaN.
__device__ static inline uint32_t any_item_amax(const float* x /* (16) */) {
    uint32_t amax = 0;
    UNROLL
    for (int j = 0; j < 16; j++) { amax = max(amax, float_abs_bits(x[j])); }
    return amax;
}

// ---------------------------------------------------------------------------------------------
// amax

// The largest magnitude in the tile, or its transpose, that this thread owns, as bits. The rounding
// after the transform never decreases: the largest sum, rounded, is the largest rounded sum.
template <int TRANSPOSED>
__device__ static inline uint32_t any_tile_amax(const AnyTile tile, const Rotation* r) {
    uint32_t largest = 0;
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        float x[16];
        any_item<TRANSPOSED>(x, tile, i / ANY_GROUPS, i % ANY_GROUPS);
        if (r->size > 0) { any_rotate(x, r, i % ANY_GROUPS); }
        largest = max(largest, any_item_amax(x));
    }
    return r->size > 0 ? float_bits(rotation_round(bits_float(largest), r->size)) : largest;
}

// amax (1), amaxT (1), as bits, 0 before; either may be NULL
static __global__ void __launch_bounds__(ANY_THREADS)
any_amax_kernel(uint32_t* amax, uint32_t* amaxT, const __nv_bfloat16* x /* (rows, cols) */,
                int rows, int cols, Rotation r, Rotation rT) {
    __shared__ AnyTile tile;
    any_load(tile, x, rows, cols);
    if (amax != NULL) {
        uint32_t largest = __reduce_max_sync(0xffffffffu, any_tile_amax<0>(tile, &r));
        if (threadIdx.x % 32 == 0) { atomicMax(amax, largest); }
    }
    if (amaxT != NULL) {
        uint32_t largest = __reduce_max_sync(0xffffffffu, any_tile_amax<1>(tile, &rT));
        if (threadIdx.x % 32 == 0) { atomicMax(amaxT, largest); }
    }
}

static inline dim3 any_grid(int rows, int cols) {
    quantize_check_shape(rows, cols);
    check(CEIL_DIV(cols, ANY_TILE) <= 65535, "%d columns are more than one launch covers: reduce -b",
          cols);
    return dim3(CEIL_DIV(rows, ANY_TILE), CEIL_DIV(cols, ANY_TILE));
}

static inline void any_check_rotation(const Rotation* r, int cols) {
    check(r->size <= ANY_TILE && (r->size == 0 || cols % r->size == 0),
          "%d columns in transforms of %d", cols, r->size);
}

// amax (1) = max |x| over x (rows, cols) after the transform r along its columns; amaxT (1) = the
// same over its transpose, after rT along x's rows. Either may be NULL. A NaN or Inf gives a result
// that is not finite.
static inline void quantize_any_amax(float* amax, const Rotation* r, float* amaxT,
                                     const Rotation* rT, const __nv_bfloat16* x, int rows, int cols,
                                     cudaStream_t stream) {
    Rotation none;
    memset(&none, 0, sizeof(none));
    Rotation along = amax != NULL ? *r : none, down = amaxT != NULL ? *rT : none;
    any_check_rotation(&along, cols);
    any_check_rotation(&down, rows);
    if (along.size == 0 && down.size == 0) {
        quantize_amax(amax, amaxT, x, rows, cols, 0, stream);
        return;
    }
    if (amax != NULL) { cudaCheck(cudaMemsetAsync(amax, 0, sizeof(float), stream)); }
    if (amaxT != NULL) { cudaCheck(cudaMemsetAsync(amaxT, 0, sizeof(float), stream)); }
    any_amax_kernel<<<any_grid(rows, cols), ANY_THREADS, 0, stream>>>(
        (uint32_t*)amax, (uint32_t*)amaxT, x, rows, cols, along, down);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Quantization

// Stores the codes of an item, number `item` of the matrix: 8 bytes or 16.
__device__ static inline void any_store(Nvfp4Matrix out, size_t item, const uint8_t* codes,
                                        int bits) {
    if (bits == 4) {
        uint2 words;
        memcpy(&words, codes, sizeof(words));
        ((uint2*)out.codes)[item] = words;
    } else {
        uint4 words;
        memcpy(&words, codes, sizeof(words));
        ((uint4*)out.codes)[item] = words;
    }
}

// An item with the transform that the matrix asks for, as the quantizer sees it.
template <int TRANSPOSED>
__device__ static inline void any_source(float* x /* (16) */, const AnyTile tile, const Rotation* r,
                                         int row, int group) {
    any_item<TRANSPOSED>(x, tile, row, group);
    if (r->size == 0) { return; }
    any_rotate(x, r, group);
    UNROLL
    for (int j = 0; j < 16; j++) { x[j] = rotation_round(x[j], r->size); }
}

// What the items of a square share.
typedef struct {
    uint32_t amax;              // as bits
    int four;                   // four over six: its largest element becomes 4, not 6
} AnySquare;

__device__ static inline int any_square_index(int row, int group, int block) {
    return row / block * ANY_GROUPS + 16 * group / block;
}

// Finds the squares of the tile, together.
template <int TRANSPOSED>
__device__ static inline void any_squares(AnySquare* squares /* (ANY_SQUARES) */,
                                          const AnyTile tile, const AnyOutput* o, Quantizer q,
                                          TensorScale tensor) {
    int block = format_block(q.format);
    if (threadIdx.x < ANY_SQUARES) { squares[threadIdx.x].amax = 0; }
    __syncthreads();
    float x[16];
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS;
        any_source<TRANSPOSED>(x, tile, &o->rotation, row, group);
        atomicMax(&squares[any_square_index(row, group, block)].amax, any_item_amax(x));
    }
    __syncthreads();
    if (!q.four_six) { return; }
    // errors are added in the order of rows: a thread goes down a square
    for (int i = (int)threadIdx.x; i < ANY_SQUARES; i += ANY_THREADS) {
        int top = i / ANY_GROUPS * 16, group = i % ANY_GROUPS;
        float errors[2] = { 0.0f, 0.0f };
        for (int row = top; row < top + 16; row++) {
            any_source<TRANSPOSED>(x, tile, &o->rotation, row, group);
            quantizer_errors(errors, x, bits_float(squares[i].amax), tensor, q);
        }
        squares[i].four = errors[1] < errors[0];
    }
    __syncthreads();
}

// The amax of a block of `block` elements, of which this item has 16 and neighbours the rest.
__device__ static inline uint32_t any_block_amax(const float* x /* (16) */, int block) {
    uint32_t amax = any_item_amax(x);
    for (int stride = 1; 16 * stride < block; stride *= 2) {
        amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, stride));
    }
    return amax;
}

// Quantizes the tile, or its transpose, which begins at first_row, first_col of the matrix. The
// tensor's amax is known.
template <int FORMAT, int TRANSPOSED>
__device__ static inline void any_quantize_tile(const AnyOutput* o, const AnyTile tile,
                                                AnySquare* squares /* (ANY_SQUARES) */,
                                                int first_row, int first_col) {
    Quantizer q = o->q;
    q.format = (Format)FORMAT;
    int block = format_block(q.format), in_squares = q.tile && block > 0;
    Nvfp4Matrix out = o->matrix;
    TensorScale tensor = quantizer_tensor_scale(q, *out.amax);
    if (in_squares) { any_squares<TRANSPOSED>(squares, tile, o, q, tensor); }
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS, four = 0;
        float x[16], amax;
        any_source<TRANSPOSED>(x, tile, &o->rotation, row, group);
        if (in_squares) {
            AnySquare square = squares[any_square_index(row, group, block)];
            amax = bits_float(square.amax);
            four = q.four_six && square.four;
        } else {
            amax = bits_float(any_block_amax(x, block));
            if (q.four_six) {
                float errors[2] = { 0.0f, 0.0f };
                quantizer_errors(errors, x, amax, tensor, q);
                four = errors[1] < errors[0];
            }
        }
        if (first_row + row >= out.rows || first_col + 16 * group >= out.cols) { continue; }
        size_t to_row = (size_t)(first_row + row), to_group = (size_t)(first_col / 16 + group);
        uint8_t codes[16];
        uint8_t scale = quantizer_group(codes, x, amax, four, tensor, q, o->rounding,
                                        nvfp4_random_block(o->rounding, to_row, to_group,
                                                           (uint64_t)out.cols));
        any_store(out, to_row * (size_t)(out.cols / 16) + to_group, codes, format_bits(q.format));
        if (block > 0 && 16 * group % block == 0) {
            out.block_scales[quantized_scale_offset(q.format, to_row,
                                                    16 * to_group / (size_t)block,
                                                    (size_t)out.cols)] = scale;
        }
    }
}

template <int FORMAT>
static __global__ void __launch_bounds__(ANY_THREADS)
any_quantize_kernel(__grid_constant__ const AnyOutput o, __grid_constant__ const AnyOutput oT,
                    const __nv_bfloat16* x /* (rows, cols) */, int rows, int cols) {
    __shared__ AnyTile tile;
    __shared__ AnySquare squares[ANY_SQUARES];
    int first_row = (int)blockIdx.x * ANY_TILE, first_col = (int)blockIdx.y * ANY_TILE;
    any_load(tile, x, rows, cols);
    if (o.matrix.codes != NULL) {
        any_quantize_tile<FORMAT, 0>(&o, tile, squares, first_row, first_col);
    }
    __syncthreads();                    // squares are used again
    if (oT.matrix.codes != NULL) {
        any_quantize_tile<FORMAT, 1>(&oT, tile, squares, first_col, first_row);
    }
}

typedef void AnyQuantizeKernel(AnyOutput, AnyOutput, const __nv_bfloat16*, int, int);

static inline AnyQuantizeKernel* any_quantize_kernel_of(Format format) {
    switch (format) {
        case FORMAT_NVFP4:    return any_quantize_kernel<FORMAT_NVFP4>;
        case FORMAT_MXFP4:    return any_quantize_kernel<FORMAT_MXFP4>;
        case FORMAT_MXFP8:    return any_quantize_kernel<FORMAT_MXFP8>;
        case FORMAT_FP8:      return any_quantize_kernel<FORMAT_FP8>;
        case FORMAT_FP8BLOCK: return any_quantize_kernel<FORMAT_FP8BLOCK>;
        default: check(0, "%s is no format to quantize to", format_name(format));
    }
    return NULL;
}

static inline void any_check_output(const AnyOutput* o, int rows, int cols) {
    check(o->matrix.rows == rows && o->matrix.cols == cols,
          "a (%d, %d) matrix is quantized into one of (%d, %d)", rows, cols, o->matrix.rows,
          o->matrix.cols);
    any_check_rotation(&o->rotation, cols);
}

// x_q (rows, cols) = x (rows, cols), and xT_q (cols, rows) = its transpose, as their quantizers say,
// which are of one format. Either may be NULL. Their amaxes have been set by quantize_any_amax with
// the same rotations.
static inline void quantize_any(const AnyOutput* x_q, const AnyOutput* xT_q,
                                const __nv_bfloat16* x, int rows, int cols, cudaStream_t stream) {
    AnyOutput o, oT;
    memset(&o, 0, sizeof(o));
    memset(&oT, 0, sizeof(oT));
    if (x_q != NULL) { o = *x_q; any_check_output(x_q, rows, cols); }
    if (xT_q != NULL) { oT = *xT_q; any_check_output(xT_q, cols, rows); }
    check(x_q == NULL || xT_q == NULL || o.q.format == oT.q.format, "a matrix in %s and its "
          "transpose in %s", format_name(o.q.format), format_name(oT.q.format));
    AnyQuantizeKernel* kernel = any_quantize_kernel_of(x_q != NULL ? o.q.format : oT.q.format);
    kernel<<<any_grid(rows, cols), ANY_THREADS, 0, stream>>>(o, oT, x, rows, cols);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Transposition of codes, and expansion: a thread for each 16 elements of the result

// The items of a matrix, which kernels number by 32 bits.
static inline unsigned any_item_blocks(const Nvfp4Matrix* matrix) {
    quantize_check_shape(matrix->rows, matrix->cols);
    size_t items = (size_t)matrix->rows * (size_t)matrix->cols / 16;
    check(items <= UINT32_MAX, "a (%d, %d) matrix is too large", matrix->rows, matrix->cols);
    return (unsigned)CEIL_DIV(items, ANY_THREADS);
}

static __global__ void any_transpose_kernel(Nvfp4Matrix out, Nvfp4Matrix in, Format format) {
    uint32_t item = blockIdx.x * ANY_THREADS + threadIdx.x;
    size_t rows = (size_t)in.rows, cols = (size_t)in.cols;
    if (item == 0) { *out.amax = *in.amax; }
    if (item >= rows / 16 * cols) { return; }
    // neighbouring threads read neighbouring columns
    size_t col = item % (uint32_t)in.cols, group = item / (uint32_t)in.cols;
    uint8_t codes[16] = { 0 };
    for (size_t j = 0; j < 16; j++) {
        size_t from = (16 * group + j) * cols + col;
        if (format_bits(format) == 4) {
            codes[j / 2] |= (uint8_t)((in.codes[from / 2] >> (4 * (from % 2)) & 15) << (4 * (j % 2)));
        } else {
            codes[j] = in.codes[from];
        }
    }
    any_store(out, col * (rows / 16) + group, codes, format_bits(format));
    size_t block = (size_t)format_block(format);
    if (block > 0 && 16 * group % block == 0) {
        out.block_scales[quantized_scale_offset(format, col, 16 * group / block, rows)] =
            in.block_scales[quantized_scale_offset(format, 16 * group, col / block, cols)];
    }
}

// out (cols, rows) = the transpose of in (rows, cols), same codes and scales: for square tiles, and
// for FP8, which has one scale. It has the decisions of `in`, too: four over six adds up the errors
// of a tile row by row, and quantizing the transpose would add them in another order.
static inline void quantize_any_transpose(const Nvfp4Matrix* out, const Nvfp4Matrix* in,
                                          Quantizer q, cudaStream_t stream) {
    check(out->rows == in->cols && out->cols == in->rows && (q.tile || q.format == FORMAT_FP8),
          "a (%d, %d) matrix in %s, tile %d, is transposed into one of (%d, %d)", in->rows,
          in->cols, format_name(q.format), q.tile, out->rows, out->cols);
    any_transpose_kernel<<<any_item_blocks(in), ANY_THREADS, 0, stream>>>(*out, *in, q.format);
    cudaCheck(cudaGetLastError());
}

template <int FORMAT>
static __global__ void any_expand_kernel(__nv_bfloat16* out /* (rows, cols) */, Nvfp4Matrix in,
                                         Quantizer quantizer) {
    Quantizer q = quantizer;
    q.format = (Format)FORMAT;
    uint32_t item = blockIdx.x * ANY_THREADS + threadIdx.x, across = (uint32_t)in.cols / 16;
    if (item >= (uint32_t)in.rows * across) { return; }
    uint32_t row = item / across, col = item % across * 16, block = (uint32_t)format_block(q.format);
    float scale = 1.0f;
    if (block > 0) {
        scale = quantized_block_value(q.format, in.block_scales[quantized_scale_offset(
            q.format, row, col / block, (size_t)in.cols)]);
    }
    uint8_t codes[16];
    int bytes = 2 * format_bits(q.format);
    memcpy(codes, in.codes + (size_t)item * (size_t)bytes, (size_t)bytes);
    UNROLL
    for (int half = 0; half < 2; half++) {
        Vec<__nv_bfloat16> values;
        UNROLL
        for (int j = 0; j < 8; j++) {
            values.at[j] = from_float<__nv_bfloat16>(
                quantized_value(q, codes, (size_t)(8 * half + j)) * scale);
        }
        vec_store(out + 16 * (size_t)item + 8 * half, values);
    }
}

typedef void AnyExpandKernel(__nv_bfloat16*, Nvfp4Matrix, Quantizer);

static inline AnyExpandKernel* any_expand_kernel_of(Format format) {
    switch (format) {
        case FORMAT_NVFP4:    return any_expand_kernel<FORMAT_NVFP4>;
        case FORMAT_MXFP4:    return any_expand_kernel<FORMAT_MXFP4>;
        case FORMAT_MXFP8:    return any_expand_kernel<FORMAT_MXFP8>;
        case FORMAT_FP8:      return any_expand_kernel<FORMAT_FP8>;
        case FORMAT_FP8BLOCK: return any_expand_kernel<FORMAT_FP8BLOCK>;
        default: check(0, "%s is no format to expand from", format_name(format));
    }
    return NULL;
}

// out (rows, cols) = code value * block scale, exact in BF16: see quantized_expand in quantizer.h.
static inline void quantize_any_expand(__nv_bfloat16* out, const Nvfp4Matrix* in, Quantizer q,
                                       cudaStream_t stream) {
    AnyExpandKernel* kernel = any_expand_kernel_of(q.format);
    kernel<<<any_item_blocks(in), ANY_THREADS, 0, stream>>>(out, *in, q);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// The GEMM's factor, and operands that are not finite

// What a product of two expanded operands is multiplied by. An operand made from the codes of
// another, `aligned`, is in units of that one's tensor scale.
typedef struct {
    float factor;               // quantizer_alpha_factor
    const float* source_amax;   // (1) of the matrix whose codes were the source; NULL: a tensor was
    Quantizer source;
} AnyAlpha;

// Of operands that were both made from tensors.
static inline AnyAlpha any_alpha(const Quantizer* a, const Quantizer* b) {
    AnyAlpha about;
    memset(&about, 0, sizeof(about));
    about.factor = quantizer_alpha_factor(a, b);
    return about;
}

static __global__ void any_alpha_kernel(float* alpha, int* nonfinite, const float* amax_a,
                                        const float* amax_b, int tag_a, int tag_b, AnyAlpha about) {
    float a = *amax_a, b = *amax_b;
    int a_good = float_abs_bits(a) < FLOAT_INFINITY_BITS;
    int b_good = float_abs_bits(b) < FLOAT_INFINITY_BITS;
    float value = quantizer_alpha(a, b, about.factor);
    if (about.source_amax != NULL) {
        value *= quantizer_tensor_scale(about.source, *about.source_amax).scale;
    }
    int value_good = value <= FLOAT_LARGEST && (value > 0.0f || a == 0.0f || b == 0.0f);
    if (*nonfinite == 0 && !(a_good && b_good && value_good)) {
        *nonfinite = 1 + (a_good && !b_good ? tag_b : tag_a);
    }
    *alpha = value;
}

// alpha (1) = what turns a product of the two expanded matrices into real numbers.
//
// nonfinite (1), 0 before the first call, receives 1 + tag of the first operand in the order of the
// stream that had a NaN or Inf, or with whose amax alpha is too large or too small for FP32. Later
// operands do not overwrite it: they are mostly not finite because the first one was not. The host
// looks at it once a step; until then results are garbage, but nothing else happens. Formats without a
// tensor scale may have amaxes of any size.
static inline void quantize_any_alpha(float* alpha, int* nonfinite, const float* amax_a,
                                      const float* amax_b, int tag_a, int tag_b, AnyAlpha about,
                                      cudaStream_t stream) {
    any_alpha_kernel<<<1, 1, 0, stream>>>(alpha, nonfinite, amax_a, amax_b, tag_a, tag_b, about);
    cudaCheck(cudaGetLastError());
}

#endif
