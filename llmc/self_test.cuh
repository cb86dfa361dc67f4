/*
The start-up self-test: how to trust hardware that nobody here has seen. Before a run allocates its
model it makes this GPU do, on small matrices, each thing that training in low precision asks of it,
and looks at every bit that comes back. What is wrong is not used, and if nothing right is left, the
run does not start.

    what is tested                  against                                         class
    amax, quantizers, expansion,    the C functions of nvfp4.h and quantizer.h,     exact
      alpha                         on tensors made of edge cases
    the same                        stored hashes of some of these: C and device    exact
                                    share a header, and with it its errors
    stochastic rounding             probabilities written down here; needs no       statistical
                                    function of nvfp4.h
    each path of gemm.cuh           products in double of small integers            exact
    the same                        products in double of real numbers              bounded
    the same, FP8                   integers under scales that are none             bounded

What follows from a failure:

    the conversion instruction (e2m1_sm100a.cuh)    arithmetic, with a warning
    quantizers by arithmetic, or the emulated path  the program ends: nothing is left
    the native path, FP4 or FP8                     the emulated path, with a warning if it is
                                                    there and wrong; with -g fp4 or -g fp8 the
                                                    program ends

A native path is judged once for each GemmResult: there are GPUs that have the products of fprop and
dgrad in FP4, but not wgrad's [TransformerEngine, issue 2255]. It must have all products of the model. Of
the small ones it may refuse some sizes; what it does not refuse must be right, one of each kind at
least.

What it cannot find: an error that small sizes do not show. cuBLASLt picks its kernel by size. And
FP8 tensor cores that add in 14 bits get a bound so wide (gemm_fp8.cuh) that real numbers show gross
errors alone; integers, whose sums are exact in 14 bits, show the others.

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

// The first two have more than 128 rows and a number of blocks that is no multiple of 4 in each
// operand: the tiled layout of the scales matters. The second K is an odd number of blocks, which FP4
// tensor cores are given padded. M and N differ: a transposed result shows. Blocks of 128 are followed
// by one that is not full, along K and across. The third is of whole blocks, as most models' products
// are, for a GPU that refuses the others.
static const struct { int M, N, K; } self_test_sizes[] = { { 144, 272, 160 }, { 272, 144, 176 },
                                                           { 128, 256, 256 } };
#define SELF_TEST_SIZES 3

// Two operands whose product means something of its own to the tensor cores.
typedef struct { Quantizer A, B; int used[NUM_GEMM_RESULTS]; } SelfTestKind;

// Integers whose product is known without the quantizer; those under tensor scales that are no powers
// of two, so that alpha is no short number; real numbers.
enum { SELF_TEST_INTEGERS, SELF_TEST_SCALED, SELF_TEST_REALS, NUM_SELF_TEST_CONTENTS };

static const char* const self_test_contents[NUM_SELF_TEST_CONTENTS] = {
    "integers", "scaled integers", "real numbers",
};

typedef struct {
    int M, N, K, content;
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
    int right[NUM_GEMM_RESULTS];    // products of the kind that is being tested that were
    char why[NUM_GEMM_RESULTS][SELF_TEST_TEXT];     // it is not right; or what it refused
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

// Of a matrix quantized as q an element that is quantized without error if its block scale, or in FP8
// its tensor scale, is a power of two. 6: it has to be E2M1's largest.
static inline float self_test_integer(const Quantizer* q, uint32_t random, int largest) {
    if (format_bits(q->format) == 4) {
        return e2m1_to_float((uint8_t)(random % 16 | (largest ? 7u : 0u)));
    }
    int most = q->e5m2 ? 7 : 15;                    // of 3 or 4 significant bits
    return (float)((int)(random % (2 * (uint32_t)most + 1)) - most);
}

// x (rows, K), BF16 values that say where they stand.
//
// Integers: those above times a block scale of 1, 2 or 4 times a tensor scale. In E2M1 one element of
// each block is +-6, so that the quantizer finds this block scale; in E4M3 it may find others, and
// the codes have the room. Where there is a tensor scale, one element of the matrix stands alone and
// is the largest in it; in its block, or, in FP8, its row. So the quantizer gives back just these
// parts, and the product is known without asking it. All sums are multiples of 1/4 below 2^18 or of 1
// below 2^20 (times alpha): FP32 is exact in any order, and so is an accumulator that is up to 4 bits
// narrower. Those that an FP8 tensor core makes, without block scales, are below 2^14.
static inline void self_test_operand(float* x, int rows, int K, int content, const Quantizer* q,
                                     float tensor_scale, uint32_t stream) {
    int block_cols = format_block(q->format) > 0 ? format_block(q->format) : 16;
    int block_rows = q->tile ? block_cols : 1;
    for (int row = 0; row < rows; row++) {
        for (int k = 0; k < K; k++) {
            Philox element = philox4x32(20260305, (uint32_t)(row * K + k), 0, stream, 0);
            Philox block = philox4x32(20260306, (uint32_t)(row / block_rows),
                                      (uint32_t)(k / block_cols), stream, 0);
            float scale = q->format == FORMAT_FP8 ? 1.0f : (float)(1 << block.word[0] % 3);
            int largest = k % block_cols == (int)(block.word[1] % 16);
            float integer = self_test_integer(q, element.word[0], largest);
            x[row * K + k] = content == SELF_TEST_REALS ? self_test_random(element.word[1], 120)
                                                     : bf16_round(integer * scale * tensor_scale);
        }
    }
    float most = quantizer_largest(*q);
    int alone = q->format == FORMAT_FP8 ? K : 16;
    float* row = x + (stream % 2) * (uint32_t)(rows * K - alone);       // the first, or the last
    for (int k = 0; content != SELF_TEST_REALS && most > 0.0f && k < alone; k++) {
        row[k] = k == (int)stream ? bf16_round(most * tensor_scale) : 0.0f;
    }
}

// Quantizes x (rows, K) on the device, to nearest, and sees that this was right.
static inline int self_test_operand_make(SelfTest* t, SelfTestPair* p, const float* x, int rows,
                                         int K, const Quantizer* q, const char* name) {
    Nvfp4Rounding nearest = self_test_rounding(0, 0);
    Rotation none;
    memset(&none, 0, sizeof(none));
    __nv_bfloat16* x_device = self_test_upload(x, (size_t)rows * K);
    *p = self_test_pair(q->format, rows, K);
    quantize_amax(p->device.amax, NULL, x_device, rows, K, 0, t->stream);
    if (q->format == FORMAT_NVFP4) {
        quantize_activation(&p->device, NULL, x_device, rows, K, 0, nearest, nearest, t->conversion,
                            t->stream);
    } else {
        AnyOutput out = any_output(&p->device, *q, none, nearest);
        quantize_any(&out, NULL, x_device, rows, K, t->stream);
    }
    int right = self_test_matrix(t, p, x, *q, nearest, name);
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

// alpha, from the device's amaxes; is it that of C?
static inline int self_test_product_alpha(SelfTest* t, SelfTestProduct* c, const SelfTestKind* kind) {
    int* nonfinite = (int*)cuda_malloc(sizeof(int), "the self-test");
    cudaCheck(cudaMemset(nonfinite, 0, sizeof(int)));
    c->alpha = (float*)cuda_malloc(sizeof(float), "the self-test");
    AnyAlpha about = any_alpha(&kind->A, &kind->B);
    c->alpha_cpu = quantizer_alpha(*c->A.want.amax, *c->B.want.amax, about.factor);
    quantize_any_alpha(c->alpha, nonfinite, c->A.device.amax, c->B.device.amax, 0, 1, about,
                       t->stream);
    cudaCheck(cudaStreamSynchronize(t->stream));
    if (t->faults->alpha != NULL && kind->A.format != FORMAT_NVFP4) { t->faults->alpha(c->alpha); }
    float got;
    cudaCheck(cudaMemcpy(&got, c->alpha, sizeof(got), cudaMemcpyDeviceToHost));
    cudaCheck(cudaFree(nonfinite));
    if (float_bits(got) == float_bits(c->alpha_cpu)) { return 1; }
    return self_test_wrong(t, "alpha of %g and %g in %s: %.9g instead of %.9g", *c->A.want.amax,
                           *c->B.want.amax, format_name(kind->A.format), got, c->alpha_cpu);
}

// Quantizes and multiplies in double. The sum of integers is known from the numbers that were
// quantized; that of real numbers is the sum of what C quantized them to.
static inline int self_test_product_make(SelfTest* t, SelfTestProduct* c, const SelfTestKind* kind,
                                         int size, int content) {
    c->M = self_test_sizes[size].M;
    c->N = self_test_sizes[size].N;
    c->K = self_test_sizes[size].K;
    c->content = content;
    t->tensor = self_test_contents[content];
    size_t results = (size_t)c->M * c->N * sizeof(double);
    c->sum = (double*)xmalloc(results, "the self-test");
    c->magnitude = (double*)xmalloc(results, "the self-test");
    float* a = (float*)xmalloc((size_t)c->M * c->K * sizeof(float), "the self-test");
    float* b = (float*)xmalloc((size_t)c->N * c->K * sizeof(float), "the self-test");
    int scaled = content == SELF_TEST_SCALED;
    self_test_operand(a, c->M, c->K, content, &kind->A, scaled ? 1.1796875f : 0.5f,
                      (uint32_t)(2 * size));
    self_test_operand(b, c->N, c->K, content, &kind->B, scaled ? 1.3515625f : 4.0f,
                      (uint32_t)(2 * size + 1));
    int right = self_test_operand_make(t, &c->A, a, c->M, c->K, &kind->A, "operand A");
    right = self_test_operand_make(t, &c->B, b, c->N, c->K, &kind->B, "operand B") && right;
    right = self_test_product_alpha(t, c, kind) && right;
    if (content != SELF_TEST_INTEGERS) {
        quantized_expand(a, &c->A.want, kind->A);
        quantized_expand(b, &c->B.want, kind->B);
    }
    self_test_reference(c, a, b, content == SELF_TEST_INTEGERS ? 1.0 : c->alpha_cpu);
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
//     |error| <= slack = (alpha * sum |a*b| * (K + 2) + |before|) * 2^-24
//
// 0 for integers; under tensor scales they have no additions to be off. To real numbers in FP8 comes
// what those tensor cores lose, gemm_fp8.cuh. Storing rounds to nearest, which keeps order; so D
// lies between the rounded ends of that interval. For integers both ends are the same number.
// Written so that NaN fails.
static inline int self_test_product_right(SelfTestPath* path, const SelfTestProduct* c,
                                          GemmResult result, const void* D) {
    for (int i = 0; i < c->M * c->N; i++) {
        float got = result == GEMM_ADDS_FP32 ? ((const float*)D)[i]
                                             : bf16_to_float(((const uint16_t*)D)[i]);
        double before = result == GEMM_ADDS_FP32 ? self_test_before(i) : 0.0;
        double want = c->sum[i] + before;
        double slack = (c->magnitude[i] * (c->K + 2) + fabs(before)) * 0x1p-24;
        if (path->path == GEMM_FP8) { slack += c->magnitude[i] * GEMM_FP8_SUM_ERROR; }
        if (c->content == SELF_TEST_INTEGERS) { slack = 0.0; }
        if (c->content == SELF_TEST_SCALED) {
            slack = (2.0 * fabs(c->sum[i]) + fabs(before)) * 0x1p-24;
        }
        double low = self_test_stored(want - slack, result);
        double high = self_test_stored(want + slack, result);
        if (!(low <= got && got <= high)) {
            snprintf(path->why[result], SELF_TEST_TEXT, "product of %s, D (%d, %d) %s, K = %d: "
                     "element (row %d, column %d) is %.9g instead of %.9g .. %.9g",
                     self_test_contents[c->content], c->M, c->N,
                     self_test_result_name(result), c->K, i / c->N, i % c->N, got, low, high);
            return 0;
        }
        double share = c->content == SELF_TEST_REALS && slack > 0.0 ? fabs(got - want) / slack : 0.0;
        if (result == GEMM_ADDS_FP32 && share > path->worst) { path->worst = share; }
    }
    return 1;
}

// Multiplies c on the path, if nothing is held against it yet.
static inline void self_test_multiply(SelfTest* t, Gemm* gemm, SelfTestPath* path,
                                      const SelfTestProduct* c, const SelfTestKind* kind,
                                      GemmResult result) {
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
    GemmProduct product = { c->M, c->N, c->K, result, kind->A, kind->B };
    if (t->faults->operands != NULL) {
        t->faults->operands(&c->A.device, &c->B.device, c->alpha, path->path);
    }
    gemm->paths = gemm_paths(path->path);
    cublasStatus_t status = gemm_quantized_try(gemm, D, result, &c->A.device, &kind->A,
                                               &c->B.device, &kind->B, c->alpha, t->stream);
    cudaError_t error = cudaStreamSynchronize(t->stream);
    check(error == cudaSuccess, "the GPU broke down in the self-test of GEMM path %s: %s%s",
          gemm_path_name(path->path), cudaGetErrorString(error),
          path->path != GEMM_EMULATED ? "; run with -g emulated" : "");
    if (t->faults->product != NULL) { t->faults->product(D, before, product, path->path); }
    cudaCheck(cudaMemcpy(D_cpu, D, bytes, cudaMemcpyDeviceToHost));
    if (status != CUBLAS_STATUS_SUCCESS) {
        int refused = path->path != GEMM_EMULATED && status == CUBLAS_STATUS_NOT_SUPPORTED;
        path->state[result] = refused ? PATH_RIGHT : PATH_WRONG;
        self_test_refused(path->why[result], &product, status);
    } else if (!self_test_product_right(path, c, result, D_cpu)) {
        path->state[result] = PATH_WRONG;
    } else {
        path->right[result]++;
    }
    cudaCheck(cudaFree(D));
    free(D_cpu);
    free(before);
}

// Which of the model's own products cuBLASLt has on the native path: one that is missing rules out
// the path for all products with the same result.
static inline void self_test_plans(Gemm* gemm, SelfTestPath* native, const GemmProduct* products,
                                   int num_products) {
    for (const GemmProduct* p = products; p < products + num_products; p++) {
        if (native->state[p->result] != PATH_RIGHT) { continue; }
        cublasStatus_t status = gemm_native_plan(gemm, *p);
        if (status != CUBLAS_STATUS_SUCCESS) {
            native->state[p->result] = PATH_MISSING;
            self_test_refused(native->why[p->result], p, status);
        }
    }
}

// What of a quantizer matters to whoever multiplies: the format and, unless it is NVFP4's, which
// element and, where there are block scales, whether these are for squares.
static inline Quantizer self_test_kind(const Quantizer* q) {
    Quantizer kind;
    memset(&kind, 0, sizeof(kind));
    kind.format = q->format;
    kind.e5m2 = q->e5m2;
    kind.tile = q->tile && q->format != FORMAT_NVFP4 && q->format != FORMAT_FP8;
    return kind;
}

// The different kinds among these products; returns how many.
static inline int self_test_kinds(SelfTestKind* kinds /* (num_products) */,
                                  const GemmProduct* products, int num_products) {
    int count = 0;
    for (const GemmProduct* p = products; p < products + num_products; p++) {
        SelfTestKind kind;
        memset(&kind, 0, sizeof(kind));
        kind.A = self_test_kind(&p->A);
        kind.B = self_test_kind(&p->B);
        int i = 0;
        while (i < count && !(quantizer_equal(&kinds[i].A, &kind.A)
                              && quantizer_equal(&kinds[i].B, &kind.B))) { i++; }
        if (i == count) { kinds[count++] = kind; }
        kinds[i].used[p->result] = 1;
    }
    return count;
}

