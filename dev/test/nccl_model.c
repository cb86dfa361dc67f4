/*
A model of NCCL on the CPU: the functions of nccl.h that our programs call, under their own names,
to be linked in place of -lnccl. MPI moves the bytes, so it works where mpirun has started ranks.

What it is for: the CUDA trainer can be tried with several ranks on a machine without GPUs
(cuda_on_cpu), call by call up to NCCL. What it is not: the library, with which it was never
compared. It knows nothing of speed, of topologies or of deadlocks between communicators.

As the library, it does nothing when it is called: a group goes to its stream when it ends
(ncclGroupEnd), and is done when that stream comes to it, here as late as possible (runtime.h).

Looked at, with a message and the end of all ranks:

    the communicator is alive; types, operations and roots are among those that nccl.h names;
    every rank's group has the same calls in the same order, with the same counts (NCCL would hang,
    or mix up data); a group has one stream for each communicator; no buffer is NULL;
    a stream that was given a collective waits for what other streams were given before

Sums are added in another order for every 1024 elements, that of a ring which begins at another
rank: not the order of ranks, and the same on all ranks. What ncclReduce leaves on ranks that are
not the root is NaN here.

For tests, in the environment: NCCL_MODEL_ERROR=R:N lets ncclCommGetAsyncError of rank R answer with
an error after N groups; NCCL_MODEL_HANG=R:N lets rank R sleep for ever in its Nth group;
NCCL_MODEL_ABORT_HANGS=1 lets ncclCommAbort never return, as NCCL's may while other ranks go on;
NCCL_MODEL_TRACE=1 prints each group of rank 0.

C11.
*/
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <nccl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// runtime.h of cuda_on_cpu
void cuda_on_cpu_defer(cudaStream_t stream, void (*run)(void*), void* with);
int cuda_on_cpu_behind(cudaStream_t stream);

#define ALIVE 0x6e63636c
#define MOST_CALLS 4096             // of a group
#define RING_PIECE 1024             // elements

struct ncclComm {
    int alive, rank, size, number;
    ncclResult_t error;
    MPI_Comm mpi;
};

typedef enum { ALL_REDUCE, REDUCE, BROADCAST } Kind;

typedef struct {                    // what all ranks must agree on
    int32_t kind, type, operation, root;
    uint64_t count;
} Call;

typedef struct {
    Call call;
    const void* from;
    void* to;
    ncclComm_t comm;
    cudaStream_t stream;
} Given;

// What a stream has to do.
typedef struct {
    int count;
    Given* given;                   // (count)
} Group;

static struct { int depth, count, groups, comms; Given given[MOST_CALLS]; } model;

__attribute__((noreturn, format(printf, 1, 2)))
static void refuse(const char* format, ...) {
    char text[512];
    int rank;
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof(text), format, values);
    va_end(values);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    fprintf(stderr, "nccl_model: rank %d: %s\n", rank, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort();
}

// Is it this rank's turn for the fault "R:N"?
static int fault(const char* name, int rank, int groups) {
    const char* text = getenv(name);
    int at_rank, at_group;
    return text != NULL && sscanf(text, "%d:%d", &at_rank, &at_group) == 2 && at_rank == rank
        && groups >= at_group;
}

// ---------------------------------------------------------------------------------------------
// What a group does, once its stream has come to it

static size_t type_bytes(int type) { return type == ncclUint8 ? 1 : 4; }

// to (n) = the values of all ranks, parts (size, n), joined.
static void join(void* to, const void* parts, uint64_t n, const Call* call, int size) {
    for (uint64_t i = 0; i < n; i++) {
        int first = (int)(i / RING_PIECE % (uint64_t)size);
        if (call->operation == ncclSum) {
            float sum = ((const float*)parts)[(uint64_t)first * n + i];
            for (int k = 1; k < size; k++) {
                sum += ((const float*)parts)[(uint64_t)((first + k) % size) * n + i];
            }
            ((float*)to)[i] = sum;
        } else {
            uint32_t most = 0;
            for (int k = 0; k < size; k++) {
                uint32_t value = ((const uint32_t*)parts)[(uint64_t)k * n + i];
                most = value > most ? value : most;
            }
            ((uint32_t*)to)[i] = most;
        }
    }
}

