/*
A training run without its model: what train_gpt2_fp32.c and train_gpt2_nvfp4.cu have in common.
Every rank has one; only rank 0 prints and writes files.

run_parse reads the flags, run_open opens the data and says what is going to happen; the
programs' main loops then ask it when to validate, sample and save, and tell it what came out,
which goes to the terminal and to log.jsonl. Whatever is derived from flags (micro-steps, number
of updates) is derived here.

C11 that also compiles as C++17.
*/
#ifndef LLMC_TRAIN_RUN_H
#define LLMC_TRAIN_RUN_H

#include <math.h>
#include "checkpoint.h"
#include "dataloader.h"
#include "gpt2.h"
#include "guards.h"
#include "logger.h"
#include "noise_trigger.h"
#include "osci_reset.h"
#include "recipe.h"
#include "shards.h"
#include "tokenizer.h"
#include "train_config.h"

#ifndef GIT_COMMIT
#define GIT_COMMIT "unknown"    // the Makefile passes the commit
#endif

typedef struct {
    TrainConfig config;
    Flag flags[TRAIN_NUM_FLAGS];
    GPT2Config model;
    Recipe recipe;
    Ranks ranks;
    Shards shards;              // of the model's parameters
    Guards* guards;             // NULL: -gd 0
    int local_amax;             // -amax local
    DataLoader train, val;      // val is open only if the run validates
    int* inputs;                // (B,T) the micro-batch at hand
    int* targets;               // (B,T)
    int micro_steps;            // micro-batches, of all ranks together, that make one update
    int num_steps;              // updates in the whole run
    int checkpoint;             // step of the checkpoint that a resumed run goes on from; -1: none
    int start_step;             // that step, or 0
    uint64_t val_rows;          // rows of T tokens that make one validation
    Tokenizer tokenizer;
    Logger log;
    int progress;               // overwrite one line instead of printing many
    double last_line;           // when the terminal last got one; 0: another text came in between
    double train_seconds;       // spent in updates since start_step
    uint64_t sent_before[NUM_RANKS_KINDS];  // bytes that this rank had sent before the first update
    float* sums[2];             // (own) d_w, d_q of osci_reset.h, if the recipe has that
} TrainRun;

// Rows of a micro-batch of all ranks.
static inline uint64_t run_batch_rows(const TrainRun* run) {
    return (uint64_t)run->config.B * (uint64_t)run->ranks.size;
}

static inline uint64_t run_tokens_per_step(const TrainRun* run) {
    return run_batch_rows(run) * (uint64_t)run->config.T * (uint64_t)run->micro_steps;
}

// The sum of the ranks' x, on every rank.
static inline double run_sum(TrainRun* run, double x, const char* what) {
    ranks_sum_double(&run->ranks, &x, 1, what);
    return x;
}

__attribute__((format(printf, 2, 3)))
static inline void run_print_line(const TrainRun* run, const char* format, ...) {
    va_list values;
    if (run->ranks.rank > 0) { return; }
    va_start(values, format);
    vprintf(format, values);
    va_end(values);
}

