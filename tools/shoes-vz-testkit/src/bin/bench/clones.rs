//! Clone times of templates with disks of different sizes, on which they must not depend.

use std::{collections::BTreeMap, path::Path, time::Instant};

use shoes_vz_testkit::report::millis;
use shoes_vz_vm::{clone::make_bundle, template::TemplateDir};

use crate::numbers::Percentiles;

pub(crate) fn measure(template: &Path) -> anyhow::Result<BTreeMap<String, Percentiles>> {
    let dir = tempfile::tempdir()?;
    let mut results = BTreeMap::new();
    for gib in [1_u64, 16, 256] {
        let copy = dir.path().join(format!("template-{gib}"));
        std::fs::create_dir(&copy)?;
        for entry in std::fs::read_dir(template)? {
            let entry = entry?;
            if entry.file_name() != "Disk.img" {
                std::os::unix::fs::symlink(entry.path().canonicalize()?, copy.join(entry.file_name()))?;
            }
        }
        std::fs::File::create(copy.join("Disk.img"))?.set_len(gib << 30)?;
        let opened = TemplateDir::open(&copy)?;
        let spec = shoes_vz_vm::spec::VmSpec::of_template(&opened);
        let mut times = Vec::new();
        for n in 0..100 {
            let begun = Instant::now();
            make_bundle(&opened, &dir.path().join(format!("{gib}-{n}.bundle")), &spec)?;
            times.push(millis(begun.elapsed()));
        }
        results.insert(format!("{gib:>3} GiB disk"), Percentiles::of(&mut times));
    }
    Ok(results)
}
