/*
NVFP4 products on FP4 tensor cores, through cuBLASLt: GPUs of compute capability 10.0 and newer,
Blackwell. Compiled against cuBLASLt 13.1, checked against a model of its contract
(dev/test/cublaslt_model.c) and by the start-up self-test; NEVER YET RUN on such a GPU.

The contract [cuBLAS documentation, "Narrow precision data types usage" and "1D block scaling factors
layout"], and who keeps it:

    both operands contiguous along K (transA T, transB N)       every operand of linear.cuh is
    two codes to a byte, the even one in the low nibble         nvfp4.h, e2m1_pack
    block scales in tiles of 128 x 4, the padding zero          nvfp4.h, nvfp4_scale_offset; who
                                                                allocates a matrix zeroes its scales
    the sum times alpha, FP32, which holds both tensor scales   quantize_alpha
    K a multiple of 32                                          here: an odd block more of zeros
    rows of D of a multiple of 16 bytes                         here: checked, N is a multiple of 16
    all addresses multiples of 16                               here: checked
    no scale of D unless D is FP4; no bias in the epilogue      here: bias_add comes after

A product that this GPU or library does not have is an answer, not an error: these functions return
the status, and gemm.cuh says what follows.
*/
#ifndef LLMC_GEMM_FP4_CUH
#define LLMC_GEMM_FP4_CUH

#include "gemm_plain.cuh"
#include "quantize.cuh"

// What becomes of the sums: fprop and dgrad store them in BF16 (D = ...), wgrad adds them to a
// gradient in FP32 (D += ...).
typedef enum { GEMM_STORES_BF16, GEMM_ADDS_FP32, NUM_GEMM_RESULTS } GemmResult;

// D (M,N) from A (M,K) and B (N,K).
typedef struct { int M, N, K; GemmResult result; } GemmProduct;

static inline cudaDataType_t gemm_result_type(GemmResult result) {
    return result == GEMM_ADDS_FP32 ? CUDA_R_32F : CUDA_R_16BF;
}

// What cuBLASLt knows about one product, or why there is nothing to know.
typedef struct {
    GemmProduct product;
    cublasStatus_t status;      // CUBLAS_STATUS_SUCCESS, or the answer that there is no kernel
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t A, B, D;
    cublasLtMatmulAlgo_t kernel;
} GemmFp4Plan;

typedef struct {
    const GemmPlain* shared;    // its handle, workspace and constants serve here too
    GemmFp4Plan plans[GEMM_MAX_PLANS];
    int num_plans;
    size_t padded_size;         // bytes
    uint8_t* padded;            // codes of both operands, where K is not a multiple of 32
} GemmFp4;

static inline void gemm_fp4_create(GemmFp4* g, const GemmPlain* shared) {
    memset(g, 0, sizeof(*g));
    g->shared = shared;
}

static inline void gemm_fp4_free(GemmFp4* g) {
    for (int i = 0; i < g->num_plans; i++) {
        GemmFp4Plan* plan = &g->plans[i];
        if (plan->operation != NULL) { cublasCheck(cublasLtMatmulDescDestroy(plan->operation)); }
        if (plan->A != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->A)); }
        if (plan->B != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->B)); }
        if (plan->D != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->D)); }
    }
    cudaCheck(cudaFree(g->padded));
}

// ---------------------------------------------------------------------------------------------
// Plans

// K as cuBLASLt is told it. Matrices here have K in whole blocks of 16; a row of codes has to be a
// multiple of 16 bytes, two blocks. The layout of the scales is the same for both: 4 blocks share a
// tile, and a block more never begins another.
static inline int gemm_fp4_padded_K(int K) { return (K + 31) / 32 * 32; }

static inline cublasStatus_t gemm_fp4_set(cublasLtMatmulDesc_t operation,
                                          cublasLtMatmulDescAttributes_t attribute, int32_t value) {
    return cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value));
}

// Describes the product and asks for a kernel; returns the first answer that is not SUCCESS. As in
// gemm_plain.cuh, cuBLAS sees every matrix transposed and computes D^T (N,M) = B @ A^T, with our B
// as its first operand: its m is our N, its n our M.
static inline cublasStatus_t gemm_fp4_describe(GemmFp4Plan* plan, const GemmPlain* shared) {
    GemmProduct p = plan->product;
    int K = gemm_fp4_padded_K(p.K);
    cublasStatus_t status = cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F,
                                                     CUDA_R_32F);
    const struct { cublasLtMatmulDescAttributes_t attribute; int32_t value; } settings[] = {
        { CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T },
        { CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N },
        { CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE },
        { CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 },
        { CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 },
    };
    for (int i = 0; i < 5 && status == CUBLAS_STATUS_SUCCESS; i++) {
        status = gemm_fp4_set(plan->operation, settings[i].attribute, settings[i].value);
    }
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    // The heuristic looks whether there are scales, not at them; each call sets its own.
    const void* scales = shared->workspace;
    cublasCheck(cublasLtMatmulDescSetAttribute(
        plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scales, sizeof(scales)));
    cublasCheck(cublasLtMatmulDescSetAttribute(
        plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scales, sizeof(scales)));
    plan->A = gemm_layout(CUDA_R_4F_E2M1, p.M, K);
    plan->B = gemm_layout(CUDA_R_4F_E2M1, p.N, K);
    plan->D = gemm_layout(gemm_result_type(p.result), p.M, p.N);
    return gemm_find_kernel(&plan->kernel, shared, plan->operation, plan->B, plan->A, plan->D);
}

