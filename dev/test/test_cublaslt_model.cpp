/*
The model of cuBLASLt (cublaslt_model.c) against what it models, as far as a machine without a GPU
can tell: numbers against NVIDIA's headers, the scale layout against its drawing, products against
plain loops and against one that was worked out by hand, descriptors against the installed library,
and every rule and every fault once. All comparisons are exact. It needs the headers of a CUDA
toolkit (12.8 or newer) and no GPU. C++ because those headers are; it includes the model to see its
parts.

What was planted in the model and seen to fail stands at each test.
*/
#include <stdint.h>
#include <stdio.h>
#include "report.h"

#if __has_include(<cublasLt.h>) && __has_include(<cuda_fp4.h>)
#include <cuda_bf16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#include <dlfcn.h>
#include "cublaslt_model.c"

// ---------------------------------------------------------------------------------------------
// Numbers and layout

// The next of a fixed sequence of random words (the upper half of a linear congruence).
static uint32_t random_word(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

// Fails with: 5 in place of 6 in the table; the exponent 0 of UE4M3 not special; 0x7F as 480; BF16
// by way of FP32; ties away from zero (round for nearbyint); subnormals rounded like other numbers.
static void test_numbers(void) {
    int differ = 0;
    for (int code = 0; code < 16; code++) {
        __half_raw half = __nv_cvt_fp4_to_halfraw((__nv_fp4_storage_t)code, __NV_E2M1);
        double vendor = (double)__half2float(__half(half));
        differ += vendor != e2m1_values[code] || signbit(vendor) != signbit(e2m1_values[code]);
    }
    report(differ == 0, "e2m1", "16 codes, %d differ from cuda_fp4.h", differ);

    differ = 0;
    for (int byte = 0; byte < 128; byte++) {
        __half_raw half = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)byte, __NV_E4M3);
        double vendor = (double)__half2float(__half(half)), ours = ue4m3_value((uint8_t)byte);
        differ += isnan(vendor) ? !isnan(ours) : vendor != ours;
    }
    report(differ == 0, "ue4m3", "128 bytes, %d differ from cuda_fp8.h", differ);

    // FP32 numbers and their neighbours in double on both sides: near the ties of BF16 these tell
    // one rounding from two.
    differ = 0;
    for (int i = 0; i < 3000000; i++) {
        uint32_t bits = random_word();
        if (i & 1) { bits = (bits & 0xffff0000u) | 0x8000u; }
        double x = (double)bits_to_float(bits);
        if (i % 3 > 0) { x = nextafter(x, i % 3 == 1 ? INFINITY : -INFINITY); }
        uint16_t vendor = __nv_bfloat16_raw(__double2bfloat16(x)).x;
        differ += bf16_nearest(x) != vendor;
    }
    report(differ == 0, "bf16", "3000000 doubles, %d differ from cuda_bf16.h", differ);
}

// The documentation's picture, read byte after byte: tiles across, then down; in each 32 lines; in
// each line the rows r, r + 32, r + 64, r + 96; of each row 4 blocks. place[row * 4 tiles + block].
static int64_t* places_by_drawing(int64_t rows, int64_t blocks) {
    int64_t tiles_down = (rows + 127) / 128, tiles_across = (blocks + 3) / 4, next = 0;
    int64_t width = tiles_across * 4;
    int64_t* place = (int64_t*)malloc((size_t)(tiles_down * 128 * width) * sizeof(int64_t));
    for (int64_t down = 0; down < tiles_down; down++) {
        for (int64_t across = 0; across < tiles_across; across++) {
            for (int64_t line = 0; line < 32; line++) {
                for (int64_t row = line; row < 128; row += 32) {
                    for (int64_t block = 0; block < 4; block++) {
                        place[(down * 128 + row) * width + across * 4 + block] = next++;
                    }
                }
            }
        }
    }
    return place;
}

// Fails with: line and quarter exchanged (row % 4, row / 4); tiles counted down before across; a
// count of tiles that rounds down.
static void test_layout(void) {
    static const struct { int64_t row, block, blocks; size_t offset; } by_hand[] = {
        { 0, 0, 4, 0 }, { 0, 3, 4, 3 }, { 1, 0, 4, 16 }, { 31, 3, 4, 499 }, { 32, 0, 4, 4 },
        { 64, 1, 4, 9 }, { 96, 2, 4, 14 }, { 127, 3, 4, 511 }, { 0, 4, 8, 512 },
        { 128, 0, 4, 512 }, { 128, 0, 6, 1024 }, { 200, 5, 6, 1673 }, { 0, 0, 2, 0 },
        { 33, 1, 2, 21 },
    };
    int differ = 0;
    for (size_t i = 0; i < COUNT(by_hand); i++) {
        differ += scale_offset(by_hand[i].row, by_hand[i].block, by_hand[i].blocks) !=
                  by_hand[i].offset;
    }
    report(differ == 0, "scale layout by hand", "%zu places, %d differ", COUNT(by_hand), differ);
    static const int64_t shapes[][2] = { { 1, 2 }, { 128, 4 }, { 129, 5 }, { 300, 18 },
                                         { 64, 400 } };
    int64_t places = 0;
    differ = 0;
    for (size_t s = 0; s < COUNT(shapes); s++) {
        int64_t rows = (shapes[s][0] + 127) / 128 * 128, width = (shapes[s][1] + 3) / 4 * 4;
        int64_t* place = places_by_drawing(shapes[s][0], shapes[s][1]);
        for (int64_t i = 0; i < rows * width; i++) {
            differ += (int64_t)scale_offset(i / width, i % width, shapes[s][1]) != place[i];
        }
        differ += (int64_t)scale_bytes(shapes[s][0], shapes[s][1]) != rows * width;
        places += rows * width;
        free(place);
    }
    report(differ == 0, "scale layout by drawing", "%lld places, %d differ", (long long)places,
           differ);
}

// ---------------------------------------------------------------------------------------------
// A product with everything that can be set. Tests change a field and look what becomes of it.

typedef struct {
    int64_t m, n, k;
    uint32_t type[4];                       // of A, B, C, D
    int64_t rows[4], cols[4], ld[4];
    int32_t trans_a, trans_b, trans_c, compute_type, scale_type, pointer_mode, scale_mode[2];
    uint32_t epilogue;
    int32_t bias_type, order, batch_count;
    const void *scales[2], *bias;
    int pointer_attribute, int_attribute;   // of the operation, to be set too; 0: none
    uint64_t workspace_wish, workspace_bytes;
    uint32_t align[4], search_mode;
    int requested, no_algorithm, alpha_is_null, beta_is_null;
    float alpha, beta;
    const float *alpha_pointer, *beta_pointer;
    char *data[4];                          // where the matrices are; C is D unless it is changed
    char *workspace;
    char *memory[6];                        // A, B, D, scales of A and B, workspace; 64 KiB between
    size_t bytes[6];
    cublasStatus_t heuristic, matmul;       // what came back
    cublasLtMatmulHeuristicResult_t found;
    int returned;
    char complaint[512];                    // after the last of them
} Call;

enum { A, B, C, D };

static char* aligned_memory(size_t bytes) {
    void* memory = NULL;
    if (posix_memalign(&memory, 256, (bytes + 511) / 256 * 256) != 0) { abort(); }
    memset(memory, 0, (bytes + 511) / 256 * 256);
    return (char*)memory;
}

