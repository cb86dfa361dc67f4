/*
attention.cuh against plain loops in double, for each head size, also with T that no tile divides.

bounded    FP32: |error| <= n * 2^-24 * m, where m is the same formula with the absolute value of
           every term, and n counts the roundings on the longest path to a result (`roundings`).
           BF16: the FP32 sums of the tensor cores may truncate, which doubles that, and some values
           are rounded to BF16 on the way. What this costs is measured: the reference is computed a
           second time with BF16 roundings at the same points; twice its largest error is allowed,
           and the rounding of the stored element.
run twice  the same bits.

Outputs start as NaN, so that an element that is not assigned, or a row of shared memory that should
be zero, fails.

Faults that made it fail, one at a time: >= in place of > in the mask; no mask in the dK, dV kernel;
the correction of row_sum left out; P rounded before it enters row_sum; lse without its logarithm;
keys 16 to 31 left out in the dQ kernel; delta left out; scale left out of dK; rows from T on not
zeroed; a grid without the last group of heads; float: the query's own key left out in forward, the
key's own query in backward.
*/
#include "../../llmc/attention.cuh"
#include "device_check.cuh"

typedef struct { int B, T, NH; float deviation; } AttentionCase;

// Deviation 3 makes softmax pick few keys, with a maximum that moves from tile to tile.
static const AttentionCase bf16_cases[] = { { 1, 1, 1, 1.0f },   { 2, 17, 3, 1.0f },
                                            { 1, 64, 2, 1.0f },  { 2, 100, 2, 3.0f },
                                            { 1, 200, 2, 1.0f }, { 1, 257, 1, 3.0f },
                                            { 1, 20, 37, 1.0f } };
static const AttentionCase float_cases[] = { { 1, 1, 1, 1.0f }, { 2, 17, 3, 1.0f },
                                             { 1, 130, 2, 3.0f } };
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static double* new_doubles(size_t n) { return (double*)xcalloc(n * sizeof(double), "a test"); }
static float* new_floats(size_t n) { return (float*)xcalloc(n * sizeof(float), "a test"); }

// ---------------------------------------------------------------------------------------------
// The reference

typedef struct { double* out /* (B,T,NH,HS) */; double* lse /* (B,NH,T) */; double* dqkv; } Results;

static Results new_results(size_t B, size_t T, size_t C, size_t NH) {
    Results r;
    r.out = new_doubles(B * T * C);
    r.lse = new_doubles(B * NH * T);
    r.dqkv = new_doubles(B * T * 3 * C);
    return r;
}

static void free_results(Results r) {
    free(r.out);
    free(r.lse);
    free(r.dqkv);
}

// MAGNITUDE: of the same P, each other term by its absolute value; lse is then max of scale sum |q
// k|.
typedef enum { EXACT, ROUNDED_TO_BF16, MAGNITUDE } Mode;

static double term(double x, Mode mode) { return mode == MAGNITUDE ? fabs(x) : x; }
static double stored(double x, Mode mode) {
    return mode == ROUNDED_TO_BF16 ? (double)bf16_round((float)x) : x;
}

// One head. All pointers are to its first element; rows of qkv are 3C apart, of out and dout C.
static void reference_head(double* out, double* lse, double* dqkv, const float* qkv,
                           const float* dout, int T, int C, int HS, Mode mode) {
    double scale = 1.0 / sqrt((double)HS);
    double* s = new_doubles((size_t)T);
    for (int t = 0; t < T; t++) {
        const float* q = qkv + (size_t)t * 3 * C;
        const float* d = dout + (size_t)t * C;
        double* o = out + (size_t)t * C;
        double* dq = dqkv + (size_t)t * 3 * C;
        double maximum = -INFINITY, largest_magnitude = 0.0, sum = 0.0, delta = 0.0;
        for (int key = 0; key <= t; key++) {
            const float* k = qkv + (size_t)key * 3 * C + C;
            double dot = 0.0, magnitude = 0.0;
            for (int i = 0; i < HS; i++) {
                dot += (double)q[i] * k[i];
                magnitude += fabs((double)q[i] * k[i]);
            }
            s[key] = scale * dot;
            maximum = fmax(maximum, s[key]);
            largest_magnitude = fmax(largest_magnitude, scale * magnitude);
        }
        for (int key = 0; key <= t; key++) {
            const float* v = qkv + (size_t)key * 3 * C + 2 * C;
            double p = exp(s[key] - maximum);
            sum += p;
            for (int i = 0; i < HS; i++) { o[i] += stored(p, mode) * term(v[i], mode); }
        }
        for (int i = 0; i < HS; i++) {
            o[i] = stored(o[i] / sum, mode);
            delta += o[i] * term(d[i], mode);
        }
        lse[t] = mode == MAGNITUDE ? largest_magnitude : maximum + log(sum);
        for (int key = 0; key <= t; key++) {
            const float* k = qkv + (size_t)key * 3 * C + C;
            const float* v = k + C;
            double* dk = dqkv + (size_t)key * 3 * C + C;
            double* dv = dk + C;
            double p = exp(s[key] - maximum) / sum, dp = 0.0;
            for (int i = 0; i < HS; i++) { dp += term((double)d[i] * v[i], mode); }
            double ds = stored(p * (mode == MAGNITUDE ? dp + delta : dp - delta), mode);
            for (int i = 0; i < HS; i++) {
                dv[i] += stored(p, mode) * term(d[i], mode);
                dk[i] += scale * ds * term(q[i], mode);
                dq[i] += scale * ds * term(k[i], mode);
            }
        }
    }
    free(s);
}

