#!/usr/bin/env bash
#
# dev/cluster/mpirun_hosts.sh HOST[,HOST]... RANKS PROGRAM [FLAG VALUE]...
#
# Starts PROGRAM with RANKS ranks on each host. The first host gets rank 0, which reads and writes
# all files. For example
#
#     dev/cluster/mpirun_hosts.sh node1,node2 4 ./train_gpt2_fp32 -e d12 -b 4 -d 524288 -z 1 -o runs/a
#
# What it needs: ssh from here to every host without a password; the same version of Open MPI on all
# of them; this directory at the same place, with the data (a shared file system, or copies). The
# cores of a host are divided among its ranks; THREADS=N gives each rank N threads instead. Where the
# hosts have several networks, NETWORK=10.0.0.0/8 says which one MPI uses, NCCL_SOCKET_IFNAME=eth1 the
# same for NCCL (all NCCL_* variables and LD_LIBRARY_PATH go to every host). PORT=N: another port for
# the watchdog, if 29400 is taken on the first host. AGENT=COMMAND: what to call in place of ssh.
#
# When the network to a host breaks, the ranks on both sides end within the timeout (-rt) and say so;
# mpirun itself may then wait many minutes for the lost host. Ctrl-C twice ends it.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '3,20s/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
hosts=$1 ranks=$2 program=$3
shift 3

IFS=, read -ra names <<< "$hosts"
slots=$(printf ",%s:$ranks" "${names[@]}")
options=(-H "${slots#,}" -np $((${#names[@]} * ranks)) --map-by slot --bind-to none)
if [ -n "${NETWORK:-}" ]; then
    options+=(--mca oob_tcp_if_include "$NETWORK" --mca btl_tcp_if_include "$NETWORK")
fi
if [ -n "${AGENT:-}" ]; then
    options+=(--mca plm_rsh_agent "$AGENT")
fi
if [ "$(id -u)" -eq 0 ]; then
    options+=(--allow-run-as-root)
fi

# GOMP_SPINCOUNT: threads that wait for each other sleep soon, or they keep other ranks from working.
threads=${THREADS:-$(($(nproc) / ranks))}
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

for name in "${!NCCL_@}" ${LD_LIBRARY_PATH:+LD_LIBRARY_PATH}; do options+=(-x "$name"); done

exec mpirun "${options[@]}" -x OMP_NUM_THREADS -x GOMP_SPINCOUNT \
    "$program" "$@" -ra "${names[0]}:${PORT:-29400}"
