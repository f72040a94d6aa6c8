//! `listen`: prints what happens, until so many messages came, so much time has passed, or a signal.
//!
//! Invariant: an event is done with only after its line was written; one that was not is printed the next time.

use std::{pin::pin, time::Duration};

use undertone::{Client, Event};

use super::{CATCH_UP, lost_for_good, news, signals::Signals};
use crate::{
    args::Listen,
    error::Failure,
    output::{Object, Output},
};

pub(super) async fn run(client: &Client, listen: &Listen, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let events = client.events();
    let mut over = pin!(time_is_over(client, listen.seconds));
    let mut messages_left = listen.count;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut over => break,
            () = signals.next() => break,
        };
        let Some(event) = event else { break };
        print(client, &event, output).await?;
        match (&event, &mut messages_left) {
            (Event::MessageReceived(_), Some(1)) => break,
            (Event::MessageReceived(_), Some(left)) => *left -= 1,
            (Event::Connection(state), _) => {
                if let Some(failure) = lost_for_good(*state) {
                    events.done().await?;
                    return Err(failure);
                }
            }
            _ => {}
        }
    }
    Ok(events.done().await?)
}

async fn print(client: &Client, event: &Event, output: Output) -> Result<(), Failure> {
    let Some(object) = Object::event(event) else { return Ok(()) };
    let text = if output.is_json() { None } else { news::of(client, event, None).await };
    output.tell(&object, || text.unwrap_or_default())
}

/// The time counts from when everything waiting at the relay has come, so that a short one is enough to fetch it.
async fn time_is_over(client: &Client, seconds: Option<u64>) {
    let Some(seconds) = seconds else { return std::future::pending().await };
    client.caught_up(CATCH_UP).await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
