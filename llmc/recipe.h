/*
A precision recipe is data: for each of the three GEMMs of a linear layer, the format of its
operands; for each operand, how it is quantized; and which blocks of the model take part. This file
holds the recipes, parses their names and prints them in words. quantized_linear.h (plain C) and
linear.cuh (CUDA) carry them out.

The three GEMMs of a layer Y = X W^T, for X (N,C), W (OC,C), Y (N,OC), N = B*T tokens:

    fprop    Y  = X    W^T      contracts C
    dgrad    dX = dY   W        contracts OC
    wgrad    dW = dY^T X        contracts N

In NVFP4 [arXiv 2509.25149, section 4 and figure 5]:

    operand        scales    rounding      Hadamard   why
    fprop  X       1 x 16    nearest       -
    fprop  W       16 x 16   nearest       -          square tiles: W and W^T see the same numbers
    dgrad  dY      1 x 16    stochastic    -          unbiased, so errors average out over steps
    dgrad  W^T     16 x 16   nearest       -          the codes and scales of fprop's W, transposed
    wgrad  dY^T    1 x 16    stochastic    yes        spreads outliers; cancels with X's transform
    wgrad  X^T     1 x 16    nearest       yes

A recipe is written as a preset with overrides: "nvfp4", "nvfp4,hadamard=0,tail=4", "bf16".
*/
#ifndef LLMC_RECIPE_H
#define LLMC_RECIPE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "utils.h"

typedef enum { FORMAT_FP32, FORMAT_BF16, FORMAT_NVFP4 } Format;

enum { FPROP, DGRAD, WGRAD, NUM_GEMMS };

// The linear layers of a block, in the order of the forward pass.
enum { LINEAR_QKV, LINEAR_PROJ, LINEAR_FC, LINEAR_FCPROJ, NUM_LINEARS };

// What a linear layer quantizes. W and W^T are one operand in 16x16 tiles, two otherwise.
enum { OPERAND_X, OPERAND_XT, OPERAND_W, OPERAND_WT, OPERAND_DY, OPERAND_DYT, NUM_OPERANDS };

typedef struct {
    char text[256];             // as given, for logs and checkpoints
    Format base;                // of everything outside the NVFP4 GEMMs: FP32 or BF16
    Format gemm[NUM_GEMMS];     // of the GEMMs in the blocks that take part
    int hadamard;               // transform both operands of wgrad
    int stochastic;             // round gradients stochastically
    int tile16;                 // weights in 16x16 tiles; 0: 1x16 along each GEMM's contraction
    int front, tail;            // this many first and last blocks stay in the base format
} Recipe;

static inline const char* linear_name(int linear) {
    static const char* names[NUM_LINEARS] = { "qkv", "attproj", "fc", "fcproj" };
    return names[linear];
}

static inline const char* operand_name(int operand) {
    static const char* names[NUM_OPERANDS] = { "X", "X^T", "W", "W^T", "dY", "dY^T" };
    return names[operand];
}

// The operand's number in the counters of stochastic rounding: layer * 16 + linear * 4 + which, and
// `which` differs between dY and dY^T, or the errors of dgrad and wgrad would be correlated.
static inline uint32_t operand_tag(int layer, int linear, int operand) {
    return (uint32_t)(layer * 16 + linear * 4 + (operand == OPERAND_DYT));
}

// Does block `layer` quantize the operands of this GEMM?
static inline int recipe_quantizes(const Recipe* r, int gemm, int layer, int L) {
    return r->gemm[gemm] == FORMAT_NVFP4 && layer >= r->front && layer < L - r->tail;
}

// ---------------------------------------------------------------------------------------------
// Parsing

static inline void recipe_set(Recipe* r, const char* name, const char* value) {
    static const char* gemms[NUM_GEMMS] = { "fprop", "dgrad", "wgrad" };
    for (int g = 0; g < NUM_GEMMS; g++) {
        if (strcmp(name, gemms[g]) == 0) {
            int nvfp4 = strcmp(value, "nvfp4") == 0;
            check(nvfp4 || strcmp(value, "bf16") == 0, "-p %s: %s is nvfp4 or bf16, not '%s'",
                  r->text, name, value);
            r->gemm[g] = nvfp4 ? FORMAT_NVFP4 : FORMAT_BF16;
            return;
        }
    }
    char* end;
    long number = strtol(value, &end, 10);
    check(*value != '\0' && *end == '\0' && number >= 0 && number <= 1024,
          "-p %s: '%s' is not a number from 0 up", r->text, value);
    int* field = strcmp(name, "hadamard") == 0 ? &r->hadamard
               : strcmp(name, "stochastic") == 0 ? &r->stochastic
               : strcmp(name, "tile16") == 0 ? &r->tile16
               : strcmp(name, "front") == 0 ? &r->front
               : strcmp(name, "tail") == 0 ? &r->tail : NULL;
    check(field != NULL, "-p %s: unknown ingredient '%s'; known: hadamard=0|1 stochastic=0|1 "
          "tile16=0|1 fprop|dgrad|wgrad=nvfp4|bf16 front=BLOCKS tail=BLOCKS", r->text, name);
    check(field == &r->front || field == &r->tail || number <= 1, "-p %s: %s is 0 or 1",
          r->text, name);
    *field = (int)number;
}

