//! Key packages of those who are to be added, claimed from the relay before a commit is made with them.
//!
//! Invariant: what was claimed belongs to devices that the account's verified list names.

use std::collections::HashMap;

use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{AccountId, Bytes, ClaimRequest, GroupId, Limits};

use super::{Engine, inbox, session, unknown_account};
use crate::{
    Error,
    crypto::{Member, Suite, key_package},
    store::{OutboxRow, StoreError, Task, Tx},
};

/// Who cannot be added now is tried again after this time.
const GATHER_AGAIN_MS: u64 = 60_000;

/// Key packages claimed for a task and not used yet. Losing them in a restart only claims others.
pub(super) type Claimed = HashMap<i64, Claims>;

/// What was claimed for a task.
#[derive(Clone, Default)]
pub(super) struct Claims {
    pub(super) key_packages: Vec<(Member, Bytes)>,
    /// Accounts that did not fit any more.
    pub(super) rest: Vec<AccountId>,
    /// Accounts of which the relay has not said yes or no.
    pub(super) later: Vec<AccountId>,
}

/// What a task needs to add somebody.
pub(super) async fn claim_for(engine: &Engine, row: &OutboxRow) -> Result<Claims, Error> {
    if !matches!(row.task, Task::Add { .. } | Task::LetIn { .. } | Task::Gather { .. }) {
        return Ok(Claims::default());
    }
    let group = row.group()?;
    let known = engine.store.with_tx(move |tx| {
        let gone = tx.gone(group)?;
        let staying: Vec<_> = tx.members(group)?.into_iter().filter(|one| !gone.contains(&one.device)).collect();
        Ok::<_, Error>((tx.group(group)?.ok_or(Error::UnknownGroup)?.suite, staying))
    });
    let (suite, staying) = known.await?;
    let joins = |one: &Member| !staying.contains(one);
    let of_one = |key_packages| Claims { key_packages, ..Claims::default() };
    match &row.task {
        Task::Add { account } => claim_of(engine, *account, suite, joins).await.map(of_one),
        Task::LetIn { account, device } => {
            claim_of(engine, *account, suite, |one| one.device == *device).await.map(of_one)
        }
        Task::Gather { accounts } => claim_possible(engine, accounts, suite, joins).await,
        _ => Ok(Claims::default()),
    }
}

/// Key packages of a suite for those devices of an account that are wanted.
async fn claim_of(
    engine: &Engine,
    account: AccountId,
    suite: Suite,
    is_wanted: impl Fn(&Member) -> bool,
) -> Result<Vec<(Member, Bytes)>, Error> {
    let (_, list) = engine.learn(account).await?;
    let wanted: Vec<_> = key_package::members_of(&list)?.into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let request = &ClaimRequest { account_id: account, suite: suite.number() };
    let answer = engine.signed_in(|token| async move { engine.api.claim(&token, request).await }).await;
    let claims = answer.map_err(unknown_account)?.key_packages;
    let usable: Vec<_> = claims
        .into_iter()
        .filter_map(|claim| Some((wanted.iter().find(|one| one.device == claim.device_id)?, claim.key_package?)))
        .map(|(member, key_package)| (*member, key_package))
        .collect();
    if usable.is_empty() { Err(Error::NoKeyPackages) } else { Ok(usable) }
}

/// Key packages for the wanted devices of those accounts that have some, as many as one commit may add.
async fn claim_possible(
    engine: &Engine,
    accounts: &[AccountId],
    suite: Suite,
    is_wanted: impl Fn(&Member) -> bool,
) -> Result<Claims, Error> {
    let most = Limits::default().commit_added_max;
    let mut claims = Claims::default();
    for (n, account) in accounts.iter().enumerate() {
        let of_account = match claim_of(engine, *account, suite, &is_wanted).await {
            Ok(of_account) => of_account,
            Err(Error::Offline(ApiError::Refused(problem))) => {
                tracing::debug!(code = %problem.code, "an account cannot be added now");
                claims.later.push(*account);
                continue;
            }
            Err(error @ (Error::Offline(_) | Error::OtherRelay | Error::Store(_) | Error::Closed)) => {
                return Err(error);
            }
            Err(Error::Refused(error)) if session::has_ended(&error) => return Err(Error::Refused(error)),
            Err(error) => {
                tracing::debug!(%error, "an account cannot be added");
                continue;
            }
        };
        if (claims.key_packages.len() + of_account.len()) as u64 > most {
            claims.rest = accounts.get(n..).unwrap_or_default().to_vec();
            break;
        }
        claims.key_packages.extend(of_account);
    }
    Ok(claims)
}

/// Leaves to a row what goes into its commit, and says what that is. What does not fit follows it at once, what does not work
/// now a while later.
pub(super) fn gather_in_parts(
    tx: &Tx<'_>,
    row: &OutboxRow,
    accounts: &[AccountId],
    claims: &Claims,
    now_ms: u64,
) -> Result<Vec<AccountId>, StoreError> {
    let (rest, later) = (&claims.rest, &claims.later);
    let part = |of: &dyn Fn(&AccountId) -> bool| accounts.iter().filter(|one| of(one)).copied().collect::<Vec<_>>();
    // A commit that is made again has been left with its part before.
    let these = part(&|one| !rest.contains(one) && !later.contains(one));
    if these.len() == accounts.len() {
        return Ok(these);
    }
    tx.set_task(row.id, &Task::Gather { accounts: these.clone() })?;
    let rest = part(&|one| rest.contains(one));
    if !rest.is_empty() {
        tx.add_first_task(row.conversation, &Task::Gather { accounts: rest })?;
    }
    let later = part(&|one| later.contains(one));
    if !later.is_empty() {
        let not_before_ms = now_ms.saturating_add(GATHER_AGAIN_MS);
        tx.add_task(row.conversation, &Task::Gather { accounts: later }, None, not_before_ms)?;
    }
    Ok(these)
}

/// Tells the app who of those that were to be gathered is not a member now.
pub(super) fn tell_not_added(tx: &Tx<'_>, group: GroupId, accounts: &[AccountId]) -> Result<(), StoreError> {
    let members = tx.member_accounts(group)?;
    let before = [members.as_slice(), accounts].concat();
    inbox::tell_members(tx, group, None, &before, &members)
}
