/*
Blackwell's conversion instructions without a Blackwell GPU: the probe of e2m1_sm100a.cuh against
models of the instructions, right ones and wrong ones, and the kernel of quantize.cuh with models in
place of the instructions. Class: exact. The probe's part needs no GPU; on a GPU that has the
instructions, the real probe runs as well and what it finds is printed.

A model follows the PTX ISA in words of its own: it looks for the code below |x| and shares nothing
with nvfp4.h's encoders. Where kernels run on the CPU, models stand behind the PTX, too, and the
operands of the instructions are looked at with the probe's own kernel.

Faults that made it fail, one at a time. In the probe: the order inverted (element for byte); the
order not used, or not kept; only the first of four places compared, or all but the last; four equal
cases at a time; the interval from 4 to 6 left out; half of the random bytes left out; negative
values left out; special values left out, for either rounding; the values inside the parts left out;
one rounding's finding used for both. In the PTX: the two bytes, the operands of one e2m1x2, two
operands of e2m1x4 exchanged; the order not applied. In quantize.cuh: the first random word for all
fours; the order not passed on; fours in reverse; the flags of the two roundings exchanged;
instructions for both roundings if there is one; never; only if there is one to nearest; never for
the transpose; values not scaled; the transpose with the other's random bytes.
*/
#include "../../llmc/nvfp4.h"
#include "device_check.cuh"

// ---------------------------------------------------------------------------------------------
// Models of the instructions

typedef enum {
    RIGHT, ZEROS, SIGN_DROPPED, ZERO_UNSIGNED, NAN_SIGNED, NAN_ZERO, INFINITY_ZERO, NOT_SATURATED,
    SUBNORMALS_FLUSHED, STEP_TOO_LONG, NIBBLES_SWAPPED, HALVES_SWAPPED, ONE_CASE, ONE_INSIDE,
    TIES_AWAY, TIES_TO_ZERO, TRUNCATES, THROUGH_HALF,
    TO_ZERO, AWAY_FROM_ZERO, TO_NEAREST, STICKY, REST_ROUNDED_UP, CARRIES_LATE, RANDOM_INVERTED,
    RANDOM_REVERSED, SEVEN_RANDOM_BITS, BYTE_USED_TWICE, NUM_FAULTS
} Fault;

// Which of the two instructions a fault spoils.
static const struct { const char* name; int nearest, stochastic; } faults[NUM_FAULTS] = {
    { "right",                      0, 0 },
    { "zeros",                      1, 1 },
    { "sign dropped",               1, 1 },
    { "-0 gives 0",                 1, 1 },
    { "NaN with a sign",            1, 1 },
    { "NaN gives 0",                1, 1 },
    { "Inf gives 0",                1, 1 },
    { "above 7 gives 0",            1, 1 },
    { "below 0.5 gives 0",          1, 1 },
    { "3 to 4 in steps of 2",       1, 1 },
    { "nibbles swapped",            1, 1 },
    { "halves swapped",             1, 1 },
    { "wrong in one case",          1, 1 },
    { "wrong in one between parts", 1, 1 },
    { "ties away from 0",           1, 0 },
    { "ties to 0",                  1, 0 },
    { "nearest truncates",          1, 0 },
    { "nearest by way of FP16",     1, 0 },
    { "stochastic to 0",            0, 1 },
    { "stochastic away from 0",     0, 1 },
    { "stochastic to nearest",      0, 1 },
    { "sticky rest",                0, 1 },
    { "rest rounded up",            0, 1 },
    { "carries at 257",             0, 1 },
    { "random bits inverted",       0, 1 },
    { "random bits reversed",       0, 1 },
    { "7 random bits",              0, 1 },
    { "one byte for two",           0, 1 },
};

// Whether |x| goes up: it stands at `parts` 256ths of the way from one code to the next, and `odd`
// tells whether the lower one is odd.
HOST_DEVICE static inline int model_rounds_up(float parts, int odd, uint32_t random, int stochastic,
                                              Fault fault) {
    int whole = (int)parts, sum;
    if (!stochastic || fault == TO_NEAREST) {
        if (fault == TIES_AWAY) { return parts >= 128.0f; }
        if (fault == TIES_TO_ZERO) { return parts > 128.0f; }
        if (fault == TRUNCATES) { return 0; }
        return parts > 128.0f || (parts == 128.0f && odd);
    }
    if (fault == RANDOM_INVERTED) { random = 255u - random; }
    if (fault == SEVEN_RANDOM_BITS) { random &= 254u; }
    if (fault == RANDOM_REVERSED) {
        uint32_t reversed = 0;
        for (int i = 0; i < 8; i++) { reversed |= (random >> i & 1u) << (7 - i); }
        random = reversed;
    }
    if (fault == STICKY && parts > (float)whole) { whole |= 1; }
    if (fault == REST_ROUNDED_UP && parts > (float)whole) { whole++; }
    sum = whole + (int)random;
    if (fault == TO_ZERO) { return 0; }
    if (fault == AWAY_FROM_ZERO) { return parts > 0.0f; }
    return sum >= (fault == CARRIES_LATE ? 257 : 256);
}

