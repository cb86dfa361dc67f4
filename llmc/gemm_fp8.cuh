/*
FP8 products on FP8 tensor cores, through cuBLASLt. Compiled against cuBLASLt 13.1, checked against a
model of its contract (dev/test/cublaslt_model.c) and by the start-up self-test; run on Hopper.

    format      scales                                   compute capability
    FP8         one of each matrix, both in alpha        8.9 and newer
    FP8BLOCK    one of 128 elements, or of 128 x 128     9.0 alone

The contract [cuBLAS documentation, 3.1.4.5 "128-element 1D and 128x128 2D Block Scaling" and
cublasLtMatmul], and who keeps it:

    both operands contiguous along K (transA T, transB N)       every operand of linear.cuh is
    E5M2 in one operand at most                                 recipe.h: gradients alone
    squares in one operand at most                              recipe.h: weights alone
    rows of A, B and D multiples of 16 bytes, M and N of 4      all are multiples of 16 elements
    the sum times alpha, FP32, which holds both tensor scales   quantize_any_alpha
    block scales in FP32, laid out as below                     here
    D in BF16, or C and D in FP32                               here
    no fast accumulation with block scales                      gemm_narrow.cuh

Sums. Where emulation (gemm_emulated.cuh) has the products added by BF16 tensor cores, in about the 24
bits of FP32, those for FP8 of Ada and Hopper shift 32 products and the sum so far to the exponent
of the largest and keep 14 bits of each [DeepSeek-V3, arXiv 2412.19437, 3.5.2]: each of the 33
numbers loses less than 2^-13 of the largest. Without fast accumulation the sum moves to an FP32
register every so often, with block scales after 128 elements, 4 such steps, else nobody says;
128 is assumed. As no number of such a step is larger than the sum of |a*b| over those 128,

    |error| <= 4 * 33 * 2^-13 * sum |a*b|           1.6 %; in practice much less

and sums of integers below 2^14 are exact, as they are with emulation. On Blackwell 25 bits were
found [DeepGEMM, issue 176].
*/
#ifndef LLMC_GEMM_FP8_CUH
#define LLMC_GEMM_FP8_CUH

#include "gemm_narrow.cuh"

// CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F and .._BLK128x128_32F, which cublasLt.h has from CUDA 12.9
// on. An older library refuses them, and then it does not have the product.
enum { GEMM_FP8_VECTORS = 4, GEMM_FP8_SQUARES = 5 };

#define GEMM_FP8_SUM_ERROR (4.0 * 33.0 / 8192.0)    // of sum |a*b|: see above

typedef struct {
    GemmNarrow narrow;
    size_t scales_size;         // elements
    float* scales;              // of both operands, as cuBLASLt wants them
} GemmFp8;

static inline void gemm_fp8_create(GemmFp8* g, const GemmPlain* shared) {
    memset(g, 0, sizeof(*g));
    g->narrow.shared = shared;
}

static inline void gemm_fp8_free(GemmFp8* g) {
    gemm_narrow_free(&g->narrow);
    cudaCheck(cudaFree(g->scales));
}

// Does the path take operands in this format at all?
static inline int gemm_fp8_has(Format format) {
    return format == FORMAT_FP8 || format == FORMAT_FP8BLOCK;
}

static inline GemmNarrowOperand gemm_fp8_operand(const Quantizer* q) {
    GemmNarrowOperand operand;
    operand.type = q->e5m2 ? CUDA_R_8F_E5M2 : CUDA_R_8F_E4M3;
    operand.scales = q->tile ? GEMM_FP8_SQUARES : GEMM_FP8_VECTORS;
    if (q->format == FORMAT_FP8) { operand.scales = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F; }
    return operand;
}

static inline const GemmNarrowPlan* gemm_fp8_find(GemmFp8* g, const GemmProduct* p) {
    check(gemm_fp8_has(p->A.format) && p->A.format == p->B.format, "FP8 tensor cores do not multiply "
          "%s by %s", format_name(p->A.format), format_name(p->B.format));
    GemmNarrowArgs args = { p->M, p->N, p->K, p->result, gemm_fp8_operand(&p->A),
                            gemm_fp8_operand(&p->B) };
    return gemm_narrow_plan(&g->narrow, args);
}

