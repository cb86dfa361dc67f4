/*
How the C program's first step reaches the test of the CUDA program: through a file, since both
programs define GPT2 and gpt2_forward and cannot be in one translation unit. test_gpt2.c writes it,
test_model.cu reads it and repeats the step with the same initial weights and tokens.

    OracleHeader
    gradients       (num_params) FP32, absent for models of more than 4 million parameters
    records         num_records times: OracleRecord, codes (rows * cols / 2 bytes), block scales
                    (rows * cols / 16 bytes, row-major): every quantized operand of the step

C11 and C++17.
*/
#ifndef TEST_ORACLE_FILE_H
#define TEST_ORACLE_FILE_H

#include "../../llmc/nvfp4.h"
#include "../../llmc/utils.h"

#define ORACLE_MAGIC 20261123
#define ORACLE_MAX_GRADIENTS 4000000

typedef struct {
    int32_t magic, B, T, num_records;
    uint64_t num_params;
    char model[128], recipe[128];       // as -e and -p take them
    float loss, gradient_norm;
    // the same step by the same program with every sum in two parts: the share of equal codes, the
    // loss, and how far the gradients are off relative to their length
    float reordered_codes, reordered_loss, reordered_gradients;
} OracleHeader;

typedef struct {
    int32_t layer, linear, operand, rows, cols;
    float amax;
} OracleRecord;

// Both programs make the tokens of the step with this: inputs and targets (n), below V.
static inline void oracle_tokens(int* inputs, int* targets, int n, int V, uint32_t seed) {
    for (int i = 0; i < n; i++) {
        Philox p = philox4x32(seed, (uint32_t)i, 0, 0, 0);
        inputs[i] = (int)(p.word[0] % (uint32_t)V);
        targets[i] = (int)(p.word[1] % (uint32_t)V);
    }
}

// How many of the 2 * bytes codes in a and b are equal.
static inline size_t oracle_equal_codes(const uint8_t* a, const uint8_t* b, size_t bytes) {
    size_t equal = 0;
    for (size_t i = 0; i < bytes; i++) {
        int differs = a[i] ^ b[i];
        equal += (size_t)((differs & 15) == 0) + (size_t)((differs & 240) == 0);
    }
    return equal;
}

// The block scales of q in row-major order (rows, cols / 16); the caller frees them.
static inline uint8_t* oracle_scales(const Nvfp4Matrix* q) {
    size_t blocks = (size_t)q->cols / NVFP4_BLOCK;
    uint8_t* scales = (uint8_t*)xmalloc((size_t)q->rows * blocks, "block scales");
    for (size_t row = 0; row < (size_t)q->rows; row++) {
        for (size_t block = 0; block < blocks; block++) {
            scales[row * blocks + block] =
                q->block_scales[nvfp4_scale_offset(row, block, (size_t)q->cols)];
        }
    }
    return scales;
}

#endif