HOST_DEVICE static inline uint32_t model_code(float x, uint32_t random, int stochastic,
                                              Fault fault) {
    uint32_t sign = float_bits(x) >> 31 << 3;
    float a = fabsf(x);
    if (fault == SIGN_DROPPED || (fault == ZERO_UNSIGNED && a == 0.0f)) { sign = 0; }
    if (a != a) { return fault == NAN_ZERO ? 0u : fault == NAN_SIGNED ? 7u | sign : 7u; }
    if (fault == ZEROS || (fault == SUBNORMALS_FLUSHED && a < 0.5f)) { return sign; }
    if (fault == INFINITY_ZERO && a > FLOAT_LARGEST) { return sign; }
    if (fault == NOT_SATURATED && a > 7.0f) { return sign; }
    if (a >= 6.0f) { return 7u | sign; }
    if (fault == THROUGH_HALF && !stochastic && a >= 0.125f) {      // 11 significant bits
        uint32_t bits = float_bits(a);
        a = bits_float((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
    }
    uint32_t code = 0;
    while (code < 7 && a >= e2m1_to_float((uint8_t)(code + 1))) { code++; }
    float low = e2m1_to_float((uint8_t)code), step = e2m1_to_float((uint8_t)(code + 1)) - low;
    if (code == 7) { return 7u | sign; }
    if (fault == STEP_TOO_LONG && code == 5) { step = 2.0f; }
    // exact: a - low has no more digits than a, and the step is a power of two
    float parts = (a - low) * (256.0f / step);
    return (code + (uint32_t)model_rounds_up(parts, code % 2, random, stochastic, fault)) | sign;
}

// Four codes from x (4). `serves` has the form of E2m1Conversion.order: its digit k is the element
// that byte k of the random bits serves.
HOST_DEVICE static inline uint16_t model_four(const float* x, uint32_t bits, uint32_t serves,
                                              int stochastic, Fault fault) {
    uint32_t codes = 0;
    for (int element = 0; element < 4; element++) {
        uint32_t random = 0;
        for (int k = 0; k < 4; k++) {
            int its_own = (int)(serves >> (4 * k) & 15u) == element;
            random |= its_own ? bits >> (8 * k) & 255u : 0u;
        }
        uint32_t code = model_code(x[element], random, stochastic, fault);
        float at = fault == ONE_INSIDE ? -4.74609375f : -4.7421875f;    // 95.5 or 95 parts of 256
        int one_case = element == 3 && x[element] == at && (!stochastic || random == 161u);
        if ((fault == ONE_CASE || fault == ONE_INSIDE) && one_case) { code ^= 1u; }
        codes |= code << (4 * element);
    }
    if (fault == NIBBLES_SWAPPED) { codes = (codes & 0x0f0fu) << 4 | (codes >> 4 & 0x0f0fu); }
    if (fault == HALVES_SWAPPED) { codes = (codes << 8 | codes >> 8) & 0xffffu; }
    return (uint16_t)codes;
}

// What __byte_perm(word, 0, order) gives.
HOST_DEVICE static inline uint32_t model_byte_perm(uint32_t word, uint32_t order) {
    uint32_t out = 0;
    for (int k = 0; k < 4; k++) {
        out |= (word >> (8 * (order >> (4 * k) & 3u)) & 255u) << (8 * k);
    }
    return out;
}

// ---------------------------------------------------------------------------------------------
// The probe

#define EXPECTED_ORDER 0x3120u          // by the PTX ISA's wording: nvfp4_spec 7.6

// On the CPU cuda_on_cpu makes calls of the PTX, so that the CPU passes for a GPU that has both
// instructions. a goes to the highest nibble, then b, e, f; {a, b} draw from the upper bytes of the
// two halves of the random bits, {e, f} from the lower ones [PTX ISA, cvt].
#if RUNS_ON_CPU
#define __CUDA_ARCH_FEAT_SM100_ALL
typedef uint8_t ptx_reg_b8;
#define ptx_cvt_rn_satfinite_e2m1x2_f32(d, a, b)                                                   \
    d = (uint8_t)(model_code(a, 0, 0, RIGHT) << 4 | model_code(b, 0, 0, RIGHT))
#define ptx_mov_b16(d, low, high) d = (uint16_t)(high << 8 | low)
#define ptx_cvt_rs_satfinite_e2m1x4_f32(d, a, b, e, f, bits)                                       \
    uint32_t rbits = bits;                                                                         \
    d = (uint16_t)(model_code(a, rbits >> 24, 1, RIGHT) << 12                                      \
                   | model_code(b, rbits >> 8 & 255u, 1, RIGHT) << 8                               \
                   | model_code(e, rbits >> 16 & 255u, 1, RIGHT) << 4                              \
                   | model_code(f, rbits & 255u, 1, RIGHT))
#endif
#include "../../llmc/e2m1_sm100a.cuh"

static struct { int has_nearest, has_stochastic; Fault fault; uint32_t serves; } model;

static int model_run(uint16_t* codes, const float* x, const uint32_t* random, int n, int stochastic,
                     uint32_t order, cudaStream_t) {
    #pragma omp parallel for
    for (int i = 0; i < n; i++) {
        codes[i] = model_four(x + 4 * i, model_byte_perm(random[i], order), model.serves,
                              stochastic, model.fault);
    }
    return stochastic ? model.has_stochastic : model.has_nearest;
}

static E2m1Conversion model_probe(int has_nearest, int has_stochastic, Fault fault, uint32_t serves,
                                  char* reason) {
    model.has_nearest = has_nearest;
    model.has_stochastic = has_stochastic;
    model.fault = fault;
    model.serves = serves;
    return e2m1_probe_with(reason, E2M1_REASONS, model_run, 0);
}

// A right model is accepted whichever byte serves which element, and the order is found.
static void test_orders(void) {
    char reason[E2M1_REASONS], found[E2M1_REASONS] = "";
    int orders = 0, good = 0;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t a = i & 3, b = i >> 2 & 3, c = i >> 4 & 3, d = i >> 6;
        if ((1u << a | 1u << b | 1u << c | 1u << d) != 15u) { continue; }
        uint32_t order = d << 12 | c << 8 | b << 4 | a;
        E2m1Conversion conversion = model_probe(1, 1, RIGHT, order, reason);
        good += conversion.nearest && conversion.stochastic && conversion.order == order;
        orders++;
        if (order == EXPECTED_ORDER) { snprintf(found, sizeof(found), "%s", reason); }
    }
    report(good == 24 && orders == 24, "orders of random bytes", "%d of %d found; %04x: %s", good,
           orders, EXPECTED_ORDER, found);
}

static void test_missing(void) {
    char reason[E2M1_REASONS];
    for (int has_nearest = 0; has_nearest < 2; has_nearest++) {
        for (int has_stochastic = 0; has_stochastic < 2; has_stochastic++) {
            E2m1Conversion c = model_probe(has_nearest, has_stochastic, RIGHT, EXPECTED_ORDER,
                                           reason);
            int said = strstr(reason, "no ") != NULL;
            report(c.nearest == has_nearest && c.stochastic == has_stochastic
                   && said == !(has_nearest && has_stochastic),
                   has_nearest ? (has_stochastic ? "has both" : "has nearest only")
                               : (has_stochastic ? "has stochastic only" : "has neither"),
                   "%s", reason);
        }
    }
}

// A wrong model is not used, and is described; the other rounding is not affected.
static void test_faults(void) {
    for (int f = RIGHT; f < NUM_FAULTS; f++) {
        char reason[E2M1_REASONS];
        uint32_t serves = f == BYTE_USED_TWICE ? 0x3200u : EXPECTED_ORDER;
        E2m1Conversion c = model_probe(1, 1, (Fault)f, serves, reason);
        int described = 0;
        for (const char* at = strstr(reason, "arithmetic"); at != NULL;
             at = strstr(at + 1, "arithmetic")) { described++; }
        report(c.nearest == !faults[f].nearest && c.stochastic == !faults[f].stochastic
               && described == faults[f].nearest + faults[f].stochastic, faults[f].name, "%s",
               reason);
    }
}

// ---------------------------------------------------------------------------------------------
// The kernel, with models in place of the instructions. The models flip all signs: so the result
// shows where the codes came from. Their order is one whose inverse is another.

#define MODEL_ORDER 0x2130u

__device__ static inline int model_nearest(uint16_t* codes, const float* x) {
    *codes = (uint16_t)(model_four(x, 0, MODEL_ORDER, 0, RIGHT) ^ 0x8888u);
    return 1;
}

__device__ static inline int model_stochastic(uint16_t* codes, const float* x, uint32_t random,
                                              uint32_t order) {
    *codes = (uint16_t)(model_four(x, model_byte_perm(random, order), MODEL_ORDER, 1, RIGHT)
                        ^ 0x8888u);
    return 1;
}

#define e2m1x4_nearest model_nearest
#define e2m1x4_stochastic model_stochastic
#include "../../llmc/quantize.cuh"

// Memory for a matrix on the device, or on the host.
static Nvfp4Matrix matrix_alloc(int rows, int cols, int on_host) {
    size_t codes = nvfp4_codes_size((size_t)rows, (size_t)cols);
    size_t scales = nvfp4_scales_size((size_t)rows, (size_t)cols);
    Nvfp4Matrix m;
    m.rows = rows;
    m.cols = cols;
    m.codes = on_host ? (uint8_t*)malloc(codes) : device_tensor<uint8_t>(codes);
    m.block_scales = on_host ? (uint8_t*)malloc(scales) : device_tensor<uint8_t>(scales);
    m.amax = on_host ? (float*)malloc(sizeof(float)) : device_tensor<float>(1);
    return m;
}

// Bytes of codes that differ from those of the reference quantizer, whose signs are flipped if the
// instruction was to be used.
static int codes_differ(const Nvfp4Matrix* got, const float* x, int block_rows,
                        Nvfp4Rounding rounding, int flipped) {
    size_t bytes = nvfp4_codes_size((size_t)got->rows, (size_t)got->cols);
    Nvfp4Matrix want = matrix_alloc(got->rows, got->cols, 1);
    uint8_t* codes = (uint8_t*)malloc(bytes);
    cudaCheck(cudaMemcpy(codes, got->codes, bytes, cudaMemcpyDeviceToHost));
    check(nvfp4_quantize(&want, x, block_rows, rounding) == 0, "not finite");
    int differ = 0;
    for (size_t i = 0; i < bytes; i++) {
        differ += codes[i] != (want.codes[i] ^ (flipped ? 0x88 : 0));
    }
    free(want.codes);
    free(want.block_scales);
    free(want.amax);
    free(codes);
    return differ;
}

// Every combination of instructions that a GPU may have with the roundings of the two directions.
static void test_kernel(void) {
    enum { ROWS = 80, COLS = 144, N = ROWS * COLS };
    static float x[N], xT[N];
    for (size_t i = 0; i < N; i++) { x[i] = bf16_round(random_normal(11, 0, i)); }
    hadamard_transpose(xT, x, ROWS, COLS, 1);
    __nv_bfloat16* x_device = to_device<__nv_bfloat16>(x, N);
    Nvfp4Matrix q = matrix_alloc(ROWS, COLS, 0), qT = matrix_alloc(COLS, ROWS, 0);
    static const char* const names[4] = { "kernel: neither", "kernel: nearest only",
                                          "kernel: stochastic only", "kernel: both" };
    for (int has = 0; has < 4; has++) {
        E2m1Conversion conversion = e2m1_arithmetic();
        conversion.nearest = has & 1;
        conversion.stochastic = has >> 1;
        conversion.order = MODEL_ORDER;
        int differ = 0, calls = 0;
        quantize_amax(q.amax, qT.amax, x_device, ROWS, COLS, 1, 0);
        for (int which = 0; which < 4; which++) {
            Nvfp4Rounding rounding = { which & 1, 0x123456789abcdefu, 3, 4 };
            Nvfp4Rounding roundingT = { which >> 1, 0x123456789abcdefu, 5, 4 };
            quantize_activation(&q, &qT, x_device, ROWS, COLS, 1, rounding, roundingT, conversion,
                                0);
            int flipped = which & 1 ? conversion.stochastic : conversion.nearest;
            int flippedT = which >> 1 ? conversion.stochastic : conversion.nearest;
            differ += codes_differ(&q, x, 1, rounding, flipped);
            differ += codes_differ(&qT, xT, 1, roundingT, flippedT);
            calls += 2;
        }
        Nvfp4Rounding nearest = { 0, 0, 0, 0 };
        quantize_weight(&q, &qT, x_device, ROWS, COLS, 1, conversion, 0);
        differ += codes_differ(&q, x, 16, nearest, conversion.nearest);
        report(differ == 0, names[has], "%d matrices, %d bytes of codes differ", calls + 1, differ);
    }
    device_free_all();
}

int main(void) {
    test_orders();
    test_missing();
    test_faults();
    if (device_missing("kernel and real probe")) { return report_status(); }
    test_kernel();

    char reason[E2M1_REASONS];
    double start = seconds_now();
    E2m1Conversion conversion = e2m1_probe(reason, sizeof(reason), 0);
    double seconds = seconds_now() - start;
    int claimed = E2M1_HAS_STOCHASTIC;      // of the host's code: on the CPU only
    report(!claimed || (conversion.nearest && conversion.stochastic
                        && conversion.order == EXPECTED_ORDER), "this GPU",
           "%s (order %04x, %.1f ms)", reason, conversion.order, seconds * 1e3);
    return report_status();
}
