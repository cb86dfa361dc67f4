/*
Matrix products in the formats that every supported GPU multiplies: BF16 and FP32. The products
that the recipe leaves in high precision come here, and the emulated products of quantized operands
after expansion.

Multiplied by cuBLASLt: sums in FP32, one rounding when D is stored. FP32 inputs are multiplied as
FP32, never as TF32. What cuBLASLt needs to know about a product, above all which of its kernels to
run, is found once for each form and size, and kept.

The same call gives the same bits every time. Three things see to it: a sum over K may be split only
if the parts are kept in FP32 and added in a separate step, not in the order in which they happen to
arrive; the kernel is the first choice of cuBLASLt's heuristic, which knows sizes only, not the one
that won a race; and there is one workspace, for one stream.
*/
#ifndef LLMC_GEMM_PLAIN_CUH
#define LLMC_GEMM_PLAIN_CUH

#include "cuda_common.cuh"

#define GEMM_WORKSPACE_BYTES ((size_t)32 << 20)     // what NVIDIA advises for Hopper
#define GEMM_MAX_PLANS 128
#ifndef GEMM_WGRAD_PARTS            // what another order of sums does to a run: dev/gpu_ranks.sh
#define GEMM_WGRAD_PARTS 1          // products that add to D are computed in so many parts of K
#endif

// What to compute:  D (M,N) = alpha * A (M,K) @ B (N,K)^T + beta * D + bias (N).  A and B lie in
// memory as written, or the other way round if the flag says so. The products of a linear layer:
//
//                                        M   N   K     A       B        the other way round
//     out (N,OC)  = inp weight^T + bias  N   OC  C     inp     weight   neither
//     dinp (N,C)  = dout weight          N   C   OC    dout    weight   B: (OC,C) is (K,N)
//     dweight (OC,C) += dout^T inp       OC  C   N     dout    inp      A: (N,OC), B: (N,C)
typedef struct {
    int M, N, K;
    int A_is_KM, B_is_KN;       // stored as (K,M) instead of (M,K); as (K,N) instead of (N,K)
    cudaDataType_t type;        // of A and B: CUDA_R_16BF or CUDA_R_32F
    cudaDataType_t type_D;      // of D and bias: the same, or CUDA_R_32F
    int accumulate;             // beta: add to what D holds
    const void* bias;           // (N), or NULL
    const float* alpha;         // (1) on the device, or NULL for 1
} GemmArgs;

// What cuBLASLt knows about one kind of product.
typedef struct {
    GemmArgs args;              // of the call that made it
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t A, B, D;
    cublasLtMatmulAlgo_t kernel;
} GemmPlan;

typedef struct {
    cublasLtHandle_t handle;
    void* workspace;            // GEMM_WORKSPACE_BYTES, device
    float* zero_one;            // (2) the numbers 0 and 1, device
    GemmPlan plans[GEMM_MAX_PLANS];
    int num_plans;
} GemmPlain;

static inline void gemm_plain_create(GemmPlain* g) {
    memset(g, 0, sizeof(*g));
    cublasCheck(cublasLtCreate(&g->handle));
    g->workspace = cuda_malloc(GEMM_WORKSPACE_BYTES, "the GEMM workspace");
    g->zero_one = (float*)cuda_malloc(2 * sizeof(float), "GEMM constants");
    const float zero_one[2] = { 0.0f, 1.0f };
    cudaCheck(cudaMemcpy(g->zero_one, zero_one, sizeof(zero_one), cudaMemcpyHostToDevice));
}

static inline void gemm_plain_free(GemmPlain* g) {
    for (int i = 0; i < g->num_plans; i++) {
        cublasCheck(cublasLtMatmulDescDestroy(g->plans[i].operation));
        cublasCheck(cublasLtMatrixLayoutDestroy(g->plans[i].A));
        cublasCheck(cublasLtMatrixLayoutDestroy(g->plans[i].B));
        cublasCheck(cublasLtMatrixLayoutDestroy(g->plans[i].D));
    }
    cudaCheck(cudaFree(g->workspace));
    cudaCheck(cudaFree(g->zero_one));
    cublasCheck(cublasLtDestroy(g->handle));
}

