/*
Speed of the kernels between the GEMMs, which are all bound by memory: time, bytes that have to
move, and how the rate compares with a plain device-to-device copy in the same run. At the shapes of
GPT-2 small, 64 sequences of 1024 tokens, activations in BF16.

"Bytes" are counted, not measured: each tensor once for each time that the function must read or
write it. What a kernel reads again from a cache does not count.

    bench_kernels [RUNS]        20 runs of each kernel, or RUNS; the median is printed
*/
#include <stdio.h>
#include <stdlib.h>
#include "llmc/adamw.cuh"
#include "llmc/bias.cuh"
#include "llmc/classifier.cuh"
#include "llmc/encoder.cuh"
#include "llmc/gelu.cuh"
#include "llmc/global_norm.cuh"
#include "llmc/layernorm.cuh"
#include "llmc/random.h"

#define MOST_RUNS 1000
enum { B = 64, T = 1024, C = 768, V = 50257, Vp = 50304 };
static const size_t N = (size_t)B * T;
static const size_t NUM_PARAMS = 124475904;

// ---------------------------------------------------------------------------------------------
// Buffers. Their contents do not matter to the time, except that no number should be NaN.

static __global__ void fill_kernel(__nv_bfloat16* x, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        uint32_t word = philox4x32(1, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).word[0];
        x[i] = from_float<__nv_bfloat16>(4.0f * random_uniform(word) - 2.0f);
    }
}

static __nv_bfloat16* new_bf16(size_t n) {
    __nv_bfloat16* x = (__nv_bfloat16*)cuda_malloc(n * sizeof(__nv_bfloat16), "bench");
    fill_kernel<<<(unsigned)CEIL_DIV(n, 256), 256>>>(x, n);
    cudaCheck(cudaGetLastError());
    return x;
}

static float* new_zeros(size_t n) {
    float* x = (float*)cuda_malloc(n * sizeof(float), "bench");
    cudaCheck(cudaMemset(x, 0, n * sizeof(float)));
    return x;
}

// ---------------------------------------------------------------------------------------------
// What is measured

typedef struct {
    __nv_bfloat16* wide[3];     // (N,4C)
    __nv_bfloat16* logits;      // (N,Vp)
    __nv_bfloat16* wte;         // (Vp,C)
    __nv_bfloat16* weight;      // (4C)
    __nv_bfloat16* working;     // (NUM_PARAMS)
    float* params[4];           // (NUM_PARAMS): master, grad, m, v
    float* mean;                // (N)
    float* rstd;                // (N)
    float* losses;              // (N)
    float* scratch;
    float* sum;                 // (1)
    int* tokens;                // (N)
    TokenIndex index;
    size_t distinct;
} Buffers;

enum {
    COPY, ENCODER_FORWARD, ENCODER_BACKWARD, LAYERNORM_FORWARD, FUSED_RESIDUAL, RESIDUAL,
    LAYERNORM_BACKWARD, GELU_FORWARD, GELU_BACKWARD, BIAS_ADD, BIAS_BACKWARD, CLASSIFIER_LOSS,
    CLASSIFIER, ADAMW, GLOBAL_NORM, SUM_LOSSES, NUM_KERNELS
};

static const char* names[NUM_KERNELS] = {
    "copy", "encoder_forward", "encoder_backward", "layernorm_forward",
    "fused_residual_layernorm", "residual_forward", "layernorm_backward", "gelu_forward",
    "gelu_backward", "bias_add 4C", "bias_backward 4C", "classifier, loss only", "classifier",
    "adamw_update", "global_norm_squared", "sum_losses",
};

