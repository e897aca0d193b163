# The only entry: `make help` lists every target. CI runs `make test`, as a person does.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

ARCH := $(shell uname -m)
GUEST_TARGET := $(ARCH)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
GUEST_BIN := $(TARGET_DIR)/$(GUEST_TARGET)/guest
TEMPLATE := target/template

.PHONY: help setup build guest template demo test check bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing (Debian, Ubuntu; no changes elsewhere)
	@packaging/dev/setup.sh

build: setup ## The binaries, for this machine
	cargo build --workspace --bins

guest: setup ## What runs inside a Linux guest, static
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest --target $(GUEST_TARGET) \
	    -p shoes-vz-guest-init -p shoes-vz-runner-agent

template: build guest ## The Linux guest template for demo and tests (cached)
	$(TARGET_DIR)/debug/shoes-vz-agent template build-linux --output $(TEMPLATE) --cache target/template-cache \
	    --guest-agent $(GUEST_BIN)/shoes-vz-runner-agent --guest-init $(GUEST_BIN)/shoes-vz-guest-init \
	    --overlay packaging/demo/overlay --name demo

demo: template ## One job from AddInstance to an empty host, on a real VM; report in target/demo/report.json
	$(TARGET_DIR)/debug/shoes-vz-demo --template $(TEMPLATE) --report target/demo/report.json

test: template ## Every test; the same set CI runs
	packaging/dev/test.sh

check: setup ## Format, clippy with warnings denied, licences and sources of every dependency
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	packaging/dev/deny.sh

bench: template ## Speed on real guests, printed as a table; numbers in target/bench/start.json
	cargo build --release -p shoes-vz-client -p shoes-vz-server -p shoes-vz-agent -p shoes-vz-testkit --bins
	$(TARGET_DIR)/release/shoes-vz-bench --template $(TEMPLATE) --report target/bench/start.json

clean: ## Remove what was built (the template's download cache too)
	cargo clean