// A valid product with zeros in all operands. Gaps are extra elements in each leading dimension.
static Call call_make(int64_t m, int64_t n, int64_t k, uint32_t type_AB, uint32_t type_D,
                      int trans_a, int trans_b, int64_t gap) {
    Call c;
    memset(&c, 0, sizeof(c));
    c.m = m;
    c.n = n;
    c.k = k;
    int64_t rows[4] = { trans_a ? k : m, trans_b ? n : k, m, m };
    int64_t cols[4] = { trans_a ? m : k, trans_b ? k : n, n, n };
    for (int i = A; i <= D; i++) {
        c.type[i] = i <= B ? type_AB : type_D;
        c.rows[i] = rows[i];
        c.cols[i] = cols[i];
        c.ld[i] = rows[i] + gap;
        c.align[i] = 16;
    }
    int fp4 = type_AB == CUDA_R_4F_E2M1;
    c.trans_a = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    c.trans_b = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    c.trans_c = CUBLAS_OP_N;
    c.compute_type = CUBLAS_COMPUTE_32F;
    c.scale_type = CUDA_R_32F;
    c.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    c.bias_type = -1;
    c.batch_count = 1;
    c.workspace_wish = c.workspace_bytes = 65536;
    c.requested = 1;
    c.alpha = 1.0f;
    size_t bytes[6] = { (size_t)(c.ld[A] * cols[A] * type_bits(type_AB) / 8),
                        (size_t)(c.ld[B] * cols[B] * type_bits(type_AB) / 8),
                        (size_t)(c.ld[D] * n * type_bits(type_D) / 8), 0, 0, 65536 };
    if (fp4) {
        bytes[3] = scale_bytes(m, k / 16);
        bytes[4] = scale_bytes(n, k / 16);
        c.scale_mode[0] = c.scale_mode[1] = CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
    }
    size_t place[6], next = 0;
    for (int i = 0; i < 6; i++) {
        c.bytes[i] = bytes[i];
        place[i] = next;
        next += (bytes[i] + 255) / 256 * 256 + 65536;
    }
    c.memory[0] = aligned_memory(next);
    for (int i = 1; i < 6; i++) { c.memory[i] = c.memory[0] + place[i]; }
    c.data[A] = c.memory[0];
    c.data[B] = c.memory[1];
    c.data[C] = c.data[D] = c.memory[2];
    c.scales[0] = fp4 ? c.memory[3] : NULL;
    c.scales[1] = fp4 ? c.memory[4] : NULL;
    c.workspace = c.memory[5];
    return c;
}

static size_t gap_bytes_touched = 0;        // in all calls so far

static void call_free(Call* c) {
    for (int i = 0; i < 6; i++) {
        size_t end = (c->bytes[i] + 255) / 256 * 256;
        for (size_t b = end; b < end + 65536; b++) { gap_bytes_touched += c->memory[i][b] != 0; }
    }
    free(c->memory[0]);
}

static void must(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) {
        printf("unexpected: %s\n", cublaslt_model_complaint());
        abort();
    }
}

template <typename T>
static void set(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t attribute, T value) {
    must(cublasLtMatmulDescSetAttribute(op, attribute, &value, sizeof(value)));
}

// The descriptors that a call describes, made and taken away.
typedef struct {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout[4];
} Descriptors;

static Descriptors descriptors_make(const Call* c) {
    Descriptors d;
    must(cublasLtMatmulDescCreate(&d.op, (cublasComputeType_t)c->compute_type,
                                  (cudaDataType_t)c->scale_type));
    set(d.op, CUBLASLT_MATMUL_DESC_TRANSA, c->trans_a);
    set(d.op, CUBLASLT_MATMUL_DESC_TRANSB, c->trans_b);
    set(d.op, CUBLASLT_MATMUL_DESC_TRANSC, c->trans_c);
    set(d.op, CUBLASLT_MATMUL_DESC_POINTER_MODE, c->pointer_mode);
    set(d.op, CUBLASLT_MATMUL_DESC_EPILOGUE, c->epilogue);
    set(d.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, c->bias);
    set(d.op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, c->bias_type);
    set(d.op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, c->scale_mode[0]);
    set(d.op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, c->scale_mode[1]);
    set(d.op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, c->scales[0]);
    set(d.op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, c->scales[1]);
    if (c->pointer_attribute != 0) {
        set(d.op, (cublasLtMatmulDescAttributes_t)c->pointer_attribute, (void*)c->workspace);
    }
    if (c->int_attribute != 0) {
        set(d.op, (cublasLtMatmulDescAttributes_t)c->int_attribute, (int32_t)1);
    }
    for (int i = A; i <= D; i++) {
        must(cublasLtMatrixLayoutCreate(&d.layout[i], (cudaDataType_t)c->type[i],
                                        (uint64_t)c->rows[i], (uint64_t)c->cols[i], c->ld[i]));
        must(cublasLtMatrixLayoutSetAttribute(d.layout[i], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                              &c->batch_count, sizeof(c->batch_count)));
        must(cublasLtMatrixLayoutSetAttribute(d.layout[i], CUBLASLT_MATRIX_LAYOUT_ORDER, &c->order,
                                              sizeof(c->order)));
    }
    return d;
}

static void descriptors_free(Descriptors* d) {
    for (int i = A; i <= D; i++) { must(cublasLtMatrixLayoutDestroy(d->layout[i])); }
    must(cublasLtMatmulDescDestroy(d->op));
}

static void call_heuristic(Call* c, cublasLtHandle_t handle) {
    static const cublasLtMatmulPreferenceAttributes_t aligns[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
    Descriptors d = descriptors_make(c);
    cublasLtMatmulPreference_t wish;
    must(cublasLtMatmulPreferenceCreate(&wish));
    must(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &c->workspace_wish, sizeof(c->workspace_wish)));
    must(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_SEARCH_MODE,
                                              &c->search_mode, sizeof(c->search_mode)));
    for (int i = A; i <= D; i++) {
        must(cublasLtMatmulPreferenceSetAttribute(wish, aligns[i], &c->align[i],
                                                  sizeof(c->align[i])));
    }
    c->returned = -1;
    c->heuristic = cublasLtMatmulAlgoGetHeuristic(handle, d.op, d.layout[A], d.layout[B],
                                                  d.layout[C], d.layout[D], wish, c->requested,
                                                  &c->found, &c->returned);
    snprintf(c->complaint, sizeof(c->complaint), "%s", cublaslt_model_complaint());
    must(cublasLtMatmulPreferenceDestroy(wish));
    descriptors_free(&d);
}

static void call_matmul(Call* c, cublasLtHandle_t handle) {
    Descriptors d = descriptors_make(c);
    const float* alpha = c->alpha_pointer != NULL ? c->alpha_pointer : &c->alpha;
    const float* beta = c->beta_pointer != NULL ? c->beta_pointer : &c->beta;
    if (c->alpha_is_null) { alpha = NULL; }
    if (c->beta_is_null) { beta = NULL; }
    c->matmul = cublasLtMatmul(handle, d.op, alpha, c->data[A], d.layout[A], c->data[B],
                               d.layout[B], beta, c->data[C], d.layout[C], c->data[D],
                               d.layout[D], c->no_algorithm ? NULL : &c->found.algo, c->workspace,
                               c->workspace_bytes, NULL);
    snprintf(c->complaint, sizeof(c->complaint), "%s", cublaslt_model_complaint());
    descriptors_free(&d);
}

