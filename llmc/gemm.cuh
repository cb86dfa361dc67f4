/*
Matrix products, and the one place that decides how quantized operands are multiplied. A product of
two quantized matrices always has the form

    D (M,N) = alpha * A (M,K) @ B (N,K)^T          both operands contiguous along K

because that is the only form the FP4 tensor cores take, and those for FP8 up to Hopper. Callers
quantize along K; they never transpose. Products of matrices that are not quantized go to gemm_plain.

There is a path for every format and, for some, a faster one. The start-up self-test (self_test.cuh)
finds out which of them this machine has and gets right, and chooses once, for each of the two things
that become of a product:

    fp4        NVFP4 on FP4 tensor cores, by cuBLASLt: compute capability 10.0 and newer. Never yet
               run.
    fp8        FP8 on FP8 tensor cores, by cuBLASLt: 8.9 and newer; FP8BLOCK: 9.0 alone
    emulated   operands expanded to BF16, multiplied as BF16: every format, any GPU from sm_80 on

All take the same operands, bit for bit, and differ in the order and width of the sum over K alone.
*/
#ifndef LLMC_GEMM_CUH
#define LLMC_GEMM_CUH

#include "device_memory.cuh"
#include "gemm_emulated.cuh"
#include "gemm_fp4.cuh"
#include "gemm_fp8.cuh"
#include "gemm_plain.cuh"

typedef enum { GEMM_AUTO, GEMM_EMULATED, GEMM_FP4, GEMM_FP8, NUM_GEMM_PATHS } GemmPath;

typedef struct { GemmPath of[NUM_GEMM_RESULTS]; } GemmPaths;    // never GEMM_AUTO

#define GEMM_SCRATCH_FAMILY "expanded NVFP4 operands"

typedef struct {
    GemmPaths paths;
    GemmPlain plain;
    GemmFp4 fp4;
    GemmFp8 fp8;
    size_t scratch_size;        // elements of scratch
    __nv_bfloat16* scratch;     // the two operands of an emulated product, expanded
} Gemm;

static inline const char* gemm_path_name(GemmPath path) {
    static const char* names[NUM_GEMM_PATHS] = { "auto", "emulated", "fp4", "fp8" };
    return names[path];
}

// The path that flag -g names.
static inline GemmPath gemm_path_parse(const char* text) {
    for (int path = 0; path < NUM_GEMM_PATHS; path++) {
        if (strcmp(text, gemm_path_name((GemmPath)path)) == 0) { return (GemmPath)path; }
    }
    check(0, "-g %s: the GEMM path is auto, emulated, fp4 or fp8", text);
    return GEMM_AUTO;
}

// The faster path of a format; GEMM_EMULATED if it has none.
static inline GemmPath gemm_native_path(Format format) {
    return format == FORMAT_NVFP4 ? GEMM_FP4 : gemm_fp8_has(format) ? GEMM_FP8 : GEMM_EMULATED;
}

static inline GemmPaths gemm_paths(GemmPath path) {
    GemmPaths paths;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) { paths.of[r] = path; }
    return paths;
}

// Elements of the two operands of the largest of these products: what emulation has to hold.
static inline size_t gemm_most_elements(const GemmProduct* products, int num_products) {
    size_t most = 0;
    for (const GemmProduct* p = products; p < products + num_products; p++) {
        size_t elements = ((size_t)p->M + (size_t)p->N) * (size_t)p->K;
        most = elements > most ? elements : most;
    }
    return most;
}

// most_elements: (M + N) * K of the largest product of quantized matrices there will be; 0 if there
// will be none.
static inline void gemm_create(Gemm* g, GemmPaths paths, size_t most_elements) {
    g->paths = paths;
    gemm_plain_create(&g->plain);
    gemm_fp4_create(&g->fp4, &g->plain);
    gemm_fp8_create(&g->fp8, &g->plain);
    int emulates = 0;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) { emulates |= paths.of[r] == GEMM_EMULATED; }
    g->scratch_size = emulates ? most_elements : 0;
    g->scratch = (__nv_bfloat16*)device_alloc(g->scratch_size * sizeof(__nv_bfloat16),
                                              GEMM_SCRATCH_FAMILY);
}