// Gathers everybody's n elements at the root; at all if root is -1.
static void reduce(const Given* g, int root) {
    uint64_t n = g->call.count;
    size_t bytes = n * type_bytes(g->call.type);
    int keeps = root < 0 || root == g->comm->rank;
    char* parts = malloc(keeps ? bytes * (size_t)g->comm->size : 1);
    if (parts == NULL) { refuse("out of memory"); }
    if (root < 0) {
        MPI_Allgather(g->from, (int)bytes, MPI_BYTE, parts, (int)bytes, MPI_BYTE, g->comm->mpi);
    } else {
        MPI_Gather(g->from, (int)bytes, MPI_BYTE, parts, (int)bytes, MPI_BYTE, root, g->comm->mpi);
    }
    if (keeps) { join(g->to, parts, n, &g->call, g->comm->size); }
    else if (g->to != NULL) { memset(g->to, 0xff, bytes); }
    free(parts);
}

static void compare(const Group* group, ncclComm_t comm) {
    int size = comm->size;
    Call* calls = calloc((size_t)group->count + 1, sizeof(Call));
    Call* all = calloc(((size_t)group->count + 1) * (size_t)size, sizeof(Call));
    if (calls == NULL || all == NULL) { refuse("out of memory"); }
    calls[0].count = (uint64_t)group->count;
    calls[0].kind = comm->number;
    MPI_Allgather(calls, sizeof(Call), MPI_BYTE, all, sizeof(Call), MPI_BYTE, comm->mpi);
    for (int i = 0; i < size; i++) {
        if (memcmp(&all[i], calls, sizeof(Call)) != 0) {
            refuse("a group of %d calls on communicator %d; rank %d has one of %d on %d",
                   group->count, comm->number, i, (int)all[i].count, all[i].kind);
        }
    }
    for (int i = 0; i < group->count; i++) { calls[i] = group->given[i].call; }
    int bytes = group->count * (int)sizeof(Call);
    MPI_Allgather(calls, bytes, MPI_BYTE, all, bytes, MPI_BYTE, comm->mpi);
    for (int i = 0; i < size * group->count; i++) {
        const Call* own = &calls[i % group->count];
        if (memcmp(&all[i], own, sizeof(Call)) != 0) {
            refuse("call %d of a group is %d, type %d, operation %d, root %d, count %d; that of "
                   "rank %d is %d, %d, %d, %d, %d", i % group->count, own->kind, own->type,
                   own->operation, own->root, (int)own->count, i / group->count, all[i].kind,
                   all[i].type, all[i].operation, all[i].root, (int)all[i].count);
        }
    }
    free(calls);
    free(all);
}

static void group_run(void* with) {
    Group* group = with;
    ncclComm_t comm = group->given[0].comm;
    if (comm->alive != ALIVE) { refuse("the communicator ended before a collective did"); }
    while (fault("NCCL_MODEL_HANG", comm->rank, model.groups)) { sleep(1000); }
    model.groups++;
    if (fault("NCCL_MODEL_ERROR", comm->rank, model.groups)) { comm->error = ncclRemoteError; }
    if (comm->rank == 0 && getenv("NCCL_MODEL_TRACE") != NULL) {
        fprintf(stderr, "nccl_model: group %d, communicator %d, %d calls of %d bytes and more\n",
                model.groups, comm->number, group->count,
                (int)(group->given[0].call.count * type_bytes(group->given[0].call.type)));
    }
    compare(group, comm);
    for (int i = 0; i < group->count; i++) {
        const Given* g = &group->given[i];
        int bytes = (int)(g->call.count * type_bytes(g->call.type));
        switch (g->call.kind) {
            case ALL_REDUCE: reduce(g, -1); break;
            case REDUCE: reduce(g, g->call.root); break;
            case BROADCAST:
                if (comm->rank == g->call.root && g->to != g->from) {
                    memcpy(g->to, g->from, (size_t)bytes);
                }
                MPI_Bcast(g->to, bytes, MPI_BYTE, g->call.root, comm->mpi);
                break;
        }
    }
    free(group->given);
    free(group);
}

// ---------------------------------------------------------------------------------------------
// Calls

// The calls of one communicator go to their stream together, in the order in which they came.
static void group_end(void) {
    while (model.count > 0) {
        ncclComm_t comm = model.given[0].comm;
        cudaStream_t stream = model.given[0].stream;
        Group* group = malloc(sizeof(Group));
        Given* given = malloc((size_t)model.count * sizeof(Given));
        if (group == NULL || given == NULL) { refuse("out of memory"); }
        group->given = given;
        group->count = 0;
        int left = 0;
        for (int i = 0; i < model.count; i++) {
            if (model.given[i].comm != comm) {
                model.given[left++] = model.given[i];
                continue;
            }
            if (model.given[i].stream != stream) { refuse("a group with two streams"); }
            given[group->count++] = model.given[i];
        }
        model.count = left;
        if (cuda_on_cpu_behind(stream)) {
            refuse("a collective in a stream that does not wait for what others were given before");
        }
        cuda_on_cpu_defer(stream, group_run, group);
    }
}

