//! The whole product under test: real binaries, real guests. Also the demo's and the benchmarks' common parts.

pub mod bins;
pub mod daemon;
pub mod fleet;
pub mod go;
pub mod hot;
pub mod leftover;
pub mod plugin;
pub mod ports;
pub mod report;
pub mod scenario;
pub mod script;
pub mod stages;
pub mod template;
pub mod unique;
