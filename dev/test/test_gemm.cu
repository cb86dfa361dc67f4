/*
gemm.cuh: the three products of a linear layer in BF16 and FP32, and products of NVFP4 matrices.

exact      operands are small integers (or halves), so every partial sum is a multiple of 1/4 below
           2^22 and FP32 addition is exact in any order. All paths have to agree with the sum to the
           bit; if a new chip fails at large K only, its accumulator is narrower than FP32.
bounded    real operands, against a sum in double: |error| <= K * 2^-24 * sum |a*b|, plus the rounding
           of the stored result.
run twice  the same bits.

Faults that made it fail, one at a time: TRANSA from A's flag; the layout of a (K,N) operand made from
(N,K); accumulate ignored; bias ignored; alpha ignored; a plan found by a comparison without K, or
without bias; the scale byte of the next block in expand_kernel; the second operand expanded over the
first; N taken from A; of a product in parts the first part again and again, parts of whole columns,
half the step, all of K in each, a sum that begins anew.
*/
static int wgrad_parts = 1;
#define GEMM_WGRAD_PARTS wgrad_parts    // a constant in the programs
#include "../../llmc/gemm.cuh"
#include "device_check.cuh"

static Gemm gemm;

typedef struct { int M, N, K; } GemmSize;

// the smallest; no multiples of any tile, two with the same D; GPT-2 small and XL; the longest sum
static const GemmSize sizes[] = { { 16, 16, 16 }, { 48, 80, 112 }, { 48, 80, 64 }, { 272, 16, 1040 },
                                  { 256, 2304, 768 }, { 128, 768, 3072 }, { 96, 4800, 1600 },
                                  { 1600, 1600, 272 }, { 64, 48, 65536 } };
#define NUM_SIZES ((int)(sizeof(sizes) / sizeof(sizes[0])))
#define MOST_ON_CPU 10000000        // multiplications

// x (n) = integers in -6 .. 6
static void fill_small_integers(float* x, size_t n, uint32_t stream) {
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)(philox4x32(20260104, (uint32_t)i, 0, stream, 0).word[0] % 13) - 6.0f;
    }
}

static float* new_floats(size_t n) { return (float*)malloc(n * sizeof(float)); }

// sum (M,N) = A (M,K) @ B (N,K)^T in double; magnitude (M,N) = the same of absolute values.
static void reference(double* sum, double* magnitude, const float* A, const float* B, GemmSize s) {
    #pragma omp parallel for
    for (int m = 0; m < s.M; m++) {
        for (int n = 0; n < s.N; n++) {
            const float* a = A + (size_t)m * s.K;
            const float* b = B + (size_t)n * s.K;
            double total = 0.0, total_magnitude = 0.0;
            for (int k = 0; k < s.K; k++) {
                double product = (double)a[k] * (double)b[k];
                total += product;
                total_magnitude += fabs(product);
            }
            sum[(size_t)m * s.N + n] = total;
            magnitude[(size_t)m * s.N + n] = total_magnitude;
        }
    }
}

// On the device: x (rows, cols), or its transpose if `other_way` is set.
template <typename Real>
static Real* operand_to_device(const float* x, int rows, int cols, int other_way) {
    size_t n = (size_t)rows * cols;
    if (!other_way) { return to_device<Real>(x, n); }
    float* xT = new_floats(n);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) { xT[(size_t)c * rows + r] = x[(size_t)r * cols + c]; }
    }
    Real* device = to_device<Real>(xT, n);
    free(xT);
    return device;
}

static void round_result(float* x, size_t n, cudaDataType_t type) {
    for (size_t i = 0; type == CUDA_R_16BF && i < n; i++) { x[i] = bf16_round(x[i]); }
}

// got (M,N) = the device's D, of either type
static void result_from_device(float* got, const void* D, size_t n, cudaDataType_t type) {
    if (type == CUDA_R_16BF) { from_device(got, (const __nv_bfloat16*)D, n); }
    else { from_device(got, (const float*)D, n); }
}

static void* result_to_device(const float* start, size_t n, cudaDataType_t type) {
    if (type == CUDA_R_16BF) { return to_device<__nv_bfloat16>(start, n); }
    return to_device<float>(start, n);
}

// ---------------------------------------------------------------------------------------------
// The three products of a linear layer, and the head's, which has no bias

enum { FORWARD, HEAD, DINP, DWEIGHT };

