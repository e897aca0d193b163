//! Pure types of shoes-vz: ids, resource types, life cycle, on-disk and HTTP formats.
//!
//! There is no tokio and no I/O here, only values and functions of values.

pub mod ambient;
pub mod bundle;
pub mod guest;
pub mod id;
pub mod listen;
mod named;
pub mod request;
pub mod resource;
pub mod state;
pub mod template;
pub mod text;

pub use ambient::Ambient;
pub use id::{AgentId, CloudId, RunnerId, RunnerName};
pub use resource::ResourceType;
pub use state::{Stage, StartPath, State};
