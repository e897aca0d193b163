//! What `check-signature` lets pass and what it refuses, on a real bundle.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod properties;
mod tiny;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Command,
};

use shoes_vz_macos::signature::{self, Signing};
use tiny::{
    DER, Tiny, XML, assert_mistake, by_the_linker, command, edit, mistakes, part, replace, seal_again,
    signature as signature_at,
};

#[test]
fn the_signed_bundle_passes_and_says_what_it_is() {
    let tiny = Tiny::unpacked();
    let report = signature::check(&tiny.app(), &tiny.wanted()).unwrap();
    let [main, helper] = &report.programs[..] else { panic!("{report}") };
    assert_eq!(
        (main.identifier.as_str(), helper.identifier.as_str()),
        ("com.example.tiny", "com.example.helper")
    );
    assert_eq!(
        main.specials,
        ["Info.plist", "requirements", "CodeResources", "XML entitlements", "DER entitlements"]
    );
    assert!(main.ad_hoc && helper.ad_hoc);
    assert_eq!(main.runtime.map(|v| v.to_string()).as_deref(), Some("26.0"));
    assert_eq!(main.minos.to_string(), "26.0");
    assert_eq!(main.libraries, ["/usr/lib/libSystem.B.dylib"]);
    assert_eq!(main.entitlements.len(), 3);
    assert!(helper.entitlements.is_empty());
    // Helper, launchd's list, readme.txt, link.
    assert_eq!(report.sealed, 4);
    let text = report.to_string();
    assert!(text.contains("com.apple.security.virtualization = true (XML and DER)"), "{text}");
}

#[test]
fn a_changed_byte_of_code_is_refused_with_its_page() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| bytes[0x3005] ^= 1);
    tiny.refused(&tiny.program(), "page 3 of 13 (bytes 0x3000..0x4000)");
    let tiny = Tiny::unpacked();
    edit(&tiny.inside("Helpers/helper"), |bytes| bytes[0x800] ^= 1);
    tiny.refused(&tiny.inside("Helpers/helper"), "page 0 of 13");
}

#[test]
fn a_changed_byte_of_info_plist_or_code_resources_is_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.inside("Info.plist"), |bytes| replace(bytes, "1.2.3", "1.2.4"));
    tiny.refused(&tiny.program(), "another Info.plist than the one that was signed");
    let tiny = Tiny::unpacked();
    edit(&tiny.inside("_CodeSignature/CodeResources"), |bytes| {
        replace(bytes, "<key>optional</key>", "<key>0ptional</key>");
    });
    tiny.refused(&tiny.program(), "another CodeResources than the one that was signed");
}

#[test]
fn a_changed_byte_of_a_resource_is_refused() {
    let tiny = Tiny::unpacked();
    let file = tiny.inside("Resources/readme.txt");
    edit(&file, |bytes| bytes[0] ^= 1);
    tiny.refused(&file, "its SHA-256 is another");
    tiny.refused(&file, "its SHA-1 is another");
}

#[test]
fn changed_entitlements_are_refused_in_either_form() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| replace(bytes, "com.example.groups", "com.example.croups"));
    tiny.refused(&tiny.program(), "another XML entitlements than the one that was signed");
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let der = part(bytes, DER);
        replace(&mut bytes[der], "com.example.limits", "com.example.limitz");
    });
    tiny.refused(&tiny.program(), "another DER entitlements than the one that was signed");
}

#[test]
fn xml_and_der_entitlements_that_disagree_are_refused_though_both_are_sealed() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let der = part(bytes, DER);
        let yes = der.start + bytes[der].windows(3).position(|w| w == [1, 1, 0xff]).unwrap();
        bytes[yes + 2] = 0;
        seal_again(bytes);
    });
    let mistakes = tiny.mistakes();
    assert_mistake(
        &mistakes,
        &tiny.program(),
        "DER entitlements differ from the XML ones: com.apple.security.virtualization",
    );
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
}

#[test]
fn der_out_of_order_is_refused_though_it_is_sealed() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        for slot in [XML, DER] {
            let range = part(bytes, slot);
            replace(
                &mut bytes[range],
                "com.apple.security.virtualization",
                "xom.apple.security.virtualization",
            );
        }
        seal_again(bytes);
    });
    tiny.refused(&tiny.program(), "out of order");
}

