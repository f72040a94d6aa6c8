//! Nodes: what relays over one Postgres database tell each other, and the look that heals what was not heard.
//!
//! Said on one channel: which devices have mail, many at a time, and ephemeral content with whom it is for. Each node
//! hears all of it, what it said itself included, and passes on what concerns those who wait on it.
//!
//! Invariant: nothing said here is needed. Every few seconds one query looks where the queues of all who wait stand; so a
//! wake that was lost is late, and no more. A node that hears nothing, not even itself, says so and listens anew.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, timeout},
};
use undertone_wire::{Bytes, DeviceId, Encoding, GroupId, ServerFrame};

use crate::{
    node::Node,
    store::{Listener, StoreError, groups, queue},
    wake::Untold,
};

/// Devices in one wake: what is said at once is at most 8,000 bytes.
const DEVICES_MAX: usize = 180;

/// Devices in one look.
const LOOK_MAX: usize = 1_000;

/// Pause after the database could not be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// How much ephemeral content may wait to be passed on; what comes beyond is lost, as it may be.
const PASSING_MAX: usize = 64;

/// How many looks may pass in which a node does not even hear itself.
const DEAF_LOOKS: u32 = 3;

/// What nodes say to each other, in JSON. Unknown ones are from a newer node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum Said {
    /// These devices have mail. Nobody: the node only tries whether it is heard.
    Mail { devices: Vec<DeviceId> },
    /// Ephemeral content for the members of a group that stands there.
    Group(ToGroup),
    /// Ephemeral content for one device.
    Device { device_id: DeviceId, ciphertext: Bytes },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Ephemeral content for a group, and where its sender says the group stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToGroup {
    pub(crate) group_id: GroupId,
    pub(crate) at: u64,
    pub(crate) epoch: u64,
    pub(crate) ciphertext: Bytes,
}

/// Speaks, listens and looks, until dropped. `listener` has been listening since before anyone was served.
pub(crate) async fn run(node: Node, listener: Option<Listener>) {
    let (passing, to_pass_on) = mpsc::channel(PASSING_MAX);
    tokio::join!(speak(&node), listen(&node, listener, &passing), look(&node), pass_on(&node, to_pass_on));
}

/// Says something ephemeral to all nodes, this one included.
pub(crate) async fn say(node: &Node, said: Vec<Said>) -> Result<(), StoreError> {
    if node.db.has_other_nodes() {
        node.wake.tell(said.iter().map(text));
        return Ok(());
    }
    for each in said {
        if let Some(to_group) = hear(node, each) {
            to_group.pass_on(node).await?;
        }
    }
    Ok(())
}

fn text(said: &Said) -> String {
    String::from_utf8_lossy(&Encoding::Json.encode(said)).into_owned()
}

/// Tells all nodes who has mail, and then what is ephemeral. Said on one connection, it is heard in this order.
async fn speak(node: &Node) {
    loop {
        let Untold { devices, ephemeral } = node.wake.untold_yet().await;
        if !node.db.has_other_nodes() {
            continue;
        }
        let devices: Vec<_> = devices.into_iter().collect();
        let said = devices.chunks(DEVICES_MAX).map(|devices| text(&Said::Mail { devices: devices.to_vec() }));
        if let Err(error) = node.db.notify(&said.chain(ephemeral).collect::<Vec<_>>()).await {
            tracing::debug!(%error, "other nodes could not be woken; they will look");
        }
    }
}

/// Hears what is said, and listens anew when nothing more can be heard.
async fn listen(node: &Node, listener: Option<Listener>, passing: &mpsc::Sender<ToGroup>) {
    let mut listening = Ok(listener);
    loop {
        match listening {
            Ok(None) => return,
            Ok(Some(listener)) => {
                node.hears.store(true, Ordering::SeqCst);
                let error = hear_until_deaf(node, listener, passing).await;
                tracing::warn!(%error, "other nodes cannot be heard; listening anew");
            }
            Err(error) => tracing::warn!(%error, "other nodes cannot be heard; trying again"),
        }
        node.hears.store(false, Ordering::SeqCst);
        tokio::time::sleep(PAUSE).await;
        listening = node.db.listen().await;
    }
}

