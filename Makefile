# The only entry: `make help` lists every target. CI runs `make test`, as a person does.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

ARCH := $(shell uname -m)
GUEST_TARGET := $(ARCH)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
GUEST_BIN := $(TARGET_DIR)/$(GUEST_TARGET)/guest
TEMPLATE := target/template
VZ_TEMPLATE := target/vz-template

# With a Swift toolchain (the system's, or the one `make setup-swift` gets) VZCore is in: on Linux against its stand-in
# Virtualization, which `--hypervisor vz` then runs. Without one everything else works, and the agent runs QEMU only.
HAS_SWIFT := $(shell packaging/dev/with-swift true 2> /dev/null && echo yes)
FEATURES := $(if $(HAS_SWIFT),$(if $(filter Linux,$(shell uname -s)),--features shoes-vz-agent/swift))

.PHONY: help setup setup-swift build guest template vz-template demo test simulate chaos soak snapshots swift-test check api-check macos-check bundle bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing (Debian, Ubuntu; no changes elsewhere)
	@packaging/dev/setup.sh

setup-swift: ## A Swift toolchain in reach, without touching the system (Debian's; 1.5 GB; nothing where swift is there)
	@packaging/dev/setup-swift.sh

build: setup ## The binaries, for this machine; with VZCore (feature "swift") where there is a Swift toolchain
	cargo build --workspace --bins $(FEATURES)

guest: setup ## What runs inside a Linux guest, static
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest --target $(GUEST_TARGET) \
	    -p shoes-vz-guest-init -p shoes-vz-runner-agent

template: build guest ## The Linux guest template for demo and tests (cached)
	$(TARGET_DIR)/debug/shoes-vz-agent template build-linux --output $(TEMPLATE) --cache target/template-cache \
	    --guest-agent $(GUEST_BIN)/shoes-vz-runner-agent --guest-init $(GUEST_BIN)/shoes-vz-guest-init \
	    --overlay packaging/demo/overlay --name demo

vz-template: template # What --hypervisor vz runs on Linux
	@$(if $(FEATURES),packaging/stand-in/template.sh $(TEMPLATE) $(VZ_TEMPLATE))

demo: template ## One job from AddInstance to an empty host, on a real VM; report in target/demo/report.json
	$(TARGET_DIR)/debug/shoes-vz-demo --template $(TEMPLATE) --report target/demo/report.json

test: vz-template ## Every test; the same set CI runs. Swift's and the seam's too where there is a Swift toolchain
	FEATURES="$(FEATURES)" SHOESVZ_TEST_VZ_TEMPLATE="$(if $(FEATURES),$(CURDIR)/$(VZ_TEMPLATE))" packaging/dev/test.sh

SEEDS ?= 0..2000
simulate: setup ## Server and agents under faults drawn from seeds, in virtual time (SEEDS=A..B, or one; LOG=1 shows all of it)
	RUSTFLAGS="--cfg tokio_unstable" cargo build --workspace --bins $(FEATURES)
	$(TARGET_DIR)/debug/shoes-vz-simulate $(if $(LOG),--log) $(SEEDS)

ROUNDS ?= 50
chaos: template ## kill -9 of server, agent, VM processes and QEMUs at random instants, under load (ROUNDS=50)
	SHOESVZ_CHAOS_ROUNDS=$(ROUNDS) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test chaos -- --nocapture

CYCLES ?= 500
soak: template ## Claim, job, delete on hot VMs, again and again: nothing is left, nothing grows (CYCLES=500)
	SHOESVZ_SOAK_CYCLES=$(CYCLES) SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) \
	    cargo test --workspace $(FEATURES) --test soak -- --nocapture

snapshots: template ## Accept what --help and the metrics show now (rust/shoes-vz-testkit/tests/pages/snapshots); look at the difference
	SNAPSHOTS=overwrite SHOESVZ_TEST_TEMPLATE=$(CURDIR)/$(TEMPLATE) cargo test --workspace $(FEATURES) --test pages -- looked_at_last

swift-test: ## Swift's tests alone: format, coverage, races
	packaging/dev/swift-test.sh

check: setup ## Format, clippy with warnings denied, licences and sources of every dependency
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(FEATURES) -- -D warnings
	packaging/dev/deny.sh

api-check: ## Every Virtualization symbol used, against facts from the macOS 26.5 SDK
	packaging/dev/api-check.sh

macos-check: ## All that Linux can prove of the macOS build: clippy, tests and binaries for arm64, linked, bundled, signed
	packaging/dev/macos-check.sh

bundle: ## ShoesVZAgent.app, signed (SIGN_IDENTITY, or ad hoc): target/bundle/
	packaging/macos/bundle.sh

bench: template ## Speed on real guests — cold, restored, hot, and as the Go implementation waits — as a table; numbers in target/bench/start.json
	RUSTFLAGS= cargo build --release -p shoes-vz-client -p shoes-vz-server -p shoes-vz-agent -p shoes-vz-testkit --bins
	$(TARGET_DIR)/release/shoes-vz-bench --template $(TEMPLATE) --report target/bench/start.json

clean: ## Remove what was built (the template's download cache too)
	cargo clean
