/*
A model of cuBLASLt on the CPU: the functions of cublasLt.h that a program needs for a matrix
product, under their own names, to be linked in place of -lcublasLt. It receives exactly what
cuBLASLt would (bytes, layouts, leading dimensions, scales, algorithm, workspace), refuses what the
documentation does not allow, and computes the rest in double precision. "Device" memory is host
memory; a call returns when D is written.

What it is for: the FP4 and FP8 products of a program can be tried on a machine without such a GPU,
byte for byte up to the call. What it is not: the library. It is written from the documentation (the
comments of cublasLt.h, the cuBLAS documentation on cublasLtMatmul and on narrow precisions, 3.1.4)
and no such product of it was ever compared with hardware; where it allows a call, the library may
still refuse. It shares no code with llmc/, so a mistake there cannot hide here.
test_cublaslt_model.cpp tests it, and compares its descriptors with those of the library.

Modelled: column-major matrices, one at a time (no batches);
    A and B BF16:  C and D BF16 or FP32, any transposition, epilogue none or bias
    A and B FP32:  C and D FP32, the same
    A and B E2M1 with UE4M3 scales of 16 elements ("NVFP4"):  C and D BF16 or FP32, see check_fp4
    A and B FP8, E4M3 or one of them E5M2, with one scale a matrix, or FP32 scales of 128 elements or
    of 128 x 128:  C and D BF16 or FP32, see check_fp8
all with compute type 32F and scale type 32F. Anything else is refused as not modelled.

    D = alpha op(A) op(B) + beta C + bias       op(A) (m,k), op(B) (k,n), C and D (m,n)

The sum is in double, and rounded to nearest even when it is stored. For E2M1 it is exact up to
K = 1024: a decoded element is at most 6 * 448 = 2688 and a multiple of 0.5 * 2^-9, so a product is
a multiple of 2^-20 below 2^23, and a sum of 2^10 of them needs at most 53 bits. For E4M3 with one
scale it is exact up to K = 2^17: products are multiples of 2^-18 below 2^18. How FP8 tensor cores
shorten their sums is not modelled.

C11 that is also C++17. Errors: cublaslt_model_complaint() has the rule that was broken.
*/
#include <assert.h>
#include <cublasLt.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cublaslt_model.h"

typedef struct {
    int major, minor, fault, fp32_output, nan_scales, multiple;
    long fp4_calls, fp8_calls, fast_calls, plain_calls, objects;
    char complaint[512];
    int (*is_device)(const void* address);
} Model;

static const Model model_at_start = { 10, 0, CUBLASLT_MODEL_NO_FAULT, 1, 0, 1, 0, 0, 0, 0, 0, "",
                                      NULL };
static Model model = { 10, 0, CUBLASLT_MODEL_NO_FAULT, 1, 0, 1, 0, 0, 0, 0, 0, "", NULL };

// Objects live on: a reset between two tests must not lose count of them. Memory stays what it is.
void cublaslt_model_reset(void) {
    long objects = model.objects;
    int (*is_device)(const void*) = model.is_device;
    model = model_at_start;
    model.objects = objects;
    model.is_device = is_device;
}

void cublaslt_model_fault(int fault) { model.fault = fault; }
void cublaslt_model_fp32_output(int supported) { model.fp32_output = supported; }
void cublaslt_model_multiple(int sizes) { model.multiple = sizes; }
void cublaslt_model_nan_scales(int allowed) { model.nan_scales = allowed; }
void cublaslt_model_capability(int major, int minor) {
    model.major = major;
    model.minor = minor;
}
void cublaslt_model_memory(int (*is_device)(const void* address)) { model.is_device = is_device; }
long cublaslt_model_fp4_calls(void) { return model.fp4_calls; }
long cublaslt_model_fp8_calls(void) { return model.fp8_calls; }
long cublaslt_model_fast_calls(void) { return model.fast_calls; }
long cublaslt_model_plain_calls(void) { return model.plain_calls; }
long cublaslt_model_objects(void) { return model.objects; }
const char* cublaslt_model_complaint(void) { return model.complaint; }

// Says which rule was broken and returns the status for it.
__attribute__((format(printf, 2, 3)))
static cublasStatus_t refuse(cublasStatus_t status, const char* rule, ...) {
    va_list values;
    va_start(values, rule);
    vsnprintf(model.complaint, sizeof(model.complaint), rule, values);
    va_end(values);
    return status;
}

// Parameters that contradict each other, and requests that no GPU or version can fulfil.
#define INVALID(...) refuse(CUBLAS_STATUS_INVALID_VALUE, __VA_ARGS__)
#define UNSUPPORTED(...) refuse(CUBLAS_STATUS_NOT_SUPPORTED, __VA_ARGS__)

// ---------------------------------------------------------------------------------------------
// Descriptors. The program holds opaque arrays of 64-bit words; these structs lie in them, behind a
// tag that tells a living object from a destroyed or foreign one. They are copied in and out,
// because the words belong to the program and may be on its stack.

enum { TAG_OPERATION = 0x6f706572, TAG_LAYOUT = 0x6c61796f, TAG_PREFERENCE = 0x70726566,
       TAG_ALGORITHM = 0x616c676f, TAG_HANDLE = 0x68616e64 };

typedef struct {
    uint64_t tag;
    int32_t compute_type, scale_type, pointer_mode, trans_a, trans_b, trans_c, fill_mode;
    uint32_t epilogue;
    const void* bias;
    int64_t bias_stride;
    void* aux;
    int64_t aux_ld, aux_stride, alpha_stride;
    const void *a_scale, *b_scale, *c_scale, *d_scale;
    void *amax_d, *aux_scale, *aux_amax, *d_out_scale, *emulation;
    int32_t sm_count, aux_type, bias_type;
    int32_t a_scale_mode, b_scale_mode, c_scale_mode, d_scale_mode, d_out_scale_mode;
    int32_t aux_scale_mode;
    int8_t fast_accum;
} Operation;

typedef struct {
    uint64_t tag;
    uint32_t type;
    int32_t order;
    uint64_t rows, cols;
    int64_t ld, batch_stride, plane_offset;
    int32_t batch_count;
    uint32_t batch_mode;
} Layout;

typedef struct {
    uint64_t tag;
    uint32_t search_mode, reduction_schemes;
    uint64_t workspace;
    uint32_t align[4];              // bytes; of A, B, C, D
    float waves;
    uint64_t implementations;
} Preference;

static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t), "Operation is too large");
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "Layout is too large");
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "too large");

// Where an attribute lies in its struct.
typedef struct {
    int attribute;
    size_t offset, size;
} Attribute;

#define ROW(name, Struct, field)                                                                   \
    { name, offsetof(Struct, field), sizeof(((Struct*)0)->field) }

static const Attribute operation_attributes[] = {
    ROW(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, Operation, compute_type),
    ROW(CUBLASLT_MATMUL_DESC_SCALE_TYPE, Operation, scale_type),
    ROW(CUBLASLT_MATMUL_DESC_POINTER_MODE, Operation, pointer_mode),
    ROW(CUBLASLT_MATMUL_DESC_TRANSA, Operation, trans_a),
    ROW(CUBLASLT_MATMUL_DESC_TRANSB, Operation, trans_b),
    ROW(CUBLASLT_MATMUL_DESC_TRANSC, Operation, trans_c),
    ROW(CUBLASLT_MATMUL_DESC_FILL_MODE, Operation, fill_mode),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE, Operation, epilogue),
    ROW(CUBLASLT_MATMUL_DESC_BIAS_POINTER, Operation, bias),
    ROW(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, Operation, bias_stride),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, Operation, aux),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, Operation, aux_ld),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, Operation, aux_stride),
    ROW(CUBLASLT_MATMUL_DESC_ALPHA_VECTOR_BATCH_STRIDE, Operation, alpha_stride),
    ROW(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, Operation, sm_count),
    ROW(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, Operation, a_scale),
    ROW(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, Operation, b_scale),
    ROW(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, Operation, c_scale),
    ROW(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, Operation, d_scale),
    ROW(CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, Operation, amax_d),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, Operation, aux_type),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_POINTER, Operation, aux_scale),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_AMAX_POINTER, Operation, aux_amax),
    ROW(CUBLASLT_MATMUL_DESC_FAST_ACCUM, Operation, fast_accum),
    ROW(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, Operation, bias_type),
    ROW(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, Operation, a_scale_mode),
    ROW(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, Operation, b_scale_mode),
    ROW(CUBLASLT_MATMUL_DESC_C_SCALE_MODE, Operation, c_scale_mode),
    ROW(CUBLASLT_MATMUL_DESC_D_SCALE_MODE, Operation, d_scale_mode),
    ROW(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_MODE, Operation, aux_scale_mode),
    ROW(CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER, Operation, d_out_scale),
    ROW(CUBLASLT_MATMUL_DESC_D_OUT_SCALE_MODE, Operation, d_out_scale_mode),
    { 38 /* EMULATION_DESCRIPTOR: not in older headers */, offsetof(Operation, emulation),
      sizeof(void*) },
};

