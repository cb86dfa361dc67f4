/*
Blackwell's instructions that convert FP32 to E2M1, and the probe that decides at start-up whether
they may be used.

    cvt.rn.satfinite.e2m1x2.f32     to nearest        sm_100a, sm_103a, sm_120a, sm_121a
    cvt.rs.satfinite.e2m1x4.f32     stochastically    sm_100a, sm_103a             [PTX ISA, cvt]

The definition of both roundings is e2m1_from_float and e2m1_from_float_stochastic in nvfp4.h; the
instructions are a faster way to the same codes, or they are not used. What the PTX ISA leaves open
of the stochastic one, which byte of its random bits serves which input and what becomes of the
digits behind the eighth, is not assumed here: the probe finds the first by trying and checks the
second in every case.

This is the only file that asks for which architecture it is compiled. Where an instruction is
missing its function returns 0, a constant, and the caller does the arithmetic.

Compiled for all five architectures and tested against models of the instructions; never yet run on
a GPU that has them.
*/
#ifndef LLMC_E2M1_SM100A_CUH
#define LLMC_E2M1_SM100A_CUH

#include "cuda_common.cuh"
#include "nvfp4.h"

// Which conversions to E2M1 use the GPU's instruction; all 0: arithmetic (nvfp4.h), which is always
// right. `order` is the selector of __byte_perm that brings random bytes in the order of their
// elements, lowest first, into the order of the stochastic instruction: its hexadecimal digit k,
// from the right, is the element that byte k of the instruction's random bits serves.
typedef struct { int nearest, stochastic; uint32_t order; } E2m1Conversion;

#define E2M1_ORDER_OF_ELEMENTS 0x3210u

static inline E2m1Conversion e2m1_arithmetic(void) {
    E2m1Conversion conversion;
    conversion.nearest = conversion.stochastic = 0;
    conversion.order = E2M1_ORDER_OF_ELEMENTS;
    return conversion;
}

// ---------------------------------------------------------------------------------------------
// The instructions
//
// e2m1x4_nearest, e2m1x4_stochastic: *codes = the codes of x[0..3], x[0] in the lowest nibble; byte
// j of `random`, from the low end, belongs to x[j]. Return 1; or 0, *codes untouched, where the
// instruction is missing. The macros are those that nvcc defines for the targets with suffix a.

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
#define E2M1_HAS_NEAREST 1
#define E2M1_HAS_STOCHASTIC 1
#elif defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL)
#define E2M1_HAS_NEAREST 1
#define E2M1_HAS_STOCHASTIC 0
#else
#define E2M1_HAS_NEAREST 0
#define E2M1_HAS_STOCHASTIC 0
#endif

// The first operand of each instruction goes to the upper nibble.
#if E2M1_HAS_NEAREST
__device__ static inline int e2m1x4_nearest(uint16_t* codes, const float* x /* (4) */) {
    asm("{ .reg .b8 low, high;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 low, %2, %1;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 high, %4, %3;\n\t"
        "mov.b16 %0, {low, high}; }"
        : "=h"(*codes) : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]));
    return 1;
}
#else
__device__ static inline int e2m1x4_nearest(uint16_t*, const float*) { return 0; }
#endif

#if E2M1_HAS_STOCHASTIC
__device__ static inline int e2m1x4_stochastic(uint16_t* codes, const float* x /* (4) */,
                                               uint32_t random, uint32_t order) {
    asm("cvt.rs.satfinite.e2m1x4.f32 %0, {%1, %2, %3, %4}, %5;"
        : "=h"(*codes)
        : "f"(x[3]), "f"(x[2]), "f"(x[1]), "f"(x[0]), "r"(__byte_perm(random, 0, order)));
    return 1;
}
#else
__device__ static inline int e2m1x4_stochastic(uint16_t*, const float*, uint32_t, uint32_t) {
    return 0;
}
#endif

// ---------------------------------------------------------------------------------------------
// Running an instruction on inputs of the host's choice

// codes (n), four to a word, = what the instruction for this rounding makes of x (n, 4) and random
// (n) under the order. Returns whether there is one; if not, codes are undefined. A test puts a
// model of the instruction in place of e2m1_run.
typedef int (*E2m1Run)(uint16_t* codes, const float* x, const uint32_t* random, int n,
                       int stochastic, uint32_t order, cudaStream_t stream);

