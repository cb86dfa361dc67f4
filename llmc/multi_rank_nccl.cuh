/*
The collectives of multi_rank.h on device pointers and a stream: NCCL moves the data between GPUs,
one of which each rank has. Tested on the CPU, on a model of NCCL (dev/test/nccl_model.c), and with 2
and 4 GPUs of one host (dev/gpu_ranks.sh); not yet run on several hosts.

NCCL is started by the Ranks, which MPI or sockets connect; settings, scalars and checkpoints still
travel through those. With one rank every function here returns at once, and nothing needs NCCL. Without it
(no -DLLMC_NCCL, the Makefile knows) programs build and run alone.

A collective is a group of calls that NCCL launches together:

    device_ranks_begin, device_ranks_max_bits | device_ranks_sum | device_ranks_sum_to |
    device_ranks_give ..., device_ranks_end

Parts of different sizes are what a vector cut into shards has. ncclReduceScatter and ncclAllGather
take equal parts only, so a reduce-scatter is a group of reductions, each to the rank that owns the
piece, and an all-gather a group of broadcasts, each from the owner. Both work in place.

Order of sums: NCCL's, not that of the ranks. Every rank gets the same bits of a sum ("identical
copies", nccl.h). A second run with the same number of GPUs, connected alike, repeats them as long
as NCCL chooses the same algorithm and protocol, which its documentation does not promise. MAX has
no order. multi_rank.h, which the C program uses, does add in the order of the ranks.

Two communicators. One is for what happens between two kernels (amaxes, weights), on the stream of
the kernels; the other for gradients, on `side`, while the backward pass goes on. With one, an
amax would queue up behind the gradients of the block before. Both may run at once, in another
order on each GPU; that is no deadlock because all ranks issue them in the same order and the
few thread blocks of two collectives always find room: kernels that are in their way end.

Waiting. Nothing here waits but device_ranks_wait, and a collective that is issued when
DEVICE_RANKS_AHEAD others have not ended. Both look for the errors that NCCL finds later
(ncclCommGetAsyncError) and tell the watchdog which collective it is, so that a hang names it.
*/
#ifndef LLMC_MULTI_RANK_NCCL_CUH
#define LLMC_MULTI_RANK_NCCL_CUH

#include <unistd.h>
#include "cuda_common.cuh"
#include "multi_rank.h"
#include "shards.h"

// ---------------------------------------------------------------------------------------------
// NCCL: everything that depends on it

#ifdef LLMC_NCCL
#include <nccl.h>

enum { RANKS_HAVE_NCCL = 1 };
typedef ncclComm_t NcclComm;

