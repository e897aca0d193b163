//! Tests of the whole product with real binaries and real guests; also the common parts of the demo and the benchmarks.

pub mod bins;
pub mod daemon;
pub mod fleet;
pub mod go;
pub mod hot;
pub mod identity;
pub mod leftover;
pub mod plugin;
pub mod ports;
pub mod report;
pub mod scenario;
pub mod script;
pub mod stages;
pub mod template;
