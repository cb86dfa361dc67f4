/*
CUDA programs on the CPU: this file stands for what nvcc adds to C++, so that g++ compiles our .cu
programs and every kernel and launcher in them runs without a GPU, under the address sanitizer, and
can be stepped through in gdb ("break quantize.cuh:200 if threadIdx.x == 3"). translate.sh rewrites
what is no C++; the types are those of NVIDIA's headers; runtime.h has the functions of the CUDA
runtime, ptx.h the PTX instructions.

The threads of a block are fibres, each with a stack of its own, on one thread of the CPU. One runs
until it has to wait for others, at __syncthreads or where a warp exchanges values; then another
goes on. Blocks run one after the other. Every order is fixed, so two runs do the same; but not all
blocks have the same order, because the missing barrier that one order hides another shows: threads
from the first to the last or the other way, all warps side by side or one as far as it can get. And
launches take turns in the order of their blocks.

Looked at on the way, with kernel, block and thread in the message:

    every thread of a block comes to the same __syncthreads, every lane of a warp to the same
    exchange; nobody returns before (CUDA forgives some of this; our kernels do not need it)
    memory: cudaMalloc'ed, static and dynamic shared memory starts as NaN (bytes 0xff), the two
    kinds of shared memory anew in every block; outside of it is an error of the address sanitizer
    misaligned vector loads and stores, shifts and indices beyond: undefined behaviour sanitizer
    sizes of grid, block and dynamic shared memory, as cudaGetLastError tells

What it cannot show: speed; races that none of these orders brings to light; lanes that come to one
line by different calls of a function; the rounding of nvcc's fused multiply-adds and of __expf,
which is more exact here; what ptxas checks (registers, 48 KiB of static shared memory).

Faults planted in kernels, one at a time, and how they showed:

    a test failed           each of the barriers left out: in quantize_kernel (2), amax_kernel (2),
                            block_sum (2), attention's loop; each __syncwarp of rows_store;
                            copy_async_wait in attention's loop; a wrong swizzle, written or read;
                            shared memory not zeroed; a vector or a column pair too many
    the address sanitizer   a row too many; a tile of dynamic shared memory too few
    the other sanitizer     a misaligned vector; an index beyond a shared array
    cuda_on_cpu             a return before a barrier; an exchange of half a warp; a mask of half a
                            warp; ldmatrix off its 16 bytes; gridDim.y 65536; 2048 threads; dynamic
                            shared memory that was not asked for
*/
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>
#include <cuda_runtime.h>

// Tests leave out what would take too long here, and say so.
#define RUNS_ON_CPU 1

// The sanitizers look at kernels, not at what runs them.
#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define __sanitizer_start_switch_fiber(fake_stack, bottom, size)
#define __sanitizer_finish_switch_fiber(fake_stack, bottom, size)
#define __sanitizer_set_death_callback(function)
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

// ---------------------------------------------------------------------------------------------
// Names of the language. NVIDIA's headers define the other qualifiers as nothing.

// A shared variable exists once, since one block runs at a time. The linker puts all of them side
// by side, and names the begin and the end.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static __attribute__((section("shared_memory")))
extern char __start_shared_memory[] __attribute__((weak));
extern char __stop_shared_memory[] __attribute__((weak));

#define SHARED_MEMORY_MOST (227 << 10)      // dynamic, of a block; the limit of sm_90 and sm_100
alignas(1024) static char dynamic_shared[SHARED_MEMORY_MOST];

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// ---------------------------------------------------------------------------------------------
// Fibres

#define MOST_THREADS 1024                   // of a block
#define FIBRE_STACK (256 << 10)             // memory is taken when it is first touched
#define SHOWN_BYTES 32                      // what a lane can show to its warp

// Where threads wait for each other. Each time all have come, `turn` counts up.
typedef struct { int present, turn; const char* place; } Meeting;

typedef struct {
    void* at[5];                // where it goes on
    int started;                // if not, it begins with `start`
    ucontext_t start;
    int thread;                 // the one it runs: its number in the block, and threadIdx
    uint3 index;
    Meeting* meeting;           // it waits until this one's turn is another than `turn`;
    int turn;                   // NULL: it does not wait
    const void* stack;          // these three are for the address sanitizer
    size_t stack_size;
    void* fake_stack;
} Fibre;

