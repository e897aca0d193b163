//! Any input is answered without a panic, and every change of a signed file is found.

use std::fs;

use proptest::prelude::*;

use crate::tiny::{Tiny, by_the_linker, le32, mistakes, signature};

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// Runs `case` on as many changed programs as the configuration says.
fn on_changed_programs(
    changes: impl Strategy<Value = Vec<(prop::sample::Index, u8)>>,
    cut: impl Strategy<Value = Option<prop::sample::Index>>,
    range: impl Fn(&[u8]) -> std::ops::Range<usize>,
    case: impl Fn(&Tiny, &[u8], &[u8]) -> Result<(), TestCaseError>,
) {
    let tiny = Tiny::unpacked();
    let original = fs::read(tiny.program()).unwrap();
    let range = range(&original);
    let mut runner = proptest::test_runner::TestRunner::new(config());
    runner
        .run(&(changes, cut), |(changes, cut)| {
            let mut bytes = original.clone();
            for (at, flip) in changes {
                bytes[range.start + at.index(range.len())] ^= flip;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(tiny.program(), &bytes).unwrap();
            case(&tiny, &original, &bytes)
        })
        .unwrap();
}

fn flips(
    count: impl Into<prop::collection::SizeRange>,
) -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 1u8..), count)
}

#[test]
fn any_byte_changed_before_the_signature_is_seen() {
    let signed = |bytes: &[u8]| 0..signature(bytes);
    on_changed_programs(flips(1), Just(None), signed, |tiny, _, _| {
        prop_assert!(!tiny.mistakes().is_empty());
        Ok(())
    });
}

#[test]
fn any_bit_changed_in_the_headers_is_seen() {
    let tiny = Tiny::unpacked();
    let original = fs::read(tiny.linked()).unwrap();
    assert_eq!(mistakes(&tiny.linked(), &by_the_linker()), []);
    let headers = 32 + le32(&original, 20);
    for at in 0..headers {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(tiny.linked(), &bytes).unwrap();
        assert_ne!(mistakes(&tiny.linked(), &by_the_linker()), [], "byte {at:#x}");
    }
}

#[test]
fn a_program_cut_off_anywhere_is_refused() {
    let cut = any::<prop::sample::Index>().prop_map(Some);
    on_changed_programs(
        Just(Vec::new()),
        cut,
        |_| 0..1,
        |tiny, _, _| {
            prop_assert!(!tiny.mistakes().is_empty());
            Ok(())
        },
    );
}

#[test]
fn headers_and_signatures_full_of_rubbish_are_answered_without_a_panic() {
    let all = |bytes: &[u8]| 0..bytes.len();
    let headers = |_: &[u8]| 0..0x600;
    let signature = |bytes: &[u8]| signature(bytes)..bytes.len();
    let cut = || prop::option::weighted(0.2, any::<prop::sample::Index>());
    // A change that changes nothing may pass; what is asked here is an answer.
    let answered = |tiny: &Tiny, original: &[u8], bytes: &[u8]| {
        prop_assert!(bytes != original || tiny.mistakes().is_empty());
        let _ = tiny.mistakes();
        Ok(())
    };
    on_changed_programs(flips(1..40), cut(), all, answered);
    on_changed_programs(flips(1..40), cut(), headers, answered);
    on_changed_programs(flips(1..40), cut(), signature, answered);
}

#[test]
fn property_lists_with_any_byte_changed_are_refused() {
    for name in ["Info.plist", "_CodeSignature/CodeResources", "Resources/launchd/com.example.tiny.plist"] {
        let tiny = Tiny::unpacked();
        let original = fs::read(tiny.inside(name)).unwrap();
        let mut runner = proptest::test_runner::TestRunner::new(config());
        let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
        runner
            .run(&(flips(1), cut), |(changes, cut)| {
                let mut bytes = original.clone();
                for (at, flip) in changes {
                    bytes[at.index(original.len())] ^= flip;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                fs::write(tiny.inside(name), &bytes).unwrap();
                prop_assert!(!tiny.mistakes().is_empty());
                Ok(())
            })
            .unwrap();
    }
}
