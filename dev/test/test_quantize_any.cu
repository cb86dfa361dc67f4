/*
quantize_any.cuh against the reference quantizer of quantizer.h, for every Quantizer that a recipe
can have, and against the fast kernel of quantize.cuh where both apply. Class: exact, every byte of a
quantized matrix, padding and the gaps between its parts included.

Faults that made it fail, one at a time: vectors of a tile written without their swizzle; the upper
half of a butterfly across threads with the other sign; every thread with the signs of the first 16
points; the amax of a block of 32 or 128 from half of it; the errors of a square without its last row;
no barrier between the two directions; amax without the rounding after the transform; codes of two
neighbours exchanged; rows and columns of a tile's place exchanged for the transpose; alpha as amax_a *
(amax_b * factor); a later operand overwriting the flag.
*/
#include "../../llmc/quantize_any.cuh"
#include "matrix_check.cuh"

// Every treatment of a block, without the transform.
static int all_quantizers(Quantizer* all /* (64) */) {
    int count = 0;
    for (int f = FORMAT_NVFP4; f < NUM_FORMATS; f++) {
        int nvfp4 = f == FORMAT_NVFP4, four_bits = nvfp4 || f == FORMAT_MXFP4;
        for (int i = 0; i < 2 * 3 * 3 * 4; i++) {
            Quantizer q;
            memset(&q, 0, sizeof(q));
            q.format = (Format)f;
            q.tile = i % 2;
            q.rounding = (RoundingRule)(i / 2 % 3);
            q.four_six = (FourSix)(i / 6 % 3);
            q.unbiased = i / 18 == 1;
            q.paper_order = i / 18 == 2;
            q.e5m2 = i / 18 == 3;
            if ((q.rounding == ROUND_MS_EDEN && (!nvfp4 || q.tile))
                || (q.rounding == ROUND_STOCHASTIC && !four_bits)
                || (q.four_six && (!nvfp4 || q.rounding != ROUND_NEAREST || i / 18 != 0))
                || (q.unbiased && (!nvfp4 || q.rounding != ROUND_STOCHASTIC))
                || (q.paper_order && (!nvfp4 || q.rounding == ROUND_MS_EDEN))
                || (q.e5m2 && f != FORMAT_FP8)) { continue; }
            check(count < 64, "more than 64 quantizers");
            all[count++] = q;
        }
    }
    return count;
}

static void describe(char* text /* (120) */, Quantizer q, const Rotation* r, const char* what) {
    snprintf(text, 120, "%s tile %d rounding %d 4/6 %d unbiased %d paper %d e5m2 %d rotation %d, %s",
             format_name(q.format), q.tile, (int)q.rounding, (int)q.four_six, q.unbiased,
             q.paper_order, q.e5m2, r->size, what);
}

static Tally tally_amax[2]    = { { "amax" }, { "amax of the transpose" } };
static Tally tally_formats[NUM_FORMATS][2] = {
    { { "" }, { "" } }, { { "" }, { "" } }, { { "nvfp4" }, { "nvfp4 transposed" } },
    { { "mxfp4" }, { "mxfp4 transposed" } }, { { "mxfp8" }, { "mxfp8 transposed" } },
    { { "fp8" }, { "fp8 transposed" } }, { { "fp8block" }, { "fp8block transposed" } },
};
static Tally tally_fast       = { "the fast kernel" };
static Tally tally_transpose  = { "codes transposed" };
static Tally tally_expand     = { "expanded" };

// The matrix that is to be quantized: x (rows, cols) or its transpose, transformed.
static float* source_make(const float* x, int rows, int cols, int transposed, const Rotation* r) {
    size_t n = (size_t)rows * cols;
    float* y = (float*)malloc(n * sizeof(float));
    if (transposed) { hadamard_transpose(y, x, rows, cols, 0); }
    else { memcpy(y, x, n * sizeof(float)); }
    for (size_t i = 0; r->size > 0 && i < n; i += (size_t)r->size) { rotation_apply(y + i, r); }
    return y;
}

static void compare_expansion(const MatrixPair* p, Quantizer q, const char* what) {
    size_t n = (size_t)p->host.rows * p->host.cols;
    __nv_bfloat16* out = device_tensor<__nv_bfloat16>(n);
    float* got = (float*)malloc(n * sizeof(float));
    float* want = (float*)malloc(n * sizeof(float));
    quantize_any_expand(out, &p->device, q, 0);
    from_device(got, out, n);
    quantized_expand(want, &p->host, q);
    for (size_t i = 0; i < n; i++) {
        if (float_bits(got[i]) == float_bits(want[i])) { continue; }
        if (tally_expand.differ == 0) {
            snprintf(tally_expand.first, sizeof(tally_expand.first),
                     "%s (%d, %d), element %zu: %g instead of %g", what, p->host.rows,
                     p->host.cols, i, got[i], want[i]);
        }
        tally_expand.differ += 2;
    }
    tally_expand.matrices++;
    tally_expand.bytes += 2 * n;
    free(got);
    free(want);
    cudaCheck(cudaFree(out));
    device_num_tensors--;
}