static inline void run_print(const TrainRun* run, const char* program, const char* device) {
    const TrainConfig* c = &run->config;
    const GPT2Config* m = &run->model;
    size_t params = run->shards.size;
    if (run->ranks.rank > 0) { return; }
    printf("%s, commit %s, on %s\n", program, GIT_COMMIT, device);
    printf("model             %d layers, %d channels, %d heads, vocabulary %d (padded %d), "
           "context %d: %zu parameters\n", m->L, m->C, m->NH, m->V, m->Vp, m->max_T, params);
    recipe_print(&run->recipe, stdout);
    printf("data              %s: %d shard%s, %" PRIu64 " tokens, identity %016" PRIx64 "\n",
           c->train_data, run->train.num_shards, run->train.num_shards == 1 ? "" : "s",
           run->train.num_tokens, run->train.identity);
    if (run->ranks.size > 1) {
        printf("ranks             %d, ZeRO level %d: a rank holds the masters of %zu parameters; "
               "amax %s\n", run->ranks.size, c->zero, run->shards.own.count, c->amax);
        printf("batch             %d ranks x ", run->ranks.size);
    } else {
        printf("batch             ");
    }
    printf("%d x %d tokens x %d micro-step%s = %" PRIu64 " tokens an update\n", c->B, c->T,
           run->micro_steps, run->micro_steps == 1 ? "" : "s", run_tokens_per_step(run));
    printf("steps             %d (%.2f epochs), %s from %g over %d warmup steps to %g\n",
           run->num_steps, (double)run->num_steps * (double)run_tokens_per_step(run)
                               / (double)run->train.num_tokens,
           c->schedule, c->learning_rate, c->warmup_steps, c->learning_rate * c->final_fraction);
    if (c->val_every > 0) {
        printf("validation        %s: %" PRIu64 " of %" PRIu64 " tokens every %d steps\n",
               c->val_data, run->val_rows * (uint64_t)c->T, run->val.num_tokens, c->val_every);
    }
}

// Ends the run unless every rank has the same settings. Names of files and what concerns only rank
// 0 may differ; what is in the files is compared when they are open.
static inline void run_agree(TrainRun* run) {
    ranks_agree(&run->ranks, "the commit", GIT_COMMIT);
    for (int i = 0; i < TRAIN_NUM_FLAGS; i++) {
        const char* name = run->flags[i].name;
        if (strcmp(name, "-i") == 0 || strcmp(name, "-j") == 0 || strcmp(name, "-o") == 0
            || strcmp(name, "-pr") == 0) { continue; }
        char* text = flag_text(&run->flags[i]);
        ranks_agree(&run->ranks, name, text);
        free(text);
    }
}

static inline void run_agree_number(TrainRun* run, const char* name, uint64_t number) {
    char text[32];
    snprintf(text, sizeof(text), "%016" PRIx64, number);
    ranks_agree(&run->ranks, name, text);
}

// argv as main got it.
static inline void run_parse(TrainRun* run, int argc, char** argv) {
    memset(run, 0, sizeof(*run));
    run->config = train_config_defaults();
    train_config_flags(&run->config, run->flags);
    flags_parse(run->flags, TRAIN_NUM_FLAGS, argc, argv);
    ranks_open(&run->ranks, &argc, &argv);
    run_agree(run);
    train_config_check(&run->config, run->ranks.size);
    run->local_amax = strcmp(run->config.amax, "local") == 0;
}

// The same recipe must mean the same to every rank, whatever it is called.
static inline void run_agree_recipe(TrainRun* run) {
    char* meaning = recipe_meaning(&run->recipe, INT_MAX);
    ranks_agree(&run->ranks, "the meaning of -p", meaning);
    free(meaning);
}

// Of an operand of wgrad, tokens that share a scale must be on one rank: its rows are whole blocks.
static inline void run_check_blocks(const TrainRun* run) {
    const TrainConfig* c = &run->config;
    int block = format_block(run->recipe.operands[OPERAND_DYT].format);
    check(run->ranks.size == 1 || block == 0 || c->B * c->T % block == 0, "-b %d times -t %d, the "
          "tokens of a rank, is not a multiple of %d, the block of the recipe %s; with one rank it "
          "need not be", c->B, c->T, block, c->recipe);
}

