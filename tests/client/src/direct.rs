//! Direct messages, as the relay sees them: bytes for each device of some accounts.

use undertone_wire::{
    Bytes, DeviceId, DirectCiphertext, DirectEphemeralRequest, DirectRecipient, Envelope, FetchResponse,
    GroupEphemeralRequest, GroupId, SendDirectRequest, SendResponse, path,
};

use crate::{Account, Device, Message, Reply, now_ms};

/// What one device gets of a direct message.
pub fn ciphertext_for(device: &Device, body: &[u8]) -> Bytes {
    ciphertext(device.id(), body)
}

fn ciphertext(device_id: DeviceId, body: &[u8]) -> Bytes {
    [device_id.as_bytes().as_slice(), body].concat().into()
}

/// The ciphertexts of direct messages in an answer, with their numbers.
pub fn direct_in(fetched: &FetchResponse) -> Vec<(u64, Bytes)> {
    let direct = |envelope: &Envelope| match envelope {
        Envelope::DirectMessage { ciphertext } => Some(ciphertext.clone()),
        _ => None,
    };
    fetched.deliveries.iter().filter_map(|entry| Some((entry.seq, direct(&entry.envelope)?))).collect()
}

impl Device {
    /// A direct message to all devices of some accounts and of this one's own.
    pub fn direct(&self, to: &[&Account], body: &[u8]) -> SendDirectRequest {
        let recipient = |account: &Account| DirectRecipient {
            account_id: account.account_id,
            ciphertexts: account
                .keys
                .iter()
                .map(|keys| DirectCiphertext {
                    device_id: keys.device_id,
                    ciphertext: ciphertext(keys.device_id, body),
                })
                .collect(),
        };
        let mut accounts: Vec<_> = to.iter().copied().chain([&self.account]).map(recipient).collect();
        accounts.sort_by_key(|to| to.account_id);
        SendDirectRequest { message_id: Message::id(now_ms()), ttl_s: None, accounts }
    }

    /// Posts a direct message.
    pub async fn send_direct(&self, request: &SendDirectRequest) -> Reply {
        self.post(path::MESSAGES, request).await
    }

    /// Sends a direct message and expects a yes.
    pub async fn tells(&self, to: &[&Account], body: &[u8]) {
        self.send_direct(&self.direct(to, body)).await.yes::<SendResponse>();
    }

    /// Acks everything that is in the queue.
    pub async fn ack_all(&self) {
        self.ack(self.fetch(0).await.next_seq - 1).await.done();
    }

    /// Something ephemeral for a group that stands at this commit, and has seen no other commits.
    pub async fn types_in(&self, group: GroupId, at: u64, what: &[u8]) -> Reply {
        let request = GroupEphemeralRequest { at, epoch: at, ciphertext: what.into() };
        self.post(&path::fill(path::GROUP_EPHEMERAL, group), &request).await
    }

    /// Something ephemeral for one device.
    pub async fn types_to(&self, device: &Device, what: &[u8]) -> Reply {
        let ciphertexts = vec![DirectCiphertext { device_id: device.id(), ciphertext: what.into() }];
        self.post(path::EPHEMERAL, &DirectEphemeralRequest { ciphertexts }).await
    }
}
