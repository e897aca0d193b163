//! The Mach-O around the signature: a thin arm64 program, the macOS it was linked for, where its signature lies.

use std::{ops::Range, path::Path};

use object::{
    LittleEndian,
    macho::{self, MachHeader64},
    read::macho::{LoadCommandVariant, MachHeader as _, Section as _, Segment as _},
};

use super::{
    mistakes::{Findings, LINK_AGAIN, SIGN_AGAIN},
    wanted::Version,
};

#[derive(Debug)]
pub(super) struct MachO<'a> {
    /// `LC_BUILD_VERSION`'s minos.
    pub(super) minos: Version,
    /// `LC_BUILD_VERSION`'s sdk.
    pub(super) sdk: Version,
    /// Where `__TEXT` lies in the file.
    pub(super) text: Range<u64>,
    pub(super) libraries: Vec<String>,
    /// An Info.plist inside the program (`__TEXT,__info_plist`).
    pub(super) info_plist: Option<&'a [u8]>,
    /// Where the signature begins; it goes to the end of the file.
    pub(super) signature_at: u64,
    pub(super) signature: &'a [u8],
}

/// Reads and checks one; `None` if it cannot be checked further.
pub(super) fn read<'a>(
    file: &Path,
    bytes: &'a [u8],
    minos: Version,
    found: &mut Findings,
) -> Option<MachO<'a>> {
    if let Err(what) = thin(bytes) {
        found.add(file, what, LINK_AGAIN);
        return None;
    }
    let read = Commands::read(bytes);
    let commands = read.map_err(|what| found.add(file, what, LINK_AGAIN)).ok()?;
    for what in &commands.wrong {
        found.add(file, what, LINK_AGAIN);
    }
    for library in &commands.libraries {
        if !library.starts_with("/usr/lib/") && !library.starts_with("/System/Library/") {
            found.add(
                file,
                format!("needs {library}, which is not part of macOS"),
                "link it statically instead",
            );
        }
    }
    let (at, size) = match commands.signatures[..] {
        [one] => one,
        [] => {
            found.add(
                file,
                "has no signature (no LC_CODE_SIGNATURE)",
                "link it with a linker that signs, or sign it",
            );
            return None;
        }
        _ => {
            found.add(file, "has more than one LC_CODE_SIGNATURE", LINK_AGAIN);
            return None;
        }
    };
    let end = at + size;
    let linkedit = &commands.linkedit;
    if linkedit.start > at || end > linkedit.end || end != bytes.len() as u64 {
        found.add(
            file,
            format!(
                "has its signature at {at:#x}..{end:#x}, which is not the end of __LINKEDIT ({:#x}..{:#x}) and of the \
                 file ({:#x})",
                linkedit.start,
                linkedit.end,
                bytes.len()
            ),
            "sign it again; nothing may follow the signature",
        );
    }
    if at % 16 != 0 {
        found.add(file, format!("has its signature at {at:#x}, not a multiple of 16"), SIGN_AGAIN);
    }
    let signature = bytes.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?.min(bytes.len()))?;

    let (platform, have, sdk) = match commands.builds[..] {
        [one] => one,
        _ => {
            let count = commands.builds.len();
            found.add(file, format!("has {count} LC_BUILD_VERSION commands, not one"), LINK_AGAIN);
            return None;
        }
    };
    if platform != macho::PLATFORM_MACOS {
        found.add(file, format!("is for platform {}, not for macOS (1)", platform.0), LINK_AGAIN);
    }
    if have != minos {
        found.add(
            file,
            format!("runs on macOS {have} or newer (LC_BUILD_VERSION's minos), not {minos}"),
            format!("link it again with MACOSX_DEPLOYMENT_TARGET={minos}"),
        );
    }
    Some(MachO {
        minos: have,
        sdk,
        text: commands.text,
        libraries: commands.libraries,
        info_plist: commands.info_plist,
        signature_at: at,
        signature,
    })
}

