/*
Tests of the kernels between the GEMMs: encoder, layernorm, residual, gelu, bias, classifier, adamw
and the sums of global_norm.cuh, each against plain loops on the host.

Exact where a result is one FP32 operation per element, or the same formula in the same order
(adamw). Otherwise bounded, against double: the inputs are exactly those of the device, so what
remains is the FP32 arithmetic, some tens of U = 2^-24 times the sum of the absolute values that
were added, and one rounding to the storage type. Every sum is taken twice and has to give the same
bits; what a function adds into starts with something in it, what it overwrites starts with NaN.

"Fails with" names a fault that was planted in the kernel to see the check fail.
*/
#include <stdio.h>
#include <stdlib.h>
#include "../../llmc/adamw.cuh"
#include "../../llmc/bias.cuh"
#include "../../llmc/classifier.cuh"
#include "../../llmc/encoder.cuh"
#include "../../llmc/gelu.cuh"
#include "../../llmc/global_norm.cuh"
#include "../../llmc/layernorm.cuh"
#include "device_check.cuh"

#define U (1.0 / (1 << 24))         // largest relative rounding error of FP32
#define SMALLEST 1e-37              // below this FP32 and BF16 lose digits

// ---------------------------------------------------------------------------------------------
// Shared parts

// "what bf16 3,17,48"
template <typename Real>
static const char* name_of(const char* what, int size0, int size1, int size2) {
    static char name[100];
    snprintf(name, sizeof(name), "%s %s %d,%d,%d", what, real_name<Real>(), size0, size1, size2);
    return name;
}

static float* new_floats(size_t n) { return (float*)xcalloc(n * sizeof(float), "a test"); }
static double* new_doubles(size_t n) { return (double*)xcalloc(n * sizeof(double), "a test"); }

// Normal numbers on the grid of Real.
template <typename Real>
static float* new_values(size_t n, uint32_t stream, float mean, float deviation) {
    float* x = new_floats(n);
    fill_normal(x, n, stream, mean, deviation);
    real_round<Real>(x, n);
    return x;
}

// The bound of a value that was computed with an error up to `error` and then stored as Real.
template <typename Real> static double stored_bound(double want, double error) {
    return error + real_rounding<Real>() * (fabs(want) + error) + SMALLEST;
}

// ---------------------------------------------------------------------------------------------
// Encoder. 5000 rows of wte are enough.

// Fails with: row / T in place of row % T in the kernel.
template <typename Real> static void test_encoder_forward(TestShape s) {
    size_t N = (size_t)s.B * s.T, C = (size_t)s.C, V = s.V < 5000 ? s.V : 5000;
    float* wte = new_values<Real>(V * C, 1, 0.0f, 1.0f);
    float* wpe = new_values<Real>(s.T * C, 2, 0.0f, 1.0f);
    int* tokens = (int*)xcalloc(N * sizeof(int), "tokens");
    fill_integers(tokens, N, 3, (int)V);
    float* want = new_floats(N * C);
    float* got = new_floats(N * C);
    for (size_t i = 0; i < N; i++) {
        for (size_t c = 0; c < C; c++) {
            want[i * C + c] = wte[tokens[i] * C + c] + wpe[i % s.T * C + c];
        }
    }
    real_round<Real>(want, N * C);
    Real* out_device = device_tensor<Real>(N * C);
    encoder_forward(out_device, integers_to_device(tokens, N), to_device<Real>(wte, V * C),
                    to_device<Real>(wpe, s.T * C), s.B, s.T, s.C, 0);
    from_device(got, out_device, N * C);
    check_exact(name_of<Real>("encoder_forward", s.B, s.T, s.C), got, want,
                shape3("btc", s.B, s.T, s.C));
    device_free_all();
    free(wte); free(wpe); free(tokens); free(want); free(got);
}

// Every position has to appear once, under its own token, in ascending order; every partial sum
// once, in ascending order, in the sum of its token. Only the last piece of a token may be short.
// Fails with: firsts[pieces] or whole_firsts[wholes] left out; the positions filled from the last
// to the first; pieces of ENCODER_PIECE + 1; >= in place of > in is_long; -partials in place of
// -1 - partials.
static void test_token_index(void) {
    const int N = 1000, V = 300;
    int* tokens = (int*)xcalloc(N * sizeof(int), "tokens");
    int* index = (int*)xcalloc(token_index_size(N) * sizeof(int), "token index");
    fill_integers(tokens, N, 4, V - 2);
    for (int i = 0; i < N; i += 3) { tokens[i] = V - 1; }                       // 334
    for (int i = 1; i < 3 * ENCODER_PIECE; i += 3) { tokens[i] = V - 2; }       // one piece
    TokenIndex built = token_index_build(index, tokens, N, V);
    const RowSums* pieces = &built.pieces;
    const RowSums* wholes = &built.wholes;
    int wrong = pieces->firsts[0] != 0 || pieces->firsts[pieces->count] != N;
    int partials = 0, last = -1;
    wrong += wholes->count != 1 || wholes->targets[0] != V - 1 || wholes->firsts[0] != 0;
    for (int i = 0; i < pieces->count; i++) {
        int first = pieces->firsts[i], end = pieces->firsts[i + 1], target = pieces->targets[i];
        int token = tokens[pieces->positions[first]];
        wrong += end <= first || end - first > ENCODER_PIECE;
        wrong += target < 0 ? token != V - 1 || target != -1 - partials : token != target;
        wrong += target < 0 ? partials > 0 && last != token : token <= last;
        wrong += target < 0 && partials == 0 && end - first < ENCODER_PIECE;
        partials += target < 0;
        last = token;
        for (int j = first; j < end; j++) {
            wrong += tokens[pieces->positions[j]] != token;
            wrong += j > first && pieces->positions[j] <= pieces->positions[j - 1];
        }
    }
    wrong += partials != 2 || wholes->firsts[wholes->count] != partials;
    wrong += (size_t)partials > token_partials(N);
    for (int i = 0; i < partials; i++) { wrong += wholes->positions[i] != i; }
    report(wrong == 0, "token_index_build", "%d positions, %d pieces, %d partial sums, %d wrong", N,
           pieces->count, partials, wrong);
    free(tokens);
    free(index);
}

