//! Messages: to a group, and direct ones to all devices of some accounts. Both are opaque, and are written in batches.
//!
//! Invariant: a group message is accepted iff its sender is a member, its `at` is the group's `commit_seq` and its epoch
//! the group's; a direct one iff it covers exactly the listed devices of its accounts, the sender's own among them, and
//! each has room for it. All refusals of a batch are decided before any number is taken. Nothing stored names a sender.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{extract::State, response::Response};
use futures_util::future::BoxFuture;
use undertone_wire::{
    AccountId, Bytes, DeviceId, DirectCiphertext, DirectRecipient, ErrorCode, GroupId, GroupPosition, Hash, Problem,
    SendDirectRequest, SendRequest, SendResponse, StaleGroup, path,
};

use crate::{
    auth::Caller,
    batch::{Answers, Item},
    encoding::{Accept, Body, Named, malformed},
    error::Error,
    groups,
    limits::{self, kept_until_ms},
    mls::{self, Content, Header, bad_message},
    node::Node,
    once::{Once, Purpose},
    store::{
        StoreError, Tx, accounts,
        groups::{self as stored_groups, Standing},
        message_ids::{self, Stub},
        queue::{self, Cursors, Kind, NewEnvelope, Receiver, Room, Waiting},
        sessions,
    },
};

/// How many queues are enough for one transaction; the last message that fits may be to as many as it likes.
const RECEIVERS_ENOUGH: usize = 2_000;

/// A message that somebody wants to send.
pub(crate) struct Message {
    caller: Caller,
    once: Once,
    now_ms: u64,
    expires_hour_ms: u64,
    room: Room,
    /// How much of direct messages may wait for a device.
    direct_max: Waiting,
    to: To,
}

/// Whom it is for.
enum To {
    Group { group: GroupId, header: Header, message: Bytes },
    Accounts(Vec<DirectRecipient>),
}

/// Posts an application message to all member devices, the caller's own included. Repeating it changes nothing.
#[utoipa::path(post, path = path::GROUP_MESSAGES, tag = "groups", params(("group" = String, Path)),
    request_body = SendRequest,
    responses((status = 200, body = SendResponse), (status = "default", body = Problem)))]
pub(crate) async fn to_group(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<SendRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Message, Some(&group), request.message_id, &request)?;
    let header = application_header(&node, &group, &request.message)?;
    let to = To::Group { group, header, message: request.message };
    let sent = node.messages.write(Message::new(&node, caller, once, request.ttl_s, to)).await?;
    match sent {
        Ok(()) => Ok(accept.answer(&SendResponse {})),
        Err(error) => Err(groups::with_unacked(&node, &caller, &group, error).await),
    }
}

/// Sends a direct message to all devices of some accounts, the caller's own account among them. Repeating it changes
/// nothing.
#[utoipa::path(post, path = path::MESSAGES, tag = "messages", request_body = SendDirectRequest,
    responses((status = 200, body = SendResponse), (status = "default", body = Problem)))]
pub(crate) async fn direct(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<SendDirectRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Direct, None, request.message_id, &request)?;
    check_direct(&node, &caller, &request.accounts)?;
    let message = Message::new(&node, caller, once, request.ttl_s, To::Accounts(request.accounts));
    node.messages.write(message).await??;
    Ok(accept.answer(&SendResponse {}))
}

/// The header of an application message or leave notice.
pub(crate) fn application_header(node: &Node, group: &GroupId, message: &Bytes) -> Result<Header, Error> {
    limits::bytes("envelope_bytes_max", node.limits.envelope_bytes_max, message.len())?;
    let header = mls::header(message.as_slice(), group, Content::Application)?;
    if !header.data.added.is_empty() || !header.data.removed.is_empty() {
        return Err(bad_message("only a commit adds or removes devices"));
    }
    Ok(header)
}

