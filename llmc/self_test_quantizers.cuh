/*
The first half of the self-test (self_test.cuh has the overview): does this GPU quantize right?
Every operand that training makes is made here from small tensors of edge cases, and compared to the
last bit of padding. The three judges have ever less in common with the device:

    the C functions of nvfp4.h      the same header, compiled for another machine
    stored hashes                   an implementation in another language: the specification alone
    probabilities                   nothing: what stochastic rounding is for, counted

The kernels of the base recipe, NVFP4, face all three; those for other recipes (quantize_any.cuh) the
first, for each treatment that the recipe asks for.

Each finds what the one before cannot. A fault of the device is seen by the first; one of the shared
header by the second; that the noise is biased or not independent would be seen by the third, even
if all of the others had been led astray together.
*/
#ifndef LLMC_SELF_TEST_QUANTIZERS_CUH
#define LLMC_SELF_TEST_QUANTIZERS_CUH

#include <math.h>
#include "e2m1_sm100a.cuh"
#include "gemm.cuh"                 // for the types in SelfTestFaults
#include "hadamard.h"
#include "nvfp4.h"
#include "quantize.cuh"
#include "quantize_any.cuh"

// A matrix as the device has just quantized it, and what it was made from.
typedef struct {
    Nvfp4Matrix matrix;             // device
    const float* source;            // (rows, cols), host
    Quantizer quantizer;
    Nvfp4Rounding rounding;
    E2m1Conversion conversion;
} SelfTestMatrix;

// Hooks through which dev/test/test_self_test.cu spoils what the hardware delivered, to see that
// this is noticed; NULL in the program. Each is called when the device has finished, before anyone
// looks.
typedef struct SelfTestFaults {
    // in place of e2m1_probe
    E2m1Conversion (*probe)(char* reason, size_t reason_size, cudaStream_t stream);
    void (*amax)(float* amax /* (1) device */, float* amaxT /* (1) device */);
    void (*matrix)(const SelfTestMatrix* made);
    void (*alpha)(float* alpha /* (1) device */);
    void (*expansion)(__nv_bfloat16* x /* (rows, cols) device */, int rows, int cols);
    // stochastically rounded codes, on the host, before their statistics
    void (*steps)(uint8_t* codes /* (rows, cols / 2) */, int rows, int cols);
    // the operands of a product, before it, and its result, after it
    void (*operands)(const Nvfp4Matrix* A, const Nvfp4Matrix* B, float* alpha, GemmPath path);
    void (*product)(void* D, const void* before, GemmProduct product, GemmPath path);
} SelfTestFaults;

// ---------------------------------------------------------------------------------------------
// What a test found

#define SELF_TEST_TEXT 400

typedef struct {
    const SelfTestFaults* faults;
    cudaStream_t stream;
    E2m1Conversion conversion;
    const char* tensor;             // the one at hand, for messages
    size_t codes, steps;            // looked at so far
    char wrong[SELF_TEST_TEXT];     // the first thing that is not right
} SelfTest;

// Notes what is wrong. Returns 0, as every test here does that does not pass.
__attribute__((format(printf, 2, 3)))
static inline int self_test_wrong(SelfTest* t, const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(t->wrong, sizeof(t->wrong), format, values);
    va_end(values);
    return 0;
}

// ---------------------------------------------------------------------------------------------
// A matrix three times: on the device, what came back from there, and what C makes of the source

typedef struct {
    Format format;
    Nvfp4Matrix device, got, want;
    size_t bytes;                   // of each
} SelfTestPair;

// A matrix whose parts follow each other in memory: codes, block scales, amax.
static inline Nvfp4Matrix self_test_place(void* memory, Format format, int rows, int cols) {
    Nvfp4Matrix m;
    m.rows = rows;
    m.cols = cols;
    m.codes = (uint8_t*)memory;
    m.block_scales = m.codes + quantized_codes_size(format, (size_t)rows, (size_t)cols);
    m.amax = (float*)(m.block_scales + quantized_scales_size(format, (size_t)rows, (size_t)cols));
    return m;
}

static inline size_t self_test_bytes(Format format, int rows, int cols) {
    size_t r = (size_t)rows, c = (size_t)cols;
    return quantized_codes_size(format, r, c) + quantized_scales_size(format, r, c) + sizeof(float);
}

// The device's codes and amax start with 0xa5 in every byte, its scales with zeros: who allocates a
// matrix zeroes them, and the padding has to stay zero.
static inline SelfTestPair self_test_pair(Format format, int rows, int cols) {
    SelfTestPair p;
    size_t scales = quantized_scales_size(format, (size_t)rows, (size_t)cols);
    p.format = format;
    p.bytes = self_test_bytes(format, rows, cols);
    p.device = self_test_place(cuda_malloc(p.bytes, "the self-test"), format, rows, cols);
    p.got = self_test_place(xmalloc(p.bytes, "the self-test"), format, rows, cols);
    p.want = self_test_place(xmalloc(p.bytes, "the self-test"), format, rows, cols);
    cudaCheck(cudaMemset(p.device.codes, 0xa5, p.bytes));
    if (scales > 0) { cudaCheck(cudaMemset(p.device.block_scales, 0, scales)); }
    return p;
}

