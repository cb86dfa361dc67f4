/*
GPT-2: its configurations, and one table of all facts about its parameters.

The model is that of Radford et al. 2019, as llm.c and nanoGPT train it: pre-norm blocks, learned
positions, GELU (tanh form), biases in every linear layer, the token embedding used once more as the
classifier. Shapes everywhere: B batch, T time, C channels, V vocabulary, Vp padded vocabulary,
L layers, NH heads, HS = C / NH head size.
*/
#ifndef LLMC_GPT2_H
#define LLMC_GPT2_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "random.h"
#include "utils.h"

typedef struct {
    int max_T;      // longest sequence: rows of wpe
    int V, Vp;      // vocabulary, and padded to a multiple of 128 as GEMM tiles like it
    int L, NH, C;
} GPT2Config;

// ---------------------------------------------------------------------------------------------
// Configurations

typedef struct { const char* name; int L, C, NH, max_T; } GPT2Preset;

// Sets the field called `name` of the configuration; returns 0 if there is none of that name.
static inline int gpt2_config_set(GPT2Config* c, const char* name, int value) {
    if (strcmp(name, "layers") == 0) { c->L = value; }
    else if (strcmp(name, "channels") == 0) { c->C = value; }
    else if (strcmp(name, "heads") == 0) { c->NH = value; }
    else if (strcmp(name, "vocab") == 0) { c->V = value; }
    else if (strcmp(name, "context") == 0) { c->max_T = value; }
    else { return 0; }
    return 1;
}

static inline void gpt2_config_check(const GPT2Config* c) {
    check(c->L >= 1 && c->C >= 16 && c->NH >= 1 && c->max_T >= 1,
          "a model needs layers, channels, heads: for instance -e d12, or "
          "-e layers=4,channels=128,heads=4,vocab=257");
    check(c->V >= 2 && c->V <= 65536,
          "a vocabulary of %d does not fit the token files (2 to 65536)", c->V);
    check(c->C % c->NH == 0, "%d channels cannot be divided among %d heads", c->C, c->NH);
    check(c->C % 16 == 0, "%d channels: must be a multiple of 16, the block size of NVFP4", c->C);
    check(c->C <= 12288 && c->L <= 1024 && c->max_T <= (1 << 20), "a model of %d layers, %d "
          "channels, context %d is larger than this program expects", c->L, c->C, c->max_T);
}

// The configuration that a text describes: a preset ("d12", "gpt2:d12", "gpt3:c768") and after
// commas any of layers= channels= heads= vocab= context=; the preset may be missing. T is the
// context where nothing else gives it.
static inline GPT2Config gpt2_config(const char* text, int T) {
    static const GPT2Preset presets[] = {
        // name        L     C     NH  max_T     the rest of llm.c's families
        { "d6",        6,   384,    6, 1024 },
        { "d12",      12,   768,   12, 1024 },  // GPT-2 "small", 124M parameters
        { "d24",      24,  1024,   16, 1024 },  // "medium", 355M
        { "d36",      36,  1280,   20, 1024 },  // "large", 774M
        { "d48",      48,  1600,   25, 1024 },  // "XL", 1558M
        { "d60",      60,  1920,   30, 1024 },
        { "d72",      72,  2880,   30, 1024 },
        { "d84",      84,  3456,   36, 1024 },
        { "gpt3:c384",    6,   384,  6, 2048 },
        { "gpt3:c768",   12,   768, 12, 2048 },
        { "gpt3:c1024",  24,  1024, 16, 2048 },
        { "gpt3:c1536",  24,  1536, 16, 2048 },
        { "gpt3:c2048",  24,  2048, 16, 2048 },
        { "gpt3:c2560",  32,  2560, 32, 2048 },
        { "gpt3:c4096",  32,  4096, 32, 2048 },
        { "gpt3:c12288", 96, 12288, 96, 2048 },
    };
    GPT2Config c = { T, 50257, 0, 0, 0, 0 };
    char copy[256];
    check(strlen(text) < sizeof(copy), "-e %s: too long", text);
    strcpy(copy, text);
    int first = 1;
    for (char* item = strtok(copy, ","); item != NULL; item = strtok(NULL, ",")) {
        char* equals = strchr(item, '=');
        if (equals != NULL) {
            *equals = '\0';
            char* end;
            long value = strtol(equals + 1, &end, 10);
            check(equals[1] != '\0' && *end == '\0' && value > 0 && value < (1 << 30),
                  "-e %s: '%s' is not a positive number", text, equals + 1);
            check(gpt2_config_set(&c, item, (int)value),
                  "-e %s: unknown '%s'; known: layers channels heads vocab context", text, item);
        } else {
            const char* name = strncmp(item, "gpt2:", 5) == 0 ? item + 5 : item;
            int known = 0;
            for (size_t i = 0; i < sizeof(presets) / sizeof(presets[0]); i++) {
                if (strcmp(name, presets[i].name) == 0) {
                    c.L = presets[i].L;
                    c.C = presets[i].C;
                    c.NH = presets[i].NH;
                    c.max_T = presets[i].max_T;
                    known = 1;
                }
            }
            check(known && first, "-e %s: no model or file '%s'; models: d6 d12 d24 d36 d48 "
                  "d60 d72 d84, gpt3:c384 to gpt3:c12288, or layers=,channels=,heads=,vocab=",
                  text, item);
        }
        first = 0;
    }
    c.Vp = (c.V + 127) / 128 * 128;
    gpt2_config_check(&c);
    return c;
}

