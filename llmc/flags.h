/*
Command-line flags. A flag is one row of a table; parsing, range checks, help, the start-up
printout, the log and the settings stored in a checkpoint all read that row, so they cannot drift
apart.

    ./program -b 8 -o runs/a        every flag takes exactly one value

Numbers must be numbers to the last character: `-b 8x` is an error, not 8. The defaults are whatever
the variables hold when the table is made.

C11 that also compiles as C++17.
*/
#ifndef LLMC_FLAGS_H
#define LLMC_FLAGS_H

#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include "utils.h"

typedef struct {
    const char* name;       // with its dash: "-b"
    char type;              // see flag_set
    void* value;            // the variable
    double low, high;       // smallest and largest allowed value; both 0: any value
    int alters_result;      // 1: a run that resumes must have the same value as before
    const char* help;
} Flag;

// ---------------------------------------------------------------------------------------------
// Values

// The shortest text that reads back to the same float; nine digits always do.
static inline int float_print(FILE* to, float value) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) { break; }
    }
    return fprintf(to, "%s", text);
}

// As text that flag_set reads back to the same value.
static inline int flag_print_value(FILE* to, const Flag* flag) {
    switch (flag->type) {
        case 'i': return fprintf(to, "%d", *(const int*)flag->value);
        case 'l': return fprintf(to, "%" PRId64, *(const int64_t*)flag->value);
        case 'u': return fprintf(to, "%" PRIu64, *(const uint64_t*)flag->value);
        case 'f': return float_print(to, *(const float*)flag->value);
        default:  return fprintf(to, "%s", *(const char* const*)flag->value);
    }
}

// The same as a string, which the caller frees.
static inline char* flag_text(const Flag* flag) {
    char* text = NULL;
    size_t bytes = 0;
    FILE* memory = open_memstream(&text, &bytes);
    check(memory != NULL, "out of memory: the value of %s", flag->name);
    flag_print_value(memory, flag);
    check(fclose(memory) == 0, "out of memory: the value of %s", flag->name);
    return text;
}

static inline void flag_set(const Flag* flag, const char* text) {
    char* end = NULL;
    double number = 0.0;
    const char* kind = "an integer";
    int is_number = !isspace((unsigned char)text[0]) && text[0] != '\0';
    errno = 0;
    switch (flag->type) {
        case 'i': {
            long long value = strtoll(text, &end, 10);
            if (value < INT_MIN || value > INT_MAX) { errno = ERANGE; }
            *(int*)flag->value = (int)value;
            number = (double)value;
        } break;
        case 'l': {
            *(int64_t*)flag->value = strtoll(text, &end, 10);
            number = (double)*(int64_t*)flag->value;
        } break;
        case 'u': {                     // decimal or 0x hexadecimal
            int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
            kind = "a non-negative integer";
            is_number = is_number && text[0] != '-';
            *(uint64_t*)flag->value = strtoull(text, &end, base);
            number = (double)*(uint64_t*)flag->value;
        } break;
        case 'f': {
            float value = strtof(text, &end);
            kind = "a number";
            is_number = is_number && isfinite(value);
            if (errno == ERANGE && fabsf(value) < 1.0f) { errno = 0; }     // underflow is no error
            *(float*)flag->value = value;
            number = (double)value;
        } break;
        case 's':
            *(const char**)flag->value = text;
            return;
        default:
            check(0, "flag %s has the unknown type '%c'", flag->name, flag->type);
    }
    check(is_number && *end == '\0', "%s %s: not %s", flag->name, text, kind);
    check(errno != ERANGE, "%s %s: too large", flag->name, text);
    check((flag->low == 0.0 && flag->high == 0.0) || (number >= flag->low && number <= flag->high),
          "%s %s: must be from %.10g to %.10g", flag->name, text, flag->low, flag->high);
}

// ---------------------------------------------------------------------------------------------
// The table's readers

static inline void flags_print(const Flag* flags, int count) {
    for (int i = 0; i < count; i++) {
        printf("  %-6s ", flags[i].name);
        int width = flag_print_value(stdout, &flags[i]);
        printf("%*s %s\n", width < 24 ? 24 - width : 0, "", flags[i].help);
    }
}

// argv holds pairs of flag and value. "-h" or "--help" in place of a flag prints the table with the
// defaults and ends the program.
static inline void flags_parse(const Flag* flags, int count, int argc, char** argv) {
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            printf("usage: %s [flag value] ...\n\n", argv[0]);
            printf("  flag   default                  meaning\n");
            flags_print(flags, count);
            exit(0);
        }
    }
    for (int i = 1; i < argc; i += 2) {
        int found = 0;
        while (found < count && strcmp(argv[i], flags[found].name) != 0) { found++; }
        check(found < count, "unknown flag %s; -h lists the flags", argv[i]);
        check(i + 1 < argc, "%s needs a value: %s", argv[i], flags[found].help);
        for (int j = 1; j < i; j += 2) {
            check(strcmp(argv[j], argv[i]) != 0, "%s is given twice", argv[i]);
        }
        flag_set(&flags[found], argv[i + 1]);
    }
}

// As members of a JSON object, without its braces: "-b":8,"-o":"runs/a"
static inline void flags_json(FILE* to, const Flag* flags, int count) {
    for (int i = 0; i < count; i++) {
        fprintf(to, "%s\"%s\":", i > 0 ? "," : "", flags[i].name);
        if (flags[i].type == 's') {
            json_string(to, *(const char* const*)flags[i].value);
        } else {
            flag_print_value(to, &flags[i]);
        }
    }
}

// One line a flag, for the checkpoint. '=' marks those that have to be equal when a run resumes:
//
//     = -b 8
//       -o runs/a
static inline void flags_text(FILE* to, const Flag* flags, int count) {
    for (int i = 0; i < count; i++) {
        fprintf(to, "%c %s ", flags[i].alters_result ? '=' : ' ', flags[i].name);
        flag_print_value(to, &flags[i]);
        fputc('\n', to);
    }
}

#endif