// What encoder_backward promises of its order: pieces of 256 occurrences; within each, every fourth
// one by one, then the four sums; the pieces' sums in the same way. Adds inp (rows,C) at (list[i],
// column), i in 0 .. n - 1; list NULL: at (i, column).
static float sum_in_order(const float* inp, const int* list, int n, size_t C, size_t column) {
    float total = 0.0f;
    for (int y = 0; y < 4; y++) {
        float sum = 0.0f;
        for (int i = y; i < n; i += 4) { sum += inp[(size_t)(list ? list[i] : i) * C + column]; }
        total += sum;
    }
    return total;
}

// dwte (V,C) += the sums of dout (N,C), in that order.
static void sum_tokens_in_order(float* dwte, const float* dout, const int* tokens, int N, size_t V,
                                size_t C) {
    int* list = (int*)xcalloc(N * sizeof(int), "occurrences");
    float* partials = new_floats(N / 256 + 1);
    for (size_t token = 0; token < V; token++) {
        int count = 0;
        for (int i = 0; i < N; i++) {
            if (tokens[i] == (int)token) { list[count++] = i; }
        }
        for (size_t c = 0; c < C && count > 0; c++) {
            int pieces = 0;
            for (int done = 0; done < count; done += 256) {
                int n = count - done < 256 ? count - done : 256;
                partials[pieces++] = sum_in_order(dout, list + done, n, C, c);
            }
            dwte[token * C + c] += pieces == 1 ? partials[0]
                                               : sum_in_order(partials, NULL, pieces, 1, 0);
        }
    }
    free(list);
    free(partials);
}

