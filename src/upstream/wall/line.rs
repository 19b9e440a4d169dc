//! The connection that manages users: batches of commands and their replies, errors of the server among them.

use redis::{Cmd, Value, aio::MultiplexedConnection};

use super::{super::Target, WallError};
use crate::{error::UpstreamError, upstream::control};

/// Most commands on their way at once, so that the upstream serves others between them.
const BATCH: usize = 64;

/// See the module.
pub(super) struct Line {
    conn: MultiplexedConnection,
    target: Target,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({})", self.target)
    }
}

impl Line {
    pub(super) async fn open(target: &Target) -> Result<Self, UpstreamError> {
        let conn = control::connect(target, 0).await.map_err(|e| UpstreamError::Unreachable(control::describe(&e)))?;
        Ok(Self { conn, target: target.clone() })
    }

    pub(super) async fn ask(&mut self, cmd: &Cmd) -> Result<Value, UpstreamError> {
        Ok(self.send(std::slice::from_ref(cmd)).await?.pop().unwrap_or(Value::Nil))
    }

    /// One reply per command.
    pub(super) async fn send(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, UpstreamError> {
        let mut replies = Vec::with_capacity(commands.len());
        let limit = self.target.socket_timeout;
        for batch in commands.chunks(BATCH) {
            let mut pipe = redis::Pipeline::with_capacity(batch.len());
            for cmd in batch {
                pipe.add_command(cmd.clone());
            }
            let sent = self.conn.send_packed_commands(&pipe, 0, batch.len());
            match tokio::time::timeout(limit, sent).await {
                Ok(Ok(values)) => replies.extend(values),
                Ok(Err(error)) if error.is_io_error() => return Err(UpstreamError::Lost),
                Ok(Err(error)) => return Err(UpstreamError::Unreachable(control::describe(&error))),
                Err(_) => return Err(UpstreamError::TimedOut(limit)),
            }
        }
        Ok(replies)
    }
}

/// `ACL word`.
pub(super) fn acl(word: &str) -> Cmd {
    let mut cmd = redis::cmd("ACL");
    cmd.arg(word);
    cmd
}

/// `Ok(Err(why))` when the server does not let us or does not understand; `Err` when it could not say, as while it loads.
pub(super) fn refusal(reply: &Value) -> Result<Result<(), String>, WallError> {
    let Value::ServerError(error) = reply else { return Ok(Ok(())) };
    let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
    match error.code() {
        "NOPERM" | "ERR" => Ok(Err(text)),
        _ => Err(WallError::Upstream(UpstreamError::Unreachable(text))),
    }
}

/// The strings of a reply.
pub(super) fn texts(reply: &Value) -> Vec<String> {
    match reply {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(bytes).into_owned()],
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => vec![text.clone()],
        Value::Array(values) | Value::Set(values) => values.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}
