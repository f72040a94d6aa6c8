//! `group create`, `add`, `remove`, `rename`, `accept`, `decline`, `leave`, `list` and `show`.
//!
//! Creating, listing and showing work without a connection. A change of the group needs the relay: it is made when the
//! command returns, or the reason says what is still under way.

use std::time::Duration;

use undertone::{Client, Connection, Contact, Error, Group, GroupSummary};

use super::{CATCH_UP, catch_up, connect, unreachable};
use crate::{
    args::GroupCommand,
    error::Failure,
    output::{Object, Output, people},
    resolve,
};

/// A change of members that does not come through while the connection is away for so long is left to the outbox.
const AWAY_MAX: Duration = Duration::from_secs(5);

/// A change of members that does not come through in this time is left to the outbox.
const CHANGE_MAX: Duration = Duration::from_secs(120);

/// How often the connection is looked at while a change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn run(client: &Client, command: GroupCommand, output: Output) -> Result<(), Failure> {
    match command {
        GroupCommand::Create { name, add, post_quantum } => create(client, &name, &add, post_quantum, output).await,
        GroupCommand::Add { group, user } => add(client, &group, &user, output).await,
        GroupCommand::Remove { group, user } => remove(client, &group, &user, output).await,
        GroupCommand::Rename { group, name } => rename(client, &group, &name, output).await,
        GroupCommand::Accept { group } => accept(client, &group, output).await,
        GroupCommand::Decline { group } => decline(client, &group, output).await,
        GroupCommand::Leave { group } => leave(client, &group, output).await,
        GroupCommand::List => list(client, output).await,
        GroupCommand::Show { group } => show(client, &group, output).await,
    }
}

async fn create(
    client: &Client,
    name: &str,
    add: &[String],
    post_quantum: bool,
    output: Output,
) -> Result<(), Failure> {
    let online = matches!(catch_up(client, CATCH_UP).await?, Connection::Online | Connection::CatchingUp);
    let members = if online { accounts(client, add).await? } else { vec![] };
    let new = client.create_group(name);
    let group = if post_quantum { new.post_quantum() } else { new }.await?;
    let name = group.summary().await?.name;
    output.tell(&Object::created(group.id(), &name), || {
        format!("created {}  {}", people::clean_line(&name), group.id())
    })?;
    if !online && !add.is_empty() {
        return Err(Failure::Unreachable(format!(
            "{name:?} was created, but {} not added: the relay cannot be reached; later: undertone group add",
            names_were(add)
        )));
    }
    for (at, member) in members.iter().enumerate() {
        if let Err(failure) = change(client, group.add(member.account_id)).await {
            let left = add.get(at..).unwrap_or_default();
            return Err(failure.about(&format!("{name:?} was created, but {} not added", names_were(left))));
        }
        output.say(&format!("added {}", member.name()))?;
    }
    if online {
        // The relay should know the group when this returns; without an answer it learns of it later.
        client.outbox_empty(AWAY_MAX).await?;
    }
    Ok(())
}

/// All of them, before anything is made: a name that is wrong stops the command in time.
async fn accounts(client: &Client, names: &[String]) -> Result<Vec<Contact>, Failure> {
    let mut accounts = Vec::new();
    for name in names {
        accounts.push(resolve::account(client, name).await?);
    }
    Ok(accounts)
}

async fn add(client: &Client, group: &str, user: &str, output: Output) -> Result<(), Failure> {
    let (group, handle) = for_change(client, group).await?;
    let account = resolve::account(client, user).await?;
    let was_member = group.members.iter().any(|member| member.account_id == account.account_id);
    // A member may have devices that are not in the group yet.
    change(client, handle.add(account.account_id)).await?;
    output.tell(&Object::changed(group.group_id, &account), || {
        let (user, group) = (account.name(), people::clean_line(&group.name));
        if was_member { format!("{user} is a member of {group} already") } else { format!("added {user} to {group}") }
    })
}

async fn remove(client: &Client, group: &str, user: &str, output: Output) -> Result<(), Failure> {
    let (group, handle) = for_change(client, group).await?;
    let member = resolve::member(client, &group, user).await?;
    change(client, handle.remove(member.account_id)).await?;
    output.tell(&Object::changed(group.group_id, &member), || {
        format!("removed {} from {}", member.name(), people::clean_line(&group.name))
    })
}

async fn rename(client: &Client, group: &str, name: &str, output: Output) -> Result<(), Failure> {
    let (before, handle) = for_change(client, group).await?;
    change(client, handle.rename(name)).await?;
    let name = handle.summary().await?.name;
    output.tell(&Object::created(before.group_id, &name), || {
        format!("{} is called {} now", people::clean_line(&before.name), people::clean_line(&name))
    })
}

async fn accept(client: &Client, group: &str, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let group = resolve::group(client, group).await?;
    client.group(group.group_id).accept().await?;
    output
        .tell(&Object::created(group.group_id, &group.name), || format!("accepted {}", people::clean_line(&group.name)))
}

async fn decline(client: &Client, group: &str, output: Output) -> Result<(), Failure> {
    let (group, handle) = for_change(client, group).await?;
    change(client, handle.decline()).await?;
    output.tell(&Object::left(group.group_id), || format!("declined {}", people::clean_line(&group.name)))
}

async fn leave(client: &Client, group: &str, output: Output) -> Result<(), Failure> {
    let (group, handle) = for_change(client, group).await?;
    change(client, handle.leave()).await?;
    output.tell(&Object::left(group.group_id), || {
        format!("left {}; its history stays here", people::clean_line(&group.name))
    })
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let groups = client.groups().await?;
    if groups.is_empty() {
        output.say("no groups yet: undertone group create NAME makes one")?;
    }
    groups.iter().try_for_each(|group| output.tell(&Object::listed(group), || people::group_line(group)))
}

async fn show(client: &Client, group: &str, output: Output) -> Result<(), Failure> {
    catch_up(client, CATCH_UP).await?;
    let group = resolve::group(client, group).await?;
    output.tell(&Object::group(&group), || people::group(&group))
}

/// A group that can be changed now.
async fn for_change(client: &Client, group: &str) -> Result<(GroupSummary, Group), Failure> {
    connect(client).await?;
    let group = resolve::group(client, group).await?;
    let handle = client.group(group.group_id);
    Ok((group, handle))
}

/// Waits for a change of a group, but not for a relay that is gone: the change stays in the outbox then.
async fn change(client: &Client, change: impl Future<Output = Result<(), Error>>) -> Result<(), Failure> {
    tokio::select! {
        done = change => Ok(done?),
        () = given_up(client) => {
            Err(unreachable(client).about("the change is not made yet; it is queued and goes out with the next command"))
        }
    }
}

/// Completes when waiting any longer makes no sense.
async fn given_up(client: &Client) {
    let away = async {
        let mut away = Duration::ZERO;
        while away < AWAY_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
            let here = matches!(client.connection(), Connection::Online | Connection::CatchingUp);
            away = if here { Duration::ZERO } else { away + LOOK_EVERY };
        }
    };
    drop(tokio::time::timeout(CHANGE_MAX, away).await);
}

fn names_were(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "was" } else { "were" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_added_reads_as_a_sentence() {
        assert_eq!(names_were(&["bob".into()]), "bob was");
        assert_eq!(names_were(&["bob".into(), "carol".into()]), "bob, carol were");
    }
}
