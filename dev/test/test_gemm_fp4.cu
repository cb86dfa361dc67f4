/*
The FP4 path, from BF16 tensors to results: the three products of a linear layer through linear.cuh
and gemm_fp4.cuh, for every linear layer of GPT-2 d12, d24, d36 and d48 and for odd small ones. The
reference quantizes with the C functions, expands, and multiplies in double.

Two ways to run it. On the CPU, with the kernels as fibres (cuda_on_cpu) and a model of cuBLASLt's
contract in its place (cublaslt_model.c): it is handed the very bytes, layouts, leading dimensions,
scale pointers and alpha that the GPU would be handed, and knows nothing of this project's code. On a
GPU that has FP4 tensor cores, with those, as far as cuBLASLt has the products in FP4 (there are GPUs
without wgrad's); on any other the request is made, answered NOT_SUPPORTED, and that answer is the
test.

exact      on the CPU. A product of two operands is a multiple of 2^-20 and sums of them stay below
           2^33 here (checked), so double holds them exactly, in any order. What is left is one
           rounding, of alpha * sum (+ D).
bounded    on a GPU: K * 2^-24 * sum |a*b|, and the rounding of the stored result.

Faults that made it fail, one at a time: the scale pointers of A and B exchanged; K not padded, or
only in the layouts; both operands padded into the same place; beta of the other result; D's layout
transposed; operands exchanged; transA N; no scale mode; a plan found by a comparison without K, or
without the result; scale tiles in column-major order; rows of a scale tile in another order; scales
not zeroed before; alpha from A's amax twice; alpha or beta read by the host; the bias added twice;
wgrad's operands exchanged; missing products taken for present. Not found: nibbles swapped in both
operands, which cancels in a product (test_quantize finds it).
*/
#include "../../llmc/linear.cuh"
#include "cublaslt_model.h"
#include "device_check.cuh"

static Gemm gemm;

typedef struct { const char* name; int N, C, OC; } LinearShape;

// N tokens. The odd ones: one block; K of an odd number of blocks in each of the three products, and
// with it padding; the same D with another K; partial tiles of scales in both directions.
static const LinearShape shapes[] = {
    { "one block", 16, 16, 16 },      { "odd blocks", 48, 80, 112 },  { "odd tokens", 144, 96, 64 },
    { "other K", 48, 144, 112 },
    { "odd channels", 64, 48, 160 },  { "odd outputs", 160, 64, 48 }, { "tiles", 272, 144, 400 },
    { "d12 qkv", 32, 768, 2304 },     { "d12 proj", 16, 768, 768 },
    { "d12 fc", 16, 768, 3072 },      { "d12 fcproj", 32, 3072, 768 },
    { "d24 qkv", 32, 1024, 3072 },    { "d24 proj", 16, 1024, 1024 },
    { "d24 fc", 16, 1024, 4096 },     { "d24 fcproj", 32, 4096, 1024 },
    { "d36 qkv", 32, 1280, 3840 },    { "d36 proj", 16, 1280, 1280 },
    { "d36 fc", 16, 1280, 5120 },     { "d36 fcproj", 32, 5120, 1280 },
    { "d48 qkv", 32, 1600, 4800 },    { "d48 proj", 16, 1600, 1600 },
    { "d48 fc", 16, 1600, 6400 },     { "d48 fcproj", 48, 6400, 1600 },
};
#define NUM_SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))

// ---------------------------------------------------------------------------------------------
// The reference

// One product: its operands expanded, and what they are multiplied by.
typedef struct {
    int M, N, K;
    float* A;                   // (M,K) code value * block scale
    float* B;                   // (N,K)
    float alpha;
} Reference;

static float* new_floats(size_t n) { return (float*)xmalloc(n * sizeof(float), "a test's tensor"); }

// values (rows, cols) = x quantized as the reference does it and expanded. Returns the amax.
static float quantize_expanded(float* values, const float* x, int rows, int cols, int block_rows,
                               Nvfp4Rounding rounding) {
    size_t r = (size_t)rows, c = (size_t)cols;
    float amax;
    Nvfp4Matrix q;
    q.rows = rows;
    q.cols = cols;
    q.codes = (uint8_t*)xmalloc(nvfp4_codes_size(r, c), "codes");
    q.block_scales = (uint8_t*)xmalloc(nvfp4_scales_size(r, c), "scales");
    q.amax = &amax;
    check(nvfp4_quantize(&q, x, block_rows, rounding) == 0, "not finite");
    nvfp4_expand(values, &q);
    free(q.codes);
    free(q.block_scales);
    return amax;
}

