//! Olm sessions with other devices, and to which keys messages for those are sealed.
//!
//! Invariant: a session is stored as it is after what was encrypted or decrypted with it, in the transaction of that. A
//! sealing key only ever gives way to a newer one.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{DeviceId, Encoding, SealingKey, X25519Key};
use zeroize::Zeroizing;

use super::{StoreError, Tx, bytes, cbor};
use crate::crypto::{Member, session::Session};

/// So many sessions with a device are kept beside the one that it used last.
const SESSIONS_MAX: u32 = 8;

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// A session, and what is known of it.
pub(crate) struct SessionRow {
    pub(crate) with: Member,
    /// The identity key at the other end.
    pub(crate) olm_key: X25519Key,
    pub(crate) generation: u64,
    pub(crate) read_only: bool,
    pub(crate) session: Session,
}

/// The sealing key of another device, and when it was asked for.
pub(crate) struct Seal {
    pub(crate) sealing_key: SealingKey,
    pub(crate) fetched_ms: u64,
}

impl Tx<'_> {
    /// The sessions with a device that has this identity key, the one to be used first.
    pub(crate) fn sessions(&self, with: Member, olm_key: X25519Key) -> Result<Vec<SessionRow>, StoreError> {
        const SELECT: &str = "SELECT generation, read_only, pickle FROM sessions
            WHERE device = ?1 AND account = ?2 AND olm_key = ?3 ORDER BY read_only, generation DESC, id";
        let mut select = self.prepare_cached(SELECT)?;
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, Zeroizing::new(row.get::<_, Vec<u8>>(2)?)));
        let key = params![with.device.as_bytes(), with.account.as_bytes(), olm_key.as_bytes()];
        let stored = select.query_map(key, row)?.collect::<Result<Vec<_>, _>>()?;
        let sessions = stored.into_iter().map(|(generation, read_only, pickle)| {
            let session = Session::from_pickle(&pickle)?;
            Ok(SessionRow { with, olm_key, generation, read_only, session })
        });
        sessions.collect()
    }

    /// Whether there is a session with a device to write with.
    pub(crate) fn has_session(&self, with: Member, olm_key: X25519Key) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM sessions
            WHERE device = ?1 AND account = ?2 AND olm_key = ?3 AND read_only = 0)";
        let key = params![with.device.as_bytes(), with.account.as_bytes(), olm_key.as_bytes()];
        Ok(self.query_row(SELECT, key, |row| row.get(0))?)
    }

    /// Stores a session as it is now.
    pub(crate) fn save_session(&self, row: &SessionRow) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO sessions (device, id, account, olm_key, generation, read_only, pickle)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            ON CONFLICT (account, device, id) DO UPDATE SET generation = ?5, read_only = ?6, pickle = ?7";
        self.execute(
            UPSERT,
            params![
                row.with.device.as_bytes(),
                row.session.id(),
                row.with.account.as_bytes(),
                row.olm_key.as_bytes(),
                row.generation,
                row.read_only,
                *row.session.pickle(),
            ],
        )?;
        Ok(())
    }

    /// The other end has this session, and uses it from now on: those that would be used after it are over.
    pub(crate) fn settle_on(&self, with: Member, id: &str) -> Result<(), StoreError> {
        const DELETE: &str = "DELETE FROM sessions
            WHERE account = ?1 AND device = ?2 AND id <> ?3 AND (read_only, -generation, id) >
            (SELECT read_only, -generation, id FROM sessions WHERE account = ?1 AND device = ?2 AND id = ?3)";
        self.execute(DELETE, params![with.account.as_bytes(), with.device.as_bytes(), id])?;
        // Who begins others all the time has no more than a few.
        const FEW: &str = "DELETE FROM sessions WHERE account = ?1 AND device = ?2 AND id <> ?3 AND id NOT IN
            (SELECT id FROM sessions WHERE account = ?1 AND device = ?2
             ORDER BY read_only, generation DESC, id LIMIT ?4)";
        self.execute(FEW, params![with.account.as_bytes(), with.device.as_bytes(), id, SESSIONS_MAX])?;
        Ok(())
    }

    /// Forgets the sessions of an account's devices but those that are listed.
    pub(crate) fn forget_sessions_but(&self, of: &[Member]) -> Result<(), StoreError> {
        let Some(account) = of.first().map(|one| one.account) else { return Ok(()) };
        const SELECT: &str = "SELECT device FROM sessions WHERE account = ?1
            UNION SELECT device FROM seals WHERE account = ?1";
        let mut select = self.prepare_cached(SELECT)?;
        let devices: Vec<DeviceId> =
            select.query_map([account.as_bytes()], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        for device in devices.iter().filter(|device| !of.iter().any(|one| one.device == **device)) {
            let key = [account.as_bytes(), device.as_bytes()];
            for table in ["sessions", "seals", "written", "healings"] {
                self.execute(&format!("DELETE FROM {table} WHERE account = ?1 AND device = ?2"), key)?;
            }
        }
        Ok(())
    }

    /// The store was set back: what is encrypted with these sessions would be encrypted as something else was before.
    /// What was encrypted and not confirmed is encrypted anew.
    pub(crate) fn only_read_sessions(&self, now_ms: u64) -> Result<(), StoreError> {
        const START_OVER: &str = "UPDATE outbox SET state = 'waiting', message_id = NULL, request = NULL
            WHERE state = 'posted' AND conversation NOT IN (SELECT id FROM groups)";
        self.execute("UPDATE sessions SET read_only = 1", [])?;
        self.execute("UPDATE profile SET generation_floor = max(generation_floor, ?1)", [now_ms / HOUR_MS])?;
        self.execute(START_OVER, [])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The sessions with a device are broken: the next message to it begins another.
    pub(crate) fn only_read_sessions_with(&self, with: Member) -> Result<(), StoreError> {
        let key = [with.account.as_bytes(), with.device.as_bytes()];
        self.execute("UPDATE sessions SET read_only = 1 WHERE account = ?1 AND device = ?2", key)?;
        Ok(())
    }

    /// The least generation of a session that begins now: above those of sessions that are broken or were forgotten, of which
    /// the other end may still know.
    pub(crate) fn generation_floor(&self, with: Member) -> Result<u64, StoreError> {
        let floor: u64 = self.query_row("SELECT generation_floor FROM profile", [], |row| row.get(0))?;
        Ok(self.healing(with)?.map_or(floor, |last| floor.max(last.began_ms / HOUR_MS)))
    }

    /// A session began with the fallback prekey.
    pub(crate) fn note_begun_by_fallback(&self, session: &str, prekey: X25519Key) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO begun_by_fallback (session, prekey) VALUES (?1, ?2)";
        self.execute(INSERT, params![session, prekey.as_bytes()])?;
        Ok(())
    }

    /// Whether a session has begun with a fallback prekey that still lives.
    pub(crate) fn has_begun_by_fallback(&self, session: &str) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM begun_by_fallback WHERE session = ?1)";
        Ok(self.query_row(SELECT, [session], |row| row.get(0))?)
    }

    /// To which key messages for a device are sealed, if its life does not end before that time of the relay's.
    pub(crate) fn seal(&self, of: Member, relay_now_ms: u64) -> Result<Option<Seal>, StoreError> {
        const SELECT: &str = "SELECT sealing_key, fetched_ms FROM seals
            WHERE account = ?1 AND device = ?2 AND not_after_ms > ?3";
        let seal = |row: &Row<'_>| Ok(Seal { sealing_key: cbor(row, 0)?, fetched_ms: row.get(1)? });
        Ok(self
            .query_row(SELECT, params![of.account.as_bytes(), of.device.as_bytes(), relay_now_ms], seal)
            .optional()?)
    }

    /// Remembers a device's sealing key, which was verified. `false` if one was seen before that is newer.
    pub(crate) fn save_seal(&self, of: Member, key: &SealingKey, now_ms: u64) -> Result<bool, StoreError> {
        const UPSERT: &str = "INSERT INTO seals (account, device, sealing_key, not_after_ms, fetched_ms)
            VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (account, device) DO UPDATE SET sealing_key = ?3, not_after_ms = ?4, fetched_ms = ?5
            WHERE not_after_ms <= ?4";
        let (account, device, encoded) = (of.account.as_bytes(), of.device.as_bytes(), Encoding::Cbor.encode(key));
        Ok(self.execute(UPSERT, params![account, device, encoded, key.not_after_ms, now_ms])? > 0)
    }
}
