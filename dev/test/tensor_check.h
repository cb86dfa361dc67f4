/*
Comparing tensors: shapes to test with, reproducible contents, and reports that name the worst
element by its coordinates. Prints and counts through report.h. C11 and C++; device_check.cuh adds
the GPU.

    exact      every bit, NaN included
    bounded    |got - want| <= bound, one bound for each element, derived where it is computed.
               Written so that NaN fails: a comparison with NaN is false.
*/
#ifndef TEST_TENSOR_CHECK_H
#define TEST_TENSOR_CHECK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "../../llmc/bits.h"
#include "../../llmc/random.h"
#include "report.h"

// ---------------------------------------------------------------------------------------------
// Shapes

// What the layers are tried with. V is the vocabulary; Vp is the next multiple of 128.
typedef struct { int B, T, C, NH, V; } TestShape;

static const TestShape test_shapes[] = {
    { 1,   1,   16,  1,     2 },        // the smallest legal
    { 3,  17,   48,  3,   257 },        // no multiple of a tile in any dimension
    { 4,  64,  768, 12, 50257 },        // GPT-2 small
    { 2, 130, 1600, 25,  5000 },        // GPT-2 XL: a row takes more than one warp
};
#define NUM_TEST_SHAPES ((int)(sizeof(test_shapes) / sizeof(test_shapes[0])))

// The dimensions of a tensor with a letter for each: shape3("btc", B, T, C).
typedef struct {
    const char* letters;
    int size[4];
} Shape;

static inline Shape shape4(const char* letters, int size0, int size1, int size2, int size3) {
    Shape s;
    s.letters = letters;
    s.size[0] = size0;
    s.size[1] = size1;
    s.size[2] = size2;
    s.size[3] = size3;
    return s;
}

static inline Shape shape3(const char* letters, int size0, int size1, int size2) {
    return shape4(letters, size0, size1, size2, 1);
}

static inline Shape shape2(const char* letters, int size0, int size1) {
    return shape4(letters, size0, size1, 1, 1);
}

static inline Shape shape1(const char* letters, int size0) {
    return shape4(letters, size0, 1, 1, 1);
}

static inline size_t shape_elements(Shape s) {
    return (size_t)s.size[0] * s.size[1] * s.size[2] * s.size[3];
}

// text = "(b 3, t 17, c 511)" for an element of a tensor in row-major order
static inline void shape_coordinates(char* text /* (bytes) */, size_t bytes, Shape s,
                                     size_t element) {
    size_t behind = shape_elements(s);      // elements that share the coordinates so far
    int used = snprintf(text, bytes, "(");
    for (int d = 0; s.letters[d] != '\0'; d++) {
        behind /= (size_t)s.size[d];
        used += snprintf(text + used, bytes - (size_t)used, "%s%c %zu", d > 0 ? ", " : "",
                         s.letters[d], element / behind % (size_t)s.size[d]);
    }
    snprintf(text + used, bytes - (size_t)used, ")");
}

// ---------------------------------------------------------------------------------------------
// Contents

// x (n) = mean + deviation * normal numbers; `stream` keeps tensors of one test apart.
static inline void fill_normal(float* x, size_t n, uint32_t stream, float mean, float deviation) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) { x[i] = mean + deviation * random_normal(20260101, stream, i); }
}

// x (n) = integers in 0 .. count - 1
static inline void fill_integers(int* x, size_t n, uint32_t stream, int count) {
    for (size_t i = 0; i < n; i++) {
        uint32_t word = philox4x32(20260101, (uint32_t)i, (uint32_t)(i >> 32), stream, 1).word[0];
        x[i] = (int)(word % (uint32_t)count);
    }
}

// ---------------------------------------------------------------------------------------------
// Comparisons

static inline void check_exact(const char* name, const float* got, const float* want, Shape s) {
    size_t n = shape_elements(s), differ = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        if (float_bits(got[i]) == float_bits(want[i])) { continue; }
        if (differ == 0) { first = i; }
        differ++;
    }
    if (differ == 0) {
        report(n > 0, name, "0 of %zu differ", n);
        return;
    }
    char where[100];
    shape_coordinates(where, sizeof(where), s, first);
    report(0, name, "%zu of %zu differ; first at %s: %.9g instead of %.9g", differ, n, where,
           got[first], want[first]);
}

static inline void check_bounded(const char* name, const float* got, const double* want,
                                 const double* bound, Shape s) {
    size_t n = shape_elements(s), beyond = 0, worst = 0;
    double worst_share = -1.0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)got[i] - want[i]);
        int good = error <= bound[i];
        double share = error == 0.0 ? 0.0 : error / bound[i];
        if (!good && !(share > 1.0)) { share = INFINITY; }      // NaN
        if (share > worst_share) {
            worst_share = share;
            worst = i;
        }
        beyond += !good;
    }
    char where[100];
    shape_coordinates(where, sizeof(where), s, worst);
    if (beyond == 0) {
        report(n > 0, name, "worst %.2f of bound at %s", worst_share, where);
    } else {
        report(0, name, "%zu of %zu beyond the bound; worst at %s: %.9g instead of %.9g, "
               "bound %.3g", beyond, n, where, got[worst], want[worst], bound[worst]);
    }
}

// ---------------------------------------------------------------------------------------------
// Whole tensors

// |a - b| over |b| as vectors; NaN anywhere gives NaN, which no comparison accepts.
static inline double relative_distance(const float* a, const float* b, size_t n) {
    double difference = 0.0, length = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        length += (double)b[i] * b[i];
    }
    return sqrt(difference / (length > 0.0 ? length : 1.0));
}

#endif
