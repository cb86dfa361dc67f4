/*
Tests of the host headers: flags, settings of a run, data loader, schedules, sampler, tokenizer,
log, shards, checkpoints. No GPU, no data files; everything is written to a temporary directory.

All checks are exact, except where "statistical" is printed with the number of draws N: those allow
5 standard errors, and the draws are fixed, so the outcome is always the same.

Errors end the program, so each is provoked in a child process (`fails_with`), which must exit with
status 1 and print one line with "error:" and the expected words.

"Fails with" names a fault that was planted in the header to see the check fail.
*/
#include <float.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include "llmc/checkpoint.h"
#include "llmc/dataloader.h"
#include "llmc/flags.h"
#include "llmc/gpt2.h"
#include "llmc/logger.h"
#include "llmc/sampler.h"
#include "llmc/schedule.h"
#include "llmc/tokenizer.h"
#include "llmc/train_config.h"
#include "report.h"

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))

static char workplace[] = "/tmp/test_host.XXXXXX";
static pid_t test_process;

// Runs at every exit; those of the child processes leave the directory alone.
static void remove_workplace(void) {
    char command[64];
    snprintf(command, sizeof(command), "rm -r %s", workplace);
    if (getpid() == test_process && system(command) != 0) { printf("FAIL %s\n", command); }
}

// ---------------------------------------------------------------------------------------------
// Shared parts

// A name in the temporary directory; valid until the eighth call after this one.
static const char* in_workplace(const char* name) {
    static char paths[8][PATH_BYTES];
    static int next = 0;
    char* path = paths[next++ % 8];
    path_format(path, "%s/%s", workplace, name);
    return path;
}

static void write_file(const char* path, const void* content, size_t bytes) {
    FILE* file = fopen(path, "wb");
    check(file != NULL && fwrite(content, 1, bytes, file) == bytes && fclose(file) == 0,
          "cannot write %s", path);
}

// The file's content with a 0 behind it, NULL if there is no such file; the caller frees it.
static char* file_content(const char* path, size_t* bytes) {
    FILE* file = fopen(path, "rb");
    if (file == NULL) { return NULL; }
    *bytes = (size_t)file_size(file, path);
    char* content = (char*)xcalloc(*bytes + 1, "a file");
    file_read(content, *bytes, file, path);
    fclose(file);
    return content;
}


static int file_equals(const char* path, const char* text) {
    size_t bytes = 0;
    char* content = file_content(path, &bytes);
    int equal = content != NULL && strcmp(content, text) == 0;
    free(content);
    return equal;
}

// Runs body(argument) in a child process. Returns its exit status (-1: killed by a signal); what it
// printed to stderr, or to stdout if want_stdout, is in output.
static int run_child(void (*body)(const char*), const char* argument, int want_stdout,
                     char* output, size_t capacity) {
    int ends[2];
    check(pipe(ends) == 0, "no pipe");
    fflush(stdout);
    pid_t child = fork();
    check(child >= 0, "no child process");
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(want_stdout ? ends[1] : nowhere, STDOUT_FILENO);
        dup2(want_stdout ? nowhere : ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        body(argument);
        exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    ssize_t got;
    while ((got = read(ends[0], output + length, capacity - 1 - length)) > 0) {
        length += (size_t)got;
    }
    output[length] = '\0';
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Whether body(argument) ends with status 1 and one line that begins with "error: " and contains
// `words`. If not, says on stdout what happened.
static int fails_with(const char* words, void (*body)(const char*), const char* argument) {
    char output[4096];
    int status = run_child(body, argument, 0, output, sizeof(output));
    char* newline = strchr(output, '\n');
    int good = status == 1 && strncmp(output, "error: ", 7) == 0 && strstr(output, words) != NULL
            && newline != NULL && newline[1] == '\0';
    if (!good) {
        printf("     with '%s': status %d, wanted '%s', got: %s\n", argument, status, words,
               output);
    }
    return good;
}

static int succeeds(void (*body)(const char*), const char* argument) {
    char output[4096];
    int status = run_child(body, argument, 0, output, sizeof(output));
    if (status != 0) { printf("     with '%s': status %d, %s\n", argument, status, output); }
    return status == 0;
}

// A body and its argument that have to fail, and with which words.
typedef struct {
    const char* argument;
    const char* words;
} BadCase;

static void report_bad_cases(const char* name, void (*body)(const char*), const BadCase* cases,
                             int count) {
    int good = 0;
    for (int i = 0; i < count; i++) { good += fails_with(cases[i].words, body, cases[i].argument); }
    report(good == count, name, "%d of %d end with their message", good, count);
}

// ---------------------------------------------------------------------------------------------
// Flags

// Splits "program " + arguments at spaces and parses them into c.
static void parse(TrainConfig* c, Flag* flags, const char* arguments) {
    static char copy[1024];
    static char* argv[64];
    int argc = 0;
    snprintf(copy, sizeof(copy), "program %s", arguments);
    for (char* word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    *c = train_config_defaults();
    train_config_flags(c, flags);
    flags_parse(flags, TRAIN_NUM_FLAGS, argc, argv);
}

static void parse_and_check(const char* arguments) {
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, arguments);
    train_config_check(&c, 1);
}

static void set_batch_size(const char* value) {
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, "");
    for (int i = 0; i < TRAIN_NUM_FLAGS; i++) {
        if (strcmp(flags[i].name, "-b") == 0) { flag_set(&flags[i], value); }
    }
}

// Fails with: 'l' read into an int; strtoull always in base 10 (the program then ends here).
static void test_flag_values(void) {
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, "-b 8 -t 64 -d 1024 -l 2.5e-4 -vt 5000000000 -seed 0xFFFFFFFFFFFFFFFF "
          "-o runs/a -x -1 -y 1");
    report(c.B == 8 && c.T == 64 && c.total_batch == 1024 && c.learning_rate == 2.5e-4f
           && c.val_tokens == 5000000000 && c.seed == UINT64_MAX && c.num_steps == -1
           && strcmp(c.output_dir, "runs/a") == 0 && c.resume == 1 && c.weight_decay == 0.1f
           && train_config_micro_steps(&c, 1) == 2, "flags values",
           "int, int64, uint64, float and text arrive; the others keep their default");
}

// Fails with: leftover characters ignored, as atoi does; a lower or an upper limit not compared;
// the range of an int not compared; ERANGE ignored; "-1" given to strtoull; isfinite missing; the
// search for an unknown, repeated or incomplete flag missing; each check of train_config_check
// removed.
static void test_flag_errors(void) {
    static const BadCase cases[] = {
        { "-b 8x", "-b 8x: not an integer" },
        { "-b 1.5", "-b 1.5: not an integer" },
        { "-b eight", "not an integer" },
        { "-b 0", "-b 0: must be from 1 to" },
        { "-b -4", "-b -4: must be from 1 to" },
        { "-v -1", "-v -1: must be from 0 to" },
        { "-y 2", "-y 2: must be from 0 to 1" },
        { "-q 1.5", "-q 1.5: must be from 0 to 1" },
        { "-b 99999999999", "-b 99999999999: too large" },
        { "-vt 99999999999999999999", "too large" },
        { "-seed -1", "-seed -1: not a non-negative integer" },
        { "-seed 0x1ffffffffffffffff", "too large" },
        { "-seed 0xzz", "not a non-negative integer" },
        { "-l nan", "-l nan: not a number" },
        { "-l inf", "-l inf: not a number" },
        { "-l 1e99", "-l 1e99" },
        { "-l 1e-3x", "-l 1e-3x: not a number" },
        { "-b 4 -t 64 -b 4", "-b is given twice" },
        { "-b", "-b needs a value" },
        { "-b 4 -zz 3", "unknown flag -zz" },
        { "train.bin -b 4", "unknown flag train.bin" },
        { "-b 4 -t 64 -d 1000", "-d 1000 is not a multiple of -b 4 times -t 64, 256" },
        { "-b 1048576 -t 1048576", "more than 2^31 tokens" },
        { "-k exponential", "-k exponential: no such schedule" },
        { "-x 10 -u 20", "-u 20 warmup steps are more than the run's -x 10" },
        { "-g fast", "-g fast: no such path" },
        { "-t 64 -vt 10", "-vt 10 validation tokens are less than one row" },
        { "-t 32 -s 10", "-sn 64 tokens of text do not fit" },
        { "-n 10", "-o DIR has to say where" },
        { "-y 1", "-o DIR has to say which" },
        { "-o a -nk 3", "-n asks for none" },
        { "-z 3", "-z 3: must be from 0 to 2" },
        { "-amax both", "-amax both: there are global and local" },
    };
    report_bad_cases("flags errors", parse_and_check, cases, COUNT(cases));
    // no command line split at spaces can give these. Fails with: is_number always 1
    report(fails_with("-b : not an integer", set_batch_size, "")
           && fails_with("-b  8: not an integer", set_batch_size, " 8"), "flags, spaces",
           "neither nothing nor a space begins a number");
    // Fails with: the line about underflow removed
    report(succeeds(parse_and_check, "")
           && succeeds(parse_and_check, "-v 0 -s 0 -n 0 -t 32 -l 1e-44"), "flags that are fine",
           "defaults; 0 for off; a denormal number");
}

