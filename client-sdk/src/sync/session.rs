//! Logging in, when there is no session or it has ended.
//!
//! Invariant: one log-in at a time, whoever needs it.

use tokio::sync::Mutex;
use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{Bytes, ErrorCode};

use super::Engine;
use crate::{
    Error,
    store::{StoreError, Tx},
};

/// The present session's token, once it was read or made.
#[derive(Default)]
pub(super) struct Session(Mutex<Option<Bytes>>);

/// Whether a refusal means that the session has ended.
pub(super) fn has_ended(error: &ApiError) -> bool {
    error.code() == Some(&ErrorCode::Unauthenticated)
}

/// Whether an answer is the relay's no to this request, and not to the session.
pub(super) fn is_final(error: &ApiError) -> bool {
    error.is_a_no() && !has_ended(error)
}

impl Session {
    /// The session's token; logs in if there is none.
    pub(super) async fn token(&self, engine: &Engine) -> Result<Bytes, ApiError> {
        let mut present = self.0.lock().await;
        if let Some(token) = &*present {
            return Ok(token.clone());
        }
        let stored = with_store(engine, |tx| tx.token()).await?;
        let token = match stored {
            Some(token) => token,
            None => login(engine).await?,
        };
        Ok(present.insert(token).clone())
    }

    /// A new session's token, after `ended` was refused. Another task may have renewed it meanwhile.
    pub(super) async fn renew(&self, engine: &Engine, ended: &Bytes) -> Result<Bytes, ApiError> {
        let mut present = self.0.lock().await;
        match &*present {
            Some(token) if token != ended => Ok(token.clone()),
            _ => {
                *present = None;
                Ok(present.insert(login(engine).await?).clone())
            }
        }
    }
}

async fn login(engine: &Engine) -> Result<Bytes, ApiError> {
    let challenge = engine.api.challenge().await?;
    let session = engine.api.login(&engine.identity().login(engine.relay_id, challenge.nonce)).await;
    if let Err(error) = &session
        && error.is_a_no()
    {
        // Another relay may stand there since the address was confirmed. What it refuses says nothing of this device.
        engine.api.is_still_itself().await?;
    }
    let session = session.map_err(|error| match error.code() {
        // The challenge was over: the next attempt gets another.
        Some(ErrorCode::Unauthenticated) => ApiError::Unreachable("the log-in took too long".into()),
        // The device is not known, or no longer.
        Some(ErrorCode::BadSignature) => {
            ApiError::Refused(Box::new(undertone_wire::Problem::new(ErrorCode::Unauthenticated)))
        }
        _ => error,
    })?;
    let token = session.token.clone();
    with_store(engine, move |tx| tx.set_token(Some(&session.token))).await?;
    Ok(token)
}

async fn with_store<T: Send + 'static>(
    engine: &Engine,
    work: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = engine.store.with_tx(move |tx| work(tx).map_err(Error::from)).await;
    // Without a store there is no session; the caller's next step fails on the store itself.
    done.map_err(|error| ApiError::Unreachable(error.to_string()))
}