static const Attribute layout_attributes[] = {
    ROW(CUBLASLT_MATRIX_LAYOUT_TYPE, Layout, type),
    ROW(CUBLASLT_MATRIX_LAYOUT_ORDER, Layout, order),
    ROW(CUBLASLT_MATRIX_LAYOUT_ROWS, Layout, rows),
    ROW(CUBLASLT_MATRIX_LAYOUT_COLS, Layout, cols),
    ROW(CUBLASLT_MATRIX_LAYOUT_LD, Layout, ld),
    ROW(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, Layout, batch_count),
    ROW(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, Layout, batch_stride),
    ROW(CUBLASLT_MATRIX_LAYOUT_PLANE_OFFSET, Layout, plane_offset),
    { 8 /* BATCH_MODE: not in older headers */, offsetof(Layout, batch_mode), sizeof(uint32_t) },
};

static const Attribute preference_attributes[] = {
    ROW(CUBLASLT_MATMUL_PREF_SEARCH_MODE, Preference, search_mode),
    ROW(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Preference, workspace),
    ROW(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, Preference, reduction_schemes),
    ROW(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Preference, align[0]),
    ROW(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Preference, align[1]),
    ROW(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Preference, align[2]),
    ROW(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Preference, align[3]),
    ROW(CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT, Preference, waves),
    ROW(CUBLASLT_MATMUL_PREF_IMPL_MASK, Preference, implementations),
};

#define COUNT(rows) (sizeof(rows) / sizeof((rows)[0]))

// The row of an attribute, or NULL with a complaint. `object` is the program's words; they must
// begin with `tag`.
static const Attribute* attribute_row(const Attribute* rows, size_t count, const uint64_t* object,
                                      uint64_t tag, int attribute) {
    if (object == NULL || object[0] != tag) {
        INVALID("attribute %d of something that is not a living object of its kind", attribute);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (rows[i].attribute == attribute) { return &rows[i]; }
    }
    INVALID("there is no attribute %d", attribute);
    return NULL;
}

static cublasStatus_t attribute_set(const Attribute* rows, size_t count, uint64_t* object,
                                    uint64_t tag, int attribute, const void* value, size_t size) {
    const Attribute* row = attribute_row(rows, count, object, tag, attribute);
    if (row == NULL) { return CUBLAS_STATUS_INVALID_VALUE; }
    if (value == NULL) { return INVALID("attribute %d set from NULL", attribute); }
    if (size != row->size) {
        return INVALID("attribute %d has %zu bytes, not %zu", attribute, row->size, size);
    }
    memcpy((char*)object + row->offset, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t attribute_get(const Attribute* rows, size_t count, const uint64_t* object,
                                    uint64_t tag, int attribute, void* value, size_t size,
                                    size_t* written) {
    const Attribute* row = attribute_row(rows, count, object, tag, attribute);
    if (row == NULL) { return CUBLAS_STATUS_INVALID_VALUE; }
    if (size == 0 && written == NULL) { return INVALID("nowhere to write a size to"); }
    if (size != 0 && (value == NULL || size != row->size)) {
        return INVALID("attribute %d has %zu bytes, not %zu", attribute, row->size, size);
    }
    if (size != 0) { memcpy(value, (const char*)object + row->offset, size); }
    if (written != NULL) { *written = row->size; }
    return CUBLAS_STATUS_SUCCESS;
}

// Memory for an object of `size` bytes; the caller initializes it.
static void* object_create(size_t size) {
    void* object = malloc(size);
    model.objects += object != NULL;
    return object;
}

// The library takes NULL here.
static cublasStatus_t object_destroy(uint64_t* object, uint64_t tag) {
    if (object == NULL) { return CUBLAS_STATUS_SUCCESS; }
    if (object[0] != tag) { return INVALID("destroyed twice, or not created"); }
    object[0] = 0;
    free(object);
    model.objects--;
    return CUBLAS_STATUS_SUCCESS;
}

// Copies a struct into the program's words. ALLOC_FAILED if they are too few.
static cublasStatus_t object_init(uint64_t* object, size_t room, size_t needed, const void* value,
                                  size_t size) {
    if (object == NULL || room < needed) {
        return refuse(CUBLAS_STATUS_ALLOC_FAILED, "%zu bytes for an object of %zu", room, needed);
    }
    memset(object, 0, needed);
    memcpy(object, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

struct cublasLtContext { uint64_t tag; };

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    if (handle == NULL) { return INVALID("no place for a handle"); }
    *handle = (cublasLtHandle_t)object_create(sizeof(struct cublasLtContext));
    if (*handle == NULL) { return CUBLAS_STATUS_ALLOC_FAILED; }
    (*handle)->tag = TAG_HANDLE;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    if (handle == NULL) { return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle"); }
    return object_destroy(&handle->tag, TAG_HANDLE);
}

size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t operation, size_t size,
                                               cublasComputeType_t compute_type,
                                               cudaDataType_t scale_type) {
    Operation o;
    memset(&o, 0, sizeof(o));
    o.tag = TAG_OPERATION;
    o.compute_type = (int32_t)compute_type;
    o.scale_type = (int32_t)scale_type;
    o.fill_mode = CUBLAS_FILL_MODE_FULL;
    o.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    o.aux_type = o.bias_type = -1;
    return object_init(operation == NULL ? NULL : operation->data, size, sizeof(*operation), &o,
                       sizeof(o));
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation,
                                        cublasComputeType_t compute_type,
                                        cudaDataType_t scale_type) {
    if (operation == NULL) { return INVALID("no place for a matmul descriptor"); }
    *operation = (cublasLtMatmulDesc_t)object_create(sizeof(**operation));
    return cublasLtMatmulDescInit_internal(*operation, sizeof(**operation), compute_type,
                                           scale_type);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    return object_destroy(operation == NULL ? NULL : operation->data, TAG_OPERATION);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t size) {
    return attribute_set(operation_attributes, COUNT(operation_attributes),
                         operation == NULL ? NULL : operation->data, TAG_OPERATION, (int)attribute,
                         value, size);
}

cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              void* value, size_t size, size_t* written) {
    return attribute_get(operation_attributes, COUNT(operation_attributes),
                         operation == NULL ? NULL : operation->data, TAG_OPERATION, (int)attribute,
                         value, size, written);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
    Layout l;
    memset(&l, 0, sizeof(l));
    l.tag = TAG_LAYOUT;
    l.type = (uint32_t)type;
    l.order = CUBLASLT_ORDER_COL;
    l.rows = rows;
    l.cols = cols;
    l.ld = ld;
    l.batch_count = 1;
    return object_init(layout == NULL ? NULL : layout->data, size, sizeof(*layout), &l, sizeof(l));
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    if (layout == NULL) { return INVALID("no place for a layout"); }
    *layout = (cublasLtMatrixLayout_t)object_create(sizeof(**layout));
    return cublasLtMatrixLayoutInit_internal(*layout, sizeof(**layout), type, rows, cols, ld);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return object_destroy(layout == NULL ? NULL : layout->data, TAG_LAYOUT);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t size) {
    return attribute_set(layout_attributes, COUNT(layout_attributes),
                         layout == NULL ? NULL : layout->data, TAG_LAYOUT, (int)attribute, value,
                         size);
}

cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                void* value, size_t size, size_t* written) {
    return attribute_get(layout_attributes, COUNT(layout_attributes),
                         layout == NULL ? NULL : layout->data, TAG_LAYOUT, (int)attribute, value,
                         size, written);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size) {
    Preference p;
    memset(&p, 0, sizeof(p));
    p.tag = TAG_PREFERENCE;
    p.search_mode = CUBLASLT_SEARCH_BEST_FIT;
    p.reduction_schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
    for (int i = 0; i < 4; i++) { p.align[i] = 256; }
    p.implementations = ~(uint64_t)0;
    return object_init(preference == NULL ? NULL : preference->data, size, sizeof(*preference), &p,
                       sizeof(p));
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    if (preference == NULL) { return INVALID("no place for a preference"); }
    *preference = (cublasLtMatmulPreference_t)object_create(sizeof(**preference));
    return cublasLtMatmulPreferenceInit_internal(*preference, sizeof(**preference));
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return object_destroy(preference == NULL ? NULL : preference->data, TAG_PREFERENCE);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t size) {
    return attribute_set(preference_attributes, COUNT(preference_attributes),
                         preference == NULL ? NULL : preference->data, TAG_PREFERENCE,
                         (int)attribute, value, size);
}

cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    void* value, size_t size, size_t* written) {
    return attribute_get(preference_attributes, COUNT(preference_attributes),
                         preference == NULL ? NULL : preference->data, TAG_PREFERENCE,
                         (int)attribute, value, size, written);
}

