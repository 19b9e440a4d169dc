//! keyfence: a Redis protocol-compatible proxy that gives every tenant a private Redis behind one prefix.
pub mod cli;
pub mod command;
pub mod config;
pub mod resp;
pub mod upstream;
