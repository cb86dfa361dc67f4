/*
From the masters to what the layers read, with sharded masters: weights_cpu.h on the GPU, which
explains what travels and why. With whole masters (-z 0, or one rank) this file does nothing: every
rank quantizes each weight from its BF16 copy (linear_update_weight).

    weights of NVFP4 GEMMs      as codes; block scales and amaxes follow from tile amaxes, which the
                                ranks agree on before they quantize
    all others                  as BF16, or FP32 under -p fp32

The bits are those of the whole weight quantized at once. W^T is transposed, never quantized. Both
kinds of weights travel in place, range by range, so there is nothing to pack: the codes of all
weights lie in one buffer, in the order of the parameters.
*/
#ifndef LLMC_WEIGHTS_CUH
#define LLMC_WEIGHTS_CUH

#include "device_memory.cuh"
#include "gpt2.h"
#include "linear_operands.cuh"
#include "multi_rank_nccl.cuh"
#include "weight_ranges.h"

typedef struct {
    Shards shards;
    const Recipe* recipe;
    const ParamSpec* specs;
    int L;
    uint64_t seed;
    size_t element;             // bytes of a working weight
    QuantizedLinear** quantized;    // (L, NUM_LINEARS), on the CPU
    WeightRanges ranges;        // which weights travel as codes
    uint8_t* codes;             // (num_coded / 2) the coded weights: quantized[]->w_q.codes
    uint32_t* tile_amax;        // (num_coded / 256) as bits, in the same order
} Weights;

#define WEIGHTS_THREADS 256

// Do the linear layers of this block travel as codes?
static inline int weights_coded(const Weights* w, int layer) {
    return w->shards.level > 0 && recipe_weights_travel(w->recipe, layer);
}

// element: bytes of a working weight. The caller fills in quantized[].
static inline void weights_alloc(Weights* w, const Shards* shards, const Recipe* recipe,
                                 const ParamSpec* specs, int L, uint64_t seed, size_t element) {
    memset(w, 0, sizeof(*w));
    w->shards = *shards;
    w->recipe = recipe;
    w->specs = specs;
    w->L = L;
    w->seed = seed;
    w->element = element;
    w->quantized = (QuantizedLinear**)xcalloc((size_t)L * NUM_LINEARS * sizeof(QuantizedLinear*),
                                              "quantized weights");
    w->ranges = weight_ranges(specs, shards->size, recipe, L, shards->level > 0);
    w->codes = (uint8_t*)device_alloc(w->ranges.num_coded / 2, "quantized weights");
    size_t tiles = w->ranges.num_coded / TILE_ELEMENTS;
    w->tile_amax = (uint32_t*)device_alloc(tiles * sizeof(uint32_t), "quantization scratch");
}

// Memory of the codes of a coded weight.
static inline uint8_t* weights_codes(const Weights* w, int layer, int linear) {
    return w->codes + weight_packed(&w->ranges, w->specs, layer, linear) / 2;
}

// ---------------------------------------------------------------------------------------------
// Kernels

// A coded weight W (OC,C) and what of it this rank holds. Blocks are of 16 elements along C.
typedef struct {
    Nvfp4Matrix w_q;
    const __nv_bfloat16* values;    // (OC,C)   those of our part are set
    uint32_t* tile_amax;            // (OC/16, C/16)
    size_t blocks, across;          // blocks altogether, and in a row
    size_t first, end;              // blocks first .. end-1 are in our part
} CodedWeight;

// Where the tile of a block stands among the tiles.
HOST_DEVICE static inline size_t coded_tile(const CodedWeight* c, size_t block) {
    return block / c->across / NVFP4_BLOCK * c->across + block % c->across;
}

__device__ static inline void coded_load(uint32_t* pairs /* (8) */, const CodedWeight* c,
                                         size_t block) {
    const uint4* from = (const uint4*)(c->values + block * NVFP4_BLOCK);
    uint4 halves[2] = { from[0], from[1] };
    memcpy(pairs, halves, sizeof(halves));
}

// A thread per block of our part. tile_amax is 0 before. Maxima of bit patterns, which keep NaN.
static __global__ void coded_tile_amax_kernel(CodedWeight c) {
    size_t block = c.first + (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= c.end) { return; }
    uint32_t pairs[BLOCK_PAIRS];
    coded_load(pairs, &c, block);
    uint32_t amax = 0;
    UNROLL
    for (int i = 0; i < NVFP4_BLOCK; i++) {
        amax = max(amax, float_abs_bits(pair_value(pairs[i / 2], i % 2)));
    }
    atomicMax(&c.tile_amax[coded_tile(&c, block)], amax);
}

// amax (1), 0 before = the largest of tile_amax (tiles). Whole warps.
static __global__ void coded_amax_kernel(uint32_t* amax, const uint32_t* tile_amax, size_t tiles) {
    size_t tile = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t largest = __reduce_max_sync(0xffffffffu, tile < tiles ? tile_amax[tile] : 0u);
    if (threadIdx.x % 32 == 0) { atomicMax(amax, largest); }
}

