/*
The functions of the CUDA runtime that our programs call: device memory is host memory, streams do
everything at once, and there is one device (or one for each process that mpirun starts), whose
compute capability a test can choose. Included by cuda_on_cpu.h.

Streams do at once what they are given, but for one thing: what the model of NCCL gives them
(nccl_model.c) waits in its stream until something comes that must not begin before: the next thing
in the stream, a wait for an event that was recorded behind it, a synchronization. As late as
possible, so that a wait which the program forgot shows: the kernel that should have waited finds
the old numbers. The other direction is looked up: cuda_on_cpu_behind.
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
// Streams. A NULL stream is the first here; it waits for all others, and they for it.

#define CPU_STREAMS 16
#define CPU_DEFERRED 4096           // things that can wait in a stream

typedef struct { void (*run)(void*); void* with; } CpuDeferred;

struct CUstream_st {
    int used;
    long last;                      // number of the last thing that was done here at once
    long seen;                      // what was done up to this number elsewhere, it has waited for
    long deferred, run;             // how many things have been put off, and done since
    CpuDeferred waiting[CPU_DEFERRED];
};

struct CUevent_st { cudaStream_t stream; long last, deferred; };

static struct CUstream_st cpu_streams[CPU_STREAMS];
static long cpu_done = 0;           // things done at once, in all streams
static long cpu_waited = 0;         // up to this number the program itself has waited for them

static cudaStream_t cpu_stream(cudaStream_t stream) {
    return stream == NULL ? &cpu_streams[0] : stream;
}

// Does what was put off in the stream, up to the number `until`.
static void cpu_stream_run(cudaStream_t stream, long until) {
    while (stream->run < until) {
        CpuDeferred d = stream->waiting[stream->run % CPU_DEFERRED];
        stream->run++;
        d.run(d.with);
    }
}

static void cpu_streams_run(void) {
    for (int i = 0; i < CPU_STREAMS; i++) {
        cpu_stream_run(&cpu_streams[i], cpu_streams[i].deferred);
    }
}

// Something is done in this stream now.
static void cpu_stream_use(cudaStream_t stream) {
    if (stream == NULL) { cpu_streams_run(); }
    if (stream == NULL) { cpu_waited = cpu_done; }
    stream = cpu_stream(stream);
    cpu_stream_run(stream, stream->deferred);
    stream->last = ++cpu_done;
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

// Puts something off. For nccl_model.c.
void cuda_on_cpu_defer(cudaStream_t stream, void (*run)(void*), void* with) {
    stream = cpu_stream(stream);
    if (stream->deferred - stream->run == CPU_DEFERRED) {
        cpu_stream_run(stream, stream->run + 1);
    }
    stream->waiting[stream->deferred % CPU_DEFERRED].run = run;
    stream->waiting[stream->deferred % CPU_DEFERRED].with = with;
    stream->deferred++;
}

// 1 if another stream was given work for which this one does not wait.
int cuda_on_cpu_behind(cudaStream_t stream) {
    stream = cpu_stream(stream);
    int behind = 0;
    for (int i = 1; i < CPU_STREAMS; i++) {
        behind |= &cpu_streams[i] != stream && cpu_streams[i].last > stream->seen
               && cpu_streams[i].last > cpu_waited;
    }
    return behind;
}

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
    cpu_streams_run();
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
    return cpu_stream_use(NULL), memset(to, value, bytes), cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) { return cudaSuccess; }
    if (!cuda_on_cpu_is_device(to)) { return cudaErrorInvalidValue; }
    return cpu_stream_use(stream), memset(to, value, bytes), cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
    if (width > pitch || !cuda_on_cpu_is_device(to)) { return cudaErrorInvalidValue; }
    cpu_stream_use(stream);
    for (size_t row = 0; row < height; row++) { memset((char*)to + row * pitch, value, width); }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) { return cudaSuccess; }
    if (!copy_possible(to, from, kind)) { return cudaErrorInvalidValue; }
    return cpu_stream_use(NULL), memmove(to, from, bytes), cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    if (bytes == 0) { return cudaSuccess; }
    if (!copy_possible(to, from, kind)) { return cudaErrorInvalidValue; }
    return cpu_stream_use(stream), memmove(to, from, bytes), cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    if (width > to_pitch || width > from_pitch || !copy_possible(to, from, kind)) {
        return cudaErrorInvalidValue;
    }
    cpu_stream_use(stream);
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

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    for (int i = 1; i < CPU_STREAMS; i++) {
        if (cpu_streams[i].used) { continue; }
        memset(&cpu_streams[i], 0, sizeof(cpu_streams[i]));
        cpu_streams[i].used = 1;
        return *stream = &cpu_streams[i], cudaSuccess;
    }
    return *stream = NULL, cudaSuccess;         // tests leave many behind: these share the first
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cpu_streams_run();
    cpu_stream(stream)->used = 0;
    cpu_stream(stream)->last = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    cpu_streams_run();
    cpu_waited = cpu_done;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream == NULL) { return cudaDeviceSynchronize(); }
    cpu_stream_run(stream, stream->deferred);
    cpu_waited = stream->last > cpu_waited ? stream->last : cpu_waited;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = (cudaEvent_t)calloc(1, sizeof(**event));
    return *event == NULL ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->stream = cpu_stream(stream);
    event->last = event->stream->last > event->stream->seen ? event->stream->last
                                                            : event->stream->seen;
    event->deferred = event->stream->deferred;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->stream != NULL) { cpu_stream_run(event->stream, event->deferred); }
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    stream = cpu_stream(stream);
    if (event->last > stream->seen) { stream->seen = event->last; }
    return cudaEventSynchronize(event);
}

// ---------------------------------------------------------------------------------------------
// The device

static int device_current = 0;

// Those that CUDA_VISIBLE_DEVICES names ("3" or "0,1"), else one for each process.
cudaError_t cudaGetDeviceCount(int* count) {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    const char* processes = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    *count = processes == NULL ? 1 : atoi(processes);
    for (*count = visible == NULL ? *count : 1; visible != NULL && *visible; visible++) {
        *count += *visible == ',';
    }
    return cudaSuccess;
}

// The number of a device among all of the host.
int device_physical(int device) {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible == NULL) { return device; }
    for (int i = 0; i < device && visible != NULL; i++) {
        visible = strchr(visible, ',');
        visible = visible != NULL ? visible + 1 : NULL;
    }
    return visible == NULL ? -1 : atoi(visible);
}

cudaError_t cudaGetDevice(int* device) { return *device = device_current, cudaSuccess; }

cudaError_t cudaSetDevice(int device) {
    int count;
    cudaGetDeviceCount(&count);
    if (device < 0 || device >= count) { return cudaErrorInvalidDevice; }
    return device_current = device, cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof(*properties));
    strcpy(properties->name, "CPU");
    properties->uuid.bytes[0] = (char)device_physical(device);
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
