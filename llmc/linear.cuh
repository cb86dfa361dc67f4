/*
THE RECIPE: the three GEMMs of a linear layer on the GPU, and what happens to each operand. In the
base recipe, nvfp4:

    fprop  Y  = X W^T   X (N,C): 1x16 along C, nearest        W (OC,C): 16x16 tiles, nearest
    dgrad  dX = dY W    dY (N,OC): 1x16 along OC, stochastic  W^T (C,OC): the codes of W, transposed
    wgrad  dW = dY^T X  dY^T (OC,N) and X^T (C,N): Hadamard over 16 tokens, then 1x16 along N;
                        dY^T stochastic, X^T nearest

N = B*T tokens. Every operand lies contiguous along what its GEMM contracts, because that is how FP4
tensor cores read; so X and dY are quantized twice, in both directions, from the BF16 tensor. X^T is
kept from forward to backward, packed, in place of X: 4.5 bits an element instead of 16. The weight
is quantized once per update.

Other recipes change the entries of this table, and more than entries in three ways:

    by layer, GEMM and update   a GEMM that is not quantized takes the BF16 tensors instead
    aligned                     X^T and W^T are made from the codes of X and W that fprop has
                                multiplied: the gradient of what really happened in forward
    W^T of its own              drawn anew in every backward pass, if it is aligned, rounded with
                                random bits or transformed with fresh signs

Which of this happens in which block is data: recipe.h. How an operand is made: linear_operands.cuh.
The same in plain C, and the oracle of this file: quantized_linear.h. Source of the base recipe:
arXiv 2509.25149, section 4 and figure 5.

With several ranks each has some rows of the activations and gradients. They agree on the amax of
the whole tensor, for both directions of X in one collective and for both of dY in another, and draw
random bytes by an element's place in the whole tensor. So a rank's rows get the codes that one
rank would have given them.
*/
#ifndef LLMC_LINEAR_CUH
#define LLMC_LINEAR_CUH

#include "bias.cuh"
#include "linear_operands.cuh"

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

// Quantizes weight (OC,C) after an update, for the GEMMs that are quantized at the next. A W^T with
// the codes of W is transposed; or quantized, where a fast kernel gets the same from that.
static void linear_update_weight(QuantizedLinear* q, const __nv_bfloat16* weight, int OC, int C,
                                 const Linear* l) {
    const Recipe* r = l->recipe;
    int fprop = recipe_quantizes(r, FPROP, l->layer, l->linear);
    int dgrad = recipe_quantizes(r, DGRAD, l->layer, l->linear) && !recipe_remakes_weights(r);
    const Quantizer* w = &r->operands[OPERAND_W];
    int as_fast = w->rounding == ROUND_NEAREST && quantize_is_fast(w, 0);
    if (dgrad && recipe_transposes_weights(r) && !as_fast) {
        linear_quantize(&q->w_q, NULL, weight, OC, C, OPERAND_W, OPERAND_WT, l);
        linear_transpose_weight(&q->wT_q, &q->w_q, weight, l);
    } else {
        linear_quantize(fprop ? &q->w_q : NULL, dgrad ? &q->wT_q : NULL, weight, OC, C, OPERAND_W,
                        OPERAND_WT, l);
    }
}

// out (N,OC) = inp (N,C) @ weight (OC,C)^T + bias (OC).
static void linear_forward(__nv_bfloat16* out, const __nv_bfloat16* inp,
                           const __nv_bfloat16* weight, const __nv_bfloat16* bias,
                           QuantizedLinear* q, int N, int C, int OC, const Linear* l) {
    int fprop = recipe_quantizes(l->recipe, FPROP, l->layer, l->linear);
    int wgrad = recipe_quantizes(l->recipe, WGRAD, l->layer, l->linear) && l->training;
    int aligned = fprop && wgrad && l->recipe->operands[OPERAND_XT].aligned;
    Nvfp4Matrix x_q = linear_rows(&l->x_q[l->linear], N, OPERAND_X, l);
    if (q->x_amax != NULL) { x_q.amax = q->x_amax; }
    linear_quantize(fprop ? &x_q : NULL, wgrad && !aligned ? &q->xT_q : NULL, inp, N, C, OPERAND_X,
                    OPERAND_XT, l);
    if (aligned) { linear_quantize_aligned(&q->xT_q, &x_q, OPERAND_X, OPERAND_XT, l); }
    if (fprop) {
        linear_gemm(out, &x_q, &q->w_q, OPERAND_X, OPERAND_W, NULL, l);
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
    const Recipe* r = l->recipe;
    int fprop = recipe_quantizes(r, FPROP, l->layer, l->linear);
    int dgrad = recipe_quantizes(r, DGRAD, l->layer, l->linear);
    int wgrad = recipe_quantizes(r, WGRAD, l->layer, l->linear);
    const float* x_amax = fprop && r->operands[OPERAND_XT].aligned ? q->x_amax : NULL;
    const float* w_amax = fprop && r->operands[OPERAND_WT].aligned ? q->w_q.amax : NULL;
    const Nvfp4Matrix* dy_q = &l->dy_q[l->linear];
    const Nvfp4Matrix* dyT_q = &l->dyT_q[l->linear];
    const Nvfp4Matrix* wT_q = recipe_remakes_weights(r) ? &l->wT_q[l->linear] : &q->wT_q;
    bias_backward(dbias, dout, l->bias_scratch, N, OC, l->stream);
    linear_quantize(dgrad ? dy_q : NULL, wgrad ? dyT_q : NULL, dout, N, OC, OPERAND_DY,
                    OPERAND_DYT, l);
    // dweight first: dinp may overwrite inp's memory, and wT_q the codes of dyT_q
    if (wgrad) {
        linear_gemm(dweight, dyT_q, &q->xT_q, OPERAND_DYT, OPERAND_XT, x_amax, l);
    } else {
        linear_wgrad(dweight, dout, inp, N, C, OC, l->gemm, l->stream);
    }
    if (dgrad && recipe_remakes_weights(r)) {
        if (w_amax != NULL) { linear_quantize_aligned(wT_q, &q->w_q, OPERAND_W, OPERAND_WT, l); }
        else { linear_quantize(NULL, wT_q, weight, OC, C, OPERAND_W, OPERAND_WT, l); }
    }
    if (dgrad) {
        linear_gemm(dinp, dy_q, wT_q, OPERAND_DY, OPERAND_WT, w_amax, l);
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
