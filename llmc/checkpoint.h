/*
Checkpoints: two files a step, written so that a crash at any moment leaves the older ones usable.

    model_00001000.bin      llm.c's format; any program that reads that can use it
        int32[256]          magic 20240326, version 3 (FP32) or 5 (BF16, only read here), max_T, V,
                            L, NH, C, Vp, zeros
        parameters          in the order of gpt2.h, all layers of a tensor together

    state_00001000.bin      what else a run needs to go on
        int32[256]          magic 20261101, version 1, step, bytes of the settings; then as 64-bit
                            numbers: number of parameters, checksum of the model file; then the
                            update from which automatic rules of the recipe hold (0: not yet),
                            number of sums; zeros
        settings            text, a line for each (flags.h)
        m, v                AdamW's moments, FP32, like the parameters
        sums                none; or, inside a window of osci_reset.h, d_w and d_q, like m and v
        uint64              checksum (FNV-1a) of everything before it

The state is written after the model, and each file gets its name when it is complete: a checkpoint
exists if its state file does. Neither the data's order nor any random generator has a position to
store; both are functions of the step.

The files do not depend on the number of ranks. Rank 0 writes them, piece by piece as it gets the
parts of the others; when a run resumes, every rank reads them and keeps its part.

C11 that also compiles as C++17.
*/
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include <assert.h>
#include <dirent.h>
#include "flags.h"
#include "gpt2.h"
#include "shards.h"

#define CHECKPOINT_HEADER_BYTES 1024
#define MODEL_MAGIC 20240326
#define MODEL_FP32 3
#define MODEL_BF16 5
#define STATE_MAGIC 20261101
#define STATE_VERSION 1

typedef struct {
    int32_t magic, version, max_T, V, L, NH, C, Vp;
    int32_t zeros[248];
} ModelHeader;

typedef struct {
    int32_t magic, version, step, settings_bytes;
    uint64_t num_parameters, model_checksum;
    int32_t triggered, num_sums;
    int32_t zeros[246];
} StateHeader;

// What a state file has that most runs have not. NULL stands for none of it.
typedef struct {
    int triggered;              // see above
    int num_sums;               // 0 or 2
    float* sums[2];             // (own)
} CheckpointExtras;

// Parameters that pass through memory at a time, a multiple of 16; tests make it small.
static size_t checkpoint_piece = (size_t)1 << 20;

static_assert(sizeof(ModelHeader) == CHECKPOINT_HEADER_BYTES, "256 int32");
static_assert(sizeof(StateHeader) == CHECKPOINT_HEADER_BYTES, "256 int32");

// ---------------------------------------------------------------------------------------------
// Which checkpoints there are

static inline void checkpoint_path(char* path /* (PATH_BYTES) */, const char* directory,
                                   const char* part, int step) {
    path_format(path, "%s/%s_%08d.bin", directory, part, step);
}

// The newest checkpoint of a step below `below`, -1 if there is none.
static inline int checkpoint_newest(const char* directory, int below) {
    DIR* entries = opendir(directory);
    if (entries == NULL) { return -1; }
    int newest = -1;
    for (struct dirent* entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        int step = -1;
        char name[32];
        if (sscanf(entry->d_name, "state_%d.bin", &step) != 1 || step < 0) { continue; }
        snprintf(name, sizeof(name), "state_%08d.bin", step);
        if (strcmp(name, entry->d_name) == 0 && step < below && step > newest) { newest = step; }
    }
    closedir(entries);
    return newest;
}

// The step to begin with: that of the newest checkpoint if the run is to be resumed and there is
// one, else -1. A new run does not begin among the checkpoints of another.
static inline int checkpoint_find(const char* directory, int resume) {
    int newest = directory[0] == '\0' ? -1 : checkpoint_newest(directory, INT_MAX);
    check(resume || newest < 0, "%s holds a run with a checkpoint of step %d: -y 1 resumes it, "
          "another -o starts a new one", directory, newest);
    return newest;
}

