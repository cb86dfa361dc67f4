/*
What guards.h looks for, counted on the GPU: whether gradients are zero, the block scales of an
operand, a checksum of the weights. Whole numbers, so the order of the threads does not matter. The
counts stay on the device until the host waits for the length of the gradient, and come with that.
*/
#ifndef LLMC_GUARDS_CUH
#define LLMC_GUARDS_CUH

#include "device_memory.cuh"
#include "guards.h"

#define GUARD_BLOCKS 1024               // thread blocks of a launch, at most
#define GUARD_THREADS 256

typedef struct {
    Guards* host;               // NULL: there are no guards
    Range* tensors;             // (num_tensors) host->tensors[].here
    uint64_t* counts;           // (num_counts) host->counts, in this update so far
} DeviceGuards;

// host: NULL for none.
static inline void device_guards_open(DeviceGuards* d, Guards* host) {
    d->host = host;
    if (host == NULL) { return; }
    size_t tensors = (size_t)host->num_tensors * sizeof(Range);
    Range* here = (Range*)xmalloc(tensors, "guards");
    for (int i = 0; i < host->num_tensors; i++) { here[i] = host->tensors[i].here; }
    d->tensors = (Range*)device_alloc(tensors, "scratch");
    d->counts = (uint64_t*)device_alloc((size_t)host->num_counts * sizeof(uint64_t), "scratch");
    cudaCheck(cudaMemcpy(d->tensors, here, tensors, cudaMemcpyHostToDevice));
    free(here);
}

// Update `step` begins.
static inline void device_guards_begin(DeviceGuards* d, int step, cudaStream_t stream) {
    guards_begin(d->host, step);
    if (d->host == NULL) { return; }
    size_t bytes = (size_t)d->host->num_counts * sizeof(uint64_t);
    cudaCheck(cudaMemsetAsync(d->counts, 0, bytes, stream));
}

// As guards_scale_counts.
static inline uint64_t* device_guards_scale_counts(const DeviceGuards* d, int micro) {
    return guards_scale_counts(d->host, micro) != NULL ? d->counts : NULL;
}

// Behind all that is counted; the host has the counts when it has waited for the stream.
static inline void device_guards_read(const DeviceGuards* d, cudaStream_t stream) {
    if (d->host == NULL) { return; }
    size_t bytes = (size_t)d->host->num_counts * sizeof(uint64_t);
    cudaCheck(cudaMemcpyAsync(d->host->counts, d->counts, bytes, cudaMemcpyDeviceToHost, stream));
}

__device__ static inline void count_add(uint64_t* count, uint64_t n) {
    atomicAdd((unsigned long long*)count, (unsigned long long)n);
}

// ---------------------------------------------------------------------------------------------
// Gradients

// A thread block for each tensor. A thread ends at its first element that is not zero, or when it
// sees that another one has found one: of a healthy tensor each reads 16 bytes.
static __global__ void count_gradients_kernel(uint64_t* nonzero, const float* grads,
                                              const Range* tensors) {
    Range here = tensors[blockIdx.x];
    volatile uint64_t* found = &nonzero[blockIdx.x];
    for (size_t i = 4 * threadIdx.x; i < here.count && *found == 0; i += 4 * blockDim.x) {
        Vec<float> x = vec_load(grads + here.first + i);
        if (x.at[0] != 0.0f || x.at[1] != 0.0f || x.at[2] != 0.0f || x.at[3] != 0.0f) {
            *found = 1;
        }
    }
}

// As guards_count_gradients; grads (part) on the device.
static inline void device_guards_count_gradients(const DeviceGuards* d, const float* grads,
                                                 cudaStream_t stream) {
    if (d->host == NULL) { return; }
    count_gradients_kernel<<<(unsigned)d->host->num_tensors, 1024, 0, stream>>>(
        d->counts + guard_tensor_counts(d->host), grads, d->tensors);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Weights

static __global__ void add_weights_kernel(uint64_t* checksum, const uint32_t* words, size_t n) {
    __shared__ uint32_t sum;
    if (threadIdx.x == 0) { sum = 0; }
    __syncthreads();
    uint32_t own = 0;
    size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        own += guard_checksum_term(words[i], i);
    }
    atomicAdd(&sum, own);
    __syncthreads();
    if (threadIdx.x == 0) { count_add(checksum, sum); }
}

