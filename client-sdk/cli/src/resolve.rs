//! Which group, account or conversation is meant: by id, or by name.
//!
//! Invariant: a name that fits several is never guessed; the answer lists their ids.

use undertone::{AccountId, Client, Contact, Conversation, Error, GroupId, GroupSummary};

use crate::error::Failure;

/// What a name can stand for.
trait Named {
    fn id(&self) -> String;
    fn is_called(&self, name: &str) -> bool;
}

impl Named for GroupSummary {
    fn id(&self) -> String {
        self.group_id.to_string()
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name.trim()
    }
}

impl Named for Contact {
    fn id(&self) -> String {
        self.account_id.to_string()
    }

    fn is_called(&self, name: &str) -> bool {
        self.username.as_ref().is_some_and(|username| username.as_str().eq_ignore_ascii_case(name))
    }
}

/// What a name stands for among what is known.
#[derive(Debug, PartialEq, Eq)]
enum Found<T> {
    One(T),
    None,
    Several(Vec<String>),
}

/// The group in the store that is called `wanted` or has that id.
pub(crate) async fn group(client: &Client, wanted: &str) -> Result<GroupSummary, Failure> {
    let groups = client.groups().await?;
    let known: Vec<_> = groups.iter().map(|group| group.name.clone()).collect();
    match find(groups, wanted, wanted.parse::<GroupId>().is_ok()) {
        Found::One(group) => Ok(group),
        Found::Several(ids) => Err(ambiguous("groups", wanted, &ids)),
        Found::None => Err(Failure::Refused(format!("there is no group {wanted:?} here; {}", known_are(known)))),
    }
}

/// The conversation that is called `wanted`: a group as it is called, or after an `@` an account.
pub(crate) async fn conversation(client: &Client, wanted: &str) -> Result<(Conversation, String), Failure> {
    match wanted.strip_prefix('@') {
        Some(who) => {
            let with = account(client, who).await?;
            Ok((client.direct(with.account_id), format!("@{}", with.name())))
        }
        None => {
            let group = group(client, wanted).await?;
            Ok((client.conversation(group.group_id.into()), group.name))
        }
    }
}

/// The same, among the groups and accounts that are known here: nobody is asked.
pub(crate) async fn known_conversation(client: &Client, wanted: &str) -> Result<Conversation, Failure> {
    let Some(who) = wanted.strip_prefix('@') else {
        return Ok(client.conversation(group(client, wanted).await?.group_id.into()));
    };
    let contacts = client.contacts().await?;
    let known = contacts.iter().map(Contact::name).collect();
    match find(contacts, who, who.parse::<AccountId>().is_ok()) {
        Found::One(contact) => Ok(client.direct(contact.account_id)),
        Found::Several(ids) => Err(ambiguous("accounts", who, &ids)),
        Found::None => Err(Failure::Refused(format!("no account {who:?} is known here; {}", known_are(known)))),
    }
}

/// The account at the relay that is called `wanted` or has that id.
pub(crate) async fn account(client: &Client, wanted: &str) -> Result<Contact, Failure> {
    match client.find(wanted).await {
        Err(Error::UnknownAccount) => {
            let known = client.contacts().await?.iter().map(Contact::name).collect();
            Err(Failure::Refused(format!("no account {wanted:?} is registered at this relay; {}", known_are(known))))
        }
        found => found.map_err(|error| Failure::from(error).about(&format!("{wanted:?}"))),
    }
}

/// The member of a group that is called `wanted` or has that id. Who is no member is looked for at the relay, so that
/// the reason is the right one.
pub(crate) async fn member(client: &Client, group: &GroupSummary, wanted: &str) -> Result<Contact, Failure> {
    match find(group.members.clone(), wanted, wanted.parse::<AccountId>().is_ok()) {
        Found::One(member) => return Ok(member),
        Found::Several(ids) => return Err(ambiguous("members", wanted, &ids)),
        Found::None => {}
    }
    let account = account(client, wanted).await?;
    if let Some(member) = group.members.iter().find(|member| member.account_id == account.account_id) {
        return Ok(member.clone());
    }
    let members = group.members.iter().map(Contact::name).collect::<Vec<_>>().join(", ");
    Err(Failure::Refused(format!("{wanted:?} is not a member of {:?}; its members: {members}", group.name)))
}

fn find<T: Named>(known: Vec<T>, wanted: &str, is_id: bool) -> Found<T> {
    let (mut fits, mut called): (Vec<_>, Vec<_>) = if is_id {
        let id = wanted.to_ascii_lowercase();
        known.into_iter().filter(|one| one.id() == id || one.is_called(wanted)).partition(|one| one.id() == id)
    } else {
        (vec![], known.into_iter().filter(|one| one.is_called(wanted)).collect())
    };
    // An id is that id, even if something else bears it as its name.
    if let Some(one) = fits.pop() {
        return Found::One(one);
    }
    match (called.pop(), called.is_empty()) {
        (None, _) => Found::None,
        (Some(one), true) => Found::One(one),
        (Some(one), false) => Found::Several(called.iter().chain([&one]).map(Named::id).collect()),
    }
}

fn ambiguous(kind: &str, wanted: &str, ids: &[String]) -> Failure {
    Failure::Refused(format!("{} {kind} are called {wanted:?}: say which by its id: {}", ids.len(), ids.join(", ")))
}

fn known_are(mut names: Vec<String>) -> String {
    /// So many are named; the rest is counted.
    const NAMED_MAX: usize = 50;

    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    match (names.is_empty(), more) {
        (true, _) => "none is known yet".to_owned(),
        (false, 0) => format!("known: {}", names.join(", ")),
        (false, more) => format!("known: {} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Thing(&'static str, &'static str);

    impl Named for Thing {
        fn id(&self) -> String {
            self.0.to_owned()
        }

        fn is_called(&self, name: &str) -> bool {
            self.1 == name
        }
    }

    const THINGS: [Thing; 4] = [Thing("1a", "team"), Thing("2b", "family"), Thing("3c", "team"), Thing("4d", "2b")];

    fn found(wanted: &str, is_id: bool) -> Found<Thing> {
        find(THINGS.to_vec(), wanted, is_id)
    }

    #[test]
    fn a_name_finds_the_one_that_bears_it() {
        assert_eq!(found("family", false), Found::One(Thing("2b", "family")));
        assert_eq!(found("work", false), Found::None);
    }

    #[test]
    fn a_name_of_several_lists_their_ids() {
        assert_eq!(found("team", false), Found::Several(vec!["1a".into(), "3c".into()]));
    }

    #[test]
    fn an_id_comes_before_the_same_text_as_a_name() {
        assert_eq!(found("3C", true), Found::One(Thing("3c", "team")));
        assert_eq!(found("2b", true), Found::One(Thing("2b", "family")));
        assert_eq!(found("5e", true), Found::None);
    }

    #[test]
    fn what_is_known_is_listed_once_and_not_without_end() {
        assert_eq!(known_are(vec![]), "none is known yet");
        assert_eq!(known_are(vec!["b".into(), "a".into(), "b".into()]), "known: a, b");
        let many = (0..60).map(|n| format!("g{n:02}")).collect();
        assert!(known_are(many).ends_with("g49 and 10 more"));
    }
}