// The block that runs.
static struct {
    const char* kernel;         // as in the launch: "name(arguments)"
    void (*call)(const void* arguments);
    const void* arguments;
    int threads, begun, ended;  // all; how many have begun, how many have returned
    int released;               // how many may go on, after they waited
    int downwards;              // the order: threads from the last to the first;
    int warp_by_warp;           // a warp goes as far as it can before the next one begins
    Fibre launcher;             // who launched the kernel
    Fibre fibres[MOST_THREADS];
    int fibres_used;
    Fibre* running;
    Fibre* previous;            // the one that ran before
    Meeting all, warps[MOST_THREADS / 32];
    alignas(16) char shown[MOST_THREADS / 32][2][32 * SHOWN_BYTES];
} cpu;

static char fibre_stacks[MOST_THREADS][FIBRE_STACK];

// Says where the program is. The sanitizers call it, too, when they have found something.
static void print_thread(void) {
    if (cpu.running == NULL || cpu.running == &cpu.launcher) { return; }
    fprintf(stderr, "cuda_on_cpu: in block (%u, %u, %u), thread (%u, %u, %u) of %s\n", blockIdx.x,
            blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, cpu.kernel);
}
extern "C" void __ubsan_on_report(void) { print_thread(); }

#define kernel_error(...)                                                                          \
    do {                                                                                           \
        fflush(stdout);                                                                            \
        print_thread();                                                                            \
        fprintf(stderr, "cuda_on_cpu: " __VA_ARGS__);                                              \
        fprintf(stderr, "\n");                                                                     \
        _exit(1);                                                                                  \
    } while (0)

// The first thing that a fibre does when it has come to run.
static void fibre_arrive(void) {
    __sanitizer_finish_switch_fiber(cpu.running->fake_stack, &cpu.previous->stack,
                                    &cpu.previous->stack_size);
    threadIdx = cpu.running->index;
}

// The compiler's setjmp and longjmp; those of the library would have the address sanitizer look for
// the end of the stack, with system calls, at every switch.
UNCHECKED __attribute__((noinline, noreturn)) static void fibre_go_on(Fibre* to) {
    if (to->started) { __builtin_longjmp(to->at, 1); }
    to->started = 1;
    setcontext(&to->start);
    abort();
}

// Goes on with another fibre, until one comes back to this.
UNCHECKED __attribute__((noinline)) static void fibre_switch(Fibre* to) {
    Fibre* self = cpu.running;
    cpu.previous = self;
    cpu.running = to;
    __sanitizer_start_switch_fiber(&self->fake_stack, to->stack, to->stack_size);
    if (__builtin_setjmp(self->at) == 0) { fibre_go_on(to); }
    fibre_arrive();
}

// Names one thread for each place where some wait.
static void report_deadlock(void) {
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u) of %s cannot go on: %d of %d threads have "
            "returned\n", blockIdx.x, blockIdx.y, blockIdx.z, cpu.kernel, cpu.ended, cpu.threads);
    for (int i = 0; i < cpu.fibres_used; i++) {
        const Fibre* f = &cpu.fibres[i];
        if (f->meeting == NULL || f->meeting->present == 0) { continue; }
        fprintf(stderr, "cuda_on_cpu: thread (%u, %u, %u) waits at %s, with %d others\n",
                f->index.x, f->index.y, f->index.z, f->meeting->place, f->meeting->present - 1);
        f->meeting->present = 0;
    }
    _exit(1);
}

// Goes on with a fibre that need not wait any more, or with a thread that has not begun: which of
// the two first is the block's order. When all have returned, with the launcher.
UNCHECKED static void fibre_leave(void) {
    int can_begin = cpu.begun < cpu.threads;
    int self = (int)(cpu.running - cpu.fibres);
    int at = cpu.warp_by_warp ? self / 32 * 32 - 1 : self;      // whom the search begins behind
    if (can_begin && (cpu.released == 0 || !cpu.warp_by_warp)) {
        fibre_switch(&cpu.fibres[cpu.fibres_used++]);
    } else if (cpu.released > 0) {
        Fibre* next;
        do {
            at = at + 1 < cpu.fibres_used ? at + 1 : 0;
            next = &cpu.fibres[at];
        } while (next->meeting == NULL || next->turn == next->meeting->turn);
        cpu.released--;
        fibre_switch(next);
    } else if (cpu.ended == cpu.threads) {
        fibre_switch(&cpu.launcher);
    } else {
        report_deadlock();
    }
}

