//! Finding messages by their words.
//!
//! Invariant: the words of exactly those texts are here that stand in the history, each at the position of its message.

use rusqlite::{Connection, params};

use super::{
    StoreError, Tx,
    messages::{self, MessageRow, message_from},
};
use crate::{
    conversation_id::ConversationId,
    message::{Body, Content},
};

/// Words that a message must have: each that begins with one of them will do. Upper case, accents and punctuation do not
/// matter.
#[derive(Debug, Clone)]
pub(crate) struct Words(String);

const ADD: &str = "INSERT INTO words (rowid, text) VALUES (?1, ?2)";

/// So many words are searched for at most: each costs a look at all that begin with it.
pub(crate) const WORDS_MAX: usize = 16;

impl Words {
    /// The words in what somebody has typed; `None` if there are none, or too many.
    pub(crate) fn new(typed: &str) -> Option<Self> {
        let parts = typed.split(|char: char| char.is_whitespace() || char.is_control());
        let words = parts.filter(|part| part.contains(char::is_alphanumeric));
        // In quotes nothing is taken for more than words: where one ends and the next begins within them is the index's to say.
        let terms: Vec<_> = words.map(|word| format!("\"{}\"*", word.replace('"', "\"\""))).collect();
        (1..=WORDS_MAX).contains(&terms.len()).then(|| Self(terms.join(" ")))
    }
}

impl Tx<'_> {
    /// The messages that have these words, in one conversation or all, the newest first.
    pub(crate) fn search(
        &self,
        words: &Words,
        within: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let select = format!(
            "SELECT {} FROM words JOIN messages ON messages.position = words.rowid
             WHERE words MATCH ?1 AND (?2 IS NULL OR conversation = ?2) ORDER BY words.rowid DESC LIMIT ?3",
            messages::COLUMNS
        );
        let within = within.as_ref().map(|within| within.as_bytes().as_slice());
        let mut select = self.prepare_cached(&select)?;
        let found = select.query_map(params![words.0, within, limit], message_from)?.collect::<Result<_, _>>()?;
        Ok(found)
    }

    /// A message stands at a position.
    pub(super) fn add_words(&self, position: i64, content: &[u8]) -> Result<(), StoreError> {
        if let Some(text) = text_of(content) {
            self.execute(ADD, params![position, text])?;
        }
        Ok(())
    }

    /// The message that stood at a position stands there no more.
    pub(super) fn forget_words(&self, position: i64, content: &[u8]) -> Result<(), StoreError> {
        const FORGET: &str = "INSERT INTO words (words, rowid, text) VALUES ('delete', ?1, ?2)";
        if let Some(text) = text_of(content) {
            self.execute(FORGET, params![position, text])?;
        }
        Ok(())
    }
}

/// Fills the index from a history that was written before there was one.
pub(super) fn fill(connection: &Connection) -> Result<(), StoreError> {
    let mut select = connection.prepare("SELECT position, content FROM messages")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(text) = text_of(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?) {
            connection.prepare_cached(ADD)?.execute(params![row.get::<_, i64>(0)?, text])?;
        }
    }
    Ok(())
}

/// What is found of a content. Where a later version finds more in the same bytes, its migration fills the index anew.
fn text_of(content: &[u8]) -> Option<String> {
    match Content::decode(content)?.body {
        Body::Text { text } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use undertone_wire::{AccountId, GroupId, MessageId, PublicKey};

    use super::*;
    use crate::{
        Error, MessageStatus, StoreKey,
        crypto::{Suite, group::RejoinKey},
        store::{GroupRow, GroupState, Store},
    };

    const TEXT: &str = "xylophone";

    fn group() -> GroupId {
        GroupId::from_random([1; 16])
    }

    fn message_id() -> MessageId {
        MessageId::from_parts(1, [1; 10])
    }

    /// A store with a message in it that has failed.
    async fn store() -> (Store, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let written = store.with_tx(|tx| {
            let rejoin_key = RejoinKey::from_bytes(vec![1; 32]);
            let (id, state) = (group(), GroupState::Active);
            tx.save_group(&GroupRow {
                id,
                live: id,
                suite: Suite::Classic,
                name: "trip".into(),
                state,
                commit_seq: 0,
                rejoin_key,
            })?;
            let body = Body::Text { text: TEXT.into() };
            let row = MessageRow {
                conversation: id.into(),
                content_id: message_id(),
                sender: AccountId::from_identity_key(&PublicKey::from([1; 32])),
                sent_at_ms: 1,
                status: MessageStatus::Queued,
                content: Content { id: message_id(), sent_at_ms: 1, list_version: 1, body }.encode(),
            };
            tx.add_message(&row)?;
            tx.execute("UPDATE messages SET status = 'failed'", [])?;
            Ok::<_, Error>(())
        });
        written.await.unwrap();
        (store, folder)
    }

    async fn is_found(store: &Store) -> bool {
        let words = Words::new("XYLO").unwrap();
        let found = store.with_tx(move |tx| Ok::<_, Error>(tx.search(&words, None, 10)?));
        !found.await.unwrap().is_empty()
    }

    /// Whether the index holds the word, found or not.
    async fn is_written(store: &Store) -> bool {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM words_data WHERE instr(block, CAST('ylophon' AS BLOB)) > 0)";
        let written = store.with_tx(|tx| {
            tx.query_row(SELECT, [], |row| row.get(0)).map_err(|error| Error::from(StoreError::from(error)))
        });
        written.await.unwrap()
    }

    #[tokio::test]
    async fn nothing_is_left_of_the_words_of_a_message_that_is_forgotten() {
        let (store, _folder) = store().await;
        assert!(is_found(&store).await && is_written(&store).await);
        let forgotten = store.with_tx(|tx| Ok::<_, Error>(tx.forget_failed(group().into(), message_id())?));
        assert!(forgotten.await.unwrap());
        assert!(!is_found(&store).await && !is_written(&store).await);
    }

    #[tokio::test]
    async fn a_history_from_before_there_was_an_index_is_found() {
        let (store, _folder) = store().await;
        let emptied = store.with_tx(|tx| {
            tx.execute("INSERT INTO words (words) VALUES ('delete-all')", [])?;
            Ok::<_, Error>(())
        });
        emptied.await.unwrap();
        assert!(!is_found(&store).await);
        store.with_tx(|tx| Ok::<_, Error>(fill(tx)?)).await.unwrap();
        assert!(is_found(&store).await);
    }

    #[test]
    fn what_is_typed_is_words_whatever_it_looks_like() {
        let words = |typed| Words::new(typed).map(|words| words.0);
        assert_eq!(words("snow"), Some("\"snow\"*".into()));
        assert_eq!(words(" New\u{0}snow, 20cm! "), Some("\"New\"* \"snow,\"* \"20cm!\"*".into()));
        assert_eq!(words("a\" OR text:x* NEAR("), Some("\"a\"\"\"* \"OR\"* \"text:x*\"* \"NEAR(\"*".into()));
        for none in ["", "  ", "?!", "\"\"", "☃", &"a ".repeat(17)] {
            assert_eq!(words(none), None, "{none}");
        }
    }
}
