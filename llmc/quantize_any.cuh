/*
Every quantizer that a recipe can ask for, on the device: the same bits as quantized_make in
quantizer.h. Readable first. The base recipe has a fast kernel of its own in quantize.cuh, which
gives the same bits as this one where both apply.

One call quantizes one direction of a tensor x of BF16:

    quantize_any_amax   amax (1) of x or its transpose, after the transform if there is one
    quantize_any        codes and scales, from the amax

A block of threads takes a tile of 128 x 128 elements to shared memory, turned round if the
transpose is wanted, so that from there on K runs along its rows. 128 is the largest block and the
largest transform, and tiles begin at its multiples: no block, square of blocks or transform lies in
two tiles. Between barriers:

    load, transform along K | amax of each block | four over six: the errors | scales and codes

Every number comes from the functions of quantizer.h and hadamard.h, for 16 elements at a time.
Nobody here writes the padding of the block scales: who allocates a matrix zeroes them once.
*/
#ifndef LLMC_QUANTIZE_ANY_CUH
#define LLMC_QUANTIZE_ANY_CUH

#include "hadamard.h"
#include "quantize.cuh"
#include "quantizer.h"

#define ANY_TILE 128
#define ANY_GROUPS (ANY_TILE / 16)      // of 16 elements, in a row of a tile
#define ANY_THREADS 256

// Do the kernels of quantize.cuh make this operand, or transpose? They transform along the rows of
// what is stored, and squares not at all.
static inline int quantize_is_fast(const Quantizer* q, int transposed) {
    return quantizer_is_plain_nvfp4(q) && (q->hadamard == 0 || (transposed && !q->tile));
}

// 65 words to a row: threads that go down a column meet few banks twice.
typedef __nv_bfloat16 AnyTile[ANY_TILE][ANY_TILE + 2];

// What is quantized: x (rows, cols), stored as that or as (cols, rows).
typedef struct {
    const __nv_bfloat16* x;
    int rows, cols;
    int transposed;
    Rotation rotation;          // along cols
} AnySource;

// This block's tile, transformed. Elements outside of the matrix are left as they are.
__device__ static inline void any_load(AnyTile tile, AnySource s, int first_row, int first_col) {
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_TILE; i += ANY_THREADS) {
        int row = s.transposed ? i % ANY_TILE : i / ANY_TILE;
        int col = s.transposed ? i / ANY_TILE : i % ANY_TILE;
        if (first_row + row >= s.rows || first_col + col >= s.cols) { continue; }
        size_t from = s.transposed ? (size_t)(first_col + col) * s.rows + first_row + row
                                   : (size_t)(first_row + row) * s.cols + first_col + col;
        tile[row][col] = s.x[from];
    }
    __syncthreads();
    if (s.rotation.size == 0) { return; }
    int across = ANY_TILE / s.rotation.size;
    for (int i = (int)threadIdx.x; i < ANY_TILE * across; i += ANY_THREADS) {
        int row = i / across, col = i % across * s.rotation.size;
        if (first_row + row >= s.rows || first_col + col >= s.cols) { continue; }
        float values[ANY_TILE];
        for (int j = 0; j < s.rotation.size; j++) { values[j] = to_float(tile[row][col + j]); }
        rotation_apply(values, &s.rotation);
        for (int j = 0; j < s.rotation.size; j++) {
            tile[row][col + j] = from_float<__nv_bfloat16>(values[j]);
        }
    }
    __syncthreads();
}

__device__ static inline void any_group(float* x /* (16) */, const AnyTile tile, int row,
                                        int group) {
    UNROLL
    for (int j = 0; j < 16; j++) { x[j] = to_float(tile[row][16 * group + j]); }
}

// The largest |x| as bits, which keeps NaN.
__device__ static inline uint32_t any_group_amax(const float* x /* (16) */) {
    uint32_t amax = 0;
    UNROLL
    for (int j = 0; j < 16; j++) { amax = max(amax, float_abs_bits(x[j])); }
    return amax;
}

// ---------------------------------------------------------------------------------------------
// amax of a matrix

// amax (1), as bits, 0 before
static __global__ void __launch_bounds__(ANY_THREADS)
any_amax_kernel(uint32_t* amax, AnySource s) {
    __shared__ AnyTile tile;
    int first_row = (int)blockIdx.x * ANY_TILE, first_col = (int)blockIdx.y * ANY_TILE;
    any_load(tile, s, first_row, first_col);
    uint32_t largest = 0;
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS;
        if (first_row + row >= s.rows || first_col + 16 * group >= s.cols) { continue; }
        float x[16];
        any_group(x, tile, row, group);
        largest = max(largest, any_group_amax(x));
    }
    largest = __reduce_max_sync(0xffffffffu, largest);
    if (threadIdx.x % 32 == 0) { atomicMax(amax, largest); }
}

static inline dim3 any_grid(int rows, int cols) {
    check(CEIL_DIV(cols, ANY_TILE) <= 65535, "%d columns are more than one launch covers: reduce -b",
          cols);
    return dim3(CEIL_DIV(rows, ANY_TILE), CEIL_DIV(cols, ANY_TILE));
}

