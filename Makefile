# One target a chore. Everything works on a fresh machine with Rust, Python and apt: what is missing is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := python/pyspawner/_native.abi3.so
RUST := Cargo.toml Cargo.lock $(wildcard crates/*/Cargo.toml) $(shell find crates -name '*.rs')
FUZZ_SECONDS ?= 60

.PHONY: run test test-rust test-python test-modes test-vm lint bench docs fuzz build clean

run: build ## Import pandas once, run sandboxed children on a real CSV, print what each spawn cost.
	$(BIN)/python examples/weather.py

test: test-rust test-modes test-python ## Everything that must pass. Needs root: it makes namespaces of every kind.

test-rust: | $(VENV)/tools
	cargo test --quiet --locked

test-python: build
	tools/apt-install bubblewrap iproute2 iptables libcap2 libcap2-bin nftables passt
	$(BIN)/python -m pytest --forbid-skips $(PYTEST_OPTIONS)

# What is the same for all children, however they came to be.
IN_ALL_MODES := tests/isolation tests/limits/test_causes.py tests/sandbox/test_namespaces.py \
	$(addprefix tests/public_face/test_,concurrency.py communicate.py exit.py stdio.py)

test-modes: build ## Some tests once more: with warm children, and without a memory image.
	$(BIN)/python -m pytest --quiet --forbid-skips --warm $(IN_ALL_MODES)
	$(BIN)/python -m pytest --quiet --forbid-skips --without-image $(IN_ALL_MODES)

test-vm: build ## In a virtual machine: what needs a cgroup v2 of its own. No rights are needed once the packages are there.
	tools/apt-install e2fsprogs qemu-system-x86
	$(BIN)/python -m pytest --quiet --forbid-skips tests/vm
	$(BIN)/python tests/vm/run.py --deadline 1500 $(or $(PYTEST_OPTIONS),tests/cgroup)

lint: build ## Formatting, lints, types, and Rust's documentation, with no warning.
	cargo fmt --check
	cargo clippy --quiet --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps --document-private-items
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --warnings

bench: build ## Against pyspawner 1.0, forkserver, os.fork, new interpreters, bubblewrap and sandlock, in one run.
	tools/apt-install bubblewrap libcap2 nftables
	$(BIN)/python benches/run.py $(BENCH_OPTIONS)

# Coverage for libFuzzer without a nightly compiler; the decoder has no unsafe code for a sanitizer to watch.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS := --cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: ## The protocol's decoder, FUZZ_SECONDS a target.
	tools/apt-install gcc g++ libc6-dev
	RUSTFLAGS='$(FUZZ_FLAGS)' cargo build --quiet --locked --release --bins --target $(HOST) \
		--manifest-path fuzz/Cargo.toml --target-dir fuzz/target
	for target in decode round_trip; do \
		mkdir -p fuzz/artifacts fuzz/corpus/$$target && \
		fuzz/target/$(HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 \
			-print_final_stats=1 -verbosity=0 -artifact_prefix=fuzz/artifacts/ fuzz/corpus/$$target fuzz/seeds/decode || exit 1; \
	done

docs: | $(VENV)/tools ## Rust's documentation, in target/doc.
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

build: $(NATIVE)

$(NATIVE): $(RUST) pyproject.toml | $(VENV)/tools
	$(BIN)/maturin develop --quiet --release --locked
	@touch $@

$(VENV)/tools: pyproject.toml
	tools/apt-install gcc libc6-dev
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/apt-install python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --group dev
	@touch $@

clean:
	cargo clean
	rm -rf $(VENV) $(NATIVE) .pytest_cache .ruff_cache .hypothesis
