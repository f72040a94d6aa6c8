//! Which cases there are, and what came of all of them.

use std::ops::Range;

use undertone::{Clock as _, SystemClock};

use crate::{
    World,
    case::{Tally, case},
    people::{Crowd, FIRST},
};

/// So many cases share a world with its people.
const CASES_PER_WORLD: usize = 20;

/// Fewer cases than this may be such that little happens in them.
const CASES_MIN: usize = 10;

/// The seeds of a run: so many, and more in the long form that `TEST_SOAK` asks for; or the one that `TEST_SEED` names.
///
/// # Panics
/// If that is no number.
pub fn seeds(short: u64, soak: u64) -> Range<u64> {
    let (first, cases) = match std::env::var("TEST_SEED") {
        Ok(seed) => (seed.parse().expect("TEST_SEED is a number"), 1),
        Err(_) => (SystemClock.now_ms(), if std::env::var_os("TEST_SOAK").is_some() { soak } else { short }),
    };
    println!("{cases} cases from seed {first}");
    first..first + cases
}

/// Lets the cases of these seeds happen, with a new world every now and then.
///
/// # Panics
/// If those who are in a group at the end of a case do not agree on it.
pub async fn converges<W: World>(seeds: impl IntoIterator<Item = u64>, world: impl AsyncFn() -> W) {
    let (mut crowd, mut tally) = (None, Tally::default());
    for seed in seeds {
        if tally.cases % CASES_PER_WORLD == 0
            && let Some(before) = crowd.take()
        {
            Crowd::end(before).await;
        }
        let crowd = match &mut crowd {
            Some(crowd) => crowd,
            none => none.insert(Crowd::in_world(world().await).await),
        };
        case(crowd, seed, &mut tally).await;
    }
    if let Some(crowd) = crowd {
        crowd.end().await;
    }
    println!("{tally:?}");
    let Tally { cases, messages, changes, commits, .. } = tally;
    let lively = messages > cases && changes > cases && commits > cases * (FIRST - 1);
    assert!(lively || cases < CASES_MIN, "cases in which nothing happens show nothing");
}