// Deletes all but the `keep_newest` newest checkpoints (0: deletes none) and those whose step is a
// multiple of `keep_multiples` (0: none). The state file goes first: without it the model file
// counts for nothing.
static inline void checkpoint_prune(const char* directory, int keep_newest, int keep_multiples) {
    if (keep_newest == 0) { return; }
    int kept = 0;
    for (int step = checkpoint_newest(directory, INT_MAX); step >= 0;
         step = checkpoint_newest(directory, step)) {
        kept++;
        if (kept <= keep_newest || (keep_multiples > 0 && step % keep_multiples == 0)) { continue; }
        char state[PATH_BYTES], model[PATH_BYTES];
        checkpoint_path(state, directory, "state", step);
        checkpoint_path(model, directory, "model", step);
        check(remove(state) == 0, "cannot delete %s: %s", state, strerror(errno));
        check(remove(model) == 0 || errno == ENOENT, "cannot delete %s: %s", model,
              strerror(errno));
    }
}

// Like check, for what a checkpoint must be; the message says which older one is left.
static inline void checkpoint_check(int holds, const char* directory, int step,
                                    const char* damage) {
    if (holds) { return; }
    int older = checkpoint_newest(directory, step);
    check(older >= 0, "the checkpoint of step %d in %s is damaged (%s); there is no older one",
          step, directory, damage);
    check(0, "the checkpoint of step %d in %s is damaged (%s); to resume from the older one of "
          "step %d: rm %s/*_%08d.bin", step, directory, damage, older, directory, step);
}

// ---------------------------------------------------------------------------------------------
// Settings

#define SETTINGS_RECIPE "= -p "
#define SETTINGS_MEANING "? recipe-so-far "
#define SETTINGS_DATA "= training-data-checksum "

// The text stored in a checkpoint: every flag, what identifies the training data, and what the recipe
// has meant so far (recipe.h). '?' marks what older programs did not write. The caller frees it.
static inline char* checkpoint_settings(const Flag* flags, int count, uint64_t train_identity,
                                        const char* recipe_meaning) {
    char* text = NULL;
    size_t bytes = 0;
    FILE* memory = open_memstream(&text, &bytes);
    check(memory != NULL, "out of memory: settings of the run");
    flags_text(memory, flags, count);
    fprintf(memory, SETTINGS_DATA "%016" PRIx64 "\n", train_identity);
    fprintf(memory, SETTINGS_MEANING "%s\n", recipe_meaning);
    check(fclose(memory) == 0, "out of memory: settings of the run");
    return text;
}

// The line of `text` that begins with the same `bytes` bytes as `key`, NULL if there is none.
static inline const char* settings_find(const char* text, const char* key, size_t bytes) {
    while (text != NULL && strncmp(text, key, bytes) != 0) {
        text = strchr(text, '\n');
        if (text != NULL) { text++; }
    }
    return text;
}

// Is the line of `present` that begins with `key` in `saved`, too?
static inline int settings_equal(const char* saved, const char* present, const char* key) {
    const char* old = settings_find(saved, key, strlen(key));
    const char* line = settings_find(present, key, strlen(key));
    size_t length = line != NULL ? strcspn(line, "\n") : 0;
    return old != NULL && line != NULL && strcspn(old, "\n") == length
        && strncmp(old, line, length) == 0;
}

// The end of the message about a setting that differs, the line of which is given: what to do.
static inline const char* settings_advice(const char* line) {
    static const struct { const char* key; const char* advice; } known[] = {
        { SETTINGS_RECIPE, "; only what a recipe does from the next update on may change" },
        { SETTINGS_DATA, "; the checksum is that of the files of -i, of their names without folders and "
                         "of what is in them" },
        { "= -x ", "; a longer one is a new run: -e one of its model files, and another -o" },
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strncmp(line, known[i].key, strlen(known[i].key)) == 0) { return known[i].advice; }
    }
    return "";
}

