/*
The FP8 path, from BF16 tensors to results: the three products of a linear layer under the recipes
fp8 and fp8block, quantized by quantize_any.cuh and multiplied by gemm_fp8.cuh, for layers of GPT-2
d12 to d48 and for odd small ones. The reference quantizes with the C functions, expands, and
multiplies in double.

Two ways to run it. On the CPU, with the kernels as fibres (cuda_on_cpu) and a model of cuBLASLt's
contract in its place (cublaslt_model.c), as GPUs with and without such tensor cores: what a GPU does
not have must be answered NOT_SUPPORTED, and emulation must give the same. On a GPU, as that.

exact      on the CPU: one rounding, of alpha * sum (+ D). The sums are double in both.
bounded    on a GPU: the bound of gemm_fp8.cuh, or K * 2^-24 * sum |a*b| emulated, and the rounding
           of the stored result.

Faults that made it fail, one at a time, on the CPU: scales of squares read from the wrong row; scales
of 1x128 blocks laid out row by row; lines of squares' scales without their padding; E5M2 told as
E4M3; both operands given the first one's scales, or each the other's; fast accumulation; a product
that should be added stored instead.
*/
#include "../../llmc/gemm.cuh"
#include "../../llmc/hadamard.h"
#include "../../llmc/recipe.h"
#include "cublaslt_model.h"
#include "device_check.cuh"

static Gemm gemm;

typedef struct { const char* name; int N, C, OC; } LinearShape;

// N tokens. The odd ones: less than a block of 128 in each direction; blocks and squares that are
// not full; one block more or less, in the direction of K and across it; the same D with another K.
static const LinearShape shapes[] = {
    { "one group", 16, 16, 16 },     { "part of a block", 48, 80, 112 },
    { "one block", 128, 128, 128 },  { "a block and more", 144, 272, 400 },
    { "many blocks", 400, 144, 272 }, { "other K", 144, 528, 400 }, { "full", 256, 384, 640 },
    { "d12 qkv", 32, 768, 2304 },    { "d12 fcproj", 48, 3072, 768 },
    { "d24 fc", 16, 1024, 4096 },    { "d36 proj", 32, 1280, 1280 },
    { "d48 proj", 32, 1600, 1600 },
};
#define NUM_SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))
#define FEW_SHAPES 4

// In the last one all operands are alike, so wgrad has said it all: the odd shapes are enough.
static const struct { const char* text; int num_shapes; } recipes[] = {
    { "fp8", NUM_SHAPES }, { "fp8block", NUM_SHAPES }, { "fp8block,tile=0", 7 },
};

// ---------------------------------------------------------------------------------------------
// A matrix twice: quantized on the device, and by the reference, which expands it

typedef struct {
    Nvfp4Matrix device;
    float* values;              // (rows, cols) code value * block scale
    float amax;
} Operand;

static float* new_floats(size_t n) { return (float*)xmalloc(n * sizeof(float), "a test's tensor"); }

static Nvfp4Matrix matrix_alloc(Format format, int rows, int cols) {
    size_t r = (size_t)rows, c = (size_t)cols, scales = quantized_scales_size(format, r, c);
    Nvfp4Matrix m;
    m.rows = rows;
    m.cols = cols;
    m.codes = device_tensor<uint8_t>(quantized_codes_size(format, r, c));
    m.block_scales = device_tensor<uint8_t>(scales > 0 ? scales : 1);
    m.amax = device_tensor<float>(1);
    cudaCheck(cudaMemset(m.block_scales, 0, scales > 0 ? scales : 1));
    return m;
}

