/*
Quantizes one matrix to NVFP4, so that anyone can compare the bits of this project with those of
another implementation.

    dev/nvfp4_quantize -r ROWS -c COLS [-block 1x16|16x16] [-round nearest|stochastic]
        [-transpose 0|1] [-hadamard 0|1] [-seed S] [-tag G] [-step T] IN OUT

IN:  ROWS x COLS values in BF16, row-major, little-endian, nothing else.
OUT: what became of the matrix as quantized, rows x cols; with -transpose 1 that is COLS x ROWS.

    bytes                content
    4                    amax, the largest absolute value, FP32
    rows * cols / 16     block scales, E4M3, row-major (not in the order of the tensor cores);
                         all 16 rows of a 16x16 tile repeat its scale
    rows * cols / 2      codes, E2M1, row-major, even element in the low nibble

An element is value(code) * block scale * tensor scale, see llmc/nvfp4.h. The operands of a linear
layer in training, for inputs X and output gradients dY of shape (tokens, channels), weights W:

    X     (default)                          W, 16x16 tiles    -block 16x16
    dY    -round stochastic                  X^T for wgrad     -transpose 1 -hadamard 1
                                             dY^T for wgrad    the same, -round stochastic

The Hadamard transform takes groups of 16 along the rows of the matrix as quantized. Random bytes
are numbered along it too: the seed, the tag (which operand) and the step name them (nvfp4.h).

Any error ends the program with a message and exit status 1, and OUT is not written.
*/
#include <math.h>
#include "llmc/bits.h"
#include "llmc/flags.h"
#include "llmc/hadamard.h"
#include "llmc/nvfp4.h"
#include "llmc/utils.h"

// The values of IN (rows, cols), all finite.
static float* matrix_read(const char* path, int rows, int cols) {
    size_t count = (size_t)rows * (size_t)cols;
    FILE* file = file_open(path, "it has to hold the matrix in BF16");
    uint64_t size = file_size(file, path);
    check(size == 2 * (uint64_t)count, "%s has %" PRIu64 " bytes; %d x %d BF16 values need %zu",
          path, size, rows, cols, 2 * count);
    uint16_t* halves = (uint16_t*)xmalloc(2 * count, "the input");
    float* x = (float*)xmalloc(count * sizeof(float), "the input in FP32");
    file_read(halves, 2 * count, file, path);
    fclose(file);
    for (size_t i = 0; i < count; i++) {
        x[i] = bf16_to_float(halves[i]);
        check(isfinite(x[i]), "%s: row %zu, column %zu is %f", path, i / (size_t)cols,
              i % (size_t)cols, (double)x[i]);
    }
    free(halves);
    return x;
}

static void matrix_write(const char* path, const Nvfp4Matrix* m) {
    size_t rows = (size_t)m->rows, cols = (size_t)m->cols, blocks = cols / NVFP4_BLOCK;
    uint8_t* scales = (uint8_t*)xmalloc(rows * blocks, "the block scales");
    for (size_t row = 0; row < rows; row++) {
        for (size_t block = 0; block < blocks; block++) {
            scales[row * blocks + block] = m->block_scales[nvfp4_scale_offset(row, block, cols)];
        }
    }
    FILE* file = file_create(path);
    file_write(m->amax, sizeof(float), file, path);
    file_write(scales, rows * blocks, file, path);
    file_write(m->codes, nvfp4_codes_size(rows, cols), file, path);
    file_commit(file, path);
    free(scales);
}

// 0 or 1: which of two words a flag was given.
static int choice(const char* flag, const char* word, const char* first, const char* second) {
    int is_second = strcmp(word, second) == 0;
    check(is_second || strcmp(word, first) == 0, "%s %s: must be %s or %s", flag, word, first,
          second);
    return is_second;
}

int main(int argc, char** argv) {
    int rows = 0, cols = 0, transpose = 0, hadamard = 0;
    const char* block_word = "1x16";
    const char* round_word = "nearest";
    uint64_t seed = 0, tag = 0, step = 0;
    const Flag flags[] = {
        { "-r", 'i', &rows, 1, INT_MAX, 1, "rows of IN; the files IN and OUT follow the flags" },
        { "-c", 'i', &cols, 1, INT_MAX, 1, "columns of IN" },
        { "-block", 's', &block_word, 0, 0, 1, "elements that share a scale: 1x16 or 16x16" },
        { "-round", 's', &round_word, 0, 0, 1, "nearest or stochastic" },
        { "-transpose", 'i', &transpose, 0, 1, 1, "1: quantize the transposed matrix" },
        { "-hadamard", 'i', &hadamard, 0, 1, 1, "1: transform groups of 16 along its rows first" },
        { "-seed", 'u', &seed, 0, 0, 1, "of stochastic rounding; decimal or 0x hex, 64 bits" },
        { "-tag", 'u', &tag, 0, UINT32_MAX, 1, "which operand; decimal or 0x hex, 32 bits" },
        { "-step", 'u', &step, 0, UINT32_MAX, 1, "which step; decimal or 0x hex, 32 bits" },
    };
    int num_flags = (int)(sizeof(flags) / sizeof(flags[0]));
    int names_files = argc >= 3 && argc % 2 == 1 && argv[argc - 2][0] != '-';
    check(names_files || argc == 2, "after the flags, each with its value, come IN and OUT: "
          "%s -r ROWS -c COLS ... IN OUT; -h lists the flags", argv[0]);
    flags_parse(flags, num_flags, names_files ? argc - 2 : argc, argv);   // of a lone -h: the help
    const char* in = argv[argc - 2];
    const char* out = argv[argc - 1];
    check(rows > 0 && cols > 0, "-r and -c, rows and columns of IN, are needed");
    int block_rows = choice("-block", block_word, "1x16", "16x16") ? 16 : 1;
    Nvfp4Rounding rounding = { choice("-round", round_word, "nearest", "stochastic"), seed,
                               (uint32_t)tag, (uint32_t)step, 0, 0 };

    Nvfp4Matrix m;
    m.rows = transpose ? cols : rows;
    m.cols = transpose ? rows : cols;
    check(m.cols % NVFP4_BLOCK == 0, "%s %d: a row as quantized must be a multiple of 16 long",
          transpose ? "-r" : "-c", m.cols);
    check(m.rows % block_rows == 0, "%s %d: not a multiple of 16, the height of a 16x16 tile",
          transpose ? "-c" : "-r", m.rows);

    float* x = matrix_read(in, rows, cols);
    size_t count = (size_t)rows * (size_t)cols;
    if (transpose) {
        float* xT = (float*)xmalloc(count * sizeof(float), "the transposed matrix");
        hadamard_transpose(xT, x, rows, cols, hadamard);
        free(x);
        x = xT;
    } else if (hadamard) {
        for (size_t i = 0; i < count; i += HADAMARD_SIZE) { hadamard_transform(x + i); }
    }

    float amax;
    size_t out_rows = (size_t)m.rows, out_cols = (size_t)m.cols;
    m.amax = &amax;
    m.codes = (uint8_t*)xmalloc(nvfp4_codes_size(out_rows, out_cols), "the codes");
    m.block_scales = (uint8_t*)xmalloc(nvfp4_scales_size(out_rows, out_cols), "the block scales");
    check(nvfp4_quantize(&m, x, block_rows, rounding) == 0,
          "%s: the Hadamard transform of values this large is not finite", in);
    matrix_write(out, &m);
    free(m.codes);
    free(m.block_scales);
    free(x);
    return 0;
}
