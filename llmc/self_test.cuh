/*
The start-up self-test: how to trust hardware that nobody here has seen. Before a run allocates its
model it makes this GPU do, on small matrices, each thing that NVFP4 training asks of it, and looks
at every bit that comes back. What is wrong is not used, and if nothing right is left, the run does
not start.

    what is tested                  against                                         class
    amax, quantizers, expansion,    the C functions of nvfp4.h, on tensors made     exact
      alpha                         of edge cases
    the same                        stored hashes of some of these: C and device    exact
                                    share a header, and with it its errors
    stochastic rounding             probabilities written down here; needs no       statistical
                                    function of nvfp4.h
    each path of gemm.cuh           products in double of small integers            exact
    the same                        products in double of real numbers              bounded

What follows from a failure:

    the conversion instruction (e2m1_sm100a.cuh)    arithmetic, with a warning
    quantizers by arithmetic, or the emulated path  the program ends: nothing is left
    the FP4 path                                    the emulated path, with a warning if FP4 is
                                                    there and wrong; with -g fp4 the program ends

The FP4 path is judged once for each GemmResult: there are GPUs that have the products of fprop and
dgrad in FP4, but not wgrad's [TransformerEngine, issue 2255].

What it cannot find: an error that small sizes do not show. cuBLASLt picks its kernel by size.

self_test_quantizers.cuh is the first half; dev/test/test_self_test.cu plants faults and sees them
found.
*/
#ifndef LLMC_SELF_TEST_CUH
#define LLMC_SELF_TEST_CUH

#include "gemm.cuh"
#include "self_test_quantizers.cuh"

// What the program uses of this machine.
typedef struct {
    GemmPaths paths;
    E2m1Conversion conversion;
} HardwarePaths;

// What every supported GPU has.
static inline HardwarePaths hardware_portable(void) {
    HardwarePaths hardware;
    hardware.paths = gemm_paths(GEMM_EMULATED);
    hardware.conversion = e2m1_arithmetic();
    return hardware;
}

// ---------------------------------------------------------------------------------------------
// Conversion

// Finds the conversion to use; ends the program if no conversion gives the right codes.
static inline void self_test_conversion(SelfTest* t, char* reason, size_t reason_size) {
    t->conversion = t->faults->probe != NULL ? t->faults->probe(reason, reason_size, t->stream)
                                             : e2m1_probe(reason, reason_size, t->stream);
    int right = self_test_quantizers(t);
    if (!right && (t->conversion.nearest || t->conversion.stochastic)) {
        fflush(stdout);
        fprintf(stderr, "WARNING: this GPU's conversion instruction passed the probe but not the "
                "self-test: %s. Converting by arithmetic instead.\n", t->wrong);
        snprintf(reason, reason_size, "arithmetic: the instruction failed the self-test");
        t->conversion = e2m1_arithmetic();
        right = self_test_quantizers(t);
    }
    check(right, "this GPU fails the self-test, and there is no other way to quantize: %s",
          t->wrong);
}

// ---------------------------------------------------------------------------------------------
// Products

// Both have more than 128 rows and a number of blocks that is no multiple of 4 in each operand: the
// tiled layout of the scales matters. The second K is an odd number of blocks, which FP4 tensor
// cores are given padded. M and N differ: a transposed result shows.
static const struct { int M, N, K; } self_test_sizes[] = { { 144, 272, 160 }, { 272, 144, 176 } };
#define SELF_TEST_SIZES 2

typedef struct {
    int M, N, K, integers;
    SelfTestPair A, B;
    float* alpha;                   // (1) device, from the device's amaxes
    float alpha_cpu;
    double* sum;                    // (M,N) what the product is
    double* magnitude;              // (M,N) the same of absolute values
} SelfTestProduct;

typedef enum { PATH_RIGHT, PATH_MISSING, PATH_WRONG, PATH_UNUSED } SelfTestState;

// What was found out about a path, for each result. Right until something is held against it;
// unused if the model has no such products, or if the path was not asked for.
typedef struct {
    GemmPath path;
    SelfTestState state[NUM_GEMM_RESULTS];
    char why[NUM_GEMM_RESULTS][SELF_TEST_TEXT];     // it is not right
    double worst;                   // largest error of FP32 results, in units of the bound
} SelfTestPath;

static inline const char* self_test_result_name(GemmResult result) {
    return result == GEMM_ADDS_FP32 ? "FP32 +=" : "BF16";
}