// Both; 1 if both succeeded.
static int call_run(Call* c, cublasLtHandle_t handle) {
    call_heuristic(c, handle);
    if (c->heuristic != CUBLAS_STATUS_SUCCESS || c->returned != 1) { return 0; }
    call_matmul(c, handle);
    return c->matmul == CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------
// Products

// m 8, n 1, K 32, worked out by hand; only row 0 of A is not zero.
//     A, block 0: 1 and 6, scale 1      B, block 0: 3 and 0.5, scale 2      (3 + 3) * 1 * 2 = 12
//     A, block 1: -6, scale 2^-9        B, block 1: 1, scale 448            -6 * 448 / 512 = -5.25
//     D = 2 * 6.75 + 0.5 * 3 = 15
// Fails with: the high nibble taken as the even element of both operands ("nibbles" alone).
static void test_by_hand(cublasLtHandle_t handle) {
    Call c = call_make(8, 1, 32, CUDA_R_4F_E2M1, CUDA_R_16BF, 1, 0, 0);
    c.data[A][0] = 0x72;
    c.data[A][8] = 0x0f;
    c.data[B][0] = 0x15;
    c.data[B][8] = 0x02;
    c.memory[3][0] = 0x38;
    c.memory[3][1] = 0x01;
    c.memory[4][0] = 0x40;
    c.memory[4][1] = 0x7e;
    c.alpha = 2.0f;
    c.beta = 0.5f;
    uint16_t* out = (uint16_t*)c.data[D];
    out[0] = 0x4040;        // 3
    out[1] = 0xc000;        // -2: becomes -1, 0xbf80
    int ran = call_run(&c, handle);
    report(ran && out[0] == 0x4170 && out[1] == 0xbf80 && out[2] == 0, "product by hand",
           "15 is 4170, -1 is bf80: %04x %04x", out[0], out[1]);
    // Which half of a byte is the even element does not show in a product if it is wrong twice.
    float2 pair = { 1.0f, 6.0f };
    double line[32];
    Operand row = { c.data[A], (const uint8_t*)c.scales[0], CUDA_R_4F_E2M1, 8, 32, 32, 1, 1 };
    decode_row(&row, 0, line);
    report(line[0] == 1.0 && line[1] == 6.0 &&
           __nv_cvt_float2_to_fp4x2(pair, __NV_E2M1, cudaRoundNearest) == 0x72, "nibbles",
           "72 is (%g, %g)", line[0], line[1]);
    call_free(&c);
}

// Element (row, p) of an FP4 operand by NVIDIA's conversions and the drawing of the layout.
static double element_by_vendor(const Call* c, int operand, int64_t row, int64_t p,
                                const int64_t* place) {
    uint8_t byte = (uint8_t)c->data[operand][(row * c->ld[operand] + p) / 2];
    __half2_raw pair = __nv_cvt_fp4x2_to_halfraw2(byte, __NV_E2M1);
    __half_raw code;
    code.x = p % 2 == 0 ? pair.x : pair.y;
    uint8_t scale_byte = ((const uint8_t*)c->scales[operand])[
        place[row * ((c->k / 16 + 3) / 4 * 4) + p / 16]];
    __half_raw scale = __nv_cvt_fp8_to_halfraw(scale_byte, __NV_E4M3);
    return (double)__half2float(__half(code)) * (double)__half2float(__half(scale));
}

static double read_wide(const char* data, uint32_t type, int64_t at) {
    if (type == CUDA_R_32F) { return (double)((const float*)data)[at]; }
    return (double)bits_to_float((uint32_t)((const uint16_t*)data)[at] << 16);
}

// The same for any type. place[operand] is for FP4.
static double element_of(const Call* c, int operand, int64_t row, int64_t p,
                         int64_t* const place[2]) {
    if (c->type[operand] == CUDA_R_4F_E2M1) {
        return element_by_vendor(c, operand, row, p, place[operand]);
    }
    int contiguous = operand == A ? c->trans_a == CUBLAS_OP_T : c->trans_b == CUBLAS_OP_N;
    return read_wide(c->data[operand], c->type[operand],
                     contiguous ? row * c->ld[operand] + p : p * c->ld[operand] + row);
}

// What D must become, as bytes like those at data[D] before the call. The caller frees it.
static char* expected_bytes(const Call* c) {
    int64_t* const place[2] = { places_by_drawing(c->m, c->k / 16),
                                places_by_drawing(c->n, c->k / 16) };
    double* a = (double*)malloc((size_t)(c->m * c->k) * sizeof(double));
    double* b = (double*)malloc((size_t)(c->n * c->k) * sizeof(double));
    for (int64_t i = 0; i < c->m * c->k; i++) {
        a[i] = element_of(c, A, i / c->k, i % c->k, place);
    }
    for (int64_t i = 0; i < c->n * c->k; i++) {
        b[i] = element_of(c, B, i / c->k, i % c->k, place);
    }
    char* out = aligned_memory(c->bytes[2]);
    memcpy(out, c->memory[2], c->bytes[2]);
    for (int64_t j = 0; j < c->n; j++) {
        for (int64_t i = 0; i < c->m; i++) {
            double sum = 0.0;
            for (int64_t p = 0; p < c->k; p++) { sum += a[i * c->k + p] * b[j * c->k + p]; }
            double x = c->alpha * sum;
            if (c->beta != 0.0f) {
                x += c->beta * read_wide(c->data[C], c->type[C], j * c->ld[C] + i);
            }
            if (c->epilogue == CUBLASLT_EPILOGUE_BIAS) {
                x += read_wide((const char*)c->bias, c->type[D], i);
            }
            if (c->type[D] == CUDA_R_32F) {
                ((float*)out)[j * c->ld[D] + i] = (float)x;
            } else {
                ((uint16_t*)out)[j * c->ld[D] + i] = __nv_bfloat16_raw(__double2bfloat16(x)).x;
            }
        }
    }
    free(a);
    free(b);
    free(place[0]);
    free(place[1]);
    return out;
}

// Random codes; scale bytes of all values from 0 to 448; C of small integers.
static void fill_fp4(Call* c) {
    for (int i = A; i <= B; i++) {
        for (size_t b = 0; b < c->bytes[i]; b++) { c->memory[i][b] = (char)random_word(); }
        int64_t rows = i == A ? c->m : c->n, blocks = c->k / 16;
        int64_t* place = places_by_drawing(rows, blocks);
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t block = 0; block < blocks; block++) {
                c->memory[3 + i][place[row * ((blocks + 3) / 4 * 4) + block]] =
                    (char)(random_word() % 127);
            }
        }
        free(place);
    }
}

// Integers from -8 to 8 in a matrix of wide elements: their sums are exact in any order.
static void fill_wide(char* data, uint32_t type, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float x = (float)((int)(random_word() % 17) - 8);
        uint32_t bits;
        memcpy(&bits, &x, sizeof(bits));
        if (type == CUDA_R_32F) {
            ((float*)data)[i] = x;
        } else {
            ((uint16_t*)data)[i] = (uint16_t)(bits >> 16);
        }
    }
}

// Fails with: the scales of the wrong operand; lda taken as k; ldc or ldd taken as m; alpha or
// beta * C left out; D of FP32 rounded to BF16; a last panel of rows or columns not stored; beta 0
// multiplied with the NaN that D starts as.
static void test_fp4_products(cublasLtHandle_t handle) {
    static const struct { int64_t m, n, k, gap; float alpha, beta; } cases[] = {
        { 8, 1, 32, 0, 1.0f, 0.0f }, { 16, 4, 64, 0, 0.37f, 0.0f }, { 64, 48, 96, 32, 1.0f, 1.0f },
        { 136, 200, 320, 0, 1e-3f, 1.0f }, { 256, 131, 1024, 64, 3.0f, -0.5f },
        { 24, 300, 32, 32, 0.0f, 1.0f },
    };
    for (int type = 0; type < 2; type++) {
        uint32_t type_D = type ? CUDA_R_32F : CUDA_R_16BF;
        int differ = 0, ran = 0;
        for (size_t i = 0; i < COUNT(cases); i++) {
            Call c = call_make(cases[i].m, cases[i].n, cases[i].k, CUDA_R_4F_E2M1, type_D, 1, 0,
                               cases[i].gap);
            fill_fp4(&c);
            fill_wide(c.data[D], type_D, c.ld[D] * c.n);
            c.alpha = cases[i].alpha;
            c.beta = cases[i].beta;
            if (c.beta == 0.0f) { memset(c.data[D], 0xff, c.bytes[2]); }
            char* expected = expected_bytes(&c);
            ran += call_run(&c, handle);
            differ += memcmp(expected, c.data[D], c.bytes[2]) != 0;
            free(expected);
            call_free(&c);
        }
        report(ran == (int)COUNT(cases) && differ == 0, type ? "fp4, fp32 D" : "fp4, bf16 D",
               "%d of %zu products computed, %d differ", ran, COUNT(cases), differ);
    }
}

