# shellcheck shell=bash disable=SC2034
# What differs from cluster to cluster. Edit this file; the batch scripts read it at the start of each job, on its first
# node, and what it exports reaches every rank.

# Modules, conda, keys of object stores: whatever the commands need.
# module load cuda/12.8
# source ~/.ltx_secrets

# How Python with this package is called by every rank.
# PYTHON=(apptainer exec --nv ltx.sif python)
PYTHON=("${LTX_PYTHON:-.venv/bin/python}")

# How it is called by the script itself, on the first node, before and after the ranks: it asks Slurm and computes nothing.
# A container needs no Slurm commands inside where this is a Python outside, as that of `make`.
HOST_PYTHON=("${LTX_HOST_PYTHON:-.venv/bin/python}")

# More words for srun, such as --container-image=... of pyxis, with PYTHON=(python) of the image. An image holds the
# packages of `make`; the repository, the data and the runs must be mounted at the paths that they have outside.
SRUN=()

# The network between nodes, where NCCL and gloo choose a wrong one (`ip -brief address` shows them).
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# Compiled kernels go to a disk of the node's own; a shared one is slow at this, and some lose files that are open.
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/ltx-$(id -un)
export TRITON_CACHE_DIR="$scratch/triton"
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
export TORCH_EXTENSIONS_DIR="$scratch/extensions"
