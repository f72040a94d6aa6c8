//! People whose clocks are days apart, and for all of whom time goes faster.

use std::sync::Arc;

use undertone::{AccountId, Client, ClientBuilder, Clock as _, StoreAt, SystemClock, api::fake::FastClock};

use crate::{
    World,
    wait::{online, wait_until},
};

/// So many people.
pub(crate) const PEOPLE: usize = 7;

/// So many devices: the first of each of them, and then a second of the first of them.
pub(crate) const DEVICES: usize = PEOPLE + 2;

/// The first of them are in each group from the beginning to its end, so that they have all that was said there.
pub(crate) const CORE: usize = 3;

/// So many are in it at the beginning.
pub(crate) const FIRST: usize = 5;

/// So much faster time goes here.
const SPEED: u32 = 20;

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// With fewer key packages a device has not published them yet.
const KEY_PACKAGES_MIN: usize = 10;

/// People in a world.
pub(crate) struct Crowd<W> {
    pub(crate) world: W,
    /// Their devices.
    pub(crate) people: Vec<Client>,
    pub(crate) accounts: Vec<AccountId>,
    clocks: Vec<Arc<FastClock>>,
}

impl<W: World> Crowd<W> {
    pub(crate) async fn in_world(world: W) -> Self {
        let (mut clocks, mut people) = (Vec::new(), Vec::new());
        for n in 0..DEVICES {
            let off_ms = (n as u64 * 17 % 7) * 12 * HOUR_MS;
            let clock = FastClock::from(SystemClock.now_ms() + off_ms - 36 * HOUR_MS, SPEED);
            let name = name(n);
            let device = world.device(&name, &clock);
            people.push(match people.get(owner(n)) {
                None => device.register(name.as_str()).await.unwrap(),
                Some(first) => linked(device, &name, first).await,
            });
            clocks.push(clock);
        }
        let accounts: Vec<_> = people.iter().take(PEOPLE).map(|one| one.account().account_id).collect();
        for client in &people {
            for account in &accounts {
                client.know(*account).await.unwrap();
            }
        }
        let crowd = Self { world, people, accounts, clocks };
        crowd.all_online().await;
        crowd
    }

    /// Waits until everybody has what was at the relay, and can be added by others.
    pub(crate) async fn all_online(&self) {
        for client in &self.people {
            online(client).await;
            let device = client.device_id();
            wait_until("key packages to be published", async || {
                (self.world.key_packages(&device).await > KEY_PACKAGES_MIN).then_some(())
            })
            .await;
        }
    }

    /// Somebody's app ends in order and is opened again.
    pub(crate) async fn restart(&mut self, who: usize) {
        self.people[who].clone().shutdown().await;
        let open = async || self.world.device(&name(who), &self.clocks[who]).open().await.ok();
        self.people[who] = wait_until("a store to be free", open).await;
    }

    /// Everybody's app ends, and then the world.
    pub(crate) async fn end(self) {
        for client in self.people {
            client.shutdown().await;
        }
        self.world.end().await;
    }
}

/// Whose device it is.
pub(crate) fn owner(device: usize) -> usize {
    device % PEOPLE
}

/// Whose device it is, if it is there from the beginning to the end.
pub(crate) fn is_core(device: usize) -> bool {
    owner(device) < CORE
}

/// The devices of somebody.
pub(crate) fn devices_of(person: usize) -> impl Iterator<Item = usize> {
    (0..DEVICES).filter(move |device| owner(*device) == person)
}

async fn linked(device: ClientBuilder<StoreAt>, name: &str, by: &Client) -> Client {
    let linking = device.link(name).await.unwrap();
    let (code, by) = (linking.code(), by.clone());
    let approving = tokio::spawn(async move { by.approve_link(&code).await });
    let linked = linking.approved().await.unwrap().join().await.unwrap();
    approving.await.unwrap().unwrap();
    linked
}

fn name(n: usize) -> String {
    format!("p{n}")
}
