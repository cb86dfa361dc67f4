#!/usr/bin/env bash
#
# dev/test/run.sh TEST... [--skip REASON TEST...]...: runs each test before the first --skip, shows
# what it prints, adds up, and counts the others as skipped. `make test` calls it.
#
# A test prints one line for each check, beginning with "ok  ", "FAIL" or "skip" (report.h). A
# program that crashes, hangs, or checks nothing has failed.
#
# The last line is "N passed, N failed, N skipped". Exit status 0 if none failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

# Threads that wait for each other sleep soon instead of keeping the cores busy (dev/run.sh says
# why).
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

TIME_LIMIT=1200         # seconds for one test; the slowest takes about one minute on two cores

passed=0
failed=0
skipped=0
notes=()                # failures and skips, repeated at the end
output=$(mktemp) || exit 1
trap 'rm -f "$output"' EXIT

lines_with() { grep -c "^$1 " "$output"; }

fail() {
    echo "FAIL $1"
    notes+=("FAIL $1")
    failed=$((failed + 1))
}

while [ $# -gt 0 ] && [ "$1" != --skip ]; do
    test=$1
    name=${test#build/}
    shift
    echo "--- $name"
    start=$SECONDS
    timeout "$TIME_LIMIT" "$test" 2>&1 | tee "$output"
    status=${PIPESTATUS[0]}
    ok_lines=$(lines_with ok) fail_lines=$(lines_with FAIL) skip_lines=$(lines_with skip)
    passed=$((passed + ok_lines))
    failed=$((failed + fail_lines))
    skipped=$((skipped + skip_lines))
    while IFS= read -r line; do
        notes+=("$line   [$name]")
    done < <(grep -E '^(FAIL|skip) ' "$output")
    if [ "$status" -eq 124 ]; then
        fail "$name: still running after $TIME_LIMIT s"
    elif [ "$status" -ne 0 ] && [ "$fail_lines" -eq 0 ]; then
        fail "$name: ended with status $status"
    elif [ $((ok_lines + fail_lines + skip_lines)) -eq 0 ]; then
        fail "$name: checked nothing"
    fi
    echo "    ($((SECONDS - start)) s)"
done

while [ $# -gt 0 ]; do
    if [ "$1" = --skip ]; then
        reason=$2
        shift 2
        continue
    fi
    echo "skip ${1#build/}: $reason"
    notes+=("skip ${1#build/}: $reason")
    skipped=$((skipped + 1))
    shift
done

echo
if [ ${#notes[@]} -gt 0 ]; then
    echo "not passed:"
    printf '    %s\n' "${notes[@]}"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
