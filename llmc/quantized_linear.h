/*
The linear layer under a recipe, in plain C: what llmc/linear.cuh does on the GPU, and its oracle.

Arithmetic is FP32 throughout. A precision shows only in the values that enter and leave: operands
of NVFP4 GEMMs are quantized with the functions of nvfp4.h and expanded again, and what the GPU
program stores in BF16 is rounded to BF16 here, at the same places. Read recipe.h first.

With several ranks each holds some rows of the activations and gradients. A quantizer has to know
the amax of the whole tensor, so the ranks agree on it: once for X in the forward pass, once for dY,
dY^T and X^T together in the backward pass. Random bytes are drawn by an element's place in the
whole tensor. So a rank's rows get the codes that one rank would have given them.
*/
#ifndef LLMC_QUANTIZED_LINEAR_H
#define LLMC_QUANTIZED_LINEAR_H

#include "gemm_cpu.h"
#include "hadamard.h"
#include "multi_rank.h"
#include "nvfp4.h"
#include "recipe.h"
#include "utils.h"

// A weight in NVFP4, from one update to the next: weights_cpu.h makes it. What the recipe does not
// need has no memory (codes NULL).
typedef struct {
    Nvfp4Matrix w_q;            // (OC,C)   for the forward pass
    Nvfp4Matrix wT_q;           // (C,OC)   for the backward pass
} QuantizedLinear;

// Sees every operand before it enters its GEMM (tests and dumps). `source` (rows, cols) are the
// values that went in; NULL for a weight, which was quantized earlier.
typedef void (*OperandObserver)(int layer, int linear, int operand, const float* source,
                                const Nvfp4Matrix* quantized);

// Where a linear layer stands, and working memory that all of them share.
typedef struct {
    const Recipe* recipe;
    int L;                      // blocks of the model
    int layer, linear;          // which one this call is for
    uint64_t seed;
    uint32_t step;              // counts micro-batches over the run: see Nvfp4Rounding
    uint32_t micro_steps;       // micro-batches of an update; for messages
    const QuantizedLinear* weight;      // its weight, where the recipe quantizes that
    Ranks* ranks;               // each of which has its rows of the tokens
    int local_amax;             // 1: each rank uses the amax of its own rows
    OperandObserver observe;    // NULL: nobody looks
    uint8_t* codes;             // for the largest operand
    uint8_t* block_scales;
    float* a;                   // the two operands of a GEMM, expanded
    float* b;
} Linear;

// No operand is larger than (n,4C) or (4C,n), where n is the larger of the tokens and C.
static inline void linear_alloc(Linear* linear, size_t tokens, size_t C) {
    size_t n = tokens > C ? tokens : C, most = n * 4 * C;
    size_t scales = nvfp4_scales_size(n, 4 * C), scales_t = nvfp4_scales_size(4 * C, n);
    linear->codes = (uint8_t*)xmalloc(most / 2, "NVFP4 codes");
    linear->block_scales = (uint8_t*)xmalloc(scales > scales_t ? scales : scales_t,
                                             "NVFP4 block scales");
    linear->a = (float*)xmalloc(most * sizeof(float), "an expanded operand");
    linear->b = (float*)xmalloc(most * sizeof(float), "an expanded operand");
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
    snprintf(what, sizeof(what), "amax of %s of layer %d %s", operands, l->layer,
             linear_name(l->linear));
    ranks_max_bits(l->ranks, amax, (size_t)n, what);
}

// How this operand is rounded. Of dY (tokens, OC) a rank has some rows, of dY^T (OC, tokens) some
// columns.
static inline Nvfp4Rounding linear_rounding(int rows, int cols, int operand, const Linear* l) {
    uint64_t rank = (uint64_t)l->ranks->rank, across = (uint64_t)cols / NVFP4_BLOCK;
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = l->recipe->stochastic
                          && (operand == OPERAND_DY || operand == OPERAND_DYT);
    rounding.seed = l->seed;
    rounding.tag = operand_tag(l->layer, l->linear, operand);
    rounding.step = l->step;
    if (operand == OPERAND_DY) {
        rounding.first_block = rank * (uint64_t)rows * across;
    } else if (operand == OPERAND_DYT) {
        rounding.first_block = rank * across;
        rounding.row_blocks = (uint32_t)across * (uint32_t)l->ranks->size;
    }
    return rounding;
}

static inline void linear_observe(const Linear* l, int operand, const float* source,
                                  const Nvfp4Matrix* quantized) {
    if (l->observe != NULL) { l->observe(l->layer, l->linear, operand, source, quantized); }
}

static inline void linear_check_finite(uint32_t amax_bits, int operand, const Linear* l) {
    check(amax_bits < FLOAT_INFINITY_BITS, "step %u, layer %d %s: %s is not finite; the "
          "checkpoints written before are good", l->step / l->micro_steps, l->layer,
          linear_name(l->linear), operand_name(operand));
}