// Writes down that cuBLASLt refused a product.
static inline void self_test_refused(char* why, const GemmProduct* p, cublasStatus_t status) {
    int device, major, minor;
    cudaCheck(cudaGetDevice(&device));
    cudaCheck(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaCheck(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    snprintf(why, SELF_TEST_TEXT, "cuBLASLt answers %s to D (%d, %d) %s, K = %d, on compute "
             "capability %d.%d", cublasLtGetStatusName(status), p->M, p->N,
             self_test_result_name(p->result), p->K, major, minor);
}

// x (rows, K), BF16 values that say where they stand.
//
// Integers: values of E2M1 times a block scale of 1, 2 or 4 times a tensor scale, a power of 2. One
// element of each block is +-6, and one of the matrix stands alone in its block and is 2688, each
// in its scale; so the quantizer gives back just these parts, and the product is known without
// asking it. All sums are multiples of 1/4 below 2^18 (times alpha): FP32 is exact in any order,
// and so is an accumulator that is up to 4 bits narrower.
static inline void self_test_operand(float* x, int rows, int K, int integers, float tensor_scale,
                                     uint32_t stream) {
    for (int row = 0; row < rows; row++) {
        for (int k = 0; k < K; k++) {
            Philox element = philox4x32(20260305, (uint32_t)(row * K + k), 0, stream, 0);
            Philox block = philox4x32(20260306, (uint32_t)row, (uint32_t)(k / 16), stream, 0);
            float scale = tensor_scale * (float)(1 << block.word[0] % 3);
            int code = (int)(element.word[0] % 16);
            if (k % 16 == (int)(block.word[1] % 16)) { code |= 7; }
            x[row * K + k] = integers ? e2m1_to_float((uint8_t)code) * scale
                                      : self_test_random(element.word[1], 120);
        }
    }
    float* block = x + (stream % 2) * (rows * K - 16);      // the first, or the last
    for (int k = 0; integers && k < 16; k++) {
        block[k] = k == (int)stream ? NVFP4_LARGEST_PRODUCT * tensor_scale : 0.0f;
    }
}

// Quantizes x (rows, K) on the device, to nearest, and sees that this was right.
static inline int self_test_operand_make(SelfTest* t, SelfTestPair* p, const float* x, int rows,
                                         int K, const char* name) {
    Nvfp4Rounding nearest = self_test_rounding(0, 0);
    __nv_bfloat16* x_device = self_test_upload(x, (size_t)rows * K);
    *p = self_test_pair(rows, K);
    quantize_amax(p->device.amax, NULL, x_device, rows, K, 0, t->stream);
    quantize_activation(&p->device, NULL, x_device, rows, K, 0, nearest, nearest, t->conversion,
                        t->stream);
    int right = self_test_matrix(t, p, x, 1, nearest, name);
    cudaCheck(cudaFree(x_device));
    return right;
}

// sum (M,N) = factor * a (M,K) @ b (N,K)^T in double, and the same of absolute values
static inline void self_test_reference(SelfTestProduct* c, const float* a, const float* b,
                                       double factor) {
    #pragma omp parallel for
    for (int m = 0; m < c->M; m++) {
        for (int n = 0; n < c->N; n++) {
            double sum = 0.0, magnitude = 0.0;
            for (int k = 0; k < c->K; k++) {
                double product = (double)a[m * c->K + k] * (double)b[n * c->K + k];
                sum += product;
                magnitude += fabs(product);
            }
            c->sum[m * c->N + n] = factor * sum;
            c->magnitude[m * c->N + n] = factor * magnitude;
        }
    }
}

// Quantizes and multiplies in double. The sum of integers is known from the numbers that were
// quantized; that of real numbers is the sum of what C quantized them to.
static inline int self_test_product_make(SelfTest* t, SelfTestProduct* c, int size, int integers) {
    c->M = self_test_sizes[size].M;
    c->N = self_test_sizes[size].N;
    c->K = self_test_sizes[size].K;
    c->integers = integers;
    t->tensor = integers ? "integers" : "real numbers";
    size_t results = (size_t)c->M * c->N * sizeof(double);
    c->sum = (double*)xmalloc(results, "the self-test");
    c->magnitude = (double*)xmalloc(results, "the self-test");
    float* a = (float*)xmalloc((size_t)c->M * c->K * sizeof(float), "the self-test");
    float* b = (float*)xmalloc((size_t)c->N * c->K * sizeof(float), "the self-test");
    self_test_operand(a, c->M, c->K, integers, 0.5f, (uint32_t)(2 * size));
    self_test_operand(b, c->N, c->K, integers, 4.0f, (uint32_t)(2 * size + 1));
    int right = self_test_operand_make(t, &c->A, a, c->M, c->K, "operand A");
    right = self_test_operand_make(t, &c->B, b, c->N, c->K, "operand B") && right;

    int* nonfinite = (int*)cuda_malloc(sizeof(int), "the self-test");
    c->alpha = (float*)cuda_malloc(sizeof(float), "the self-test");
    cudaCheck(cudaMemset(nonfinite, 0, sizeof(int)));
    quantize_alpha(c->alpha, nonfinite, c->A.device.amax, c->B.device.amax, 0, 1, t->stream);
    cudaCheck(cudaStreamSynchronize(t->stream));
    cudaCheck(cudaFree(nonfinite));
    c->alpha_cpu = nvfp4_alpha(*c->A.want.amax, *c->B.want.amax);
    if (!integers) {
        nvfp4_expand(a, &c->A.want);
        nvfp4_expand(b, &c->B.want);
    }
    self_test_reference(c, a, b, integers ? 1.0 : c->alpha_cpu);
    free(a);
    free(b);
    return right;
}

static inline void self_test_product_free(SelfTestProduct* c) {
    self_test_pair_free(c->A);
    self_test_pair_free(c->B);
    cudaCheck(cudaFree(c->alpha));
    free(c->sum);
    free(c->magnitude);
}

// What D holds before the product: integers that say where they stand.
static inline float self_test_before(int i) { return (float)(i % 113 - 56); }

// x rounded to what D stores
static inline double self_test_stored(double x, GemmResult result) {
    return result == GEMM_ADDS_FP32 ? (float)x : bf16_round((float)x);
}

// Is D (M,N), as it came from the device, the product? Before D is stored, the K additions, the two
// multiplications by alpha and, in FP32, the addition to D may each be off by 2^-24 of what they
// handle:
//
//     |error| <= slack = (alpha * sum |a*b| * (K + 2) + |before|) * 2^-24,     0 for integers
//
// Storing rounds to nearest, which keeps order; so D lies between the rounded ends of that
// interval. For integers both ends are the same number. Written so that NaN fails.
static inline int self_test_product_right(SelfTestPath* path, const SelfTestProduct* c,
                                          GemmResult result, const void* D) {
    for (int i = 0; i < c->M * c->N; i++) {
        float got = result == GEMM_ADDS_FP32 ? ((const float*)D)[i]
                                             : bf16_to_float(((const uint16_t*)D)[i]);
        double before = result == GEMM_ADDS_FP32 ? self_test_before(i) : 0.0;
        double want = c->sum[i] + before;
        double slack = (c->magnitude[i] * (c->K + 2) + fabs(before)) * 0x1p-24;
        if (c->integers) { slack = 0.0; }
        double low = self_test_stored(want - slack, result);
        double high = self_test_stored(want + slack, result);
        if (!(low <= got && got <= high)) {
            snprintf(path->why[result], SELF_TEST_TEXT, "product of %s, D (%d, %d) %s, K = %d: "
                     "element (row %d, column %d) is %.9g instead of %.9g .. %.9g",
                     c->integers ? "integers" : "real numbers", c->M, c->N,
                     self_test_result_name(result), c->K, i / c->N, i % c->N, got, low, high);
            return 0;
        }
        double share = slack > 0.0 ? fabs(got - want) / slack : 0.0;
        if (result == GEMM_ADDS_FP32 && share > path->worst) { path->worst = share; }
    }
    return 1;
}

// Multiplies c on the path, if nothing is held against it yet.
static inline void self_test_multiply(SelfTest* t, Gemm* gemm, SelfTestPath* path,
                                      const SelfTestProduct* c, GemmResult result) {
    if (path->state[result] != PATH_RIGHT) { return; }
    size_t n = (size_t)c->M * c->N, bytes = n * (result == GEMM_ADDS_FP32 ? 4 : 2);
    void* D_cpu = xmalloc(bytes, "the self-test");
    void* before = xmalloc(bytes, "the self-test");
    for (size_t i = 0; i < n; i++) {
        float x = self_test_before((int)i);
        if (result == GEMM_ADDS_FP32) { ((float*)before)[i] = x; }
        else { ((uint16_t*)before)[i] = bf16_from_float(x); }
    }
    void* D = cuda_malloc(bytes, "the self-test");
    cudaCheck(cudaMemcpy(D, before, bytes, cudaMemcpyHostToDevice));
    GemmProduct product = { c->M, c->N, c->K, result };
    if (t->faults->operands != NULL) {
        t->faults->operands(&c->A.device, &c->B.device, c->alpha, path->path);
    }
    gemm->paths = gemm_paths(path->path);
    cublasStatus_t status = gemm_nvfp4_try(gemm, D, result, &c->A.device, &c->B.device, c->alpha,
                                           t->stream);
    cudaError_t error = cudaStreamSynchronize(t->stream);
    check(error == cudaSuccess, "the GPU broke down in the self-test of GEMM path %s: %s%s",
          gemm_path_name(path->path), cudaGetErrorString(error),
          path->path == GEMM_FP4 ? "; run with -g emulated" : "");
    if (t->faults->product != NULL) { t->faults->product(D, before, product, path->path); }
    cudaCheck(cudaMemcpy(D_cpu, D, bytes, cudaMemcpyDeviceToHost));
    if (status != CUBLAS_STATUS_SUCCESS) {
        path->state[result] = PATH_WRONG;       // it has the model's products, and not this one?
        self_test_refused(path->why[result], &product, status);
    } else if (!self_test_product_right(path, c, result, D_cpu)) {
        path->state[result] = PATH_WRONG;
    }
    cudaCheck(cudaFree(D));
    free(D_cpu);
    free(before);
}

// Which of the model's own products cuBLASLt has in FP4: one that is missing rules out the path for
// all products with the same result.
static inline void self_test_plans(Gemm* gemm, SelfTestPath* fp4, const GemmProduct* products,
                                   int num_products) {
    for (const GemmProduct* p = products; p < products + num_products; p++) {
        if (fp4->state[p->result] != PATH_RIGHT) { continue; }
        cublasStatus_t status = gemm_fp4_plan(&gemm->fp4, *p);
        if (status != CUBLAS_STATUS_SUCCESS) {
            fp4->state[p->result] = PATH_MISSING;
            self_test_refused(fp4->why[p->result], p, status);
        }
    }
}

// Tries both paths on all sizes, with integers and real numbers.
static inline void self_test_products(SelfTest* t, SelfTestPath* emulated, SelfTestPath* fp4,
                                      const GemmProduct* products, int num_products) {
    GemmProduct sizes[SELF_TEST_SIZES];
    for (int i = 0; i < SELF_TEST_SIZES; i++) {
        GemmProduct p = { self_test_sizes[i].M, self_test_sizes[i].N, self_test_sizes[i].K,
                          GEMM_STORES_BF16 };
        sizes[i] = p;
    }
    Gemm gemm;
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), gemm_most_elements(sizes, SELF_TEST_SIZES));
    self_test_plans(&gemm, fp4, products, num_products);
    for (int i = 0; i < 2 * SELF_TEST_SIZES; i++) {
        SelfTestProduct c;
        check(self_test_product_make(t, &c, i / 2, i % 2 == 0),
              "this GPU fails the self-test: %s", t->wrong);
        for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
            self_test_multiply(t, &gemm, emulated, &c, (GemmResult)r);
            self_test_multiply(t, &gemm, fp4, &c, (GemmResult)r);
        }
        self_test_product_free(&c);
    }
    gemm_free(&gemm);
}

