/*
The number headers on the device: every function gives the bits that it gives on the host, and the
bits of the device functions that CUDA has for the same purpose. So what test_numbers.c and
test_numbers_vendor.cpp show of the host holds for the device. All comparisons are exact.

The test is for a GPU; a newer one converts to E2M1 and E4M3 in hardware, an older one in CUDA's
software, and both must agree with us. On the CPU both sides are the same code; a part of the cases
is enough to see that the launches cover them.
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cuda_bf16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <curand_philox4x32_x.h>
#include "llmc/bits.h"
#include "llmc/cuda_common.cuh"
#include "llmc/hadamard.h"
#include "llmc/nvfp4.h"
#include "llmc/random.h"
#include "device_check.cuh"

#define CHUNK (1u << 24)                // results per kernel launch and copy
#define MOST_ON_CPU (1u << 20)          // cases of a subject

// ---------------------------------------------------------------------------------------------
// One function for both sides

// What is compared. Case number i of a subject is made from i alone.
typedef enum {
    FORMATS, DECODERS, STOCHASTIC, PHILOX, SCALES, BLOCKS, HADAMARD, LAYOUT, NUM_SUBJECTS
} Subject;

typedef struct { Subject subject; const char* name; uint64_t cases; const char* what; } SubjectRow;

static const SubjectRow SUBJECTS[NUM_SUBJECTS] = {
    { FORMATS,    "encode e2m1, e4m3, bf16",  1ull << 32, "floats" },
    { DECODERS,   "decode e2m1, e4m3, bf16",  1u << 16,   "codes" },
    { STOCHASTIC, "stochastic e2m1",          1u << 24,   "floats, all 256 random bytes each" },
    { PHILOX,     "philox",                   1u << 22,   "counters and keys" },
    { SCALES,     "scales, inverses, alpha",  0x7f80u << 7, "pairs of BF16 amax and scale byte" },
    { BLOCKS,     "quantize a block",         1u << 20,   "blocks of 16, nearest and stochastic" },
    { HADAMARD,   "hadamard",                 1u << 20,   "groups of 16" },
    { LAYOUT,     "scale layout",             1u << 22,   "rows and blocks" },
};

// Folds a word into a result. One word that differs always shows.
HOST_DEVICE static inline uint32_t fold(uint32_t result, uint32_t word) {
    return (result ^ word) * 0x01000193u;
}

// 16 BF16 values with exponents from -15 to 16.
HOST_DEVICE static inline void sixteen_values(float* x /* (16) */, uint32_t i) {
    for (uint32_t r = 0; r < 16; r++) {
        uint32_t word = philox4x32(7, i, r, 0, 0).word[0];
        x[r] = bits_float((word & 0x807f0000u) | (112 + word % 32) << 23);
    }
}

// The bits of a float, with all NaNs alike: their sign and payload may differ and mean nothing.
HOST_DEVICE static inline uint32_t value_bits(float x) {
    return x != x ? 0x7fc00000u : float_bits(x);
}