static void fibre_take_thread(int number) {
    threadIdx.x = (unsigned)number % blockDim.x;
    threadIdx.y = (unsigned)number / blockDim.x % blockDim.y;
    threadIdx.z = (unsigned)number / (blockDim.x * blockDim.y);
    cpu.running->thread = number;
    cpu.running->index = threadIdx;
}

// What a fibre does: it takes threads of the block, one after the other. Only when one of them has
// to wait is another fibre needed; most kernels run on one.
static void fibre_run(void) {
    fibre_arrive();
    for (;;) {
        while (cpu.begun < cpu.threads) {
            int number = cpu.begun++;
            fibre_take_thread(cpu.downwards ? cpu.threads - 1 - number : number);
            cpu.call(cpu.arguments);
            cpu.ended++;
        }
        fibre_leave();
    }
}

// Waits until `needed` threads have come.
UNCHECKED static void meet(Meeting* meeting, int needed, const char* place) {
    if (meeting->present == 0) { meeting->place = place; }
    if (meeting->place != place && strcmp(meeting->place, place) != 0) {
        kernel_error("it comes to %s, others wait at %s", place, meeting->place);
    }
    if (++meeting->present == needed) {
        meeting->present = 0;
        meeting->turn++;
        cpu.released += needed - 1;
        return;
    }
    cpu.running->meeting = meeting;
    cpu.running->turn = meeting->turn;
    fibre_leave();
    cpu.running->meeting = NULL;
}

// ---------------------------------------------------------------------------------------------
// Launches

// As the hardware has it: such a launch does nothing, and cudaGetLastError tells.
static cudaError_t cuda_last_error = cudaSuccess;
static size_t dynamic_shared_allowed = 48 << 10;        // cudaFuncSetAttribute raises it

typedef struct { dim3 grid, block; size_t shared; cudaStream_t stream; } LaunchSize;

static LaunchSize launch_size(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t stream = 0) {
    LaunchSize size = { grid, block, shared, stream };
    return size;
}

static void cpu_stream_use(cudaStream_t stream);        // runtime.h

static int launch_possible(const char* kernel, LaunchSize s) {
    size_t threads = (size_t)s.block.x * s.block.y * s.block.z;
    size_t blocks = (size_t)s.grid.x * s.grid.y * s.grid.z;
    if (blocks > 0 && s.grid.x <= INT32_MAX && s.grid.y <= 65535 && s.grid.z <= 65535 &&
        threads > 0 && threads <= MOST_THREADS && s.block.z <= 64 &&
        s.shared <= dynamic_shared_allowed) { return 1; }
    fprintf(stderr, "cuda_on_cpu: no GPU launches %s with a grid of (%u, %u, %u), blocks of (%u, %u"
            ", %u), %zu bytes of dynamic shared memory\n", kernel, s.grid.x, s.grid.y, s.grid.z,
            s.block.x, s.block.y, s.block.z, s.shared);
    cuda_last_error = cudaErrorInvalidConfiguration;
    return 0;
}

// Shared memory starts as NaN in every block.
UNCHECKED static void shared_memory_poison(size_t dynamic) {
    for (volatile char* at = __start_shared_memory; at < __stop_shared_memory; at++) { *at = -1; }
    memset(dynamic_shared, 0xff, dynamic);
}

// All fibres are idle or new; they take the threads of this block.
static void block_run(unsigned number, unsigned order) {
    blockIdx.x = number % gridDim.x;
    blockIdx.y = number / gridDim.x % gridDim.y;
    blockIdx.z = number / gridDim.x / gridDim.y;
    cpu.begun = cpu.ended = cpu.released = 0;
    cpu.downwards = order % 2;
    cpu.warp_by_warp = order / 2 % 2;
    cpu.fibres_used = 1;
    fibre_switch(&cpu.fibres[0]);
}

static void fibres_make(void) {
    for (int i = 0; i < MOST_THREADS; i++) {
        Fibre* f = &cpu.fibres[i];
        getcontext(&f->start);
        f->stack = f->start.uc_stack.ss_sp = fibre_stacks[i];
        f->stack_size = f->start.uc_stack.ss_size = FIBRE_STACK;
        makecontext(&f->start, fibre_run, 0);
    }
    cpu.launcher.started = 1;
    __sanitizer_set_death_callback(print_thread);
}

