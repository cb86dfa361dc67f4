/*
The start-up self-test (self_test.cuh) has to pass on hardware that is right, and to notice hardware
that is not. Class: exact; a fault is noticed or it is not.

Each case runs the self-test in a process of its own, as a program would, with one fault planted,
and looks at three things: how the process ended, what it chose, and whether what it printed names
the part at fault. The faults come through the hooks of SelfTestFaults, on any GPU; faults of FP4
tensor cores through the model of cuBLASLt, when this runs on the CPU (cuda_on_cpu).

Faults in copies of the program that the self-test noticed as well, one at a time:
  by the C functions   `word ^ 4 * group` when reading the tile; the second column of a pair read as
      the first; another block index for the random bytes; the random bytes of one direction used
      for both; the Hadamard transform left out of amax, or of the codes; the last rows, or columns,
      left out of amax; scale bytes in row-major order, or one written into the padding; the next
      block's scale in expand_kernel; the amax of the neighbouring tile; subnormals taken as 0 in
      block_amax, or __habs2 left out of it; an inverse off by its last bit, or computed as
      inverse / block_scale; for the instruction, the wrong four values, one word of random bytes
      for all, another order of bytes
  by the other checks on the device   fmaxf in place of the maximum over bits, of x or of the sums
      (NaN lost); alpha as a * (b * c), or divided; the flag naming the other operand
  by the hashes alone (the header's fault)   ties away from zero; scales by / 6, before or after;
      random bytes in another order; E4M3 cut off; no limit for the inverse; -0 lost; another sign
      of the Hadamard transform; nine rounds of Philox
  by the statistics alone, hashes switched off   one random byte for a block; 7 random bits; no
      random bits; nibbles swapped in e2m1_pack
  by the products   in nvfp4_scale_offset blocks shifted, or rows of a tile not folded; scale
      pointers swapped; beta always 0, always 1; alpha 1; codes of padded operands cut, swapped; B
      expanded over A; accumulate, alpha ignored; K a block short
*/
#include <sys/wait.h>
#include "../../llmc/recipe.h"
#include "../../llmc/self_test.cuh"
#include "report.h"

#if RUNS_ON_CPU
#include "cublaslt_model.h"
static long objects_left(void) { return cublaslt_model_objects(); }
#else
static long objects_left(void) { return 0; }        // nobody counts
#endif

// ---------------------------------------------------------------------------------------------
// Faults in a quantized matrix, on a host copy

static uint8_t* scale_at(const Nvfp4Matrix* m, int row, int block) {
    return m->block_scales + nvfp4_scale_offset((size_t)row, (size_t)block, (size_t)m->cols);
}

static void code_set(const Nvfp4Matrix* m, size_t i, int code) {
    uint8_t* byte = &m->codes[i / 2];
    *byte = (uint8_t)(i % 2 == 0 ? (*byte & 0xf0) | code : (*byte & 0x0f) | code << 4);
}

static int code_get(const Nvfp4Matrix* m, size_t i) {
    return m->codes[i / 2] >> (4 * (i % 2)) & 15;
}

static void nibbles_swapped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 0; i < nvfp4_codes_size((size_t)m->rows, (size_t)m->cols); i++) {
        m->codes[i] = (uint8_t)(m->codes[i] << 4 | m->codes[i] >> 4);
    }
}

static void scales_shifted(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (int row = 0; row < m->rows; row++) {
        for (int block = 0; block < m->cols / 16 - 1; block++) {
            *scale_at(m, row, block) = *scale_at(m, row, block + 1);
        }
    }
}

static void scales_row_major(Nvfp4Matrix* m, const SelfTestMatrix*) {
    size_t bytes = nvfp4_scales_size((size_t)m->rows, (size_t)m->cols);
    int blocks = m->cols / 16;
    uint8_t* tiled = (uint8_t*)xcalloc(bytes, "scales");
    for (int i = 0; i < m->rows * blocks; i++) { tiled[i] = *scale_at(m, i / blocks, i % blocks); }
    memcpy(m->block_scales, tiled, bytes);
    free(tiled);
}

static void padding_written(Nvfp4Matrix* m, const SelfTestMatrix*) {
    int blocks = m->cols / 16;          // behind the last of a row, where its tile is not full
    if (blocks % 4 != 0) { *scale_at(m, m->rows - 1, blocks) = 0x38; }
}

static void sign_dropped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 0; i < nvfp4_codes_size((size_t)m->rows, (size_t)m->cols); i++) {
        m->codes[i] &= 0x77;
    }
}

static void all_zero(Nvfp4Matrix* m, const SelfTestMatrix*) {
    memset(m->codes, 0, nvfp4_codes_size((size_t)m->rows, (size_t)m->cols));
}

static void negative_zero_lost(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols; i++) {
        if (code_get(m, i) == 8) { code_set(m, i, 0); }
    }
}

static void scale_mantissa_dropped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 0; i < nvfp4_scales_size((size_t)m->rows, (size_t)m->cols); i++) {
        if (m->block_scales[i] < 0x7e) { m->block_scales[i] &= 0x78; }
    }
}

static void odd_block_lost(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (int row = 0; row < m->rows && m->cols % 32 != 0; row++) {
        memset(m->codes + (size_t)(row + 1) * (size_t)m->cols / 2 - 8, 0, 8);
    }
}

static void one_too_large(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 997; i < (size_t)m->rows * (size_t)m->cols; i += 1000) {
        if ((code_get(m, i) & 7) < 7) { code_set(m, i, code_get(m, i) + 1); }
    }
}

static void last_block_lost(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (int row = 0; row < m->rows; row++) {
        memset(m->codes + (size_t)(row + 1) * (size_t)m->cols / 2 - 8, 0, 8);
    }
}

// The same in formats with codes of 8 bits.
static void byte_codes_changed(Nvfp4Matrix* m, uint8_t keep) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols; i++) { m->codes[i] &= keep; }
}

