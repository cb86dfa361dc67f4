/*
Tests of train_gpt2_nvfp4.cu as a whole, on a GPU or, with less repetition, on the CPU. The kernels
have tests of their own.

    build/test/cuda/test_model                          every test; run ./test_gpt2 before, which
                                                        writes build/oracle_RECIPE.bin
    build/test/cuda/test_model MODEL.bin STATE.bin      only the comparison with PyTorch, for
                                                        another reference made by
                                                        dev/reference/make_reference.py
    build/test/cuda/test_model ORACLE.bin               only the comparison with the C program, for
                                                        another oracle made by test_gpt2
*/
#include "../reference/reference_file.h"
#include "cublaslt_model.h"
#include "model_check.cuh"
#include "oracle_file.h"

// ---------------------------------------------------------------------------------------------

// Bounded. Against PyTorch in FP32. Under fp32 the bounds are those of the C program, sums of
// FP32 terms in another order; under bf16 each stored tensor is off by 2^-9 on average over some
// tens of roundings one after the other: 3 % of a gradient's length.
// The faults that make it fail are those of the C program's test (test_gpt2.c).
template <typename Real>
static void test_reference(const char* recipe, const char* model_path, const char* state_path) {
    int fp32 = sizeof(Real) == sizeof(float);
    double logits_bound = fp32 ? 1e-5 : 2e-2, gradient_bound = fp32 ? 5e-5 : 5e-2;
    double loss_bound = fp32 ? 1e-4 : 5e-3, norm_bound = fp32 ? 1e-3 : 3e-2;
    Reference reference = reference_open(model_path, state_path);
    GPT2Config config = checkpoint_read_config(model_path);
    GPT2<Real> model;
    int B = reference.B, T = reference.T, V = config.V, Vp = config.Vp, BT = B * T;
    build(&model, config, recipe, B, T, 1, model_path);

    gpt2_forward(&model, reference.inputs, reference.targets, B, T, 0.0f);
    float* logits = copy_out(model.acts.logits, (size_t)BT * Vp);
    double worst = 0.0;
    for (int bt = 0; bt < BT; bt++) {
        double d = relative_distance(logits + (size_t)bt * Vp,
                                     reference.logits + (size_t)bt * V, V);
        if (!(d <= worst)) { worst = d; }
    }
    free(logits);
    report(worst < logits_bound, "pytorch logits",
           "%s: worst row differs by %.1e of its length, bound %.0e", recipe, worst, logits_bound);

    worst = 0.0;
    const char* worst_name = "";
    double worst_loss = 0.0, worst_norm = 0.0;
    for (int step = 0; step < reference.steps; step++) {
        gpt2_zero_grad(&model);
        gpt2_zero_loss(&model);
        gpt2_forward(&model, reference.inputs, reference.targets, B, T, 1.0f / (float)BT);
        gpt2_backward(&model, B, T);
        if (step == 0) {
            float* grads = copy_out(model.grads, model.num_params);
            for (int p = 0; p < NUM_PARAMS; p++) {
                size_t offset = model.specs[p].offset;
                double d = relative_distance(grads + offset, reference.gradients + offset,
                                             model.specs[p].size * (size_t)model.specs[p].layers);
                if (!(d <= worst)) {
                    worst = d;
                    worst_name = model.specs[p].name;
                }
            }
            free(grads);
        }
        float norm = gpt2_gradient_norm(&model), loss = gpt2_loss_sum(&model) / (float)BT;
        float scale = norm > reference.clip ? reference.clip / norm : 1.0f;
        gpt2_update(&model, reference.learning_rate, reference.weight_decay, scale, step);
        double dl = fabs(loss / reference.losses[step] - 1.0),
               dn = fabs(norm / reference.norms[step] - 1.0);
        if (!(dl <= worst_loss)) { worst_loss = dl; }
        if (!(dn <= worst_norm)) { worst_norm = dn; }
    }
    report(worst < gradient_bound, "pytorch gradients", "%s: worst %s differs by %.1e of its "
           "length, bound %.0e", recipe, worst_name, worst, gradient_bound);
    report(worst_loss < loss_bound && worst_norm < norm_bound, "pytorch adamw",
           "%s: %d steps: losses differ by at most %.1e, norms by %.1e, bounds %.0e and %.0e",
           recipe, reference.steps, worst_loss, worst_norm, loss_bound, norm_bound);
    reference_close(&reference);
}

