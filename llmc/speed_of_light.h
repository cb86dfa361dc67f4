/*
How fast training could be: the floating-point operations of a token over the peak rate of the GPU.

C11 that also compiles as C++17.
*/
#ifndef LLMC_SPEED_OF_LIGHT_H
#define LLMC_SPEED_OF_LIGHT_H

#include "gpt2.h"

// Operations per token, forward and backward: every parameter takes part in one multiplication and
// one addition forward and twice as many backward, 6 N in all (the tied token embedding counts
// once, as the classifier); attention adds two T x T products of C channels per block forward, of
// which causality needs half: 6 L C T. This is llm.c's formula.
static inline double training_flops_per_token(const GPT2Config* config, int T) {
    ParamSpec specs[NUM_PARAMS];
    double N = (double)gpt2_param_specs(specs, config);
    return 6.0 * N + 6.0 * config->L * (double)config->C * T;
}

// Dense BF16 tensor-core peak of a GPU in FLOP/s, from NVIDIA's data sheets, by a part of its
// name; 0 if it is not in the table. NVFP4 runs are held against the same peak, so that their
// shares can be compared.
static inline double bf16_peak_flops(const char* device_name) {
    static const struct { const char* name; double peak; } table[] = {
        { "H100 PCIe", 756e12 }, { "H100 NVL", 835e12 }, { "H100", 989.4e12 }, { "H200", 989.4e12 },
        { "GH200", 989.4e12 },   { "A100", 312e12 },     { "B200", 2250e12 },  { "GB200", 2500e12 },
        { "B300", 2250e12 },     { "GB300", 2500e12 },   { "L40S", 362e12 },
        { "RTX 4090", 165.2e12 }, { "RTX 5090", 209.5e12 }, { "RTX 3090", 71e12 },
        { "A10", 125e12 },
    };
    double peak = 0.0;
    size_t longest = 0;         // "GB200" beats "B200"
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strstr(device_name, table[i].name) != NULL && strlen(table[i].name) > longest) {
            longest = strlen(table[i].name);
            peak = table[i].peak;
        }
    }
    return peak;
}

#endif
