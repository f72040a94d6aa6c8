//! Noticing without the app that the device has come onto a network again, or onto another, so that the relay is tried at
//! once and not when its turn comes.
//!
//! It looks each second, but only while there is no connection: one that is open is found silent by its heartbeat.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use super::Engine;
use crate::event::Connection;

const EVERY: Duration = Duration::from_secs(1);

/// Looks until the engine stops, or there is to be no connection any more.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut connection = engine.connection();
    let mut known = None;
    loop {
        let state = *connection.borrow_and_update();
        match state {
            Connection::Replaced | Connection::SignedOut => return,
            Connection::CatchingUp | Connection::Online => known = None,
            Connection::Connecting | Connection::Offline => {
                let now = addresses();
                if known.replace(now.clone()).is_some_and(|before| before != now) && !now.is_empty() {
                    engine.network_changed();
                }
            }
        }
        tokio::select! {
            Ok(()) = connection.changed() => {}
            () = engine.clock.pass(EVERY), if known.is_some() => {}
            () = engine.stopped() => return,
        }
    }
}

/// The device's addresses on networks that work, as far as it can tell, and that lead further than a link.
fn addresses() -> BTreeSet<IpAddr> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let leads_on = |one: &if_addrs::Interface| one.is_oper_up() && !one.is_loopback() && !one.is_link_local();
    all.iter().filter(|one| leads_on(one)).map(if_addrs::Interface::ip).collect()
}
