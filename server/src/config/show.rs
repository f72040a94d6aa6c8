//! Writes the keys out as a configuration file.
//!
//! Invariant: what is written can be read back, and no secret is in it.

use super::{
    keys::{self, Key, Kind},
    layers::{Layers, Origin},
};

/// Widest line of a comment.
const WIDTH: usize = 100;

/// What holds for each key, and where it was given.
pub(super) fn effective(layers: &Layers) -> String {
    written(|key| {
        let (origin, text) = layers.get(&key.name);
        let line = match key.kind {
            Kind::Secret if may_hold_password(text) || stands_elsewhere(layers, key) => {
                return format!("# {} is set, from {origin}\n", key.name);
            }
            _ if text.is_empty() => format!("#{}", assignment(key, text)),
            _ => assignment(key, text),
        };
        match origin {
            Origin::Default => format!("{line}\n"),
            _ => format!("{line} # from {origin}\n"),
        }
    })
}

/// What each key means, and its default.
pub(super) fn template() -> String {
    let begin = "# Configuration of an Undertone relay. Each key is shown with its default; take the # away to set it.\n\
                 # Each is also a variable: UNDERTONE_ and the key in capitals, as UNDERTONE_LISTEN, UNDERTONE_LIMITS_RETENTION_S.\n\n";
    let body = written(|key| format!("{}#{}\n\n", comment(key.meaning), assignment(key, &key.default)));
    format!("{begin}{}\n", body.trim_end())
}

/// All keys, each in its table.
fn written(line: impl Fn(&Key) -> String) -> String {
    let (limits, keys): (Vec<_>, Vec<_>) = keys::all().into_iter().partition(|key| key.name.starts_with("limits."));
    let [keys, limits] = [keys, limits].map(|keys| keys.iter().map(&line).collect::<String>());
    format!("{}\n\n[limits]\n{limits}", keys.trim_end())
}

fn assignment(key: &Key, text: &str) -> String {
    let name = key.name.trim_start_matches("limits.");
    match key.kind {
        Kind::Bare => format!("{name} = {text}"),
        Kind::Text | Kind::Secret => format!("{name} = {}", toml::Value::String(text.to_owned())),
    }
}

/// Whether a secret must not be shown: a file's path may.
fn may_hold_password(text: &str) -> bool {
    !text.is_empty() && !text.starts_with("sqlite:")
}

/// Whether a secret is in the file that the key beside it names, which is shown.
fn stands_elsewhere(layers: &Layers, secret: &Key) -> bool {
    !layers.get(&format!("{}_file", secret.name)).1.is_empty()
}

fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
