# Every target sets up what it needs; `make` alone shows them.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Which Python to take; empty: see scripts/find-python.
PYTHON ?=
JOBS ?= 2
BUF := 1.75.0
BIN := .venv/bin
NATIVE := build/native
SANITIZED := build/native-sanitized
TSAN := build/native-tsan
FUZZERS := build/native-fuzzers
FUZZ_SECONDS := 60
PB := vdpa_agent/serve/pb
C_SOURCES = $(shell find native bench tests/e2e/guest -name '*.[ch]')

.PHONY: help
help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- set-up ----------------------------------------------------------------------------------------------------------

.PHONY: system
system: ## Install the Debian or Ubuntu packages that are missing
	@scripts/install-packages build

# Written only when it is another one, so that what was installed for it stays.
build/interpreter: FORCE | system
	@mkdir -p build
	@scripts/find-python "$(PYTHON)" > $@.found
	@if cmp -s $@.found $@; then rm $@.found; else mv $@.found $@; fi

.PHONY: FORCE
FORCE:

.PHONY: interpreter
interpreter: build/interpreter ## Show the Python that all is run with
	@paste -s -d ' ' $<

# $(1): a virtual environment, made anew for another interpreter.
define environment
	@cmp -s build/interpreter $(1)/.interpreter || { "$$(head -n 1 build/interpreter)" -m venv --clear $(1) && cp build/interpreter $(1)/.interpreter; }
endef

.venv/.installed: requirements/dev.txt pyproject.toml build/interpreter
	@echo "== python environment"
	$(call environment,.venv)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.bench: requirements/bench.txt .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# As an installation has it, without the packages of the development; the code is that of this tree, compiled.
build/runtime/.installed: requirements/runtime.txt build/interpreter
	$(call environment,build/runtime)
	build/runtime/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@touch $@

.PHONY: runtime
runtime: build/runtime/.installed ## Install what the agent needs to run, and nothing else, for the benchmark
	@build/runtime/bin/python -m compileall -q vdpa_agent bench

$(NATIVE)/build.ninja: | system
	meson setup --buildtype=release $(NATIVE) native

$(SANITIZED)/build.ninja: | system
	meson setup --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false $(SANITIZED) native

.PHONY: native
native: $(NATIVE)/build.ninja ## Build vdpad, its software devices and the counting front end
	@ninja -j $(JOBS) -C $(NATIVE) --quiet

.PHONY: native-sanitized
native-sanitized: $(SANITIZED)/build.ninja ## Build the same under ASan and UBSan
	@ninja -j $(JOBS) -C $(SANITIZED) --quiet

$(TSAN)/build.ninja: | system
	meson setup --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dfrontend=false $(TSAN) native

.PHONY: native-tsan
native-tsan: $(TSAN)/build.ninja ## Run the native tests that have threads under TSan
	@ninja -j $(JOBS) -C $(TSAN) --quiet
	meson test -C $(TSAN) --no-rebuild --print-errorlogs fences gate links log loopback ring worker

$(FUZZERS)/build.ninja: | system
	CC=clang meson setup --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dfuzzers=true -Dsimulator=false -Dfrontend=false $(FUZZERS) native

# What is found goes to build/, and from there, once it is understood, to the corpus in the tree.
.PHONY: fuzz-native
fuzz-native: $(FUZZERS)/build.ninja ## Run the coverage-guided fuzzers of vdpad's readers, a minute each (needs clang)
	@ninja -j $(JOBS) -C $(FUZZERS) --quiet
	@for name in vhost_user control mapping; do mkdir -p $(FUZZERS)/found/$$name; \
	  $(FUZZERS)/tests/fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
	    -artifact_prefix=$(FUZZERS)/found/$$name- $(FUZZERS)/found/$$name native/tests/fuzz/corpus/$$name || exit 1; done

build/echo: bench/echo.c
	@mkdir -p build
	$(CC) -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -o $@ $<

.PHONY: interop
interop: .venv/.installed ## Build the foreign gRPC clients that the tests and the benchmark use (needs Go)
	@tests/interop/build

.PHONY: chart-tools
chart-tools: .venv/.installed ## Build helm and what else checks the chart (needs Go)
	@tests/chart/build

.PHONY: guest
guest: | system ## Make a Linux guest for QEMU of Debian's kernel and busybox below build/ for the tests
	@scripts/install-packages test
	@tests/e2e/guest/build

