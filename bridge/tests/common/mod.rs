//! Templates and bundles for the stand-in.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use shoes_vz_bridge::clone_bundle;
use tempfile::TempDir;

/// A property list as `VZMacHardwareModel.dataRepresentation` is one, in base64.
const HARDWARE_MODEL: &str = concat!(
    "PD94bWwgdmVyc2lvbj0iMS4wIiBlbmNvZGluZz0iVVRGLTgiPz48cGxpc3QgdmVyc2lvbj0iMS4wIj48ZGljdD48a2V5Pk1pbmltdW1T",
    "dXBwb3J0ZWRPUzwva2V5PjxhcnJheT48aW50ZWdlcj4xMzwvaW50ZWdlcj48aW50ZWdlcj4wPC9pbnRlZ2VyPjxpbnRlZ2VyPjA8L2lu",
    "dGVnZXI+PC9hcnJheT48a2V5PlBsYXRmb3JtVmVyc2lvbjwva2V5PjxpbnRlZ2VyPjI8L2ludGVnZXI+PC9kaWN0PjwvcGxpc3Q+"
);

/// A template, and the bundles made of it.
pub struct Fixture {
    pub dir: TempDir,
}

impl Fixture {
    /// `guest` is the script the guest is; "" = a guest that does nothing until it is stopped. `firmware` is the
    /// auxiliary storage's content: the stand-in's faults.
    pub fn new(guest: &str, firmware: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("seam").tempdir().unwrap();
        let template = dir.path().join("t");
        fs::create_dir(&template).unwrap();
        let disk = fs::File::create(template.join("Disk.img")).unwrap();
        if guest.is_empty() {
            disk.set_len(1 << 20).unwrap();
        } else {
            let program = format!("#!/bin/bash\n{guest}\n");
            fs::write(template.join("Disk.img"), &program).unwrap();
            let file = fs::File::options().write(true).open(template.join("Disk.img")).unwrap();
            file.set_len((program.len() as u64 + 1).next_multiple_of(512)).unwrap();
        }
        fs::write(template.join("AuxiliaryStorage"), if firmware.is_empty() { "{}" } else { firmware })
            .unwrap();
        let model = format!("{{\"hardwareModel\":\"{HARDWARE_MODEL}\"}}");
        fs::write(template.join("HardwareModel.json"), model).unwrap();
        Self { dir }
    }

    pub fn template(&self) -> PathBuf {
        self.dir.path().join("t")
    }

    /// A new bundle.
    pub fn bundle(&self, name: &str) -> PathBuf {
        let bundle = self.dir.path().join(name);
        fs::create_dir(&bundle).unwrap();
        clone_bundle(&self.template(), &bundle, "macos", 0).unwrap();
        bundle
    }
}

/// A machine's settings.
pub fn spec(bundle: &Path) -> String {
    spec_with(bundle, "")
}

/// With further keys (", …").
pub fn spec_with(bundle: &Path, more: &str) -> String {
    format!(
        r#"{{"bundle":{bundle:?},"os":"macos","cpus":2,"memory_bytes":4294967296,"network":"nat","display":"headless",
            "disk_sync":"none","console_log":"console.log","vsock_listen":[5422],"savable":true{more}}}"#
    )
}