// ---------------------------------------------------------------------------------------------
// Plans

static inline int gemm_same_plan(const GemmArgs* a, const GemmArgs* b) {
    return a->M == b->M && a->N == b->N && a->K == b->K && a->A_is_KM == b->A_is_KM &&
           a->B_is_KN == b->B_is_KN && a->type == b->type && a->type_D == b->type_D &&
           a->accumulate == b->accumulate &&
           (a->bias == NULL) == (b->bias == NULL) && (a->alpha == NULL) == (b->alpha == NULL);
}

static inline void gemm_set_int(cublasLtMatmulDesc_t operation,
                                cublasLtMatmulDescAttributes_t attribute, int32_t value) {
    cublasCheck(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)));
}

// Columns of a row-major matrix: (rows, cols), with stride elements from row to row. In cuBLAS's
// column-major order it is (cols, rows).
static inline cublasLtMatrixLayout_t gemm_layout_of_columns(cudaDataType_t type, int rows, int cols,
                                                            int stride) {
    cublasLtMatrixLayout_t layout;
    cublasCheck(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)cols, (uint64_t)rows, stride));
    return layout;
}

static inline cublasLtMatrixLayout_t gemm_layout(cudaDataType_t type, int rows, int cols) {
    return gemm_layout_of_columns(type, rows, cols, cols);
}

// In how many parts of K a product is computed, one call of cuBLASLt each. Parts are whole vectors.
static inline int gemm_parts(const GemmArgs* a) {
    return a->accumulate && a->K % (8 * GEMM_WGRAD_PARTS) == 0 ? GEMM_WGRAD_PARTS : 1;
}

// The kernel for this product that cuBLASLt's heuristic puts first. Layouts are of cuBLAS's first
// and second operand, and of D. Returns what cuBLASLt answers; NOT_SUPPORTED if it knows no kernel.
static inline cublasStatus_t gemm_find_kernel(cublasLtMatmulAlgo_t* kernel, const GemmPlain* g,
                                              cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t first,
                                              cublasLtMatrixLayout_t second,
                                              cublasLtMatrixLayout_t D) {
    cublasLtMatmulPreference_t preference;
    uint64_t workspace = GEMM_WORKSPACE_BYTES;
    uint32_t split = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t alignment = 16;
    cublasCheck(cublasLtMatmulPreferenceCreate(&preference));
    cublasCheck(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
    cublasCheck(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &split, sizeof(split)));
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
    for (int i = 0; i < 4; i++) {
        cublasCheck(cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment,
                                                         sizeof(alignment)));
    }
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(g->handle, operation, first, second, D,
                                                           D, preference, 1, &found, &count);
    cublasCheck(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    if (count < 1) { return CUBLAS_STATUS_NOT_SUPPORTED; }
    *kernel = found.algo;
    return found.state;
}

