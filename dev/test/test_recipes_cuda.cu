/*
Every recipe in the CUDA program: which operands it quantizes when, into which bits, and what becomes
of the products. On a GPU or on the CPU, with a model of two blocks.

exact      the codes, block scales and amax of every operand of a step are those that the C functions
           make of the same tensor (of the same codes, if the operand is aligned); exactly the
           operands that the recipe asks for are made; and a step of a recipe that changed on the
           way gives the gradients of the recipe that it changed to, to the bit
bounded    the three products of a layer are those of the operands that were made for them, as real
           numbers; a step's gradients differ from those under BF16 by less than half of
           their length: an operand of the wrong layer is beyond that

Faults that made it fail, one at a time: X^T of aligned recipes made from the tensor; W^T from one
update to the next where it is made anew; fresh signs of their own for each operand of a GEMM; random
bytes of block 0 for all blocks; the factor of an aligned operand left out (dW), or taken of the wrong
quantizer (dW and dX of quartet2); OsciReset of weights that do not oscillate; weights quantized as
of the update before; the same random bits in both draws of the noise.
*/
#include "cublaslt_model.h"
#include "model_check.cuh"
#include "oracle_file.h"

#define MODEL "layers=2,channels=64,heads=2,vocab=257"
enum { LAYERS = 2, B = 2, T = 64, N = B * T, SEED = 1337, MICRO_STEP = 7 };

static int inputs[N], targets[N];

// ---------------------------------------------------------------------------------------------
// What the operands should be

static struct {
    const Recipe* recipe;
    uint32_t step;
    size_t operands, bytes, differ;
    char first[160];
    int seen[LAYERS][NUM_LINEARS][NUM_OPERANDS];    // how often
    float* expanded[LAYERS][NUM_LINEARS][2];        // code value * block scale of X, W
} watch;

static void watch_begin(const Recipe* recipe, uint32_t step) {
    watch.recipe = recipe;
    watch.step = step;
    memset(watch.seen, 0, sizeof(watch.seen));
}