template <typename Real> static void test_role(GemmSize s, int role, int integers) {
    const char* role_names[] = { "forward", "head", "dinp", "dweight" };
    char name[120], parts[32] = "";
    if (wgrad_parts > 1) { snprintf(parts, sizeof(parts), " in %d parts", wgrad_parts); }
    snprintf(name, sizeof(name), "%s %s %s %d %d %d%s", real_name<Real>(), role_names[role],
             integers ? "exact" : "bounded", s.M, s.N, s.K, parts);
    size_t n = (size_t)s.M * s.N, size_A = (size_t)s.M * s.K, size_B = (size_t)s.N * s.K;
    float* A = new_floats(size_A);
    float* B = new_floats(size_B);
    float* bias = new_floats((size_t)s.N);
    float* start = new_floats(n);       // what D holds before
    float* got = new_floats(n);
    if (integers) {
        fill_small_integers(A, size_A, 1);
        fill_small_integers(B, size_B, 2);
        fill_small_integers(bias, (size_t)s.N, 3);
        fill_small_integers(start, n, 4);
    } else {
        fill_normal(A, size_A, 1, 0.0f, 1.0f);
        fill_normal(B, size_B, 2, 0.0f, 0.02f);
        fill_normal(bias, (size_t)s.N, 3, 0.0f, 1.0f);
        fill_normal(start, n, 4, 0.0f, 1.0f);
        real_round<Real>(A, size_A);
        real_round<Real>(B, size_B);
        real_round<Real>(bias, (size_t)s.N);
    }

    GemmArgs args;
    memset(&args, 0, sizeof(args));
    args.M = s.M;
    args.N = s.N;
    args.K = s.K;
    args.A_is_KM = role == DWEIGHT;
    args.B_is_KN = role == DINP || role == DWEIGHT;
    args.type = sizeof(Real) == 2 ? CUDA_R_16BF : CUDA_R_32F;
    args.type_D = role == DWEIGHT ? CUDA_R_32F : args.type;
    args.accumulate = role == DWEIGHT;
    Real* A_device = operand_to_device<Real>(A, s.M, s.K, args.A_is_KM);
    Real* B_device = operand_to_device<Real>(B, s.N, s.K, args.B_is_KN);
    if (role == FORWARD) { args.bias = to_device<Real>(bias, (size_t)s.N); }
    void* D = result_to_device(start, n, args.type_D);
    gemm_plain(&gemm.plain, D, A_device, B_device, args, 0);
    result_from_device(got, D, n, args.type_D);

    double* want = (double*)malloc(n * sizeof(double));
    double* bound = (double*)malloc(n * sizeof(double));
    float* want_rounded = new_floats(n);
    reference(want, bound, A, B, s);
    double rounding = args.type_D == CUDA_R_16BF ? 1.0 / (1 << 8) : 1.0 / (1 << 24);
    for (size_t i = 0; i < n; i++) {
        double other = role == FORWARD ? bias[i % (size_t)s.N] : role == DWEIGHT ? start[i] : 0.0;
        want[i] += other;
        bound[i] = (bound[i] + fabs(other)) * (s.K + 1) / (1 << 24);
        bound[i] += (fabs(want[i]) + bound[i]) * rounding;
        want_rounded[i] = (float)want[i];
    }
    round_result(want_rounded, n, args.type_D);
    if (integers) { check_exact(name, got, want_rounded, shape2("mn", s.M, s.N)); }
    else { check_bounded(name, got, want, bound, shape2("mn", s.M, s.N)); }

    device_free_all();
    free(A);
    free(B);
    free(bias);
    free(start);
    free(got);
    free(want);
    free(bound);
    free(want_rounded);
}

// ---------------------------------------------------------------------------------------------
// NVFP4

// A host matrix's parts, and its copy on the device.
typedef struct { Nvfp4Matrix host, device; } TestMatrix;

static TestMatrix matrix_alloc(int rows, int cols) {
    TestMatrix m;
    size_t codes = nvfp4_codes_size((size_t)rows, (size_t)cols);
    size_t scales = nvfp4_scales_size((size_t)rows, (size_t)cols);
    m.host.rows = m.device.rows = rows;
    m.host.cols = m.device.cols = cols;
    m.device.codes = device_tensor<uint8_t>(codes);
    m.device.block_scales = device_tensor<uint8_t>(scales);
    m.device.amax = device_tensor<float>(1);
    m.host.codes = (uint8_t*)malloc(codes);
    m.host.block_scales = (uint8_t*)malloc(scales);
    m.host.amax = new_floats(1);
    return m;
}

