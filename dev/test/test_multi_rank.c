/*
Tests of llmc/multi_rank.h and llmc/watchdog.h. Started in several ways:

    test_multi_rank                         alone: every collective leaves everything as it is
    mpirun -np N test_multi_rank check      collectives against values that each rank computes
    ... test_multi_rank agree RANK          all ranks pass the text "8", RANK passes "4"
    ... test_multi_rank loop DIRECTORY      collectives until something happens to a rank
    ... test_multi_rank memory RANK, or error, quit, apart, work
                                            that happens to RANK: everything_happens
    test_multi_rank meet RANK SIZE ADDRESS SECONDS
                                            only the watchdog, without MPI

those with mpirun with -rt SECONDS at the end. dev/test/test_multi_rank.sh starts all but the first.

The numbers spread over 2^40, so sums in another order differ; sizes are 0, 1, odd, and more than
one round carries.
*/
#include <sys/resource.h>
#include "llmc/multi_rank.h"
#include "llmc/random.h"
#include "report.h"

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))
#define MOST_RANKS 8

// Element i of what rank `rank` brings along; `salt` makes another such vector.
static uint32_t bits_of(int rank, size_t i, uint32_t salt) {
    return philox4x32(7, (uint32_t)i, (uint32_t)rank, salt, 0).word[0];
}

static double value_of(int rank, size_t i, uint32_t salt) {
    uint32_t bits = bits_of(rank, i, salt);
    return ldexp((double)(bits >> 8) / 16777216.0 - 0.5, (int)(bits & 255) % 40);
}

// How many bytes differ, on all ranks together.
static double wrong_bytes(Ranks* r, const void* x, const void* expected, size_t bytes) {
    double wrong = 0.0;
    for (size_t i = 0; i < bytes; i++) {
        wrong += ((const char*)x)[i] != ((const char*)expected)[i];
    }
    ranks_sum_double(r, &wrong, 1, "count of wrong bytes");
    return wrong;
}

// Rank 0 speaks for all.
static void report_all(Ranks* r, int good, const char* name, const char* text, double number) {
    if (r->rank == 0) { report(good, name, "%d ranks: %s %.0f", r->size, text, number); }
    report_failures += r->rank != 0 && !good;
}

// ---------------------------------------------------------------------------------------------
// The collectives

// Rounds carry 4096 bytes here, so the last ones take several.
static const size_t sizes[] = { 0, 1, 2, 3, 5, 64, 1024, 2048, 10007 };

static void test_sum(Ranks* r) {
    double wrong = 0.0, again = 0.0, reversed = 0.0, elements = 0.0;
    for (int s = 0; s < COUNT(sizes); s++) {
        size_t n = sizes[s];
        float* x = (float*)xcalloc((n + 2) * sizeof(float), "x");
        float* y = (float*)xcalloc((n + 2) * sizeof(float), "y");
        float* expected = (float*)xcalloc((n + 2) * sizeof(float), "sums");
        for (size_t i = 0; i < n; i++) {
            x[i] = y[i] = (float)value_of(r->rank, i, 1);
            float forward = (float)value_of(0, i, 1);
            float backward = (float)value_of(r->size - 1, i, 1);
            for (int j = 1; j < r->size; j++) { forward += (float)value_of(j, i, 1); }
            for (int j = r->size - 2; j >= 0; j--) { backward += (float)value_of(j, i, 1); }
            expected[i] = forward;
            reversed += forward != backward;
        }
        x[n] = y[n] = expected[n] = 77.0f;          // must stay
        ranks_sum(r, x, n, "x");
        ranks_sum(r, y, n, "y");
        wrong += wrong_bytes(r, x, expected, (n + 2) * sizeof(float));
        again += wrong_bytes(r, x, y, (n + 2) * sizeof(float));
        elements += (double)n;
        free(x);
        free(y);
        free(expected);
    }
    report_all(r, wrong == 0.0, "sum, in rank order", "wrong bytes", wrong);
    report_all(r, again == 0.0, "sum, repeated", "bytes that differ", again);
    if (r->size > 2) {
        report_all(r, reversed > 0.1 * elements, "the order would show",
                   "elements whose sum in reverse order differs", reversed);
    }
}

