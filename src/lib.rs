//! keyfence: a Redis protocol-compatible proxy that gives every tenant a private Redis behind one prefix.
pub mod cli;
pub mod command;
pub mod config;
/// What keyfence answers itself.
pub mod local {
    pub mod command_docs;
}
pub mod resp;
pub mod upstream;