HOST_DEVICE static inline uint32_t evaluate(Subject subject, uint32_t i) {
    uint32_t result = 0;
    if (subject == FORMATS) {
        float x = bits_float(i);
        result = e2m1_from_float(x) | e4m3_from_float(x) << 8 | (uint32_t)bf16_from_float(x) << 16;
    } else if (subject == DECODERS) {
        result = fold(result, value_bits(e2m1_to_float((uint8_t)(i & 15u))));
        result = fold(result, value_bits(e4m3_to_float((uint8_t)i)));
        result = fold(result, value_bits(bf16_to_float((uint16_t)i)));
    } else if (subject == STOCHASTIC) {
        // every sixth float from 2^-10 up to 8, with alternating signs
        float x = bits_float((0x3a800000u + 6 * i) | i << 31);
        for (uint32_t random = 0; random < 256; random++) {
            result = fold(result, e2m1_from_float_stochastic(x, random));
        }
    } else if (subject == PHILOX) {
        Philox seeds = philox4x32(i, 1, 2, 3, 4);
        uint64_t seed = (uint64_t)seeds.word[0] << 32 | seeds.word[1];
        Nvfp4Rounding rounding = { 1, seed, seeds.word[2], i };
        Philox bytes = nvfp4_random_bytes(rounding, (uint64_t)seeds.word[3] << 7);
        for (int j = 0; j < NVFP4_BLOCK; j++) {
            result = fold(result, nvfp4_random_byte(bytes, j));
        }
    } else if (subject == SCALES) {
        // all BF16 values of amax times all scale bytes, the last of which is NaN
        uint32_t byte = i & 127u;
        float amax = bits_float(i >> 7 << 16);
        float block_amax = bf16_round(amax * ((float)(byte + 1) / 128.0f));
        Nvfp4TensorScale tensor = nvfp4_tensor_scale(amax);
        result = fold(result, float_bits(tensor.scale));
        result = fold(result, float_bits(tensor.inverse_by_6));
        result = fold(result, nvfp4_block_scale(block_amax, tensor));
        result = fold(result, float_bits(nvfp4_alpha(amax, block_amax)));
        if (byte < 127) {
            result = fold(result, float_bits(nvfp4_block_inverse((uint8_t)byte, tensor)));
        }
    } else if (subject == BLOCKS) {
        float x[NVFP4_BLOCK];
        uint8_t codes[NVFP4_BLOCK / 2];
        sixteen_values(x, i);
        float block_inverse = 1.0f / (float)(i % 997 + 1);
        for (int stochastic = 0; stochastic < 2; stochastic++) {
            Nvfp4Rounding rounding = { stochastic, 0x123456789abcdefull, 5, 6 };
            nvfp4_quantize_block(codes, x, block_inverse, rounding, i);
            for (int j = 0; j < NVFP4_BLOCK / 2; j++) { result = fold(result, codes[j]); }
        }
    } else if (subject == HADAMARD) {
        float x[HADAMARD_SIZE];
        sixteen_values(x, i);
        hadamard_transform(x);
        for (int c = 0; c < HADAMARD_SIZE; c++) { result = fold(result, float_bits(x[c])); }
    } else {
        size_t cols = 16 * (size_t)(1 + i % 61), row = i / 61, block = i % 17;
        size_t offset = nvfp4_scale_offset(row, block, cols);
        result = fold(fold(result, (uint32_t)offset), (uint32_t)nvfp4_scales_size(row, cols));
        result = fold(result, (uint32_t)nvfp4_codes_size(row, cols));
    }
    return result;
}

__global__ static void evaluate_kernel(uint32_t* out /* (n) */, Subject subject, uint32_t first,
                                       uint32_t n) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { out[i] = evaluate(subject, first + i); }
}

// Should fail with --use_fast_math, which approximates divisions; not tried yet.
static void test_device_equals_host(const SubjectRow* row, uint32_t* device /* (CHUNK) */,
                                    uint32_t* host /* (CHUNK) */) {
    uint64_t differ = 0, cases = row->cases;
    uint32_t first_case = 0xffffffffu;
    if (RUNS_ON_CPU && cases > MOST_ON_CPU) { cases = MOST_ON_CPU; }
    for (uint64_t start = 0; start < cases; start += CHUNK) {
        uint32_t n = (uint32_t)(cases - start < CHUNK ? cases - start : CHUNK);
        evaluate_kernel<<<CEIL_DIV(n, 256), 256>>>(device, row->subject, (uint32_t)start, n);
        cudaCheck(cudaGetLastError());
        cudaCheck(cudaMemcpy(host, device, n * sizeof(uint32_t), cudaMemcpyDeviceToHost));
        #pragma omp parallel for reduction(+ : differ) reduction(min : first_case)
        for (uint32_t i = 0; i < n; i++) {
            uint32_t number = (uint32_t)start + i;
            if (host[i] != evaluate(row->subject, number)) {
                differ++;
                first_case = number < first_case ? number : first_case;
            }
        }
    }
    char first[32] = "";
    if (differ > 0) { snprintf(first, sizeof(first), "; first: case %08x", first_case); }
    report(differ == 0, row->name, "%llu of %llu %s on device and host, %llu differ%s",
           (unsigned long long)cases, (unsigned long long)row->cases, row->what,
           (unsigned long long)differ, first);
}

// ---------------------------------------------------------------------------------------------
// Against CUDA's own device functions

enum { E2M1_DIFFERS, E4M3_DIFFERS, BF16_DIFFERS, PHILOX_DIFFERS, NUM_COUNTERS };

typedef struct { unsigned long long differ[NUM_COUNTERS]; uint32_t first[NUM_COUNTERS]; } Counters;

__device__ static void count_if(Counters* counters, int which, bool differs, uint32_t i) {
    if (differs) {
        atomicAdd(&counters->differ[which], 1ull);
        atomicMin(&counters->first[which], i);
    }
}