// Tries both paths on products of this kind, of all sizes and contents.
static inline void self_test_try(SelfTest* t, Gemm* gemm, SelfTestPath* emulated,
                                 SelfTestPath* native, const SelfTestKind* kind) {
    memset(native->right, 0, sizeof(native->right));
    for (int i = 0; i < NUM_SELF_TEST_CONTENTS * SELF_TEST_SIZES; i++) {
        int content = i % NUM_SELF_TEST_CONTENTS;
        if (content == SELF_TEST_SCALED && kind->A.format != FORMAT_FP8) { continue; }
        SelfTestProduct c;
        check(self_test_product_make(t, &c, kind, i / NUM_SELF_TEST_CONTENTS, content),
              "this GPU fails the self-test: %s", t->wrong);
        for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
            if (!kind->used[r]) { continue; }
            self_test_multiply(t, gemm, emulated, &c, kind, (GemmResult)r);
            self_test_multiply(t, gemm, native, &c, kind, (GemmResult)r);
        }
        self_test_product_free(&c);
    }
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        if (kind->used[r] && native->state[r] == PATH_RIGHT && native->right[r] == 0) {
            native->state[r] = PATH_MISSING;        // all refused: what is not tested is not used
        }
    }
}

static inline void self_test_products(SelfTest* t, SelfTestPath* emulated, SelfTestPath* native,
                                      const GemmProduct* products, int num_products) {
    GemmProduct sizes[SELF_TEST_SIZES];
    memset(sizes, 0, sizeof(sizes));
    for (int i = 0; i < SELF_TEST_SIZES; i++) {
        sizes[i].M = self_test_sizes[i].M;
        sizes[i].N = self_test_sizes[i].N;
        sizes[i].K = self_test_sizes[i].K;
    }
    Gemm gemm;
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), gemm_most_elements(sizes, SELF_TEST_SIZES));
    self_test_plans(&gemm, native, products, num_products);
    SelfTestKind* kinds = (SelfTestKind*)xmalloc((size_t)num_products * sizeof(SelfTestKind),
                                                 "the self-test");
    int num_kinds = self_test_kinds(kinds, products, num_products);
    for (int i = 0; i < num_kinds; i++) {
        self_test_try(t, &gemm, emulated, native, &kinds[i]);
    }
    free(kinds);
    gemm_free(&gemm);
}

