/*
Tests of train_gpt2_fp32.c as a whole, on the CPU; the parts have theirs in dev/test. No network,
and no data but the stored PyTorch reference (dev/reference/tiny_*.bin).

    ./test_gpt2                              every test; writes build/oracle_RECIPE.bin for the GPU
                                             tests
    ./test_gpt2 MODEL.bin STATE.bin          only the comparison with PyTorch, for another reference
                                             made by dev/reference/make_reference.py
    ./test_gpt2 MODEL RECIPE B T OUT.bin     only writes an oracle, for instance of d12

dev/test/test_model.cu holds the CUDA program against the same references and against the oracles.
*/
#define TESTING
#include "train_gpt2_fp32.c"
#include "dev/reference/reference_file.h"
#include "dev/test/oracle_file.h"
#include "dev/test/tensor_check.h"

static int same_bits(const float* a, const float* b, size_t n) {
    return memcmp(a, b, n * sizeof(float)) == 0;
}

// A model that this process has for itself.
static void build(GPT2* model, GPT2Config config, const char* recipe, int B, int T, uint64_t seed) {
    static Ranks ranks;
    ParamSpec specs[NUM_PARAMS];
    Shards shards;
    ranks.size = 1;
    shards_open(&shards, &ranks, 0, gpt2_param_specs(specs, &config));
    gpt2_build(model, config, recipe_parse(recipe, config.L), B, T, seed, &shards);
}

// A small model with all its parameters away from 0 and 1, so that an error in any of them shows.
static void build_small(GPT2* model, const char* recipe, int B, int T) {
    GPT2Config config = gpt2_config("layers=2,channels=64,heads=2,vocab=100", 32);
    build(model, config, recipe, B, T, 42);
    for (int p = 0; p < NUM_PARAMS; p++) {
        size_t count = p == WTE ? (size_t)config.V * (size_t)config.C
                                : model->specs[p].size * (size_t)model->specs[p].layers;
        float* values = model->params + model->specs[p].offset;
        for (size_t i = 0; i < count; i++) {
            values[i] += 0.02f * random_normal(7, 99, i * 16 + (size_t)p);
        }
    }
    gpt2_refresh_working(model);
}

// ---------------------------------------------------------------------------------------------

// Bounded. Against PyTorch in FP32: logits, loss, each parameter's gradient, and the losses and
// gradient norms of ten AdamW steps on one batch. Sums of up to a few thousand FP32 terms in
// different orders: errors of some 1e-6 relative. Fails with: LayerNorm eps 1e-6; GELU constant
// 0.045; decay on qkvb; scale 1/HS.
static void test_reference(const char* model_path, const char* state_path) {
    Reference reference = reference_open(model_path, state_path);
    GPT2Config config = checkpoint_read_config(model_path);
    GPT2 model;
    int B = reference.B, T = reference.T, V = config.V, BT = B * T;
    build(&model, config, "fp32", B, T, 1);
    checkpoint_load_model(model.params, model_path, model.shards.own);

    gpt2_forward(&model, reference.inputs, reference.targets, B, T, 0.0f);
    double worst = 0.0;
    for (int bt = 0; bt < BT; bt++) {
        double d = relative_distance(model.acts.logits + (size_t)bt * (size_t)config.Vp,
                                     reference.logits + (size_t)bt * (size_t)V, (size_t)V);
        if (!(d <= worst)) { worst = d; }
    }
    report(worst < 5e-6, "pytorch logits", "worst row differs by %.1e of its length, bound 5e-6",
           worst);

    float loss = gpt2_forward(&model, reference.inputs, reference.targets, B, T, 1.0f / (float)BT);
    report(fabsf(loss - reference.loss) < 1e-5f * reference.loss, "pytorch loss",
           "%.6f, PyTorch %.6f", loss, reference.loss);
    gpt2_backward(&model, reference.inputs, B, T);
    for (int p = 0; p < NUM_PARAMS; p++) {
        size_t offset = model.specs[p].offset;
        double d = relative_distance(model.grads + offset, reference.gradients + offset,
                                     model.specs[p].size * (size_t)model.specs[p].layers);
        report(d < 5e-6, "pytorch gradient", "%-9s differs by %.1e of its length, bound 5e-6",
               model.specs[p].name, d);
    }

    double worst_loss = 0.0, worst_norm = 0.0;
    for (int step = 0; step < reference.steps; step++) {
        gpt2_zero_grad(&model);
        loss = gpt2_forward(&model, reference.inputs, reference.targets, B, T, 1.0f / (float)BT);
        gpt2_backward(&model, reference.inputs, B, T);
        float norm = gpt2_gradient_norm(&model);
        float scale = norm > reference.clip ? reference.clip / norm : 1.0f;
        gpt2_update(&model, reference.learning_rate, reference.weight_decay, scale, step);
        double dl = fabs(loss / reference.losses[step] - 1.0),
               dn = fabs(norm / reference.norms[step] - 1.0);
        if (!(dl <= worst_loss)) { worst_loss = dl; }
        if (!(dn <= worst_norm)) { worst_norm = dn; }
    }
    report(worst_loss < 1e-6 && worst_norm < 1e-5, "pytorch adamw",
           "%d steps: losses differ by at most %.1e, norms by %.1e, bounds 1e-6 and 1e-5",
           reference.steps, worst_loss, worst_norm);
    reference_close(&reference);
}