// `program` and `device` for the printout.
static inline void run_open(TrainRun* run, const char* program, const char* device) {
    const TrainConfig* c = &run->config;
    ParamSpec specs[NUM_PARAMS];
    run->checkpoint = checkpoint_find(c->output_dir, c->resume);
    run_agree_number(run, "the newest checkpoint in -o", (uint64_t)run->checkpoint);
    run->start_step = run->checkpoint >= 0 ? run->checkpoint : 0;
    run->model = file_exists(c->model) ? checkpoint_read_config(c->model)
                                        : gpt2_config(c->model, c->T);
    check(c->T <= run->model.max_T, "-t %d is longer than the model's context of %d tokens", c->T,
          run->model.max_T);
    run->recipe = recipe_parse(c->recipe, run->model.L);
    check(run->recipe.base == FORMAT_FP32 || c->T % 16 == 0,
          "-t %d: the recipe %s needs a multiple of 16, its block of tokens", c->T, c->recipe);
    run_check_blocks(run);

    shards_open(&run->shards, &run->ranks, c->zero, gpt2_param_specs(specs, &run->model));

    dataloader_open(&run->train, c->train_data, c->T, run->model.V, 1, c->seed);
    run_agree_number(run, "the data of -i", run->train.identity);
    run->micro_steps = train_config_micro_steps(c, run->ranks.size);
    uint64_t rows_per_step = run_batch_rows(run) * (uint64_t)run->micro_steps;
    check(c->num_steps >= 0 || run->train.num_rows >= rows_per_step, "%s: %" PRIu64 " tokens "
          "are less than one update of %" PRIu64 "; reduce -d or -b, or give -x", c->train_data,
          run->train.num_tokens, run_tokens_per_step(run));
    run->num_steps = c->num_steps >= 0 ? c->num_steps : (int)(run->train.num_rows / rows_per_step);
    check(c->warmup_steps <= run->num_steps, "-u %d warmup steps are more than the run's %d",
          c->warmup_steps, run->num_steps);
    if (c->val_every > 0) {
        dataloader_open(&run->val, c->val_data, c->T, run->model.V, 0, c->seed);
        run_agree_number(run, "the data of -j", run->val.identity);
        uint64_t wanted = (uint64_t)c->val_tokens / (uint64_t)c->T;
        check(wanted <= run->val.num_rows, "-vt %" PRId64 ": %s has only %" PRIu64 " rows of "
              "-t %d tokens", c->val_tokens, c->val_data, run->val.num_rows, c->T);
        run->val_rows = wanted > 0 ? wanted : run->val.num_rows;
    }
    recipe_set_length(&run->recipe, run->num_steps);
    run->recipe.step = run->start_step;
    run_agree_recipe(run);
    run->guards = c->guards ? guards_open(&run->model, &run->shards) : NULL;
    size_t batch = (size_t)c->B * (size_t)c->T * sizeof(int);
    run->inputs = (int*)xmalloc(batch, "a batch of tokens");
    run->targets = (int*)xmalloc(batch, "a batch of tokens");
    run->progress = c->progress == -1 ? isatty(STDOUT_FILENO) : c->progress;
    tokenizer_open(&run->tokenizer, c->train_data, run->model.V);
    run_print(run, program, device);
}

// Is it time, after `step` updates, for what happens every so many of them, and at the end?
static inline int run_is_due(const TrainRun* run, int every, int step) {
    return every > 0 && (step % every == 0 || step == run->num_steps);
}

// ---------------------------------------------------------------------------------------------
// Checkpoints and log. params, m, v (run->shards.own) lie in host memory.

// The settings as a checkpoint of `step` holds them, which has nothing to do with the number of
// ranks: -b is what one rank would have been told, the rows of all ranks together. The caller frees
// the text.
static inline char* run_settings(const TrainRun* run, int step) {
    TrainConfig config = run->config;
    Flag flags[TRAIN_NUM_FLAGS];
    config.B = (int)run_batch_rows(run);
    train_config_flags(&config, flags);
    char* meaning = recipe_meaning(&run->recipe, step);
    char* settings = checkpoint_settings(flags, TRAIN_NUM_FLAGS, run->train.identity, meaning);
    free(meaning);
    return settings;
}

// What a checkpoint of this step has besides masters and moments, and where that lies.
static inline CheckpointExtras run_extras(const TrainRun* run, int step) {
    CheckpointExtras extras;
    memset(&extras, 0, sizeof(extras));
    extras.triggered = recipe_triggered(&run->recipe) > 0 ? recipe_triggered(&run->recipe) : 0;
    extras.num_sums = osci_reset_continues(&run->recipe.reset, step) ? 2 : 0;
    memcpy(extras.sums, run->sums, sizeof(extras.sums));
    return extras;
}

