/*
Speed of the matrix products of GPT-2 small and XL: the three products of each linear layer, in BF16
and from NVFP4 operands (on the emulated path their expansion is included, quantization is not). In
TFLOP/s, and as a share of what BF16 reaches at 8192 x 8192 x 8192 in the same run.

    bench_gemm [RUNS]           20 runs of each, or RUNS; the median is printed

20 runs take some milliseconds. With 300 or more the GPU reaches its power limit and lowers its
clocks, as it does in training.
*/
#include <stdio.h>
#include "bench_time.cuh"
#include "llmc/linear.cuh"

typedef struct { const char* name; int N, C, OC; } LinearShape;

static const LinearShape shapes[] = {
    { "small qkv",     65536,  768,  2304 },
    { "small attproj", 65536,  768,   768 },
    { "small fc",      65536,  768,  3072 },
    { "small fcproj",  65536, 3072,   768 },
    { "small head",    65536,  768, 50304 },
    { "XL qkv",         8192, 1600,  4800 },
    { "XL attproj",     8192, 1600,  1600 },
    { "XL fc",          8192, 1600,  6400 },
    { "XL fcproj",      8192, 6400,  1600 },
    { "XL head",        8192, 1600, 50304 },
};
#define NUM_SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))

typedef struct {
    Gemm* gemm;
    GemmArgs args;
    void* D;                    // (M,N)
    __nv_bfloat16* A;           // (M,K) or (K,M)
    __nv_bfloat16* B;           // (N,K) or (K,N)
    Nvfp4Matrix A_q, B_q;       // (M,K), (N,K)
    float* alpha;               // (1)
} Arguments;

static void run_bf16(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    gemm_plain(&a->gemm->plain, a->D, a->A, a->B, a->args, 0);
}

static void run_nvfp4(const void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    gemm_nvfp4(a->gemm, a->D, a->args.accumulate ? GEMM_ADDS_FP32 : GEMM_STORES_BF16, &a->A_q,
               &a->B_q, a->alpha, 0);
}

static GemmArgs bf16_args(int M, int N, int K) {
    GemmArgs args;
    memset(&args, 0, sizeof(args));
    args.M = M;
    args.N = N;
    args.K = K;
    args.type = args.type_D = CUDA_R_16BF;
    return args;
}

// Quantizes x as a (rows, cols) matrix.
static Nvfp4Matrix quantized(const __nv_bfloat16* x, int rows, int cols) {
    Nvfp4Rounding nearest;
    memset(&nearest, 0, sizeof(nearest));
    Nvfp4Matrix q = linear_operand_alloc(FORMAT_NVFP4, rows, cols, "benchmark");
    quantize_amax(q.amax, NULL, x, rows, cols, 0, 0);
    quantize_activation(&q, NULL, x, rows, cols, 0, nearest, nearest, e2m1_arithmetic(), 0);
    return q;
}

static void free_matrix(Nvfp4Matrix q) {
    cudaCheck(cudaFree(q.codes));
    cudaCheck(cudaFree(q.block_scales));
    cudaCheck(cudaFree(q.amax));
}

// Is there memory for the products of a shape? D in FP32 and as many elements in A and B, the operands
// quantized and expanded.
static int shape_fits(int s) {
    size_t free_bytes, total_bytes;
    cudaCheck(cudaMemGetInfo(&free_bytes, &total_bytes));
    double N = shapes[s].N, C = shapes[s].C, OC = shapes[s].OC;
    return 8 * N * OC + 3 * (N * C + N * OC + OC * C) < 0.9 * (double)free_bytes;
}

static double measure(BenchFunction function, const Arguments* a, int runs) {
    double operations = 2.0 * a->args.M * a->args.N * a->args.K;
    return operations / bench_seconds(function, a, runs) * 1e-12;
}

