/*
The learning rate of each step, four schedules. All begin with a linear warmup; f is final_fraction.

    constant    peak
    linear      peak down to f * peak in a straight line over the steps after the warmup
    cosine      the same, along half a cosine
    wsd         "warmup, stable, decay": peak, then over the last fifth of the run down to f * peak
                as 1 - sqrt(progress)

C11 that also compiles as C++17.
*/
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include <math.h>
#include "utils.h"

static inline void schedule_check(const char* schedule) {
    check(strcmp(schedule, "constant") == 0 || strcmp(schedule, "linear") == 0
          || strcmp(schedule, "cosine") == 0 || strcmp(schedule, "wsd") == 0,
          "-k %s: no such schedule; there are cosine, linear, constant, wsd", schedule);
}

// step counts from 0; the first update already learns, with peak / warmup.
static inline float learning_rate(const char* schedule, int step, int num_steps, int warmup,
                                  float peak, float final_fraction) {
    if (step < warmup) { return peak * (float)(step + 1) / (float)warmup; }
    int is_wsd = strcmp(schedule, "wsd") == 0;
    int stable = is_wsd ? num_steps - num_steps / 5 : 0;
    int decay_start = stable > warmup ? stable : warmup;
    double progress = 0.0;              // through the decay, 0 to 1
    if (step > decay_start) {
        progress = (double)(step - decay_start) / (double)(num_steps - decay_start);
    }
    double above_final = 1.0;           // share of the way from the final rate up to the peak
    if (is_wsd) {
        above_final = 1.0 - sqrt(progress);
    } else if (strcmp(schedule, "cosine") == 0) {
        above_final = 0.5 * (1.0 + cos(3.141592653589793 * progress));
    } else if (strcmp(schedule, "linear") == 0) {
        above_final = 1.0 - progress;
    }
    return (float)(peak * (final_fraction + (1.0 - final_fraction) * above_final));
}

#endif
