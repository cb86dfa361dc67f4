/*
Many processes that compute one model: the ranks of a run, and the collectives between them.

    mpirun -np 4 ./train_gpt2_fp32 ...      four ranks, of Open MPI
    srun -n 4 ./train_gpt2_fp32 ...         of Slurm, with MPI (--mpi=pmix) or without
    RANK=0 WORLD_SIZE=4 LOCAL_RANK=0 MASTER_ADDR=node1 MASTER_PORT=29400 ./train_gpt2_fp32 ...
                                            one of four, of any other launcher, as PyTorch's
    ./train_gpt2_fp32 ...                   a program alone

Every rank calls the same collectives in the same order. With one rank each of them returns at
once, so programs call them without asking how many there are. Buffers lie in host memory and are
contiguous; MPI moves the bytes or, without MPI, sockets do (multi_rank_tcp.h), to the same bits.

Sums are the same bits on every rank and in every run: each element has one owner, which gets that
element from all ranks and adds in rank order, ((x0 + x1) + x2) + x3, and the result travels to all
from there. MPI's own reductions promise less: they may add in an order that depends on the network.
So two operations are the base of all others,

    ranks_reduce_scatter    rank i ends up with the sum of everybody's elements of its part
    ranks_all_gather        everybody ends up with everybody's part

and both are rounds in which each rank sends one piece to each other rank. A sum costs every rank
2 (size-1)/size of the buffer's bytes, the least possible; latency grows with the number of ranks,
which is right for tens of them.

What happens when a rank is missing, dead or stuck is in watchdog.h; no collective here returns an
error. -rt is the timeout, -ra says where ranks on several hosts meet (rendezvous.h).

MPI is optional: without it (no -DLLMC_MPI, the Makefile knows) programs build, and say so if mpirun
starts them. C11 that also compiles as C++17.
*/
#ifndef LLMC_MULTI_RANK_H
#define LLMC_MULTI_RANK_H

#include <limits.h>
#include <sched.h>
#include "multi_rank_tcp.h"
#include "utils.h"
#include "watchdog.h"

#ifdef LLMC_MPI
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#endif

#define RANKS_TIMEOUT 30.0              // seconds until a silent rank is given up; -rt
#define RANKS_BUFFER ((size_t)4 << 20)  // bytes that one round receives at most

// What the bytes on the wire are.
typedef enum {
    RANKS_AMAX, RANKS_GRADIENTS, RANKS_CODES_AND_SCALES, RANKS_WEIGHTS, RANKS_OTHER, NUM_RANKS_KINDS
} RanksKind;

typedef struct {
    int rank, size;                         // as in MPI: 0 <= rank < size
    int local_rank;                         // number among the ranks of this host
    int with_mpi;                           // started by what MPI knows; else there are
    int* sockets;                           // (size) connections to the others
    RanksKind gather_kind;                  // ranks_gathers
    uint64_t bytes_sent[NUM_RANKS_KINDS];   // by this rank to others, since ranks_open
    size_t piece;                           // most bytes that a rank sends another in a round
    char* buffer;                           // (size, piece) what a reduction receives
    RanksMessage* to;                       // (size) what a round sends to each rank
    RanksMessage* from;                     // (size) what it receives from each
    size_t* begin;                          // (size+1) where the ranks' parts begin, in bytes
    Watchdog watchdog;
} Ranks;

// ---------------------------------------------------------------------------------------------
// MPI: everything that depends on it

#ifdef LLMC_MPI

enum { RANKS_HAVE_MPI = 1 };

static inline void ranks_mpi_open(Ranks* r) {
    int rank, size, level;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    check(rank == r->rank && size == r->size, "started as rank %d of %d, but MPI says %d of %d; "
          "with Slurm: srun --mpi=pmix, or --mpi=none", r->rank, r->size, rank, size);
}

static inline void ranks_mpi_close(void) { MPI_Finalize(); }

