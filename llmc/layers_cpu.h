/*
The layers of GPT-2 between the linear ones, forward and backward, in plain C with OpenMP. The
device versions are encoder.cuh, layernorm.cuh, attention.cuh, gelu.cuh and classifier.cuh; each
pair computes the same function.

Every loop is parallel over outputs, never over a sum: results do not depend on the number of
threads. What is stored in the base format (recipe.h) is rounded by the caller with round_to, except
inside attention. Gradients of parameters are added to (+=), those of activations assigned, except
that layernorm_backward adds to that of the residual stream.
*/
#ifndef LLMC_LAYERS_CPU_H
#define LLMC_LAYERS_CPU_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "gemm_cpu.h"
#include "utils.h"
#include "vector_math.h"

#define COLUMNS 16      // columns that one thread sums at a time: one cache line of each row

// ---------------------------------------------------------------------------------------------
// Embedding: token plus position

static inline void encoder_forward(float* out /* (B,T,C) */, const int* inp /* (B,T) */,
                                   const float* wte /* (Vp,C) */, const float* wpe /* (max_T,C) */,
                                   int B, int T, int C) {
    #pragma omp parallel for
    for (int bt = 0; bt < B * T; bt++) {
        const float* token = wte + (size_t)inp[bt] * C;
        const float* position = wpe + (size_t)(bt % T) * C;
        for (int c = 0; c < C; c++) { out[(size_t)bt * C + c] = token[c] + position[c]; }
    }
}