// ---------------------------------------------------------------------------------------------
// Parameters

enum {
    WTE, WPE, LN1W, LN1B, QKVW, QKVB, PROJW, PROJB,
    LN2W, LN2B, FCW, FCB, FCPROJW, FCPROJB, LNFW, LNFB, NUM_PARAMS
};

typedef struct {
    const char* name;
    int layers;         // how many of them: one per block, or 1
    int rows, cols;     // shape of one; vectors have one row
    float init;         // standard deviation of the initial values; 0: constant
    float constant;     // the initial value where init is 0
    int decay;          // weight decay applies: the 2-D tensors
    size_t offset;      // of the first element, among all parameters
    size_t size;        // elements of one layer's tensor
} ParamSpec;

// Fills the table; returns the number of parameters. Tensors lie one after the other in this order,
// all layers of one tensor together, as in llm.c's model files.
static inline size_t gpt2_param_specs(ParamSpec* specs /* (NUM_PARAMS) */,
                                      const GPT2Config* config) {
    int L = config->L, C = config->C;
    float w = 0.02f;
    // projections into the residual stream: 2L of them add up there, each starts
    // smaller by sqrt(2L)
    float r = (float)(0.02 / sqrt(2.0 * L));
    ParamSpec table[NUM_PARAMS] = {
        // name      layers rows        cols   init constant decay
        { "wte",      1, config->Vp,    C,     w,    0.0f,    1, 0, 0 },
        { "wpe",      1, config->max_T, C,     w,    0.0f,    1, 0, 0 },
        { "ln1w",     L, 1,             C,     0.0f, 1.0f,    0, 0, 0 },
        { "ln1b",     L, 1,             C,     0.0f, 0.0f,    0, 0, 0 },
        { "qkvw",     L, 3 * C,         C,     w,    0.0f,    1, 0, 0 },
        { "qkvb",     L, 1,             3 * C, 0.0f, 0.0f,    0, 0, 0 },
        { "attprojw", L, C,             C,     r,    0.0f,    1, 0, 0 },
        { "attprojb", L, 1,             C,     0.0f, 0.0f,    0, 0, 0 },
        { "ln2w",     L, 1,             C,     0.0f, 1.0f,    0, 0, 0 },
        { "ln2b",     L, 1,             C,     0.0f, 0.0f,    0, 0, 0 },
        { "fcw",      L, 4 * C,         C,     w,    0.0f,    1, 0, 0 },
        { "fcb",      L, 1,             4 * C, 0.0f, 0.0f,    0, 0, 0 },
        { "fcprojw",  L, C,             4 * C, r,    0.0f,    1, 0, 0 },
        { "fcprojb",  L, 1,             C,     0.0f, 0.0f,    0, 0, 0 },
        { "lnfw",     1, 1,             C,     0.0f, 1.0f,    0, 0, 0 },
        { "lnfb",     1, 1,             C,     0.0f, 0.0f,    0, 0, 0 },
    };
    size_t offset = 0;
    for (int p = 0; p < NUM_PARAMS; p++) {
        specs[p] = table[p];
        specs[p].size = (size_t)table[p].rows * (size_t)table[p].cols;
        specs[p].offset = offset;
        offset += specs[p].size * (size_t)table[p].layers;
    }
    return offset;
}

// Where the tensor of one layer begins among all parameters (layer 0 for those outside the blocks).
static inline size_t gpt2_param_offset(const ParamSpec* specs, int param, int layer) {
    return specs[param].offset + specs[param].size * (size_t)layer;
}

// Draws the initial values of the parameters first .. first+count-1. Every element has its own
// random number, so the result does not depend on threads, and any rank may draw any part. The
// padded rows of wte are zero and stay zero: their logits take no part in the loss, so their
// gradient is zero.
static inline void gpt2_init_part(float* values /* (count) */, size_t first, size_t count,
                                  const ParamSpec* specs, const GPT2Config* config,
                                  uint64_t seed) {
    for (int p = 0; p < NUM_PARAMS; p++) {
        size_t begin = specs[p].offset, end = begin + specs[p].size * (size_t)specs[p].layers;
        size_t drawn = p == WTE ? (size_t)config->V * (size_t)config->C : end - begin;
        size_t from = begin > first ? begin : first, to = end < first + count ? end : first + count;
        #pragma omp parallel for
        for (size_t at = from; at < to; at++) {
            size_t i = at - begin;
            float* value = &values[at - first];
            if (i >= drawn) { *value = 0.0f; }
            else if (specs[p].init == 0.0f) { *value = specs[p].constant; }
            else { *value = specs[p].init * random_normal(seed, (uint32_t)p, i); }
        }
    }
}

// All of them.
static inline void gpt2_init(float* params, const ParamSpec* specs, const GPT2Config* config,
                             uint64_t seed) {
    const ParamSpec* last = &specs[NUM_PARAMS - 1];
    gpt2_init_part(params, 0, last->offset + last->size * (size_t)last->layers, specs, config,
                   seed);
}

#endif
