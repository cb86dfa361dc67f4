#!/usr/bin/env bash
#
# Installs what building, testing and `make run` need, on Debian, Ubuntu and their relatives; on
# other systems it lists what to install. Asks of each thing whether it works, not whether a package
# is there, and touches nothing when all of it does. CUDA is never installed: that is its owner's
# choice.
#
# Exit status 0: everything is there. Not 0: something is missing, and the last lines say what.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

# OpenBLAS in its OpenMP build: a program that links with it the way the Makefile does must say so.
have_openblas() {
    local dir program status=0
    have gcc || return 1
    dir=$(find /usr/lib -maxdepth 2 -name openblas-openmp -print -quit)
    program=$(mktemp) || return 1
    printf '#include <cblas.h>\nint main(void) { return openblas_get_parallel() != OPENBLAS_OPENMP; }' |
        gcc -x c - -o "$program" ${dir:+"-L$dir" -Xlinker -rpath -Xlinker "$dir"} -lopenblas 2>/dev/null &&
        "$program" || status=1
    rm -f "$program"
    return $status
}

# MPI: a program that uses it compiles and links.
have_mpi() {
    echo '#include <mpi.h>
int main(void) { return MPI_Init(0, 0); }' | mpicc -x c - -o /dev/null 2>/dev/null
}

have_headers() { echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; }
have_gpu()  { nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; }
have_nvcc() { have nvcc || [ -x /usr/local/cuda/bin/nvcc ]; }

# need PACKAGE CHECK REASON: PACKAGE is missing if CHECK fails
packages=()
reasons=()
need() {
    local package=$1 check=$2 reason=$3
    if ! $check; then
        packages+=("$package")
        reasons+=("$(printf '    %-24s%s' "$package" "$reason")")
    fi
}

list_missing() {
    packages=()
    reasons=()
    need gcc                    "have gcc"      "compiles the C programs"
    need g++                    "have g++"      "compiles host code for nvcc, and some tests"
    need libc6-dev              have_headers    "the C library's headers"
    need make                   "have make"     "reads the Makefile"
    need libopenblas-openmp-dev have_openblas   "OpenBLAS: fast matrix products on the CPU"
    need python3                "have python3"  "runs the scripts that turn text into tokens (data/)"
    need gnuplot-nox            "have gnuplot"  "draws the loss plot"
    need libopenmpi-dev         have_mpi        "MPI: programs that run as several processes"
    need openmpi-bin            "have mpirun"   "starts them"
}

list_missing
if [ ${#packages[@]} -eq 0 ]; then
    echo "setup: everything needed is installed"
else
    echo "setup: missing on this machine, by the names of Debian's packages:"
    printf '%s\n' "${reasons[@]}"
    install=(apt-get install -y --no-install-recommends "${packages[@]}")
    if ! have apt-get; then
        echo "setup: this system has no apt-get; please install these with its own package manager" >&2
        exit 1
    fi
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! have sudo; then
            echo "setup: installing needs root, and there is no sudo; as root, run:" >&2
            echo "    apt-get update && ${install[*]}" >&2
            exit 1
        fi
        sudo=(sudo)
    fi
    echo "setup: installing them: ${sudo[*]:+sudo }${install[*]}"
    "${sudo[@]}" apt-get update -q || echo "setup: apt-get update failed; trying with the older lists" >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"
    list_missing
    if [ ${#packages[@]} -ne 0 ]; then
        echo "setup: installed, and still not working: ${packages[*]}" >&2
        exit 1
    fi
    echo "setup: done"
fi

if have_gpu && ! have_nvcc; then
    echo "setup: there is an NVIDIA GPU but no nvcc, so the CPU program will be used. For the GPU program,"
    echo "       install the CUDA toolkit 12.8 or newer (12.9 for B300 and DGX Spark):"
    echo "       https://developer.nvidia.com/cuda-downloads"
fi
