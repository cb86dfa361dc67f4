/*
Speed of attention.cuh in BF16: milliseconds, median of 25 runs, and TFLOP/s.

Counted is what a causal kernel has to do: 4 B NH HS T^2 / 2 forward, that is the products Q K^T and
P V below the diagonal, and 10 B NH HS T^2 / 2 backward, five such products. "executed" counts 14
backward, because this implementation computes two products twice. The masked half of the tiles on
the diagonal is in neither.
*/
#include <stdio.h>
#include <stdlib.h>
#include "llmc/attention.cuh"
#include "llmc/random.h"

#define RUNS 25
#define WARM_UP_RUNS 3

typedef struct { const char* name; int B, T, NH, HS; } BenchCase;

static const BenchCase cases[] = { { "d12, GPT-2 small", 64, 1024, 12, 64 },
                                   { "d48, GPT-2 XL", 8, 1024, 25, 64 },
                                   { "longer context", 8, 8192, 12, 64 },
                                   { "HS 80", 32, 1024, 16, 80 },
                                   { "HS 128", 32, 1024, 12, 128 } };
#define NUM_CASES ((int)(sizeof(cases) / sizeof(cases[0])))

// x (n) = uniform numbers with deviation 1. Speed depends a little on the data: zeros take less
// power.
__global__ static void fill_kernel(__nv_bfloat16* x, size_t n, uint32_t stream) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) { return; }
    uint32_t word = philox4x32(20260101, (uint32_t)i, (uint32_t)(i >> 32), stream, 2).word[0];
    x[i] = __float2bfloat16_rn((random_uniform(word) - 0.5f) * 3.4641016f);
}

static __nv_bfloat16* new_tensor(size_t n, uint32_t stream, const char* what) {
    __nv_bfloat16* x = (__nv_bfloat16*)cuda_malloc(n * sizeof(__nv_bfloat16), what);
    fill_kernel<<<(unsigned)CEIL_DIV(n, 256), 256>>>(x, n, stream);
    cudaCheck(cudaGetLastError());
    return x;
}

static int compare_floats(const void* a, const void* b) {
    float x = *(const float*)a, y = *(const float*)b;
    return (x > y) - (x < y);
}

static float median(float* ms /* (RUNS) */) {
    qsort(ms, RUNS, sizeof(float), compare_floats);
    return ms[RUNS / 2];
}

static void bench(BenchCase c) {
    size_t rows = (size_t)c.B * c.T * c.NH, n = rows * c.HS;
    __nv_bfloat16* qkv = new_tensor(3 * n, 1, "qkv");
    __nv_bfloat16* dqkv = new_tensor(3 * n, 2, "dqkv");
    __nv_bfloat16* out = new_tensor(n, 3, "out");
    __nv_bfloat16* dout = new_tensor(n, 4, "dout");
    float* lse = (float*)cuda_malloc(rows * sizeof(float), "lse");
    float* delta = (float*)cuda_malloc(rows * sizeof(float), "delta");
    cudaEvent_t event[3];
    for (int i = 0; i < 3; i++) { cudaCheck(cudaEventCreate(&event[i])); }

    float forward[RUNS], backward[RUNS];
    for (int run = -WARM_UP_RUNS; run < RUNS; run++) {
        cudaCheck(cudaEventRecord(event[0]));
        attention_forward(out, lse, qkv, c.B, c.T, c.NH, c.HS, 0);
        cudaCheck(cudaEventRecord(event[1]));
        attention_backward(dqkv, dout, qkv, out, lse, delta, c.B, c.T, c.NH, c.HS, 0);
        cudaCheck(cudaEventRecord(event[2]));
        cudaCheck(cudaEventSynchronize(event[2]));
        if (run >= 0) {
            cudaCheck(cudaEventElapsedTime(&forward[run], event[0], event[1]));
            cudaCheck(cudaEventElapsedTime(&backward[run], event[1], event[2]));
        }
    }
    double product = 2.0 * c.B * c.NH * c.HS * ((double)c.T * c.T / 2.0);
    double forward_ms = median(forward), backward_ms = median(backward);
    printf("%-18s %4d %5d %4d %4d %9.3f ms %7.1f %11.3f ms %7.1f %9.1f\n", c.name, c.B, c.T, c.NH,
           c.HS, forward_ms, 2.0 * product / forward_ms * 1e-9, backward_ms,
           5.0 * product / backward_ms * 1e-9, 7.0 * product / backward_ms * 1e-9);

    for (int i = 0; i < 3; i++) { cudaCheck(cudaEventDestroy(event[i])); }
    void* memory[] = { qkv, dqkv, out, dout, lse, delta };
    for (int i = 0; i < 6; i++) { cudaCheck(cudaFree(memory[i])); }
}

int main(void) {
    struct cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, 0));
    printf("%s, BF16, causal\n", device.name);
    printf("%-18s %4s %5s %4s %4s %12s %7s %14s %7s %9s\n", "", "B", "T", "NH", "HS", "forward",
           "TFLOP/s", "backward", "TFLOP/s", "executed");
    for (int i = 0; i < NUM_CASES; i++) { bench(cases[i]); }
    return 0;
}
