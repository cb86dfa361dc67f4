/*
From the masters to what the layers read, in plain C: after an update each weight is rounded to the
recipe's base format, and those that enter quantized GEMMs are quantized, once, in both directions.
(But for a W^T that differs from one backward pass to the next: quantized_linear.h makes that.)

With sharded masters (shards.h) a rank does this for its part, and the parts travel:

    weights of NVFP4 GEMMs      as codes, half a byte each; scales follow from tile amaxes
    all others                  as BF16, or FP32 under -p fp32

A tile of 16x16 may lie in the parts of two ranks or more, and a tensor in those of many. So the
ranks agree on the largest magnitude of every tile before they quantize: one all-reduce, from which
every rank has the tensors' amaxes and all block scales. Only codes are left to be gathered. W^T has
the codes of W, transposed, and never travels. It is not quantized again.

A weight travels as codes if nobody ever reads it otherwise: both fprop and dgrad in NVFP4 of the
base recipe's kind, in 16x16 tiles, in every update (recipe_weights_travel). With tile=0 the codes
of W^T are others than those of W, and 16 rows of W that form a block of W^T belong to several
ranks: then weights travel as BF16 and every rank quantizes them whole.

Nothing here stops a run whose weights are not finite: the amax is then not finite either, and the
linear layer that reads it says which it is.
*/
#ifndef LLMC_WEIGHTS_CPU_H
#define LLMC_WEIGHTS_CPU_H

#include "gpt2.h"
#include "quantized_linear.h"
#include "weight_ranges.h"

typedef struct {
    Shards shards;
    const Recipe* recipe;
    const ParamSpec* specs;
    int L;
    uint64_t seed;
    float* working;             // (num_params) what layers read; of coded weights only our part
    QuantizedLinear* quantized; // (L, NUM_LINEARS)
    WeightRanges ranges;        // which weights travel as codes
    uint8_t* codes;             // (num_coded / 2) the coded weights, packed: quantized[].w_q.codes
    uint32_t* tile_amax;        // (num_coded / 256) as bits, in the same order
    uint16_t* wire;             // (num_plain) BF16 of the plain ones, packed; NULL: they stay here
} Weights;

// Do the linear layers of this block travel as codes?
static inline int weights_coded(const Weights* w, int layer) {
    return recipe_weights_travel(w->recipe, layer);
}

static inline Nvfp4Matrix weights_matrix_alloc(Format f, uint8_t* codes, int rows, int cols) {
    Nvfp4Matrix q;
    q.rows = rows;
    q.cols = cols;
    q.codes = codes != NULL ? codes
            : (uint8_t*)xmalloc(quantized_codes_size(f, (size_t)rows, (size_t)cols), "codes");
    q.block_scales = (uint8_t*)xcalloc(quantized_scales_size(f, (size_t)rows, (size_t)cols),
                                       "block scales");
    q.amax = (float*)xcalloc(sizeof(float), "amax");
    return q;
}

