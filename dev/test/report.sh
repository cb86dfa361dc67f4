# shellcheck shell=bash
# What a test in bash prints: one line per check, in the form of report.h. To be sourced.

failures=0

# report STATUS NAME TEXT: status 0 is good
report() {
    if [ "$1" -eq 0 ]; then
        printf 'ok   %-34s %s\n' "$2" "$3"
    else
        printf 'FAIL %-34s %s\n' "$2" "$3"
        failures=$((failures + 1))
    fi
}
