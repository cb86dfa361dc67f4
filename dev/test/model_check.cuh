/*
Models for tests of train_gpt2_nvfp4.cu: with initial weights, on one GPU, multiplying and quantizing
as the self-test chooses.
*/
#ifndef TEST_MODEL_CHECK_CUH
#define TEST_MODEL_CHECK_CUH

#define TESTING
#include "../../train_gpt2_nvfp4.cu"
#include "device_check.cuh"

// A device tensor (n) as floats; the caller frees them.
template <typename Real> static float* copy_out(const Real* device, size_t n) {
    Real* stored = (Real*)xmalloc(n * sizeof(Real), "a copy");
    float* values = (float*)xmalloc(n * sizeof(float), "a copy");
    cudaCheck(cudaDeviceSynchronize());
    cudaCheck(cudaMemcpy(stored, device, n * sizeof(Real), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) { values[i] = to_float(stored[i]); }
    free(stored);
    return values;
}

// How all models here multiply and quantize: what the self-test finds.
static HardwarePaths hardware;

static void choose_hardware(void) {
    Quantizer nvfp4 = quantizer_nvfp4(0);
    const GemmProduct products[] = { { 64, 128, 128, GEMM_STORES_BF16, nvfp4, nvfp4 },
                                     { 128, 128, 64, GEMM_ADDS_FP32, nvfp4, nvfp4 } };
    hardware = self_test(GEMM_AUTO, products, 2, NULL, 0);
}

// A model with the initial weights of `seed`, or those of a model file if there is one.
template <typename Real>
static void build_recipe(GPT2<Real>* model, GPT2Config config, Recipe recipe, int B, int T,
                         uint64_t seed, const char* file) {
    static Ranks one;
    static DeviceRanks alone;
    ParamSpec specs[NUM_PARAMS];
    Shards shards;
    one.size = 1;
    device_ranks_open(&alone, &one);
    shards_open(&shards, &one, 0, gpt2_param_specs(specs, &config));
    int nvfp4 = recipe.operands[OPERAND_X].format == FORMAT_NVFP4;      // as gpt2_choose_hardware
    gpt2_build(model, config, recipe, nvfp4 ? hardware : hardware_portable(), B, T, seed, &shards,
               &alone);
    float* params = (float*)xmalloc(model->num_params * sizeof(float), "parameters");
    float* zeros = (float*)xcalloc(model->num_params * sizeof(float), "moments");
    Range all = { 0, model->num_params };
    if (file != NULL) { checkpoint_load_model(params, file, all); }
    else { gpt2_init(params, model->specs, &config, seed); }
    gpt2_set_state(model, params, zeros, zeros);
    gpt2_zero_grad(model);
    gpt2_zero_loss(model);
    free(params);
    free(zeros);
}

template <typename Real>
static void build(GPT2<Real>* model, GPT2Config config, const char* recipe, int B, int T,
                  uint64_t seed, const char* file) {
    build_recipe(model, config, recipe_parse(recipe, config.L), B, T, seed, file);
}

#endif
