//! What every service does with a call: its defaults, its deadline, and the code of its refusal.

use std::time::Duration;

use shoes_vz_model::ResourceType;
use shoes_vz_proto::convert::grpc_timeout;
use tonic::Status;

use crate::fleet::event::Refusal;

/// Defaults for calls that leave something open.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub resource_type: ResourceType,
    /// How long an AddInstance without a deadline waits.
    pub add_timeout: Duration,
    /// How long a DeleteInstance without a deadline waits.
    pub delete_timeout: Duration,
}

pub(super) fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Invalid(_) => tonic::Code::InvalidArgument,
        Refusal::Exhausted(_) => tonic::Code::ResourceExhausted,
        Refusal::Failed(_) => tonic::Code::Internal,
        Refusal::Aborted(_) => tonic::Code::Aborted,
        Refusal::Deadline(_) => tonic::Code::DeadlineExceeded,
        // Never INVALID_ARGUMENT: upon that code myshoes drops the job, upon any other it calls again.
        Refusal::Unavailable(_) | Refusal::Unwritable(_) | Refusal::Stopping => tonic::Code::Unavailable,
        Refusal::NotFound(_) => tonic::Code::NotFound,
        Refusal::Ambiguous(_) => tonic::Code::FailedPrecondition,
    };
    // gRPC carries the message in a header, and intermediaries limit the size of headers.
    Status::new(code, shoes_vz_model::text::tail(refusal.to_string().as_bytes(), usize::MAX, 4 << 10))
}

/// How long the caller waits, from its `grpc-timeout` header.
pub(super) fn caller_timeout(metadata: &tonic::metadata::MetadataMap, default: Duration) -> Duration {
    grpc_timeout(metadata).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_from_its_header() {
        let default = Duration::from_secs(300);
        for (text, wanted) in [
            ("5M", default),
            ("12S", Duration::from_secs(12)),
            ("250m", Duration::from_millis(250)),
            ("S", default),
            ("123456789S", default),
            ("1x", default),
        ] {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(caller_timeout(&metadata, default), wanted, "{text}");
        }
        assert_eq!(caller_timeout(&tonic::metadata::MetadataMap::new(), default), default);
    }
}
