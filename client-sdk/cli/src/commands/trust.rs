//! `safety-number` and `verify`.

use undertone::{Client, SafetyNumber};

use super::{CATCH_UP, catch_up};
use crate::{
    error::Failure,
    output::{Object, Output, qr},
    resolve,
};

pub(super) async fn safety_number(client: &Client, user: &str, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let account = resolve::account(client, user).await?;
    let number = client.safety_number(account.account_id).await?;
    let said = if client.is_verified(account.account_id).await? { "you have compared it" } else { "not compared yet" };
    output.tell(&Object::SafetyNumber { safety_number: number.digits().to_owned() }, || {
        format!("{}\n{number}\nwith {}; {said}", qr::code(number.digits()), account.name())
    })
}

pub(super) async fn verify(
    client: &Client,
    user: &str,
    compared: Option<SafetyNumber>,
    output: Output,
) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let account = resolve::account(client, user).await?;
    let compared = match compared {
        Some(compared) => compared,
        None => client.safety_number(account.account_id).await?,
    };
    client.verify(account.account_id, &compared).await?;
    output.tell(&Object::person(&account), || format!("compared with {}", account.name()))
}
