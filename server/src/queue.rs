//! A device's queue over HTTP: fetch, long poll, ack, and who takes from it. The stream serves the same pages by the
//! same rules.
//!
//! Invariant: what is told as missed will never come, and what is neither delivered nor told as missed is still to
//! come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{extract::State, response::Response};
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::Deserialize;
use undertone_wire::{
    AckRequest, DeviceId, ErrorCode, FetchResponse, InstanceRequest, InstanceResponse, Problem, Span, path,
};

use crate::{
    auth::Caller,
    batch::{Answers, Item},
    encoding::{Accept, Body, Parameters, malformed},
    error::Error,
    node::Node,
    store::{
        StoreError, Tx,
        queue::{self, Page, PageRequest},
        sessions,
    },
};

/// The largest number beyond its queue that a device may say it has. Far from where numbers are no longer exact in
/// JSON.
const SEQ_MAX: u64 = 1 << 51;

/// What to fetch.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct FetchQuery {
    /// The last number that the caller has; the last it acked if absent.
    after: Option<u64>,
    /// How many entries at most; the relay's own maximum if absent.
    limit: Option<u64>,
    /// How many seconds to wait for an entry if there is none.
    #[serde(default)]
    wait: u64,
}

/// Serves the entries after a number, oldest first; waits for one if asked to.
#[utoipa::path(get, path = path::QUEUE, tag = "queue", params(FetchQuery),
    responses((status = 200, body = FetchResponse), (status = "default", body = Problem)))]
pub(crate) async fn fetch(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Parameters(query): Parameters<FetchQuery>,
) -> Result<Response, Error> {
    let after = query.after.unwrap_or(0);
    let size = PageSize { entries_max: query.limit.unwrap_or(u64::MAX), bytes_max: u64::MAX };
    let mut interest = node.wake.register(caller.device);
    let mut stopping = node.stopping();
    let over = tokio::time::sleep(Duration::from_secs(query.wait.min(node.limits.fetch_wait_s_max)));
    tokio::pin!(over);
    loop {
        let page = page(&node, &caller, after, size).await?;
        let missed = missed(&page, after);
        if !page.deliveries.is_empty() || !missed.is_empty() || query.wait == 0 {
            return Ok(accept.answer(&answer(page, missed)));
        }
        tokio::select! {
            () = interest.woken() => {}
            () = &mut over => return Ok(accept.answer(&answer(page, missed))),
            () = stopping.wait() => return Ok(accept.answer(&answer(page, missed))),
        }
    }
}

/// How large a page may be; one entry always fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageSize {
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: u64,
}

fn answer(page: Page, missed: Vec<Span>) -> FetchResponse {
    let oldest_available = page.oldest.unwrap_or(page.next_seq);
    FetchResponse { deliveries: page.deliveries, missed, next_seq: page.next_seq, oldest_available }
}

/// The page of a device's queue after a number, if its session holds. A device that is ahead of its queue has its
/// numbers moved beyond its own: the relay has lost what it numbered before.
pub(crate) async fn page(node: &Node, caller: &Caller, after: u64, size: PageSize) -> Result<Page, Error> {
    let request = PageRequest {
        device: caller.device,
        token_hash: caller.token_hash,
        after,
        entries_max: size.entries_max.clamp(1, node.limits.fetch_entries_max),
        bytes_max: size.bytes_max.min(node.limits.fetch_bytes_max),
    };
    let read = async || {
        let page = queue::page(&mut node.db.read().await?, &request, node.now_ms()).await?;
        page.filter(|page| page.authenticated).ok_or_else(Error::unauthenticated)
    };
    let page = read().await?;
    if after < page.next_seq {
        return Ok(page);
    }
    let (caller, now_ms) = (*caller, node.now_ms());
    node.db
        .write(move |tx| {
            Box::pin(async move {
                caller.still_holds(tx, now_ms).await?;
                catch_up_with(tx, &caller.device, after).await
            })
        })
        .await?;
    read().await
}

/// Moves the numbers of a device's queue beyond one that the device has, if they are not.
pub(crate) async fn catch_up_with(tx: &mut Tx, device: &DeviceId, seq: u64) -> Result<(), Error> {
    let cursors = queue::lock(tx, &BTreeSet::from([*device])).await?;
    let cursor = cursors.get(device).ok_or_else(Error::unauthenticated)?;
    if seq >= cursor.next_seq {
        check_seq(seq)?;
        queue::jump_beyond(tx, device, seq).await?;
    }
    Ok(())
}

