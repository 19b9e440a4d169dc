//! Why a request could not be served by an upstream, and what the client is told: the four errors of keyfence's own that concern upstreams.

use std::time::Duration;

/// An upstream's fault, or the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// No connection could be had; the request did not run.
    Unreachable(String),
    /// `socket_timeout` passed; the request may have run.
    TimedOut(Duration),
    /// The connection broke with the request in flight; it may have run.
    Lost,
    /// The upstream answered with this error: the line.
    Refused(String),
    /// `max_connections` or a queue is full; the request did not run.
    Busy(String),
}

impl UpstreamError {
    /// The error line without `-` and CRLF.
    pub fn to_line(&self) -> String {
        match self {
            Self::Unreachable(why) => format!("UPSTREAM unreachable: {why}"),
            Self::TimedOut(after) => format!("UPSTREAM timed out after {after:?}"),
            Self::Lost => "UPSTREAM connection lost".into(),
            Self::Refused(line) => line.clone(),
            Self::Busy(what) => format!("BUSY {what}"),
        }
    }
}
