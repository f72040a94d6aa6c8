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
    let told = tell(&client, output, "registered").await;
    close(client, CLOSE).await;
    told
}

pub(super) async fn whoami(place: &Place, output: Output) -> Result<(), Failure> {
    let client = place.open_offline().await?;
    let told = tell(&client, output, "you are").await;
    close(client, CLOSE).await;
    told
}

pub(super) async fn tell(client: &Client, output: Output, verb: &str) -> Result<(), Failure> {
    let (account, device) = (client.account(), client.device_id());
    let fingerprint = client.fingerprint().await?;
    output.tell(&Object::account(&account, device, fingerprint.digits()), || {
        let name = account.username.as_ref().map_or("without a username".to_owned(), ToString::to_string);
        format!("{verb} {name}\naccount     {}\ndevice      {device}\nfingerprint {fingerprint}", account.account_id)
    })
}
