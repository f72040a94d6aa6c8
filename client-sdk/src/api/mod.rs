//! The relay as the engine asks it: at several addresses, or in memory.
//!
//! What a relay can be asked, and how one is reached, is `undertone-api`'s. `addresses` is one relay at several
//! addresses, `route` the rule which of them is asked, and `fake` a relay in memory with faults on request. Nothing here
//! retries a request, or decides what an answer means.

mod addresses;
mod route;

#[cfg(any(test, feature = "testing"))]
pub mod fake;

pub use undertone_api::{Answer, ApiError, FrameStream, RelayApi};

pub(crate) use addresses::{Address, Addresses, Whose};
