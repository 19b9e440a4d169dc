//! The same calls, straight to a server and through keyfence: the replies must be the same bytes, and afterwards the upstream's
//! keyspace, prefix taken off, must be the plain server's.
//!
//! `corpus/*.txt` hold well-formed calls in scenes; [`mutate`] makes the malformed ones. Every scene starts from an empty keyspace.
mod corpus;
mod mutate;
mod run;
mod session;