static ncclResult_t give(Kind kind, const void* from, void* to, size_t count, ncclDataType_t type,
                         ncclRedOp_t operation, int root, ncclComm_t comm, cudaStream_t stream) {
    if (comm == NULL || comm->alive != ALIVE) { refuse("no communicator, or a destroyed one"); }
    if (root < 0 || root >= comm->size) { refuse("root %d of %d ranks", root, comm->size); }
    if (count == 0) { refuse("a collective of nothing: not modelled"); }
    if (from == NULL || (to == NULL && !(kind == REDUCE && root != comm->rank))) {
        refuse("a buffer is NULL");
    }
    int sums = type == ncclFloat32 && operation == ncclSum;
    int maxima = type == ncclUint32 && operation == ncclMax;
    if (kind != BROADCAST && !sums && !maxima) {
        refuse("type %d with operation %d: not modelled", type, operation);
    }
    if (kind == BROADCAST && type != ncclUint8) { refuse("type %d: not modelled", type); }
    if (count * type_bytes(type) > INT32_MAX) { refuse("%zu elements: too many here", count); }
    if (model.count == MOST_CALLS) { refuse("more than %d calls in a group", MOST_CALLS); }
    Given* g = &model.given[model.count++];
    memset(g, 0, sizeof(*g));
    g->call.kind = (int32_t)kind;
    g->call.type = (int32_t)type;
    g->call.operation = (int32_t)operation;
    g->call.root = root;
    g->call.count = count;
    g->from = from;
    g->to = to;
    g->comm = comm;
    g->stream = stream;
    if (model.depth == 0) { group_end(); }
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream) {
    return give(ALL_REDUCE, from, to, count, type, operation, 0, comm, stream);
}

ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                        ncclRedOp_t operation, int root, ncclComm_t comm, cudaStream_t stream) {
    return give(REDUCE, from, to, count, type, operation, root, comm, stream);
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return give(BROADCAST, from, to, count, type, ncclSum, root, comm, stream);
}

ncclResult_t ncclGroupStart(void) { return model.depth++, ncclSuccess; }

ncclResult_t ncclGroupEnd(void) {
    if (model.depth == 0) { refuse("ncclGroupEnd without ncclGroupStart"); }
    if (--model.depth == 0) { group_end(); }
    return ncclSuccess;
}

// ---------------------------------------------------------------------------------------------
// Communicators

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static int made = 0;
    memset(id, 0, sizeof(*id));
    snprintf(id->internal, sizeof(id->internal), "model %ld %d", (long)getpid(), made++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
    int mpi_rank, mpi_size;
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    if (rank != mpi_rank || size != mpi_size) {
        refuse("rank %d of %d; to MPI it is %d of %d", rank, size, mpi_rank, mpi_size);
    }
    ncclUniqueId first = id;
    MPI_Bcast(&first, sizeof(first), MPI_BYTE, 0, MPI_COMM_WORLD);
    if (memcmp(&first, &id, sizeof(id)) != 0) { refuse("another unique id than that of rank 0"); }
    *comm = calloc(1, sizeof(**comm));
    if (*comm == NULL) { return ncclSystemError; }
    (*comm)->alive = ALIVE;
    (*comm)->rank = rank;
    (*comm)->size = size;
    (*comm)->number = model.comms++;
    MPI_Comm_dup(MPI_COMM_WORLD, &(*comm)->mpi);
    return ncclSuccess;
}

// Memory stays: the next use is told from a living one.
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm == NULL || comm->alive != ALIVE) { refuse("no communicator, or a destroyed one"); }
    comm->alive = 0;
    MPI_Comm_free(&comm->mpi);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    while (getenv("NCCL_MODEL_ABORT_HANGS") != NULL) { sleep(1); }
    if (comm != NULL) { comm->alive = 0; }
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    if (comm == NULL || comm->alive != ALIVE) { refuse("no communicator, or a destroyed one"); }
    *error = comm->error;
    return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t error) {
    return error == ncclSuccess ? "no error"
         : error == ncclRemoteError ? "remote process exited or there was a network error"
         : "another error";
}
