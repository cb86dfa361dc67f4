/*
What every host file needs: errors, memory, files, a clock.

Errors end the program with one message and exit status 1; a library would return them. Who writes a
file that must survive a crash writes it to a temporary name and renames it: file_create,
file_write, file_commit. A reader then sees the old file or the new one, never half of either.

C11 that also compiles as C++17. POSIX (compile C with -D_POSIX_C_SOURCE=200809L).
*/
#ifndef LLMC_UTILS_H
#define LLMC_UTILS_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 4096

// ---------------------------------------------------------------------------------------------
// Errors

// check(condition, "format", values...): prints the message with file and line and exits. Never
// compiled out, unlike assert.
#define check(condition, ...)                                                       \
    do {                                                                            \
        if (!(condition)) { check_failed(__FILE__, __LINE__, __VA_ARGS__); }        \
    } while (0)

// Standard output goes first, so that the message stands below what the program printed before it.
// One write, so that the lines of programs that run together do not mix.
__attribute__((noreturn, format(printf, 3, 4)))
static inline void check_failed(const char* file, int line, const char* format, ...) {
    char message[2 * PATH_BYTES];
    va_list values;
    fflush(stdout);
    va_start(values, format);
    vsnprintf(message, sizeof(message), format, values);
    va_end(values);
    fprintf(stderr, "error: %s  (%s:%d)\n", message, file, line);
    exit(1);
}

// ---------------------------------------------------------------------------------------------
// Memory; `what` appears in the error message

static inline void* xmalloc(size_t bytes, const char* what) {
    void* memory = malloc(bytes > 0 ? bytes : 1);
    check(memory != NULL, "out of memory: %zu MiB for %s; reduce -b, -t or the model",
          bytes >> 20, what);
    return memory;
}

static inline void* xcalloc(size_t bytes, const char* what) {
    void* memory = calloc(bytes > 0 ? bytes : 1, 1);
    check(memory != NULL, "out of memory: %zu MiB for %s; reduce -b, -t or the model",
          bytes >> 20, what);
    return memory;
}

// ---------------------------------------------------------------------------------------------
// Paths

__attribute__((format(printf, 2, 3)))
static inline void path_format(char* path /* (PATH_BYTES) */, const char* format, ...) {
    va_list values;
    va_start(values, format);
    int length = vsnprintf(path, PATH_BYTES, format, values);
    va_end(values);
    check(length >= 0 && length < PATH_BYTES, "path of %d bytes is too long: %.60s...", length,
          path);
}

// The directory part of a path, "." if it has none.
static inline void path_directory(char* directory /* (PATH_BYTES) */, const char* path) {
    const char* slash = strrchr(path, '/');
    if (slash == NULL) {
        path_format(directory, ".");
    } else {
        path_format(directory, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
}

// Creates a directory and those above it; one that exists already is fine.
static inline void directory_create(const char* path) {
    char part[PATH_BYTES];
    path_format(part, "%s", path);
    for (size_t i = 1; i <= strlen(path); i++) {
        if (path[i] == '/' || path[i] == '\0') {
            part[i] = '\0';
            check(mkdir(part, 0777) == 0 || errno == EEXIST, "cannot create the directory %s: %s",
                  part, strerror(errno));
            part[i] = path[i];
        }
    }
    struct stat info;
    check(stat(path, &info) == 0 && S_ISDIR(info.st_mode), "%s is not a directory", path);
}

// ---------------------------------------------------------------------------------------------
// Reading files

// A file; a directory of that name does not count.
static inline int file_exists(const char* path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

// `hint` says what to do if the file cannot be opened.
static inline FILE* file_open(const char* path, const char* hint) {
    FILE* file = fopen(path, "rb");
    check(file != NULL, "cannot open %s: %s; %s", path, strerror(errno), hint);
    return file;
}

static inline uint64_t file_size(FILE* file, const char* path) {
    struct stat info;
    check(fstat(fileno(file), &info) == 0, "cannot read the size of %s: %s", path, strerror(errno));
    return (uint64_t)info.st_size;
}

static inline void file_read(void* to, size_t bytes, FILE* file, const char* path) {
    size_t got = fread(to, 1, bytes, file);
    check(got == bytes, "cannot read %s: wanted %zu bytes, got %zu", path, bytes, got);
}

// ---------------------------------------------------------------------------------------------
// Writing files that survive a crash

// Opens "path.tmp" for writing.
static inline FILE* file_create(const char* path) {
    char temporary[PATH_BYTES];
    path_format(temporary, "%s.tmp", path);
    FILE* file = fopen(temporary, "wb");
    check(file != NULL, "cannot write %s: %s", temporary, strerror(errno));
    return file;
}

static inline void file_write(const void* from, size_t bytes, FILE* file, const char* path) {
    size_t put = fwrite(from, 1, bytes, file);
    check(put == bytes, "cannot write %s: %s", path, strerror(errno));
}

// Gives the file its name once its bytes are on the disk. The directory is synced as well: it holds
// the name.
static inline void file_commit(FILE* file, const char* path) {
    char temporary[PATH_BYTES], directory[PATH_BYTES];
    path_format(temporary, "%s.tmp", path);
    path_directory(directory, path);
    check(fflush(file) == 0 && fsync(fileno(file)) == 0, "cannot write %s: %s", temporary,
          strerror(errno));
    check(fclose(file) == 0, "cannot write %s: %s", temporary, strerror(errno));
    check(rename(temporary, path) == 0, "cannot rename %s to %s: %s", temporary, path,
          strerror(errno));
    int descriptor = open(directory, O_RDONLY);
    check(descriptor >= 0, "cannot open the directory %s: %s", directory, strerror(errno));
    check(fsync(descriptor) == 0, "cannot sync the directory %s: %s", directory, strerror(errno));
    close(descriptor);
}

// Writes text as a JSON string, quotes included. The text is UTF-8.
static inline void json_string(FILE* to, const char* text) {
    fputc('"', to);
    for (const char* c = text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') {
            fprintf(to, "\\%c", *c);
        } else if ((unsigned char)*c < 0x20) {
            fprintf(to, "\\u%04x", (unsigned)*c);
        } else {
            fputc(*c, to);
        }
    }
    fputc('"', to);
}

// ---------------------------------------------------------------------------------------------
// Clock and checksum

// Seconds since some moment in the past; never jumps back.
static inline double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// FNV-1a, 64 bits [Fowler, Noll, Vo]: continues from `hash`, so a long text can be hashed in
// pieces.
#define FNV1A_START 0xcbf29ce484222325u

static inline uint64_t fnv1a(const void* from, size_t bytes, uint64_t hash) {
    const unsigned char* byte = (const unsigned char*)from;
    for (size_t i = 0; i < bytes; i++) { hash = (hash ^ byte[i]) * 0x100000001b3u; }
    return hash;
}

#endif