#define ncclCheck(call)                                                                            \
    do {                                                                                           \
        ncclResult_t status_of_call = (call);                                                      \
        check(status_of_call == ncclSuccess, "%s: %s", #call, ncclGetErrorString(status_of_call)); \
    } while (0)

static inline void nccl_open(NcclComm* comm, Ranks* r) {
    ncclUniqueId id;
    memset(&id, 0, sizeof(id));
    if (r->rank == 0) { ncclCheck(ncclGetUniqueId(&id)); }
    ranks_broadcast(r, &id, sizeof(id), "where NCCL meets");
    watchdog_enter(&r->watchdog, "start of NCCL");
    ncclCheck(ncclCommInitRank(comm, r->size, id, r->rank));
    watchdog_leave(&r->watchdog);
}

static inline void nccl_close(NcclComm comm) { ncclCheck(ncclCommDestroy(comm)); }
static inline void nccl_abort(NcclComm comm) { ncclCommAbort(comm); }

// What has gone wrong since a collective was launched; NULL: nothing.
static inline const char* nccl_error(NcclComm comm) {
    ncclResult_t found = ncclSuccess, asked = ncclCommGetAsyncError(comm, &found);
    ncclResult_t error = asked != ncclSuccess ? asked : found;
    return error == ncclSuccess || error == ncclInProgress ? NULL : ncclGetErrorString(error);
}

static inline void nccl_group_begin(void) { ncclCheck(ncclGroupStart()); }
static inline void nccl_group_end(void) { ncclCheck(ncclGroupEnd()); }

static inline void nccl_max_bits(uint32_t* x, size_t n, NcclComm comm, cudaStream_t stream) {
    ncclCheck(ncclAllReduce(x, x, n, ncclUint32, ncclMax, comm, stream));
}

static inline void nccl_sum(float* x, size_t n, NcclComm comm, cudaStream_t stream) {
    ncclCheck(ncclAllReduce(x, x, n, ncclFloat32, ncclSum, comm, stream));
}

static inline void nccl_sum_to(float* x, size_t n, int root, NcclComm comm, cudaStream_t stream) {
    ncclCheck(ncclReduce(x, x, n, ncclFloat32, ncclSum, root, comm, stream));
}

static inline void nccl_give(void* x, size_t bytes, int root, NcclComm comm, cudaStream_t stream) {
    ncclCheck(ncclBroadcast(x, x, bytes, ncclUint8, root, comm, stream));
}

#else

enum { RANKS_HAVE_NCCL = 0 };
typedef void* NcclComm;

static inline void nccl_open(NcclComm*, Ranks*) {}
static inline void nccl_close(NcclComm) {}
static inline void nccl_abort(NcclComm) {}
static inline const char* nccl_error(NcclComm) { return NULL; }
static inline void nccl_group_begin(void) {}
static inline void nccl_group_end(void) {}
static inline void nccl_max_bits(uint32_t*, size_t, NcclComm, cudaStream_t) {}
static inline void nccl_sum(float*, size_t, NcclComm, cudaStream_t) {}
static inline void nccl_sum_to(float*, size_t, int, NcclComm, cudaStream_t) {}
static inline void nccl_give(void*, size_t, int, NcclComm, cudaStream_t) {}

#endif

// ---------------------------------------------------------------------------------------------
// Start and end

#define DEVICE_RANKS_AHEAD 256      // collectives that the CPU may be ahead of the GPU
#define DEVICE_RANKS_ABORT_SECONDS 10

// A collective that was given to a stream.
typedef struct {
    cudaEvent_t done;
    char what[80];
} DeviceCollective;

typedef struct {
    Ranks* ranks;
    cudaStream_t side;              // gradients travel here, beside the stream of the kernels
    cudaEvent_t turn;               // orders one stream after the other
    NcclComm between, beside;       // communicators: of the kernels' stream, and of `side`
    DeviceCollective given[DEVICE_RANKS_AHEAD];
    uint64_t num_given, num_done;
} DeviceRanks;

// Those of this process, for exit.
static inline DeviceRanks** device_ranks_active(void) {
    static DeviceRanks* active = NULL;
    return &active;
}

// The program ends by an error: kernels that wait for other ranks must not keep it from ending. Nor
// must ncclCommAbort, which may wait for the other ranks to abort as well (NVIDIA/nccl issues 863,
// 992): they are told before, and the alarm's signal ends the process.
static inline void device_ranks_on_exit(void) {
    DeviceRanks* d = *device_ranks_active();
    if (d != NULL) {
        watchdog_on_exit();
        alarm(DEVICE_RANKS_ABORT_SECONDS);
        nccl_abort(d->beside);
        nccl_abort(d->between);
    }
}

// After cudaSetDevice; returns when all ranks are connected. `d` must stay where it is until
// device_ranks_close, and `ranks` longer.
static inline void device_ranks_open(DeviceRanks* d, Ranks* ranks) {
    memset(d, 0, sizeof(*d));
    d->ranks = ranks;
    if (ranks->size <= 1) { return; }
    check(RANKS_HAVE_NCCL, "started as one of %d ranks, but this program was built without NCCL; "
          "install it (nccl.h, libnccl.so; dev/setup.sh) and run make again",
          ranks->size);
    cudaCheck(cudaStreamCreate(&d->side));
    cudaCheck(cudaEventCreateWithFlags(&d->turn, cudaEventDisableTiming));
    for (int i = 0; i < DEVICE_RANKS_AHEAD; i++) {
        cudaCheck(cudaEventCreateWithFlags(&d->given[i].done, cudaEventDisableTiming));
    }
    nccl_open(&d->between, ranks);
    nccl_open(&d->beside, ranks);
    *device_ranks_active() = d;
    check(atexit(device_ranks_on_exit) == 0, "cannot register what ends NCCL");
}

// ---------------------------------------------------------------------------------------------
// Waiting

// Ends the program if NCCL has found an error since it was given a collective.
static inline void device_ranks_check(DeviceRanks* d, const char* what) {
    const char* error = nccl_error(d->between);
    error = error != NULL ? error : nccl_error(d->beside);
    check(error == NULL, "rank %d of %d, waiting in '%s': NCCL: %s", d->ranks->rank,
          d->ranks->size, what, error);
}

// Once around while something is waited for. First the CPU is offered to others, then it sleeps.
static inline void device_ranks_poll(DeviceRanks* d, int polls, const char* what) {
    device_ranks_check(d, what);
    if (polls > 1000) { sched_yield(); }
    if (polls > 20000) { watchdog_sleep(50e-6); }
}

// Waits until all but the last `most` collectives have ended.
static inline void device_ranks_retire(DeviceRanks* d, uint64_t most) {
    while (d->num_given - d->num_done > most) {
        const DeviceCollective* c = &d->given[d->num_done % DEVICE_RANKS_AHEAD];
        cudaError_t status = cudaEventQuery(c->done);
        if (status == cudaErrorNotReady) {
            watchdog_enter(&d->ranks->watchdog, c->what);
            for (int polls = 0; status == cudaErrorNotReady; polls += polls < INT_MAX) {
                device_ranks_poll(d, polls, c->what);
                status = cudaEventQuery(c->done);
            }
            watchdog_leave(&d->ranks->watchdog);
        }
        check(status == cudaSuccess, "rank %d of %d, in '%s': %s", d->ranks->rank, d->ranks->size,
              c->what, cudaGetErrorString(status));
        device_ranks_check(d, c->what);
        d->num_done++;
    }
}

// Waits until all collectives have ended, and all else that `stream` was given.
static inline void device_ranks_wait(DeviceRanks* d, cudaStream_t stream) {
    if (d->ranks->size > 1) { device_ranks_retire(d, 0); }
    cudaCheck(cudaStreamSynchronize(stream));
}

// Notes that the GPU has come this far: to the watchdog that is a movement. What takes longer than
// its timeout should have one.
static inline void device_ranks_mark(DeviceRanks* d, const char* what, cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    device_ranks_retire(d, DEVICE_RANKS_AHEAD - 1);
    DeviceCollective* c = &d->given[d->num_given++ % DEVICE_RANKS_AHEAD];
    snprintf(c->what, sizeof(c->what), "%s", what);
    cudaCheck(cudaEventRecord(c->done, stream));
}

// What `second` is given from now on begins after what `first` was given until now.
static inline void device_ranks_order(DeviceRanks* d, cudaStream_t first, cudaStream_t second) {
    if (d->ranks->size <= 1) { return; }
    cudaCheck(cudaEventRecord(d->turn, first));
    cudaCheck(cudaStreamWaitEvent(second, d->turn, 0));
}

// Every rank calls it after the last collective.
static inline void device_ranks_close(DeviceRanks* d) {
    if (d->ranks->size <= 1) { return; }
    device_ranks_retire(d, 0);
    *device_ranks_active() = NULL;
    watchdog_enter(&d->ranks->watchdog, "end of NCCL");
    nccl_close(d->beside);
    nccl_close(d->between);
    watchdog_leave(&d->ranks->watchdog);
    for (int i = 0; i < DEVICE_RANKS_AHEAD; i++) { cudaCheck(cudaEventDestroy(d->given[i].done)); }
    cudaCheck(cudaEventDestroy(d->turn));
    cudaCheck(cudaStreamDestroy(d->side));
}

// ---------------------------------------------------------------------------------------------
// Collectives. With one rank they do nothing. Bytes are counted as multi_rank.h counts them, the
// least that can do it; NCCL may send more.

static inline NcclComm device_ranks_comm(const DeviceRanks* d, cudaStream_t stream) {
    return stream == d->side ? d->beside : d->between;
}

static inline void device_ranks_begin(DeviceRanks* d) {
    if (d->ranks->size > 1) { nccl_group_begin(); }
}

// `what` names the collective in messages.
static inline void device_ranks_end(DeviceRanks* d, const char* what, cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    nccl_group_end();
    device_ranks_mark(d, what, stream);
}

// What this rank sends in an all-reduce of n elements of which rank i owns those from n*i/size on.
static inline void device_ranks_count(DeviceRanks* d, size_t n, size_t bytes, RanksKind kind) {
    size_t size = (size_t)d->ranks->size, rank = (size_t)d->ranks->rank;
    size_t own = n * (rank + 1) / size - n * rank / size;
    d->ranks->bytes_sent[kind] += (n - own + own * (size - 1)) * bytes;
}

// x (n) = the largest of all ranks' x: see ranks_max_bits.
static inline void device_ranks_max_bits(DeviceRanks* d, uint32_t* x, size_t n,
                                         cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    device_ranks_count(d, n, sizeof(uint32_t), RANKS_AMAX);
    nccl_max_bits(x, n, device_ranks_comm(d, stream), stream);
}

// x (n) = the sum of all ranks' x.
static inline void device_ranks_sum(DeviceRanks* d, float* x, size_t n, cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    device_ranks_count(d, n, sizeof(float), RANKS_GRADIENTS);
    nccl_sum(x, n, device_ranks_comm(d, stream), stream);
}

// x (n) of rank `root` = the sum of all ranks' x; the others' stay, or mean nothing.
static inline void device_ranks_sum_to(DeviceRanks* d, float* x, size_t n, int root,
                                       cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    if (d->ranks->rank != root) { d->ranks->bytes_sent[RANKS_GRADIENTS] += n * sizeof(float); }
    nccl_sum_to(x, n, root, device_ranks_comm(d, stream), stream);
}

// x (bytes) of rank `root` goes to everybody.
static inline void device_ranks_give(DeviceRanks* d, void* x, size_t bytes, int root,
                                     RanksKind kind, cudaStream_t stream) {
    if (d->ranks->size <= 1) { return; }
    if (d->ranks->rank == root) {
        d->ranks->bytes_sent[kind] += bytes * (size_t)(d->ranks->size - 1);
    }
    nccl_give(x, bytes, root, device_ranks_comm(d, stream), stream);
}

// ---------------------------------------------------------------------------------------------
// Parts of a vector that is cut into shards; to be called between begin and end.

// Rank i's part of a range of the vector.
static inline Range shards_part(const Shards* s, int i, Range range) {
    Range part = { s->begin[i], s->begin[i + 1] - s->begin[i] };
    return range_overlap(part, range);
}

// x (range.count), one range of the vector: each rank gets the sum of its part.
static inline void device_shards_sum(DeviceRanks* d, const Shards* s, float* x, Range range,
                                     cudaStream_t stream) {
    for (int i = 0; i < s->ranks->size; i++) {
        Range part = shards_part(s, i, range);
        if (part.count == 0) { continue; }
        device_ranks_sum_to(d, x + (part.first - range.first), part.count, i, stream);
    }
}

// x, one range of the vector, at block_bytes for 16 elements: each rank has set its part and gets
// the others'.
static inline void device_shards_gather(DeviceRanks* d, const Shards* s, void* x, Range range,
                                        size_t block_bytes, RanksKind kind, cudaStream_t stream) {
    for (int i = 0; i < s->ranks->size; i++) {
        Range part = shards_part(s, i, range);
        if (part.count == 0) { continue; }
        device_ranks_give(d, (char*)x + (part.first - range.first) / SHARD_BLOCK * block_bytes,
                          part.count / SHARD_BLOCK * block_bytes, i, kind, stream);
    }
}

#endif