// The kernels of quantize.cuh, which know one treatment, on the same matrix.
static void compare_fast(const MatrixPair* p, const __nv_bfloat16* x, int transposed, Quantizer q,
                         Nvfp4Rounding rounding, const char* what) {
    int rows = p->host.rows, cols = p->host.cols;
    MatrixPair fast = pair_alloc(q.format, rows, cols);
    const Nvfp4Matrix* out = transposed ? NULL : &fast.device;
    const Nvfp4Matrix* outT = transposed ? &fast.device : NULL;
    quantize_amax(transposed ? NULL : fast.device.amax, transposed ? fast.device.amax : NULL, x,
                  transposed ? cols : rows, transposed ? rows : cols, q.hadamard, 0);
    quantize_launch(out, outT, x, transposed ? cols : rows, transposed ? rows : cols, q.hadamard,
                    q.tile, rounding, rounding, e2m1_arithmetic(), 0);
    cudaCheck(cudaMemcpy(fast.host_memory, p->device_memory, p->bytes, cudaMemcpyDeviceToHost));
    tally_compare(&tally_fast, &fast, what);
    pair_free(fast);
}

// What is to become of x or of its transpose, and what the C functions make of it.
typedef struct {
    int transposed;
    Quantizer q;
    Rotation rotation;
    Nvfp4Rounding rounding;
    MatrixPair p;
    uint32_t amax;              // as bits
    char what[120];
} Direction;

static Direction direction_make(const float* x, int rows, int cols, int transposed, Quantizer q,
                                int content, uint32_t stream) {
    Direction d;
    memset(&d, 0, sizeof(d));
    int M = transposed ? cols : rows, K = transposed ? rows : cols;
    uint64_t seed = 0x9abcdef000000000u * stream + stream;
    d.transposed = transposed;
    d.q = q;
    if (q.hadamard > 0) {
        d.rotation = rotation_make(rotation_size(q.hadamard, K), q.fresh_signs, seed, stream % 50,
                                   stream);
    }
    describe(d.what, q, &d.rotation, content_names[content]);
    d.rounding.stochastic = q.rounding != ROUND_NEAREST;
    d.rounding.seed = seed;
    d.rounding.tag = 7 + stream;
    d.rounding.step = 0xfffffffeu + stream;
    if (stream % 3 == 0) {              // a part of a matrix three times as wide
        d.rounding.row_blocks = 3 * (uint32_t)K / 16;
        d.rounding.first_block = (uint64_t)K / 16 + 5 * (uint64_t)d.rounding.row_blocks;
    }
    d.p = pair_alloc(q.format, M, K);
    float* y = source_make(x, rows, cols, transposed, &d.rotation);
    d.amax = nvfp4_matrix_amax_bits(y, (size_t)M, (size_t)K);
    *d.p.host.amax = bits_float(d.amax);
    if (d.amax < FLOAT_INFINITY_BITS) { quantized_make(&d.p.host, y, q, d.rounding); }
    free(y);
    return d;
}

static void direction_compare_amax(const Direction* d) {
    Tally* t = &tally_amax[d->transposed];
    float got;
    cudaCheck(cudaMemcpy(&got, d->p.device.amax, sizeof(float), cudaMemcpyDeviceToHost));
    if (float_bits(got) != d->amax && t->differ++ == 0) {
        snprintf(t->first, sizeof(t->first), "%s (%d, %d): %g instead of %g", d->what,
                 d->p.host.rows, d->p.host.cols, got, bits_float(d->amax));
    }
    t->matrices++;
    t->bytes += sizeof(float);
}

static void direction_compare(const Direction* d, const __nv_bfloat16* x) {
    const MatrixPair* p = &d->p;
    tally_compare(&tally_formats[d->q.format][d->transposed], p, d->what);
    compare_expansion(p, d->q, d->what);
    if (quantize_is_fast(&d->q, d->transposed)) {
        compare_fast(p, x, d->transposed, d->q, d->rounding, d->what);
    }
    if (d->q.tile || d->q.format == FORMAT_FP8) {
        MatrixPair pT = pair_alloc(d->q.format, p->host.cols, p->host.rows);
        quantize_any_transpose(&pT.device, &p->device, d->q, 0);
        quantized_transpose(&pT.host, &p->host, d->q);
        tally_compare(&tally_transpose, &pT, d->what);
        pair_free(pT);
    }
}