// ---------------------------------------------------------------------------------------------
// Against the C program

typedef struct {
    OracleRecord about;
    uint8_t* codes;
    uint8_t* scales;
    int seen;
} OracleOperand;

static struct {
    const Recipe* recipe;
    uint64_t seed;
    OracleOperand* operands;
    int count;
    // what differs from the C quantizer, given our tensors; what equals the C program's
    size_t own_elements, own_codes, own_scales, own_amax;
    size_t elements, equal_codes, equal_scales, weight_differs;
    size_t by_operand[NUM_OPERANDS], equal_by_operand[NUM_OPERANDS];
} oracle;

static size_t count_equal(const uint8_t* a, const uint8_t* b, size_t n) {
    size_t equal = 0;
    for (size_t i = 0; i < n; i++) { equal += a[i] == b[i]; }
    return equal;
}

// Holds a quantized operand against the C quantizer on the very tensor that was quantized, which
// must give the same bits, and against what the C program had in this place, whose tensor
// differs by summation order.
static void oracle_observe(int layer, int linear, int operand, const __nv_bfloat16* source,
                           const Nvfp4Matrix* quantized) {
    int transposed = operand == OPERAND_XT || operand == OPERAND_DYT || operand == OPERAND_WT;
    int weight = operand == OPERAND_W || operand == OPERAND_WT;
    int gradient = operand == OPERAND_DY || operand == OPERAND_DYT;
    size_t rows = quantized->rows, cols = quantized->cols, elements = rows * cols;
    float* values = copy_out(source, elements);
    if (transposed) {
        float* flipped = (float*)xmalloc(elements * sizeof(float), "a transposed operand");
        hadamard_transpose(flipped, values, (int)cols, (int)rows,
                           !weight && oracle.recipe->operands[OPERAND_XT].hadamard);
        free(values);
        values = flipped;
    }
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = gradient && oracle.recipe->operands[operand].rounding == ROUND_STOCHASTIC;
    rounding.seed = oracle.seed;
    rounding.tag = operand_tag(layer, linear, operand);
    rounding.step = 0;
    float amax, own_amax;
    size_t scales_size = nvfp4_scales_size(rows, cols);
    Nvfp4Matrix want = *quantized, got = *quantized;
    want.codes = (uint8_t*)xmalloc(elements / 2, "codes");
    want.block_scales = (uint8_t*)xmalloc(scales_size, "scales");
    want.amax = &amax;
    int tile = weight && oracle.recipe->operands[OPERAND_W].tile ? 16 : 1;
    check(nvfp4_quantize(&want, values, tile, rounding) == 0, "not finite");
    got.codes = (uint8_t*)xmalloc(elements / 2, "codes");
    got.block_scales = (uint8_t*)xmalloc(scales_size, "scales");
    got.amax = &own_amax;
    cudaCheck(cudaMemcpy(got.codes, quantized->codes, elements / 2, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(got.block_scales, quantized->block_scales, scales_size,
                         cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(&own_amax, quantized->amax, sizeof(float), cudaMemcpyDeviceToHost));
    oracle.own_elements += elements;
    oracle.own_codes += elements - oracle_equal_codes(want.codes, got.codes, elements / 2);
    oracle.own_scales += scales_size
                         - count_equal(want.block_scales, got.block_scales, scales_size);
    oracle.own_amax += float_bits(amax) != float_bits(own_amax);

    uint8_t* scales = oracle_scales(&got);
    for (int i = 0; i < oracle.count; i++) {
        OracleOperand* o = &oracle.operands[i];
        if (o->about.layer != layer || o->about.linear != linear || o->about.operand != operand) {
            continue;
        }
        check((size_t)o->about.rows == rows && (size_t)o->about.cols == cols,
              "operands of different shapes");
        size_t equal = oracle_equal_codes(o->codes, got.codes, elements / 2);
        size_t equal_scales = count_equal(o->scales, scales, elements / NVFP4_BLOCK);
        o->seen = 1;
        oracle.elements += elements;
        oracle.equal_codes += equal;
        oracle.equal_scales += equal_scales;
        oracle.by_operand[operand] += elements;
        oracle.equal_by_operand[operand] += equal;
        if (weight) {
            oracle.weight_differs += elements - equal + elements / NVFP4_BLOCK - equal_scales;
        }
    }
    free(scales);
    free(values);
    free(want.codes);
    free(want.block_scales);
    free(got.codes);
    free(got.block_scales);
}

// Exact: each operand has the bits of the C quantizer fed with the CUDA program's own tensor;
// weights have those of the C program. Bounded: the rest of the first step, whose sums have another
// order. A sum in another order moves a BF16 rounding now and then; that moves a code, which is a
// change of a quarter and more of the element; and from there it spreads through the row and, in
// attention, to others. Where it moves a tensor's amax, all scales of that tensor change a little.
// The C program has measured on itself what that comes to when only its GEMMs sum in another order
// (oracle_file.h); here, where every sum has another order, at most twice as much may differ.
// Failed while the C program rounded attention's probabilities relative to the final maximum of a
// row instead of the running one (88 % of codes equal instead of 93 %).
template <typename Real> static void test_oracle(const char* path) {
    OracleHeader header;
    FILE* file = file_open(path, "./test_gpt2 writes it");
    file_read(&header, sizeof(header), file, path);
    check(header.magic == ORACLE_MAGIC, "%s is not an oracle", path);
    size_t gradients = header.num_params <= ORACLE_MAX_GRADIENTS ? header.num_params : 0;
    float* want = (float*)xmalloc(gradients * sizeof(float), "gradients");
    file_read(want, gradients * sizeof(float), file, path);
    memset(&oracle, 0, sizeof(oracle));
    oracle.count = header.num_records;
    oracle.operands = (OracleOperand*)xcalloc(header.num_records * sizeof(OracleOperand),
                                              "operands");
    for (int i = 0; i < oracle.count; i++) {
        OracleOperand* o = &oracle.operands[i];
        file_read(&o->about, sizeof(o->about), file, path);
        size_t elements = (size_t)o->about.rows * o->about.cols;
        o->codes = (uint8_t*)xmalloc(elements / 2, "codes");
        o->scales = (uint8_t*)xmalloc(elements / NVFP4_BLOCK, "scales");
        file_read(o->codes, elements / 2, file, path);
        file_read(o->scales, elements / NVFP4_BLOCK, file, path);
    }
    fclose(file);

    int B = header.B, T = header.T, N = B * T;
    GPT2Config config = gpt2_config(header.model, T);
    int* inputs = (int*)xmalloc(N * sizeof(int), "tokens");
    int* targets = (int*)xmalloc(N * sizeof(int), "tokens");
    oracle_tokens(inputs, targets, N, config.V, 1);
    GPT2<Real> model;
    build(&model, config, header.recipe, B, T, 1337, NULL);
    oracle.recipe = &model.recipe;
    oracle.seed = 1337;
    model.linear.observe = oracle_observe;
    gpt2_quantize_weights(&model);              // again, to be seen
    gpt2_forward(&model, inputs, targets, B, T, 1.0f / (float)N);
    gpt2_backward(&model, B, T);
    float loss = gpt2_loss_sum(&model) / (float)N, norm = gpt2_gradient_norm(&model);
    gpt2_check_finite(&model, 0);
    int fp32 = sizeof(Real) == sizeof(float), seen = 0;
    for (int i = 0; i < oracle.count; i++) { seen += oracle.operands[i].seen; }
    double bound = fp32 ? 1e-5 : 2e-3, norm_bound = fp32 ? 1e-4 : 2e-2;
    report(fabs(loss / header.loss - 1.0) < bound, "C program: loss", "%s %s: %.6f, C %.6f, bound "
           "%.0e relative", header.model, header.recipe, loss, header.loss, bound);
    report(fabs(norm / header.gradient_norm - 1.0) < norm_bound, "C program: norm",
           "%s: %.5f, C %.5f, bound %.0e", header.recipe, norm, header.gradient_norm, norm_bound);
    if (gradients > 0) {
        float* got = copy_out(model.grads, gradients);
        double d = relative_distance(got, want, gradients),
               most = 2.0 * header.reordered_gradients + 1e-6;
        report(d < most, "C program: gradients", "%s: differ by %.1e of their length, C with sums "
               "in another order by %.1e", header.recipe, d, header.reordered_gradients);
        free(got);
    }
    if (oracle.count > 0) {
        report(seen == oracle.count && oracle.own_codes + oracle.own_scales + oracle.own_amax == 0,
               "C quantizer, same tensors", "%d of %d operands; of %zu codes %zu differ, scales "
               "%zu, amaxes %zu", seen, oracle.count, oracle.own_elements, oracle.own_codes,
               oracle.own_scales, oracle.own_amax);
        report(oracle.weight_differs == 0, "C program: weights", "%zu codes or scales differ",
               oracle.weight_differs);
        double share = (double)oracle.equal_codes / oracle.elements;
        report(1.0 - share < 2.0 * (1.0 - header.reordered_codes) + 1e-3, "C program: codes",
               "%.2f %% equal, C with sums in another order %.2f %%; scales %.2f %%",
               100 * share, 100 * header.reordered_codes,
               100.0 * oracle.equal_scales * NVFP4_BLOCK / oracle.elements);
        for (int operand = 0; operand < NUM_OPERANDS; operand++) {
            printf("       %-5s %.2f %% of codes equal\n", operand_name(operand),
                   100.0 * oracle.equal_by_operand[operand] / oracle.by_operand[operand]);
        }
    }
    free(inputs);
    free(targets);
    free(want);
}

// ---------------------------------------------------------------------------------------------

template <typename Real>
static void train_small(GPT2<Real>* model, int first, int last, float* losses) {
    int B = 2, T = 32, inputs[64], targets[64];
    for (int step = first; step < last; step++) {
        gpt2_zero_grad(model);
        gpt2_zero_loss(model);
        for (int micro = 0; micro < 2; micro++) {
            oracle_tokens(inputs, targets, B * T, 16, (uint32_t)micro);
            model->micro_step = (uint32_t)(2 * step + micro);
            gpt2_forward(model, inputs, targets, B, T, 0.5f / (float)(B * T));
            gpt2_backward(model, B, T);
        }
        gpt2_update(model, 1e-3f, 0.1f, 1.0f, step);
        losses[step] = 0.5f * gpt2_loss_sum(model) / (float)(B * T);
    }
}

// Exact. Two runs give the same bits; so does a run that is taken out and put back in
// the middle. Failed when the resumed model had another seed for its stochastic
// rounding.
template <typename Real> static void test_same_bits(const char* recipe) {
    GPT2Config config = gpt2_config("layers=3,channels=128,heads=2,vocab=257", 32);
    float losses[3][10];
    float* state[3];
    float* params[3];
    for (int run = 0; run < 3; run++) {
        GPT2<Real> model;
        build(&model, config, recipe, 2, 32, 42, NULL);
        size_t n = model.num_params;
        if (run < 2) {
            train_small(&model, 0, 10, losses[run]);
        } else {
            train_small(&model, 0, 5, losses[run]);
            for (int i = 0; i < 3; i++) { state[i] = (float*)xmalloc(n * sizeof(float), "state"); }
            gpt2_get_state(&model, state[0], state[1], state[2]);
            build(&model, config, recipe, 2, 32, 42, NULL);
            train_small(&model, 0, 1, losses[run]);         // leave other weights behind
            gpt2_set_state(&model, state[0], state[1], state[2]);
            train_small(&model, 5, 10, losses[run]);
        }
        params[run] = copy_out(model.params, n);
        if (run > 0) {
            report(memcmp(params[0], params[run], n * sizeof(float)) == 0,
                   run == 1 ? "same bits" : "resume", "%s: 10 steps, loss %.4f to %.4f", recipe,
                   losses[0][0], losses[0][9]);
        }
    }
    report(losses[0][9] < losses[0][0] - 0.5f, "learns", "%s: loss %.4f to %.4f", recipe,
           losses[0][0], losses[0][9]);
}

// Exact. An infinite weight stops the run with a message that names where.
static void test_not_finite(void) {
    GPT2Config config = gpt2_config("layers=3,channels=128,heads=2,vocab=257", 32);
    GPT2<__nv_bfloat16> model;
    int inputs[64], targets[64];
    build(&model, config, "nvfp4", 2, 32, 42, NULL);
    float infinite = INFINITY;
    cudaCheck(cudaMemcpy(model.params + gpt2_param_offset(model.specs, FCW, 1), &infinite,
                         sizeof(float), cudaMemcpyHostToDevice));
    gpt2_refresh_working(&model);
    oracle_tokens(inputs, targets, 64, 257, 1);
    gpt2_forward(&model, inputs, targets, 2, 32, 1.0f / 64);
    int found;
    cudaCheck(cudaDeviceSynchronize());
    cudaCheck(cudaMemcpy(&found, model.linear.nonfinite, sizeof(int), cudaMemcpyDeviceToHost));
    int expected = 1 + (1 * NUM_LINEARS + LINEAR_FC) * NUM_OPERANDS + OPERAND_W;
    report(found == expected, "not finite", "flag %d, expected %d", found, expected);
}

static void test_everything(void) {
    test_reference<float>("fp32", "dev/reference/tiny_model.bin", "dev/reference/tiny_state.bin");
    test_reference<__nv_bfloat16>("bf16", "dev/reference/tiny_model.bin",
                                  "dev/reference/tiny_state.bin");
    test_oracle<float>("build/oracle_fp32.bin");
    test_oracle<__nv_bfloat16>("build/oracle_bf16.bin");
    test_oracle<__nv_bfloat16>("build/oracle_nvfp4.bin");
    test_same_bits<__nv_bfloat16>("nvfp4");
    test_not_finite();
    if (RUNS_ON_CPU) {
        report_skip("same bits, other recipes", "takes too long without a GPU");
        return;
    }
    test_same_bits<float>("fp32");
    test_same_bits<__nv_bfloat16>("bf16");
    test_same_bits<__nv_bfloat16>("nvfp4,tail=0,tile16=0,hadamard=0,dgrad=bf16");
    test_same_bits<__nv_bfloat16>("nvfp4,tail=0,wgrad=bf16");
}

// On the CPU the model of cuBLASLt is a GPU without FP4 tensor cores first, then one with them.
#if RUNS_ON_CPU
// A model lives as long as the program; the sanitizer need not tell.
extern "C" const char* __asan_default_options(void) { return "detect_leaks=0"; }

static void test_devices(void) {
    cublaslt_model_capability(9, 0);
    choose_hardware();
    test_everything();
    cublaslt_model_capability(10, 0);
    choose_hardware();
    report(hardware.paths.of[GEMM_STORES_BF16] == GEMM_FP4, "FP4 path", "in the model");
    test_oracle<__nv_bfloat16>("build/oracle_nvfp4.bin");
}
#else
static void test_devices(void) {
    choose_hardware();
    test_everything();
}
#endif

int main(int argc, char** argv) {
    if (device_missing("test_model")) { return report_status(); }
    if (argc == 1) {
        test_devices();
        return report_status();
    }
    choose_hardware();
    if (argc == 3) {
        test_reference<float>("fp32", argv[1], argv[2]);
        test_reference<__nv_bfloat16>("bf16", argv[1], argv[2]);
    } else {
        test_oracle<__nv_bfloat16>(argv[1]);
    }
    return report_status();
}
