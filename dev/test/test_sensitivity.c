/*
The statistics of an operand that dev/sensitivity reports (dev/sensitivity_report/operand_stats.h), on
operands made here.

exact          a matrix small enough to count by hand; every format and rounding against a loop over
               elements that reads codes and scales by the formats' definition; the same bits for any
               number of threads
statistical    on normal numbers: the published errors, and how often Four Over Six takes 4

Seen failing, each in a copy of operand_stats.h: noise not squared or in units of the scale, signal
of x_q; saturated from the largest code on (>=), without room for rounding, of codes instead of
elements, with 4 or FP8 with 6 as the largest, E5M2 with E4M3's; zeros counted as flushed, as nonzero,
flushed elements as saturated; tensor scale left out, amax of the row; histogram off by one, zero
scales in it or not counted, half of it not added; blocks of 16 in every format, once a tile; scales
not in their layout, of the block before, codes of the row before; Four Over Six: ties to 4, branches
exchanged, tiles as rows, amax of a tile's last row, a choice for each of its rows, always by squares
or by absolute error, only if the recipe has it, tensor scale of 448, of stochastic rounding and MXFP4
as well, choices for fours; noise or zero scales not added; the last piece lost, a piece one row too
long; threads that share sums, a piece for each thread, pieces added as threads finish.
*/
#include <omp.h>
#include "../sensitivity_report/operand_stats.h"
#include "llmc/random.h"
#include "report.h"

// A quantized matrix with memory of its own; freed by nobody.
static Nvfp4Matrix quantize(const float* x, int rows, int cols, Quantizer q) {
    Nvfp4Matrix m = { rows, cols, NULL, NULL, NULL };
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = q.rounding == ROUND_STOCHASTIC;
    rounding.seed = 7;
    size_t M = (size_t)rows, K = (size_t)cols;
    m.codes = (uint8_t*)xcalloc(quantized_codes_size(q.format, M, K), "codes");
    m.block_scales = (uint8_t*)xcalloc(quantized_scales_size(q.format, M, K), "scales");
    m.amax = (float*)xcalloc(sizeof(float), "amax");
    *m.amax = bits_float(nvfp4_matrix_amax_bits(x, M, K));
    quantized_make(&m, x, q, rounding);
    return m;
}

static Quantizer plain(Format format) {
    Quantizer q;
    memset(&q, 0, sizeof(q));
    q.format = format;
    return q;
}

// Normal numbers, as BF16; with outliers now and then, and rows that grow from tiny to large.
static float* numbers(int rows, int cols, int wild) {
    size_t n = (size_t)rows * (size_t)cols;
    float* x = (float*)xmalloc(n * sizeof(float), "numbers");
    for (size_t i = 0; i < n; i++) {
        float z = random_normal(5, 1, i);
        if (wild) { z *= ldexpf(i % 53 == 0 ? 40.0f : 1.0f, (int)(i / (size_t)cols) % 40 - 20); }
        x[i] = wild && i % 31 == 0 ? 0.0f : bf16_round(z);
    }
    return x;
}

// ---------------------------------------------------------------------------------------------

// Exact. Four blocks: the tensor's amax, 2688 = 6 * 448, makes the tensor scale 1.
static void test_by_hand(void) {
    float x[64] = { 0 };
    x[0] = 2688.0f;             // block scale 448
    x[1] = -448.0f * 0.125f;    // below 448 / 4: flushed
    x[16] = 6.375f;             // 6.375 / 6 is halfway from 1 to 1.125: scale 1, and 6.375 saturates
    x[17] = 0.25f;              // halfway from 0 to 0.5: flushed
    x[18] = -0.3125f;           // becomes -0.5
    x[19] = 3.0f;
    x[20] = 6.0f;               // the largest code, but not beyond it
    x[32] = 0.75f;              // block scale 0.125, of a block that has 0.75 and zeros
    // x[48..63]: a block of zeros, scale 0
    OperandStats s;
    Nvfp4Matrix q = quantize(x, 1, 64, plain(FORMAT_NVFP4));
    s = operand_stats(x, &q, plain(FORMAT_NVFP4));
    double signal = 2688.0 * 2688 + 56 * 56 + 6.375 * 6.375 + 0.0625 + 0.3125 * 0.3125 + 9 + 36
                  + 0.5625;
    double noise = 56 * 56 + 0.375 * 0.375 + 0.0625 + 0.1875 * 0.1875;
    report(s.nonzero == 8 && s.flushed == 2 && s.saturated == 1, "by hand, elements",
           "%d nonzero (8), %d flushed (2), %d saturated (1)", (int)s.nonzero, (int)s.flushed,
           (int)s.saturated);
    report(s.signal == signal && s.noise == noise, "by hand, sums", "signal %.17g (%.17g), noise "
           "%.17g (%.17g)", s.signal, signal, s.noise, noise);
    int e = STATS_EXPONENTS / 2;
    report(s.blocks == 4 && s.zero_scales == 1 && s.scales[e + 8] == 1 && s.scales[e] == 1
           && s.scales[e - 3] == 1, "by hand, block scales",
           "%d blocks (4), %d zero (1), 448: %d, 1: %d, 0.125: %d", (int)s.blocks,
           (int)s.zero_scales, (int)s.scales[e + 8], (int)s.scales[e], (int)s.scales[e - 3]);
    // 5 is halfway from 4 to 6 if 6 becomes 6, and exact if 6 becomes 4: scale 1.5
    float five[32] = { 0 };
    five[0] = 6.0f * 256.0f;
    five[16] = 6.0f;
    five[17] = five[18] = 4.5f;
    q = quantize(five, 1, 32, plain(FORMAT_NVFP4));
    s = operand_stats(five, &q, plain(FORMAT_NVFP4));
    report(s.choices == 2 && s.fours == 1, "by hand, four over six", "%d of %d blocks take 4 (1 of 2)",
           (int)s.fours, (int)s.choices);
}

