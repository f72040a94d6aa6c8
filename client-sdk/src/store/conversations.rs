//! Conversations: what groups and direct ones have in common, so that messages can stand in either.

use undertone_wire::AccountId;

use super::{StoreError, Tx, bytes};
use crate::conversation_id::ConversationId;

impl Tx<'_> {
    /// There is a conversation, if there was not before.
    pub(crate) fn add_conversation(&self, id: ConversationId) -> Result<(), StoreError> {
        self.execute("INSERT INTO conversations (id) VALUES (?1) ON CONFLICT DO NOTHING", [id.as_bytes()])?;
        Ok(())
    }

    /// The direct conversations, each with whether it is requested, by the name of the account.
    pub(crate) fn directs(&self) -> Result<Vec<(AccountId, bool)>, StoreError> {
        const SELECT: &str = "SELECT conversations.id, requested_by IS NOT NULL FROM conversations
            LEFT JOIN contacts ON contacts.account = conversations.id
            WHERE conversations.id NOT IN (SELECT id FROM groups) ORDER BY username IS NULL, username, conversations.id";
        let mut select = self.prepare_cached(SELECT)?;
        let directs = select.query_map([], |row| Ok((bytes(row, 0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(directs)
    }

    /// Whether there is a conversation.
    pub(crate) fn has_conversation(&self, id: ConversationId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM conversations WHERE id = ?1)";
        Ok(self.query_row(SELECT, [id.as_bytes()], |row| row.get(0))?)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use crate::store::MIGRATIONS;

    #[test]
    fn the_groups_of_an_older_store_are_conversations() {
        let store = Connection::open_in_memory().unwrap();
        store.pragma_update(None, "foreign_keys", "ON").unwrap();
        let (before, after) = MIGRATIONS.split_at(11);
        before.iter().for_each(|migration| store.execute_batch(migration).unwrap());
        const WRITE: &str = "
            INSERT INTO groups (id, name, state, commit_seq, rejoin_key, live, requested_by, read_to)
                VALUES (x'01', 'trip', 'active', 3, x'02', x'03', x'04', 5);
            INSERT INTO members (group_id, account, device) VALUES (x'01', x'04', x'05');
            INSERT INTO messages (group_id, content_id, sender, sent_at_ms, status, content)
                VALUES (x'01', x'06', x'04', 7, 'received', x'08');
            INSERT INTO outbox (group_id, task, state, blocks) VALUES (x'01', x'09', 'waiting', 1);
            INSERT INTO receipts (group_id, device, delivered, read) VALUES (x'01', x'05', 1, 1);";
        store.execute_batch(WRITE).unwrap();
        after.iter().for_each(|migration| store.execute_batch(migration).unwrap());

        let count = |from: &str| -> i64 {
            store.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count("conversations WHERE id = x'01' AND requested_by = x'04' AND read_to = 5"), 1);
        assert_eq!(count("groups WHERE id = x'01' AND name = 'trip' AND commit_seq = 3 AND live = x'03'"), 1);
        for table in ["messages", "outbox", "receipts"] {
            assert_eq!(count(&format!("{table} WHERE conversation = x'01'")), 1, "{table}");
        }
        assert_eq!(count("pragma_foreign_key_check"), 0);
        const DIRECT: &str =
            "INSERT INTO outbox (conversation, task, state, blocks) VALUES (x'0a', x'09', 'waiting', 0)";
        assert!(store.execute_batch(DIRECT).is_err(), "there is no such conversation");
        store.execute_batch("INSERT INTO conversations (id) VALUES (x'0a')").unwrap();
        store.execute_batch(DIRECT).unwrap();
    }
}