// Fills params, m, v where they come from files: the newest checkpoint of a resumed run, which also
// tells run->recipe which rules hold, or the model file given with -e, which has no moments.
// Otherwise they stay as they are.
static inline void run_load(TrainRun* run, float* params, float* m, float* v) {
    const TrainConfig* c = &run->config;
    if (run->checkpoint >= 0) {
        char* settings = run_settings(run, run->checkpoint);
        CheckpointExtras extras = run_extras(run, run->checkpoint);
        uint64_t checksum = checkpoint_load(c->output_dir, run->checkpoint, &run->model, params, m,
                                            v, &extras, run->shards.own, settings);
        if (extras.triggered > 0) { recipe_trigger(&run->recipe, extras.triggered); }
        free(settings);
        run_agree_number(run, "the checkpoint", checksum);
        run_print_line(run, "resumed           from step %d in %s%s\n", run->checkpoint, c->output_dir,
                       run->checkpoint >= run->num_steps ? ", which is complete" : "");
        return;
    }
    if (c->resume) {
        run_print_line(run, "resumed           nothing: no checkpoint in %s, the run begins\n",
                       c->output_dir);
    }
    if (file_exists(c->model)) {
        run_agree_number(run, "the model file",
                         checkpoint_load_model(params, c->model, run->shards.own));
        run_print_line(run, "weights           from %s\n", c->model);
    }
}

// start: when training stopped for this (seconds_now).
static inline void run_save(TrainRun* run, int step, const float* params, const float* m,
                            const float* v, double start) {
    const TrainConfig* c = &run->config;
    char* settings = run_settings(run, step);
    CheckpointExtras extras = run_extras(run, step);
    if (run->ranks.rank == 0) { directory_create(c->output_dir); }
    uint64_t bytes = checkpoint_save(c->output_dir, step, &run->model, params, m, v, &extras,
                                     &run->shards, settings);
    if (run->ranks.rank == 0) {
        checkpoint_prune(c->output_dir, c->keep_newest, c->keep_multiples);
        logger_checkpoint(&run->log, step, bytes, seconds_now() - start);
    }
    free(settings);
}

// After run_load: whether an old log is continued depends on the checkpoint found.
static inline void run_start_log(TrainRun* run, const char* program, const char* device) {
    RunInfo info;
    info.program = program;
    info.commit = GIT_COMMIT;
    info.device = device;
    info.recipe = run->recipe.text;
    info.train_identity = run->train.identity;
    info.val_identity = run->config.val_every > 0 ? run->val.identity : 0;
    info.num_parameters = run->shards.size;
    info.first_step = run->start_step;
    info.num_steps = run->num_steps;
    info.ranks = run->ranks.size;
    logger_open(&run->log, run->ranks.rank == 0 ? run->config.output_dir : "", run->checkpoint,
                run_is_due(run, run->config.val_every, run->start_step));
    logger_run(&run->log, run->flags, TRAIN_NUM_FLAGS, &info);
}

static inline void run_close(TrainRun* run) {
    logger_close(&run->log);
    tokenizer_close(&run->tokenizer);
    dataloader_close(&run->train);
    if (run->config.val_every > 0) { dataloader_close(&run->val); }
    free(run->inputs);
    free(run->targets);
    ranks_close(&run->ranks);
}

// ---------------------------------------------------------------------------------------------
// When

static inline int run_saves(const TrainRun* run, int step) {
    return step > run->start_step && run_is_due(run, run->config.checkpoint_every, step);
}

// Loads this rank's rows of micro-batch number `micro` of step `step` into run->inputs and
// run->targets. Bytes on the wire are counted from the first micro-batch of the run on.
static inline void run_batch(TrainRun* run, int step, int micro) {
    uint64_t number = (uint64_t)step * (uint64_t)run->micro_steps + (uint64_t)micro;
    uint64_t rank = (uint64_t)run->ranks.rank, B = (uint64_t)run->config.B;
    for (int kind = 0; step == run->start_step && micro == 0 && kind < NUM_RANKS_KINDS; kind++) {
        run->sent_before[kind] = ranks_bytes_sent(&run->ranks, (RanksKind)kind);
    }
    dataloader_batch(&run->train, run->inputs, run->targets,
                     number * run_batch_rows(run) + rank * B, run->config.B);
}

