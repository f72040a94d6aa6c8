//! Making a request for a group: once, in the transaction that stores it.

use undertone_wire::{Bytes, CommitRequest, DeviceId, Encoding, LeaveRequest, SendRequest};

use super::Claimed;
use crate::{
    Error,
    crypto::{
        Entropy, Member,
        group::{self, Change, Staged},
        key_package,
    },
    message::Content,
    store::{GroupRow, GroupState, OutboxRow, OutboxState, StoreError, Task, Tx, Why},
    sync::{Engine, claims, inbox, receipts, recovery},
};

/// Encrypts a message for the group's present epoch, once, and leaves it to be posted.
pub(super) async fn encrypt(engine: &Engine, row: &OutboxRow) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let id = engine.message_id()?;
    let (identity, row) = (engine.identity(), row.clone());
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let Some(group) = group_to_use(tx, &row, entropy, now_ms)? else { return Ok(()) };
            // Nothing more is encrypted for who is gone.
            if !matches!(row.task, Task::Leave { .. }) && !tx.gone(group.id)?.is_empty() {
                return Ok(tx.tidy_first(group.id)?);
            }
            let content = match &row.task {
                Task::Send { content } | Task::Leave { content } => content.clone(),
                _ => match receipts::body(tx, row.conversation)? {
                    Some(body) => {
                        let list_version = tx.list_version(identity.account())?;
                        Content { id, sent_at_ms: now_ms, list_version, body }.encode()
                    }
                    None => return inbox::finish(tx, &row, Ok(())).map_err(Error::from),
                },
            };
            let bytes = group::encrypt(&tx.mls(), &identity, group.live, group.commit_seq, content.as_slice())?;
            let request = match row.task {
                Task::Leave { .. } => Encoding::Cbor.encode(&LeaveRequest { message_id, notice: bytes.clone() }),
                _ => Encoding::Cbor.encode(&SendRequest { message_id, message: bytes.clone(), ttl_s: None }),
            };
            tx.set_posted(row.id, message_id, &request, &bytes).map_err(Error::from)
        })
        .await
}

/// Stages a commit and leaves it to be posted.
pub(super) async fn stage(engine: &Engine, row: &OutboxRow, claimed: &mut Claimed) -> Result<(), Error> {
    let claims = match claimed.get(&row.id) {
        Some(claims) => claims.clone(),
        None => {
            let claims = claims::claim_for(engine, row).await?;
            claimed.entry(row.id).or_insert(claims).clone()
        }
    };
    let message_id = engine.message_id()?;
    let row = row.clone();
    let (entropy, own_now_ms, now_ms) = (engine.entropy, engine.clock.now_ms(), engine.relay_now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let Some(group) = group_to_use(tx, &row, entropy, own_now_ms)? else { return Ok(()) };
            let (mls, identity, mut add) = (tx.mls(), tx.identity()?, claims.key_packages.clone());
            // Nothing of this group is posted now, so a commit that is still pending was refused.
            group::drop_pending(&mls, group.live)?;
            let mut gathered = vec![];
            if let Task::Gather { accounts } = &row.task {
                add.retain(|(owner, bytes)| key_package::is_usable(&mls, bytes, *owner, group.suite, now_ms));
                gathered = claims::gather_in_parts(tx, &row, accounts, &claims, own_now_ms)?;
            }
            let mut remove = tx.gone(group.id)?;
            if let Task::Remove { account } = row.task {
                let members = tx.members(group.id)?;
                remove.extend(members.iter().filter(|member| member.account == account).map(|member| member.device));
            }
            if let Task::LetIn { account, device } = row.task {
                // Only with a key package to be added by.
                if add.is_empty() || !inbox::may_let_in(tx, group.id, Member { account, device })? {
                    return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
                }
                remove.push(device);
            }
            check_size(tx, &group, &add, &remove)?;
            let rename = if let Task::Rename { name } = &row.task { Some(name.clone()) } else { None };
            let change = Change { add, remove, rename, update: row.task == Task::Update };
            let staged =
                group::stage(&mls, &identity, group.live, group.commit_seq, &group.rejoin_key, &change, now_ms)?;
            let Some(Staged { commit, welcome, sealed_group_info }) = staged else {
                claims::tell_not_added(tx, group.id, &gathered)?;
                return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
            };
            let request = CommitRequest { message_id, commit, welcome, sealed_group_info };
            let bytes = Encoding::Cbor.encode(&request);
            tx.set_posted(row.id, message_id, &bytes, &request.commit).map_err(Error::from)
        })
        .await
}

