//! Whether a trainer's tensors are the run's.

use std::collections::BTreeMap;

use anabranch_common::manifest::{ModelManifest, TensorSpec};

/// Differences that are told; more are counted.
const SHOWN: usize = 6;

/// What the trainer's tensors are to the run's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Compared {
    /// The same ones, in the same order.
    Same,
    /// The same ones, in another order.
    OtherOrder,
    /// Other ones; what differs, for people.
    Other(String),
}

/// Compares the trainer's tensors with the run's by name.
pub(super) fn compare(ours: &ModelManifest, theirs: &ModelManifest) -> Compared {
    if ours == theirs {
        return Compared::Same;
    }
    let by_name = |manifest: &ModelManifest| -> BTreeMap<String, TensorSpec> {
        manifest.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
    };
    let (here, there) = (by_name(ours), by_name(theirs));
    let lacks = theirs.tensors().iter().filter(|tensor| !here.contains_key(&tensor.name));
    let lacks = lacks.map(|TensorSpec { name, shape }| format!("it lacks {name} {shape:?}"));
    let extra = ours.tensors().iter().filter(|tensor| !there.contains_key(&tensor.name));
    let extra = extra.map(|TensorSpec { name, shape }| format!("the run has no {name} {shape:?}"));
    let shapes = ours.tensors().iter().filter_map(|TensorSpec { name, shape }| {
        let wanted = &there.get(name).filter(|tensor| tensor.shape != *shape)?.shape;
        Some(format!("{name} is {shape:?} here and {wanted:?} in the run"))
    });
    let mut differences: Vec<String> = lacks.chain(extra).chain(shapes).collect();
    if differences.is_empty() {
        return Compared::OtherOrder;
    }
    let more = differences.len().saturating_sub(SHOWN);
    differences.truncate(SHOWN);
    let told = differences.join("; ");
    Compared::Other(if more > 0 { format!("{told}; and {more} more") } else { told })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(tensors: &[(&str, u64)]) -> ModelManifest {
        let spec = |(name, extent): &(&str, u64)| TensorSpec { name: (*name).to_owned(), shape: vec![*extent] };
        ModelManifest::new(tensors.iter().map(spec).collect()).expect("valid")
    }

    #[test]
    fn tensors_are_compared_by_name_and_every_kind_of_difference_is_told() {
        let ours = manifest(&[("weight", 2), ("bias", 3)]);
        assert_eq!(compare(&ours, &ours), Compared::Same);
        assert_eq!(compare(&ours, &manifest(&[("bias", 3), ("weight", 2)])), Compared::OtherOrder);
        let theirs = manifest(&[("bias", 4), ("scale", 2)]);
        let told = "it lacks scale [2]; the run has no weight [2]; bias is [3] here and [4] in the run";
        assert_eq!(compare(&ours, &theirs), Compared::Other(told.to_owned()));
        let names: Vec<String> = (0..9).map(|index| format!("t{index}")).collect();
        let many: Vec<(&str, u64)> =
            names.iter().map(|name| (name.as_str(), 1)).chain([("weight", 2), ("bias", 3)]).collect();
        let Compared::Other(told) = compare(&ours, &manifest(&many)) else { panic!("they differ") };
        assert!(told.ends_with("it lacks t5 [1]; and 3 more"), "{told}");
    }
}
