//! Accounts, log-in and the relay's own description: bodies of `/v1/relay`, `/v1/accounts` and `/v1/auth`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    AccountId, Bytes, DeviceId, Incarnation, InviteCode, Limits, Nonce, PublicKey, RelayId, Signature,
    SignedDeviceList, sign,
};

/// `GET /v1/relay`: who the relay is and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Relay {
    /// The relay, to be pinned at registration; part of what registrations and log-ins sign.
    pub relay_id: RelayId,
    /// The present life of its store.
    pub incarnation: Incarnation,
    /// Its time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// MLS cipher suites for which it takes key packages.
    pub suites: Vec<u16>,
    /// Who may register.
    pub registration: Registration,
    /// Its limits.
    pub limits: Limits,
}

/// Who may register at a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// Everyone.
    Open,
    /// Whoever has an invite.
    Invite,
    /// Nobody.
    Closed,
}

/// `POST /v1/accounts`: registers an account with its first device list. Repeating it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegisterRequest {
    /// The account.
    pub account_id: AccountId,
    /// A name to be found by, if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<Username>,
    /// The first device list: version 1.
    pub device_list: SignedDeviceList,
    /// The invite, where the relay asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteCode>,
    /// The identity key's signature ([`Domain::Registration`](crate::Domain::Registration)).
    pub signature: Signature,
}

impl RegisterRequest {
    /// Registers an account with its first list at one relay, signed with the identity key whose seed is `identity`.
    pub fn sign(
        relay: &RelayId,
        account_id: AccountId,
        username: Option<Username>,
        device_list: SignedDeviceList,
        invite: Option<InviteCode>,
        identity: &[u8; 32],
    ) -> Self {
        let (list_hash, name) = (device_list.hash(), username.as_ref().map_or("", Username::as_str));
        let fields: &[&[u8]] = &[relay.as_bytes(), list_hash.as_bytes(), name.as_bytes()];
        let signature = sign(identity, crate::Domain::Registration, fields);
        Self { account_id, username, device_list, invite, signature }
    }
}

impl LoginRequest {
    /// Answers a challenge of one relay, signed with the device key whose seed is `device_key`.
    pub fn sign(relay: &RelayId, device_id: DeviceId, nonce: Nonce, device_key: &[u8; 32]) -> Self {
        let fields: &[&[u8]] = &[relay.as_bytes(), device_id.as_bytes(), nonce.as_bytes()];
        Self { device_id, nonce, signature: sign(device_key, crate::Domain::Login, fields) }
    }
}

/// `PUT /v1/account/devices`: replaces the account's device list by the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateDeviceListRequest {
    /// The next list.
    pub device_list: SignedDeviceList,
}

/// `POST /v1/accounts/{account}/recovery`: by the recovery key that the account's newest list names, without a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecoveryRequest {
    /// From a challenge.
    pub nonce: Nonce,
    /// The list that is to take the place of the newest; absent to be told that one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_list: Option<SignedDeviceList>,
    /// The recovery key's signature ([`Domain::Recovery`](crate::Domain::Recovery)).
    pub signature: Signature,
}

impl RecoveryRequest {
    /// Signs with the recovery key whose seed is `recovery`.
    pub fn sign(
        relay: &RelayId,
        account: &AccountId,
        nonce: Nonce,
        device_list: Option<SignedDeviceList>,
        recovery: &[u8; 32],
    ) -> Self {
        let hash = device_list.as_ref().map(SignedDeviceList::hash);
        let fields = Self::fields(relay, account, &nonce, hash.as_ref());
        let signature = sign(recovery, crate::Domain::Recovery, &fields);
        Self { nonce, device_list, signature }
    }

    /// Whether this recovery key has signed it.
    pub fn is_of(&self, relay: &RelayId, account: &AccountId, recovery: &PublicKey) -> bool {
        let hash = self.device_list.as_ref().map(SignedDeviceList::hash);
        let fields = Self::fields(relay, account, &self.nonce, hash.as_ref());
        crate::verify(recovery, crate::Domain::Recovery, &fields, &self.signature)
    }

    fn fields<'a>(
        relay: &'a RelayId,
        account: &'a AccountId,
        nonce: &'a Nonce,
        list: Option<&'a crate::Hash>,
    ) -> [&'a [u8]; 4] {
        let list = list.map_or(&[][..], |hash| hash.as_bytes().as_slice());
        [relay.as_bytes(), account.as_bytes(), nonce.as_bytes(), list]
    }
}

/// What a relay answers about an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Account {
    /// The account.
    pub account_id: AccountId,
    /// Its username, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<Username>,
    /// Its newest device list.
    pub device_list: SignedDeviceList,
}

/// `POST /v1/auth/challenge`: a nonce for one log-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Challenge {
    /// To be signed.
    pub nonce: Nonce,
    /// When it ends, in the relay's milliseconds.
    pub expires_at_ms: u64,
}

/// `POST /v1/auth/login`: proves possession of the device key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoginRequest {
    /// The device.
    pub device_id: DeviceId,
    /// The challenge's nonce.
    pub nonce: Nonce,
    /// The device key's signature ([`Domain::Login`](crate::Domain::Login)).
    pub signature: Signature,
}

/// A session: `Authorization: Bearer` with the token in base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// The bearer token.
    pub token: Bytes,
    /// When it ends, in the relay's milliseconds.
    pub expires_at_ms: u64,
}

/// A username: 2 to 32 characters of `a-z`, `0-9`, `.`, `_` and `-`. Capitals are lowered.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[a-z0-9._-]{2,32}$"))]
pub struct Username(String);

/// Text that is not a username.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a username has 2 to 32 characters of a-z, 0-9, '.', '_' and '-'")]
pub struct UsernameError;

impl Username {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Username {
    type Err = UsernameError;

    fn from_str(text: &str) -> Result<Self, UsernameError> {
        let name = text.to_ascii_lowercase();
        let allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let fits = (2..=32).contains(&name.len()) && name.bytes().all(allowed);
        if fits { Ok(Self(name)) } else { Err(UsernameError) }
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Username(..)")
    }
}

impl<'de> Deserialize<'de> for Username {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_are_short_plain_and_lower_case() {
        assert_eq!("Alice.B-1_x".parse::<Username>().map(|name| name.to_string()), Ok("alice.b-1_x".into()));
        for bad in ["", "a", "with space", "émile", "a/b", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Username>(), Err(UsernameError), "{bad:?}");
        }
    }
}