// x (rows, cols), of which x_device is a copy, as rows says, or its transpose as `down` says, or both
// in one call. NULL: not.
static void test_directions(const __nv_bfloat16* x_device, int rows, int cols, Direction* along,
                            Direction* down) {
    Direction* both[2] = { along, down };
    AnyOutput out[2];
    int finite = 1;
    for (int i = 0; i < 2; i++) {
        Direction* d = both[i];
        if (d == NULL) { continue; }
        out[i] = any_output(&d->p.device, d->q, d->rotation, d->rounding);
        finite = finite && d->amax < FLOAT_INFINITY_BITS;
    }
    quantize_any_amax(along != NULL ? along->p.device.amax : NULL, &out[0].rotation,
                      down != NULL ? down->p.device.amax : NULL, &out[1].rotation, x_device, rows,
                      cols, 0);
    if (finite) {
        quantize_any(along != NULL ? &out[0] : NULL, down != NULL ? &out[1] : NULL, x_device, rows,
                     cols, 0);
    }
    for (int i = 0; i < 2; i++) {
        if (both[i] == NULL) { continue; }
        direction_compare_amax(both[i]);
        if (finite) { direction_compare(both[i], x_device); }
        pair_free(both[i]->p);
    }
}

// All quantizers, with the transpose as the same or another one of the same format says; the
// contents and the transforms take turns.
static void test_shape(int rows, int cols, int shape) {
    static const int transforms[] = { 0, 16, 32, 64, 128 };
    Quantizer all[64];
    int count = all_quantizers(all);
    size_t n = (size_t)rows * cols;
    float* x[NUM_CONTENTS];
    __nv_bfloat16* x_device[NUM_CONTENTS];
    for (int content = 0; content < NUM_CONTENTS; content++) {
        x[content] = (float*)malloc(n * sizeof(float));
        fill(x[content], n, content, (uint32_t)(shape * NUM_CONTENTS + content));
        x_device[content] = to_device<__nv_bfloat16>(x[content], n);
    }
    uint32_t turn = (uint32_t)shape;
    int turns = n < 5000 ? 16 : n < 50000 ? 2 : 1;
    for (int i = 0; i < count * turns; i++) {
        int content = (int)(turn % NUM_CONTENTS), other = (5 * i + 2) % count;
        Direction d[2];
        for (int transposed = 0; transposed < 2; transposed++) {
            Quantizer q = all[i % count];
            if (transposed && all[other].format == q.format) { q = all[other]; }
            q.hadamard = transforms[turn / NUM_CONTENTS % 5];
            q.fresh_signs = q.hadamard > 0 && (turn & 1);
            turn += 7;                  // through all pairs of the two
            d[transposed] = direction_make(x[content], rows, cols, transposed, q, content, turn);
        }
        if (i % 3 == 2) {
            test_directions(x_device[content], rows, cols, &d[0], &d[1]);
        } else {
            test_directions(x_device[content], rows, cols, &d[0], NULL);
            test_directions(x_device[content], rows, cols, NULL, &d[1]);
        }
    }
    device_free_all();
    for (int content = 0; content < NUM_CONTENTS; content++) { free(x[content]); }
}

// One bad element anywhere, transformed or not, is found.
static void test_not_finite(void) {
    enum { ROWS = 144, COLS = 272 };
    static const uint32_t bad[] = { 0x7f80u, 0xff80u, 0x7fc0u, 0xffffu };
    size_t n = ROWS * COLS;
    uint16_t* stored = (uint16_t*)malloc(n * sizeof(uint16_t));
    __nv_bfloat16* x = device_tensor<__nv_bfloat16>(n);
    float* amax = device_tensor<float>(1);
    int missed = 0, tried = 0;
    for (int i = 0; i < 24; i++) {
        size_t at = philox4x32(1, (uint32_t)i, 0, 0, 0).word[0] % n;
        for (size_t j = 0; j < n; j++) { stored[j] = 0x3f80; }
        stored[at] = (uint16_t)bad[i % 4];
        cudaCheck(cudaMemcpy(x, stored, n * sizeof(uint16_t), cudaMemcpyHostToDevice));
        Rotation r = rotation_make(i / 4 % 2 == 0 ? 0 : 16, 0, 0, 0, 0);
        for (int transposed = 0; transposed < 2; transposed++) {
            float got;
            quantize_any_amax(transposed ? NULL : amax, &r, transposed ? amax : NULL, &r, x, ROWS,
                              COLS, 0);
            cudaCheck(cudaMemcpy(&got, amax, sizeof(float), cudaMemcpyDeviceToHost));
            missed += float_abs_bits(got) < FLOAT_INFINITY_BITS;
            tried++;
        }
    }
    report(missed == 0, "amax of Inf and NaN", "%d of %d not seen", missed, tried);
    device_free_all();
    free(stored);
}

