# The only entry: `make help` lists every target. CI runs `make test`, as a person does. The same targets mean the same on
# Linux and on macOS; those whose guests run under QEMU are for Linux, and say elsewhere what to do instead.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# cargo uses every core by itself, and apt is not run twice at once.
.NOTPARALLEL:

# The operating system before anything else: each has names of its own for architectures.
OS := $(shell uname -s)
ARCH := $(shell uname -m)
ifeq ($(OS),Darwin)
# One deployment target for every call of cargo, so that nothing is built twice; the same in packaging/dev/macos-tools.sh.
export MACOSX_DEPLOYMENT_TARGET := 26.0
endif

GUEST_TARGET := $(ARCH)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
GUEST_BIN := $(TARGET_DIR)/$(GUEST_TARGET)/guest
TEMPLATE := target/template
VZ_TEMPLATE := target/vz-template

# With a Swift toolchain (the system's, or the one `make setup-swift` gets) VZCore is in: on Linux against its stand-in
# Virtualization, which `--hypervisor vz` then runs. Without one everything else works, and the agent runs QEMU only. One
# selection for every debug build and test, so that nothing is built twice. On macOS VZCore is always in.
comma := ,
HAS_SWIFT := $(if $(filter Linux,$(OS)),$(shell packaging/dev/with-swift true 2> /dev/null && echo yes))
FEATURES := $(if $(HAS_SWIFT),--features shoes-vz-agent/swift$(comma)shoes-vz-testkit/vz-tests)

# Of `make build`; "dev" takes what demo and tests have built.
PROFILE ?= release

.PHONY: help setup deps setup-qemu setup-swift setup-build setup-test build debug-build proto-generate proto-release guest \
    template vz-template demo test simulate chaos soak snapshots swift-test check api-check macos-check bundle bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what build and demo need and is missing (Debian, Ubuntu: by apt as root; elsewhere it says what is missing)
	@packaging/dev/setup.sh demo

deps: setup ## The same as setup, by the name the Go implementation has for it; crates come by themselves, with the build
	@echo "deps: this is \`make setup\`; cargo fetches every crate by itself, with the build"

setup-qemu: ## A QEMU that can save VMs (8.2 or newer); on Debian 12 from backports, which adds a package source
	@packaging/dev/setup.sh qemu

setup-swift: ## A Swift toolchain in reach, without touching the system (Debian's; 1.5 GB; nothing where swift is there)
	@packaging/dev/setup-swift.sh

setup-build:
	@packaging/dev/setup.sh build

setup-test:
	@packaging/dev/setup.sh test

build: setup-build ## Release binaries of the four programs in bin/; on macOS signed (SIGN_IDENTITY, or ad hoc) with the entitlement
	@FEATURES="$(FEATURES)" packaging/dev/build.sh $(PROFILE)

# What demo and tests run.
debug-build: setup-build
	cargo build --workspace --bins $(FEATURES)

proto-generate: setup-build ## Nothing is to be generated (cargo does it, with the build); checks proto/ against the last release
	@echo "proto-generate: cargo generates the code while it builds (rust/shoes-vz-proto/build.rs, with protox; no protoc is needed)"
	@echo "proto-generate: comparing proto/ with what the last release promises (proto/released.txt)"
	cargo test --workspace --quiet --test released $(FEATURES) -- --nocapture

proto-release: setup-build ## Of a release: what proto/ says now is what later versions keep (writes proto/released.txt)
	SHOESVZ_PROTO_RELEASE=1 cargo test --workspace --quiet --test released $(FEATURES) -- --nocapture

SEEDS ?= 0..2000
simulate: debug-build ## Server and agents under faults drawn from seeds, in virtual time (SEEDS=A..B, or one; LOG=1 shows all of it)
	$(TARGET_DIR)/debug/shoes-vz-simulate $(if $(LOG),--log) $(SEEDS)

ROUNDS ?= 50
CYCLES ?= 500

ifeq ($(OS),Linux)

guest: setup-build ## What runs inside a Linux guest, static
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest --target $(GUEST_TARGET) \
	    -p shoes-vz-guest-init -p shoes-vz-runner-agent

template: setup debug-build guest ## The Linux guest template for demo and tests (cached)
	$(TARGET_DIR)/debug/shoes-vz-agent template build-linux --output $(TEMPLATE) --cache target/template-cache \
	    --guest-agent $(GUEST_BIN)/shoes-vz-runner-agent --guest-init $(GUEST_BIN)/shoes-vz-guest-init \
	    --overlay packaging/demo/overlay --name demo

vz-template: setup-test template # What --hypervisor vz runs on Linux
	@$(if $(FEATURES),packaging/stand-in/template.sh $(TEMPLATE) $(VZ_TEMPLATE))

demo: template ## One job from AddInstance to an empty host, on a real VM; report in target/demo/report.json
	$(TARGET_DIR)/debug/shoes-vz-demo --template $(TEMPLATE) --report target/demo/report.json

test: vz-template ## Every test; the same set CI runs. Swift's and the seam's too where there is a Swift toolchain
	FEATURES="$(FEATURES)" SHOESVZ_TEST_VZ_TEMPLATE="$(if $(FEATURES),$(CURDIR)/$(VZ_TEMPLATE))" packaging/dev/test.sh

chaos: template ## kill -9 of server, agent, VM processes and QEMUs at random instants, under load (ROUNDS=50)
	SHOESVZ_CHAOS_ROUNDS=$(ROUNDS) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test chaos -- --nocapture

soak: template ## Claim, job, delete on hot VMs, again and again: nothing is left, nothing grows (CYCLES=500)
	SHOESVZ_SOAK_CYCLES=$(CYCLES) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test soak -- --nocapture

snapshots: template ## Accept what --help and the metrics show now (rust/shoes-vz-testkit/tests/pages/snapshots); look at the difference
	SNAPSHOTS=overwrite SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) cargo test --workspace $(FEATURES) --test pages -- looked_at_last

bench: template ## Speed on real guests — cold, restored, hot, and as the Go implementation waits — as a table; numbers in target/bench/start.json
	RUSTFLAGS= cargo build --release -p shoes-vz-client -p shoes-vz-server -p shoes-vz-agent -p shoes-vz-testkit --bins
	$(TARGET_DIR)/release/shoes-vz-bench --template $(TEMPLATE) --report target/bench/start.json

else

guest template vz-template demo chaos soak snapshots bench:
	@packaging/dev/elsewhere.sh $@

test: setup-test
	packaging/dev/test.sh

endif

swift-test: ## Swift's tests alone: format, coverage, races (Linux, against the stand-in)
	packaging/dev/swift-test.sh

check: setup-build ## Format, clippy with warnings denied, licences and sources of every dependency
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(FEATURES) -- -D warnings
	packaging/dev/deny.sh

api-check: ## Every Virtualization symbol used, against facts from the macOS 26.5 SDK
	packaging/dev/api-check.sh

macos-check: ## All that Linux can prove of the macOS build: clippy, tests and binaries for arm64, linked, bundled, signed
	packaging/dev/macos-check.sh

bundle: setup-build ## ShoesVZAgent.app, signed (SIGN_IDENTITY, or ad hoc): target/bundle/
	packaging/macos/bundle.sh

clean: ## Remove what was built (the template's download cache too)
	cargo clean
	rm -rf bin