fn check_direct(node: &Node, caller: &Caller, accounts: &[DirectRecipient]) -> Result<(), Error> {
    limits::count("direct_accounts_max", node.limits.direct_accounts_max, accounts.len() as u64)?;
    if !accounts.is_sorted_by(|a, b| a.account_id < b.account_id) {
        return Err(malformed("accounts come once each, in ascending order"));
    }
    if !accounts.iter().any(|to| to.account_id == caller.account) {
        return Err(malformed("the sending account's devices get the message too, so that no row tells who sent it"));
    }
    for ciphertexts in accounts.iter().map(|to| &to.ciphertexts) {
        if !ciphertexts.is_sorted_by(|a, b| a.device_id < b.device_id) {
            return Err(malformed("devices come once each, in ascending order"));
        }
        for each in ciphertexts {
            limits::bytes("envelope_bytes_max", node.limits.envelope_bytes_max, each.ciphertext.len())?;
        }
    }
    Ok(())
}

impl Message {
    fn new(node: &Node, caller: Caller, once: Once, ttl_s: Option<u64>, to: To) -> Self {
        let now_ms = node.now_ms();
        let direct_max =
            Waiting { entries: node.limits.queue_direct_entries_max, bytes: node.limits.queue_direct_bytes_max };
        let expires_hour_ms = kept_until_ms(&node.limits, now_ms, ttl_s);
        Self { caller, once, now_ms, expires_hour_ms, room: limits::room(&node.limits), direct_max, to }
    }

    fn group(&self) -> Option<GroupId> {
        match &self.to {
            To::Group { group, .. } => Some(*group),
            To::Accounts(_) => None,
        }
    }

    fn accounts(&self) -> &[DirectRecipient] {
        match &self.to {
            To::Group { .. } => &[],
            To::Accounts(accounts) => accounts,
        }
    }

    /// What it has for single devices.
    fn ciphertexts(&self) -> impl Iterator<Item = &DirectCiphertext> {
        self.accounts().iter().flat_map(|to| &to.ciphertexts)
    }

    /// How many queues it goes to.
    fn receivers(&self, members: &BTreeMap<GroupId, Vec<DeviceId>>) -> usize {
        let members = self.group().and_then(|group| members.get(&group)).map_or(0, Vec::len);
        members + self.ciphertexts().count()
    }

    /// What is to be stored, and for whom.
    fn envelopes<'a>(&'a self, members: &BTreeMap<GroupId, Vec<DeviceId>>) -> Vec<NewEnvelope<'a>> {
        let envelope = |kind, group, payload: &'a Bytes, receivers| NewEnvelope {
            kind,
            group,
            number: 0,
            expires_hour_ms: self.expires_hour_ms,
            payload: payload.as_slice(),
            held_by_commits: false,
            receivers,
        };
        match &self.to {
            To::Group { group, message, .. } => {
                let receivers = members.get(group).into_iter().flatten().map(|device| Receiver::from(*device));
                vec![envelope(Kind::Message, Some(*group), message, receivers.collect())]
            }
            To::Accounts(_) => {
                let each = self.ciphertexts();
                each.map(|to| envelope(Kind::Direct, None, &to.ciphertext, vec![Receiver::from(to.device_id)]))
                    .collect()
            }
        }
    }
}

impl Item for Message {
    type Answer = Result<(), Error>;
    type Key = Hash;

    const NAME: &'static str = "message";

    fn key(&self) -> Hash {
        self.once.id_hash()
    }

    fn bytes(&self) -> usize {
        match &self.to {
            To::Group { message, .. } => message.len(),
            To::Accounts(_) => self.ciphertexts().map(|each| each.ciphertext.len()).sum(),
        }
    }

    fn write<'a>(tx: &'a mut Tx, messages: &'a [Arc<Self>]) -> BoxFuture<'a, Result<Answers<Self>, StoreError>> {
        Box::pin(write(tx, messages))
    }
}