/// Whether the file begins as a thin arm64 program does.
fn thin(bytes: &[u8]) -> Result<(), String> {
    match bytes.get(..4) {
        Some([0xcf, 0xfa, 0xed, 0xfe]) => {}
        Some([0xca, 0xfe, 0xba, 0xbe | 0xbf]) => return Err("is a fat Mach-O, not a thin arm64 one".into()),
        Some([0xce, 0xfa, 0xed, 0xfe] | [0xfe, 0xed, 0xfa, _]) => {
            return Err("is a Mach-O of another kind, not a 64-bit arm64 one".into());
        }
        _ => return Err("is not a Mach-O".into()),
    }
    let header = MachHeader64::<LittleEndian>::parse(bytes, 0).map_err(|_| "ends within its header")?;
    let (cpu, sub) = (header.cputype(LittleEndian), header.cpusubtype(LittleEndian));
    if cpu != macho::CPU_TYPE_ARM64 || sub.0 & 0x00ff_ffff != 0 {
        return Err(format!("is for CPU {:#x} subtype {:#x}, not for arm64", cpu.0, sub.0));
    }
    if header.filetype(LittleEndian) != macho::MH_EXECUTE {
        return Err(format!(
            "is a Mach-O of file type {}, not a program (2)",
            header.filetype(LittleEndian).0
        ));
    }
    Ok(())
}

/// The load commands that matter.
#[derive(Debug, Default)]
struct Commands<'a> {
    text: Range<u64>,
    linkedit: Range<u64>,
    libraries: Vec<String>,
    info_plist: Option<&'a [u8]>,
    builds: Vec<(macho::Platform, Version, Version)>,
    /// Offset and size.
    signatures: Vec<(u64, u64)>,
    wrong: Vec<String>,
}

impl<'a> Commands<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let unreadable = |e: object::read::Error| format!("has load commands that cannot be read ({e})");
        let header = MachHeader64::<LittleEndian>::parse(bytes, 0).map_err(unreadable)?;
        let mut commands = header.load_commands(LittleEndian, bytes, 0).map_err(unreadable)?;
        let mut all = Self::default();
        let mut main = 0;
        while let Some(command) = commands.next().map_err(unreadable)? {
            match command.variant().map_err(unreadable)? {
                LoadCommandVariant::Segment64(segment, sections) => {
                    all.segment(bytes, segment, sections).map_err(unreadable)?;
                }
                LoadCommandVariant::BuildVersion(build, _) => {
                    let version = |v: object::U32<LittleEndian, macho::Version>| v.get(LittleEndian).0;
                    all.builds.push((
                        build.platform.get(LittleEndian),
                        Version::of_bits(version(build.minos)),
                        Version::of_bits(version(build.sdk)),
                    ));
                }
                LoadCommandVariant::VersionMin(_) => {
                    all.wrong.push("has an old LC_VERSION_MIN command".into());
                }
                LoadCommandVariant::Dylib(dylib) => {
                    let name = command.string(LittleEndian, dylib.dylib.name).map_err(unreadable)?;
                    all.libraries.push(String::from_utf8_lossy(name).into_owned());
                }
                LoadCommandVariant::EntryPoint(_) => main += 1,
                LoadCommandVariant::LinkeditData(data) if command.cmd() == macho::LC_CODE_SIGNATURE => {
                    let (at, size) = (data.dataoff.get(LittleEndian), data.datasize.get(LittleEndian));
                    all.signatures.push((at.into(), size.into()));
                }
                _ => {}
            }
        }
        for (name, range) in [("__TEXT", &all.text), ("__LINKEDIT", &all.linkedit)] {
            if range.is_empty() {
                all.wrong.push(format!("has no segment {name}"));
            }
        }
        if main != 1 {
            all.wrong.push(format!("has {main} LC_MAIN commands, not one"));
        }
        Ok(all)
    }

    fn segment(
        &mut self,
        bytes: &'a [u8],
        segment: &'a macho::SegmentCommand64<LittleEndian>,
        sections: &'a [u8],
    ) -> object::read::Result<()> {
        let name = String::from_utf8_lossy(segment.name()).into_owned();
        let begin = segment.fileoff.get(LittleEndian);
        let end = begin.saturating_add(segment.filesize.get(LittleEndian));
        if end > bytes.len() as u64 {
            self.wrong.push(format!("has its segment {name} up to {end:#x}, behind the file's end"));
        }
        let known = match segment.name() {
            b"__TEXT" => Some(&mut self.text),
            b"__LINKEDIT" => Some(&mut self.linkedit),
            _ => None,
        };
        match known {
            Some(range) if range.is_empty() => *range = begin..end,
            Some(_) => self.wrong.push(format!("has two segments {name}")),
            None => {}
        }
        for section in segment.sections(LittleEndian, sections)? {
            if section.name() == b"__info_plist" {
                self.info_plist = Some(
                    section
                        .data(LittleEndian, bytes, section.offset(LittleEndian).into())
                        .unwrap_or_default(),
                );
            }
        }
        Ok(())
    }
}
