//! UPSTREAM: the servers behind.

pub mod managed;