#[test]
fn fault_27_other_entitlements_than_asked_for_are_refused_each_by_its_key() {
    let tiny = Tiny::unpacked();
    let mut wanted = tiny.wanted();
    let Signing::Hardened { entitlements, .. } = &mut wanted.signing else { unreachable!() };
    entitlements.remove("com.example.groups");
    entitlements.insert("com.apple.security.virtualization".into(), false.into());
    entitlements.insert("com.apple.vm.networking".into(), true.into());
    let mistakes = mistakes(&tiny.app(), &wanted);
    for expected in [
        "com.example.groups is not expected",
        "com.apple.security.virtualization is true, not false",
        "com.apple.vm.networking is missing",
    ] {
        assert_mistake(&mistakes, &tiny.program(), expected);
    }
    assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
}

#[test]
fn entitlements_of_a_helper_are_refused() {
    let tiny = Tiny::unpacked();
    fs::copy(tiny.program(), tiny.inside("Helpers/helper")).unwrap();
    tiny.refused(&tiny.inside("Helpers/helper"), "com.apple.security.virtualization is not expected");
}

#[test]
fn another_helper_is_refused_however_well_it_is_signed() {
    let tiny = Tiny::unpacked();
    fs::copy(tiny.twice(), tiny.inside("Helpers/helper")).unwrap();
    tiny.refused(&tiny.inside("Helpers/helper"), "its cdhash differs");
    tiny.refused(&tiny.inside("Helpers/helper"), "does not meet the bundle's requirement");
}

#[test]
fn files_that_come_or_go_after_signing_are_refused() {
    let tiny = Tiny::unpacked();
    let added =
        [tiny.inside("Resources/more.txt"), tiny.inside("MacOS/more"), tiny.inside("_CodeSignature/more")];
    for file in &added {
        fs::write(file, "more").unwrap();
    }
    symlink("readme.txt", tiny.inside("Resources/.DS_Store")).unwrap();
    let beside = tiny.app().join("Beside");
    fs::create_dir(&beside).unwrap();
    fs::remove_file(tiny.inside("Resources/readme.txt")).unwrap();
    let mistakes = tiny.mistakes();
    for file in &added {
        assert_mistake(&mistakes, file, "was added after signing");
    }
    assert_mistake(&mistakes, &tiny.inside("Resources/.DS_Store"), "was added after signing");
    assert_mistake(&mistakes, &beside, "stands beside Contents");
    assert_mistake(
        &mistakes,
        &tiny.inside("_CodeSignature/CodeResources"),
        "seals Resources/readme.txt, which does not exist",
    );
}

#[test]
fn symbolic_links_are_sealed_by_where_they_lead() {
    let tiny = Tiny::unpacked();
    let link = tiny.inside("Resources/link");
    fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    tiny.refused(&link, "another place than was sealed");
    fs::remove_file(&link).unwrap();
    fs::copy(tiny.inside("Resources/readme.txt"), &link).unwrap();
    tiny.refused(&link, "not a symbolic link any more");
    let file = tiny.inside("Resources/readme.txt");
    fs::remove_file(&file).unwrap();
    symlink("link", &file).unwrap();
    tiny.refused(&file, "another place than was sealed");
}

#[test]
fn another_minos_is_refused_everywhere_it_stands() {
    let tiny = Tiny::unpacked();
    let mut wanted = tiny.wanted();
    wanted.minos = "15.0".parse().unwrap();
    let mistakes = mistakes(&tiny.app(), &wanted);
    assert_mistake(&mistakes, &tiny.inside("Info.plist"), "LSMinimumSystemVersion \"26.0\", not 15.0");
    for file in [tiny.program(), tiny.inside("Helpers/helper")] {
        assert_mistake(&mistakes, &file, "runs on macOS 26.0 or newer (LC_BUILD_VERSION's minos), not 15.0");
    }
    assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
}

#[test]
fn a_program_for_another_minos_or_platform_is_refused_though_it_is_sealed() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let build = command(bytes, 0x32);
        bytes[build + 8] = 2;
        bytes[build + 14] = 15;
        seal_again(bytes);
    });
    tiny.refused(&tiny.program(), "runs on macOS 15.0 or newer");
    tiny.refused(&tiny.program(), "is for platform 2");
}

#[test]
fn a_missing_hardened_runtime_is_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let directory = part(bytes, 0).start;
        bytes[directory + 13] &= !1;
    });
    let mistakes = tiny.mistakes();
    assert_mistake(&mistakes, &tiny.program(), "has no hardened runtime");
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
}

