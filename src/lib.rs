//! keyfence: a Redis protocol-compatible proxy that gives every tenant a private Redis behind one prefix.
//!
//! ```text
//!   client ─► server ─► session ─► resp ─► proxy ──► rewrite ──► upstream ─► Redis
//!             accept    read       parse   classify  + prefix    shared, dedicated
//!                                  │       authorise                 │
//!                                  │       transaction               │
//!                                  └──► local, scoped, scripts       │
//!   client ◄── downstream ◄── rewrite::reply (prefix off) ◄──────────┘
//! ```
//!
//! The modules, in the order of the path:

// Entry: the command line and what it leads to.
pub mod admin;
pub mod adopt;
pub mod check;
pub mod cli;
pub mod config;
pub mod explain;
pub mod purge;
// The path of a command.
pub mod big;
pub mod coherence;
pub mod command;
pub mod downstream;
pub mod local;
pub mod login;
pub mod monitor;
pub mod near;
pub mod plane;
pub mod proxy;
pub mod pubsub;
pub mod reload;
pub mod resp;
pub mod rewrite;
pub mod scoped;
pub mod scripts;
pub mod server;
pub mod session;
pub mod tracking;
pub mod transaction;
pub mod upstream;
pub mod worker;
// What these share.
pub mod clients;
pub mod crash;
pub mod directory;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod glob;
pub mod log;
pub mod metrics;
pub mod net;
pub mod slowlog;
pub mod systemd;
pub mod tenant;
pub mod tier;
pub mod tls;
pub mod walk;