static void watch_bytes(const void* device, const void* want, size_t n, const char* part, int layer,
                        int linear, int operand) {
    if (n == 0) { return; }
    uint8_t* got = (uint8_t*)xmalloc(n, "a copy");
    cudaCheck(cudaMemcpy(got, device, n, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) {
        if (got[i] == ((const uint8_t*)want)[i]) { continue; }
        if (watch.differ++ == 0) {
            snprintf(watch.first, sizeof(watch.first), "; first: layer %d %s, %s of %s, byte %zu: "
                     "%02x instead of %02x", layer, linear_name(linear), part,
                     operand_name(operand), i, got[i], ((const uint8_t*)want)[i]);
        }
    }
    watch.bytes += n;
    free(got);
}

// The transform that both operands of this operand's GEMM get; K is what the GEMM contracts, or the
// part of it that no transform may leave.
static Rotation watch_rotation(int layer, int linear, int operand, int K) {
    Quantizer q = watch.recipe->operands[operand];
    int wgrad = operand == OPERAND_XT || operand == OPERAND_DYT;
    uint32_t tag = operand_tag(layer, linear, wgrad ? OPERAND_DYT : OPERAND_DY);
    return rotation_make(q.hadamard == 0 ? 0 : rotation_size(q.hadamard, wgrad ? T : K),
                         q.fresh_signs, SEED, tag, watch.step);
}

static void observe(int layer, int linear, int operand, const __nv_bfloat16* source,
                    const Nvfp4Matrix* quantized) {
    const Recipe* r = watch.recipe;
    Quantizer q = r->operands[operand];
    int transposed = operand == OPERAND_XT || operand == OPERAND_DYT || operand == OPERAND_WT;
    int weight = operand == OPERAND_W || operand == OPERAND_WT;
    int rows = quantized->rows, cols = quantized->cols;
    size_t n = (size_t)rows * cols;
    float amax, *values = copy_out(source, n), *turned = (float*)xmalloc(n * sizeof(float), "values");
    float** expanded = &watch.expanded[layer][linear][weight];
    if (q.aligned && recipe_quantizes(r, FPROP, layer, linear)) {
        memcpy(values, *expanded, n * sizeof(float));
    }
    Rotation rotation = watch_rotation(layer, linear, operand, cols);
    if (transposed) { rotation_transpose(turned, values, cols, rows, &rotation); }
    else {
        memcpy(turned, values, n * sizeof(float));
        rotation_rows(turned, rows, cols, &rotation);
    }
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.seed = SEED;
    rounding.tag = operand_tag(layer, linear, operand);
    rounding.step = operand == OPERAND_W ? (uint32_t)r->step : watch.step;
    size_t codes_size = quantized_codes_size(q.format, (size_t)rows, (size_t)cols);
    size_t scales_size = quantized_scales_size(q.format, (size_t)rows, (size_t)cols);
    Nvfp4Matrix want = *quantized;
    want.amax = &amax;
    want.codes = (uint8_t*)xmalloc(codes_size, "codes");
    want.block_scales = (uint8_t*)xmalloc(scales_size, "scales");
    amax = bits_float(nvfp4_matrix_amax_bits(turned, (size_t)rows, (size_t)cols));
    if (operand == OPERAND_WT && recipe_transposes_weights(r)) {
        Nvfp4Matrix w = want;
        w.rows = cols;
        w.cols = rows;
        w.codes = (uint8_t*)xmalloc(codes_size, "codes");
        w.block_scales = (uint8_t*)xmalloc(quantized_scales_size(q.format, (size_t)cols,
                                                                 (size_t)rows), "scales");
        quantized_make(&w, values, q, rounding);
        quantized_transpose(&want, &w, q);
        free(w.codes);
        free(w.block_scales);
    } else {
        quantized_make(&want, turned, q, rounding);
    }
    watch_bytes(quantized->codes, want.codes, codes_size, "codes", layer, linear, operand);
    watch_bytes(quantized->block_scales, want.block_scales, scales_size, "scales", layer, linear,
                operand);
    watch_bytes(quantized->amax, &amax, sizeof(float), "amax", layer, linear, operand);
    watch.operands++;
    watch.seen[layer][linear][operand]++;
    if (operand == OPERAND_X || operand == OPERAND_W) {
        free(*expanded);
        *expanded = (float*)xmalloc(n * sizeof(float), "expanded codes");
        quantized_expand(*expanded, &want, q);
    }
    free(want.codes);
    free(want.block_scales);
    free(values);
    free(turned);
}

// ---------------------------------------------------------------------------------------------

typedef struct { float* grads; float loss; } Step;

static Step step_run(GPT2<__nv_bfloat16>* model) {
    Step s;
    model->micro_step = MICRO_STEP;
    gpt2_zero_grad(model);
    gpt2_zero_loss(model);
    gpt2_forward(model, inputs, targets, B, T, 1.0f / (float)N);
    gpt2_backward(model, B, T);
    s.loss = gpt2_loss_sum(model) / (float)N;
    gpt2_check_finite(model, 0);
    s.grads = copy_out(model->grads, model->num_params);
    return s;
}

// How often each operand should have been made in a step, and in the preparation of its weights.
static int watch_unexpected(const Recipe* r) {
    int unexpected = 0;
    for (int i = 0; i < LAYERS * NUM_LINEARS * NUM_OPERANDS; i++) {
        int operand = i % NUM_OPERANDS, linear = i / NUM_OPERANDS % NUM_LINEARS;
        int layer = i / NUM_OPERANDS / NUM_LINEARS;
        int want = 0;
        for (int g = 0; g < NUM_GEMMS; g++) {
            if (gemm_operand(g, 0) == operand || gemm_operand(g, 1) == operand) {
                want = recipe_quantizes(r, g, layer, linear);
            }
        }
        // W is there for W^T, too, where that has its codes
        if (operand == OPERAND_W && recipe_transposes_weights(r)
            && recipe_quantizes(r, DGRAD, layer, linear)) { continue; }
        unexpected += watch.seen[layer][linear][operand] != want;
    }
    return unexpected;
}

static Step bf16;

static void test_recipe(const char* recipe) {
    GPT2<__nv_bfloat16> model;
    build(&model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
    memset(&watch, 0, sizeof(watch));
    watch_begin(&model.recipe, 0);
    model.linear.observe = observe;
    model.micro_step = 0;
    gpt2_quantize_weights(&model);              // again, to be seen
    watch.step = MICRO_STEP;
    Step s = step_run(&model);
    report(watch.differ == 0 && watch.operands > 0, recipe, "%zu operands, %zu of %zu bytes differ%s",
           watch.operands, watch.differ, watch.bytes, watch.first);
    int unexpected = watch_unexpected(&model.recipe);
    report(unexpected == 0, "  which", "%d operands too many or too few", unexpected);
    double d = relative_distance(s.grads, bf16.grads, model.num_params);
    report(d < 0.5 && fabs(s.loss - bf16.loss) < 0.02, "  gradients", "differ from BF16 by %.3f "
           "of their length, bound 0.5; loss %.4f, BF16 %.4f", d, s.loss, bf16.loss);
    free(s.grads);
}

// ---------------------------------------------------------------------------------------------
// Products

// What entered the GEMMs of a layer, as real numbers: code value * block scale * tensor scale, and
// for an aligned operand the tensor scale of its source, too.
static float* entered[NUM_OPERANDS];

static void observe_product(int, int, int operand, const __nv_bfloat16*,
                            const Nvfp4Matrix* quantized) {
    Quantizer q = watch.recipe->operands[operand];
    size_t rows = (size_t)quantized->rows, cols = (size_t)quantized->cols, n = rows * cols;
    static float scales[NUM_OPERANDS];
    float amax;
    Nvfp4Matrix host = *quantized;
    host.codes = (uint8_t*)xmalloc(quantized_codes_size(q.format, rows, cols), "codes");
    host.block_scales = (uint8_t*)xmalloc(quantized_scales_size(q.format, rows, cols) + 1, "scales");
    cudaCheck(cudaDeviceSynchronize());
    cudaCheck(cudaMemcpy(host.codes, quantized->codes, quantized_codes_size(q.format, rows, cols),
                         cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(host.block_scales, quantized->block_scales,
                         quantized_scales_size(q.format, rows, cols), cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(&amax, quantized->amax, sizeof(float), cudaMemcpyDeviceToHost));
    float scale = quantizer_tensor_scale(q, amax).scale;
    if (q.aligned) { scale *= scales[operand == OPERAND_XT ? OPERAND_X : OPERAND_W]; }
    scales[operand] = scale;
    free(entered[operand]);
    entered[operand] = (float*)xmalloc(n * sizeof(float), "an operand");
    quantized_expand(entered[operand], &host, q);
    for (size_t i = 0; i < n; i++) { entered[operand][i] *= scale; }
    free(host.codes);
    free(host.block_scales);
}

// got (M,N) against the product of both operands of a GEMM in double, which contracts K. The bound:
// K + 8 roundings of FP32, alpha's and the tensor scales' among them, and that of the stored value.
static void check_product(const char* recipe, int gemm, const float* got, int M, int N, int K,
                          double stored) {
    static const char* names[NUM_GEMMS] = { "Y", "dX", "dW" };
    const float *a = entered[gemm_operand(gemm, 0)], *b = entered[gemm_operand(gemm, 1)];
    double* want = (double*)xmalloc((size_t)(M * N) * sizeof(double), "a product");
    double* bound = (double*)xmalloc((size_t)(M * N) * sizeof(double), "a bound");
    for (int i = 0; i < M * N; i++) {
        double sum = 0.0, magnitude = 0.0;
        for (int k = 0; k < K; k++) {
            double product = (double)a[i / N * K + k] * (double)b[i % N * K + k];
            sum += product;
            magnitude += fabs(product);
        }
        want[i] = sum;
        bound[i] = (K + 8) * 0x1p-24 * magnitude + stored * fabs(sum);
    }
    char name[64];
    snprintf(name, sizeof(name), "%s, %s", recipe, names[gemm]);
    check_bounded(name, got, want, bound, shape2("mn", M, N));
    free(want);
    free(bound);
}

// fcproj of block 0, for random tensors.
static void test_products(const char* recipe) {
    GPT2<__nv_bfloat16> model;
    build(&model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
    memset(&watch, 0, sizeof(watch));
    watch_begin(&model.recipe, 0);
    model.linear.training = 1;
    model.linear.T = T;
    const Linear* l = linear_at(&model, 0, LINEAR_FCPROJ);
    model.linear.observe = observe_product;
    int OC = model.config.C, C = 4 * OC;
    float* x = (float*)xmalloc((size_t)(N * C) * sizeof(float), "inputs");
    for (int i = 0; i < N * C; i++) { x[i] = random_normal(SEED, 1, (uint64_t)i); }
    __nv_bfloat16* inp = to_device<__nv_bfloat16>(x, (size_t)(N * C));
    for (int i = 0; i < N * OC; i++) { x[i] = random_normal(SEED, 2, (uint64_t)i) * 1e-3f; }
    __nv_bfloat16* dout = to_device<__nv_bfloat16>(x, (size_t)(N * OC));
    __nv_bfloat16* out = device_tensor<__nv_bfloat16>((size_t)(N * OC));
    __nv_bfloat16* dinp = device_tensor<__nv_bfloat16>((size_t)(N * C));
    __nv_bfloat16* weight = param(&model, FCPROJW, 0);
    QuantizedLinear* q = &model.acts.blocks[0].linears[LINEAR_FCPROJ];
    linear_update_weight(q, weight, OC, C, l);
    linear_forward(out, inp, weight, param(&model, FCPROJB, 0), q, N, C, OC, l);
    linear_backward(dinp, grad(&model, FCPROJW, 0), grad(&model, FCPROJB, 0), dout, inp, weight, q,
                    N, C, OC, l);
    float *y = copy_out(out, (size_t)(N * OC)), *dx = copy_out(dinp, (size_t)(N * C));
    float* dw = copy_out(grad(&model, FCPROJW, 0), (size_t)(OC * C));
    check_product(recipe, FPROP, y, N, OC, C, 0x1p-8);
    check_product(recipe, DGRAD, dx, N, C, OC, 0x1p-8);
    check_product(recipe, WGRAD, dw, OC, C, N, 0x1p-24);
    void* all[] = { x, y, dx, dw };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) { free(all[i]); }
    device_free_all();
}

// ---------------------------------------------------------------------------------------------

// `changing` has become `constant` by update `step`.
static void test_schedule(const char* changing, const char* constant, int step, int num_steps) {
    GPT2<__nv_bfloat16> models[2];
    Step steps[2];
    for (int i = 0; i < 2; i++) {
        GPT2<__nv_bfloat16>* model = &models[i];
        Recipe recipe = recipe_parse(i == 0 ? changing : constant, LAYERS);
        recipe_set_length(&recipe, num_steps);
        build_recipe(model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
        memset(&watch, 0, sizeof(watch));
        model->linear.observe = observe;
        watch_begin(&model->recipe, MICRO_STEP);
        gpt2_quantize_weights(model);           // again, to be seen
        // updates that move nothing, so that both have the same weights
        int unexpected = 0;
        for (int s = 0; s < step; s++) {
            free(step_run(model).grads);
            unexpected += watch_unexpected(&model->recipe);
            watch_begin(&model->recipe, MICRO_STEP);
            gpt2_update(model, 0.0f, 0.0f, 1.0f, s);
        }
        steps[i] = step_run(model);
        unexpected += watch_unexpected(&model->recipe);
        report(watch.differ == 0 && unexpected == 0, i == 0 ? "schedule" : "  without",
               "%s: update %d, %zu of %zu bytes differ, %d operands too many or too few%s",
               i == 0 ? changing : constant, step, watch.differ, watch.bytes, unexpected,
               watch.first);
    }
    size_t n = models[0].num_params;
    report(memcmp(steps[0].grads, steps[1].grads, n * sizeof(float)) == 0, "  the same gradients",
           "differ by %.1e", relative_distance(steps[0].grads, steps[1].grads, n));
    free(steps[0].grads);
    free(steps[1].grads);
}

// ---------------------------------------------------------------------------------------------
// OsciReset and automatic rules

// The weights of a layer as the reset sees them: w, and Q(w), which the host expands.
typedef struct { float *w, *q; } Seen;

static Seen seen_now(const GPT2<__nv_bfloat16>* model, int layer, int linear) {
    Seen s;
    const Nvfp4Matrix* device = &model->acts.blocks[layer].linears[linear].w_q;
    Quantizer q = model->recipe.operands[OPERAND_W];
    size_t rows = (size_t)device->rows, cols = (size_t)device->cols, n = rows * cols;
    size_t codes = quantized_codes_size(q.format, rows, cols);
    size_t scales = quantized_scales_size(q.format, rows, cols);
    Nvfp4Matrix host = *device;
    float amax;
    host.codes = (uint8_t*)xmalloc(codes, "codes");
    host.block_scales = (uint8_t*)xmalloc(scales, "scales");
    host.amax = &amax;
    s.w = copy_out(param(model, linear_param(linear), layer), n);
    s.q = (float*)xmalloc(n * sizeof(float), "Q(w)");
    cudaCheck(cudaMemcpy(host.codes, device->codes, codes, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(host.block_scales, device->block_scales, scales, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(&amax, device->amax, sizeof(float), cudaMemcpyDeviceToHost));
    quantized_expand(s.q, &host, q);
    float scale = quantizer_tensor_scale(q, amax).scale;
    for (size_t i = 0; i < n; i++) { s.q[i] *= scale; }
    free(host.codes);
    free(host.block_scales);
    return s;
}

// Exact. Windows of three updates: masters that the host finds by the same rule, and no others, have
// been set to Q(w). A second model takes over inside the second window, as from a checkpoint.
static void test_osci_reset(const char* text) {
    enum { LAST = 7, PERIOD = 4 };      // windows: updates 1 to 3, 5 to 7
    Recipe recipe = recipe_parse(text, LAYERS);
    recipe_set_length(&recipe, 10);
    GPT2<__nv_bfloat16> models[2];
    GPT2<__nv_bfloat16>* model = &models[0];
    build_recipe(model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
    const int layer = 1, linear = LINEAR_PROJ;
    size_t n = model->specs[linear_param(linear)].size, all = model->num_params;
    size_t at = gpt2_param_offset(model->specs, linear_param(linear), layer);
    float* d_w = (float*)xcalloc(n * sizeof(float), "sums");
    float* d_q = (float*)xcalloc(n * sizeof(float), "sums");
    int64_t resets = 0, ours = 0, wrong = 0, others = 0, windows = 0;
    for (int step = 0; step <= LAST; step++) {
        if (step == 6) {                        // go on in another model
            float* state[5];
            for (int i = 0; i < 5; i++) { state[i] = (float*)xmalloc(all * sizeof(float), "state"); }
            gpt2_get_state(model, state[0], state[1], state[2]);
            gpt2_copy_sums(model, state + 3, 0);
            recipe = model->recipe;
            model = &models[1];
            build_recipe(model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
            gpt2_set_state(model, state[0], state[1], state[2]);
            gpt2_copy_sums(model, state + 3, 1);
            for (int i = 0; i < 5; i++) { free(state[i]); }
        }
        free(step_run(model).grads);
        int age = osci_reset_age(&recipe.reset, step), ends = osci_reset_ends(&recipe.reset, step);
        Seen before = seen_now(model, layer, linear);
        // what the update makes of the masters, without the reset
        GPT2<__nv_bfloat16> without = *model;
        float* masters = copy_out(model->params, all);
        float* m = copy_out(model->m, all);
        float* v = copy_out(model->v, all);
        without.recipe.reset.threshold = 0.0f;
        int64_t none = gpt2_update(&without, 1e-3f, 0.1f, 1.0f, step);
        Seen after = seen_now(model, layer, linear);
        float* moved = copy_out(model->params, all);
        cudaCheck(cudaMemcpy(model->params, masters, all * sizeof(float), cudaMemcpyHostToDevice));
        cudaCheck(cudaMemcpy(model->m, m, all * sizeof(float), cudaMemcpyHostToDevice));
        cudaCheck(cudaMemcpy(model->v, v, all * sizeof(float), cudaMemcpyHostToDevice));
        model->recipe.step = step;
        gpt2_refresh_working(model);
        int64_t count = gpt2_update(model, 1e-3f, 0.1f, 1.0f, step);
        float* reset = copy_out(model->params, all);
        wrong += none != -1 || (count >= 0) != ends;
        for (size_t i = 0; i < n && age >= 0; i++) {
            osci_reset_add(&d_w[i], &d_q[i], before.w[i], after.w[i], before.q[i], after.q[i], age);
            int due = ends && osci_reset_is_due(d_w[i], d_q[i], recipe.reset.threshold);
            float want = due ? after.q[i] : moved[at + i];
            wrong += float_bits(reset[at + i]) != float_bits(want);
            ours += due;
        }
        for (size_t i = 0; i < all; i++) {
            others += float_bits(reset[i]) != float_bits(moved[i]);
        }
        resets += ends ? count : 0;
        windows += ends;
        float* made[] = { before.w, before.q, after.w, after.q, masters, m, v, moved, reset };
        for (int i = 0; i < 9; i++) { free(made[i]); }
    }
    report(wrong == 0 && windows == 2 && ours > 0 && resets >= others && others >= ours,
           "OsciReset", "%s: %d resets, %d of them in one layer, %d masters changed, %d differ",
           text, (int)resets, (int)ours, (int)others, (int)wrong);
    free(d_w);
    free(d_q);
}

// Bounded: the noise is the difference of two gradients with different random bits, which are added
// in another order here. Without random bits the two are equal and their difference is what FP32
// rounds when one is added to the other's negative: each element at most some 2^-20 of it. Exact:
// nothing of it stays.
static void test_noise(const char* recipe, int has_random_bits) {
    GPT2<__nv_bfloat16> model;
    build(&model, gpt2_config(MODEL, T), recipe, B, T, SEED, NULL);
    Step first = step_run(&model);
    model.linear.seed = noise_trigger_seed(SEED);
    Step second = step_run(&model);
    model.linear.seed = SEED;
    double want = 0.0, squares = 0.0;
    for (int i = 0; i < LAYERS * NUM_LINEARS; i++) {
        int p = linear_param(i % NUM_LINEARS), layer = i / NUM_LINEARS;
        if (!noise_trigger_counts(&model.recipe, layer, i % NUM_LINEARS)) { continue; }
        size_t at = gpt2_param_offset(model.specs, p, layer);
        for (size_t j = at; j < at + model.specs[p].size; j++) {
            double d = (double)first.grads[j] - (double)second.grads[j];
            want += d * d;
            squares += (double)first.grads[j] * (double)first.grads[j];
        }
    }
    gpt2_zero_grad(&model);
    gpt2_zero_loss(&model);
    double got = gpt2_noise_squares(&model, inputs, targets, B, T, 1.0f / (float)N);
    float* grads = copy_out(model.grads, model.num_params);
    int left = gpt2_loss_sum(&model) != 0.0f;
    for (size_t i = 0; i < model.num_params; i++) { left += grads[i] != 0.0f; }
    Step again = step_run(&model);
    int changed = memcmp(again.grads, first.grads, model.num_params * sizeof(float)) != 0;
    int good = has_random_bits ? fabs(got / want - 1.0) < 1e-4
                               : want == 0.0 && got < 0x1p-40 * squares;
    report(good, "noise", "%s: %.6e, from two gradients %.6e; theirs %.3e", recipe, got, want, squares);
    report(left == 0 && changed == 0, "  leaves nothing", "%d gradients not zero%s", left,
           changed ? ", and other random bits" : "");
    free(first.grads);
    free(second.grads);
    free(again.grads);
    free(grads);
}

// ---------------------------------------------------------------------------------------------

static void test_everything(void) {
    GPT2<__nv_bfloat16> model;
    oracle_tokens(inputs, targets, N, 257, 1);
    build(&model, gpt2_config(MODEL, T), "bf16", B, T, SEED, NULL);
    bf16 = step_run(&model);
    static const char* recipes[] = {
        "fp8", "fp8block", "mxfp8", "mxfp4,tail=0", "nvfp4,tail=0", "nvfp4+46,tail=0", "quartet2",
        "tetrajet", "fp4all", "nvfp4,tail=0,unbiased=1", "nvfp4,tail=0,paper=1,tile=0",
        "nvfp4+46,foursix=mae,front=1,tail=0,hadamard=64",
        "nvfp4,tail=0,tile=0,aligned=1,dgrad=bf16:1/fc", "quartet2,aligned=0,wgrad=bf16:0",
        "mxfp4,tail=0,WT=sr,hadamard=32", "tetrajet,aligned=0,fresh=0,WT=rn,tile=1",
        "fp8,hadamard=16", "quartet2,forward=bf16",
    };
    for (size_t i = 0; i < sizeof(recipes) / sizeof(recipes[0]); i++) { test_recipe(recipes[i]); }
    static const char* products[] = {
        "fp8", "fp8block", "mxfp8", "mxfp4,tail=0", "nvfp4,tail=0", "nvfp4+46,tail=0", "quartet2",
        "tetrajet", "fp4all", "nvfp4,tail=0,unbiased=1", "quartet2,aligned=0",
    };
    for (size_t i = 0; i < sizeof(products) / sizeof(products[0]); i++) {
        test_products(products[i]);
    }
    static const struct { const char *changing, *constant; int step; } schedules[] = {
        { "nvfp4,tail=0,forward=bf16@1", "nvfp4,tail=0,forward=bf16", 1 },
        { "nvfp4,tail=0,all=bf16,backward=nvfp4@0.5", "nvfp4,tail=0,forward=bf16", 1 },
        { "quartet2,wgrad=bf16/fc@1,dgrad=bf16@2", "quartet2,wgrad=bf16/fc,dgrad=bf16", 2 },
        { "quartet2,all=bf16,all=nvfp4@1", "quartet2", 1 },
        { "fp8block,all=bf16:0@1", "fp8block,front=1", 1 },
    };
    for (size_t i = 0; i < sizeof(schedules) / sizeof(schedules[0]); i++) {
        test_schedule(schedules[i].changing, schedules[i].constant, schedules[i].step, 2);
    }
    test_osci_reset("nvfp4,tail=0,oscireset=2:0.1:4:3");
    test_osci_reset("quartet2,oscireset=2:0.1:4:3");
    test_noise("nvfp4,tail=1", 1);
    test_noise("quartet2", 1);
    test_noise("fp8", 0);
}

#if RUNS_ON_CPU
// A model lives as long as the program; the sanitizer need not tell.
extern "C" const char* __asan_default_options(void) { return "detect_leaks=0"; }
#endif

int main(void) {
    if (device_missing("recipes")) { return report_status(); }
    choose_hardware();
    test_everything();
    return report_status();
}