static void byte_signs_dropped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    byte_codes_changed(m, 0x7f);
}

static void byte_last_bits_dropped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    byte_codes_changed(m, 0xfe);
}

static void byte_last_lost(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (int row = 0; row < m->rows; row++) { m->codes[(size_t)(row + 1) * m->cols - 1] = 0; }
}

static void byte_neighbours_swapped(Nvfp4Matrix* m, const SelfTestMatrix*) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols; i += 2) {
        uint8_t code = m->codes[i];
        m->codes[i] = m->codes[i + 1];
        m->codes[i + 1] = code;
    }
}

static void block_scale_up(Nvfp4Matrix* m, const SelfTestMatrix* made) {
    size_t offset = quantized_scale_offset(made != NULL ? made->quantizer.format : FORMAT_FP8BLOCK,
                                           (size_t)m->rows - 1, 0, (size_t)m->cols);
    m->block_scales[offset]++;
}

// The base recipe's quantizers are right.
static void block_scale_up_others(Nvfp4Matrix* m, const SelfTestMatrix* made) {
    if (!quantizer_is_plain_nvfp4(&made->quantizer)) { block_scale_up(m, made); }
}

// x / (its block's scale * the tensor scale), as it is before it becomes a code
static float scaled(const Nvfp4Matrix* m, const SelfTestMatrix* made, size_t i) {
    Nvfp4TensorScale tensor = nvfp4_tensor_scale(*m->amax);
    int row = (int)(i / (size_t)m->cols), block = (int)(i % (size_t)m->cols) / 16;
    return made->source[i] * nvfp4_block_inverse(*scale_at(m, row, block), tensor);
}

static void ties_away_from_zero(Nvfp4Matrix* m, const SelfTestMatrix* made) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols && !made->rounding.stochastic; i++) {
        float x = scaled(m, made, i), up = bits_float(float_bits(x) + (x != 0.0f));
        code_set(m, i, e2m1_from_float(up));
    }
}

static void rounded_down(Nvfp4Matrix* m, const SelfTestMatrix* made) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols && made->rounding.stochastic; i++) {
        code_set(m, i, e2m1_from_float_stochastic(scaled(m, made, i), 0));
    }
}

static void one_random_byte(Nvfp4Matrix* m, const SelfTestMatrix* made) {
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols && made->rounding.stochastic; i++) {
        uint32_t byte = nvfp4_random_byte(nvfp4_random_bytes(made->rounding, i / 16), 0);
        code_set(m, i, e2m1_from_float_stochastic(scaled(m, made, i), byte));
    }
}

// ---------------------------------------------------------------------------------------------
// The hooks, and what they spoil. One process plants one fault.

#define ANY_RESULT NUM_GEMM_RESULTS

static struct {
    void (*matrix)(Nvfp4Matrix* m, const SelfTestMatrix* made);
    int only_instruction;       // spoils what an instruction made, but not what arithmetic made
    float (*alpha)(float alpha);
    GemmPath path;              // operands and products of this path are spoilt
    int result;                 // of this result, or ANY_RESULT
} planted;

static SelfTestFaults faults;

// What the self-test is about: products of GPT-2 small with 8 x 1024 tokens, in a recipe's format.
static GemmProduct products[NUM_GEMMS];
static Format format;

static void set_recipe(const char* text) {
    Recipe recipe = recipe_parse(text, 1);
    static const int sizes[NUM_GEMMS][3] = { { 8192, 2304, 768 }, { 8192, 768, 2304 },
                                             { 2304, 768, 8192 } };
    for (int g = 0; g < NUM_GEMMS; g++) {
        GemmProduct p = { sizes[g][0], sizes[g][1], sizes[g][2],
                          g == WGRAD ? GEMM_ADDS_FP32 : GEMM_STORES_BF16,
                          recipe.operands[gemm_operand(g, 0)], recipe.operands[gemm_operand(g, 1)] };
        products[g] = p;
    }
    format = products[0].A.format;
}

// Codes, scales and amax lie one behind the other.
static Nvfp4Matrix matrix_fetch(const Nvfp4Matrix* device) {
    size_t bytes = self_test_bytes(format, device->rows, device->cols);
    void* memory = xmalloc(bytes, "a fault");
    cudaCheck(cudaMemcpy(memory, device->codes, bytes, cudaMemcpyDeviceToHost));
    return self_test_place(memory, format, device->rows, device->cols);
}

static void matrix_store(const Nvfp4Matrix* device, Nvfp4Matrix m) {
    cudaCheck(cudaMemcpy(device->codes, m.codes, self_test_bytes(format, m.rows, m.cols),
                         cudaMemcpyHostToDevice));
    free(m.codes);
}

static void hook_matrix(const SelfTestMatrix* made) {
    if (planted.only_instruction && !made->conversion.nearest) { return; }
    Nvfp4Matrix m = matrix_fetch(&made->matrix);
    planted.matrix(&m, made);
    matrix_store(&made->matrix, m);
}

static E2m1Conversion hook_probe(char* reason, size_t size, cudaStream_t) {
    E2m1Conversion conversion = e2m1_arithmetic();
    conversion.nearest = conversion.stochastic = 1;     // means arithmetic where there is none
    snprintf(reason, size, "pretended");
    return conversion;
}

static void hook_amax_smaller(float* amax, float* amaxT) {
    for (int i = 0; i < 2; i++) {
        uint32_t bits;
        cudaCheck(cudaMemcpy(&bits, i == 0 ? amax : amaxT, 4, cudaMemcpyDeviceToHost));
        if (bits > 0 && bits < FLOAT_INFINITY_BITS) { bits -= 0x10000u; }
        cudaCheck(cudaMemcpy(i == 0 ? amax : amaxT, &bits, 4, cudaMemcpyHostToDevice));
    }
}

