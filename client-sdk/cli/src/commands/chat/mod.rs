//! `chat`: what is typed is sent, what comes is shown, both at once.
//!
//! Invariant: an event is done with only after it was shown; a line that was read is in the outbox or was refused aloud.

mod input;
mod screen;

use std::{collections::HashSet, time::Duration};

use undertone::{Client, Connection, Conversation, ConversationId, Error, Event, MessageId, MessageStatus};

use self::{input::Line, screen::Screen};
use super::{CATCH_UP, catch_up, lost_for_good, news, signals::Signals};
use crate::{
    args,
    error::Failure,
    output::{Object, Output, hint, people},
    resolve,
};

/// How long a person who has ended the chat waits for what is still to be sent.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long the last events of what was sent may lag behind the outbox.
const LAG: Duration = Duration::from_secs(1);

/// A chat under way.
struct Chat<'a> {
    client: &'a Client,
    conversation: Conversation,
    output: Output,
    screen: Screen,
    /// What was sent here and has no outcome yet.
    unsettled: HashSet<MessageId>,
    /// Whether the connection was lost, so that its return is news.
    was_offline: bool,
}

/// Why it ended.
enum Ended {
    /// Everything was said.
    Input,
    /// A signal, or a person in a hurry.
    Told,
}

pub(super) async fn run(client: &Client, chat: &args::Chat, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    catch_up(client, CATCH_UP).await?;
    let (conversation, name) = resolve::conversation(client, &chat.with).await?;
    let members = match conversation.id() {
        ConversationId::Group(id) => {
            let group = client.group(id).summary().await?;
            if !group.active {
                return Err(Error::NotMember.into());
            }
            format!(": {}", people::names(&group.members))
        }
        ConversationId::Direct(_) => String::new(),
    };
    let (lines, screen) = screen::open(output, &name);
    if screen.is_terminal() {
        screen.print(&format!("{}{members}. /help lists commands; Ctrl-D ends.", people::clean_line(&name))).await?;
    }
    let mut chat = Chat { client, conversation, output, screen, unsettled: HashSet::new(), was_offline: false };
    let ended = chat.talk(lines, &mut signals).await;
    let done = client.events().done().await;
    chat.screen.close().await;
    let ended = ended?;
    done?;
    chat.say_goodbye(&ended, &mut signals).await
}

impl Chat<'_> {
    async fn talk(&mut self, mut lines: input::Lines, signals: &mut Signals) -> Result<Ended, Failure> {
        let events = self.client.events();
        let mut open = true;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.show(&event).await?,
                    None => return Ok(Ended::Told),
                },
                line = lines.recv(), if open => match line {
                    Some(Line::Text(text)) => self.take(text).await?,
                    Some(Line::Refused(reason)) => hint(&reason),
                    Some(Line::Stop) => return Ok(Ended::Told),
                    None if self.screen.is_terminal() => return Ok(Ended::Input),
                    None => open = false,
                },
                sent = self.all_sent(), if !open => return sent.map(|()| Ended::Input),
                () = signals.next() => return Ok(Ended::Told),
            }
        }
    }

    async fn show(&mut self, event: &Event) -> Result<(), Failure> {
        if let Event::MessageStatus { message_id, status, .. } = event
            && *status != MessageStatus::Queued
        {
            self.unsettled.remove(message_id);
        }
        if self.output.is_json() {
            if let Some(object) = Object::event(event) {
                self.output.tell(&object, String::new)?;
            }
        } else if self.is_news(event)
            && let Some(text) = news::of(self.client, event, Some(self.conversation.id())).await
        {
            self.screen.print(&text).await?;
        }
        match event {
            Event::Connection(state) => lost_for_good(*state).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// Being online is what a chat begins with.
    fn is_news(&mut self, event: &Event) -> bool {
        match event {
            Event::Connection(Connection::Online) => std::mem::take(&mut self.was_offline),
            Event::Connection(Connection::Offline) => {
                self.was_offline = true;
                true
            }
            _ => true,
        }
    }

    /// A line of input: a command, if a person typed it, or a message.
    async fn take(&mut self, line: String) -> Result<(), Failure> {
        if line.trim().is_empty() {
            return Ok(());
        }
        match line.strip_prefix('/').filter(|_| self.screen.is_terminal()) {
            None => self.send(line).await,
            Some(text) if text.starts_with('/') => self.send(text.to_owned()).await,
            Some("members") => {
                let here = match self.conversation.id() {
                    ConversationId::Group(id) => people::names(&self.client.group(id).summary().await?.members),
                    ConversationId::Direct(_) => self.conversation.name().await?,
                };
                self.screen.print(&format!("* {here}")).await
            }
            Some("help") => {
                self.screen
                    .print("* /members shows who is here, /quit ends; // at the start of a line sends a slash")
                    .await
            }
            Some(_) => {
                self.screen.print("* there is no such command; /help lists them, // at the start sends a slash").await
            }
        }
    }

    async fn send(&mut self, text: String) -> Result<(), Failure> {
        match self.conversation.send(text).await {
            Ok(message_id) => {
                self.unsettled.insert(message_id);
                Ok(())
            }
            // Of this line only; the next may be right.
            Err(Error::Invalid(reason)) => {
                hint(&reason);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until all that was to be sent was, and its outcome shown.
    async fn all_sent(&self) -> Result<(), Failure> {
        while self.client.outbox_empty(Duration::from_secs(60)).await? > 0 {}
        if !self.unsettled.is_empty() {
            tokio::time::sleep(LAG).await;
        }
        Ok(())
    }

    /// A person waits for what is still to be sent, for a while, and is told what is left.
    async fn say_goodbye(&self, ended: &Ended, signals: &mut Signals) -> Result<(), Failure> {
        let patience = if matches!(ended, Ended::Input) { GOODBYE } else { Duration::ZERO };
        let left = tokio::select! {
            left = self.client.outbox_empty(patience) => left?,
            () = signals.next() => self.client.outbox_empty(Duration::ZERO).await?,
        };
        if left > 0 {
            hint(&format!("{left} still to be sent; it is tried again with the next command"));
        }
        Ok(())
    }
}
