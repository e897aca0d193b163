//! Virtualization.framework.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;

use super::{Hypervisor, HypervisorError, Machine};
use crate::spec::VmSpec;

/// macOS' hypervisor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vz;

#[async_trait]
impl Hypervisor for Vz {
    async fn create(&self, _: &VmSpec, _: &Path) -> Result<Arc<dyn Machine>, HypervisorError> {
        Err(HypervisorError::Unsupported(
            "this build has no Virtualization.framework (issue 3), so it cannot run macOS guests; \
             on Linux use a Linux template"
                .into(),
        ))
    }
}