static void hook_amax_finite(float*, float* amaxT) {
    float x;
    cudaCheck(cudaMemcpy(&x, amaxT, 4, cudaMemcpyDeviceToHost));
    if (isnan(x)) { x = 1.0f; }
    cudaCheck(cudaMemcpy(amaxT, &x, 4, cudaMemcpyHostToDevice));
}

static void hook_alpha(float* alpha) {
    uint32_t bits;
    cudaCheck(cudaMemcpy(&bits, alpha, 4, cudaMemcpyDeviceToHost));
    bits--;                         // what another association of the two products gives
    cudaCheck(cudaMemcpy(alpha, &bits, 4, cudaMemcpyHostToDevice));
}

static void hook_expansion(__nv_bfloat16* x, int rows, int cols) {
    size_t last = (size_t)rows * (size_t)cols - 1;
    cudaCheck(cudaMemcpy(x + last, x + last - 1, 2, cudaMemcpyDeviceToDevice));
}

// Statistics see codes, not what they were made from: the fault is made from the codes, too.
static void hook_steps_down(uint8_t* codes, int rows, int cols) {
    Nvfp4Matrix m = self_test_place(codes, FORMAT_NVFP4, rows, cols);
    for (int i = 0; i < rows * cols; i++) {
        int below = self_test_steps[self_test_step_at(i / cols, i % cols)].below;
        code_set(&m, (size_t)i, (code_get(&m, (size_t)i) & 8) | below);
    }
}

// Neighbours go up together, in pairs: each as often as before, but not independently.
static void hook_steps_together(uint8_t* codes, int rows, int cols) {
    Nvfp4Matrix m = self_test_place(codes, FORMAT_NVFP4, rows, cols);
    for (int i = 0; i < rows * cols; i++) {
        int step = self_test_step_at(i / cols, i % cols), below = self_test_steps[step].below;
        Nvfp4Rounding rounding = self_test_rounding(1, 7);
        uint32_t byte = nvfp4_random_byte(nvfp4_random_bytes(rounding, (uint64_t)i / 2), 0);
        int up = byte + (uint32_t)self_test_steps[step].up >= 256u;
        code_set(&m, (size_t)i, (code_get(&m, (size_t)i) & 8) | (below + up));
    }
}

static void hook_steps_zero(uint8_t* codes, int rows, int cols) {
    memset(codes, 0, (size_t)rows * (size_t)cols / 2);
}

// What was spoilt before a product is put back after it.
static Nvfp4Matrix kept, kept_at;
static float kept_alpha;
static float* kept_alpha_at;

static void hook_operands(const Nvfp4Matrix* A, const Nvfp4Matrix*, float* alpha, GemmPath path) {
    kept = matrix_fetch(A);
    kept_at = *A;
    kept_alpha_at = alpha;
    cudaCheck(cudaMemcpy(&kept_alpha, alpha, 4, cudaMemcpyDeviceToHost));
    if (path != planted.path) { return; }
    Nvfp4Matrix m = matrix_fetch(A);
    if (planted.matrix != NULL) { planted.matrix(&m, NULL); }
    matrix_store(A, m);
    float spoilt = planted.alpha != NULL ? planted.alpha(kept_alpha) : kept_alpha;
    cudaCheck(cudaMemcpy(alpha, &spoilt, 4, cudaMemcpyHostToDevice));
}

static float alpha_twice(float alpha) { return 2.0f * alpha; }
static float alpha_one(float) { return 1.0f; }

// D and what it held before, as floats on the host
static void result_zero(float* D, const float*, GemmProduct p) {
    for (int i = 0; i < p.M * p.N; i++) { D[i] = 0.0f; }
}

static void result_without_before(float* D, const float* before, GemmProduct p) {
    for (int i = 0; i < p.M * p.N && p.result == GEMM_ADDS_FP32; i++) { D[i] -= before[i]; }
}

static void result_with_before(float* D, const float* before, GemmProduct p) {
    for (int i = 0; i < p.M * p.N && p.result == GEMM_STORES_BF16; i++) { D[i] += before[i]; }
}

static void result_last_row_not_written(float* D, const float* before, GemmProduct p) {
    for (int i = (p.M - 1) * p.N; i < p.M * p.N; i++) { D[i] = before[i]; }
}

static void result_nan(float* D, const float*, GemmProduct p) { D[p.M * p.N / 2] = NAN; }

static void result_last_bit(float* D, const float*, GemmProduct p) {
    D[p.M * p.N / 2] *= p.result == GEMM_ADDS_FP32 ? 1.0f + 0x1p-23f : 1.0f + 0x1p-7f;
}

static void result_transposed(float* D, const float*, GemmProduct p) {
    float* copy = (float*)xmalloc((size_t)(p.M * p.N) * 4, "a fault");
    memcpy(copy, D, (size_t)(p.M * p.N) * 4);
    for (int i = 0; i < p.M * p.N; i++) { D[i % p.N * p.M + i / p.N] = copy[i]; }
    free(copy);
}

static void (*planted_result)(float* D, const float* before, GemmProduct p);

