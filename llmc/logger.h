/*
The log of a run: DIR/log.jsonl, one JSON object a line.

    {"run":{"flags":{"-b":4,...},"program":"train_gpt2_fp32",...}}      at the start and each resume
    {"step":0,"loss":5.54,"norm":2.1,"lr":0.0006,"ms":85.1,"tok_s":12034}      a GPU adds "joules"
    {"step":20,"val_loss":3.92}
    {"step":20,"checkpoint":{"bytes":1500000000,"seconds":2.5}}     both files; training's pause
    {"memory":{"device_bytes":30000000000}}     what rank 0 allocates on its GPU
    {"step":80,"noise_ratio":1.68,"trigger":81}     noise_trigger.h; the last if it fired, and from when
    {"step":99,"resets":1234}                       weights that OsciReset has set
    {"wire":{"amax":96,"gradients":1048576,...}}    bytes that all ranks send in an update
    {"step":12,"guard":"underflow","of":"dY","value":0.061}     an alarm of guards.h
    {"step":100,"guards":{"zero_gradient":0,...}}               what it has counted so far

Every line is on its way to the disk before the next step begins. C11 that also compiles as C++17.
*/
#ifndef LLMC_LOGGER_H
#define LLMC_LOGGER_H

#include <math.h>
#include <sys/file.h>
#include "flags.h"
#include "utils.h"

typedef struct {
    FILE* file;                 // NULL: there is no log
    char path[PATH_BYTES];
} Logger;

// What the first line says of a run besides its flags.
typedef struct {
    const char* program;
    const char* commit;         // of the source it was built from
    const char* device;
    const char* recipe;
    uint64_t train_identity, val_identity;      // of the data (DataLoader.identity); 0: none
    size_t num_parameters;
    int first_step, num_steps;
    int ranks;
} RunInfo;

// ---------------------------------------------------------------------------------------------

// Ends the program if another one is writing this log; else none can until the file is closed. (A file
// system that has no locks is trusted.)
static inline void logger_lock(FILE* file, const char* path) {
    check(flock(fileno(file), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, "%s: another run is "
          "writing it; give this one another -o", path);
}

// Does the line tell what there was after `step` updates, rather than of an update?
static inline int logger_is_of_state(const char* line, int redone) {
    return strstr(line, ",\"checkpoint\":{") != NULL || strstr(line, ",\"guards\":{") != NULL
        || (!redone && strstr(line, ",\"val_loss\":") != NULL);
}

// Rewrites the log without the lines of updates that the resumed run will do again from `step` on, of
// its validation after `step` updates if that is `redone`, and without a last line that was not
// finished.
static inline void logger_rewind(const char* path, int step, int redone) {
    FILE* old = fopen(path, "rb");
    if (old == NULL) { return; }
    FILE* kept = file_create(path);
    char* line = NULL;
    size_t capacity = 0;
    ssize_t length;
    while ((length = getline(&line, &capacity, old)) > 0) {
        int line_step = -1;             // the lines of a run have no step, they stay
        sscanf(line, "{\"step\":%d", &line_step);
        int keeps = line_step < step || (line_step == step && logger_is_of_state(line, redone));
        if (line[length - 1] == '\n' && keeps) {
            file_write(line, (size_t)length, kept, path);
        }
    }
    free(line);
    fclose(old);
    file_commit(kept, path);
}

// directory "" means no log. resume_step is the first step of a resumed run, -1 for a new one,
// which leaves an older log in log.previous.jsonl. validates: a resumed run begins with a validation.
static inline void logger_open(Logger* logger, const char* directory, int resume_step,
                               int validates) {
    logger->file = NULL;
    if (directory[0] == '\0') { return; }
    directory_create(directory);
    path_format(logger->path, "%s/log.jsonl", directory);
    FILE* older = fopen(logger->path, "rb");
    if (older != NULL) { logger_lock(older, logger->path); }
    if (resume_step >= 0) {
        logger_rewind(logger->path, resume_step, validates);
    } else {
        char previous[PATH_BYTES];
        path_format(previous, "%s/log.previous.jsonl", directory);
        check(rename(logger->path, previous) == 0 || errno == ENOENT, "cannot rename %s: %s",
              logger->path, strerror(errno));
    }
    logger->file = fopen(logger->path, "ab");
    check(logger->file != NULL, "cannot write %s: %s", logger->path, strerror(errno));
    logger_lock(logger->file, logger->path);
    if (older != NULL) { fclose(older); }
}

static inline void logger_end_line(Logger* logger) {
    fputc('\n', logger->file);
    check(fflush(logger->file) == 0 && !ferror(logger->file), "cannot write %s: %s", logger->path,
          strerror(errno));
}

static inline void logger_close(Logger* logger) {
    if (logger->file == NULL) { return; }
    check(fclose(logger->file) == 0, "cannot write %s: %s", logger->path, strerror(errno));
    logger->file = NULL;
}

// ---------------------------------------------------------------------------------------------
// Lines

// ,"name":value; JSON knows no infinity and no NaN, null stands for them
static inline void logger_number(Logger* logger, const char* name, double value, int digits) {
    if (isfinite(value)) {
        fprintf(logger->file, ",\"%s\":%.*g", name, digits, value);
    } else {
        fprintf(logger->file, ",\"%s\":null", name);
    }
}

static inline void logger_string(Logger* logger, const char* name, const char* text) {
    fprintf(logger->file, ",\"%s\":", name);
    json_string(logger->file, text);
}

static inline void logger_run(Logger* logger, const Flag* flags, int count, const RunInfo* info) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"run\":{\"flags\":{");
    flags_json(logger->file, flags, count);
    fprintf(logger->file, "}");
    logger_string(logger, "program", info->program);
    logger_string(logger, "commit", info->commit);
    logger_string(logger, "device", info->device);
    logger_string(logger, "recipe", info->recipe);
    // as text: a 64-bit number is more than JSON readers keep exactly
    fprintf(logger->file, ",\"train_data\":\"%016" PRIx64 "\",\"val_data\":\"%016" PRIx64 "\"",
            info->train_identity, info->val_identity);
    fprintf(logger->file, ",\"ranks\":%d,\"num_parameters\":%zu,\"first_step\":%d,"
            "\"num_steps\":%d}}", info->ranks, info->num_parameters, info->first_step,
            info->num_steps);
    logger_end_line(logger);
}