// Leaves code * block scale of the layer's weight, w_q or wT_q, in `values`. Returns its amax, as
// bits.
static inline uint32_t linear_expand_weight(float* values, const Nvfp4Matrix* weight, int operand,
                                            const Linear* l) {
    uint32_t amax_bits = float_bits(*weight->amax);
    linear_check_finite(amax_bits, operand, l);
    linear_observe(l, operand, NULL, weight);
    nvfp4_expand(values, weight);
    return amax_bits;
}

// Quantizes `source` (rows, cols) as this operand of the layer, whose amax is known, and leaves
// code * block scale in `values` (rows, cols), which may be `source`.
static inline void linear_quantize(float* values, const float* source, int rows, int cols,
                                   int operand, uint32_t amax_bits, const Linear* l) {
    linear_check_finite(amax_bits, operand, l);
    float amax = bits_float(amax_bits);
    Nvfp4Matrix q;
    q.rows = rows;
    q.cols = cols;
    q.codes = l->codes;
    q.block_scales = l->block_scales;
    q.amax = &amax;
    nvfp4_quantize_scaled(&q, source, 1, linear_rounding(rows, cols, operand, l));
    linear_observe(l, operand, source, &q);
    nvfp4_expand(values, &q);
}

// D (M,N) = alpha * A (M,K) @ B (N,K)^T + beta * D, of expanded operands with these amaxes.
static inline void linear_gemm(float* D, const float* A, const float* B, uint32_t amax_bits_a,
                               uint32_t amax_bits_b, int M, int N, int K, float beta,
                               const Linear* l) {
    float amax_a = bits_float(amax_bits_a), amax_b = bits_float(amax_bits_b);
    float alpha = nvfp4_alpha(amax_a, amax_b);
    check(alpha <= FLOAT_LARGEST && (alpha > 0.0f || amax_a == 0.0f || amax_b == 0.0f),
          "step %u, layer %d %s: the product of two operands' amaxes, %g and %g, leaves FP32",
          l->step / l->micro_steps, l->layer, linear_name(l->linear), amax_a, amax_b);
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
    if (recipe_quantizes(l->recipe, FPROP, l->layer, l->L)) {
        uint32_t amax_x = nvfp4_matrix_amax_bits(inp, (size_t)N, (size_t)C);
        linear_agree(&amax_x, 1, "X", l);
        linear_quantize(l->a, inp, N, C, OPERAND_X, amax_x, l);
        uint32_t amax_w = linear_expand_weight(l->b, &l->weight->w_q, OPERAND_W, l);
        linear_gemm(out, l->a, l->b, amax_x, amax_w, N, OC, C, 0.0f, l);
        round_to(base, out, (size_t)N * (size_t)OC);  // the FP4 GEMM stores BF16; bias comes after
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

    int hadamard = l->recipe->hadamard;
    int dgrad = recipe_quantizes(l->recipe, DGRAD, l->layer, l->L);
    int wgrad = recipe_quantizes(l->recipe, WGRAD, l->layer, l->L);
    uint32_t amax[3] = { 0, 0, 0 };         // of dY, dY^T, X^T
    if (dgrad) { amax[0] = nvfp4_matrix_amax_bits(dout, (size_t)N, (size_t)OC); }
    if (wgrad) {
        hadamard_transpose(l->a, dout, N, OC, hadamard);
        hadamard_transpose(l->b, inp, N, C, hadamard);
        amax[1] = nvfp4_matrix_amax_bits(l->a, (size_t)OC, (size_t)N);
        amax[2] = nvfp4_matrix_amax_bits(l->b, (size_t)C, (size_t)N);
    }
    if (dgrad || wgrad) { linear_agree(amax, 3, "dY, dY^T, X^T", l); }

    if (wgrad) {
        linear_quantize(l->a, l->a, OC, N, OPERAND_DYT, amax[1], l);
        linear_quantize(l->b, l->b, C, N, OPERAND_XT, amax[2], l);
        linear_gemm(dweight, l->a, l->b, amax[1], amax[2], OC, C, N, 1.0f, l);
    } else {
        gemm_cpu(dweight, dout, inp, OC, C, N, 1, 0, 1.0f, 1.0f);
    }
    if (dgrad) {
        linear_quantize(l->a, dout, N, OC, OPERAND_DY, amax[0], l);
        uint32_t amax_w = linear_expand_weight(l->b, &l->weight->wT_q, OPERAND_WT, l);
        linear_gemm(dinp, l->a, l->b, amax[0], amax_w, N, C, OC, 0.0f, l);
    } else {
        gemm_cpu(dinp, dout, weight, N, C, OC, 0, 0, 1.0f, 0.0f);
    }
    round_to(l->recipe->base, dinp, (size_t)N * (size_t)C);
}

#endif