// Two fifths of the places hold the same token, so that one sum is long.
// Fails with: occurrences from first + 1 on; the last warp of a block not added; = in place of +=;
// += for partial sums; row -target of partials; the second launch left out; partial sums read from
// the index on the host; less scratch memory than partial sums (address sanitizer); pieces of another
// length, or eight warps (both only in the exact check of the order).
template <typename Real> static void test_encoder_backward(TestShape s) {
    size_t N = (size_t)s.B * s.T, C = (size_t)s.C, V = s.V < 5000 ? s.V : 5000;
    float* dout = new_values<Real>(N * C, 5, 0.1f, 1.0f);
    float* dwte = new_values<float>(V * C, 6, 0.0f, 1.0f);
    float* dwpe = new_values<float>(s.T * C, 7, 0.0f, 1.0f);
    int* tokens = (int*)xcalloc(N * sizeof(int), "tokens");
    fill_integers(tokens, N, 8, (int)V);
    for (size_t i = 0; i < N; i++) { tokens[i] = i % 5 < 2 ? (int)V - 1 : tokens[i]; }

    double* want_wte = new_doubles(V * C);
    double* bound_wte = new_doubles(V * C);   // first the sum of absolute values, then the bound
    double* want_wpe = new_doubles(s.T * C);
    double* bound_wpe = new_doubles(s.T * C);
    for (size_t i = 0; i < V * C; i++) { want_wte[i] = dwte[i]; }
    for (size_t i = 0; i < s.T * C; i++) { want_wpe[i] = dwpe[i]; }
    for (size_t i = 0; i < N; i++) {
        for (size_t c = 0; c < C; c++) {
            double d = dout[i * C + c];
            want_wte[tokens[i] * C + c] += d;
            want_wpe[i % s.T * C + c] += d;
            bound_wte[tokens[i] * C + c] += fabs(d);
            bound_wpe[i % s.T * C + c] += fabs(d);
        }
    }
    // A token without occurrences has bound 0: it must not be touched. Each warp adds a quarter of
    // a piece one by one, then a quarter of the pieces' sums.
    double additions = (N < ENCODER_PIECE ? N : ENCODER_PIECE) / 4.0 + N / ENCODER_PIECE / 4.0;
    for (size_t i = 0; i < V * C; i++) {
        bound_wte[i] *= U * (additions + 16.0);
        bound_wte[i] += bound_wte[i] > 0.0 ? U * fabs(want_wte[i]) : 0.0;
    }
    for (size_t i = 0; i < s.T * C; i++) {
        bound_wpe[i] = bound_wpe[i] * U * (s.B / 4.0 + 8.0) + U * fabs(want_wpe[i]);
    }

    int* index = (int*)xcalloc(token_index_size(N) * sizeof(int), "token index");
    TokenIndex view = token_index_build(index, tokens, (int)N, (int)V);
    view = token_index_at(view, index, integers_to_device(index, token_index_size(N)));
    memset(index, 0xff, token_index_size(N) * sizeof(int));     // the copy has to do
    float* scratch = device_tensor<float>(encoder_backward_scratch((int)N, s.C));
    float* in_order = new_floats(V * C);
    memcpy(in_order, dwte, V * C * sizeof(float));
    sum_tokens_in_order(in_order, dout, tokens, (int)N, V, C);
    Real* dout_device = to_device<Real>(dout, N * C);
    float* dwte_device = device_tensor<float>(V * C);
    float* dwpe_device = device_tensor<float>(s.T * C);
    float* got_wte[2] = { new_floats(V * C), new_floats(V * C) };
    float* got_wpe[2] = { new_floats(s.T * C), new_floats(s.T * C) };
    for (int run = 0; run < 2; run++) {
        device_set(dwte_device, dwte, V * C);
        device_set(dwpe_device, dwpe, s.T * C);
        encoder_backward(dwte_device, dwpe_device, dout_device, view, scratch, s.B, s.T, s.C, 0);
        from_device(got_wte[run], dwte_device, V * C);
        from_device(got_wpe[run], dwpe_device, s.T * C);
    }
    check_bounded(name_of<Real>("encoder_backward dwte", s.B, s.T, s.C), got_wte[0], want_wte,
                  bound_wte, shape2("vc", (int)V, s.C));
    check_bounded(name_of<Real>("encoder_backward dwpe", s.B, s.T, s.C), got_wpe[0], want_wpe,
                  bound_wpe, shape2("tc", s.T, s.C));
    check_exact(name_of<Real>("... dwte order", s.B, s.T, s.C), got_wte[0], in_order,
                shape2("vc", (int)V, s.C));
    check_exact(name_of<Real>("... dwte twice", s.B, s.T, s.C), got_wte[1], got_wte[0],
                shape2("vc", (int)V, s.C));
    check_exact(name_of<Real>("... dwpe twice", s.B, s.T, s.C), got_wpe[1], got_wpe[0],
                shape2("tc", s.T, s.C));
    device_free_all();
    free(dout); free(dwte); free(dwpe); free(tokens); free(index);
    free(want_wte); free(bound_wte); free(want_wpe); free(bound_wpe); free(in_order);
    for (int run = 0; run < 2; run++) { free(got_wte[run]); free(got_wpe[run]); }
}

// ---------------------------------------------------------------------------------------------
// Residual and layernorm

// Fails with: the second input left out; the last vector left out.
template <typename Real> static void test_residual(TestShape s) {
    size_t n = (size_t)s.B * s.T * s.C;
    float* inp1 = new_values<Real>(n, 10, 0.0f, 3.0f);
    float* inp2 = new_values<Real>(n, 11, 0.0f, 1.0f);
    float* want = new_floats(n);
    float* got = new_floats(n);
    for (size_t i = 0; i < n; i++) { want[i] = inp1[i] + inp2[i]; }
    real_round<Real>(want, n);
    Real* inp1_device = to_device<Real>(inp1, n);
    Real* inp2_device = to_device<Real>(inp2, n);
    Real* out_device = device_tensor<Real>(n);
    Shape shape = shape3("btc", s.B, s.T, s.C);
    residual_forward(out_device, inp1_device, inp2_device, n, 0);
    from_device(got, out_device, n);
    check_exact(name_of<Real>("residual_forward", s.B, s.T, s.C), got, want, shape);
    residual_forward(inp1_device, inp1_device, inp2_device, n, 0);
    from_device(got, inp1_device, n);
    check_exact(name_of<Real>("... in place", s.B, s.T, s.C), got, want, shape);
    device_free_all();
    free(inp1); free(inp2); free(want); free(got);
}