/// Whether a group may grow as it is to.
fn check_size(tx: &Tx<'_>, group: &GroupRow, add: &[(Member, Bytes)], remove: &[DeviceId]) -> Result<(), Error> {
    let Some(max) = group.suite.devices_max().filter(|_| !add.is_empty()) else { return Ok(()) };
    let members = tx.members(group.id)?;
    let stays = |one: &&Member| !remove.contains(&one.device);
    let joins = |(one, _): &&(Member, Bytes)| remove.contains(&one.device) || !members.contains(one);
    let then = members.iter().filter(stays).count() + add.iter().filter(joins).count();
    if then > max && then > members.len() {
        return Err(Error::Invalid(format!("a post-quantum group has at most {max} devices")));
    }
    Ok(())
}

/// The row's group, if it can be used now. If it cannot any more, the row is ended; if it is to be recovered first, the
/// row waits.
fn group_to_use(tx: &Tx<'_>, row: &OutboxRow, entropy: Entropy, now_ms: u64) -> Result<Option<GroupRow>, StoreError> {
    if tx.task(row.id)?.is_none_or(|now| now.state != OutboxState::Waiting) {
        return Ok(None);
    }
    match tx.group(row.group()?)? {
        Some(group) if group.state == GroupState::Active => {
            if tx.has_mls_state(group.live)? {
                return Ok(Some(group));
            }
            tracing::warn!("the state of a group is missing");
            recovery::begin(tx, entropy, now_ms, &group, Why::Lost)?;
        }
        Some(group) if group.state == GroupState::Recovering => {}
        _ => inbox::finish(tx, row, Err(Error::NotMember))?,
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use undertone_wire::{AccountId, PublicKey};

    use super::*;
    use crate::{
        StoreKey,
        crypto::{Suite, group::RejoinKey},
        store::Store,
    };

    fn devices(numbers: std::ops::Range<u8>) -> Vec<Member> {
        let account = AccountId::from_identity_key(&[7; 32].into());
        numbers.map(|number| Member { account, device: DeviceId::from_random([number; 16]) }).collect()
    }

    #[tokio::test]
    async fn a_hybrid_group_has_no_more_devices_than_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let max = u8::try_from(Suite::Hybrid.devices_max().unwrap()).unwrap();
        let fits = store.with_tx(move |tx| {
            let fits = |suite, members, add, remove: &[Member]| {
                let (id, rejoin_key) =
                    (undertone_wire::GroupId::from_random([suite as u8; 16]), RejoinKey::from_bytes(vec![]));
                let group = GroupRow {
                    id,
                    live: id,
                    suite,
                    name: "trip".into(),
                    state: GroupState::Active,
                    commit_seq: 0,
                    rejoin_key,
                };
                tx.save_group(&group).unwrap();
                let members = devices(members).into_iter().map(|one| (one, PublicKey::from([1; 32]))).collect();
                tx.save_members(id, &members, |_| false).unwrap();
                let add: Vec<_> = devices(add).into_iter().map(|one| (one, Bytes::from(vec![]))).collect();
                let remove: Vec<_> = remove.iter().map(|one| one.device).collect();
                check_size(tx, &group, &add, &remove).is_ok()
            };
            Ok::<_, Error>([
                fits(Suite::Hybrid, 0..max - 1, max - 1..max, &[]),
                fits(Suite::Hybrid, 0..max, max..max + 1, &[]),
                fits(Suite::Hybrid, 0..max, max..max + 1, &devices(3..4)),
                // In its own place.
                fits(Suite::Hybrid, 0..max, 3..4, &devices(3..4)),
                fits(Suite::Hybrid, 0..max, 0..0, &[]),
                // Who is in it by themselves is let in again all the same.
                fits(Suite::Hybrid, 0..max + 1, 3..4, &devices(3..4)),
                fits(Suite::Classic, 0..max, max..max + 1, &[]),
            ])
        });
        assert_eq!(fits.await.unwrap(), [true, false, true, true, true, true, true]);
    }
}