// Fails with: the transposition of A or of B read the wrong way round; the bias added along
// columns, or not at all.
static void test_plain_products(cublasLtHandle_t handle) {
    static const uint32_t types[3][2] = { { CUDA_R_16BF, CUDA_R_16BF }, { CUDA_R_16BF, CUDA_R_32F },
                                          { CUDA_R_32F, CUDA_R_32F } };
    int differ = 0, ran = 0, products = 0;
    for (int variant = 0; variant < 3 * 2 * 2 * 2 * 2; variant++) {
        const uint32_t* type = types[variant / 16];
        Call c = call_make(37, 21, 50, type[0], type[1], variant & 1, variant >> 1 & 1,
                           variant >> 2 & 1);
        fill_wide(c.data[A], type[0], c.ld[A] * c.cols[A]);
        fill_wide(c.data[B], type[0], c.ld[B] * c.cols[B]);
        fill_wide(c.data[D], type[1], c.ld[D] * c.n);
        c.beta = (float)(variant >> 2 & 1);
        c.pointer_mode = variant >> 2 & 1;
        char* bias = aligned_memory((size_t)c.m * 4);
        fill_wide(bias, type[1], c.m);
        if (variant >> 3 & 1) {
            c.epilogue = CUBLASLT_EPILOGUE_BIAS;
            c.bias = bias;
            c.bias_type = (int32_t)type[1];
        }
        char* expected = expected_bytes(&c);
        ran += call_run(&c, handle);
        differ += memcmp(expected, c.data[D], c.bytes[2]) != 0;
        products++;
        free(expected);
        free(bias);
        call_free(&c);
    }
    report(ran == products && differ == 0, "bf16 and fp32",
           "%d of %d products computed, %d differ", ran, products, differ);
}

// ---------------------------------------------------------------------------------------------
// Rules

static float two_floats[2] = { 1.0f, 0.0f };

static void resize(Call* c, int matrix, int64_t rows, int64_t cols) {
    c->rows[matrix] = c->ld[matrix] = rows;
    c->cols[matrix] = cols;
}

typedef struct {
    const char* name;
    void (*change)(Call* c);
    cublasStatus_t status;
    const char* complaint;          // a part of it
} Rule;

static const cublasStatus_t invalid = CUBLAS_STATUS_INVALID_VALUE;
static const cublasStatus_t unsupported = CUBLAS_STATUS_NOT_SUPPORTED;

// Broken before the heuristic is asked: it must refuse.
static const Rule rules_of_heuristic[] = {
    { "A not transposed", [](Call* c) { c->trans_a = CUBLAS_OP_N; resize(c, A, c->m, c->k); },
      unsupported, "must be TN" },
    { "B transposed", [](Call* c) { c->trans_b = CUBLAS_OP_T; resize(c, B, c->n, c->k); },
      unsupported, "must be TN" },
    { "K 80", [](Call* c) { c->rows[A] = c->rows[B] = 80; }, unsupported, "half bytes of K" },
    { "K differs", [](Call* c) { c->rows[B] = 32; }, invalid, "K is 96 in A and 32 in B" },
    { "lda 112", [](Call* c) { c->ld[A] = 112; }, unsupported, "lda 112" },
    { "ldb 104", [](Call* c) { c->ld[B] = 104; }, unsupported, "ldb 104" },
    { "ld below rows", [](Call* c) { c->ld[B] = 32; }, invalid, "below the 96 rows" },
    { "m 12", [](Call* c) { c->cols[A] = c->rows[C] = c->rows[D] = 12; }, unsupported,
      "the 12 rows of C" },
    { "ldc 20", [](Call* c) { c->ld[C] = 20; }, unsupported, "ldc 20" },
    { "ldd 20", [](Call* c) { c->ld[D] = 20; }, unsupported, "ldd 20" },
    { "columns of C", [](Call* c) { c->cols[C] = 23; }, invalid, "C (16, 23)" },
    { "rows of C", [](Call* c) { c->rows[C] = 8; }, invalid, "C (8, 24)" },
    { "columns of D", [](Call* c) { c->cols[D] = 23; }, invalid, "D (16, 23)" },
    { "rows of D", [](Call* c) { c->rows[D] = 8; }, invalid, "D (8, 24)" },
    { "no columns", [](Call* c) { c->cols[B] = c->cols[C] = c->cols[D] = 0; }, invalid,
      "is empty" },
    { "no rows", [](Call* c) { c->rows[A] = c->rows[B] = 0; }, invalid, "is empty" },
    { "2^31 rows", [](Call* c) { resize(c, A, (int64_t)1 << 31, 16); }, invalid, "2^31 - 1" },
    { "2^31 columns", [](Call* c) { c->cols[B] = (int64_t)1 << 31; }, invalid, "2^31 - 1" },
    { "C BF16, D FP32", [](Call* c) { c->type[D] = CUDA_R_32F; }, unsupported,
      "C and D must both" },
    { "D FP16", [](Call* c) { c->type[C] = c->type[D] = CUDA_R_16F; }, unsupported,
      "C and D must both" },
    { "A BF16", [](Call* c) { c->type[A] = CUDA_R_16BF; }, unsupported, "A has type 14 and B 33" },
    { "A and B FP8", [](Call* c) { c->type[A] = c->type[B] = CUDA_R_8F_E4M3; }, unsupported,
      "not supported together" },
    { "scale mode of A", [](Call* c) { c->scale_mode[0] = 0; }, unsupported, "VEC16_UE4M3" },
    { "scale mode of B", [](Call* c) { c->scale_mode[1] = 2; }, unsupported, "VEC16_UE4M3" },
    { "no scales of A", [](Call* c) { c->scales[0] = NULL; }, invalid, "pointer of A is NULL" },
    { "no scales of B", [](Call* c) { c->scales[1] = NULL; }, invalid, "pointer of B is NULL" },
    { "scales at 8", [](Call* c) { c->scales[1] = (const char*)c->scales[1] + 8; }, invalid,
      "scale pointer is not a multiple of 16" },
    { "compute type", [](Call* c) { c->compute_type = CUBLAS_COMPUTE_16F; }, unsupported,
      "compute type" },
    { "scale type", [](Call* c) { c->scale_type = CUDA_R_16F; }, unsupported, "scale type 2" },
    { "epilogue bias", [](Call* c) { c->epilogue = CUBLASLT_EPILOGUE_BIAS; }, unsupported,
      "epilogue 4" },
    { "alpha a vector", [](Call* c) { c->pointer_mode = CUBLASLT_POINTER_MODE_DEVICE_VECTOR; },
      unsupported, "pointer mode 2" },
    { "A conjugated", [](Call* c) { c->trans_a = CUBLAS_OP_C; }, invalid, "neither N nor T" },
    { "B conjugated", [](Call* c) { c->trans_b = CUBLAS_OP_C; }, invalid, "neither N nor T" },
    { "C transposed", [](Call* c) { c->trans_c = CUBLAS_OP_T; }, invalid, "neither N nor T" },
    { "half of D", [](Call* c) { c->int_attribute = CUBLASLT_MATMUL_DESC_FILL_MODE; }, invalid,
      "fill mode" },
    { "row-major order", [](Call* c) { c->order = CUBLASLT_ORDER_ROW; }, unsupported, "order 1" },
    { "batch", [](Call* c) { c->batch_count = 2; }, unsupported, "batch of 2" },
    { "A aligned to 8", [](Call* c) { c->align[A] = 8; }, unsupported, "A aligned to 8" },
    { "D aligned to 24", [](Call* c) { c->align[D] = 24; }, invalid, "no power of 2" },
    { "B aligned to 0", [](Call* c) { c->align[B] = 0; }, invalid, "no power of 2" },
    { "search mode", [](Call* c) { c->search_mode = 1; }, unsupported, "search mode 1" },
    { "no result wanted", [](Call* c) { c->requested = 0; }, invalid, "0 algorithms requested" },
};