static __global__ void e2m1_run_kernel(uint16_t* codes, int* found, const float* x,
                                       const uint32_t* random, int n, int stochastic,
                                       uint32_t order) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) { return; }
    float four[4];
    UNROLL
    for (int lane = 0; lane < 4; lane++) { four[lane] = x[4 * i + lane]; }
    uint16_t result = 0;
    int done = stochastic ? e2m1x4_stochastic(&result, four, random[i], order)
                          : e2m1x4_nearest(&result, four);
    codes[i] = result;
    if (i == 0) { *found = done; }
}

static inline int e2m1_run(uint16_t* codes, const float* x, const uint32_t* random, int n,
                           int stochastic, uint32_t order, cudaStream_t stream) {
    size_t count = (size_t)n;
    float* x_device = (float*)cuda_malloc(count * 4 * sizeof(float), "the conversion probe");
    uint32_t* random_device = (uint32_t*)cuda_malloc(count * 4, "the conversion probe");
    uint16_t* codes_device = (uint16_t*)cuda_malloc(count * 2, "the conversion probe");
    int* found_device = (int*)cuda_malloc(sizeof(int), "the conversion probe");
    int found = 0;
    cudaCheck(cudaMemcpyAsync(x_device, x, count * 4 * sizeof(float), cudaMemcpyHostToDevice,
                              stream));
    cudaCheck(cudaMemcpyAsync(random_device, random, count * 4, cudaMemcpyHostToDevice, stream));
    e2m1_run_kernel<<<CEIL_DIV(n, 256), 256, 0, stream>>>(codes_device, found_device, x_device,
                                                          random_device, n, stochastic, order);
    cudaCheck(cudaGetLastError());
    cudaCheck(cudaMemcpyAsync(codes, codes_device, count * 2, cudaMemcpyDeviceToHost, stream));
    cudaCheck(cudaMemcpyAsync(&found, found_device, sizeof(int), cudaMemcpyDeviceToHost, stream));
    cudaCheck(cudaStreamSynchronize(stream));
    cudaCheck(cudaFree(x_device));
    cudaCheck(cudaFree(random_device));
    cudaCheck(cudaFree(codes_device));
    cudaCheck(cudaFree(found_device));
    return found;
}

// ---------------------------------------------------------------------------------------------
// The cases

typedef struct {
    float* x;
    uint8_t* random;
    int count, capacity;
} E2m1Cases;

#define E2M1_MOST_CASES (5 << 18)

static inline E2m1Cases e2m1_cases_alloc(void) {
    E2m1Cases cases;
    cases.count = 0;
    cases.capacity = E2M1_MOST_CASES;
    cases.x = (float*)xmalloc((size_t)cases.capacity * sizeof(float), "the conversion probe");
    cases.random = (uint8_t*)xmalloc((size_t)cases.capacity, "the conversion probe");
    return cases;
}

static inline void e2m1_cases_free(E2m1Cases* cases) {
    free(cases->x);
    free(cases->random);
}

// x and -x with random bytes first, first + 1, .. , `bytes` of them, modulo 256
static inline void e2m1_cases_add(E2m1Cases* cases, float x, int first, int bytes) {
    check(cases->count + 2 * bytes <= cases->capacity, "more than %d cases", cases->capacity);
    for (int i = 0; i < 2 * bytes; i++) {
        cases->x[cases->count] = i < bytes ? x : -x;
        cases->random[cases->count++] = (uint8_t)(first + i % bytes);
    }
}

