# mixd: `make` alone prints the targets. Variables: DATA, EPOCHS, ARGS, SECONDS, ROUNDS, ONLY (rows of compare), STORM_SECONDS, SOAK_SECONDS, FUZZ_SECONDS, and
#   LIBTORCH or LIBTORCH_USE_PYTORCH   your own libtorch 2.11.0 (absolute path): nothing is fetched then
#   MIXD_LIBTORCH_CUDA=1               fetch libtorch with all its CUDA libraries (4.5 GB)

DATA   ?= sample-data
sample := $(filter sample-data,$(DATA))
EPOCHS ?= $(if $(sample),48,1)
TARGET := $(or $(CARGO_TARGET_DIR),target)
MIXD   := $(TARGET)/release/mixd
# libjpeg-turbo decodes faster than what is built in else, and to Pillow's pixels; its build needs cmake and nasm.
# CUDA is looked for when it is asked for: its part is built everywhere.
plain  := --features "cuda turbojpeg cloud"
with   := --features "torch turbojpeg cloud"
# What `cargo build` gives, whose JPEG decoder is in Rust, with the tests of object stores.
bare   := --features cloud-test
# What a trainer links.
client := --no-default-features --features cuda
CARGO_TEST   := cargo test --release --locked
CARGO_CLIPPY := cargo clippy --release --locked --all-targets
CARGO_DOC    := RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps

ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
fetch := yes
unexport LIBTORCH_USE_PYTORCH
export LIBTORCH := $(CURDIR)/.libtorch/$(if $(filter 1,$(MIXD_LIBTORCH_CUDA)),cuda,cpu)
export MIXD_LIBTORCH_CUDA
endif

.PHONY: help program build python demo test test-rust test-python faults check-replay check-bench check-gpu check-frameworks storm soak tsan fuzz lint bench compare compare-shards compare-training gpu-pack gpu-check libtorch clean-libtorch manuals tools
.NOTPARALLEL:

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# mixd itself links no torch, so that it starts at once; it becomes mixd-torch for what needs torch.
build: libtorch program ## Build target/release/mixd, and mixd-torch beside it
	cargo build --release --locked $(with) --bin mixd-torch

program:
	@scripts/tools.sh cargo cmake nasm
	cargo build --release --locked $(plain)

python: program .venv/plain/ready ## Build the Python package, with the daemon's program in it, into target/wheels
	mkdir -p python/mixd.data/scripts
	strip -o python/mixd.data/scripts/mixd $(MIXD)
	rm -f $(TARGET)/wheels/mixd-*.whl
	.venv/plain/bin/maturin build --release --locked --manifest-path python/Cargo.toml --out $(TARGET)/wheels

manuals: program ## Write man pages and completions for bash, zsh and fish into target/share
	$(MIXD) generate --out $(TARGET)/share

# An environment for each file of python/requirements; made anew when the file changes.
.venv/%/ready: python/requirements/%.txt
	@scripts/tools.sh python3 venv
	python3 -m venv --clear .venv/$*
	.venv/$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
.venv/frameworks/ready: python/requirements/torch.txt

# The main job is an epoch of the full set with the defaults. From 200 images a network learns more by many small, random
# views, and its mean over the last epochs validates better than its last state.
demo: ARGS ?= $(if $(sample),--recipe imagenette --size 40 --alpha 1 --batch-size 40 --lr 0.2 --average 24)
demo: build ## Train on DATA (a folder or archive; default sample-data) for EPOCHS with ARGS, and draw a batch and views
	$(MIXD) train --data "$(DATA)" --epochs $(EPOCHS) $(ARGS)
	@mkdir -p .demo
	$(MIXD) preview --data "$(DATA)" --out .demo/preview.png
	$(MIXD) preview --data "$(DATA)" --recipe imagenette --views --out .demo/views.png
	@echo "A mixed batch of it: $(CURDIR)/.demo/preview.png"
	@echo "Images beside the views that a recipe makes of them: $(CURDIR)/.demo/views.png"

# Everything is built with --release, so that one compilation of the dependencies, and of libtorch's bindings
# above all, serves build, lint and test. --all-targets runs each benchmark once.
test: test-rust test-python ## Run every test without libtorch and libjpeg-turbo; with them, and each benchmark once; then the package's

test-rust: libtorch
	MIXD_OUTAGE_S=20 $(CARGO_TEST) $(bare) --tests
	$(CARGO_TEST) $(bare) --doc
	$(CARGO_TEST) --all-targets $(with)
	$(CARGO_TEST) --doc $(with)
	@$(MAKE) --no-print-directory check-replay check-bench

