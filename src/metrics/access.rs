//! The access log: one of so many commands, as `log.access_sample` says. Who, what kind of command, how long, how it ended; no name of a key and no
//! value.

use super::{ErrorKind, KINDS, TenantCells};
use crate::command::ROWS;

/// The target of its events, by which the log knows them.
pub const TARGET: &str = "keyfence::access";

/// Writes one command. `error`: what its client was told instead of a reply.
#[cold]
pub fn write(cells: &TenantCells, client: &str, row: u16, arguments: usize, micros: u64, error: Option<ErrorKind>) {
    let (tenant, command) = (&*cells.name, ROWS.get(usize::from(row)).map_or("", |row| row.name));
    let result = error.map_or("ok", |kind| KINDS[kind.index()]);
    tracing::info!(target: TARGET, tenant, client, command, arguments, took_us = micros, result, "command");
}
