/*
Matrix products, and the one place that decides how NVFP4 operands are multiplied. A product of two
quantized matrices always has the form

    D (M,N) = alpha * A (M,K) @ B (N,K)^T          both operands contiguous along K

because that is the only form the FP4 tensor cores take. Callers quantize along K; they never
transpose. Products of matrices that are not quantized go to gemm_plain.

There are two paths. The start-up self-test (self_test.cuh) finds out which of them this machine has
and gets right, and chooses once, for each of the two things that become of a product:

    fp4        FP4 tensor cores, by cuBLASLt: compute capability 10.0 and newer. Never yet run.
    emulated   operands expanded to BF16, multiplied as BF16: any GPU from sm_80 on

Both take the same operands, bit for bit, and differ in the order and width of the sum over K alone.
*/
#ifndef LLMC_GEMM_CUH
#define LLMC_GEMM_CUH

#include "device_memory.cuh"
#include "gemm_emulated.cuh"
#include "gemm_fp4.cuh"
#include "gemm_plain.cuh"

typedef enum { GEMM_AUTO, GEMM_EMULATED, GEMM_FP4 } GemmPath;

typedef struct { GemmPath of[NUM_GEMM_RESULTS]; } GemmPaths;    // never GEMM_AUTO

#define GEMM_SCRATCH_FAMILY "expanded NVFP4 operands"

typedef struct {
    GemmPaths paths;
    GemmPlain plain;
    GemmFp4 fp4;
    size_t scratch_size;        // elements of scratch
    __nv_bfloat16* scratch;     // the two operands of an emulated product, expanded
} Gemm;

// The path that flag -g names.
static inline GemmPath gemm_path_parse(const char* text) {
    if (strcmp(text, "auto") == 0) { return GEMM_AUTO; }
    if (strcmp(text, "emulated") == 0) { return GEMM_EMULATED; }
    check(strcmp(text, "fp4") == 0, "-g %s: the GEMM path is auto, emulated or fp4", text);
    return GEMM_FP4;
}

static inline const char* gemm_path_name(GemmPath path) {
    return path == GEMM_FP4 ? "fp4" : path == GEMM_EMULATED ? "emulated" : "auto";
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

// most_elements: (M + N) * K of the largest NVFP4 product there will be; 0 if there will be none.
static inline void gemm_create(Gemm* g, GemmPaths paths, size_t most_elements) {
    g->paths = paths;
    gemm_plain_create(&g->plain);
    gemm_fp4_create(&g->fp4, &g->plain);
    int emulates = 0;
    for (int r = 0; r < NUM_GEMM_RESULTS; r++) { emulates |= paths.of[r] == GEMM_EMULATED; }
    g->scratch_size = emulates ? most_elements : 0;
    g->scratch = (__nv_bfloat16*)device_alloc(g->scratch_size * sizeof(__nv_bfloat16),
                                              GEMM_SCRATCH_FAMILY);
}

static inline void gemm_free(Gemm* g) {
    gemm_fp4_free(&g->fp4);
    gemm_plain_free(&g->plain);
    device_free(g->scratch, g->scratch_size * sizeof(__nv_bfloat16), GEMM_SCRATCH_FAMILY);
}

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T in BF16, or D += in FP32: `result` says which.
// Sums are FP32 and rounded once. Returns what cuBLASLt answers.
static inline cublasStatus_t gemm_nvfp4_try(Gemm* g, void* D, GemmResult result,
                                            const Nvfp4Matrix* A, const Nvfp4Matrix* B,
                                            const float* alpha, cudaStream_t stream) {
    check(A->cols == B->cols, "operands contract %d and %d elements", A->cols, B->cols);
    if (g->paths.of[result] == GEMM_FP4) {
        return gemm_fp4(&g->fp4, D, result, A, B, alpha, stream);
    }
    size_t elements = ((size_t)A->rows + B->rows) * A->cols;
    check(elements <= g->scratch_size, "operands of %zu elements, scratch for %zu", elements,
          g->scratch_size);
    gemm_emulated(&g->plain, g->scratch, D, gemm_result_type(result), result == GEMM_ADDS_FP32, A,
                  B, alpha, stream);
    return CUBLAS_STATUS_SUCCESS;
}

// The same where there is nothing left to try: anything but success ends the program.
static inline void gemm_nvfp4(Gemm* g, void* D, GemmResult result, const Nvfp4Matrix* A,
                              const Nvfp4Matrix* B, const float* alpha, cudaStream_t stream) {
    cublasStatus_t status = gemm_nvfp4_try(g, D, result, A, B, alpha, stream);
    check(status == CUBLAS_STATUS_SUCCESS, "GEMM path %s, D (%d, %d), K = %d: %s; -g emulated "
          "needs no FP4 tensor cores", gemm_path_name(g->paths.of[result]), A->rows, B->rows,
          A->cols, cublasLtGetStatusString(status));
}

#endif