// x (rows, cols) on the host, x_device the same, or its transpose.
static Operand operand_make(const float* x, const __nv_bfloat16* x_device, int transposed, int rows,
                            int cols, const Quantizer* q) {
    Operand o;
    Rotation none;
    Nvfp4Rounding nearest;
    memset(&none, 0, sizeof(none));
    memset(&nearest, 0, sizeof(nearest));
    o.device = matrix_alloc(q->format, rows, cols);
    AnyOutput out = any_output(&o.device, *q, none, nearest);
    if (transposed) {
        quantize_any_amax(NULL, NULL, o.device.amax, &none, x_device, cols, rows, 0);
        quantize_any(NULL, &out, x_device, cols, rows, 0);
    } else {
        quantize_any_amax(o.device.amax, &none, NULL, NULL, x_device, rows, cols, 0);
        quantize_any(&out, NULL, x_device, rows, cols, 0);
    }

    size_t n = (size_t)rows * (size_t)cols;
    Nvfp4Matrix m = o.device;
    m.codes = (uint8_t*)xmalloc(quantized_codes_size(q->format, (size_t)rows, (size_t)cols), "codes");
    m.block_scales = (uint8_t*)xmalloc(
        quantized_scales_size(q->format, (size_t)rows, (size_t)cols) + 1, "scales");
    m.amax = &o.amax;
    o.amax = bits_float(nvfp4_amax_bits(x, n));
    o.values = new_floats(n);
    quantized_make(&m, x, *q, nearest);
    quantized_expand(o.values, &m, *q);
    free(m.codes);
    free(m.block_scales);
    return o;
}

// ---------------------------------------------------------------------------------------------
// Products

// x rounded once, to 8 significant bits, ties to even. (By way of float it would be twice.)
static float bf16_from_double(double x) {
    int exponent;
    frexp(x, &exponent);
    return (float)ldexp(rint(ldexp(x, 8 - exponent)), exponent - 8);
}

static void dot(double* sum, double* magnitude, const float* a, const float* b, int K) {
    double total = 0.0, total_magnitude = 0.0;
    #pragma omp simd reduction(+ : total, total_magnitude)
    for (int k = 0; k < K; k++) {
        double product = (double)a[k] * (double)b[k];
        total += product;
        total_magnitude += fabs(product);
    }
    *sum = total;
    *magnitude = total_magnitude;
}

// Multiplies on the device, adding to start (M,N) if there is one, and compares.
static void product_check(const char* name, const Operand* A, const Quantizer* qa, const Operand* B,
                          const Quantizer* qb, const float* start) {
    int M = A->device.rows, N = B->device.rows, K = A->device.cols;
    size_t n = (size_t)M * (size_t)N;
    GemmResult result = start != NULL ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
    float alpha = quantizer_alpha(A->amax, B->amax, quantizer_alpha_factor(qa, qb));
    float* alpha_device = to_device<float>(&alpha, 1);
    float* got = new_floats(n);
    if (start != NULL) {
        float* D = to_device<float>(start, n);
        gemm_quantized(&gemm, D, result, &A->device, qa, &B->device, qb, alpha_device, 0);
        from_device(got, D, n);
    } else {
        __nv_bfloat16* D = device_tensor<__nv_bfloat16>(n);     // NaN, which must not shine through
        gemm_quantized(&gemm, D, result, &A->device, qa, &B->device, qb, alpha_device, 0);
        from_device(got, D, n);
    }
    float* want = new_floats(n);
    double* want_double = (double*)xmalloc(n * sizeof(double), "a product");
    double* bound = (double*)xmalloc(n * sizeof(double), "a bound");
    double shortened = gemm.paths.of[result] == GEMM_FP8 ? GEMM_FP8_SUM_ERROR : 0.0;
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        size_t row = i / (size_t)N, col = i % (size_t)N;
        double sum, magnitude, before = start != NULL ? start[i] : 0.0;
        dot(&sum, &magnitude, A->values + row * (size_t)K, B->values + col * (size_t)K, K);
        want_double[i] = alpha * sum + before;
        want[i] = start != NULL ? (float)want_double[i] : bf16_from_double(want_double[i]);
        bound[i] = alpha * magnitude * ((K + 2) * 0x1p-24 + shortened) + fabs(before) * 0x1p-24;
        bound[i] += (fabs(want_double[i]) + bound[i]) * (start != NULL ? 0x1p-24 : 0x1p-8);
    }
    if (RUNS_ON_CPU) { check_exact(name, got, want, shape2("mn", M, N)); }
    else { check_bounded(name, got, want_double, bound, shape2("mn", M, N)); }
    free(got);
    free(want);
    free(want_double);
    free(bound);
}

// ---------------------------------------------------------------------------------------------
// A linear layer

// x (n), BF16 values. Lognormal magnitudes, others from one stretch of 48 to the next: block scales
// of all sizes.
static float* new_tensor(size_t n, uint32_t stream) {
    float* x = new_floats(n);
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        float normal = random_normal(20260302, stream, i);
        x[i] = bf16_round(normal * expf(random_normal(20260303, stream, i / 48)));
    }
    return x;
}

