//! What resource types and labels ask for, as the operator has it: a template, and a size.

use std::{collections::BTreeMap, fmt};

use shoes_vz_model::ResourceType;

use super::types::Shape;

/// What one resource type, one label or a whole job asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// The template's name; "" = any that fits.
    pub template: String,
    /// At least this size.
    pub shape: Shape,
}

/// The operator's tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// By resource type.
    pub resource_types: BTreeMap<ResourceType, Demand>,
    /// By label, in lower case.
    pub labels: BTreeMap<String, Demand>,
}

/// Two labels of one job name different templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict([(String, String); 2]);

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(one, its), (other, others)] = &self.0;
        write!(
            f,
            "label {one:?} asks for template {its:?} and label {other:?} for template {others:?}; a job has one VM, \
             so take one of the two labels away, or give both one template in the server's [labels]"
        )
    }
}

impl Demands {
    /// What a job asks for: of each size the largest, and the template of its labels, or else its resource type's.
    pub fn of(&self, resource_type: ResourceType, labels: &[String]) -> Result<Demand, Conflict> {
        let base = self.resource_types.get(&resource_type).cloned().unwrap_or_default();
        let mut shape = base.shape;
        let mut named: Option<(&String, &String)> = None;
        let asked = labels.iter().filter_map(|l| self.labels.get(&l.to_ascii_lowercase()).map(|d| (l, d)));
        for (label, demand) in asked {
            shape = shape.at_least(demand.shape);
            match named {
                _ if demand.template.is_empty() => {}
                None => named = Some((label, &demand.template)),
                Some((_, template)) if *template == demand.template => {}
                Some((first, template)) => {
                    let pair = |l: &String, t: &String| (l.clone(), t.clone());
                    return Err(Conflict([pair(first, template), pair(label, &demand.template)]));
                }
            }
        }
        Ok(Demand { template: named.map_or(base.template, |(_, template)| template.clone()), shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(template: &str, cpus: u32, memory_bytes: u64) -> Demand {
        Demand { template: template.into(), shape: Shape { cpus, memory_bytes, disk_bytes: 0 } }
    }

    fn of(labels: &[&str]) -> Result<Demand, Conflict> {
        let demands = Demands {
            resource_types: BTreeMap::from([(ResourceType::Large, demand("plain", 6, 8))]),
            labels: BTreeMap::from([
                ("macos-15".into(), demand("sequoia", 4, 16)),
                ("sequoia".into(), demand("sequoia", 0, 0)),
                ("macos-26".into(), demand("tahoe", 0, 0)),
                ("big".into(), demand("", 8, 0)),
            ]),
        };
        let labels: Vec<String> = labels.iter().map(|l| (*l).into()).collect();
        demands.of(ResourceType::Large, &labels)
    }

    #[test]
    fn the_largest_of_each_size_counts_and_a_labels_template_goes_before_the_resource_types() {
        assert_eq!(of(&["self-hosted"]), Ok(demand("plain", 6, 8)));
        assert_eq!(of(&["MacOS-15"]), Ok(demand("sequoia", 6, 16)));
        assert_eq!(of(&["big", "macos-15", "sequoia"]), Ok(demand("sequoia", 8, 16)));
        assert_eq!(of(&["big"]), Ok(demand("plain", 8, 8)));
    }

    #[test]
    fn two_labels_that_name_different_templates_contradict_each_other_in_words() {
        let told = of(&["macos-15", "big", "macOS-26"]).unwrap_err().to_string();
        for part in ["\"macos-15\"", "\"sequoia\"", "\"macOS-26\"", "\"tahoe\""] {
            assert!(told.contains(part), "{told}");
        }
    }
}