// Fails with: exit status 1; flags set before -h is looked for (the default of -b is then 7).
static void test_flag_help(void) {
    char output[16384];
    int status = run_child(parse_and_check, "-b 7 -h", 1, output, sizeof(output));
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, "");
    int named = 0;
    for (int i = 0; i < TRAIN_NUM_FLAGS; i++) {
        char start[16];
        snprintf(start, sizeof(start), "\n  %-6s ", flags[i].name);
        named += strstr(output, start) != NULL && strstr(output, flags[i].help) != NULL;
    }
    report(status == 0 && named == TRAIN_NUM_FLAGS && strstr(output, "\n  -b     4 ") != NULL,
           "flags help", "status 0, %d of %d flags, with their defaults", named, TRAIN_NUM_FLAGS);
}

// What is printed is read back to the same value. Fails with: floats of six digits; the marks of
// flags_text exchanged.
static void test_flag_text(void) {
    TrainConfig c, again;
    Flag flags[TRAIN_NUM_FLAGS], flags_again[TRAIN_NUM_FLAGS];
    parse(&c, flags, "-l 3.3333333e-4 -q 0.1 -c 0.33333334 -seed 18446744073709551615 "
          "-vt 123456789012");
    again = train_config_defaults();
    train_config_flags(&again, flags_again);
    char* text = checkpoint_settings(flags, TRAIN_NUM_FLAGS, 7, "X=nvfp4");
    int rows = 0, equal_rows = 0;
    char* next = text;
    for (int i = 0; i < TRAIN_NUM_FLAGS; i++) {
        char* line = next;
        next = strchr(line, '\n') + 1;
        next[-1] = '\0';
        char* value = strchr(line + 2, ' ') + 1;
        flag_set(&flags_again[i], value);
        rows += strncmp(line + 2, flags[i].name, strlen(flags[i].name)) == 0;
        equal_rows += (line[0] == '=') == flags[i].alters_result;
    }
    report(rows == TRAIN_NUM_FLAGS && equal_rows == rows && again.learning_rate == c.learning_rate
           && again.final_fraction == c.final_fraction && again.weight_decay == c.weight_decay
           && again.seed == c.seed && again.val_tokens == c.val_tokens
           && strcmp(next, "= training-data-checksum 0000000000000007\n"
                           "? recipe-so-far X=nvfp4\n") == 0,
           "flags as text", "%d lines read back to the same values", rows);
    free(text);
}

// ---------------------------------------------------------------------------------------------
// Data loader

// Writes a token file; token i is first + i*step modulo 65536.
static void write_tokens(const char* path, int count, int first, int step) {
    size_t bytes = TOKENS_HEADER_BYTES + 2 * (size_t)count;
    char* file = (char*)xcalloc(bytes, "a token file");
    int32_t header[3] = { TOKENS_MAGIC, TOKENS_VERSION, count };
    memcpy(file, header, sizeof(header));
    for (int i = 0; i < count; i++) {
        uint16_t token = (uint16_t)(first + i * step);
        memcpy(file + TOKENS_HEADER_BYTES + 2 * (size_t)i, &token, 2);
    }
    write_file(path, file, bytes);
    free(file);
}

static int compare_uint64(const void* a, const void* b) {
    uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
    return (x > y) - (x < y);
}

// Fails with: `row > num_rows` as the end of cycle-walking; row cut to 32 bits; epoch left out of
// the counter; seed left out.
static void test_shuffle(void) {
    const uint64_t sizes[] = { 1, 2, 3, 4, 5, 16, 17, 1000, 4096, 65537 };
    int permutations = 0, wanted = 0;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (uint32_t epoch = 0; epoch < 3; epoch++) {
            char* seen = (char*)xcalloc(sizes[s], "rows");
            uint64_t distinct = 0;
            for (uint64_t row = 0; row < sizes[s]; row++) {
                uint64_t to = shuffle_row(row, sizes[s], 1337, epoch);
                if (to < sizes[s] && !seen[to]) { distinct++; seen[to] = 1; }
            }
            permutations += distinct == sizes[s];
            wanted++;
            free(seen);
        }
    }
    report(permutations == wanted, "shuffle permutes", "%d of %d epochs visit every row once",
           permutations, wanted);

    const uint64_t large = 5000000017u, looked_at = 100000;     // more than 32 bits
    uint64_t* rows = (uint64_t*)xmalloc(looked_at * sizeof(uint64_t), "rows");
    for (uint64_t i = 0; i < looked_at; i++) { rows[i] = shuffle_row(large - 1 - i, large, 1, 0); }
    qsort(rows, looked_at, sizeof(uint64_t), compare_uint64);
    uint64_t distinct = 1, above = rows[looked_at - 1] > large / 10 * 9;
    for (uint64_t i = 1; i < looked_at; i++) { distinct += rows[i] != rows[i - 1]; }
    report(distinct == looked_at && above && rows[looked_at - 1] < large, "shuffle of 5e9 rows",
           "%" PRIu64 " rows, all different", distinct);
    free(rows);

    uint64_t same_epoch = 0, same_seed = 0;
    for (uint64_t row = 0; row < 1000; row++) {
        same_epoch += shuffle_row(row, 1000, 1, 0) == shuffle_row(row, 1000, 1, 1);
        same_seed += shuffle_row(row, 1000, 1, 0) == shuffle_row(row, 1000, 2, 0);
    }
    report(same_epoch < 10 && same_seed < 10, "shuffle depends",
           "of 1000 rows %" PRIu64 " stay in the next epoch, %" PRIu64 " with another seed",
           same_epoch, same_seed);
}

// Every row is as likely at every place: 5 rows, 5 places, 25 counts over N epochs.
// Fails with: 2 rounds.
static void test_shuffle_uniform(void) {
    const int N = 20000;
    int counts[5][5] = { { 0 } };
    for (int epoch = 0; epoch < N; epoch++) {
        for (uint64_t row = 0; row < 5; row++) {
            counts[row][shuffle_row(row, 5, 99, (uint32_t)epoch)]++;
        }
    }
    double worst = 0.0;
    for (int i = 0; i < 25; i++) {
        double error = fabs(counts[i / 5][i % 5] - N * 0.2) / sqrt(N * 0.2 * 0.8);
        worst = error > worst ? error : worst;
    }
    report(worst < 5.0, "shuffle is fair",
           "statistical, N = %d, worst of 25 counts %.1f standard errors", N, worst);
}

enum { ROW_T = 8, ROWS = 12 + 6 + 3 };      // of the three shards below

