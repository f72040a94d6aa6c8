//! Every key: its name, its default, what it means. A limit is a key of the table `limits`.
//!
//! Invariant: a key that is not here is not read, and each is a variable as well: `UNDERTONE_` and the key in capitals, with
//! `_` for the dot.

use serde_json::Value;
use undertone_wire::Limits;

/// With what the relay's variables begin.
const PREFIX: &str = "UNDERTONE_";

/// The variable that names the configuration file.
pub(super) const FILE_VARIABLE: &str = "UNDERTONE_CONFIG";

/// Variables that begin like the relay's and are the client's.
const CLIENTS: [&str; 1] = ["UNDERTONE_PASSPHRASE"];

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
         folder, by whose fingerprint clients know it (see the connection string that it shows), \"acme\" with a certificate for \
         the domain name in `address`, or \"off\". If absent, off \
         for a relay that listens on loopback or has trusted proxies, and self-made for any other.",
    ),
    (
        "acme_directory",
        "https://acme-v02.api.letsencrypt.org/directory",
        Kind::Text,
        "With tls = \"acme\": the directory of the authority that signs the certificate, to whose terms you agree. It connects to port \
         443 of the domain name, which must lead to where this relay listens.",
    ),
    ("acme_contact", "", Kind::Text, "With tls = \"acme\": an e-mail address to which the authority may write."),
    (
        "trusted_proxies",
        "",
        Kind::Text,
        "Proxies in front of this relay, which encrypt: addresses and networks with commas between them, like \"127.0.0.1\" or \
         \"172.28.0.0/16\". What they say in X-Forwarded-For is taken for the address of who asks, and nobody else's word is. \
         With tls = \"off\" a relay speaks to them and to its own machine only.",
    ),
    (
        "address",
        "",
        Kind::Text,
        "Host, or host and port, by which others reach this relay, as they would write it: part of the connection string. If \
         absent, the address that it listens on or, where that is all of them, the one from which this machine would reach others. \
         With tls = \"off\" it is the proxy's.",
    ),
    (
        "data",
        "./undertone-data",
        Kind::Text,
        "Folder for the database, and for the keys and certificates of TLS; made if missing.",
    ),
    (
        "database",
        "",
        Kind::Secret,
        "Database as sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE; undertone.db in the data folder if absent. Any \
         number of relays may run over one Postgres database; nothing but keys and certificates is then written to the data \
         folder.",
    ),
    ("database_file", "", Kind::Text, "File that holds the value of `database`, and nothing else."),
    (
        "registration",
        "",
        Kind::Text,
        "Who may register: \"open\" for everyone, \"invite\" for whoever has an invite (see the command invite), or \"closed\". \
         If absent, open for a relay that listens on loopback and has no `address` and no trusted proxies, and by invite for any \
         other.",
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
        format!("{PREFIX}{}", self.name.replace('.', "_").to_uppercase())
    }
}

/// Whether a variable is meant for the relay, by its name.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.starts_with(PREFIX) && !CLIENTS.contains(&variable)
}

/// The known variable that is most like this one.
pub(super) fn variable_most_like(name: &str) -> String {
    let variables = all().iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]).collect::<Vec<_>>();
    most_like_of(variables, name).unwrap_or_default()
}

/// The known key that is most like this one.
pub(super) fn most_like(name: &str) -> Option<String> {
    most_like_of(all().into_iter().map(|key| key.name), name)
}

fn most_like_of(known: impl IntoIterator<Item = String>, name: &str) -> Option<String> {
    let likeness = |known: &String| strsim::jaro_winkler(known, name);
    known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}