// Each setting of this run that alters the result ('=') must have the value it was saved with. Of the
// recipe, what it has meant so far: from here on it may mean something else. Older checkpoints have
// only its name.
static inline void settings_compare(const char* saved, const char* present, const char* path) {
    int has_meaning = settings_find(saved, SETTINGS_MEANING, strlen(SETTINGS_MEANING)) != NULL;
    int same_so_far = has_meaning && settings_equal(saved, present, SETTINGS_MEANING);
    for (const char* line = present; *line != '\0'; line = strchr(line, '\n') + 1) {
        if (line[0] != '=') { continue; }
        size_t key = strcspn(line + 2, " ") + 3, length = strcspn(line, "\n");
        const char* old = settings_find(saved, line, key);
        check(old != NULL, "%s does not say which %.*s it was made with", path, (int)key - 3,
              line + 2);
        size_t old_length = strcspn(old, "\n");
        int is_recipe = strncmp(line, SETTINGS_RECIPE, strlen(SETTINGS_RECIPE)) == 0;
        int equal = old_length == length && strncmp(old, line, length) == 0;
        if (is_recipe && has_meaning) { equal = same_so_far; }
        check(equal, "%s was made with '%.*s', this run has '%.*s'; a run resumes with the settings "
              "it had%s", path, (int)old_length - 2, old + 2, (int)length - 2, line + 2,
              settings_advice(line));
    }
}

// ---------------------------------------------------------------------------------------------
// Writing

// Writes, and continues the checksum. Where there is no file, on every rank but 0, does nothing.
static inline uint64_t write_hashed(const void* from, size_t bytes, FILE* file, const char* path,
                                    uint64_t hash) {
    if (file == NULL) { return 0; }
    file_write(from, bytes, file, path);
    return fnv1a(from, bytes, hash);
}

// The same of a vector of which each rank has a part; all ranks call it. With shards NULL this
// process has all n.
static inline uint64_t write_vector(const float* own, size_t n, const Shards* shards, FILE* file,
                                    const char* path, uint64_t hash) {
    if (shards == NULL || shards->level == 0) {
        return write_hashed(own, n * sizeof(float), file, path, hash);
    }
    float* piece = (float*)xmalloc(checkpoint_piece * sizeof(float), "a piece of a checkpoint");
    Range range;
    for (range.first = 0; range.first < n; range.first += range.count) {
        range.count = n - range.first < checkpoint_piece ? n - range.first : checkpoint_piece;
        shards_collect(shards, piece, own, range, "checkpoint");
        hash = write_hashed(piece, range.count * sizeof(float), file, path, hash);
    }
    free(piece);
    return hash;
}

static inline ModelHeader model_header(const GPT2Config* config) {
    ModelHeader header;
    memset(&header, 0, sizeof(header));
    header.magic = MODEL_MAGIC;
    header.version = MODEL_FP32;
    header.max_T = config->max_T;
    header.V = config->V;
    header.L = config->L;
    header.NH = config->NH;
    header.C = config->C;
    header.Vp = config->Vp;
    return header;
}

// params, m, v (num_parameters, or what this rank owns of them), in the order of gpt2.h. All ranks
// call it; shards is NULL where there is one. The directory exists. Returns the bytes written.
static inline uint64_t checkpoint_save(const char* directory, int step, const GPT2Config* config,
                                       const float* params, const float* m, const float* v,
                                       const CheckpointExtras* extras, const Shards* shards,
                                       const char* settings) {
    ParamSpec specs[NUM_PARAMS];
    size_t num_parameters = gpt2_param_specs(specs, config);
    int writes = shards == NULL || shards->ranks->rank == 0;
    char path[PATH_BYTES];

    ModelHeader model = model_header(config);
    checkpoint_path(path, directory, "model", step);
    FILE* file = writes ? file_create(path) : NULL;
    uint64_t hash = write_hashed(&model, sizeof(model), file, path, FNV1A_START);
    hash = write_vector(params, num_parameters, shards, file, path, hash);
    uint64_t bytes = writes ? (uint64_t)ftello(file) : 0;
    if (writes) { file_commit(file, path); }

    StateHeader state;
    memset(&state, 0, sizeof(state));
    state.magic = STATE_MAGIC;
    state.version = STATE_VERSION;
    state.step = step;
    state.settings_bytes = (int32_t)strlen(settings);
    state.num_parameters = num_parameters;
    state.model_checksum = hash;
    state.triggered = extras != NULL ? extras->triggered : 0;
    state.num_sums = extras != NULL ? extras->num_sums : 0;
    checkpoint_path(path, directory, "state", step);
    file = writes ? file_create(path) : NULL;
    hash = write_hashed(&state, sizeof(state), file, path, FNV1A_START);
    hash = write_hashed(settings, strlen(settings), file, path, hash);
    hash = write_vector(m, num_parameters, shards, file, path, hash);
    hash = write_vector(v, num_parameters, shards, file, path, hash);
    for (int i = 0; i < state.num_sums; i++) {
        hash = write_vector(extras->sums[i], num_parameters, shards, file, path, hash);
    }
    write_hashed(&hash, sizeof(hash), file, path, hash);
    if (!writes) { return 0; }
    bytes += (uint64_t)ftello(file);
    file_commit(file, path);
    return bytes;
}