// Values where something special happens or might: 0, subnormals, 6 and above, Inf, NaN; and 17
// neighbours of each E2M1 value and of each midpoint between two. With every random byte, or with
// one where the rounding draws none.
static inline void e2m1_cases_add_special(E2m1Cases* cases, int bytes) {
    static const uint32_t bits[] = { 0x00000000u, 0x00000001u, 0x007fffffu, 0x00800000u,
                                     0x1e3ce508u, 0x3a7fffffu, 0x40e00000u, 0x41000000u,
                                     0x4f000000u, 0x5f000000u, 0x7f7fffffu, 0x7f800000u,
                                     0x7f800001u, 0x7fc00000u, 0x7fffffffu };
    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        e2m1_cases_add(cases, bits_float(bits[i]), 0, bytes);
    }
    for (int code = 0; code < 8; code++) {
        float below = e2m1_to_float((uint8_t)code);
        float above = code < 7 ? e2m1_to_float((uint8_t)(code + 1)) : 8.0f;
        for (int ulps = -8; ulps <= 8; ulps++) {
            uint32_t of_value = float_bits(below) + (uint32_t)ulps;     // NaN below 0
            uint32_t of_midpoint = float_bits(0.5f * (below + above)) + (uint32_t)ulps;
            e2m1_cases_add(cases, bits_float(of_value), 0, bytes);
            e2m1_cases_add(cases, bits_float(of_midpoint), 0, bytes);
        }
    }
}

// Each of the 7 intervals between codes in 256 parts; with every random byte, or with one. Then
// three values inside each part, whose digits behind the eighth must not count: with the random
// bytes around the one that just fails to carry.
static inline void e2m1_cases_add_intervals(E2m1Cases* cases, int bytes) {
    for (int code = 0; code < 7; code++) {
        float below = e2m1_to_float((uint8_t)code);
        float part = (e2m1_to_float((uint8_t)(code + 1)) - below) / 256.0f;
        for (int fraction = 0; fraction < 256; fraction++) {
            float x = below + part * (float)fraction;           // exact, as all of these
            float inside[3];
            inside[0] = bits_float(float_bits(x) + 1u);
            inside[1] = x + 0.5f * part;
            inside[2] = bits_float(float_bits(x + part) - 1u);
            e2m1_cases_add(cases, x, 0, bytes);
            for (int i = 0; i < 3; i++) {
                e2m1_cases_add(cases, inside[i], 254 - fraction, bytes < 4 ? bytes : 4);
            }
        }
    }
}

// Random values: half of them in (-8, 8), half of them any bits.
static inline void e2m1_cases_add_sample(E2m1Cases* cases, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        Philox random = philox4x32(7, i, 0, 0, 0);
        float uniform = 8.0f * random_uniform(random.word[0]);
        e2m1_cases_add(cases, uniform, (int)(random.word[1] & 255u), 1);
        e2m1_cases_add(cases, bits_float(random.word[2]), (int)(random.word[3] & 255u), 1);
    }
}

// ---------------------------------------------------------------------------------------------
// The probe

#define E2M1_REASON 160                     // bytes that the reason for one rounding may take
#define E2M1_REASONS (2 * E2M1_REASON + 40) // and the reasons for both

// The order of the random bytes, found by trying: four inputs halfway between two codes, 0xff as
// byte k of the random bits and 0 as the others; the input that rounds up is the one that byte k
// serves. Returns 1; or 0 and why there is no such order.
static inline int e2m1_find_order(uint32_t* order, char* reason, E2m1Run run,
                                  cudaStream_t stream) {
    float x[16];
    uint32_t random[4], served = 0;
    uint16_t codes[4];
    for (int i = 0; i < 16; i++) { x[i] = 0.25f; }
    for (int k = 0; k < 4; k++) { random[k] = 0xffu << (8 * k); }
    run(codes, x, random, 4, 1, E2M1_ORDER_OF_ELEMENTS, stream);
    *order = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t element = 0;
        while (element < 4 && codes[k] != 1u << (4 * element)) { element++; }
        served |= 1u << element;
        *order |= element << (4 * k);
    }
    if (served != 15u) {
        snprintf(reason, E2M1_REASON, "arithmetic, each random byte of the instruction ought to "
                 "round one of four inputs up; the codes are %04x %04x %04x %04x", codes[0],
                 codes[1], codes[2], codes[3]);
    }
    return served == 15u;
}

// Each case passes through all four places of the instruction, together with three others.
static inline int e2m1_case_at(int n, int i, int lane) {
    int at = i + lane * (n / 4 | 1);
    return at < n ? at : at - n;
}