// One round: sends r->to[i] to rank i and receives r->from[i] from it. Nothing goes to oneself.
// While a rank waits, it first offers its core to others; after some milliseconds it sleeps.
static inline void ranks_mpi_exchange(const Ranks* r) {
    const RanksMessage* to = r->to;
    const RanksMessage* from = r->from;
    MPI_Request* requests = (MPI_Request*)xmalloc(2 * (size_t)r->size * sizeof(*requests),
                                                  "the requests of a collective");
    int count = 0, done = 0;
    for (int i = 0; i < r->size; i++) {
        if (i != r->rank && from[i].bytes > 0) {
            MPI_Irecv(from[i].data, (int)from[i].bytes, MPI_BYTE, i, 0, MPI_COMM_WORLD,
                      &requests[count++]);
        }
        if (i != r->rank && to[i].bytes > 0) {
            MPI_Isend(to[i].data, (int)to[i].bytes, MPI_BYTE, i, 0, MPI_COMM_WORLD,
                      &requests[count++]);
        }
    }
    for (int polls = 0; !done; polls++) {
        MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
        if (!done && polls > 1000) { sched_yield(); }
        if (!done && polls > 20000) { watchdog_sleep(50e-6); }
    }
    free(requests);
}

#else

enum { RANKS_HAVE_MPI = 0 };

static inline void ranks_mpi_open(Ranks* r) { (void)r; }
static inline void ranks_mpi_close(void) {}

static inline void ranks_mpi_exchange(const Ranks* r) { (void)r; }

#endif

// ---------------------------------------------------------------------------------------------
// Start and end

// The value of a flag, "" if it is not given. The programs' tables (flags.h) check it.
static inline const char* ranks_flag(int argc, char** argv, const char* name) {
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], name) == 0) { return argv[i + 1]; }
    }
    return "";
}

// The value of a variable that a launcher sets to a number; 0 if it is not set.
static inline int ranks_environment(const char* name) {
    const char* value = getenv(name);
    if (value == NULL) { return 0; }
    char* end;
    long number = strtol(value, &end, 10);
    check(end != value && *end == '\0' && number >= 0 && number <= INT_MAX, "%s='%s' is no number from "
          "0 up", name, value);
    return (int)number;
}

// Rank and size as the launcher has set them, and where the ranks meet: `meet` gets the address, ""
// if nothing tells.
static inline void ranks_find(Ranks* r, char* meet, size_t meet_bytes) {
    const char* job = getenv("PMIX_NAMESPACE");
    const char *master = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    int one_host = 1;
    r->size = 1;
    meet[0] = '\0';
    if (getenv("OMPI_COMM_WORLD_SIZE") != NULL) {           // mpirun of Open MPI
        r->with_mpi = 1;
        r->rank = ranks_environment("OMPI_COMM_WORLD_RANK");
        r->size = ranks_environment("OMPI_COMM_WORLD_SIZE");
        r->local_rank = ranks_environment("OMPI_COMM_WORLD_LOCAL_RANK");
        one_host = ranks_environment("OMPI_COMM_WORLD_LOCAL_SIZE") == r->size;
    } else if (getenv("SLURM_STEP_NUM_TASKS") != NULL) {    // srun
        r->with_mpi = RANKS_HAVE_MPI && getenv("PMIX_RANK") != NULL;
        r->rank = ranks_environment("SLURM_PROCID");
        r->size = ranks_environment("SLURM_STEP_NUM_TASKS");
        r->local_rank = ranks_environment("SLURM_LOCALID");
        one_host = ranks_environment("SLURM_STEP_NUM_NODES") == 1;
    } else if (ranks_environment("WORLD_SIZE") > 1) {       // others, by PyTorch's names
        r->size = ranks_environment("WORLD_SIZE");
        check(getenv("RANK") != NULL, "WORLD_SIZE=%d, but no RANK says which of them this is",
              r->size);
        r->rank = ranks_environment("RANK");
        r->local_rank = getenv("LOCAL_RANK") != NULL ? ranks_environment("LOCAL_RANK") : r->rank;
        check(r->rank >= 0 && r->rank < r->size && r->local_rank >= 0,
              "RANK=%d and LOCAL_RANK=%d of WORLD_SIZE=%d", r->rank, r->local_rank, r->size);
        check(port == NULL || (ranks_environment("MASTER_PORT") >= 1
                               && ranks_environment("MASTER_PORT") < 65535), "MASTER_PORT=%s should be "
              "1 to 65534: the next port is used, too", port);
        if (master != NULL && port != NULL) { snprintf(meet, meet_bytes, "%s:%s", master, port); }
        return;
    } else {
        int size = ranks_environment("PMI_SIZE");           // of other launchers
        check(size <= 1, "started as one of %d ranks, but not by Open MPI's mpirun or Slurm's srun, "
              "nor with RANK, WORLD_SIZE and LOCAL_RANK set", size);
    }
    snprintf(meet, meet_bytes, one_host ? "@llmc-%ld-%s-%d-%d" : "", (long)getuid(),
             job != NULL ? job : "slurm", ranks_environment("SLURM_JOB_ID"),
             ranks_environment("SLURM_STEP_ID"));
}

