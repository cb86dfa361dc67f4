#!/usr/bin/env bash
#
# The hashes stored in llmc/self_test_quantizers.cuh are those that a second implementation, in
# Python, computes from the specification alone. Class: exact.
#
# Faults that made it fail: one digit of one stored hash; a stored hash removed (its count).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. dev/test/report.sh

# {TENSOR,OPERAND,amax,codes,scales} without blanks, one a line
entries() { grep -o '{ TENSOR_[^}]*0x[^}]*}' | tr -d ' ' | sort; }

computed=$(dev/reference/self_test_hashes.py | entries)
stored=$(entries < llmc/self_test_quantizers.cuh)
count=$(wc -l <<< "$stored") wrong=$(comm -13 <(echo "$computed") <(echo "$stored"))
[ "$count" -eq 12 ] && [ -z "$wrong" ]
report $? "stored hashes" "$count stored, of them not computed: ${wrong:-none}"
exit $((failures > 0))