// The last column: FP4 tensor cores, where this GPU has them.
static void measure_fp4(const Arguments* a, double ceiling, int runs) {
    GemmProduct product;
    product.M = a->args.M;
    product.N = a->args.N;
    product.K = a->args.K;
    product.result = a->args.accumulate ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
    if (gemm_fp4_plan(&a->gemm->fp4, product) != CUBLAS_STATUS_SUCCESS) {
        printf("   %15s\n", "not available");
        return;
    }
    a->gemm->paths = gemm_paths(GEMM_FP4);
    double fp4 = measure(run_nvfp4, a, runs);
    a->gemm->paths = gemm_paths(GEMM_EMULATED);
    printf("   %7.0f %6.1f%%\n", fp4, 100.0 * fp4 / ceiling);
}

int main(int argc, char** argv) {
    int runs = bench_runs(argc, argv);
    static Gemm gemm;
    size_t most_operands = 0, most_D = 8192 * 8192;     // as many in A and B
    int fits[NUM_SHAPES];
    for (int s = 0; s < NUM_SHAPES; s++) {
        fits[s] = shape_fits(s);
        if (!fits[s]) { continue; }
        size_t N = (size_t)shapes[s].N, C = (size_t)shapes[s].C, OC = (size_t)shapes[s].OC;
        size_t operands = N * C + N * OC;               // of dweight; those of the others are smaller
        most_operands = operands > most_operands ? operands : most_operands;
        most_D = N * OC > most_D ? N * OC : most_D;
    }
    gemm_create(&gemm, gemm_paths(GEMM_EMULATED), most_operands);
    Arguments a;
    memset(&a, 0, sizeof(a));
    a.gemm = &gemm;
    a.alpha = (float*)cuda_malloc(sizeof(float), "the benchmark");
    a.D = cuda_malloc(most_D * sizeof(float), "the benchmark");
    a.A = bench_bf16(most_D);
    a.B = bench_bf16(most_D);

    Quantizer nvfp4 = quantizer_nvfp4(0);
    AnyAlpha about = any_alpha(&nvfp4, &nvfp4);

    cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, 0));
    a.args = bf16_args(8192, 8192, 8192);
    double ceiling = measure(run_bf16, &a, runs);
    printf("%s; median of %d runs; BF16 at 8192 x 8192 x 8192: %.0f TFLOP/s\n", device.name, runs,
           ceiling);
    printf("\n%-14s %-8s %6s %6s %6s   %15s   %15s   %15s\n", "layer", "product", "M", "N", "K",
           "BF16   of best", "emulated  of best", "FP4   of best");
    for (int s = 0; s < NUM_SHAPES; s++) {
        if (!fits[s]) {
            printf("%-14s not measured: too large for this GPU's memory\n", shapes[s].name);
            continue;
        }
        int N = shapes[s].N, C = shapes[s].C, OC = shapes[s].OC;
        for (int product = 0; product < 3; product++) {
            static const char* products[] = { "out", "dinp", "dweight" };
            a.args = product == 0 ? bf16_args(N, OC, C) : product == 1 ? bf16_args(N, C, OC)
                                                        : bf16_args(OC, C, N);
            a.args.A_is_KM = product == 2;
            a.args.B_is_KN = product >= 1;
            a.args.accumulate = product == 2;
            a.args.type_D = product == 2 ? CUDA_R_32F : CUDA_R_16BF;
            a.A_q = quantized(a.A, a.args.M, a.args.K);
            a.B_q = quantized(a.B, a.args.N, a.args.K);
            quantize_any_alpha(a.alpha, (int*)a.D, a.A_q.amax, a.B_q.amax, 0, 1, about, 0);
            double bf16 = measure(run_bf16, &a, runs), nvfp4 = measure(run_nvfp4, &a, runs);
            printf("%-14s %-8s %6d %6d %6d   %7.0f %6.1f%%   %9.0f %6.1f%%", shapes[s].name,
                   products[product], a.args.M, a.args.N, a.args.K, bf16, 100.0 * bf16 / ceiling,
                   nvfp4, 100.0 * nvfp4 / ceiling);
            measure_fp4(&a, ceiling, runs);
            free_matrix(a.A_q);
            free_matrix(a.B_q);
        }
    }
    gemm_free(&gemm);
    return 0;
}