static inline void self_test_pair_free(SelfTestPair p) {
    cudaCheck(cudaFree(p.device.codes));
    free(p.got.codes);
    free(p.want.codes);
}

static inline uint8_t self_test_code(const Nvfp4Matrix* m /* host */, Format format, int row,
                                     int col) {
    size_t index = (size_t)row * (size_t)m->cols + (size_t)col;
    return format_bits(format) == 8 ? m->codes[index]
                                    : m->codes[index / 2] >> (4 * (index % 2)) & 15;
}

// Whose scale is the byte at this offset? "padding" if nobody's.
static inline void self_test_name_scale(char* name /* (64) */, const Nvfp4Matrix* m, Format format,
                                        size_t offset) {
    size_t cols = (size_t)m->cols;
    snprintf(name, 64, "scale byte %zu, padding", offset);
    for (int row = 0; row < m->rows; row++) {
        for (size_t block = 0; block < quantized_blocks(format, cols); block++) {
            if (quantized_scale_offset(format, (size_t)row, block, cols) == offset) {
                snprintf(name, 64, "scale byte of row %d, block %zu", row, block);
            }
        }
    }
}

// Are amax, every scale byte with padding and every code those of C?
static inline int self_test_same(SelfTest* t, const SelfTestPair* p, const char* name) {
    const Nvfp4Matrix *got = &p->got, *want = &p->want;
    int rows = want->rows, cols = want->cols;
    cudaCheck(cudaMemcpy(got->codes, p->device.codes, p->bytes, cudaMemcpyDeviceToHost));
    t->codes += (size_t)rows * (size_t)cols;
    if (memcmp(got->codes, want->codes, p->bytes) == 0) { return 1; }
    if (float_bits(*got->amax) != float_bits(*want->amax)) {
        return self_test_wrong(t, "%s of \"%s\" (%d, %d): amax %.9g instead of %.9g", name,
                               t->tensor, rows, cols, *got->amax, *want->amax);
    }
    for (size_t i = 0; i < quantized_scales_size(p->format, (size_t)rows, (size_t)cols); i++) {
        if (got->block_scales[i] != want->block_scales[i]) {
            char where[64];
            self_test_name_scale(where, want, p->format, i);
            return self_test_wrong(t, "%s of \"%s\" (%d, %d): %s is 0x%02x instead of 0x%02x",
                                   name, t->tensor, rows, cols, where, got->block_scales[i],
                                   want->block_scales[i]);
        }
    }
    for (int row = 0; row < rows; row++) {
        for (int col = 0; col < cols; col++) {
            int code = self_test_code(got, p->format, row, col);
            int right = self_test_code(want, p->format, row, col);
            if (code != right) {
                return self_test_wrong(t, "%s of \"%s\" (%d, %d): element (row %d, column %d) has "
                                       "code %d instead of %d", name, t->tensor, rows, cols, row,
                                       col, code, right);
            }
        }
    }
    return 1;
}

// x (n), which are BF16 values, on the device
static inline __nv_bfloat16* self_test_upload(const float* x, size_t n) {
    uint16_t* stored = (uint16_t*)xmalloc(n * sizeof(uint16_t), "the self-test");
    for (size_t i = 0; i < n; i++) { stored[i] = (uint16_t)(float_bits(x[i]) >> 16); }
    void* device = cuda_malloc(n * sizeof(uint16_t), "the self-test");
    cudaCheck(cudaMemcpy(device, stored, n * sizeof(uint16_t), cudaMemcpyHostToDevice));
    free(stored);
    return (__nv_bfloat16*)device;
}

// ---------------------------------------------------------------------------------------------
// Tensors with every edge case

#define SELF_TEST_SEED 0x9abcdef012345678u

// (80, 144): partial tiles of the kernels in both directions, and scales in up to two row tiles and
// three block tiles, none of them full. "random" has the size of the specification's hashes.
enum { TENSOR_SPEC, TENSOR_EDGES, TENSOR_ZEROS, TENSOR_TINY, TENSOR_OUTLIER, NUM_TENSORS };

static const struct { const char* name; int rows, cols; } self_test_tensors[NUM_TENSORS] = {
    { "random", 64, 128 }, { "edges", 80, 144 }, { "zeros", 80, 144 }, { "tiny", 80, 144 },
    { "outlier", 80, 144 },
};

