# make run     build, and run the quickstart: an origin, the proxy and its admin pages in one process
# make test    every test; installs the servers that they talk to
# make check   formatting, lints, documentation
# make bench   Millpond beside nginx and plain pingora-proxy, in one run
#
# What is missing on this machine is installed first (Debian packages and cargo-nextest), and said.

SHELL := /bin/bash
.DEFAULT_GOAL := run
.PHONY: run test check bench deps test-deps bench-deps

BUILD_PACKAGES := cmake pkg-config libssl-dev
TEST_PACKAGES := apache2 nginx-light tomcat10 memcached redis-server php8.2-fpm uwsgi-core uwsgi-plugin-python3
BENCH_PACKAGES := nginx-light wrk memcached php8.2-fpm

# Installs those of the packages $(1) that are not there.
define install
	@missing=$$(for package in $(1); do \
		dpkg-query -W -f='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		echo "installing Debian packages: $$(echo $$missing)"; \
		sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$sudo apt-get update -qq && \
		$$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
endef

run: deps
	cargo run --release --example quickstart

test: test-deps
	cargo nextest run --locked
	cargo test --doc --locked

check: deps
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

bench: bench-deps
	cargo bench --locked --bench hooks
	cargo bench --locked --bench compare

deps:
	$(call install,$(BUILD_PACKAGES))

test-deps: deps
	$(call install,$(TEST_PACKAGES))
	@cargo nextest --version >/dev/null 2>&1 || { echo "installing cargo-nextest"; cargo install --locked cargo-nextest; }

bench-deps: deps
	$(call install,$(BENCH_PACKAGES))