static void open_three_shards(DataLoader* loader, int shuffle, uint64_t seed) {
    write_tokens(in_workplace("shard_0.bin"), 12 * ROW_T + 1, 0, 1);        // exactly 12 rows
    write_tokens(in_workplace("shard_1.bin"), 7 * ROW_T, 1000, 1);          // 6 rows, 7 tokens left
    write_tokens(in_workplace("shard_2.bin"), 3 * ROW_T + 3, 2000, 1);      // 3 rows, 2 tokens left
    dataloader_open(loader, in_workplace("shard_*.bin"), ROW_T, 3000, shuffle, seed);
}

// Fails with: rows counted as num_tokens / T (shard 1 reads beyond its end); row offset r*(T+1);
// targets not shifted; `row > num_rows` when walking the shards.
static void test_loader_rows(void) {
    DataLoader loader;
    open_three_shards(&loader, 0, 0);
    int inputs[ROW_T], targets[ROW_T], wrong = 0;
    for (int row = 0; row < ROWS; row++) {
        int first = row < 12 ? row * ROW_T : row < 18 ? 1000 + (row - 12) * ROW_T
                                                     : 2000 + (row - 18) * ROW_T;
        dataloader_batch(&loader, inputs, targets, (uint64_t)row, 1);
        for (int t = 0; t < ROW_T; t++) {
            wrong += inputs[t] != first + t;
            wrong += targets[t] != first + t + 1;
        }
    }
    report(wrong == 0 && loader.num_rows == ROWS
           && loader.num_tokens == 12 * ROW_T + 1 + 7 * ROW_T + 3 * ROW_T + 3,
           "loader unequal shards", "%d rows of 3 files in order, %d tokens wrong", ROWS, wrong);
    dataloader_close(&loader);
}

// Three epochs read one row at a time, then in batches of other sizes, then from the middle by a
// loader that was just opened. Fails with: epoch of the batch's first row used for all its rows.
static void test_loader_order(void) {
    enum { EPOCHS = 3, TOTAL = EPOCHS * ROWS };
    DataLoader loader;
    open_three_shards(&loader, 1, 5);
    static int inputs[TOTAL * ROW_T], targets[TOTAL * ROW_T];
    static int batch_inputs[TOTAL * ROW_T], batch_targets[TOTAL * ROW_T];
    for (int row = 0; row < TOTAL; row++) {
        dataloader_batch(&loader, inputs + row * ROW_T, targets + row * ROW_T, (uint64_t)row, 1);
    }
    int complete = 0, ordered = 0;
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        int rows = 0, sorted = 0;
        for (int want = 0; want < ROWS; want++) {       // each row's first token appears once
            int first = want < 12 ? want * ROW_T : want < 18 ? 1000 + (want - 12) * ROW_T
                                                            : 2000 + (want - 18) * ROW_T;
            int times = 0;
            for (int row = 0; row < ROWS; row++) {
                times += inputs[(epoch * ROWS + row) * ROW_T] == first;
            }
            rows += times == 1;
            sorted += inputs[(epoch * ROWS + want) * ROW_T] == first;
        }
        complete += rows == ROWS;
        ordered += sorted == ROWS;
    }
    report(complete == EPOCHS && ordered == 0, "loader epochs",
           "%d of %d epochs have all %d rows, none in the order of the files", complete, EPOCHS,
           ROWS);

    const int sizes[] = { 2, 3, 7, 20 };
    int equal = 0;
    for (int s = 0; s < 4; s++) {
        int B = sizes[s], rows = TOTAL / B * B;
        for (int row = 0; row < rows; row += B) {
            dataloader_batch(&loader, batch_inputs + row * ROW_T, batch_targets + row * ROW_T,
                             (uint64_t)row, B);
        }
        size_t bytes = (size_t)rows * ROW_T * sizeof(int);
        equal += memcmp(inputs, batch_inputs, bytes) == 0
              && memcmp(targets, batch_targets, bytes) == 0;
    }
    report(equal == 4, "loader order and B",
           "the same rows in the same order for %d of 4 batch sizes", equal);
    dataloader_close(&loader);

    DataLoader resumed;
    open_three_shards(&resumed, 1, 5);
    int middle = ROWS + 11;
    dataloader_batch(&resumed, batch_inputs, batch_targets, (uint64_t)middle, 15);
    report(memcmp(batch_inputs, inputs + middle * ROW_T, 15 * ROW_T * sizeof(int)) == 0,
           "loader resume", "15 rows from the middle of epoch 1 on, over its end, by a new loader");
    dataloader_close(&resumed);
}

// Fails with: hashing no content; hashing the directory's name.
static void test_loader_identity(void) {
    uint64_t identity[4];
    DataLoader loader;
    open_three_shards(&loader, 1, 5);
    identity[0] = loader.identity;
    dataloader_close(&loader);
    write_tokens(in_workplace("shard_2.bin"), 3 * ROW_T + 3, 2001, 1);
    dataloader_open(&loader, in_workplace("shard_*.bin"), ROW_T, 3000, 1, 5);
    identity[1] = loader.identity;          // other tokens
    dataloader_close(&loader);
    directory_create(in_workplace("moved/here"));
    write_tokens(in_workplace("moved/here/shard_0.bin"), 12 * ROW_T + 1, 0, 1);
    write_tokens(in_workplace("moved/here/shard_1.bin"), 7 * ROW_T, 1000, 1);
    write_tokens(in_workplace("moved/here/shard_2.bin"), 3 * ROW_T + 3, 2000, 1);
    dataloader_open(&loader, in_workplace("moved/here/shard_*.bin"), ROW_T, 3000, 0, 6);
    identity[2] = loader.identity;          // the same files elsewhere
    dataloader_close(&loader);
    dataloader_open(&loader, in_workplace("moved/here/shard_[01].bin"), ROW_T, 3000, 0, 6);
    identity[3] = loader.identity;          // one file less
    dataloader_close(&loader);
    report(identity[0] != identity[1] && identity[0] == identity[2] && identity[0] != identity[3],
           "loader identity", "changes with content and files, not with their place");
}

// The largest file that the format allows: 2^31 - 1 tokens, 4 GiB. It is sparse, a few KiB on disk.
// Fails with: the row's offset in bytes computed as an int; targets not shifted.
static void test_loader_large_file(void) {
    const char* path = in_workplace("large.bin");
    const int64_t count = INT_MAX;
    write_tokens(path, 0, 0, 0);
    int file = open(path, O_WRONLY);
    int32_t header[3] = { TOKENS_MAGIC, TOKENS_VERSION, (int32_t)count };
    const uint16_t last[5] = { 11, 12, 13, 14, 15 };
    off_t end = TOKENS_HEADER_BYTES + 2 * (off_t)count;
    int written = file >= 0 && pwrite(file, header, sizeof(header), 0) == (ssize_t)sizeof(header)
               && ftruncate(file, end) == 0
               && pwrite(file, last, sizeof(last), end - 2 * 7) == (ssize_t)sizeof(last);
    if (file >= 0) { close(file); }
    if (!written) {
        report_skip("loader 4 GiB file", "this file system has no room for a sparse file of 4 GiB");
        return;
    }
    // count - 1 = 2147483646 = 2 * 1073741823, so rows of 2 tokens end exactly at the last token
    DataLoader loader;
    int inputs[4], targets[4];
    dataloader_open(&loader, path, 2, 50257, 0, 0);
    dataloader_batch(&loader, inputs, targets, loader.num_rows - 2, 2);
    // tokens from the end: 0 0 15 14 13 12 11; the last two rows are inputs 13 14 | 15 0
    report(loader.num_rows == 1073741823u && inputs[0] == 13 && targets[0] == 14 && inputs[1] == 14
           && targets[1] == 15 && inputs[2] == 15 && targets[3] == 0, "loader 4 GiB file",
           "last rows of %" PRIu64, loader.num_rows);
    dataloader_close(&loader);
    remove(path);
}

static void open_loader(const char* name) {
    DataLoader loader;
    dataloader_open(&loader, in_workplace(name), 8, 100, 1, 0);
}