static void matrix_free(TestMatrix m) {
    free(m.host.codes);
    free(m.host.block_scales);
    free(m.host.amax);
}

static void matrix_upload(TestMatrix m) {
    size_t rows = (size_t)m.host.rows, cols = (size_t)m.host.cols;
    cudaCheck(cudaMemcpy(m.device.codes, m.host.codes, nvfp4_codes_size(rows, cols),
                         cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(m.device.block_scales, m.host.block_scales, nvfp4_scales_size(rows, cols),
                         cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(m.device.amax, m.host.amax, sizeof(float), cudaMemcpyHostToDevice));
}

// Any codes; every block scale 1 or 2.
static void fill_codes(TestMatrix m, uint32_t stream) {
    size_t rows = (size_t)m.host.rows, cols = (size_t)m.host.cols;
    for (size_t i = 0; i < nvfp4_codes_size(rows, cols); i++) {
        m.host.codes[i] = (uint8_t)philox4x32(20260105, (uint32_t)i, 0, stream, 0).word[0];
    }
    memset(m.host.block_scales, 0, nvfp4_scales_size(rows, cols));
    for (size_t row = 0; row < rows; row++) {
        for (size_t block = 0; block < cols / NVFP4_BLOCK; block++) {
            uint32_t word = philox4x32(20260106, (uint32_t)row, (uint32_t)block, stream, 0).word[0];
            uint8_t* block_scale = m.host.block_scales + nvfp4_scale_offset(row, block, cols);
            *block_scale = e4m3_from_float(word & 1 ? 1.0f : 2.0f);
        }
    }
}

static void fill_quantized(TestMatrix m, uint32_t stream) {
    size_t n = (size_t)m.host.rows * m.host.cols;
    float* x = new_floats(n);
    fill_normal(x, n, stream, 0.0f, 1.0f);
    for (size_t i = 0; i < n; i++) { x[i] = bf16_round(x[i]); }
    Nvfp4Rounding nearest;
    memset(&nearest, 0, sizeof(nearest));
    check(nvfp4_quantize(&m.host, x, 1, nearest) == 0, "not finite");
    free(x);
}

static void test_nvfp4(GemmSize s, int integers, int accumulate) {
    cudaDataType_t type_D = accumulate ? CUDA_R_32F : CUDA_R_16BF;
    char name[80];
    snprintf(name, sizeof(name), "nvfp4 %s %s %d %d %d", accumulate ? "fp32 +=" : "bf16",
             integers ? "exact" : "bounded", s.M, s.N, s.K);
    size_t n = (size_t)s.M * s.N;
    TestMatrix A = matrix_alloc(s.M, s.K), B = matrix_alloc(s.N, s.K);
    float alpha_host;
    if (integers) {
        fill_codes(A, 11);
        fill_codes(B, 12);
        *A.host.amax = *B.host.amax = 1.0f;
        alpha_host = 0.25f;
    } else {
        fill_quantized(A, 11);
        fill_quantized(B, 12);
        alpha_host = nvfp4_alpha(*A.host.amax, *B.host.amax);
    }
    matrix_upload(A);
    matrix_upload(B);
    float* start = new_floats(n);
    fill_small_integers(start, n, 13);
    float* alpha = to_device<float>(&alpha_host, 1);
    void* D = result_to_device(start, n, type_D);
    float* got = new_floats(n);
    gemm_nvfp4(&gemm, D, accumulate ? GEMM_ADDS_FP32 : GEMM_STORES_BF16, &A.device, &B.device, alpha,
               0);
    result_from_device(got, D, n, type_D);

    float* A_values = new_floats((size_t)s.M * s.K);
    float* B_values = new_floats((size_t)s.N * s.K);
    double* want = (double*)malloc(n * sizeof(double));
    double* bound = (double*)malloc(n * sizeof(double));
    float* want_rounded = new_floats(n);
    nvfp4_expand(A_values, &A.host);
    nvfp4_expand(B_values, &B.host);
    reference(want, bound, A_values, B_values, s);
    double rounding = type_D == CUDA_R_16BF ? 1.0 / (1 << 8) : 1.0 / (1 << 24);
    for (size_t i = 0; i < n; i++) {
        double before = accumulate ? start[i] : 0.0;
        want[i] = want[i] * alpha_host + before;
        bound[i] = (bound[i] * alpha_host * (s.K + 2) + fabs(before)) / (1 << 24);
        bound[i] += (fabs(want[i]) + bound[i]) * rounding;
        want_rounded[i] = (float)want[i];
    }
    round_result(want_rounded, n, type_D);
    if (integers) { check_exact(name, got, want_rounded, shape2("mn", s.M, s.N)); }
    else { check_bounded(name, got, want, bound, shape2("mn", s.M, s.N)); }

    matrix_free(A);
    matrix_free(B);
    device_free_all();
    free(start);
    free(got);
    free(A_values);
    free(B_values);
    free(want);
    free(bound);
    free(want_rounded);
}

// ---------------------------------------------------------------------------------------------
// Twice the same bits, where cuBLASLt has most reason to split the sum

static void test_same_bits(GemmSize s) {
    size_t n = (size_t)s.M * s.N;
    float* x = new_floats((size_t)(s.M > s.N ? s.M : s.N) * s.K);
    float* first = new_floats(n);
    float* again = new_floats(n);
    fill_normal(x, (size_t)s.M * s.K, 21, 0.0f, 1.0f);
    GemmArgs args;
    memset(&args, 0, sizeof(args));
    args.M = s.M;
    args.N = s.N;
    args.K = s.K;
    args.A_is_KM = args.B_is_KN = 1;
    args.type = CUDA_R_16BF;
    args.type_D = CUDA_R_32F;
    __nv_bfloat16* A = to_device<__nv_bfloat16>(x, (size_t)s.M * s.K);
    fill_normal(x, (size_t)s.N * s.K, 22, 0.0f, 1.0f);
    __nv_bfloat16* B = to_device<__nv_bfloat16>(x, (size_t)s.N * s.K);
    float* D = device_tensor<float>(n);
    int differ = 0, runs = 10;
    for (int run = 0; run < runs; run++) {
        gemm_plain(&gemm.plain, D, A, B, args, 0);
        from_device(run == 0 ? first : again, D, n);
        differ += run > 0 && memcmp(first, again, n * sizeof(float)) != 0;
    }
    report(differ == 0, "same bits", "%d %d %d: %d of %d runs differ from the first", s.M, s.N, s.K,
           differ, runs - 1);
    device_free_all();
    free(x);
    free(first);
    free(again);
}

// The products that add to D, summed over parts of K. A plan holds for one number of parts.
static void test_parts(int parts) {
    wgrad_parts = parts;
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), 0);
    for (int i = 0; i < NUM_SIZES; i++) {
        if (sizes[i].K % (8 * parts) != 0 ||
            (RUNS_ON_CPU && (size_t)sizes[i].M * sizes[i].N * sizes[i].K > MOST_ON_CPU)) { continue; }
        for (int integers = 1; integers >= 0; integers--) {
            test_role<__nv_bfloat16>(sizes[i], DWEIGHT, integers);
            test_role<float>(sizes[i], DWEIGHT, integers);
        }
    }
    gemm_free(&gemm);
    wgrad_parts = 1;
}