// Quantizes a (M,K) and b (N,K), which are 1x16, or 16x16 where they are a weight.
static Reference reference_make(const float* a, const float* b, int M, int N, int K,
                                Nvfp4Rounding rounding_a, int weight_b) {
    Nvfp4Rounding nearest;
    memset(&nearest, 0, sizeof(nearest));
    Reference r;
    r.M = M;
    r.N = N;
    r.K = K;
    r.A = new_floats((size_t)M * K);
    r.B = new_floats((size_t)N * K);
    float amax_a = quantize_expanded(r.A, a, M, K, 1, rounding_a);
    float amax_b = quantize_expanded(r.B, b, N, K, weight_b ? 16 : 1, nearest);
    r.alpha = nvfp4_alpha(amax_a, amax_b);
    return r;
}

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

// Compares got (M,N) with the product, added to start (M,N) if there is one, and followed by the
// addition of bias (N) if there is one. Frees the reference.
static void reference_check(const char* name, const float* got, Reference r, const float* start,
                            const float* bias) {
    size_t n = (size_t)r.M * r.N;
    float* want = new_floats(n);
    double* want_double = (double*)xmalloc(n * sizeof(double), "a product");
    double* bound = (double*)xmalloc(n * sizeof(double), "a bound");
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        size_t row = i / (size_t)r.N, col = i % (size_t)r.N;
        double sum, magnitude;
        dot(&sum, &magnitude, r.A + row * (size_t)r.K, r.B + col * (size_t)r.K, r.K);
        check(magnitude < 8589934592.0, "a sum of %g does not fit the test's 53 bits", magnitude);
        double before = start != NULL ? start[i] : 0.0, after = bias != NULL ? bias[col] : 0.0;
        want_double[i] = r.alpha * sum + before;
        want[i] = start != NULL ? (float)want_double[i] : bf16_from_double(want_double[i]);
        if (bias != NULL) { want[i] = bf16_round(want[i] + (float)after); }
        double rounding = start != NULL ? 1.0 / (1 << 24) : 1.0 / (1 << 8);
        bound[i] = (r.alpha * magnitude * (r.K + 2) + fabs(before)) / (1 << 24);
        bound[i] += (fabs(want_double[i]) + bound[i]) * rounding;
        want_double[i] += after;
        if (bias != NULL) { bound[i] += (fabs(want_double[i]) + bound[i]) * rounding; }
    }
    if (RUNS_ON_CPU) { check_exact(name, got, want, shape2("mn", r.M, r.N)); }
    else { check_bounded(name, got, want_double, bound, shape2("mn", r.M, r.N)); }
    free(want);
    free(want_double);
    free(bound);
    free(r.A);
    free(r.B);
}

// ---------------------------------------------------------------------------------------------
// A linear layer on the device

static void matrix_free(Nvfp4Matrix q) {
    cudaCheck(cudaFree(q.codes));
    cudaCheck(cudaFree(q.block_scales));
    cudaCheck(cudaFree(q.amax));
}

// The first linear layer of a model that quantizes everything.
static void layer_make(Linear* l, QuantizedLinear* q, const Recipe* recipe, LinearShape s) {
    memset(l, 0, sizeof(*l));
    memset(q, 0, sizeof(*q));
    l->recipe = recipe;
    l->seed = 20260301;
    l->micro_step = 5;
    l->training = 1;
    l->gemm = &gemm;
    l->conversion = e2m1_arithmetic();
    l->nonfinite = device_tensor<int>(1);
    cudaCheck(cudaMemset(l->nonfinite, 0, sizeof(int)));
    l->alpha = device_tensor<float>(1);
    l->bias_scratch = device_tensor<float>(bias_backward_scratch(s.OC));
    l->x_q[0] = linear_operand_alloc(FORMAT_NVFP4, s.N, s.C, "test");
    l->dy_q[0] = linear_operand_alloc(FORMAT_NVFP4, s.N, s.OC, "test");
    l->dyT_q[0] = linear_operand_alloc(FORMAT_NVFP4, s.OC, s.N, "test");
    q->w_q = linear_operand_alloc(FORMAT_NVFP4, s.OC, s.C, "test");
    q->wT_q = linear_operand_alloc(FORMAT_NVFP4, s.C, s.OC, "test");
    q->xT_q = linear_operand_alloc(FORMAT_NVFP4, s.C, s.N, "test");
}

