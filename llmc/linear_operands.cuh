/*
The machinery below linear.cuh: memory of quantized operands, agreement between ranks, random bytes
and signs, and the way from a BF16 tensor to a product of two quantized matrices. What is done to
which operand, and when, is said there and in recipe.h.
*/
#ifndef LLMC_LINEAR_OPERANDS_CUH
#define LLMC_LINEAR_OPERANDS_CUH

#include "device_memory.cuh"
#include "gemm.cuh"
#include "guards.cuh"
#include "multi_rank_nccl.cuh"
#include "quantize.cuh"
#include "quantize_any.cuh"
#include "recipe.h"

// Sees every operand right after it was quantized (tests and dumps). `source` is the BF16 tensor
// (rows, cols), or (cols, rows) for the operands named ^T; for an aligned operand the codes it was
// made from, expanded; NULL for a weight that came from others.
typedef void (*OperandObserver)(int layer, int linear, int operand, const __nv_bfloat16* source,
                                const Nvfp4Matrix* quantized);

// Where a linear layer stands, and working memory that all of them share.
typedef struct {
    const Recipe* recipe;
    int layer, linear;          // which one this call is for
    int T;                      // tokens in a row of the batch: no transform crosses rows
    uint64_t seed;
    uint32_t micro_step;        // counts micro-batches over the run: see Nvfp4Rounding
    int training;               // a backward pass will follow: keep X^T
    DeviceRanks* ranks;         // each of which has its rows of the tokens; NULL: one rank
    int local_amax;             // 1: each rank uses the amax of its own rows
    OperandObserver observe;    // NULL: nobody looks
    uint64_t* scale_counts;     // (NUM_OPERANDS, NUM_SCALE_COUNTS) guards.h; NULL: not now
    Gemm* gemm;
    E2m1Conversion conversion;  // how the base recipe's E2M1 codes are made on this GPU
    int* nonfinite;             // (1) tells which operand first was not finite: see quantize_any_alpha
    float* alpha;               // (1)
    float* bias_scratch;        // bias_backward_scratch(4C)
    Nvfp4Matrix x_q[NUM_LINEARS];       // (N, in)  operands that live for one GEMM; the codes of
    Nvfp4Matrix dy_q[NUM_LINEARS];      // (N, out) x_q and dy_q share memory, and those of dyT_q
    Nvfp4Matrix dyT_q[NUM_LINEARS];     // (out, N) and wT_q, but not their scales
    Nvfp4Matrix wT_q[NUM_LINEARS];      // (in, out) of weights that are quantized in each backward
    __nv_bfloat16* expanded;    // (N, in) or (out, in): the codes that an aligned operand is made of
    cudaStream_t stream;
} Linear;

// What one layer owns in quantized form. Matrices that the recipe does not need have no memory
// (codes NULL).
typedef struct {
    Nvfp4Matrix w_q;            // (OC, C)   from one update to the next
    Nvfp4Matrix wT_q;           // (C, OC)   likewise, unless it is Linear.wT_q
    Nvfp4Matrix xT_q;           // (C, N)    from forward to backward
    float* x_amax;              // (1) of X, right before that of xT_q; NULL: that of Linear.x_q
} QuantizedLinear;

// ---------------------------------------------------------------------------------------------
// Memory

// A quantized matrix whose scales and amax have memory of their own; the codes lie where
// the caller says. The scales are zeroed here, once: no quantizer writes their padding, and
// the tensor cores read it. Behind the amax is room for that of the other direction, so that ranks
// can agree on both at once.
static inline Nvfp4Matrix linear_operand_at(uint8_t* codes, Format format, int rows, int cols,
                                            const char* family) {
    size_t bytes = quantized_scales_size(format, (size_t)rows, (size_t)cols);
    Nvfp4Matrix matrix;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.codes = codes;
    matrix.block_scales = (uint8_t*)device_alloc(bytes, family);
    matrix.amax = (float*)device_alloc(2 * sizeof(float), family);
    if (bytes > 0) { cudaCheck(cudaMemset(matrix.block_scales, 0, bytes)); }
    return matrix;
}

static inline Nvfp4Matrix linear_operand_alloc(Format format, int rows, int cols,
                                               const char* family) {
    size_t bytes = quantized_codes_size(format, (size_t)rows, (size_t)cols);
    return linear_operand_at((uint8_t*)device_alloc(bytes, family), format, rows, cols, family);
}

// The matrix with fewer rows than there is memory for. Scales of rows that were there before would be
// in the padding of the last tile, which has to be zero.
static inline Nvfp4Matrix linear_rows(const Nvfp4Matrix* matrix, int rows, int operand,
                                      const Linear* l) {
    Nvfp4Matrix fewer = *matrix;
    fewer.rows = rows;
    size_t bytes = quantized_scales_size(l->recipe->operands[operand].format, (size_t)rows,
                                         (size_t)matrix->cols);
    if (rows < matrix->rows && bytes > 0) {
        cudaCheck(cudaMemsetAsync(matrix->block_scales, 0, bytes, l->stream));
    }
    return fewer;
}

