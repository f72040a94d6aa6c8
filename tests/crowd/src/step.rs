//! What people do, and which steps belong to a seed.

use std::fmt::Debug;

use proptest::{
    collection::vec,
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::{BoxedStrategy, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::people::{CORE, DEVICES, PEOPLE};

/// Something that somebody does, or that happens.
#[derive(Debug, Clone)]
pub(crate) enum Step<F> {
    Send(usize),
    /// One device writes to somebody directly.
    Write(usize, usize),
    Add(usize, usize),
    Remove(usize, usize),
    Leave(usize),
    Rename(usize),
    Restart(usize),
    Fault(F),
    /// All that was begun comes to its end, or a while passes.
    Settle,
}

fn step<F: Clone + Debug + 'static>(faults: BoxedStrategy<F>) -> impl Strategy<Value = Step<F>> {
    let who = 0..DEVICES;
    prop_oneof![
        10 => who.clone().prop_map(Step::Send),
        5 => (who.clone(), 0..CORE).prop_map(|(by, whom)| Step::Write(by, whom)),
        3 => (who.clone(), CORE..PEOPLE).prop_map(|(by, whom)| Step::Add(by, whom)),
        2 => (who.clone(), CORE..PEOPLE).prop_map(|(by, whom)| Step::Remove(by, whom)),
        1 => (CORE..PEOPLE).prop_map(Step::Leave),
        1 => who.clone().prop_map(Step::Rename),
        2 => who.prop_map(Step::Restart),
        5 => faults.prop_map(Step::Fault),
        4 => Just(Step::Settle),
    ]
}

/// The steps that belong to a seed.
pub(crate) fn steps<F: Clone + Debug + 'static>(seed: u64, faults: BoxedStrategy<F>) -> Vec<Step<F>> {
    let bytes: Vec<u8> = seed.to_be_bytes().into_iter().cycle().take(32).collect();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    vec(step(faults), 20..60).new_tree(&mut runner).unwrap().current()
}
