//! `link`, `link approve`, `devices list`, `devices remove`, `recovery-key` and `recover`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use undertone::{Approval, Client, Device, DeviceId};
use zeroize::Zeroizing;

use super::{CLOSE, close, connect};
use crate::{
    args::{DevicesCommand, Link, LinkCommand, Recover},
    error::Failure,
    output::{Object, Output, hint, people, qr},
    store::Place,
};

/// A recovery key is much shorter.
const SECRET_BYTES_MAX: u64 = 1_024;

pub(super) async fn link(place: &Place, link: Link, output: Output) -> Result<(), Failure> {
    if let Some(LinkCommand::Approve { code }) = link.approve {
        return super::with_client(place, async |client| approve(client, &code, output).await).await;
    }
    let linking = place.link(&link).await?;
    let code = linking.code();
    output
        .tell(&Object::Code { code: code.clone() }, || format!("{}\n{}", qr::code(&code), people::in_fours(&code)))?;
    output.say("on a device of the account: undertone link approve CODE")?;
    let approval = linking.approved().await?;
    if !is_right(&approval, link.account.as_deref(), output)? {
        approval.decline().await?;
        return Err(Failure::Refused("this device was not linked: it is another account".into()));
    }
    let client = approval.join().await?;
    let told = super::account::tell(&client, output, "this is a device now of").await;
    close(client, CLOSE).await;
    told
}

/// Whether it is the account that is wanted: the one that was named, or by the word of who sits before it.
fn is_right(approval: &Approval, wanted: Option<&str>, output: Output) -> Result<bool, Failure> {
    let (account, fingerprint) = (approval.account(), approval.fingerprint());
    if let Some(wanted) = wanted {
        // Not by its name, which is what the other device says.
        return Ok(account.account_id.to_string() == wanted || fingerprint.digits() == wanted.replace(' ', ""));
    }
    output.say(&format!(
        "the account of {} ({})\nfingerprint {fingerprint}: undertone whoami shows it there",
        account.name(),
        account.account_id
    ))?;
    if output.is_json() || !io::stdin().is_terminal() {
        return Ok(true);
    }
    output.say("make this a device of it? [y/N]")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn approve(client: &Client, code: &str, output: Output) -> Result<(), Failure> {
    connect(client).await?;
    output.say(&format!("this account's fingerprint is {}", client.fingerprint().await?))?;
    let device = client.approve_link(code).await?;
    tell(&device, output)
}

pub(super) async fn run(client: &Client, command: DevicesCommand, output: Output) -> Result<(), Failure> {
    match command {
        DevicesCommand::List => {
            connect(client).await?;
            client.devices().await?.iter().try_for_each(|device| tell(device, output))
        }
        DevicesCommand::Remove { id, stolen: false, .. } => remove(client, id, output).await,
        DevicesCommand::Remove { id, recovery_key, .. } => remove_stolen(client, id, recovery_key, output).await,
    }
}

async fn remove(client: &Client, id: DeviceId, output: Output) -> Result<(), Failure> {
    connect(client).await?;
    client.remove_device(id).await?;
    output.tell(&Object::device(id), || format!("{id} is no device of this account any more"))?;
    hint("it keeps what it had, and the account's identity key: if it was stolen, take it off with --stolen instead");
    Ok(())
}

async fn remove_stolen(
    client: &Client,
    id: DeviceId,
    recovery_key: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let recovery_key = recovery_key.map(|key| secret(&key)).transpose()?;
    connect(client).await?;
    let others: Vec<_> = client.devices().await?.into_iter().filter(|one| one.device_id != id && !one.this).collect();
    let keeping: Vec<_> = others.iter().map(|one| one.device_id).collect();
    client.remove_stolen_device(id, &keeping, recovery_key.as_deref().map(String::as_str)).await?;
    output.tell(&Object::device(id), || {
        format!("{id} is no device of this account any more, and the account has a new identity key")
    })?;
    for other in &others {
        hint(&format!("this device has it too; if it is not yours, take it off as well: {}", people::device(other)));
    }
    if recovery_key.is_none() {
        hint("whoever has the device could have done the same; undertone recovery-key makes a key that prevents that");
    }
    Ok(())
}

pub(super) async fn make_recovery_key(client: &Client, output: Output) -> Result<(), Failure> {
    connect(client).await?;
    let recovery_key = client.new_recovery_key()?;
    // Shown first: whatever happens then, nobody is left with a key that was never seen.
    output.tell(&Object::RecoveryKey { recovery_key: recovery_key.clone() }, || recovery_key.clone())?;
    let set = client.set_recovery_key(&recovery_key).await;
    set.map_err(|error| Failure::from(error).about("the key that was shown may not hold"))?;
    hint("write it down and keep it away from your devices: it is not shown again, and whoever has it has the account");
    Ok(())
}

pub(super) async fn recover(place: &Place, recover: &Recover, output: Output) -> Result<(), Failure> {
    let client = place.recover(recover, &secret(&recover.key)?).await?;
    let told = super::account::tell(&client, output, "recovered").await;
    close(client, CLOSE).await;
    told
}

/// What should not stand on a command line that others may see.
fn secret(given: &str) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(given.to_owned());
    if given == "-" {
        text.clear();
        io::stdin().lock().take(SECRET_BYTES_MAX).read_line(&mut text)?;
    }
    Ok(text)
}

fn tell(device: &Device, output: Output) -> Result<(), Failure> {
    output.tell(&Object::listed_device(device), || people::device(device))
}
