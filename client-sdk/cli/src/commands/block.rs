//! `block` and `unblock`: whose requests and messages are not shown.

use undertone::Client;

use super::{CATCH_UP, catch_up};
use crate::{
    error::Failure,
    output::{Object, Output},
    resolve,
};

pub(super) async fn block(client: &Client, user: &str, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let account = resolve::account(client, user).await?;
    client.block(account.account_id).await?;
    output.tell(&Object::person(&account), || format!("blocked {}: nothing of theirs is shown", account.name()))
}

pub(super) async fn unblock(client: &Client, user: &str, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let account = resolve::account(client, user).await?;
    client.unblock(account.account_id).await?;
    output.tell(&Object::person(&account), || format!("{} is blocked no more", account.name()))
}