static void read_loader(const char* name) {
    DataLoader loader;
    int inputs[24], targets[24];
    dataloader_open(&loader, in_workplace(name), 8, 100, 0, 0);
    dataloader_batch(&loader, inputs, targets, 0, 3);
}

// Fails with: the check in question removed, `>=` or `<=` in place of `==` for the size; glob
// without GLOB_NOCHECK; `tokens[t] <= V` or `tokens[t] < V - 1`; the last target not looked at.
static void test_loader_errors(void) {
    int32_t header[256] = { TOKENS_MAGIC, TOKENS_VERSION, 50 };
    write_file(in_workplace("empty.bin"), "", 0);
    write_file(in_workplace("header_only.bin"), header, 1024);
    write_file(in_workplace("half_header.bin"), header, 500);
    header[0] = 20240801;
    write_file(in_workplace("wrong_magic.bin"), header, 1024);
    header[0] = TOKENS_MAGIC;
    header[1] = 7;
    write_file(in_workplace("wrong_version.bin"), header, 1024);
    header[1] = TOKENS_VERSION;
    header[2] = -1;
    write_file(in_workplace("negative.bin"), header, 1024);
    write_tokens(in_workplace("short.bin"), 8, 0, 1);
    write_tokens(in_workplace("two_rows.bin"), 17, 0, 1);
    write_tokens(in_workplace("beyond.bin"), 101 + 8, 0, 1);
    write_tokens(in_workplace("longer.bin"), 50, 0, 1);
    FILE* longer = fopen(in_workplace("longer.bin"), "ab");
    fputc(0, longer);
    fclose(longer);

    static const BadCase opened[] = {
        { "missing.bin", "cannot open" },
        { "missing_*.bin", "python3 data/quickstart.py makes" },
        { "empty.bin", "0 bytes are too few for a token file" },
        { "half_header.bin", "500 bytes are too few for a token file" },
        { "header_only.bin", "1024 bytes, but its header announces 1124" },
        { "longer.bin", "1125 bytes, but its header announces 1124" },
        { "wrong_magic.bin", "not a token file (magic 20240801, should be 20240520)" },
        { "wrong_version.bin", "token file of version 7, should be 1" },
        { "negative.bin", "cut off or damaged" },
        { "short.bin", "8 tokens are too few for one row of -t 8" },
    };
    report_bad_cases("loader bad files", open_loader, opened, COUNT(opened));
    static const BadCase was_read[] = {
        { "two_rows.bin", "2 rows of -t 8 tokens are fewer than one batch of -b 3" },
    };
    report_bad_cases("loader too few rows", read_loader, was_read, 1);

    write_tokens(in_workplace("edge.bin"), 25, 75, 1);          // its last token is 99
    write_tokens(in_workplace("beyond.bin"), 25, 76, 1);        // its last token is 100
    static const BadCase beyond[] = {
        { "beyond.bin", "token 100 at position 24 is not below the vocabulary size 100" },
    };
    report_bad_cases("loader large token", read_loader, beyond, 1);
    report(succeeds(read_loader, "edge.bin"), "loader largest token", "token V - 1 is read");
}

// ---------------------------------------------------------------------------------------------
// Schedule, sampler

// Fails with: warmup from 0 (step / warmup); the decay beginning at step 0 in place of the end of
// the warmup; final_fraction ignored; wsd's decay over the last tenth, or linear; `step >=
// decay_start`, which divides 0 by 0 in a run of nothing but warmup.
static void test_schedule(void) {
    static const struct { const char* schedule; int step; double wanted; } rows[] = {
        // peak 1, final fraction 0.1, 100 steps, 20 of them warmup
        { "cosine", 0, 0.05 },    { "cosine", 19, 1.0 },     { "cosine", 20, 1.0 },
        { "cosine", 40, 0.1 + 0.9 * 0.85355339059327373 },   // half a cosine, a quarter of the way
        { "cosine", 60, 0.55 },   { "cosine", 100, 0.1 },
        { "linear", 9, 0.5 },     { "linear", 20, 1.0 },     { "linear", 60, 0.55 },
        { "linear", 100, 0.1 },   { "constant", 3, 0.2 },    { "constant", 20, 1.0 },
        { "constant", 99, 1.0 },  { "wsd", 0, 0.05 },        { "wsd", 50, 1.0 },
        { "wsd", 80, 1.0 },       { "wsd", 85, 0.1 + 0.9 * 0.5 },     // sqrt(5/20) = 1/2
        { "wsd", 100, 0.1 },
    };
    int count = COUNT(rows), good = 0;
    for (int i = 0; i < count; i++) {
        double lr = learning_rate(rows[i].schedule, rows[i].step, 100, 20, 1.0f, 0.1f);
        int equal = fabs(lr - rows[i].wanted) < 1e-6;
        if (!equal) { printf("     %s step %d: %g\n", rows[i].schedule, rows[i].step, lr); }
        good += equal;
    }
    // no warmup, nothing but warmup, no steps: the rate is still a number
    int finite = isfinite(learning_rate("cosine", 0, 0, 0, 1.0f, 0.0f))
              && isfinite(learning_rate("cosine", 10, 10, 10, 1.0f, 0.0f))
              && isfinite(learning_rate("wsd", 3, 3, 0, 1.0f, 0.0f))
              && learning_rate("cosine", 0, 10, 0, 1.0f, 0.0f) == 1.0f;
    report(good == count && finite, "schedules", "%d of %d points; short runs give numbers", good,
           count);
}

// Fails with: no subtraction of the largest logit (exp gives Inf); `target <= cumulative`, which
// picks the impossible first token at 0; the cumulative sum compared before adding.
static void test_sampler(void) {
    const float logits[5] = { 1000.0f, 1001.0f, -INFINITY, 999.0f, 1000.5f };
    const int N = 200000;
    int counts[5] = { 0 };
    double probability[5], sum = 0.0, worst = 0.0;
    for (int v = 0; v < 5; v++) { sum += exp((double)logits[v] - 1001.0); }
    for (int v = 0; v < 5; v++) { probability[v] = exp((double)logits[v] - 1001.0) / sum; }
    for (int i = 0; i < N; i++) {
        float uniform = random_uniform(philox4x32(3, (uint32_t)i, 0, RANDOM_SAMPLE, 0).word[0]);
        counts[sample_token(logits, 5, uniform)]++;
    }
    for (int v = 0; v < 5; v++) {
        double error = fabs(counts[v] - N * probability[v])
                     / sqrt(N * probability[v] * (1.0 - probability[v]) + 1e-9);
        worst = error > worst ? error : worst;
    }
    const float first_impossible[3] = { -INFINITY, 0.0f, 0.0f };
    report(worst < 5.0 && counts[2] == 0 && sample_token(first_impossible, 3, 0.0f) == 1
           && sample_token(first_impossible, 3, 0.99999994f) == 2, "sampler",
           "statistical, N = %d, worst of 5 counts %.1f standard errors; both ends of [0, 1)", N,
           worst);
}

// ---------------------------------------------------------------------------------------------
// Tokenizer

static int prints(const Tokenizer* tokenizer, const int* tokens, int count, const char* wanted) {
    char* text = NULL;
    size_t bytes = 0;
    FILE* memory = open_memstream(&text, &bytes);
    tokenizer_print(memory, tokenizer, tokens, count);
    fclose(memory);
    int equal = strcmp(text, wanted) == 0;
    if (!equal) { printf("     printed '%s' in place of '%s'\n", text, wanted); }
    free(text);
    return equal;
}

static void open_tokenizer(const char* name) {
    Tokenizer tokenizer;
    char train_data[PATH_BYTES];
    path_format(train_data, "%s/train.bin", in_workplace(name));
    tokenizer_open(&tokenizer, train_data, 50257);
}

