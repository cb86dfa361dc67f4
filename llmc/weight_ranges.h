/*
Which weights travel between ranks as NVFP4 codes, and which as they are: ranges of the vector of
parameters, for the C program (weights_cpu.h, which explains why) and the CUDA program
(weights.cuh).

C11 that also compiles as C++17.
*/
#ifndef LLMC_WEIGHT_RANGES_H
#define LLMC_WEIGHT_RANGES_H

#include "gpt2.h"
#include "recipe.h"
#include "shards.h"

#define TILE_ELEMENTS 256               // of 16 x 16

typedef struct {
    Range coded[NUM_LINEARS];           // travel as codes: all such blocks of a linear together
    Range plain[NUM_LINEARS + 1];       // the rest of the vector
    size_t num_coded, num_plain;        // elements of these
} WeightRanges;

// Which parameter is the weight of a linear layer.
static inline int linear_param(int linear) {
    static const int params[NUM_LINEARS] = { QKVW, PROJW, FCW, FCPROJW };
    return params[linear];
}

// Of a vector of `size` parameters. as_codes 0: nothing travels as codes.
static inline WeightRanges weight_ranges(const ParamSpec* specs, size_t size, const Recipe* recipe,
                                         int L, int as_codes) {
    WeightRanges r;
    memset(&r, 0, sizeof(r));
    size_t plain_from = 0;
    for (int i = 0; i < NUM_LINEARS; i++) {
        const ParamSpec* spec = &specs[linear_param(i)];
        r.coded[i].first = gpt2_param_offset(specs, linear_param(i), recipe->front);
        for (int l = 0; l < L && as_codes; l++) {
            r.coded[i].count += recipe_weights_travel(recipe, l) ? spec->size : 0;
        }
        r.plain[i].first = plain_from;
        r.plain[i].count = r.coded[i].first - plain_from;
        plain_from = r.coded[i].first + r.coded[i].count;
        r.num_coded += r.coded[i].count;
    }
    r.plain[NUM_LINEARS].first = plain_from;
    r.plain[NUM_LINEARS].count = size - plain_from;
    r.num_plain = size - r.num_coded;
    return r;
}

// Where among the coded elements a coded weight begins.
static inline size_t weight_packed(const WeightRanges* r, const ParamSpec* specs, int layer,
                                   int linear) {
    return ranges_before(r->coded, NUM_LINEARS,
                         gpt2_param_offset(specs, linear_param(linear), layer));
}

#endif
