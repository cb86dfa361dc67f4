/*
What quantization has done to one operand of a GEMM: counts and sums over its elements and blocks,
from the values that went in and the matrix that came out. With x an element and

    x_q  =  value(code) * block scale * tensor scale

    signal, noise   sums of x^2 and of (x_q - x)^2
    flushed         elements that were not zero and are now
    saturated       elements beyond the largest code of their block: rounding could not reach them
    scales          blocks by the exponent e of their scale, 2^e <= scale < 2^(e+1)
    fours           blocks, or tiles, in which Four Over Six (four_six.h) loses less with 4 than with
                    6: what the recipe chose, or what it would have chosen with foursix=mse

Ratios are left to the reader, findings.py. The results do not depend on the number of threads.

C11 that also compiles as C++17.
*/
#ifndef DEV_OPERAND_STATS_H
#define DEV_OPERAND_STATS_H

#include <math.h>
#include "llmc/quantizer.h"
#include "llmc/utils.h"

#define STATS_EXPONENTS 256             // e is from -128 to 127
#define STATS_ROWS 64                   // rows that one thread counts at a time

typedef struct {
    int64_t nonzero, flushed, saturated;        // elements
    double signal, noise;
    int64_t blocks;                     // that have a scale; a tile is one in each of its rows
    int64_t zero_scales;
    int64_t scales[STATS_EXPONENTS];    // scales[e + 128]
    int64_t choices, fours;             // blocks or tiles that could choose, and those that took 4
} OperandStats;

// Adds a row of x and of its quantized form.
static inline void operand_stats_row(OperandStats* stats, const float* x /* (cols) */,
                                     const Nvfp4Matrix* x_q, Quantizer q, size_t row) {
    size_t cols = (size_t)x_q->cols, block = (size_t)format_block(q.format);
    double tensor_scale = (double)quantizer_tensor_scale(q, *x_q->amax).scale;
    double largest = format_bits(q.format) == 4 ? 6.0 : q.e5m2 ? E5M2_LARGEST : E4M3_LARGEST;
    double block_scale = 1.0;
    for (size_t col = 0; col < cols; col++) {
        if (block > 0 && col % block == 0) {
            size_t offset = quantized_scale_offset(q.format, row, col / block, cols);
            int exponent = 0;
            block_scale = (double)quantized_block_value(q.format, x_q->block_scales[offset]);
            frexp(block_scale, &exponent);              // 2^(exponent-1) <= scale < 2^exponent
            stats->blocks++;
            if (block_scale == 0.0) { stats->zero_scales++; }
            else { stats->scales[exponent - 1 + STATS_EXPONENTS / 2]++; }
        }
        double scale = block_scale * tensor_scale, value = (double)x[col];
        double error = (double)quantized_value(q, x_q->codes, row * cols + col) * scale - value;
        // scales are FP32 numbers, so the tensor's amax itself may seem to be beyond by their
        // rounding; 2^-16 is more than that, and less than what tells BF16 numbers apart
        int beyond = fabs(value) > largest * scale * (1.0 + 1.0 / 65536.0);
        int flushed = value != 0.0 && error == -value;
        stats->nonzero += value != 0.0;
        stats->flushed += flushed;
        stats->saturated += beyond && !flushed;
        stats->signal += value * value;
        stats->noise += error * error;
    }
}

// Adds the choices of the blocks of one row, or of the tiles whose first row it is: top.
static inline void operand_stats_fours(OperandStats* stats, const float* x /* (rows, cols) */,
                                       const Nvfp4Matrix* x_q, Quantizer q, size_t top) {
    size_t cols = (size_t)x_q->cols, bottom = top + (q.tile ? NVFP4_BLOCK : 1);
    if (q.format != FORMAT_NVFP4 || q.rounding != ROUND_NEAREST) { return; }
    if (q.four_six == FOUR_SIX_OFF) { q.four_six = FOUR_SIX_MSE; }
    TensorScale t = quantizer_tensor_scale(q, *x_q->amax);
    for (size_t left = 0; left < cols; left += NVFP4_BLOCK) {
        float errors[2] = { 0.0f, 0.0f };
        uint32_t amax = 0;
        for (size_t row = top; row < bottom; row++) {
            uint32_t of_row = nvfp4_amax_bits(x + row * cols + left, NVFP4_BLOCK);
            amax = of_row > amax ? of_row : amax;
        }
        for (size_t row = top; row < bottom; row++) {
            quantizer_errors(errors, x + row * cols + left, bits_float(amax), t, q);
        }
        stats->choices++;
        stats->fours += errors[1] < errors[0];
    }
}

static inline void operand_stats_add(OperandStats* sum, const OperandStats* part) {
    sum->nonzero += part->nonzero;
    sum->flushed += part->flushed;
    sum->saturated += part->saturated;
    sum->signal += part->signal;
    sum->noise += part->noise;
    sum->blocks += part->blocks;
    sum->zero_scales += part->zero_scales;
    for (int e = 0; e < STATS_EXPONENTS; e++) { sum->scales[e] += part->scales[e]; }
    sum->choices += part->choices;
    sum->fours += part->fours;
}

// Of x (rows, cols), BF16 values as the quantizer saw them (transposed and rotated, if it does
// that), and x_q, made from it as q says. Both lie in host memory.
static inline OperandStats operand_stats(const float* x, const Nvfp4Matrix* x_q, Quantizer q) {
    size_t rows = (size_t)x_q->rows, cols = (size_t)x_q->cols;
    size_t pieces = (rows + STATS_ROWS - 1) / STATS_ROWS, tile = q.tile ? NVFP4_BLOCK : 1;
    OperandStats* parts = (OperandStats*)xcalloc(pieces * sizeof(OperandStats), "statistics");
    OperandStats sum;
    memset(&sum, 0, sizeof(sum));
    #pragma omp parallel for
    for (size_t i = 0; i < pieces; i++) {
        for (size_t row = i * STATS_ROWS; row < rows && row < (i + 1) * STATS_ROWS; row++) {
            operand_stats_row(&parts[i], x + row * cols, x_q, q, row);
            if (row % tile == 0) { operand_stats_fours(&parts[i], x, x_q, q, row); }
        }
    }
    for (size_t i = 0; i < pieces; i++) { operand_stats_add(&sum, &parts[i]); }
    free(parts);
    return sum;
}

#endif