static void reference(Results r, const float* qkv, const float* dout, AttentionCase c, int HS,
                      Mode mode) {
    int C = c.NH * HS;
    #pragma omp parallel for
    for (int head = 0; head < c.B * c.NH; head++) {
        size_t at = (size_t)(head / c.NH) * c.T * C, column = (size_t)(head % c.NH) * HS;
        reference_head(r.out + at + column, r.lse + (size_t)head * c.T, r.dqkv + 3 * at + column,
                       qkv + 3 * at + column, dout + at + column, c.T, C, HS, mode);
    }
    for (size_t i = 0; i < (size_t)c.B * c.T * 3 * C; i++) { r.dqkv[i] = stored(r.dqkv[i], mode); }
}

// ---------------------------------------------------------------------------------------------
// Bounds

// Roundings on the longest path to a result. A score is a sum of HS products; a warp adds them
// pairwise in FP32, the tensor cores one after the other. Its error is that many roundings of its
// magnitude. exp turns it into a relative error of P, twice because of the maximum or lse. A sum
// over keys or queries has T terms, each perhaps corrected T times before. Backward takes all that
// twice, through P and through out in delta.
static double roundings(int T, int HS, double largest_score, int bf16) {
    double dot = bf16 ? HS : HS / 32 + 6;
    return 2.0 * (dot * (1.0 + 2.0 * largest_score) + 2.0 * T + 16.0);
}

