/*
Guards: faults of low-precision training that no loss curve shows for days, looked for in every run
(-gd 1, the default). For the C program and the CUDA program, whose counting kernels are in
guards.cuh.

    zero gradient   of a tensor (of one block) the gradient of an update is all zero
    underflow       many blocks of an operand have scale 0 although there is something in them:
                    they are multiplied as zeros
    largest scale   many blocks of an operand have the largest scale of the format: the amax that
                    the scales were made from is too small, and what is above it is clipped
    other weights   a rank reads other weights than rank 0
    loss spike      the training loss is far above what it was

An alarm is a line on the terminal and one in the log: the first time for a tensor, an operand or a
rank, and for every spike. All are counted. None ends the run, and nothing here changes what a run
computes. Signs and recipes are compared when a run starts: by the ranks (train_run.h), and with the
checkpoint from which it resumes.

Gradients and losses are looked at in every update; weights, and the scales of the first
micro-batch, in every 10th, since on a GPU scales take a launch for each quantized GEMM. With several
ranks the counts travel with the length of the gradient, in one collective. When a run resumes, the
counts begin anew, and so does the window of losses: no spike is found in the first 50 updates.

C11 that also compiles as C++17.
*/
#ifndef LLMC_GUARDS_H
#define LLMC_GUARDS_H

#include <math.h>
#include "gpt2.h"
#include "logger.h"
#include "loss_spike.h"
#include "recipe.h"
#include "scale_counts.h"
#include "shards.h"

#define GUARD_EVERY 10          // updates between two looks at scales and weights

// Shares of an operand's blocks beyond which there is an alarm. A small model in good health (4
// layers, 128 channels, 600 updates on Tiny Shakespeare, nvfp4,tail=0) loses up to 0.7 % of dY's
// blocks in a micro-batch, all of them in qkv, 0.1 % of dY^T's, and next to none of the others'.
// Each matrix has a block with the largest scale, or a tile of 16 x 16: up to 1.3 % of W's blocks
// there, and 0.1 % of the others'. Normal numbers reach 21 % if their amax is taken to be half of
// what it is (test_guards.c).
#define GUARD_UNDERFLOW_SHARE 0.05
#define GUARD_LARGEST_SHARE 0.2

typedef enum { GUARD_ZERO_GRADIENT, GUARD_UNDERFLOW, GUARD_LARGEST, GUARD_WEIGHTS, GUARD_SPIKE,
               NUM_GUARDS } GuardKind;

// What a rank counts in an update: the scales of all operands, then a checksum of the weights for
// each rank, of which a rank sets its own, then of each tensor 1 if its gradient is not zero.
enum { GUARD_CHECKSUMS = NUM_OPERANDS * NUM_SCALE_COUNTS };

typedef struct {
    int param, layer;
    Range here;                 // its elements in this rank's part, counted from there
} GuardTensor;

typedef struct {
    GuardKind kind;
    int subject;                // which tensor, operand or rank
    double value;               // share of the blocks, or nats above the median; else NaN
} GuardAlarm;

typedef struct {
    ParamSpec specs[NUM_PARAMS];
    int rank, num_ranks;
    GuardTensor* tensors;       // (num_tensors)
    int num_tensors, num_counts;
    uint64_t* counts;           // (num_counts) of this rank in this update: see above
    double* sums;               // (1 + num_counts) of all ranks: gradient squared, then the counts
    int looks;                  // 1: in this update at scales and weights, too
    SpikeWindow losses;
    // from the start on
    double alarms[NUM_GUARDS];
    double scales[GUARD_CHECKSUMS];
    char* told[NUM_GUARDS];     // by subject: 1: there was an alarm
    GuardAlarm* news;           // what an update adds
} Guards;

// ---------------------------------------------------------------------------------------------
// What is counted

// Of the activations each rank has its rows. Every rank has all weights; the first one counts them.
static inline int guard_counts_here(int operand, int rank) {
    return rank == 0 || (operand != OPERAND_W && operand != OPERAND_WT);
}

// A term of the checksum of weights, which is taken modulo 2^32: the factors are odd, so one word
// that differs always shows. `index` counts the words of a piece of memory.
HOST_DEVICE static inline uint32_t guard_checksum_term(uint32_t word, size_t index) {
    return word * (2u * (uint32_t)index + 1u);
}

