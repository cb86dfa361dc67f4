/*
Quantized matrices made twice, on the device and by the reference, and compared byte for byte: codes,
block scales with their padding, amax, and the gaps between them, which nobody may write.
*/
#ifndef TEST_MATRIX_CHECK_CUH
#define TEST_MATRIX_CHECK_CUH

#include "../../llmc/quantizer.h"
#include "device_check.cuh"

// ---------------------------------------------------------------------------------------------
// Contents

enum { NORMAL, LOGNORMAL, ZERO, SIGNED_ZERO, OUTLIER, SUBNORMAL, TINY, HUGE_VALUES, NUM_CONTENTS };

static const char* content_names[NUM_CONTENTS] = { "normal", "lognormal", "zero", "signed zero",
                                                   "outlier", "subnormal", "tiny", "huge" };

// x (rows, cols), BF16 values
static inline void fill(float* x, size_t n, int content, uint32_t stream) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) {
        float normal = random_normal(20260102, stream, i);
        float sign = normal < 0.0f ? -1.0f : 1.0f;
        float value = normal;
        if (content == LOGNORMAL) { value = sign * expf(4.0f * normal); }
        if (content == ZERO) { value = 0.0f; }
        if (content == SIGNED_ZERO) { value = fabsf(normal) < 2.0f ? 0.0f * sign : normal; }
        if (content == OUTLIER) { value = i == n / 3 ? 1e6f : normal; }
        if (content == SUBNORMAL) { value = normal * 1e-39f; }
        if (content == TINY) { value = normal * 1e-34f; }
        if (content == HUGE_VALUES) { value = normal * 1e36f; }
        x[i] = bf16_round(value);
    }
}

// ---------------------------------------------------------------------------------------------
// A matrix twice: quantized on the device, and by the reference

#define POISON 0xa5

typedef struct {
    Format format;
    Nvfp4Matrix device, host;
    size_t bytes;
    void* device_memory;
    void* host_memory;
} MatrixPair;

// A matrix in `memory`: codes, block scales, amax, each on a multiple of 64, poison between them.
static inline Nvfp4Matrix matrix_place(uint8_t* memory, Format format, int rows, int cols) {
    Nvfp4Matrix m;
    size_t codes = quantized_codes_size(format, (size_t)rows, (size_t)cols);
    m.rows = rows;
    m.cols = cols;
    m.codes = memory;
    m.block_scales = m.codes + (codes / 64 + 1) * 64;
    m.amax = (float*)(m.block_scales + quantized_scales_size(format, (size_t)rows, (size_t)cols)
                      + 64);
    return m;
}

// Both start poisoned, except for the scales, which are zeroed as the program does.
static inline MatrixPair pair_alloc(Format format, int rows, int cols) {
    MatrixPair p;
    p.format = format;
    size_t codes = quantized_codes_size(format, (size_t)rows, (size_t)cols);
    size_t scales = quantized_scales_size(format, (size_t)rows, (size_t)cols);
    p.bytes = (codes / 64 + 1) * 64 + scales + 128;
    p.device_memory = cuda_malloc(p.bytes, "a quantized matrix");
    p.host_memory = malloc(p.bytes);
    p.device = matrix_place((uint8_t*)p.device_memory, format, rows, cols);
    p.host = matrix_place((uint8_t*)p.host_memory, format, rows, cols);
    cudaCheck(cudaMemset(p.device_memory, POISON, p.bytes));
    cudaCheck(cudaMemset(p.device.block_scales, 0, scales));
    memset(p.host_memory, POISON, p.bytes);
    return p;
}

static inline void pair_free(MatrixPair p) {
    cudaCheck(cudaFree(p.device_memory));
    free(p.host_memory);
}

// What was compared under one name: bytes, how many differ, and where the first of them is.
typedef struct {
    const char* name;
    size_t matrices, bytes, differ;
    char first[240];
} Tally;

static inline void tally_report(const Tally* t) {
    report(t->differ == 0 && t->bytes > 0, t->name, "%zu matrices, %zu of %zu bytes differ%s%s",
           t->matrices, t->differ, t->bytes, t->differ > 0 ? "; first: " : "", t->first);
}

static inline void tally_compare(Tally* t, const MatrixPair* p, const char* what) {
    uint8_t* got = (uint8_t*)malloc(p->bytes);
    const uint8_t* want = (const uint8_t*)p->host_memory;
    cudaCheck(cudaMemcpy(got, p->device_memory, p->bytes, cudaMemcpyDeviceToHost));
    size_t scales = (size_t)(p->host.block_scales - want);
    size_t amax = (size_t)((uint8_t*)p->host.amax - want);
    size_t row_bytes = (size_t)p->host.cols * (size_t)format_bits(p->format) / 8;
    for (size_t i = 0; i < p->bytes; i++) {
        if (got[i] == want[i]) { continue; }
        if (t->differ == 0) {
            char where[80];
            if (i < scales) {
                snprintf(where, sizeof(where), "codes of row %zu from column %zu", i / row_bytes,
                         i % row_bytes * 8 / (size_t)format_bits(p->format));
            } else {
                snprintf(where, sizeof(where), "byte %zu of the %s", i - (i < amax ? scales : amax),
                         i < amax ? "scales" : "amax");
            }
            snprintf(t->first, sizeof(t->first), "%s (%d, %d), %s: %02x instead of %02x", what,
                     p->host.rows, p->host.cols, where, got[i], want[i]);
        }
        t->differ++;
    }
    t->matrices++;
    t->bytes += p->bytes;
    free(got);
}

#endif