// Name and text of a status, as the library words them.
static const char* status_text(cublasStatus_t status, int name) {
    static const struct { cublasStatus_t status; const char *name, *text; } rows[] = {
        { CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS", "success" },
        { CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED",
          "the library was not initialized" },
        { CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED",
          "the resource allocation failed" },
        { CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE",
          "an unsupported value or parameter was passed to the function" },
        { CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH",
          "the function requires an architectural feature absent from the device" },
        { CUBLAS_STATUS_MAPPING_ERROR, "CUBLAS_STATUS_MAPPING_ERROR",
          "an access to GPU memory space failed" },
        { CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED",
          "the function failed to launch on the GPU" },
        { CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR",
          "an internal operation failed" },
        { CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED",
          "the requested functionality is not supported" },
        { CUBLAS_STATUS_LICENSE_ERROR, "CUBLAS_STATUS_LICENSE_ERROR",
          "the license check failed" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (rows[i].status == status) { return name ? rows[i].name : rows[i].text; }
    }
    return "unrecognized status";
}

const char* cublasLtGetStatusName(cublasStatus_t status) { return status_text(status, 1); }
const char* cublasLtGetStatusString(cublasStatus_t status) { return status_text(status, 0); }

// ---------------------------------------------------------------------------------------------
// What a product must be like, before any data is looked at. The heuristic and cublasLtMatmul both
// ask this.

typedef struct {
    int64_t m, n, k;
    int fp4, fp8, narrow;           // narrow: one of the two
    Operation op;
    Layout A, B, C, D;
} Problem;

static int is_fp8(uint32_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

// Bits of an element.
static int64_t type_bits(uint32_t type) {
    return type == CUDA_R_4F_E2M1 ? 4 : is_fp8(type) ? 8 : type == CUDA_R_16BF ? 16 : 32;
}

// Scaling modes that not all versions of cublasLt.h have.
enum { SCALE_VEC128 = 4, SCALE_BLK128 = 5 };

static cublasStatus_t read_layout(Layout* to, cublasLtMatrixLayout_t from, char name) {
    if (from == NULL || from->data[0] != TAG_LAYOUT) {
        return INVALID("the layout of %c is not a living layout", name);
    }
    memcpy(to, from->data, sizeof(*to));
    if (to->order != CUBLASLT_ORDER_COL) {
        return UNSUPPORTED("not modelled: %c has order %d, not column-major", name, to->order);
    }
    if (to->batch_count != 1 || to->batch_mode != 0 || to->plane_offset != 0) {
        return UNSUPPORTED("not modelled: %c is a batch of %d or has planes", name,
                           to->batch_count);
    }
    if (to->rows == 0 || to->cols == 0 || to->rows > INT32_MAX || to->cols > INT32_MAX) {
        return INVALID("%c is empty or has more than 2^31 - 1 rows or columns", name);
    }
    if (to->ld < (int64_t)to->rows) {
        return INVALID("%c: the leading dimension %lld is below the %lld rows", name,
                       (long long)to->ld, (long long)to->rows);
    }
    return CUBLAS_STATUS_SUCCESS;
}

// cuBLAS documentation, cublasLtMatmul: requirements of narrow precisions, and the table of types
// for E2M1 with 16-element blocks.
static cublasStatus_t check_fp4(const Problem* p) {
    const Operation* op = &p->op;
    const char* const fp4 = "an FP4 product";
    int64_t size_C = type_bits(p->C.type) / 8;
    if (model.major < 10) {
        return UNSUPPORTED("%s needs compute capability 10.0, this is %d.%d", fp4, model.major,
                           model.minor);
    }
    if (model.fault == CUBLASLT_MODEL_NOT_SUPPORTED) { return UNSUPPORTED("the fault asked for"); }
    if (op->trans_a != CUBLAS_OP_T || op->trans_b != CUBLAS_OP_N) {
        return UNSUPPORTED("%s must be TN (A transposed, B not): K contiguous in both", fp4);
    }
    if ((p->D.type != CUDA_R_16BF && p->D.type != CUDA_R_32F) || p->C.type != p->D.type) {
        return UNSUPPORTED("%s: C and D must both be BF16 or both FP32 (here %u and %u)", fp4,
                           p->C.type, p->D.type);
    }
    if (p->D.type == CUDA_R_32F && !model.fp32_output) {
        return UNSUPPORTED("%s with FP32 D is not supported on this GPU", fp4);
    }
    if ((p->m | p->n | p->k) % model.multiple != 0) {
        return UNSUPPORTED("%s of this size is not supported on this GPU", fp4);
    }
    if (op->a_scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 ||
        op->b_scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3) {
        return UNSUPPORTED("%s: the scale mode of A and B must be VEC16_UE4M3", fp4);
    }
    // The library says so in the heuristic already: CUDALibrarySamples issue 274.
    if (op->a_scale == NULL || op->b_scale == NULL) {
        return INVALID("%s: the scale pointer of %c is NULL", fp4, op->a_scale == NULL ? 'A' : 'B');
    }
    if (((uintptr_t)op->a_scale | (uintptr_t)op->b_scale) % 16 != 0) {
        return INVALID("%s: a scale pointer is not a multiple of 16", fp4);
    }
    // CUDALibrarySamples issue 292.
    if (op->d_scale != NULL || op->d_out_scale != NULL || op->c_scale != NULL ||
        op->amax_d != NULL || op->d_scale_mode != 0 || op->d_out_scale_mode != 0 ||
        op->c_scale_mode != 0) {
        return INVALID("%s: scale attributes of C or D are only for a narrow D", fp4);
    }
    if (p->k % 32 != 0) {
        return UNSUPPORTED("%s: the %lld half bytes of K are no multiple of 16 bytes", fp4,
                           (long long)p->k);
    }
    if (p->A.ld % 32 != 0 || p->B.ld % 32 != 0) {
        return UNSUPPORTED("%s: lda %lld or ldb %lld is no multiple of 16 bytes", fp4,
                           (long long)p->A.ld, (long long)p->B.ld);
    }
    if (p->m * size_C % 16 != 0) {
        return UNSUPPORTED("%s: the %lld rows of C are no multiple of 16 bytes", fp4,
                           (long long)p->m);
    }
    if (p->C.ld * size_C % 16 != 0 || p->D.ld * size_C % 16 != 0) {
        return UNSUPPORTED("%s: ldc %lld or ldd %lld is no multiple of 16 bytes", fp4,
                           (long long)p->C.ld, (long long)p->D.ld);
    }
    // The documentation allows epilogues; BIAS is reported not to work (CUDALibrarySamples 303).
    if (op->epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
        return UNSUPPORTED("%s: epilogue %u (not modelled, and bias alone is known to fail)", fp4,
                           op->epilogue);
    }
    return CUBLAS_STATUS_SUCCESS;
}

// cuBLAS documentation, 3.1.4 "Narrow precision data types usage" with the table of scaling modes, and
// cublasLtMatmul: requirements of tensor- or block-scaled FP8 kernels, and their table of types.
static cublasStatus_t check_fp8(const Problem* p) {
    const Operation* op = &p->op;
    int capability = 10 * model.major + model.minor;
    int64_t size_C = type_bits(p->C.type) / 8;
    int scalar_A = op->a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    int scalar_B = op->b_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    int block_A = op->a_scale_mode == SCALE_VEC128 || op->a_scale_mode == SCALE_BLK128;
    int block_B = op->b_scale_mode == SCALE_VEC128 || op->b_scale_mode == SCALE_BLK128;
    int blocks = block_A && block_B;
    if (!(scalar_A && scalar_B) && !blocks) {
        return UNSUPPORTED("FP8: scale modes %d of A and %d of B: not supported together, or not "
                           "modelled", op->a_scale_mode, op->b_scale_mode);
    }
    if (capability < 89 || (blocks && capability != 90)) {
        return UNSUPPORTED("FP8 with %s needs compute capability %s, this is %d.%d",
                           blocks ? "block scales" : "a scale for the tensor",
                           blocks ? "9.0, no other" : "8.9", model.major, model.minor);
    }
    if (model.fault == CUBLASLT_MODEL_NOT_SUPPORTED) { return UNSUPPORTED("the fault asked for"); }
    if (op->a_scale_mode == SCALE_BLK128 && op->b_scale_mode == SCALE_BLK128) {
        return UNSUPPORTED("FP8: 128x128 scales for both A and B");
    }
    int only_tn = capability < 100 || capability >= 120;
    if (only_tn && (op->trans_a != CUBLAS_OP_T || op->trans_b != CUBLAS_OP_N)) {
        return UNSUPPORTED("FP8 on %d.%d must be TN (A transposed, B not): K contiguous in both",
                           model.major, model.minor);
    }
    if (p->A.type == CUDA_R_8F_E5M2 && p->B.type == CUDA_R_8F_E5M2) {
        return UNSUPPORTED("FP8: A and B are both E5M2");
    }
    if ((p->D.type != CUDA_R_16BF && p->D.type != CUDA_R_32F) || p->C.type != p->D.type) {
        return UNSUPPORTED("FP8: C and D must both be BF16 or both FP32 (here %u and %u; others: not "
                           "modelled)", p->C.type, p->D.type);
    }
    if (p->D.type == CUDA_R_32F && !model.fp32_output) {
        return UNSUPPORTED("FP8 with FP32 D is not supported on this GPU");
    }
    if ((p->m | p->n | p->k) % model.multiple != 0) {
        return UNSUPPORTED("FP8 of this size is not supported on this GPU");
    }
    if (blocks && (op->a_scale == NULL || op->b_scale == NULL)) {
        return INVALID("FP8: the scale pointer of %c is NULL", op->a_scale == NULL ? 'A' : 'B');
    }
    if (blocks && ((uintptr_t)op->a_scale | (uintptr_t)op->b_scale) % 16 != 0) {
        return INVALID("FP8: a pointer to block scales is not a multiple of 16");
    }
    if (op->d_scale != NULL || op->d_out_scale != NULL || op->c_scale != NULL ||
        op->amax_d != NULL || op->d_scale_mode != 0 || op->d_out_scale_mode != 0 ||
        op->c_scale_mode != 0) {
        return INVALID("FP8: scale attributes of C or D are only for a narrow D");
    }
    // PyTorch (aten/src/ATen/cuda/CUDABlas.cpp) knows that the library has no such kernels.
    if (blocks && op->fast_accum != 0) { return UNSUPPORTED("FP8: fast accumulation of blocks"); }
    // "Tensor Core Usage": of all matrices the contiguous direction in bytes, and the stride.
    if (p->A.rows % 16 != 0 || p->B.rows % 16 != 0 || p->A.ld % 16 != 0 || p->B.ld % 16 != 0) {
        return UNSUPPORTED("FP8: the %lld rows of A or the %lld of B, or a leading dimension, are no "
                           "multiple of 16", (long long)p->A.rows, (long long)p->B.rows);
    }
    if (p->m * size_C % 16 != 0 || p->C.ld * size_C % 16 != 0 || p->D.ld * size_C % 16 != 0) {
        return UNSUPPORTED("FP8: the %lld rows of C, ldc or ldd are no multiple of 16 bytes",
                           (long long)p->m);
    }
    if (blocks && (p->m % 4 != 0 || p->n % 4 != 0)) {
        return UNSUPPORTED("FP8: m %lld or n %lld is no multiple of 4", (long long)p->m,
                           (long long)p->n);
    }
    if (op->epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
        return UNSUPPORTED("not modelled: FP8 with epilogue %u", op->epilogue);
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_plain(const Problem* p) {
    const Operation* op = &p->op;
    if ((p->D.type != CUDA_R_16BF && p->D.type != CUDA_R_32F) || p->C.type != p->D.type ||
        (p->A.type == CUDA_R_32F && p->D.type != CUDA_R_32F)) {
        return UNSUPPORTED("A and B of type %u do not go with C of type %u and D of type %u",
                           p->A.type, p->C.type, p->D.type);
    }
    if (op->a_scale != NULL || op->b_scale != NULL || op->c_scale != NULL || op->d_scale != NULL ||
        op->d_out_scale != NULL || op->amax_d != NULL || op->a_scale_mode != 0 ||
        op->b_scale_mode != 0 || op->c_scale_mode != 0 || op->d_scale_mode != 0 ||
        op->d_out_scale_mode != 0) {
        return INVALID("scale attributes are for narrow types only");
    }
    if (op->epilogue != CUBLASLT_EPILOGUE_DEFAULT && op->epilogue != CUBLASLT_EPILOGUE_BIAS) {
        return UNSUPPORTED("not modelled: epilogue %u", op->epilogue);
    }
    if (op->epilogue == CUBLASLT_EPILOGUE_BIAS && op->bias_type != -1 &&
        op->bias_type != (int32_t)p->D.type) {
        return UNSUPPORTED("the bias has type %d, D has %u", op->bias_type, p->D.type);
    }
    return CUBLAS_STATUS_SUCCESS;
}

// Reads the descriptors into *p and checks all that does not depend on data pointers.
static cublasStatus_t problem_read(Problem* p, cublasLtMatmulDesc_t operation,
                                   cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                   cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D) {
    if (operation == NULL || operation->data[0] != TAG_OPERATION) {
        return INVALID("the operation is not a living matmul descriptor");
    }
    memcpy(&p->op, operation->data, sizeof(p->op));
    Layout* const to[4] = { &p->A, &p->B, &p->C, &p->D };
    const cublasLtMatrixLayout_t from[4] = { A, B, C, D };
    for (int i = 0; i < 4; i++) {
        cublasStatus_t status = read_layout(to[i], from[i], "ABCD"[i]);
        if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    }
    const Operation* op = &p->op;
    if ((op->trans_a != CUBLAS_OP_N && op->trans_a != CUBLAS_OP_T) ||
        (op->trans_b != CUBLAS_OP_N && op->trans_b != CUBLAS_OP_T) ||
        op->trans_c != CUBLAS_OP_N || op->fill_mode != CUBLAS_FILL_MODE_FULL) {
        return INVALID("a transposition is neither N nor T (C: N), or the fill mode is not full");
    }
    p->m = (int64_t)(op->trans_a == CUBLAS_OP_N ? p->A.rows : p->A.cols);
    p->k = (int64_t)(op->trans_a == CUBLAS_OP_N ? p->A.cols : p->A.rows);
    p->n = (int64_t)(op->trans_b == CUBLAS_OP_N ? p->B.cols : p->B.rows);
    int64_t k_of_B = (int64_t)(op->trans_b == CUBLAS_OP_N ? p->B.rows : p->B.cols);
    if (p->k != k_of_B) {
        return INVALID("K is %lld in A and %lld in B", (long long)p->k, (long long)k_of_B);
    }
    if ((int64_t)p->C.rows != p->m || (int64_t)p->C.cols != p->n || (int64_t)p->D.rows != p->m ||
        (int64_t)p->D.cols != p->n) {
        return INVALID("op(A) op(B) is (%lld, %lld), C (%lld, %lld), D (%lld, %lld)",
                       (long long)p->m, (long long)p->n, (long long)p->C.rows,
                       (long long)p->C.cols, (long long)p->D.rows, (long long)p->D.cols);
    }
    if (op->compute_type != CUBLAS_COMPUTE_32F || op->scale_type != CUDA_R_32F) {
        return UNSUPPORTED("compute type %d and scale type %d are not 32F (others: not modelled)",
                           op->compute_type, op->scale_type);
    }
    if (op->pointer_mode != CUBLASLT_POINTER_MODE_HOST &&
        op->pointer_mode != CUBLASLT_POINTER_MODE_DEVICE) {
        return UNSUPPORTED("not modelled: pointer mode %d", op->pointer_mode);
    }
    int fp4_A = p->A.type == CUDA_R_4F_E2M1, fp4_B = p->B.type == CUDA_R_4F_E2M1;
    int plain = p->A.type == p->B.type && (p->A.type == CUDA_R_16BF || p->A.type == CUDA_R_32F);
    p->fp4 = fp4_A && fp4_B;
    p->fp8 = is_fp8(p->A.type) && is_fp8(p->B.type);
    p->narrow = p->fp4 || p->fp8;
    if (!p->narrow && !plain) {
        return UNSUPPORTED("A has type %u and B %u: not supported or not modelled", p->A.type,
                           p->B.type);
    }
    return p->fp4 ? check_fp4(p) : p->fp8 ? check_fp8(p) : check_plain(p);
}

// ---------------------------------------------------------------------------------------------
// Algorithms. One is valid for the problem that the heuristic was asked about, and carries what it
// relies on: so many bytes of workspace, such alignments.

typedef struct {
    uint64_t tag, fingerprint, workspace;
    uint32_t align[4];              // bytes; of A, B, C, D
    uint32_t align_bias, m, n, k;
} Algorithm;

static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t), "Algorithm is too large");

// A number for everything that an algorithm depends on (FNV-1a over the values).
static uint64_t problem_fingerprint(const Problem* p) {
    const Operation* op = &p->op;
    const Layout* const layouts[4] = { &p->A, &p->B, &p->C, &p->D };
    int64_t values[12 + 4 * 4] = {
        op->compute_type, op->scale_type, op->pointer_mode, op->trans_a, op->trans_b,
        (int64_t)op->epilogue, op->bias_type, op->a_scale_mode, op->b_scale_mode, op->fast_accum,
        op->sm_count, op->d_scale_mode };
    for (int i = 0; i < 4; i++) {
        values[12 + 4 * i] = (int64_t)layouts[i]->type;
        values[12 + 4 * i + 1] = (int64_t)layouts[i]->rows;
        values[12 + 4 * i + 2] = (int64_t)layouts[i]->cols;
        values[12 + 4 * i + 3] = layouts[i]->ld;
    }
    unsigned char bytes[sizeof(values)];
    memcpy(bytes, values, sizeof(values));
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof(bytes); i++) { hash = (hash ^ bytes[i]) * 0x100000001b3u; }
    return hash;
}

// The largest power of two, at most 256, that divides the address. NULL fits everything.
static uint32_t alignment_of(const void* address) {
    uint32_t align = 256;
    while ((uintptr_t)address % align != 0) { align /= 2; }
    return align;
}

static void algorithm_make(cublasLtMatmulAlgo_t* to, const Problem* p, uint64_t workspace,
                           const uint32_t align[4]) {
    Algorithm a;
    memset(&a, 0, sizeof(a));
    a.tag = TAG_ALGORITHM;
    a.fingerprint = problem_fingerprint(p);
    a.workspace = workspace;
    memcpy(a.align, align, sizeof(a.align));
    uint32_t align_bias = alignment_of(p->op.bias);
    a.align_bias = align_bias < 16 ? align_bias : 16;
    a.m = (uint32_t)p->m;
    a.n = (uint32_t)p->n;
    a.k = (uint32_t)p->k;
    memset(to, 0, sizeof(*to));
    memcpy(to->data, &a, sizeof(a));
}

// One algorithm. It asks for all the workspace that the preference allows, up to 32 MiB, so that a
// caller who promises more than he brings is found out.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t A,
    cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
    cublasLtMatmulPreference_t preference, int requested, cublasLtMatmulHeuristicResult_t results[],
    int* returned) {
    const uint64_t most_workspace = (uint64_t)32 << 20;
    model.complaint[0] = 0;
    if (returned != NULL) { *returned = 0; }
    if (handle == NULL || handle->tag != TAG_HANDLE) {
        return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no living handle");
    }
    if (requested < 1 || results == NULL || returned == NULL) {
        return INVALID("%d algorithms requested, or nowhere to write them", requested);
    }
    if (preference == NULL || preference->data[0] != TAG_PREFERENCE) {
        return INVALID("the preference is not a living preference");
    }
    Problem p;
    cublasStatus_t status = problem_read(&p, operation, A, B, C, D);
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    Preference wish;
    memcpy(&wish, preference->data, sizeof(wish));
    if (wish.search_mode != CUBLASLT_SEARCH_BEST_FIT) {
        return UNSUPPORTED("not modelled: search mode %u", wish.search_mode);
    }
    for (int i = 0; i < 4; i++) {
        uint32_t align = wish.align[i];
        if (align == 0 || (align & (align - 1)) != 0) {
            return INVALID("the preferred alignment of %c is %u, no power of 2", "ABCD"[i], align);
        }
        if (p.narrow && align < 16) {
            return UNSUPPORTED("a narrow product: %c aligned to %u bytes, not 16", "ABCD"[i], align);
        }
    }
    if (p.narrow && model.fault == CUBLASLT_MODEL_NO_ALGORITHM) { return CUBLAS_STATUS_SUCCESS; }
    memset(&results[0], 0, sizeof(results[0]));
    results[0].workspaceSize = wish.workspace < most_workspace ? wish.workspace : most_workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1.0f;
    algorithm_make(&results[0].algo, &p, results[0].workspaceSize, wish.align);
    *returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------
// Numbers

// E2M1: sign, 2 bits of exponent (bias 1), 1 bit of mantissa. No infinity, no NaN.
static const double e2m1_values[16] = { 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
                                        -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0 };

// UE4M3: 4 bits of exponent (bias 7), 3 bits of mantissa, in bits 6..0; bit 7 is not part of it.
// Exponent 0: m * 2^-9. The largest exponent is not special, except that 0x7F is NaN.
static double ue4m3_value(uint8_t byte) {
    int exponent = byte >> 3 & 15, mantissa = byte & 7;
    if (exponent == 15 && mantissa == 7) { return NAN; }
    if (exponent == 0) { return ldexp(mantissa, -9); }
    return ldexp(8 + mantissa, exponent - 10);
}

// E4M3: a sign before the bits of UE4M3, and NaN is 0x7F or 0xFF.
static double e4m3_value(uint8_t byte) {
    double x = ue4m3_value(byte & 0x7f);
    return byte & 0x80 ? -x : x;
}

// E5M2: sign, 5 bits of exponent (bias 15), 2 bits of mantissa. Exponent 0: m * 2^-16. The largest
// exponent: infinity (m 0) or NaN.
static double e5m2_value(uint8_t byte) {
    int exponent = byte >> 2 & 31, mantissa = byte & 3;
    double x = exponent == 0 ? ldexp(mantissa, -16) : ldexp(4 + mantissa, exponent - 17);
    if (exponent == 31) { x = mantissa == 0 ? INFINITY : NAN; }
    return byte & 0x80 ? -x : x;
}

static double bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof(x));
    return x;
}