// Runs all cases. Returns whether every result is that of nvfp4.h, and what was found.
static inline int e2m1_compare(const E2m1Cases* cases, int stochastic, uint32_t order, char* reason,
                               E2m1Run run, cudaStream_t stream) {
    int n = cases->count, differ = 0, first = 0, first_code = 0;
    float* x = (float*)xmalloc((size_t)n * 4 * sizeof(float), "the conversion probe");
    uint32_t* random = (uint32_t*)xmalloc((size_t)n * 4, "the conversion probe");
    uint16_t* codes = (uint16_t*)xmalloc((size_t)n * 2, "the conversion probe");
    uint8_t* want = (uint8_t*)xmalloc((size_t)n, "the conversion probe");
    #pragma omp parallel for
    for (int i = 0; i < n; i++) {
        want[i] = stochastic ? e2m1_from_float_stochastic(cases->x[i], cases->random[i])
                             : e2m1_from_float(cases->x[i]);
        random[i] = 0;
        for (int lane = 0; lane < 4; lane++) {
            int at = e2m1_case_at(n, i, lane);
            x[4 * i + lane] = cases->x[at];
            random[i] |= (uint32_t)cases->random[at] << (8 * lane);
        }
    }
    run(codes, x, random, n, stochastic, order, stream);
    for (int i = 0; i < n; i++) {
        for (int lane = 0; lane < 4; lane++) {
            int at = e2m1_case_at(n, i, lane), code = codes[i] >> (4 * lane) & 15;
            if (code != want[at] && differ++ == 0) {
                first = at;
                first_code = code;
            }
        }
    }
    if (differ == 0) {
        snprintf(reason, E2M1_REASON, "instruction, equal to the integer rule in %d cases", 4 * n);
    } else {
        char drawn[48] = "";
        if (stochastic) {
            snprintf(drawn, sizeof(drawn), ", random byte %d (order %04x)", cases->random[first],
                     order);
        }
        snprintf(reason, E2M1_REASON, "arithmetic, the instruction differs in %d of %d cases; "
                 "x = %.9g%s: code %d instead of %d", differ, 4 * n, cases->x[first], drawn,
                 first_code, want[first]);
    }
    free(x);
    free(random);
    free(codes);
    free(want);
    return differ == 0;
}

// Both roundings, each with an instruction or a model of it.
static inline E2m1Conversion e2m1_probe_with(char* reason, size_t reason_size, E2m1Run run,
                                             cudaStream_t stream) {
    E2m1Conversion conversion = e2m1_arithmetic();
    float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    uint32_t random = 0, order = E2M1_ORDER_OF_ELEMENTS;
    uint16_t codes;
    int has_nearest = run(&codes, x, &random, 1, 0, order, stream);
    int has_stochastic = run(&codes, x, &random, 1, 1, order, stream);
    if (!has_nearest && !has_stochastic) {
        snprintf(reason, reason_size, "arithmetic: no conversion instruction on this GPU, or none "
                 "compiled for it");
        return conversion;
    }
    char nearest[E2M1_REASON] = "arithmetic, no such instruction";
    char stochastic[E2M1_REASON] = "arithmetic, no such instruction";
    E2m1Cases cases = e2m1_cases_alloc();
    if (has_nearest) {
        e2m1_cases_add_special(&cases, 1);
        e2m1_cases_add_intervals(&cases, 1);
        e2m1_cases_add_sample(&cases, 1 << 17);
        conversion.nearest = e2m1_compare(&cases, 0, order, nearest, run, stream);
    }
    if (has_stochastic && e2m1_find_order(&order, stochastic, run, stream)) {
        cases.count = 0;
        e2m1_cases_add_special(&cases, 256);
        e2m1_cases_add_intervals(&cases, 256);
        e2m1_cases_add_sample(&cases, 1 << 15);
        conversion.stochastic = e2m1_compare(&cases, 1, order, stochastic, run, stream);
        if (conversion.stochastic) { conversion.order = order; }
    }
    e2m1_cases_free(&cases);
    snprintf(reason, reason_size, "to nearest: %s; stochastic: %s", nearest, stochastic);
    return conversion;
}

// Which instructions of this GPU give the codes of nvfp4.h in every case tried, and in `reason`
// (E2M1_REASONS bytes hold any) what was found, for the start-up printout. Takes well under a tenth
// of a second, and nearly nothing where there is no instruction.
static inline E2m1Conversion e2m1_probe(char* reason, size_t reason_size, cudaStream_t stream) {
    return e2m1_probe_with(reason, reason_size, e2m1_run, stream);
}

#endif