// ---------------------------------------------------------------------------------------------
// The choice

static const char* const native_path_status[NUM_GEMM_PATHS] = {
    "", "", "compiled, modelled and self-tested; its authors never ran it on Blackwell",
    "modelled and self-tested; run on Hopper alone",
};

// As in sentences: FP4, FP8
static inline const char* self_test_cores(const SelfTestPath* native) {
    return native->path == GEMM_FP8 ? "FP8" : "FP4";
}

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
                                        const SelfTestPath* native, int result) {
    const char *name = self_test_results[result], *cores = self_test_cores(native);
    check(emulated->state[result] != PATH_WRONG && emulated->state[result] != PATH_MISSING,
          "this GPU fails the self-test of the emulated GEMM path, and without that there is none: "
          "%s: %s", name, emulated->why[result]);
    SelfTestState state = native->state[result];
    check(requested != native->path || (state != PATH_WRONG && state != PATH_MISSING),
          "-g %s: %s products of %s are %s: %s; run with -g auto", gemm_path_name(requested), cores,
          name, state == PATH_MISSING ? "not available" : "wrong", native->why[result]);
    if (state == PATH_WRONG) {
        fflush(stdout);
        fprintf(stderr, "WARNING: this GPU's %s tensor cores, or cuBLASLt, fail the self-test. "
                "%s is NOT used for %s; the emulated path takes its place. What is wrong: %s\n",
                cores, cores, name, native->why[result]);
    }
    return state == PATH_RIGHT ? native->path : GEMM_EMULATED;
}