// A random BF16 number of any sign whose exponent field is one of 8 from `exponent` on.
static inline float self_test_random(uint32_t i, uint32_t exponent) {
    uint32_t w = philox4x32((uint64_t)2 << 32 | 1, i, 0, 0, 0).word[0];
    return bf16_to_float((uint16_t)((w >> 31) << 15 | (exponent + ((w >> 20) & 7)) << 7 |
                                    ((w >> 8) & 127)));
}

// Value i (0..15) of 16x16 tile `tile` (0..44) of the tensor of edges, whose amax is 2688: the
// tensor scale is 1, a block with amax 6s has block scale s, and x / s is rounded to E2M1.
static inline float self_test_edge(int tile, int i) {
    // all midpoints between E2M1 values, and the largest value; each with both signs
    static const float boundary[8] = { 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 6.0f };
    float x = i < 8 ? boundary[i] : -boundary[i - 8];
    int largest = i % 8 == 7;
    if (tile < 9) {         // the BF16 numbers below the midpoints, they, and those above
        static const float scales[3] = { 0.03125f, 1.0f, 128.0f };
        uint32_t nudge = largest ? 0u : (uint32_t)(tile % 3 - 1) << 16;
        return bits_float(float_bits(x) + nudge) * scales[tile / 3];
    }
    if (tile < 25) {        // s halfway between two E4M3 numbers, or one BF16 number above that
        float s = 1.0f + ((float)((tile - 9) % 8) + 0.5f) / 8.0f;
        return largest ? bits_float(float_bits(x * s) + (tile < 17 ? 0u : 1u << 16)) : x;
    }
    if (tile < 33) {        // s halfway between two subnormal E4M3 numbers; at the first to 0
        return x * ((float)(tile - 25) + 0.5f) / 512.0f;
    }
    if (tile == 33) { return 0.0f * x; }                        // 0 and -0
    if (tile == 34) { return x * 0x1p-12f; }                    // 1e-6 of the amax: s becomes 0
    if (tile == 35) { return largest ? x : x * 0x1p-130f; }     // subnormals in a block that is not
    return self_test_random((uint32_t)(16 * tile + i), 120);
}

// x = tensor `tensor` of the list, as (rows, cols)
static inline void self_test_fill(float* x, int tensor) {
    int rows = self_test_tensors[tensor].rows, cols = self_test_tensors[tensor].cols;
    for (int row = 0; row < rows; row++) {
        for (int col = 0; col < cols; col++) {
            int i = row * cols + col, tile = row / 16 * (cols / 16) + col / 16;
            float random = self_test_random((uint32_t)i, tensor == TENSOR_TINY ? 0u : 120u);
            if (tensor == TENSOR_TINY && tile % 2 == 1) {   // blocks of subnormals alone
                random = bits_float(float_bits(random) & 0x807fffffu);
            }
            // A Latin square: each row and each column of a tile holds all of its 16 values, so
            // blocks in either direction meet the same edges.
            x[i] = tensor == TENSOR_EDGES ? self_test_edge(tile, (row + col) % 16)
                 : tensor == TENSOR_ZEROS ? 0.0f * random : random;
        }
    }
    int last = rows * cols - 1;
    if (tensor == TENSOR_EDGES) { x[last] = -2688.0f; }
    if (tensor == TENSOR_TINY) { x[last] = 1.25f * 0x1p-117f; }     // 2688 / amax just overflows
    if (tensor == TENSOR_OUTLIER) { x[0] = 0x1p120f; }              // all other scales become 0
}

// ---------------------------------------------------------------------------------------------
// The quantizers

// Every kind of operand, and one direction without Hadamard for recipes that leave it out.
enum { X, X_STOCHASTIC, XT, XT_STOCHASTIC, XT_HADAMARD, XT_HADAMARD_STOCHASTIC, W, WT };

static const char* const self_test_operands[] = {
    "x 1x16", "x 1x16 stochastic", "x^T 1x16", "x^T 1x16 stochastic", "x^T 1x16 Hadamard",
    "x^T 1x16 Hadamard stochastic", "w 16x16", "w^T 16x16",
};

// FNV-1a, 32 bits, of the codes and of the scale bytes in row-major order. All come from a second
// implementation, dev/reference/self_test_hashes.py, which shares only the specification with this
// one; those of `random` are the ones that test_quantize.cu knows, too.
typedef struct { int tensor, operand; uint32_t amax, codes, scales; } SelfTestHash;

