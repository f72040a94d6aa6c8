//! MLS groups that stay at hand from one transaction to the next, so that a message does not cost the reading of a
//! tree.
//!
//! Invariant: what is handed out is as the open transaction would read it. A group is out of here while a step works on
//! it. One that was used in a transaction stays only if that commits, and one that was used before a savepoint is
//! rolled back does not stay either: whoever needs it next reads it again.

use std::cell::RefCell;

use openmls::prelude::{GroupId as MlsGroupId, MlsGroup};
use undertone_wire::GroupId;

use crate::crypto::group::mls_group_id;

/// So many stay, those used last.
const GROUPS_MAX: usize = 32;

/// The groups, the one used last at the end.
#[derive(Default)]
pub(super) struct Loaded(RefCell<Vec<Kept>>);

struct Kept {
    group: MlsGroup,
    /// Whether it may differ from what was committed last.
    used: bool,
}

impl Loaded {
    /// Takes a group, if it is at hand.
    pub(super) fn take(&self, group: &MlsGroupId) -> Option<MlsGroup> {
        let mut kept = self.0.borrow_mut();
        let at = kept.iter().position(|one| one.group.group_id() == group)?;
        Some(kept.remove(at).group)
    }

    /// Keeps a group, which the open transaction would read as it is here.
    pub(super) fn keep(&self, group: MlsGroup) {
        drop(self.take(group.group_id()));
        self.0.borrow_mut().push(Kept { group, used: true });
    }

    /// What is in the storage of a group is replaced.
    pub(super) fn forget(&self, group: GroupId) {
        drop(self.take(&mls_group_id(group)));
    }

    /// Something was undone, or may have been: what was used since the last commit is read again.
    pub(super) fn drop_used(&self) {
        self.0.borrow_mut().retain(|one| !one.used);
    }