/// What a batch must know to decide. All of it stays so until the transaction ends.
struct World {
    known: HashMap<Hash, Stub>,
    devices: BTreeMap<AccountId, Vec<DeviceId>>,
    positions: BTreeMap<GroupId, GroupPosition>,
    sessions: HashMap<Hash, (DeviceId, AccountId)>,
    standings: BTreeMap<(GroupId, DeviceId), Standing>,
}

/// What becomes of a message.
enum Verdict {
    Accepted,
    AcceptedBefore,
    Refused(Error),
    /// The ciphertexts are not for exactly the listed devices of these accounts.
    StaleDevices(Vec<AccountId>),
    /// The others of its batch are enough for one transaction.
    PutOff,
}

async fn write(tx: &mut Tx, messages: &[Arc<Message>]) -> Result<Answers<Message>, StoreError> {
    let Some(first) = messages.first() else { return Ok(Vec::new()) };
    let world = look(tx, messages, first.now_ms).await?;
    let mut verdicts: Vec<_> = messages.iter().map(|message| world.judge(message)).collect();

    let accepted = |verdicts: &[Verdict]| -> Vec<&Message> {
        let each = messages.iter().zip(verdicts);
        each.filter(|(_, verdict)| matches!(verdict, Verdict::Accepted)).map(|(message, _)| &**message).collect()
    };
    let candidates = accepted(&verdicts);
    let members =
        stored_groups::members_of(tx, &candidates.iter().filter_map(|message| message.group()).collect()).await?;
    put_off_what_is_too_much(messages, &mut verdicts, &members);
    let candidates = accepted(&verdicts);
    let in_groups = candidates.iter().filter_map(|message| members.get(&message.group()?)).flatten().copied();
    let direct = candidates.iter().flat_map(|message| message.ciphertexts()).map(|to| to.device_id);
    let receivers = in_groups.chain(direct).collect();
    let cursors = queue::lock(tx, &receivers).await?;
    refuse_what_has_no_room(messages, &mut verdicts, &cursors);

    let envelopes: Vec<_> = accepted(&verdicts).into_iter().flat_map(|message| message.envelopes(&members)).collect();
    queue::append(tx, cursors, &first.room, &envelopes).await?;
    let refused = messages.iter().zip(&verdicts);
    let refused: Vec<_> = refused
        .filter(|(_, verdict)| !matches!(verdict, Verdict::Accepted | Verdict::AcceptedBefore))
        .map(|(message, _)| message.once.id_hash())
        .filter(|id| !world.known.contains_key(id))
        .collect();
    message_ids::give_back(tx, &refused).await?;
    answers(tx, verdicts).await
}

async fn look(tx: &mut Tx, messages: &[Arc<Message>], now_ms: u64) -> Result<World, StoreError> {
    let stubs: Vec<_> = messages.iter().map(|message| message.once.stub()).collect();
    let known = message_ids::claim(tx, &stubs).await?;
    let accounts = messages.iter().flat_map(|message| message.accounts()).map(|to| to.account_id).collect();
    let devices = accounts::lock_lists(tx, &accounts).await?;
    let positions = stored_groups::lock(tx, &messages.iter().filter_map(|message| message.group()).collect()).await?;
    let tokens: Vec<_> = messages.iter().map(|message| message.caller.token_hash).collect();
    let sessions = sessions::holders(tx, &tokens, now_ms).await?;
    let asked = messages.iter().filter_map(|message| Some((message.group()?, message.caller.device))).collect();
    let standings = stored_groups::standings(tx, &asked).await?;
    Ok(World { known, devices, positions, sessions, standings })
}

impl World {
    fn judge(&self, message: &Message) -> Verdict {
        if !self.sessions.contains_key(&message.caller.token_hash) {
            return Verdict::Refused(Error::unauthenticated());
        }
        if let Some(stub) = self.known.get(&message.once.id_hash()) {
            return message.once.first_answer(stub).map_or_else(Verdict::Refused, |_| Verdict::AcceptedBefore);
        }
        match &message.to {
            To::Group { group, header, .. } => {
                let position = self.positions.get(group).copied();
                let standing = self.standings.get(&(*group, message.caller.device));
                match check_position(position, standing, header) {
                    Ok(_) => Verdict::Accepted,
                    Err(error) => Verdict::Refused(error),
                }
            }
            To::Accounts(accounts) => self.judge_direct(accounts),
        }
    }