// First thing in main, or right after the flags were read. Returns when all ranks have started.
// `r` must stay where it is until ranks_close.
static inline void ranks_open(Ranks* r, int* argc, char*** argv) {
    char meet[WATCHDOG_TEXT];
    memset(r, 0, sizeof(*r));
    r->gather_kind = RANKS_OTHER;
    ranks_find(r, meet, sizeof(meet));
    if (r->size <= 1) { return; }
    check(RANKS_HAVE_MPI || !r->with_mpi, "started by mpirun as one of %d ranks, but this program "
          "was built without MPI; install it with dev/setup.sh (libopenmpi-dev, openmpi-bin) and run "
          "make again, or set RANK, WORLD_SIZE, LOCAL_RANK", r->size);
    const char* timeout = ranks_flag(*argc, *argv, "-rt");
    const char* address = ranks_flag(*argc, *argv, "-ra");
    address = address[0] != '\0' ? address : meet;
    check(address[0] != '\0', "the ranks are on several hosts: -ra HOST:PORT (of rank 0), or -ra "
          "/FILE on a file system that all hosts share, or MASTER_ADDR and MASTER_PORT have to say "
          "where they meet");
    r->piece = RANKS_BUFFER / (size_t)r->size / sizeof(double) * sizeof(double);
    size_t size = (size_t)r->size;
    r->buffer = (char*)xmalloc(size * r->piece, "the buffer of collectives");
    r->to = (RanksMessage*)xmalloc(size * sizeof(*r->to), "collectives");
    r->from = (RanksMessage*)xmalloc(size * sizeof(*r->from), "collectives");
    r->begin = (size_t*)xmalloc((size + 1) * sizeof(*r->begin), "collectives");
    watchdog_open(&r->watchdog, r->rank, r->size, address,
                  timeout[0] != '\0' ? strtod(timeout, NULL) : RANKS_TIMEOUT);
    watchdog_enter(&r->watchdog, r->with_mpi ? "start of MPI" : "connections between ranks");
    if (r->with_mpi) { ranks_mpi_open(r); }
    else { r->sockets = ranks_tcp_open(r->rank, r->size, address); }
    watchdog_leave(&r->watchdog);
}

// Last thing, on every rank. An error in one rank may end the program without it.
static inline void ranks_close(Ranks* r) {
    if (r->size <= 1) { return; }
    watchdog_enter(&r->watchdog, r->with_mpi ? "end of MPI" : "end of the run");
    if (r->with_mpi) { ranks_mpi_close(); }
    else { ranks_tcp_close(r->sockets, r->size); }
    watchdog_close(&r->watchdog);
    free(r->buffer);
    free(r->to);
    free(r->from);
    free(r->begin);
    r->size = 1;
}

// ---------------------------------------------------------------------------------------------
// The two operations that the others are made of

// Elements that a reduction joins, and how.
typedef enum { RANKS_SUM_FLOAT, RANKS_SUM_DOUBLE, RANKS_MAX_BITS } RanksOperation;

// x = x joined with y, elementwise; x, y (bytes)
static inline void ranks_join(void* x, const void* y, size_t bytes, RanksOperation operation) {
    switch (operation) {
        case RANKS_SUM_FLOAT:
            for (size_t i = 0; i < bytes / sizeof(float); i++) {
                ((float*)x)[i] += ((const float*)y)[i];
            }
            break;
        case RANKS_SUM_DOUBLE:
            for (size_t i = 0; i < bytes / sizeof(double); i++) {
                ((double*)x)[i] += ((const double*)y)[i];
            }
            break;
        case RANKS_MAX_BITS:
            for (size_t i = 0; i < bytes / sizeof(uint32_t); i++) {
                uint32_t a = ((uint32_t*)x)[i], b = ((const uint32_t*)y)[i];
                ((uint32_t*)x)[i] = a > b ? a : b;
            }
            break;
    }
}

// Bytes of the piece that begins `offset` bytes into rank i's part.
static inline size_t ranks_piece(const Ranks* r, int i, size_t offset) {
    size_t part = r->begin[i + 1] - r->begin[i];
    size_t left = part > offset ? part - offset : 0;
    return left < r->piece ? left : r->piece;
}