// Fails with: 0x80 or 0 in place of 0xa0 as the smallest character of two bytes; control bytes
// taken as printable; continuation bytes not checked; `length > bytes` not checked; the length of a
// token read as a signed byte (the program then ends here).
static void test_tokenizer(void) {
    Tokenizer t;
    tokenizer_open(&t, in_workplace("train_*.bin"), 257);
    // "a", newline, tab, escape, e-acute in two bytes, a lone second byte, the control character
    // U+009B, a slash written with two bytes, a lone first byte, "A", the end of a text
    const int tokens[] = { 'a', '\n', '\t', 27, 0xc3, 0xa9, 0xa9, 0xc2, 0x9b, 0xc0, 0xaf, 0xc3, 'A',
                           256 };
    const char* text = "a\n\t\\x1b\xc3\xa9\\xa9\\xc2\\x9b\\xc0\\xaf\\xc3" "A<|endoftext|>";
    int bytes = prints(&t, tokens, COUNT(tokens), text) && t.end_of_text == 256
             && utf8_printable((const unsigned char*)"\xc3\xa9", 2) == 2
             && utf8_printable((const unsigned char*)"\xc3\xa9", 1) == 0;
    tokenizer_close(&t);
    tokenizer_open(&t, in_workplace("train.bin"), 256);
    bytes = bytes && t.end_of_text == '\n';
    tokenizer_close(&t);
    tokenizer_open(&t, in_workplace("train.bin"), 50257);
    const int ids[] = { 464, 3290, 50256 };
    int numbers = prints(&t, ids, 3, "464 3290 50256") && t.end_of_text == 50256;
    tokenizer_close(&t);
    report(bytes && numbers, "tokenizer bytes, numbers",
           "printable text as it is, the rest escaped");

    directory_create(in_workplace("bpe"));
    unsigned char file[1024 + 3 + 1 + 201 + 14];
    const int32_t header[4] = { TOKENIZER_MAGIC, TOKENIZER_VERSION, 4, 3 };
    memset(file, 0, sizeof(file));
    memcpy(file, header, sizeof(header));
    memcpy(file + 1024, "\x02he", 3);                   // token 0
    file[1024 + 3] = 0;                                 // token 1 is empty
    file[1024 + 4] = 200;                               // token 2 has 200 bytes
    memset(file + 1024 + 5, 'y', 200);
    memcpy(file + 1024 + 205, "\x0d<|endoftext|>", 14); // token 3
    write_file(in_workplace("bpe/tokenizer.bin"), file, sizeof(file));
    char wanted[300] = "he";
    memset(wanted + 2, 'y', 200);
    strcpy(wanted + 202, "he<|endoftext|>");
    const int of_file[] = { 0, 2, 1, 0, 3 };
    tokenizer_open(&t, in_workplace("bpe/train.bin"), 50257);
    report(prints(&t, of_file, 5, wanted) && t.end_of_text == 3, "tokenizer file",
           "tokens of 0 to 200 bytes");
    tokenizer_close(&t);

    directory_create(in_workplace("bpe_cut"));
    write_file(in_workplace("bpe_cut/tokenizer.bin"), file, sizeof(file) - 1);
    directory_create(in_workplace("bpe_magic"));
    file[0] ^= 1;
    write_file(in_workplace("bpe_magic/tokenizer.bin"), file, sizeof(file));
    static const BadCase cases[] = {
        { "bpe_cut", "wanted 13 bytes, got 12" },
        { "bpe_magic", "not a tokenizer file" },
    };
    report_bad_cases("tokenizer bad files", open_tokenizer, cases, 2);
}

// ---------------------------------------------------------------------------------------------
// Log

static void open_log(const char* directory) {
    Logger log;
    logger_open(&log, in_workplace(directory), -1, 0);
}

// Writes into a log while no file may grow beyond a few bytes, as on a full disk.
static void write_full_log(const char* directory) {
    struct rlimit limit = { 10, 10 };
    Logger log;
    logger_open(&log, in_workplace(directory), -1, 0);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    logger_val(&log, 1, 2.0f);
}

// Two runs that write one log.
static void open_log_again(const char* directory) {
    Logger one, other;
    logger_open(&one, in_workplace(directory), -1, 0);
    logger_val(&one, 1, 2.0f);
    logger_open(&other, in_workplace(directory), 1, 0);
}

// Fails with: `line_step <= step` when rewinding, or what a checkpoint's step ended with dropped; no
// lock; an unfinished line kept; lines without a step dropped; the older log not renamed; NaN written as
// nan; quotes, backslashes or control characters not escaped; ferror and fflush ignored.
static void test_logger(void) {
    Logger log;
    logger_open(&log, in_workplace("run/log"), -1, 0);
    logger_step(&log, 0, 5.5f, NAN, 6e-4f, 12.5, 100000.0, 210.5);
    logger_val(&log, 10, 3.25f);
    logger_step(&log, 10, 3.0f, 1.0f, 0.5f, 12.5, 8.0, NAN);
    logger_step(&log, 9, 3.5f, 1.0f, 0.5f, 12.5, 8.0, NAN);
    logger_memory(&log, (size_t)30000000000);
    logger_checkpoint(&log, 11, 1500000000, 2.5);
    logger_close(&log);
    const char* first = "{\"step\":0,\"loss\":5.5,\"norm\":null,\"lr\":0.000600000028,\"ms\":12.5,"
                        "\"tok_s\":100000,\"joules\":210.5}\n";
    const char* ninth = "{\"step\":9,\"loss\":3.5,\"norm\":1,\"lr\":0.5,\"ms\":12.5,\"tok_s\":8}\n";
    const char* tenth = "{\"step\":10,\"loss\":3,\"norm\":1,\"lr\":0.5,\"ms\":12.5,\"tok_s\":8}\n";
    const char* path = in_workplace("run/log/log.jsonl");
    const char* memory = "{\"memory\":{\"device_bytes\":30000000000}}\n";
    const char* checkpoint = "{\"step\":11,\"checkpoint\":{\"bytes\":1500000000,"
                             "\"seconds\":2.5}}\n";
    char wanted[2000];
    snprintf(wanted, sizeof(wanted), "%s{\"step\":10,\"val_loss\":3.25}\n%s%s%s%s", first, tenth,
             ninth, memory, checkpoint);
    report(file_equals(path, wanted), "log lines", "of every kind; null for NaN");

    FILE* file = fopen(path, "ab");
    fprintf(file, "{\"run\":{}}\n{\"step\":8,\"lo");      // the second line was cut off by a crash
    fclose(file);
    logger_open(&log, in_workplace("run/log"), 10, 1);
    logger_val(&log, 10, 4.0f);
    logger_close(&log);
    snprintf(wanted, sizeof(wanted), "%s%s%s{\"run\":{}}\n{\"step\":10,\"val_loss\":4}\n", first,
             ninth, memory);
    report(file_equals(path, wanted) && !file_exists(in_workplace("run/log/log.jsonl.tmp")),
           "log resume", "keeps what came before the resumed step");

    logger_open(&log, in_workplace("run/log"), 10, 0);      // a resumed run without validation
    logger_checkpoint(&log, 10, 5, 0.5);
    logger_step(&log, 10, 3.0f, 1.0f, 0.5f, 12.5, 8.0, NAN);
    logger_close(&log);
    logger_open(&log, in_workplace("run/log"), 10, 0);
    logger_close(&log);
    strcat(wanted, "{\"step\":10,\"checkpoint\":{\"bytes\":5,\"seconds\":0.5}}\n");
    report(file_equals(path, wanted), "log of a finished run", "resumed: nothing is lost");

    logger_open(&log, in_workplace("run/log"), -1, 0);
    logger_close(&log);
    report(file_equals(path, "") && file_equals(in_workplace("run/log/log.previous.jsonl"), wanted),
           "log of a new run", "begins empty, the older one is kept beside it");

    logger_open(&log, "", -1, 0);
    logger_step(&log, 0, 1.0f, 1.0f, 1.0f, 1.0, 1.0, NAN);
    logger_val(&log, 0, 1.0f);
    logger_close(&log);
    report(log.file == NULL, "log without directory", "writes nothing");

    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, "-b 8");
    c.output_dir = "a \"b\"\\\n";
    RunInfo info = { "program", "abc123", "a \"GPU\"", "nvfp4", 1, 0xffffffffffffffffu, 99, 0, 50,
                     1 };
    logger_open(&log, in_workplace("run/json"), -1, 0);
    logger_run(&log, flags, TRAIN_NUM_FLAGS, &info);
    logger_close(&log);
    size_t bytes = 0;
    char* line = file_content(in_workplace("run/json/log.jsonl"), &bytes);
    const char* end = "\"num_parameters\":99,\"first_step\":0,\"num_steps\":50}}\n";
    report(strncmp(line, "{\"run\":{\"flags\":{\"-i\":\"data/quick", 33) == 0
           && strstr(line, "\"-b\":8,") != NULL
           && strstr(line, "\"-o\":\"a \\\"b\\\"\\\\\\u000a\"") != NULL
           && strstr(line, "\"device\":\"a \\\"GPU\\\"\",\"recipe\":\"nvfp4\"") != NULL
           && strstr(line, "\"val_data\":\"ffffffffffffffff\"") != NULL
           && strcmp(line + bytes - strlen(end), end) == 0, "log of settings", "%zu bytes", bytes);
    free(line);

    write_file(in_workplace("a_file"), "x", 1);
    static const BadCase unwritable[] = {
        { "a_file", "a_file is not a directory" },
        { "a_file/below", "cannot create the directory" },
    };
    report_bad_cases("log unwritable", open_log, unwritable, 2);
    report(fails_with("cannot write", write_full_log, "run/full"), "log on a full disk",
           "is an error");
    report(fails_with("another run is writing it", open_log_again, "run/twice"), "two runs, one log",
           "the second one ends");
}