// ---------------------------------------------------------------------------------------------

// The value of a code by its definition, not by the formats' functions.
static double code_value(const Nvfp4Matrix* m, Quantizer q, size_t i) {
    static const double e2m1[8] = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 };
    if (format_bits(q.format) == 4) {
        int code = i % 2 ? m->codes[i / 2] >> 4 : m->codes[i / 2] & 15;
        return code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
    }
    int mantissa_bits = q.e5m2 ? 2 : 3, bias = q.e5m2 ? 15 : 7, byte = m->codes[i];
    int exponent = (byte & 127) >> mantissa_bits, mantissa = byte & ((1 << mantissa_bits) - 1);
    double value = exponent == 0 ? ldexp(mantissa, 1 - bias - mantissa_bits)
                 : ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
    return byte & 128 ? -value : value;
}

static double scale_value(const Nvfp4Matrix* m, Quantizer q, size_t row, size_t col) {
    if (q.format == FORMAT_FP8) { return 1.0; }
    size_t block = col / (size_t)format_block(q.format);
    uint8_t byte = m->block_scales[quantized_scale_offset(q.format, row, block, (size_t)m->cols)];
    if (q.format != FORMAT_NVFP4) { return ldexp(1.0, byte - 127); }
    int exponent = byte >> 3, mantissa = byte & 7;
    return exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
}

// Blocks or tiles of x (rows, cols) that Four Over Six, with q otherwise, gives another scale than 6
// would: what it stores, not what it decides.
static int64_t stored_fours(const float* x, int rows, int cols, Quantizer q) {
    q.four_six = q.four_six ? q.four_six : FOUR_SIX_MSE;
    Nvfp4Matrix m = quantize(x, rows, cols, q);
    TensorScale t = quantizer_tensor_scale(q, *m.amax);
    int tile = q.tile ? 16 : 1, fours = 0;
    for (int top = 0; top < rows; top += tile) {
        for (int left = 0; left < cols; left += 16) {
            float amax = 0.0f;
            for (int i = 0; i < tile * 16; i++) {
                amax = fmaxf(amax, fabsf(x[(size_t)(top + i / 16) * cols + left + i % 16]));
            }
            uint8_t stored = m.block_scales[nvfp4_scale_offset((size_t)top, (size_t)left / 16,
                                                               (size_t)cols)];
            fours += stored != quantizer_block_scale(amax, 0, t, q);
        }
    }
    return fours;
}

// Exact in counts; sums to 1e-12, since they are added in another order.
static void test_oracle(const char* name, Quantizer q, int rows, int cols) {
    float* x = numbers(rows, cols, 1);
    Nvfp4Matrix m = quantize(x, rows, cols, q);
    OperandStats s = operand_stats(x, &m, q);
    double tensor_scale = (double)quantizer_tensor_scale(q, *m.amax).scale;
    double largest = format_bits(q.format) == 4 ? 6.0 : q.e5m2 ? 57344.0 : 448.0;
    double signal = 0.0, noise = 0.0;
    int64_t nonzero = 0, flushed = 0, saturated = 0, blocks = 0, zeros = 0, wrong_scales = 0;
    int64_t scales[STATS_EXPONENTS] = { 0 };
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++) {
        size_t row = i / (size_t)cols, col = i % (size_t)cols;
        double block_scale = scale_value(&m, q, row, col);
        double value = code_value(&m, q, i) * block_scale * tensor_scale, want = (double)x[i];
        if (q.format != FORMAT_FP8 && col % (size_t)format_block(q.format) == 0) {
            blocks++;
            if (block_scale > 0.0) { scales[ilogb(block_scale) + STATS_EXPONENTS / 2]++; }
            else { zeros++; }
        }
        nonzero += want != 0.0;
        flushed += want != 0.0 && value == 0.0;
        saturated += value != 0.0 && fabs(want) / (block_scale * tensor_scale) > largest * 1.00002;
        signal += want * want;
        noise += (value - want) * (value - want);
    }
    for (int e = 0; e < STATS_EXPONENTS; e++) { wrong_scales += scales[e] != s.scales[e]; }
    int counts = nonzero == s.nonzero && flushed == s.flushed && saturated == s.saturated
              && blocks == s.blocks && zeros == s.zero_scales && wrong_scales == 0;
    int sums = fabs(s.signal / signal - 1.0) < 1e-12 && fabs(s.noise / noise - 1.0) < 1e-12;
    int chooses = q.format == FORMAT_NVFP4 && q.rounding == ROUND_NEAREST;
    int64_t fours = chooses ? stored_fours(x, rows, cols, q) : 0;
    report(counts && sums && fours == s.fours, name, "%d x %d: %d flushed, %d saturated, %.2f dB, "
           "fours %d (%d)", rows, cols, (int)s.flushed, (int)s.saturated,
           10.0 * log10(s.signal / s.noise), (int)s.fours, (int)fours);
}