// The last ~15 % of the blocks, at least one, is what the paper keeps in BF16 [section 4.1].
static inline int recipe_default_tail(int L) {
    int tail = (15 * L + 50) / 100;
    return tail < 1 ? 1 : tail;
}

static inline Recipe recipe_parse(const char* text, int L) {
    Recipe r;
    memset(&r, 0, sizeof(r));
    check(strlen(text) < sizeof(r.text), "-p %s: too long", text);
    strcpy(r.text, text);
    char copy[sizeof(r.text)];
    strcpy(copy, text);
    char* item = strtok(copy, ",");
    if (item != NULL && strcmp(item, "nvfp4") == 0) {
        r.base = FORMAT_BF16;
        for (int g = 0; g < NUM_GEMMS; g++) { r.gemm[g] = FORMAT_NVFP4; }
        r.hadamard = r.stochastic = r.tile16 = 1;
        r.tail = recipe_default_tail(L);
        while ((item = strtok(NULL, ",")) != NULL) {
            char* equals = strchr(item, '=');
            check(equals != NULL, "-p %s: '%s' should be name=value", text, item);
            *equals = '\0';
            recipe_set(&r, item, equals + 1);
        }
        check(r.front + r.tail <= L, "-p %s: front=%d and tail=%d are more than the %d blocks",
              text, r.front, r.tail, L);
    } else {
        int bf16 = item != NULL && strcmp(item, "bf16") == 0;
        check(bf16 || (item != NULL && strcmp(item, "fp32") == 0),
              "-p %s: a recipe begins with fp32, bf16 or nvfp4", text);
        check(strtok(NULL, ",") == NULL, "-p %s: only nvfp4 has ingredients to override", text);
        r.base = bf16 ? FORMAT_BF16 : FORMAT_FP32;
        for (int g = 0; g < NUM_GEMMS; g++) { r.gemm[g] = r.base; }
    }
    return r;
}

// ---------------------------------------------------------------------------------------------
// In words

static inline void recipe_print(const Recipe* r, int L, FILE* out) {
    fprintf(out, "recipe            %s\n", r->text);
    if (r->base == FORMAT_FP32) {
        fprintf(out, "  everything      FP32\n");
        return;
    }
    int quantized = 0;
    for (int g = 0; g < NUM_GEMMS; g++) { quantized |= r->gemm[g] == FORMAT_NVFP4; }
    int first = r->front, last = L - r->tail - 1;
    if (quantized && first <= last) {
        const char* w = r->tile16 ? "16x16" : "1x16";
        const char* gradient = r->stochastic ? "stochastic" : "nearest";
        const char* hadamard = r->hadamard ? "Hadamard, " : "";
        fprintf(out, "  blocks %d to %d, linear layers:\n", first, last);
        fprintf(out, "  fprop Y=X W^T   ");
        if (r->gemm[FPROP] == FORMAT_NVFP4) {
            fprintf(out, "NVFP4: X 1x16 nearest; W %s nearest\n", w);
        } else { fprintf(out, "BF16\n"); }
        fprintf(out, "  dgrad dX=dY W   ");
        if (r->gemm[DGRAD] == FORMAT_NVFP4) {
            fprintf(out, "NVFP4: dY 1x16 %s; W^T %s\n", gradient,
                    r->tile16 ? "16x16, the codes of W" : "1x16 nearest");
        } else { fprintf(out, "BF16\n"); }
        fprintf(out, "  wgrad dW=dY^T X ");
        if (r->gemm[WGRAD] == FORMAT_NVFP4) {
            fprintf(out, "NVFP4: dY^T %s1x16 %s; X^T %s1x16 nearest\n", hadamard, gradient,
                    hadamard);
        } else { fprintf(out, "BF16\n"); }
        fprintf(out, "  other blocks    BF16 (first %d, last %d)\n", r->front, r->tail);
    }
    fprintf(out, "  the rest        BF16: embedding, norms, attention, GELU, head, "
            "residual stream\n");
    fprintf(out, "  FP32            master weights, AdamW moments, weight gradients, loss\n");
}

#endif