// ---------------------------------------------------------------------------------------------
// Reading a model

// Opens a model file and reads its header; the caller closes it.
static inline FILE* model_open(const char* path, ModelHeader* header, GPT2Config* config) {
    FILE* file = file_open(path, "-e takes a model file or a description such as d12");
    uint64_t bytes = file_size(file, path);
    check(bytes >= CHECKPOINT_HEADER_BYTES, "%s: %" PRIu64 " bytes are too few for a model file",
          path, bytes);
    file_read(header, sizeof(*header), file, path);
    check(header->magic == MODEL_MAGIC, "%s: not a model file (magic %d, should be %d)", path,
          header->magic, MODEL_MAGIC);
    check(header->version == MODEL_FP32 || header->version == MODEL_BF16, "%s: model file of "
          "version %d; this program reads %d (FP32) and %d (BF16)", path, header->version,
          MODEL_FP32, MODEL_BF16);
    config->max_T = header->max_T;
    config->V = header->V;
    config->Vp = header->Vp;
    config->L = header->L;
    config->NH = header->NH;
    config->C = header->C;
    gpt2_config_check(config);
    check(config->Vp == (config->V + 127) / 128 * 128, "%s: vocabulary %d padded to %d; this "
          "program pads to a multiple of 128", path, config->V, config->Vp);
    ParamSpec specs[NUM_PARAMS];
    uint64_t size = header->version == MODEL_FP32 ? sizeof(float) : sizeof(uint16_t);
    uint64_t expected = CHECKPOINT_HEADER_BYTES + size * gpt2_param_specs(specs, config);
    check(bytes == expected, "%s: %" PRIu64 " bytes, but the model that its header describes takes "
          "%" PRIu64 "; it was cut off or damaged", path, bytes, expected);
    return file;
}

// The configuration of the model in a file.
static inline GPT2Config checkpoint_read_config(const char* path) {
    ModelHeader header;
    GPT2Config config;
    fclose(model_open(path, &header, &config));
    return config;
}

static inline uint64_t read_hashed(void* to, size_t bytes, FILE* file, const char* path,
                                   uint64_t hash) {
    file_read(to, bytes, file, path);
    return fnv1a(to, bytes, hash);
}

// The elements `own` of a vector of n in a file, which has them in FP32 or (half) in BF16.
// Continues the checksum with all n.
static inline uint64_t read_vector(float* values /* (own.count) */, size_t n, Range own, int half,
                                   FILE* file, const char* path, uint64_t hash) {
    float* piece = (float*)xmalloc(checkpoint_piece * sizeof(float), "a piece of a checkpoint");
    Range range;
    for (range.first = 0; range.first < n; range.first += range.count) {
        range.count = n - range.first < checkpoint_piece ? n - range.first : checkpoint_piece;
        Range here = range_overlap(range, own);
        float* to = values + (here.first - own.first);
        size_t skip = here.first - range.first;
        hash = read_hashed(piece, range.count * (half ? sizeof(uint16_t) : sizeof(float)), file,
                           path, hash);
        for (size_t i = 0; i < here.count; i++) {
            to[i] = half ? bf16_to_float(((const uint16_t*)piece)[skip + i]) : piece[skip + i];
        }
    }
    free(piece);
    return hash;
}

// The elements `own` of the parameters from a model file, BF16 widened to FP32. Returns a checksum
// of all of them.
static inline uint64_t checkpoint_load_model(float* params, const char* path, Range own) {
    ModelHeader header;
    GPT2Config config;
    ParamSpec specs[NUM_PARAMS];
    FILE* file = model_open(path, &header, &config);
    uint64_t hash = read_vector(params, gpt2_param_specs(specs, &config), own,
                                header.version == MODEL_BF16, file, path, FNV1A_START);
    fclose(file);
    return hash;
}

