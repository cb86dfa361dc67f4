/*
The GPU's part of tensor_check.h: tensors go to the device and come back as float, whatever type
they are stored in there. Memory starts poisoned with NaN, and some behind each tensor stays
poisoned; who reads it back looks whether anything was written there.
*/
#ifndef TEST_DEVICE_CHECK_CUH
#define TEST_DEVICE_CHECK_CUH

#include <stdlib.h>
#include "../../llmc/cuda_common.cuh"
#include "cublaslt_model.h"
#include "tensor_check.h"

// RUNS_ON_CPU is 1 if the kernels run on the CPU (cuda_on_cpu.h). Sizes that take too long there are
// left out, and the test says so. The model of cuBLASLt has to know what device memory is.
#ifdef RUNS_ON_CPU
static inline void device_prepare(void) { cublaslt_model_memory(cuda_on_cpu_is_device); }
#else
#define RUNS_ON_CPU 0
static inline void device_prepare(void) {}
#endif

// Returns 1 and says so if there is no GPU to test on.
static inline int device_missing(const char* test) {
    int devices = 0;
    device_prepare();
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) { return 0; }
    report_skip(test, "no CUDA device");
    return 1;
}

// Names and roundings of the storage types. The rounding is the largest relative error of a value
// stored to nearest.
template <typename Real> static inline const char* real_name(void);
template <> inline const char* real_name<float>(void) { return "fp32"; }
template <> inline const char* real_name<__nv_bfloat16>(void) { return "bf16"; }

template <typename Real> static inline double real_rounding(void);
template <> inline double real_rounding<float>(void) { return 1.0 / (1 << 24); }
template <> inline double real_rounding<__nv_bfloat16>(void) { return 1.0 / (1 << 8); }

// x (n) as it will be after a trip through Real
template <typename Real> static inline void real_round(float* x, size_t n) {
    for (size_t i = 0; i < n; i++) { x[i] = to_float(from_float<Real>(x[i])); }
}

// ---------------------------------------------------------------------------------------------
// Device memory of one test; device_free_all ends it

#define DEVICE_GUARD_BYTES 256
#define DEVICE_MOST_TENSORS 64

static void* device_tensors[DEVICE_MOST_TENSORS];
static int device_num_tensors = 0;

// n poisoned elements
template <typename Real> static inline Real* device_tensor(size_t n) {
    check(device_num_tensors < DEVICE_MOST_TENSORS, "more than %d tensors", DEVICE_MOST_TENSORS);
    void* memory = cuda_malloc(n * sizeof(Real) + DEVICE_GUARD_BYTES, "a test's tensor");
    cudaCheck(cudaMemset(memory, 0xff, n * sizeof(Real) + DEVICE_GUARD_BYTES));
    device_tensors[device_num_tensors++] = memory;
    return (Real*)memory;
}

static inline void device_free_all(void) {
    for (int i = 0; i < device_num_tensors; i++) { cudaCheck(cudaFree(device_tensors[i])); }
    device_num_tensors = 0;
}

// Overwrites a device tensor (n) with host values.
template <typename Real> static inline void device_set(Real* device, const float* x, size_t n) {
    Real* stored = (Real*)malloc(n * sizeof(Real));
    for (size_t i = 0; i < n; i++) { stored[i] = from_float<Real>(x[i]); }
    cudaCheck(cudaMemcpy(device, stored, n * sizeof(Real), cudaMemcpyHostToDevice));
    free(stored);
}

// A new device tensor with host values x (n).
template <typename Real> static inline Real* to_device(const float* x, size_t n) {
    Real* device = device_tensor<Real>(n);
    device_set(device, x, n);
    return device;
}

static inline int* integers_to_device(const int* x, size_t n) {
    int* device = device_tensor<int>(n);
    cudaCheck(cudaMemcpy(device, x, n * sizeof(int), cudaMemcpyHostToDevice));
    return device;
}

// x (n) = a device tensor (n), which came from device_tensor.
template <typename Real> static inline void from_device(float* x, const Real* device, size_t n) {
    size_t bytes = n * sizeof(Real) + DEVICE_GUARD_BYTES;
    unsigned char* stored = (unsigned char*)malloc(bytes);
    cudaCheck(cudaMemcpy(stored, device, bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) {
        Real value;
        memcpy(&value, stored + i * sizeof(Real), sizeof(Real));
        x[i] = to_float(value);
    }
    int touched = 0;
    for (size_t i = n * sizeof(Real); i < bytes; i++) { touched += stored[i] != 0xff; }
    if (touched > 0) { report(0, "guard", "%d bytes written behind a tensor of %zu", touched, n); }
    free(stored);
}

#endif