// Bounded, independent of PyTorch: along the gradient of each tensor the loss must change as the
// gradient says. Central differences with step h have an error of h^2 times the third derivative,
// FP32 losses one of 1e-7 / h: at h = 0.02 both are far below 1 %. Fails with: softmax over Vp.
static void test_finite_differences(void) {
    GPT2 model;
    int B = 2, T = 32, inputs[64], targets[64];
    build_small(&model, "fp32", B, T);
    oracle_tokens(inputs, targets, B * T, model.config.V, 1);
    gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)(B * T));
    gpt2_backward(&model, inputs, B, T);
    double worst = 0.0;
    const char* worst_name = "";
    for (int p = 0; p < NUM_PARAMS; p++) {
        size_t n = model.specs[p].size * (size_t)model.specs[p].layers;
        float* values = model.params + model.specs[p].offset;
        const float* gradient = model.grads + model.specs[p].offset;
        float* saved = alloc_floats(n, "parameters");
        memcpy(saved, values, n * sizeof(float));
        double squared = 0.0, loss[2];
        for (size_t i = 0; i < n; i++) { squared += (double)gradient[i] * gradient[i]; }
        double length = sqrt(squared), h = 0.02;
        for (int side = 0; side < 2; side++) {
            double step = side == 0 ? -h : h;
            for (size_t i = 0; i < n; i++) {
                values[i] = (float)(saved[i] + step * gradient[i] / length);
            }
            gpt2_forward(&model, inputs, targets, B, T, 0.0f);
            loss[side] = 0.0;
            for (int i = 0; i < B * T; i++) {
                loss[side] += (double)model.acts.losses[i] / (B * T);
            }
        }
        memcpy(values, saved, n * sizeof(float));
        free(saved);
        double error = fabs((loss[1] - loss[0]) / (2.0 * h) / length - 1.0);
        if (!(error <= worst)) {
            worst = error;
            worst_name = model.specs[p].name;
        }
    }
    report(worst < 0.01, "finite differences", "%d tensors, worst %s off by %.4f, bound 0.01",
           NUM_PARAMS, worst_name, worst);
}

// ---------------------------------------------------------------------------------------------

// Updates first .. last-1 of a small model, two micro-batches each; losses (last).
static void train_small(GPT2* model, int first, int last, float* losses) {
    int B = 2, T = 32, inputs[64], targets[64];
    for (int step = first; step < last; step++) {
        gpt2_zero_grad(model);
        losses[step] = 0.0f;
        for (int micro = 0; micro < 2; micro++) {
            // few tokens: quickly learned
            oracle_tokens(inputs, targets, B * T, 16, (uint32_t)micro);
            model->micro_step = (uint32_t)(2 * step + micro);
            losses[step] += 0.5f * gpt2_forward(model, inputs, targets, B, T,
                                                0.5f / (float)(B * T));
            gpt2_backward(model, inputs, B, T);
        }
        gpt2_update(model, 1e-3f, 0.1f, 1.0f, step);
    }
}