static inline void encoder_backward(float* dwte, float* dwpe, const float* dout /* (B,T,C) */,
                                    const int* inp, int B, int T, int C) {
    #pragma omp parallel for
    for (int first = 0; first < C; first += COLUMNS) {      // C is a multiple of 16
        for (int bt = 0; bt < B * T; bt++) {
            const float* d = dout + (size_t)bt * C + first;
            float* dtoken = dwte + (size_t)inp[bt] * C + first;
            float* dposition = dwpe + (size_t)(bt % T) * C + first;
            for (int c = 0; c < COLUMNS; c++) {
                dtoken[c] += d[c];
                dposition[c] += d[c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// LayerNorm over channels: y = (x - mean) / sqrt(variance + 1e-5) * weight + bias

// inp, out (N,C); mean, rstd (N); weight, bias (C). The variance is the biased one.
static inline void layernorm_forward(float* out, float* mean, float* rstd, const float* inp,
                                     const float* weight, const float* bias, int N, int C) {
    #pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float* x = inp + (size_t)n * C;
        float* y = out + (size_t)n * C;
        float m = vector_sum(x, C) / (float)C;
        for (int c = 0; c < C; c++) { y[c] = x[c] - m; }
        float r = 1.0f / sqrtf(vector_dot(y, y, C) / (float)C + 1e-5f);
        for (int c = 0; c < C; c++) { y[c] = y[c] * r * weight[c] + bias[c]; }
        mean[n] = m;
        rstd[n] = r;
    }
}

// With xhat = (x - mean) rstd and g = dout * weight:
//     dinp = rstd (g - mean_c(g) - xhat mean_c(g xhat)),
//     dweight = sum_n dout xhat,   dbias = sum_n dout
// dinp is ADDED to dresidual: two branches send gradient to the residual stream, this
// one comes second.
static inline void layernorm_backward(float* dresidual, float* dweight, float* dbias,
                                      const float* dout, const float* inp, const float* weight,
                                      const float* mean, const float* rstd, int N, int C) {
    #pragma omp parallel
    {
        float* g = (float*)xmalloc(2 * (size_t)C * sizeof(float), "a row");
        float* xhat = g + C;
        #pragma omp for
        for (int n = 0; n < N; n++) {
            const float* x = inp + (size_t)n * C;
            const float* d = dout + (size_t)n * C;
            float* dx = dresidual + (size_t)n * C;
            for (int c = 0; c < C; c++) {
                g[c] = d[c] * weight[c];
                xhat[c] = (x[c] - mean[n]) * rstd[n];
            }
            float g_mean = vector_sum(g, C) / (float)C;
            float gx_mean = vector_dot(g, xhat, C) / (float)C;
            for (int c = 0; c < C; c++) { dx[c] += rstd[n] * (g[c] - g_mean - xhat[c] * gx_mean); }
        }
        free(g);
        #pragma omp for
        for (int first = 0; first < C; first += COLUMNS) {
            float dw[COLUMNS] = { 0 }, db[COLUMNS] = { 0 };
            for (int n = 0; n < N; n++) {
                const float* x = inp + (size_t)n * C + first;
                const float* d = dout + (size_t)n * C + first;
                for (int c = 0; c < COLUMNS; c++) {
                    dw[c] += d[c] * ((x[c] - mean[n]) * rstd[n]);
                    db[c] += d[c];
                }
            }
            for (int c = 0; c < COLUMNS; c++) {
                dweight[first + c] += dw[c];
                dbias[first + c] += db[c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Causal attention

#define QUERIES 64      // rows of queries handled together; keys after the last of them are
                        // never read
#define KEY_TILE 64     // keys that the tensor cores handle together: FORWARD_TILE of attention.cuh

// scores (rows, keys) = scale * q k of one head, for queries t0 .. t0+rows-1 and keys 0 .. keys-1.
static inline void attention_scores(float* scores, const float* q, const float* k, int t0, int rows,
                                    int keys, int HS, int stride) {
    float scale = 1.0f / sqrtf((float)HS);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, HS, scale,
                q + (size_t)t0 * stride, stride, k, stride, 0.0f, scores, keys);
}

// Turns the visible scores of a row into exp(score - max), the rest into 0. Returns
// log-sum-exp; the sum goes to *row_sum. bf16: the values are rounded as the tensor cores take
// them, relative to the maximum of the tiles up to theirs, since the final maximum is not known
// yet when a tile is multiplied.
static inline float attention_softmax(float* row_sum, float* p, int visible, int keys, int bf16) {
    int tile = bf16 ? KEY_TILE : visible;
    float max = vector_max(p, visible), running = -INFINITY, sum = 0.0f;
    for (int first = 0; first < visible; first += tile) {
        int count = visible - first < tile ? visible - first : tile;
        float* x = p + first;
        running = fmaxf(running, vector_max(x, count));
        float correction = vector_exp(running - max);
        for (int j = 0; j < count; j++) { x[j] = vector_exp(x[j] - running); }
        sum += vector_sum(x, count) * correction;
        if (bf16) {
            for (int j = 0; j < count; j++) { x[j] = bf16_round(x[j]) * correction; }
        }
    }
    for (int j = visible; j < keys; j++) { p[j] = 0.0f; }
    *row_sum = sum;
    return max + logf(sum);
}

// qkv (B,T,3,NH,HS) to out (B,T,NH,HS) and lse (B,NH,T), the logarithm of each row's sum of
// exponentials. bf16: the probabilities are rounded before they multiply V.
static inline void attention_forward(float* out, float* lse, const float* qkv, int B, int T, int NH,
                                     int HS, int bf16) {
    int C = NH * HS, stride = 3 * C;
    #pragma omp parallel
    {
        float* probs = (float*)xmalloc(QUERIES * (size_t)T * sizeof(float), "attention scores");
        #pragma omp for schedule(dynamic)
        for (int bh = 0; bh < B * NH; bh++) {
            int b = bh / NH, h = bh % NH;
            const float* q = qkv + (size_t)b * T * stride + (size_t)h * HS;
            const float* k = q + C;
            const float* v = q + 2 * C;
            for (int t0 = 0; t0 < T; t0 += QUERIES) {
                int rows = T - t0 < QUERIES ? T - t0 : QUERIES, keys = t0 + rows;
                float row_sum[QUERIES];
                attention_scores(probs, q, k, t0, rows, keys, HS, stride);
                for (int r = 0; r < rows; r++) {
                    lse[(size_t)bh * T + t0 + r] = attention_softmax(
                        &row_sum[r], probs + (size_t)r * keys, t0 + r + 1, keys, bf16);
                }
                float* o = out + ((size_t)b * T + t0) * C + (size_t)h * HS;
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, HS, keys, 1.0f, probs,
                            keys, v, stride, 0.0f, o, C);
                for (int r = 0; r < rows; r++) {
                    for (int i = 0; i < HS; i++) { o[(size_t)r * C + i] /= row_sum[r]; }
                }
            }
        }
        free(probs);
    }
}

// With P the probabilities and delta_t = sum_i dout_ti out_ti:
//     dV = P^T dout,   dP = dout V^T,   dS = P (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q
// P is computed again from lse rather than kept: it would need B*NH*T*T values. bf16: P and dS are
// rounded before they enter a product.
static inline void attention_backward(float* dqkv, const float* dout, const float* qkv,
                                      const float* out, const float* lse, int B, int T, int NH,
                                      int HS, int bf16) {
    int C = NH * HS, stride = 3 * C;
    float scale = 1.0f / sqrtf((float)HS);
    #pragma omp parallel
    {
        float* probs = (float*)xmalloc(QUERIES * (size_t)T * sizeof(float), "attention scores");
        float* dprobs = (float*)xmalloc(QUERIES * (size_t)T * sizeof(float), "attention scores");
        #pragma omp for schedule(dynamic)
        for (int bh = 0; bh < B * NH; bh++) {
            int b = bh / NH, h = bh % NH;
            size_t at = (size_t)b * T * stride + (size_t)h * HS;
            const float* q = qkv + at;
            const float* k = q + C;
            const float* v = q + 2 * C;
            float* dq = dqkv + at;
            float* dk = dq + C;
            float* dv = dq + 2 * C;
            for (int t = 0; t < T; t++) {
                memset(dk + (size_t)t * stride, 0, (size_t)HS * sizeof(float));
                memset(dv + (size_t)t * stride, 0, (size_t)HS * sizeof(float));
            }
            for (int t0 = 0; t0 < T; t0 += QUERIES) {
                int rows = T - t0 < QUERIES ? T - t0 : QUERIES, keys = t0 + rows;
                size_t at_out = ((size_t)b * T + t0) * C + (size_t)h * HS;
                const float* o = out + at_out;
                const float* d_o = dout + at_out;
                attention_scores(probs, q, k, t0, rows, keys, HS, stride);
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, HS, 1.0f, d_o, C,
                            v, stride, 0.0f, dprobs, keys);
                for (int r = 0; r < rows; r++) {
                    float delta = vector_dot(d_o + (size_t)r * C, o + (size_t)r * C, HS);
                    float* p = probs + (size_t)r * keys;
                    float* dp = dprobs + (size_t)r * keys;
                    float row_lse = lse[(size_t)bh * T + t0 + r];
                    for (int j = 0; j < keys; j++) {
                        p[j] = j <= t0 + r ? vector_exp(p[j] - row_lse) : 0.0f;
                        dp[j] = p[j] * (dp[j] - delta);
                    }
                }
                if (bf16) {
                    for (int i = 0; i < rows * keys; i++) {
                        probs[i] = bf16_round(probs[i]);
                        dprobs[i] = bf16_round(dprobs[i]);
                    }
                }
                cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, keys, HS, rows, 1.0f, probs,
                            keys, d_o, C, 1.0f, dv, stride);
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, HS, keys, scale,
                            dprobs, keys, k, stride, 0.0f, dq + (size_t)t0 * stride, stride);
                cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, keys, HS, rows, scale, dprobs,
                            keys, q + (size_t)t0 * stride, stride, 1.0f, dk, stride);
            }
        }
        free(probs);
        free(dprobs);
    }
}

// ---------------------------------------------------------------------------------------------
// GELU, tanh form: x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3). Written with the logistic
// function s = 1 / (1 + exp(-2u)), which is the same: (1 + tanh u) / 2 = s.

#define GELU_SCALE 0.7978845608f

static inline float gelu_gate(float x) {
    float u = GELU_SCALE * x * (1.0f + 0.044715f * x * x);
    return 1.0f / (1.0f + vector_exp(-2.0f * u));
}

static inline void gelu_forward(float* out, const float* inp, size_t n) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { out[i] = inp[i] * gelu_gate(inp[i]); }
}

// d/dx = s + 2 x s (1 - s) du/dx. dinp may be dout.
static inline void gelu_backward(float* dinp, const float* dout, const float* inp, size_t n) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        float x = inp[i], s = gelu_gate(x);
        float du = GELU_SCALE * (1.0f + 3.0f * 0.044715f * x * x);
        dinp[i] = dout[i] * (s + 2.0f * x * s * (1.0f - s) * du);
    }
}

