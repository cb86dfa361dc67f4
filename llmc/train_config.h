/*
The settings of a training run: one variable and one flag for each, the same for the C and the CUDA
program. Where llm.c has a flag of the same meaning, the letter is the same.

C11 that also compiles as C++17.
*/
#ifndef LLMC_TRAIN_CONFIG_H
#define LLMC_TRAIN_CONFIG_H

#include <assert.h>
#include "flags.h"
#include "multi_rank.h"
#include "schedule.h"

#define TRAIN_NUM_FLAGS 31

typedef struct {
    // data
    const char* train_data;     // files with training tokens, a glob
    const char* val_data;
    // model
    const char* model;          // shape or checkpoint file; gpt2.h explains
    const char* recipe;         // which GEMM operands are quantized and how; recipe.h explains
    const char* gemm_path;      // who multiplies quantized matrices on the GPU
    // one step
    int B, T;                   // rows of a micro-batch, tokens of a row
    int64_t total_batch;        // tokens between two updates; 0: one micro-batch
    int num_steps;              // updates; -1: one epoch
    // optimizer
    const char* schedule;
    float learning_rate;        // at the peak
    int warmup_steps;
    float final_fraction;       // of the peak learning rate, reached at the end
    float weight_decay;
    float clip_norm;            // longest gradient that is not scaled down; 0: no clipping
    uint64_t seed;
    // along the way; 0 switches each of these off
    int val_every;
    int64_t val_tokens;         // 0: all
    int sample_every, sample_tokens;
    // output
    const char* output_dir;     // "": nothing is written
    int checkpoint_every;
    int keep_newest;            // checkpoints; 0: all
    int keep_multiples;         // checkpoints of steps that are multiples of this stay; 0: none
    int resume;
    int progress;               // line with percentage and time left; -1: only on a terminal
    int guards;                 // look for silent faults; guards.h explains
    // many ranks; multi_rank.h and shards.h explain
    int zero;                   // what a rank holds: 0 everything, 1, 2 its part
    const char* amax;           // of an operand: "global", of all ranks' rows, or "local"
    float timeout;              // seconds until a silent rank is given up
    const char* address;        // where ranks on several hosts meet
} TrainConfig;

static inline TrainConfig train_config_defaults(void) {
    TrainConfig c;
    c.train_data = "data/quickstart_train.bin";
    c.val_data = "data/quickstart_val.bin";
    c.model = "d12";
    c.recipe = "nvfp4";
    c.gemm_path = "auto";
    c.B = 4;
    c.T = 1024;
    c.total_batch = 0;
    c.num_steps = -1;
    c.schedule = "cosine";
    c.learning_rate = 6e-4f;
    c.warmup_steps = 0;
    c.final_fraction = 0.0f;
    c.weight_decay = 0.1f;
    c.clip_norm = 1.0f;
    c.seed = 1337;
    c.val_every = 0;
    c.val_tokens = 0;
    c.sample_every = 0;
    c.sample_tokens = 64;
    c.output_dir = "";
    c.checkpoint_every = 0;
    c.keep_newest = 0;
    c.keep_multiples = 0;
    c.resume = 0;
    c.progress = -1;
    c.guards = 1;
    c.zero = 0;
    c.amax = "global";
    c.timeout = RANKS_TIMEOUT;
    c.address = "";
    return c;
}

