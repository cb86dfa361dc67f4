/*
What a test program prints: one line per check,

    ok   e2m1 nearest      2000130 values, 0 differ
    FAIL e4m3 nearest      2005052 values, 3 differ; first: 0x1.08p+3 gives 0x52 instead of 0x51
    skip cuda headers: no CUDA toolkit

and its exit status: 0 if no line says FAIL. C11, C++ and CUDA; included once per program.
*/
#ifndef TEST_REPORT_H
#define TEST_REPORT_H

#include <stdarg.h>
#include <stdio.h>

static int report_failures = 0;

// One check. `good` decides; the format and its values tell what was looked at, or what was found.
static inline void report(int good, const char* name, const char* format, ...) {
    va_list values;
    va_start(values, format);
    printf("%s %-28s ", good ? "ok  " : "FAIL", name);
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    va_end(values);
    report_failures += !good;
}

// A check that this machine cannot make, and why.
static inline void report_skip(const char* name, const char* why) {
    printf("skip %s: %s\n", name, why);
}

// The exit status of main.
static inline int report_status(void) { return report_failures > 0; }

#endif