// ---------------------------------------------------------------------------------------------
// From update to update

// Of a model whose gradients are cut into these shards.
static inline Guards* guards_open(const GPT2Config* config, const Shards* shards) {
    Guards* g = (Guards*)xcalloc(sizeof(Guards), "guards");
    gpt2_param_specs(g->specs, config);
    g->rank = shards->ranks->rank;
    g->num_ranks = shards->ranks->size;
    for (int p = 0; p < NUM_PARAMS; p++) { g->num_tensors += g->specs[p].layers; }
    g->tensors = (GuardTensor*)xcalloc((size_t)g->num_tensors * sizeof(GuardTensor), "guards");
    GuardTensor* tensor = g->tensors;
    for (int p = 0; p < NUM_PARAMS; p++) {
        for (int l = 0; l < g->specs[p].layers; l++, tensor++) {
            Range all = { gpt2_param_offset(g->specs, p, l), g->specs[p].size };
            tensor->param = p;
            tensor->layer = l;
            tensor->here = range_overlap(all, shards->part);
            tensor->here.first -= shards->part.first;
        }
    }
    g->num_counts = GUARD_CHECKSUMS + g->num_ranks + g->num_tensors;
    g->counts = (uint64_t*)xcalloc((size_t)g->num_counts * sizeof(uint64_t), "guards");
    g->sums = (double*)xcalloc((size_t)(1 + g->num_counts) * sizeof(double), "guards");
    int subjects[NUM_GUARDS] = { g->num_tensors, NUM_OPERANDS, NUM_OPERANDS, g->num_ranks, 1 };
    int most = 0;
    for (int kind = 0; kind < NUM_GUARDS; kind++) {
        g->told[kind] = (char*)xcalloc((size_t)subjects[kind], "guards");
        most += subjects[kind];
    }
    g->news = (GuardAlarm*)xcalloc((size_t)most * sizeof(GuardAlarm), "guards");
    return g;
}

// The first of the tensors' counts.
static inline int guard_tensor_counts(const Guards* g) { return GUARD_CHECKSUMS + g->num_ranks; }

// Update `step` begins. g may be NULL, here and below: then there are no guards.
static inline void guards_begin(Guards* g, int step) {
    if (g == NULL) { return; }
    memset(g->counts, 0, (size_t)g->num_counts * sizeof(uint64_t));
    g->looks = step % GUARD_EVERY == 0;
}

// Where the operands' scales are counted in micro-batch `micro` of this update; NULL: they are not.
static inline uint64_t* guards_scale_counts(const Guards* g, int micro) {
    return g != NULL && g->looks && micro == 0 ? g->counts : NULL;
}

// Are weights compared in this update?
static inline int guards_compare_weights(const Guards* g) {
    return g != NULL && g->looks && g->num_ranks > 1;
}

// Adds some of the weights to this rank's checksum: a multiple of 4 bytes.
static inline void guards_add_weights(Guards* g, const void* weights, size_t bytes) {
    uint32_t sum = 0;
    #pragma omp parallel for reduction(+ : sum)
    for (size_t i = 0; i < bytes / 4; i++) {
        uint32_t word;
        memcpy(&word, (const char*)weights + 4 * i, 4);
        sum += guard_checksum_term(word, i);
    }
    g->counts[GUARD_CHECKSUMS + g->rank] += sum;
}

// Of every tensor: is there something in this rank's part of the gradient, grads (part)? What a
// rank has of a tensor may be nothing, or zeros, while others have the rest.
static inline void guards_count_gradients(Guards* g, const float* grads) {
    if (g == NULL) { return; }
    uint64_t* nonzero = g->counts + guard_tensor_counts(g);
    for (int i = 0; i < g->num_tensors; i++) {
        Range here = g->tensors[i].here;
        for (size_t j = 0; j < here.count && !nonzero[i]; j++) {
            nonzero[i] = grads[here.first + j] != 0.0f;
        }
    }
}

// Returns the sum over the ranks of the squares of their gradients; that of the counts goes with
// it. They are below 2^53: exact.
static inline double guards_sum(Guards* g, double squares, Ranks* ranks) {
    if (g == NULL) {
        ranks_sum_double(ranks, &squares, 1, "gradient norm");
        return squares;
    }
    g->sums[0] = squares;
    g->counts[GUARD_CHECKSUMS + g->rank] &= 0xffffffffu;
    for (int i = 0; i < g->num_counts; i++) { g->sums[1 + i] = (double)g->counts[i]; }
    ranks_sum_double(ranks, g->sums, (size_t)(1 + g->num_counts), "gradient norm");
    return g->sums[0];
}

