//! MLS messages as the relay sees them: a true header around any bytes at all. It cannot tell them from real ones, and
//! the relay's own tests show that it takes real ones just the same.

use undertone_wire::{
    AuthenticatedData, Bytes, CommitRequest, CommitResponse, CreateGroupRequest, DeviceId, Encoding, Envelope, Group,
    GroupId, LeaveRequest, MessageId, SendRequest, SendResponse, WelcomeParts, WelcomeSecrets, path,
};

use crate::{Device, Reply, now_ms, random};

const APPLICATION: u8 = 1;
const COMMIT: u8 = 3;

/// A message in the making: who posts where, standing at which commit.
#[derive(Clone)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Where it is posted.
    pub group: GroupId,
    /// In which epoch.
    pub epoch: u64,
    /// What the relay may read.
    pub data: AuthenticatedData,
    /// What stands for the ciphertext.
    pub body: Vec<u8>,
    /// For how long it is worth delivering as a message.
    pub ttl_s: Option<u64>,
    /// Whether it is, as a commit, one by which its author joins on its own.
    pub joins: bool,
}

impl Message {
    /// A message id of a time.
    pub fn id(time_ms: u64) -> MessageId {
        MessageId::from_parts(time_ms, random())
    }

    /// A message of a device that stands at commit number `at`, of a group that has seen no other commits.
    pub fn at(group: GroupId, at: u64) -> Self {
        let data = AuthenticatedData { at, ..AuthenticatedData::default() };
        let body = random::<32>().to_vec();
        Self { id: Self::id(now_ms()), group, epoch: at, data, body, ttl_s: None, joins: false }
    }

    /// The same with this body.
    pub fn saying(self, body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..self }
    }

    /// The same as a commit that adds devices.
    pub fn adding(mut self, devices: &[&Device]) -> Self {
        self.data.added = sorted(devices);
        self
    }

    /// The same as a commit that removes devices.
    pub fn removing(mut self, devices: &[&Device]) -> Self {
        self.data.removed = sorted(devices);
        self
    }

    /// The same as a commit by which a device joins on its own.
    pub fn joining(self, device: &Device) -> Self {
        Self { joins: true, ..self.adding(&[device]) }
    }

    /// The whole of it, with this MLS content type.
    pub fn bytes(&self, content_type: u8) -> Bytes {
        let data = Encoding::Cbor.encode(&self.data);
        private_message(self.group.as_bytes(), self.epoch, content_type, &data, &self.body)
    }

    /// The whole of it as an application message.
    pub fn application(&self) -> Bytes {
        self.bytes(APPLICATION)
    }

    /// The whole of it as a commit.
    pub fn commit(&self) -> Bytes {
        if self.joins {
            let data = Encoding::Cbor.encode(&self.data);
            return new_members_commit(self.group.as_bytes(), self.epoch, &data, &self.body);
        }
        self.bytes(COMMIT)
    }

    /// The request that posts it as a message.
    pub fn send_request(&self) -> SendRequest {
        SendRequest { message_id: self.id, ttl_s: self.ttl_s, message: self.application() }
    }

    /// The request that posts it as a leave notice.
    pub fn leave_request(&self) -> LeaveRequest {
        LeaveRequest { message_id: self.id, notice: self.application() }
    }

    /// The request that posts it as a commit, with a Welcome if it adds anybody.
    pub fn commit_request(&self) -> CommitRequest {
        let secrets = |device: &DeviceId| WelcomeSecrets { device_id: *device, secrets: device.as_bytes()[..].into() };
        let secrets: Vec<_> = self.data.added.iter().map(secrets).collect();
        let welcome = (!secrets.is_empty() && !self.joins)
            .then(|| WelcomeParts { group_info: b"shared welcome"[..].into(), secrets });
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
pub fn private_message(group: &[u8], epoch: u64, content_type: u8, data: &[u8], body: &[u8]) -> Bytes {
    let mut bytes = vec![0, 1, 0, 2];
    vector(&mut bytes, group);
    bytes.extend(epoch.to_be_bytes());
    bytes.push(content_type);
    vector(&mut bytes, data);
    vector(&mut bytes, b"sender data");
    vector(&mut bytes, body);
    bytes.into()
}

/// An `MLSMessage` with a `PublicMessage` that is a new member's commit, empty but for its signature (RFC 9420, sections 6.2
/// and 12.4).
fn new_members_commit(group: &[u8], epoch: u64, data: &[u8], signature: &[u8]) -> Bytes {
    const NEW_MEMBER_COMMIT: u8 = 4;
    let mut bytes = vec![0, 1, 0, 1];
    vector(&mut bytes, group);
    bytes.extend(epoch.to_be_bytes());
    bytes.push(NEW_MEMBER_COMMIT);
    vector(&mut bytes, data);
    bytes.push(COMMIT);
    let (no_proposals, no_path) = (0, 0);
    bytes.extend([no_proposals, no_path]);
    vector(&mut bytes, signature);
    vector(&mut bytes, b"confirmation tag");
    bytes.into()
}

/// What the relay, and a member without keys, can read of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The epoch.
    pub epoch: u64,
    /// The authenticated data.
    pub data: AuthenticatedData,
    /// What stands for the ciphertext.
    pub body: Vec<u8>,
}