static void test_sum_double(Ranks* r) {
    double x[101], expected[101];
    for (size_t i = 0; i < 101; i++) {
        x[i] = value_of(r->rank, i, 2);
        expected[i] = value_of(0, i, 2);
        for (int j = 1; j < r->size; j++) { expected[i] += value_of(j, i, 2); }
    }
    ranks_sum_double(r, x, 101, "doubles");
    double wrong = wrong_bytes(r, x, expected, sizeof(x));
    report_all(r, wrong == 0.0, "sum of doubles", "wrong bytes", wrong);
}

// All bit patterns of absolute values, infinity and NaN among them.
static void test_max(Ranks* r) {
    double wrong = 0.0;
    for (int s = 0; s < COUNT(sizes); s++) {
        size_t n = sizes[s];
        uint32_t* x = (uint32_t*)xcalloc((n + 1) * sizeof(*x), "x");
        uint32_t* expected = (uint32_t*)xcalloc((n + 1) * sizeof(*x), "maxima");
        for (size_t i = 0; i < n; i++) {
            x[i] = bits_of(r->rank, i, 3) & 0x7fffffffu;
            for (int j = 0; j < r->size; j++) {
                uint32_t other = bits_of(j, i, 3) & 0x7fffffffu;
                if (other > expected[i]) { expected[i] = other; }
            }
        }
        ranks_max_bits(r, x, n, "maxima");
        wrong += wrong_bytes(r, x, expected, (n + 1) * sizeof(*x));
        free(x);
        free(expected);
    }
    report_all(r, wrong == 0.0, "maximum of bits", "wrong bytes", wrong);
}

// Where the parts begin: case 0 even; 1 the last rank has all; 2 the first rank has all; 3 and
// above at random, some of them empty.
static void cut(size_t* begin, int size, size_t n, int number) {
    begin[0] = 0;
    begin[size] = n;
    for (int i = 1; i < size; i++) {
        size_t place = bits_of(i, (size_t)number, 4) % (n + 1);
        begin[i] = number == 0 ? n * (size_t)i / (size_t)size : number == 1 ? 0
                 : number == 2 ? n : place > begin[i - 1] ? place : begin[i - 1];
    }
}

static void test_shards(Ranks* r) {
    double wrong = 0.0, wrong_gathered = 0.0, empty = 0.0;
    size_t begin[MOST_RANKS + 1], begin_bytes[MOST_RANKS + 1];
    for (int test = 0; test < COUNT(sizes) * 5; test++) {
        size_t n = sizes[test / 5];
        cut(begin, r->size, n, test % 5);
        float* x = (float*)xcalloc((n + 1) * sizeof(float), "x");
        float* expected = (float*)xcalloc((n + 1) * sizeof(float), "sums");
        char* bytes = (char*)xcalloc(5 * n + 1, "bytes");
        char* all = (char*)xcalloc(5 * n + 1, "bytes");
        for (int i = 0; i <= r->size; i++) { begin_bytes[i] = 5 * begin[i]; }
        for (int owner = 0; owner < r->size; owner++) {
            for (size_t i = begin[owner]; i < begin[owner + 1]; i++) {
                uint32_t bits = bits_of(owner, i, 6);
                memcpy(all + 5 * i, &bits, 4);
                memset(bytes + 5 * i, (int)(bits & 255) + 1, 5);
            }
        }
        size_t first = begin[r->rank], own = begin[r->rank + 1] - first;
        memcpy(bytes + 5 * first, all + 5 * first, 5 * own);
        for (size_t i = 0; i < n; i++) { x[i] = (float)value_of(r->rank, i, 5); }
        for (size_t i = first; i < first + own; i++) {
            expected[i] = (float)value_of(0, i, 5);
            for (int j = 1; j < r->size; j++) { expected[i] += (float)value_of(j, i, 5); }
        }
        ranks_reduce_scatter(r, x, begin, "reduce-scatter");
        ranks_all_gather(r, bytes, begin_bytes, "all-gather");
        wrong += wrong_bytes(r, x + first, expected + first, own * sizeof(float));
        wrong_gathered += wrong_bytes(r, bytes, all, 5 * n + 1);
        empty += own == 0 && n > 0;
        free(x);
        free(expected);
        free(bytes);
        free(all);
    }
    ranks_sum_double(r, &empty, 1, "empty parts");
    report_all(r, wrong == 0.0, "reduce-scatter", "wrong bytes", wrong);
    report_all(r, wrong_gathered == 0.0, "all-gather", "wrong bytes", wrong_gathered);
    report_all(r, r->size == 1 || empty > 0.0, "empty parts", "among these tests:", empty);
}