static void layer_free(const Linear* l, const QuantizedLinear* q) {
    matrix_free(l->x_q[0]);
    matrix_free(l->dy_q[0]);
    matrix_free(l->dyT_q[0]);
    matrix_free(q->w_q);
    matrix_free(q->wT_q);
    matrix_free(q->xT_q);
}

// x (n), BF16 values. Lognormal magnitudes: block scales of all sizes.
static float* new_tensor(size_t n, uint32_t stream) {
    float* x = new_floats(n);
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        float normal = random_normal(20260302, stream, i);
        x[i] = bf16_round(normal * expf(random_normal(20260303, stream, i / 48)));
    }
    return x;
}

static void name_check(char* name /* (80) */, const char* product, LinearShape s) {
    snprintf(name, 80, "%s %s %d %d %d", s.name, product, s.N, s.C, s.OC);
}

static void test_layer(LinearShape s) {
    Recipe recipe = recipe_parse("nvfp4,tail=0", 1);
    Linear l;
    QuantizedLinear q;
    layer_make(&l, &q, &recipe, s);
    size_t NC = (size_t)s.N * s.C, NOC = (size_t)s.N * s.OC, OCC = (size_t)s.OC * s.C;
    float* x = new_tensor(NC, 1);
    float* w = new_tensor(OCC, 2);
    float* dy = new_tensor(NOC, 3);
    float* bias = new_tensor((size_t)s.OC, 4);
    float* dw_start = new_tensor(OCC, 5);
    __nv_bfloat16* x_device = to_device<__nv_bfloat16>(x, NC);
    __nv_bfloat16* w_device = to_device<__nv_bfloat16>(w, OCC);
    __nv_bfloat16* dy_device = to_device<__nv_bfloat16>(dy, NOC);
    __nv_bfloat16* out = device_tensor<__nv_bfloat16>(NOC);     // NaN, which must not shine through
    __nv_bfloat16* dx = device_tensor<__nv_bfloat16>(NC);
    float* dw = to_device<float>(dw_start, OCC);
    float* dbias = to_device<float>(bias, (size_t)s.OC);

    linear_update_weight(&q, w_device, s.OC, s.C, &l);
    linear_forward(out, x_device, w_device, to_device<__nv_bfloat16>(bias, (size_t)s.OC), &q, s.N,
                   s.C, s.OC, &l);
    linear_backward(dx, dw, dbias, dy_device, x_device, w_device, &q, s.N, s.C, s.OC, &l);

    char name[80];
    int stores = gemm.paths.of[GEMM_STORES_BF16] == GEMM_FP4;
    int adds = gemm.paths.of[GEMM_ADDS_FP32] == GEMM_FP4;
    float* got = new_floats(NOC > OCC ? NOC > NC ? NOC : NC : OCC > NC ? OCC : NC);
    float* wT = new_floats(OCC);
    float* xT = new_floats(NC);
    float* dyT = new_floats(NOC);
    hadamard_transpose(wT, w, s.OC, s.C, 0);
    hadamard_transpose(xT, x, s.N, s.C, 1);
    hadamard_transpose(dyT, dy, s.N, s.OC, 1);
    if (stores) {
        from_device(got, out, NOC);
        name_check(name, "fprop", s);
        reference_check(name, got,
                        reference_make(x, w, s.N, s.OC, s.C, linear_rounding(&l, OPERAND_X), 1),
                        NULL, bias);
        from_device(got, dx, NC);
        name_check(name, "dgrad", s);
        reference_check(name, got,
                        reference_make(dy, wT, s.N, s.C, s.OC, linear_rounding(&l, OPERAND_DY), 1),
                        NULL, NULL);
    }
    if (adds) {
        from_device(got, dw, OCC);
        name_check(name, "wgrad", s);
        reference_check(name, got,
                        reference_make(dyT, xT, s.OC, s.C, s.N, linear_rounding(&l, OPERAND_DYT), 0),
                        dw_start, NULL);
    }
    free(got);
    free(wT);
    free(xT);
    free(dyT);
    free(x);
    free(w);
    free(dy);
    free(bias);
    free(dw_start);
    layer_free(&l, &q);
    device_free_all();
}