// `working` (num_params) is the caller's.
static inline void weights_alloc(Weights* w, const Shards* shards, const Recipe* recipe,
                                 const ParamSpec* specs, int L, uint64_t seed, float* working) {
    Format format = recipe->operands[OPERAND_W].format;
    memset(w, 0, sizeof(*w));
    w->shards = *shards;
    w->recipe = recipe;
    w->specs = specs;
    w->L = L;
    w->seed = seed;
    w->working = working;
    w->quantized = (QuantizedLinear*)xcalloc((size_t)L * NUM_LINEARS * sizeof(QuantizedLinear),
                                             "quantized weights");
    w->ranges = weight_ranges(specs, shards->size, recipe, L, 1);
    w->codes = (uint8_t*)xmalloc(w->ranges.num_coded / 2, "NVFP4 codes");
    w->tile_amax = (uint32_t*)xmalloc(w->ranges.num_coded / TILE_ELEMENTS * sizeof(uint32_t),
                                      "amaxes of tiles");
    if (shards->level > 0 && recipe->base != FORMAT_FP32) {
        w->wire = (uint16_t*)xmalloc(w->ranges.num_plain * sizeof(uint16_t), "weights in BF16");
    }
    for (int l = 0; l < L; l++) {
        for (int i = 0; i < NUM_LINEARS; i++) {
            const ParamSpec* spec = &specs[linear_param(i)];
            QuantizedLinear* q = &w->quantized[l * NUM_LINEARS + i];
            size_t packed = weight_packed(&w->ranges, specs, l, i);
            uint8_t* codes = weights_coded(w, l) ? w->codes + packed / 2 : NULL;
            int dgrad = recipe_ever(recipe, DGRAD, l, i, 1);
            if (recipe_ever(recipe, FPROP, l, i, 1)
                || (dgrad && recipe_transposes_weights(recipe))) {
                q->w_q = weights_matrix_alloc(format, codes, spec->rows, spec->cols);
            }
            if (dgrad && !recipe_remakes_weights(recipe)) {
                q->wT_q = weights_matrix_alloc(format, NULL, spec->cols, spec->rows);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Weights that travel as codes

// A coded weight, and what of it this rank holds.
typedef struct {
    QuantizedLinear* q;
    const float* values;        // (OC,C)   those of our part are set
    uint32_t* tile_amax;        // (OC/16, C/16)
    size_t blocks, across;      // blocks of 16 elements altogether, and in a row
    size_t first, end;          // blocks first .. end-1 are in our part
} CodedWeight;

static inline CodedWeight weights_at(const Weights* w, int layer, int linear) {
    const ParamSpec* spec = &w->specs[linear_param(linear)];
    Range all;
    all.first = gpt2_param_offset(w->specs, linear_param(linear), layer);
    all.count = spec->size;
    Range own = range_overlap(all, w->shards.own);
    size_t packed = weight_packed(&w->ranges, w->specs, layer, linear);
    CodedWeight c;
    c.q = &w->quantized[layer * NUM_LINEARS + linear];
    c.values = w->working + all.first;
    c.tile_amax = w->tile_amax + packed / TILE_ELEMENTS;
    c.blocks = spec->size / NVFP4_BLOCK;
    c.across = (size_t)spec->cols / NVFP4_BLOCK;
    c.first = own.count > 0 ? (own.first - all.first) / NVFP4_BLOCK : 0;
    c.end = c.first + own.count / NVFP4_BLOCK;
    return c;
}

// Where the tile of a block stands among the tiles.
static inline size_t coded_tile(const CodedWeight* c, size_t block) {
    return block / c->across / NVFP4_BLOCK * c->across + block % c->across;
}

// The largest magnitudes in our part, by tile.
static inline void coded_tile_amaxes(const CodedWeight* c) {
    memset(c->tile_amax, 0, c->blocks / NVFP4_BLOCK * sizeof(uint32_t));
    for (size_t block = c->first; block < c->end; block++) {
        uint32_t* tile = &c->tile_amax[coded_tile(c, block)];
        uint32_t amax = nvfp4_amax_bits(c->values + block * NVFP4_BLOCK, NVFP4_BLOCK);
        *tile = amax > *tile ? amax : *tile;
    }
}

// From the agreed tile amaxes: the weight's amax, all block scales, and the codes of our part. The
// bits are those of quantized_make.
static inline void coded_quantize(const CodedWeight* c, Nvfp4Rounding rounding) {
    Nvfp4Matrix* w_q = &c->q->w_q;
    uint32_t amax = 0;
    for (size_t tile = 0; tile < c->blocks / NVFP4_BLOCK; tile++) {
        amax = c->tile_amax[tile] > amax ? c->tile_amax[tile] : amax;
    }
    *w_q->amax = bits_float(amax);
    if (amax >= FLOAT_INFINITY_BITS) { return; }
    Nvfp4TensorScale tensor = nvfp4_tensor_scale(*w_q->amax);
    for (size_t block = 0; block < c->blocks; block++) {
        float tile_amax = bits_float(c->tile_amax[coded_tile(c, block)]);
        uint8_t scale = nvfp4_block_scale(tile_amax, tensor);
        w_q->block_scales[nvfp4_scale_offset(block / c->across, block % c->across,
                                             (size_t)w_q->cols)] = scale;
        if (block >= c->first && block < c->end) {
            nvfp4_quantize_block(w_q->codes + block * (NVFP4_BLOCK / 2),
                                 c->values + block * NVFP4_BLOCK,
                                 nvfp4_block_inverse(scale, tensor), rounding, block);
        }
    }
}

// ---------------------------------------------------------------------------------------------

// Our part of the plain weights goes to all, theirs come here.
static inline void weights_gather_plain(const Weights* w) {
    const Shards* s = &w->shards;
    size_t block_bytes = SHARD_BLOCK * (w->wire != NULL ? sizeof(uint16_t) : sizeof(float));
    if (s->level == 0) { return; }
    uint16_t* packed = w->wire;
    for (int i = 0; packed != NULL && i <= NUM_LINEARS; i++) {
        Range own = range_overlap(w->ranges.plain[i], s->own);
        for (size_t j = own.first; j < own.first + own.count; j++) {
            packed[j - w->ranges.plain[i].first] = bf16_from_float(w->working[j]);
        }
        packed += w->ranges.plain[i].count;
    }
    // under FP32 nothing is coded: the plain weights are all, and `working` is packed already
    shards_gather(s, w->wire != NULL ? (void*)w->wire : (void*)w->working, w->ranges.plain,
                  NUM_LINEARS + 1, block_bytes, RANKS_WEIGHTS, "weights");
    packed = w->wire;
    for (int i = 0; packed != NULL && i <= NUM_LINEARS; i++) {
        Range range = w->ranges.plain[i];
        float* working = w->working + range.first;
        for (size_t j = 0; j < range.count; j++) { working[j] = bf16_to_float(packed[j]); }
        packed += range.count;
    }
}

// The coded weights: amaxes, agreement, codes, the others' codes.
static inline void weights_quantize_coded(const Weights* w) {
    int first = w->recipe->front, layers = w->L - first - w->recipe->tail;
    int count = w->ranges.num_coded > 0 ? layers * NUM_LINEARS : 0;
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        CodedWeight c = weights_at(w, first + i / NUM_LINEARS, i % NUM_LINEARS);
        coded_tile_amaxes(&c);
    }
    if (count > 0 && w->shards.level > 0) {
        ranks_max_bits(w->shards.ranks, w->tile_amax, w->ranges.num_coded / TILE_ELEMENTS,
                       "amaxes of the weights' tiles");
    }
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        int layer = first + i / NUM_LINEARS, linear = i % NUM_LINEARS;
        CodedWeight c = weights_at(w, layer, linear);
        coded_quantize(&c, recipe_rounding(w->recipe, layer, linear, OPERAND_W, w->seed, 0));
    }
    if (count > 0) {
        shards_gather(&w->shards, w->codes, w->ranges.coded, NUM_LINEARS, NVFP4_BLOCK / 2,
                      RANKS_CODES_AND_SCALES, "codes of the weights");
    }
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        QuantizedLinear* q = weights_at(w, first + i / NUM_LINEARS, i % NUM_LINEARS).q;
        nvfp4_transpose(&q->wT_q, &q->w_q);
    }
}

// Quantizes x, which all ranks have whole. If it is not finite, only the amax is set.
static inline void weights_make(Nvfp4Matrix* q, const float* x, Quantizer quantizer,
                                Nvfp4Rounding rounding) {
    uint32_t amax = nvfp4_matrix_amax_bits(x, (size_t)q->rows, (size_t)q->cols);
    *q->amax = bits_float(amax);
    if (amax < FLOAT_INFINITY_BITS) { quantized_make(q, x, quantizer, rounding); }
}

// Weights that are quantized, but travel as BF16: every rank has them whole by now. What the coming
// update does not quantize is left as it was.
static inline void weights_quantize_plain(const Weights* w, float* scratch) {
    const Recipe* r = w->recipe;
    Quantizer of_w = r->operands[OPERAND_W], of_wT = r->operands[OPERAND_WT];
    for (int i = 0; i < w->L * NUM_LINEARS; i++) {
        int layer = i / NUM_LINEARS, linear = i % NUM_LINEARS, param = linear_param(linear);
        const ParamSpec* spec = &w->specs[param];
        QuantizedLinear* q = &w->quantized[i];
        int dgrad = recipe_quantizes(r, DGRAD, layer, linear) && !recipe_remakes_weights(r);
        int transposes = dgrad && recipe_transposes_weights(r);
        if (weights_coded(w, layer)) { continue; }
        const float* weight = w->working + gpt2_param_offset(w->specs, param, layer);
        Nvfp4Rounding rounding = recipe_rounding(r, layer, linear, OPERAND_W, w->seed, 0);
        if (recipe_quantizes(r, FPROP, layer, linear) || transposes) {
            weights_make(&q->w_q, weight, of_w, rounding);
        }
        if (transposes) {
            quantized_transpose(&q->wT_q, &q->w_q, of_w);
        } else if (dgrad) {                     // to nearest: see recipe_remakes_weights
            Rotation rotation = rotation_make(rotation_size(of_wT.hadamard, spec->rows), 0, 0, 0, 0);
            rotation_transpose(scratch, weight, spec->rows, spec->cols, &rotation);
            weights_make(&q->wT_q, scratch, of_wT, rounding);
        }
    }
}

// Our part of `working` is set; the rest of it, and all quantized weights, follow. scratch: (4C,C)
static inline void weights_refresh(const Weights* w, float* scratch) {
    weights_gather_plain(w);
    weights_quantize_coded(w);
    weights_quantize_plain(w, scratch);
}

#endif
