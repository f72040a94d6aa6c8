//! `sync`: receives and sends what is waiting.

use std::time::Duration;

use undertone::Client;

use super::{connect, unreachable};
use crate::{
    error::Failure,
    output::{Object, Output, hint},
};

/// An outbox from which nothing has gone out for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(4);

/// Catching up goes on for as long as something comes.
const CATCH_UP_STEP: Duration = Duration::from_secs(5);

pub(super) async fn run(client: &Client, output: Output) -> Result<(), Failure> {
    connect(client).await?;
    caught_up(client).await?;
    let queued = sent_out(client).await?;
    caught_up(client).await?;
    let (received, sent) = client.counts();
    if queued > 0 {
        hint(&format!("{queued} still to be sent: it is tried again with the next command"));
    }
    output.tell(&Object::Synced { received, sent }, || format!("received {received}, sent {sent}"))
}

/// Waits until nothing is missing, for as long as something comes.
async fn caught_up(client: &Client) -> Result<(), Failure> {
    use undertone::Connection::{CatchingUp, Online};

    loop {
        let before = client.counts();
        match super::catch_up(client, CATCH_UP_STEP).await? {
            Online => return Ok(()),
            CatchingUp if client.counts() != before => {}
            _ => return Err(unreachable(client)),
        }
    }
}

/// Waits until the outbox is empty or stuck. Answers with what is left.
async fn sent_out(client: &Client) -> Result<u64, Failure> {
    let mut before = client.outbox_empty(Duration::ZERO).await?;
    loop {
        let left = client.outbox_empty(STUCK_AFTER).await?;
        if left == 0 || left >= before {
            return Ok(left);
        }
        before = left;
    }
}
