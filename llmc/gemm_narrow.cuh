/*
What gemm_fp4.cuh and gemm_fp8.cuh share: products of matrices in narrow formats, FP4 and FP8, by
cuBLASLt. They differ in what they tell it of an operand (type, kind of scales) and in how the scales
get to where it wants them.

A product that this GPU or library does not have is an answer, not an error: these functions return
the status, and gemm.cuh says what follows.
*/
#ifndef LLMC_GEMM_NARROW_CUH
#define LLMC_GEMM_NARROW_CUH

#include "gemm_plain.cuh"
#include "quantizer.h"

// What becomes of the sums: fprop and dgrad store them in BF16 (D = ...), wgrad adds them to a
// gradient in FP32 (D += ...).
typedef enum { GEMM_STORES_BF16, GEMM_ADDS_FP32, NUM_GEMM_RESULTS } GemmResult;

// D (M,N) from A (M,K) and B (N,K), which were quantized as this says.
typedef struct { int M, N, K; GemmResult result; Quantizer A, B; } GemmProduct;

static inline cudaDataType_t gemm_result_type(GemmResult result) {
    return result == GEMM_ADDS_FP32 ? CUDA_R_32F : CUDA_R_16BF;
}

static inline GemmProduct gemm_product(GemmResult result, const Nvfp4Matrix* A, const Quantizer* qa,
                                       const Nvfp4Matrix* B, const Quantizer* qb) {
    GemmProduct p = { A->rows, B->rows, A->cols, result, *qa, *qb };
    return p;
}

// What cuBLASLt is told of an operand: the type of its elements, and CUBLASLT_MATMUL_MATRIX_SCALE_..
typedef struct { cudaDataType_t type; int32_t scales; } GemmNarrowOperand;

typedef struct { int M, N, K; GemmResult result; GemmNarrowOperand A, B; } GemmNarrowArgs;

// What cuBLASLt knows about one product, or why there is nothing to know.
typedef struct {
    GemmNarrowArgs args;
    cublasStatus_t status;      // CUBLAS_STATUS_SUCCESS, or the answer that there is no kernel
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t A, B, D;
    cublasLtMatmulAlgo_t kernel;
} GemmNarrowPlan;

typedef struct {
    const GemmPlain* shared;    // its handle, workspace and constants serve here too
    GemmNarrowPlan plans[GEMM_MAX_PLANS];
    int num_plans;
} GemmNarrow;

static inline void gemm_narrow_free(GemmNarrow* g) {
    for (int i = 0; i < g->num_plans; i++) {
        GemmNarrowPlan* plan = &g->plans[i];
        if (plan->operation != NULL) { cublasCheck(cublasLtMatmulDescDestroy(plan->operation)); }
        if (plan->A != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->A)); }
        if (plan->B != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->B)); }
        if (plan->D != NULL) { cublasCheck(cublasLtMatrixLayoutDestroy(plan->D)); }
    }
}

// ---------------------------------------------------------------------------------------------
// Plans

static inline void gemm_narrow_set_scales(const GemmNarrowPlan* plan, const void* A_scales,
                                          const void* B_scales) {
    cublasCheck(cublasLtMatmulDescSetAttribute(
        plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &B_scales, sizeof(B_scales)));
    cublasCheck(cublasLtMatmulDescSetAttribute(
        plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &A_scales, sizeof(A_scales)));
}

