/*
When is a training loss a spike? The definition, once, for both programs (guards.h) and for
dev/compare (compare_report/analysis.py, spikes). An update is in a spike if its loss is above

    median + max(8 * 1.4826 * median absolute deviation, 0.1 nats)

of the 50 updates before it that are in none; 1.4826 makes the deviation of normal noise a standard
deviation. Neighbours are one spike. After 50 updates on end it is no spike but a new level, and the
window begins anew there.

C11 that also compiles as C++17.
*/
#ifndef LLMC_LOSS_SPIKE_H
#define LLMC_LOSS_SPIKE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPIKE_WINDOW 50         // updates before it that a loss is held against
#define SPIKE_SIGMAS 8.0        // so far above their median, in standard deviations
#define SPIKE_NATS 0.1          // and at least so far

typedef struct {
    double quiet[SPIKE_WINDOW];     // the latest losses that are in no spike
    double level[SPIKE_WINDOW];     // those of the spike that goes on
    int num_quiet, num_level;
} SpikeWindow;

static inline int double_compare(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// Of SPIKE_WINDOW values, an even number of them.
static inline double spike_median(const double* values) {
    double sorted[SPIKE_WINDOW];
    memcpy(sorted, values, sizeof(sorted));
    qsort(sorted, SPIKE_WINDOW, sizeof(double), double_compare);
    return 0.5 * (sorted[SPIKE_WINDOW / 2 - 1] + sorted[SPIKE_WINDOW / 2]);
}

static inline void spike_add_quiet(SpikeWindow* w, double loss) {
    if (w->num_quiet == SPIKE_WINDOW) {
        memmove(w->quiet, w->quiet + 1, (SPIKE_WINDOW - 1) * sizeof(double));
        w->num_quiet--;
    }
    w->quiet[w->num_quiet++] = loss;
}

// Takes the loss of the next update. If a spike begins with it, returns how far it is above the
// median, else 0.
static inline double spike_begins(SpikeWindow* w, double loss) {
    double away[SPIKE_WINDOW], median = 0.0, limit = INFINITY;
    if (w->num_quiet == SPIKE_WINDOW) {
        median = spike_median(w->quiet);
        for (int i = 0; i < SPIKE_WINDOW; i++) { away[i] = fabs(w->quiet[i] - median); }
        limit = median + fmax(SPIKE_SIGMAS * 1.4826 * spike_median(away), SPIKE_NATS);
    }
    if (!(loss > limit)) {
        w->num_level = 0;
        spike_add_quiet(w, loss);
        return 0.0;
    }
    w->level[w->num_level++] = loss;
    int begins = w->num_level == 1;
    if (w->num_level == SPIKE_WINDOW) {
        memcpy(w->quiet, w->level, sizeof(w->quiet));
        w->num_level = 0;
    }
    return begins ? loss - median : 0.0;
}

#endif