fn check_seq(seq: u64) -> Result<(), Error> {
    if seq > SEQ_MAX { Err(malformed("no queue has counted that far")) } else { Ok(()) }
}

/// Numbers above `after` that will never come, as far as the page tells: those between what it holds, and those behind
/// it if it reaches the end of the queue. What was acked is not missed.
pub(crate) fn missed(page: &Page, after: u64) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut next = after.max(page.acked_seq) + 1;
    let mut skip_to = |seq: u64| {
        if next < seq {
            spans.push(Span { from: next, to: seq - 1 });
        }
        next = next.max(seq + 1);
    };
    page.deliveries.iter().for_each(|delivery| skip_to(delivery.seq));
    let reaches_the_end = page.newest.unwrap_or(0) <= page.deliveries.last().map_or(after, |delivery| delivery.seq);
    if reaches_the_end {
        skip_to(page.next_seq);
    }
    spans
}

/// Acks everything up to a number, which deletes it. Repeating it changes nothing.
#[utoipa::path(post, path = path::ACK, tag = "queue", request_body = AckRequest,
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn ack(
    State(node): State<Node>,
    caller: Caller,
    Body(request): Body<AckRequest>,
) -> Result<StatusCode, Error> {
    take_ack(&node, caller, request.up_to, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells which copy of the caller's store takes from its queue from now on, unless another one took last. Repeating it
/// changes nothing.
#[utoipa::path(post, path = path::INSTANCE, tag = "queue", request_body = InstanceRequest,
    responses((status = 200, body = InstanceResponse), (status = "default", body = Problem)))]
pub(crate) async fn instance(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<InstanceRequest>,
) -> Result<Response, Error> {
    let now_ms = node.now_ms();
    let taken = node.db.write(move |tx| {
        Box::pin(async move {
            let cursors = queue::lock(tx, &BTreeSet::from([caller.device])).await?;
            caller.still_holds(tx, now_ms).await?;
            let cursor = cursors.get(&caller.device).ok_or_else(Error::unauthenticated)?;
            let InstanceRequest { previous, instance, takes_over } = request;
            let last = queue::instance(tx, &caller.device).await?;
            if last.is_some_and(|last| last != instance && Some(last) != previous) && !takes_over {
                let why = "the store is a copy, or was restored from one; what it has of keys is not the newest";
                return Err(Error::refused(ErrorCode::OtherInstance, why));
            }
            queue::set_instance(tx, &caller.device, &instance).await?;
            Ok(InstanceResponse { acked_seq: cursor.acked_seq })
        })
    });
    Ok(accept.answer(&taken.await?))
}

/// Takes an ack, if the session holds and the stream it came on, if any, is the newest.
pub(crate) async fn take_ack(node: &Node, caller: Caller, up_to: u64, stream: Option<u64>) -> Result<(), Error> {
    node.acks.write(Ack { caller, up_to, stream, now_ms: node.now_ms() }).await?
}

/// A device has everything up to a number.
pub(crate) struct Ack {
    caller: Caller,
    up_to: u64,
    stream: Option<u64>,
    now_ms: u64,
}

impl Item for Ack {
    type Answer = Result<(), Error>;
    type Key = DeviceId;

    const NAME: &'static str = "ack";

    fn key(&self) -> DeviceId {
        self.caller.device
    }

    fn bytes(&self) -> usize {
        0
    }

    fn write<'a>(tx: &'a mut Tx, acks: &'a [Arc<Self>]) -> BoxFuture<'a, Result<Answers<Self>, StoreError>> {
        Box::pin(write_acks(tx, acks))
    }
}