// Exact. Every recipe: two runs give the same bits, also with one thread instead of several.
// Fails with: sums over K cut into as many parts as there are threads; stochastic rounding seeded
// by the address of the layer.
static void test_same_bits(const char* recipe) {
    GPT2 a, b;
    float losses_a[10], losses_b[10];
    int threads = omp_get_max_threads();
    build_small(&a, recipe, 2, 32);
    train_small(&a, 0, 10, losses_a);
    omp_set_num_threads(threads > 1 ? 1 : 3);
    build_small(&b, recipe, 2, 32);
    train_small(&b, 0, 10, losses_b);
    omp_set_num_threads(threads);
    report(same_bits(a.params, b.params, a.num_params) && same_bits(losses_a, losses_b, 10),
           "same bits", "%s: 10 steps with %d threads and with %d, loss %.4f to %.4f", recipe,
           threads, threads > 1 ? 1 : 3, losses_a[0], losses_a[9]);
    report(losses_a[9] < losses_a[0] - 0.5f, "learns", "%s: loss %.4f to %.4f", recipe, losses_a[0],
           losses_a[9]);
}

// Exact. Saved after 5 steps and resumed, the run ends with the bits of one that was not
// interrupted. Fails with: v not loaded.
static void test_resume(const char* recipe) {
    char directory[] = "/tmp/test_gpt2_XXXXXX";
    check(mkdtemp(directory) != NULL, "cannot make a directory in /tmp");
    GPT2 whole, half, resumed;
    float losses[10];
    build_small(&whole, recipe, 2, 32);
    train_small(&whole, 0, 10, losses);
    build_small(&half, recipe, 2, 32);
    train_small(&half, 0, 5, losses);
    checkpoint_save(directory, 5, &half.config, half.params, half.m, half.v, NULL, NULL, "");
    build_small(&resumed, recipe, 2, 32);
    checkpoint_load(directory, 5, &resumed.config, resumed.params, resumed.m, resumed.v, NULL,
                    resumed.shards.own, "");
    gpt2_refresh_working(&resumed);
    train_small(&resumed, 5, 10, losses);
    report(same_bits(whole.params, resumed.params, whole.num_params), "resume",
           "%s: 10 steps, or 5 and 5", recipe);
    char path[PATH_BYTES];
    checkpoint_path(path, directory, "model", 5);
    remove(path);
    checkpoint_path(path, directory, "state", 5);
    remove(path);
    remove(directory);
}

// Bounded. The gradient of one batch is the mean of those of its halves: sums in another order, so
// equal to a few 1e-6. Fails with: `=` for += in a weight's gradient.
static void test_accumulation(void) {
    GPT2 whole, halves;
    int T = 32, inputs[128], targets[128];
    build_small(&whole, "fp32", 4, T);
    build_small(&halves, "fp32", 4, T);
    oracle_tokens(inputs, targets, 4 * T, whole.config.V, 3);
    gpt2_forward(&whole, inputs, targets, 4, T, 1.0f / (float)(4 * T));
    gpt2_backward(&whole, inputs, 4, T);
    for (int half = 0; half < 2; half++) {
        gpt2_forward(&halves, inputs + half * 2 * T, targets + half * 2 * T, 2, T,
                     1.0f / (float)(4 * T));
        gpt2_backward(&halves, inputs + half * 2 * T, 2, T);
    }
    double d = relative_distance(halves.grads, whole.grads, whole.num_params);
    report(d < 1e-5, "accumulation", "two halves differ from the whole by %.1e, bound 1e-5", d);
}