// To nearest even in one rounding (not by way of FP32, which could round twice). NaN is 0x7FFF.
static uint16_t bf16_nearest(double x) {
    float rounded = (float)x;               // infinities stay
    if (isnan(x)) { return 0x7fff; }
    if (!isinf(x)) {
        int exponent;
        frexp(x, &exponent);                // |x| in [2^(exponent-1), 2^exponent)
        int last_bit = exponent - 8 > -133 ? exponent - 8 : -133;
        rounded = (float)ldexp(nearbyint(ldexp(x, -last_bit)), last_bit);
    }
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

// Scales lie in tiles of 128 rows (of op(A), or columns of op(B)) by 4 blocks of K, 512 bytes each,
// tiles of the same rows one after the other. A tile is 32 lines of 16 bytes:
//
//              row r             row r + 32        row r + 64        row r + 96
//     line r:  block 0  1  2  3  block 0  1  2  3  block 0  1  2  3  block 0  1  2  3
//
// (cuBLAS documentation, "1D block scaling factors layout").
static size_t scale_offset(int64_t row, int64_t block, int64_t blocks) {
    int64_t tiles_across = (blocks + 3) / 4;
    int64_t tile = row / 128 * tiles_across + block / 4;
    int64_t line = row % 32, quarter = row % 128 / 32;
    return (size_t)(tile * 512 + line * 16 + quarter * 4 + block % 4);
}

// Bytes of the scales of `rows` rows: whole tiles.
static size_t scale_bytes(int64_t rows, int64_t blocks) {
    return (size_t)((rows + 127) / 128 * ((blocks + 3) / 4) * 512);
}

// FP32 scales of FP8 with L = ceil(k / 128) blocks along K (cuBLAS documentation, 3.1.4.5.1):
//
//     VEC128    rows x L, M-major: the scales of all rows for the first block of K, then the second
//     BLK128    L4 x ceil(rows / 128), K-major: a column for each 128 rows, L4 long; L4 is L rounded
//               up to a multiple of 4
static int64_t fp8_scale_index(int32_t mode, int64_t row, int64_t block, int64_t rows, int64_t k) {
    int64_t L4 = ((k + 127) / 128 + 3) / 4 * 4;
    return mode == SCALE_BLK128 ? row / 128 * L4 + block : block * rows + row;
}

// Bytes of an operand's scales: of `rows` rows (m of A, n of B).
static size_t operand_scale_bytes(const Problem* p, int32_t mode, int64_t rows) {
    int64_t L = (p->k + 127) / 128;
    if (p->fp4) { return scale_bytes(rows, p->k / 16); }
    if (mode == SCALE_VEC128) { return (size_t)(rows * L) * sizeof(float); }
    if (mode == SCALE_BLK128) { return (size_t)((rows + 127) / 128 * ((L + 3) / 4 * 4)) * 4; }
    return sizeof(float);
}

// ---------------------------------------------------------------------------------------------
// The product

// An operand as the sum sees it: `rows` rows (m of A, n of B) of k elements.
typedef struct {
    const void* data;
    const void* scales;             // NULL: none
    uint32_t type;
    int32_t scale_mode;
    int64_t rows, k, ld;
    int k_contiguous, is_A;
} Operand;

// Row `row` of an FP4 operand -> line (k). Two codes a byte, the even element in the low nibble.
static void decode_fp4(const Operand* x, int64_t row, double* line) {
    const uint8_t* bytes = (const uint8_t*)x->data + row * x->ld / 2;
    int64_t blocks = x->k / 16;
    int swapped = model.fault == (x->is_A ? CUBLASLT_MODEL_NIBBLES_SWAPPED
                                          : CUBLASLT_MODEL_NIBBLES_SWAPPED_B);
    int shifted = model.fault == CUBLASLT_MODEL_SCALES_SHIFTED && !x->is_A;
    for (int64_t b = 0; b < blocks; b++) {
        size_t at = scale_offset(row, shifted ? (b + 1) % blocks : b, blocks);
        if (model.fault == CUBLASLT_MODEL_SCALES_ROW_MAJOR) {
            at = (size_t)(row * ((blocks + 3) / 4 * 4) + b);
        }
        double scale = ue4m3_value(((const uint8_t*)x->scales)[at]);
        if (model.fault == CUBLASLT_MODEL_SCALES_NOT_READ) { scale = 1.0; }
        for (int i = 0; i < 16; i++) {
            int high = (i & 1) ^ swapped;
            int code = bytes[(b * 16 + i) / 2] >> (high ? 4 : 0) & 15;
            if (model.fault == CUBLASLT_MODEL_SIGN_DROPPED) { code &= 7; }
            line[b * 16 + i] = e2m1_values[code] * scale;
        }
    }
    if (model.fault == CUBLASLT_MODEL_K_CUT) { memset(line + x->k - 32, 0, 32 * sizeof(double)); }
}

// Row `row` of an FP8 operand -> line (k): the first byte, and those `step` bytes further each.
static void decode_fp8(const Operand* x, int64_t row, int64_t first, int64_t step, double* line) {
    const uint8_t* bytes = (const uint8_t*)x->data;
    const float* scales = (const float*)x->scales;
    int shifted = model.fault == CUBLASLT_MODEL_SCALES_SHIFTED && !x->is_A;
    int e5m2 = (x->type == CUDA_R_8F_E5M2) ^ (model.fault == CUBLASLT_MODEL_TYPES_SWAPPED);
    int64_t blocks = (x->k + 127) / 128;
    for (int64_t p = 0; p < x->k; p++) {
        uint8_t byte = bytes[first + p * step];
        if (model.fault == CUBLASLT_MODEL_SIGN_DROPPED) { byte &= 0x7f; }
        double scale = 1.0;
        if (x->scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) {
            if (scales != NULL) { scale = scales[0]; }
        } else if (model.fault != CUBLASLT_MODEL_SCALES_NOT_READ) {
            int64_t block = shifted ? (p / 128 + 1) % blocks : p / 128;
            int64_t at = fp8_scale_index(x->scale_mode, row, block, x->rows, x->k);
            if (model.fault == CUBLASLT_MODEL_SCALES_ROW_MAJOR) {
                at = x->scale_mode == SCALE_BLK128 ? row / 128 * blocks + block
                                                   : row * blocks + block;
            }
            scale = scales[at];
        }
        line[p] = (e5m2 ? e5m2_value(byte) : e4m3_value(byte)) * scale;
    }
    if (model.fault == CUBLASLT_MODEL_K_CUT) { memset(line + x->k - 16, 0, 16 * sizeof(double)); }
}

// Row `row` of an operand of any type -> line (k).
static void decode_row(const Operand* x, int64_t row, double* line) {
    int64_t first = x->k_contiguous ? row * x->ld : row, step = x->k_contiguous ? 1 : x->ld;
    if (x->type == CUDA_R_4F_E2M1) {
        decode_fp4(x, row, line);
    } else if (is_fp8(x->type)) {
        decode_fp8(x, row, first, step, line);
    } else if (x->type == CUDA_R_16BF) {
        const uint16_t* data = (const uint16_t*)x->data;
        for (int64_t p = 0; p < x->k; p++) { line[p] = bf16_value(data[first + p * step]); }
    } else {
        const float* data = (const float*)x->data;
        for (int64_t p = 0; p < x->k; p++) { line[p] = data[first + p * step]; }
    }
}

// Rows first .. first + width - 1 of an operand -> panel (k, width); rows that do not exist are 0.
static void decode_panel(const Operand* x, int64_t first, int width, double* panel, double* line) {
    for (int i = 0; i < width; i++) {
        if (first + i < x->rows) {
            decode_row(x, first + i, line);
        } else {
            memset(line, 0, (size_t)x->k * sizeof(double));
        }
        for (int64_t p = 0; p < x->k; p++) { panel[p * width + i] = line[p]; }
    }
}

// Of the part of D that is summed at once. With these gcc makes code 6 times as fast as with
// 16 and 4.
enum { ROWS = 32, COLUMNS = 2 };

static double* doubles(int64_t count) {
    double* memory = (double*)malloc((size_t)count * sizeof(double));
    if (memory == NULL) {
        fprintf(stderr, "cublaslt_model: out of memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

static double element(const void* data, uint32_t type, int64_t at) {
    return type == CUDA_R_16BF ? bf16_value(((const uint16_t*)data)[at])
                               : (double)((const float*)data)[at];
}

// D = alpha * sums + beta * C + bias for one panel of rows and columns. sums (COLUMNS, ROWS).
static void store(const Problem* p, const double* sums, int64_t row, int64_t column, double alpha,
                  double beta, const void* C, void* D) {
    for (int j = 0; j < COLUMNS && column + j < p->n; j++) {
        if (p->narrow && model.fault == CUBLASLT_MODEL_TAIL_NOT_WRITTEN && column + j == p->n - 1) {
            continue;
        }
        for (int i = 0; i < ROWS && row + i < p->m; i++) {
            double x = alpha * sums[j * ROWS + i];
            // C is not read if beta is 0: it may hold NaN.
            if (beta != 0.0) {
                x += beta * element(C, p->C.type, (column + j) * p->C.ld + row + i);
            }
            if (p->op.epilogue == CUBLASLT_EPILOGUE_BIAS) {
                x += element(p->op.bias, p->D.type, row + i);
            }
            if (p->narrow && model.fault == CUBLASLT_MODEL_ZEROS) { x = 0.0; }
            if (p->narrow && model.fault == CUBLASLT_MODEL_NANS) { x = NAN; }
            if (p->narrow && model.fault == CUBLASLT_MODEL_RESULT_ROUNDED) {
                x = bf16_value(bf16_nearest(x));
            }
            int64_t at = (column + j) * p->D.ld + row + i;
            if (p->D.type == CUDA_R_16BF) {
                ((uint16_t*)D)[at] = bf16_nearest(x);
            } else {
                ((float*)D)[at] = (float)x;
            }
        }
    }
}

// Each operand is decoded once: B into panels of COLUMNS columns (k, COLUMNS), A panel by panel.
static void multiply(const Problem* p, const Operand* A, const Operand* B, double alpha,
                     double beta, const void* C, void* D) {
    int64_t k = p->k, panels_B = (p->n + COLUMNS - 1) / COLUMNS;
    double* decoded_B = doubles(panels_B * k * COLUMNS);
    #pragma omp parallel
    {
        double* panel_A = doubles(k * ROWS);
        double* line = doubles(k);
        #pragma omp for
        for (int64_t j = 0; j < panels_B; j++) {
            decode_panel(B, j * COLUMNS, COLUMNS, decoded_B + j * k * COLUMNS, line);
        }
        #pragma omp for
        for (int64_t row = 0; row < p->m; row += ROWS) {
            decode_panel(A, row, ROWS, panel_A, line);
            for (int64_t j = 0; j < panels_B; j++) {
                const double* panel_B = decoded_B + j * k * COLUMNS;
                double sums[COLUMNS][ROWS] = { { 0.0 } };
                for (int64_t q = 0; q < k; q++) {
                    for (int c = 0; c < COLUMNS; c++) {
                        for (int i = 0; i < ROWS; i++) {
                            sums[c][i] += panel_A[q * ROWS + i] * panel_B[q * COLUMNS + c];
                        }
                    }
                }
                store(p, &sums[0][0], row, j * COLUMNS, alpha, beta, C, D);
            }
        }
        free(line);
        free(panel_A);
    }
    free(decoded_B);
}

// ---------------------------------------------------------------------------------------------
// What the pointers and the data must be like

static int overlap(const void* a, size_t bytes_a, const void* b, size_t bytes_b) {
    uintptr_t first_a = (uintptr_t)a, first_b = (uintptr_t)b;
    return a != NULL && b != NULL && first_a < first_b + bytes_b && first_b < first_a + bytes_a;
}

// From the first to the last element of a matrix.
static size_t matrix_bytes(const Layout* x) {
    return (size_t)(((int64_t)(x->cols - 1) * x->ld + (int64_t)x->rows) * type_bits(x->type) / 8);
}

// The scales of an operand of `rows` rows: no NaN, no sign, and zeros where a tile has no rows or
// no blocks. Kernels read whole tiles; what lies there has made garbage of results (vLLM issue
// 37564), so the model refuses where hardware would not notice.
static cublasStatus_t check_scales(const uint8_t* scales, int64_t rows, int64_t blocks, char name) {
    for (int64_t row = 0; row < (rows + 127) / 128 * 128; row++) {
        for (int64_t block = 0; block < (blocks + 3) / 4 * 4; block++) {
            uint8_t byte = scales[scale_offset(row, block, blocks)];
            const char* fault = NULL;
            if (row >= rows || block >= blocks) {
                fault = byte != 0 ? "padding is not 0" : NULL;
            } else if (byte & 0x80) {
                fault = "bit 7 is set, UE4M3 has no sign";
            } else if (byte == 0x7f && !model.nan_scales) {
                fault = "NaN";
            }
            if (fault != NULL) {
                return INVALID("scale of %c for row %lld of %lld, block %lld of %lld is 0x%02x: %s",
                               name, (long long)row, (long long)rows, (long long)block,
                               (long long)blocks, byte, fault);
            }
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

// FP32 scales: finite, also where there is no block, because nobody says that this is not read.
static cublasStatus_t check_fp8_scales(const Problem* p, const void* scales, int32_t mode,
                                       int64_t rows, char name) {
    for (size_t i = 0; scales != NULL && i < operand_scale_bytes(p, mode, rows) / 4; i++) {
        float scale = ((const float*)scales)[i];
        if (!isfinite(scale) && !model.nan_scales) {
            return INVALID("FP8: scale %zu of %c is %g", i, name, (double)scale);
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

// Algorithm, workspace, addresses, scales. C may be D with the same layout; D may not touch
// anything else.
static cublasStatus_t check_call(const Problem* p, const cublasLtMatmulAlgo_t* algorithm,
                                 const void* A, const void* B, const void* C, void* D,
                                 void* workspace, size_t workspace_bytes) {
    Algorithm a;
    memcpy(&a, algorithm->data, sizeof(a));
    if (a.tag != TAG_ALGORITHM) { return INVALID("the algorithm is not from the heuristic"); }
    if (a.fingerprint != problem_fingerprint(p)) {
        return INVALID("the algorithm is for another product (m %u, n %u, k %u) than this one "
                       "(%lld, %lld, %lld), or for other types, layouts or modes", a.m, a.n, a.k,
                       (long long)p->m, (long long)p->n, (long long)p->k);
    }
    const void* const matrices[4] = { A, B, C, D };
    for (int i = 0; i < 4; i++) {
        if ((uintptr_t)matrices[i] % a.align[i] != 0) {
            return INVALID("%c is at %p, but %u-byte alignment was promised", "ABCD"[i],
                           matrices[i], a.align[i]);
        }
    }
    if (p->op.epilogue == CUBLASLT_EPILOGUE_BIAS &&
        (p->op.bias == NULL || (uintptr_t)p->op.bias % a.align_bias != 0)) {
        return INVALID("the bias is at %p, the heuristic saw %u-byte alignment", p->op.bias,
                       a.align_bias);
    }
    if ((uintptr_t)workspace % 256 != 0) {
        return INVALID("the workspace is at %p, not a multiple of 256", workspace);
    }
    if (workspace_bytes < a.workspace || (a.workspace > 0 && workspace == NULL)) {
        return INVALID("the algorithm needs %llu bytes of workspace, there are %zu",
                       (unsigned long long)a.workspace, workspace == NULL ? 0 : workspace_bytes);
    }
    size_t bytes_D = matrix_bytes(&p->D);
    const struct { const void* data; size_t bytes; const char* name; } inputs[4] = {
        { A, matrix_bytes(&p->A), "A" }, { B, matrix_bytes(&p->B), "B" },
        { p->narrow ? p->op.a_scale : NULL, operand_scale_bytes(p, p->op.a_scale_mode, p->m),
          "the scales of A" },
        { p->narrow ? p->op.b_scale : NULL, operand_scale_bytes(p, p->op.b_scale_mode, p->n),
          "the scales of B" } };
    for (int i = 0; i < 4; i++) {
        if (overlap(D, bytes_D, inputs[i].data, inputs[i].bytes)) {
            return INVALID("D overlaps %s", inputs[i].name);
        }
        if (overlap(workspace, workspace_bytes, inputs[i].data, inputs[i].bytes)) {
            return INVALID("the workspace overlaps %s", inputs[i].name);
        }
    }
    if (overlap(D, bytes_D, workspace, workspace_bytes)) {
        return INVALID("the workspace overlaps D");
    }
    if (C == D ? p->C.ld != p->D.ld : overlap(C, matrix_bytes(&p->C), D, bytes_D)) {
        return INVALID("C and D overlap, but are not the same matrix");
    }
    if (!p->narrow) { return CUBLAS_STATUS_SUCCESS; }
    for (int i = 0; i < 4; i++) {
        if ((uintptr_t)matrices[i] % 16 != 0) {
            return INVALID("a narrow product: %c is at %p, no multiple of 16", "ABCD"[i],
                           matrices[i]);
        }
    }
    if (p->fp8) {
        cublasStatus_t answer = check_fp8_scales(p, p->op.a_scale, p->op.a_scale_mode, p->m, 'A');
        if (answer != CUBLAS_STATUS_SUCCESS) { return answer; }
        return check_fp8_scales(p, p->op.b_scale, p->op.b_scale_mode, p->n, 'B');
    }
    cublasStatus_t status = check_scales((const uint8_t*)p->op.a_scale, p->m, p->k / 16, 'A');
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    return check_scales((const uint8_t*)p->op.b_scale, p->n, p->k / 16, 'B');
}

// Matrices, scales, bias and workspace lie where kernels can reach them; alpha and beta there if the
// pointer mode says so, else where the CPU can.
static cublasStatus_t check_memory(const Problem* p, const void* A, const void* B, const void* C,
                                   const void* D, const void* workspace, const void* alpha,
                                   const void* beta) {
    int scalars = p->op.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
    const struct { const void* address; int on_device; const char* name; } all[] = {
        { A, 1, "A" }, { B, 1, "B" }, { C, 1, "C" }, { D, 1, "D" },
        { workspace, 1, "the workspace" },
        { p->narrow ? p->op.a_scale : NULL, 1, "the scales of A" },
        { p->narrow ? p->op.b_scale : NULL, 1, "the scales of B" },
        { p->op.epilogue == CUBLASLT_EPILOGUE_BIAS ? p->op.bias : NULL, 1, "the bias" },
        { alpha, scalars, "alpha" }, { beta, scalars, "beta" } };
    for (size_t i = 0; model.is_device != NULL && i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i].address != NULL && model.is_device(all[i].address) != all[i].on_device) {
            return INVALID("%s has to be in %s memory", all[i].name,
                           all[i].on_device ? "device" : "host");
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

// Kernels may leave anything in the workspace. Overwrites its ends, in case they are someone's.
static void spoil(void* workspace, uint64_t bytes) {
    const uint64_t end = 4096;
    if (bytes == 0) { return; }
    memset(workspace, 0xff, (size_t)(bytes < end ? bytes : end));
    if (bytes > end) { memset((char*)workspace + bytes - end, 0xff, (size_t)end); }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void* alpha, const void* A, cublasLtMatrixLayout_t layout_A,
                              const void* B, cublasLtMatrixLayout_t layout_B, const void* beta,
                              const void* C, cublasLtMatrixLayout_t layout_C, void* D,
                              cublasLtMatrixLayout_t layout_D,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    (void)stream;
    model.complaint[0] = 0;
    if (handle == NULL || handle->tag != TAG_HANDLE) {
        return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no living handle");
    }
    Problem p;
    cublasStatus_t status = problem_read(&p, operation, layout_A, layout_B, layout_C, layout_D);
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    if (A == NULL || B == NULL || D == NULL || alpha == NULL || beta == NULL) {
        return INVALID("A, B, D, alpha or beta is NULL");
    }
    status = check_memory(&p, A, B, C, D, workspace, alpha, beta);
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    float a, b;                     // FP32: the scale type
    memcpy(&a, alpha, sizeof(a));
    memcpy(&b, beta, sizeof(b));
    // With beta on the device the host cannot know that it is 0.
    if (C == NULL && (b != 0.0f || p.op.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE)) {
        return INVALID("C is NULL, but beta is not 0, or is on the device");
    }
    // No algorithm: an implicit query with default preferences, except that it takes the matrices
    // as they are aligned.
    cublasLtMatmulAlgo_t implicit;
    if (algorithm == NULL) {
        const uint32_t align[4] = { alignment_of(A), alignment_of(B), alignment_of(C),
                                    alignment_of(D) };
        algorithm_make(&implicit, &p, 0, align);
        algorithm = &implicit;
    }
    status = check_call(&p, algorithm, A, B, C, D, workspace, workspace_bytes);
    if (status != CUBLAS_STATUS_SUCCESS) { return status; }
    if (p.narrow && model.fault == CUBLASLT_MODEL_EXECUTION_FAILED) {
        return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "the fault asked for");
    }
    if (p.narrow && model.fault == CUBLASLT_MODEL_ALPHA_IGNORED) { a = 1.0f; }
    if (p.narrow && model.fault == CUBLASLT_MODEL_BETA_IGNORED) { b = 0.0f; }
    if (p.narrow && model.fault == CUBLASLT_MODEL_BETA_ONE) { b = C != NULL ? 1.0f : 0.0f; }
    Algorithm chosen;
    memcpy(&chosen, algorithm->data, sizeof(chosen));
    spoil(workspace, chosen.workspace);
    model.fp4_calls += p.fp4;
    model.fp8_calls += p.fp8;
    model.fast_calls += p.fp8 && p.op.fast_accum != 0;
    model.plain_calls += !p.narrow;
    if (p.narrow && model.fault == CUBLASLT_MODEL_D_NOT_WRITTEN) { return CUBLAS_STATUS_SUCCESS; }
    Operand left = { A, p.op.a_scale, p.A.type, p.op.a_scale_mode, p.m, p.k, p.A.ld,
                     p.op.trans_a == CUBLAS_OP_T, 1 };
    Operand right = { B, p.op.b_scale, p.B.type, p.op.b_scale_mode, p.n, p.k, p.B.ld,
                      p.op.trans_b == CUBLAS_OP_N, 0 };
    multiply(&p, &left, &right, a, b, C, D);
    return CUBLAS_STATUS_SUCCESS;
}
