/*
Device memory by family: every long-lived allocation of more than a few MiB names the family it belongs
to, and the start-up printout says how much each family takes. Not in it: cuBLASLt's workspace (32 MiB,
gemm_plain.cuh), padded operands and scales of GEMMs, the CUDA context.
*/
#ifndef LLMC_DEVICE_MEMORY_CUH
#define LLMC_DEVICE_MEMORY_CUH

#include "cuda_common.cuh"

#define MEMORY_FAMILIES 32

typedef struct { const char* name; size_t bytes; } MemoryFamily;

// Programs live as long as their allocations; there is one list.
static inline MemoryFamily* memory_families(void) {
    static MemoryFamily families[MEMORY_FAMILIES];
    return families;
}

static inline MemoryFamily* memory_family(const char* name) {
    MemoryFamily* f = memory_families();
    int i = 0;
    while (i < MEMORY_FAMILIES && f[i].name != NULL && strcmp(f[i].name, name) != 0) { i++; }
    check(i < MEMORY_FAMILIES, "more than %d families of memory", MEMORY_FAMILIES);
    f[i].name = name;
    return &f[i];
}

// Device memory, counted under the family; 0 bytes give NULL.
static inline void* device_alloc(size_t bytes, const char* family) {
    if (bytes == 0) { return NULL; }
    memory_family(family)->bytes += bytes;
    return cuda_malloc(bytes, family);
}

// Gives back what device_alloc gave for as many bytes of the same family.
static inline void device_free(void* memory, size_t bytes, const char* family) {
    if (bytes == 0) { return; }
    memory_family(family)->bytes -= bytes;
    cudaCheck(cudaFree(memory));
}

// Bytes of all families. What the CUDA context and libraries take is not in it.
static inline size_t device_memory_total(void) {
    size_t total = 0;
    for (int i = 0; i < MEMORY_FAMILIES; i++) { total += memory_families()[i].bytes; }
    return total;
}

static inline void device_memory_print(void) {
    printf("device memory     MiB\n");
    for (const MemoryFamily* f = memory_families();
         f < memory_families() + MEMORY_FAMILIES && f->name != NULL; f++) {
        printf("  %-22s %9.1f\n", f->name, (double)f->bytes / (1 << 20));
    }
    printf("  %-22s %9.1f\n", "in all", (double)device_memory_total() / (1 << 20));
}

#endif
