/*
The linear layer under a recipe, in plain C: what llmc/linear.cuh does on the GPU, and its oracle.

Arithmetic is FP32 throughout. A precision shows only in the values that enter and leave: operands
of NVFP4 GEMMs are quantized with the functions of nvfp4.h and expanded again, and what the GPU
program stores in BF16 is rounded to BF16 here, at the same places. Read recipe.h first.
*/
#ifndef LLMC_QUANTIZED_LINEAR_H
#define LLMC_QUANTIZED_LINEAR_H

#include "gemm_cpu.h"
#include "hadamard.h"
#include "nvfp4.h"
#include "recipe.h"
#include "utils.h"

// Sees every operand right after it was quantized (tests and dumps). `source` (rows, cols) are the
// values that went in.
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
    OperandObserver observe;    // NULL: nobody looks
    uint8_t* codes;             // for the largest operand
    uint8_t* block_scales;
    float* transposed;          // (cols, rows) of the largest operand
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
    linear->transposed = (float*)xmalloc(most * sizeof(float), "a transposed operand");
    linear->a = (float*)xmalloc(most * sizeof(float), "an expanded operand");
    linear->b = (float*)xmalloc(most * sizeof(float), "an expanded operand");
}

// Rounds n stored values to the recipe's base format.
static inline void round_to(Format base, float* x, size_t n) {
    if (base == FORMAT_FP32) { return; }
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { x[i] = bf16_round(x[i]); }
}

// Quantizes `source` (rows, cols) as this operand of the layer and leaves code * block scale in
// `values` (rows, cols). Returns the operand's amax.
static inline float linear_quantize(float* values, const float* source, int rows, int cols,
                                    int operand, const Linear* l) {
    int gradient = operand == OPERAND_DY || operand == OPERAND_DYT;
    int weight = operand == OPERAND_W || operand == OPERAND_WT;
    Nvfp4Rounding rounding;
    rounding.stochastic = gradient && l->recipe->stochastic;
    rounding.seed = l->seed;
    rounding.tag = operand_tag(l->layer, l->linear, operand);
    rounding.step = l->step;
    float amax;
    Nvfp4Matrix q;
    q.rows = rows;
    q.cols = cols;
    q.codes = l->codes;
    q.block_scales = l->block_scales;
    q.amax = &amax;
    int error = nvfp4_quantize(&q, source, weight && l->recipe->tile16 ? 16 : 1, rounding);
    check(error == 0, "step %u, layer %d %s: %s is not finite; the checkpoints written before are "
          "good", l->step / l->micro_steps, l->layer, linear_name(l->linear),
          operand_name(operand));
    if (l->observe != NULL) { l->observe(l->layer, l->linear, operand, source, &q); }
    nvfp4_expand(values, &q);
    return amax;
}

// D (M,N) = alpha * A (M,K) @ B (N,K)^T + beta * D, of expanded operands with these amaxes.
static inline void linear_gemm(float* D, const float* A, const float* B, float amax_a, float amax_b,
                               int M, int N, int K, float beta, const Linear* l) {
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
        float amax_x = linear_quantize(l->a, inp, N, C, OPERAND_X, l);
        float amax_w = linear_quantize(l->b, weight, OC, C, OPERAND_W, l);
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

    if (recipe_quantizes(l->recipe, DGRAD, l->layer, l->L)) {
        float amax_dy = linear_quantize(l->a, dout, N, OC, OPERAND_DY, l);
        // in 16x16 tiles this gives the codes and scales of W, transposed (nvfp4_transpose); in
        // 1x16 blocks it gives others
        hadamard_transpose(l->transposed, weight, OC, C, 0);
        float amax_w = linear_quantize(l->b, l->transposed, C, OC, OPERAND_WT, l);
        linear_gemm(dinp, l->a, l->b, amax_dy, amax_w, N, C, OC, 0.0f, l);
    } else {
        gemm_cpu(dinp, dout, weight, N, C, OC, 0, 0, 1.0f, 0.0f);
    }
    round_to(l->recipe->base, dinp, (size_t)N * (size_t)C);

    if (recipe_quantizes(l->recipe, WGRAD, l->layer, l->L)) {
        hadamard_transpose(l->transposed, dout, N, OC, l->recipe->hadamard);
        float amax_dyt = linear_quantize(l->a, l->transposed, OC, N, OPERAND_DYT, l);
        hadamard_transpose(l->transposed, inp, N, C, l->recipe->hadamard);
        float amax_xt = linear_quantize(l->b, l->transposed, C, N, OPERAND_XT, l);
        linear_gemm(dweight, l->a, l->b, amax_dyt, amax_xt, OC, C, N, 1.0f, l);
    } else {
        gemm_cpu(dweight, dout, inp, OC, C, N, 1, 0, 1.0f, 1.0f);
    }
}

#endif