// Bytes of the longest part, which says how many rounds there are.
static inline size_t ranks_longest(const Ranks* r) {
    size_t longest = 0;
    for (int i = 0; i < r->size; i++) {
        size_t part = r->begin[i + 1] - r->begin[i];
        longest = part > longest ? part : longest;
    }
    return longest;
}

// One round, of what r->to and r->from say.
static inline void ranks_exchange(Ranks* r, RanksKind kind) {
    for (int i = 0; i < r->size; i++) {
        if (i != r->rank) { r->bytes_sent[kind] += r->to[i].bytes; }
    }
    if (r->with_mpi) { ranks_mpi_exchange(r); }
    else { ranks_tcp_exchange(r->sockets, r->rank, r->size, r->to, r->from); }
    watchdog_move(&r->watchdog);
}

// Own part of x = everybody's, joined in rank order. The parts are r->begin.
static inline void ranks_reduce(Ranks* r, void* x, RanksOperation operation, RanksKind kind) {
    char* part = (char*)x;
    size_t longest = ranks_longest(r);
    for (size_t offset = 0; offset < longest; offset += r->piece) {
        size_t bytes = ranks_piece(r, r->rank, offset);
        char* own = part + r->begin[r->rank] + offset;
        for (int i = 0; i < r->size; i++) {
            r->to[i].data = part + r->begin[i] + offset;
            r->to[i].bytes = ranks_piece(r, i, offset);
            r->from[i].data = r->buffer + (size_t)i * r->piece;
            r->from[i].bytes = bytes;
        }
        ranks_exchange(r, kind);
        memcpy(r->from[r->rank].data, own, bytes);
        memcpy(own, r->from[0].data, bytes);
        for (int i = 1; i < r->size; i++) { ranks_join(own, r->from[i].data, bytes, operation); }
    }
}

// Fills in the others' parts of x. The parts are r->begin.
static inline void ranks_gather(Ranks* r, void* x, RanksKind kind) {
    char* part = (char*)x;
    size_t longest = ranks_longest(r);
    for (size_t offset = 0; offset < longest; offset += r->piece) {
        for (int i = 0; i < r->size; i++) {
            r->to[i].data = part + r->begin[r->rank] + offset;
            r->to[i].bytes = ranks_piece(r, r->rank, offset);
            r->from[i].data = part + r->begin[i] + offset;
            r->from[i].bytes = ranks_piece(r, i, offset);
        }
        ranks_exchange(r, kind);
    }
}

// x (n) = everybody's, joined in rank order, on every rank. Each rank owns n/size elements.
static inline void ranks_all_reduce(Ranks* r, void* x, size_t n, size_t element_bytes,
                                    RanksOperation operation, RanksKind kind, const char* what) {
    if (r->size <= 1) { return; }
    watchdog_enter(&r->watchdog, what);
    for (int i = 0; i <= r->size; i++) {
        r->begin[i] = n * (size_t)i / (size_t)r->size * element_bytes;
    }
    ranks_reduce(r, x, operation, kind);
    ranks_gather(r, x, kind);
    watchdog_leave(&r->watchdog);
}

// ---------------------------------------------------------------------------------------------
// The collectives. `what` names one in messages: "gradients of block 3".

// x (n) = the sum of all ranks' x, added in rank order.
static inline void ranks_sum(Ranks* r, float* x, size_t n, const char* what) {
    ranks_all_reduce(r, x, n, sizeof(float), RANKS_SUM_FLOAT, RANKS_GRADIENTS, what);
}

static inline void ranks_sum_double(Ranks* r, double* x, size_t n, const char* what) {
    ranks_all_reduce(r, x, n, sizeof(double), RANKS_SUM_DOUBLE, RANKS_OTHER, what);
}

// x (n) = the largest of all ranks' x. Bit patterns of absolute values of floats are in the order
// of the values, with infinity above all numbers and NaN above infinity: nothing gets lost.
static inline void ranks_max_bits(Ranks* r, uint32_t* x, size_t n, const char* what) {
    ranks_all_reduce(r, x, n, sizeof(uint32_t), RANKS_MAX_BITS, RANKS_AMAX, what);
}

// Rank i owns the elements begin[i] to begin[i+1] - 1 of x. Its own become the sum of all ranks',
// added in rank order; the others are left undefined. begin (size+1), the same on every rank.
static inline void ranks_reduce_scatter(Ranks* r, float* x, const size_t* begin, const char* what) {
    if (r->size <= 1) { return; }
    watchdog_enter(&r->watchdog, what);
    for (int i = 0; i <= r->size; i++) { r->begin[i] = begin[i] * sizeof(float); }
    ranks_reduce(r, x, RANKS_SUM_FLOAT, RANKS_GRADIENTS);
    watchdog_leave(&r->watchdog);
}