int main(void) {
    if (device_missing("gemm")) { return 0; }
    size_t most = 0;
    for (int i = 0; i < NUM_SIZES; i++) {
        size_t elements = (size_t)(sizes[i].M + sizes[i].N) * sizes[i].K;
        most = elements > most ? elements : most;
    }
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), most);
    for (int i = 0; i < NUM_SIZES; i++) {
        if (RUNS_ON_CPU && (size_t)sizes[i].M * sizes[i].N * sizes[i].K > MOST_ON_CPU) {
            char name[80];
            snprintf(name, sizeof(name), "%d %d %d", sizes[i].M, sizes[i].N, sizes[i].K);
            report_skip(name, "takes too long without a GPU");
            continue;
        }
        for (int integers = 1; integers >= 0; integers--) {
            for (int role = FORWARD; role <= DWEIGHT; role++) {
                test_role<__nv_bfloat16>(sizes[i], role, integers);
                test_role<float>(sizes[i], role, integers);
            }
            test_nvfp4(sizes[i], integers, 0);
            test_nvfp4(sizes[i], integers, 1);
        }
    }
    static const GemmSize long_sums[] = { { 64, 64, 65536 }, { 768, 768, 16384 },
                                          { 2304, 768, 4096 } };
    for (int i = 0; i < 3 && !RUNS_ON_CPU; i++) { test_same_bits(long_sums[i]); }
    if (RUNS_ON_CPU) { report_skip("same bits", "about cuBLASLt, which is not in this program"); }
    gemm_free(&gemm);
    test_parts(2);
    test_parts(7);
    return report_status();
}