static inline AnySource any_source(const __nv_bfloat16* x, int rows, int cols, int transposed,
                                   const Rotation* rotation) {
    quantize_check_shape(rows, cols);
    check(rotation->size <= ANY_TILE && (rotation->size == 0 || cols % rotation->size == 0),
          "%d columns in transforms of %d", cols, rotation->size);
    AnySource s;
    s.x = x;
    s.rows = rows;
    s.cols = cols;
    s.transposed = transposed;
    s.rotation = *rotation;
    return s;
}

// amax (1) = max |x| over a matrix (rows, cols), stored in x as that, or as (cols, rows) if
// `transposed` is set, after the transform along cols. A NaN or Inf gives a result that is not
// finite.
static inline void quantize_any_amax(float* amax, const __nv_bfloat16* x, int rows, int cols,
                                     int transposed, const Rotation* rotation,
                                     cudaStream_t stream) {
    AnySource s = any_source(x, rows, cols, transposed, rotation);
    if (rotation->size == 0) {          // the same elements in either direction
        quantize_amax(amax, NULL, x, transposed ? cols : rows, transposed ? rows : cols, 0, stream);
        return;
    }
    cudaCheck(cudaMemsetAsync(amax, 0, sizeof(float), stream));
    any_amax_kernel<<<any_grid(rows, cols), ANY_THREADS, 0, stream>>>((uint32_t*)amax, s);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Quantization

// Squares of blocks: the row in whose name the tile keeps what its rows share.
__device__ static inline int any_scale_row(Quantizer q, int row) {
    int block = q.tile ? format_block(q.format) : 0;
    return block > 0 ? row / block * block : row;
}

// Stores the codes of 16 elements, number `group` of the matrix: 8 bytes or 16.
__device__ static inline void any_store(Nvfp4Matrix out, size_t group, const uint8_t* codes,
                                        int bits) {
    if (bits == 4) {
        uint2 words;
        memcpy(&words, codes, sizeof(words));
        ((uint2*)out.codes)[group] = words;
    } else {
        uint4 words;
        memcpy(&words, codes, sizeof(words));
        ((uint4*)out.codes)[group] = words;
    }
}

// The tensor's amax is known. In shared memory: the amax of each block, under the row and the first
// group of 16 that it begins with, and what each group loses if its block's largest becomes 6, 4.
static __global__ void __launch_bounds__(ANY_THREADS)
any_quantize_kernel(Nvfp4Matrix out, AnySource s, Quantizer q, Nvfp4Rounding rounding) {
    __shared__ AnyTile tile;
    __shared__ uint32_t block_amax[ANY_TILE][ANY_GROUPS];
    __shared__ float errors[ANY_TILE][ANY_GROUPS][2];
    __shared__ TensorScale tensor;
    int first_row = (int)blockIdx.x * ANY_TILE, first_col = (int)blockIdx.y * ANY_TILE;
    int has_blocks = format_block(q.format) > 0;
    int wide = has_blocks ? format_block(q.format) / 16 : 1;        // groups of a block
    if (threadIdx.x == 0) { tensor = quantizer_tensor_scale(q, *out.amax); }
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        block_amax[i / ANY_GROUPS][i % ANY_GROUPS] = 0;
    }
    any_load(tile, s, first_row, first_col);

    float x[16];
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS;
        if (first_row + row >= s.rows || first_col + 16 * group >= s.cols) { continue; }
        any_group(x, tile, row, group);
        if (has_blocks) {
            atomicMax(&block_amax[any_scale_row(q, row)][group / wide * wide], any_group_amax(x));
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; q.four_six && i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS;
        if (first_row + row >= s.rows || first_col + 16 * group >= s.cols) { continue; }
        float amax = bits_float(block_amax[any_scale_row(q, row)][group / wide * wide]);
        errors[row][group][0] = errors[row][group][1] = 0.0f;
        any_group(x, tile, row, group);
        quantizer_errors(errors[row][group], x, amax, tensor, q);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < ANY_TILE * ANY_GROUPS; i += ANY_THREADS) {
        int row = i / ANY_GROUPS, group = i % ANY_GROUPS, top = any_scale_row(q, row);
        if (first_row + row >= s.rows || first_col + 16 * group >= s.cols) { continue; }
        int four = 0;
        if (q.four_six) {               // a tile adds the errors of its rows, in their order
            float six_error = 0.0f, four_error = 0.0f;
            for (int r = top; r < top + (q.tile ? 16 : 1); r++) {
                six_error += errors[r][group][0];
                four_error += errors[r][group][1];
            }
            four = four_error < six_error;
        }
        size_t to_row = (size_t)(first_row + row), to_group = (size_t)(first_col / 16 + group);
        size_t number = to_row * (size_t)(s.cols / 16) + to_group;
        uint8_t codes[16];
        any_group(x, tile, row, group);
        uint8_t scale = quantizer_group(codes, x, bits_float(block_amax[top][group / wide * wide]),
                                        four, tensor, q, rounding,
                                        nvfp4_random_block(rounding, to_row, to_group,
                                                           (uint64_t)s.cols));
        any_store(out, number, codes, format_bits(q.format));
        if (has_blocks && group % wide == 0) {
            out.block_scales[quantized_scale_offset(q.format, to_row, to_group / (size_t)wide,
                                                    (size_t)s.cols)] = scale;
        }
    }
}