static void hook_product(void* D, const void* before, GemmProduct p, GemmPath path) {
    if (kept.codes != NULL) {
        matrix_store(&kept_at, kept);
        cudaCheck(cudaMemcpy(kept_alpha_at, &kept_alpha, 4, cudaMemcpyHostToDevice));
    }
    if (planted_result == NULL || path != planted.path) { return; }
    if (planted.result != ANY_RESULT && planted.result != (int)p.result) { return; }
    size_t n = (size_t)p.M * (size_t)p.N, bytes = n * (p.result == GEMM_ADDS_FP32 ? 4 : 2);
    void* stored = xmalloc(bytes, "a fault");
    float* x = (float*)xmalloc(n * 4, "a fault");
    float* x_before = (float*)xmalloc(n * 4, "a fault");
    cudaCheck(cudaMemcpy(stored, D, bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) {
        int fp32 = p.result == GEMM_ADDS_FP32;
        x[i] = fp32 ? ((float*)stored)[i] : bf16_to_float(((uint16_t*)stored)[i]);
        x_before[i] = fp32 ? ((const float*)before)[i]
                           : bf16_to_float(((const uint16_t*)before)[i]);
    }
    planted_result(x, x_before, p);
    for (size_t i = 0; i < n; i++) {
        if (p.result == GEMM_ADDS_FP32) { ((float*)stored)[i] = x[i]; }
        else { ((uint16_t*)stored)[i] = bf16_from_float(x[i]); }
    }
    cudaCheck(cudaMemcpy(D, stored, bytes, cudaMemcpyHostToDevice));
    free(stored);
    free(x);
    free(x_before);
}

// ---------------------------------------------------------------------------------------------
// Cases

#define OUTPUT_BYTES 16384

// The self-test in a process of its own. Returns its exit status and everything it printed.
static int run_self_test(char* output /* (OUTPUT_BYTES) */, GemmPath requested, int num_products) {
    int ends[2], status;
    check(pipe(ends) == 0, "no pipe");
    fflush(stdout);
    pid_t child = fork();
    check(child >= 0, "no process");
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        HardwarePaths h = self_test(requested, products, num_products, &faults, 0);
        printf("chosen: %s %s, conversion %d %d\n", gemm_path_name(h.paths.of[GEMM_STORES_BF16]),
               gemm_path_name(h.paths.of[GEMM_ADDS_FP32]), h.conversion.nearest,
               h.conversion.stochastic);
        printf("left: %ld objects\n", objects_left());
        fflush(stdout);
        _exit(0);
    }
    close(ends[1]);
    size_t got = 0;
    ssize_t more;
    while ((more = read(ends[0], output + got, OUTPUT_BYTES - 1 - got)) > 0) {
        got += (size_t)more;
    }
    output[got] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static void faults_none(void) {
    memset(&faults, 0, sizeof(faults));
    memset(&planted, 0, sizeof(planted));
    planted.result = ANY_RESULT;
    planted_result = NULL;
}

// Runs the self-test with what is planted, expects it to end the program (1) or not (0), to print
// these two texts, and to warn or not; then removes what was planted.
enum { SILENT, WARNS };

static void expect(const char* name, GemmPath requested, int ends, int warns, const char* says,
                   const char* says_also) {
    static char output[OUTPUT_BYTES];
    int status = run_self_test(output, requested, 3);
    int warned = strstr(output, "WARNING: ") != NULL;
    int good = status == ends && warned == (warns == WARNS) && strstr(output, says) != NULL &&
               strstr(output, says_also) != NULL &&
               (ends || strstr(output, "left: 0 objects") != NULL);
    report(good, name, "%s%s", warned ? "warns, " : "", ends ? "ends" : says_also);
    if (!good) { printf("     expected \"%s\" and \"%s\" in:\n%s\n", says, says_also, output); }
    faults_none();
}

#define NO_QUANTIZER "there is no other way to quantize"
#define NO_PATH "without that there is none"

enum { FP4_STORES = 1, FP4_ADDS = 2, FP4_ALL = 3 };

// What this machine does without faults decides what can be tried. Returns what it has in FP4:
// FP4_STORES for fprop and dgrad, FP4_ADDS for wgrad.
static int test_no_fault(void) {
    static char output[OUTPUT_BYTES];
    faults_none();
    int status = run_self_test(output, GEMM_AUTO, 3);
    int fp4 = strstr(output, "chosen: fp4 fp4") != NULL ? FP4_ALL
            : strstr(output, "chosen: fp4 emulated") != NULL ? FP4_STORES
            : strstr(output, "chosen: emulated fp4") != NULL ? FP4_ADDS : 0;
    report(status == 0 && strstr(output, "WARNING") == NULL &&
           (fp4 || strstr(output, "chosen: emulated emulated") != NULL), "no fault",
           "exit status %d", status);
    printf("%s", output);
    expect("no fault, -g emulated", GEMM_EMULATED, 0, SILENT, "chosen: emulated emulated",
           "not tried");
    if (fp4 == FP4_ALL) {
        expect("no fault, -g fp4", GEMM_FP4, 0, SILENT, "chosen: fp4 fp4", "gemm path         fp4");
    } else {
        expect("no FP4, -g fp4", GEMM_FP4, 1, SILENT, "not available", "run with -g auto");
    }
    return fp4;
}

// Products that the model does not have are not tried: without wgrad nothing is said of it.
static void test_one_result(int fp4) {
    static char output[OUTPUT_BYTES];
    int status = run_self_test(output, GEMM_AUTO, 2);
    report(status == 0 && strstr(output, "wgrad:") == NULL &&
           strstr(output, fp4 & FP4_STORES ? "chosen: fp4 fp4" : "chosen: emulated emulated") != NULL,
           "no wgrad", "exit status %d", status);
}

// Arithmetic that is wrong ends the program; an instruction that is wrong is not used.
static void test_quantizer_faults(void) {
    static const struct {
        const char* name;
        void (*spoil)(Nvfp4Matrix* m, const SelfTestMatrix* made);
        const char* says;
        int instruction;            // also tried as the fault of an instruction
    } cases[] = {
        { "nibbles swapped", nibbles_swapped, "x 1x16 of \"random\" (64, 128): element", 1 },
        { "scales shifted", scales_shifted, "scale byte of row 0, block", 0 },
        { "scales row-major", scales_row_major, "scale byte of row", 0 },
        { "padding written", padding_written, "padding is 0x38 instead of 0x00", 0 },
        { "sign dropped", sign_dropped, "has code", 0 },
        { "all codes 0", all_zero, "has code 0 instead of", 1 },
        { "-0 lost", negative_zero_lost, "has code 0 instead of 8", 1 },
        { "a code too large", one_too_large, "has code", 0 },
        { "last block lost", last_block_lost, "has code", 0 },
        { "ties away from zero", ties_away_from_zero, "1x16 of \"", 1 },
        { "always down", rounded_down, "stochastic of \"random\" (64, 128): element", 1 },
        { "one byte for a block", one_random_byte, "stochastic of \"random\" (64, 128): element",
          1 },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int instruction = 0; instruction <= cases[i].instruction; instruction++) {
            char name[80];
            snprintf(name, sizeof(name), "%s, %s", cases[i].name,
                     instruction ? "instruction" : "arithmetic");
            faults.matrix = hook_matrix;
            faults.probe = instruction ? hook_probe : NULL;
            planted.matrix = cases[i].spoil;
            planted.only_instruction = instruction;
            expect(name, GEMM_EMULATED, !instruction, instruction ? WARNS : SILENT, cases[i].says,
                   instruction ? "conversion 0 0" : NO_QUANTIZER);
        }
    }
    faults.probe = hook_probe;
    expect("instruction right", GEMM_EMULATED, 0, SILENT, "conversion 1 1", "pretended");
    faults.probe = hook_probe;
    faults.matrix = hook_matrix;
    planted.matrix = nibbles_swapped;
    expect("both wrong", GEMM_EMULATED, 1, WARNS, NO_QUANTIZER, "Converting by arithmetic instead");
}