// ---------------------------------------------------------------------------------------------
// Alarms

// Counts an alarm; if it is the first for its subject, or a spike, it is one of the `n` news.
static inline void guards_alarm(Guards* g, int* n, GuardKind kind, int subject, double value) {
    g->alarms[kind]++;
    if (g->told[kind][subject] && kind != GUARD_SPIKE) { return; }
    g->told[kind][subject] = 1;
    g->news[*n].kind = kind;
    g->news[*n].subject = subject;
    g->news[*n].value = value;
    (*n)++;
}

// After guards_sum, with the update's loss, the same on all ranks. Returns how many news there are.
//
// No tensor's gradient is zero as a whole unless something is wrong. Parts may be: of wpe what lies
// behind the last token of a row, of wte the padding, of qkvb the bias of the keys (which adds the
// same to all scores of a row, so its gradient is nothing but rounding).
static inline int guards_look(Guards* g, double loss) {
    const double* counts = g->sums + 1;
    int n = 0;
    for (int i = 0; i < g->num_tensors; i++) {
        if (counts[guard_tensor_counts(g) + i] == 0.0) {
            guards_alarm(g, &n, GUARD_ZERO_GRADIENT, i, NAN);
        }
    }
    for (int operand = 0; operand < NUM_OPERANDS; operand++) {
        const double* scales = counts + operand * NUM_SCALE_COUNTS;
        double underflows = scales[SCALES_UNDERFLOWS] / fmax(scales[SCALES_BLOCKS], 1.0);
        double largest = scales[SCALES_LARGEST] / fmax(scales[SCALES_BLOCKS], 1.0);
        for (int k = 0; k < NUM_SCALE_COUNTS; k++) {
            g->scales[operand * NUM_SCALE_COUNTS + k] += scales[k];
        }
        if (underflows > GUARD_UNDERFLOW_SHARE) {
            guards_alarm(g, &n, GUARD_UNDERFLOW, operand, underflows);
        }
        if (largest > GUARD_LARGEST_SHARE) {
            guards_alarm(g, &n, GUARD_LARGEST, operand, largest);
        }
    }
    for (int rank = 1; rank < g->num_ranks; rank++) {
        if (counts[GUARD_CHECKSUMS + rank] != counts[GUARD_CHECKSUMS]) {
            guards_alarm(g, &n, GUARD_WEIGHTS, rank, NAN);
        }
    }
    double above = spike_begins(&g->losses, loss);
    if (above > 0.0) { guards_alarm(g, &n, GUARD_SPIKE, 0, above); }
    return n;
}

// ---------------------------------------------------------------------------------------------
// In words

#define GUARD_TEXT 64

static inline const char* guard_name(int kind) {
    static const char* names[NUM_GUARDS] = { "zero_gradient", "underflow", "largest_scale",
                                             "other_weights", "loss_spike" };
    return names[kind];
}

// "fcw of block 3", "dY", "rank 1"
static inline void guard_subject(char* text /* (GUARD_TEXT) */, const Guards* g, GuardAlarm a) {
    const GuardTensor* tensor = &g->tensors[a.kind == GUARD_ZERO_GRADIENT ? a.subject : 0];
    const ParamSpec* spec = &g->specs[tensor->param];
    switch (a.kind) {
        case GUARD_ZERO_GRADIENT:
            if (spec->layers == 1) { snprintf(text, GUARD_TEXT, "%s", spec->name); }
            else { snprintf(text, GUARD_TEXT, "%s of block %d", spec->name, tensor->layer); }
            break;
        case GUARD_WEIGHTS: snprintf(text, GUARD_TEXT, "rank %d", a.subject); break;
        case GUARD_SPIKE:   snprintf(text, GUARD_TEXT, "training loss"); break;
        default:            snprintf(text, GUARD_TEXT, "%s", operand_name(a.subject)); break;
    }
}

