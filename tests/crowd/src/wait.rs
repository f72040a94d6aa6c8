//! Waiting for what has to come, as a test of the SDK sees it. Nothing here waits for a fixed time.

use std::{fmt::Display, time::Duration};

use tokio::time::Instant;
use undertone::{Client, Connection, Conversation, GroupId};

/// So long a test waits for what has to come. Only one that fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

const TICK: Duration = Duration::from_millis(5);

/// Waits until `look` finds something.
///
/// # Panics
/// If it does not in time.
pub async fn wait_until<T>(what: impl Display, look: impl AsyncFnMut() -> Option<T>) -> T {
    found(look).await.unwrap_or_else(|| panic!("waited in vain: {what}"))
}

/// What `look` finds, if it does in time.
pub async fn found<T>(mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let mut tick = tokio::time::interval(TICK);
    let found = async {
        loop {
            tick.tick().await;
            let began = Instant::now();
            if let Some(found) = look().await {
                return found;
            }
            // To look must not be most of what the machine does.
            tick.reset_after(TICK.max(4 * began.elapsed()));
        }
    };
    tokio::time::timeout(PATIENCE, found).await.ok()
}

/// Waits until a device has all that was at the relay.
pub async fn online(client: &Client) {
    wait_until("to be online", async || (client.connection() == Connection::Online).then_some(())).await;
}

/// Waits until a device is in a group.
pub async fn joined(client: &Client, group: GroupId) {
    let group = client.group(group);
    wait_until("the group to be there", async || group.summary().await.ok().filter(|group| group.active)).await;
}

/// The texts of a conversation's history.
///
/// # Panics
/// If the store cannot be read.
pub async fn texts(conversation: &Conversation) -> Vec<String> {
    let history = conversation.history(1_000, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}