static inline void residual_forward(float* out, const float* a, const float* b, size_t n) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { out[i] = a[i] + b[i]; }
}

// ---------------------------------------------------------------------------------------------
// Classifier: softmax and cross-entropy

// losses (N) = -log softmax(logits)[target], over the V true entries of each row of logits
// (N,Vp). If dloss is not 0, the logits are overwritten by dloss * (softmax - onehot(target)),
// padding by 0.
static inline void fused_classifier(float* logits, float* losses, const int* targets, float dloss,
                                    int N, int V, int Vp) {
    #pragma omp parallel for
    for (int n = 0; n < N; n++) {
        float* x = logits + (size_t)n * Vp;
        float at_target = x[targets[n]], max = vector_max(x, V);
        if (dloss == 0.0f) {
            float sum = 0.0f;
            for (int first = 0; first < V; first += 256) {
                float e[256];
                int count = V - first < 256 ? V - first : 256;
                for (int i = 0; i < count; i++) { e[i] = vector_exp(x[first + i] - max); }
                sum += vector_sum(e, count);
            }
            losses[n] = logf(sum) + max - at_target;
        } else {
            for (int i = 0; i < V; i++) { x[i] = vector_exp(x[i] - max); }
            float sum = vector_sum(x, V);
            losses[n] = logf(sum) + max - at_target;
            for (int i = 0; i < V; i++) { x[i] = x[i] / sum * dloss; }
            x[targets[n]] -= dloss;
            for (int i = V; i < Vp; i++) { x[i] = 0.0f; }
        }
    }
}

#endif
