# Quire. `make demo` and `make test` set up what they need by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The root must not be on sys.path: the folder operator/ would stand before the standard library's module.
export PYTHONSAFEPATH := 1
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help setup demo test check fmt lint types imports crds images cluster-up cluster-down e2e bench-engine bench-serving bench-serving-peer bench-embeddings bench-router \
    simulate-day simulate-calibrate simulate-validate simulate-policies \
    gpu-check gpu-bench gpu-tune clean

help: ## Show this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

setup: $(VENV)/.dev ## Make .venv with everything for development and tests
	@echo "ready: $(BIN)/quire --help"

$(VENV)/.made:
	@bash .ci/setup venv "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@bash .ci/setup extras "$(VENV)" demo
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@bash .ci/setup extras "$(VENV)" dev,demo,bench
	@touch $@ $(VENV)/.demo

$(VENV)/.clients: $(VENV)/.dev .ci/setup
	@bash .ci/setup clients "$(VENV)"
	@touch $@

demo: $(VENV)/.demo ## Serve examples/quickstart.yaml with two workers and send it real requests
	@bash .ci/native "$(BIN)"
	$(BIN)/python examples/demo.py

test: $(VENV)/.clients ## Run all tests; those on a real API server build one the first time (5 minutes, Debian 12 and root)
	@bash .ci/test "$(BIN)"

check: lint types imports test ## What CI runs: lint, types, imports, tests

lint: $(VENV)/.dev ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict over the packages
	$(BIN)/mypy contract/quire_contract kernels/quire_kernels worker/quire_worker router/quire_router operator/quire_operator cli/quire_cli

imports: $(VENV)/.dev ## Who may import whom (import-linter)
	$(BIN)/lint-imports

fmt: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crds: $(VENV)/.dev ## Write crds/ and the chart's copies from the operator's models
	$(BIN)/python -m quire_operator.api.crds
	$(BIN)/python -m quire_operator.api.crds charts/quire-crds/files

images: ## Build images of operator, router and worker: TAG= EXPORT= IMAGES= ... (bash .ci/images --help)
	@bash .ci/images $(if $(TAG),--tag '$(TAG)') $(if $(PREFIX),--prefix '$(PREFIX)') $(if $(REGISTRY),--registry '$(REGISTRY)') \
	    $(foreach variant,$(VARIANTS),--variant '$(variant)') $(if $(EXPORT),--export '$(EXPORT)') $(if $(BASE),--base '$(BASE)') $(if $(BUILD_BASE),--build-base '$(BUILD_BASE)') \
	    $(if $(filter undefined,$(origin TORCH_INDEX)),,--torch-index '$(TORCH_INDEX)') $(if $(TOOL),--tool '$(TOOL)') $(IMAGES)

cluster-up: $(VENV)/.dev ## Start a Kubernetes with a node on this machine (Debian 12, root); prints the KUBECONFIG to use
	@PYTHONPATH=tests $(BIN)/python -m cluster up

cluster-down: $(VENV)/.dev ## Stop it; ALL=1 forgets its images, too
	@PYTHONPATH=tests $(BIN)/python -m cluster down $(if $(ALL),--all)

e2e: $(VENV)/.dev ## Images, chart and models end to end on a real node; KEEP=1 leaves it running
	@bash .ci/e2e "$(BIN)" "$(KEEP)"

bench-engine: $(VENV)/.dev ## Engine against vLLM's CPU backend of PEER_PYTHON= (without it: transformers), interleaved
	PYTHONSAFEPATH= $(BIN)/python bench/engine.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) $(BENCH_ARGS)

bench-serving: $(VENV)/.dev ## The served road: two workers behind the router under load
	$(BIN)/python bench/serving.py $(BENCH_ARGS)

bench-serving-peer: $(VENV)/.dev ## Our server against `vllm serve` of PEER_PYTHON=, the same clients on both, interleaved
	PYTHONSAFEPATH= $(BIN)/python bench/serving_peer.py --peer-python $(or $(PEER_PYTHON),$(error set PEER_PYTHON to the python of an environment with vLLM)) $(BENCH_ARGS)

bench-embeddings: $(VENV)/.dev ## all-MiniLM-L6-v2 against transformers, interleaved; BENCH_ARGS=
	$(BIN)/python bench/embeddings.py $(BENCH_ARGS)

bench-router: $(VENV)/.dev ## The router's cost beside nginx, litellm and sglang-router, and what its choice is worth; PART=cost|choice BENCH_ARGS=
	$(foreach part,$(or $(PART),cost choice),PYTHONSAFEPATH= $(BIN)/python bench/router.py $(part) $(BENCH_ARGS) &&) true

simulate-day: $(VENV)/.dev ## A day of bursty traffic on 100 workers, simulated: how long it takes
	bash -c 'time $(BIN)/quire simulate $(or $(SIMULATE_DAY),--model qwen3-32b --gpu h200 --workers 100 --load bursty --rate 9 --burstiness 0.6 --duration 24h --prompt-tokens 2000 --output-tokens 4500 --max-num-seqs 64 --seed 7)'

simulate-calibrate: $(VENV)/.dev ## Measure what a step of the CPU engine costs, for quire simulate --cost; OUT=FILE
	PYTHONSAFEPATH= $(BIN)/python bench/simulate_calibrate.py $(if $(OUT),--out '$(OUT)') $(BENCH_ARGS)

simulate-validate: $(VENV)/.dev ## What quire simulate predicts of the CPU engine against what it does
	PYTHONSAFEPATH= $(BIN)/python bench/simulate_validate.py $(BENCH_ARGS)

simulate-policies: $(VENV)/.dev ## The shipped autoscaling against KEDA on queue length, in simulation
	PYTHONSAFEPATH= $(BIN)/python bench/simulate_policies.py $(BENCH_ARGS)

# From the source tree, with whatever Python has torch and Triton: a machine with a GPU need not have .venv (docs/gpu.md).
GPU_OUT ?= build/gpu
GPU_RUN = PYTHONPATH=bench:contract:kernels:worker$${PYTHONPATH:+:$$PYTHONPATH} PYTHONUNBUFFERED=1 \
    $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m

gpu-check: ## On a GPU: every kernel against its reference, the engine against its oracles; CHECK_ARGS=
	$(GPU_RUN) gpu.check --out '$(GPU_OUT)/gpu-check.json' $(CHECK_ARGS)

gpu-bench: ## On a GPU: Llama-3-8B's shape against the machine's roofline; BENCH_ARGS=
	$(GPU_RUN) gpu.bench --out '$(GPU_OUT)' $(BENCH_ARGS)

gpu-tune: ## On a GPU: measure launch parameters and write the launch table; TUNE_ARGS=
	$(GPU_RUN) gpu.tune $(TUNE_ARGS)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
