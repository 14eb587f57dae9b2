//! Weights for a backward pass in place of those of its forward pass, as the stages of a pipeline that does not flush need them.
//!
//! burn's autodiff keeps with each operation what its gradient needs, weights included. So the operations of this crate that
//! multiply by a weight on the way back ask here for it, by the node that the weight has in the graph. Nodes are unique in a process:
//! what is entered for one backward pass is of no other one.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn_autodiff::NodeId;
use burn_flex::FlexTensor;

thread_local! {
    /// By the weight's node. A backward pass runs on the thread that asked for it.
    static REPLACED: RefCell<BTreeMap<u64, FlexTensor>> = const { RefCell::new(BTreeMap::new()) };
}

/// Computes `work`, whose backward passes find `weights` in place of those of the forward pass.
pub(super) fn replaced<T>(weights: Vec<(NodeId, FlexTensor)>, work: impl FnOnce() -> T) -> T {
    let entered = Entered(weights.iter().map(|(node, _)| node.value).collect());
    REPLACED.with_borrow_mut(|replaced| replaced.extend(weights.into_iter().map(|(node, x)| (node.value, x))));
    let result = work();
    drop(entered);
    result
}

/// Returns the weight that a backward pass multiplies by: that of the forward pass unless another one was entered for its node.
pub(super) fn current(node: Option<NodeId>, of_forward: FlexTensor) -> FlexTensor {
    let other = node.and_then(|node| REPLACED.with_borrow(|replaced| replaced.get(&node.value).cloned()));
    other.unwrap_or(of_forward)
}

/// Nodes that are in the table until this is dropped.
struct Entered(Vec<u64>);

impl Drop for Entered {
    fn drop(&mut self) {
        REPLACED.with_borrow_mut(|replaced| {
            for node in &self.0 {
                replaced.remove(node);
            }
        });
    }
}