static void test_broadcast(Ranks* r) {
    double wrong = 0.0;
    for (int s = 0; s < COUNT(sizes); s++) {
        size_t n = 3 * sizes[s] + 1;
        char* x = (char*)xcalloc(n + 1, "bytes");
        char* expected = (char*)xcalloc(n + 1, "bytes");
        for (size_t i = 0; i < n; i++) {
            x[i] = (char)bits_of(r->rank, i, 7);
            expected[i] = (char)bits_of(0, i, 7);
        }
        ranks_broadcast(r, x, n, "broadcast");
        wrong += wrong_bytes(r, x, expected, n + 1);
        free(x);
        free(expected);
    }
    report_all(r, wrong == 0.0, "broadcast", "wrong bytes", wrong);
}

// Ranks of one host have one clock: nobody leaves before the last has entered.
static void test_barrier(Ranks* r) {
    double early = 0.0;
    for (int late = 0; late < r->size; late++) {
        double entered[MOST_RANKS] = { 0 };
        if (r->rank == late) { watchdog_sleep(0.02); }
        entered[r->rank] = seconds_now();
        ranks_barrier(r, "barrier");
        double left = seconds_now();
        ranks_sum_double(r, entered, (size_t)r->size, "moments");
        for (int i = 0; i < r->size; i++) { early += left < entered[i]; }
    }
    ranks_sum_double(r, &early, 1, "ranks that were early");
    report_all(r, early == 0.0, "barrier", "ranks that left before another came", early);
}

// What the header promises, for sizes that the ranks divide and for those they do not.
static void test_bytes(Ranks* r) {
    size_t begin[MOST_RANKS + 1], n = 1000003, size = (size_t)r->size, rank = (size_t)r->rank;
    size_t own = n * (rank + 1) / size - n * rank / size;
    cut(begin, r->size, n, 0);
    uint64_t expected[NUM_RANKS_KINDS], wrong = 0;
    memcpy(expected, r->bytes_sent, sizeof(expected));
    float* x = (float*)xcalloc(n * sizeof(float), "x");
    ranks_sum(r, x, n, "bytes of a sum");
    expected[RANKS_GRADIENTS] += 4 * (n - own + (size - 1) * own);
    ranks_reduce_scatter(r, x, begin, "bytes of a reduce-scatter");
    expected[RANKS_GRADIENTS] += 4 * (n - own);
    ranks_max_bits(r, (uint32_t*)x, n, "bytes of maxima");
    expected[RANKS_AMAX] += 4 * (n - own + (size - 1) * own);
    ranks_gathers(r, RANKS_CODES_AND_SCALES);
    ranks_all_gather(r, x, begin, "bytes of codes");
    expected[RANKS_CODES_AND_SCALES] += (size - 1) * own;
    ranks_gathers(r, RANKS_WEIGHTS);
    ranks_all_gather(r, x, begin, "bytes of weights");
    expected[RANKS_WEIGHTS] += (size - 1) * own;
    ranks_gathers(r, RANKS_OTHER);
    ranks_broadcast(r, x, n, "bytes of a broadcast");
    expected[RANKS_OTHER] += r->rank == 0 ? (size - 1) * n : 0;
    for (int kind = 0; kind < NUM_RANKS_KINDS; kind++) {
        wrong += ranks_bytes_sent(r, (RanksKind)kind) != expected[kind];
    }
    free(x);
    double all = (double)wrong;
    ranks_sum_double(r, &all, 1, "kinds of bytes counted wrong");
    report_all(r, all == 0.0, "bytes on the wire", "kinds counted wrong", all);
}