// ---------------------------------------------------------------------------------------------
// Several ranks: each has some rows of the activations and gradients, and every weight

static inline int linear_num_ranks(const Linear* l) {
    return l->ranks == NULL ? 1 : l->ranks->ranks->size;
}

// The largest magnitudes of n operands, neighbours in memory: this rank's become those of all
// ranks' rows.
static inline void linear_agree(float* amax, int n, const char* operands, const Linear* l) {
    char what[64];
    if (linear_num_ranks(l) == 1 || l->local_amax) { return; }
    snprintf(what, sizeof(what), "amax of %s of block %d %s", operands, l->layer,
             linear_name(l->linear));
    device_ranks_begin(l->ranks);
    device_ranks_max_bits(l->ranks, (uint32_t*)amax, (size_t)n, l->stream);
    device_ranks_end(l->ranks, what, l->stream);
}

static inline int linear_is_weight(int operand) {
    return operand == OPERAND_W || operand == OPERAND_WT;
}

static inline int linear_is_transposed(int operand) {
    return operand == OPERAND_XT || operand == OPERAND_WT || operand == OPERAND_DYT;
}

static inline Nvfp4Rounding linear_rounding(const Linear* l, int operand) {
    return recipe_rounding(l->recipe, l->layer, l->linear, operand, l->seed, l->micro_step);
}

// The same with several ranks, for an operand made from this rank's x (N, cols): of X and dY
// (tokens, cols) it has some rows, of their transposes some columns, of weights everything.
static inline Nvfp4Rounding linear_rounding_here(const Linear* l, int operand, int N, int cols) {
    Nvfp4Rounding rounding = linear_rounding(l, operand);
    if (linear_num_ranks(l) == 1 || linear_is_weight(operand)) { return rounding; }
    uint64_t rank = (uint64_t)l->ranks->ranks->rank;
    uint32_t across = (uint32_t)(N / NVFP4_BLOCK), size = (uint32_t)linear_num_ranks(l);
    if (linear_is_transposed(operand)) {
        int block = format_block(l->recipe->operands[operand].format);
        check(block == 0 || N % block == 0, "%d tokens of a rank are no multiple of %d, the block "
              "of %s in %s", N, block, operand_name(operand),
              format_name(l->recipe->operands[operand].format));
        rounding.first_block = rank * across;
        rounding.row_blocks = across * size;
    } else {
        rounding.first_block = rank * (uint64_t)N * (uint64_t)(cols / NVFP4_BLOCK);
    }
    return rounding;
}

// ---------------------------------------------------------------------------------------------
// From tensors to quantized matrices

// The transform of an operand whose GEMM contracts K elements. Both operands of the GEMM get the
// same one.
static inline Rotation linear_rotation(const Linear* l, int operand, int K) {
    const Quantizer* q = &l->recipe->operands[operand];
    int gradient = operand == OPERAND_DYT || operand == OPERAND_XT ? OPERAND_DYT : OPERAND_DY;
    Rotation none;
    memset(&none, 0, sizeof(none));
    if (q->hadamard == 0) { return none; }
    return rotation_make(rotation_size(q->hadamard, K), q->fresh_signs, l->seed,
                         operand_tag(l->layer, l->linear, gradient), l->micro_step);
}

static inline void linear_observe(const Linear* l, int operand, const __nv_bfloat16* source,
                                  const Nvfp4Matrix* quantized) {
    if (l->observe != NULL && quantized != NULL) {
        l->observe(l->layer, l->linear, operand, source, quantized);
    }
}