.PHONY: prometheus
prometheus: | system ## Unpack Debian's Prometheus and promtool below build/ for the tests
	@scripts/unpack prometheus build/prometheus

# ---- use -------------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: .venv/.installed native ## Run the main job, from a list of VFs to packets, on simulated VFs
	@$(BIN)/python scripts/demo.py

.PHONY: run
run: .venv/.installed native ## Run the agent on simulated VFs below build/run until Ctrl-C
	@mkdir -p build/run
	@[ -e build/run/pciList.dat ] || printf '0000:82:00.2\n0000:82:00.3\n' > build/run/pciList.dat
	$(BIN)/vdpa-agent run --simulate --memory none --vdpad $(CURDIR)/$(NATIVE)/vdpad/vdpad \
	  --pci-list $(CURDIR)/build/run/pciList.dat --socket-list $(CURDIR)/build/run/socketList.dat \
	  --socket-dir $(CURDIR)/build/run/vhost --listen $(CURDIR)/build/run/vdpa.sock

.PHONY: cluster
cluster: cluster-tools ## Start a Kubernetes node with the chart's images for a person to play with (as root)
	@$(BIN)/python -m tests.cluster up

.PHONY: cluster-down
cluster-down: ## End that node, and remove all of it
	@$(BIN)/python -m tests.cluster down

# ---- proof -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: .venv/.installed native native-sanitized interop chart-tools prometheus guest build/echo runtime ## Run all tests
	@scripts/install-packages test
	meson test -C $(NATIVE) --print-errorlogs
	meson test -C $(SANITIZED) --print-errorlogs
	$(BIN)/python -m tests.e2e.fuzz_front_ends --seconds 60
	$(BIN)/python -m tests.e2e.fuzz_front_ends --seconds 60 --switch
	$(BIN)/pytest -n 2 --dist loadfile --ignore=tests/image --ignore=tests/cluster

.PHONY: image
image: ## Build the container images by buildah, with their SBOMs (as root)
	@scripts/image $(IMAGE_OPTIONS)

.PHONY: image-test
image-test: .venv/.installed image interop chart-tools ## Run the images by podman, locked down, from a list of VFs to packets (as root)
	$(BIN)/pytest tests/image

.PHONY: cluster-tools
cluster-tools: .venv/.installed image chart-tools ## Build Kubernetes, containerd and what else a node needs below build/cluster (as root, needs Go)
	@tests/cluster/build

.PHONY: cluster-test
cluster-test: cluster-tools ## Run the chart on a real Kubernetes node, in namespaces of its own (as root)
	$(BIN)/pytest tests/cluster

.PHONY: check
check: .venv/.installed ## Check style, types, imports, generated code and C warnings
	@scripts/install-packages check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@command -v npx >/dev/null || { echo "npx is needed to check protos/: install npm" >&2; exit 1; }
	cd protos && npx --yes @bufbuild/buf@$(BUF) lint
	cd protos && npx --yes @bufbuild/buf@$(BUF) breaking --against released.binpb
	$(BIN)/hadolint Dockerfile
	clang-format --dry-run --Werror $(C_SOURCES)
	@[ -e build/native-clang/build.ninja ] || CC=clang meson setup build/native-clang native
	ninja -j $(JOBS) -C build/native-clang --quiet
	@$(MAKE) --no-print-directory proto-current

.PHONY: chart-check
chart-check: .venv/.installed native chart-tools ## Lint, render, validate and run the chart, and compare what is rendered
	$(BIN)/pytest tests/chart

.PHONY: fuzz
fuzz: .venv/.installed native native-sanitized native-tsan fuzz-native ## Ten minutes of frames, files and vhost-user messages that nobody should send or write
	$(BIN)/python -m tests.e2e.fuzz_front_ends --seconds 120
	$(BIN)/python -m tests.e2e.fuzz_front_ends --seconds 120 --switch
	$(BIN)/pytest --hypothesis-profile=fuzz --hypothesis-show-statistics --timeout=1800 tests/abuse/test_fuzz.py tests/abuse/test_differential.py tests/files/test_formats.py

.PHONY: soak
soak: .venv/.installed native ## Ten minutes of random faults, which must end with everything served and nothing leaked
	@$(BIN)/python -m tests.soak --seconds 600

