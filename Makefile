# Two commands for a newcomer: `make run` and `make test`. CI calls the same targets (.ci/run).

CARGO ?= cargo
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.PHONY: help run test lint bench

help:
	@echo "make run    start keyfence and a private Redis behind it, on 127.0.0.1:6380"
	@echo "make test   all tests; installs redis-server, chromium and the client libraries if they are absent"
	@echo "make lint   formatting, clippy, documentation, licences and sources of the dependencies"
	@echo "make bench  the benchmarks, and beside other proxies; writes docs/performance.md, takes about half an hour"

run:
	@tools/ensure-redis.sh
	$(CARGO) run --release --locked -- run

test:
	@tools/ensure-redis.sh
	@tools/ensure-clients.sh
	@tools/ensure-browser.sh
	@tools/ensure-modules.sh >/dev/null || [ $$? = 69 ]
ifdef NEXTEST
	$(CARGO) nextest run --locked
	if modules="$$(tools/ensure-modules.sh)"; then \
	  KEYFENCE_TEST_SERVER="$$modules" $(CARGO) nextest run --locked --test it -E 'test(/^differential/)'; \
	fi
else
	$(CARGO) test --locked --all-targets
endif
	$(CARGO) test --locked --doc

# The advisory database is fetched from elsewhere and is not part of this: `cargo deny check advisories`.
lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
	  echo "$(CARGO) deny check bans licenses sources"; \
	  $(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources; \
	else \
	  echo "lint: cargo-deny is not installed, so dependencies are not checked: cargo install --locked cargo-deny" >&2; \
	fi

bench:
	@tools/ensure-redis.sh
	$(CARGO) build --release --locked
	$(CARGO) bench --locked
	python3 benches/load.py
	python3 benches/tier.py
	python3 benches/compare.py
	python3 benches/scale.py
	python3 benches/pubsub.py
	python3 benches/scripts.py
