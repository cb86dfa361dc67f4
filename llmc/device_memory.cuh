/*
Device memory by family: every long-lived allocation names the family it belongs to, and the start-up
printout says how much each family takes.
*/
#ifndef LLMC_DEVICE_MEMORY_CUH
#define LLMC_DEVICE_MEMORY_CUH

#include "cuda_common.cuh"
#include "quantize.cuh"

#define MEMORY_FAMILIES 32

typedef struct { const char* name; size_t bytes; } MemoryFamily;

// Programs live as long as their allocations; there is one list.
static inline MemoryFamily* memory_families(void) {
    static MemoryFamily families[MEMORY_FAMILIES];
    return families;
}

static inline void* device_alloc(size_t bytes, const char* family) {
    MemoryFamily* f = memory_families();
    int i = 0;
    while (i < MEMORY_FAMILIES && f[i].name != NULL && strcmp(f[i].name, family) != 0) { i++; }
    check(i < MEMORY_FAMILIES, "more than %d families of memory", MEMORY_FAMILIES);
    f[i].name = family;
    f[i].bytes += bytes;
    return cuda_malloc(bytes, family);
}

// A quantized matrix whose scales and amax have memory of their own; the codes lie where the caller says.
// The scales are zeroed here, once: no quantizer writes their padding, and the tensor cores read it.
static inline Nvfp4Matrix device_alloc_nvfp4_scales(uint8_t* codes, int rows, int cols, const char* family) {
    size_t bytes = nvfp4_scales_size((size_t)rows, (size_t)cols);
    Nvfp4Matrix matrix;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.codes = codes;
    matrix.block_scales = (uint8_t*)device_alloc(bytes, family);
    matrix.amax = (float*)device_alloc(sizeof(float), family);
    cudaCheck(cudaMemset(matrix.block_scales, 0, bytes));
    return matrix;
}

static inline Nvfp4Matrix device_alloc_nvfp4(int rows, int cols, const char* family) {
    uint8_t* codes = (uint8_t*)device_alloc(nvfp4_codes_size((size_t)rows, (size_t)cols), family);
    return device_alloc_nvfp4_scales(codes, rows, cols, family);
}

static inline void device_memory_print(void) {
    size_t total = 0;
    printf("device memory     MiB\n");
    for (const MemoryFamily* f = memory_families(); f < memory_families() + MEMORY_FAMILIES && f->name != NULL; f++) {
        printf("  %-22s %9.1f\n", f->name, (double)f->bytes / (1 << 20));
        total += f->bytes;
    }
    printf("  %-22s %9.1f\n", "in all", (double)total / (1 << 20));
}

#endif
