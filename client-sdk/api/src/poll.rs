//! A device's stream by long polling, for where WebSockets do not get through; now and then one is tried, which goes on
//! with it. What it is told is the same, but for ephemeral content and for being replaced by a newer stream: only
//! WebSockets have those.
//!
//! Invariant: nothing is told of a page before the one before it was told in full, and what was told is not fetched
//! again.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use undertone_wire::{AckRequest, Bytes, ClientFrame, FetchResponse, Relay, ServerFrame};

use crate::{Answer, ApiError, FrameStream, RelayApi as _, http::HttpApi};

/// How long one request waits. With what an answer may take, silence is noticed within half a minute.
const WAIT_S: u64 = 15;

/// After so long a WebSocket is tried again; then after twice that, and so on.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(60 * 60);

/// A stream that asks again and again, until a WebSocket gets through.
pub(crate) struct Polling {
    api: HttpApi,
    token: Bytes,
    /// The last number that was told, or fetched to be.
    after: u64,
    /// What was fetched and not told yet.
    fetched: VecDeque<ServerFrame>,
    /// The `next_seq` at which it last said that it had caught up.
    caught_up_at: Option<u64>,
    /// When a WebSocket is tried again, and how long that was put off.
    retry: (Instant, Duration),
    /// The one that has got through.
    socket: Option<Box<dyn FrameStream>>,
}

impl Polling {
    /// Opens one after a number, if the relay answers as it should.
    pub(crate) async fn open(api: HttpApi, token: Bytes, after: u64) -> Result<Self, ApiError> {
        let Relay { relay_id, incarnation, time_ms, .. } = api.relay().await?;
        let page = api.fetch(&token, after, 0).await?;
        let (next_seq, oldest_available) = (page.next_seq, page.oldest_available);
        let hello = ServerFrame::Hello { relay_id, incarnation, stream: 0, next_seq, oldest_available, time_ms };
        let retry = (Instant::now() + RETRY, RETRY);
        let fetched = VecDeque::from([hello]);
        let mut polling = Self { api, token, after, fetched, caught_up_at: None, retry, socket: None };
        polling.take(page);
        Ok(polling)
    }

    async fn next_frame(&mut self) -> Result<ServerFrame, ApiError> {
        loop {
            if let Some(frame) = self.fetched.pop_front() {
                return Ok(frame);
            }
            self.try_socket().await;
            if let Some(socket) = &mut self.socket {
                return socket.next().await;
            }
            // Until all was told there is something to fetch, and nothing to wait for.
            let wait_s = if self.caught_up_at.is_some() { WAIT_S } else { 0 };
            let page = self.api.fetch(&self.token, self.after, wait_s).await?;
            self.take(page);
        }
    }

    /// Goes on by a WebSocket if it is time to try one and it gets through.
    async fn try_socket(&mut self) {
        let (at, before) = self.retry;
        if self.socket.is_some() || at > Instant::now() {
            return;
        }
        let put_off = (before * 2).min(RETRY_MAX);
        self.retry = (Instant::now() + put_off, put_off);
        self.socket = self.api.open_socket(&self.token, self.after).await.ok();
    }

    fn take(&mut self, page: FetchResponse) {
        let FetchResponse { deliveries, missed, next_seq, .. } = page;
        let missed = missed.into_iter().map(|span| (span.from, span.to, ServerFrame::Missed { span }));
        let delivered = deliveries.into_iter().map(|one| (one.seq, one.seq, ServerFrame::Delivery { delivery: one }));
        let mut told: Vec<_> = missed.chain(delivered).collect();
        told.sort_by_key(|(from, ..)| *from);
        // What was acked is told by nobody. That all was told goes beyond it then.
        let is_empty = told.is_empty();
        for (_, to, frame) in told {
            self.after = self.after.max(to);
            self.fetched.push_back(frame);
        }
        let is_all = is_empty || self.after.saturating_add(1) >= next_seq;
        if is_all && self.caught_up_at != Some(next_seq) {
            self.caught_up_at = Some(next_seq);
            self.fetched.push_back(ServerFrame::CaughtUp { next_seq });
        }
    }
}

impl FrameStream for Polling {
    fn next(&mut self) -> Answer<'_, ServerFrame> {
        Box::pin(self.next_frame())
    }

    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()> {
        Box::pin(async move {
            if let Some(socket) = &mut self.socket {
                return socket.send(frame).await;
            }
            let ClientFrame::Ack { up_to } = frame else { return Ok(()) };
            self.api.ack(&self.token, &AckRequest { up_to }).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use undertone_wire::{Delivery, Envelope, Span};

    use super::*;
    use crate::Place;

    fn polling(after: u64) -> Polling {
        let nobody = Place::parse("http://127.0.0.1:9").unwrap();
        let api = HttpApi::new(&nobody, Arc::new(|| 0)).unwrap();
        Polling {
            api,
            token: vec![1].into(),
            after,
            fetched: VecDeque::new(),
            caught_up_at: None,
            retry: (Instant::now() + RETRY, RETRY),
            socket: None,
        }
    }

    fn page(delivered: &[u64], missed: &[(u64, u64)], next_seq: u64) -> FetchResponse {
        let deliveries = delivered.iter().map(|&seq| Delivery { seq, envelope: Envelope::Unknown }).collect();
        let missed = missed.iter().map(|&(from, to)| Span { from, to }).collect();
        FetchResponse { deliveries, missed, next_seq, oldest_available: 0 }
    }

    /// What is told of a page, with the number at which it ends.
    fn told(polling: &mut Polling, page: FetchResponse) -> Vec<(&'static str, u64)> {
        polling.take(page);
        let tell = |frame| match frame {
            ServerFrame::Delivery { delivery } => ("delivery", delivery.seq),
            ServerFrame::Missed { span } => ("missed", span.to),
            ServerFrame::CaughtUp { next_seq } => ("caught up", next_seq),
            other => panic!("{other:?}"),
        };
        polling.fetched.drain(..).map(tell).collect()
    }

    #[test]
    fn pages_are_told_as_a_stream_tells_them() {
        let mut polling = polling(3);
        let first = told(&mut polling, page(&[4, 7], &[(5, 6)], 12));
        assert_eq!(first, [("delivery", 4), ("missed", 6), ("delivery", 7)]);
        assert_eq!(polling.after, 7);
        let last = told(&mut polling, page(&[8], &[(9, 11)], 12));
        assert_eq!(last, [("delivery", 8), ("missed", 11), ("caught up", 12)]);
        assert_eq!(told(&mut polling, page(&[], &[], 12)), [], "nothing is new");
        assert_eq!(told(&mut polling, page(&[12], &[], 13)), [("delivery", 12), ("caught up", 13)]);
    }

    #[test]
    fn an_empty_queue_is_caught_up_with_once() {
        let mut polling = polling(0);
        assert_eq!(told(&mut polling, page(&[], &[], 1)), [("caught up", 1)]);
        assert_eq!(told(&mut polling, page(&[], &[], 1)), []);
    }

    #[tokio::test]
    async fn where_nobody_answers_there_is_no_stream() {
        let polling = polling(0);
        assert!(matches!(Polling::open(polling.api, polling.token, 0).await, Err(ApiError::Unreachable(_))));
    }
}