static void test_oracles(void) {
    Quantizer q = plain(FORMAT_NVFP4);
    test_oracle("nvfp4", q, 70, 96);
    q.tile = 1;
    test_oracle("nvfp4, tiles", q, 144, 80);
    q.four_six = FOUR_SIX_MSE;
    test_oracle("nvfp4, tiles, four over six", q, 144, 80);
    q.tile = 0;
    test_oracle("nvfp4, four over six", q, 70, 96);
    q.four_six = FOUR_SIX_MAE;
    test_oracle("nvfp4, by absolute error", q, 70, 96);
    q = plain(FORMAT_NVFP4);
    q.rounding = ROUND_STOCHASTIC;
    test_oracle("nvfp4, stochastic", q, 65, 64);
    q.rounding = ROUND_MS_EDEN;
    test_oracle("nvfp4, MS-EDEN", q, 64, 64);
    test_oracle("mxfp4", plain(FORMAT_MXFP4), 70, 96);
    test_oracle("mxfp8", plain(FORMAT_MXFP8), 70, 96);
    test_oracle("fp8", plain(FORMAT_FP8), 70, 96);
    test_oracle("fp8block", plain(FORMAT_FP8BLOCK), 70, 320);
    q = plain(FORMAT_FP8);
    q.e5m2 = 1;
    test_oracle("fp8, E5M2", q, 70, 96);
}

// ---------------------------------------------------------------------------------------------

// Statistical: 2^20 normal numbers, errors as in README and test_quantizer.c (a standard error is
// about 0.2 %), choices of Four Over Six as in "Four Over Six" and measured by others: 45 % of rows'
// blocks, 2.9 % of tiles.
static void test_normal(const char* name, Quantizer q, double error, double fours) {
    enum { ROWS = 1024, COLS = 1024 };
    static float* x;
    if (x == NULL) { x = numbers(ROWS, COLS, 0); }
    Nvfp4Matrix m = quantize(x, ROWS, COLS, q);
    OperandStats s = operand_stats(x, &m, q);
    double found = 1000.0 * s.noise / s.signal;
    double share = s.choices > 0 ? 100.0 * (double)s.fours / (double)s.choices : 0.0;
    double blocks = q.tile ? ROWS * COLS / 256.0 : ROWS * COLS / 16.0;
    double spread = 5.0 * sqrt(fours * (100.0 - fours) / blocks) + 0.5;    // 0.5: "45", not 45.0
    report(fabs(found / error - 1.0) < 0.01 && fabs(share - fours) < spread, name,
           "error %.2f (%.2f) thousandths, four over six %.1f %% (%.1f %%)", found, error, share,
           fours);
    if (q.unbiased) { report(s.saturated == 0, "  saturated", "%d (0)", (int)s.saturated); }
}

static void test_normals(void) {
    Quantizer q = plain(FORMAT_NVFP4);
    test_normal("normal, 1x16", q, 9.05, 45.0);
    q.four_six = FOUR_SIX_MSE;
    test_normal("normal, 1x16, 4/6", q, 7.55, 45.0);
    q = plain(FORMAT_NVFP4);
    q.tile = 1;
    test_normal("normal, 16x16", q, 12.4, 2.9);
    q.four_six = FOUR_SIX_MSE;
    test_normal("normal, 16x16, 4/6", q, 12.4, 2.9);
    q = plain(FORMAT_NVFP4);
    q.rounding = ROUND_STOCHASTIC;
    test_normal("normal, stochastic", q, 18.9, 0.0);
    q.unbiased = 1;
    test_normal("normal, unbiased", q, 23.5, 0.0);
}

// Exact: the same bits for 1, 2, 3 and 7 threads, however they finish.
static void test_threads(void) {
    Quantizer q = plain(FORMAT_NVFP4);
    float* x = numbers(1000, 64, 1);
    Nvfp4Matrix m = quantize(x, 1000, 64, q);
    static const int threads[] = { 1, 2, 3, 7 };
    OperandStats first = operand_stats(x, &m, q);
    int differ = 0;
    for (int i = 0; i < 4 * 50; i++) {
        omp_set_num_threads(threads[i % 4]);
        OperandStats again = operand_stats(x, &m, q);
        differ += memcmp(&first, &again, sizeof(again)) != 0;
    }
    report(differ == 0, "threads", "1, 2, 3, 7: %d of 200 differ from the first", differ);
}

int main(void) {
    test_by_hand();
    test_oracles();
    test_normals();
    test_threads();
    return report_status();
}