// Bytes that have to move. activation: one tensor (N,C) in BF16.
static size_t bytes_of(int kernel, const Buffers* b) {
    const size_t activation = N * C * 2;
    switch (kernel) {
        case COPY:               return 8 * activation;             // (N,4C), read and written
        case ENCODER_FORWARD:    return activation + (b->distinct + T) * C * 2;
        case ENCODER_BACKWARD:   return 2 * activation + (b->distinct + T) * C * 8;
        case LAYERNORM_FORWARD:  return 2 * activation;
        case FUSED_RESIDUAL:     return 4 * activation;
        case RESIDUAL:           return 3 * activation;
        case LAYERNORM_BACKWARD: return 4 * activation;
        case GELU_FORWARD:       return 8 * activation;
        case GELU_BACKWARD:      return 12 * activation;
        case BIAS_ADD:           return 8 * activation;
        case BIAS_BACKWARD:      return 4 * activation;
        case CLASSIFIER_LOSS:    return N * Vp * 2;
        case CLASSIFIER:         return N * Vp * 4;
        case ADAMW:              return NUM_PARAMS * (16 + 12 + 2);
        case GLOBAL_NORM:        return NUM_PARAMS * 4;
        default:                 return N * 4;
    }
}

static void run_kernel(int kernel, Buffers* b) {
    __nv_bfloat16 *x = b->wide[0], *y = b->wide[1], *z = b->wide[2];
    switch (kernel) {
        case COPY:
            cudaCheck(cudaMemcpyAsync(x, y, N * 4 * C * 2, cudaMemcpyDeviceToDevice, 0));
            break;
        case ENCODER_FORWARD:
            encoder_forward(x, b->tokens, b->wte, y, B, T, C, 0);
            break;
        case ENCODER_BACKWARD:
            encoder_backward(b->params[0], b->params[1], x, b->index, b->scratch, B, T, C, 0);
            break;
        case LAYERNORM_FORWARD:
            layernorm_forward(x, b->mean, b->rstd, y, b->weight, b->weight, (int)N, C, 0);
            break;
        case FUSED_RESIDUAL:
            fused_residual_layernorm_forward(x, x + N * C, b->mean, b->rstd, y, z, b->weight,
                                             b->weight, (int)N, C, 0);
            break;
        case RESIDUAL:
            residual_forward(x, y, z, N * C, 0);
            break;
        case LAYERNORM_BACKWARD:
            layernorm_backward(x, b->params[0], b->params[1], y, z, b->weight, b->mean, b->rstd,
                               b->scratch, (int)N, C, 0);
            break;
        case GELU_FORWARD:
            gelu_forward(x, y, N * 4 * C, 0);
            break;
        case GELU_BACKWARD:
            gelu_backward(x, y, z, N * 4 * C, 0);
            break;
        case BIAS_ADD:
            bias_add(x, b->weight, (int)N, 4 * C, 0);
            break;
        case BIAS_BACKWARD:
            bias_backward(b->params[0], y, b->scratch, (int)N, 4 * C, 0);
            break;
        case CLASSIFIER_LOSS:
            fused_classifier(b->logits, b->losses, b->tokens, 0.0f, B, T, V, Vp, 0, 0);
            break;
        case CLASSIFIER:
            fused_classifier(b->logits, b->losses, b->tokens, 1.0f / N, B, T, V, Vp, 1, 0);
            break;
        case ADAMW:
            adamw_update(b->params[0], b->working, b->params[1], b->params[2], b->params[3],
                         NUM_PARAMS, adamw_step(1e-4f, 0.1f, 1.0f, 100), 0);
            break;
        case GLOBAL_NORM:
            global_norm_squared(b->sum, b->params[1], NUM_PARAMS, b->scratch, 0);
            break;
        case SUM_LOSSES:
            sum_losses(b->sum, b->losses, (int)N, 0);
            break;
    }
}

// ---------------------------------------------------------------------------------------------

static int compare_floats(const void* a, const void* b) {
    float x = *(const float*)a, y = *(const float*)b;
    return (x > y) - (x < y);
}

