/*
THE RECIPE: the three GEMMs of a linear layer on the GPU, and what happens to each operand.

    fprop  Y  = X W^T   X (N,C): 1x16 along C, nearest        W (OC,C): 16x16 tiles, nearest
    dgrad  dX = dY W    dY (N,OC): 1x16 along OC, stochastic  W^T (C,OC): the codes of W, transposed
    wgrad  dW = dY^T X  dY^T (OC,N) and X^T (C,N): Hadamard over 16 tokens, then 1x16 along N;
                        dY^T stochastic, X^T nearest

N = B*T tokens. Every operand lies contiguous along what its GEMM contracts, because that is how FP4
tensor cores read; so X and dY are quantized twice, in both directions, from one reading of the BF16
tensor. X^T is kept from forward to backward, packed, in place of X: 4.5 bits an element instead of
16. The weight is quantized once per update.

Which of this happens in which block is data: recipe.h. The same in plain C, and the oracle of this
file: quantized_linear.h. Source: arXiv 2509.25149, section 4 and figure 5.

With several ranks each has some rows of the activations and gradients. They agree on the amax of
the whole tensor, for both directions of X in one collective and for both of dY in another, and draw
random bytes by an element's place in the whole tensor. So a rank's rows get the codes that one
rank would have given them.
*/
#ifndef LLMC_LINEAR_CUH
#define LLMC_LINEAR_CUH

#include "bias.cuh"
#include "device_memory.cuh"
#include "gemm.cuh"
#include "multi_rank_nccl.cuh"
#include "quantize.cuh"
#include "recipe.h"

// Sees every operand right after it was quantized (tests and dumps). `source` is the BF16 tensor
// (rows, cols), or (cols, rows) for the operands named ^T; NULL for a weight that came from others.
typedef void (*OperandObserver)(int layer, int linear, int operand, const __nv_bfloat16* source,
                                const Nvfp4Matrix* quantized);

// ---------------------------------------------------------------------------------------------
// The three products in high precision; Real is float or BF16

template <typename Real> static GemmArgs linear_gemm_args(int M, int N, int K) {
    GemmArgs args;
    memset(&args, 0, sizeof(args));
    args.M = M;
    args.N = N;
    args.K = K;
    args.type = args.type_D = sizeof(Real) == sizeof(float) ? CUDA_R_32F : CUDA_R_16BF;
    return args;
}

// out (N,OC) = inp (N,C) @ weight (OC,C)^T + bias (OC), which may be NULL.
template <typename Real>
static void linear_fprop(Real* out, const Real* inp, const Real* weight, const Real* bias, int N,
                         int C, int OC, Gemm* gemm, cudaStream_t stream) {
    GemmArgs args = linear_gemm_args<Real>(N, OC, C);
    args.bias = bias;
    gemm_plain(&gemm->plain, out, inp, weight, args, stream);
}

// dinp (N,C) = dout (N,OC) @ weight (OC,C).
template <typename Real>
static void linear_dgrad(Real* dinp, const Real* dout, const Real* weight, int N, int C, int OC,
                         Gemm* gemm, cudaStream_t stream) {
    GemmArgs args = linear_gemm_args<Real>(N, C, OC);
    args.B_is_KN = 1;
    gemm_plain(&gemm->plain, dinp, dout, weight, args, stream);
}

// dweight (OC,C) += dout (N,OC)^T @ inp (N,C), in FP32.
template <typename Real>
static void linear_wgrad(float* dweight, const Real* dout, const Real* inp, int N, int C, int OC,
                         Gemm* gemm, cudaStream_t stream) {
    GemmArgs args = linear_gemm_args<Real>(OC, C, N);
    args.type_D = CUDA_R_32F;
    args.A_is_KM = args.B_is_KN = 1;
    args.accumulate = 1;
    gemm_plain(&gemm->plain, dweight, dout, inp, args, stream);
}

// ---------------------------------------------------------------------------------------------
// The recipe