// The factor of each pair of formats, and what it is for operands made from codes.
static void test_alpha(void) {
    static const uint32_t bits[] = { 0x00000000u, 0x3f800000u, 0x3fff0000u, 0x401e0000u,
                                     0x00010000u, 0x1a2b0000u, 0x7f7f0000u, 0x5f810000u, 0x7f800000u,
                                     0x7fc00000u };
    enum { COUNT = sizeof(bits) / sizeof(bits[0]) };
    Quantizer all[64];
    int count = all_quantizers(all), wrong_alpha = 0, wrong_flag = 0, tried = 0;
    float* amax = device_tensor<float>(3);
    float* alpha = device_tensor<float>(1);
    int* nonfinite = device_tensor<int>(1);
    for (int i = 0; i < count; i++) {
        const Quantizer* qa = &all[i];
        const Quantizer* qb = &all[(i * 7 + 3) % count];
        if (qb->format != qa->format) { qb = qa; }
        AnyAlpha about;
        about.factor = quantizer_alpha_factor(qa, qb);
        about.source = *qb;
        int scaled = qa->format == FORMAT_NVFP4 || qa->format == FORMAT_FP8;
        for (int j = 0; j < COUNT * COUNT; j++) {
            float host[3] = { bits_float(bits[j / COUNT]), bits_float(bits[j % COUNT]),
                              1.0f + (float)j }, got;
            float want = scaled ? host[0] * host[1] * about.factor : 1.0f;
            if (j % 2 == 1) { want *= quantizer_tensor_scale(*qb, host[2]).scale; }
            int a_bad = !isfinite(host[0]), b_bad = !isfinite(host[1]), flag;
            int lost = isinf(want) || (want == 0.0f && host[0] > 0.0f && host[1] > 0.0f);
            int want_flag = a_bad ? 11 : b_bad ? 21 : lost ? 11 : 0;
            about.source_amax = j % 2 == 0 ? NULL : amax + 2;
            cudaCheck(cudaMemcpy(amax, host, sizeof(host), cudaMemcpyHostToDevice));
            cudaCheck(cudaMemset(nonfinite, 0, sizeof(int)));
            quantize_any_alpha(alpha, nonfinite, amax, amax + 1, 10, 20, about, 0);
            cudaCheck(cudaMemcpy(&got, alpha, sizeof(float), cudaMemcpyDeviceToHost));
            cudaCheck(cudaMemcpy(&flag, nonfinite, sizeof(int), cudaMemcpyDeviceToHost));
            wrong_flag += flag != want_flag;
            tried++;
            if (want_flag != 0) { continue; }
            wrong_alpha += float_bits(got) != float_bits(want);
            if (quantizer_is_plain_nvfp4(qa) && quantizer_is_plain_nvfp4(qb) && j % 2 == 0) {
                wrong_alpha += float_bits(got) != float_bits(nvfp4_alpha(host[0], host[1]));
            }
        }
    }
    report(wrong_alpha == 0, "alpha", "%d of %d differ", wrong_alpha, tried);
    report(wrong_flag == 0, "not finite: names operand", "%d of %d differ", wrong_flag, tried);
    int flag = 31;
    float infinite = INFINITY;
    AnyAlpha about;
    memset(&about, 0, sizeof(about));
    cudaCheck(cudaMemcpy(nonfinite, &flag, sizeof(int), cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(amax, &infinite, sizeof(float), cudaMemcpyHostToDevice));
    quantize_any_alpha(alpha, nonfinite, amax, amax, 5, 6, about, 0);
    cudaCheck(cudaMemcpy(&flag, nonfinite, sizeof(int), cudaMemcpyDeviceToHost));
    report(flag == 31, "not finite: the first stays", "flag %d", flag);
    device_free_all();
}

int main(void) {
    if (device_missing("quantize_any")) { return 0; }
    // the smallest; a partial tile; two tiles in each direction, the second ones partial; long rows
    // with partial blocks, both ways; whole tiles
    static const int shapes[][2] = { { 16, 16 }, { 48, 80 }, { 144, 272 }, { 32, 1600 },
                                     { 1600, 48 }, { 128, 256 }, { 1024, 768 } };
    for (int s = 0; s < (int)(sizeof(shapes) / sizeof(shapes[0])); s++) {
        if (RUNS_ON_CPU && shapes[s][0] * shapes[s][1] > 100000) {
            report_skip("large matrices", "they take too long without a GPU");
            continue;
        }
        test_shape(shapes[s][0], shapes[s][1], s);
    }
    for (int f = FORMAT_NVFP4; f < NUM_FORMATS; f++) {
        tally_report(&tally_formats[f][0]);
        tally_report(&tally_formats[f][1]);
    }
    tally_report(&tally_amax[0]);
    tally_report(&tally_amax[1]);
    tally_report(&tally_fast);
    tally_report(&tally_transpose);
    tally_report(&tally_expand);
    test_not_finite();
    test_alpha();
    return report_status();
}
