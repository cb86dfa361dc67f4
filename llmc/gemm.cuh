/*
Matrix products, and the one place that decides how NVFP4 operands are multiplied. A product of two
quantized matrices always has the form

    D (M,N) = alpha * A (M,K) @ B (N,K)^T          both operands contiguous along K

because that is the only form the FP4 tensor cores take. Callers quantize along K; they never
transpose. Products of matrices that are not quantized go to gemm_plain.

A path is chosen once, at start:

    emulated   operands expanded to BF16, multiplied as BF16: any GPU from sm_80 on
*/
#ifndef LLMC_GEMM_CUH
#define LLMC_GEMM_CUH

#include "device_memory.cuh"
#include "gemm_emulated.cuh"
#include "gemm_plain.cuh"

typedef enum { GEMM_AUTO, GEMM_EMULATED } GemmPath;

typedef struct {
    GemmPath path;              // never GEMM_AUTO
    GemmPlain plain;
    size_t scratch_size;        // elements of scratch
    __nv_bfloat16* scratch;     // the two operands of a product, expanded
} Gemm;

// The path that flag -g names.
static inline GemmPath gemm_path_parse(const char* text) {
    if (strcmp(text, "auto") == 0) { return GEMM_AUTO; }
    check(strcmp(text, "emulated") == 0, "-g %s: the GEMM path is auto or emulated", text);
    return GEMM_EMULATED;
}

// The chosen path and the reason, for the start-up printout.
static inline const char* gemm_path_text(GemmPath path) {
    switch (path) {
        case GEMM_EMULATED: return "emulated (NVFP4 operands expanded to BF16, which is exact)";
        case GEMM_AUTO: break;
    }
    return "not chosen yet";
}

// most_elements: (M + N) * K of the largest NVFP4 product there will be; 0 if there will be none.
static inline void gemm_create(Gemm* g, GemmPath requested, size_t most_elements) {
    g->path = requested == GEMM_AUTO ? GEMM_EMULATED : requested;
    gemm_plain_create(&g->plain);
    g->scratch_size = most_elements;
    g->scratch = (__nv_bfloat16*)device_alloc(most_elements * sizeof(__nv_bfloat16),
                                              "expanded NVFP4 operands");
}

static inline void gemm_free(Gemm* g) {
    gemm_plain_free(&g->plain);
    cudaCheck(cudaFree(g->scratch));
}

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T, or D += for accumulate. D is BF16 or FP32
// (type_D: CUDA_R_16BF or CUDA_R_32F); sums are FP32 and rounded once.
static inline void gemm_nvfp4(Gemm* g, void* D, cudaDataType_t type_D, int accumulate,
                              const Nvfp4Matrix* A, const Nvfp4Matrix* B, const float* alpha,
                              cudaStream_t stream) {
    check(A->cols == B->cols, "operands contract %d and %d elements", A->cols, B->cols);
    switch (g->path) {
        case GEMM_EMULATED: {
            size_t elements = ((size_t)A->rows + B->rows) * A->cols;
            check(elements <= g->scratch_size, "operands of %zu elements, scratch for %zu",
                  elements, g->scratch_size);
            gemm_emulated(&g->plain, g->scratch, D, type_D, accumulate, A, B, alpha, stream);
            break;
        }
        case GEMM_AUTO: check(0, "gemm_create was not called"); break;
    }
}

#endif
