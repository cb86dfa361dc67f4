/*
Guards (llmc/guards.h) in the CUDA program, on a GPU or on the CPU: what the kernels of guards.cuh
count, and that a run with guards has the bits of one without. The rules themselves are tested in
test_guards.c, several ranks in test_ranks_model.cu.

exact      scales, gradients and checksums are counted as the C functions count them; losses,
           masters and moments with guards and without are the same; in a model whose block 1 sends
           no gradient back through its MLP four tensors are zero, and no others

Faults that made it fail, one at a time: FAULTS
*/
#include "cublaslt_model.h"
#include "model_check.cuh"
#include "oracle_file.h"

// ---------------------------------------------------------------------------------------------
// Kernels

// A matrix of normal numbers in which some blocks are lost, zero, or as large as the largest;
// quantized by the C functions, and counted here and on the device.
static void test_scales(const char* name, int rows, int cols) {
    Quantizer quantizer = recipe_parse(name, 3).operands[OPERAND_X];
    Format f = quantizer.format;
    size_t n = (size_t)rows * cols, size = (size_t)format_block(f);
    float *x = (float*)xmalloc(n * sizeof(float), "a matrix"), amax;
    fill_normal(x, n, 5, 0.0f, 1.0f);
    for (size_t at = 0; at < n; at++) {
        size_t row = at / cols, block = size > 0 ? at % cols / size : 1;
        x[at] = bf16_round(x[at]);
        if ((row + block) % 7 == 0) { x[at] *= f == FORMAT_NVFP4 ? 0x1p-24f : 0x1p-129f; }
        if ((row + block) % 7 == 1) { x[at] = block % 2 ? 0.0f : -0.0f; }
        if ((row + block) % 7 == 2) { x[at] = x[at] > 0.0f ? 5.0f : -5.0f; }    // the largest scale
    }
    size_t codes = quantized_codes_size(f, (size_t)rows, (size_t)cols);
    size_t scales = quantized_scales_size(f, (size_t)rows, (size_t)cols);
    Nvfp4Rounding nearest;
    memset(&nearest, 0, sizeof(nearest));
    Nvfp4Matrix host = { rows, cols, (uint8_t*)xmalloc(codes, "codes"),
                         (uint8_t*)xmalloc(scales, "scales"), &amax };
    amax = bits_float(nvfp4_matrix_amax_bits(x, (size_t)rows, (size_t)cols));
    quantized_make(&host, x, quantizer, nearest);
    Nvfp4Matrix device = host, none = host;
    device.codes = device_tensor<uint8_t>(codes);
    device.block_scales = device_tensor<uint8_t>(scales);
    cudaCheck(cudaMemcpy(device.codes, host.codes, codes, cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(device.block_scales, host.block_scales, scales, cudaMemcpyHostToDevice));
    none.rows = 0;

    uint64_t want[NUM_SCALE_COUNTS] = { 0 }, got[3][NUM_SCALE_COUNTS];
    uint64_t* counts = device_tensor<uint64_t>(3 * NUM_SCALE_COUNTS);
    cudaCheck(cudaMemset(counts, 0, sizeof(got)));
    CountedOperand operands[3];
    for (int i = 0; i < 3; i++) {
        operands[i] = { i == 2 ? none : device, f, counts + i * NUM_SCALE_COUNTS };
    }
    device_scales_count(operands[0], operands[1], 0);
    device_scales_count(operands[2], operands[0], 0);           // nothing, and once more
    cudaCheck(cudaMemcpy(got, counts, sizeof(got), cudaMemcpyDeviceToHost));
    scales_count(want, &host, f);
    int wrong = 0;
    for (int k = 0; k < NUM_SCALE_COUNTS; k++) {
        wrong += got[0][k] != 2 * want[k] || got[1][k] != want[k] || got[2][k] != 0;
    }
    report(wrong == 0, "scales", "%s (%d, %d): %d blocks, %d lost, %d with the largest scale", name,
           rows, cols, (int)want[0], (int)want[1], (int)want[2]);
    free(x);
    free(host.codes);
    free(host.block_scales);
    device_free_all();
}

// Gradients of which some tensors are zero, one but for its last element, and some are not; with
// two ranks' parts of them.
static void test_gradients(void) {
    GPT2Config config = gpt2_config("layers=3,channels=32,heads=2,vocab=100", 64);
    ParamSpec specs[NUM_PARAMS];
    Ranks ranks;
    Shards shards;
    size_t n = gpt2_param_specs(specs, &config);
    float* grads = (float*)xcalloc(n * sizeof(float), "gradients");
    for (size_t i = 0; i < n; i++) { grads[i] = i % 2 ? -0.0f : 0.0f; }
    int zeros = 0, wrong = 0;
    for (int p = 0; p < NUM_PARAMS; p++) {
        for (int l = 0; l < specs[p].layers; l++) {
            size_t first = gpt2_param_offset(specs, p, l), size = specs[p].size;
            int kind = (p + l) % 4;
            if (kind == 0) { grads[first + size - 1] = 1e-45f; }
            if (kind == 1) { fill_normal(grads + first, size, (uint32_t)p, 0.0f, 1.0f); }
            if (kind == 2) { grads[first + size / 2] = NAN; }
            zeros += kind == 3;
        }
    }
    memset(&ranks, 0, sizeof(ranks));
    for (ranks.size = 1; ranks.size <= 2; ranks.size++) {
        int found = 0, of = 0;
        char* seen = (char*)xcalloc(64, "tensors");
        for (ranks.rank = 0; ranks.rank < ranks.size; ranks.rank++) {
            DeviceGuards d;
            shards_open(&shards, &ranks, 2, n);
            device_guards_open(&d, guards_open(&config, &shards));
            const float* part = grads + shards.part.first;
            device_guards_begin(&d, 0, 0);
            device_guards_count_gradients(&d, to_device<float>(part, shards.part.count),
                                          0);
            device_guards_read(&d, 0);
            cudaCheck(cudaDeviceSynchronize());
            Guards* want = guards_open(&config, &shards);
            guards_count_gradients(want, part);
            size_t bytes = (size_t)want->num_counts * sizeof(uint64_t);
            wrong += memcmp(want->counts, d.host->counts, bytes) != 0;
            of = want->num_tensors;
            for (int i = 0; i < of; i++) {
                seen[i] |= d.host->counts[guard_tensor_counts(want) + i] != 0;
            }
            device_free_all();
        }
        for (int i = 0; i < of; i++) { found += !seen[i]; }
        report(wrong == 0 && found == zeros, "gradients", "%d of %d tensors zero, in %d parts: %d",
               zeros, of, ranks.size, found);
        free(seen);
    }
    free(grads);
}

// Checksums of pieces of memory, added up; one bit more shows.
static void test_checksum(void) {
    enum { WORDS = 300003 };
    GPT2Config config = gpt2_config("layers=1,channels=32,heads=2,vocab=100", 64);
    Ranks ranks;
    Shards shards;
    DeviceGuards d;
    ParamSpec specs[NUM_PARAMS];
    memset(&ranks, 0, sizeof(ranks));
    ranks.size = 4;
    ranks.rank = 2;
    shards_open(&shards, &ranks, 1, gpt2_param_specs(specs, &config));
    device_guards_open(&d, guards_open(&config, &shards));
    Guards* want = guards_open(&config, &shards);
    int* words = (int*)xmalloc(WORDS * sizeof(int), "words");
    fill_integers(words, WORDS, 3, 2147483647);
    int* device = integers_to_device(words, WORDS);
    uint64_t sums[2];
    for (int flipped = 0; flipped <= 1; flipped++) {
        device_guards_begin(&d, 0, 0);
        device_guards_add_weights(&d, device, WORDS * sizeof(int), 0);
        device_guards_add_weights(&d, device, 1000 * sizeof(int), 0);
        device_guards_add_weights(&d, device, 0, 0);
        device_guards_read(&d, 0);
        cudaCheck(cudaDeviceSynchronize());
        sums[flipped] = d.host->counts[GUARD_CHECKSUMS + 2] & 0xffffffffu;
        words[WORDS - 1] ^= 1 << 30;
        cudaCheck(cudaMemcpy(device, words, WORDS * sizeof(int), cudaMemcpyHostToDevice));
    }
    guards_add_weights(want, words, WORDS * sizeof(int));
    guards_add_weights(want, words, 1000 * sizeof(int));
    uint64_t sum = want->counts[GUARD_CHECKSUMS + 2] & 0xffffffffu;
    report(sums[0] == sum && sums[1] != sum, "checksum", "%08x, with another bit %08x",
           (unsigned)sums[0], (unsigned)sums[1]);
    free(words);
    device_free_all();
}

// ---------------------------------------------------------------------------------------------
// Updates

#define MODEL "layers=2,channels=32,heads=1,vocab=257"
enum { C = 32, B = 2, T = 16, STEPS = 2, MICRO_STEPS = 2 };

// A text that train_step reads.
static void write_tokens(const char* path) {
    enum { NUM = 4000 };
    int32_t header[256] = { TOKENS_MAGIC, TOKENS_VERSION, NUM };
    uint16_t tokens[NUM];
    for (int i = 0; i < NUM; i++) {
        tokens[i] = (uint16_t)(philox4x32(3, (uint32_t)i, 0, 0, 0).word[0] % 257);
    }
    FILE* file = fopen(path, "wb");
    check(file != NULL, "cannot write %s", path);
    file_write(header, sizeof(header), file, path);
    file_write(tokens, sizeof(tokens), file, path);
    fclose(file);
}

typedef struct {
    GPT2<__nv_bfloat16> model;
    Guards* guards;             // of the last update
    double blocks[NUM_OPERANDS];        // of the first
    float losses[STEPS];
} Trained;

// plant: fcprojw of block 1 is zero before each update.
static Trained* train(const char* tokens, const char* recipe, int guards, int plant) {
    Trained* t = (Trained*)xcalloc(sizeof(Trained), "a run");
    TrainRun run;
    GPT2<__nv_bfloat16>* model = &t->model;
    memset(&run, 0, sizeof(run));
    run.config = train_config_defaults();
    run.config.B = B;
    run.config.T = T;
    run.micro_steps = MICRO_STEPS;
    run.ranks.size = 1;
    run.num_steps = STEPS;
    run.inputs = (int*)xmalloc(B * T * sizeof(int), "tokens");
    run.targets = (int*)xmalloc(B * T * sizeof(int), "tokens");
    dataloader_open(&run.train, tokens, T, 257, 1, 7);
    build(model, gpt2_config(MODEL, T), recipe, B, T, 42, NULL);
    t->guards = guards ? guards_open(&model->config, &model->shards) : NULL;
    device_guards_open(&model->guards, t->guards);
    for (int step = 0; step < STEPS; step++) {
        float norm;
        if (plant) {
            size_t at = gpt2_param_offset(model->specs, FCPROJW, 1);
            cudaCheck(cudaMemset(model->params + at, 0, model->specs[FCPROJW].size * 4));
            gpt2_refresh_working(model);
        }
        t->losses[step] = train_step(model, &run, step, 1e-3f, &norm);
        if (guards) { guards_look(t->guards, t->losses[step]); }
    }
    return t;
}

static int same_bits(const float* a, const float* b, size_t n) {
    float* host_a = copy_out(a, n);
    float* host_b = copy_out(b, n);
    int same = memcmp(host_a, host_b, n * sizeof(float)) == 0;
    free(host_a);
    free(host_b);
    return same;
}

// And the blocks of the one look, in the first of two micro-batches of the first of two updates,
// are as many as the shapes say.
static void test_same_bits(const char* tokens, const char* recipe, int layers) {
    Trained* a = train(tokens, recipe, 1, 0);
    Trained* b = train(tokens, recipe, 0, 0);
    size_t n = a->model.num_params;
    int same = memcmp(a->losses, b->losses, sizeof(a->losses)) == 0
            && same_bits(a->model.params, b->model.params, n)
            && same_bits(a->model.m, b->model.m, n) && same_bits(a->model.v, b->model.v, n);
    int block = format_block(a->model.recipe.operands[OPERAND_X].format), wrong = 0;
    double alarms = 0.0;
    for (int operand = 0; operand < NUM_OPERANDS; operand++) {
        int gradient = operand == OPERAND_DY || operand == OPERAND_DYT;
        int weight = operand == OPERAND_W || operand == OPERAND_WT;
        double want = weight ? 12 * C * C : B * T * C * (gradient ? 9 : 7);
        wrong += a->guards->scales[operand * NUM_SCALE_COUNTS] * block != want * layers;
    }
    for (int kind = 0; kind < NUM_GUARDS; kind++) { alarms += a->guards->alarms[kind]; }
    report(same && wrong == 0 && alarms == 0.0, "the same bits", "%s: with guards and without; "
           "%.0f blocks of dY; %.0f alarms", recipe,
           a->guards->scales[OPERAND_DY * NUM_SCALE_COUNTS], alarms);
}

static void test_zero(const char* tokens, const char* recipe) {
    Guards* g = train(tokens, recipe, 1, 1)->guards;
    int found = 0;
    for (int i = 0; i < g->num_tensors; i++) {
        int p = g->tensors[i].param, zero = g->told[GUARD_ZERO_GRADIENT][i];
        int want = g->tensors[i].layer == 1 && (p == FCW || p == FCB || p == LN2W || p == LN2B);
        found += zero == want;
    }
    report(found == g->num_tensors && g->alarms[GUARD_ZERO_GRADIENT] == 4 * STEPS, "zero gradient",
           "%s: %.0f alarms, of 4 tensors in %d updates; %d of %d tensors as they should be",
           recipe, g->alarms[GUARD_ZERO_GRADIENT], STEPS, found, g->num_tensors);
}

#if RUNS_ON_CPU
// A model lives as long as the program; the sanitizer need not tell.
extern "C" const char* __asan_default_options(void) { return "detect_leaks=0"; }
#endif

int main(void) {
    char tokens[] = "/tmp/test_guards_cuda_XXXXXX";
    if (device_missing("guards")) { return report_status(); }
    static const char* formats[] = { "nvfp4", "quartet2", "mxfp4", "mxfp8", "fp8block", "fp8" };
    for (int i = 0; i < 6; i++) { test_scales(formats[i], 144, 208); }
    test_scales("nvfp4", RUNS_ON_CPU ? 256 : 16384, 1600);
    test_gradients();
    test_checksum();
    int file = mkstemp(tokens);
    check(file >= 0, "cannot make a file in /tmp");
    close(file);
    write_tokens(tokens);
    choose_hardware();
    test_same_bits(tokens, "nvfp4,tail=0", 2);
    test_same_bits(tokens, "quartet2,front=1", 1);
    test_zero(tokens, "nvfp4");
    remove(tokens);
    return report_status();
}