// Statistical. The nvfp4 gradient lies near the FP32 one, and the stochastic rounding of each
// micro-batch is new: two means over 32 draws each (N = 64) are closer to each other than two
// draws, by sqrt(32) if draws are independent. The number of weights, 24,576, makes the ratio
// accurate to a few percent; the band is 20 %. Fails with: the step left out of the
// counter.
static void test_quantized_gradient(void) {
    GPT2 exact, quantized;
    int B = 4, T = 32, inputs[128], targets[128], draws = 32;
    float share = 1.0f / (float)(B * T);
    build_small(&exact, "fp32", B, T);
    build_small(&quantized, "nvfp4,tail=0", B, T);
    oracle_tokens(inputs, targets, B * T, exact.config.V, 5);
    gpt2_forward(&exact, inputs, targets, B, T, share);
    gpt2_backward(&exact, inputs, B, T);
    size_t first = exact.specs[QKVW].offset, n = exact.specs[QKVW].size * 2;
    float* single[2];
    float* mean[2];
    for (int half = 0; half < 2; half++) {
        single[half] = alloc_floats(n, "gradients");
        mean[half] = alloc_floats(n, "gradients");
        gpt2_zero_grad(&quantized);
        for (int draw = 0; draw < draws; draw++) {
            quantized.micro_step = (uint32_t)(half * draws + draw);
            gpt2_forward(&quantized, inputs, targets, B, T, share);
            gpt2_backward(&quantized, inputs, B, T);
            if (draw == 0) { memcpy(single[half], quantized.grads + first, n * sizeof(float)); }
        }
        for (size_t i = 0; i < n; i++) {
            mean[half][i] = quantized.grads[first + i] / (float)draws;
        }
    }
    double error = relative_distance(single[0], exact.grads + first, n);
    double ratio = relative_distance(single[0], single[1], n)
                   / relative_distance(mean[0], mean[1], n);
    double expected = sqrt(draws);
    report(error > 0.05 && error < 0.5, "quantized gradient",
           "qkvw off by %.3f of its length, expected 0.05 to 0.5", error);
    report(ratio > 0.8 * expected && ratio < 1.2 * expected, "independent draws", "means of %d "
           "draws are %.2f times closer than draws, expected %.2f", draws, ratio, expected);
}

// Bounded. vector_exp, which the CPU program uses in place of expf, within 1 unit in the last
// place, on every 251st float in its range. Fails with: the polynomial's term of degree 6 left out.
static void test_exp(void) {
    double worst = 0.0;
    float at = 0.0f;
    for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 251) {
        float x = bits_float((uint32_t)bits);
        if (!(x >= -87.0f && x <= 88.0f)) { continue; }
        int exponent;
        double exact = exp((double)x);
        frexp(exact, &exponent);
        double error = fabs((double)vector_exp(x) - exact) / ldexp(1.0, exponent - 24);
        if (!(error <= worst)) {
            worst = error;
            at = x;
        }
    }
    report(worst < 1.0, "vector_exp", "worst %.2f units in the last place at %.9g", worst, at);
}

// Exact. The padded rows of wte stay zero: their logits take no part in anything. Fails
// with: softmax over Vp.
static void test_padding(void) {
    GPT2 model;
    float losses[10];
    build_small(&model, "bf16", 2, 32);
    train_small(&model, 0, 10, losses);
    size_t nonzero = 0, begin = (size_t)model.config.V * 64, end = (size_t)model.config.Vp * 64;
    for (size_t i = begin; i < end; i++) { nonzero += model.params[i] != 0.0f; }
    report(nonzero == 0, "padding",
           "%zu of %zu weights of padded tokens are not zero after 10 steps", nonzero, end - begin);
}

