# One target a chore. Everything works on a fresh machine with Rust, Python and apt: what is missing is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := python/pyspawner/_native.abi3.so
RUST := Cargo.toml Cargo.lock $(wildcard crates/*/Cargo.toml) $(shell find crates -name '*.rs')
FUZZ_SECONDS ?= 60

.PHONY: run test test-rust test-python lint bench docs fuzz build clean

run: build ## Import pandas once, run sandboxed children on a real CSV, print what each spawn cost.
	$(BIN)/python examples/weather.py

test: test-rust test-python ## Everything that must pass. Needs root: it makes namespaces of every kind.

test-rust: | $(VENV)/tools
	cargo test --quiet --locked

test-python: build
	tools/apt-install iproute2 libcap2-bin
	$(BIN)/python -m pytest --forbid-skips $(PYTEST_OPTIONS)

lint: build ## Formatting, lints, types, and Rust's documentation, with no warning.
	cargo fmt --check
	cargo clippy --quiet --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps --document-private-items
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --warnings

bench: build ## Against pyspawner 1.0, forkserver, os.fork and bubblewrap, in one run.
	tools/apt-install bubblewrap libcap2
	$(BIN)/python benches/run.py $(BENCH_OPTIONS)

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