// Fails with: epsilon outside the root; C replaced by C - 1 in the variance.
template <typename Real> static void test_layernorm_forward(TestShape s) {
    size_t N = (size_t)s.B * s.T, C = (size_t)s.C;
    float* inp1 = new_values<Real>(N * C, 12, 3.0f, 2.0f);
    float* inp2 = new_values<Real>(N * C, 13, 0.0f, 0.1f);
    float* weight = new_values<Real>(C, 14, 1.0f, 0.3f);
    float* bias = new_values<Real>(C, 15, 0.0f, 0.3f);
    float* residual = new_floats(N * C);
    for (size_t i = 0; i < N * C; i++) { residual[i] = inp1[i] + inp2[i]; }
    real_round<Real>(residual, N * C);

    double* want = new_doubles(N * C);
    double* bound = new_doubles(N * C);
    double* want_mean = new_doubles(N);
    double* bound_mean = new_doubles(N);
    double* want_rstd = new_doubles(N);
    double* bound_rstd = new_doubles(N);
    for (size_t i = 0; i < N; i++) {
        const float* x = residual + i * C;
        double sum = 0.0, absolute = 0.0, squares = 0.0;
        for (size_t c = 0; c < C; c++) {
            sum += x[c];
            absolute += fabs(x[c]);
        }
        double mean = sum / C, error = 64 * U * absolute / C;
        for (size_t c = 0; c < C; c++) { squares += (x[c] - mean) * (x[c] - mean); }
        double rstd = 1.0 / sqrt(squares / C + 1e-5);
        want_mean[i] = mean;
        bound_mean[i] = error;
        want_rstd[i] = rstd;
        bound_rstd[i] = 64 * U * rstd;
        for (size_t c = 0; c < C; c++) {
            double norm = (x[c] - mean) * rstd;
            want[i * C + c] = norm * weight[c] + bias[c];
            double slack = fabs(weight[c]) * (rstd * error + 70 * U * fabs(norm));
            slack += 2 * U * (fabs(norm * weight[c]) + fabs(bias[c]));
            bound[i * C + c] = stored_bound<Real>(want[i * C + c], slack);
        }
    }

    Real* inp1_device = to_device<Real>(inp1, N * C);
    Real* inp2_device = to_device<Real>(inp2, N * C);
    Real* weight_device = to_device<Real>(weight, C);
    Real* bias_device = to_device<Real>(bias, C);
    Real* residual_device = device_tensor<Real>(N * C);
    Real* out_device = device_tensor<Real>(N * C);
    float* mean_device = device_tensor<float>(N);
    float* rstd_device = device_tensor<float>(N);
    float* got = new_floats(N * C);
    float* again = new_floats(N * C);
    float* got_row = new_floats(N);
    Shape shape = shape3("btc", s.B, s.T, s.C), row_shape = shape2("bt", s.B, s.T);

    fused_residual_layernorm_forward(residual_device, out_device, mean_device, rstd_device,
                                     inp1_device, inp2_device, weight_device, bias_device, (int)N,
                                     s.C, 0);
    from_device(got, residual_device, N * C);
    check_exact(name_of<Real>("layernorm residual", s.B, s.T, s.C), got, residual, shape);
    from_device(got, out_device, N * C);
    check_bounded(name_of<Real>("layernorm_forward out", s.B, s.T, s.C), got, want, bound, shape);
    from_device(got_row, mean_device, N);
    check_bounded(name_of<Real>("... mean", s.B, s.T, s.C), got_row, want_mean, bound_mean,
                  row_shape);
    from_device(got_row, rstd_device, N);
    check_bounded(name_of<Real>("... rstd", s.B, s.T, s.C), got_row, want_rstd, bound_rstd,
                  row_shape);

    // the residual over its first input, and the layernorm without an addition: the same bits
    fused_residual_layernorm_forward(inp1_device, out_device, mean_device, rstd_device, inp1_device,
                                     inp2_device, weight_device, bias_device, (int)N, s.C, 0);
    from_device(again, inp1_device, N * C);
    check_exact(name_of<Real>("... residual in place", s.B, s.T, s.C), again, residual, shape);
    from_device(again, out_device, N * C);
    check_exact(name_of<Real>("... in place", s.B, s.T, s.C), again, got, shape);
    cudaCheck(cudaMemset(out_device, 0xff, N * C * sizeof(Real)));
    layernorm_forward(out_device, mean_device, rstd_device, residual_device, weight_device,
                      bias_device, (int)N, s.C, 0);
    from_device(again, out_device, N * C);
    check_exact(name_of<Real>("... without addition", s.B, s.T, s.C), again, got, shape);
    device_free_all();
    free(inp1); free(inp2); free(weight); free(bias); free(residual); free(want); free(bound);
    free(want_mean); free(bound_mean); free(want_rstd); free(bound_rstd);
    free(got); free(again); free(got_row);
}