static const SelfTestHash self_test_hashes[] = {
    { TENSOR_SPEC, X,                       0x3fff0000, 0xeb4d54ed, 0x43172ce7 },
    { TENSOR_SPEC, X_STOCHASTIC,            0x3fff0000, 0x5b9f6ae4, 0x43172ce7 },
    { TENSOR_SPEC, XT_HADAMARD,             0x401e0000, 0xef9f3084, 0xc7051a60 },
    { TENSOR_SPEC, XT_HADAMARD_STOCHASTIC,  0x401e0000, 0x8d246f60, 0xc7051a60 },
    { TENSOR_SPEC, W,                       0x3fff0000, 0xaa980438, 0xce6dc345 },
    { TENSOR_EDGES, X,                      0x45280000, 0x9d0bba29, 0xa372a8fe },
    { TENSOR_EDGES, X_STOCHASTIC,           0x45280000, 0x10838ce4, 0xa372a8fe },
    { TENSOR_EDGES, XT_HADAMARD,            0x448c0000, 0x27430bb1, 0xdd97977d },
    { TENSOR_EDGES, XT_HADAMARD_STOCHASTIC, 0x448c0000, 0xd9be1f2f, 0xdd97977d },
    { TENSOR_EDGES, W,                      0x45280000, 0xbf0c50bd, 0x60c71465 },
    { TENSOR_TINY, X,                       0x05200000, 0x2db8b773, 0xb8aa41a7 },
    { TENSOR_TINY, XT_HADAMARD,             0x04600000, 0x3cb7e677, 0x8a70ad2e },
};

static inline uint32_t self_test_fnv(uint32_t hash, uint8_t byte) {
    return (hash ^ byte) * 0x01000193u;
}

// Compares what the device delivered with the stored hashes, where there are any.
static inline int self_test_hash(SelfTest* t, const Nvfp4Matrix* got /* host */, int tensor,
                                 int operand) {
    size_t rows = (size_t)got->rows, cols = (size_t)got->cols, blocks = cols / NVFP4_BLOCK;
    uint32_t codes = 0x811c9dc5u, scales = 0x811c9dc5u;
    for (size_t i = 0; i < rows * cols / 2; i++) { codes = self_test_fnv(codes, got->codes[i]); }
    for (size_t i = 0; i < rows * blocks; i++) {
        scales = self_test_fnv(scales, got->block_scales[nvfp4_scale_offset(i / blocks, i % blocks,
                                                                            cols)]);
    }
    for (size_t i = 0; i < sizeof(self_test_hashes) / sizeof(self_test_hashes[0]); i++) {
        const SelfTestHash* h = &self_test_hashes[i];
        if (h->tensor == tensor && h->operand == operand &&
            (h->amax != float_bits(*got->amax) || h->codes != codes || h->scales != scales)) {
            return self_test_wrong(t, "%s of \"%s\": device and C agree, but not with the stored "
                                   "hashes (amax %08x, %08x stored; codes %08x, %08x; scales %08x, "
                                   "%08x): nvfp4.h, hadamard.h or random.h has changed, or was "
                                   "compiled for other arithmetic", self_test_operands[operand],
                                   t->tensor, float_bits(*got->amax), h->amax, codes, h->codes,
                                   scales, h->scales);
        }
    }
    return 1;
}

// After the device: what the tests spoil, what C makes of the same source, and is it the same?
static inline int self_test_matrix(SelfTest* t, SelfTestPair* p, const float* source, Quantizer q,
                                   Nvfp4Rounding rounding, const char* name) {
    cudaCheck(cudaStreamSynchronize(t->stream));
    if (t->faults->matrix != NULL) {
        SelfTestMatrix made = { p->device, source, q, rounding, t->conversion };
        t->faults->matrix(&made);
    }
    if (quantizer_is_plain_nvfp4(&q)) {
        check(nvfp4_quantize(&p->want, source, q.tile ? 16 : 1, rounding) == 0, "%s: not finite",
              name);
    } else {
        size_t n = (size_t)p->want.rows * (size_t)p->want.cols;
        *p->want.amax = bits_float(nvfp4_amax_bits(source, n));
        quantized_make(&p->want, source, q, rounding);
    }
    return self_test_same(t, p, name);
}

static inline Nvfp4Rounding self_test_rounding(int stochastic, uint32_t tag) {
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = stochastic;
    rounding.seed = SELF_TEST_SEED;
    rounding.tag = tag;
    rounding.step = 3;
    return rounding;
}

// Quantizes x (rows, cols), also on the device, in both directions.
static inline int self_test_activation(SelfTest* t, SelfTestPair* p, SelfTestPair* pT,
                                       const float* x, const __nv_bfloat16* x_device, int hadamard,
                                       int stochastic, const char* name, const char* nameT) {
    int rows = p->device.rows, cols = p->device.cols;
    Nvfp4Rounding rounding = self_test_rounding(stochastic, 7);
    Nvfp4Rounding roundingT = self_test_rounding(stochastic, 9);
    quantize_amax(p->device.amax, pT->device.amax, x_device, rows, cols, hadamard, t->stream);
    if (t->faults->amax != NULL) {
        cudaCheck(cudaStreamSynchronize(t->stream));
        t->faults->amax(p->device.amax, pT->device.amax);
    }
    quantize_activation(&p->device, &pT->device, x_device, rows, cols, hadamard, rounding,
                        roundingT, t->conversion, t->stream);
    float* xT = (float*)xmalloc((size_t)rows * cols * sizeof(float), "the self-test");
    hadamard_transpose(xT, x, rows, cols, hadamard);
    int right = self_test_matrix(t, p, x, quantizer_nvfp4(0), rounding, name) &&
                self_test_matrix(t, pT, xT, quantizer_nvfp4(0), roundingT, nameT);
    free(xT);
    return right;
}