__global__ static void vendor_formats_kernel(Counters* counters, uint32_t first) {
    uint32_t bits = first + blockIdx.x * blockDim.x + threadIdx.x;
    float x = bits_float(bits);
    int e2m1 = __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest);
    int e4m3 = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    int bf16 = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    count_if(counters, E2M1_DIFFERS, e2m1_from_float(x) != e2m1, bits);
    count_if(counters, E4M3_DIFFERS, e4m3_from_float(x) != e4m3, bits);
    count_if(counters, BF16_DIFFERS, bf16_from_float(x) != bf16, bits);
    // two at a time, as quantize.cuh converts
    __nv_bfloat162 pair = __floats2bfloat162_rn(x, -x);
    bool low_differs = __bfloat16_as_ushort(__low2bfloat16(pair)) != bf16_from_float(x);
    bool high_differs = __bfloat16_as_ushort(__high2bfloat16(pair)) != bf16_from_float(-x);
    count_if(counters, BF16_DIFFERS, low_differs || high_differs, bits);
}

__global__ static void vendor_philox_kernel(Counters* counters) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    // the inputs are themselves outputs, of curand's function
    uint4 c = curand_Philox4x32_10(make_uint4(i, 0, 1, 2), make_uint2(3, 4));
    uint4 k = curand_Philox4x32_10(make_uint4(i, 5, 6, 7), make_uint2(8, 9));
    uint4 theirs = curand_Philox4x32_10(c, make_uint2(k.x, k.y));
    Philox ours = philox4x32((uint64_t)k.y << 32 | k.x, c.x, c.y, c.z, c.w);
    bool differs = ours.word[0] != theirs.x || ours.word[1] != theirs.y || ours.word[2] != theirs.z
                   || ours.word[3] != theirs.w;
    count_if(counters, PHILOX_DIFFERS, differs, i);
}

// Should fail with ties away from zero in e2m1_nearest, and with 9 rounds of
// Philox, as test_numbers_vendor.cpp does on the host; not tried on a device yet.
static void test_vendor(void) {
    const char* names[NUM_COUNTERS] = { "e2m1 and cuda_fp4.h", "e4m3 and cuda_fp8.h",
                                        "bf16 and cuda_bf16.h", "philox and curand" };
    const char* what[NUM_COUNTERS] = { "all 2^32 floats", "all 2^32 floats", "all 2^32 floats",
                                       "2^24 counters and keys" };
    Counters host;
    for (int which = 0; which < NUM_COUNTERS; which++) {
        host.differ[which] = 0;
        host.first[which] = 0xffffffffu;
    }
    Counters* counters = (Counters*)cuda_malloc(sizeof(Counters), "counters");
    cudaCheck(cudaMemcpy(counters, &host, sizeof(host), cudaMemcpyHostToDevice));
    for (uint64_t start = 0; start < 1ull << 32; start += CHUNK) {
        vendor_formats_kernel<<<CHUNK / 256, 256>>>(counters, (uint32_t)start);
        cudaCheck(cudaGetLastError());
    }
    vendor_philox_kernel<<<CHUNK / 256, 256>>>(counters);
    cudaCheck(cudaGetLastError());
    cudaCheck(cudaMemcpy(&host, counters, sizeof(host), cudaMemcpyDeviceToHost));
    cudaCheck(cudaFree(counters));
    for (int which = 0; which < NUM_COUNTERS; which++) {
        char first[32] = "";
        if (host.differ[which] > 0) {
            snprintf(first, sizeof(first), "; first: %08x", host.first[which]);
        }
        report(host.differ[which] == 0, names[which], "%s on the device, %llu differ%s",
               what[which], host.differ[which], first);
    }
}

int main(void) {
    if (device_missing("numbers on the device")) { return 0; }
    uint32_t* device = (uint32_t*)cuda_malloc(CHUNK * sizeof(uint32_t), "results");
    uint32_t* host = (uint32_t*)xmalloc(CHUNK * sizeof(uint32_t), "results");
    for (int s = 0; s < NUM_SUBJECTS; s++) { test_device_equals_host(&SUBJECTS[s], device, host); }
    if (RUNS_ON_CPU) { report_skip("CUDA's functions", "test_numbers_vendor compares on the CPU"); }
    else { test_vendor(); }
    cudaCheck(cudaFree(device));
    free(host);
    return report_status();
}