// Fails with: = in place of += for dinp; a warp's sums not handed on; the partials of one block
// left out; every 33rd row in place of every 32nd in add_partial_sums.
template <typename Real> static void test_layernorm_backward(int N, int C) {
    size_t n = (size_t)N * C;
    float* inp = new_values<Real>(n, 16, 1.0f, 2.0f);
    float* dout = new_values<Real>(n, 17, 0.1f, 1.0f);
    float* dinp = new_values<Real>(n, 18, 0.0f, 1.0f);
    float* weight = new_values<Real>(C, 19, 1.0f, 0.3f);
    float* dweight = new_values<float>(C, 20, 0.0f, 1.0f);
    float* dbias = new_values<float>(C, 21, 0.0f, 1.0f);
    float* mean = new_floats(N);
    float* rstd = new_floats(N);
    double* want = new_doubles(n);
    double* bound = new_doubles(n);
    double* want_dweight = new_doubles(C);
    double* bound_dweight = new_doubles(C);     // first the sum of absolute values, then the bound
    double* want_dbias = new_doubles(C);
    double* bound_dbias = new_doubles(C);
    for (int row = 0; row < N; row++) {
        const float* x = inp + (size_t)row * C;
        const float* d = dout + (size_t)row * C;
        double sum = 0.0, squares = 0.0;
        for (int c = 0; c < C; c++) { sum += x[c]; }
        for (int c = 0; c < C; c++) { squares += (x[c] - sum / C) * (x[c] - sum / C); }
        mean[row] = (float)(sum / C);           // exactly what the device gets
        rstd[row] = (float)(1.0 / sqrt(squares / C + 1e-5));
        double m = mean[row], r = rstd[row];
        double mean_dnorm = 0.0, mean_dnorm_norm = 0.0, absolute = 0.0, absolute_norm = 0.0;
        for (int c = 0; c < C; c++) {
            double norm = (x[c] - m) * r, dnorm = (double)d[c] * weight[c];
            mean_dnorm += dnorm / C;
            mean_dnorm_norm += dnorm * norm / C;
            absolute += fabs(dnorm) / C;
            absolute_norm += fabs(dnorm * norm) / C;
            want_dweight[c] += d[c] * norm;
            want_dbias[c] += d[c];
            bound_dweight[c] += fabs(d[c] * norm);
            bound_dbias[c] += fabs(d[c]);
        }
        for (int c = 0; c < C; c++) {
            size_t i = (size_t)row * C + c;
            double norm = (x[c] - m) * r, dnorm = (double)d[c] * weight[c];
            want[i] = dinp[i] + r * (dnorm - mean_dnorm - norm * mean_dnorm_norm);
            double slack = fabs(dnorm) + absolute + fabs(norm) * absolute_norm;
            slack = fabs(dinp[i]) + r * slack;
            bound[i] = stored_bound<Real>(want[i], 64 * U * slack);
        }
    }
    for (int c = 0; c < C; c++) {       // at most N / 1024 + 1 rows a thread, then some tens
        double factor = U * (N / 1024.0 + 64.0);
        want_dweight[c] += dweight[c];
        want_dbias[c] += dbias[c];
        bound_dweight[c] = factor * bound_dweight[c] + U * fabs(want_dweight[c]);
        bound_dbias[c] = factor * bound_dbias[c] + U * fabs(want_dbias[c]);
    }

    Real* inp_device = to_device<Real>(inp, n);
    Real* dout_device = to_device<Real>(dout, n);
    Real* weight_device = to_device<Real>(weight, C);
    float* mean_device = to_device<float>(mean, N);
    float* rstd_device = to_device<float>(rstd, N);
    float* scratch = device_tensor<float>(layernorm_backward_scratch(C));
    Real* dinp_device = device_tensor<Real>(n);
    float* dweight_device = device_tensor<float>(C);
    float* dbias_device = device_tensor<float>(C);
    float* got[2] = { new_floats(n), new_floats(n) };
    float* got_dweight[2] = { new_floats(C), new_floats(C) };
    float* got_dbias[2] = { new_floats(C), new_floats(C) };
    for (int run = 0; run < 2; run++) {
        device_set(dinp_device, dinp, n);
        device_set(dweight_device, dweight, C);
        device_set(dbias_device, dbias, C);
        layernorm_backward(dinp_device, dweight_device, dbias_device, dout_device, inp_device,
                           weight_device, mean_device, rstd_device, scratch, N, C, 0);
        from_device(got[run], dinp_device, n);
        from_device(got_dweight[run], dweight_device, C);
        from_device(got_dbias[run], dbias_device, C);
    }
    Shape shape = shape2("nc", N, C), column_shape = shape1("c", C);
    check_bounded(name_of<Real>("layernorm_backward dinp", 1, N, C), got[0], want, bound, shape);
    check_bounded(name_of<Real>("... dweight", 1, N, C), got_dweight[0], want_dweight,
                  bound_dweight, column_shape);
    check_bounded(name_of<Real>("... dbias", 1, N, C), got_dbias[0], want_dbias, bound_dbias,
                  column_shape);
    check_exact(name_of<Real>("... dinp twice", 1, N, C), got[1], got[0], shape);
    check_exact(name_of<Real>("... dweight twice", 1, N, C), got_dweight[1], got_dweight[0],
                column_shape);
    check_exact(name_of<Real>("... dbias twice", 1, N, C), got_dbias[1], got_dbias[0],
                column_shape);
    device_free_all();
    free(inp); free(dout); free(dinp); free(weight); free(dweight); free(dbias); free(mean);
    free(rstd); free(want); free(bound); free(want_dweight); free(bound_dweight); free(want_dbias);
    free(bound_dbias);
    for (int run = 0; run < 2; run++) {
        free(got[run]); free(got_dweight[run]); free(got_dbias[run]);
    }
}

// ---------------------------------------------------------------------------------------------
// GELU and bias