// ---------------------------------------------------------------------------------------------
// The answer of a GPU that has no FP4 tensor cores

static GemmProduct product_make(int M, int N, int K, GemmResult result) {
    GemmProduct p;
    p.M = M;
    p.N = N;
    p.K = K;
    p.result = result;
    return p;
}

// The request is complete and the answer is an orderly one: not a crash, and no later error.
static void test_not_supported(void) {
    for (int result = 0; result < NUM_GEMM_RESULTS; result++) {
        cublasStatus_t status =
            gemm_fp4_plan(&gemm.fp4, product_make(1024, 768, 768, (GemmResult)result));
        cudaError_t later = cudaDeviceSynchronize();
        report(status == CUBLAS_STATUS_NOT_SUPPORTED && later == cudaSuccess, "no FP4 on this GPU",
               "%s: cuBLASLt answers %s, then %s", result == GEMM_ADDS_FP32 ? "wgrad" : "fprop",
               cublasLtGetStatusString(status), cudaGetErrorString(later));
    }
}

// Has cuBLASLt this layer's products with such a result in FP4?
static int has_products(LinearShape s, GemmResult result) {
    GemmProduct fprop = product_make(s.N, s.OC, s.C, result), dgrad = product_make(s.N, s.C, s.OC, result);
    if (result == GEMM_ADDS_FP32) { fprop = dgrad = product_make(s.OC, s.C, s.N, result); }
    return gemm_fp4_plan(&gemm.fp4, fprop) == CUBLAS_STATUS_SUCCESS &&
           gemm_fp4_plan(&gemm.fp4, dgrad) == CUBLAS_STATUS_SUCCESS;
}

// The first layers of `shapes`. `known` (NUM_GEMM_RESULTS): 1 if this device is known to have such
// products in FP4, 0 if it is known to have none; NULL: a device of which nothing is known. What it has
// not is emulated, and not looked at.
static void test_device(const int* known, int layers) {
    size_t most = 0;
    for (const LinearShape* s = shapes; s < shapes + layers; s++) {
        size_t N = (size_t)s->N, C = (size_t)s->C, OC = (size_t)s->OC;
        most = (N + C + OC) * (C > OC ? C : OC) > most ? (N + C + OC) * (C > OC ? C : OC) : most;
    }
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), most);
    int count[NUM_GEMM_RESULTS] = { 0 };
    for (int i = 0; i < layers; i++) {
        int any = 0;
        for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
            int has = has_products(shapes[i], (GemmResult)r);
            gemm.paths.of[r] = has ? GEMM_FP4 : GEMM_EMULATED;
            count[r] += has;
            any |= has;
        }
        if (any) { test_layer(shapes[i]); }
    }
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        const char* name = r == GEMM_ADDS_FP32 ? "wgrad in FP4" : "fprop, dgrad in FP4";
        if (known != NULL) {
            report(count[r] == (known[r] ? layers : 0), name, "%d of %d layers", count[r], layers);
        } else if (count[r] < layers) {
            char text[100];
            snprintf(text, sizeof(text), "cuBLASLt has it for %d of %d layers on this GPU", count[r],
                     layers);
            report_skip(name, text);
        }
    }
    if (count[GEMM_STORES_BF16] == 0 && count[GEMM_ADDS_FP32] == 0) { test_not_supported(); }
    gemm_free(&gemm);
}

#if RUNS_ON_CPU
static void test_devices(void) {
    static const int all[] = { 1, 1 }, no_wgrad[] = { 1, 0 }, none[] = { 0, 0 };
    cublaslt_model_capability(10, 0);
    test_device(all, NUM_SHAPES);
    cublaslt_model_fp32_output(0);
    test_device(no_wgrad, 7);
    cublaslt_model_fp32_output(1);
    cublaslt_model_capability(9, 0);
    test_device(none, NUM_SHAPES);
}
#else
static void test_devices(void) { test_device(NULL, NUM_SHAPES); }
#endif

int main(void) {
    if (device_missing("gemm_fp4")) { return 0; }
    test_devices();
    return report_status();
}