impl Parsed {
    /// Reads what [`Message::bytes`] wrote.
    ///
    /// # Panics
    /// If it is anything else.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let rest = bytes.strip_prefix(&[0, 1, 0, 2]).unwrap();
        let (_, rest) = split_vector(rest);
        let (epoch, rest) = rest.split_at(8);
        let (data, rest) = split_vector(&rest[1..]);
        let (_, rest) = split_vector(rest);
        let (body, _) = split_vector(rest);
        let epoch = u64::from_be_bytes(epoch.try_into().unwrap());
        Self { epoch, data: Encoding::Cbor.decode(data).unwrap(), body: body.to_vec() }
    }
}

/// The bytes behind their length, and what follows them.
fn split_vector(bytes: &[u8]) -> (&[u8], &[u8]) {
    let length_bytes = 1_usize << (bytes[0] >> 6);
    let (length, rest) = bytes.split_at(length_bytes);
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    rest.split_at(length & !(0xc0 << (8 * (length_bytes - 1))))
}

/// Bytes with their length before them (RFC 9420, section 2.1.2).
fn vector(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap();
    match length {
        0..64 => out.extend(&length.to_be_bytes()[3..]),
        64..16_384 => out.extend(&(length | 0x4000).to_be_bytes()[2..]),
        _ => out.extend((length | 0x8000_0000).to_be_bytes()),
    }
    out.extend(bytes);
}

/// The ciphertext in an envelope.
pub fn bytes_of(envelope: &Envelope) -> &[u8] {
    match envelope {
        Envelope::GroupMessage { message, .. } => message.as_slice(),
        Envelope::GroupCommit { commit, .. } => commit.as_slice(),
        Envelope::Welcome { group_info, .. } => group_info.as_slice(),
        _ => &[],
    }
}

impl Device {
    /// A new group with this device alone.
    pub async fn create_group(&self) -> GroupId {
        let group_id = GroupId::from_random(random());
        let request = CreateGroupRequest { group_id, sealed_group_info: b"info of epoch 0"[..].into() };
        self.post(path::GROUPS, &request).await.yes::<Group>().group_id
    }

    /// A new group with these devices too, standing at commit 1.
    pub async fn create_group_with(&self, others: &[&Device]) -> GroupId {
        let group = self.create_group().await;
        self.commit(&Message::at(group, 0).adding(others)).await.yes::<CommitResponse>();
        group
    }

    /// Posts a commit.
    pub async fn commit(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_COMMITS, message.group), &message.commit_request()).await
    }

    /// Posts a message.
    pub async fn send_message(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_MESSAGES, message.group), &message.send_request()).await
    }

    /// Leaves.
    pub async fn leave(&self, message: &Message) -> Reply {
        self.post(&path::fill(path::GROUP_LEAVE, message.group), &message.leave_request()).await
    }

    /// Sends and expects a yes; answers what was sent.
    pub async fn says(&self, group: GroupId, at: u64) -> Bytes {
        let message = Message::at(group, at);
        self.send_message(&message).await.yes::<SendResponse>();
        message.application()
    }
}