// The relative error of s = 1 / (1 + exp(-2u)) is that of the exponential, times 1 - s: at most
// (5 + 2.4 |u|) 2^-23 with the hardware's functions, and as much again from the rounding of u.
// Fails with: 0.044715 without the cube; the factor 3 left out of the derivative.
template <typename Real> static void test_gelu(TestShape s) {
    size_t n = (size_t)s.B * s.T * s.C;
    float* inp = new_values<Real>(n, 22, 0.0f, 3.0f);
    float* dout = new_values<Real>(n, 23, 0.0f, 1.0f);
    const float special[] = { 0.0f, -0.0f, 1e-30f, -1e-30f, 9.0f, -9.0f, 40.0f, -40.0f, 1e15f,
                              -1e15f };
    for (size_t i = 0; i < sizeof(special) / sizeof(special[0]); i++) { inp[i] = special[i]; }
    real_round<Real>(inp, n);
    double* want = new_doubles(n);
    double* bound = new_doubles(n);
    double* want_dinp = new_doubles(n);
    double* bound_dinp = new_doubles(n);
    for (size_t i = 0; i < n; i++) {
        double x = inp[i], scale = sqrt(2.0 / 3.14159265358979323846);
        double u = scale * (x + 0.044715 * x * x * x), du = scale * (1.0 + 3.0 * 0.044715 * x * x);
        double sigmoid = 1.0 / (1.0 + exp(-2.0 * u)), other = 1.0 / (1.0 + exp(2.0 * u));
        double error = U * (20.0 + 20.0 * fabs(u) * other);                     // of s, relative
        want[i] = x * sigmoid;
        double zero = sigmoid < SMALLEST;       // underflow: the result may be 0
        bound[i] = stored_bound<Real>(want[i], fabs(x) * sigmoid * (error + zero));
        double bend = x * sigmoid * other * 2.0 * du;
        want_dinp[i] = dout[i] * (sigmoid + bend);
        // 1 - s has the absolute error of s; everything else is relative
        double slack = sigmoid * error + fabs(x) * sigmoid * 2.0 * du * (sigmoid * error + 2.0 * U)
                     + fabs(bend) * (2.0 * error + 8.0 * U);
        slack += zero * fabs(bend);
        bound_dinp[i] = stored_bound<Real>(want_dinp[i], fabs(dout[i]) * slack);
    }
    Real* inp_device = to_device<Real>(inp, n);
    Real* dout_device = to_device<Real>(dout, n);
    Real* out_device = device_tensor<Real>(n);
    float* got = new_floats(n);
    float* again = new_floats(n);
    Shape shape = shape3("btc", s.B, s.T, s.C);
    gelu_forward(out_device, inp_device, n, 0);
    from_device(got, out_device, n);
    check_bounded(name_of<Real>("gelu_forward", s.B, s.T, s.C), got, want, bound, shape);
    gelu_backward(out_device, dout_device, inp_device, n, 0);
    from_device(got, out_device, n);
    check_bounded(name_of<Real>("gelu_backward", s.B, s.T, s.C), got, want_dinp, bound_dinp, shape);
    gelu_backward(dout_device, dout_device, inp_device, n, 0);
    from_device(again, dout_device, n);
    check_exact(name_of<Real>("... in place", s.B, s.T, s.C), again, got, shape);
    device_free_all();
    free(inp); free(dout); free(want); free(bound); free(want_dinp); free(bound_dinp);
    free(got); free(again);
}

// Fails with: rows counted without BIAS_WARPS; a block's last warp not added.
template <typename Real> static void test_bias(int N, int OC) {
    size_t n = (size_t)N * OC;
    float* inp = new_values<Real>(n, 24, 0.1f, 2.0f);
    float* bias = new_values<Real>(OC, 25, 0.0f, 1.0f);
    float* dbias = new_values<float>(OC, 26, 0.0f, 1.0f);
    float* want = new_floats(n);
    double* want_dbias = new_doubles(OC);
    double* bound_dbias = new_doubles(OC);
    for (size_t i = 0; i < n; i++) {
        want[i] = inp[i] + bias[i % OC];
        want_dbias[i % OC] += inp[i];
        bound_dbias[i % OC] += fabs(inp[i]);
    }
    real_round<Real>(want, n);
    for (int c = 0; c < OC; c++) {      // at most N / 4096 + 1 rows a thread, then some tens
        want_dbias[c] += dbias[c];
        bound_dbias[c] = U * ((N / 4096.0 + 64.0) * bound_dbias[c] + fabs(want_dbias[c]));
    }
    float* got = new_floats(n);
    float* got_dbias[2] = { new_floats(OC), new_floats(OC) };
    Real* inp_device = to_device<Real>(inp, n);
    float* scratch = device_tensor<float>(bias_backward_scratch(OC));
    float* dbias_device = device_tensor<float>(OC);
    for (int run = 0; run < 2; run++) {
        device_set(dbias_device, dbias, OC);
        bias_backward(dbias_device, inp_device, scratch, N, OC, 0);
        from_device(got_dbias[run], dbias_device, OC);
    }
    bias_add(inp_device, to_device<Real>(bias, OC), N, OC, 0);
    from_device(got, inp_device, n);
    check_exact(name_of<Real>("bias_add", 1, N, OC), got, want, shape2("nc", N, OC));
    check_bounded(name_of<Real>("bias_backward", 1, N, OC), got_dbias[0], want_dbias, bound_dbias,
                  shape1("c", OC));
    check_exact(name_of<Real>("... twice", 1, N, OC), got_dbias[1], got_dbias[0], shape1("c", OC));
    device_free_all();
    free(inp); free(bias); free(dbias); free(want); free(want_dbias); free(bound_dbias); free(got);
    free(got_dbias[0]); free(got_dbias[1]);
}

