/*
Products of quantized matrices on GPUs, or in formats, without tensor cores for them: both operands
are expanded to BF16 and multiplied as BF16. What that means, in numbers, for NVFP4:

    value(code) has at most 2 significant bits, a block scale 4, their product 6 (3 * 15 = 45);
    BF16 holds 8, and all exponents, -10 to 11. So the expanded operands are exact.

    A product of two expanded values has at most 11 significant bits, a sum of 16 of them from one
    pair of blocks at most 20; FP32 holds 24. So a pair of blocks gives an exact product.

    The two tensor scales go into alpha, as with FP4 tensor cores, which have no other place for
    them.

What remains is the order and the width of the sum over blocks, which no vendor documents. Operands
of small integers, whose sums are exact in any order, therefore give the same bits on both paths;
others differ from the exact sum by at most K * 2^-24 * sum |a*b|, each path in its own way.

Of the other formats, too, operands and products are exact: value(code) has 2 significant bits in
E2M1, 4 in E4M3, 3 in E5M2, and the block scale is a power of two, or there is none.
*/
#ifndef LLMC_GEMM_EMULATED_CUH
#define LLMC_GEMM_EMULATED_CUH

#include "gemm_plain.cuh"
#include "quantize.cuh"
#include "quantize_any.cuh"

// D (M,N) = alpha (1) * A (M,K) @ B (N,K)^T, or D += for accumulate; D is BF16 or FP32 (type_D). A
// and B are the expanded operands; of A's and B's shapes that is all that counts here.
static inline void gemm_expanded(GemmPlain* g, void* D, cudaDataType_t type_D, int accumulate,
                                 const __nv_bfloat16* A_expanded, const Nvfp4Matrix* A,
                                 const __nv_bfloat16* B_expanded, const Nvfp4Matrix* B,
                                 const float* alpha, cudaStream_t stream) {
    GemmArgs args;
    memset(&args, 0, sizeof(args));
    args.M = A->rows;
    args.N = B->rows;
    args.K = A->cols;
    args.type = CUDA_R_16BF;
    args.type_D = type_D;
    args.accumulate = accumulate;
    args.alpha = alpha;
    gemm_plain(g, D, A_expanded, B_expanded, args, stream);
}

// The same of matrices in NVFP4. scratch holds M*K + N*K values.
static inline void gemm_emulated(GemmPlain* g, __nv_bfloat16* scratch, void* D,
                                 cudaDataType_t type_D, int accumulate, const Nvfp4Matrix* A,
                                 const Nvfp4Matrix* B, const float* alpha, cudaStream_t stream) {
    __nv_bfloat16* A_expanded = scratch;
    __nv_bfloat16* B_expanded = scratch + (size_t)A->rows * A->cols;
    quantize_expand(A_expanded, A, stream);
    quantize_expand(B_expanded, B, stream);
    gemm_expanded(g, D, type_D, accumulate, A_expanded, A, B_expanded, B, alpha, stream);
}

// The same in any format.
static inline void gemm_emulated_any(GemmPlain* g, __nv_bfloat16* scratch, void* D,
                                     cudaDataType_t type_D, int accumulate, const Nvfp4Matrix* A,
                                     const Quantizer* qa, const Nvfp4Matrix* B,
                                     const Quantizer* qb, const float* alpha,
                                     cudaStream_t stream) {
    __nv_bfloat16* A_expanded = scratch;
    __nv_bfloat16* B_expanded = scratch + (size_t)A->rows * A->cols;
    quantize_any_expand(A_expanded, A, *qa, stream);
    quantize_any_expand(B_expanded, B, *qb, stream);
    gemm_expanded(g, D, type_D, accumulate, A_expanded, A, B_expanded, B, alpha, stream);
}

#endif
