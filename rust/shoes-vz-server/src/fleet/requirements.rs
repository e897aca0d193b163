//! What resource types and labels require of a VM, as the operator configures it: a template and a size.

use std::{collections::BTreeMap, fmt};

use shoes_vz_model::ResourceType;

use super::values::VmSize;

/// What one resource type, one label or a whole job requires.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmRequirements {
    /// The template's name; "" allows any that fits.
    pub template: String,
    /// The least size.
    pub size: VmSize,
}

/// The operator's tables: `[resource_types]` and `[labels]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequirementTables {
    pub resource_types: BTreeMap<ResourceType, VmRequirements>,
    /// The keys are in lower case.
    pub labels: BTreeMap<String, VmRequirements>,
}

/// Two labels of one job name different templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict([(String, String); 2]);

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(one, template), (other, other_template)] = &self.0;
        write!(
            f,
            "label {one:?} requires template {template:?} and label {other:?} requires template {other_template:?}; a job \
             has one VM, so remove one of the two labels, or give both the same template in the server's [labels]"
        )
    }
}

impl RequirementTables {
    /// What a job requires: the largest of each size, and the template of its labels, or else of its resource type.
    pub fn of(&self, resource_type: ResourceType, labels: &[String]) -> Result<VmRequirements, Conflict> {
        let base = self.resource_types.get(&resource_type).cloned().unwrap_or_default();
        let mut size = base.size;
        let mut named: Option<(&String, &String)> = None;
        let asked = labels.iter().filter_map(|l| self.labels.get(&l.to_ascii_lowercase()).map(|d| (l, d)));
        for (label, requirements) in asked {
            size = size.at_least(requirements.size);
            match named {
                _ if requirements.template.is_empty() => {}
                None => named = Some((label, &requirements.template)),
                Some((_, template)) if *template == requirements.template => {}
                Some((first, template)) => {
                    let pair = |l: &String, t: &String| (l.clone(), t.clone());
                    return Err(Conflict([pair(first, template), pair(label, &requirements.template)]));
                }
            }
        }
        Ok(VmRequirements { template: named.map_or(base.template, |(_, template)| template.clone()), size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirements(template: &str, cpus: u32, memory_bytes: u64) -> VmRequirements {
        VmRequirements { template: template.into(), size: VmSize { cpus, memory_bytes, disk_bytes: 0 } }
    }

    fn of(labels: &[&str]) -> Result<VmRequirements, Conflict> {
        let requirement_tables = RequirementTables {
            resource_types: BTreeMap::from([(ResourceType::Large, requirements("plain", 6, 8))]),
            labels: BTreeMap::from([
                ("macos-15".into(), requirements("sequoia", 4, 16)),
                ("sequoia".into(), requirements("sequoia", 0, 0)),
                ("macos-26".into(), requirements("tahoe", 0, 0)),
                ("big".into(), requirements("", 8, 0)),
            ]),
        };
        let labels: Vec<String> = labels.iter().map(|l| (*l).into()).collect();
        requirement_tables.of(ResourceType::Large, &labels)
    }

    #[test]
    fn the_largest_of_each_size_counts_and_a_labels_template_goes_before_the_resource_types() {
        assert_eq!(of(&["self-hosted"]), Ok(requirements("plain", 6, 8)));
        assert_eq!(of(&["MacOS-15"]), Ok(requirements("sequoia", 6, 16)));
        assert_eq!(of(&["big", "macos-15", "sequoia"]), Ok(requirements("sequoia", 8, 16)));
        assert_eq!(of(&["big"]), Ok(requirements("plain", 8, 8)));
    }

    #[test]
    fn two_labels_that_require_different_templates_are_refused_with_both_named() {
        let reason = of(&["macos-15", "big", "macOS-26"]).unwrap_err().to_string();
        for part in ["\"macos-15\"", "\"sequoia\"", "\"macOS-26\"", "\"tahoe\""] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}
