/*
How long something takes on the GPU: the median of some runs, between two events in the stream.
*/
#ifndef BENCH_TIME_CUH
#define BENCH_TIME_CUH

#include <stdlib.h>
#include "llmc/cuda_common.cuh"
#include "llmc/random.h"

#define BENCH_MOST_RUNS 1000

typedef void (*BenchFunction)(const void* arguments);

static inline int bench_compare(const void* a, const void* b) {
    float x = *(const float*)a, y = *(const float*)b;
    return (x > y) - (x < y);
}

// Median seconds of `runs` calls, after three that do not count.
static inline double bench_seconds(BenchFunction function, const void* arguments, int runs) {
    static float times[BENCH_MOST_RUNS];
    cudaEvent_t start, end;
    cudaCheck(cudaEventCreate(&start));
    cudaCheck(cudaEventCreate(&end));
    for (int run = -3; run < runs; run++) {
        cudaCheck(cudaEventRecord(start, 0));
        function(arguments);
        cudaCheck(cudaEventRecord(end, 0));
        cudaCheck(cudaEventSynchronize(end));
        if (run >= 0) { cudaCheck(cudaEventElapsedTime(&times[run], start, end)); }
    }
    cudaCheck(cudaEventDestroy(start));
    cudaCheck(cudaEventDestroy(end));
    qsort(times, (size_t)runs, sizeof(float), bench_compare);
    return times[runs / 2] * 1e-3;
}

// The number of runs: the program's only argument, or 20.
static inline int bench_runs(int argc, char** argv) {
    int runs = argc > 1 ? atoi(argv[1]) : 20;
    check(runs >= 1 && runs <= BENCH_MOST_RUNS, "%d runs: not 1 to %d", runs, BENCH_MOST_RUNS);
    return runs;
}

// Random contents: tensor cores draw less power for zeros and run faster.
static __global__ void bench_fill_kernel(__nv_bfloat16* x /* (n) */, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        uint32_t word = philox4x32(1, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).word[0];
        x[i] = from_float<__nv_bfloat16>(4.0f * random_uniform(word) - 2.0f);
    }
}

// n BF16 values, uniform in -2 .. 2
static inline __nv_bfloat16* bench_bf16(size_t n) {
    __nv_bfloat16* x = (__nv_bfloat16*)cuda_malloc(n * sizeof(__nv_bfloat16), "the benchmark");
    bench_fill_kernel<<<(unsigned)CEIL_DIV(n, (size_t)256), 256>>>(x, n);
    cudaCheck(cudaGetLastError());
    return x;
}

#endif