// ---------------------------------------------------------------------------------------------
// Shards

// Vectors of many sizes among 1 to 9 ranks: the parts lie side by side, cover the vector, are equal
// up to one block, and of packed ranges each rank's part holds just the elements that it owns.
// Fails with: `i / n * (size / SHARD_BLOCK)`; <= for < in ranges_before; level 0 with own = part.
static void test_shards(void) {
    long wrong = 0, checked = 0;
    for (int ranks = 1; ranks <= 9; ranks++) {
        for (size_t size = 16; size < 16 * 60; size += 16) {
            Range ranges[3] = { { 16 * (size / 64), 16 }, { 32 * (size / 64), 16 * (size / 128) },
                                { size - 16, 16 } };
            if (ranges[2].first < ranges[1].first + ranges[1].count + 16) { continue; }
            size_t sum = 0, packed = 0;
            for (int rank = 0; rank < ranks; rank++) {
                Ranks r;
                Shards s;
                memset(&r, 0, sizeof(r));
                r.size = ranks;
                r.rank = rank;
                shards_open(&s, &r, rank % 3, size);
                const size_t* cut = shards_cut(&s, ranges, 3, 160);
                size_t mine = 0;
                for (int i = 0; i < 3; i++) { mine += range_overlap(ranges[i], s.part).count; }
                size_t most = (size / 16 + (size_t)ranks - 1) / (size_t)ranks * 16;
                wrong += s.part.first != sum || s.part.count > most || s.part.count % 16 != 0
                      || cut[rank] != packed || cut[rank + 1] - cut[rank] != mine * 10
                      || s.own.count != (ranks == 1 || rank % 3 == 0 ? size : s.part.count);
                sum += s.part.count;
                packed += mine * 10;
                checked++;
                free(s.begin);
                free(s.cut);
            }
            wrong += sum != size;
        }
    }
    report(wrong == 0 && checked > 1000, "shards", "%ld parts, %ld wrong", checked, wrong);
}

// ---------------------------------------------------------------------------------------------
// Checkpoints

typedef struct {
    GPT2Config config;
    size_t n;                       // parameters
    float *params, *m, *v;          // (n) each
} State;

static char* test_settings;         // of the run that the checkpoints below belong to

// Every value differs from every other; among m are NaN and -0, which must keep their bits too.
static State state_make(uint32_t mark) {
    State s;
    ParamSpec specs[NUM_PARAMS];
    s.config = gpt2_config("layers=2,channels=32,heads=2,vocab=100,context=8", 8);
    s.n = gpt2_param_specs(specs, &s.config);
    s.params = (float*)xmalloc(3 * s.n * sizeof(float), "parameters");
    s.m = s.params + s.n;
    s.v = s.m + s.n;
    for (size_t i = 0; i < 3 * s.n; i++) { s.params[i] = (float)(i + mark); }
    s.m[0] = NAN;
    s.m[1] = -0.0f;
    return s;
}

static Range whole(const State* s) {
    Range all = { 0, s->n };
    return all;
}

static uint64_t save(const char* directory, int step) {
    State s = state_make((uint32_t)step);
    uint64_t bytes = checkpoint_save(in_workplace(directory), step, &s.config, s.params, s.m, s.v,
                                     NULL, NULL, test_settings);
    free(s.params);
    return bytes;
}

static void load_step_20(const char* directory) {
    State s = state_make(0);
    checkpoint_load(in_workplace(directory), 20, &s.config, s.params, s.m, s.v, NULL, whole(&s),
                    test_settings);
}

// Fails with: m and v exchanged when reading; file_exists true for a directory; bytes of the state
// alone returned.
static void test_checkpoint_round_trip(void) {
    directory_create(in_workplace("ckpt"));
    struct stat model_file, state_file;
    uint64_t written = save("ckpt", 10);
    report(stat(in_workplace("ckpt/model_00000010.bin"), &model_file) == 0 &&
           stat(in_workplace("ckpt/state_00000010.bin"), &state_file) == 0 &&
           written == (uint64_t)(model_file.st_size + state_file.st_size), "checkpoint bytes",
           "%" PRIu64 ", those of both files", written);
    save("ckpt", 20);
    State saved = state_make(20), loaded = state_make(77);
    checkpoint_load(in_workplace("ckpt"), 20, &loaded.config, loaded.params, loaded.m, loaded.v,
                    NULL, whole(&loaded), test_settings);
    int equal = memcmp(saved.params, loaded.params, 3 * saved.n * sizeof(float)) == 0;
    report(equal && !file_exists(in_workplace("ckpt"))
           && !file_exists(in_workplace("ckpt/model_00000020.bin.tmp"))
           && !file_exists(in_workplace("ckpt/state_00000020.bin.tmp")), "checkpoint round trip",
           "%zu parameters, m and v, to the bit", saved.n);

    // the model file alone, as -e reads it: header of llm.c, parameters right behind it
    size_t bytes = 0;
    char* file = file_content(in_workplace("ckpt/model_00000020.bin"), &bytes);
    const int32_t header[9] = { 20240326, 3, 8, 100, 2, 2, 32, 128, 0 };
    GPT2Config config = checkpoint_read_config(in_workplace("ckpt/model_00000020.bin"));
    memset(loaded.params, 0, saved.n * sizeof(float));
    checkpoint_load_model(loaded.params, in_workplace("ckpt/model_00000020.bin"), whole(&loaded));
    report(bytes == 1024 + saved.n * sizeof(float) && memcmp(file, header, sizeof(header)) == 0
           && memcmp(file + 1024, saved.params, saved.n * sizeof(float)) == 0
           && memcmp(&config, &saved.config, sizeof(config)) == 0
           && memcmp(loaded.params, saved.params, saved.n * sizeof(float)) == 0,
           "model file", "has llm.c's layout and is read back");
    free(file);
    free(saved.params);
    free(loaded.params);
}

