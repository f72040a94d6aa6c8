//! `register` and `whoami`.

use undertone::Client;

use super::{CLOSE, close};
use crate::{
    args::Register,
    error::Failure,
    output::{Object, Output},
    store::Place,
};

pub(super) async fn register(place: &Place, register: &Register, output: Output) -> Result<(), Failure> {
    let client = place.register(register).await?;
    let told = tell(&client, output, "registered");
    close(client, CLOSE).await;
    told
}

pub(super) async fn whoami(place: &Place, output: Output) -> Result<(), Failure> {
    let client = place.open_offline().await?;
    tell(&client, output, "you are")
}

fn tell(client: &Client, output: Output, verb: &str) -> Result<(), Failure> {
    let (account, device) = (client.account(), client.device_id());
    output.tell(&Object::account(&account, device), || {
        let name = account.username.as_ref().map_or("without a username".to_owned(), ToString::to_string);
        format!("{verb} {name}\naccount {}\ndevice  {device}", account.account_id)
    })
}
