use shoes_vz_model::bundle::file as bundle_file;

use super::*;
use crate::{
    clone::OVERLAY,
    spec::{StateUse, VmSpec},
    template::TemplateDir,
};

struct World {
    tmp: tempfile::TempDir,
    states: SavedStates,
    template: TemplateDir,
}

const MEMORY: u64 = 1 << 20;

impl World {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("t");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("Template.json"), r#"{"os":"linux","guest_agent":"channel"}"#).unwrap();
        for (name, bytes) in [("kernel", 1), ("initrd", 1), ("Disk.img", 512)] {
            fs::write(dir.join(name), vec![1; bytes]).unwrap();
        }
        let states = SavedStates::at(tmp.path().join("states"));
        let template = TemplateDir::open(&dir).unwrap();
        Self { tmp, states, template }
    }

    fn wanted(&self) -> Wanted {
        let spec = VmSpec {
            hypervisor: HypervisorKind::Qemu,
            memory_bytes: MEMORY,
            mac_address: Some("02:00:00:00:00:01".into()),
            ..VmSpec::of_template(&self.template)
        };
        Wanted { slot: 1, spec, template: self.template.clone() }
    }

    /// As a VM that was saved into `draft` leaves it.
    fn fill(&self, draft: &Draft, content: &str) -> PathBuf {
        fs::write(draft.dir().join(file::MEMORY), vec![7; MEMORY as usize]).unwrap();
        fs::write(draft.machine_state(), content).unwrap();
        let bundle = self.tmp.path().join("b");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join(OVERLAY), "disk").unwrap();
        fs::write(bundle.join(bundle_file::VM_LOG), "not part of it").unwrap();
        bundle
    }

    fn save(&self, content: &str) -> SavedState {
        let draft = self.states.draft(&self.wanted()).unwrap();
        let bundle = self.fill(&draft, content);
        draft.finish(&bundle).unwrap();
        self.states.find_unproved(&self.wanted()).unwrap()
    }

    fn kind(&self, wanted: &Wanted) -> Option<Kind> {
        self.states.find(wanted).err().map(|unusable| unusable.kind)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.tmp.path().join("states"))
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_state_is_used_only_once_it_is_proved_and_only_by_its_slot() {
    let world = World::new();
    let wanted = world.wanted();
    assert_eq!(world.kind(&wanted), Some(Kind::Missing));
    let state = world.save("devices");
    assert_eq!(world.kind(&wanted), Some(Kind::Unproved));
    world.states.verified(&state).unwrap();
    let found = world.states.find(&wanted).unwrap();
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((found.slot(), names(found.dir())), (1, 4), "disk, memory, devices, manifest");
    assert_eq!(world.kind(&Wanted { slot: 0, ..wanted.clone() }), Some(Kind::Missing));
    // How long a VM lives, and what it does with states, is not part of it.
    let spec = VmSpec {
        max_lifetime: Some(jiff::Timestamp::now()),
        state: StateUse::Restore(found.dir().to_owned()),
        ..wanted.spec.clone()
    };
    world.states.find(&Wanted { spec, ..wanted.clone() }).unwrap();
    world.states.discard(&wanted, "a test").unwrap();
    assert_eq!(world.kind(&wanted), Some(Kind::Missing));
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_state_of_another_vm_is_unusable_and_the_kind_names_the_main_difference() {
    let world = World::new();
    let state = world.save("devices");
    world.states.verified(&state).unwrap();
    let wanted = world.wanted();
    let with = |change: &dyn Fn(&mut VmSpec)| {
        let mut spec = wanted.spec.clone();
        change(&mut spec);
        world.kind(&Wanted { spec, ..wanted.clone() })
    };
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|s| s.memory_bytes *= 2), Some(Kind::Memory));
    assert_eq!(with(&|s| s.cpus += 1), Some(Kind::Cpus));
    assert_eq!(with(&|s| s.mac_address = None), Some(Kind::Configuration));
    assert_eq!(with(&|s| s.kernel_cmdline.push('x')), Some(Kind::Configuration));

    let manifest = state.dir().join(file::MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    for (from, to) in [
        ("\"format\": 1", "\"format\": 2"),
        ("\"agent_version\": \"", "\"agent_version\": \"9"),
        ("\"hypervisor_version\": \"", "\"hypervisor_version\": \"9"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&manifest, text.replace(from, to)).unwrap();
        assert_eq!(world.kind(&wanted), Some(Kind::Version), "{from}");
    }
    fs::write(&manifest, &text).unwrap();
    fs::write(world.template.path.join("Disk.img"), vec![2; 512]).unwrap();
    assert_eq!(world.kind(&wanted), Some(Kind::Version), "the template was changed");
}

#[test]
fn every_change_to_a_file_of_a_state_is_noticed() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>); 7] = [
        (file::STATE, &|p| fs::write(p, "devicez").unwrap()),
        (file::STATE, &|p| fs::write(p, "").unwrap()),
        (file::STATE, &|p| fs::remove_file(p).unwrap()),
        (file::MEMORY, &|p| fs::write(p, vec![8; MEMORY as usize]).unwrap()),
        (file::MEMORY, &|p| fs::File::options().write(true).open(p).unwrap().set_len(5).unwrap()),
        (OVERLAY, &|p| fs::write(p, "disc").unwrap()),
        (file::MANIFEST, &|p| fs::write(p, "{").unwrap()),
    ];
    for (name, damage) in damages {
        let world = World::new();
        let state = world.save("devices");
        world.states.verified(&state).unwrap();
        damage(&state.dir().join(name));
        let unusable = world.states.find(&world.wanted()).unwrap_err();
        assert_eq!(unusable.kind, Kind::Damaged, "{unusable}");
        assert!(unusable.to_string().contains(name), "{unusable}");
    }
}

#[test]
fn a_new_state_replaces_the_old_one_whole_and_a_crash_leaves_no_half_one() {
    let world = World::new();
    let old = world.save("old");
    world.states.verified(&old).unwrap();
    let draft = world.states.draft(&world.wanted()).unwrap();
    let bundle = world.fill(&draft, "new");
    // Killed while the VM was being saved: the old one is as it was.
    std::mem::forget(draft);
    assert_eq!(world.kind(&world.wanted()), None);
    world.states.sweep(2).unwrap();
    assert_eq!(world.names(), ["slot-1"]);
    // Killed between the two renames: there is none.
    fs::rename(old.dir(), world.tmp.path().join("states/.old-1-1")).unwrap();
    assert_eq!(world.kind(&world.wanted()), Some(Kind::Missing));
    world.states.sweep(2).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    drop(bundle);
    assert_eq!(fs::read_to_string(world.save("new").dir().join(file::STATE)).unwrap(), "new");
    assert_eq!(fs::read_to_string(world.save("newer").dir().join(file::STATE)).unwrap(), "newer");
    assert_eq!(world.names(), ["slot-1"]);
    // Now the host has only slot 0.
    world.states.sweep(1).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let world = World::new();
    let draft = world.states.draft(&world.wanted()).unwrap();
    world.fill(&draft, "x");
    drop(draft);
    assert_eq!(world.names(), Vec::<String>::new());
    #[cfg(target_os = "linux")]
    assert!(check_memory(world.tmp.path(), 1).unwrap_err().contains("memory"));
}
