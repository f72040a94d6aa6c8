//! `search`: what was said, found by its words in the store alone.

use std::collections::HashMap;

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
    let found = match &search.group {
        Some(group) => client.group(resolve::group(&client, group).await?.group_id).search(&words, limit).await?,
        None => client.search(&words, limit).await?,
    };
    if found.is_empty() {
        output.say("no messages")?;
    }
    let names: HashMap<_, _> = client.groups().await?.into_iter().map(|group| (group.group_id, group.name)).collect();
    found.iter().try_for_each(|message| {
        let group = names.get(&message.group_id).map_or("", String::as_str);
        output.tell(&Object::message(message), || people::found_line(message, group))
    })
}
