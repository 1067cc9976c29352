# A fresh machine needs python3 (3.10 or newer), make and a way to PyPI; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help demo test lint types docs dist wheels sbom page engines architectures laws fuzz pins newest clean

help:
	@echo "make demo     convert a real llm-compressor checkpoint for LMDeploy, verify and show it"
	@echo "make test     the whole suite, and the seconds of each folder"
	@echo "make lint     ruff"
	@echo "make types    mypy --strict"
	@echo "make docs     the documentation site, strict, its links and its search tried"
	@echo "make dist     wheel and sdist, built twice and compared, by twine's and the schemas' checks"
	@echo "make wheels   the wheel in an empty environment: size, seconds, a conversion; PYTHONS='python3.10 python3.13'"
	@echo "make sbom     the software bill of materials and the licences of what is installed along"
	@echo "make page     pages of --report in Chromium, every control and axe-core's rules"
	@echo "make newest   the suite with the newest version of every package, and what moved"
	@echo "make pins     constraints.txt anew, from the newest versions"
	@echo "make fuzz     the fuzzer on hostile checkpoints, FUZZ_SECONDS=3600"
	@echo "make architectures  a checkpoint of every model class in every format, through the laws"
	@echo "make laws     the laws of the whole program over every fixture and made checkpoint, for every engine"
	@echo "make engines  build the real engines' environments and prove our outputs in them"

# constraints.txt pins every package, so that a clone of any age passes. torch first: pip then finds it in place and
# brings no CUDA packages along.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# pip takes the CPU build of torch where this exact version is offered; anything newer may bring CUDA along.
TORCH := torch==2.13.0

pins:
	$(PYTHON) -m venv build/pins
	build/pins/bin/pip install --quiet --disable-pip-version-check --upgrade uv
	echo "$(TORCH)" > build/pins/torch.txt
	build/pins/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-annotate --no-header \
	  --extra dev --extra docs --extra release --constraint build/pins/torch.txt pyproject.toml --output-file build/pins/constraints.txt
	(echo "# Every package of the environment, for each Python; written by: make pins"; \
	  grep -v -e '^nvidia-' -e '^cuda-' -e '^triton' build/pins/constraints.txt) > constraints.txt

NEWEST := build/newest

newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(NEWEST)/bin/python tests/house/moved.py constraints.txt
	$(NEWEST)/bin/pytest -q -n 2

# The tools of docs and releases, in an environment of their own.
TOOLS := build/tools/bin

build/tools/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/tools
	$(TOOLS)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs,release]"
	touch $@

# The date of the files in both distributions; the same tree gives the same bytes on every machine.
export SOURCE_DATE_EPOCH ?= 1764288000

dist: build/tools/.ready
	rm -rf dist build/again
	$(TOOLS)/pyproject-build --no-isolation --outdir dist .
	$(TOOLS)/pyproject-build --no-isolation --outdir build/again .
	cd dist && sha256sum *.whl *.tar.gz > ../build/again/SHA256
	cd build/again && sha256sum --check SHA256
	$(TOOLS)/twine check --strict dist/*
	$(TOOLS)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOLS)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(TOOLS)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(TOOLS)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# The site, strict; then its links, and its search for what engines print (in Chromium, where there is one).
docs: build/tools/.ready $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/mkdocs build --quiet
	SITE=$(abspath build/site) $(BIN)/pytest -q -p no:xdist tests/site

PYTHONS ?= $(PYTHON)

wheels: dist
	cd tests && $(abspath $(TOOLS))/python house/wheel_on.py $(abspath dist)/*.whl $(PYTHONS)

# What the base installation and its extra `hub` bring along: CycloneDX, and a table of licences.
sbom: build/tools/.ready
	rm -rf build/sbom && mkdir -p dist
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check -c constraints.txt ".[hub]"
	$(TOOLS)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml build/sbom/bin/python > dist/sbom.cdx.json
	$(TOOLS)/python tests/house/licences.py dist/sbom.cdx.json > dist/licences.md

DEMO := $(or $(TMPDIR),/tmp)/qbridge-demo
SRC := fixtures/compressed_tensors/llama_w8a8/model

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/qbridge inspect $(SRC)
	$(BIN)/qbridge convert $(SRC) $(DEMO) --from llm-compressor --to lmdeploy
	$(BIN)/qbridge verify $(SRC) $(DEMO)
	$(BIN)/qbridge inspect $(DEMO)

test: $(STAMP)
	$(BIN)/pytest -q -n 2 --durations=15

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

FUZZ_SECONDS ?= 3600

fuzz: $(STAMP)
	nice -n 15 $(BIN)/python tests/fuzz/run.py header $$(($(FUZZ_SECONDS) / 10))
	nice -n 15 $(BIN)/python tests/fuzz/run.py gguf $$(($(FUZZ_SECONDS) / 10))
	nice -n 15 $(BIN)/python tests/fuzz/run.py folder $$(($(FUZZ_SECONDS) * 8 / 10))

# Pages of --report in Chromium, with axe-core, which wants npm.
page: $(STAMP)
	npm install --silent --no-fund --no-audit --prefix build/axe axe-core@4
	AXE=$(abspath build/axe/node_modules/axe-core/axe.min.js) $(BIN)/pytest -q -p no:xdist tests/page

architectures: $(STAMP)
	ARCHITECTURES=all nice -n 15 $(BIN)/pytest -q -n 2 tests/architectures

LAWS := tests/journeys/test_converted_is_accepted.py \
  $(addprefix tests/commands/,test_remedies.py test_config_alone.py test_incomplete.py test_flipped_bits.py)

laws: $(STAMP)
	LAWS=all nice -n 15 $(BIN)/pytest -q -n 2 $(LAWS)

engines: $(STAMP)
	$(BIN)/python tests/engines/environments.py llm-compressor lmdeploy-0.18.0 lmdeploy-0.6.2 vllm gptqmodel sglang gguf hf2gguf llamacpp mlx ray
	$(BIN)/pytest -q -p no:xdist -m engine tests/engines

clean:
	rm -rf $(VENV) build dist