# Each environment gets the wheel; the one without torch runs what needs none.
test-python: python .venv/torch/ready ## Test the Python package, with torch and without
	for kind in plain torch; do .venv/$$kind/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(TARGET)/wheels/mixd-*.whl; done
	cd python && ../.venv/plain/bin/python -m pytest tests/plain
	@$(MAKE) --no-print-directory check-gpu storm STORM_SECONDS=30
	cd python && ../.venv/torch/bin/python -m pytest tests

# Both run the wheel's program and package.
storm soak: plain_wheel = .venv/plain/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(TARGET)/wheels/mixd-*.whl
storm: STORM_SECONDS ?= 300
storm: python ## Kill, stop and starve a daemon and eight trainers at random for STORM_SECONDS, and check every batch; ARGS="--seed N" draws the same events
	$(plain_wheel)
	.venv/plain/bin/python scripts/storm.py --data sample-data --seconds $(STORM_SECONDS) $(ARGS)

soak: SOAK_SECONDS ?= 600
soak: python ## Let trainers come and go at one daemon for SOAK_SECONDS; fails where its memory, descriptors or threads grow
	$(plain_wheel)
	.venv/plain/bin/python scripts/soak.py --data sample-data --seconds $(SOAK_SECONDS) $(ARGS)

# libFuzzer on the stable compiler, with AddressSanitizer. Seeds are committed; what a run adds to them stays in target/fuzz.
fuzz: FUZZ_SECONDS ?= 60
fuzz: fuzz_cargo = RUSTC_BOOTSTRAP=1 .tools/bin/cargo-fuzz
fuzz: fuzz_dirs  = --fuzz-dir fuzz --target-dir $(CURDIR)/target/fuzz
fuzz: .tools/bin/cargo-fuzz ## Run each fuzz target for FUZZ_SECONDS over hostile files, messages, shared memory and configurations (TARGETS="image ring": these alone)
	@scripts/tools.sh cargo c++ cmake nasm
	$(fuzz_cargo) build $(fuzz_dirs)
	@for target in $(or $(TARGETS),$$(.tools/bin/cargo-fuzz list --fuzz-dir fuzz)); do \
		mkdir -p target/fuzz/corpus/$$target && echo "$$target: $(FUZZ_SECONDS) s" && \
		$(fuzz_cargo) run $(fuzz_dirs) $$target $(CURDIR)/target/fuzz/corpus/$$target $(CURDIR)/fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 || \
		{ echo "$$target failed; run its input again with: $(fuzz_cargo) run $(fuzz_dirs) $$target fuzz/artifacts/$$target/<file>" >&2; exit 1; }; \
	done

.tools/bin/cargo-fuzz:
	cargo install cargo-fuzz --version 0.13.2 --locked --root .tools

check-frameworks: python .venv/frameworks/ready ## Run fastai and Hugging Face's Trainer over the package's loaders; with VISION=DIR, a checkout of torchvision, its reference script, too
	.venv/frameworks/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(TARGET)/wheels/mixd-*.whl
	cd python && ../.venv/frameworks/bin/python -m pytest tests/with_torch/test_frameworks.py
	$(if $(VISION),.venv/frameworks/bin/python scripts/check-frameworks.py $(VISION)/references/classification sample-data)

faults: libtorch ## Fail every use of each system call that matters, one at a time, in daemon and trainer; `make test` takes some
	MIXD_FAULTS=all $(CARGO_TEST) $(plain) --test injected -- --nocapture

# Only the tests that share a mapping: the views of others are mapped by system calls that the sanitizer does not see, so that an address
# that is used again looks like a race. Sanitizers and -Zbuild-std are unstable, hence RUSTC_BOOTSTRAP.
tsan: ## Run the ring's stress test under ThreadSanitizer, with std built anew (minutes)
	@scripts/tools.sh cargo c++
	test -d "$$(rustc --print sysroot)/lib/rustlib/src/rust/library" || rustup component add rust-src
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread --cfg mixd_tsan" CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only \
		cargo test --locked --lib -Zbuild-std --target "$$(rustc -vV | sed -n 's/^host: //p')" --target-dir $(TARGET)/tsan one_mapping

check-replay: build .python .venv/torch/ready ## Compare replayed batches of the sample data with Pillow, torchvision and the formula
	PYTHONPATH=.python python3 scripts/check-replay.py $(MIXD) sample-data 3
	PYTHONPATH=.python .venv/torch/bin/python scripts/check-recipes.py $(MIXD) sample-data 1 --exact

check-bench: build .python ## Run each measurement of `make bench` once, on the sample data
	PYTHONPATH=.python python3 scripts/bench.py --mixd $(MIXD) --data sample-data --seconds 0.1 --quick --out target/check-bench

