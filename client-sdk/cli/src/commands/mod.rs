//! The verbs, and what they share: opening, catching up, closing.
//!
//! Invariant: a client that was opened is shut down in order, whatever the command came to.

mod account;
mod block;
mod chat;
mod devices;
mod group;
mod history;
mod listen;
mod news;
mod search;
mod send;
mod signals;
mod sync;
mod trust;

use std::time::Duration;

use undertone::{Client, Connection};

use crate::{
    args::{Arguments, Command},
    error::Failure,
    output::Output,
    store::Place,
};

/// How long a command waits for what is waiting at the relay before it goes on.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How long shutting down may take. What it does not finish is done by the next command.
const CLOSE: Duration = Duration::from_secs(5);

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let place = Place::from_env(arguments.store)?;
    let output = Output::new(arguments.json);
    match arguments.command {
        Command::Register(register) => account::register(&place, &register, output).await,
        Command::Link(link) => devices::link(&place, link, output).await,
        Command::Devices(command) => {
            with_client(&place, async |client| devices::run(client, command, output).await).await
        }
        Command::RecoveryKey => {
            with_client(&place, async |client| devices::make_recovery_key(client, output).await).await
        }
        Command::Recover(recover) => devices::recover(&place, &recover, output).await,
        Command::SafetyNumber { user } => {
            with_client(&place, async |client| trust::safety_number(client, &user, output).await).await
        }
        Command::Verify { user, number } => {
            with_client(&place, async |client| trust::verify(client, &user, number, output).await).await
        }
        Command::Whoami => account::whoami(&place, output).await,
        Command::Group(command) => with_client(&place, async |client| group::run(client, command, output).await).await,
        Command::Send(send) => send::run(&place, &send, output).await,
        Command::Chat(chat) => with_client(&place, async |client| chat::run(client, &chat, output).await).await,
        Command::Listen(listen) => with_client(&place, async |client| listen::run(client, &listen, output).await).await,
        Command::History(history) => history::run(&place, &history, output).await,
        Command::Search(search) => search::run(&place, &search, output).await,
        Command::Block { user } => with_client(&place, async |client| block::block(client, &user, output).await).await,
        Command::Unblock { user } => {
            with_client(&place, async |client| block::unblock(client, &user, output).await).await
        }
        Command::Sync => with_client(&place, async |client| sync::run(client, output).await).await,
    }
}

/// Opens the store, works, and closes it.
async fn with_client(place: &Place, work: impl AsyncFnOnce(&Client) -> Result<(), Failure>) -> Result<(), Failure> {
    let client = place.open().await?;
    let done = work(&client).await;
    close(client, CLOSE).await;
    done
}

async fn close(client: Client, patience: Duration) {
    // Whatever is cut short here was written before, and goes on with the next command.
    drop(tokio::time::timeout(patience, client.shutdown()).await);
}

/// Waits until everything waiting at the relay is here, if the relay answers.
async fn catch_up(client: &Client, patience: Duration) -> Result<Connection, Failure> {
    let state = client.caught_up(patience).await;
    match lost_for_good(state) {
        Some(reason) => Err(reason),
        None => Ok(state),
    }
}

/// Catches up, and fails if the relay does not answer.
async fn connect(client: &Client) -> Result<(), Failure> {
    match catch_up(client, CATCH_UP).await? {
        Connection::Online | Connection::CatchingUp => Ok(()),
        _ => Err(unreachable(client)),
    }
}

fn unreachable(client: &Client) -> Failure {
    Failure::Unreachable(match client.meets_other_relay() {
        true => {
            "what answers at the relay's address is another relay than the one where this account is registered".into()
        }
        false => "the relay cannot be reached".into(),
    })
}

/// Why a connection will not come back while this process runs, if so.
fn lost_for_good(state: Connection) -> Option<Failure> {
    match state {
        Connection::Replaced => Some(Failure::Refused(
            "another process with a copy of this store has taken over the connection; use one copy only".into(),
        )),
        Connection::SignedOut => Some(Failure::Refused(
            "the relay does not know this device: its account was deleted, or has taken this device off".into(),
        )),
        _ => None,
    }
}