.PHONY: figures
figures: .venv/.installed native ## Measure latencies, recovery, memory and idle cost
	@$(BIN)/python -m bench.figures
	@$(BIN)/python -m bench.large

.PHONY: bench
bench: .venv/.bench native interop build/echo runtime ## Measure the agent beside its peers, and write docs/benchmark.md
	@$(BIN)/python -m bench.compare
	@$(BIN)/python -m bench.report build/bench.json docs/benchmark.md

# ---- generated -------------------------------------------------------------------------------------------------------

PROTOS := vdpadpdk.proto vdpa_agent/v1/device_service.proto

# $(1): where to. The generated modules are imported from inside the package, which protoc cannot know.
define generate
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) --plugin=$(BIN)/protoc-gen-grpclib_python --grpclib_python_out=$(1) $(PROTOS)
	sed -i 's/^import vdpadpdk_pb2/from vdpa_agent.serve.pb import vdpadpdk_pb2/' $(1)/vdpadpdk_grpc.py
	mv $(1)/vdpa_agent/v1/device_service_* $(1) && rm -r $(1)/vdpa_agent
	sed -i 's/^import vdpa_agent.v1.device_service_pb2/from vdpa_agent.serve.pb import device_service_pb2/; s/vdpa_agent\.v1\.device_service_pb2\./device_service_pb2./g' $(1)/device_service_grpc.py
	sed -i -f scripts/generated.sed $(1)/vdpadpdk_grpc.py $(1)/device_service_grpc.py
endef

KUBELET_PB := vdpa_agent/kubelet/pb
KUBELET_PROTOS := kubelet/device_plugin.proto kubelet/pod_resources.proto

define generate_kubelet
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) --plugin=$(BIN)/protoc-gen-grpclib_python --grpclib_python_out=$(1) $(KUBELET_PROTOS)
	mv $(1)/kubelet/* $(1) && rm -r $(1)/kubelet
	sed -i -E 's/^import kubelet\.(\w+)_pb2/from vdpa_agent.kubelet.pb import \1_pb2/; s/kubelet\.(\w+)_pb2\./\1_pb2./g' $(1)/*_grpc.py
	sed -i -f scripts/generated.sed $(1)/*_grpc.py
endef

.PHONY: proto
proto: .venv/.installed ## Generate the Python code from protos/
	$(call generate,$(PB))
	$(call generate_kubelet,$(KUBELET_PB))
	$(BIN)/python -m scripts.api_docs

.PHONY: deploy
deploy: .venv/.installed chart-tools ## Make the chart's options and schema from the agent's, and render deploy/
	$(BIN)/python -m scripts.chart

.PHONY: metrics
metrics: .venv/.installed ## Write the table of docs/metrics.md
	$(BIN)/python -m scripts.metrics_docs

.PHONY: parts
parts: .venv/.installed ## Write the table of parts of docs/architecture.md
	$(BIN)/python -m scripts.parts_docs

.PHONY: protos-released
protos-released: ## With each release: keep protos/ as what later ones may not break
	cd protos && npx --yes @bufbuild/buf@$(BUF) build --exclude-source-info -o released.binpb

.PHONY: proto-current
proto-current: .venv/.installed
	@rm -rf build/pb && mkdir -p build/pb
	$(call generate,build/pb)
	@rm -rf build/kubelet-pb && mkdir -p build/kubelet-pb
	$(call generate_kubelet,build/kubelet-pb)
	@for file in build/pb/* build/kubelet-pb/*; do \
	  case $$file in build/pb/*) to=$(PB) ;; *) to=$(KUBELET_PB) ;; esac; \
	  cmp "$$file" $$to/$${file##*/} || { echo "generated code is out of date: run make proto" >&2; exit 1; }; done

.PHONY: lock
lock: .venv/.installed ## Lock the newest allowed versions of all dependencies, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --upgrade pyproject.toml -o requirements/runtime.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --upgrade pyproject.toml --extra tracing --group dev -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url --upgrade --group image -o requirements/image.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --upgrade --group bench -c requirements/dev.txt -o requirements/bench.txt

.PHONY: format
format: .venv/.installed ## Format Python and C
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	clang-format -i $(C_SOURCES)

.PHONY: clean
clean: ## Remove all that was made here
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