// Exact. What the recipe strings mean, and that no two operands draw the same random numbers. Fails
// with: 15 % rounded up; front counted from the end; one tag for dY and dY^T; a rule that holds
// after its last block; a fraction of the run taken as what is left; rules in the other order.
static void test_recipe(void) {
    Recipe r = recipe_parse("nvfp4,hadamard=0,front=1,tail=3", 12);
    int good = r.operands[OPERAND_XT].hadamard == 0 && r.operands[OPERAND_W].tile == 1
            && r.operands[OPERAND_DY].rounding == ROUND_STOCHASTIC && r.base == FORMAT_BF16
            && !recipe_quantizes(&r, FPROP, 0, LINEAR_FC)
            && recipe_quantizes(&r, WGRAD, 1, LINEAR_FC)
            && recipe_quantizes(&r, DGRAD, 8, LINEAR_FC)
            && !recipe_quantizes(&r, FPROP, 9, LINEAR_FC);
    int tails[][2] = { { 1, 1 }, { 4, 1 }, { 6, 1 }, { 12, 2 }, { 24, 4 }, { 36, 5 }, { 48, 7 } };
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        good = good && recipe_parse("nvfp4", tails[i][0]).tail == tails[i][1];
    }
    r = recipe_parse("nvfp4,dgrad=bf16,wgrad=bf16", 12);
    good = good && recipe_quantizes(&r, FPROP, 0, LINEAR_FC)
        && !recipe_quantizes(&r, DGRAD, 0, LINEAR_FC);
    r = recipe_parse("nvfp4,tail=0,all=bf16,forward=nvfp4:3-5/fc,backward=bf16@0.75", 12);
    recipe_set_length(&r, 1000);
    good = good && recipe_quantizes(&r, FPROP, 5, LINEAR_FC)
        && !recipe_quantizes(&r, FPROP, 6, LINEAR_FC)
        && !recipe_quantizes(&r, FPROP, 4, LINEAR_QKV) && recipe_ever(&r, FPROP, 3, LINEAR_FC, 1)
        && !recipe_ever(&r, WGRAD, 3, LINEAR_FC, 1) && !recipe_weights_travel(&r, 4);
    r = recipe_parse("nvfp4,backward=bf16@0.75,wgrad=nvfp4@900,forward=bf16@auto", 12);
    recipe_set_length(&r, 1000);
    int steps[][3] = { { 749, 1, 1 }, { 750, 0, 0 }, { 899, 0, 0 }, { 900, 0, 1 } };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        r.step = steps[i][0];
        good = good && recipe_quantizes(&r, DGRAD, 2, LINEAR_QKV) == steps[i][1]
            && recipe_quantizes(&r, WGRAD, 2, LINEAR_QKV) == steps[i][2]
            && recipe_quantizes(&r, FPROP, 2, LINEAR_QKV);
    }
    good = good && recipe_waits(&r) && recipe_ever(&r, FPROP, 2, LINEAR_QKV, 0)
        && recipe_ever(&r, DGRAD, 2, LINEAR_QKV, 0) && !recipe_ever(&r, FPROP, 11, LINEAR_QKV, 1);
    recipe_trigger(&r, 950);
    good = good && recipe_quantizes_at(&r, FPROP, 2, LINEAR_QKV, 949)
        && !recipe_quantizes_at(&r, FPROP, 2, LINEAR_QKV, 950) && recipe_triggered(&r) == 950;
    r = recipe_parse("bf16", 12);
    good = good && r.base == FORMAT_BF16 && !recipe_quantizes(&r, FPROP, 0, LINEAR_FC);
    for (int i = 0; i < 2 * NUM_LINEARS; i++) {
        for (int j = 0; j < i; j++) {
            good = good && operand_tag(3, i / 2, i % 2 ? OPERAND_DYT : OPERAND_DY)
                        != operand_tag(3, j / 2, j % 2 ? OPERAND_DYT : OPERAND_DY);
        }
    }
    report(good, "recipe strings", "presets, ingredients, default tails");
}

// ---------------------------------------------------------------------------------------------
// The oracle of the CUDA program

static struct {
    FILE* file;
    const char* path;
    int records;
    int comparing;                      // second pass: hold against the file instead of writing it
    size_t codes, equal_codes;
} oracle;

// First pass: writes the operand. Second pass: counts the codes equal to those of the first.
static void oracle_observe(int layer, int linear, int operand, const float* source,
                           const Nvfp4Matrix* q) {
    (void)source;
    OracleRecord record = { layer, linear, operand, q->rows, q->cols, *q->amax };
    size_t elements = (size_t)q->rows * (size_t)q->cols, blocks = elements / NVFP4_BLOCK;
    if (oracle.comparing) {
        uint8_t* codes = (uint8_t*)xmalloc(elements / 2, "codes");
        file_read(&record, sizeof(record), oracle.file, oracle.path);
        file_read(codes, elements / 2, oracle.file, oracle.path);
        check(fseek(oracle.file, (long)blocks, SEEK_CUR) == 0, "cannot read %s", oracle.path);
        oracle.codes += elements;
        oracle.equal_codes += oracle_equal_codes(codes, q->codes, elements / 2);
        free(codes);
        return;
    }
    uint8_t* scales = oracle_scales(q);
    file_write(&record, sizeof(record), oracle.file, oracle.path);
    file_write(q->codes, elements / 2, oracle.file, oracle.path);
    file_write(scales, blocks, oracle.file, oracle.path);
    free(scales);
    oracle.records++;
}