// ---------------------------------------------------------------------------------------------
// Classifier

// The padding columns hold 10000: they would rule every sum that they got into. In two rows all
// logits are so small or so large that only exponentials relative to the maximum stay in range.
// Fails with: Vp in place of V in the first loop; a maximum that starts at 0; the sum not scaled
// when the maximum grows; the target's dloss not subtracted.
template <typename Real> static void test_classifier(int V) {
    const int B = 2, T = 12, Vp = CEIL_DIV(V, 128) * 128;
    const float dloss = 1.0f / (B * T);
    size_t rows = (size_t)B * T, n = rows * Vp;
    float* logits = new_values<Real>(n, 27, -1.0f, 4.0f);
    int* targets = (int*)xcalloc(rows * sizeof(int), "targets");
    fill_integers(targets, rows, 28, V);
    targets[0] = 0;
    targets[1] = V - 1;
    for (size_t i = 0; i < n; i++) {
        logits[i] += i / Vp == 2 ? -300.0f : i / Vp == 3 ? 300.0f : 0.0f;
        if ((int)(i % Vp) >= V) { logits[i] = 10000.0f; }
    }
    real_round<Real>(logits, n);
    double* want = new_doubles(n);
    double* bound = new_doubles(n);
    double* want_loss = new_doubles(rows);
    double* bound_loss = new_doubles(rows);
    for (size_t row = 0; row < rows; row++) {
        const float* x = logits + row * Vp;
        double max = -INFINITY, sum = 0.0, error = 0.0;
        for (int v = 0; v < V; v++) { max = fmax(max, x[v]); }
        for (int v = 0; v < V; v++) {
            // the exponential, its argument, and the two rescalings of the running sum
            sum += exp(x[v] - max);
            error += exp(x[v] - max) * U * (8.0 + 8.0 * (max - x[v]));
        }
        error = error / sum + 128.0 * U;                            // of the sum, relative
        want_loss[row] = log(sum) + max - x[targets[row]];
        bound_loss[row] = error + 4.0 * U * (log(sum) + fabs(max) + fabs(x[targets[row]]));
        for (int v = 0; v < Vp; v++) {
            size_t i = row * Vp + v;
            double p = v < V ? exp(x[v] - max) / sum : 0.0, hit = v == targets[row];
            want[i] = (p - hit) * dloss;
            double slack = p * (error + U * (8.0 + 8.0 * (max - x[v]))) + 2.0 * U * hit;
            bound[i] = v < V ? stored_bound<Real>(want[i], slack * dloss) : 0.0;
        }
    }
    Real* logits_device = device_tensor<Real>(n);
    float* losses_device = device_tensor<float>(rows);
    int* targets_device = integers_to_device(targets, rows);
    float* got = new_floats(n);
    float* again = new_floats(n);
    float* got_loss = new_floats(rows);
    float* loss_again = new_floats(rows);
    Shape shape = shape3("btv", B, T, Vp), row_shape = shape2("bt", B, T);
    device_set(logits_device, logits, n);
    fused_classifier(logits_device, losses_device, targets_device, dloss, B, T, V, Vp, 0, 0);
    from_device(got, logits_device, n);
    from_device(got_loss, losses_device, rows);
    check_exact(name_of<Real>("classifier logits kept", B, T, V), got, logits, shape);
    check_bounded(name_of<Real>("classifier loss", B, T, V), got_loss, want_loss, bound_loss,
                  row_shape);
    for (int run = 0; run < 2; run++) {
        device_set(logits_device, logits, n);
        fused_classifier(logits_device, losses_device, targets_device, dloss, B, T, V, Vp, 1, 0);
        from_device(run == 0 ? got : again, logits_device, n);
        from_device(loss_again, losses_device, rows);
    }
    check_bounded(name_of<Real>("classifier dlogits", B, T, V), got, want, bound, shape);
    check_exact(name_of<Real>("... dlogits twice", B, T, V), again, got, shape);
    check_exact(name_of<Real>("... loss three times", B, T, V), loss_again, got_loss, row_shape);
    device_free_all();
    free(logits); free(targets); free(want); free(bound); free(want_loss); free(bound_loss);
    free(got); free(again); free(got_loss); free(loss_again);
}

// ---------------------------------------------------------------------------------------------
// Optimizer and sums

