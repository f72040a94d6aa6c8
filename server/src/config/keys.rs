//! Every key: its name, its default, what it means. A limit is a key of the table `limits`.
//!
//! Invariant: a key that is not here is not read, and each is a variable as well: `UNDERTONE_` and the key in capitals, with
//! `_` for the dot.

use serde_json::Value;
use undertone_wire::Limits;

/// A key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    /// What holds if nothing is given; empty if that follows from other keys.
    pub(super) default: String,
    pub(super) meaning: &'static str,
    pub(super) kind: Kind,
}

/// How a value is written, and whether it may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// A number, `true` or `false`.
    Bare,
    /// It may hold a password, so it may also stand in a file of its own, which the key with `_file` behind it names.
    Secret,
}

const KEYS: &[(&str, &str, Kind, &str)] = &[
    ("listen", "127.0.0.1:7611", Kind::Text, "Address and port to listen on; port 0 takes a free one."),
    (
        "tls",
        "",
        Kind::Text,
        "How connections are encrypted: \"self-made\" with a key and a certificate that the relay makes once and keeps in the data \
         folder, by whose fingerprint clients know it (see the connection string that it shows), or \"off\". If absent, off \
         for a relay that listens on loopback, and self-made for any other.",
    ),
    (
        "address",
        "",
        Kind::Text,
        "Host, or host and port, by which others reach this relay, as they would write it: part of the connection string. If \
         absent, the address that it listens on or, where that is all of them, the one from which this machine would reach others.",
    ),
    ("data", "./undertone-data", Kind::Text, "Folder for the database and the TLS key; made if missing."),
    (
        "database",
        "",
        Kind::Secret,
        "Database as sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE; undertone.db in the data folder if absent. Any \
         number of relays may run over one Postgres database; nothing but the TLS key is then written to the data folder.",
    ),
    ("database_file", "", Kind::Text, "File that holds the value of `database`, and nothing else."),
    (
        "registration",
        "",
        Kind::Text,
        "Who may register: \"open\" for everyone, \"invite\" for whoever has an invite (see the command invite), or \"closed\". \
         If absent, open for a relay that listens on loopback, and by invite for any other.",
    ),
    ("postgres_connections", "16", Kind::Bare, "Most connections to Postgres, at least 3."),
    (
        "postgres_failover",
        "lossy",
        Kind::Text,
        "\"lossless\" if standbys of Postgres are synchronous, so that promoting one loses nothing. Otherwise a promotion is \
         treated like a restored backup: devices publish new keys, and are told what they may have missed. With \"lossless\" \
         a recovery to an earlier time must be declared with the command restore.",
    ),
    (
        "log",
        "info",
        Kind::Text,
        "What to log to stderr: a level (error, warn, info, debug, trace) or a tracing filter. No level names anybody.",
    ),
    (
        "insecure_plain_http",
        "false",
        Kind::Bare,
        "Whether to listen on other addresses than loopback with tls = \"off\", although tokens then cross the network in clear.",
    ),
];

/// All keys, in the order in which they are shown.
pub(super) fn all() -> Vec<Key> {
    let defaults = serde_json::to_value(Limits::default()).unwrap_or_default();
    let limits = Limits::DOCS.iter().map(|(name, meaning)| Key {
        name: format!("limits.{name}"),
        default: defaults.get(name).map(Value::to_string).unwrap_or_default(),
        meaning,
        kind: Kind::Bare,
    });
    let keys = KEYS.iter().map(|(name, default, kind, meaning)| Key {
        name: (*name).to_owned(),
        default: (*default).to_owned(),
        meaning,
        kind: *kind,
    });
    keys.chain(limits).collect()
}

impl Key {
    /// The variable that gives it.
    pub(super) fn variable(&self) -> String {
        format!("UNDERTONE_{}", self.name.replace('.', "_").to_uppercase())
    }
}

/// The known key that is most like this one.
pub(super) fn most_like(name: &str) -> Option<String> {
    let likeness = |key: &Key| strsim::jaro_winkler(&key.name, name);
    all().into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).map(|key| key.name)
}