// Describes the product and asks for a kernel; returns the first answer that is not SUCCESS. As in
// gemm_plain.cuh, cuBLAS sees every matrix transposed and computes D^T (N,M) = B @ A^T, with our B
// as its first operand: its m is our N, its n our M. Both operands are contiguous along K, which it
// calls TN.
//
// No fast accumulation: with it Hopper's FP8 tensor cores keep the whole sum in 14 bits, and do not
// move it to FP32 registers every so often. At K = 4096 the largest error is then nearly 2 %
// [DeepSeek-V3, arXiv 2412.19437, 3.3.2]. Other products do not know the difference.
static inline cublasStatus_t gemm_narrow_describe(GemmNarrowPlan* plan, const GemmPlain* shared) {
    GemmNarrowArgs a = plan->args;
    cublasStatus_t status = cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F,
                                                     CUDA_R_32F);
    const struct { cublasLtMatmulDescAttributes_t attribute; int32_t value; } settings[] = {
        { CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T },
        { CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N },
        { CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE },
        { CUBLASLT_MATMUL_DESC_A_SCALE_MODE, a.B.scales },
        { CUBLASLT_MATMUL_DESC_B_SCALE_MODE, a.A.scales },
    };
    for (int i = 0; i < 5 && status == CUBLAS_STATUS_SUCCESS; i++) {
        status = cublasLtMatmulDescSetAttribute(plan->operation, settings[i].attribute,
                                                &settings[i].value, sizeof(settings[i].value));
    }
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    const int8_t fast = 0;
    cublasCheck(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM,
                                               &fast, sizeof(fast)));
    // The heuristic looks whether there are block scales, not at them; each call sets its own.
    const void* some = shared->workspace;
    gemm_narrow_set_scales(plan,
                           a.A.scales == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F ? NULL : some,
                           a.B.scales == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F ? NULL : some);
    plan->A = gemm_layout(a.A.type, a.M, a.K);
    plan->B = gemm_layout(a.B.type, a.N, a.K);
    plan->D = gemm_layout(gemm_result_type(a.result), a.M, a.N);
    return gemm_find_kernel(&plan->kernel, shared, plan->operation, plan->B, plan->A, plan->D);
}

// The plan for such a product, made when it is first asked for. M, N, K: multiples of 16.
static inline GemmNarrowPlan* gemm_narrow_plan(GemmNarrow* g, GemmNarrowArgs a) {
    for (int i = 0; i < g->num_plans; i++) {
        GemmNarrowArgs b = g->plans[i].args;
        if (a.M == b.M && a.N == b.N && a.K == b.K && a.result == b.result
            && a.A.type == b.A.type && a.A.scales == b.A.scales && a.B.type == b.B.type
            && a.B.scales == b.B.scales) { return &g->plans[i]; }
    }
    check(a.M > 0 && a.N > 0 && a.K > 0 && a.M % 16 == 0 && a.N % 16 == 0 && a.K % 16 == 0,
          "D (%d, %d), K = %d: all have to be multiples of 16", a.M, a.N, a.K);
    check(g->num_plans < GEMM_MAX_PLANS, "more than %d kinds of matrix product", GEMM_MAX_PLANS);
    GemmNarrowPlan* plan = &g->plans[g->num_plans++];
    plan->args = a;
    plan->status = gemm_narrow_describe(plan, g->shared);
    return plan;
}

// ---------------------------------------------------------------------------------------------

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T, or D += where the plan says so. Scales: NULL
// where there are none. All addresses are multiples of 16.
static inline cublasStatus_t gemm_narrow(const GemmNarrow* g, const GemmNarrowPlan* plan, void* D,
                                         const uint8_t* A_codes, const void* A_scales,
                                         const uint8_t* B_codes, const void* B_scales,
                                         const float* alpha, cudaStream_t stream) {
    check((((uintptr_t)D | (uintptr_t)A_codes | (uintptr_t)B_codes | (uintptr_t)A_scales |
            (uintptr_t)B_scales) & 15) == 0, "an address is not a multiple of 16: D %p, codes %p "
          "and %p, scales %p and %p", D, (const void*)A_codes, (const void*)B_codes, A_scales,
          B_scales);
    gemm_narrow_set_scales(plan, A_scales, B_scales);
    const float* beta = g->shared->zero_one + (plan->args.result == GEMM_ADDS_FP32);
    return cublasLtMatmul(g->shared->handle, plan->operation, alpha, B_codes, plan->B, A_codes,
                          plan->A, beta, D, plan->D, D, plan->D, &plan->kernel,
                          g->shared->workspace, GEMM_WORKSPACE_BYTES, stream);
}

#endif