// The same for a weight in 16x16 tiles. Its transpose has the same codes and scales.
static inline int self_test_weight(SelfTest* t, SelfTestPair* p, SelfTestPair* pT, const float* w,
                                   const __nv_bfloat16* w_device) {
    int rows = p->device.rows, cols = p->device.cols;
    Nvfp4Rounding nearest = self_test_rounding(0, 0);
    quantize_weight(&p->device, &pT->device, w_device, rows, cols, 1, t->conversion, t->stream);
    float* wT = (float*)xmalloc((size_t)rows * cols * sizeof(float), "the self-test");
    hadamard_transpose(wT, w, rows, cols, 0);
    int right = self_test_matrix(t, p, w, quantizer_nvfp4(1), nearest, self_test_operands[W]) &&
                self_test_matrix(t, pT, wT, quantizer_nvfp4(1), nearest, self_test_operands[WT]);
    free(wT);
    return right;
}

// All operands made from one tensor.
static inline int self_test_tensor(SelfTest* t, int tensor) {
    int rows = self_test_tensors[tensor].rows, cols = self_test_tensors[tensor].cols, right = 1;
    size_t n = (size_t)rows * (size_t)cols;
    t->tensor = self_test_tensors[tensor].name;
    float* x = (float*)xmalloc(n * sizeof(float), "the self-test");
    self_test_fill(x, tensor);
    __nv_bfloat16* x_device = self_test_upload(x, n);
    for (int kind = 0; kind < 5 && right; kind++) {
        int hadamard = kind / 2 % 2, stochastic = kind % 2;     // kind 4 is the weight
        int operand = kind == 4 ? W : stochastic ? X_STOCHASTIC : X;
        int operandT = kind == 4 ? WT : (hadamard ? XT_HADAMARD : XT) + stochastic;
        SelfTestPair p = self_test_pair(FORMAT_NVFP4, rows, cols);
        SelfTestPair pT = self_test_pair(FORMAT_NVFP4, cols, rows);
        right = (kind == 4 ? self_test_weight(t, &p, &pT, x, x_device)
                           : self_test_activation(t, &p, &pT, x, x_device, hadamard, stochastic,
                                                  self_test_operands[operand],
                                                  self_test_operands[operandT])) &&
                self_test_hash(t, &p.got, tensor, operand) &&
                self_test_hash(t, &pT.got, tensor, operandT);
        self_test_pair_free(p);
        self_test_pair_free(pT);
    }
    cudaCheck(cudaFree(x_device));
    free(x);
    return right;
}

// One Inf or NaN anywhere, corners included, leaves neither amax finite: no element is left out,
// and no instruction drops a NaN.
static inline int self_test_not_finite(SelfTest* t) {
    int rows = self_test_tensors[TENSOR_EDGES].rows, cols = self_test_tensors[TENSOR_EDGES].cols;
    static const uint16_t bad[4] = { 0x7f80, 0xffff, 0xff80, 0x7fc0 };
    size_t n = (size_t)rows * (size_t)cols;
    size_t at[8] = { 0, (size_t)cols - 1, n - (size_t)cols, n - 1, n / 3, n / 7, n / 2 + 65,
                     n - 31 };
    float* x = (float*)xmalloc(n * sizeof(float), "the self-test");
    self_test_fill(x, TENSOR_EDGES);
    __nv_bfloat16* x_device = self_test_upload(x, n);
    float* amax = (float*)cuda_malloc(2 * sizeof(float), "the self-test");
    int right = 1;
    for (int i = 0; i < 8 && right; i++) {
        uint16_t good = (uint16_t)(float_bits(x[at[i]]) >> 16);
        float got[2];
        cudaCheck(cudaMemcpy(x_device + at[i], &bad[i % 4], 2, cudaMemcpyHostToDevice));
        quantize_amax(amax, amax + 1, x_device, rows, cols, 1, t->stream);
        cudaCheck(cudaStreamSynchronize(t->stream));
        if (t->faults->amax != NULL) { t->faults->amax(amax, amax + 1); }
        cudaCheck(cudaMemcpy(got, amax, sizeof(got), cudaMemcpyDeviceToHost));
        cudaCheck(cudaMemcpy(x_device + at[i], &good, 2, cudaMemcpyHostToDevice));
        for (int k = 0; k < 2 && right; k++) {
            if (float_abs_bits(got[k]) < FLOAT_INFINITY_BITS) {
                right = self_test_wrong(t, "amax of %s (%d, %d) with bits 0x%04x at element %zu is "
                                        "%g, which hides that it is not finite",
                                        k == 0 ? "x" : "the transformed x^T", rows, cols,
                                        bad[i % 4], at[i], got[k]);
            }
        }
    }
    cudaCheck(cudaFree(x_device));
    cudaCheck(cudaFree(amax));
    free(x);
    return right;
}

