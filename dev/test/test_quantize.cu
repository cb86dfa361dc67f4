/*
quantize.cuh against the reference quantizer of nvfp4.h. Class: exact, every byte of a quantized
matrix, padding and the gaps between its parts included.

Faults that made it fail, one at a time: the second column of a pair read as the first; `word ^ 4 *
group` when reading the tile; the tile's amax of the neighbouring group of rows; a block index counted
down the columns for the random bytes; the random bytes of one direction used for both; the Hadamard
transform left out of amax, or of the codes; a limit of 16 rows less, or more; the last columns left
out of amax; scale bytes in row-major order; fmaxf in place of the maximum over bits (NaN lost);
the next block's scale in expand_kernel; in block_amax, no absolute value of the first pair, or of the others, the upper values
left out, or the last pair; in block_hadamard, a quarter left out, or a pair's values exchanged; the
pairs of the other column, or a pair in the other order; the tensor scale of x for its transpose, or
made only where x is quantized too, or no barrier behind it.
*/
#include "../../llmc/quantize.cuh"
#include "matrix_check.cuh"

// ---------------------------------------------------------------------------------------------
// Every kind of operand, over shapes and contents

static E2m1Conversion conversion;       // arithmetic; then again by instruction, if this GPU can

static Tally tally_rows       = { "x 1x16" };
static Tally tally_transposed = { "x^T 1x16" };
static Tally tally_hadamard   = { "x^T 1x16 Hadamard" };
static Tally tally_stochastic = { "stochastic rounding" };
static Tally tally_alone      = { "one direction alone" };
static Tally tally_tiles      = { "w 16x16" };
static Tally tally_tilesT     = { "w^T 16x16" };
static Tally tally_weight     = { "w, w^T 1x16" };
static Tally tally_expand     = { "expand" };

static Nvfp4Rounding rounding_make(int stochastic, uint64_t seed, uint32_t tag, uint32_t step) {
    Nvfp4Rounding r;
    memset(&r, 0, sizeof(r));
    r.stochastic = stochastic;
    r.seed = seed;
    r.tag = tag;
    r.step = step;
    return r;
}

static void compare_expansion(const MatrixPair* p, const char* what) {
    size_t n = (size_t)p->host.rows * p->host.cols;
    __nv_bfloat16* out = device_tensor<__nv_bfloat16>(n);
    float* got = (float*)malloc(n * sizeof(float));
    float* want = (float*)malloc(n * sizeof(float));
    quantize_expand(out, &p->device, 0);
    from_device(got, out, n);
    nvfp4_expand(want, &p->host);
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
    device_free_all();
}

static void test_activation(const float* x, int rows, int cols, const char* what, uint32_t stream) {
    size_t n = (size_t)rows * cols;
    __nv_bfloat16* x_device = to_device<__nv_bfloat16>(x, n);
    float* xT = (float*)malloc(n * sizeof(float));
    for (int hadamard = 0; hadamard < 2; hadamard++) {
        hadamard_transpose(xT, x, rows, cols, hadamard);
        for (int stochastic = 0; stochastic < 2; stochastic++) {
            uint64_t seed = 0x9abcdef000000000u * stream + stream;
            Nvfp4Rounding r = rounding_make(stochastic, seed, 7 + stream, 0xfffffffeu + stream);
            Nvfp4Rounding rT = rounding_make(stochastic, seed, 8 + stream, 0xfffffffeu + stream);
            MatrixPair p = pair_alloc(FORMAT_NVFP4, rows, cols);
            MatrixPair pT = pair_alloc(FORMAT_NVFP4, cols, rows);
            quantize_amax(p.device.amax, pT.device.amax, x_device, rows, cols, hadamard, 0);
            quantize_activation(&p.device, &pT.device, x_device, rows, cols, hadamard, r, rT,
                                conversion, 0);
            check(nvfp4_quantize(&p.host, x, 1, r) == 0, "%s: not finite", what);
            check(nvfp4_quantize(&pT.host, xT, 1, rT) == 0, "%s: not finite", what);
            Tally* tallyT = hadamard ? &tally_hadamard : &tally_transposed;
            tally_compare(stochastic ? &tally_stochastic : &tally_rows, &p, what);
            tally_compare(stochastic ? &tally_stochastic : tallyT, &pT, what);
            pair_free(p);
            pair_free(pT);
        }
    }

    // one of the two left out, in amax and in quantization
    MatrixPair p = pair_alloc(FORMAT_NVFP4, rows, cols), pT = pair_alloc(FORMAT_NVFP4, cols, rows);
    Nvfp4Rounding nearest = rounding_make(0, 0, 0, 0);
    quantize_amax(p.device.amax, NULL, x_device, rows, cols, 1, 0);
    quantize_amax(NULL, pT.device.amax, x_device, rows, cols, 1, 0);
    quantize_activation(&p.device, NULL, x_device, rows, cols, 1, nearest, nearest,
                        conversion, 0);
    quantize_activation(NULL, &pT.device, x_device, rows, cols, 1, nearest, nearest,
                        conversion, 0);
    device_free_all();
    nvfp4_quantize(&p.host, x, 1, nearest);
    nvfp4_quantize(&pT.host, xT, 1, nearest);       // xT: transformed, from the last turn above
    tally_compare(&tally_alone, &p, what);
    tally_compare(&tally_alone, &pT, what);
    compare_expansion(&p, what);
    pair_free(p);
    pair_free(pT);
    free(xT);
}

