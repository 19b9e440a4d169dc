//! The integration tests: real servers as child processes, real sockets, bytes in and bytes out.
//!
//! `KEYFENCE_TEST_SERVER` names the server binary (default `redis-server`), `KEYFENCE_TEST_SERVER_ARGS` adds arguments to it, such as
//! `--loadmodule …`. `KEYFENCE_TEST_TIER=64MiB` gives every keyfence a tier of that size.
//! `KEYFENCE_TEST_TARGET=plain` puts a plain server where keyfence would stand: the suite then checks itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod apps;
mod cli;
mod clients;
mod differential;
mod docs;
mod faults;
mod flush;
mod functions;
mod large;
mod layers;
mod log;
// There is a server with modules for this platform only (tools/ensure-modules.sh).
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod modules;
mod monitor;
mod property;
mod protocol;
mod proxied;
mod pubsub;
mod restart;
mod scripts;
mod start;
mod support;
mod tenancy;
mod tier;
mod tls;
mod tools;
mod tracking;