// Broken after the heuristic: the algorithm is there, but not for this call.
static const Rule rules_of_matmul[] = {
    { "A at 8", [](Call* c) { c->data[A] += 8; }, invalid, "A is at" },
    { "B at 8", [](Call* c) { c->data[B] += 8; }, invalid, "B is at" },
    { "C at 8", [](Call* c) { c->data[C] = c->workspace + 8; }, invalid, "C is at" },
    { "D at 8", [](Call* c) { c->data[D] += 8; c->data[C] = NULL; }, invalid, "D is at" },
    { "A at 8, no algorithm", [](Call* c) { c->data[A] += 8; c->no_algorithm = 1; }, invalid,
      "no multiple of 16" },
    { "A NULL", [](Call* c) { c->data[A] = NULL; }, invalid, "or beta is NULL" },
    { "B NULL", [](Call* c) { c->data[B] = NULL; }, invalid, "or beta is NULL" },
    { "D NULL", [](Call* c) { c->data[D] = NULL; }, invalid, "or beta is NULL" },
    { "alpha NULL", [](Call* c) { c->alpha_is_null = 1; }, invalid, "or beta is NULL" },
    { "beta NULL", [](Call* c) { c->beta_is_null = 1; }, invalid, "or beta is NULL" },
    { "C NULL, beta 1", [](Call* c) { c->data[C] = NULL; c->beta = 1.0f; }, invalid, "C is NULL" },
    { "workspace at 128", [](Call* c) { c->workspace += 128; }, invalid, "multiple of 256" },
    { "workspace too small", [](Call* c) { c->workspace_bytes = 65535; }, invalid,
      "65536 bytes of workspace, there are 65535" },
    { "no workspace", [](Call* c) { c->workspace = NULL; }, invalid, "bytes of workspace" },
    { "workspace in A", [](Call* c) { c->workspace = c->data[A]; }, invalid,
      "workspace overlaps A" },
    { "workspace in scales", [](Call* c) { c->workspace = c->memory[4]; }, invalid,
      "workspace overlaps the scales of B" },
    { "workspace in D", [](Call* c) { c->workspace = c->data[D]; }, invalid,
      "workspace overlaps D" },
    { "D in B", [](Call* c) { c->data[D] = c->data[C] = c->data[B]; }, invalid, "D overlaps B" },
    { "C and D overlap", [](Call* c) { c->data[C] = c->data[D] + 16; }, invalid,
      "C and D overlap" },
    { "another n", [](Call* c) { c->cols[B] = c->cols[C] = c->cols[D] = 23; }, invalid,
      "(m 16, n 24, k 96) than this one (16, 23, 96)" },
    { "another lda", [](Call* c) { c->ld[A] = 128; }, invalid, "another product" },
    { "another pointer mode", [](Call* c) { c->pointer_mode = 1; }, invalid, "another product" },
    { "another D", [](Call* c) { c->type[C] = c->type[D] = CUDA_R_32F; }, invalid,
      "another product" },
    { "algorithm of nothing", [](Call* c) { memset(&c->found, 0, sizeof(c->found)); }, invalid,
      "not from the heuristic" },
    { "scales NULL", [](Call* c) { c->scales[0] = NULL; }, invalid, "pointer of A is NULL" },
    { "scale NaN", [](Call* c) { c->memory[3][0] = 0x7f; }, invalid,
      "scale of A for row 0 of 16, block 0 of 6 is 0x7f: NaN" },
    { "scale negative", [](Call* c) { c->memory[4][16] = (char)0x81; }, invalid,
      "scale of B for row 1 of 24, block 0 of 6 is 0x81: bit 7" },
    { "padding of rows", [](Call* c) { c->memory[3][4] = 1; }, invalid,
      "scale of A for row 32 of 16, block 0 of 6 is 0x01: padding" },
    { "padding of blocks", [](Call* c) { c->memory[3][514] = 1; }, invalid,
      "scale of A for row 0 of 16, block 6 of 6 is 0x01: padding" },
    { "padding at the end", [](Call* c) { c->memory[4][1023] = 1; }, invalid,
      "scale of B for row 127 of 24, block 7 of 6 is 0x01: padding" },
};

// The same as the first, of a product of BF16.
static const Rule rules_of_plain[] = {
    { "FP32 to BF16", [](Call* c) { c->type[A] = c->type[B] = CUDA_R_32F; }, unsupported,
      "A and B of type 0 do not go with C of type 14" },
    { "BF16 to FP16", [](Call* c) { c->type[C] = c->type[D] = CUDA_R_16F; }, unsupported,
      "do not go with C of type 2" },
    { "C FP32, D BF16", [](Call* c) { c->type[C] = CUDA_R_32F; }, unsupported,
      "do not go with C of type 0" },
    { "epilogue GELU", [](Call* c) { c->epilogue = CUBLASLT_EPILOGUE_GELU; }, unsupported,
      "epilogue 32" },
    { "bias FP32, D BF16", [](Call* c) { c->epilogue = CUBLASLT_EPILOGUE_BIAS;
                                         c->bias_type = CUDA_R_32F; }, unsupported,
      "the bias has type 0, D has 14" },
};

// Of one rule: refused with that status and text, nothing returned or computed, D as it was.
static int rule_holds(const Rule* rule, uint32_t type, int at_heuristic, cublasLtHandle_t handle) {
    Call c = call_make(16, 24, 96, type, CUDA_R_16BF, 1, 0, 0);
    if (type == CUDA_R_4F_E2M1) { fill_fp4(&c); }
    memset(c.data[D], 0x5a, c.bytes[2]);
    char* before = aligned_memory(c.bytes[2]);
    memcpy(before, c.data[D], c.bytes[2]);
    long calls = cublaslt_model_fp4_calls();
    int good = 1;
    call_heuristic(&c, handle);             // an algorithm of the unbroken product
    good &= c.heuristic == CUBLAS_STATUS_SUCCESS && c.returned == 1 && c.complaint[0] == 0;
    cublasLtMatmulHeuristicResult_t found = c.found;
    rule->change(&c);
    if (at_heuristic) {
        call_heuristic(&c, handle);
        good &= c.heuristic == rule->status && c.returned == 0;
        c.found = found;
    } else {
        call_matmul(&c, handle);
        good &= c.matmul == rule->status;
    }
    good &= strstr(c.complaint, rule->complaint) != NULL;
    good &= memcmp(before, c.memory[2], c.bytes[2]) == 0 && cublaslt_model_fp4_calls() == calls;
    if (!good) {
        printf("     %s: %s, \"%s\"\n", rule->name,
               cublasLtGetStatusName(at_heuristic ? c.heuristic : c.matmul), c.complaint);
    }
    free(before);
    call_free(&c);
    return good;
}