static void test_weight(const float* w, int OC, int C, const char* what) {
    size_t n = (size_t)OC * C;
    Nvfp4Rounding nearest = rounding_make(0, 0, 0, 0);
    __nv_bfloat16* w_device = to_device<__nv_bfloat16>(w, n);
    for (int tile16 = 0; tile16 < 2; tile16++) {
        MatrixPair p = pair_alloc(FORMAT_NVFP4, OC, C), pT = pair_alloc(FORMAT_NVFP4, C, OC);
        quantize_weight(&p.device, &pT.device, w_device, OC, C, tile16, conversion, 0);
        nvfp4_quantize(&p.host, w, tile16 ? 16 : 1, nearest);
        if (tile16) {
            nvfp4_transpose(&pT.host, &p.host);
        } else {
            float* wT = (float*)malloc(n * sizeof(float));
            hadamard_transpose(wT, w, OC, C, 0);
            nvfp4_quantize(&pT.host, wT, 1, nearest);
            free(wT);
        }
        tally_compare(tile16 ? &tally_tiles : &tally_weight, &p, what);
        tally_compare(tile16 ? &tally_tilesT : &tally_weight, &pT, what);
        pair_free(p);
        pair_free(pT);
    }
    device_free_all();
}

// ---------------------------------------------------------------------------------------------
// Golden vectors: nvfp4_spec section 7.9, hashes of codes and of row-major scale bytes

static uint32_t hash_fnv1a_32(const uint8_t* bytes, size_t n) {
    uint32_t hash = 0x811c9dc5u;
    for (size_t i = 0; i < n; i++) { hash = (hash ^ bytes[i]) * 0x01000193u; }
    return hash;
}

static void check_golden(const char* name, const MatrixPair* p, uint32_t amax, uint32_t codes,
                         uint32_t scales) {
    size_t rows = (size_t)p->host.rows, cols = (size_t)p->host.cols, blocks = cols / 16;
    cudaCheck(cudaMemcpy(p->host_memory, p->device_memory, p->bytes, cudaMemcpyDeviceToHost));
    uint8_t* unswizzled = (uint8_t*)malloc(rows * blocks);
    for (size_t i = 0; i < rows * blocks; i++) {
        unswizzled[i] = p->host.block_scales[nvfp4_scale_offset(i / blocks, i % blocks, cols)];
    }
    uint32_t got_codes = hash_fnv1a_32(p->host.codes, rows * cols / 2);
    uint32_t got_scales = hash_fnv1a_32(unswizzled, rows * blocks);
    report(float_bits(*p->host.amax) == amax && got_codes == codes && got_scales == scales, name,
           "amax %08x codes %08x scales %08x", float_bits(*p->host.amax), got_codes, got_scales);
    free(unswizzled);
}

static void test_golden(void) {
    enum { ROWS = 64, COLS = 128 };
    float* x = (float*)malloc(ROWS * COLS * sizeof(float));
    for (uint32_t i = 0; i < ROWS * COLS; i++) {
        uint32_t w = philox4x32((uint64_t)2 << 32 | 1, i, 0, 0, 0).word[0];
        uint32_t exponent = 120 + ((w >> 20) & 7), mantissa = (w >> 8) & 127;
        x[i] = bf16_to_float((uint16_t)((w >> 31) << 15 | exponent << 7 | mantissa));
    }
    __nv_bfloat16* x_device = to_device<__nv_bfloat16>(x, ROWS * COLS);
    MatrixPair p = pair_alloc(FORMAT_NVFP4, ROWS, COLS), pT = pair_alloc(FORMAT_NVFP4, COLS, ROWS);
    uint64_t seed = 0x9abcdef012345678u;
    for (int stochastic = 0; stochastic < 2; stochastic++) {
        quantize_amax(p.device.amax, pT.device.amax, x_device, ROWS, COLS, 1, 0);
        quantize_activation(&p.device, &pT.device, x_device, ROWS, COLS, 1,
                            rounding_make(stochastic, seed, 7, 3),
                            rounding_make(stochastic, seed, 9, 3), conversion, 0);
        check_golden(stochastic ? "golden 1x16 stochastic" : "golden 1x16", &p, 0x3fff0000,
                     stochastic ? 0x5b9f6ae4 : 0xeb4d54ed, 0x43172ce7);
        check_golden(stochastic ? "golden Hadamard stochastic" : "golden Hadamard", &pT, 0x401e0000,
                     stochastic ? 0x8d246f60 : 0xef9f3084, 0xc7051a60);
    }
    quantize_weight(&p.device, &pT.device, x_device, ROWS, COLS, 1, conversion, 0);
    check_golden("golden 16x16", &p, 0x3fff0000, 0xaa980438, 0xce6dc345);
    pair_free(p);
    pair_free(pT);
    device_free_all();
    free(x);
}

