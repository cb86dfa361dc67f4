/*
The functions of the CUDA runtime that our programs call: device memory is host memory, streams do
everything at once, and there is one device, whose compute capability a test can choose. Included by
cuda_on_cpu.h.
*/
#ifndef CUDA_ON_CPU_RUNTIME_H
#define CUDA_ON_CPU_RUNTIME_H

#include <stdlib.h>
#include <string.h>
#include <cuda_runtime.h>

static struct { int major, minor; } device_capability = { 9, 0 };

// Which GPU to be.
static inline void cuda_on_cpu_capability(int major, int minor) {
    device_capability.major = major;
    device_capability.minor = minor;
}

// Shared memory that a block can have, in bytes [CUDA C++ Programming Guide, compute capabilities]
static inline int device_shared_memory(void) {
    int c = 10 * device_capability.major + device_capability.minor;
    return (c == 80 || c == 87 ? 163 : c == 90 || c == 100 || c == 103 ? 227 : 99) << 10;
}

// ---------------------------------------------------------------------------------------------
// Memory: starts as NaN, on a multiple of 256 bytes, as the real one. What was allocated is written
// down, so that an address of the wrong side can be told.

#define MOST_ALLOCATIONS 65536

static struct { char* first; size_t bytes; } device_memory[MOST_ALLOCATIONS];
static int device_allocations = 0;          // the free ones have first NULL

// Is this address in memory of cudaMalloc?
static int cuda_on_cpu_is_device(const void* address) {
    for (int i = 0; i < device_allocations; i++) {
        const char* first = device_memory[i].first;
        if (first != NULL && (const char*)address >= first &&
            (const char*)address < first + device_memory[i].bytes) { return 1; }
    }
    return 0;
}

// Are both addresses of a copy on the sides that it names? Nothing is copied from or to nowhere.
static inline int copy_possible(const void* to, const void* from, cudaMemcpyKind kind) {
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return cuda_on_cpu_is_device(to) == to_device && cuda_on_cpu_is_device(from) == from_device;
}

extern "C" {

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    *memory = NULL;
    if (bytes == 0) { return cudaSuccess; }
    if (posix_memalign(memory, 256, bytes) != 0) { return cudaErrorMemoryAllocation; }
    memset(*memory, 0xff, bytes);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    cudaError_t error = cudaMallocHost(memory, bytes);
    if (*memory == NULL) { return error; }
    int i = 0;
    while (i < device_allocations && device_memory[i].first != NULL) { i++; }
    if (i == MOST_ALLOCATIONS) { return cudaErrorMemoryAllocation; }
    if (i == device_allocations) { device_allocations++; }
    device_memory[i].first = (char*)*memory;
    device_memory[i].bytes = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) { return free(memory), cudaSuccess; }

cudaError_t cudaFree(void* memory) {
    if (memory == NULL) { return cudaSuccess; }
    int i = 0;
    while (i < device_allocations && device_memory[i].first != (char*)memory) { i++; }
    if (i == device_allocations) { return cudaErrorInvalidValue; }
    device_memory[i].first = NULL;
    return cudaFreeHost(memory);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *free_bytes = *total = (size_t)16 << 30;
    return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    if (bytes == 0) { return cudaSuccess; }
    if (!cuda_on_cpu_is_device(to)) { return cudaErrorInvalidValue; }
    return memset(to, value, bytes), cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    return cudaMemset(to, value, bytes);
}

cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t) {
    if (width > pitch || !cuda_on_cpu_is_device(to)) { return cudaErrorInvalidValue; }
    for (size_t row = 0; row < height; row++) { memset((char*)to + row * pitch, value, width); }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) { return cudaSuccess; }
    if (!copy_possible(to, from, kind)) { return cudaErrorInvalidValue; }
    return memmove(to, from, bytes), cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t) {
    if (width > to_pitch || width > from_pitch || !copy_possible(to, from, kind)) {
        return cudaErrorInvalidValue;
    }
    for (size_t row = 0; row < height; row++) {
        memmove((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width);
    }
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------
// Errors, streams, events

cudaError_t cudaGetLastError(void) {
    cudaError_t error = cuda_last_error;
    cuda_last_error = cudaSuccess;
    return error;
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error"
           : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
           : error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorInvalidValue ? "invalid argument: memory of the wrong side, or a size"
           : "an error of the CUDA runtime";
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = NULL, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = NULL, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

// ---------------------------------------------------------------------------------------------
// The device

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    memset(properties, 0, sizeof(*properties));
    strcpy(properties->name, "CPU");
    properties->major = device_capability.major;
    properties->minor = device_capability.minor;
    properties->multiProcessorCount = 1;
    properties->totalGlobalMem = (size_t)16 << 30;
    properties->sharedMemPerBlockOptin = (size_t)device_shared_memory();
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int) {
    return snprintf(text, (size_t)bytes, "0000:00:00.0"), cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device_shared_memory()
             : attribute == cudaDevAttrComputeCapabilityMajor     ? device_capability.major
             : attribute == cudaDevAttrComputeCapabilityMinor     ? device_capability.minor
             : attribute == cudaDevAttrMultiProcessorCount        ? 1 : -1;
    return *value >= 0 ? cudaSuccess : cudaErrorInvalidValue;
}

// The real one holds for one kernel; this for all.
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize ||
        value > device_shared_memory()) { return cudaErrorInvalidValue; }
    if ((size_t)value > dynamic_shared_allowed) { dynamic_shared_allowed = (size_t)value; }
    return cudaSuccess;
}

}   // extern "C"

#endif