static void launch_run(LaunchSize size, const char* kernel) {
    static unsigned launches = 0;
    if (!launch_possible(kernel, size)) { return; }
    if (launches == 0) { fibres_make(); }
    cpu_stream_use(size.stream);
    cpu.kernel = kernel;
    cpu.running = &cpu.launcher;
    cpu.threads = (int)(size.block.x * size.block.y * size.block.z);
    gridDim = size.grid;
    blockDim = size.block;
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, SHARED_MEMORY_MOST);
    ASAN_POISON_MEMORY_REGION(dynamic_shared + size.shared, SHARED_MEMORY_MOST - size.shared);
    unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    for (unsigned i = 0; i < blocks; i++) {
        shared_memory_poison(size.shared);
        block_run(launches % 2 == 0 ? i : blocks - 1 - i, launches + i);
    }
    launches++;
}

// What a launch becomes. Each thread calls the kernel with the arguments, which are in a lambda.
#define CPU_LAUNCH(size, ...) launch(launch_size size, #__VA_ARGS__, [&] { __VA_ARGS__; })

template <typename Call> static void call_kernel(const void* call) { (*(const Call*)call)(); }
template <typename Call> static void launch(LaunchSize size, const char* kernel, Call call) {
    cpu.call = call_kernel<Call>;
    cpu.arguments = &call;
    launch_run(size, kernel);
}

// ---------------------------------------------------------------------------------------------
// Barriers, and what a warp exchanges

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define HERE(what) what " in " __FILE__ ":" TEXT(__LINE__)

#define ALL_LANES 0xffffffffu
static inline int lane_number(void) { return cpu.running->thread % 32; }

// Every lane shows x to the others; returns what they show (32). A lane cannot be two exchanges
// ahead of another, so two places for it are enough.
template <typename T> static const T* warp_show(unsigned lanes, T x, const char* place) {
    static_assert(sizeof(T) <= SHOWN_BYTES, "more than a lane can show");
    if (lanes != ALL_LANES) { kernel_error("%s names the lanes %08x, not all", place, lanes); }
    int warp = cpu.running->thread / 32;
    T* shown = (T*)cpu.shown[warp][cpu.warps[warp].turn % 2];
    shown[lane_number()] = x;
    meet(&cpu.warps[warp], 32, place);
    return shown;
}

// The largest of what all lanes show
template <typename T> static T warp_largest(const T* shown) {
    T largest = shown[0];
    for (int lane = 1; lane < 32; lane++) {
        if (shown[lane] > largest) { largest = shown[lane]; }
    }
    return largest;
}

#define __syncthreads() meet(&cpu.all, cpu.threads, HERE("__syncthreads"))
#define __syncwarp() ((void)warp_show(ALL_LANES, 0, HERE("__syncwarp")))
#define __shfl_xor_sync(lanes, x, mask)                                                            \
    warp_show(lanes, x, HERE("__shfl_xor_sync"))[lane_number() ^ (mask)]
#define __reduce_max_sync(lanes, x) warp_largest(warp_show(lanes, x, HERE("__reduce_max_sync")))

// ---------------------------------------------------------------------------------------------
// Functions that only devices have

template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }

// *at = x; returns what it was, as all atomics do.
template <typename T> static inline T replaced(T* at, T x) {
    T old = *at;
    *at = x;
    return old;
}
template <typename T> static inline T atomicAdd(T* at, T x) { return replaced(at, *at + x); }
template <typename T> static inline T atomicMin(T* at, T x) { return replaced(at, min(*at, x)); }
template <typename T> static inline T atomicMax(T* at, T x) { return replaced(at, max(*at, x)); }

template <typename T> static inline T __ldcs(const T* from) { return *from; }
template <typename T> static inline void __stcs(T* to, T x) { *to = x; }

static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x)           // a macro, because glibc declares a function of this name

// Byte k of the result is the byte of y:x that digit k of the selector names.
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int k = 0; k < 4; k++) {
        result |= (unsigned)(bytes >> (8 * (selector >> (4 * k) & 7)) & 255) << (8 * k);
    }
    return result;
}

#include "ptx.h"
#include "runtime.h"

#endif
