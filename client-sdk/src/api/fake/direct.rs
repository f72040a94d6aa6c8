//! Direct messages at the fake relay: to all devices of some accounts, or to none.

use undertone_wire::{
    DeviceId, DirectCiphertext, DirectEphemeralRequest, Envelope, ErrorCode, Problem, SendDirectRequest, SendResponse,
};

use super::{
    FakeRelay,
    state::{Caller, Outcome, Said, State, check_bytes, not_found, refused},
};

impl FakeRelay {
    /// Puts something into a device's queue, as a relay may that keeps what it should not.
    pub fn deliver_again(&self, device: &DeviceId, envelope: &Envelope) {
        self.change(|state| state.deliver(&[*device], envelope));
    }
}

impl State {
    /// Passes on what is said to single devices in passing, to streams that are open and have caught up.
    pub(super) fn say_directly(&mut self, request: &DirectEphemeralRequest) -> Outcome<()> {
        for DirectCiphertext { device_id, ciphertext } in &request.ciphertexts {
            check_bytes("ephemeral_bytes_max", self.limits.ephemeral_bytes_max, ciphertext)?;
            self.said.push(Said::Device { device: *device_id, ciphertext: ciphertext.clone() });
        }
        Ok(())
    }

    pub(super) fn send_direct(&mut self, caller: &Caller, request: &SendDirectRequest) -> Outcome<SendResponse> {
        let once = self.once("direct", None, request.message_id, request)?;
        if self.first_answer(&once)?.is_some() {
            return Ok(SendResponse {});
        }
        let ordered = request.accounts.is_sorted_by(|one, next| one.account_id < next.account_id)
            && request
                .accounts
                .iter()
                .all(|to| to.ciphertexts.is_sorted_by(|one, next| one.device_id < next.device_id));
        if !ordered || !request.accounts.iter().any(|to| to.account_id == caller.account) {
            return Err(refused(ErrorCode::BadMessage, "ascending, and the sender's own account among them"));
        }
        let mut stale = vec![];
        for to in &request.accounts {
            let account = self.accounts.get(&to.account_id).ok_or_else(not_found)?;
            let listed = self.devices.iter().filter(|(_, device)| device.account == to.account_id).map(|(id, _)| id);
            if !listed.eq(to.ciphertexts.iter().map(|one| &one.device_id)) {
                stale.push(account.clone());
            }
            for one in &to.ciphertexts {
                check_bytes("envelope_bytes_max", self.limits.envelope_bytes_max, &one.ciphertext)?;
            }
        }
        if !stale.is_empty() {
            return Err(Box::new(Problem { stale_devices: stale, ..Problem::new(ErrorCode::StaleDevices) }));
        }
        for one in request.accounts.iter().flat_map(|to| &to.ciphertexts) {
            self.deliver(&[one.device_id], &Envelope::DirectMessage { ciphertext: one.ciphertext.clone() });
        }
        self.remember(&once, 0);
        Ok(SendResponse {})
    }
}