    fn judge_direct(&self, accounts: &[DirectRecipient]) -> Verdict {
        let mut stale = Vec::new();
        for DirectRecipient { account_id, ciphertexts } in accounts {
            let Some(devices) = self.devices.get(account_id) else { return Verdict::Refused(Error::not_found()) };
            if !ciphertexts.iter().map(|each| &each.device_id).eq(devices) {
                stale.push(*account_id);
            }
        }
        if stale.is_empty() { Verdict::Accepted } else { Verdict::StaleDevices(stale) }
    }
}

/// Where a group stands, if that is where a post was made by a member; else a refusal that says it.
pub(crate) fn check_position(
    position: Option<GroupPosition>,
    standing: Option<&Standing>,
    header: &Header,
) -> Result<GroupPosition, Error> {
    check_standing(position, standing, header.data.at, header.epoch)
}

/// The same, for what says elsewhere than in a header where its sender stands.
pub(crate) fn check_standing(
    position: Option<GroupPosition>,
    standing: Option<&Standing>,
    at: u64,
    epoch: u64,
) -> Result<GroupPosition, Error> {
    let (Some(position), Some(standing)) = (position, standing) else { return Err(Error::not_found()) };
    let current = at == position.commit_seq && epoch == position.epoch;
    if standing.member && current {
        return Ok(position);
    }
    Err(Error::StaleGroup(StaleGroup { position, member: standing.member, unacked: Vec::new() }))
}

/// Puts off what comes after enough others for one transaction, so that nobody waits long for a few wide ones.
fn put_off_what_is_too_much(
    messages: &[Arc<Message>],
    verdicts: &mut [Verdict],
    members: &BTreeMap<GroupId, Vec<DeviceId>>,
) {
    let mut receivers = 0;
    for (message, verdict) in messages.iter().zip(verdicts) {
        if !matches!(verdict, Verdict::Accepted) {
            continue;
        }
        if receivers >= RECEIVERS_ENOUGH {
            *verdict = Verdict::PutOff;
        }
        receivers += message.receivers(members);
    }
}

/// Refuses direct messages that would overfill a device, in their order.
fn refuse_what_has_no_room(messages: &[Arc<Message>], verdicts: &mut [Verdict], cursors: &Cursors) {
    let mut taken = HashMap::<DeviceId, Waiting>::new();
    for (message, verdict) in messages.iter().zip(verdicts) {
        if !matches!(verdict, Verdict::Accepted) {
            continue;
        }
        let fits = message.ciphertexts().all(|to| {
            let waiting = cursors.get(&to.device_id).map(|cursor| cursor.direct).unwrap_or_default();
            let more = taken.get(&to.device_id).copied().unwrap_or_default();
            let bytes = waiting.bytes + more.bytes + to.ciphertext.len() as u64;
            waiting.entries + more.entries < message.direct_max.entries && bytes <= message.direct_max.bytes
        });
        if !fits {
            let what_to_do =
                "a receiving device has too many direct messages waiting; try again when it has taken some";
            *verdict = Verdict::Refused(Error::refused(ErrorCode::QueueFull, what_to_do));
            continue;
        }
        for to in message.ciphertexts() {
            let more = taken.entry(to.device_id).or_default();
            more.entries += 1;
            more.bytes += to.ciphertext.len() as u64;
        }
    }
}