#[test]
fn another_identifier_is_refused_in_signature_and_info_plist() {
    let tiny = Tiny::unpacked();
    let mut wanted = tiny.wanted();
    let Signing::Hardened { identifier, .. } = &mut wanted.signing else { unreachable!() };
    *identifier = Some("com.example.other".into());
    let mistakes = mistakes(&tiny.app(), &wanted);
    assert_mistake(&mistakes, &tiny.program(), "is signed as \"com.example.tiny\"");
    assert_mistake(&mistakes, &tiny.inside("Info.plist"), "CFBundleIdentifier \"com.example.tiny\"");
}

#[test]
fn a_signature_that_claims_an_identity_and_has_none_is_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let directory = part(bytes, 0).start;
        bytes[directory + 15] &= !2;
    });
    tiny.refused(&tiny.program(), "neither ad hoc nor signed by an identity");
}

#[test]
fn bytes_that_nothing_seals_are_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| *bytes.last_mut().unwrap() = 1);
    tiny.refused(&tiny.program(), "bytes behind its signature that nothing seals");
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| bytes.extend([0; 16]));
    tiny.refused(&tiny.program(), "not the end of __LINKEDIT");
}

#[test]
fn a_signature_that_covers_less_than_the_program_is_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        let directory = part(bytes, 0).start;
        let limit = tiny::be32(bytes, directory + 32) - 0x100;
        bytes[directory + 32..directory + 36].copy_from_slice(&(limit as u32).to_be_bytes());
        let pages = limit.div_ceil(4096) as u32;
        bytes[directory + 28..directory + 32].copy_from_slice(&pages.to_be_bytes());
        seal_again(bytes);
    });
    tiny.refused(&tiny.program(), "but its signature begins at");
}

#[test]
fn a_second_code_directory_is_checked_as_the_first() {
    let tiny = Tiny::unpacked();
    let report = signature::check(&tiny.twice(), &by_the_linker()).unwrap();
    let names: Vec<_> = report.programs[0].cdhashes.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["SHA-256", "SHA-1"]);

    let original = fs::read(tiny.twice()).unwrap();
    let offset_of_hashes = |slot| {
        let directory = part(&original, slot).start;
        directory + tiny::be32(&original, directory + 16)
    };
    for slot in [0, 0x1000] {
        edit(&tiny.twice(), |bytes| bytes[offset_of_hashes(slot)] ^= 1);
        assert_mistake(&mistakes(&tiny.twice(), &by_the_linker()), &tiny.twice(), "page 0 of 13");
        fs::write(tiny.twice(), &original).unwrap();
    }
    edit(&tiny.twice(), |bytes| {
        let directory = part(bytes, 0x1000).start;
        bytes[directory + 13] &= !1;
    });
    assert_mistake(&mistakes(&tiny.twice(), &by_the_linker()), &tiny.twice(), "CodeDirectories that differ");
}

#[test]
fn what_the_linker_signed_passes_as_linked_and_not_as_hardened() {
    let tiny = Tiny::unpacked();
    let report = signature::check(&tiny.linked(), &by_the_linker()).unwrap();
    assert_eq!((report.programs.len(), report.sealed), (1, 0));
    let mistakes = mistakes(&tiny.linked(), &tiny.wanted());
    for expected in
        ["no hardened runtime", "signed by its linker only", "is signed as \"main\"", "is missing"]
    {
        assert_mistake(&mistakes, &tiny.linked(), expected);
    }
    fs::copy(tiny.linked(), tiny.program()).unwrap();
    tiny.refused(&tiny.program(), "has Info.plist, which its signature does not seal");
}