// cuBLAS sees every matrix transposed, so it computes D^T = B @ A^T, with our B as its first
// operand. Our B (N,K) looks to it like (K,N) and has to be transposed back; our A (M,K) looks like
// (K,M), which is the A^T that it needs.
static inline void gemm_make_plan(GemmPlan* plan, const GemmPlain* g, const GemmArgs* a) {
    plan->args = *a;
    cublasCheck(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    gemm_set_int(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                 a->B_is_KN ? CUBLAS_OP_N : CUBLAS_OP_T);
    gemm_set_int(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                 a->A_is_KM ? CUBLAS_OP_T : CUBLAS_OP_N);
    gemm_set_int(plan->operation, CUBLASLT_MATMUL_DESC_POINTER_MODE,
                 a->alpha != NULL ? CUBLASLT_POINTER_MODE_DEVICE : CUBLASLT_POINTER_MODE_HOST);
    if (a->bias != NULL) {
        gemm_set_int(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        gemm_set_int(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, a->type_D);
    }
    int K = a->K / gemm_parts(a);
    plan->A = a->A_is_KM ? gemm_layout(a->type, K, a->M)
                         : gemm_layout_of_columns(a->type, a->M, K, a->K);
    plan->B = a->B_is_KN ? gemm_layout(a->type, K, a->N)
                         : gemm_layout_of_columns(a->type, a->N, K, a->K);
    plan->D = gemm_layout(a->type_D, a->M, a->N);

    cublasStatus_t status = gemm_find_kernel(&plan->kernel, g, plan->operation, plan->B, plan->A,
                                             plan->D);
    check(status == CUBLAS_STATUS_SUCCESS,
          "cuBLASLt has no kernel for D (%d, %d), K = %d, types %d to %d, A_is_KM %d, B_is_KN %d, "
          "bias %d: %s", a->M, a->N, a->K, a->type, a->type_D, a->A_is_KM, a->B_is_KN,
          a->bias != NULL, cublasLtGetStatusString(status));
}

static inline GemmPlan* gemm_plan(GemmPlain* g, const GemmArgs* args) {
    for (int i = 0; i < g->num_plans; i++) {
        if (gemm_same_plan(&g->plans[i].args, args)) { return &g->plans[i]; }
    }
    check(g->num_plans < GEMM_MAX_PLANS, "more than %d kinds of matrix product", GEMM_MAX_PLANS);
    GemmPlan* plan = &g->plans[g->num_plans++];
    gemm_make_plan(plan, g, args);
    return plan;
}

// ---------------------------------------------------------------------------------------------

// See GemmArgs. All addresses are multiples of 16 bytes, as are the rows of all matrices.
static inline void gemm_plain(GemmPlain* g, void* D, const void* A, const void* B, GemmArgs args,
                              cudaStream_t stream) {
    int vector = args.type == CUDA_R_16BF ? 8 : 4;          // elements in 16 bytes
    int row_A = args.A_is_KM ? args.M : args.K, row_B = args.B_is_KN ? args.N : args.K;
    check(args.M > 0 && args.N > 0 && args.K > 0 && row_A % vector == 0 && row_B % vector == 0 &&
          args.N % vector == 0, "D (%d, %d), K = %d: the rows of a matrix are not multiples of %d",
          args.M, args.N, args.K, vector);
    check((((uintptr_t)D | (uintptr_t)A | (uintptr_t)B | (uintptr_t)args.bias) & 15) == 0,
          "an address is not a multiple of 16: D %p, A %p, B %p, bias %p", D, A, B, args.bias);
    GemmPlan* plan = gemm_plan(g, &args);
    if (args.bias != NULL) {
        cublasCheck(cublasLtMatmulDescSetAttribute(plan->operation,
                                                   CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args.bias,
                                                   sizeof(args.bias)));
    }
    const float host_alpha = 1.0f, host_beta = args.accumulate ? 1.0f : 0.0f;
    const float* alpha = args.alpha != NULL ? args.alpha : &host_alpha;
    const float* beta = args.alpha != NULL ? g->zero_one + (args.accumulate != 0) : &host_beta;
    int parts = gemm_parts(&args);
    size_t step = (size_t)args.K / parts * (args.type == CUDA_R_16BF ? 2 : 4);
    for (int part = 0; part < parts; part++) {
        const char* A_part = (const char*)A + part * step * (args.A_is_KM ? args.M : 1);
        const char* B_part = (const char*)B + part * step * (args.B_is_KN ? args.N : 1);
        cublasCheck(cublasLtMatmul(g->handle, plan->operation, alpha, B_part, plan->B, A_part,
                                   plan->A, beta, D, plan->D, D, plan->D, &plan->kernel,
                                   g->workspace, GEMM_WORKSPACE_BYTES, stream));
    }
}

#endif
