//! Runs a few seeds twice; `make simulate` runs thousands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoes_vz_simulation::{Options, run};

#[test]
fn a_seed_is_the_same_each_time_it_is_run() {
    for seed in 0..40 {
        let [first, second] =
            [(), ()].map(|()| run(seed, Options { log: true, ..Options::default() }).unwrap());
        let differ = first.log.iter().zip(&second.log).find(|(a, b)| a != b);
        assert_eq!(first.trace, second.trace, "seed {seed} differs: {differ:#?}");
        assert_eq!(first.violations, Vec::<String>::new(), "seed {seed}");
    }
}