// alpha of two amaxes for which any other order of operations gives another last bit; and the flag
// that an operand was not finite.
static inline int self_test_alpha(SelfTest* t) {
    float amaxes[3] = { 1.0546875f, 3.09375f, bits_float(FLOAT_INFINITY_BITS) }, got[2];
    int flags[2];
    size_t bytes = sizeof(amaxes) + sizeof(got) + sizeof(flags);
    float* amax = (float*)cuda_malloc(bytes, "the self-test");
    float* alpha = amax + 3;
    int* nonfinite = (int*)(alpha + 2);
    cudaCheck(cudaMemcpy(amax, amaxes, sizeof(amaxes), cudaMemcpyHostToDevice));
    cudaCheck(cudaMemset(nonfinite, 0, sizeof(flags)));
    Quantizer nvfp4 = quantizer_nvfp4(0);
    AnyAlpha about = any_alpha(&nvfp4, &nvfp4);
    quantize_any_alpha(alpha, nonfinite, amax, amax + 1, 10, 20, about, t->stream);
    quantize_any_alpha(alpha + 1, nonfinite + 1, amax, amax + 2, 10, 20, about, t->stream);
    cudaCheck(cudaStreamSynchronize(t->stream));
    if (t->faults->alpha != NULL) { t->faults->alpha(alpha); }
    cudaCheck(cudaMemcpy(got, alpha, sizeof(got), cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(flags, nonfinite, sizeof(flags), cudaMemcpyDeviceToHost));
    cudaCheck(cudaFree(amax));
    if (float_bits(got[0]) != 0x34f272f1u) {
        return self_test_wrong(t, "alpha of %g and %g: %08x instead of 34f272f1", amaxes[0],
                               amaxes[1], float_bits(got[0]));
    }
    if (flags[0] != 0 || flags[1] != 21) {
        return self_test_wrong(t, "flags of operands that are not finite: %d and %d instead of 0 "
                               "and 21", flags[0], flags[1]);
    }
    return 1;
}

// Every code under every scale byte, (144, 80): more than one tile of scales in both directions. There
// are two kernels: that of emulated products, and that of operands made from the codes of others.
static inline int self_test_expansion(SelfTest* t, int aligned) {
    enum { ROWS = 144, COLS = 80, BLOCKS = COLS / NVFP4_BLOCK };
    SelfTestPair p = self_test_pair(FORMAT_NVFP4, ROWS, COLS);
    memset(p.got.codes, 0, p.bytes);
    for (int block = 0; block < ROWS * BLOCKS; block++) {
        for (int i = 0; i < NVFP4_BLOCK / 2; i++) {
            int code = (2 * i + block) % 16;
            p.got.codes[block * NVFP4_BLOCK / 2 + i] =
                e2m1_pack((uint8_t)code, (uint8_t)((code + 1) % 16));
        }
        p.got.block_scales[nvfp4_scale_offset((size_t)(block / BLOCKS), (size_t)(block % BLOCKS),
                                              COLS)] = (uint8_t)(block % 127);
    }
    cudaCheck(cudaMemcpy(p.device.codes, p.got.codes, p.bytes, cudaMemcpyHostToDevice));
    size_t bytes = ROWS * COLS * sizeof(uint16_t);
    __nv_bfloat16* x = (__nv_bfloat16*)cuda_malloc(bytes, "the self-test");
    if (aligned) { quantize_any_expand(x, &p.device, quantizer_nvfp4(0), t->stream); }
    else { quantize_expand(x, &p.device, t->stream); }
    cudaCheck(cudaStreamSynchronize(t->stream));
    if (t->faults->expansion != NULL) { t->faults->expansion(x, ROWS, COLS); }
    uint16_t* got = (uint16_t*)xmalloc(bytes, "the self-test");
    float* want = (float*)xmalloc(2 * bytes, "the self-test");
    cudaCheck(cudaMemcpy(got, x, bytes, cudaMemcpyDeviceToHost));
    nvfp4_expand(want, &p.got);
    int right = 1;
    for (int i = 0; i < ROWS * COLS && right; i++) {
        if (bf16_to_float(got[i]) != want[i] || got[i] >> 15 != float_bits(want[i]) >> 31) {
            right = self_test_wrong(t, "expansion of code %d with scale byte 0x%02x: %g instead of "
                                    "%g", self_test_code(&p.got, FORMAT_NVFP4, i / COLS, i % COLS),
                                    i / NVFP4_BLOCK % 127, bf16_to_float(got[i]), want[i]);
        }
    }
    cudaCheck(cudaFree(x));
    free(got);
    free(want);
    self_test_pair_free(p);
    return right;
}

// ---------------------------------------------------------------------------------------------
// Stochastic rounding is unbiased

// 65,536 elements, each one of 16 values, in a block whose scale is 1. A value between the E2M1
// numbers of code `below` and the next one goes up with probability up / 256: the fraction of the
// way, in whole 256ths, cut off [spec 7.5]. The last one is every block's amax and stays.
#define SELF_TEST_STEPS 256             // rows and columns

static const struct { float x; int below, up; } self_test_steps[16] = {
    { 0.0625f, 0, 32 },      { -0.1875f, 0, 96 },    { 0.3125f, 0, 160 },    { -0.4375f, 0, 224 },
    { 0.59375f, 1, 48 },     { -1.03125f, 2, 16 },   { 1.484375f, 2, 248 },  { -1.75f, 3, 128 },
    { 2.1875f, 4, 48 },      { -2.6875f, 4, 176 },   { 3.03125f, 5, 8 },     { -3.984375f, 5, 252 },
    { 4.5f, 6, 64 },         { -5.21875f, 6, 156 },  { 0.0029296875f, 0, 1 }, { 6.0f, 7, 0 },
};

static inline int self_test_step_at(int row, int col) { return (row + col) % 16; }

// Two statistics of codes (256, 256), either direction (the tensor is symmetric). There have been
// GPUs whose gradients all came out as zeros [TransformerEngine, issue 3281]. e is how far an
// element went up, 0 or 1, less its probability p; the mean of e is 0, its variance p(1-p).
//
//     of each value      sum of e: 4096 elements, standard error sqrt(4096 p(1-p)), at most 32. So
//                        a mean that is off by 4 % of a step or more is seen
//     of neighbours      sum of e_i e_{i+1}: mean 0 if they draw independent numbers, and variance
//                        p_i(1-p_i) p_{i+1}(1-p_{i+1}) each
//
// Within 5 standard errors each. The seed is fixed: the outcome on a given machine never changes.
static inline int self_test_statistics(SelfTest* t, const Nvfp4Matrix* got /* host */,
                                       const char* name) {
    double sum[16] = { 0 }, of_neighbours = 0.0, variance_of_neighbours = 0.0;
    int ups[16] = { 0 };
    for (int row = 0; row < SELF_TEST_STEPS; row++) {
        double before = 0.0, variance_before = 0.0;
        for (int col = 0; col < SELF_TEST_STEPS; col++) {
            int step = self_test_step_at(row, col);
            double p = self_test_steps[step].up / 256.0, variance = p * (1.0 - p);
            int up = (self_test_code(got, FORMAT_NVFP4, row, col) & 7) - self_test_steps[step].below;
            ups[step] += up;
            sum[step] += up - p;
            of_neighbours += before * (up - p);
            variance_of_neighbours += variance_before * variance;
            before = up - p;
            variance_before = variance;
        }
    }
    int each = SELF_TEST_STEPS * SELF_TEST_STEPS / 16;
    for (int step = 0; step < 16; step++) {
        double p = self_test_steps[step].up / 256.0, error = sqrt(each * p * (1.0 - p));
        if (fabs(sum[step]) > 5.0 * error) {
            return self_test_wrong(t, "stochastic rounding of %s is biased: %g went up %d times in "
                                   "%d, expected are %.0f +- %.0f", name, self_test_steps[step].x,
                                   ups[step], each, each * p, 5.0 * error);
        }
    }
    double z = of_neighbours / sqrt(variance_of_neighbours);
    if (fabs(z) > 5.0) {
        return self_test_wrong(t, "stochastic rounding of %s: neighbours do not draw independent "
                               "numbers: their products are %.0f standard errors from 0", name, z);
    }
    t->steps += (size_t)each * 16;
    return 1;
}

static inline int self_test_unbiased(SelfTest* t) {
    int n = SELF_TEST_STEPS;
    t->tensor = "steps";
    float* x = (float*)xmalloc((size_t)n * n * sizeof(float), "the self-test");
    for (int i = 0; i < n * n; i++) { x[i] = self_test_steps[self_test_step_at(i / n, i % n)].x; }
    __nv_bfloat16* x_device = self_test_upload(x, (size_t)n * n);
    SelfTestPair p = self_test_pair(FORMAT_NVFP4, n, n), pT = self_test_pair(FORMAT_NVFP4, n, n);
    const char *name = self_test_operands[X_STOCHASTIC], *nameT = self_test_operands[XT_STOCHASTIC];
    int right = self_test_activation(t, &p, &pT, x, x_device, 0, 1, name, nameT);
    if (right && t->faults->steps != NULL) {
        t->faults->steps(p.got.codes, n, n);
        t->faults->steps(pT.got.codes, n, n);
    }
    right = right && self_test_statistics(t, &p.got, name) &&
            self_test_statistics(t, &pT.got, nameT);
    cudaCheck(cudaFree(x_device));
    self_test_pair_free(p);
    self_test_pair_free(pT);
    free(x);
    return right;
}

// ---------------------------------------------------------------------------------------------
// The quantizers of other recipes

// x (rows, cols) or its transpose as q says: quantized from the tensor and, where the recipe does
// that, from the codes of the other direction.
static inline int self_test_other(SelfTest* t, const float* x, const __nv_bfloat16* x_device,
                                  int rows, int cols, int transposed, Quantizer q) {
    int M = transposed ? cols : rows, K = transposed ? rows : cols;
    char name[100];
    snprintf(name, sizeof(name), "x%s as %s%s%s%s", transposed ? "^T" : "", format_name(q.format),
             q.e5m2 ? " E5M2" : "", q.tile ? " in tiles" : "", q.hadamard > 0 ? " Hadamard" : "");
    Rotation rotation = rotation_make(q.hadamard > 0 ? rotation_size(q.hadamard, K) : 0,
                                      q.fresh_signs, SELF_TEST_SEED, 5, 3);
    Nvfp4Rounding rounding = self_test_rounding(q.rounding != ROUND_NEAREST, 7);
    float* source = (float*)xmalloc((size_t)M * (size_t)K * sizeof(float), "the self-test");
    if (transposed) { hadamard_transpose(source, x, rows, cols, 0); }
    else { memcpy(source, x, (size_t)M * (size_t)K * sizeof(float)); }
    for (int i = 0; rotation.size > 0 && i < M * K; i += rotation.size) {
        rotation_apply(source + i, &rotation);
    }
    SelfTestPair p = self_test_pair(q.format, M, K), pT = self_test_pair(q.format, K, M);
    float* amax = transposed ? NULL : p.device.amax;
    float* amaxT = transposed ? p.device.amax : NULL;
    AnyOutput out = any_output(&p.device, q, rotation, rounding);
    quantize_any_amax(amax, &rotation, amaxT, &rotation, x_device, rows, cols, t->stream);
    quantize_any(transposed ? NULL : &out, transposed ? &out : NULL, x_device, rows, cols,
                 t->stream);
    int right = self_test_matrix(t, &p, source, q, rounding, name);
    if (right && (q.tile || q.format == FORMAT_FP8)) {
        quantize_any_transpose(&pT.device, &p.device, q, t->stream);
        cudaCheck(cudaStreamSynchronize(t->stream));
        quantized_transpose(&pT.want, &p.want, q);
        strcat(name, ", transposed");
        right = self_test_same(t, &pT, name);
    }
    self_test_pair_free(p);
    self_test_pair_free(pT);
    free(source);
    return right;
}

// All tensors, quantized in both directions as the operands of these products are, where
// quantize_any.cuh does it.
static inline int self_test_other_quantizers(SelfTest* t, const GemmProduct* products,
                                             int num_products) {
    for (int i = 0; i < 2 * num_products; i++) {
        const Quantizer* q = i % 2 ? &products[i / 2].B : &products[i / 2].A;
        int known = quantizer_is_plain_nvfp4(q);
        for (int j = 0; j < i; j++) {
            known |= quantizer_equal(q, j % 2 ? &products[j / 2].B : &products[j / 2].A);
        }
        for (int tensor = 0; tensor < NUM_TENSORS && !known; tensor++) {
            int rows = self_test_tensors[tensor].rows, cols = self_test_tensors[tensor].cols;
            t->tensor = self_test_tensors[tensor].name;
            float* x = (float*)xmalloc((size_t)(rows * cols) * sizeof(float), "the self-test");
            self_test_fill(x, tensor);
            __nv_bfloat16* x_device = self_test_upload(x, (size_t)(rows * cols));
            int right = self_test_other(t, x, x_device, rows, cols, 0, *q) &&
                        self_test_other(t, x, x_device, rows, cols, 1, *q);
            cudaCheck(cudaFree(x_device));
            free(x);
            if (!right) { return 0; }
        }
    }
    return 1;
}

// ---------------------------------------------------------------------------------------------

// Everything about the base recipe's quantizers, with the conversion of t.
static inline int self_test_quantizers(SelfTest* t) {
    t->codes = t->steps = 0;
    for (int tensor = 0; tensor < NUM_TENSORS; tensor++) {
        if (!self_test_tensor(t, tensor)) { return 0; }
    }
    return self_test_not_finite(t) && self_test_alpha(t) && self_test_expansion(t, 0) &&
           self_test_expansion(t, 1) && self_test_unbiased(t);
}

#endif