// Median milliseconds of `runs` runs, after two that do not count.
static float measure(int kernel, Buffers* b, int runs) {
    static float times[MOST_RUNS];
    cudaEvent_t start, end;
    cudaCheck(cudaEventCreate(&start));
    cudaCheck(cudaEventCreate(&end));
    for (int run = -2; run < runs; run++) {
        cudaCheck(cudaEventRecord(start, 0));
        run_kernel(kernel, b);
        cudaCheck(cudaEventRecord(end, 0));
        cudaCheck(cudaEventSynchronize(end));
        if (run >= 0) { cudaCheck(cudaEventElapsedTime(&times[run], start, end)); }
    }
    cudaCheck(cudaEventDestroy(start));
    cudaCheck(cudaEventDestroy(end));
    qsort(times, (size_t)runs, sizeof(float), compare_floats);
    return times[runs / 2];
}

// Tokens with the frequencies of a text, roughly: the rank of a word falls off like 1 / frequency.
static void make_tokens(Buffers* b) {
    int* tokens_cpu = (int*)xmalloc(N * sizeof(int), "tokens");
    int* index_cpu = (int*)xmalloc(token_index_size((int)N) * sizeof(int), "token index");
    for (size_t i = 0; i < N; i++) {
        float uniform = random_uniform(philox4x32(2, (uint32_t)i, 0, 0, 0).word[0]);
        tokens_cpu[i] = (int)powf((float)V, uniform) - 1;
    }
    TokenIndex built = token_index_build(index_cpu, tokens_cpu, (int)N, V);
    size_t index_bytes = token_index_size((int)N) * sizeof(int);
    int* index = (int*)cuda_malloc(index_bytes, "bench");
    b->tokens = (int*)cuda_malloc(N * sizeof(int), "bench");
    cudaCheck(cudaMemcpy(b->tokens, tokens_cpu, N * sizeof(int), cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(index, index_cpu, index_bytes, cudaMemcpyHostToDevice));
    b->index = token_index_at(built, index_cpu, index);
    b->distinct = 0;
    for (int i = 0; i < built.pieces.count; i++) { b->distinct += built.pieces.targets[i] >= 0; }
    b->distinct += (size_t)built.wholes.count;
    free(tokens_cpu);
    free(index_cpu);
}

int main(int argc, char** argv) {
    int runs = argc > 1 ? atoi(argv[1]) : 20;
    check(runs >= 1 && runs <= MOST_RUNS, "%d runs: not 1 to %d", runs, MOST_RUNS);
    Buffers b;
    for (int i = 0; i < 3; i++) { b.wide[i] = new_bf16(N * 4 * C); }
    for (int i = 0; i < 4; i++) { b.params[i] = new_zeros(NUM_PARAMS); }
    size_t scratch = layernorm_backward_scratch(C);
    if (bias_backward_scratch(4 * C) > scratch) { scratch = bias_backward_scratch(4 * C); }
    size_t encoder_scratch = encoder_backward_scratch((int)N, C);
    if (encoder_scratch > scratch) { scratch = encoder_scratch; }
    b.logits = new_bf16(N * Vp);
    b.wte = new_bf16((size_t)Vp * C);
    b.weight = new_bf16(4 * C);
    b.working = new_bf16(NUM_PARAMS);
    b.mean = new_zeros(N);
    b.rstd = new_zeros(N);
    b.losses = new_zeros(N);
    b.scratch = new_zeros(scratch);
    b.sum = new_zeros(1);
    make_tokens(&b);

    cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, 0));
    printf("%s; B = %d, T = %d, C = %d, Vp = %d; median of %d runs\n", device.name, B, T, C, Vp,
           runs);
    printf("%-26s %9s %9s %9s %8s\n", "kernel", "us", "MB", "GB/s", "of copy");
    double copy_rate = 0.0;
    for (int kernel = 0; kernel < NUM_KERNELS; kernel++) {
        double seconds = measure(kernel, &b, runs) * 1e-3, bytes = (double)bytes_of(kernel, &b);
        double rate = bytes / seconds;
        if (kernel == COPY) { copy_rate = rate; }
        printf("%-26s %9.1f %9.1f %9.0f %7.1f%%\n", names[kernel], seconds * 1e6, bytes * 1e-6,
               rate * 1e-9, 100.0 * rate / copy_rate);
    }
    return 0;
}