// adamw_element as the host's compiler sees it against the same function on the device: every bit.
// Fails with: m and v exchanged; the last four elements left out.
static void test_adamw(size_t n) {
    float* master = new_values<float>(n, 30, 0.0f, 0.02f);
    float* m = new_floats(n);
    float* v = new_floats(n);
    float* grad = new_floats(n);
    float* got = new_floats(n);
    float* rounded = new_floats(n);
    float* master_device = to_device<float>(master, n);
    float* m_device = to_device<float>(m, n);
    float* v_device = to_device<float>(v, n);
    float* grad_device = device_tensor<float>(n);
    __nv_bfloat16* working_device = device_tensor<__nv_bfloat16>(n);
    for (int step = 0; step < 3; step++) {
        AdamW a = adamw_step(6e-4f, 0.1f, 0.37f, step);
        fill_normal(grad, n, 31 + step, 0.0f, step == 1 ? 1e-12f : 1.0f);
        grad[0] = 0.0f;
        grad[1] = 1e15f;
        device_set(grad_device, grad, n);
        adamw_update(master_device, step == 0 ? NULL : working_device, grad_device, m_device,
                     v_device, n, a, 0);
        for (size_t i = 0; i < n; i++) { adamw_element(&master[i], &m[i], &v[i], grad[i], a); }
    }
    char name[100];
    snprintf(name, sizeof(name), "adamw %zu master", n);
    from_device(got, master_device, n);
    check_exact(name, got, master, shape1("i", (int)n));
    from_device(got, m_device, n);
    check_exact("... m", got, m, shape1("i", (int)n));
    from_device(got, v_device, n);
    check_exact("... v", got, v, shape1("i", (int)n));
    for (size_t i = 0; i < n; i++) { rounded[i] = bf16_round(master[i]); }
    from_device(got, working_device, n);
    check_exact("... working", got, rounded, shape1("i", (int)n));
    device_free_all();
    free(master); free(m); free(v); free(grad); free(got); free(rounded);
}

// All terms are positive: the relative error is at most that of about 30 roundings.
// Fails with: the stride of the grid without its factor 4; the last loss left out.
static void test_sums(size_t n) {
    float* values = new_floats(n);
    fill_normal(values, n, 40, 0.0f, 1.0f);
    double squares = 0.0, sum = 0.0;
    for (size_t i = 0; i < n; i++) { squares += (double)values[i] * values[i]; }
    float* values_device = to_device<float>(values, n);
    float* scratch = device_tensor<float>(GLOBAL_NORM_BLOCKS);
    float* out_device = device_tensor<float>(1);
    float got[2];
    char name[100];
    for (int run = 0; run < 2; run++) {
        global_norm_squared(out_device, values_device, n, scratch, 0);
        from_device(&got[run], out_device, 1);
    }
    double bound = 32.0 * U * squares;
    snprintf(name, sizeof(name), "global_norm_squared %zu", n);
    check_bounded(name, &got[0], &squares, &bound, shape1("i", 1));
    check_exact("... twice", &got[1], &got[0], shape1("i", 1));

    int losses = (int)(n < 100000 ? n - 3 : 100000);
    for (int i = 0; i < losses; i++) {
        values[i] = fabsf(values[i]);
        sum += values[i];
    }
    device_set(values_device, values, n);
    float before = 3.0f;                        // it adds to what is there
    device_set(out_device, &before, 1);
    sum += before;
    sum_losses(out_device, values_device, losses, 0);
    from_device(&got[0], out_device, 1);
    bound = 32.0 * U * sum;
    snprintf(name, sizeof(name), "sum_losses %d", losses);
    check_bounded(name, &got[0], &sum, &bound, shape1("i", 1));
    device_free_all();
    free(values);
}

// ---------------------------------------------------------------------------------------------

template <typename Real> static void test_type(void) {
    for (int i = 0; i < NUM_TEST_SHAPES; i++) {
        TestShape s = test_shapes[i];
        int N = s.B * s.T;
        test_encoder_forward<Real>(s);
        test_encoder_backward<Real>(s);
        test_residual<Real>(s);
        test_layernorm_forward<Real>(s);
        test_layernorm_backward<Real>(N, s.C);
        test_gelu<Real>(s);
        test_bias<Real>(N, s.C);
        test_bias<Real>(N, 3 * s.C);
        test_classifier<Real>(s.V);
    }
    TestShape long_sum = { 4, 1024, 48, 3, 257 };
    test_encoder_backward<Real>(long_sum);      // 4096 places: 7 partial sums for one token
    test_layernorm_backward<Real>(9001, 48);    // more rows than blocks hold at a time
    test_bias<Real>(9001, 48);
    test_layernorm_backward<Real>(5, 6144);     // the widest row in float
}

int main(void) {
    test_token_index();
    if (device_missing("layers")) { return report_status(); }
    test_type<float>();
    test_type<__nv_bfloat16>();
    test_adamw(16);
    test_adamw(100016);
    test_sums(16);
    test_sums(1000 * 16);
    test_sums(3 * 4096 * 1024 + 16);            // more than all blocks read at a time
    return report_status();
}