// ---------------------------------------------------------------------------------------------
// The choice

#define FP4_PATH_STATUS "compiled, modelled and self-tested, never yet run on Blackwell"

static const char* const self_test_results[NUM_GEMM_RESULTS] = { "fprop, dgrad", "wgrad" };

static inline SelfTestPath self_test_path(GemmPath path, int asked_for,
                                          const GemmProduct* products, int num_products) {
    SelfTestPath p;
    memset(&p, 0, sizeof(p));
    p.path = path;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) { p.state[r] = PATH_UNUSED; }
    for (int i = 0; asked_for && i < num_products; i++) {
        p.state[products[i].result] = PATH_RIGHT;
    }
    return p;
}

// What the start-up printout says of a path and a result.
static inline void self_test_path_print(const SelfTestPath* p, int result) {
    switch (p->state[result]) {
        case PATH_RIGHT:
            printf("products of integers equal to the bit, of real numbers within the bound");
            if (p->worst > 0.0) { printf(" (at most %.2g of it)", p->worst); }
            break;
        case PATH_MISSING: printf("not available: %s", p->why[result]); break;
        case PATH_WRONG: printf("WRONG: %s", p->why[result]); break;
        case PATH_UNUSED: printf("not tried"); break;
    }
    printf("\n");
}

// One line where both results fare alike, and where the model has only one of them.
static inline void self_test_paths_print(const char* name, const SelfTestPath* p) {
    int bf16 = p->state[GEMM_STORES_BF16], fp32 = p->state[GEMM_ADDS_FP32];
    printf("  %-16s", name);
    if (bf16 == PATH_UNUSED) {
        self_test_path_print(p, GEMM_ADDS_FP32);
    } else if (fp32 == PATH_UNUSED || fp32 == bf16) {
        self_test_path_print(p, GEMM_STORES_BF16);
    } else {
        printf("%s: ", self_test_results[GEMM_STORES_BF16]);
        self_test_path_print(p, GEMM_STORES_BF16);
        printf("%18s%s: ", "", self_test_results[GEMM_ADDS_FP32]);
        self_test_path_print(p, GEMM_ADDS_FP32);
    }
}

