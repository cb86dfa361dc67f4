/*
GELU in its tanh form [Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016]:

    gelu(x) = x/2 * (1 + tanh(u)),    u = sqrt(2/pi) * (x + 0.044715 x^3)

It is computed as x * s with s = 1 / (1 + exp(-2u)), the same function: (1 + tanh(u)) / 2 = s. This
needs one exponential, and does not lose the small values at negative x as the sum 1 + tanh(u) does.

    gelu'(x) = s + x * s * (1 - s) * 2u',    u' = sqrt(2/pi) * (1 + 3 * 0.044715 x^2)
*/
#ifndef LLMC_GELU_CUH
#define LLMC_GELU_CUH

#include "cuda_common.cuh"

#define GELU_SCALE 0.7978845608028654f      // sqrt(2/pi)
#define GELU_CUBIC 0.044715f

// 1 / (1 + exp(-2u)). For BF16 with the hardware's exponential and division: a relative error below
// (5 + 2.4 |u|) * 2^-23, against BF16's rounding of 2^-8.
template <typename Real> __device__ static inline float gelu_sigmoid(float x);
template <> __device__ inline float gelu_sigmoid<float>(float x) {
    float u = GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    return 1.0f / (1.0f + expf(-2.0f * u));
}
template <> __device__ inline float gelu_sigmoid<__nv_bfloat16>(float x) {
    float u = GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    return __fdividef(1.0f, 1.0f + __expf(-2.0f * u));
}

template <typename Real>
static __global__ void gelu_forward_kernel(Real* out, const Real* inp, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * Vec<Real>::size;
    if (i >= n) { return; }
    Vec<Real> x = vec_load(inp + i);
    for (int k = 0; k < Vec<Real>::size; k++) {
        float value = to_float(x.at[k]);
        x.at[k] = from_float<Real>(value * gelu_sigmoid<Real>(value));
    }
    vec_store(out + i, x);
}

// out (n) = gelu(inp (n)). out may be inp.
template <typename Real>
static void gelu_forward(Real* out, const Real* inp, size_t n, cudaStream_t stream) {
    check(n > 0 && n % 16 == 0, "gelu of %zu values: not a multiple of 16", n);
    size_t blocks = CEIL_DIV(n / Vec<Real>::size, 256);
    gelu_forward_kernel<<<(unsigned)blocks, 256, 0, stream>>>(out, inp, n);
    cudaCheck(cudaGetLastError());
}

template <typename Real>
static __global__ void gelu_backward_kernel(Real* dinp, const Real* dout, const Real* inp,
                                            size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * Vec<Real>::size;
    if (i >= n) { return; }
    Vec<Real> x = vec_load(inp + i), d = vec_load(dout + i);
    for (int k = 0; k < Vec<Real>::size; k++) {
        float value = to_float(x.at[k]), s = gelu_sigmoid<Real>(value);
        float du = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * value * value);
        float slope = s + value * s * (1.0f - s) * 2.0f * du;
        d.at[k] = from_float<Real>(slope * to_float(d.at[k]));
    }
    vec_store(dinp + i, d);
}

// dinp (n) = dout (n) * gelu'(inp (n)). dinp may be dout.
template <typename Real>
static void gelu_backward(Real* dinp, const Real* dout, const Real* inp, size_t n,
                          cudaStream_t stream) {
    check(n > 0 && n % 16 == 0, "gelu of %zu values: not a multiple of 16", n);
    size_t blocks = CEIL_DIV(n / Vec<Real>::size, 256);
    gelu_backward_kernel<<<(unsigned)blocks, 256, 0, stream>>>(dinp, dout, inp, n);
    cudaCheck(cudaGetLastError());
}

#endif
