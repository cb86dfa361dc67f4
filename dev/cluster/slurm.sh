#!/usr/bin/env bash
#
# sbatch [OPTIONS] dev/cluster/slurm.sh PROGRAM [FLAG VALUE]...
#
# Starts PROGRAM under Slurm, one rank for each task. Options of sbatch override those below:
#
#     sbatch --nodes=4 --ntasks-per-node=8 dev/cluster/slurm.sh ./train_gpt2_fp32 -e d12 -b 4 \
#         -d 524288 -z 1 -o runs/a -n 100 -y 1
#     sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 dev/cluster/slurm.sh ./train_gpt2_nvfp4 \
#         -e d12 -b 64 -t 1024 -d 4194304 -z 1 -o runs/b -n 100 -y 1
#
# The program's MPI and Slurm have to speak one language, PMIx: `srun --mpi=list` shows pmix. Where
# they do not, SLURM_MPI_TYPE=none goes without MPI, by connections between the ranks. The program
# has to be built on a machine like the nodes (-march=native). -y 1 goes on from the newest checkpoint,
# so a job that has run out of time, or has lost a node, is simply submitted again.
#
#SBATCH --job-name=train_gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --output=%x-%j.txt
set -euo pipefail

if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "usage: sbatch [OPTIONS] dev/cluster/slurm.sh PROGRAM [FLAG VALUE]..." >&2
    exit 1
fi

# Rank 0 is on the first node; the port differs between jobs that share it.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + 2 * (SLURM_JOB_ID % 10000)))      # and without MPI the next one
threads=${SLURM_CPUS_PER_TASK:-1}

# GOMP_SPINCOUNT: threads that wait for each other sleep soon, or they keep other ranks from working.
export OMP_NUM_THREADS=$threads
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

exec srun --mpi="${SLURM_MPI_TYPE:-pmix}" --cpus-per-task="$threads" --kill-on-bad-exit=1 "$@" -ra "$first:$port"