// One forward and backward pass from the initial weights; everything quantized on the way goes to
// `path`. Then the same with sums in another order: the share of codes that survives this is what
// can be expected of the CUDA program, whose sums have an order of their own.
static void write_oracle(const char* description, const char* recipe, int B, int T,
                         const char* path) {
    GPT2 model;
    GPT2Config config = gpt2_config(description, T);
    int* inputs = (int*)xmalloc((size_t)(B * T) * sizeof(int), "tokens");
    int* targets = (int*)xmalloc((size_t)(B * T) * sizeof(int), "tokens");
    build(&model, config, recipe, B, T, 1337);
    oracle_tokens(inputs, targets, B * T, config.V, 1);

    // loss and gradients are known after the records: their place is kept, and
    // written again at the end
    OracleHeader header;
    memset(&header, 0, sizeof(header));
    header.magic = ORACLE_MAGIC;
    header.B = B;
    header.T = T;
    header.num_params = model.num_params;
    check(strlen(description) < sizeof(header.model) && strlen(recipe) < sizeof(header.recipe),
          "too long");
    strcpy(header.model, description);
    strcpy(header.recipe, recipe);
    size_t gradients = model.num_params <= ORACLE_MAX_GRADIENTS ? model.num_params : 0;
    memset(&oracle, 0, sizeof(oracle));
    oracle.file = file_create(path);
    oracle.path = path;
    file_write(&header, sizeof(header), oracle.file, path);
    file_write(model.grads, gradients * sizeof(float), oracle.file, path);
    long first_record = ftell(oracle.file);
    model.linear.observe = oracle_observe;
    header.loss = gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)(B * T));
    gpt2_backward(&model, inputs, B, T);
    header.gradient_norm = gpt2_gradient_norm(&model);
    header.num_records = oracle.records;
    rewind(oracle.file);
    file_write(&header, sizeof(header), oracle.file, path);
    file_write(model.grads, gradients * sizeof(float), oracle.file, path);
    file_commit(oracle.file, path);

    oracle.file = fopen(path, "r+b");
    check(oracle.file != NULL && fseek(oracle.file, first_record, SEEK_SET) == 0,
          "cannot read %s", path);
    oracle.comparing = 1;
    float* grads = alloc_floats(model.num_params, "gradients");
    memcpy(grads, model.grads, model.num_params * sizeof(float));
    gpt2_zero_grad(&model);
    gemm_cpu_terms = 16;
    header.reordered_loss = gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)(B * T));
    gpt2_backward(&model, inputs, B, T);
    gemm_cpu_terms = 0;
    header.reordered_gradients = (float)relative_distance(model.grads, grads, model.num_params);
    header.reordered_codes = oracle.codes > 0
                             ? (float)oracle.equal_codes / (float)oracle.codes : 1.0f;
    rewind(oracle.file);
    file_write(&header, sizeof(header), oracle.file, path);
    check(fclose(oracle.file) == 0, "cannot write %s", path);
    report(oracle.records > 0 || strncmp(recipe, "nvfp4", 5) != 0, "oracle",
           "%s: %d operands in %s; sums in another order: %.2f %% of codes equal, loss off by "
           "%.1e, gradients by %.1e", recipe, oracle.records, path, 100.0 * header.reordered_codes,
           fabs(header.reordered_loss / header.loss - 1.0), header.reordered_gradients);
    free(grads);
    free(inputs);
    free(targets);
}

int main(int argc, char** argv) {
    check(argc == 1 || argc == 3 || argc == 6,
          "usage: test_gpt2 [MODEL.bin STATE.bin | MODEL RECIPE B T OUT.bin]");
    if (argc == 3) {
        test_reference(argv[1], argv[2]);
        return report_status();
    }
    if (argc == 6) {
        write_oracle(argv[1], argv[2], atoi(argv[3]), atoi(argv[4]), argv[5]);
        return report_status();
    }
    test_recipe();
    test_exp();
    test_reference("dev/reference/tiny_model.bin", "dev/reference/tiny_state.bin");
    test_finite_differences();
    test_accumulation();
    test_quantized_gradient();
    test_padding();
    const char* recipes[] = { "fp32", "bf16", "nvfp4", "nvfp4,tail=0,tile16=0" };
    for (size_t i = 0; i < sizeof(recipes) / sizeof(recipes[0]); i++) {
        test_same_bits(recipes[i]);
        test_resume(recipes[i]);
    }
    const char* small = "layers=3,channels=128,heads=2,vocab=257";
    write_oracle(small, "fp32", 2, 128, "build/oracle_fp32.bin");
    write_oracle(small, "bf16", 2, 128, "build/oracle_bf16.bin");
    write_oracle(small, "nvfp4", 2, 128, "build/oracle_nvfp4.bin");
    return report_status();
}