// Fails with: the chunks after the first shifted by one element; with 4 bytes an element or a full
// last chunk the program ends here.
static void test_model_bf16(void) {
    State s = state_make(0);
    size_t bytes = 1024 + 2 * s.n;
    char* file = (char*)xcalloc(bytes, "a model file");
    const int32_t header[8] = { 20240326, 5, 8, 100, 2, 2, 32, 128 };
    memcpy(file, header, sizeof(header));
    for (size_t i = 0; i < s.n; i++) {
        uint16_t half = bf16_from_float((float)i);
        memcpy(file + 1024 + 2 * i, &half, 2);
    }
    write_file(in_workplace("bf16.bin"), file, bytes);
    checkpoint_load_model(s.params, in_workplace("bf16.bin"), whole(&s));
    size_t wrong = 0;
    for (size_t i = 0; i < s.n; i++) { wrong += s.params[i] != bf16_round((float)i); }
    report(wrong == 0, "model file in BF16", "%zu parameters, %zu differ", s.n, wrong);
    free(file);
    free(s.params);
}

static void read_model(const char* name) {
    State s = state_make(0);
    checkpoint_load_model(s.params, in_workplace(name), whole(&s));
}

// Fails with: the check in question removed.
static void test_model_errors(void) {
    size_t bytes = 0;
    char* file = file_content(in_workplace("ckpt/model_00000020.bin"), &bytes);
    int32_t* header = (int32_t*)file;
    write_file(in_workplace("m_cut.bin"), file, bytes - 4);
    write_file(in_workplace("m_long.bin"), file, bytes + 1);
    write_file(in_workplace("m_short.bin"), file, 100);
    header[0] = TOKENS_MAGIC;
    write_file(in_workplace("m_magic.bin"), file, bytes);
    header[0] = MODEL_MAGIC;
    header[1] = 4;
    write_file(in_workplace("m_version.bin"), file, bytes);
    header[1] = 3;
    header[5] = 3;
    write_file(in_workplace("m_heads.bin"), file, bytes);
    header[5] = 2;
    header[4] = -2;
    write_file(in_workplace("m_layers.bin"), file, bytes);
    header[4] = 2;
    header[7] = 100;
    write_file(in_workplace("m_padding.bin"), file, bytes);
    free(file);
    static const BadCase cases[] = {
        { "m_none.bin", "cannot open" },
        { "m_cut.bin", "it was cut off or damaged" },
        { "m_long.bin", "it was cut off or damaged" },
        { "m_short.bin", "100 bytes are too few for a model file" },
        { "m_magic.bin", "not a model file (magic 20240520, should be 20240326)" },
        { "m_version.bin", "model file of version 4" },
        { "m_heads.bin", "32 channels cannot be divided among 3 heads" },
        { "m_layers.bin", "a model needs layers" },
        { "m_padding.bin", "vocabulary 100 padded to 100" },
    };
    report_bad_cases("model bad files", read_model, cases, COUNT(cases));
}

// One changed byte anywhere in the two files must be noticed and the older checkpoint be named:
// each byte of a header, and 150 places spread over each file. Fails with: the checksum of either
// file not compared; the size of the state only compared with `>=`.
static void test_checkpoint_damage(void) {
    const char* names[] = { "ckpt/state_00000020.bin", "ckpt/model_00000020.bin" };
    int tried = 0, noticed = 0, named = 0;
    for (int f = 0; f < 2; f++) {
        const char* path = in_workplace(names[f]);
        size_t bytes = 0;
        char* file = file_content(path, &bytes);
        for (size_t at = 0; at < bytes; at += at < 48 ? 1 : bytes / 150) {
            char output[4096];
            file[at] ^= 0x10;
            write_file(path, file, bytes);
            file[at] ^= 0x10;
            noticed += run_child(load_step_20, "ckpt", 0, output, sizeof(output)) == 1;
            // a change in the settings may also be reported as a setting that differs
            named += strstr(output, "older one of step 10") != NULL
                  || strstr(output, "was made with") != NULL
                  || strstr(output, "does not say") != NULL;
            tried++;
        }
        write_file(path, file, bytes);
        free(file);
    }
    report(noticed == tried && named == tried && succeeds(load_step_20, "ckpt"),
           "checkpoint damage", "%d of %d changed bytes noticed, %d with advice", noticed, tried,
           named);
}

// Fails with: a size not compared; fopen of the model not checked.
static void test_checkpoint_cut(void) {
    const char* names[] = { "ckpt/state_00000020.bin", "ckpt/model_00000020.bin" };
    int good = 0;
    for (int f = 0; f < 2; f++) {
        const char* path = in_workplace(names[f]);
        size_t bytes = 0;
        char* file = file_content(path, &bytes);
        write_file(path, file, bytes - 1);
        good += fails_with("older one of step 10", load_step_20, "ckpt");
        write_file(path, file, bytes + 1);
        good += fails_with("older one of step 10", load_step_20, "ckpt");
        write_file(path, file, 0);
        good += fails_with("older one of step 10", load_step_20, "ckpt");
        write_file(path, file, bytes);
        free(file);
    }
    rename(in_workplace("ckpt/model_00000020.bin"), in_workplace("ckpt/aside"));
    good += fails_with("its model file cannot be opened", load_step_20, "ckpt");
    rename(in_workplace("ckpt/aside"), in_workplace("ckpt/model_00000020.bin"));
    directory_create(in_workplace("only"));
    save("only", 20);
    write_file(in_workplace("only/model_00000020.bin"), "", 0);
    good += fails_with("there is no older one", load_step_20, "only");
    report(good == 8 && succeeds(load_step_20, "ckpt"), "checkpoint cut off", "%d of 8 noticed",
           good);
}

// Files in good order that are not those of this step. Fails with: magic, version and step of the
// state, or the shape of the model, not compared.
static void test_checkpoint_wrong_files(void) {
    directory_create(in_workplace("wrong"));
    save("wrong", 10);
    save("wrong", 20);
    rename(in_workplace("wrong/state_00000010.bin"), in_workplace("wrong/state_00000020.bin"));
    rename(in_workplace("wrong/model_00000010.bin"), in_workplace("wrong/model_00000020.bin"));
    int other_step = fails_with("wrong magic, version or step", load_step_20, "wrong");

    State s = state_make(20);
    s.config.NH = 4;                    // as many parameters, but another model
    checkpoint_save(in_workplace("wrong"), 20, &s.config, s.params, s.m, s.v, NULL, NULL,
                    test_settings);
    free(s.params);
    int other_shape = fails_with("not of the shape", load_step_20, "wrong");
    report(other_step && other_shape, "checkpoint mixed up", "another step, another shape");
}

static void load_with_settings(const char* arguments) {
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    State s = state_make(0);
    parse(&c, flags, arguments);
    checkpoint_load(in_workplace("ckpt"), 20, &s.config, s.params, s.m, s.v, NULL, whole(&s),
                    checkpoint_settings(flags, TRAIN_NUM_FLAGS, 7, "X=nvfp4"));
}

static void load_other_data(const char* directory) {
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    State s = state_make(0);
    parse(&c, flags, "");
    checkpoint_load(in_workplace(directory), 20, &s.config, s.params, s.m, s.v, NULL, whole(&s),
                    checkpoint_settings(flags, TRAIN_NUM_FLAGS, 8, "X=nvfp4"));
}

static void compare_settings(const char* present) {
    settings_compare("= -gc 1\n  -o a\n= -g auto\n= -p nvfp4\n? recipe-so-far X=nvfp4\n", present,
                     "state");
}

static void compare_old_settings(const char* present) {
    settings_compare("= -p bf16\n", present, "state");
}

