//! Mutation tests: each breaks a part of the product on purpose, and some seed must report the invariant that it breaks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoes_vz_simulation::{Mutation, Options, run};

/// Seeds for each mutation; one of the first ten detects most of them.
const SEEDS: u64 = 150;

fn assert_detected(mutation: Mutation, expected: &[&str]) {
    for seed in 0..SEEDS {
        let report = run(seed, Options { mutation: Some(mutation), log: false }).unwrap();
        let Some(first) = report.violations.first() else { continue };
        assert!(
            expected.iter().any(|text| first.contains(text)),
            "{mutation:?}, seed {seed}: detected as {:?}",
            report.violations
        );
        println!("{mutation:?}: seed {seed}: {first}");
        return;
    }
    panic!("{mutation:?}: not detected by {SEEDS} seeds");
}

macro_rules! table {
    ($($name:ident: $mutation:ident => [$($expected:literal),+];)+) => {
        $(#[test] fn $name() { assert_detected(Mutation::$mutation, &[$($expected),+]); })+
    };
}

table! {
    a_store_that_forgets: StoreForgetsOnCrash => ["is damaged", "answers NotFound", "converges", "left behind", "running job", "a cordoned agent gets no new runner", "own invariant"];
    refused_writes_called_durable: RefusedWritesAreCalledDurable => ["no VM without a row"];
    served_names_forgotten: ServedNamesAreForgotten => ["no second VM for a job that is done"];
    tombstones_lost: TombstonesAreLost => ["answers NotFound"];
    runners_lost: RunnersAreLost => ["answers NotFound"];
    abandoned_runners_that_stay: AbandonedRunnersStay => ["nothing is left behind"];
    one_slot_too_many: OneSlotTooMany => ["no slot used twice"];
    live_vms_not_found: LiveVmsAreNotFound => ["no running job is ended", "under its live VM"];
    stops_ignored: StopsAreIgnored => ["under its live VM"];
    bundles_that_stay: BundlesStay => ["nothing is left behind"];
    an_identity_lost: IdentityIsLost => ["converges", "Uncordon was not confirmed"];
    slots_not_given_back: SlotsAreNotGivenBack => ["no slot is lost", "converges"];
    vms_forgotten_on_restart: VmsAreForgottenOnRestart => ["no running job is ended"];
    agents_forgotten_at_once: AgentsAreForgottenAtOnce => ["no running job is ended"];
}