// What all-gathers carry from now on, for ranks_bytes_sent; at first RANKS_OTHER. The kind of the
// other collectives is known: sums of floats are gradients, maxima amaxes, the rest is other.
static inline void ranks_gathers(Ranks* r, RanksKind kind) { r->gather_kind = kind; }

// Rank i owns the bytes begin_bytes[i] to begin_bytes[i+1] - 1 of x; fills in the others'.
// begin_bytes (size+1), the same on every rank.
static inline void ranks_all_gather(Ranks* r, void* x, const size_t* begin_bytes,
                                    const char* what) {
    if (r->size <= 1) { return; }
    watchdog_enter(&r->watchdog, what);
    for (int i = 0; i <= r->size; i++) { r->begin[i] = begin_bytes[i]; }
    ranks_gather(r, x, r->gather_kind);
    watchdog_leave(&r->watchdog);
}

// x (bytes) of rank 0 goes to everybody.
static inline void ranks_broadcast(Ranks* r, void* x, size_t bytes, const char* what) {
    if (r->size <= 1) { return; }
    watchdog_enter(&r->watchdog, what);
    for (int i = 0; i <= r->size; i++) { r->begin[i] = i == 0 ? 0 : bytes; }
    ranks_gather(r, x, RANKS_OTHER);
    watchdog_leave(&r->watchdog);
}

// Returns when every rank has called it: nobody gets a sum before all have given their part.
static inline void ranks_barrier(Ranks* r, const char* what) {
    double nothing = 0.0;
    ranks_sum_double(r, &nothing, 1, what);
}

static inline uint64_t ranks_bytes_sent(const Ranks* r, RanksKind kind) {
    return r->bytes_sent[kind];
}

// ---------------------------------------------------------------------------------------------
// Agreement

// All ranks' texts, one behind the other, each with a 0 behind it. The caller frees them.
static inline char* ranks_texts(Ranks* r, const char* text, const char* what) {
    size_t rank = (size_t)r->rank;
    double* lengths = (double*)xcalloc((size_t)r->size * sizeof(double), "texts to compare");
    lengths[rank] = (double)strlen(text) + 1.0;
    ranks_sum_double(r, lengths, (size_t)r->size, what);
    watchdog_enter(&r->watchdog, what);
    r->begin[0] = 0;
    for (int i = 0; i < r->size; i++) { r->begin[i + 1] = r->begin[i] + (size_t)lengths[i]; }
    char* texts = (char*)xmalloc(r->begin[r->size], "texts to compare");
    memcpy(texts + r->begin[rank], text, strlen(text) + 1);
    ranks_gather(r, texts, RANKS_OTHER);
    watchdog_leave(&r->watchdog);
    free(lengths);
    return texts;
}

// Ends every rank unless all pass the same text. Rank 0 says who has which:
//
//     error: -b differs between ranks: '8' (rank 0 1 3) '4' (rank 2)
static inline void ranks_agree(Ranks* r, const char* name, const char* text) {
    if (r->size <= 1) { return; }
    char* texts = ranks_texts(r, text, name);
    const char** of = (const char**)xmalloc((size_t)r->size * sizeof(*of), "texts to compare");
    int differ = 0;
    for (int i = 0; i < r->size; i++) {
        of[i] = i == 0 ? texts : of[i - 1] + strlen(of[i - 1]) + 1;
        differ += strcmp(of[i], texts) != 0;
    }
    if (differ > 0) {
        char* line = NULL;
        size_t bytes = 0;
        FILE* to = open_memstream(&line, &bytes);
        check(to != NULL, "out of memory for an error message");
        fprintf(to, "error: %s differs between ranks:", name);
        for (int i = 0; i < r->size; i++) {
            int first = 0;
            while (strcmp(of[first], of[i]) != 0) { first++; }
            if (first < i) { continue; }
            fprintf(to, " '%s' (rank", of[i]);
            for (int j = i; j < r->size; j++) {
                if (strcmp(of[j], of[i]) == 0) { fprintf(to, " %d", j); }
            }
            fprintf(to, ")");
        }
        fprintf(to, "\n");
        fclose(to);
        fflush(stdout);
        if (r->rank == 0) { fputs(line, stderr); }
        ranks_close(r);
        exit(1);
    }
    free(of);
    free(texts);
}

#endif