// Rows marked 1 must not change when a run resumes. The data files may: they may have been moved,
// and the checkpoint compares what is in them instead (DataLoader.identity).
static inline void train_config_flags(TrainConfig* c, Flag* flags /* (TRAIN_NUM_FLAGS) */) {
    const double many = INT_MAX, tokens = 1e15;
    Flag rows[] = {
        // name    type variable              range  alters  meaning
        { "-i",    's', &c->train_data,       0, 0,     0, "training tokens: file or pattern" },
        { "-j",    's', &c->val_data,         0, 0,     0, "validation tokens" },
        { "-e",    's', &c->model,            0, 0,     1, "model: d12, d12,vocab=257, or a file" },
        { "-p",    's', &c->recipe,           0, 0,     1, "fp32, bf16, nvfp4, or nvfp4,tail=2" },
        { "-g",    's', &c->gemm_path,        0, 0,     1, "GEMM of a GPU: auto, emulated, fp4, fp8" },
        { "-b",    'i', &c->B,                1, many,  1, "rows of a micro-batch, on each rank" },
        { "-t",    'i', &c->T,                1, many,  1, "sequence length T, in tokens" },
        { "-d",    'l', &c->total_batch,      0, many,  1, "tokens of one update (0: B*T*ranks)" },
        { "-x",    'i', &c->num_steps,       -1, many,  1, "steps (-1: one epoch)" },
        { "-k",    's', &c->schedule,         0, 0,     1, "cosine, linear, constant or wsd" },
        { "-l",    'f', &c->learning_rate,    0, 1e3,   1, "peak learning rate" },
        { "-u",    'i', &c->warmup_steps,     0, many,  1, "warmup steps" },
        { "-q",    'f', &c->final_fraction,   0, 1,     1, "final learning rate / peak" },
        { "-c",    'f', &c->weight_decay,     0, 1e3,   1, "weight decay, on matrices only" },
        { "-gc",   'f', &c->clip_norm,        0, 1e30,  1, "clip the gradient norm (0: off)" },
        { "-seed", 'u', &c->seed,             0, 0,     1, "seed of every random number" },
        { "-v",    'i', &c->val_every,        0, many,  0, "validate every N steps (0: off)" },
        { "-vt",   'l', &c->val_tokens,       0, tokens, 0, "validation tokens (0: all)" },
        { "-s",    'i', &c->sample_every,     0, many,  0, "generate text every N steps (0: off)" },
        { "-sn",   'i', &c->sample_tokens,    1, many,  0, "tokens of generated text" },
        { "-o",    's', &c->output_dir,       0, 0,     0, "output directory (empty: no output)" },
        { "-n",    'i', &c->checkpoint_every, 0, many,  0, "save every N steps (0: off)" },
        { "-nk",   'i', &c->keep_newest,      0, many,  0, "newest checkpoints to keep (0: all)" },
        { "-nm",   'i', &c->keep_multiples,   0, many,  0, "always keep multiples of N (0: off)" },
        { "-y",    'i', &c->resume,           0, 1,     0, "1: resume from the newest in -o" },
        { "-pr",   'i', &c->progress,        -1, 1,     0, "progress line: 0, 1, -1: if terminal" },
        { "-gd",   'i', &c->guards,           0, 1,     0, "guards: 1 looks for silent faults" },
        { "-z",    'i', &c->zero,             0, 2,     0, "ZeRO level: what a rank holds" },
        { "-amax", 's', &c->amax,             0, 0,     1, "amax over the ranks: global or local" },
        { "-rt",   'f', &c->timeout,          0, 1e6,   0, "seconds until a silent rank is lost" },
        { "-ra",   's', &c->address,          0, 0,     0, "where ranks meet: HOST:PORT or /FILE" },
    };
    static_assert(sizeof(rows) == TRAIN_NUM_FLAGS * sizeof(Flag), "TRAIN_NUM_FLAGS");
    memcpy(flags, rows, sizeof(rows));
}

// Micro-batches whose gradients are summed for one update; all ranks together make one of them.
static inline int train_config_micro_steps(const TrainConfig* c, int ranks) {
    return c->total_batch == 0 ? 1 : (int)(c->total_batch / ((int64_t)c->B * c->T * ranks));
}

// Each value is in its range already; here are the ones that contradict each other.
static inline void train_config_check(const TrainConfig* c, int ranks) {
    int64_t micro_batch = (int64_t)c->B * c->T * ranks;
    check(micro_batch <= INT_MAX, "-b %d times -t %d is more than 2^31 tokens", c->B, c->T);
    check(ranks > 1 || c->total_batch % micro_batch == 0,
          "-d %" PRId64 " is not a multiple of -b %d times -t %d, %" PRId64, c->total_batch, c->B,
          c->T, micro_batch);
    check(c->total_batch % micro_batch == 0,
          "-d %" PRId64 " is not a multiple of -b %d times -t %d times %d ranks, %" PRId64,
          c->total_batch, c->B, c->T, ranks, micro_batch);
    check(strcmp(c->amax, "global") == 0 || strcmp(c->amax, "local") == 0,
          "-amax %s: there are global and local", c->amax);
    schedule_check(c->schedule);
    check(c->num_steps < 0 || c->warmup_steps <= c->num_steps,
          "-u %d warmup steps are more than the run's -x %d", c->warmup_steps, c->num_steps);
    check(strcmp(c->gemm_path, "auto") == 0 || strcmp(c->gemm_path, "emulated") == 0 ||
          strcmp(c->gemm_path, "fp4") == 0 || strcmp(c->gemm_path, "fp8") == 0,
          "-g %s: no such path; there are auto, emulated, fp4, fp8", c->gemm_path);
    check(c->val_tokens == 0 || c->val_tokens >= c->T,
          "-vt %" PRId64 " validation tokens are less than one row, -t %d", c->val_tokens, c->T);
    check(c->sample_every == 0 || c->sample_tokens <= c->T,
          "-sn %d tokens of text do not fit into the sequence, -t %d", c->sample_tokens, c->T);
    check(c->checkpoint_every == 0 || c->output_dir[0] != '\0',
          "-n %d asks for checkpoints; -o DIR has to say where", c->checkpoint_every);
    check(!c->resume || c->output_dir[0] != '\0', "-y 1 resumes a run; -o DIR has to say which");
    check(c->checkpoint_every > 0 || (c->keep_newest == 0 && c->keep_multiples == 0),
          "-nk and -nm choose which checkpoints to keep, but -n asks for none");
}

#endif