async fn hear_until_deaf(node: &Node, mut listener: Listener, passing: &mpsc::Sender<ToGroup>) -> StoreError {
    // What was said before is not known, so all look.
    node.wake.wake_here(&node.wake.devices());
    loop {
        match timeout(node.look_every * DEAF_LOOKS, listener.hear()).await {
            Ok(Ok(said)) => {
                let Ok(said) = Encoding::Json.decode(said.as_bytes()) else { continue };
                // The database is asked elsewhere, so that no wake waits behind it.
                if let Some(to_group) = hear(node, said)
                    && passing.try_send(to_group).is_err()
                {
                    tracing::debug!("too much ephemeral content");
                }
            }
            Ok(Err(error)) => return error,
            Err(_) => return StoreError::Deaf,
        }
    }
}

/// Passes on what was said to those who wait here, but what needs a look at the database first.
fn hear(node: &Node, said: Said) -> Option<ToGroup> {
    match said {
        Said::Mail { devices } => node.wake.wake_here(&devices),
        Said::Device { device_id, ciphertext } => {
            node.wake.say_here(&device_id, &Arc::new(ServerFrame::DirectEphemeral { ciphertext }));
        }
        Said::Group(to_group) => return Some(to_group),
        Said::Unknown => {}
    }
    None
}

/// Passes on what is for groups, in its order.
async fn pass_on(node: &Node, mut to_pass_on: mpsc::Receiver<ToGroup>) {
    while let Some(to_group) = to_pass_on.recv().await {
        if let Err(error) = to_group.pass_on(node).await {
            tracing::debug!(%error, "ephemeral content could not be passed on");
        }
    }
}

impl ToGroup {
    /// Passes it on to the members who wait here, if the group stands where the sender said.
    async fn pass_on(self, node: &Node) -> Result<(), StoreError> {
        let mut conn = node.db.read().await?;
        let position = groups::position(&mut conn, &self.group_id).await?;
        if position.is_none_or(|position| (position.commit_seq, position.epoch) != (self.at, self.epoch)) {
            return Ok(());
        }
        let members = groups::members_of(&mut conn, &BTreeSet::from([self.group_id])).await?;
        let Self { group_id, epoch, ciphertext, .. } = self;
        let frame = Arc::new(ServerFrame::GroupEphemeral { group_id, epoch, ciphertext });
        for device in members.values().flatten() {
            node.wake.say_here(device, &frame);
        }
        Ok(())
    }
}

/// Looks from time to time where the queues of all who wait stand.
async fn look(node: &Node) {
    let mut ticks = tokio::time::interval(node.look_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = look_once(node).await {
            tracing::debug!(%error, "could not look for mail; trying again");
        }
    }
}

async fn look_once(node: &Node) -> Result<(), StoreError> {
    if node.db.has_other_nodes() {
        // Whether it is heard or not, this look takes place.
        let said = node.db.notify(&[text(&Said::Mail { devices: Vec::new() })]).await;
        said.unwrap_or_else(|error| tracing::debug!(%error, "other nodes could not be told anything"));
    }
    let devices = node.wake.devices();
    for asked in devices.chunks(LOOK_MAX) {
        let states = queue::states(&mut node.db.read().await?, asked, node.now_ms()).await?;
        node.wake.compare(asked, &states);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_at_once_fits() {
        let devices = vec![DeviceId::from_random([0xff; 16]); DEVICES_MAX];
        let group_id = GroupId::from_random([0xff; 16]);
        let ciphertext: Bytes = vec![0xff; 4 * 1024].into();
        let group = Said::Group(ToGroup { group_id, at: u64::MAX, epoch: u64::MAX, ciphertext });
        for said in [Said::Mail { devices }, group] {
            assert!(text(&said).len() < 8_000, "{}", text(&said).len());
            assert_eq!(Encoding::Json.decode::<Said>(text(&said).as_bytes()).unwrap(), said);
        }
        assert_eq!(Encoding::Json.decode::<Said>(br#"{"say":"more","than":1}"#).unwrap(), Said::Unknown);
    }
}