static void test_rules_of(const char* name, const Rule* rules, size_t count, uint32_t type,
                          int at_heuristic, cublasLtHandle_t handle) {
    size_t held = 0;
    for (size_t i = 0; i < count; i++) {
        held += (size_t)rule_holds(&rules[i], type, at_heuristic, handle);
    }
    report(held == count, name, "%zu of %zu hold", held, count);
}

// Fails with: any one refusal taken out, or any one part of a condition with "or" (each was), but
// for: planes, batch modes, objects that are dead or foreign and not NULL.
static void test_rules(cublasLtHandle_t handle) {
    static const int pointers[] = {
        CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, CUBLASLT_MATMUL_DESC_D_SCALE_POINTER,
        CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER, CUBLASLT_MATMUL_DESC_AMAX_D_POINTER,
        CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER };
    static const int modes[] = {
        CUBLASLT_MATMUL_DESC_C_SCALE_MODE, CUBLASLT_MATMUL_DESC_D_SCALE_MODE,
        CUBLASLT_MATMUL_DESC_D_OUT_SCALE_MODE,
        CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE };
    size_t refused = 0, tried = 0;
    for (int fp4 = 0; fp4 < 2; fp4++) {         // those of A and B belong to an FP4 product
        Call c = call_make(16, 24, 96, fp4 ? CUDA_R_4F_E2M1 : CUDA_R_16BF, CUDA_R_16BF, 1, 0, 0);
        for (size_t i = 0; i < COUNT(pointers) + COUNT(modes); i++) {
            int is_mode = i >= COUNT(pointers);
            size_t at = is_mode ? i - COUNT(pointers) : i;
            if (fp4 && at >= (is_mode ? COUNT(modes) : COUNT(pointers)) - 2) { continue; }
            c.pointer_attribute = is_mode ? 0 : pointers[at];
            c.int_attribute = is_mode ? modes[at] : 0;
            call_heuristic(&c, handle);
            refused += c.heuristic == invalid && strstr(c.complaint, "narrow") != NULL;
            tried++;
        }
        call_free(&c);
    }
    report(refused == tried, "scales of wide types", "%zu of %zu attributes refused", refused,
           tried);
    test_rules_of("rules of the heuristic", rules_of_heuristic, COUNT(rules_of_heuristic),
                  CUDA_R_4F_E2M1, 1, handle);
    test_rules_of("rules of the product", rules_of_matmul, COUNT(rules_of_matmul), CUDA_R_4F_E2M1,
                  0, handle);
    test_rules_of("rules of bf16 products", rules_of_plain, COUNT(rules_of_plain), CUDA_R_16BF, 1,
                  handle);
    Call c = call_make(16, 24, 96, CUDA_R_16BF, CUDA_R_16BF, 1, 0, 0);
    c.epilogue = CUBLASLT_EPILOGUE_BIAS;
    c.bias = c.memory[3];
    int good = call_run(&c, handle);
    c.bias = c.memory[3] + 8;
    call_matmul(&c, handle);
    good &= c.matmul == invalid && strstr(c.complaint, "the heuristic saw 16-byte") != NULL;
    c.bias = NULL;
    call_matmul(&c, handle);
    good &= c.matmul == invalid && strstr(c.complaint, "the bias is at") != NULL;
    c.bias = c.memory[3];
    c.align[B] = 256;
    good &= call_run(&c, handle);
    c.data[B] += 16;
    call_matmul(&c, handle);
    good &= c.matmul == invalid && strstr(c.complaint, "256-byte alignment was promised") != NULL;
    report(good, "alignments", "bias as the heuristic saw it, B as the preference promised");
    call_free(&c);
}

// What is allowed although it looks odd, and what depends on the GPU.
// Fails with: FP4 on capability 9; FP32 D where it is switched off; the workspace overwritten past
// its end ("left behind").
static void test_options(cublasLtHandle_t handle) {
    Call c = call_make(16, 24, 64, CUDA_R_4F_E2M1, CUDA_R_32F, 1, 0, 0);
    fill_fp4(&c);
    static const struct { int major, minor, fp32_output, good; } gpus[] = {
        { 9, 0, 1, 0 }, { 8, 9, 1, 0 }, { 10, 0, 1, 1 }, { 10, 3, 1, 1 }, { 12, 0, 1, 1 },
        { 12, 0, 0, 0 } };
    int good = 1;
    for (size_t i = 0; i < COUNT(gpus); i++) {
        cublaslt_model_capability(gpus[i].major, gpus[i].minor);
        cublaslt_model_fp32_output(gpus[i].fp32_output);
        good &= call_run(&c, handle) == gpus[i].good;
        good &= gpus[i].good || (c.heuristic == unsupported && c.returned == 0 && c.complaint[0]);
    }
    cublaslt_model_reset();
    report(good, "capabilities", "%zu GPUs", COUNT(gpus));

    c.data[C] = NULL;
    int without_C = call_run(&c, handle);
    c.pointer_mode = CUBLASLT_POINTER_MODE_DEVICE;
    int without_C_on_device = call_run(&c, handle);
    c.data[C] = c.data[D];
    c.alpha_pointer = &two_floats[0];
    c.beta_pointer = &two_floats[1];
    int on_device = call_run(&c, handle);
    c.no_algorithm = 1;
    c.workspace = NULL;
    c.workspace_bytes = 0;
    call_matmul(&c, handle);
    report(without_C && !without_C_on_device && on_device && c.matmul == CUBLAS_STATUS_SUCCESS,
           "odd but allowed", "C NULL with beta 0 on the host; no algorithm");
    const char* work = c.memory[5];
    report(work[0] == (char)0xff && work[65535] == (char)0xff, "workspace",
           "both ends overwritten");
    c.memory[3][0] = 0x7f;
    cublaslt_model_nan_scales(1);
    c.data[A][0] = 0x11;
    c.data[B][0] = 0x11;
    call_matmul(&c, handle);
    report(c.matmul == CUBLAS_STATUS_SUCCESS && isnan(((float*)c.data[D])[0]) &&
           !isnan(((float*)c.data[D])[1]), "nan scale", "when allowed, its row of D is NaN");
    cublaslt_model_reset();
    call_free(&c);
}

// Every address on the wrong side is refused: those of the call on the host, or alpha on the device
// when the host is to read it. Fails with: one of them not looked at; the pointer mode ignored.
static const void* on_other_side;

static int address_is_device(const void* address) { return address != on_other_side; }

static void test_memory(cublasLtHandle_t handle) {
    Call c = call_make(16, 24, 64, CUDA_R_4F_E2M1, CUDA_R_32F, 1, 0, 0);
    fill_fp4(&c);
    c.pointer_mode = CUBLASLT_POINTER_MODE_DEVICE;
    c.alpha_pointer = &two_floats[0];
    c.beta_pointer = &two_floats[1];
    cublaslt_model_memory(address_is_device);
    on_other_side = NULL;
    int good = call_run(&c, handle);
    const void* const addresses[] = { c.data[A], c.data[B], c.data[D], c.workspace, c.scales[0],
                                      c.scales[1], c.alpha_pointer, c.beta_pointer };
    for (size_t i = 0; i < COUNT(addresses); i++) {
        on_other_side = addresses[i];
        call_matmul(&c, handle);
        good &= c.matmul == invalid && strstr(c.complaint, "device memory") != NULL;
    }
    on_other_side = NULL;
    c.pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    good &= !call_run(&c, handle) && strstr(c.complaint, "alpha has to be in host memory") != NULL;
    cublaslt_model_memory(NULL);
    report(good, "memory", "%zu addresses on the wrong side, and alpha, refused",
           COUNT(addresses));
    call_free(&c);
}

