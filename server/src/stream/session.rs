//! A stream's session as a machine without a socket, a store or a clock: what happened goes in, what to do comes out.
//!
//! Invariant: entries and missed spans leave in the order of their numbers, each once. `caught_up` follows when all that
//! is there has left, and again after each later batch. A newer stream of the same device ends this one.

use undertone_wire::{ByeReason, ClientFrame, ServerFrame, Span};

use crate::{
    queue::missed,
    store::queue::{Cursor, Page},
};

/// A device that has said nothing, not even a pong, for longer than this is gone.
pub(crate) const SILENCE_MS_MAX: u64 = 60_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The device has mail, or a newer stream.
    Woken,
    /// The page asked for.
    Page(Page),
    /// The device said something; whatever it was, it lives.
    Heard,
    /// The device said this.
    Frame(ClientFrame),
    /// Some time has passed.
    Tick,
    /// Something ephemeral for the device.
    Ephemeral(ServerFrame),
    /// The session cannot go on.
    Ended(ByeReason),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read the next page after a number, and put it in.
    Fetch { after: u64 },
    /// Say this.
    Send(ServerFrame),
    /// Ping the device.
    Ping,
    /// Delete what the device has.
    Ack { up_to: u64 },
    /// Say bye and close.
    Bye(ByeReason),
    /// Close without a word: nobody listens.
    Cut,
}

/// A stream's session.
#[derive(Debug)]
pub(crate) struct Session {
    stream: u64,
    after: u64,
    heard_ms: u64,
    /// Whether a page was asked for and has not come. It will show what came in the meantime too.
    asked: bool,
    /// Whether anything left since the last `caught_up`, or none was said yet.
    behind: bool,
}

impl Session {
    /// A session that goes on after a number, as the newest stream of the cursor. Say hello, then act.
    pub(crate) fn open(cursor: &Cursor, after: u64, now_ms: u64) -> (Self, Vec<Action>) {
        let after = after.max(cursor.acked_seq);
        let mut session = Self { stream: cursor.stream, after, heard_ms: now_ms, asked: false, behind: true };
        let actions = session.ask();
        (session, actions)
    }

    /// The number of this stream.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// What to do about what happened.
    pub(crate) fn step(&mut self, input: Input, now_ms: u64) -> Vec<Action> {
        match input {
            Input::Woken => self.ask(),
            Input::Page(page) => self.show(page),
            Input::Heard => {
                self.heard_ms = now_ms;
                vec![]
            }
            Input::Frame(ClientFrame::Ack { up_to }) => vec![Action::Ack { up_to }],
            Input::Frame(_) => vec![Action::Bye(ByeReason::Malformed)],
            Input::Tick if now_ms.saturating_sub(self.heard_ms) > SILENCE_MS_MAX => vec![Action::Cut],
            Input::Tick => vec![Action::Ping],
            // Who has not read all that came before could not make anything of it.
            Input::Ephemeral(_) if self.asked || self.behind => vec![],
            Input::Ephemeral(frame) => vec![Action::Send(frame)],
            Input::Ended(reason) => vec![Action::Bye(reason)],
        }
    }

    /// Asks for the next page, unless one is on its way.
    fn ask(&mut self) -> Vec<Action> {
        if std::mem::replace(&mut self.asked, true) {
            return vec![];
        }
        vec![Action::Fetch { after: self.after }]
    }

    fn show(&mut self, page: Page) -> Vec<Action> {
        self.asked = false;
        if page.stream != self.stream {
            return vec![Action::Bye(ByeReason::Replaced)];
        }
        let mut missed = missed(&page, self.after).into_iter().peekable();
        let (newest, next_seq) = (page.newest, page.next_seq);
        let mut actions = Vec::with_capacity(page.deliveries.len() + 1);
        for delivery in page.deliveries {
            while let Some(span) = missed.next_if(|span| span.to < delivery.seq) {
                actions.push(self.tell_missed(span));
            }
            self.after = delivery.seq;
            actions.push(Action::Send(ServerFrame::Delivery { delivery }));
        }
        actions.extend(missed.map(|span| self.tell_missed(span)));
        self.behind |= !actions.is_empty();

        if newest.is_some_and(|newest| newest > self.after) {
            actions.extend(self.ask());
        } else if self.behind {
            self.behind = false;
            actions.push(Action::Send(ServerFrame::CaughtUp { next_seq }));
        }
        actions
    }

