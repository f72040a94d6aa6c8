//! What this account's devices are called, and what a new one of them is given.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::DeviceId;

use super::{GroupRow, GroupState, StoreError, Tx, bytes};
use crate::crypto::link::{HandedGroup, Handover};

impl Tx<'_> {
    /// What one of this account's devices is called, if that was ever said.
    pub(crate) fn device_name(&self, device: DeviceId) -> Result<Option<String>, StoreError> {
        const SELECT: &str = "SELECT name FROM device_names WHERE device = ?1";
        Ok(self.query_row(SELECT, [device.as_bytes()], |row| row.get(0)).optional()?)
    }

    /// All names of this account's devices.
    pub(crate) fn device_names(&self) -> Result<Vec<(DeviceId, String)>, StoreError> {
        let mut select = self.prepare_cached("SELECT device, name FROM device_names ORDER BY device")?;
        let names = select.query_map([], |row| Ok((bytes(row, 0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(names)
    }

    /// One of this account's devices is called so.
    pub(crate) fn name_device(&self, device: DeviceId, name: &str) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO device_names (device, name) VALUES (?1, ?2)
            ON CONFLICT (device) DO UPDATE SET name = ?2";
        self.execute(UPSERT, params![device.as_bytes(), name])?;
        Ok(())
    }

    /// The groups in which this device is a member by its user's will, as another device of the account needs to know them.
    pub(crate) fn handed_groups(&self) -> Result<Vec<HandedGroup>, StoreError> {
        let mut handed = Vec::new();
        for group in self.groups()? {
            let GroupRow { id, live, suite, name, state, commit_seq, rejoin_key } = group;
            if !state.is_over() && self.requested_by(id)?.is_none() {
                handed.push(HandedGroup { id, live, suite, name, commit_seq, rejoin_key });
            }
        }
        Ok(handed)
    }

    /// What was there of an attempt to be a device of an account goes.
    pub(crate) fn forget_all(&self) -> Result<(), StoreError> {
        const FORGET: &str = "DELETE FROM groups; DELETE FROM conversations; DELETE FROM contacts;
            DELETE FROM standings; DELETE FROM device_names";
        Ok(self.execute_batch(FORGET)?)
    }

    /// Begins the store of a new device with what another one has handed over.
    pub(crate) fn begin_with(&self, handover: Handover) -> Result<(), StoreError> {
        self.forget_all()?;
        for account in &handover.contacts {
            let verified = account.device_list.verify(&account.account_id);
            let list = verified.map_err(|error| StoreError::Corrupt(error.to_string()))?;
            self.save_contact(account, &list)?;
        }
        for (account, blocked) in handover.standings {
            let said = if blocked { super::Standing::Blocked } else { super::Standing::Known };
            self.set_standing(account, said)?;
        }
        for said in &handover.trust {
            self.set_trust(said)?;
        }
        for group in handover.groups {
            let HandedGroup { id, live, suite, name, commit_seq, rejoin_key } = group;
            let state = GroupState::Active;
            // Without MLS state: the engine comes back into it, as into one that was lost.
            self.save_group(&GroupRow { id, live, suite, name, state, commit_seq, rejoin_key })?;
        }
        for account in handover.directs {
            self.add_conversation(account.into())?;
        }
        for (device, name) in handover.names {
            self.name_device(device, &name)?;
        }
        Ok(())
    }
}