#[test]
fn anything_but_a_signed_arm64_program_is_refused_with_a_reason() {
    let tiny = Tiny::unpacked();
    let original = fs::read(tiny.linked()).unwrap();
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, Change); 10] = [
        ("is not a Mach-O", |bytes| bytes.truncate(3)),
        ("is not a Mach-O", |bytes| *bytes = b"#!/bin/sh\n".to_vec()),
        ("is a fat Mach-O", |bytes| bytes[..4].copy_from_slice(&[0xca, 0xfe, 0xba, 0xbe])),
        ("of another kind", |bytes| bytes[0] = 0xce),
        ("not for arm64", |bytes| bytes[4] = 7),
        ("subtype 0x2", |bytes| bytes[8] = 2),
        ("not a program", |bytes| bytes[12] = 6),
        ("ends within its header", |bytes| bytes.truncate(20)),
        ("has no signature", |bytes| {
            let at = command(bytes, 0x1d);
            bytes[at] = 0x26;
        }),
        ("its signature begins with 0x00000000", |bytes| {
            let at = signature_at(bytes);
            bytes[at..at + 4].fill(0);
        }),
    ];
    for (expected, change) in cases {
        fs::write(tiny.linked(), &original).unwrap();
        edit(&tiny.linked(), change);
        assert_mistake(&mistakes(&tiny.linked(), &by_the_linker()), &tiny.linked(), expected);
    }
    fs::remove_file(tiny.linked()).unwrap();
    assert_mistake(&mistakes(&tiny.linked(), &by_the_linker()), &tiny.linked(), "cannot be read");
}

#[test]
fn a_library_that_is_not_part_of_macos_is_refused() {
    let tiny = Tiny::unpacked();
    edit(&tiny.program(), |bytes| {
        replace(bytes, "/usr/lib/libSystem.B.dylib", "/opt/lib/libSystem.B.dylib");
        seal_again(bytes);
    });
    tiny.refused(&tiny.program(), "needs /opt/lib/libSystem.B.dylib, which is not part of macOS");
}

#[test]
fn rules_that_leave_files_unsealed_are_refused() {
    let tiny = Tiny::unpacked();
    let file = tiny.inside("_CodeSignature/CodeResources");
    edit(&file, |bytes| replace(bytes, "^PkgInfo$", "^Helpers/"));
    tiny.refused(&file, "leaves files like ^Helpers/ unsealed");
}

#[test]
fn property_lists_for_launchd_must_have_their_label_as_name_and_start_an_existing_program() {
    let tiny = Tiny::unpacked();
    let file = tiny.inside("Resources/launchd/com.example.tiny.plist");
    edit(&file, |bytes| {
        replace(bytes, "com.example.tiny", "com.example.tony");
        replace(bytes, "MacOS/tiny", "MacOS/tony");
    });
    tiny.refused(&file, "has Label \"com.example.tony\", which is not its file name");
    tiny.refused(&file, "starts /Applications/Tiny.app/Contents/MacOS/tony, which is not in the bundle");
    fs::write(&file, "<plist version=\"1.0\"><array/></plist>").unwrap();
    tiny.refused(&file, "it holds no dictionary");
}

#[test]
fn a_bundle_that_was_never_sealed_or_is_none_is_refused() {
    let tiny = Tiny::unpacked();
    fs::remove_dir_all(tiny.inside("_CodeSignature")).unwrap();
    tiny.refused(&tiny.inside("_CodeSignature/CodeResources"), "cannot be read");
    let tiny = Tiny::unpacked();
    fs::set_permissions(tiny.program(), fs::Permissions::from_mode(0o644)).unwrap();
    tiny.refused(&tiny.program(), "is not executable");
    fs::remove_file(tiny.program()).unwrap();
    tiny.refused(&tiny.program(), "cannot be read");
    let empty = tempfile::tempdir().unwrap();
    assert_mistake(
        &mistakes(empty.path(), &tiny.wanted()),
        &empty.path().join("Contents/Info.plist"),
        "cannot be read",
    );
}

#[test]
fn the_command_prints_every_mistake_at_once_and_fails() {
    let tiny = Tiny::unpacked();
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_check-signature"));
        let entitlements = tiny.app().with_file_name("entitlements.plist");
        command.arg(tiny.app()).arg("--entitlements").arg(entitlements).args(more).output().unwrap()
    };
    let good = check(&["--minos", "26.0", "--identifier", "com.example.tiny"]);
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("every seal in CodeResources holds: 4 files"));

    edit(&tiny.program(), |bytes| bytes[0x1000] ^= 1);
    edit(&tiny.inside("Resources/readme.txt"), |bytes| bytes[0] ^= 1);
    fs::write(tiny.inside("Resources/more"), "").unwrap();
    let bad = check(&["--minos", "15.0", "--identifier", "com.example.other"]);
    assert_eq!(bad.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&bad.stderr);
    for expected in [
        "page 1 of 13",
        "readme.txt",
        "more: is not sealed",
        "MACOSX_DEPLOYMENT_TARGET=15.0",
        "com.example.other",
    ] {
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    assert!(check(&["--minos", "x"]).status.code().is_some_and(|code| code != 0));
}