// out (rows, cols) = x (rows, cols) as q says; or the transpose of x (cols, rows) if `transposed`
// is set. out's amax has been set by quantize_any_amax with the same rotation.
static inline void quantize_any(const Nvfp4Matrix* out, const __nv_bfloat16* x, int transposed,
                                Quantizer q, const Rotation* rotation, Nvfp4Rounding rounding,
                                cudaStream_t stream) {
    AnySource s = any_source(x, out->rows, out->cols, transposed, rotation);
    any_quantize_kernel<<<any_grid(out->rows, out->cols), ANY_THREADS, 0, stream>>>(*out, s, q,
                                                                                    rounding);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Transposition of codes, and expansion: a thread for each 16 elements of the result

static __global__ void any_transpose_kernel(Nvfp4Matrix out, Nvfp4Matrix in, Format format) {
    size_t i = (size_t)blockIdx.x * ANY_THREADS + threadIdx.x;
    size_t rows = (size_t)in.rows, cols = (size_t)in.cols;
    if (i == 0) { *out.amax = *in.amax; }
    if (i >= rows / 16 * cols) { return; }
    // neighbouring threads read neighbouring columns
    size_t col = i % cols, group = i / cols;
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
    quantize_check_shape(in->rows, in->cols);
    check(out->rows == in->cols && out->cols == in->rows && (q.tile || q.format == FORMAT_FP8),
          "a (%d, %d) matrix in %s, tile %d, is transposed into one of (%d, %d)", in->rows,
          in->cols, format_name(q.format), q.tile, out->rows, out->cols);
    size_t groups = (size_t)in->rows / 16 * (size_t)in->cols;
    any_transpose_kernel<<<(unsigned)CEIL_DIV(groups, ANY_THREADS), ANY_THREADS, 0, stream>>>(
        *out, *in, q.format);
    cudaCheck(cudaGetLastError());
}

static __global__ void any_expand_kernel(__nv_bfloat16* out /* (rows, cols) */, Nvfp4Matrix in,
                                         Quantizer q) {
    size_t group = (size_t)blockIdx.x * ANY_THREADS + threadIdx.x, cols = (size_t)in.cols;
    if (group >= (size_t)in.rows * (cols / 16)) { return; }
    size_t row = group / (cols / 16), col = group % (cols / 16) * 16;
    size_t block = (size_t)format_block(q.format), bytes = 2 * (size_t)format_bits(q.format);
    float scale = 1.0f;
    if (block > 0) {
        scale = quantized_block_value(q.format, in.block_scales[quantized_scale_offset(
            q.format, row, col / block, cols)]);
    }
    uint8_t codes[16];
    memcpy(codes, in.codes + group * bytes, bytes);
    for (int half = 0; half < 2; half++) {
        Vec<__nv_bfloat16> values;
        UNROLL
        for (int j = 0; j < 8; j++) {
            values.at[j] = from_float<__nv_bfloat16>(
                quantized_value(q, codes, (size_t)(8 * half + j)) * scale);
        }
        vec_store(out + 16 * group + 8 * half, values);
    }
}

// out (rows, cols) = code value * block scale, exact in BF16: see quantized_expand in quantizer.h.
static inline void quantize_any_expand(__nv_bfloat16* out, const Nvfp4Matrix* in, Quantizer q,
                                       cudaStream_t stream) {
    quantize_check_shape(in->rows, in->cols);
    size_t groups = (size_t)in->rows * (size_t)in->cols / 16;
    any_expand_kernel<<<(unsigned)CEIL_DIV(groups, ANY_THREADS), ANY_THREADS, 0, stream>>>(out, *in,
                                                                                          q);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// The GEMM's factor

// What a product of two expanded operands is multiplied by. An operand made from the codes of
// another, `aligned`, is in units of that one's tensor scale.
typedef struct {
    float factor;               // quantizer_alpha_factor
    const float* source_amax;   // (1) of the matrix whose codes were the source; NULL: a tensor was
    Quantizer source;
} AnyAlpha;

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

// alpha (1), and nonfinite (1): see quantize_alpha in quantize.cuh. That also names an operand if
// alpha itself leaves FP32. Formats without a tensor scale may have amaxes of any size.
static inline void quantize_any_alpha(float* alpha, int* nonfinite, const float* amax_a,
                                      const float* amax_b, int tag_a, int tag_b, AnyAlpha about,
                                      cudaStream_t stream) {
    any_alpha_kernel<<<1, 1, 0, stream>>>(alpha, nonfinite, amax_a, amax_b, tag_a, tag_b, about);
    cudaCheck(cudaGetLastError());
}

#endif
