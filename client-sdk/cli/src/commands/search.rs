//! `search`: what was said, found by its words in the store alone.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    args::Search,
    error::Failure,
    output::{Object, Output, people},
    resolve,
    store::Place,
};

pub(super) async fn run(place: &Place, search: &Search, output: Output) -> Result<(), Failure> {
    let client = place.open_offline().await?;
    let (words, limit) = (search.words.join(" "), usize::try_from(search.limit).unwrap_or(usize::MAX));
    let found = match &search.within {
        Some(within) => resolve::known_conversation(&client, within).await?.search(&words, limit).await?,
        None => client.search(&words, limit).await?,
    };
    if found.is_empty() {
        output.say("no messages")?;
    }
    let mut names = HashMap::new();
    for message in &found {
        if let Entry::Vacant(name) = names.entry(message.conversation) {
            name.insert(client.conversation(message.conversation).name().await?);
        }
    }
    found.iter().try_for_each(|message| {
        let name = names.get(&message.conversation).map_or("", String::as_str);
        output.tell(&Object::message(message), || people::found_line(message, name))
    })
}