async fn answers(tx: &mut Tx, verdicts: Vec<Verdict>) -> Result<Answers<Message>, StoreError> {
    let mut answers = Vec::with_capacity(verdicts.len());
    for verdict in verdicts {
        answers.push(match verdict {
            Verdict::Accepted | Verdict::AcceptedBefore => Some(Ok(())),
            Verdict::Refused(error) => Some(Err(error)),
            Verdict::PutOff => None,
            Verdict::StaleDevices(accounts) => {
                let mut current = Vec::with_capacity(accounts.len());
                for account in accounts {
                    current.extend(accounts::by_id(tx, &account).await?.map(Into::into));
                }
                Some(Err(Error::StaleDevices(current)))
            }
        });
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing;
    use undertone_wire::{AuthenticatedData, MessageId};

    const GROUP: [u8; 16] = [0x67; 16];

    /// A node, and callers of whom all but the last are in a group.
    async fn world(folder: &std::path::Path) -> (Node, [Caller; 3]) {
        let node = testing::node(folder).await;
        let [one, two, three] = [1, 2, 3].map(|byte| testing::caller(&node, byte));
        let callers = [one.await, two.await, three.await];
        let members = [callers[0].device, callers[1].device];
        let founded = node.db.write(move |tx| {
            Box::pin(async move {
                let group = GroupId::from_random(GROUP);
                stored_groups::add(tx, &group, &callers[0].account, b"info").await?;
                stored_groups::begin_stays(tx, &group, &members, 0).await
            })
        });
        founded.await.unwrap();
        (node, callers)
    }

    fn message(node: &Node, caller: Caller, id: u8, to: To) -> Message {
        let id = MessageId::from_parts(0, [id; 10]);
        let once = Once::new(node, Purpose::Message, None, id, &()).unwrap();
        Message::new(node, caller, once, None, to)
    }

    fn to_group(at: u64) -> To {
        let data = AuthenticatedData { at, ..AuthenticatedData::default() };
        let header = Header { epoch: at, data, joins: false };
        To::Group { group: GroupId::from_random(GROUP), header, message: vec![7; 16].into() }
    }

    /// To the only devices of these callers.
    fn to_devices(of: &[Caller], bytes: usize) -> To {
        let recipient = |to: &Caller| DirectRecipient {
            account_id: to.account,
            ciphertexts: vec![DirectCiphertext { device_id: to.device, ciphertext: vec![7; bytes].into() }],
        };
        To::Accounts(of.iter().map(recipient).collect())
    }

    async fn written(node: &Node, batch: Vec<Message>) -> Vec<Option<ErrorCode>> {
        let batch: Vec<_> = batch.into_iter().map(Arc::new).collect();
        let written = node.db.write(move |tx| Box::pin(async move { Message::write(tx, &batch).await }));
        let code = |answer: Option<Result<(), Error>>| match answer.expect("answered, not put off") {
            Ok(()) => None,
            Err(Error::Refused(code, _)) => Some(code),
            Err(Error::StaleGroup(_)) => Some(ErrorCode::StaleGroup),
            Err(Error::StaleDevices(_)) => Some(ErrorCode::StaleDevices),
            Err(other) => panic!("{other:?}"),
        };
        written.await.unwrap().into_iter().map(code).collect()
    }

    async fn next_seqs(node: &Node, callers: &[Caller]) -> Vec<u64> {
        let mut conn = node.db.read().await.unwrap();
        let mut next_seqs = Vec::new();
        for caller in callers {
            next_seqs.push(queue::cursor(&mut conn, &caller.device).await.unwrap().unwrap().next_seq);
        }
        next_seqs
    }

    #[tokio::test]
    async fn in_a_batch_each_is_judged_alone_and_a_refused_one_touches_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (node, callers) = world(folder.path()).await;
        let [alice, bob, carol] = callers;
        let ended = Caller { token_hash: Hash::of(b"ended"), ..bob };
        let stale = DirectRecipient { account_id: carol.account, ciphertexts: Vec::new() };
        let too_much = usize::try_from(node.limits.queue_direct_bytes_max).unwrap();
        let batch = || {
            let refused = [
                (message(&node, bob, 1, to_group(1)), ErrorCode::StaleGroup),
                (message(&node, carol, 2, to_group(0)), ErrorCode::NotFound),
                (message(&node, ended, 3, to_group(0)), ErrorCode::Unauthenticated),
                (message(&node, alice, 4, To::Accounts(vec![stale.clone()])), ErrorCode::StaleDevices),
                (message(&node, bob, 5, to_devices(&[bob, carol], too_much)), ErrorCode::QueueFull),
            ];
            let accepted = [
                message(&node, alice, 6, to_group(0)),
                message(&node, bob, 7, to_group(0)),
                message(&node, alice, 8, to_devices(&[alice, carol], 1)),
            ];
            let (mut batch, mut expected) = (Vec::new(), Vec::new());
            let mut accepted = accepted.into_iter();
            for (message, code) in refused {
                batch.push(message);
                expected.push(Some(code));
                batch.extend(accepted.next());
                expected.resize(batch.len(), None);
            }
            (batch, expected)
        };
        for again in [false, true] {
            let (batch, expected) = batch();
            assert_eq!(written(&node, batch).await, expected, "again: {again}");
            assert_eq!(next_seqs(&node, &callers).await, [4, 3, 2], "again: {again}");
        }
        let stubs = [6, 7, 8].map(|id| message(&node, alice, id, to_group(0)).once.id_hash());
        let others = [1, 2, 3, 4, 5].map(|id| message(&node, alice, id, to_group(0)).once.id_hash());
        let known = message_ids::find(&mut node.db.read().await.unwrap(), stubs.iter().chain(&others)).await.unwrap();
        assert!(known.len() == 3 && stubs.iter().all(|id| known.contains_key(id)), "refusals are not remembered");
    }

    #[tokio::test]
    async fn what_comes_after_enough_for_one_transaction_is_put_off() {
        let folder = tempfile::tempdir().unwrap();
        let (node, [alice, bob, carol]) = world(folder.path()).await;
        let messages = [
            message(&node, alice, 1, to_group(0)),
            message(&node, alice, 2, to_devices(&[alice, carol], 1)),
            message(&node, bob, 3, to_group(0)),
        ];
        let messages = messages.map(Arc::new);
        for (devices, put_off) in
            [(10, [false; 3]), (RECEIVERS_ENOUGH - 1, [false, false, true]), (RECEIVERS_ENOUGH, [false, true, true])]
        {
            let members = BTreeMap::from([(GroupId::from_random(GROUP), vec![alice.device; devices])]);
            let mut verdicts = [Verdict::Accepted, Verdict::Accepted, Verdict::Accepted];
            put_off_what_is_too_much(&messages, &mut verdicts, &members);
            assert_eq!(verdicts.map(|verdict| matches!(verdict, Verdict::PutOff)), put_off, "{devices} devices");
        }
    }

    #[tokio::test]
    async fn room_is_counted_over_a_batch_and_what_is_refused_takes_none() {
        let folder = tempfile::tempdir().unwrap();
        let (node, [alice, bob, carol]) = world(folder.path()).await;
        let half = usize::try_from(node.limits.queue_direct_bytes_max / 2).unwrap();
        let batch = vec![
            message(&node, alice, 1, to_devices(&[alice, carol], half)),
            // It would fill Bob's queue, but for Carol's it is too large.
            message(&node, bob, 2, to_devices(&[bob, carol], half + 1)),
            message(&node, bob, 3, to_devices(&[bob], half + half)),
            message(&node, alice, 4, to_devices(&[alice, carol], half)),
            message(&node, alice, 5, to_devices(&[carol], 0)),
            message(&node, carol, 6, to_devices(&[carol], 1)),
        ];
        let full = Some(ErrorCode::QueueFull);
        assert_eq!(written(&node, batch).await, [None, full.clone(), None, None, None, full]);
        assert_eq!(next_seqs(&node, &[alice, bob, carol]).await, [3, 2, 4]);
    }
}