    /// What was done is on disk.
    pub(super) fn committed(&self) {
        let mut kept = self.0.borrow_mut();
        let too_many = kept.len().saturating_sub(GROUPS_MAX);
        kept.drain(..too_many);
        for one in kept.iter_mut() {
            one.used = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use tempfile::TempDir;
    use undertone_wire::Bytes;

    use super::*;
    use crate::{
        Clock as _, Error, StoreKey, SystemClock,
        crypto::{
            CryptoError, Identity, Member, Suite,
            group::{self, Change, Opened, Profile},
            key_package,
        },
        store::{Store, StoreError, Tx},
    };

    const TEXT: &[u8] = b"snow!";

    fn profile() -> Profile {
        Profile { name: "ski trip".into(), continues: None }
    }

    fn group_id(byte: u8) -> GroupId {
        GroupId::from_random([byte; 16])
    }

    async fn store() -> (Store, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap(), folder)
    }

    /// Bob's store, in which he has joined alice's group by commit 1, and what she has sent there.
    async fn bob_and_messages<const N: usize>() -> (Store, TempDir, [Bytes; N]) {
        let (store, folder) = store().await;
        let (provider, now_ms) = (OpenMlsRustCrypto::default(), SystemClock.now_ms());
        let [alice, bob] = [(), ()].map(|()| Identity::random());
        let owner = Member { account: bob.account(), device: bob.device() };
        let made =
            store.with_tx(move |tx| Ok::<_, Error>(key_package::make(&tx.mls(), &bob, Suite::Classic, now_ms, false)?));
        let change = Change { add: vec![(owner, made.await.unwrap())], ..Change::default() };
        let created = group::create(&provider, &alice, Suite::Classic, group_id(1), &profile()).unwrap();
        let staged = group::stage(&provider, &alice, group_id(1), 0, &created.rejoin_key, &change, now_ms).unwrap();
        group::merge_pending(&provider, group_id(1)).unwrap();
        let parts = staged.unwrap().welcome.unwrap();
        let join = store.with_tx(move |tx| {
            group::join(&tx.mls(), group_id(1), None, 1, &parts.group_info, &parts.secrets[0].secrets)?;
            Ok::<_, Error>(())
        });
        join.await.unwrap();
        let sent = [(); N].map(|()| group::encrypt(&provider, &alice, group_id(1), 1, TEXT).unwrap());
        (store, folder, sent)
    }

    fn opens(tx: &Tx<'_>, message: &Bytes) -> Result<bool, CryptoError> {
        let opened = group::open(&tx.mls(), group_id(1), 1, message.as_slice())?;
        Ok(matches!(opened, Opened::Message { content, .. } if content == TEXT))
    }

    fn is_at_hand(tx: &Tx<'_>) -> bool {
        tx.loaded.0.borrow().iter().any(|one| one.group.group_id() == &mls_group_id(group_id(1)))
    }

    #[tokio::test]
    async fn a_group_stays_at_hand_after_a_commit() {
        let (store, _folder, [one, other]) = bob_and_messages().await;
        for message in [one, other] {
            let opened = store.with_tx(move |tx| {
                assert!(is_at_hand(tx));
                Ok::<_, Error>(opens(tx, &message)?)
            });
            assert!(opened.await.unwrap());
        }
    }

    #[tokio::test]
    async fn what_was_opened_in_a_transaction_that_failed_opens_again() {
        let (store, _folder, [message]) = bob_and_messages().await;
        for fails in [true, false] {
            let message = message.clone();
            let opened = store.with_tx(move |tx| {
                assert!(opens(tx, &message)?);
                if fails { Err(Error::from(StoreError::Closed)) } else { Ok(()) }
            });
            assert_eq!(opened.await.is_err(), fails);
        }
        let again = store.with_tx(move |tx| {
            assert!(matches!(opens(tx, &message), Err(CryptoError::Invalid(_))), "a message opens once");
            assert!(!is_at_hand(tx), "whoever failed does not give it back");
            Ok::<_, Error>(())
        });
        again.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_opened_in_an_attempt_that_failed_opens_again() {
        let (store, _folder, [message, panics]) = bob_and_messages().await;
        let opened = store.with_tx(move |tx| {
            let refused = tx.attempt(|| {
                assert!(opens(tx, &message)?);
                Err::<(), _>(CryptoError::Invalid("something else is the matter".into()))
            });
            assert!(refused?.is_none() && !is_at_hand(tx));
            let panicked = tx.attempt(|| -> Result<(), CryptoError> {
                assert!(opens(tx, &panics)?);
                panic!("as a library might");
            });
            assert!(panicked?.is_none() && !is_at_hand(tx));
            Ok::<_, Error>(opens(tx, &message)? && opens(tx, &panics)?)
        });
        assert!(opened.await.unwrap());
    }

    #[tokio::test]
    async fn what_was_done_before_an_attempt_that_failed_stays_done() {
        let (store, _folder, [message]) = bob_and_messages().await;
        let again = message.clone();
        let opened = store.with_tx(move |tx| {
            assert!(opens(tx, &message)?);
            assert!(tx.attempt(|| Err::<(), _>(CryptoError::Invalid("no".into())))?.is_none());
            assert!(opens(tx, &message).is_err(), "a message opens once");
            Ok::<_, Error>(())
        });
        opened.await.unwrap();
        let opened = store.with_tx(move |tx| Ok::<_, Error>(opens(tx, &again).is_ok()));
        assert!(!opened.await.unwrap());
    }

    #[tokio::test]
    async fn those_used_last_stay() {
        let (store, _folder) = store().await;
        let identity = Identity::random();
        for byte in 0..u8::try_from(GROUPS_MAX).unwrap() + 2 {
            let identity = identity.clone();
            let used = store.with_tx(move |tx| {
                group::create(&tx.mls(), &identity, Suite::Classic, group_id(byte), &profile())?;
                Ok::<_, Error>(group::members(&tx.mls(), group_id(0))?)
            });
            used.await.unwrap();
        }
        let kept = store.with_tx(|tx| {
            let kept = tx.loaded.0.borrow();
            Ok::<_, Error>(kept.iter().map(|one| one.group.group_id().clone()).collect::<Vec<_>>())
        });
        let kept = kept.await.unwrap();
        assert_eq!(kept.len(), GROUPS_MAX);
        assert!(kept.contains(&mls_group_id(group_id(0))) && !kept.contains(&mls_group_id(group_id(1))));
    }
}
