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
    the sum times alpha, FP32, which holds both tensor scales   quantize_any_alpha
    K a multiple of 32                                          here: an odd block more of zeros
    rows of D of a multiple of 16 bytes                         here: checked, N is a multiple of 16
    all addresses multiples of 16                               here: checked
    no scale of D unless D is FP4; no bias in the epilogue      here: bias_add comes after
*/
#ifndef LLMC_GEMM_FP4_CUH
#define LLMC_GEMM_FP4_CUH

#include "gemm_narrow.cuh"

typedef struct {
    GemmNarrow narrow;
    size_t padded_size;         // bytes
    uint8_t* padded;            // codes of both operands, where K is not a multiple of 32
} GemmFp4;

static inline void gemm_fp4_create(GemmFp4* g, const GemmPlain* shared) {
    memset(g, 0, sizeof(*g));
    g->narrow.shared = shared;
}

static inline void gemm_fp4_free(GemmFp4* g) {
    gemm_narrow_free(&g->narrow);
    cudaCheck(cudaFree(g->padded));
}

// K as cuBLASLt is told it. Matrices here have K in whole blocks of 16; a row of codes has to be a
// multiple of 16 bytes, two blocks. The layout of the scales is the same for both: 4 blocks share a
// tile, and a block more never begins another.
static inline int gemm_fp4_padded_K(int K) { return (K + 31) / 32 * 32; }

static inline const GemmNarrowPlan* gemm_fp4_find(GemmFp4* g, int M, int N, int K,
                                                  GemmResult result) {
    check(K % NVFP4_BLOCK == 0, "K = %d is no multiple of %d", K, NVFP4_BLOCK);
    GemmNarrowOperand e2m1 = { CUDA_R_4F_E2M1, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 };
    GemmNarrowArgs args = { M, N, gemm_fp4_padded_K(K), result, e2m1, e2m1 };
    return gemm_narrow_plan(&g->narrow, args);
}

// CUBLAS_STATUS_SUCCESS if this GPU and library multiply such matrices; then the plan is kept. Any
// other status is the reason why not.
static inline cublasStatus_t gemm_fp4_plan(GemmFp4* g, GemmProduct p) {
    return gemm_fp4_find(g, p.M, p.N, p.K, p.result)->status;
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
    const GemmNarrowPlan* plan = gemm_fp4_find(g, A->rows, B->rows, A->cols, result);
    if (plan->status != CUBLAS_STATUS_SUCCESS) { return plan->status; }
    const uint8_t *A_codes, *B_codes;
    gemm_fp4_codes(g, &A_codes, &B_codes, A, B, stream);
    return gemm_narrow(&g->narrow, plan, D, A_codes, A->block_scales, B_codes, B->block_scales, alpha,
                       stream);
}

#endif