// 9 digits identify a float, so two logs that agree come from runs that agree.
static inline void logger_step(Logger* logger, int step, float loss, float norm, float lr,
                               double milliseconds, double tokens_per_second,
                               double joules) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"step\":%d", step);
    logger_number(logger, "loss", loss, 9);
    logger_number(logger, "norm", norm, 9);
    logger_number(logger, "lr", lr, 9);
    logger_number(logger, "ms", milliseconds, 6);
    logger_number(logger, "tok_s", tokens_per_second, 6);
    if (isfinite(joules)) { logger_number(logger, "joules", joules, 6); }
    fputc('}', logger->file);
    logger_end_line(logger);
}

// bytes (n), by kind of what was sent
static inline void logger_wire(Logger* logger, const char** names, const double* bytes, int n) {
    if (logger->file == NULL) { return; }
    for (int i = 0; i < n; i++) {
        fprintf(logger->file, "%s\"%s\":%.0f", i == 0 ? "{\"wire\":{" : ",", names[i], bytes[i]);
    }
    fprintf(logger->file, "}}");
    logger_end_line(logger);
}

// trigger: the update from which automatic rules hold, -1 if they do not yet
static inline void logger_noise(Logger* logger, int step, double ratio, int trigger) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"step\":%d", step);
    logger_number(logger, "noise_ratio", ratio, 9);
    if (trigger >= 0) { fprintf(logger->file, ",\"trigger\":%d", trigger); }
    fputc('}', logger->file);
    logger_end_line(logger);
}

static inline void logger_resets(Logger* logger, int step, double resets) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"step\":%d,\"resets\":%.0f}", step, resets);
    logger_end_line(logger);
}

static inline void logger_memory(Logger* logger, size_t device_bytes) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"memory\":{\"device_bytes\":%zu}}", device_bytes);
    logger_end_line(logger);
}

static inline void logger_checkpoint(Logger* logger, int step, uint64_t bytes, double seconds) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"step\":%d,\"checkpoint\":{\"bytes\":%" PRIu64, step, bytes);
    logger_number(logger, "seconds", seconds, 6);
    fprintf(logger->file, "}}");
    logger_end_line(logger);
}

static inline void logger_val(Logger* logger, int step, float val_loss) {
    if (logger->file == NULL) { return; }
    fprintf(logger->file, "{\"step\":%d", step);
    logger_number(logger, "val_loss", val_loss, 9);
    fputc('}', logger->file);
    logger_end_line(logger);
}

#endif