// Every fault shows: in the status, or as another D than without it. Products of BF16 have none.
// Fails with: alpha ignored in BF16 products too.
static void test_faults(cublasLtHandle_t handle) {
    int shown = 0, plain_changed = 0;
    for (int fault = 0; fault < NUM_CUBLASLT_MODEL_FAULTS; fault++) {
        cublaslt_model_reset();
        Call c = call_make(160, 24, 128, CUDA_R_4F_E2M1, CUDA_R_32F, 1, 0, 0);
        fill_fp4(&c);
        fill_wide(c.data[D], CUDA_R_32F, c.ld[D] * c.n);
        c.alpha = 0.25f;
        c.beta = fault == CUBLASLT_MODEL_BETA_ONE ? 0.0f : 1.0f;
        char* expected = expected_bytes(&c);
        cublaslt_model_fault(fault);
        int ran = call_run(&c, handle);
        int differs = memcmp(expected, c.data[D], c.bytes[2]) != 0;
        int good = ran && differs;
        // FP4 has one type; test_gemm_fp8.cu and test_self_test.cu swap those of FP8
        if (fault == CUBLASLT_MODEL_NO_FAULT || fault == CUBLASLT_MODEL_TYPES_SWAPPED) {
            good = ran && !differs;
        }
        if (fault == CUBLASLT_MODEL_EXECUTION_FAILED) {
            good = c.matmul == CUBLAS_STATUS_EXECUTION_FAILED;
        }
        if (fault == CUBLASLT_MODEL_NOT_SUPPORTED) { good = c.heuristic == unsupported; }
        if (fault == CUBLASLT_MODEL_NO_ALGORITHM) {
            good = c.heuristic == CUBLAS_STATUS_SUCCESS && c.returned == 0;
        }
        if (!good) { printf("     fault %d does not show\n", fault); }
        shown += good;
        free(expected);
        call_free(&c);

        Call plain = call_make(16, 8, 32, CUDA_R_16BF, CUDA_R_16BF, 1, 0, 0);
        fill_wide(plain.data[A], CUDA_R_16BF, plain.ld[A] * plain.cols[A]);
        fill_wide(plain.data[B], CUDA_R_16BF, plain.ld[B] * plain.cols[B]);
        plain.alpha = plain.beta = 0.5f;
        fill_wide(plain.data[D], CUDA_R_16BF, plain.ld[D] * plain.n);
        expected = expected_bytes(&plain);
        plain_changed += !call_run(&plain, handle) ||
                         memcmp(expected, plain.data[D], plain.bytes[2]) != 0;
        free(expected);
        call_free(&plain);
    }
    cublaslt_model_reset();
    report(shown == NUM_CUBLASLT_MODEL_FAULTS && plain_changed == 0, "faults",
           "%d of %d show; %d change BF16 products", shown, NUM_CUBLASLT_MODEL_FAULTS,
           plain_changed);
}

// ---------------------------------------------------------------------------------------------
// The descriptors next to those of the library, which makes them without a GPU

template <typename Handle, typename Name>
using Getter = cublasStatus_t (*)(Handle, Name, void*, size_t, size_t*);

// How many attributes differ in being known, in size or in the value at the start. Not compared:
// `unnamed`, which the library knows and its header does not, and `newer`, if the library lacks it.
template <typename Handle, typename Name>
static int attributes_differ(Handle ours, Getter<Handle, Name> get_ours, Handle theirs,
                             Getter<Handle, Name> get_theirs, int unnamed, int newer,
                             const char* what) {
    int differ = 0;
    for (int i = 0; i < 50; i++) {
        if (i == unnamed) { continue; }
        size_t size_ours = 0, size_theirs = 0;
        uint64_t value_ours[8] = { 0 }, value_theirs[8] = { 0 };
        cublasStatus_t here = get_ours(ours, (Name)i, NULL, 0, &size_ours);
        cublasStatus_t there = get_theirs(theirs, (Name)i, NULL, 0, &size_theirs);
        if (i == newer && there != CUBLAS_STATUS_SUCCESS) { continue; }
        int same = here == there && size_ours == size_theirs;
        if (same && here == CUBLAS_STATUS_SUCCESS) {
            here = get_ours(ours, (Name)i, value_ours, size_ours, NULL);
            there = get_theirs(theirs, (Name)i, value_theirs, size_theirs, NULL);
            same = here == there && memcmp(value_ours, value_theirs, sizeof(value_ours)) == 0;
        }
        if (!same) { printf("     %s attribute %d differs\n", what, i); }
        differ += !same;
    }
    return differ;
}

#define TEXT_OF(number) #number
#define NAME_OF(major) "libcublasLt.so." TEXT_OF(major)
#define LIBRARY(name) decltype(&name) lib_##name = (decltype(&name))dlsym(library, #name)

// Fails with: a size of 8 for the transposition; 0 for the bias type at the start; an alignment of
// 16 at the start; a text of a status changed; an attribute taken from a buffer of another size.
static void test_library(void) {
    void* library = dlopen(NAME_OF(CUBLAS_VER_MAJOR), RTLD_LAZY | RTLD_LOCAL);
    if (library == NULL) {
        report_skip("the library's descriptors", "libcublasLt does not load here");
        return;
    }
    LIBRARY(cublasLtGetVersion);
    LIBRARY(cublasLtGetStatusName);
    LIBRARY(cublasLtGetStatusString);
    LIBRARY(cublasLtMatmulDescCreate);
    LIBRARY(cublasLtMatmulDescDestroy);
    LIBRARY(cublasLtMatmulDescGetAttribute);
    LIBRARY(cublasLtMatmulDescSetAttribute);
    LIBRARY(cublasLtMatrixLayoutCreate);
    LIBRARY(cublasLtMatrixLayoutDestroy);
    LIBRARY(cublasLtMatrixLayoutGetAttribute);
    LIBRARY(cublasLtMatmulPreferenceCreate);
    LIBRARY(cublasLtMatmulPreferenceDestroy);
    LIBRARY(cublasLtMatmulPreferenceGetAttribute);
    if (lib_cublasLtGetVersion() != cublasLtGetVersion()) {
        report_skip("the library's descriptors", "libcublasLt and its header differ in version");
        return;
    }
    int differ = 0;
    for (int i = 0; i < 20; i++) {
        differ += strcmp(cublasLtGetStatusName((cublasStatus_t)i),
                         lib_cublasLtGetStatusName((cublasStatus_t)i)) != 0 ||
                  strcmp(cublasLtGetStatusString((cublasStatus_t)i),
                         lib_cublasLtGetStatusString((cublasStatus_t)i)) != 0;
    }
    report(differ == 0, "status texts", "20, %d differ from the library's", differ);

    cublasLtMatmulDesc_t op[2];
    cublasLtMatrixLayout_t layout[2];
    cublasLtMatmulPreference_t wish[2];
    must(cublasLtMatmulDescCreate(&op[0], CUBLAS_COMPUTE_32F, CUDA_R_32F));
    must(lib_cublasLtMatmulDescCreate(&op[1], CUBLAS_COMPUTE_32F, CUDA_R_32F));
    must(cublasLtMatrixLayoutCreate(&layout[0], CUDA_R_4F_E2M1, 64, 32, 96));
    must(lib_cublasLtMatrixLayoutCreate(&layout[1], CUDA_R_4F_E2M1, 64, 32, 96));
    must(cublasLtMatmulPreferenceCreate(&wish[0]));
    must(lib_cublasLtMatmulPreferenceCreate(&wish[1]));
    differ = attributes_differ(op[0], cublasLtMatmulDescGetAttribute, op[1],
                               lib_cublasLtMatmulDescGetAttribute, 16, 38, "matmul");
    differ += attributes_differ(layout[0], cublasLtMatrixLayoutGetAttribute, layout[1],
                                lib_cublasLtMatrixLayoutGetAttribute, -1, 8, "layout");
    differ += attributes_differ(wish[0], cublasLtMatmulPreferenceGetAttribute, wish[1],
                                lib_cublasLtMatmulPreferenceGetAttribute, -1, -1,
                                "preference");
    report(differ == 0, "attributes", "sizes and first values: %d differ from the library's",
           differ);

    // What the library takes and refuses in an attribute: sizes, not values.
    static const struct { int value_is_null; size_t size; } tries[] = {
        { 0, 4 }, { 0, 1 }, { 0, 8 }, { 1, 4 }, { 0, 0 } };
    differ = 0;
    for (size_t i = 0; i < COUNT(tries); i++) {
        int64_t value = 77;
        const void* from = tries[i].value_is_null ? NULL : &value;
        differ += cublasLtMatmulDescSetAttribute(op[0], CUBLASLT_MATMUL_DESC_TRANSA, from,
                                                 tries[i].size) !=
                  lib_cublasLtMatmulDescSetAttribute(op[1], CUBLASLT_MATMUL_DESC_TRANSA, from,
                                                     tries[i].size);
    }
    report(differ == 0, "setting an attribute", "%zu tries, %d differ from the library's",
           COUNT(tries), differ);
    must(cublasLtMatmulDescDestroy(op[0]));
    must(lib_cublasLtMatmulDescDestroy(op[1]));
    must(cublasLtMatrixLayoutDestroy(layout[0]));
    must(lib_cublasLtMatrixLayoutDestroy(layout[1]));
    must(cublasLtMatmulPreferenceDestroy(wish[0]));
    must(lib_cublasLtMatmulPreferenceDestroy(wish[1]));
}

