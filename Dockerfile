# The image of keyfence: one binary on Debian, run as an unprivileged user. The server behind is elsewhere; there is none in here.
#
#   docker build -t keyfence:0.1.0 .
#   docker run --rm -p 6380:6380 -e KEYFENCE_UPSTREAM__URL=redis://redis.internal:6379/0 keyfence:0.1.0
#
# Needs BuildKit, which `docker build` uses since version 23. docs/install.md says more.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# .dockerignore lets through what the build reads and nothing else.
COPY . .
# The folder of the cache mount is not part of the layer, so the binary is taken out of it. With names of functions, without line tables.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin keyfence \
    && strip --strip-debug -o /keyfence target/release/keyfence

# The same Debian as above: the binary is linked to its C library.
FROM debian:bookworm-slim
# Authorities for rediss:// upstreams whose settings name no ca_file.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /keyfence /usr/local/bin/keyfence
COPY dist/docker/config.toml /etc/keyfence/config.toml

# A number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
# keyfence takes ./config.toml; a file mounted there replaces the one of the image.
WORKDIR /etc/keyfence
EXPOSE 6380 9180
STOPSIGNAL SIGTERM

# Is the process alive? Not whether the upstream is: restarting keyfence mends no upstream. The image has no HTTP client, and bash can do it. It asks where
# [admin] listen is by default, which 0.0.0.0:9180 includes; with another port give --health-cmd, with admin.listen = "" --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9180 && printf 'GET /healthz HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n' >&3 && read -r -t 2 _ status _ <&3 && [ \"$status\" = 200 ]"]

ENTRYPOINT ["keyfence"]
CMD ["run"]