// bound (rows,period) of want (rows,period), for columns first .. first+count-1 of each row: those
// of one tensor, which has one largest error.
static void bound_columns(double* bound, const double* want, const double* rounded,
                          const double* magnitude, size_t rows, size_t period, size_t first,
                          size_t count, double rounding, int bf16) {
    double largest_error = 0.0;
    for (size_t i = 0; i < rows * count; i++) {
        size_t at = i / count * period + first + i % count;
        largest_error = fmax(largest_error, fabs(rounded[at] - want[at]));
    }
    for (size_t i = 0; i < rows * count; i++) {
        size_t at = i / count * period + first + i % count;
        bound[at] = rounding * magnitude[at] + 1e-37;
        if (bf16) {
            bound[at] += 2.0 * largest_error + fabs(want[at]) * real_rounding<__nv_bfloat16>();
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The tests

// Forward and backward of one case on the device. The three results come back as float.
template <typename Real>
static void run_on_device(float* out, float* lse, float* dqkv, const float* qkv, const float* dout,
                          AttentionCase c, int HS) {
    size_t heads = (size_t)c.B * c.NH, n = heads * c.T * HS;
    Real* device_qkv = to_device<Real>(qkv, 3 * n);
    Real* device_dout = to_device<Real>(dout, n);
    Real* device_out = device_tensor<Real>(n);
    Real* device_dqkv = device_tensor<Real>(3 * n);
    float* device_lse = device_tensor<float>(heads * c.T);
    float* delta = device_tensor<float>(heads * c.T);
    attention_forward(device_out, device_lse, device_qkv, c.B, c.T, c.NH, HS, 0);
    attention_backward(device_dqkv, device_dout, device_qkv, device_out, device_lse, delta, c.B,
                       c.T, c.NH, HS, 0);
    cudaCheck(cudaDeviceSynchronize());
    from_device(out, device_out, n);
    from_device(lse, device_lse, heads * c.T);
    from_device(dqkv, device_dqkv, 3 * n);
    device_free_all();
}

template <typename Real> static void test_attention(AttentionCase c, int HS) {
    size_t heads = (size_t)c.B * c.NH, C = (size_t)c.NH * HS, BT = (size_t)c.B * c.T, n = BT * C;
    int bf16 = sizeof(Real) == sizeof(__nv_bfloat16);
    float* qkv = new_floats(3 * n);
    float* dout = new_floats(n);
    fill_normal(qkv, 3 * n, 1, 0.0f, c.deviation);
    fill_normal(dout, n, 2, 0.0f, 1.0f);
    real_round<Real>(qkv, 3 * n);
    real_round<Real>(dout, n);

    float* got[2][3];
    for (int i = 0; i < 2; i++) {
        got[i][0] = new_floats(n);
        got[i][1] = new_floats(heads * c.T);
        got[i][2] = new_floats(3 * n);
        run_on_device<Real>(got[i][0], got[i][1], got[i][2], qkv, dout, c, HS);
    }

    Results want = new_results(c.B, c.T, C, c.NH), rounded = new_results(c.B, c.T, C, c.NH);
    Results magnitude = new_results(c.B, c.T, C, c.NH), bound = new_results(c.B, c.T, C, c.NH);
    reference(want, qkv, dout, c, HS, EXACT);
    reference(rounded, qkv, dout, c, HS, ROUNDED_TO_BF16);
    reference(magnitude, qkv, dout, c, HS, MAGNITUDE);
    double largest_score = 0.0, unit = bf16 ? 1.0 / (1 << 23) : 1.0 / (1 << 24);
    for (size_t i = 0; i < heads * c.T; i++) {
        largest_score = fmax(largest_score, magnitude.lse[i]);
    }
    double rounding = roundings(c.T, HS, largest_score, bf16) * unit;
    bound_columns(bound.out, want.out, rounded.out, magnitude.out, BT, C, 0, C, rounding, bf16);
    for (int part = 0; part < 3; part++) {          // dQ, dK, dV
        bound_columns(bound.dqkv, want.dqkv, rounded.dqkv, magnitude.dqkv, BT, 3 * C, part * C, C,
                      rounding, bf16);
    }
    for (size_t i = 0; i < heads * c.T; i++) {      // a score, and the logarithm of a sum of T
        bound.lse[i] = unit * (HS * magnitude.lse[i] + c.T + 16.0 + 4.0 * fabs(want.lse[i]));
    }

    Shape shapes[3] = { shape4("bthi", c.B, c.T, c.NH, HS), shape3("bht", c.B, c.NH, c.T),
                        shape4("btci", c.B, c.T, 3, (int)C) };
    const char* names[3] = { "out", "lse", "dqkv" };
    double* wants[3] = { want.out, want.lse, want.dqkv };
    double* bounds[3] = { bound.out, bound.lse, bound.dqkv };
    for (int i = 0; i < 3; i++) {
        char name[100];
        snprintf(name, sizeof(name), "%s %s %d,%d,%d,%d", names[i], real_name<Real>(), c.B, c.T,
                 c.NH, HS);
        check_bounded(name, got[0][i], wants[i], bounds[i], shapes[i]);
        snprintf(name, sizeof(name), "%s %s %d,%d,%d,%d twice", names[i], real_name<Real>(), c.B,
                 c.T, c.NH, HS);
        check_exact(name, got[1][i], got[0][i], shapes[i]);
        free(got[0][i]);
        free(got[1][i]);
    }
    free_results(want);
    free_results(rounded);
    free_results(magnitude);
    free_results(bound);
    free(qkv);
    free(dout);
}

int main(void) {
    if (device_missing("attention")) { return 0; }
    static const int bf16_sizes[] = { 16, 32, 64, 80, 96, 128 };
    static const int float_sizes[] = { 16, 48, 64, 112, 128 };
    for (int i = 0; i < COUNT(bf16_sizes); i++) {
        for (int j = 0; j < COUNT(bf16_cases); j++) {
            test_attention<__nv_bfloat16>(bf16_cases[j], bf16_sizes[i]);
        }
    }
    AttentionCase trained = { 1, 1024, 2, 1.0f };       // GPT-2's length: up to 16 tiles
    if (RUNS_ON_CPU) { report_skip("1,1024,2,64", "takes too long without a GPU"); }
    else { test_attention<__nv_bfloat16>(trained, 64); }
    for (int i = 0; i < COUNT(float_sizes); i++) {
        for (int j = 0; j < COUNT(float_cases); j++) {
            test_attention<float>(float_cases[j], float_sizes[i]);
        }
    }
    return report_status();
}