static float* transposed(const float* x, int rows, int cols) {
    float* xT = new_floats((size_t)rows * (size_t)cols);
    hadamard_transpose(xT, x, rows, cols, 0);
    return xT;
}

static void test_layer(LinearShape s, const char* text) {
    Recipe recipe = recipe_parse(text, 1);
    const Quantizer* q = recipe.operands;
    int N = s.N, C = s.C, OC = s.OC;
    float *x = new_tensor((size_t)N * C, 1), *xT = transposed(x, N, C);
    float *w = new_tensor((size_t)OC * C, 2), *wT = transposed(w, OC, C);
    float *dy = new_tensor((size_t)N * OC, 3), *dyT = transposed(dy, N, OC);
    float* dw_start = new_tensor((size_t)OC * C, 5);
    __nv_bfloat16* x_device = to_device<__nv_bfloat16>(x, (size_t)N * C);
    __nv_bfloat16* w_device = to_device<__nv_bfloat16>(w, (size_t)OC * C);
    __nv_bfloat16* dy_device = to_device<__nv_bfloat16>(dy, (size_t)N * OC);
    char name[96];

    Operand X = operand_make(x, x_device, 0, N, C, &q[OPERAND_X]);
    Operand W = operand_make(w, w_device, 0, OC, C, &q[OPERAND_W]);
    snprintf(name, sizeof(name), "%s: %s fprop %d %d %d", text, s.name, N, C, OC);
    product_check(name, &X, &q[OPERAND_X], &W, &q[OPERAND_W], NULL);

    Operand dY = operand_make(dy, dy_device, 0, N, OC, &q[OPERAND_DY]);
    Operand WT = operand_make(wT, w_device, 1, C, OC, &q[OPERAND_WT]);
    snprintf(name, sizeof(name), "%s: %s dgrad", text, s.name);
    product_check(name, &dY, &q[OPERAND_DY], &WT, &q[OPERAND_WT], NULL);

    Operand dYT = operand_make(dyT, dy_device, 1, OC, N, &q[OPERAND_DYT]);
    Operand XT = operand_make(xT, x_device, 1, C, N, &q[OPERAND_XT]);
    snprintf(name, sizeof(name), "%s: %s wgrad", text, s.name);
    product_check(name, &dYT, &q[OPERAND_DYT], &XT, &q[OPERAND_XT], dw_start);

    Operand* operands[] = { &X, &W, &dY, &WT, &dYT, &XT };
    float* tensors[] = { x, xT, w, wT, dy, dyT, dw_start };
    for (Operand* o : operands) { free(o->values); }
    for (float* tensor : tensors) { free(tensor); }
    device_free_all();
}

// ---------------------------------------------------------------------------------------------
// What a GPU has, and the answers of those that lack it

static GemmProduct product_of(const char* text, int g) {
    Recipe recipe = recipe_parse(text, 1);
    GemmProduct p;
    p.M = 1024;
    p.N = p.K = 768;
    p.result = g == WGRAD ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
    p.A = recipe.operands[gemm_operand(g, 0)];
    p.B = recipe.operands[gemm_operand(g, 1)];
    return p;
}

// The request is complete and the answer is an orderly one: not a crash, and no later error. The model
// refuses with NOT_SUPPORTED; a library may not know a scale mode, and say so otherwise.
static void answer_check(const char* name, const char* device, GemmProduct p, int has) {
    cublasStatus_t status = gemm_native_plan(&gemm, p);
    cudaError_t later = cudaDeviceSynchronize();
    int expected = has ? status == CUBLAS_STATUS_SUCCESS
                 : RUNS_ON_CPU ? status == CUBLAS_STATUS_NOT_SUPPORTED : status != CUBLAS_STATUS_SUCCESS;
    report(expected && later == cudaSuccess, name, "%s: cuBLASLt answers %s, then %s",
           device, cublasLtGetStatusString(status), cudaGetErrorString(later));
}

