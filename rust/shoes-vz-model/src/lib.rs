//! Pure types of shoes-vz: ids, resource types, life cycle, on-disk and HTTP formats, wire conversions.
//!
//! No tokio, no I/O: everything here is a value or a function of values.

pub mod bundle;
pub mod guest;
pub mod id;
pub mod listen;
pub mod outside;
pub mod request;
pub mod resource;
pub mod state;
pub mod template;
pub mod text;
pub mod time;

pub use id::{AgentId, CloudId, RunnerId, RunnerName};
pub use outside::Outside;
pub use resource::ResourceType;
pub use state::{Stage, StartPath, State};