async fn write_acks(tx: &mut Tx, acks: &[Arc<Ack>]) -> Result<Answers<Ack>, StoreError> {
    let Some(first) = acks.first() else { return Ok(Vec::new()) };
    let tokens: Vec<_> = acks.iter().map(|ack| ack.caller.token_hash).collect();
    let sessions = sessions::holders(tx, &tokens, first.now_ms).await?;
    let cursors = queue::lock(tx, &acks.iter().map(|ack| ack.caller.device).collect()).await?;

    let (mut answers, mut acked, mut ahead) = (Vec::with_capacity(acks.len()), BTreeMap::new(), Vec::new());
    for ack in acks {
        let device = ack.caller.device;
        let cursor = cursors.get(&device).filter(|_| sessions.contains_key(&ack.caller.token_hash));
        answers.push(match cursor {
            None => Err(Error::unauthenticated()),
            Some(cursor) if ack.stream.is_some_and(|stream| stream != cursor.stream) => {
                Err(Error::refused(ErrorCode::Replaced, "a newer stream of this device acks now"))
            }
            Some(cursor) if ack.up_to >= cursor.next_seq => {
                let checked = check_seq(ack.up_to);
                ahead.extend(checked.is_ok().then_some((device, ack.up_to)));
                checked
            }
            Some(cursor) => {
                if ack.up_to > cursor.acked_seq {
                    acked.insert(device, ack.up_to);
                }
                Ok(())
            }
        });
    }
    queue::ack(tx, cursors, &acked).await?;
    for (device, seq) in ahead {
        queue::jump_beyond(tx, &device, seq).await?;
    }
    Ok(answers.into_iter().map(Some).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::testing, store::StoreError};
    use undertone_wire::{Delivery, Envelope, Hash};

    fn page(next_seq: u64, acked_seq: u64, held: &[u64], shown: usize) -> Page {
        let deliveries = held[..shown].iter().map(|&seq| Delivery { seq, envelope: Envelope::Unknown }).collect();
        let (oldest, newest) = (held.first().copied(), held.last().copied());
        Page { deliveries, next_seq, acked_seq, stream: 0, oldest, newest, authenticated: true }
    }

    fn missed_of(page: &Page, after: u64) -> Vec<(u64, u64)> {
        missed(page, after).iter().map(|span| (span.from, span.to)).collect()
    }

    #[test]
    fn a_whole_queue_misses_nothing() {
        assert_eq!(missed_of(&page(1, 0, &[], 0), 0), []);
        assert_eq!(missed_of(&page(4, 0, &[1, 2, 3], 3), 0), []);
        assert_eq!(missed_of(&page(4, 3, &[], 0), 3), []);
    }

    #[test]
    fn what_was_acked_is_not_missed() {
        assert_eq!(missed_of(&page(6, 3, &[4, 5], 2), 0), []);
        assert_eq!(missed_of(&page(6, 5, &[], 0), 2), []);
    }

    #[test]
    fn holes_are_told_where_they_are() {
        assert_eq!(missed_of(&page(10, 2, &[5, 6, 9], 3), 0), [(3, 4), (7, 8)]);
        assert_eq!(missed_of(&page(10, 2, &[5, 6], 2), 3), [(4, 4), (7, 9)]);
        assert_eq!(missed_of(&page(10, 2, &[], 0), 4), [(5, 9)]);
    }

    #[test]
    fn what_comes_on_the_next_page_is_not_missed() {
        assert_eq!(missed_of(&page(10, 0, &[1, 2, 5, 9], 2), 0), []);
        assert_eq!(missed_of(&page(10, 0, &[1, 2, 5, 9], 3), 0), [(3, 4)]);
    }

    #[tokio::test]
    async fn only_the_newest_stream_acks_and_only_while_the_session_holds() {
        let folder = tempfile::tempdir().unwrap();
        let node = testing::node(folder.path()).await;
        let caller = testing::caller(&node, 1).await;
        let opened_twice = node.db.write(move |tx| {
            Box::pin(async move {
                queue::next_stream(tx, &caller.device).await?;
                queue::next_stream(tx, &caller.device).await?;
                Ok::<_, StoreError>(())
            })
        });
        opened_twice.await.unwrap();
        let replaced = take_ack(&node, caller, 0, Some(1)).await;
        assert!(matches!(replaced, Err(Error::Refused(ErrorCode::Replaced, _))), "{replaced:?}");
        take_ack(&node, caller, 0, Some(2)).await.unwrap();
        take_ack(&node, caller, 0, None).await.unwrap();
        let other = Caller { token_hash: Hash::of(b"another token"), ..caller };
        let ended = take_ack(&node, other, 0, Some(2)).await;
        assert!(matches!(ended, Err(Error::Refused(ErrorCode::Unauthenticated, _))), "{ended:?}");
    }
}