// Loads this rank's share of the validation batch that begins at `row`. Returns its rows; the last
// batch may be too small for all ranks.
static inline int run_val_batch(TrainRun* run, uint64_t row) {
    uint64_t rank = (uint64_t)run->ranks.rank, ranks = (uint64_t)run->ranks.size;
    uint64_t left = run->val_rows - row, batch = run_batch_rows(run);
    left = left < batch ? left : batch;
    uint64_t first = left * rank / ranks;
    int rows = (int)(left * (rank + 1) / ranks - first);
    dataloader_batch(&run->val, run->inputs, run->targets, row + first, rows);
    return rows;
}

static inline float run_learning_rate(const TrainRun* run, int step) {
    const TrainConfig* c = &run->config;
    return learning_rate(c->schedule, step, run->num_steps, c->warmup_steps, c->learning_rate,
                         c->final_fraction);
}

// ---------------------------------------------------------------------------------------------
// What came out

// Ends the line that is being overwritten, before something else is printed.
static inline void run_end_progress(const TrainRun* run) {
    if (run->progress && run->last_line > 0.0) { printf("\n"); }
}

// What all ranks together have sent in the first update, and every update sends.
static inline void run_report_wire(TrainRun* run) {
    static const char* names[NUM_RANKS_KINDS] = { "amax", "gradients", "nvfp4_weights",
                                                  "other_weights", "other" };
    double sent[NUM_RANKS_KINDS], all = 0.0;
    if (run->ranks.size == 1) { return; }
    for (int kind = 0; kind < NUM_RANKS_KINDS; kind++) {
        sent[kind] = (double)(ranks_bytes_sent(&run->ranks, (RanksKind)kind)
                              - run->sent_before[kind]);
    }
    ranks_sum_double(&run->ranks, sent, NUM_RANKS_KINDS, "bytes on the wire");
    for (int kind = 0; kind < NUM_RANKS_KINDS; kind++) { all += sent[kind]; }
    logger_wire(&run->log, names, sent, NUM_RANKS_KINDS);
    run_print_line(run, "on the wire       %.0f bytes an update, of all ranks: amax %.0f, "
                   "gradients %.0f, weights in NVFP4 %.0f, other weights %.0f, other %.0f\n", all,
                   sent[RANKS_AMAX], sent[RANKS_GRADIENTS], sent[RANKS_CODES_AND_SCALES],
                   sent[RANKS_WEIGHTS], sent[RANKS_OTHER]);
}

// The alarms of an update with this loss.
static inline void run_report_alarms(TrainRun* run, int step, double loss) {
    int n = run->guards != NULL ? guards_look(run->guards, loss) : 0;
    for (int i = 0; i < n && run->ranks.rank == 0; i++) {
        GuardAlarm alarm = run->guards->news[i];
        guard_log_alarm(&run->log, step, run->guards, alarm);
        run_end_progress(run);
        run->last_line = 0.0;
        printf("step %d/%d | guard: ", step + 1, run->num_steps);
        guard_print_alarm(stdout, run->guards, alarm);
        printf("\n");
        fflush(stdout);
    }
}

// After `step` updates: what the guards have seen so far goes to the log every 100 updates and with
// every validation, and at the end of the run to the terminal, too.
static inline void run_report_guards(TrainRun* run, int step) {
    int end = step == run->num_steps;
    int due = end || step % 100 == 0 || run_is_due(run, run->config.val_every, step);
    if (run->guards == NULL || step == run->start_step || !due || run->ranks.rank > 0) { return; }
    guards_log(&run->log, step, run->guards);
    if (!end) { return; }
    run_end_progress(run);
    run->last_line = 0.0;
    if (run->start_step > 0) { printf("since step %d:\n", run->start_step); }
    guards_print(stdout, run->guards);
}

