/*
Reads what dev/reference/make_reference.py wrote: a batch, and what PyTorch made of it. README.md
beside this file draws the format. C11 and C++17.
*/
#ifndef REFERENCE_FILE_H
#define REFERENCE_FILE_H

#include "../../llmc/checkpoint.h"

typedef struct {
    int B, T;
    int* inputs;                // (B,T)
    int* targets;               // (B,T)
    float* logits;              // (B,T,V), without padding
    float loss;
    float* gradients;           // all parameters, in the order of gpt2.h
    int steps;                  // of AdamW on this batch, after the gradients above
    float learning_rate, beta1, beta2, eps, weight_decay, clip;
    float* losses;              // (steps)
    float* norms;               // (steps) of the gradients before clipping
} Reference;

static inline Reference reference_open(const char* model_path, const char* state_path) {
    Reference r;
    ParamSpec specs[NUM_PARAMS];
    GPT2Config config = checkpoint_read_config(model_path);
    size_t num_params = gpt2_param_specs(specs, &config);
    FILE* file = file_open(state_path, "dev/reference/make_reference.py makes it");
    int32_t header[256];
    file_read(header, sizeof(header), file, state_path);
    check(header[0] == 20240327 && header[1] == 2, "%s: not a state file of make_reference.py",
          state_path);
    r.B = header[2];
    r.T = header[3];
    r.steps = header[4];
    float* settings[6] = { &r.learning_rate, &r.beta1, &r.beta2, &r.eps, &r.weight_decay, &r.clip };
    for (int i = 0; i < 6; i++) { memcpy(settings[i], &header[5 + i], sizeof(float)); }
    size_t BT = (size_t)r.B * (size_t)r.T, steps = (size_t)r.steps;
    r.inputs = (int*)xmalloc(BT * sizeof(int), "reference");
    r.targets = (int*)xmalloc(BT * sizeof(int), "reference");
    r.logits = (float*)xmalloc(BT * (size_t)config.V * sizeof(float), "reference");
    r.gradients = (float*)xmalloc(num_params * sizeof(float), "reference");
    r.losses = (float*)xmalloc(steps * sizeof(float), "reference");
    r.norms = (float*)xmalloc(steps * sizeof(float), "reference");
    file_read(r.inputs, BT * sizeof(int), file, state_path);
    file_read(r.targets, BT * sizeof(int), file, state_path);
    file_read(r.logits, BT * (size_t)config.V * sizeof(float), file, state_path);
    file_read(&r.loss, sizeof(float), file, state_path);
    file_read(r.gradients, num_params * sizeof(float), file, state_path);
    file_read(r.losses, steps * sizeof(float), file, state_path);
    file_read(r.norms, steps * sizeof(float), file, state_path);
    fclose(file);
    return r;
}

static inline void reference_close(Reference* r) {
    free(r->inputs);
    free(r->targets);
    free(r->logits);
    free(r->gradients);
    free(r->losses);
    free(r->norms);
}

#endif
