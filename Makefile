# Everything lives in .venv; every target sets up what it needs and may be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*.cu csrc/cuda/*.cuh)
NATIVE := $(SOURCES) $(wildcard tests/native/*.cpp tests/simt/*.h tests/simt/*.cpp tests/simt/include/*) $(wildcard benchmarks/gpu/*.cu)
TORCH_DIR = $(shell $(BIN)/python -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parent)")
CMAKE = $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMP_TORCH_DIR=$(TORCH_DIR)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format sanitize simt-sanitize native kernels kernels-all nvcc cuda lowest newest arm reliability docs wheels benchmark serving peers gpu paper clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

# torch first, so that nothing else chooses its version.
$(READY): pyproject.toml setup.py constraints.txt CMakeLists.txt $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=77" cmake ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[bench,demo,dev,serve,test]"
	touch $@

demo: $(READY) ## set up, then classify real articles with real weights
	$(BIN)/magic-pyramid demo

# Files of tests beside each other, at most four for the sake of memory; `make test JOBS=0` runs one after the other.
JOBS ?= auto
BESIDE = -n $(JOBS) --maxprocesses 4 --dist loadfile
test: $(READY) ## set up, then run the tests
	$(BIN)/python -m pytest $(BESIDE)

lint: $(READY) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: $(READY) ## format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

INSTRUMENTED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0

# A copy of the package beside the instrumented library, so that the installed one stays as it is.
sanitize: $(READY) ## run the operator tests with AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf build/sanitize && mkdir -p build/sanitize && cp -r mp_kernels build/sanitize/ && rm -f build/sanitize/mp_kernels/_C.so
	$(CMAKE) -B build/sanitize/cmake -DMP_SANITIZE=address,undefined -DMP_OUTPUT_DIR=$(abspath build/sanitize/mp_kernels)
	$(BIN)/cmake --build build/sanitize/cmake
	$(INSTRUMENTED) PYTHONSAFEPATH=1 PYTHONPATH=build/sanitize $(BIN)/python -m pytest $(BESIDE) \
		-o "pythonpath=build/sanitize benchmarks tests" tests/mp_kernels --ignore tests/mp_kernels/triton -p no:cacheprovider

simt-sanitize: $(READY) ## run the CUDA kernels in their emulator with the same sanitizers
	$(INSTRUMENTED) MP_SIMT_SANITIZE=address,undefined $(BIN)/python -m pytest tests/simt -p no:cacheprovider

# Needs a cross compiler and an emulator: apt-get install g++-aarch64-linux-gnu qemu-user
arm: $(READY) ## compile everything for 64-bit Arm, and run the kernels under emulation
	$(CMAKE) -B build/arm -DMP_NATIVE_TEST=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build build/arm --target face kernels_test
	qemu-aarch64 build/arm/kernels_test

native: $(READY) ## run the kernels' own test on this processor
	$(CMAKE) -B build/native -DMP_NATIVE_TEST=ON
	$(BIN)/cmake --build build/native --target kernels_test
	build/native/kernels_test

kernels: $(READY) ## compile the Triton kernels for two GPUs that need not be here, and hold them to their budget
	PYTHONPATH=tests $(BIN)/python -m ahead_of_time.check

kernels-all: $(READY) ## the same for every target, dtype and head_dim: 1,000 kernels, about twenty minutes
	PYTHONPATH=tests $(BIN)/python -m ahead_of_time.check --all

nvcc: ## compile the CUDA kernels for every architecture and show their registers; needs nvcc, no device
	$(PYTHON) csrc/cuda/check_registers.py

# In an environment of its own (5.5 GB), since that torch would replace the one that the tests run with.
CUDA := .venv/cuda
cuda: ## build and load everything with a torch that was built for CUDA; needs nvcc, no device
	command -v nvcc || { echo "nvcc was not found: install the CUDA toolkit, or put its bin folder on the PATH"; exit 1; }
	test -x $(CUDA)/bin/python || $(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python -m pip install --quiet "torch==2.14.1" numpy cmake ninja "setuptools>=77"
	rm -rf build/lib.*
	$(CUDA)/bin/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	$(CUDA)/bin/python -P -W error csrc/cuda/check_registrations.py

# In environments of their own (6 GB each), since these torches would replace the one that the tests run with. The package is
# installed there, not linked, as a link would build into the folder that .venv uses.
LOWEST = $(shell sed -nE 's/^ *"(torch|triton|transformers)>=([0-9.]+).*/\1==\2/p' pyproject.toml)
lowest: VERSIONS = $(LOWEST)
lowest: ## test and compile with the oldest torch, Triton and transformers that are allowed
newest: VERSIONS = --upgrade torch triton transformers
newest: ## test with the newest that there are
lowest newest:
	test -x .venv/$@/bin/python || $(PYTHON) -m venv .venv/$@
	.venv/$@/bin/python -m pip install --quiet $(VERSIONS) "setuptools>=77" cmake ninja
	rm -rf build/lib.*
	.venv/$@/bin/python -m pip install --quiet --no-build-isolation ".[serve,test]" $(VERSIONS)
	PYTHONSAFEPATH=1 .venv/$@/bin/python -m pytest $(BESIDE) -o "pythonpath=benchmarks tests" \
		tests/mp_kernels tests/simt tests/mp_model
	$(if $(filter lowest,$@),PYTHONSAFEPATH=1 PYTHONPATH=tests .venv/$@/bin/python -m ahead_of_time.check)

reliability: $(READY) ## write docs/reliability.md from the tests' situations
	PYTHONPATH=tests $(BIN)/python -m support.situations > docs/reliability.md

# In an environment of its own, as the site's tools are nobody's who only uses or tests the packages.
docs: ## build the documents as a site, which needs no network to be read, into build/site
	test -x .venv/docs/bin/python || $(PYTHON) -m venv .venv/docs
	.venv/docs/bin/python -m pip install --quiet $(DOCS)
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/python -m mkdocs build --quiet --strict
	.venv/docs/bin/python docs/site/check.py build/site
DOCS = $(shell sed -nE 's/^docs = \[(.*)\]/\1/p' pyproject.toml | tr -d ',')

# For 64-bit Arm where the cross compiler of `make arm` is installed. Then the wheel for this processor is installed where
# there is no compiler, and the operator tests run there.
WHEELS := build/wheels
CLEAN := .venv/wheels/bin
define wheel
rm -rf build/lib.* $(WHEELS)/$(1)
MP_WHEEL=1 CMAKE_ARGS="$(2)" _PYTHON_HOST_PLATFORM=linux-$(1) $(BIN)/python -m pip wheel --quiet --no-deps \
	--no-build-isolation --wheel-dir $(WHEELS)/$(1) .
PATH=$(abspath $(BIN)):$$PATH auditwheel repair --plat auto --exclude libtorch_cpu.so \
	--wheel-dir $(WHEELS) $(WHEELS)/$(1)/*.whl
endef
wheels: $(READY) ## build wheels for machines without a compiler into build/wheels, and test them so
	rm -rf $(WHEELS)
	$(call wheel,$(shell uname -m))
	if command -v aarch64-linux-gnu-g++ && test $$(uname -m) = x86_64; then $(MAKE) --no-print-directory wheel-aarch64; \
		else echo "no wheel for 64-bit Arm: install g++-aarch64-linux-gnu"; fi
	PYTHONPATH=tests $(BIN)/python -m wheels.check $(WHEELS)/*.whl
	test -x $(CLEAN)/python || $(PYTHON) -m venv .venv/wheels
	$(CLEAN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	PATH=$(abspath $(CLEAN)) $(CLEAN)/python -m pip install --quiet -c constraints.txt --only-binary :all: --upgrade \
		$(WHEELS)/*_$(shell uname -m).whl pytest pytest-timeout hypothesis
	PATH=$(abspath $(CLEAN)) $(CLEAN)/python -m pip install --quiet --no-deps --force-reinstall $(WHEELS)/*_$(shell uname -m).whl
	PATH=$(abspath $(CLEAN)) $(CLEAN)/python -P -m mp_kernels.info
	PATH=$(abspath $(CLEAN)) $(CLEAN)/magic-pyramid doctor
	PATH=$(abspath $(CLEAN)) $(CLEAN)/python -P -m pytest -o "pythonpath=benchmarks tests" -p no:cacheprovider $(OPERATORS)
OPERATORS = $(addprefix tests/mp_kernels/test_,$(addsuffix .py,operators attention attention_places compaction entropy \
	exit_head extension gather info int8 pack products rotary rows))
.PHONY: wheel-aarch64
wheel-aarch64:
	$(call wheel,aarch64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)

benchmark: $(READY) ## measure, and write the figures to docs/performance.md
	$(BIN)/python -m pytest benchmarks --benchmark-only --figures benchmarks/figures.json
	$(BIN)/python benchmarks/report.py

# MODEL names the folder of a tuned model, TEXTS a file of its kind of texts. More by OPTIONS="--precision int8 --rounds 5".
serving: $(READY) ## measure servers under load, ours beside others: make serving MODEL=... TEXTS=...
	$(BIN)/python benchmarks/serving.py --model $(MODEL) --texts $(TEXTS) --output benchmarks/serving.json $(OPTIONS)

# Under constraints, so that no peer changes what the tests run with. torchao has a folder of its own, since transformers imports
# it, and prints, wherever it finds it. More is measured with OPTIONS="--threads 1,2 --batches 1,8,32,128".
PEERS = $(shell sed -nE 's/^peers = \[(.*)\]/\1/p' pyproject.toml | tr -d '",')
peers: $(READY) ## measure other engines beside ours on a CPU, and write docs/peers.md; goes on where it was
	for package in $(PEERS); do $(BIN)/python -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$$package'))" || \
		$(BIN)/python -m pip install --quiet -c constraints.txt $$package || echo "$$package is not measured: it cannot be installed"; done
	test -d .venv/torchao/torchao || $(BIN)/python -m pip install --quiet --no-deps --target .venv/torchao torchao || \
		echo "torchao is not measured: it cannot be installed"
	PYTHONPATH=benchmarks $(BIN)/python -m peers $(OPTIONS)
	$(BIN)/python benchmarks/report.py > /dev/null

# On a lent machine without .venv: a python3 that has torch.
gpu: ## measure everything on a GPU, in three parts of ten minutes; without one, try all that needs none
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_day.py

# MAGIC_PYRAMID_CORPORA names a folder of folders with train.tsv and test.tsv. Hours, the first time.
paper: $(READY) ## train and measure the paper's systems, and write docs/results.md; goes on where it was
	PYTHONPATH=benchmarks $(BIN)/python -m paper
	$(if $(MPNET),PYTHONPATH=benchmarks $(BIN)/python -m paper --backbone mpnet --model $(MPNET))

clean: ## remove everything that was built or installed
	rm -rf .venv build demo-output *.egg-info mp_kernels/_C*.so