static inline GemmFp4Plan* gemm_fp4_find(GemmFp4* g, GemmProduct p) {
    for (int i = 0; i < g->num_plans; i++) {
        GemmProduct q = g->plans[i].product;
        if (p.M == q.M && p.N == q.N && p.K == q.K && p.result == q.result) {
            return &g->plans[i];
        }
    }
    check(p.M > 0 && p.N > 0 && p.K > 0 && p.N % NVFP4_BLOCK == 0 && p.K % NVFP4_BLOCK == 0,
          "D (%d, %d), K = %d: N and K have to be multiples of %d", p.M, p.N, p.K, NVFP4_BLOCK);
    check(g->num_plans < GEMM_MAX_PLANS, "more than %d kinds of matrix product", GEMM_MAX_PLANS);
    GemmFp4Plan* plan = &g->plans[g->num_plans++];
    plan->product = p;
    plan->status = gemm_fp4_describe(plan, g->shared);
    return plan;
}

// CUBLAS_STATUS_SUCCESS if this GPU and library multiply such matrices; then the plan is kept. Any
// other status is the reason why not.
static inline cublasStatus_t gemm_fp4_plan(GemmFp4* g, GemmProduct product) {
    return gemm_fp4_find(g, product)->status;
}

// ---------------------------------------------------------------------------------------------

// to (rows, K/2 + 8 bytes) = the codes of x (rows, K/2 bytes), with a block of zeros behind each row
static inline void gemm_fp4_pad(uint8_t* to, const Nvfp4Matrix* x, cudaStream_t stream) {
    size_t bytes = (size_t)x->cols / 2, padding = NVFP4_BLOCK / 2;
    cudaCheck(cudaMemcpy2DAsync(to, bytes + padding, x->codes, bytes, bytes, (size_t)x->rows,
                                cudaMemcpyDeviceToDevice, stream));
    cudaCheck(cudaMemset2DAsync(to + bytes, bytes + padding, 0, padding, (size_t)x->rows, stream));
}

// The codes of A and B as cuBLASLt takes them: in place, or padded to an even number of blocks.
static inline void gemm_fp4_codes(GemmFp4* g, const uint8_t** A_codes, const uint8_t** B_codes,
                                  const Nvfp4Matrix* A, const Nvfp4Matrix* B, cudaStream_t stream) {
    *A_codes = A->codes;
    *B_codes = B->codes;
    int K = gemm_fp4_padded_K(A->cols);
    if (K == A->cols) { return; }
    size_t A_size = nvfp4_codes_size((size_t)A->rows, (size_t)K);
    size_t B_size = nvfp4_codes_size((size_t)B->rows, (size_t)K);
    if (A_size + B_size > g->padded_size) {
        cudaCheck(cudaFree(g->padded));             // waits for who still reads it
        g->padded_size = A_size + B_size;
        g->padded = (uint8_t*)cuda_malloc(g->padded_size, "padded NVFP4 operands");
    }
    gemm_fp4_pad(g->padded, A, stream);
    gemm_fp4_pad(g->padded + A_size, B, stream);
    *A_codes = g->padded;
    *B_codes = g->padded + A_size;
}

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T, or D += where the result says so. All sizes
// are multiples of 16, all addresses too.
static inline cublasStatus_t gemm_fp4(GemmFp4* g, void* D, GemmResult result, const Nvfp4Matrix* A,
                                      const Nvfp4Matrix* B, const float* alpha,
                                      cudaStream_t stream) {
    GemmProduct product;
    product.M = A->rows;
    product.N = B->rows;
    product.K = A->cols;
    product.result = result;
    const GemmFp4Plan* plan = gemm_fp4_find(g, product);
    if (plan->status != CUBLAS_STATUS_SUCCESS) { return plan->status; }

    const uint8_t *A_codes, *B_codes;
    gemm_fp4_codes(g, &A_codes, &B_codes, A, B, stream);
    check((((uintptr_t)D | (uintptr_t)A_codes | (uintptr_t)B_codes | (uintptr_t)A->block_scales |
            (uintptr_t)B->block_scales) & 15) == 0, "an address is not a multiple of 16: D %p, "
          "codes %p and %p, scales %p and %p", D, (const void*)A_codes, (const void*)B_codes,
          (const void*)A->block_scales, (const void*)B->block_scales);
    cublasCheck(cublasLtMatmulDescSetAttribute(plan->operation,
                                               CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                               &B->block_scales, sizeof(B->block_scales)));
    cublasCheck(cublasLtMatmulDescSetAttribute(plan->operation,
                                               CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                                               &A->block_scales, sizeof(A->block_scales)));
    const float* beta = g->shared->zero_one + (result == GEMM_ADDS_FP32);
    return cublasLtMatmul(g->shared->handle, plan->operation, alpha, B_codes, plan->B, A_codes,
                          plan->A, beta, D, plan->D, D, plan->D, &plan->kernel,
                          g->shared->workspace, GEMM_WORKSPACE_BYTES, stream);
}

#endif
