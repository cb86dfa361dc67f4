/*
Speed of attention.cuh in BF16: median milliseconds and TFLOP/s.

    bench_attention [RUNS]      20 runs of each, or RUNS

Counted is what causal attention needs: 4 B NH HS T^2 / 2 forward, that is Q K^T and P V up to the
diagonal, and 10 B NH HS T^2 / 2 backward, five such products. "executed" counts 14 backward, since
the implementation computes two of the products twice. None of them counts the masked part of the
tiles on the diagonal.
*/
#include <stdio.h>
#include "bench_time.cuh"
#include "llmc/attention.cuh"

typedef struct { const char* name; int B, T, NH, HS; } AttentionShape;

static const AttentionShape shapes[] = {
    { "GPT-2 small",    64, 1024, 12,  64 },
    { "GPT-2 XL",        8, 1024, 25,  64 },
    { "longer context",  8, 8192, 12,  64 },
    { "HS 80",          32, 1024, 16,  80 },
    { "HS 128",         32, 1024, 12, 128 },
};
#define NUM_SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))

typedef struct {
    AttentionShape shape;
    __nv_bfloat16* qkv;             // (B,T,3,NH,HS)
    __nv_bfloat16* dqkv;            // (B,T,3,NH,HS)
    __nv_bfloat16* out;             // (B,T,NH,HS)
    __nv_bfloat16* dout;            // (B,T,NH,HS)
    float* lse;                     // (B,NH,T)
    float* delta;                   // (B,NH,T)
} Arguments;

static void run_forward(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    AttentionShape s = a->shape;
    attention_forward(a->out, a->lse, a->qkv, s.B, s.T, s.NH, s.HS, 0);
}

static void run_backward(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    AttentionShape s = a->shape;
    attention_backward(a->dqkv, a->dout, a->qkv, a->out, a->lse, a->delta, s.B, s.T, s.NH, s.HS, 0);
}

static void bench(AttentionShape s, int runs) {
    size_t rows = (size_t)s.B * s.T * s.NH, n = rows * s.HS;
    Arguments a;
    a.shape = s;
    a.qkv = bench_bf16(3 * n);
    a.dqkv = bench_bf16(3 * n);
    a.out = bench_bf16(n);
    a.dout = bench_bf16(n);
    a.lse = (float*)cuda_malloc(rows * sizeof(float), "the benchmark");
    a.delta = (float*)cuda_malloc(rows * sizeof(float), "the benchmark");
    double forward = bench_seconds(run_forward, &a, runs);
    double backward = bench_seconds(run_backward, &a, runs);
    double product = 2.0 * s.B * s.NH * s.HS * ((double)s.T * s.T / 2.0) * 1e-12;
    printf("%-16s %3d %5d %3d %4d %9.3f %8.1f %9.3f %8.1f %9.1f\n", s.name, s.B, s.T, s.NH, s.HS,
           forward * 1e3, 2.0 * product / forward, backward * 1e3, 5.0 * product / backward,
           7.0 * product / backward);
    void* tensors[] = { a.qkv, a.dqkv, a.out, a.dout, a.lse, a.delta };
    for (int i = 0; i < 6; i++) { cudaCheck(cudaFree(tensors[i])); }
}

int main(int argc, char** argv) {
    int runs = bench_runs(argc, argv);
    printf("%-16s %3s %5s %3s %4s %9s %8s %9s %8s %9s\n", "", "B", "T", "NH", "HS", "forward",
           "TFLOP/s", "backward", "TFLOP/s", "executed");
    for (int i = 0; i < NUM_SHAPES; i++) { bench(shapes[i], runs); }
    return 0;
}