    fn tell_missed(&mut self, span: Span) -> Action {
        self.after = span.to;
        Action::Send(ServerFrame::Missed { span })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_wire::{Delivery, Envelope};

    fn opened(acked_seq: u64, after: u64) -> (Session, Vec<Action>) {
        let cursor = Cursor { next_seq: 100, acked_seq, stream: 7, oldest: None };
        Session::open(&cursor, after, 0)
    }

    fn page(next_seq: u64, shown: &[u64], newest: Option<u64>) -> Page {
        let deliveries = shown.iter().map(|&seq| Delivery { seq, envelope: Envelope::Unknown }).collect();
        Page { deliveries, next_seq, acked_seq: 0, stream: 7, oldest: None, newest, authenticated: true }
    }

    fn delivery(seq: u64) -> Action {
        Action::Send(ServerFrame::Delivery { delivery: Delivery { seq, envelope: Envelope::Unknown } })
    }

    fn missed_frame(from: u64, to: u64) -> Action {
        Action::Send(ServerFrame::Missed { span: Span { from, to } })
    }

    fn caught_up(next_seq: u64) -> Action {
        Action::Send(ServerFrame::CaughtUp { next_seq })
    }

    #[test]
    fn it_begins_after_what_the_device_has_or_acked() {
        assert_eq!(opened(0, 0).1, [Action::Fetch { after: 0 }]);
        assert_eq!(opened(3, 0).1, [Action::Fetch { after: 3 }]);
        assert_eq!(opened(3, 5).1, [Action::Fetch { after: 5 }]);
    }

    #[test]
    fn an_empty_queue_is_caught_up_once() {
        let (mut session, _) = opened(0, 0);
        assert_eq!(session.step(Input::Page(page(1, &[], None)), 0), [caught_up(1)]);
        assert_eq!(session.step(Input::Woken, 0), [Action::Fetch { after: 0 }]);
        assert_eq!(session.step(Input::Page(page(1, &[], None)), 0), []);
    }

    #[test]
    fn pages_follow_each_other_until_all_is_said_and_later_batches_end_the_same_way() {
        let (mut session, _) = opened(0, 0);
        let first = session.step(Input::Page(page(4, &[1, 2], Some(3))), 0);
        assert_eq!(first, [delivery(1), delivery(2), Action::Fetch { after: 2 }]);
        assert_eq!(session.step(Input::Page(page(4, &[3], Some(3))), 0), [delivery(3), caught_up(4)]);
        assert_eq!(session.step(Input::Woken, 0), [Action::Fetch { after: 3 }]);
        assert_eq!(session.step(Input::Page(page(5, &[4], Some(4))), 0), [delivery(4), caught_up(5)]);
        assert_eq!(session.step(Input::Page(page(5, &[], Some(4))), 0), [], "nothing is said twice");
    }

    #[test]
    fn one_page_is_asked_for_at_a_time() {
        let (mut session, _) = opened(0, 0);
        assert_eq!(session.step(Input::Woken, 0), [], "the first page is on its way");
        let first = session.step(Input::Page(page(3, &[1], Some(2))), 0);
        assert_eq!(first, [delivery(1), Action::Fetch { after: 1 }]);
        assert_eq!(session.step(Input::Woken, 0), []);
        assert_eq!(session.step(Input::Frame(ClientFrame::Ack { up_to: 1 }), 0), [Action::Ack { up_to: 1 }]);
        assert_eq!(session.step(Input::Page(page(3, &[2], Some(2))), 0), [delivery(2), caught_up(3)]);
        assert_eq!(session.step(Input::Woken, 0), [Action::Fetch { after: 2 }]);
    }

    #[test]
    fn missed_numbers_are_told_in_place() {
        let (mut session, _) = opened(0, 0);
        let actions = session.step(Input::Page(page(10, &[3, 4, 8], Some(8))), 0);
        assert_eq!(
            actions,
            [
                missed_frame(1, 2),
                delivery(3),
                delivery(4),
                missed_frame(5, 7),
                delivery(8),
                missed_frame(9, 9),
                caught_up(10)
            ]
        );
        assert_eq!(session.step(Input::Woken, 0), [Action::Fetch { after: 9 }]);
    }

    #[test]
    fn a_newer_stream_ends_this_one() {
        let (mut session, _) = opened(0, 0);
        let newer = Page { stream: 8, ..page(2, &[1], Some(1)) };
        assert_eq!(session.step(Input::Page(newer), 0), [Action::Bye(ByeReason::Replaced)]);
    }

    #[test]
    fn silence_is_cut_and_any_sound_is_life() {
        let (mut session, _) = opened(0, 0);
        session.step(Input::Page(page(1, &[], None)), 0);
        assert_eq!(session.step(Input::Tick, SILENCE_MS_MAX), [Action::Ping]);
        assert_eq!(session.step(Input::Heard, SILENCE_MS_MAX), []);
        assert_eq!(session.step(Input::Tick, 2 * SILENCE_MS_MAX), [Action::Ping]);
        assert_eq!(session.step(Input::Tick, 2 * SILENCE_MS_MAX + 1), [Action::Cut]);
    }

    #[test]
    fn ephemeral_content_reaches_only_who_has_caught_up() {
        let typing = || ServerFrame::DirectEphemeral { ciphertext: b"typing".as_slice().into() };
        let (mut session, _) = opened(0, 0);
        assert_eq!(session.step(Input::Ephemeral(typing()), 0), [], "not yet caught up");
        session.step(Input::Page(page(1, &[], None)), 0);
        assert_eq!(session.step(Input::Ephemeral(typing()), 0), [Action::Send(typing())]);
        session.step(Input::Woken, 0);
        assert_eq!(session.step(Input::Ephemeral(typing()), 0), [], "something is about to come");
    }

    #[test]
    fn acks_are_passed_on_and_endings_are_said() {
        let (mut session, _) = opened(0, 0);
        assert_eq!(session.step(Input::Frame(ClientFrame::Ack { up_to: 5 }), 0), [Action::Ack { up_to: 5 }]);
        for reason in [ByeReason::Shutdown, ByeReason::Unauthenticated, ByeReason::Malformed] {
            assert_eq!(session.step(Input::Ended(reason), 0), [Action::Bye(reason)]);
        }
    }
}