// CUBLAS_STATUS_SUCCESS if this GPU and library multiply such matrices; then the plan is kept. Any
// other status is the reason why not.
static inline cublasStatus_t gemm_fp8_plan(GemmFp8* g, GemmProduct p) {
    return gemm_fp8_find(g, &p)->status;
}

// ---------------------------------------------------------------------------------------------
// Block scales. Ours are bytes in tiles (quantized_scale_offset), the exponents of powers of two. A
// matrix (rows, K), L = K/128 rounded up, needs as FP32 numbers
//
//     1 x 128      (L, rows)                    the scales of one block along all rows are neighbours
//     128 x 128    (rows/128 rounded up, L4)    L4: L rounded up to a multiple of 4; behind it zeros
//
// and rows is a multiple of 4 so that both begin every line on 16 bytes.

static inline size_t gemm_fp8_scales(const Nvfp4Matrix* x, const Quantizer* q) {
    size_t rows = (size_t)x->rows, blocks = quantized_blocks(q->format, (size_t)x->cols);
    return q->tile ? CEIL_DIV(rows, 128) * (CEIL_DIV(blocks, 4) * 4) : blocks * rows;
}

static __global__ void gemm_fp8_scales_kernel(float* to, Nvfp4Matrix x, int tile, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) { return; }
    size_t rows = (size_t)x.rows, cols = (size_t)x.cols;
    size_t blocks = quantized_blocks(FORMAT_FP8BLOCK, cols), across = CEIL_DIV(blocks, 4) * 4;
    size_t block = tile ? i % across : i / rows, row = tile ? i / across * 128 : i % rows;
    to[i] = block < blocks ? e8m0_to_float(x.block_scales[quantized_scale_offset(
                                 FORMAT_FP8BLOCK, row, block, cols)]) : 0.0f;
}

static inline void gemm_fp8_convert(float* to, const Nvfp4Matrix* x, const Quantizer* q,
                                    cudaStream_t stream) {
    size_t n = gemm_fp8_scales(x, q);
    gemm_fp8_scales_kernel<<<(unsigned)CEIL_DIV(n, 256), 256, 0, stream>>>(to, *x, q->tile, n);
    cudaCheck(cudaGetLastError());
}

// The scales of A and B as cuBLASLt takes them. NULL for FP8: alpha holds them.
static inline void gemm_fp8_scales_make(GemmFp8* g, const float** A_scales, const float** B_scales,
                                        const Nvfp4Matrix* A, const Quantizer* qa,
                                        const Nvfp4Matrix* B, const Quantizer* qb,
                                        cudaStream_t stream) {
    *A_scales = *B_scales = NULL;
    if (qa->format == FORMAT_FP8) { return; }
    size_t A_size = gemm_fp8_scales(A, qa), B_size = gemm_fp8_scales(B, qb);    // multiples of 4
    if (A_size + B_size > g->scales_size) {
        cudaCheck(cudaFree(g->scales));             // waits for who still reads it
        g->scales_size = A_size + B_size;
        g->scales = (float*)cuda_malloc(g->scales_size * sizeof(float), "FP32 block scales");
    }
    gemm_fp8_convert(g->scales, A, qa, stream);
    gemm_fp8_convert(g->scales + A_size, B, qb, stream);
    *A_scales = g->scales;
    *B_scales = g->scales + A_size;
}

// D (M,N) = alpha (1, device) * A (M,K) @ B (N,K)^T, or D += where the result says so. All sizes
// are multiples of 16, all addresses too.
static inline cublasStatus_t gemm_fp8(GemmFp8* g, void* D, GemmResult result, const Nvfp4Matrix* A,
                                      const Quantizer* qa, const Nvfp4Matrix* B, const Quantizer* qb,
                                      const float* alpha, cudaStream_t stream) {
    GemmProduct product = gemm_product(result, A, qa, B, qb);
    const GemmNarrowPlan* plan = gemm_fp8_find(g, &product);
    if (plan->status != CUBLAS_STATUS_SUCCESS) { return plan->status; }
    const float *A_scales, *B_scales;
    gemm_fp8_scales_make(g, &A_scales, &B_scales, A, qa, B, qb, stream);
    return gemm_narrow(&g->narrow, plan, D, A->codes, A_scales, B->codes, B_scales, alpha, stream);
}

#endif