// Quantizes x (N, cols) as operand `operand` and its transpose as `operandT`; x_q or xT_q may be
// NULL. With several ranks the amax of xT_q lies behind that of x_q.
static void linear_quantize(const Nvfp4Matrix* x_q, const Nvfp4Matrix* xT_q, const __nv_bfloat16* x,
                            int N, int cols, int operand, int operandT, const Linear* l) {
    if (x_q == NULL && xT_q == NULL) { return; }
    const Quantizer* q = &l->recipe->operands[operand];
    const Quantizer* qT = &l->recipe->operands[operandT];
    Rotation rotation = linear_rotation(l, operand, cols);
    Rotation rotationT = linear_rotation(l, operandT, linear_is_weight(operandT) ? N : l->T);
    Nvfp4Rounding rounding = linear_rounding_here(l, operand, N, cols);
    Nvfp4Rounding roundingT = linear_rounding_here(l, operandT, N, cols);
    // each direction by the base recipe's kernels, if they can, else by those for any recipe
    const Nvfp4Matrix* fast = x_q != NULL && quantize_is_fast(q, 0) ? x_q : NULL;
    const Nvfp4Matrix* fastT = xT_q != NULL && quantize_is_fast(qT, 1) ? xT_q : NULL;
    const Nvfp4Matrix* any = x_q != fast ? x_q : NULL;
    const Nvfp4Matrix* anyT = xT_q != fastT ? xT_q : NULL;
    int hadamard = fastT != NULL && qT->hadamard > 0;

    if (fast != NULL || fastT != NULL) {
        quantize_amax(fast != NULL ? fast->amax : NULL, fastT != NULL ? fastT->amax : NULL, x, N,
                      cols, hadamard, l->stream);
    }
    if (any != NULL || anyT != NULL) {
        quantize_any_amax(any != NULL ? any->amax : NULL, &rotation,
                          anyT != NULL ? anyT->amax : NULL, &rotationT, x, N, cols, l->stream);
    }
    if (!linear_is_weight(operand)) {
        linear_agree(x_q != NULL ? x_q->amax : xT_q->amax, (x_q != NULL) + (xT_q != NULL),
                     operand_name(x_q != NULL ? operand : operandT), l);
    }
    if (fast != NULL || fastT != NULL) {
        quantize_launch(fast, fastT, x, N, cols, hadamard, qT->tile, rounding, roundingT,
                        l->conversion, l->stream);
    }
    if (any != NULL || anyT != NULL) {
        AnyOutput out, outT;
        if (any != NULL) { out = any_output(any, *q, rotation, rounding); }
        if (anyT != NULL) { outT = any_output(anyT, *qT, rotationT, roundingT); }
        quantize_any(any != NULL ? &out : NULL, anyT != NULL ? &outT : NULL, x, N, cols, l->stream);
    }
    linear_observe(l, operand, x, x_q);
    linear_observe(l, operandT, x, xT_q);
}

// xT_q, the transpose, from the codes of x_q in place of the tensor: `operandT` is aligned.
static void linear_quantize_aligned(const Nvfp4Matrix* xT_q, const Nvfp4Matrix* x_q, int operand,
                                    int operandT, const Linear* l) {
    quantize_any_expand(l->expanded, x_q, l->recipe->operands[operand], l->stream);
    linear_quantize(NULL, xT_q, l->expanded, x_q->rows, x_q->cols, operand, operandT, l);
}

// wT_q from w_q, if W^T has the codes of W.
static void linear_transpose_weight(const Nvfp4Matrix* wT_q, const Nvfp4Matrix* w_q,
                                    const __nv_bfloat16* weight, const Linear* l) {
    quantize_any_transpose(wT_q, w_q, l->recipe->operands[OPERAND_W], l->stream);
    linear_observe(l, OPERAND_WT, weight, wT_q);
}

// ---------------------------------------------------------------------------------------------
// Products

// Of which operands the scales are counted.
static inline CountedOperand linear_counted(const Nvfp4Matrix* q, int operand, const Linear* l) {
    int rank = l->ranks == NULL ? 0 : l->ranks->ranks->rank;
    CountedOperand c = { *q, l->recipe->operands[operand].format,
                         l->scale_counts + operand * NUM_SCALE_COUNTS };
    if (!guard_counts_here(operand, rank)) { c.q.rows = 0; }
    return c;
}

// D (M,N) = A (M,K) @ B (N,K)^T; or added to D if that is FP32: the gradient of a weight.
// source_amax: NULL, or where B is aligned that of the matrix whose codes it was made from.
template <typename Real>
static void linear_gemm(Real* D, const Nvfp4Matrix* A, const Nvfp4Matrix* B, int operand_a,
                        int operand_b, const float* source_amax, const Linear* l) {
    const Quantizer* qa = &l->recipe->operands[operand_a];
    const Quantizer* qb = &l->recipe->operands[operand_b];
    int tag = (l->layer * NUM_LINEARS + l->linear) * NUM_OPERANDS;
    AnyAlpha about;
    about.factor = quantizer_alpha_factor(qa, qb);
    about.source_amax = source_amax;
    about.source = l->recipe->operands[operand_b == OPERAND_XT ? OPERAND_X : OPERAND_W];
    quantize_any_alpha(l->alpha, l->nonfinite, A->amax, B->amax, tag + operand_a, tag + operand_b,
                       about, l->stream);
    if (l->scale_counts != NULL) {
        device_scales_count(linear_counted(A, operand_a, l), linear_counted(B, operand_b, l),
                            l->stream);
    }
    GemmResult result = sizeof(Real) == sizeof(float) ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
    gemm_quantized(l->gemm, D, result, A, qa, B, qb, l->alpha, l->stream);
}

#endif