// A thread per block of the weight: its scale and, in our part, its codes. By arithmetic, which
// gives the codes of the conversion instructions; it happens once an update.
static __global__ void coded_quantize_kernel(CodedWeight c, Nvfp4Rounding rounding) {
    size_t block = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= c.blocks) { return; }
    size_t row = block / c.across, column = block % c.across;
    float amax = bits_float(c.tile_amax[coded_tile(&c, block)]);
    Nvfp4TensorScale tensor = nvfp4_tensor_scale(*c.w_q.amax);
    if (block < c.first || block >= c.end) {
        c.w_q.block_scales[nvfp4_scale_offset(row, column, (size_t)c.w_q.cols)] =
            nvfp4_block_scale(amax, tensor);
        return;
    }
    uint32_t pairs[BLOCK_PAIRS];
    coded_load(pairs, &c, block);
    E2m1Conversion arithmetic = { 0, 0, 0 };
    quantize_store<0>(c.w_q, (uint32_t)row, (uint32_t)column, pairs, amax, tensor, rounding,
                      arithmetic);
}

#define TRANSPOSE_TILE 128

// out (cols, rows) = in (rows, cols), codes: see nvfp4_transpose. A block of threads moves a tile
// of 128 x 128 codes through shared memory; rows there have 4 bytes more than they need, so that
// the threads of a warp, which read down the columns, meet few banks twice. Sizes are multiples of
// 16.
static __global__ void __launch_bounds__(WEIGHTS_THREADS)
transpose_codes_kernel(uint8_t* out, const uint8_t* in, int rows, int cols) {
    __shared__ uint32_t tile[TRANSPOSE_TILE][TRANSPOSE_TILE / 8 + 1];
    int first_row = (int)blockIdx.y * TRANSPOSE_TILE, first_col = (int)blockIdx.x * TRANSPOSE_TILE;
    for (int i = (int)threadIdx.x; i < TRANSPOSE_TILE * TRANSPOSE_TILE / 8; i += WEIGHTS_THREADS) {
        int row = first_row + i / (TRANSPOSE_TILE / 8), word = i % (TRANSPOSE_TILE / 8);
        if (row < rows && first_col + 8 * word < cols) {
            tile[i / (TRANSPOSE_TILE / 8)][word] =
                *(const uint32_t*)(in + ((size_t)row * cols + first_col + 8 * word) / 2);
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < TRANSPOSE_TILE * TRANSPOSE_TILE / 8; i += WEIGHTS_THREADS) {
        int col = i / (TRANSPOSE_TILE / 8), word = i % (TRANSPOSE_TILE / 8);
        if (first_col + col >= cols || first_row + 8 * word >= rows) { continue; }
        uint32_t codes = 0;
        UNROLL
        for (int k = 0; k < 8; k++) {
            codes |= (tile[8 * word + k][col / 8] >> (4 * (col % 8)) & 15u) << (4 * k);
        }
        *(uint32_t*)(out + ((size_t)(first_col + col) * rows + first_row + 8 * word) / 2) = codes;
    }
}

// A thread per block of out (cols, rows): the scale of its tile. Also the amax.
static __global__ void transpose_scales_kernel(Nvfp4Matrix out, Nvfp4Matrix in) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t rows = (size_t)in.rows, cols = (size_t)in.cols, blocks = rows / NVFP4_BLOCK;
    if (i == 0) { *out.amax = *in.amax; }
    if (i >= cols * blocks) { return; }
    size_t col = i / blocks, block = i % blocks;
    out.block_scales[nvfp4_scale_offset(col, block, rows)] =
        in.block_scales[nvfp4_scale_offset(block * NVFP4_BLOCK, col / NVFP4_BLOCK, cols)];
}