// Where a linear layer stands, and working memory that all of them share.
typedef struct {
    const Recipe* recipe;
    int L;                      // blocks of the model
    int layer, linear;          // which one this call is for
    uint64_t seed;
    uint32_t step;              // counts micro-batches over the run: see Nvfp4Rounding
    int training;               // a backward pass will follow: keep X^T
    DeviceRanks* ranks;         // each of which has its rows of the tokens; NULL: one rank
    int local_amax;             // 1: each rank uses the amax of its own rows
    OperandObserver observe;    // NULL: nobody looks
    Gemm* gemm;
    E2m1Conversion conversion;  // how E2M1 codes are made on this GPU
    int* nonfinite;             // (1) tells which operand first was not finite: see quantize_alpha
    float* alpha;               // (1)
    float* bias_scratch;        // bias_backward_scratch(4C)
    Nvfp4Matrix x_q[NUM_LINEARS];       // (N, in)  operands that live for one GEMM; their codes
    Nvfp4Matrix dy_q[NUM_LINEARS];      // (N, out) share memory, their scales do not
    Nvfp4Matrix dyT_q[NUM_LINEARS];     // (out, N)
    cudaStream_t stream;
} Linear;

// What one layer owns in NVFP4. Matrices that the recipe does not need have no memory (codes NULL).
typedef struct {
    Nvfp4Matrix w_q;            // (OC, C)   from one update to the next
    Nvfp4Matrix wT_q;           // (C, OC)
    Nvfp4Matrix xT_q;           // (C, N)    from forward to backward
    float* x_amax;              // (1) of X, right before that of xT_q; NULL: that of Linear.x_q
} QuantizedLinear;

// A quantized matrix whose scales and amax have memory of their own; the codes lie where
// the caller says. The scales are zeroed here, once: no quantizer writes their padding, and
// the tensor cores read it. Behind the amax is room for that of the other direction, so that ranks
// can agree on both at once.
static inline Nvfp4Matrix linear_operand_at(uint8_t* codes, int rows, int cols,
                                            const char* family) {
    size_t bytes = nvfp4_scales_size((size_t)rows, (size_t)cols);
    Nvfp4Matrix matrix;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.codes = codes;
    matrix.block_scales = (uint8_t*)device_alloc(bytes, family);
    matrix.amax = (float*)device_alloc(2 * sizeof(float), family);
    cudaCheck(cudaMemset(matrix.block_scales, 0, bytes));
    return matrix;
}

static inline Nvfp4Matrix linear_operand_alloc(int rows, int cols, const char* family) {
    uint8_t* codes = (uint8_t*)device_alloc(nvfp4_codes_size((size_t)rows, (size_t)cols), family);
    return linear_operand_at(codes, rows, cols, family);
}

// The largest magnitudes of n operands, neighbours in memory: this rank's become those of all
// ranks' rows.
static inline void linear_agree(float* amax, int n, const char* operands, const Linear* l) {
    char what[64];
    if (l->ranks == NULL || l->ranks->ranks->size == 1 || l->local_amax) { return; }
    snprintf(what, sizeof(what), "amax of %s of layer %d %s", operands, l->layer,
             linear_name(l->linear));
    device_ranks_begin(l->ranks);
    device_ranks_max_bits(l->ranks, (uint32_t*)amax, (size_t)n, l->stream);
    device_ranks_end(l->ranks, what, l->stream);
}

// The matrix with fewer rows than there is memory for. Scales of rows that were there before would be
// in the padding of the last tile, which has to be zero.
static inline Nvfp4Matrix linear_rows(const Nvfp4Matrix* matrix, int rows, cudaStream_t stream) {
    Nvfp4Matrix fewer = *matrix;
    fewer.rows = rows;
    if (rows < matrix->rows) {
        size_t bytes = nvfp4_scales_size((size_t)rows, (size_t)matrix->cols);
        cudaCheck(cudaMemsetAsync(matrix->block_scales, 0, bytes, stream));
    }
    return fewer;
}

