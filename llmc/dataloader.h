/*
Reads rows of tokens for training and validation, in an order that is a function, not a state.

The files ("shards") have llm.c's format: 256 int32 of header (magic 20240520, version 1, number of
tokens), then the tokens as uint16; data/README.md draws it. Row r of a shard is the T tokens from
r*T on; its targets are the same shifted by one, so a row needs T+1 tokens and the next one begins
at its last. What is left at the end of a shard, less than a row, is not used.

    shard 0   |--- row 0 ---|--- row 1 ---|--- row 2 ---|- |
    shard 1   |--- row 3 ---|--- row 4 ---|-----|

A run visits rows number 0, 1, 2, ... of an endless sequence: epoch after epoch, each epoch being
all rows in an order of its own. `dataloader_batch` computes which row of which shard that is. There
is no position to store: who knows the number of the step resumes exactly, and neither the
micro-batch size nor the number of ranks changes what a step sees.

C11 that also compiles as C++17.
*/
#ifndef LLMC_DATALOADER_H
#define LLMC_DATALOADER_H

#include <glob.h>
#include <inttypes.h>
#include <sys/mman.h>
#include "random.h"
#include "utils.h"

#define TOKENS_MAGIC 20240520
#define TOKENS_VERSION 1
#define TOKENS_HEADER_BYTES 1024        // 256 int32: magic, version, number of tokens, zeros

typedef struct {
    char* path;
    const unsigned char* file;          // the whole file, mapped
    const uint16_t* tokens;             // (num_tokens), behind the header
    uint64_t num_tokens;
    uint64_t num_rows;
} Shard;

typedef struct {
    int T, V;
    int shuffle;                        // 0: rows in the order of the files
    uint64_t seed;                      // of the order
    int num_shards;
    Shard* shards;                      // (num_shards), by name
    uint64_t num_tokens, num_rows;      // of all shards
    uint64_t identity;                  // checksum that tells one data set from another
} DataLoader;

// ---------------------------------------------------------------------------------------------
// The order of an epoch

// Where `row` of 0..num_rows-1 stands in epoch `epoch`: a permutation that needs no memory. A
// Feistel network permutes the numbers of 2 * half_bits bits whatever its round function is: each
// round adds a random function of one half to the other half, which the same round would undo. That
// range is up to four times larger than num_rows; results outside are sent through again until they
// fall inside ("cycle walking"), and a permutation restricted in this way is one still.
static inline uint64_t shuffle_row(uint64_t row, uint64_t num_rows, uint64_t seed, uint32_t epoch) {
    int half_bits = 1;
    while (num_rows > (uint64_t)1 << (2 * half_bits)) { half_bits++; }
    uint32_t mask = (uint32_t)(((uint64_t)1 << half_bits) - 1);
    do {
        uint32_t left = (uint32_t)(row >> half_bits), right = (uint32_t)row & mask;
        for (uint32_t round = 0; round < 8; round++) {
            uint32_t random = philox4x32(seed, right, epoch, RANDOM_SHUFFLE, round).word[0];
            uint32_t mixed = left ^ (random & mask);
            left = right;
            right = mixed;
        }
        row = (uint64_t)left << half_bits | right;
    } while (row >= num_rows);
    return row;
}

// ---------------------------------------------------------------------------------------------
// Files

// Maps one file and checks that it is what its header says. Mapping means that the system reads
// pages when they are touched, and keeps them as long as memory is free.
static inline void shard_open(Shard* shard, const char* path, int T) {
    const char* remake = "make it again with a script in data/";
    FILE* file = file_open(path, "python3 data/quickstart.py makes data/quickstart_*.bin; for other"
                                 " texts see data/README.md");
    uint64_t bytes = file_size(file, path);
    check(bytes >= TOKENS_HEADER_BYTES, "%s: %" PRIu64 " bytes are too few for a token file; %s",
          path, bytes, remake);
    int32_t header[3];
    file_read(header, sizeof(header), file, path);
    check(header[0] == TOKENS_MAGIC, "%s: not a token file (magic %d, should be %d); %s", path,
          header[0], TOKENS_MAGIC, remake);
    check(header[1] == TOKENS_VERSION, "%s: token file of version %d, should be %d; %s", path,
          header[1], TOKENS_VERSION, remake);
    uint64_t expected = TOKENS_HEADER_BYTES + 2 * (uint64_t)(uint32_t)header[2];
    check(bytes == expected, "%s: %" PRIu64 " bytes, but its header announces %" PRIu64
          "; it was cut off or damaged, %s", path, bytes, expected, remake);

    shard->num_tokens = (uint32_t)header[2];
    check(shard->num_tokens > (uint64_t)T, "%s: %" PRIu64 " tokens are too few for one row of "
          "-t %d and the target of its last token; reduce -t", path, shard->num_tokens, T);
    shard->num_rows = (shard->num_tokens - 1) / (uint64_t)T;
    void* map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fileno(file), 0);
    check(map != MAP_FAILED, "cannot map %s: %s", path, strerror(errno));
    fclose(file);
    shard->file = (const unsigned char*)map;
    shard->tokens = (const uint16_t*)(shard->file + TOKENS_HEADER_BYTES);
    shard->path = (char*)xmalloc(strlen(path) + 1, "the name of a token file");
    strcpy(shard->path, path);
}

