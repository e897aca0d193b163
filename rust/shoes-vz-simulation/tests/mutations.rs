//! What is broken on purpose is noticed: each of these replaces a part of the product by one that does not keep its
//! promise, and some seed must say so, in the words of the invariant that is hurt.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoes_vz_simulation::{Options, Sabotage, run};

/// Seeds each is given; most are noticed by one of the first ten.
const SEEDS: u64 = 150;

fn noticed(sabotage: Sabotage, words: &[&str]) {
    for seed in 0..SEEDS {
        let report = run(seed, Options { sabotage: Some(sabotage), log: false }).unwrap();
        let Some(first) = report.violations.first() else { continue };
        assert!(
            words.iter().any(|w| first.contains(w)),
            "{sabotage:?}, seed {seed}: noticed, but as {:?}",
            report.violations
        );
        println!("{sabotage:?}: seed {seed}: {first}");
        return;
    }
    panic!("{sabotage:?}: {SEEDS} seeds noticed nothing");
}

macro_rules! table {
    ($($name:ident: $sabotage:ident => [$($words:literal),+];)+) => {
        $(#[test] fn $name() { noticed(Sabotage::$sabotage, &[$($words),+]); })+
    };
}

table! {
    a_store_that_forgets: StoreForgetsOnCrash => ["is damaged", "said never to have been", "converges", "left behind", "running job", "a cordoned agent takes nothing new", "own invariant"];
    refused_writes_called_durable: RefusedWritesAreCalledDurable => ["no VM without a row"];
    served_names_forgotten: ServedNamesAreForgotten => ["no second VM for a job that is done"];
    tombstones_lost: TombstonesAreLost => ["said never to have been"];
    runners_lost: RunnersAreLost => ["said never to have been"];
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