// ---------------------------------------------------------------------------------------------
// Inf and NaN, and alpha

// One bad element anywhere makes both amaxes bad, with the reference's bits.
static void test_not_finite(void) {
    enum { ROWS = 144, COLS = 400 };
    size_t n = ROWS * COLS;
    float* x = (float*)malloc(n * sizeof(float));
    float* xT = (float*)malloc(n * sizeof(float));
    float* amax = device_tensor<float>(1);
    float* amaxT = device_tensor<float>(1);
    static const uint32_t bad[] = { 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffff0000u,
                                    0x7f7f0000u };      // the last: two of it, their sum overflows
    int wrong = 0, tried = 0;
    for (int b = 0; b < 5; b++) {
        for (int position = 0; position < 20; position++) {
            fill(x, n, NORMAL, (uint32_t)position);
            size_t at = philox4x32(1, (uint32_t)position, (uint32_t)b, 0, 0).word[0] % n;
            x[at] = bits_float(bad[b]);
            if (b == 4) { x[(at + COLS) % n] = bits_float(bad[b]); }
            __nv_bfloat16* x_device = device_tensor<__nv_bfloat16>(n);
            uint16_t* stored = (uint16_t*)malloc(n * sizeof(uint16_t));     // NaN with its own bits
            for (size_t i = 0; i < n; i++) { stored[i] = (uint16_t)(float_bits(x[i]) >> 16); }
            cudaCheck(cudaMemcpy(x_device, stored, n * sizeof(uint16_t), cudaMemcpyHostToDevice));
            quantize_amax(amax, amaxT, x_device, ROWS, COLS, 1, 0);
            hadamard_transpose(xT, x, ROWS, COLS, 1);
            float got, gotT;
            cudaCheck(cudaMemcpy(&got, amax, sizeof(float), cudaMemcpyDeviceToHost));
            cudaCheck(cudaMemcpy(&gotT, amaxT, sizeof(float), cudaMemcpyDeviceToHost));
            wrong += float_bits(got) != nvfp4_amax_bits(x, n);
            wrong += float_bits(gotT) != nvfp4_amax_bits(xT, n);
            tried += 2;
            free(stored);
            cudaCheck(cudaFree(x_device));
            device_num_tensors--;
        }
    }
    report(wrong == 0, "amax of Inf and NaN", "%d of %d differ", wrong, tried);
    device_free_all();
    free(x);
    free(xT);
}

// ---------------------------------------------------------------------------------------------

// Everything that writes codes.
static void test_matrices(void) {
    test_golden();

    // the smallest; partial tiles in one or both directions; whole tiles; GPT-2 XL; large
    static const int shapes[][2] = { { 16, 16 }, { 16, 48 }, { 48, 80 }, { 80, 144 }, { 208, 176 },
                                     { 128, 128 }, { 64, 1600 }, { 1600, 64 }, { 272, 1040 },
                                     { 1024, 768 }, { 4096, 3072 } };
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        int rows = shapes[s][0], cols = shapes[s][1];
        size_t n = (size_t)rows * cols;
        if (RUNS_ON_CPU && n > 1000000) {
            report_skip("large matrices", "they take too long without a GPU");
            continue;
        }
        float* x = (float*)malloc(n * sizeof(float));
        size_t large = RUNS_ON_CPU ? 500000 : 1000000;      // for indices, not values
        int contents = n > large ? LOGNORMAL + 1 : NUM_CONTENTS;
        for (int content = 0; content < contents; content++) {
            uint32_t stream = (uint32_t)(s * NUM_CONTENTS + (size_t)content);
            fill(x, n, content, stream);
            test_activation(x, rows, cols, content_names[content], stream);
            test_weight(x, rows, cols, content_names[content]);
        }
        free(x);
    }
    tally_report(&tally_rows);
    tally_report(&tally_transposed);
    tally_report(&tally_hadamard);
    tally_report(&tally_stochastic);
    tally_report(&tally_alone);
    tally_report(&tally_tiles);
    tally_report(&tally_tilesT);
    tally_report(&tally_weight);
    tally_report(&tally_expand);
}

int main(void) {
    if (device_missing("quantize")) { return 0; }
    conversion = e2m1_arithmetic();
    test_matrices();
    char reason[E2M1_REASONS];
    conversion = e2m1_probe(reason, sizeof(reason), 0);
    if (conversion.nearest || conversion.stochastic) {
        report(1, "and by instruction:", "%s", reason);
        test_matrices();
    } else {
        report_skip("by instruction", reason);
    }
    test_not_finite();
    return report_status();
}