static inline Nvfp4Rounding linear_rounding(const Linear* l, int operand) {
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = l->recipe->stochastic
                          && (operand == OPERAND_DY || operand == OPERAND_DYT);
    rounding.seed = l->seed;
    rounding.tag = operand_tag(l->layer, l->linear, operand);
    rounding.step = l->step;
    return rounding;
}

// The same with several ranks, for an operand made from this rank's x (N, cols): of dY (tokens, OC)
// it has some rows, of dY^T (OC, tokens) some columns.
static inline Nvfp4Rounding linear_rounding_here(const Linear* l, int operand, int N, int cols) {
    Nvfp4Rounding rounding = linear_rounding(l, operand);
    if (l->ranks == NULL || l->ranks->ranks->size == 1) { return rounding; }
    uint64_t rank = (uint64_t)l->ranks->ranks->rank;
    uint32_t across = (uint32_t)(N / NVFP4_BLOCK), size = (uint32_t)l->ranks->ranks->size;
    if (operand == OPERAND_DY) {
        rounding.first_block = rank * (uint64_t)N * (uint64_t)(cols / NVFP4_BLOCK);
    } else if (operand == OPERAND_DYT) {
        rounding.first_block = rank * across;
        rounding.row_blocks = across * size;
    }
    return rounding;
}

static inline void linear_observe(const Linear* l, int operand, const __nv_bfloat16* source,
                                  const Nvfp4Matrix* quantized) {
    if (l->observe != NULL && quantized != NULL) {
        l->observe(l->layer, l->linear, operand, source, quantized);
    }
}

// Quantizes x (N, cols) in both directions at once; x_q or xT_q may be NULL. The amax of xT_q lies
// behind that of x_q.
static void linear_quantize(const Nvfp4Matrix* x_q, const Nvfp4Matrix* xT_q, const __nv_bfloat16* x,
                            int N, int cols, int operand, int operandT, const Linear* l) {
    int hadamard = l->recipe->hadamard;
    quantize_amax(x_q != NULL ? x_q->amax : NULL, xT_q != NULL ? xT_q->amax : NULL, x, N, cols,
                  hadamard, l->stream);
    linear_agree(x_q != NULL ? x_q->amax : xT_q->amax, (x_q != NULL) + (xT_q != NULL),
                 operand_name(x_q != NULL ? operand : operandT), l);
    quantize_activation(x_q, xT_q, x, N, cols, hadamard, linear_rounding_here(l, operand, N, cols),
                        linear_rounding_here(l, operandT, N, cols), l->conversion, l->stream);
    linear_observe(l, operand, x, x_q);
    linear_observe(l, operandT, x, xT_q);
}

// D (M,N) = A (M,K) @ B (N,K)^T; or added to D if that is FP32: the gradient of a weight.
template <typename Real>
static void linear_gemm(Real* D, const Nvfp4Matrix* A, const Nvfp4Matrix* B, int operand_a,
                        int operand_b, const Linear* l) {
    int tag = (l->layer * NUM_LINEARS + l->linear) * NUM_OPERANDS;
    quantize_alpha(l->alpha, l->nonfinite, A->amax, B->amax, tag + operand_a, tag + operand_b,
                   l->stream);
    GemmResult result = sizeof(Real) == sizeof(float) ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
    gemm_nvfp4(l->gemm, D, result, A, B, l->alpha, l->stream);
}

// Quantizes weight (OC,C) after an update.
static void linear_update_weight(QuantizedLinear* q, const __nv_bfloat16* weight, int OC, int C,
                                 const Linear* l) {
    if (q->w_q.codes == NULL) { return; }
    quantize_weight(&q->w_q, &q->wT_q, weight, OC, C, l->recipe->tile16, l->conversion,
                    l->stream);
    linear_observe(l, OPERAND_W, weight, &q->w_q);
    linear_observe(l, OPERAND_WT, weight, &q->wT_q);
}