// The best path for a result that the self-test left. Ends the program if that is none, or not the
// requested one; says loudly if it is not the one that this GPU pretends to have.
static inline GemmPath self_test_choose(GemmPath requested, const SelfTestPath* emulated,
                                        const SelfTestPath* fp4, int result) {
    const char* name = self_test_results[result];
    check(emulated->state[result] != PATH_WRONG && emulated->state[result] != PATH_MISSING,
          "this GPU fails the self-test of the emulated GEMM path, and without that there is none: "
          "%s: %s", name, emulated->why[result]);
    SelfTestState state = fp4->state[result];
    check(requested != GEMM_FP4 || (state != PATH_WRONG && state != PATH_MISSING),
          "-g fp4: FP4 products of %s are %s: %s; run with -g auto", name,
          state == PATH_MISSING ? "not available" : "wrong", fp4->why[result]);
    if (state == PATH_WRONG) {
        fflush(stdout);
        fprintf(stderr, "WARNING: this GPU's FP4 tensor cores, or cuBLASLt, fail the self-test. "
                "FP4 is NOT used for %s; the emulated path takes its place. What is wrong: %s\n",
                name, fp4->why[result]);
    }
    return state == PATH_RIGHT ? GEMM_FP4 : GEMM_EMULATED;
}

static inline void self_test_print_choice(GemmPath requested, const SelfTestPath* fp4,
                                          GemmPaths paths) {
    GemmPath path = paths.of[GEMM_STORES_BF16], wgrad = paths.of[GEMM_ADDS_FP32];
    int wrong = 0, missing = 0;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        wrong |= fp4->state[r] == PATH_WRONG;
        missing |= fp4->state[r] == PATH_MISSING;
    }
    printf("gemm path         ");
    if (path == wgrad) {
        printf("%s: ", gemm_path_name(path));
    } else {
        printf("%s %s, %s %s: ", self_test_results[0], gemm_path_name(path), self_test_results[1],
               gemm_path_name(wgrad));
    }
    printf("%s; FP4 path " FP4_PATH_STATUS "\n",
           requested == GEMM_EMULATED ? "-g emulated" : wrong ? "FP4 failed the self-test"
           : missing ? "FP4 not available" : "FP4 passed the self-test");
}

