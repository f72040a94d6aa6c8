//! Accounts and log-in at the fake relay.
//!
//! Invariant: every device belongs to one account, whose newest list names it.

use undertone_wire::{
    Account, AccountId, Bytes, Challenge, DeviceId, DeviceList, DeviceListError, Domain, ErrorCode, LoginRequest,
    Nonce, Problem, RecoveryRequest, RegisterRequest, Session, SignedDeviceList, UpdateDeviceListRequest, Username,
    verify,
};

use super::{
    FakeRelay,
    keys::Keys,
    state::{Caller, Device, OpenSession, Outcome, State, check_bytes, check_count, not_found, refused},
};

impl FakeRelay {
    /// An account's newest device list.
    pub fn device_list(&self, account: &AccountId) -> Option<SignedDeviceList> {
        self.look(|state| state.accounts.get(account).map(|account| account.device_list.clone()))
    }
}

impl State {
    pub(super) fn register(&mut self, request: &RegisterRequest) -> Outcome<Account> {
        let list = self.first_list(request)?;
        let account = Account {
            account_id: request.account_id,
            username: request.username.clone(),
            device_list: request.device_list.clone(),
        };
        if let Some(known) = self.accounts.get(&request.account_id) {
            let same = *known == account;
            return if same { Ok(account) } else { Err(Box::new(Problem::new(ErrorCode::AccountExists))) };
        }
        if request.username.as_ref().is_some_and(|username| self.account_by_username(username).is_ok()) {
            return Err(refused(ErrorCode::UsernameTaken, "choose another username"));
        }
        if let Some(invites) = &mut self.invites {
            let uses = request.invite.and_then(|code| invites.get_mut(&code)).filter(|uses| **uses > 0);
            *uses.ok_or_else(|| refused(ErrorCode::InviteRequired, "ask for an invite"))? -= 1;
        }
        self.put_devices(&list)?;
        self.accounts.insert(account.account_id, account.clone());
        Ok(account)
    }

    fn first_list(&self, request: &RegisterRequest) -> Outcome<DeviceList> {
        let signed = &request.device_list;
        let list = self.verified_list(&request.account_id, signed)?;
        if list.version != 1 || list.previous.is_some() {
            return Err(refused(ErrorCode::BadDeviceList, "an account begins with version 1 and nothing before it"));
        }
        let username = request.username.as_ref().map_or("", Username::as_str);
        let hash = signed.hash();
        let fields: &[&[u8]] = &[self.relay_id.as_bytes(), hash.as_bytes(), username.as_bytes()];
        if !verify(&list.identity_key(), Domain::Registration, fields, &request.signature) {
            let what_to_do = "sign this relay's id, the list's hash and the username with the identity key";
            return Err(refused(ErrorCode::BadSignature, what_to_do));
        }
        Ok(list)
    }

    /// Replaces an account's list by the next one. Whoever is no longer listed loses everything.
    pub(super) fn update_devices(&mut self, caller: &Caller, request: &UpdateDeviceListRequest) -> Outcome<Account> {
        self.replace_list(&caller.account, &request.device_list)
    }

    /// What whoever has the recovery key asks for: the account, or another list of it. The challenge is used up either way.
    pub(super) fn recover(&mut self, account: &AccountId, request: &RecoveryRequest) -> Outcome<Account> {
        let expires_at_ms = self.challenges.remove(&request.nonce);
        if expires_at_ms.is_none_or(|expires_at_ms| expires_at_ms <= self.now_ms) {
            return Err(refused(ErrorCode::Unauthenticated, "the challenge is over; ask for another"));
        }
        let bad =
            || refused(ErrorCode::BadSignature, "it is not signed by the recovery key that the account has named");
        let known = self.account(account).map_err(|_| bad())?;
        let named = known.device_list.verify(account).map_err(bad_list)?.recovery_key.ok_or_else(bad)?;
        if !request.is_of(&self.relay_id, account, &named.key) {
            return Err(bad());
        }
        match &request.device_list {
            Some(list) => self.replace_list(account, list),
            None => Ok(known),
        }
    }

    fn replace_list(&mut self, account: &AccountId, signed: &SignedDeviceList) -> Outcome<Account> {
        let list = self.verified_list(account, signed)?;
        let known = self.account(account)?;
        if known.device_list == *signed {
            return Ok(known);
        }
        let before = known.device_list.verify(account).map_err(bad_list)?;
        let hash = known.device_list.hash();
        if list.version != before.version + 1 || list.previous != Some(hash) {
            return Err(refused(ErrorCode::StaleDeviceList, "fetch the account, and sign a list that continues it"));
        }
        list.continues(&before, &hash).map_err(bad_list)?;
        let listed: Vec<_> = list.certificates().collect::<Result<_, _>>().map_err(bad_list)?;
        let of_account = self.devices.iter().filter(|(_, device)| device.account == *account);
        let unlisted = of_account.map(|(id, _)| *id).filter(|id| listed.iter().all(|one| one.device != *id));
        for device in unlisted.collect::<Vec<_>>() {
            self.unlist(&device);
        }
        self.put_devices(&list)?;
        let account = Account { device_list: signed.clone(), ..known };
        self.accounts.insert(account.account_id, account.clone());
        Ok(account)
    }

