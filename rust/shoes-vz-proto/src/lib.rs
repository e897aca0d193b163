//! Generated code for every protocol of shoes-vz, whose sources are in `proto/`, and its conversions from and to the model.
#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]

pub mod convert;

/// myshoes' plugin protocol.
pub mod myshoes {
    tonic::include_proto!("whywaita.myshoes");
}

/// hashicorp/go-plugin's side services.
pub mod goplugin {
    tonic::include_proto!("plugin");
}

/// `shoes.vz.*`, nested like the packages, so that generated cross references resolve.
pub mod shoes {
    pub mod vz {
        pub mod agent {
            pub mod v1 {
                tonic::include_proto!("shoes.vz.agent.v1");
            }
        }
        pub mod shoes {
            pub mod v1 {
                tonic::include_proto!("shoes.vz.shoes.v1");
            }
        }
        pub mod vm {
            pub mod v1 {
                tonic::include_proto!("shoes.vz.vm.v1");
            }
        }
    }
}

pub use shoes::vz::{agent::v1 as agent, shoes::v1 as fleet, vm::v1 as vm};

/// Every file's descriptor, for gRPC reflection and wire tests.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Response header of `WatchRunners`, sent before the first message: how many runners match the filter now, in decimal.
/// That many messages come first; with `0` no message comes until a runner matches.
pub const WATCH_MATCHING: &str = "shoesvz-matching";
