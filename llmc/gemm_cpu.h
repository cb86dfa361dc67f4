/*
The matrix product of the CPU program: OpenBLAS does the arithmetic, this file the division of
labour.

The result is cut into tiles by its shape alone and every tile is one single-threaded BLAS call, so
each element is summed in the same order whatever the number of threads.
*/
#ifndef LLMC_GEMM_CPU_H
#define LLMC_GEMM_CPU_H

#include <cblas.h>
#include <omp.h>
#include <stddef.h>

// Once, before the first product: threads are ours, BLAS calls have one each. (OpenBLAS's build for
// OpenMP sets the number of threads of the whole program, so that is restored.)
static inline void gemm_cpu_init(void) {
    int threads = omp_get_max_threads();
    openblas_set_num_threads(1);
    omp_set_num_threads(threads);
}

// If not 0, every sum over K is made of parts of so many terms, one after the other, as tensor
// cores do with 16. For tests, and for a program built with -DGEMM_CPU_TERMS=16: what differs then
// differs by the order of summation alone.
#ifndef GEMM_CPU_TERMS
#define GEMM_CPU_TERMS 0
#endif
static int gemm_cpu_terms = GEMM_CPU_TERMS;

// Among how many ranks the rows of D are divided. Tiles are chosen by the shape that all ranks have
// together: BLAS sums in an order that depends on an element's place in its tile, and so each row
// is computed alike whatever the number of ranks, as long as a rank's rows are whole tiles (128
// rows are, for small products also 64 or 32).
static int gemm_cpu_ranks = 1;

// D (M,N) = alpha * op(A) @ op(B) + beta * D, all row-major and without gaps. op transposes: A is
// stored as (K,M) if transpose_a, B as (N,K) if transpose_b.
static inline void gemm_cpu(float* D, const float* A, const float* B, int M, int N, int K,
                            int transpose_a, int transpose_b, float alpha, float beta) {
    // Large tiles, since each one packs its operands anew; a small result is cut finer, so that
    // there is work for every thread.
    int tile_m = 128, tile_n = 512, all_M = M * gemm_cpu_ranks;
    while (tile_m > 32 && ((all_M + tile_m - 1) / tile_m) * ((N + tile_n - 1) / tile_n) < 16) {
        if (tile_n > tile_m) { tile_n /= 2; } else { tile_m /= 2; }
    }
    int tiles_m = (M + tile_m - 1) / tile_m, tiles_n = (N + tile_n - 1) / tile_n;
    #pragma omp parallel for schedule(dynamic)
    for (int tile = 0; tile < tiles_m * tiles_n; tile++) {
        int m = tile / tiles_n * tile_m, n = tile % tiles_n * tile_n;
        int rows = M - m < tile_m ? M - m : tile_m, cols = N - n < tile_n ? N - n : tile_n;
        int most = gemm_cpu_terms > 0 ? gemm_cpu_terms : K;
        for (int k = 0; k < K; k += most) {
            int terms = K - k < most ? K - k : most;
            const float* a = A + (transpose_a ? (size_t)k * (size_t)M + m
                                              : (size_t)m * (size_t)K + k);
            const float* b = B + (transpose_b ? (size_t)n * (size_t)K + k
                                              : (size_t)k * (size_t)N + n);
            cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                        transpose_b ? CblasTrans : CblasNoTrans, rows, cols, terms, alpha,
                        a, transpose_a ? M : K, b, transpose_b ? K : N, k == 0 ? beta : 1.0f,
                        D + (size_t)m * (size_t)N + n, N);
        }
    }
}

#endif