// As guards_add_weights.
static inline void device_guards_add_weights(const DeviceGuards* d, const void* weights,
                                             size_t bytes, cudaStream_t stream) {
    size_t n = bytes / 4, blocks = CEIL_DIV(n, GUARD_THREADS);
    if (n == 0) { return; }
    blocks = blocks < GUARD_BLOCKS ? blocks : GUARD_BLOCKS;
    add_weights_kernel<<<(unsigned)blocks, GUARD_THREADS, 0, stream>>>(
        d->counts + GUARD_CHECKSUMS + d->host->rank, (const uint32_t*)weights, n);
    cudaCheck(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------
// Block scales

typedef struct {
    Nvfp4Matrix q;              // of 0 rows: nothing is counted
    Format format;
    uint64_t* counts;           // (NUM_SCALE_COUNTS)
} CountedOperand;

// Words of 4 scale bytes, padding included: 4 blocks of a row, the first a multiple of 4, lie side
// by side (nvfp4_scale_offset).
HOST_DEVICE static inline uint32_t counted_words(CountedOperand c) {
    return (uint32_t)(quantized_scales_size(c.format, (size_t)c.q.rows, (size_t)c.q.cols) / 4);
}

// Counts what one word has: found[0] underflows, found[1] largest. Padding behind a row's last block
// is 0, and block_has_codes finds nothing there.
__device__ static inline void count_word(uint32_t* found /* (2) */, CountedOperand c, uint32_t word,
                                         uint32_t blocks) {
    uint32_t across = CEIL_DIV(blocks, 4u), tile = word / 128, inside = word % 128;
    uint32_t row = tile / across * 128 + inside % 4 * 32 + inside / 4, first = tile % across * 4;
    if (row >= (uint32_t)c.q.rows) { return; }
    uint32_t bytes = ((const uint32_t*)c.q.block_scales)[word];
    for (uint32_t k = 0; k < 4; k++) {
        uint8_t byte = (uint8_t)(bytes >> (8 * k));
        found[0] += byte == 0 && block_has_codes(&c.q, row, first + k, c.format);
        found[1] += scale_is_largest(byte, c.format);
    }
}

// The thread blocks with y 0 count a, the others b.
static __global__ void count_scales_kernel(CountedOperand a, CountedOperand b) {
    __shared__ uint32_t found[2];
    CountedOperand c = blockIdx.y == 0 ? a : b;
    uint32_t own[2] = { 0, 0 }, words = counted_words(c), stride = gridDim.x * blockDim.x;
    uint32_t blocks = (uint32_t)quantized_blocks(c.format, (size_t)c.q.cols);
    if (threadIdx.x < 2) { found[threadIdx.x] = 0; }
    __syncthreads();
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += stride) {
        count_word(own, c, i, blocks);
    }
    if (own[0] > 0) { atomicAdd(&found[0], own[0]); }
    if (own[1] > 0) { atomicAdd(&found[1], own[1]); }
    __syncthreads();
    if (threadIdx.x > 0) { return; }
    if (found[0] > 0) { count_add(&c.counts[SCALES_UNDERFLOWS], found[0]); }
    if (found[1] > 0) { count_add(&c.counts[SCALES_LARGEST], found[1]); }
    if (blockIdx.x == 0) { count_add(&c.counts[SCALES_BLOCKS], (uint64_t)c.q.rows * blocks); }
}

// As scales_count, of the two operands of a GEMM.
static inline void device_scales_count(CountedOperand a, CountedOperand b, cudaStream_t stream) {
    uint32_t words_a = counted_words(a), words_b = counted_words(b);
    uint32_t words = words_a > words_b ? words_a : words_b;
    if (words == 0) { return; }
    uint32_t blocks = CEIL_DIV(words, GUARD_THREADS);
    dim3 grid(blocks < GUARD_BLOCKS ? blocks : GUARD_BLOCKS, 2);
    count_scales_kernel<<<grid, GUARD_THREADS, 0, stream>>>(a, b);
    cudaCheck(cudaGetLastError());
}

#endif
