/*
The PTX instructions that our kernels use, as functions of plain C++: the name is the opcode with _
for each dot, the operands stand in the instruction's order, results first. Each follows the
description in the PTX ISA. translate.sh makes the calls; cuda_on_cpu.h includes this file.

They are a second reading of the manual, not the hardware: that the two are the same is what the
tests show on a GPU.
*/
#ifndef CUDA_ON_CPU_PTX_H
#define CUDA_ON_CPU_PTX_H

// An address in shared memory is a 32-bit number: here the distance to the dynamic part.
static inline size_t __cvta_generic_to_shared(const void* pointer) {
    return (size_t)((const char*)pointer - dynamic_shared);
}
static inline char* shared_pointer(uint32_t address) { return dynamic_shared + (int32_t)address; }

static inline float flush_subnormal(float x) { return fabsf(x) < 0x1p-126f ? 0.0f * x : x; }
#define ptx_ex2_approx_ftz_f32(result, x) ((result) = flush_subnormal(exp2f(x)))

// ---------------------------------------------------------------------------------------------
// Copies in the background: done as late as they may be, when the thread waits for them

#define MOST_COPIES 128
typedef struct { char* to; const void* from; size_t bytes, bytes_read; } Copy;
static struct { int count; Copy copies[MOST_COPIES]; } copies_begun[MOST_THREADS];

static inline void copy_begin(uint32_t to, const void* from, int bytes, int bytes_read) {
    int thread = cpu.running->thread, i = copies_begun[thread].count++;
    if (i == MOST_COPIES) { kernel_error("more than %d copies begun", MOST_COPIES); }
    Copy copy = { shared_pointer(to), from, (size_t)bytes, (size_t)bytes_read };
    copies_begun[thread].copies[i] = copy;
}

static inline void copies_end(void) {
    int thread = cpu.running->thread;
    for (int i = 0; i < copies_begun[thread].count; i++) {
        Copy copy = copies_begun[thread].copies[i];
        memset(copy.to, 0, copy.bytes);
        memcpy(copy.to, copy.from, copy.bytes_read);
    }
    copies_begun[thread].count = 0;
}

#define ptx_cp_async_cg_shared_global copy_begin
#define ptx_cp_async_ca_shared_global copy_begin
#define ptx_cp_async_wait_all copies_end

// ---------------------------------------------------------------------------------------------
// Matrices of BF16 in the registers of a warp, laid out as attention.cuh draws them

typedef struct { uint16_t at[8]; } MatrixRow;

// Lane 8i+r reads row r of matrix i, at `address`; all of it, before any lane goes on.
static inline const MatrixRow* matrix_rows(uint32_t address, const char* place) {
    if (address % 16 != 0) { kernel_error("%s: a row at %u, no multiple of 16", place, address); }
    MatrixRow row;
    memcpy(&row, shared_pointer(address), sizeof(row));
    return warp_show(ALL_LANES, row, place);
}

static inline uint32_t pair_of(uint16_t low, uint16_t high) { return low | (uint32_t)high << 16; }

static inline uint32_t matrix_part(const MatrixRow* rows /* (8) */) {
    int lane = lane_number();
    return pair_of(rows[lane / 4].at[lane % 4 * 2], rows[lane / 4].at[lane % 4 * 2 + 1]);
}

static inline uint32_t matrix_part_transposed(const MatrixRow* rows /* (8) */) {
    int lane = lane_number();
    return pair_of(rows[lane % 4 * 2].at[lane / 4], rows[lane % 4 * 2 + 1].at[lane / 4]);
}

#define MATRICES_LOAD(part, a, b, c, d, address)                                                   \
    const MatrixRow* rows = matrix_rows(address, HERE("ldmatrix"));                                \
    a = part(rows), b = part(rows + 8), c = part(rows + 16), d = part(rows + 24)
#define ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(a, b, c, d, address)                          \
    MATRICES_LOAD(matrix_part, a, b, c, d, address)
#define ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(a, b, c, d, address)                    \
    MATRICES_LOAD(matrix_part_transposed, a, b, c, d, address)

UNCHECKED static inline float bf16_half(uint32_t pair, int high) {
    uint32_t bits = high ? pair & 0xffff0000u : pair << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

typedef struct { uint32_t a[4], b[2]; } ProductOperands;

// d = a @ b + c for element e of this lane's sum
UNCHECKED static inline float product_element(const ProductOperands* lanes /* (32) */, int e,
                                              float c) {
    int row = lane_number() / 4 + e / 2 * 8, column = lane_number() % 4 * 2 + e % 2;
    for (int k = 0; k < 16; k++) {
        uint32_t a = lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
        uint32_t b = lanes[column * 4 + k % 8 / 2].b[k / 8];
        c += bf16_half(a, k % 2) * bf16_half(b, k % 2);
    }
    return c;
}

#define ptx_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(d0, d1, d2, d3, a0, a1, a2, a3,    \
                                                                b0, b1, c0, c1, c2, c3)            \
    ProductOperands mine = { { a0, a1, a2, a3 }, { b0, b1 } };                                     \
    const ProductOperands* lanes = warp_show(ALL_LANES, mine, HERE("mma"));                        \
    d0 = product_element(lanes, 0, c0), d1 = product_element(lanes, 1, c1);                        \
    d2 = product_element(lanes, 2, c2), d3 = product_element(lanes, 3, c3)

#endif