// out (N,OC) = inp (N,C) @ weight (OC,C)^T + bias (OC).
static void linear_forward(__nv_bfloat16* out, const __nv_bfloat16* inp,
                           const __nv_bfloat16* weight, const __nv_bfloat16* bias,
                           QuantizedLinear* q, int N, int C, int OC, const Linear* l) {
    int fprop = recipe_quantizes(l->recipe, FPROP, l->layer, l->L);
    int wgrad = recipe_quantizes(l->recipe, WGRAD, l->layer, l->L) && l->training;
    Nvfp4Matrix x_q = linear_rows(&l->x_q[l->linear], N, l->stream);
    if (q->x_amax != NULL) { x_q.amax = q->x_amax; }
    if (fprop || wgrad) {
        linear_quantize(fprop ? &x_q : NULL, wgrad ? &q->xT_q : NULL, inp, N, C, OPERAND_X,
                        OPERAND_XT, l);
    }
    if (fprop) {
        linear_gemm(out, &x_q, &q->w_q, OPERAND_X, OPERAND_W, l);
        bias_add(out, bias, N, OC, l->stream);
    } else {
        linear_fprop(out, inp, weight, bias, N, C, OC, l->gemm, l->stream);
    }
}

// dinp (N,C) = dout (N,OC) @ weight (OC,C);  dweight (OC,C) += dout^T @ inp (N,C);
// dbias (OC) += column sums of dout. inp is what the forward pass saw; it is not read where q holds
// its quantized transpose.
static void linear_backward(__nv_bfloat16* dinp, float* dweight, float* dbias,
                            const __nv_bfloat16* dout, const __nv_bfloat16* inp,
                            const __nv_bfloat16* weight, QuantizedLinear* q, int N, int C, int OC,
                            const Linear* l) {
    int dgrad = recipe_quantizes(l->recipe, DGRAD, l->layer, l->L);
    int wgrad = recipe_quantizes(l->recipe, WGRAD, l->layer, l->L);
    const Nvfp4Matrix* dy_q = &l->dy_q[l->linear];
    const Nvfp4Matrix* dyT_q = &l->dyT_q[l->linear];
    bias_backward(dbias, dout, l->bias_scratch, N, OC, l->stream);
    if (dgrad || wgrad) {
        linear_quantize(dgrad ? dy_q : NULL, wgrad ? dyT_q : NULL, dout, N, OC, OPERAND_DY,
                        OPERAND_DYT, l);
    }
    // dweight first: dinp may overwrite inp's memory
    if (wgrad) {
        linear_gemm(dweight, dyT_q, &q->xT_q, OPERAND_DYT, OPERAND_XT, l);
    } else {
        linear_wgrad(dweight, dout, inp, N, C, OC, l->gemm, l->stream);
    }
    if (dgrad) {
        linear_gemm(dinp, dy_q, &q->wT_q, OPERAND_DY, OPERAND_WT, l);
    } else {
        linear_dgrad(dinp, dout, weight, N, C, OC, l->gemm, l->stream);
    }
}

// FP32 tensors are never quantized.
static void linear_forward(float* out, const float* inp, const float* weight, const float* bias,
                           QuantizedLinear*, int N, int C, int OC, const Linear* l) {
    linear_fprop(out, inp, weight, bias, N, C, OC, l->gemm, l->stream);
}

static void linear_backward(float* dinp, float* dweight, float* dbias, const float* dout,
                            const float* inp, const float* weight, QuantizedLinear*, int N, int C,
                            int OC, const Linear* l) {
    bias_backward(dbias, dout, l->bias_scratch, N, OC, l->stream);
    linear_wgrad(dweight, dout, inp, N, C, OC, l->gemm, l->stream);
    linear_dgrad(dinp, dout, weight, N, C, OC, l->gemm, l->stream);
}

static void linear_update_weight(QuantizedLinear*, const float*, int, int, const Linear*) {}

#endif