static int test_collectives(Ranks* r) {
    check(r->size <= MOST_RANKS, "at most %d ranks", MOST_RANKS);
    test_bytes(r);
    r->piece = 4096;
    test_sum(r);
    test_sum_double(r);
    test_max(r);
    test_shards(r);
    test_broadcast(r);
    test_barrier(r);
    ranks_agree(r, "-b", "8");
    ranks_agree(r, "an empty text", "");
    report_all(r, 1, "agreement", "texts compared:", 2);
    ranks_close(r);
    return report_status();
}

// ---------------------------------------------------------------------------------------------
// What may happen to a rank

// For half a minute, if nobody interferes. Writes DIRECTORY/RANK with its process id first.
static void loop(Ranks* r, const char* directory) {
    if (directory[0] != '\0') {
        char path[PATH_BYTES];
        path_format(path, "%s/%d", directory, r->rank);
        FILE* file = file_create(path);
        fprintf(file, "%ld\n", (long)getpid());
        file_commit(file, path);
    }
    static float gradients[100003];
    double start = seconds_now();
    for (int step = 0; seconds_now() - start < 30.0; step++) {
        char what[64];
        uint32_t amax = (uint32_t)step;
        snprintf(what, sizeof(what), "gradients of step %d", step);
        ranks_max_bits(r, &amax, 1, "amax");
        ranks_sum(r, gradients, 100003, what);
        watchdog_sleep(0.001);
    }
}

static int everything_happens(Ranks* r, const char* event, const char* argument) {
    int me = r->rank == atoi(argument);
    if (strcmp(event, "loop") == 0) { loop(r, argument); }
    if (strcmp(event, "agree") == 0) { ranks_agree(r, "-b", me ? "4" : "8"); }
    ranks_barrier(r, "the last before it");
    if (strcmp(event, "memory") == 0 && me) {
        struct rlimit limit = { (rlim_t)1 << 30, (rlim_t)1 << 30 };
        setrlimit(RLIMIT_AS, &limit);
        for (;;) { memset(xmalloc((size_t)16 << 20, "activations"), 1, (size_t)16 << 20); }
    }
    if (strcmp(event, "error") == 0) { check(!me, "planned"); }
    if (strcmp(event, "quit") == 0 && me) { exit(0); }
    if (strcmp(event, "apart") == 0) {              // another collective than the others call
        if (me) { ranks_broadcast(r, &me, sizeof(me), "a broadcast of its own"); }
        if (!me) { loop(r, ""); }
    }
    if (strcmp(event, "work") == 0 && me) { watchdog_sleep(2.5 * r->watchdog.timeout); }
    if (strcmp(event, "work") != 0) { loop(r, ""); }
    ranks_barrier(r, "the first after it");
    report_all(r, 1, event, "went on after it:", 1.0);
    ranks_close(r);
    return 0;
}

// Without MPI: rank, size and address as the arguments say.
static int meet(int argc, char** argv) {
    static Watchdog w;
    check(argc == 6, "meet RANK SIZE ADDRESS SECONDS");
    watchdog_open(&w, atoi(argv[2]), atoi(argv[3]), argv[4], strtod(argv[5], NULL));
    watchdog_close(&w);
    printf("rank %s met the others\n", argv[2]);
    return 0;
}

int main(int argc, char** argv) {
    static Ranks ranks;
    const char* event = argc > 1 ? argv[1] : "check";
    if (strcmp(event, "meet") == 0) { return meet(argc, argv); }
    ranks_open(&ranks, &argc, &argv);
    if (strcmp(event, "check") == 0) { return test_collectives(&ranks); }
    return everything_happens(&ranks, event, argc > 2 ? argv[2] : "");
}
