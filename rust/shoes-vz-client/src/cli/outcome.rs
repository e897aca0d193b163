//! The outcome of a command: its result on stdout, or its failure.

use std::io;

use serde_json::Value;
use shoes_vz_process::settings::Mistakes;
use shoes_vz_terminal::{output::print, text};
use tonic::{Code, Status};

use crate::upstream::Server;

/// What every command needs.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) server: Server,
    pub(super) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    People,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Every mistake found in flags, environment, configuration file and input, at once.
    #[error("{0}")]
    Usage(#[from] Mistakes),
    /// From the server or the transport.
    #[error("{} ({})", .0.message(), code_name(.0.code()))]
    Call(#[from] Status),
    #[error("writing to stdout failed: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn print_json(value: &Value) -> io::Result<()> {
    print(&text::json(&value.to_string()))
}

/// The spelling of the gRPC specification.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