// One update has taken `ms`. peak_share is the share of the device's peak rate, joules those
// per token; NaN if unknown. A terminal gets one line that is overwritten; a file gets at
// most one line a second.
static inline void run_report_step(TrainRun* run, int step, float loss, float norm, float lr,
                                   double ms, double peak_share, double joules) {
    double tok_s = (double)run_tokens_per_step(run) / (ms * 1e-3);
    if (step == run->start_step) { run_report_wire(run); }
    run->train_seconds += ms * 1e-3;
    logger_step(&run->log, step, loss, norm, lr, ms, tok_s,
                joules * (double)run_tokens_per_step(run));
    check(isfinite(loss) && isfinite(norm), "step %d: loss %g and gradient norm %g are not finite. "
          ADVICE_DIVERGED, step, loss, norm);
    run_report_alarms(run, step, loss);
    double now = seconds_now();
    int last = step + 1 == run->num_steps;
    if (run->ranks.rank > 0) { return; }
    if (now - run->last_line < (run->progress ? 0.1 : 1.0) && !last && step != run->start_step) {
        return;
    }
    run->last_line = now;
    double left = run->train_seconds / (step + 1 - run->start_step) * (run->num_steps - step - 1);
    printf("%sstep %d/%d (%.0f %%, %d:%02d left) | loss %.4f | norm %.3f | lr %.2e | "
           "%.1f ms | %.0f tok/s", run->progress ? "\r" : "", step + 1, run->num_steps,
           100.0 * (step + 1) / run->num_steps, (int)left / 60, (int)left % 60, loss, norm, lr,
           ms, tok_s);
    if (isfinite(peak_share)) { printf(" | %.1f %% of peak", 100.0 * peak_share); }
    if (isfinite(joules)) { printf(" | %.3f mJ/token", 1e3 * joules); }
    printf("%s", run->progress ? "  " : "\n");
    fflush(stdout);
}

// Update `step` has found this ratio of gradient to noise (noise_trigger.h), on every rank the same.
static inline void run_report_noise(TrainRun* run, int step, double ratio) {
    int fires = noise_trigger_fires(ratio);
    if (fires) { recipe_trigger(&run->recipe, step + 1); }
    if (run->ranks.rank > 0) { return; }
    logger_noise(&run->log, step, ratio, fires ? step + 1 : -1);
    if (!fires) { return; }
    run_end_progress(run);
    run->last_line = 0.0;
    printf("step %d/%d | gradient / noise %.3f: automatic rules hold from here on\n", step + 1,
           run->num_steps, ratio);
    fflush(stdout);
}

// OsciReset has set so many weights of this rank's part.
static inline void run_report_resets(TrainRun* run, int step, int64_t resets) {
    double all = run_sum(run, (double)resets, "weights set by OsciReset");
    logger_resets(&run->log, step, all);
    if (run->ranks.rank > 0) { return; }
    run_end_progress(run);
    run->last_line = 0.0;
    printf("step %d/%d | OsciReset has set %.0f weights\n", step + 1, run->num_steps, all);
    fflush(stdout);
}

static inline void run_report_val(TrainRun* run, int step, float val_loss) {
    if (run->ranks.rank > 0) { return; }
    run_end_progress(run);
    run->last_line = 0.0;
    printf("step %d/%d | validation loss %.4f\n", step, run->num_steps, val_loss);
    fflush(stdout);
    logger_val(&run->log, step, val_loss);
}

// tokens (n) as text.
static inline void run_report_sample(TrainRun* run, int step, const int* tokens, int n) {
    if (run->ranks.rank > 0) { return; }
    run_end_progress(run);
    run->last_line = 0.0;
    printf("--- generated at step %d\n", step);
    tokenizer_print(stdout, &run->tokenizer, tokens, n);
    printf("\n---\n");
    fflush(stdout);
}

#endif
