//! A bot that answers every message with the same text. It needs a relay on this machine:
//!
//! ```sh
//! cargo run -p undertone-server
//! cargo run -p undertone --example echo
//! ```
//!
//! Then add it to a group: `undertone group create "echo chamber" --add echo`.

use std::env;

use undertone::{Client, Error, Event, StoreKey};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let relay = env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7611".into());
    // A real bot keeps its passphrase where its platform keeps secrets.
    let key = StoreKey::Passphrase("an example, and no secret".into());
    let store = "echo-store";
    let client = match Client::open(store, key.clone()).await {
        Err(Error::NotRegistered) => Client::builder(relay).store(store, key).register("echo").await?,
        opened => opened?,
    };
    println!("{} is listening; stop with Ctrl-C", client.account().name());
    let events = client.events();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::MessageReceived(message)) => {
                    client.conversation(message.conversation).send(message.text()).await?;
                }
                Some(event) => println!("{event:?}"),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    client.shutdown().await;
    Ok(())
}