// Objects: used before their time, missing, foreign; and counted.
// Fails with: the tag of an object not looked at; objects not counted down.
static void test_objects(void) {
    cublasLtHandle_t handle;
    cublasLtMatmulDescOpaque_t on_stack;
    int32_t value = CUBLAS_OP_T;
    must(cublasLtCreate(&handle));
    memset(&on_stack, 0, sizeof(on_stack));
    int good = cublaslt_model_objects() == 1;
    good &= cublasLtMatmulDescSetAttribute(&on_stack, CUBLASLT_MATMUL_DESC_TRANSA, &value,
                                           sizeof(value)) == invalid;
    must(cublasLtMatmulDescInit(&on_stack, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    must(cublasLtMatmulDescSetAttribute(&on_stack, CUBLASLT_MATMUL_DESC_TRANSA, &value,
                                        sizeof(value)));
    value = 0;
    must(cublasLtMatmulDescGetAttribute(&on_stack, CUBLASLT_MATMUL_DESC_TRANSA, &value,
                                        sizeof(value), NULL));
    good &= value == CUBLAS_OP_T && cublaslt_model_objects() == 1;
    int returned;
    good &= cublasLtMatmulAlgoGetHeuristic(NULL, &on_stack, NULL, NULL, NULL, NULL, NULL, 1, NULL,
                                           &returned) == CUBLAS_STATUS_NOT_INITIALIZED;
    cublasLtMatrixLayoutOpaque_t layout;
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasLtMatmulHeuristicResult_t found;
    must(cublasLtMatrixLayoutInit(&layout, CUDA_R_32F, 8, 8, 8));
    must(cublasLtMatmulPreferenceInit(&wish));
    cublasLtMatmulDesc_t ops[2] = { &on_stack, NULL };
    cublasLtMatrixLayout_t layouts[2] = { &layout, NULL };
    cublasLtMatmulPreference_t wishes[2] = { &wish, NULL };
    static const char* const complaints[8] = { "", "not a living matmul", "not a living layout",
                                               "", "not a living preference", "", "", "" };
    static const int one_missing[4] = { 0, 1, 2, 4 };
    for (int i = 0; i < 4; i++) {
        int missing = one_missing[i];
        cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
            handle, ops[missing & 1], layouts[0], layouts[0], layouts[missing >> 1 & 1],
            layouts[0], wishes[missing >> 2 & 1], 1, &found, &returned);
        good &= status == (missing ? invalid : CUBLAS_STATUS_SUCCESS) && returned == !missing;
        good &= strstr(cublaslt_model_complaint(), complaints[missing]) != NULL;
    }
    float one = 1.0f;
    cublasLtMatrixLayout_t l = &layout;
    good &= cublasLtMatmulAlgoGetHeuristic(handle, &on_stack, l, l, l, l, &wish, 1, NULL,
                                           &returned) == invalid &&
            cublasLtMatmulAlgoGetHeuristic(handle, &on_stack, l, l, l, l, &wish, 1, &found,
                                           NULL) == invalid;
    good &= cublasLtMatmul(NULL, &on_stack, &one, &one, l, &one, l, &one, &one, l, &one, l, NULL,
                           NULL, 0, NULL) == CUBLAS_STATUS_NOT_INITIALIZED;
    // Misuse of what makes, reads and destroys objects.
    memset(&on_stack, 0, sizeof(on_stack));
    good &= cublasLtCreate(NULL) == invalid && cublasLtMatmulDescDestroy(&on_stack) == invalid &&
            cublasLtMatmulDescSetAttribute(NULL, CUBLASLT_MATMUL_DESC_TRANSA, &value, 4) ==
            invalid &&
            cublasLtMatmulPreferenceInit_internal(NULL, 64) == CUBLAS_STATUS_ALLOC_FAILED &&
            cublasLtMatmulDescCreate(NULL, CUBLAS_COMPUTE_32F, CUDA_R_32F) == invalid &&
            cublasLtMatrixLayoutCreate(NULL, CUDA_R_32F, 8, 8, 8) == invalid &&
            cublasLtMatmulPreferenceCreate(NULL) == invalid &&
            cublasLtDestroy(NULL) == CUBLAS_STATUS_NOT_INITIALIZED &&
            cublasLtMatmulPreferenceInit_internal(&wish, 8) == CUBLAS_STATUS_ALLOC_FAILED &&
            cublasLtMatrixLayoutGetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_LD, &one, 4, NULL) ==
            invalid &&
            cublasLtMatrixLayoutGetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_LD, NULL, 0, NULL) ==
            invalid;
    must(cublasLtDestroy(handle));
    report(good && cublaslt_model_objects() == 0, "objects", "%ld living at the end",
           cublaslt_model_objects());
}

int main(void) {
    test_numbers();
    test_layout();
    test_objects();
    cublasLtHandle_t handle;
    must(cublasLtCreate(&handle));
    test_by_hand(handle);
    test_fp4_products(handle);
    test_plain_products(handle);
    test_rules(handle);
    test_options(handle);
    test_memory(handle);
    test_faults(handle);
    must(cublasLtDestroy(handle));
    report(cublaslt_model_objects() == 0 && gap_bytes_touched == 0, "left behind",
           "%ld objects; %zu bytes written outside of D and the workspace",
           cublaslt_model_objects(), gap_bytes_touched);
    test_library();
    return report_status();
}

#else
int main(void) {
    report_skip("cublaslt model", "no CUDA toolkit (12.8 or newer)");
    return report_status();
}
#endif