// Tests this GPU and chooses how the products of the model, which are of the given sizes (one at
// least), and its conversions are done; prints what was found and chosen. Takes well under a second
// and leaves nothing on the device. Ends the program if there is no right way left, or if the
// requested one is not right. `faults`: NULL, but for tests. `stream`: not a non-blocking one.
static inline HardwarePaths self_test(GemmPath requested, const GemmProduct* products,
                                      int num_products, const SelfTestFaults* faults,
                                      cudaStream_t stream) {
    static const SelfTestFaults none = { NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL };
    double start = seconds_now();
    char reason[E2M1_REASONS];
    SelfTest t;
    memset(&t, 0, sizeof(t));
    t.faults = faults != NULL ? faults : &none;
    t.stream = stream;
    self_test_conversion(&t, reason, sizeof(reason));

    SelfTestPath emulated = self_test_path(GEMM_EMULATED, 1, products, num_products);
    SelfTestPath fp4 = self_test_path(GEMM_FP4, requested != GEMM_EMULATED, products, num_products);
    self_test_products(&t, &emulated, &fp4, products, num_products);
    HardwarePaths hardware;
    hardware.conversion = t.conversion;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        hardware.paths.of[r] = self_test_choose(requested, &emulated, &fp4, r);
    }
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {    // what the model does not have: as the other
        if (emulated.state[r] == PATH_UNUSED) { hardware.paths.of[r] = hardware.paths.of[!r]; }
    }
    printf("self-test         quantizers equal the C functions in %zu codes; stochastic rounding "
           "unbiased over %zu; %.2f s\n", t.codes, t.steps, seconds_now() - start);
    printf("  %-16s%s\n", "conversion", reason);
    self_test_paths_print("gemm emulated", &emulated);
    self_test_paths_print("gemm fp4", &fp4);
    self_test_print_choice(requested, &fp4, hardware.paths);
    return hardware;
}

#endif