static inline void self_test_print_choice(GemmPath requested, const SelfTestPath* native,
                                          Format format, GemmPaths paths) {
    GemmPath path = paths.of[GEMM_STORES_BF16], wgrad = paths.of[GEMM_ADDS_FP32];
    const char* cores = self_test_cores(native);
    int wrong = 0, missing = 0;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        wrong |= native->state[r] == PATH_WRONG;
        missing |= native->state[r] == PATH_MISSING;
    }
    printf("gemm path         ");
    if (path == wgrad) {
        printf("%s: ", gemm_path_name(path));
    } else {
        printf("%s %s, %s %s: ", self_test_results[0], gemm_path_name(path), self_test_results[1],
               gemm_path_name(wgrad));
    }
    if (native->path == GEMM_EMULATED) {
        printf("there is no other for %s\n", format_name(format));
    } else if (requested == GEMM_EMULATED) {
        printf("-g emulated; %s path %s\n", cores, native_path_status[native->path]);
    } else {
        printf("%s %s; %s path %s\n", cores, wrong ? "failed the self-test" : missing
               ? "not available" : "passed the self-test", cores,
               native_path_status[native->path]);
    }
}

// The format of all these products, and the native path for it; ends the program if that was not what
// was requested.
static inline GemmPath self_test_native(GemmPath requested, const GemmProduct* products,
                                        int num_products) {
    Format format = products[0].A.format;
    for (int i = 0; i < num_products; i++) {
        check(format > FORMAT_BF16 && products[i].A.format == format
              && products[i].B.format == format, "product %d of the model is of %s by %s", i,
              format_name(products[i].A.format), format_name(products[i].B.format));
    }
    GemmPath native = gemm_native_path(format);
    check(requested == GEMM_AUTO || requested == GEMM_EMULATED || requested == native, "-g %s: this "
          "recipe's products are of %s; run with -g auto", gemm_path_name(requested),
          format_name(format));
    return native;
}

