//! Whether an account is who the user takes it for: safety numbers, and identity keys that have changed.

use undertone_wire::{AccountId, PublicKey};

use super::Client;
use crate::{
    Error,
    safety::{self, Fingerprint, SafetyNumber},
    store::Tx,
};

impl Client {
    /// What this account is known by, to be compared with what a new device of it shows.
    ///
    /// # Errors
    /// Those of the local store.
    pub async fn fingerprint(&self) -> Result<Fingerprint, Error> {
        self.fingerprint_of(self.engine().identity().account()).await
    }

    /// What this account and another are known by to each other: compare it with what they see, by a way on which you know
    /// them. It changes only with an identity key.
    ///
    /// # Errors
    /// [`Error::UnknownAccount`] if the account was never seen here.
    pub async fn safety_number(&self, account: AccountId) -> Result<SafetyNumber, Error> {
        Ok(SafetyNumber::of(&self.fingerprint().await?, &self.fingerprint_of(account).await?))
    }

    /// The user has compared this safety number with the account's owner. It holds as long as the identity key stays the same; a
    /// change of it is taken by this too ([`Client::accept_identity`]).
    ///
    /// # Errors
    /// [`Error::UnknownAccount`] if the account was never seen here, [`Error::Untrusted`] if the number is another by now.
    pub async fn verify(&self, account: AccountId, compared: &SafetyNumber) -> Result<(), Error> {
        let (own, compared) = (self.fingerprint().await?, compared.clone());
        self.engine()
            .store
            .with_tx(move |tx| {
                let key = identity_key(tx, account)?;
                // The key may have changed while they compared.
                if SafetyNumber::of(&own, &safety::fingerprint(account, &key)) != compared {
                    return Err(Error::Untrusted("that is not the safety number any more: compare it again".into()));
                }
                Ok(tx.set_verified(account, &key)?)
            })
            .await
    }

    /// Whether that was done, and the account has the same identity key still.
    ///
    /// # Errors
    /// [`Error::UnknownAccount`] if the account was never seen here.
    pub async fn is_verified(&self, account: AccountId) -> Result<bool, Error> {
        let verified = self
            .engine()
            .store
            .with_tx(move |tx| Ok::<_, Error>(tx.verified_key(account)? == Some(identity_key(tx, account)?)));
        verified.await
    }

    /// The user takes an account's new identity key ([`Event::IdentityChanged`](crate::Event::IdentityChanged)) without having
    /// compared it. What waits for that
    /// ([`ClientBuilder::hold_changed_identities`](crate::ClientBuilder::hold_changed_identities)) is sent.
    pub async fn accept_identity(&self, account: AccountId) -> Result<(), Error> {
        self.engine().store.with_tx(move |tx| tx.take_identity(account).map_err(Error::from)).await
    }

    /// Whether an account has a new identity key to which the user has not said anything yet.
    pub async fn has_changed_identity(&self, account: AccountId) -> Result<bool, Error> {
        self.engine().store.with_tx(move |tx| tx.has_changed_identity(account).map_err(Error::from)).await
    }

    async fn fingerprint_of(&self, account: AccountId) -> Result<Fingerprint, Error> {
        let key = self.engine().store.with_tx(move |tx| identity_key(tx, account)).await?;
        Ok(safety::fingerprint(account, &key))
    }
}

/// The present identity key of an account that was seen.
fn identity_key(tx: &Tx<'_>, account: AccountId) -> Result<PublicKey, Error> {
    Ok(tx.verified_list(account)?.ok_or(Error::UnknownAccount)?.identity_key())
}