static void test_other_device_faults(void) {
    faults.amax = hook_amax_smaller;
    expect("amax without an element", GEMM_EMULATED, 1, SILENT, ": amax ", NO_QUANTIZER);
    faults.amax = hook_amax_finite;
    expect("NaN lost", GEMM_EMULATED, 1, SILENT, "which hides that it is not finite", NO_QUANTIZER);
    faults.alpha = hook_alpha;
    expect("alpha, other association", GEMM_EMULATED, 1, SILENT, "alpha of", NO_QUANTIZER);
    faults.expansion = hook_expansion;
    expect("expansion", GEMM_EMULATED, 1, SILENT, "expansion of code", NO_QUANTIZER);
    faults.steps = hook_steps_down;
    expect("statistics: down", GEMM_EMULATED, 1, SILENT, "is biased", NO_QUANTIZER);
    faults.steps = hook_steps_zero;
    expect("statistics: all 0", GEMM_EMULATED, 1, SILENT, "is biased", NO_QUANTIZER);
    faults.steps = hook_steps_together;
    expect("statistics: dependent", GEMM_EMULATED, 1, SILENT, "do not draw independent",
           NO_QUANTIZER);
}

// The consequences of a wrong product: emulated, the program ends; in FP4 or FP8, emulation takes over
// for the results concerned. `says` is what differed first.
static void expect_product(const char* name, GemmPath path, int concerned, const char* says) {
    static const char* const choices[2][3] = {
        { "chosen: emulated fp4", "chosen: fp4 emulated", "chosen: emulated emulated" },
        { "chosen: emulated fp8", "chosen: fp8 emulated", "chosen: emulated emulated" } };
    const char* const* chosen = choices[path == GEMM_FP8];
    char full_name[120];
    snprintf(full_name, sizeof(full_name), "%s, %s", name, gemm_path_name(path));
    if (path == GEMM_EMULATED) {
        expect(full_name, GEMM_EMULATED, 1, SILENT, says, NO_PATH);
    } else {
        expect(full_name, GEMM_AUTO, 0, WARNS, says, chosen[concerned]);
    }
}

