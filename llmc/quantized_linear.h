/*
The linear layer under a recipe, in plain C: what llmc/linear.cuh does on the GPU, and its oracle.

Arithmetic is FP32 throughout. A precision shows only in the values that enter and leave: operands
of quantized GEMMs are quantized with the functions of quantizer.h and expanded again, and what the
GPU program stores in BF16 is rounded to BF16 here, at the same places. Read recipe.h first.

    operand   of        is made from                               by whom
    X         fprop     inp                                        here
    W         fprop     weight                                     weights_cpu.h, after the update
    dY        dgrad     dout, rotated                              here
    W^T       dgrad     W's codes; or weight, or W expanded,       weights_cpu.h, or here: see
                        transposed and rotated                     recipe_remakes_weights
    dY^T      wgrad     dout transposed and rotated                here
    X^T       wgrad     inp, or X expanded, transposed and         here
                        rotated

"Expanded" are the numbers that forward multiplied, code value * block scale: exact in BF16, but
without the tensor scale. An operand made of them (Quantizer.aligned) leaves that scale to the
GEMM's alpha. Both operands of a GEMM are rotated alike, along what it contracts; of tokens, only
within a row of T.

With several ranks each holds some rows of the activations and gradients. A quantizer has to know
the amax of the whole tensor, so the ranks agree on it: once for X in the forward pass, once for dY,
dY^T and X^T together in the backward pass. Random bytes are drawn by an element's place in the
whole tensor. So a rank's rows get the codes that one rank would have given them.
*/
#ifndef LLMC_QUANTIZED_LINEAR_H
#define LLMC_QUANTIZED_LINEAR_H

#include "gemm_cpu.h"
#include "guards.h"
#include "hadamard.h"
#include "multi_rank.h"
#include "quantizer.h"
#include "recipe.h"
#include "utils.h"

// A quantized weight, from one update to the next: weights_cpu.h makes it. What the recipe does not
// need has no memory (codes NULL).
typedef struct {
    Nvfp4Matrix w_q;            // (OC,C)   for the forward pass
    Nvfp4Matrix wT_q;           // (C,OC)   for the backward pass
} QuantizedLinear;

// Sees every operand before it enters its GEMM (tests and dumps). `source` (rows, cols) are the
// values that went in; NULL for a weight that was quantized earlier.
typedef void (*OperandObserver)(int layer, int linear, int operand, const float* source,
                                const Nvfp4Matrix* quantized);

// Where a linear layer stands, and working memory that all of them share.
typedef struct {
    const Recipe* recipe;
    int T;                      // tokens of a row
    int layer, linear;          // which one this call is for
    uint64_t seed;
    uint32_t micro_step;        // counts micro-batches over the run: see Nvfp4Rounding
    uint32_t micro_steps;       // micro-batches of an update; for messages
    const QuantizedLinear* weight;      // its weight, where the recipe quantizes that
    Ranks* ranks;               // each of which has its rows of the tokens
    int local_amax;             // 1: each rank uses the amax of its own rows
    OperandObserver observe;    // NULL: nobody looks
    uint64_t* scale_counts;     // (NUM_OPERANDS, NUM_SCALE_COUNTS) guards.h; NULL: not now
    uint32_t* amax_x;           // (L, NUM_LINEARS) of X in the latest forward pass, as bits
    uint8_t* codes;             // for the largest operand
    uint8_t* block_scales;
    float* a;                   // the two operands of a GEMM, expanded
    float* b;
    float* c;                   // what an operand is made from, if that has to be made first
} Linear;

// No operand is larger than (n,4C) or (4C,n), where n is the larger of the tokens and C.
static inline void linear_alloc(Linear* linear, const Recipe* recipe, size_t tokens, size_t C) {
    size_t n = tokens > C ? tokens : C, most = n * 4 * C;
    const Quantizer* ops = recipe->operands;
    Format format = ops[OPERAND_X].format;
    if (format > FORMAT_BF16) {
        size_t scales = quantized_scales_size(format, n, 4 * C);
        size_t scales_t = quantized_scales_size(format, 4 * C, n);
        linear->codes = (uint8_t*)xmalloc(quantized_codes_size(format, n, 4 * C), "codes");
        linear->block_scales = (uint8_t*)xmalloc(scales > scales_t ? scales : scales_t,
                                                 "block scales");
        linear->amax_x = (uint32_t*)xcalloc((size_t)recipe->L * NUM_LINEARS * sizeof(uint32_t),
                                            "amaxes");
    }
    linear->a = (float*)xmalloc(most * sizeof(float), "an expanded operand");
    linear->b = (float*)xmalloc(most * sizeof(float), "an expanded operand");
    if (ops[OPERAND_DY].hadamard > 0 || ops[OPERAND_XT].aligned || ops[OPERAND_WT].aligned) {
        linear->c = (float*)xmalloc(most * sizeof(float), "the source of an operand");
    }
}

