/*
Speed of the NVFP4 quantizers, which ought to be bound by memory: time, bytes that have to move, and
how the rate compares with a plain device-to-device copy in the same run. At the activations of GPT-2
small, 64 sequences of 1024 tokens, and its largest weight.

"Bytes" are counted, not measured: each tensor once for each time that the function must read or
write it; 2 bytes an element of BF16, 9/16 of a byte an element of NVFP4.

Where the GPU has conversion instructions that the probe accepts, a second line has their speed.

    bench_quantize [RUNS]       20 runs of each, or RUNS; the median is printed
*/
#include <stdio.h>
#include "bench_time.cuh"
#include "llmc/linear.cuh"

enum { ROWS = 65536 };

typedef struct {
    int rows, cols;
    __nv_bfloat16* x;           // (rows, cols)
    __nv_bfloat16* y;           // (rows, cols)
    Nvfp4Matrix x_q;            // (rows, cols)
    Nvfp4Matrix xT_q;           // (cols, rows)
    Nvfp4Rounding rounding;
    E2m1Conversion conversion;
} Arguments;

static void run_copy(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    cudaCheck(cudaMemcpyAsync(a->y, a->x, (size_t)a->rows * a->cols * sizeof(__nv_bfloat16),
                              cudaMemcpyDeviceToDevice, 0));
}

static void run_amax(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_amax(a->x_q.amax, NULL, a->x, a->rows, a->cols, 0, 0);
}

static void run_amax_hadamard(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_amax(a->x_q.amax, a->xT_q.amax, a->x, a->rows, a->cols, 1, 0);
}

static void run_rows(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_activation(&a->x_q, NULL, a->x, a->rows, a->cols, 0, a->rounding, a->rounding,
                        a->conversion, 0);
}

static void run_both(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_activation(&a->x_q, &a->xT_q, a->x, a->rows, a->cols, 0, a->rounding, a->rounding,
                        a->conversion, 0);
}

static void run_both_hadamard(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_activation(&a->x_q, &a->xT_q, a->x, a->rows, a->cols, 1, a->rounding, a->rounding,
                        a->conversion, 0);
}

static void run_weight(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_weight(&a->x_q, &a->xT_q, a->x, a->rows, a->cols, 1, a->conversion, 0);
}

static void run_expand(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    quantize_expand(a->y, &a->x_q, 0);
}

typedef struct {
    const char* name;
    BenchFunction function;
    int stochastic;             // -1: writes no codes
    double bytes;               // an element
} Row;

static const Row rows[] = {
    { "copy",                          run_copy,         -1, 4.0 },
    { "amax",                          run_amax,         -1, 2.0 },
    { "amax, Hadamard too",            run_amax_hadamard,-1, 2.0 },
    { "x_q, nearest",                  run_rows,          0, 2.0 + 0.5625 },
    { "x_q, stochastic",               run_rows,          1, 2.0 + 0.5625 },
    { "x_q, xT_q, nearest",            run_both,          0, 2.0 + 1.125 },
    { "same, Hadamard (activations)",  run_both_hadamard, 0, 2.0 + 1.125 },
    { "same, stochastic (gradients)",  run_both_hadamard, 1, 2.0 + 1.125 },
    { "quantize_weight, amax too",     run_weight,        0, 4.0 + 1.125 },
    { "expand",                        run_expand,       -1, 2.0 + 0.5625 },
};

// Measures and prints a row; returns bytes a second.
static double measure(const Row* row, const char* name, Arguments* a, double copy_rate, int runs) {
    a->rounding.stochastic = row->stochastic > 0;
    double seconds = bench_seconds(row->function, a, runs);
    double bytes = (double)a->rows * a->cols * row->bytes, rate = bytes / seconds;
    printf("%-30s %9.1f %9.1f %9.0f %7.1f%%\n", name, seconds * 1e6, bytes * 1e-6, rate * 1e-9,
           100.0 * rate / (copy_rate > 0.0 ? copy_rate : rate));
    return rate;
}

int main(int argc, char** argv) {
    int runs = bench_runs(argc, argv);
    static const int shapes[][2] = { { ROWS, 768 }, { ROWS, 3072 }, { 3072, 768 } };
    cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, 0));
    char reason[E2M1_REASONS];
    E2m1Conversion instruction = e2m1_probe(reason, sizeof(reason), 0);
    printf("%s; median of %d runs; conversion %s\n", device.name, runs, reason);
    double copy_rate = 0.0;             // of the largest: the last shape fits into a cache
    for (int s = 0; s < 3; s++) {
        Arguments a;
        a.rows = shapes[s][0];
        a.cols = shapes[s][1];
        size_t n = (size_t)a.rows * a.cols;
        a.x = bench_bf16(n);
        a.y = bench_bf16(n);
        a.x_q = linear_operand_alloc(FORMAT_NVFP4, a.rows, a.cols, "benchmark");
        a.xT_q = linear_operand_alloc(FORMAT_NVFP4, a.cols, a.rows, "benchmark");
        memset(&a.rounding, 0, sizeof(a.rounding));
        a.rounding.seed = 1;
        a.rounding.tag = 2;
        a.rounding.step = 3;
        printf("\n%-30s %9s %9s %9s %8s\n", "", "us", "MB", "GB/s", "of copy");
        printf("(%d, %d)\n", a.rows, a.cols);
        for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
            a.conversion = e2m1_arithmetic();
            double rate = measure(&rows[r], rows[r].name, &a, r == 0 && s < 2 ? 0.0 : copy_rate,
                                  runs);
            if (r == 0 && s < 2) { copy_rate = rate; }
            int has = rows[r].stochastic > 0 ? instruction.stochastic : instruction.nearest;
            if (rows[r].stochastic >= 0 && has) {
                a.conversion = instruction;
                measure(&rows[r], "    by instruction", &a, copy_rate, runs);
            }
        }
    }
    return 0;
}
