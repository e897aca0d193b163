# The only entry: `make help` lists every target. CI runs `make test`, as a person does. A target means the same on Linux and on
# macOS. Targets whose guests run under QEMU are for Linux, and print elsewhere what to do instead.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# cargo uses every core by itself, and two runs of apt would collide.
.NOTPARALLEL:

# The operating system comes first: each names architectures differently.
OS := $(shell uname -s)
ARCH := $(shell uname -m)
ifeq ($(OS),Darwin)
# One deployment target for every call of cargo, so that nothing is built twice; scripts/macos-tools.sh uses the same.
export MACOSX_DEPLOYMENT_TARGET := 26.0
endif

GUEST_TARGET := $(ARCH)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
GUEST_BIN := $(TARGET_DIR)/$(GUEST_TARGET)/guest
TEMPLATE := target/template
VZ_TEMPLATE := target/vz-template

# With a Swift toolchain (the system's, or the one from `make setup-swift`) the build contains VZCore, on Linux with the
# stand-in for Virtualization.framework, which `--hypervisor vz` then runs. Without one, everything else works, and the agent
# runs only QEMU. Every debug build and test uses the same selection, so that nothing is built twice. On macOS the build always
# contains VZCore.
comma := ,
HAS_SWIFT := $(if $(filter Linux,$(OS)),$(shell scripts/with-swift true 2> /dev/null && echo yes))
FEATURES := $(if $(HAS_SWIFT),--features shoes-vz-agent/swift$(comma)shoes-vz-testkit/vz-tests)

# The profile of `make build`; "dev" reuses what demo and tests have built.
PROFILE ?= release

.PHONY: help setup deps setup-qemu setup-swift setup-build setup-test build debug-build proto-generate proto-release guest \
    template vz-template demo test simulate chaos soak snapshots swift-test check api-check macos-check bundle bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the missing packages that build and demo need (Debian, Ubuntu: with apt as root; elsewhere: list them)
	@scripts/setup.sh demo

deps: setup ## The same as setup, under the Go implementation's name; the build fetches crates
	@echo "deps: this is \`make setup\`; cargo fetches every crate during the build"

setup-qemu: ## Install a QEMU that can save VMs (8.2 or newer); on Debian 12 from backports, which adds a package source
	@scripts/setup.sh qemu

setup-swift: ## Install a Swift toolchain in ~/.cache, without changing the system (Debian's; 1.5 GB; nothing if swift is installed)
	@scripts/setup-swift.sh

setup-build:
	@scripts/setup.sh build

setup-test:
	@scripts/setup.sh test

build: setup-build ## Build release binaries of the four programs in bin/; on macOS signed (SIGN_IDENTITY, or ad hoc) with the entitlement
	@FEATURES="$(FEATURES)" scripts/build.sh $(PROFILE)

# The binaries that demo and tests run.
# The demo needs fewer of them. Features are the workspace's in any case, so that nothing is built twice.
BINS := --bins
demo: BINS := --bin shoes-vz-server --bin shoes-vz-client --bin shoes-vz-agent --bin shoes-vz-demo
debug-build: setup-build
	cargo build --workspace $(BINS) $(FEATURES)

proto-generate: setup-build ## Compare proto/ with the last release (cargo generates the code during the build)
	@echo "proto-generate: cargo generates the code while it builds (rust/shoes-vz-proto/build.rs, with protox; no protoc is needed)"
	@echo "proto-generate: comparing proto/ with the last release (proto/released.txt)"
	cargo test --workspace --quiet --test released $(FEATURES) -- --nocapture

proto-release: setup-build ## Record proto/ as released, for later versions to keep; a step of a release (writes proto/released.txt)
	SHOESVZ_PROTO_RELEASE=1 cargo test --workspace --quiet --test released $(FEATURES) -- --nocapture

SEEDS ?= 0..2000
simulate: debug-build ## Run server and agents in virtual time, under faults drawn from seeds (SEEDS=A..B, or one; LOG=1 shows every event)
	$(TARGET_DIR)/debug/shoes-vz-simulate $(if $(LOG),--log) $(SEEDS)

ROUNDS ?= 50
CYCLES ?= 500

ifeq ($(OS),Linux)

guest: setup-build ## Build the programs that run inside a Linux guest, static
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest --target $(GUEST_TARGET) \
	    -p shoes-vz-guest-init -p shoes-vz-runner-agent

template: setup debug-build guest ## Build the Linux guest template for demo and tests (cached)
	$(TARGET_DIR)/debug/shoes-vz-agent template build-linux --output $(TEMPLATE) --cache target/template-cache \
	    --guest-agent $(GUEST_BIN)/shoes-vz-runner-agent --guest-init $(GUEST_BIN)/shoes-vz-guest-init \
	    --overlay guests/demo/overlay --name demo

vz-template: setup-test template # The template that --hypervisor vz uses on Linux
	@$(if $(FEATURES),guests/stand-in/template.sh $(TEMPLATE) $(VZ_TEMPLATE))

demo: template ## Run one job from AddInstance to an empty host, on a real VM; report in target/demo/report.json
	$(TARGET_DIR)/debug/shoes-vz-demo --template $(TEMPLATE) --report target/demo/report.json

test: vz-template ## Run every test, the same set as CI; with a Swift toolchain also those of Swift and the seam
	FEATURES="$(FEATURES)" SHOESVZ_TEST_VZ_TEMPLATE="$(if $(FEATURES),$(CURDIR)/$(VZ_TEMPLATE))" scripts/test.sh

chaos: template ## Kill server, agent, VM processes and QEMUs with signal 9 at random instants, under load (ROUNDS=50)
	SHOESVZ_CHAOS_ROUNDS=$(ROUNDS) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test chaos -- --nocapture

soak: template ## Repeat claim, job, delete on hot VMs: nothing may be left or grow (CYCLES=500)
	SHOESVZ_SOAK_CYCLES=$(CYCLES) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test soak -- --nocapture

snapshots: template ## Accept the present --help texts and metrics (tools/shoes-vz-testkit/tests/pages/snapshots); read the difference
	SNAPSHOTS=overwrite SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) cargo test --workspace $(FEATURES) --test pages -- looked_at_last

bench: template ## Measure cold, restored and hot starts and the Go implementation's waits on real guests; numbers in target/bench/start.json
	RUSTFLAGS= cargo build --release -p shoes-vz-client -p shoes-vz-server -p shoes-vz-agent -p shoes-vz-testkit --bins
	$(TARGET_DIR)/release/shoes-vz-bench --template $(TEMPLATE) --report target/bench/start.json

else

guest template vz-template demo chaos soak snapshots bench:
	@scripts/elsewhere.sh $@

test: setup-test
	scripts/test.sh

endif

swift-test: ## Run Swift's tests alone: format, coverage, races (Linux, against the stand-in)
	scripts/swift-test.sh

check: setup-build ## Check formatting, clippy with warnings denied, licences and sources of every dependency
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(FEATURES) -- -D warnings
	scripts/deny.sh

api-check: ## Compare every Virtualization symbol in use with facts from the macOS 26.5 SDK
	scripts/api-check.sh

macos-check: ## Check the macOS build as far as Linux can: clippy, tests and binaries for arm64, linked, bundled, signed
	scripts/macos-check.sh

bundle: setup-build ## Build ShoesVZAgent.app, signed (SIGN_IDENTITY, or ad hoc), in target/bundle/
	packaging/macos/bundle.sh

clean: ## Remove everything that was built, and the template's download cache
	cargo clean
	rm -rf bin
