#!/usr/bin/env bash
#
# dev/plot.sh [-t TITLE] [-y LOW:HIGH] [-h LOSS=NAME] OUT.png RUN...: draws the losses of runs from
# their logs.
#
#     RUN     a trainer's -o directory, or LABEL=DIRECTORY; the label is else the directory's name
#     -y      the losses to show; all of them by default
#     -h      also a dotted horizontal line at LOSS, for instance the unigram entropy of the text
#
# Thin line: training loss of each step. Thick line with points: validation loss.
# Needs gnuplot (Debian: gnuplot-nox) and python3.
set -euo pipefail

usage() {
    sed -n '3,11s/^# \{0,1\}//p' "$0" >&2
    exit 1
}

title="GPT-2 training loss"
level=""
range=":"
while getopts "t:y:h:" flag; do
    case $flag in
        t) title=$OPTARG ;;
        y) range=$OPTARG ;;
        h) level=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
out=$1
shift

if ! command -v gnuplot >/dev/null; then
    echo "error: no gnuplot; install it (Debian: apt-get install gnuplot-nox) or run dev/setup.sh" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Okabe and Ito's colours: different to colour-blind readers too.
colors=(D55E00 0072B2 000000 009E73 CC79A7 E69F00 56B4E9)

# gnuplot reads \ and " inside its strings
quoted() { printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')"; }

plots=()
number=0
for run in "$@"; do
    label=$(basename "$run") directory=$run         # the name of a folder may have a = in it
    if [ ! -e "$run" ] && [[ $run == *=* ]]; then label=${run%%=*} directory=${run#*=}; fi
    python3 "$(dirname "$0")/logs.py" columns "$directory" > "$work/$number"
    color=${colors[$((number % ${#colors[@]}))]}
    plots+=("\"$work/$number\" index 0 with lines lw 1 lc rgb \"#90$color\" notitle")
    plots+=("\"$work/$number\" index 1 with linespoints lw 2 pt 7 ps 0.7 lc rgb \"#$color\" \
        title $(quoted "$label")")
    number=$((number + 1))
done
if [ -n "$level" ]; then
    plots+=("${level%%=*} with lines lw 2 dt 3 lc rgb \"#808080\" title $(quoted "${level#*=}")")
fi

{
    echo "set terminal pngcairo size 1200,800 fontscale 1.3 noenhanced"
    echo "set output $(quoted "$out.tmp")"
    echo "set title $(quoted "$title")"
    echo "set xlabel \"step\""
    echo "set ylabel \"loss in nats per token (thin: training, points: validation)\""
    echo "set yrange [$range]"
    echo "set grid lc rgb \"#dddddd\""
    echo "set key top right"
    (IFS=,; echo "plot ${plots[*]}")
} > "$work/script"
gnuplot "$work/script"
mv "$out.tmp" "$out"