// Tests this GPU and chooses how the products of the model, which are of the given sizes and kinds
// (one at least, all of one format), and its conversions are done; prints what was found and chosen.
// Takes well under a second and leaves nothing on the device. Ends the program if there is no right
// way left, or if the requested one is not right. `faults`: NULL, but for tests. `stream`: not a
// non-blocking one.
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
    t.conversion = e2m1_arithmetic();
    GemmPath path = self_test_native(requested, products, num_products);
    Format format = products[0].A.format;
    if (format == FORMAT_NVFP4) { self_test_conversion(&t, reason, sizeof(reason)); }
    check(self_test_other_quantizers(&t, products, num_products),
          "this GPU fails the self-test, and there is no other way to quantize: %s", t.wrong);

    int tries = path != GEMM_EMULATED && requested != GEMM_EMULATED;
    SelfTestPath emulated = self_test_path(GEMM_EMULATED, 1, products, num_products);
    SelfTestPath native = self_test_path(path, tries, products, num_products);
    self_test_products(&t, &emulated, &native, products, num_products);
    HardwarePaths hardware;
    hardware.conversion = t.conversion;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {
        hardware.paths.of[r] = self_test_choose(requested, &emulated, &native, r);
    }
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) {    // what the model does not have: as the other
        if (emulated.state[r] == PATH_UNUSED) { hardware.paths.of[r] = hardware.paths.of[!r]; }
    }
    printf("self-test         quantizers equal the C functions in %zu codes; ", t.codes);
    if (t.steps > 0) { printf("stochastic rounding unbiased over %zu; ", t.steps); }
    printf("%.2f s\n", seconds_now() - start);
    if (format == FORMAT_NVFP4) { printf("  %-16s%s\n", "conversion", reason); }
    self_test_paths_print("gemm emulated", &emulated);
    if (path != GEMM_EMULATED) {
        self_test_paths_print(path == GEMM_FP8 ? "gemm fp8" : "gemm fp4", &native);
    }
    self_test_print_choice(requested, &native, format, hardware.paths);
    return hardware;
}

#endif
