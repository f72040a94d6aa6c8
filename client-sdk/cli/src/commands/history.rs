//! `history`: what was said, from the store alone.

use undertone::{Client, Conversation, Message, MessageId};

use crate::{
    args::History,
    error::Failure,
    output::{Object, Output, people},
    resolve,
    store::Place,
};

/// So many messages are read at once.
const PAGE: usize = 1_000;

pub(super) async fn run(place: &Place, history: &History, output: Output) -> Result<(), Failure> {
    let client: Client = place.open_offline().await?;
    let conversation = resolve::known_conversation(&client, &history.of).await?;
    let limit = usize::try_from(history.limit).unwrap_or(usize::MAX);
    let messages = newest(&conversation, limit, history.before).await?;
    if messages.is_empty() {
        output.say("no messages")?;
    }
    messages.iter().try_for_each(|message| output.tell(&Object::message(message), || people::history_line(message)))
}

/// The newest `limit` messages, or those before `before`, oldest first.
async fn newest(
    conversation: &Conversation,
    limit: usize,
    mut before: Option<MessageId>,
) -> Result<Vec<Message>, Failure> {
    let mut pages = Vec::new();
    let mut left = limit;
    while left > 0 {
        let page = conversation.history(left.min(PAGE), before).await?;
        let Some(first) = page.first() else { break };
        before = Some(first.message_id);
        left = left.saturating_sub(page.len());
        pages.push(page);
    }
    Ok(pages.into_iter().rev().flatten().collect())
}