static inline void gemm_free(Gemm* g) {
    gemm_fp4_free(&g->fp4);
    gemm_fp8_free(&g->fp8);
    gemm_plain_free(&g->plain);
    device_free(g->scratch, g->scratch_size * sizeof(__nv_bfloat16), GEMM_SCRATCH_FAMILY);
}

// CUBLAS_STATUS_SUCCESS if this GPU and library have this product on the faster path of its format.
static inline cublasStatus_t gemm_native_plan(Gemm* g, GemmProduct p) {
    switch (gemm_native_path(p.A.format)) {
        case GEMM_FP4: return gemm_fp4_plan(&g->fp4, p);
        case GEMM_FP8: return gemm_fp8_plan(&g->fp8, p);
        default:       return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T in BF16, or D += in FP32: `result` says which. A
// and B were quantized as qa and qb say, in one format. Sums are FP32 and rounded once. Returns what
// cuBLASLt answers.
static inline cublasStatus_t gemm_quantized_try(Gemm* g, void* D, GemmResult result,
                                                const Nvfp4Matrix* A, const Quantizer* qa,
                                                const Nvfp4Matrix* B, const Quantizer* qb,
                                                const float* alpha, cudaStream_t stream) {
    check(A->cols == B->cols && qa->format == qb->format, "operands contract %d elements in %s and "
          "%d in %s", A->cols, format_name(qa->format), B->cols, format_name(qb->format));
    GemmPath path = g->paths.of[result];
    if (path == GEMM_FP4 && gemm_native_path(qa->format) == GEMM_FP4) {
        return gemm_fp4(&g->fp4, D, result, A, B, alpha, stream);
    }
    if (path == GEMM_FP8 && gemm_native_path(qa->format) == GEMM_FP8) {
        return gemm_fp8(&g->fp8, D, result, A, qa, B, qb, alpha, stream);
    }
    size_t elements = ((size_t)A->rows + B->rows) * A->cols;
    check(elements <= g->scratch_size, "operands of %zu elements, scratch for %zu", elements,
          g->scratch_size);
    if (qa->format == FORMAT_NVFP4) {
        gemm_emulated(&g->plain, g->scratch, D, gemm_result_type(result), result == GEMM_ADDS_FP32,
                      A, B, alpha, stream);
    } else {
        gemm_emulated_any(&g->plain, g->scratch, D, gemm_result_type(result),
                          result == GEMM_ADDS_FP32, A, qa, B, qb, alpha, stream);
    }
    return CUBLAS_STATUS_SUCCESS;
}

// The same where there is nothing left to try: anything but success ends the program.
static inline void gemm_quantized(Gemm* g, void* D, GemmResult result, const Nvfp4Matrix* A,
                                  const Quantizer* qa, const Nvfp4Matrix* B, const Quantizer* qb,
                                  const float* alpha, cudaStream_t stream) {
    cublasStatus_t status = gemm_quantized_try(g, D, result, A, qa, B, qb, alpha, stream);
    check(status == CUBLAS_STATUS_SUCCESS, "GEMM path %s of %s, D (%d, %d), K = %d: %s; -g emulated "
          "needs no such tensor cores", gemm_path_name(g->paths.of[result]),
          format_name(qa->format), A->rows, B->rows, A->cols, cublasLtGetStatusString(status));
}

// The same for NVFP4, which is one format to a GEMM, whatever the recipe.
static inline void gemm_nvfp4(Gemm* g, void* D, GemmResult result, const Nvfp4Matrix* A,
                              const Nvfp4Matrix* B, const float* alpha, cudaStream_t stream) {
    Quantizer q = quantizer_nvfp4(0);
    gemm_quantized(g, D, result, A, &q, B, &q, alpha, stream);
}

#endif