// What is wrong with it, after "guard: ".
static inline void guard_print_alarm(FILE* to, const Guards* g, GuardAlarm a) {
    char subject[GUARD_TEXT];
    guard_subject(subject, g, a);
    switch (a.kind) {
        case GUARD_ZERO_GRADIENT: fprintf(to, "the gradient of %s is all zero", subject); break;
        case GUARD_UNDERFLOW:
            fprintf(to, "%.1f %% of the blocks of %s have scale 0 and are lost", 100.0 * a.value,
                    subject);
            break;
        case GUARD_LARGEST:
            fprintf(to, "%.1f %% of the blocks of %s have the largest scale: its amax is too small",
                    100.0 * a.value, subject);
            break;
        case GUARD_WEIGHTS: fprintf(to, "%s has other weights than rank 0", subject); break;
        default: fprintf(to, "%s is %.2f above the median before", subject, a.value); break;
    }
}

// {"step":12,"guard":"underflow","of":"dY","value":0.061}
static inline void guard_log_alarm(Logger* log, int step, const Guards* g, GuardAlarm a) {
    char subject[GUARD_TEXT];
    if (log->file == NULL) { return; }
    guard_subject(subject, g, a);
    fprintf(log->file, "{\"step\":%d,\"guard\":\"%s\"", step, guard_name(a.kind));
    logger_string(log, "of", subject);
    if (isfinite(a.value)) { logger_number(log, "value", a.value, 6); }
    fputc('}', log->file);
    logger_end_line(log);
}

// Everything from the start on: {"step":100,"guards":{"zero_gradient":0,...,"scales":{"X":
// {"blocks":1280,"underflows":0,"largest":3},...}}}
static inline void guards_log(Logger* log, int step, const Guards* g) {
    if (log->file == NULL) { return; }
    fprintf(log->file, "{\"step\":%d,\"guards\":{", step);
    for (int kind = 0; kind < NUM_GUARDS; kind++) {
        fprintf(log->file, "\"%s\":%.0f,", guard_name(kind), g->alarms[kind]);
    }
    fprintf(log->file, "\"scales\":{");
    const char* comma = "";
    for (int operand = 0; operand < NUM_OPERANDS; operand++) {
        const double* scales = g->scales + operand * NUM_SCALE_COUNTS;
        if (scales[SCALES_BLOCKS] == 0.0) { continue; }
        fprintf(log->file, "%s\"%s\":{\"blocks\":%.0f,\"underflows\":%.0f,\"largest\":%.0f}", comma,
                operand_name(operand), scales[SCALES_BLOCKS], scales[SCALES_UNDERFLOWS],
                scales[SCALES_LARGEST]);
        comma = ",";
    }
    fprintf(log->file, "}}}");
    logger_end_line(log);
}

// The shares of one of SCALES_UNDERFLOWS and SCALES_LARGEST: "X 0.00 %, W 1.17 %"
static inline void guards_print_shares(FILE* to, const Guards* g, int count) {
    const char* comma = "";
    for (int operand = 0; operand < NUM_OPERANDS; operand++) {
        const double* scales = g->scales + operand * NUM_SCALE_COUNTS;
        if (scales[SCALES_BLOCKS] == 0.0) { continue; }
        fprintf(to, "%s%s %.2f %%", comma, operand_name(operand),
                100.0 * scales[count] / scales[SCALES_BLOCKS]);
        comma = ", ";
    }
    fprintf(to, "\n");
}

static inline void guards_print(FILE* to, const Guards* g) {
    double blocks = 0.0;
    for (int operand = 0; operand < NUM_OPERANDS; operand++) {
        blocks += g->scales[operand * NUM_SCALE_COUNTS + SCALES_BLOCKS];
    }
    fprintf(to, "guards            zero gradients %.0f, underflows %.0f, largest scales %.0f, "
            "other weights %.0f, loss spikes %.0f\n", g->alarms[GUARD_ZERO_GRADIENT],
            g->alarms[GUARD_UNDERFLOW], g->alarms[GUARD_LARGEST], g->alarms[GUARD_WEIGHTS],
            g->alarms[GUARD_SPIKE]);
    if (blocks == 0.0) { return; }          // nothing was quantized in blocks
    fprintf(to, "  underflow       ");
    guards_print_shares(to, g, SCALES_UNDERFLOWS);
    fprintf(to, "  largest scale   ");
    guards_print_shares(to, g, SCALES_LARGEST);
}

#endif