// Rounds n stored values to the recipe's base format.
static inline void round_to(Format base, float* x, size_t n) {
    if (base == FORMAT_FP32) { return; }
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { x[i] = bf16_round(x[i]); }
}

// The largest magnitudes of n operands, as bits: this rank's become those of all ranks' rows.
static inline void linear_agree(uint32_t* amax, int n, const char* operands, const Linear* l) {
    char what[96];
    if (l->ranks->size == 1 || l->local_amax) { return; }
    snprintf(what, sizeof(what), "amax of %s of block %d %s", operands, l->layer,
             linear_name(l->linear));
    ranks_max_bits(l->ranks, amax, (size_t)n, what);
}

// How this operand is rounded. Of X and dY (tokens, channels) a rank has some rows, of X^T and dY^T
// (channels, tokens) some columns, of a weight everything.
static inline Nvfp4Rounding linear_rounding(int rows, int cols, int operand, const Linear* l) {
    uint64_t rank = (uint64_t)l->ranks->rank, across = (uint64_t)cols / NVFP4_BLOCK;
    Nvfp4Rounding rounding = recipe_rounding(l->recipe, l->layer, l->linear, operand, l->seed,
                                             l->micro_step);
    if (operand == OPERAND_X || operand == OPERAND_DY) {
        rounding.first_block = rank * (uint64_t)rows * across;
    } else if (operand == OPERAND_XT || operand == OPERAND_DYT) {
        rounding.first_block = rank * across;
        rounding.row_blocks = (uint32_t)across * (uint32_t)l->ranks->size;
    }
    return rounding;
}

// The rotation of both operands of this GEMM, which contracts K; of tokens, K is those of a row.
static inline Rotation linear_rotation(int gemm, int K, const Linear* l) {
    int operand = gemm_operand(gemm, 0);
    const Quantizer* q = &l->recipe->operands[operand];
    return rotation_make(rotation_size(q->hadamard, K), q->fresh_signs, l->seed,
                         operand_tag(l->layer, l->linear, operand), l->micro_step);
}

static inline void linear_observe(const Linear* l, int operand, const float* source,
                                  const Nvfp4Matrix* quantized) {
    if (l->observe != NULL) { l->observe(l->layer, l->linear, operand, source, quantized); }
    if (l->scale_counts != NULL && guard_counts_here(operand, l->ranks->rank)) {
        scales_count(l->scale_counts + operand * NUM_SCALE_COUNTS, quantized,
                     l->recipe->operands[operand].format);
    }
}

static inline void linear_check_finite(uint32_t amax_bits, int operand, const Linear* l) {
    check(amax_bits < FLOAT_INFINITY_BITS, "step %u, block %d %s: %s is not finite. " ADVICE_DIVERGED,
          l->micro_step / l->micro_steps, l->layer, linear_name(l->linear), operand_name(operand));
}

// Leaves code * block scale of the layer's weight, w_q or wT_q, in `values`. Returns its amax, as
// bits.
static inline uint32_t linear_expand_weight(float* values, const Nvfp4Matrix* weight, int operand,
                                            const Linear* l) {
    uint32_t amax_bits = float_bits(*weight->amax);
    linear_check_finite(amax_bits, operand, l);
    linear_observe(l, operand, NULL, weight);
    quantized_expand(values, weight, l->recipe->operands[operand]);
    return amax_bits;
}

// Quantizes `source` (rows, cols) as this operand of the layer, whose amax is known. The result
// lies in the memory that all operands share; its amax is *amax.
static inline Nvfp4Matrix linear_make(const float* source, int rows, int cols, int operand,
                                      float* amax, const Linear* l) {
    Nvfp4Matrix q;
    q.rows = rows;
    q.cols = cols;
    q.codes = l->codes;
    q.block_scales = l->block_scales;
    q.amax = amax;
    quantized_make(&q, source, l->recipe->operands[operand],
                   linear_rounding(rows, cols, operand, l));
    return q;
}