static inline uint64_t shard_bytes(const Shard* shard) {
    return TOKENS_HEADER_BYTES + 2 * shard->num_tokens;
}

// Continues a checksum with the file's name, without its directory, and its first and last 4096
// bytes. The header with the number of tokens is among them.
static inline uint64_t shard_identity(const Shard* shard, uint64_t hash) {
    const char* slash = strrchr(shard->path, '/');
    const char* name = slash == NULL ? shard->path : slash + 1;
    uint64_t bytes = shard_bytes(shard);
    size_t sample = bytes < 4096 ? (size_t)bytes : 4096;
    hash = fnv1a(name, strlen(name), hash);
    hash = fnv1a(shard->file, sample, hash);
    return fnv1a(shard->file + bytes - sample, sample, hash);
}

// pattern names one file or several ("data/fineweb_train_*.bin").
static inline void dataloader_open(DataLoader* loader, const char* pattern, int T, int V,
                                   int shuffle, uint64_t seed) {
    glob_t names;
    int status = glob(pattern, GLOB_NOCHECK, NULL, &names);     // no match: the pattern itself
    check(status == 0, "cannot look for the token files %s", pattern);
    loader->T = T;
    loader->V = V;
    loader->shuffle = shuffle;
    loader->seed = seed;
    loader->num_shards = (int)names.gl_pathc;
    loader->shards = (Shard*)xcalloc(names.gl_pathc * sizeof(Shard), "the list of token files");
    loader->num_tokens = 0;
    loader->num_rows = 0;
    loader->identity = FNV1A_START;
    for (int s = 0; s < loader->num_shards; s++) {
        Shard* shard = &loader->shards[s];
        shard_open(shard, names.gl_pathv[s], T);
        loader->num_tokens += shard->num_tokens;
        loader->num_rows += shard->num_rows;
        loader->identity = shard_identity(shard, loader->identity);
    }
    globfree(&names);
}

static inline void dataloader_close(DataLoader* loader) {
    for (int s = 0; s < loader->num_shards; s++) {
        Shard* shard = &loader->shards[s];
        munmap((void*)shard->file, shard_bytes(shard));
        free(shard->path);
    }
    free(loader->shards);
}

// ---------------------------------------------------------------------------------------------
// Reading

// One row: inputs and targets (T) each.
static inline void dataloader_row(const DataLoader* loader, int* inputs, int* targets,
                                  uint64_t row) {
    const Shard* shard = loader->shards;
    while (row >= shard->num_rows) {
        row -= shard->num_rows;
        shard++;
    }
    const uint16_t* tokens = shard->tokens + row * (uint64_t)loader->T;     // (T+1)
    for (int t = 0; t <= loader->T; t++) {
        check(tokens[t] < loader->V, "%s: token %d at position %" PRIu64 " is not below the "
              "vocabulary size %d of the model; choose another model (-e) or other data",
              shard->path, tokens[t], row * (uint64_t)loader->T + (uint64_t)t, loader->V);
        if (t < loader->T) { inputs[t] = tokens[t]; }
        if (t > 0) { targets[t - 1] = tokens[t]; }
    }
}

// inputs and targets (B,T): B rows of the run's endless sequence, from number first_row on.
static inline void dataloader_batch(const DataLoader* loader, int* inputs, int* targets,
                                    uint64_t first_row, int B) {
    check((uint64_t)B <= loader->num_rows, "%s%s: %" PRIu64 " rows of -t %d tokens are fewer than "
          "one batch of -b %d; reduce -b or -t", loader->shards[0].path,
          loader->num_shards > 1 ? " and others" : "", loader->num_rows, loader->T, B);
    for (int b = 0; b < B; b++) {
        uint64_t epoch = (first_row + (uint64_t)b) / loader->num_rows;
        uint64_t row = (first_row + (uint64_t)b) % loader->num_rows;
        if (loader->shuffle) {
            row = shuffle_row(row, loader->num_rows, loader->seed, (uint32_t)epoch);
        }
        size_t bt = (size_t)b * (size_t)loader->T;
        dataloader_row(loader, inputs + bt, targets + bt, row);
    }
}

#endif