// has_tensors, has_blocks: does this device multiply FP8 with one scale, and with block scales? Tries
// up to `most_shapes` layers in each recipe, emulated where it does not.
static void test_device(const char* device, int has_tensors, int has_blocks, int most_shapes) {
    GemmPaths native = gemm_paths(GEMM_FP8), emulated = gemm_paths(GEMM_EMULATED);
    size_t most = 0;
    for (LinearShape s : shapes) {
        size_t C = (size_t)s.C, OC = (size_t)s.OC, N = (size_t)s.N;
        size_t all = (N + C + OC) * (N > C ? N > OC ? N : OC : C > OC ? C : OC);
        most = all > most ? all : most;
    }
    gemm_create(&gemm, emulated, most);
    for (auto recipe : recipes) {
        const char* text = recipe.text;
        int num_shapes = recipe.num_shapes < most_shapes ? recipe.num_shapes : most_shapes;
        int has = strcmp(text, "fp8") == 0 ? has_tensors : has_blocks;
        static const char* names[NUM_GEMMS] = { "fprop", "dgrad", "wgrad" };
        for (int g = 0; g < NUM_GEMMS && (has || RUNS_ON_CPU); g++) {
            char name[64];
            snprintf(name, sizeof(name), "%s %s", text, names[g]);
            answer_check(name, device, product_of(text, g), has);
        }
        gemm.paths = has ? native : emulated;
        for (int i = 0; i < num_shapes; i++) { test_layer(shapes[i], text); }
    }
    // what neither the model nor Hopper has: E5M2 by E5M2, and squares by squares
    GemmProduct e5m2 = product_of("fp8", DGRAD), squares = product_of("fp8block", FPROP);
    e5m2.B.e5m2 = 1;
    squares.A.tile = 1;
    if (has_blocks || RUNS_ON_CPU) {
        answer_check("E5M2 by E5M2", device, e5m2, 0);
        answer_check("squares by squares", device, squares, 0);
    }
    gemm_free(&gemm);
}

#if RUNS_ON_CPU
static void test_devices(void) {
    static const struct { int major, minor, tensors, blocks; } devices[] = {
        { 9, 0, 1, 1 }, { 8, 0, 0, 0 }, { 8, 9, 1, 0 }, { 10, 0, 1, 0 }, { 12, 0, 1, 0 },
    };
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        char name[32];
        snprintf(name, sizeof(name), "%d.%d", devices[i].major, devices[i].minor);
        cublaslt_model_reset();
        cublaslt_model_capability(devices[i].major, devices[i].minor);
        if (i == 0) {
            test_device(name, 1, 1, NUM_SHAPES);
            long calls = 0;
            for (auto recipe : recipes) { calls += NUM_GEMMS * recipe.num_shapes; }
            report(cublaslt_model_fp8_calls() == calls && cublaslt_model_plain_calls() == 0
                   && cublaslt_model_fast_calls() == 0, "calls", "%ld in FP8, %ld of them with fast "
                   "accumulation, %ld others", cublaslt_model_fp8_calls(),
                   cublaslt_model_fast_calls(), cublaslt_model_plain_calls());
            report(cublaslt_model_objects() == 0, "objects", "%ld not destroyed",
                   cublaslt_model_objects());
        } else {
            test_device(name, devices[i].tensors, devices[i].blocks, FEW_SHAPES);
        }
    }
}
#else
// Does this GPU have the products of every layer in this recipe?
static int device_has(const char* recipe, int num_shapes) {
    for (int i = 0; i < num_shapes; i++) {
        for (int g = 0; g < NUM_GEMMS; g++) {
            GemmProduct p = product_of(recipe, g);
            int N = shapes[i].N, C = shapes[i].C, OC = shapes[i].OC;
            p.M = g == WGRAD ? OC : N;
            p.N = g == FPROP ? OC : C;
            p.K = g == FPROP ? C : g == DGRAD ? OC : N;
            if (gemm_native_plan(&gemm, p) != CUBLAS_STATUS_SUCCESS) { return 0; }
        }
    }
    return 1;
}

// Hopper has all of it; of another GPU that is asked first, since nobody here has tried.
static void test_devices(void) {
    cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, 0));
    int hopper = device.major == 9 && device.minor == 0, has[2] = { hopper, hopper };
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), 1);
    for (int i = 0; i < 2 && !hopper; i++) {
        has[i] = device_has(recipes[i].text, recipes[i].num_shapes);
        if (!has[i]) { report_skip(recipes[i].text, "this GPU lacks FP8 products of some layers"); }
    }
    gemm_free(&gemm);
    test_device(device.name, has[0], has[1], NUM_SHAPES);
}
#endif

int main(void) {
    if (device_missing("gemm_fp8")) { return 0; }
    test_devices();
    return report_status();
}
