/*
What a test can ask of the model of cuBLASLt (cublaslt_model.c) that nobody can ask of cuBLASLt:
which GPU to be, which fault to have, what was called and why it was refused. C11 and C++.
*/
#ifndef CUBLASLT_MODEL_H
#define CUBLASLT_MODEL_H

#ifdef __cplusplus
extern "C" {
#endif

// Ways for an FP4 or FP8 product to go wrong. BF16 and FP32 products have no faults.
enum {
    CUBLASLT_MODEL_NO_FAULT,
    CUBLASLT_MODEL_NIBBLES_SWAPPED,     // FP4, in A: the high nibble taken as the even element
    CUBLASLT_MODEL_NIBBLES_SWAPPED_B,   // the same in B only
    CUBLASLT_MODEL_TYPES_SWAPPED,       // FP8: E4M3 taken for E5M2 and the other way round
    CUBLASLT_MODEL_SCALES_SHIFTED,      // in B: block i is multiplied by the scale of block i + 1
    CUBLASLT_MODEL_SCALES_ROW_MAJOR,    // scales of both operands read row by row, without padding
    CUBLASLT_MODEL_SCALES_NOT_READ,     // all block scales taken as 1
    CUBLASLT_MODEL_SIGN_DROPPED,        // |code| in both operands
    CUBLASLT_MODEL_ZEROS,               // D is 0
    CUBLASLT_MODEL_NANS,                // D is NaN
    CUBLASLT_MODEL_D_NOT_WRITTEN,       // success, and nothing done
    CUBLASLT_MODEL_TAIL_NOT_WRITTEN,    // the last column of D (last row of the program's) is left
    CUBLASLT_MODEL_BETA_IGNORED,        // beta taken as 0
    CUBLASLT_MODEL_BETA_ONE,            // beta taken as 1
    CUBLASLT_MODEL_ALPHA_IGNORED,       // alpha taken as 1
    CUBLASLT_MODEL_K_CUT,               // the last 16 bytes of K left out
    CUBLASLT_MODEL_RESULT_ROUNDED,      // an FP32 result keeps the 8 significant bits of BF16
    CUBLASLT_MODEL_EXECUTION_FAILED,    // cublasLtMatmul answers CUBLAS_STATUS_EXECUTION_FAILED
    CUBLASLT_MODEL_NOT_SUPPORTED,       // the heuristic answers CUBLAS_STATUS_NOT_SUPPORTED
    CUBLASLT_MODEL_NO_ALGORITHM,        // the heuristic succeeds and finds 0 algorithms
    NUM_CUBLASLT_MODEL_FAULTS
};

void cublaslt_model_reset(void);        // everything below as at the start, counters 0

void cublaslt_model_fault(int fault);                   // start: none
void cublaslt_model_capability(int major, int minor);   // of the GPU to be; start: 10.0
void cublaslt_model_fp32_output(int supported);     // narrow products with FP32 D; start: 1
void cublaslt_model_multiple(int sizes);    // narrow products: M, N, K multiples of this power of 2; 1
void cublaslt_model_nan_scales(int allowed);    // 1: a NaN scale gives NaN; start: 0, it is refused

// Tells memory that kernels can reach from memory that they cannot; start: NULL, not looked at.
void cublaslt_model_memory(int (*is_device)(const void* address));

long cublaslt_model_fp4_calls(void);    // FP4 products computed (refused ones do not count)
long cublaslt_model_fp8_calls(void);    // the same of FP8
long cublaslt_model_fast_calls(void);   // of them with fast accumulation
long cublaslt_model_plain_calls(void);  // the same of BF16 and FP32 products
long cublaslt_model_objects(void);      // handles, descriptors, layouts, preferences not destroyed

// The rule that the last refused call broke; "" if cublasLtMatmulAlgoGetHeuristic or cublasLtMatmul
// succeeded since.
const char* cublaslt_model_complaint(void);

#ifdef __cplusplus
}
#endif

#endif
