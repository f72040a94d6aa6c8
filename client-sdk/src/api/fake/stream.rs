//! A device's stream at the fake relay: which frame comes next.
//!
//! Invariant: after a bye or an error nothing comes but errors; until then, every number above `after` is delivered or
//! told as missed, in order.

use undertone_wire::{ByeReason, Bytes, ClientFrame, Delivery, DeviceId, ErrorCode, ServerFrame, Span};

use super::{
    ApiError,
    groups::GroupState,
    state::{Device, Outcome, Said, State, refused},
};

/// One stream of a device.
pub(super) struct Stream {
    device: DeviceId,
    token: Bytes,
    /// Its number among the device's streams.
    number: u64,
    /// Up to which number all has been told.
    after: u64,
    greeted: bool,
    /// The `next_seq` at which it last said that it had caught up.
    caught_up_at: Option<u64>,
    /// How much of what is said in passing has passed.
    heard: usize,
    node: usize,
    /// How many cuts there had been when it was opened.
    cuts: u64,
    misunderstood: bool,
    over: bool,
}

impl Stream {
    /// Opens a device's newest stream, which replaces the one before.
    pub(super) fn open(state: &mut State, token: &Bytes, after: u64, node: usize) -> Outcome<Self> {
        let caller = state.caller(token)?;
        let unauthenticated = || refused(ErrorCode::Unauthenticated, "log in");
        let device = state.devices.get_mut(&caller.device).ok_or_else(unauthenticated)?;
        device.jump_over(after);
        device.stream += 1;
        device.node = node;
        Ok(Self {
            device: caller.device,
            token: token.clone(),
            number: device.stream,
            after,
            greeted: false,
            caught_up_at: None,
            heard: state.said.len(),
            node,
            cuts: state.faults.cuts,
            misunderstood: false,
            over: false,
        })
    }

    /// The next frame, if it is time for one.
    pub(super) fn next(&mut self, state: &State) -> Option<Result<ServerFrame, ApiError>> {
        if self.dead(state) {
            self.over = true;
            return Some(Err(closed()));
        }
        if state.faults.stopped.contains(&self.node) {
            return self.bye(ByeReason::Shutdown);
        }
        let device = state.devices.get(&self.device).filter(|_| state.caller(&self.token).is_ok());
        let Some(device) = device else { return self.bye(ByeReason::Unauthenticated) };
        if device.stream != self.number {
            return self.bye(ByeReason::Replaced);
        }
        if self.misunderstood {
            return self.bye(ByeReason::Malformed);
        }
        if !self.greeted {
            self.greeted = true;
            return Some(Ok(self.hello(state, device)));
        }
        if state.faults.deliveries_held {
            return None;
        }
        self.of_queue(device).or_else(|| self.in_passing(state)).map(Ok)
    }

    /// Takes a frame of the device. An ack on a stream that was replaced counts for nothing.
    pub(super) fn take(&mut self, state: &mut State, frame: &ClientFrame) -> Result<(), ApiError> {
        if self.dead(state) {
            return Err(closed());
        }
        let newest = state.devices.get(&self.device).is_some_and(|device| device.stream == self.number);
        if newest && state.caller(&self.token).is_ok() {
            self.misunderstood |= match frame {
                ClientFrame::Ack { up_to } => state.ack(&self.device, *up_to).is_err(),
                _ => true,
            };
        }
        Ok(())
    }

    fn dead(&self, state: &State) -> bool {
        self.over || self.cuts != state.faults.cuts || state.faults.killed.contains(&self.node)
    }

    fn bye(&mut self, reason: ByeReason) -> Option<Result<ServerFrame, ApiError>> {
        self.over = true;
        Some(Ok(ServerFrame::Bye { reason }))
    }

    fn hello(&self, state: &State, device: &Device) -> ServerFrame {
        ServerFrame::Hello {
            relay_id: state.relay_id,
            incarnation: state.incarnation,
            stream: self.number,
            next_seq: device.next_seq,
            oldest_available: device.queue.keys().next().copied().unwrap_or(device.next_seq),
            time_ms: state.now_ms,
        }
    }

    fn of_queue(&mut self, device: &Device) -> Option<ServerFrame> {
        // What was acked is not missed.
        let from = self.after.max(device.acked_seq) + 1;
        let held = device.queue.range(from..).next();
        let present = held.map_or(device.next_seq, |(&seq, _)| seq);
        if from < present {
            self.after = present - 1;
            return Some(ServerFrame::Missed { span: Span { from, to: self.after } });
        }
        if let Some((&seq, envelope)) = held {
            self.after = seq;
            return Some(ServerFrame::Delivery { delivery: Delivery { seq, envelope: envelope.clone() } });
        }
        let news = self.caught_up_at != Some(device.next_seq);
        self.caught_up_at = Some(device.next_seq);
        news.then_some(ServerFrame::CaughtUp { next_seq: device.next_seq })
    }

    /// What is said to the device, or where it is a member, as long as the group stands where it did.
    fn in_passing(&mut self, state: &State) -> Option<ServerFrame> {
        while let Some(said) = state.said.get(self.heard) {
            self.heard += 1;
            match said.clone() {
                Said::Device { device, ciphertext } if device == self.device => {
                    return Some(ServerFrame::DirectEphemeral { ciphertext });
                }
                Said::Device { .. } => {}
                Said::Group { group_id, epoch, ciphertext } => {
                    let is_here = |group: &GroupState| {
                        group.position.epoch == epoch && group.member_devices().contains(&self.device)
                    };
                    if state.groups.get(&group_id).is_some_and(is_here) {
                        return Some(ServerFrame::GroupEphemeral { group_id, epoch, ciphertext });
                    }
                }
            }
        }
        None
    }
}

fn closed() -> ApiError {
    ApiError::Unreachable("the fake relay closed the stream".into())
}