// out (cols, rows) = the transpose of in (rows, cols), same codes and scales: only for a matrix
// quantized in 16x16 tiles. The padding of out's scales is not written.
static inline void quantize_transpose(const Nvfp4Matrix* out, const Nvfp4Matrix* in,
                                      cudaStream_t stream) {
    quantize_check_shape(in->rows, in->cols);
    check(out->rows == in->cols && out->cols == in->rows,
          "a (%d, %d) matrix is transposed into one of (%d, %d)", in->rows, in->cols, out->rows,
          out->cols);
    dim3 grid(CEIL_DIV(in->cols, TRANSPOSE_TILE), CEIL_DIV(in->rows, TRANSPOSE_TILE));
    transpose_codes_kernel<<<grid, WEIGHTS_THREADS, 0, stream>>>(out->codes, in->codes, in->rows,
                                                                 in->cols);
    cudaCheck(cudaGetLastError());
    size_t blocks = (size_t)in->cols * (in->rows / NVFP4_BLOCK);
    transpose_scales_kernel<<<(unsigned)CEIL_DIV(blocks, WEIGHTS_THREADS), WEIGHTS_THREADS, 0,
                              stream>>>(*out, *in);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------

static inline CodedWeight weights_at(const Weights* w, const void* working, int layer, int linear) {
    const ParamSpec* spec = &w->specs[linear_param(linear)];
    Range all = { gpt2_param_offset(w->specs, linear_param(linear), layer), spec->size };
    Range own = range_overlap(all, w->shards.own);
    CodedWeight c;
    c.w_q = w->quantized[layer * NUM_LINEARS + linear]->w_q;
    c.values = (const __nv_bfloat16*)working + all.first;
    c.tile_amax = w->tile_amax
                + weight_packed(&w->ranges, w->specs, layer, linear) / TILE_ELEMENTS;
    c.blocks = spec->size / NVFP4_BLOCK;
    c.across = (size_t)spec->cols / NVFP4_BLOCK;
    c.first = own.count > 0 ? (own.first - all.first) / NVFP4_BLOCK : 0;
    c.end = c.first + own.count / NVFP4_BLOCK;
    return c;
}

// Our part of the plain weights goes to all, theirs come here.
static inline void weights_gather_plain(const Weights* w, void* working, DeviceRanks* d,
                                        cudaStream_t stream) {
    device_ranks_begin(d);
    for (int i = 0; i <= NUM_LINEARS; i++) {
        device_shards_gather(d, &w->shards, (char*)working + w->ranges.plain[i].first * w->element,
                             w->ranges.plain[i], SHARD_BLOCK * w->element, RANKS_WEIGHTS, stream);
    }
    device_ranks_end(d, "weights", stream);
}

// The ranks agree on the amaxes of all tiles.
static inline void weights_agree(const Weights* w, const void* working, DeviceRanks* d,
                                 cudaStream_t stream) {
    size_t tiles = w->ranges.num_coded / TILE_ELEMENTS;
    cudaCheck(cudaMemsetAsync(w->tile_amax, 0, tiles * sizeof(uint32_t), stream));
    for (int i = 0; i < w->L * NUM_LINEARS; i++) {
        if (!weights_coded(w, i / NUM_LINEARS)) { continue; }
        CodedWeight c = weights_at(w, working, i / NUM_LINEARS, i % NUM_LINEARS);
        if (c.end == c.first) { continue; }
        coded_tile_amax_kernel<<<(unsigned)CEIL_DIV(c.end - c.first, WEIGHTS_THREADS),
                                 WEIGHTS_THREADS, 0, stream>>>(c);
        cudaCheck(cudaGetLastError());
    }
    device_ranks_begin(d);
    device_ranks_max_bits(d, w->tile_amax, tiles, stream);
    device_ranks_end(d, "amaxes of the weights' tiles", stream);
}

// From the agreed tile amaxes: amaxes, all block scales, and the codes of our part; then the
// others' codes, and W^T.
static inline void weights_quantize_coded(const Weights* w, const void* working, DeviceRanks* d,
                                          cudaStream_t stream) {
    if (w->ranges.num_coded == 0) { return; }
    weights_agree(w, working, d, stream);
    for (int i = 0; i < w->L * NUM_LINEARS; i++) {
        if (!weights_coded(w, i / NUM_LINEARS)) { continue; }
        CodedWeight c = weights_at(w, working, i / NUM_LINEARS, i % NUM_LINEARS);
        size_t tiles = c.blocks / NVFP4_BLOCK;
        Nvfp4Rounding rounding = recipe_rounding(w->recipe, i / NUM_LINEARS, i % NUM_LINEARS,
                                                 OPERAND_W, w->seed, 0);
        cudaCheck(cudaMemsetAsync(c.w_q.amax, 0, sizeof(float), stream));
        coded_amax_kernel<<<(unsigned)CEIL_DIV(tiles, WEIGHTS_THREADS), WEIGHTS_THREADS, 0,
                            stream>>>((uint32_t*)c.w_q.amax, c.tile_amax, tiles);
        cudaCheck(cudaGetLastError());
        coded_quantize_kernel<<<(unsigned)CEIL_DIV(c.blocks, WEIGHTS_THREADS), WEIGHTS_THREADS, 0,
                                stream>>>(c, rounding);
        cudaCheck(cudaGetLastError());
    }
    device_ranks_begin(d);
    for (int i = 0; i < NUM_LINEARS; i++) {
        size_t before = ranges_before(w->ranges.coded, NUM_LINEARS, w->ranges.coded[i].first);
        device_shards_gather(d, &w->shards, w->codes + before / 2, w->ranges.coded[i],
                             NVFP4_BLOCK / 2, RANKS_CODES_AND_SCALES, stream);
    }
    device_ranks_end(d, "codes of the weights", stream);
    for (int i = 0; i < w->L * NUM_LINEARS; i++) {
        if (!weights_coded(w, i / NUM_LINEARS)) { continue; }
        quantize_transpose(&w->quantized[i]->wT_q, &w->quantized[i]->w_q, stream);
    }
}

// Our part of `working` is set; the rest of it that layers read, and all coded weights, follow.
static inline void weights_gather(const Weights* w, void* working, DeviceRanks* d,
                                  cudaStream_t stream) {
    if (w->shards.level == 0) { return; }
    weights_gather_plain(w, working, d, stream);
    weights_quantize_coded(w, working, d, stream);
}

#endif
