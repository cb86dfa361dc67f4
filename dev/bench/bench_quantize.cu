/*
Speed of the quantizers, which ought to be bound by memory: time, bytes that have to move, and how
the rate compares with a plain device-to-device copy in the same run. At the activations of GPT-2
small, 64 sequences of 1024 tokens, and its largest weight. First the base recipe's; then, of
activations, what the other recipes do to X and X^T or to dY and dY^T, by the kernels for any recipe.

"Bytes" are counted, not measured: each tensor once for each time that the function must read or
write it; 2 bytes an element of BF16, and an element's bits and its share of a block scale.

Where the GPU has conversion instructions that the probe accepts, a second line has their speed.

    bench_quantize [RUNS]       20 runs of each, or RUNS; the median is printed
*/
#include <stdio.h>
#include "bench_time.cuh"
#include "llmc/linear.cuh"
#include "llmc/recipe.h"

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

// X and X^T, or dY and dY^T, as a recipe makes them. The transform goes along the tokens of a row,
// or along channels.
typedef struct {
    const char* recipe;
    int operand, operandT;
} AnyRow;

static const AnyRow any_rows[] = {
    { "fp8",      OPERAND_X,  OPERAND_XT },
    { "fp8block", OPERAND_X,  OPERAND_XT },
    { "mxfp8",    OPERAND_X,  OPERAND_XT },
    { "mxfp4",    OPERAND_X,  OPERAND_XT },
    { "mxfp4",    OPERAND_DY, OPERAND_DYT },
    { "nvfp4+46", OPERAND_X,  OPERAND_XT },
    { "quartet2", OPERAND_X,  -1 },
    { "quartet2", -1,         OPERAND_XT },
    { "quartet2", OPERAND_DY, OPERAND_DYT },
    { "tetrajet", OPERAND_DY, OPERAND_DYT },
};

typedef struct {
    const Arguments* a;
    AnyOutput out[2];
    int makes[2];
} AnyArguments;

static AnyArguments any_arguments(const Arguments* a, const AnyRow* row) {
    Recipe recipe = recipe_parse(row->recipe, 12);
    const Nvfp4Matrix* matrices[2] = { &a->x_q, &a->xT_q };
    int operands[2] = { row->operand, row->operandT };
    AnyArguments any;
    memset(&any, 0, sizeof(any));
    any.a = a;
    for (int i = 0; i < 2; i++) {
        if (operands[i] < 0) { continue; }
        const Quantizer* q = &recipe.operands[operands[i]];
        int size = q->hadamard > 0 ? rotation_size(q->hadamard, matrices[i]->cols) : 0;
        any.out[i] = any_output(matrices[i], *q, rotation_make(size, q->fresh_signs, 1, 2, 3),
                                a->rounding);
        any.makes[i] = 1;
    }
    return any;
}

static void run_any_amax(const void* arguments) {
    const AnyArguments* any = (const AnyArguments*)arguments;
    const Arguments* a = any->a;
    quantize_any_amax(any->makes[0] ? a->x_q.amax : NULL, &any->out[0].rotation,
                      any->makes[1] ? a->xT_q.amax : NULL, &any->out[1].rotation, a->x, a->rows,
                      a->cols, 0);
}

static void run_any(const void* arguments) {
    const AnyArguments* any = (const AnyArguments*)arguments;
    quantize_any(any->makes[0] ? &any->out[0] : NULL, any->makes[1] ? &any->out[1] : NULL,
                 any->a->x, any->a->rows, any->a->cols, 0);
}

static void run_any_expand(const void* arguments) {
    const AnyArguments* any = (const AnyArguments*)arguments;
    int i = !any->makes[0];
    quantize_any_expand(any->a->y, &any->out[i].matrix, any->out[i].q, 0);
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

// Prints a row of the table; returns bytes a second.
static double print_rate(const char* name, const Arguments* a, double bytes_an_element,
                         double seconds, double copy_rate) {
    double bytes = (double)a->rows * a->cols * bytes_an_element, rate = bytes / seconds;
    printf("%-30s %9.1f %9.1f %9.0f %7.1f%%\n", name, seconds * 1e6, bytes * 1e-6, rate * 1e-9,
           100.0 * rate / (copy_rate > 0.0 ? copy_rate : rate));
    return rate;
}

static double measure(const Row* row, const char* name, Arguments* a, double copy_rate, int runs) {
    a->rounding.stochastic = row->stochastic > 0;
    double seconds = bench_seconds(row->function, a, runs);
    return print_rate(name, a, row->bytes, seconds, copy_rate);
}

// What any recipe's kernels do: amax, codes and scales, and expansion of what the first made.
static void measure_any(const Arguments* a, const AnyRow* row, double copy_rate, int runs) {
    AnyArguments any = any_arguments(a, row);
    char name[64];
    Quantizer q = any.out[!any.makes[0]].q;
    double block = format_block(q.format), outputs = any.makes[0] + any.makes[1];
    double bytes = format_bits(q.format) / 8.0 + (block > 0.0 ? 1.0 / block : 0.0);
    const char* first = row->operand >= 0 ? operand_name(row->operand) : "";
    const char* second = row->operandT >= 0 ? operand_name(row->operandT) : "";
    snprintf(name, sizeof(name), "%s amax of %s %s", row->recipe, first, second);
    print_rate(name, a, 2.0, bench_seconds(run_any_amax, &any, runs), copy_rate);
    snprintf(name, sizeof(name), "%s %s %s", row->recipe, first, second);
    print_rate(name, a, 2.0 + outputs * bytes, bench_seconds(run_any, &any, runs), copy_rate);
    snprintf(name, sizeof(name), "%s expand", row->recipe);
    print_rate(name, a, 2.0 + bytes, bench_seconds(run_any_expand, &any, runs), copy_rate);
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
        a.x_q = linear_operand_alloc(FORMAT_MXFP8, a.rows, a.cols, "benchmark");
        a.xT_q = linear_operand_alloc(FORMAT_MXFP8, a.cols, a.rows, "benchmark");
        Nvfp4Matrix x_nvfp4 = linear_operand_alloc(FORMAT_NVFP4, a.rows, a.cols, "benchmark");
        Nvfp4Matrix xT_nvfp4 = linear_operand_alloc(FORMAT_NVFP4, a.cols, a.rows, "benchmark");
        a.x_q.block_scales = x_nvfp4.block_scales;      // more than any other format has
        a.xT_q.block_scales = xT_nvfp4.block_scales;
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
        for (size_t r = 0; r < sizeof(any_rows) / sizeof(any_rows[0]) && s == 1; r++) {
            measure_any(&a, &any_rows[r], copy_rate, runs);
        }
    }
    return 0;
}