static void test_product_faults(GemmPath path) {
    static const struct {
        const char* name;
        void (*operand)(Nvfp4Matrix* m, const SelfTestMatrix* made);
        void (*result)(float* D, const float* before, GemmProduct p);
        float (*alpha)(float alpha);
        int concerned;              // which results
        const char* says;
    } cases[] = {
        { "nibbles swapped", nibbles_swapped, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "scales shifted", scales_shifted, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "sign dropped", sign_dropped, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "K cut short", last_block_lost, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "alpha twice", NULL, NULL, alpha_twice, ANY_RESULT, "of integers, D (144, 272)" },
        { "alpha ignored", NULL, NULL, alpha_one, ANY_RESULT, "of integers, D (144, 272)" },
        { "zeros", NULL, result_zero, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "beta ignored", NULL, result_without_before, NULL, GEMM_ADDS_FP32, "(144, 272) FP32 +=" },
        { "beta always 1", NULL, result_with_before, NULL, GEMM_STORES_BF16, "(144, 272) BF16" },
        { "last row not written", NULL, result_last_row_not_written, NULL, ANY_RESULT,
          "of integers, D (144, 272)" },
        { "a NaN", NULL, result_nan, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "a last bit", NULL, result_last_bit, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "transposed", NULL, result_transposed, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        // what only the other size, or only real numbers show
        { "odd block lost", odd_block_lost, NULL, NULL, ANY_RESULT, "of integers, D (272, 144)" },
        { "alpha in BF16", NULL, NULL, bf16_round, ANY_RESULT, "of real numbers, D (144, 272)" },
        { "scales powers of 2", scale_mantissa_dropped, NULL, NULL, ANY_RESULT,
          "of real numbers, D (144, 272)" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        faults.operands = cases[i].result == NULL ? hook_operands : NULL;
        faults.product = hook_product;
        planted.path = path;
        planted.matrix = cases[i].operand;
        planted.alpha = cases[i].alpha;
        planted_result = cases[i].result;
        expect_product(cases[i].name, path, cases[i].concerned, cases[i].says);
    }
    faults.product = hook_product;
    planted.path = path;
    planted_result = result_last_bit;
    planted.result = GEMM_ADDS_FP32;
    expect_product("FP32 alone", path, GEMM_ADDS_FP32, "of integers, D (144, 272) FP32");
}

// The same where FP4 has only some of the products: a fault of all of them leaves none.
static void test_product_faults_of_some(void) {
    faults.operands = hook_operands;
    faults.product = hook_product;
    planted.path = GEMM_FP4;
    planted.matrix = nibbles_swapped;
    expect_product("nibbles swapped, some products", GEMM_FP4, ANY_RESULT, "of integers, D (144, 272)");
    faults.product = hook_product;
    planted.path = GEMM_FP4;
    planted_result = result_zero;
    expect_product("zeros, some products", GEMM_FP4, ANY_RESULT, "of integers, D (144, 272)");
}

// ---------------------------------------------------------------------------------------------
// Faults of cuBLASLt and of the tensor cores: only the model has them at will

#if RUNS_ON_CPU
static void test_model_faults(void) {
    static const struct { const char* name; int fault, concerned; } cases[] = {
        { "nibbles of A swapped", CUBLASLT_MODEL_NIBBLES_SWAPPED, ANY_RESULT },
        { "nibbles of B swapped", CUBLASLT_MODEL_NIBBLES_SWAPPED_B, ANY_RESULT },
        { "scales shifted", CUBLASLT_MODEL_SCALES_SHIFTED, ANY_RESULT },
        { "scales row-major", CUBLASLT_MODEL_SCALES_ROW_MAJOR, ANY_RESULT },
        { "scales not read", CUBLASLT_MODEL_SCALES_NOT_READ, ANY_RESULT },
        { "sign dropped", CUBLASLT_MODEL_SIGN_DROPPED, ANY_RESULT },
        { "zeros", CUBLASLT_MODEL_ZEROS, ANY_RESULT },
        { "NaN", CUBLASLT_MODEL_NANS, ANY_RESULT },
        { "D not written", CUBLASLT_MODEL_D_NOT_WRITTEN, ANY_RESULT },
        { "tail not written", CUBLASLT_MODEL_TAIL_NOT_WRITTEN, ANY_RESULT },
        { "beta ignored", CUBLASLT_MODEL_BETA_IGNORED, GEMM_ADDS_FP32 },
        { "beta always 1", CUBLASLT_MODEL_BETA_ONE, GEMM_STORES_BF16 },
        { "alpha ignored", CUBLASLT_MODEL_ALPHA_IGNORED, ANY_RESULT },
        { "K cut short", CUBLASLT_MODEL_K_CUT, ANY_RESULT },
        { "result rounded", CUBLASLT_MODEL_RESULT_ROUNDED, GEMM_ADDS_FP32 },
        { "execution failed", CUBLASLT_MODEL_EXECUTION_FAILED, ANY_RESULT },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[80];
        snprintf(name, sizeof(name), "model: %s", cases[i].name);
        cublaslt_model_fault(cases[i].fault);
        expect_product(name, GEMM_FP4, cases[i].concerned,
                       "WARNING: this GPU's FP4 tensor cores, or cuBLASLt, fail the self-test");
    }
    expect("model: the last, -g fp4", GEMM_FP4, 1, SILENT, "are wrong", "run with -g auto");
    expect("model: the last, -g emulated", GEMM_EMULATED, 0, SILENT, "not tried",
           "chosen: emulated emulated");
    cublaslt_model_reset();
}

// Products in FP8, on a GPU of compute capability 9.0.
static void test_model_faults_fp8(void) {
    static const struct { const char* name; int fault, concerned, only_blocks; } cases[] = {
        { "E4M3 and E5M2 exchanged", CUBLASLT_MODEL_TYPES_SWAPPED, ANY_RESULT, 0 },
        { "scales shifted", CUBLASLT_MODEL_SCALES_SHIFTED, ANY_RESULT, 1 },
        { "scales row-major", CUBLASLT_MODEL_SCALES_ROW_MAJOR, ANY_RESULT, 1 },
        { "scales not read", CUBLASLT_MODEL_SCALES_NOT_READ, ANY_RESULT, 1 },
        { "sign dropped", CUBLASLT_MODEL_SIGN_DROPPED, ANY_RESULT, 0 },
        { "zeros", CUBLASLT_MODEL_ZEROS, ANY_RESULT, 0 },
        { "NaN", CUBLASLT_MODEL_NANS, ANY_RESULT, 0 },
        { "D not written", CUBLASLT_MODEL_D_NOT_WRITTEN, ANY_RESULT, 0 },
        { "tail not written", CUBLASLT_MODEL_TAIL_NOT_WRITTEN, ANY_RESULT, 0 },
        { "beta ignored", CUBLASLT_MODEL_BETA_IGNORED, GEMM_ADDS_FP32, 0 },
        { "beta always 1", CUBLASLT_MODEL_BETA_ONE, GEMM_STORES_BF16, 0 },
        { "K cut short", CUBLASLT_MODEL_K_CUT, ANY_RESULT, 0 },
        { "result rounded", CUBLASLT_MODEL_RESULT_ROUNDED, GEMM_ADDS_FP32, 0 },
        { "execution failed", CUBLASLT_MODEL_EXECUTION_FAILED, ANY_RESULT, 0 },
    };
    for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        char name[80];
        if (i % 2 == 0 && cases[i / 2].only_blocks) { continue; }
        set_recipe(i % 2 == 0 ? "fp8" : "fp8block");
        snprintf(name, sizeof(name), "model, %s: %s", format_name(format), cases[i / 2].name);
        cublaslt_model_fault(cases[i / 2].fault);
        expect_product(name, GEMM_FP8, cases[i / 2].concerned,
                       "WARNING: this GPU's FP8 tensor cores, or cuBLASLt, fail the self-test");
    }
    set_recipe("fp8");
    cublaslt_model_fault(CUBLASLT_MODEL_ALPHA_IGNORED);     // alpha of fp8block is 1
    expect_product("model, fp8: alpha ignored", GEMM_FP8, ANY_RESULT, "FP8 is NOT used for wgrad");
    expect("model: -g fp8", GEMM_FP8, 1, SILENT, "are wrong", "run with -g auto");
    cublaslt_model_fault(CUBLASLT_MODEL_NO_FAULT);
    cublaslt_model_fp32_output(0);
    expect("model, fp8: no FP32 results", GEMM_AUTO, 0, SILENT, "wgrad: not available",
           "chosen: fp8 emulated");
    cublaslt_model_reset();
}

// Which GPU has which path in which recipe.
static void test_model_devices(void) {
    static const struct { int major, minor; const char *recipe, *chosen; } cases[] = {
        { 9, 0, "fp8", "chosen: fp8 fp8" },   { 9, 0, "fp8block", "chosen: fp8 fp8" },
        { 8, 9, "fp8", "chosen: fp8 fp8" },   { 8, 9, "fp8block", "chosen: emulated emulated" },
        { 10, 0, "fp8", "chosen: fp8 fp8" },  { 10, 0, "fp8block", "chosen: emulated emulated" },
        { 8, 0, "fp8", "chosen: emulated emulated" }, { 10, 0, "nvfp4", "chosen: fp4 fp4" },
        { 10, 0, "quartet2", "chosen: fp4 fp4" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "model %d.%d: %s", cases[i].major, cases[i].minor,
                 cases[i].recipe);
        cublaslt_model_capability(cases[i].major, cases[i].minor);
        set_recipe(cases[i].recipe);
        expect(name, GEMM_AUTO, 0, SILENT, "equal the C functions", cases[i].chosen);
    }
    set_recipe("fp8block");
    expect("model 10.0: fp8block, -g fp8", GEMM_FP8, 1, SILENT,
           "FP8 products of fprop, dgrad are not available", "run with -g auto");
    set_recipe("nvfp4,tail=0");
    cublaslt_model_reset();
}

// A path that is not there is no reason to warn, unless it was asked for. Fails with: a size that is
// refused taken for a wrong product; a path of which every size is refused taken for a right one.
static void test_model_without(void) {
    static const int without[] = { CUBLASLT_MODEL_NOT_SUPPORTED, CUBLASLT_MODEL_NO_ALGORITHM };
    for (int i = 0; i < 2; i++) {
        cublaslt_model_fault(without[i]);
        expect(i == 0 ? "model: not supported" : "model: no algorithm", GEMM_AUTO, 0, SILENT,
               "not available: cuBLASLt answers CUBLAS_STATUS_NOT_SUPPORTED to D (8192, 2304)",
               "chosen: emulated emulated");
    }
    cublaslt_model_reset();
    cublaslt_model_fp32_output(0);
    expect("model: no FP32 results", GEMM_AUTO, 0, SILENT,
           "wgrad: not available: cuBLASLt answers CUBLAS_STATUS_NOT_SUPPORTED",
           "chosen: fp4 emulated");
    expect("model: no FP32, -g fp4", GEMM_FP4, 1, SILENT, "FP4 products of wgrad are not available",
           "run with -g auto");
    int fp4 = test_no_fault();
    report(fp4 == FP4_STORES, "FP4 for some products", "%d", fp4);
    test_one_result(fp4);
    test_product_faults_of_some();
    cublaslt_model_reset();
    cublaslt_model_multiple(128);
    expect("model: odd sizes refused", GEMM_FP4, 0, SILENT, "within the bound", "chosen: fp4 fp4");
    cublaslt_model_fault(CUBLASLT_MODEL_ALPHA_IGNORED);
    expect_product("model: odd sizes refused, alpha ignored", GEMM_FP4, ANY_RESULT,
                   "WARNING: this GPU's FP4 tensor cores, or cuBLASLt, fail the self-test");
    cublaslt_model_reset();
    cublaslt_model_multiple(256);
    expect("model: all test sizes refused", GEMM_AUTO, 0, SILENT, "not available: cuBLASLt answers "
           "CUBLAS_STATUS_NOT_SUPPORTED to D (128, 256)", "chosen: emulated emulated");
    cublaslt_model_reset();
    cublaslt_model_capability(9, 0);
    expect("model: Hopper", GEMM_AUTO, 0, SILENT, "not available", "chosen: emulated emulated");
    expect("model: Hopper, -g fp4", GEMM_FP4, 1, SILENT, "not available", "run with -g auto");
    cublaslt_model_reset();
}
#else
static void test_model_faults(void) { report_skip("faults in FP4", "no model on a GPU"); }
static void test_model_without(void) { report_skip("GPUs without FP4", "no model on a GPU"); }
static void test_model_faults_fp8(void) { report_skip("faults in FP8", "no model on a GPU"); }
static void test_model_devices(void) { report_skip("other GPUs", "no model on a GPU"); }
#endif

// Recipes whose quantizers are not those of the base recipe: all are right, and faults are seen.
static void test_other_recipes(void) {
    static const char* const recipes[] = { "fp8", "fp8block", "fp8block,tile=0", "mxfp8", "mxfp4",
                                           "nvfp4+46", "quartet2", "tetrajet", "fp4all" };
    for (const char* text : recipes) {
        char name[64];
        set_recipe(text);
        snprintf(name, sizeof(name), "no fault, %s", text);
        expect(name, GEMM_EMULATED, 0, SILENT, "equal the C functions",
               "chosen: emulated emulated");
    }
    static const struct {
        const char *name, *recipe;
        void (*spoil)(Nvfp4Matrix* m, const SelfTestMatrix* made);
        const char* says;
    } cases[] = {
        { "signs", "fp8", byte_signs_dropped, "x as fp8 of \"random\" (64, 128): element" },
        { "last bits", "fp8block", byte_last_bits_dropped, "x as fp8block of \"random\"" },
        { "neighbours", "mxfp8", byte_neighbours_swapped, "x as mxfp8 of \"random\"" },
        { "a scale", "fp8block", block_scale_up, "scale byte of row 63, block 0" },
        { "a scale", "mxfp8", block_scale_up, "scale byte of row 63, block 0" },
        { "a scale", "mxfp4", block_scale_up, "scale byte of row 63, block 0" },
        { "a scale", "quartet2", block_scale_up_others, "x as nvfp4 of \"random\"" },
        { "nibbles", "mxfp4", nibbles_swapped, "x as mxfp4 of \"random\"" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[64];
        set_recipe(cases[i].recipe);
        snprintf(name, sizeof(name), "%s, %s", cases[i].name, cases[i].recipe);
        faults.matrix = hook_matrix;
        planted.matrix = cases[i].spoil;
        expect(name, GEMM_EMULATED, 1, SILENT, cases[i].says, NO_QUANTIZER);
    }
    set_recipe("fp8");
    faults.alpha = hook_alpha;
    expect("alpha, fp8", GEMM_EMULATED, 1, SILENT, "alpha of", "this GPU fails the self-test");
    expect("fp8, -g fp4", GEMM_FP4, 1, SILENT, "products are of fp8", "run with -g auto");
    set_recipe("mxfp8");
    expect("mxfp8, -g fp8", GEMM_FP8, 1, SILENT, "products are of mxfp8", "run with -g auto");
    expect("mxfp8, -g auto", GEMM_AUTO, 0, SILENT, "there is no other for mxfp8",
           "chosen: emulated emulated");
    set_recipe("nvfp4,tail=0");
    expect("nvfp4, -g fp8", GEMM_FP8, 1, SILENT, "products are of nvfp4", "run with -g auto");
}

// Products in FP8 whose operands or results are spoilt.
static void test_product_faults_fp8(const char* recipe, GemmPath path) {
    static const struct {
        const char* name;
        void (*operand)(Nvfp4Matrix* m, const SelfTestMatrix* made);
        void (*result)(float* D, const float* before, GemmProduct p);
        float (*alpha)(float alpha);
        int concerned;              // which results
        const char* says;
    } cases[] = {
        { "signs dropped", byte_signs_dropped, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "last bits dropped", byte_last_bits_dropped, NULL, NULL, ANY_RESULT, "of integers" },
        { "last of K lost", byte_last_lost, NULL, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "neighbours swapped", byte_neighbours_swapped, NULL, NULL, ANY_RESULT, "of integers" },
        { "a scale doubled", block_scale_up, NULL, NULL, ANY_RESULT, "element (row 143, " },
        { "alpha twice", NULL, NULL, alpha_twice, ANY_RESULT, "of integers, D (144, 272)" },
        { "alpha in BF16", NULL, NULL, bf16_round, ANY_RESULT, "of scaled integers" },
        { "zeros", NULL, result_zero, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "beta ignored", NULL, result_without_before, NULL, GEMM_ADDS_FP32, "(144, 272) FP32 +=" },
        { "beta always 1", NULL, result_with_before, NULL, GEMM_STORES_BF16, "(144, 272) BF16" },
        { "last row not written", NULL, result_last_row_not_written, NULL, ANY_RESULT,
          "of integers, D (144, 272)" },
        { "a NaN", NULL, result_nan, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "a last bit", NULL, result_last_bit, NULL, ANY_RESULT, "of integers, D (144, 272)" },
        { "transposed", NULL, result_transposed, NULL, ANY_RESULT, "of integers, D (144, 272)" },
    };
    set_recipe(recipe);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int of_blocks = cases[i].operand == block_scale_up, of_tensors = cases[i].alpha != NULL;
        if (format == FORMAT_FP8 ? of_blocks : of_tensors) { continue; }
        char name[64];
        faults.operands = cases[i].result == NULL ? hook_operands : NULL;
        faults.product = hook_product;
        planted.path = path;
        planted.matrix = cases[i].operand;
        planted.alpha = cases[i].alpha;
        planted_result = cases[i].result;
        snprintf(name, sizeof(name), "%s: %s", recipe, cases[i].name);
        expect_product(name, path, cases[i].concerned, cases[i].says);
    }
}

// Does this GPU, or the model as one, multiply FP8?
static void test_fp8(void) {
    static char output[OUTPUT_BYTES];
    set_recipe("fp8");
    run_self_test(output, GEMM_AUTO, 3);
    printf("%s", output);
    int fp8 = strstr(output, "chosen: fp8 fp8") != NULL;
    set_recipe("fp8block");
    run_self_test(output, GEMM_AUTO, 3);
    printf("%s", output);
    int blocks = strstr(output, "chosen: fp8 fp8") != NULL;
    test_product_faults_fp8("fp8", GEMM_EMULATED);
    if (fp8) { test_product_faults_fp8("fp8", GEMM_FP8); }
    else { report_skip("wrong products in FP8", "this GPU has none"); }
    if (blocks) { test_product_faults_fp8("fp8block", GEMM_FP8); }
    else { report_skip("wrong products in FP8BLOCK", "this GPU has none"); }
    set_recipe("nvfp4,tail=0");
}

// Looks for a GPU in a process of its own: a process that has used one cannot fork.
static int gpu_missing(void) {
    pid_t child = fork();
    if (child == 0) {
        int count = 0;
        _exit(cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    return status != 0;
}

int main(void) {
    if (gpu_missing()) {
        report_skip("self_test", "no CUDA device");
        return 0;
    }
    set_recipe("nvfp4,tail=0");
    int fp4 = test_no_fault();
    test_one_result(fp4);
    test_quantizer_faults();
    test_other_device_faults();
    test_product_faults(GEMM_EMULATED);
    if (fp4 == FP4_ALL) { test_product_faults(GEMM_FP4); }
    else if (fp4 != 0) { test_product_faults_of_some(); }
    else { report_skip("wrong FP4 products", "this GPU has no FP4 tensor cores"); }
    test_model_faults();
    test_model_without();
    test_other_recipes();
    test_model_devices();
#if RUNS_ON_CPU
    cublaslt_model_capability(9, 0);
#endif
    test_fp8();
    test_model_faults_fp8();
    return report_status();
}
