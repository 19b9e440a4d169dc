//! keyfence: a Redis protocol-compatible proxy that gives every tenant a private Redis behind one prefix.
//!
//! ```text
//!   client ─► server ─► session ─► resp ─► proxy ──► rewrite ──► upstream ─► Redis
//!             accept    read       parse   classify  + prefix    shared, dedicated
//!                                  │       authorise                 │
//!                                  │       transaction               │
//!                                  └──► local, scoped                │
//!   client ◄── downstream ◄── rewrite::reply (prefix off) ◄──────────┘
//! ```
//!
//! The modules, in the order of the path:

// Entry: the command line and what it leads to.
pub mod check;
pub mod cli;
pub mod config;
pub mod explain;
// The path of a command.
pub mod server;
pub mod worker;
pub mod session;
pub mod big;
pub mod resp;
pub mod proxy;
pub mod command;
pub mod transaction;
pub mod local;
pub mod scoped;
pub mod rewrite;
pub mod upstream;
pub mod downstream;
// What these share.
pub mod clients;
pub mod error;
pub mod glob;
pub mod net;
pub mod tenant;
