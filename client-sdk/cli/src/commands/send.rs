//! `send`: one message. With the relay away it is queued, and the command returns within five seconds.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use tokio::time::Instant;
use undertone::{Client, Connection, Error, MessageStatus, SendFailure};

use super::{catch_up, close};
use crate::{
    args::Send,
    error::Failure,
    output::{Object, Output, hint, people},
    resolve,
    store::Place,
};

/// All of the command, with a margin for what comes after the waiting.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// Of that, what is left for closing in any case.
const CLOSE_MIN: Duration = Duration::from_millis(300);

/// What is read from stdin at most; more than a message can hold.
const STDIN_BYTES_MAX: u64 = 1024 * 1024;

pub(super) async fn run(place: &Place, send: &Send, output: Output) -> Result<(), Failure> {
    let text = match send.text.as_str() {
        "-" => from_stdin()?,
        text => text.to_owned(),
    };
    let until = Instant::now() + PATIENCE;
    let client = place.open().await?;
    let done = deliver(&client, send, text, until, output).await;
    close(client, left(until).max(CLOSE_MIN)).await;
    done
}

async fn deliver(client: &Client, send: &Send, text: String, until: Instant, output: Output) -> Result<(), Failure> {
    // Half the time for receiving, half for sending.
    let state = catch_up(client, left(until) / 2).await?;
    let (conversation, name) = resolve::conversation(client, &send.to).await?;
    let message_id = conversation.send(text).await?;
    let patience = if state == Connection::Offline { Duration::ZERO } else { left(until) };
    match client.message_settled(message_id, patience).await? {
        MessageStatus::Failed(why) => Err(why_not(why)),
        status => {
            // Whether somebody has it already is not what was asked.
            let status = if status.is_sent() { MessageStatus::Sent } else { status };
            output.tell(&Object::sent(message_id, status), || {
                format!("{} to {}", status.as_str(), people::clean_line(&name))
            })?;
            if status == MessageStatus::Queued {
                hint("the relay has not answered; the message goes out with the next command");
            }
            Ok(())
        }
    }
}

fn why_not(why: SendFailure) -> Failure {
    let reason = match why {
        SendFailure::NotMember => Error::NotMember.to_string(),
        SendFailure::GroupStuck => Error::GroupStuck.to_string(),
        SendFailure::Untrusted => "what the relay says of the receiver does not verify".to_owned(),
        _ => "the relay refused it".to_owned(),
    };
    Failure::Refused(format!("the message was not sent: {reason}"))
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(STDIN_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Refused(format!("stdin cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::Refused("stdin is not text in UTF-8".into()))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}