# 11.3 is the last Pillow whose resize goes horizontal first, always.
.python:
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target .python.partial \
		pillow==11.3.0 numpy matplotlib
	mv .python.partial .python

lint: libtorch python .venv/torch/ready ## Check format, clippy and rustdoc, without libtorch and libjpeg-turbo, and with them; and the package's types
	cargo fmt --all --check
	$(CARGO_CLIPPY) $(bare) -- -D warnings
	$(CARGO_CLIPPY) $(with) -- -D warnings
	$(CARGO_CLIPPY) --package mixd-python -- -D warnings
	cargo clippy --release --locked $(client) --lib -- -D warnings
	@! cargo tree --locked $(client) --edges normal --prefix none | grep -E '^(clap|image|plotters|tar) ' || \
		{ echo "a trainer would link these (feature daemon has what only the daemon needs)" >&2; exit 1; }
	$(CARGO_DOC) $(bare)
	$(CARGO_DOC) $(with)
	.venv/plain/bin/ruff check python
	.venv/plain/bin/ruff format --check python
	.venv/torch/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(TARGET)/wheels/mixd-*.whl
	cd python && ../.venv/torch/bin/mypy package tests examples
	.venv/torch/bin/python -m mypy.stubtest mixd._native

bench compare: SECONDS ?= 4
bench: build .python ## Measure mixd on DATA beside the machine's ceilings, and what each choice costs; then the parts alone
	PYTHONPATH=.python python3 scripts/bench.py --mixd $(MIXD) --data "$(DATA)" --seconds $(SECONDS) --out benches/results
	cargo bench --locked $(plain) --benches

compare: ROUNDS  ?= 3
compare: build ## Measure mixd beside torch's DataLoader, timm, DALI and loops over memory, on DATA (installs them into .compare: 5 GB)
	python3 scripts/compare.py --mixd $(MIXD) --data "$(DATA)" --rounds $(ROUNDS) --seconds $(SECONDS) $(if $(ONLY),--only "$(ONLY)") --out benches/results

compare-shards: ROUNDS ?= 3
compare-shards: SECONDS ?= 4
compare-shards: build .venv/torch/ready ## Measure mixd on shards and Parquet beside its folder, webdataset, datasets, LitData and datago, on DATA
	.venv/torch/bin/python scripts/compare_shards.py --mixd $(MIXD) --data "$(DATA)" --rounds $(ROUNDS) --seconds $(SECONDS) --out benches/results

compare-training: python .venv/torch/ready ## Train on DATA fed by mixd, and by torchvision with torch's DataLoader: losses, accuracies, times of three seeds
	.venv/torch/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(TARGET)/wheels/mixd-*.whl
	.venv/torch/bin/python scripts/compare_training.py --data "$(DATA)" --out benches/results

gpu-check: gpu-pack ## Check and measure mixd on this machine's CUDA device (python3 with PyTorch; under 8 minutes)
	python3 scripts/gpu-check.py --pack .gpu-check --out benches/results

# What a machine with a device, and without Rust, needs beside the repository: there, `python3 scripts/gpu-check.py`.
gpu-pack: build python ## Build what gpu-check carries into .gpu-check/
	rm -rf .gpu-check && mkdir .gpu-check
	(git describe --always --dirty || echo unknown) >.gpu-check/commit
	cp $(TARGET)/wheels/mixd-*.whl .gpu-check
	strip -o .gpu-check/mixd-torch $(TARGET)/release/mixd-torch
	strip -o .gpu-check/mixd-tests "$$($(CARGO_TEST) $(plain) --lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)"
	du -sh .gpu-check

# The script itself, on a driver that runs on the processor.
check-gpu: python ## Run gpu-check once, briefly, where there is no device
	rm -rf target/check-gpu && mkdir -p target/check-gpu/pack
	cp $(TARGET)/wheels/mixd-*.whl target/check-gpu/pack
	(git describe --always --dirty || echo unknown) >target/check-gpu/pack/commit
	LD_LIBRARY_PATH=$$(tests/cuda_on_cpu/build.sh $(TARGET)/release/cuda_on_cpu) .venv/plain/bin/python scripts/gpu-check.py \
		--pack target/check-gpu/pack --out target/check-gpu --no-torch --quick

libtorch: tools ## Fetch libtorch into .libtorch, once
	$(if $(fetch),@scripts/libtorch.sh)

clean-libtorch: ## Delete .libtorch
	rm -rf .libtorch

tools:
	@scripts/tools.sh cargo c++ cmake nasm $(if $(fetch),$(if $(wildcard $(LIBTORCH)/build-version),,python3 pip))