// Each flag in turn gets another value. Fails with: a flag marked wrongly in train_config_flags; a
// key looked for without the space behind it (-g finds -gc); only the length of a value compared,
// or all but its length; the data's checksum not marked; a line marked '?' not compared, or missed
// where it was not saved.
static void test_checkpoint_settings(void) {
    static const BadCase altering[] = {
        { "-e d24", "was made with '-e d12', this run has '-e d24'" },
        { "-g emulated", "this run has '-g emulated'" },
        { "-b 5", "was made with '-b 4', this run has '-b 5'" },
        { "-t 512", "this run has '-t 512'" },
        { "-d 8192", "this run has '-d 8192'" },
        { "-x 7", "was made with '-x -1', this run has '-x 7'" },
        { "-k wsd", "this run has '-k wsd'" },
        { "-l 1e-3", "was made with '-l 0.0006', this run has '-l 0.001'" },
        { "-u 3", "this run has '-u 3'" },
        { "-q 0.1", "this run has '-q 0.1'" },
        { "-c 0.2", "this run has '-c 0.2'" },
        { "-gc 2", "was made with '-gc 1', this run has '-gc 2'" },
        { "-seed 1", "was made with '-seed 1337', this run has '-seed 1'" },
        { "-amax local", "was made with '-amax global', this run has '-amax local'" },
    };
    const int count = COUNT(altering);
    report_bad_cases("resume, other settings", load_with_settings, altering, count);
    report(fails_with("training-data-checksum", load_other_data, "ckpt"), "resume, other data",
           "is refused");
    const char* harmless = "-i a -j b -v 5 -vt 99999 -s 3 -sn 7 -o c -n 9 -nk 2 -nm 50 -y 1 -pr 0 "
                           "-gd 0 -z 2 -rt 5 -ra host:1 -p nvfp4,all=bf16@900";
    int harmless_count = 17;
    report(succeeds(load_with_settings, harmless) && count + harmless_count == TRAIN_NUM_FLAGS,
           "resume, harmless settings", "%d flags may change, %d may not", harmless_count, count);
    report(succeeds(compare_settings, "= -g auto\n  -o b\n= -gc 1\n")
           && fails_with("does not say which -x", compare_settings, "= -x 10\n"),
           "resume, older settings", "any order; one that was not stored is an error");
    report(succeeds(compare_settings, "= -p other\n? recipe-so-far X=nvfp4\n? of-later-programs 1\n")
           && fails_with("was made with '-p nvfp4', this run has '-p other'; a run resumes with the "
                         "settings it had; only what a recipe does from the next update on",
                         compare_settings, "= -p other\n? recipe-so-far X=mxfp4\n")
           && fails_with("was made with '-p nvfp4'", compare_settings,
                         "= -p nvfp4\n? recipe-so-far X=nvfp4,tile=1\n"),
           "resume, another recipe", "if it has meant the same so far");
    report(fails_with("was made with '-p bf16', this run has '-p other'", compare_old_settings,
                      "= -p other\n? recipe-so-far X=nvfp4\n")
           && succeeds(compare_old_settings, "= -p bf16\n? recipe-so-far X=nvfp4\n"),
           "resume, older recipe", "its name is compared");
}

// What is left of the checkpoints of steps 10, 20, ..., 80 in a fresh directory.
static int prune_leaves(int keep_newest, int keep_multiples, const int* wanted, int count) {
    static int number = 0;
    char directory[32], name[64];
    snprintf(directory, sizeof(directory), "prune_%d", number++);
    directory_create(in_workplace(directory));
    for (int step = 10; step <= 80; step += 10) { save(directory, step); }
    checkpoint_prune(in_workplace(directory), keep_newest, keep_multiples);
    int good = 1;
    for (int step = 10; step <= 80; step += 10) {
        int keep = 0;
        for (int i = 0; i < count; i++) { keep = keep || wanted[i] == step; }
        snprintf(name, sizeof(name), "%s/state_%08d.bin", directory, step);
        good = good && file_exists(in_workplace(name)) == keep;
        snprintf(name, sizeof(name), "%s/model_%08d.bin", directory, step);
        good = good && file_exists(in_workplace(name)) == keep;
    }
    return good;
}

// Fails with: `kept < keep_newest`; multiples not spared; the model file left behind; no special
// case for 0.
static void test_checkpoint_prune(void) {
    const int all[] = { 10, 20, 30, 40, 50, 60, 70, 80 }, newest[] = { 70, 80 };
    const int multiples[] = { 30, 60, 70, 80 };
    report(prune_leaves(0, 0, all, 8) && prune_leaves(0, 30, all, 8)
           && prune_leaves(2, 0, newest, 2) && prune_leaves(2, 30, multiples, 4)
           && prune_leaves(9, 0, all, 8), "checkpoint prune",
           "keeps all, the newest 2, and multiples of 30");
}

static void find_in(const char* directory) { checkpoint_find(in_workplace(directory), 0); }

// Fails with: the last file found taken as the newest; a model file taken as a checkpoint; names
// not compared as a whole; no check for another run.
static void test_checkpoint_find(void) {
    directory_create(in_workplace("find"));
    int none = checkpoint_find(in_workplace("find"), 1) == -1
            && checkpoint_find(in_workplace("no_such_directory"), 1) == -1
            && checkpoint_find(in_workplace("find"), 0) == -1 && checkpoint_find("", 0) == -1;
    const char* files[] = { "find/state_00000020.bin", "find/model_00000090.bin",
                            "find/state_95.bin", "find/state_00000099.bin.tmp",
                            "find/state_000000xx.bin" };
    for (int i = 0; i < 5; i++) { write_file(in_workplace(files[i]), "", 0); }
    int newest = checkpoint_find(in_workplace("find"), 1);
    write_file(in_workplace("find/state_100000000.bin"), "", 0);
    int after = checkpoint_find(in_workplace("find"), 1);
    report(none && newest == 20 && after == 100000000, "checkpoint find",
           "the newest complete one: %d, then %d", newest, after);
    report(fails_with("-y 1 resumes it", find_in, "find"), "checkpoint of another run",
           "a new run does not begin beside it");
}

// Saves while no file may grow beyond a limit, as on a full disk: argument is directory and KiB.
static void save_on_full_disk(const char* argument) {
    char directory[64];
    int kib = 0;
    sscanf(argument, "%63s %d", directory, &kib);
    struct rlimit limit = { (rlim_t)kib * 1024, (rlim_t)kib * 1024 };
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    save(directory, 30);
}

// There is room for a part of the model (117.5 KiB), for all of it but its last buffer, or for a
// part of the state. Fails with: files written under their final name; the state written before the
// model; fwrite not checked; fflush and fclose not checked.
static void test_checkpoint_full_disk(void) {
    directory_create(in_workplace("full"));
    save("full", 20);
    int model = fails_with("cannot write", save_on_full_disk, "full 50")
             && fails_with("cannot write", save_on_full_disk, "full 117")
             && !file_exists(in_workplace("full/model_00000030.bin"))
             && !file_exists(in_workplace("full/state_00000030.bin"));
    int state = fails_with("cannot write", save_on_full_disk, "full 150")
             && file_exists(in_workplace("full/model_00000030.bin"))
             && !file_exists(in_workplace("full/state_00000030.bin"));
    report(model && state && checkpoint_find(in_workplace("full"), 1) == 20
           && succeeds(load_step_20, "full"), "checkpoint on a full disk",
           "is an error; the older checkpoint stays the newest and is good");
    save("full", 30);
    report(checkpoint_find(in_workplace("full"), 1) == 30, "checkpoint afterwards",
           "what the failure left behind does not disturb the next one");
}

// ---------------------------------------------------------------------------------------------

int main(void) {
    check(mkdtemp(workplace) != NULL, "cannot create a directory in /tmp");
    test_process = getpid();
    atexit(remove_workplace);
    TrainConfig c;
    Flag flags[TRAIN_NUM_FLAGS];
    parse(&c, flags, "");
    test_settings = checkpoint_settings(flags, TRAIN_NUM_FLAGS, 7, "X=nvfp4");

    test_flag_values();
    test_flag_errors();
    test_flag_help();
    test_flag_text();
    test_shuffle();
    test_shuffle_uniform();
    test_loader_rows();
    test_loader_order();
    test_loader_identity();
    test_loader_large_file();
    test_loader_errors();
    test_schedule();
    test_sampler();
    test_tokenizer();
    test_logger();
    test_shards();
    test_checkpoint_round_trip();
    test_model_bf16();
    test_model_errors();
    test_checkpoint_damage();
    test_checkpoint_cut();
    test_checkpoint_wrong_files();
    test_checkpoint_settings();
    test_checkpoint_prune();
    test_checkpoint_find();
    test_checkpoint_full_disk();

    free(test_settings);
    return report_status();
}
