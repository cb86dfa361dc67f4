/*
Measures a checkpoint with the CUDA program's model: sensitivity_cpu.c on a GPU. It has measured d6 on
an H200 (dev/results/sensitivity_d6); test_sensitivity.py compares it, on the CPU, with the C program.

    dev/sensitivity_cuda -e runs/a/model_00002000.bin -j "data/val_*.bin" -o measured.json
*/
#define TESTING
#include "../train_gpt2_nvfp4.cu"
#include "dev/sensitivity_report/measure.h"

static GPT2<__nv_bfloat16> model;
static Measure measure;

static void prepare(const Recipe* recipe, const float* params) {
    if (params != NULL) {
        cudaCheck(cudaMemcpy(model.params, params, model.num_params * sizeof(float),
                             cudaMemcpyHostToDevice));
    }
    model.recipe = *recipe;
    gpt2_refresh_working(&model);
}

static void losses_of(float* losses, const int* inputs, const int* targets, int B, int T) {
    gpt2_forward(&model, inputs, targets, B, T, 0.0f);
    gpt2_check_finite(&model, 0);
    cudaCheck(cudaMemcpy(losses, model.acts.losses, (size_t)B * (size_t)T * sizeof(float),
                         cudaMemcpyDeviceToHost));
}

static void gradient_of(float* grads, const int* inputs, const int* targets, int B, int T,
                        uint64_t seed) {
    gpt2_zero_grad(&model);
    model.linear.seed = seed;
    gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)(B * T));
    gpt2_backward(&model, B, T);
    model.linear.seed = model.seed;
    gpt2_check_finite(&model, 0);
    cudaCheck(cudaMemcpy(grads, model.grads, model.num_params * sizeof(float),
                         cudaMemcpyDeviceToHost));
}

// Copies the operand and the BF16 tensor that it was made from to the host.
static void observe(int layer, int linear, int operand, const __nv_bfloat16* source,
                    const Nvfp4Matrix* x_q) {
    if (!measure.observes) { return; }
    size_t rows = (size_t)x_q->rows, cols = (size_t)x_q->cols, n = rows * cols;
    Format format = model.recipe.operands[operand].format;
    size_t codes = quantized_codes_size(format, rows, cols);
    size_t scales = quantized_scales_size(format, rows, cols);
    float amax;
    Nvfp4Matrix host = *x_q;
    host.codes = (uint8_t*)xmalloc(codes, "an operand");
    host.block_scales = (uint8_t*)xmalloc(scales, "an operand");
    host.amax = &amax;
    __nv_bfloat16* halves = (__nv_bfloat16*)xmalloc(n * sizeof(*halves), "an operand");
    float* tensor = (float*)xmalloc(n * sizeof(float), "an operand");
    cudaCheck(cudaStreamSynchronize(model.stream));
    cudaCheck(cudaMemcpy(host.codes, x_q->codes, codes, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(host.block_scales, x_q->block_scales, scales, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(&amax, x_q->amax, sizeof(float), cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(halves, source, n * sizeof(*halves), cudaMemcpyDeviceToHost));
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { tensor[i] = to_float(halves[i]); }
    check(amax <= FLOAT_LARGEST, "block %d %s: %s is not finite", layer, linear_name(linear),
          operand_name(operand));
    measure_tensor(&measure, layer, linear, operand, tensor, &host);
    free(host.codes);
    free(host.block_scales);
    free(halves);
    free(tensor);
}

// What the self-test finds, of the recipe's products and of the post-training check's quantizers.
static HardwarePaths choose_hardware(void) {
    enum { MOST = NUM_LINEARS * NUM_GEMMS };
    GemmProduct products[2 * MOST];
    GemmProduct plain[MOST];
    char text[MEASURE_RECIPE_BYTES];
    int N = measure.config.B * measure.config.T;
    int count = gpt2_products(products, &measure.recipe, &measure.model, N);
    Format format = measure.recipe.operands[OPERAND_X].format;
    for (int i = 0; measure_plain_recipe(text, format, i); i++) {
        Recipe recipe = measure_recipe(&measure, text, "");
        gpt2_products(plain, &recipe, &measure.model, N);
        products[count++] = plain[0];
    }
    return self_test(gemm_path_parse(measure.config.gemm_path), products, count, NULL, 0);
}

int main(int argc, char** argv) {
    static Ranks alone;
    static DeviceRanks device_alone;
    Shards shards;
    measure_open(&measure, argc, argv);
    alone.size = 1;
    shards_open(&shards, &alone, 0, measure.num_params);
    cudaDeviceProp device = device_open(&alone);
    HardwarePaths hardware = choose_hardware();
    device_ranks_open(&device_alone, &alone);
    gpt2_build(&model, measure.model, measure.recipe, hardware, measure.config.B, measure.config.T,
               measure.config.seed, &shards, &device_alone);
    model.linear.observe = observe;
    measure.of.prepare = prepare;
    measure.of.losses = losses_of;
    measure.of.gradient = gradient_of;
    measure_run(&measure, "sensitivity_cuda", device.name);
    return 0;
}
