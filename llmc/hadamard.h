/*
The 16-point randomized Hadamard transform. It turns 16 numbers into 16 sums and differences of all
of them, so one outlier is spread over its block instead of deciding the block's scale alone. Being
orthogonal, it leaves dot products as they were: both operands of the weight-gradient GEMM are
transformed along the dimension that the GEMM contracts (tokens), and the transforms cancel.

    out_c = 1/4 * sum_r  sign_r * x_r * H[r][c],    H[r][c] = (-1)^popcount(r & c)

The signs keep a block with a constant part from sending all of it into out_0. They are
fixed, one vector for all layers and the whole run, the one TransformerEngine uses
[arXiv 2509.25149, 4.2, E.4.3].

The transform has more general forms, of 16, 32, 64 or 128 points, with signs that are fixed or
drawn anew each time: a Rotation. With 16 points and fixed signs it is the transform above, which
has functions of its own because it has kernels of its own.

Plain C11 that nvcc also compiles for the device.
*/
#ifndef LLMC_HADAMARD_H
#define LLMC_HADAMARD_H

#include "bits.h"
#include "random.h"

#define HADAMARD_SIZE 16
#define HADAMARD_SIGNS 0xD7E8u          // bit r set: sign_r is -1

// The sums of `size` values, a power of two of them, in place: rounds of butterflies with strides
// 1, 2, 4 and so on. This order is part of the definition, because FP32 sums of BF16 values that
// differ by more than 2^12 are not exact.
HOST_DEVICE static inline void hadamard_butterflies(float* x /* (size) */, int size) {
    UNROLL
    for (int stride = 1; stride < size; stride *= 2) {
        UNROLL
        for (int i = 0; i < size; i++) {
            if ((i & stride) == 0) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
        }
    }
}

// The signs and the sums, in place.
HOST_DEVICE static inline void hadamard_sums(float* x /* (16) */) {
    UNROLL
    for (int r = 0; r < HADAMARD_SIZE; r++) {
        x[r] = HADAMARD_SIGNS >> r & 1u ? -x[r] : x[r];
    }
    hadamard_butterflies(x, HADAMARD_SIZE);
}

// What becomes of a sum: a quarter of it, rounded to BF16. Never decreasing in its argument.
HOST_DEVICE static inline float hadamard_round(float sum) {
    return bf16_round(0.25f * sum);
}

// The transform, in place, of 16 BF16 values.
HOST_DEVICE static inline void hadamard_transform(float* x /* (16) */) {
    hadamard_sums(x);
    UNROLL
    for (int c = 0; c < HADAMARD_SIZE; c++) { x[c] = hadamard_round(x[c]); }
}

// out (cols, rows) = transpose of x (rows, cols), with groups of 16 consecutive rows of x
// transformed if hadamard is set. rows is a multiple of 16. With it set it is rotation_transpose of 16
// points and fixed signs, which is what the trainers' wgrad operands come from.
static inline void hadamard_transpose(float* out, const float* x, int rows, int cols,
                                      int hadamard) {
    #pragma omp parallel for
    for (int row = 0; row < rows; row += HADAMARD_SIZE) {
        for (int col = 0; col < cols; col++) {
            float* group = out + (size_t)col * rows + row;
            for (int r = 0; r < HADAMARD_SIZE; r++) {
                group[r] = x[(size_t)(row + r) * cols + col];
            }
            if (hadamard) { hadamard_transform(group); }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Rotations

typedef struct {
    int size;                   // points: 16, 32, 64 or 128; 0: there is no rotation
    uint32_t signs[4];          // bit r % 32 of word r / 32 set: sign_r is -1
} Rotation;

// The size for operands of a GEMM that contracts K: the largest power of two, not above `wanted`,
// that divides K. K is a multiple of 16.
HOST_DEVICE static inline int rotation_size(int wanted, int K) {
    int size = wanted;
    while (size > 0 && K % size != 0) { size /= 2; }
    return size;
}

// Fixed signs are those above, repeated. Fresh ones are random bits, which differ between tags and
// steps; both operands of a GEMM must be given the same tag. The counter is that of no block
// (nvfp4_random_bytes): there are fewer than 2^64 - 1 of them.
HOST_DEVICE static inline Rotation rotation_make(int size, int fresh, uint64_t seed, uint32_t tag,
                                                 uint32_t step) {
    Philox random = philox4x32(seed, 0xffffffffu, 0xffffffffu, tag, step);
    Rotation r;
    r.size = size;
    for (int i = 0; i < 4; i++) {
        r.signs[i] = fresh ? random.word[i] : HADAMARD_SIGNS * 0x10001u;
    }
    return r;
}

HOST_DEVICE static inline int rotation_is_minus(const Rotation* r, int i) {
    return (int)(r->signs[i / 32] >> (i % 32) & 1u);
}

// 1 / sqrt(size), rounded to nearest.
HOST_DEVICE static inline float rotation_factor(int size) {
    return size == 16 ? 0.25f : size == 32 ? 0.17677669529663687f
         : size == 64 ? 0.125f : 0.08838834764831843f;
}

// What becomes of a sum. Never decreasing in its argument.
HOST_DEVICE static inline float rotation_round(float sum, int size) {
    return bf16_round(sum * rotation_factor(size));
}

// The rotation, in place, of r->size BF16 values: signs, sums, and a factor that keeps the length.
// The results are BF16.
HOST_DEVICE static inline void rotation_apply(float* x /* (r->size) */, const Rotation* r) {
    for (int i = 0; i < r->size; i++) { x[i] = rotation_is_minus(r, i) ? -x[i] : x[i]; }
    hadamard_butterflies(x, r->size);
    for (int i = 0; i < r->size; i++) { x[i] = rotation_round(x[i], r->size); }
}

// Rotates groups of r->size columns of x (rows, cols), in place. cols is a multiple of it.
static inline void rotation_rows(float* x, int rows, int cols, const Rotation* r) {
    if (r->size == 0) { return; }
    #pragma omp parallel for
    for (int row = 0; row < rows; row++) {
        for (int col = 0; col < cols; col += r->size) {
            rotation_apply(x + (size_t)row * (size_t)cols + col, r);
        }
    }
}

// out (cols, rows) = transpose of x (rows, cols), with groups of r->size consecutive rows of x
// rotated. rows is a multiple of 16 and of r->size.
static inline void rotation_transpose(float* out, const float* x, int rows, int cols,
                                      const Rotation* r) {
    hadamard_transpose(out, x, rows, cols, 0);
    rotation_rows(out, cols, rows, r);
}

#endif
