# A fresh machine needs python3 (3.10 or newer), make and a way to PyPI; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help demo test lint types engines fuzz fixtures clean

help:
	@echo "make demo     convert a real llm-compressor checkpoint for LMDeploy, verify and show it"
	@echo "make test     the whole suite"
	@echo "make lint     ruff"
	@echo "make types    mypy --strict"
	@echo "make fuzz     the fuzzer on hostile checkpoints, FUZZ_SECONDS=3600"
	@echo "make engines  build the real engines' environments and prove our outputs in them"

# torch first and pinned: pip then finds it in place and brings no CUDA packages along.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

DEMO := $(or $(TMPDIR),/tmp)/qbridge-demo
SRC := fixtures/compressed_tensors/llama_w8a8/model

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/qbridge inspect $(SRC)
	$(BIN)/qbridge convert $(SRC) $(DEMO) --from llm-compressor --to lmdeploy
	$(BIN)/qbridge verify $(SRC) $(DEMO)
	$(BIN)/qbridge inspect $(DEMO)

test: $(STAMP)
	$(BIN)/pytest -q -n 2

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

FUZZ_SECONDS ?= 3600

fuzz: $(STAMP)
	nice -n 15 $(BIN)/python tests/fuzz/run.py header $$(($(FUZZ_SECONDS) / 10))
	nice -n 15 $(BIN)/python tests/fuzz/run.py folder $$(($(FUZZ_SECONDS) * 9 / 10))

engines: $(STAMP)
	$(BIN)/python tests/engines/environments.py llm-compressor lmdeploy-0.18.0 lmdeploy-0.6.2 vllm gptqmodel
	$(BIN)/pytest -q -p no:xdist -m engine tests/engines

clean:
	rm -rf $(VENV) build dist