// The same, and leaves code * block scale in `values` (rows, cols), which may be `source`.
static inline void linear_quantize(float* values, const float* source, int rows, int cols,
                                   int operand, uint32_t amax_bits, const Linear* l) {
    linear_check_finite(amax_bits, operand, l);
    float amax = bits_float(amax_bits);
    Nvfp4Matrix q = linear_make(source, rows, cols, operand, &amax, l);
    linear_observe(l, operand, source, &q);
    quantized_expand(values, &q, l->recipe->operands[operand]);
}

// x (rows, cols) with its rows rotated.
static inline const float* linear_rotated(const float* x, int rows, int cols, const Rotation* r,
                                          const Linear* l) {
    if (r->size == 0) { return x; }
    memcpy(l->c, x, (size_t)rows * (size_t)cols * sizeof(float));
    rotation_rows(l->c, rows, cols, r);
    return l->c;
}

// What X^T or W^T (`operand`) is made from: x (rows, cols), which is X or W; or, if it is aligned
// and forward quantized that, what forward multiplied. *scale is the tensor scale that this lacks.
static inline const float* linear_source(const float* x, int rows, int cols, int operand,
                                         float* scale, const Linear* l) {
    int forward = operand == OPERAND_XT ? OPERAND_X : OPERAND_W;
    Quantizer quantizer = l->recipe->operands[forward];
    float amax = bits_float(l->amax_x[l->layer * NUM_LINEARS + l->linear]);
    *scale = 1.0f;
    if (!l->recipe->operands[operand].aligned
        || !recipe_quantizes(l->recipe, FPROP, l->layer, l->linear)) { return x; }
    Nvfp4Matrix q = forward == OPERAND_X ? linear_make(x, rows, cols, OPERAND_X, &amax, l)
                                         : l->weight->w_q;
    quantized_expand(l->c, &q, quantizer);
    *scale = quantizer_tensor_scale(quantizer, *q.amax).scale;
    return l->c;
}

// Leaves code * block scale of W^T (C,OC) in `values`. Returns its amax as bits; *scale is another
// factor of the GEMM's alpha.
static inline uint32_t linear_transposed_weight(float* values, const float* weight, int OC, int C,
                                                const Rotation* rotation, float* scale,
                                                const Linear* l) {
    *scale = 1.0f;
    if (!recipe_remakes_weights(l->recipe)) {
        return linear_expand_weight(values, &l->weight->wT_q, OPERAND_WT, l);
    }
    const float* source = linear_source(weight, OC, C, OPERAND_WT, scale, l);
    rotation_transpose(values, source, OC, C, rotation);
    uint32_t amax = nvfp4_matrix_amax_bits(values, (size_t)C, (size_t)OC);
    linear_quantize(values, values, C, OC, OPERAND_WT, amax, l);
    return amax;
}

// D (M,N) = alpha * A (M,K) @ B (N,K)^T + beta * D, of the expanded operands of `gemm`, which have
// these amaxes. scale: what B's source lacked.
static inline void linear_gemm(int gemm, float* D, const float* A, const float* B,
                               uint32_t amax_bits_a, uint32_t amax_bits_b, float scale, int M,
                               int N, int K, float beta, const Linear* l) {
    const Quantizer* ops = l->recipe->operands;
    float amax_a = bits_float(amax_bits_a), amax_b = bits_float(amax_bits_b);
    float factor = quantizer_alpha_factor(&ops[gemm_operand(gemm, 0)], &ops[gemm_operand(gemm, 1)]);
    float alpha = quantizer_alpha(amax_a, amax_b, factor) * scale;
    check(alpha <= FLOAT_LARGEST && (alpha > 0.0f || amax_a == 0.0f || amax_b == 0.0f),
          "step %u, block %d %s: the product of two operands' amaxes, %g and %g, leaves FP32",
          l->micro_step / l->micro_steps, l->layer, linear_name(l->linear), amax_a, amax_b);
    gemm_cpu(D, A, B, M, N, K, 0, 1, alpha, beta);
}

static inline void add_bias(float* out, const float* bias, int N, int OC) {
    #pragma omp parallel for
    for (int n = 0; n < N; n++) {
        for (int o = 0; o < OC; o++) { out[(size_t)n * (size_t)OC + o] += bias[o]; }
    }
}

