//! MLS messages as the relay sees them: a true header around any bytes at all. It cannot tell them from real ones, and
//! `mls.rs` shows that it takes real ones just the same.

use undertone_server::{Clock as _, SystemClock};
use undertone_wire::{
    AuthenticatedData, Bytes, CommitRequest, CommitResponse, CreateGroupRequest, DeviceId, Encoding, Envelope, Group,
    GroupId, LeaveRequest, MessageId, SendRequest, SendResponse, WelcomeParts, WelcomeSecrets, path,
};

use super::{Device, Reply, random};

const APPLICATION: u8 = 1;
const COMMIT: u8 = 3;

/// A message in the making: who posts where, standing at which commit.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) id: MessageId,
    pub(crate) group: GroupId,
    pub(crate) epoch: u64,
    pub(crate) data: AuthenticatedData,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A message id of a time.
    pub(crate) fn id(time_ms: u64) -> MessageId {
        MessageId::from_parts(time_ms, random())
    }

    /// A message of a device that stands at commit number `at`, of a group that has seen no other commits.
    pub(crate) fn at(group: GroupId, at: u64) -> Self {
        let data = AuthenticatedData { at, ..AuthenticatedData::default() };
        Self { id: Self::id(SystemClock.now_ms()), group, epoch: at, data, body: random::<32>().to_vec() }
    }

    pub(crate) fn saying(self, body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..self }
    }

    pub(crate) fn adding(mut self, devices: &[&Device]) -> Self {
        self.data.added = sorted(devices);
        self
    }

    pub(crate) fn removing(mut self, devices: &[&Device]) -> Self {
        self.data.removed = sorted(devices);
        self
    }

    pub(crate) fn bytes(&self, content_type: u8) -> Bytes {
        let data = Encoding::Cbor.encode(&self.data);
        private_message(self.group.as_bytes(), self.epoch, content_type, &data, &self.body)
    }

    pub(crate) fn application(&self) -> Bytes {
        self.bytes(APPLICATION)
    }

    pub(crate) fn commit(&self) -> Bytes {
        self.bytes(COMMIT)
    }

    pub(crate) fn send_request(&self) -> SendRequest {
        SendRequest { message_id: self.id, message: self.application() }
    }

    pub(crate) fn leave_request(&self) -> LeaveRequest {
        LeaveRequest { message_id: self.id, notice: self.application() }
    }

    pub(crate) fn commit_request(&self) -> CommitRequest {
        let secrets = |device: &DeviceId| WelcomeSecrets { device_id: *device, secrets: device.as_bytes()[..].into() };
        let secrets: Vec<_> = self.data.added.iter().map(secrets).collect();
        let welcome = (!secrets.is_empty()).then(|| WelcomeParts { group_info: b"shared welcome"[..].into(), secrets });
        let sealed_group_info = format!("info after {}", self.data.at).into_bytes().into();
        CommitRequest { message_id: self.id, commit: self.commit(), welcome, sealed_group_info }
    }
}

fn sorted(devices: &[&Device]) -> Vec<DeviceId> {
    let mut ids: Vec<_> = devices.iter().map(|device| device.id()).collect();
    ids.sort();
    ids
}

/// An `MLSMessage` with a `PrivateMessage` (RFC 9420, section 6.3).
pub(crate) fn private_message(group: &[u8], epoch: u64, content_type: u8, data: &[u8], body: &[u8]) -> Bytes {
    let mut bytes = vec![0, 1, 0, 2];
    vector(&mut bytes, group);
    bytes.extend(epoch.to_be_bytes());
    bytes.push(content_type);
    vector(&mut bytes, data);
    vector(&mut bytes, b"sender data");
    vector(&mut bytes, body);
    bytes.into()
}

/// Bytes with their length before them (RFC 9420, section 2.1.2).
fn vector(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap();
    match length {
        0..64 => out.push(length as u8),
        64..16_384 => out.extend((length as u16 | 0x4000).to_be_bytes()),
        _ => out.extend((length | 0x8000_0000).to_be_bytes()),
    }
    out.extend(bytes);
}

/// The ciphertext in an envelope.
pub(crate) fn bytes_of(envelope: &Envelope) -> &[u8] {
    match envelope {
        Envelope::GroupMessage { message, .. } => message.as_slice(),
        Envelope::GroupCommit { commit, .. } => commit.as_slice(),
        Envelope::Welcome { group_info, .. } => group_info.as_slice(),
        _ => &[],
    }
}

impl Device {
    /// A new group with this device alone.
    pub(crate) async fn create_group(&self) -> GroupId {
        let group_id = GroupId::from_random(random());
        let request = CreateGroupRequest { group_id, sealed_group_info: b"info of epoch 0"[..].into() };
        self.post(path::GROUPS, &request).await.yes::<Group>().group_id
    }

    /// A new group with these devices too, standing at commit 1.
    pub(crate) async fn create_group_with(&self, others: &[&Device]) -> GroupId {
        let group = self.create_group().await;
        self.commit(&Message::at(group, 0).adding(others)).await.yes::<CommitResponse>();
        group
    }

    pub(crate) async fn commit(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_COMMITS, message.group), &message.commit_request()).await
    }

    pub(crate) async fn send_message(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_MESSAGES, message.group), &message.send_request()).await
    }

    pub(crate) async fn leave(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_LEAVE, message.group), &message.leave_request()).await
    }

    /// Sends and expects a yes; answers what was sent.
    pub(crate) async fn says(&self, group: GroupId, at: u64) -> Bytes {
        let message = Message::at(group, at);
        self.send_message(&message).await.yes::<SendResponse>();
        message.application()
    }
}