// ---------------------------------------------------------------------------------------------
// Resuming

// m, v and sums (own) of num_parameters each, from the state file. Returns the checksum that the
// model file must have.
static inline uint64_t checkpoint_load_state(const char* directory, int step, size_t num_parameters,
                                             float* m, float* v, CheckpointExtras* extras,
                                             Range own, const char* settings) {
    char path[PATH_BYTES];
    checkpoint_path(path, directory, "state", step);
    FILE* file = file_open(path, "-o names the directory of the run to resume");
    uint64_t size = file_size(file, path);
    StateHeader state;
    checkpoint_check(size >= sizeof(state), directory, step, "its state file is too short");
    uint64_t hash = read_hashed(&state, sizeof(state), file, path, FNV1A_START);
    checkpoint_check(state.magic == STATE_MAGIC && state.version == STATE_VERSION
                     && state.step == step, directory, step,
                     "its state file has a wrong magic, version or step");
    size_t settings_bytes = (uint32_t)state.settings_bytes;
    int num_sums = extras != NULL ? extras->num_sums : 0;
    uint64_t vectors = 2 + (uint64_t)(uint32_t)state.num_sums;
    uint64_t expected = sizeof(state) + settings_bytes
                      + vectors * sizeof(float) * state.num_parameters + sizeof(hash);
    checkpoint_check(size == expected, directory, step, "its state file has a wrong size");

    char* saved = (char*)xcalloc(settings_bytes + 1, "settings of a checkpoint");
    hash = read_hashed(saved, settings_bytes, file, path, hash);
    settings_compare(saved, settings, path);
    free(saved);
    check(state.num_parameters == num_parameters, "%s has %" PRIu64 " parameters, the model of "
          "this run %zu", path, state.num_parameters, num_parameters);
    hash = read_vector(m, num_parameters, own, 0, file, path, hash);
    hash = read_vector(v, num_parameters, own, 0, file, path, hash);
    check(state.num_sums == num_sums, "%s has %d sums of OsciReset, this run needs %d", path,
          state.num_sums, num_sums);
    for (int i = 0; i < num_sums; i++) {
        hash = read_vector(extras->sums[i], num_parameters, own, 0, file, path, hash);
    }
    if (extras != NULL) { extras->triggered = state.triggered; }
    uint64_t stored;
    file_read(&stored, sizeof(stored), file, path);
    fclose(file);
    checkpoint_check(hash == stored, directory, step, "the checksum of its state file is wrong");
    return state.model_checksum;
}

// Fills params, m, v and extras with the elements `own` of the checkpoint of `step`, after checking
// that it belongs to a run with these settings; how many sums it must have, extras says. Each byte
// of both files is covered by a checksum; returns that of the model.
static inline uint64_t checkpoint_load(const char* directory, int step, const GPT2Config* config,
                                   float* params, float* m, float* v, CheckpointExtras* extras,
                                   Range own, const char* settings) {
    ParamSpec specs[NUM_PARAMS];
    size_t num_parameters = gpt2_param_specs(specs, config);
    size_t bytes = num_parameters * sizeof(float);
    uint64_t checksum = checkpoint_load_state(directory, step, num_parameters, m, v, extras, own,
                                              settings);

    char path[PATH_BYTES];
    checkpoint_path(path, directory, "model", step);
    FILE* file = fopen(path, "rb");
    checkpoint_check(file != NULL, directory, step, "its model file cannot be opened");
    checkpoint_check(file_size(file, path) == sizeof(ModelHeader) + bytes, directory, step,
                     "its model file has a wrong size");
    ModelHeader header, expected = model_header(config);
    uint64_t hash = read_hashed(&header, sizeof(header), file, path, FNV1A_START);
    hash = read_vector(params, num_parameters, own, 0, file, path, hash);
    fclose(file);
    checkpoint_check(hash == checksum, directory, step, "the checksum of its model file is wrong");
    check(memcmp(&header, &expected, sizeof(header)) == 0, "%s is not of the shape of this run's "
          "model", path);
    return checksum;
}

#endif
