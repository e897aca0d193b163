//! Reviewed snapshots of the help texts and the metrics; `make snapshots` replaces them by the current output.

use std::collections::{BTreeMap, BTreeSet};

use shoes_vz_testkit::{bins::repository, fleet::Fleet, script::Job};
use snapbox::{Data, assert_data_eq};

use crate::programs;

const FOLDER: &str = "tools/shoes-vz-testkit/tests/pages/snapshots";

fn snapshot(name: &str) -> Data {
    Data::read_from(&repository().join(FOLDER).join(name), Some(snapbox::data::DataFormat::Text))
}

#[test]
fn help_is_as_it_was_looked_at_last() {
    let texts = programs::help_texts();
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut all = BTreeMap::<&str, String>::new();
    for (command, text) in &texts {
        let program = command.split(' ').next().unwrap();
        names.insert(format!("{program}.txt"));
        all.entry(program).or_default().push_str(&format!("$ {command} --help\n{text}\n"));
    }
    for (program, text) in all {
        assert_data_eq!(text, snapshot(&format!("{program}.txt")).raw());
    }
    assert_eq!(names.len(), programs::PROGRAMS.len());
}

#[tokio::test]
async fn the_names_types_and_labels_of_the_metrics_are_as_they_were_looked_at_last() {
    let fleet = Fleet::start().await;
    let added = fleet.add("counted", &Job::new("echo counted").setup_script("counted")).await.unwrap();
    fleet.until_ended("counted").await;
    fleet.delete(&added.cloud_id).await.unwrap();
    let scrape = fleet.metrics();
    fleet.finish().await;
    assert_data_eq!(families(&scrape), snapshot("metrics.txt").raw());
}

/// `name type {labels}` of each family, sorted.
fn families(scrape: &str) -> String {
    let mut families: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
    for line in scrape.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) {
            families.insert(name, (kind, BTreeSet::new()));
        } else if let Some((sample, labels)) = line.split_once('{').filter(|_| line.starts_with("shoesvz_")) {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| sample.strip_suffix(end))
                .unwrap_or(sample);
            let Some(family) = families.get_mut(name).or(None) else { continue };
            let labels = labels.rsplit_once('}').map_or(labels, |(inside, _)| inside);
            // No label value contains a comma followed by a name and `="`.
            family.1.extend(labels.split("\",").filter_map(|l| l.split_once("=\"")).map(|(name, _)| name));
        }
    }
    assert!(families.len() >= 17, "{scrape}");
    families
        .iter()
        .map(|(name, (kind, labels))| {
            let labels: Vec<_> = labels.iter().filter(|l| **l != "le").copied().collect();
            format!("{name} {kind} {{{}}}\n", labels.join(","))
        })
        .collect()
}