// out (N,OC) = inp (N,C) @ weight (OC,C)^T + bias (OC).
static inline void linear_forward(float* out, const float* inp, const float* weight,
                                  const float* bias, int N, int C, int OC, const Linear* l) {
    Format base = l->recipe->base;
    if (recipe_quantizes(l->recipe, FPROP, l->layer, l->linear)) {
        uint32_t amax_x = nvfp4_matrix_amax_bits(inp, (size_t)N, (size_t)C);
        linear_agree(&amax_x, 1, "X", l);
        l->amax_x[l->layer * NUM_LINEARS + l->linear] = amax_x;
        linear_quantize(l->a, inp, N, C, OPERAND_X, amax_x, l);
        uint32_t amax_w = linear_expand_weight(l->b, &l->weight->w_q, OPERAND_W, l);
        linear_gemm(FPROP, out, l->a, l->b, amax_x, amax_w, 1.0f, N, OC, C, 0.0f, l);
        round_to(base, out, (size_t)N * (size_t)OC);  // such a GEMM stores BF16; bias comes after
    } else {
        gemm_cpu(out, inp, weight, N, OC, C, 0, 1, 1.0f, 0.0f);
    }
    add_bias(out, bias, N, OC);
    round_to(base, out, (size_t)N * (size_t)OC);
}

// dinp (N,C) = dout (N,OC) @ weight (OC,C);  dweight (OC,C) += dout^T @ inp (N,C);
// dbias += column sums. inp is what the forward pass saw.
static inline void linear_backward(float* dinp, float* dweight, float* dbias, const float* dout,
                                   const float* inp, const float* weight, int N, int C, int OC,
                                   const Linear* l) {
    #pragma omp parallel for
    for (int first = 0; first < OC; first += 16) {      // 16 columns: one cache line of each row
        int count = OC - first < 16 ? OC - first : 16;
        float sum[16] = { 0 };
        for (int n = 0; n < N; n++) {
            for (int o = 0; o < count; o++) { sum[o] += dout[(size_t)n * (size_t)OC + first + o]; }
        }
        for (int o = 0; o < count; o++) { dbias[first + o] += sum[o]; }
    }

    int dgrad = recipe_quantizes(l->recipe, DGRAD, l->layer, l->linear);
    int wgrad = recipe_quantizes(l->recipe, WGRAD, l->layer, l->linear);
    Rotation of_dgrad = linear_rotation(DGRAD, OC, l), of_wgrad = linear_rotation(WGRAD, l->T, l);
    uint32_t amax[3] = { 0, 0, 0 };         // of dY, dY^T, X^T
    float scale = 1.0f;
    if (dgrad) {
        const float* dy = linear_rotated(dout, N, OC, &of_dgrad, l);
        amax[0] = nvfp4_matrix_amax_bits(dy, (size_t)N, (size_t)OC);
    }
    if (wgrad) {
        rotation_transpose(l->a, dout, N, OC, &of_wgrad);
        const float* x = linear_source(inp, N, C, OPERAND_XT, &scale, l);
        rotation_transpose(l->b, x, N, C, &of_wgrad);
        amax[1] = nvfp4_matrix_amax_bits(l->a, (size_t)OC, (size_t)N);
        amax[2] = nvfp4_matrix_amax_bits(l->b, (size_t)C, (size_t)N);
    }
    if (dgrad || wgrad) { linear_agree(amax, 3, "dY, dY^T, X^T", l); }

    if (wgrad) {
        linear_quantize(l->a, l->a, OC, N, OPERAND_DYT, amax[1], l);
        linear_quantize(l->b, l->b, C, N, OPERAND_XT, amax[2], l);
        linear_gemm(WGRAD, dweight, l->a, l->b, amax[1], amax[2], scale, OC, C, N, 1.0f, l);
    } else {
        gemm_cpu(dweight, dout, inp, OC, C, N, 1, 0, 1.0f, 1.0f);
    }
    if (dgrad) {
        const float* dy = linear_rotated(dout, N, OC, &of_dgrad, l);
        linear_quantize(l->a, dy, N, OC, OPERAND_DY, amax[0], l);
        uint32_t amax_w = linear_transposed_weight(l->b, weight, OC, C, &of_dgrad, &scale, l);
        linear_gemm(DGRAD, dinp, l->a, l->b, amax[0], amax_w, scale, N, C, OC, 0.0f, l);
    } else {
        gemm_cpu(dinp, dout, weight, N, C, OC, 0, 0, 1.0f, 0.0f);
    }
    round_to(l->recipe->base, dinp, (size_t)N * (size_t)C);
}

#endif
