#!/usr/bin/env bash
#
# dev/lines.sh: lines and share of comments of every source file, the longest functions, and what to
# look at. `make lines` calls it. Fails if the README does not mention a file of the root, llmc/, or
# data/, so that its file map stays true.
set -euo pipefail
cd "$(dirname "$0")/.."

LINE_LIMIT=110          # columns; the aim is 100
FUNCTION_LIMIT=60       # lines; forward, backward and main may have 120
TOP_LIMIT=120

# tracked files and new ones, not the ignored
mapfile -t files < <(git ls-files --cached --others --exclude-standard -- \
    Makefile '*.c' '*.cpp' '*.h' '*.cu' '*.cuh' '*.py' '*.sh' | sort)

awk -v line_limit=$LINE_LIMIT -v function_limit=$FUNCTION_LIMIT -v top_limit=$TOP_LIMIT '
    function file_end() {
        if (name == "") { return }
        printf "%7d  %3d %%  %s\n", lines, 100 * comments / (lines ? lines : 1), name
        total += lines
        directory = name
        if (!sub("/[^/]*$", "", directory)) { directory = "." }
        sums[directory] += lines
    }
    FNR == 1 {
        file_end()
        name = FILENAME
        is_c = name ~ /\.(c|cpp|h|cu|cuh)$/
        lines = comments = in_comment = start = 0
    }
    { lines++ }
    length($0) > line_limit {
        notes[++num_notes] = sprintf("%s:%d: %d columns", name, FNR, length($0))
    }
    # comments: whole lines only
    is_c && /^[ \t]*\/\*/      { in_comment = 1 }
    in_comment || (is_c && /^[ \t]*\/\//) || (!is_c && /^[ \t]*#/) { comments++ }
    is_c && /\*\//             { in_comment = 0 }
    # functions: from the line in the first column that holds the name to the closing brace there
    is_c && /^[a-zA-Z_].*\(/   { start = FNR; title = $0 }
    is_c && /^}/ && start {
        size = FNR - start + 1
        sub(/\(.*/, "", title)
        sub(/.*[ *]/, "", title)
        limit = title ~ /_(forward|backward)$|^main$/ ? top_limit : function_limit
        if (size > limit) {
            notes[++num_notes] = sprintf("%s:%d: %s has %d lines", name, start, title, size)
        }
        start = 0
    }
    END {
        file_end()
        print ""
        for (directory in sums) {
            printf "%7d  %s\n", sums[directory], directory | "sort -k 2"
        }
        close("sort -k 2")
        printf "%7d  altogether\n", total
        if (num_notes) { print "\nworth a look:" }
        for (i = 1; i <= num_notes; i++) { print "    " notes[i] }
    }' "${files[@]}"

missing=0
for file in "${files[@]}"; do
    case $file in
        dev/*/*) continue ;;    # the README names their directories
    esac
    if ! grep -qF "${file##*/}" README.md 2>/dev/null; then
        echo "error: README.md does not mention $file" >&2
        missing=1
    fi
done
exit $missing