    fn verified_list(&self, account: &AccountId, signed: &SignedDeviceList) -> Outcome<DeviceList> {
        check_bytes("device_list_bytes_max", self.limits.device_list_bytes_max, &signed.list)?;
        let list = signed.verify(account).map_err(|error| match error {
            DeviceListError::BadSignature => refused(ErrorCode::BadSignature, &error.to_string()),
            error => bad_list(error),
        })?;
        check_count("account_devices_max", self.limits.account_devices_max, list.devices.len())?;
        check_count("rotations_max", self.limits.rotations_max, list.rotations.len())?;
        Ok(list)
    }

    /// Makes the devices those of a list. Key packages on a certificate that was replaced go.
    pub(super) fn put_devices(&mut self, list: &DeviceList) -> Outcome<()> {
        let certificates: Vec<_> = list.certificates().collect::<Result<_, _>>().map_err(bad_list)?;
        let of_another = |device: &DeviceId| self.devices.get(device).is_some_and(|one| one.account != list.account);
        if certificates.iter().any(|certificate| of_another(&certificate.device)) {
            return Err(refused(ErrorCode::BadDeviceList, "a device in the list belongs to another account"));
        }
        for (certificate, entry) in certificates.iter().zip(&list.devices) {
            let device_key = entry.key_set().map_err(bad_list)?.device_key;
            match self.devices.get_mut(&certificate.device) {
                Some(known) if known.certificate == entry.certificate => {}
                Some(known) => {
                    known.keys.forget_key_packages();
                    if known.certificate.unverified().map_err(bad_list)?.key_set != certificate.key_set {
                        known.keys = Keys::default();
                    }
                    known.certificate = entry.certificate.clone();
                    if known.device_key != device_key {
                        known.device_key = device_key;
                        self.sessions.retain(|session| session.device != certificate.device);
                    }
                }
                None => {
                    let device = Device::new(list.account, device_key, entry.certificate.clone());
                    self.devices.insert(certificate.device, device);
                }
            }
        }
        Ok(())
    }

    pub(super) fn account(&self, account: &AccountId) -> Outcome<Account> {
        self.accounts.get(account).cloned().ok_or_else(not_found)
    }

    pub(super) fn account_by_username(&self, username: &Username) -> Outcome<Account> {
        let mut accounts = self.accounts.values();
        accounts.find(|account| account.username.as_ref() == Some(username)).cloned().ok_or_else(not_found)
    }

    pub(super) fn challenge(&mut self) -> Challenge {
        let nonce = Nonce::from(self.draw());
        let expires_at_ms = self.in_s(self.limits.challenge_ttl_s);
        self.challenges.insert(nonce, expires_at_ms);
        Challenge { nonce, expires_at_ms }
    }

    /// Opens a session. The challenge is used up either way.
    pub(super) fn login(&mut self, request: &LoginRequest) -> Outcome<Session> {
        let expires_at_ms = self.challenges.remove(&request.nonce);
        if expires_at_ms.is_none_or(|expires_at_ms| expires_at_ms <= self.now_ms) {
            return Err(refused(ErrorCode::Unauthenticated, "the challenge is over; ask for another"));
        }
        let fields: &[&[u8]] = &[self.relay_id.as_bytes(), request.device_id.as_bytes(), request.nonce.as_bytes()];
        let signed = |device: &Device| verify(&device.device_key, Domain::Login, fields, &request.signature);
        if !self.devices.get(&request.device_id).is_some_and(signed) {
            return Err(refused(ErrorCode::BadSignature, "the log-in is not signed by the device's key"));
        }
        let (token, expires_at_ms) = (Bytes::from(self.draw().as_slice()), self.in_s(self.limits.session_ttl_s));
        self.sessions.push(OpenSession { token: token.clone(), device: request.device_id, expires_at_ms });
        self.end_oldest_session(request);
        Ok(Session { token, expires_at_ms })
    }

    fn end_oldest_session(&mut self, request: &LoginRequest) {
        let is_own = |session: &OpenSession| session.device == request.device_id;
        let own = self.sessions.iter().filter(|session| is_own(session)).count() as u64;
        if own > self.limits.device_sessions_max
            && let Some(oldest) = self.sessions.iter().position(is_own)
        {
            self.sessions.remove(oldest);
        }
    }

    pub(super) fn logout(&mut self, token: &Bytes) -> Outcome<()> {
        self.caller(token)?;
        self.sessions.retain(|session| session.token != *token);
        Ok(())
    }

    /// Takes everything of an account away, and its devices out of all their groups.
    pub(super) fn delete_account(&mut self, account: &AccountId) {
        let of_account = self.devices.iter().filter(|(_, device)| device.account == *account);
        for id in of_account.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.unlist(&id);
        }
        self.accounts.remove(account);
    }

    fn unlist(&mut self, device: &DeviceId) {
        self.remove_from_groups(device);
        self.devices.remove(device);
        self.sessions.retain(|session| session.device != *device);
    }
}

fn bad_list(error: DeviceListError) -> Box<Problem> {
    refused(ErrorCode::BadDeviceList, &error.to_string())
}
