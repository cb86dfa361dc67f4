/*
Measures a checkpoint with the C program's model. dev/sensitivity calls it and makes a report of what
it writes; what it measures, dev/sensitivity_report/measure.h says.

    dev/sensitivity_cpu -e runs/a/model_00002000.bin -j "data/val_*.bin" -o measured.json
*/
#define TESTING
#include "../train_gpt2_fp32.c"
#include "dev/sensitivity_report/measure.h"

static GPT2 model;
static Measure measure;

static void prepare(const Recipe* recipe, const float* params) {
    if (params != NULL) { memcpy(model.params, params, model.num_params * sizeof(float)); }
    model.recipe = *recipe;
    gpt2_refresh_working(&model);
}

static void losses_of(float* losses, const int* inputs, const int* targets, int B, int T) {
    gpt2_forward(&model, inputs, targets, B, T, 0.0f);
    memcpy(losses, model.acts.losses, (size_t)B * (size_t)T * sizeof(float));
}

static void gradient_of(float* grads, const int* inputs, const int* targets, int B, int T,
                        uint64_t seed) {
    gpt2_zero_grad(&model);
    model.linear.seed = seed;
    gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)(B * T));
    gpt2_backward(&model, inputs, B, T);
    model.linear.seed = model.seed;
    memcpy(grads, model.grads, model.num_params * sizeof(float));
}

// Weights come without the tensor that they were made from: it is the working weight.
static void observe(int layer, int linear, int operand, const float* source,
                    const Nvfp4Matrix* x_q) {
    if (!measure.observes) { return; }
    if (source != NULL) { measure_operand(&measure, layer, linear, operand, source, x_q); }
    else {
        measure_tensor(&measure, layer, linear, operand, param(&model, linear_param(linear), layer),
                       x_q);
    }
}

int main(int argc, char** argv) {
    static Ranks alone;
    Shards shards;
    measure_open(&measure, argc, argv);
    alone.size = 1;
    shards_open(&shards, &alone, 0, measure.num_params);
    gpt2_build(&model, measure.model, measure.recipe, measure.config.B, measure.config.T,
               measure.config.seed, &shards);
    model.linear.observe = observe;
    measure.of.prepare = prepare;
    measure.of.losses = losses_of;
    measure.of.gradient = gradient_of;
    measure_run(&measure, "sensitivity_cpu", "CPU");
    return 0;
}
