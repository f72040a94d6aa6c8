//! Configuration: one set of keys, given in a file, as variables or as flags.
//!
//! `keys` has every key with its default and what it means; `layers` says where a value comes from; `arguments` is the
//! command line; `show` writes them out again. What a value must be stands here.
//!
//! Invariant: what is wrong is refused before anything is opened or made, in one line that names the key, where it was
//! given, and what it must be. A [`Config`] that was read sends no token across a network in clear, but for what passes
//! between it and a trusted proxy.

mod arguments;
mod keys;
mod layers;
mod show;

use std::{
    ffi::OsString,
    fmt::Display,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde_json::{Map, Value};
use undertone_wire::{Limits, Registration};
use url::{Host, Url};

pub use arguments::{Arguments, Command, Invite};
pub use layers::{ConfigError, Origin};

use self::layers::Layers;
use crate::{
    proxies::TrustedProxies,
    store::{Place, PostgresConfig},
};

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Nothing is counted beyond this, so that no sum of limits overflows.
const LIMIT_MAX: u64 = 1 << 40;

/// Limits that may be zero: without them something is simply not offered, or not kept.
const MAY_BE_ZERO: [&str; 10] = [
    "claims_per_account_hour_max",
    "claims_per_pair_hour_max",
    "clock_ahead_s_max",
    "fetch_wait_s_max",
    "keys_low_at",
    "queue_direct_bytes_max",
    "queue_direct_entries_max",
    "queue_group_bytes_min",
    "queue_group_entries_min",
    "rotations_max",
];

/// How connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tls {
    /// They are not.
    Off,
    /// With a key and a certificate that the relay made itself.
    SelfMade,
    /// With a certificate for a domain name that an authority signs.
    Acme(Acme),
}

/// From whom a certificate comes, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The domain name.
    pub domain: String,
    /// Where the authority's directory is (RFC 8555, section 7.1.1).
    pub directory: String,
    /// An e-mail address to which the authority may write.
    pub contact: Option<String>,
}

/// What a relay needs to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where the store is.
    pub place: Place,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What is allowed.
    pub limits: Limits,
    /// Who may register.
    pub registration: Registration,
    /// How connections are encrypted.
    pub tls: Tls,
    /// The host, and the port if it is not the usual one, by which others reach the relay: itself or the proxy.
    pub address: Option<(String, Option<u16>)>,
    /// Whose word on where a request comes from counts.
    pub trusted_proxies: TrustedProxies,
    /// The folder for keys and certificates.
    pub data: PathBuf,
    /// How long a connection may take to say what it wants, at first and between requests.
    pub header_timeout: Duration,
    /// How often to look for mail of which no wake came.
    pub look_every: Duration,
    /// How long the reader of a stream may take for a page; one who takes longer is cut.
    pub write_timeout: Duration,
}

impl Config {
    /// A relay at a place and address, with the default limits, at which everyone may register.
    pub fn new(place: Place, listen: SocketAddr) -> Self {
        Self {
            place,
            listen,
            limits: Limits::default(),
            registration: Registration::Open,
            tls: Tls::Off,
            address: None,
            trusted_proxies: TrustedProxies::default(),
            data: PathBuf::from("."),
            header_timeout: HEADER_TIMEOUT,
            look_every: LOOK_EVERY,
            write_timeout: WRITE_TIMEOUT,
        }
    }
}

/// What was given, all of it checked.
#[derive(Debug)]
pub struct Settings {
    layers: Layers,
    /// What the relay needs to know.
    pub config: Config,
    /// What to log, a filter of `tracing`.
    pub log: String,
}

impl Settings {
    /// Reads and checks what is given on the command line, in variables and in the file that either of them names.
    pub fn read(
        arguments: &Arguments,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::read(arguments, variables)?;
        let listen = layers.parsed("listen", "an address and a port, like 127.0.0.1:7611")?;
        let trusted_proxies: TrustedProxies = layers.checked("trusted_proxies", str::parse)?;
        let alone = trusted_proxies.is_empty();
        let address = layers.checked("address", address)?;
        let tls = tls(&layers, address.as_ref(), is_loopback(listen) || !alone)?;
        if tls == Tls::Off && !is_loopback(listen) && alone {
            return Err(layers.refuse("tls", IN_CLEAR));
        }
        let private = is_loopback(listen) && alone && address.is_none();
        let registration = layers.checked("registration", |text| registration(text, private))?;
        let data = PathBuf::from(layers.get("data").1);
        let base = Config::new(place(&layers, &data)?, listen);
        let config = Config { limits: limits(&layers)?, registration, tls, address, trusted_proxies, data, ..base };
        let log = layers.checked("log", is_filter)?;
        layers.follows("tls", if config.tls == Tls::Off { "off" } else { "self-made" });
        layers.follows("registration", name_of(config.registration));
        if let Place::Sqlite(file) = &config.place {
            layers.follows("database", &format!("sqlite:{}", file.display()));
        }
        Ok(Self { layers, config, log })
    }

    /// All keys with what holds and where it was given, as a configuration file. Secrets are left out.
    pub fn show(&self) -> String {
        show::effective(&self.layers)
    }

    /// All keys with their defaults and what they mean, as a configuration file in which nothing is set.
    pub fn template() -> String {
        show::template()
    }
}

const IN_CLEAR: &str = "the relay listens on an address that can be reached from elsewhere, and tokens would cross the \
                        network in clear; leave it out, listen on 127.0.0.1, or name the proxy that encrypts in \
                        trusted_proxies";

fn is_loopback(listen: SocketAddr) -> bool {
    listen.ip().is_loopback()
}

fn tls(layers: &Layers, address: Option<&(String, Option<u16>)>, needless: bool) -> Result<Tls, ConfigError> {
    let (directory, contact) = (layers.checked("acme_directory", directory)?, layers.checked("acme_contact", contact)?);
    match layers.get("tls").1 {
        "" if needless => Ok(Tls::Off),
        "" | "self-made" => Ok(Tls::SelfMade),
        "off" => Ok(Tls::Off),
        "acme" => Ok(Tls::Acme(Acme { domain: domain(layers, address)?, directory, contact })),
        _ => Err(layers.refuse("tls", "it must be self-made, acme or off")),
    }
}

/// The domain name that others reach the relay by.
fn domain(layers: &Layers, address: Option<&(String, Option<u16>)>) -> Result<String, ConfigError> {
    match address.map(|(host, _)| Host::parse(host)) {
        Some(Ok(Host::Domain(domain))) => Ok(domain),
        None => Err(layers.refuse("tls", "acme takes a domain name; give it as address, like relay.example.org")),
        Some(_) => {
            Err(layers.refuse("address", "with tls = \"acme\" it must be a domain name, like relay.example.org"))
        }
    }
}

fn directory(text: &str) -> Result<String, String> {
    match Url::parse(text) {
        Ok(url) if url.scheme() == "https" => Ok(text.to_owned()),
        _ => Err("it must be an https:// URL".to_owned()),
    }
}

fn contact(text: &str) -> Result<Option<String>, String> {
    match text.split_once('@') {
        _ if text.is_empty() => Ok(None),
        Some((name, host)) if !name.is_empty() && !host.is_empty() => Ok(Some(text.to_owned())),
        _ => Err("it must be an e-mail address".to_owned()),
    }
}

/// A host, or a host and a port.
fn address(text: &str) -> Result<Option<(String, Option<u16>)>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let such = || "it must be a host, or a host and a port, like relay.example.org:7611".to_owned();
    let url = Url::parse(&format!("https://{text}")).map_err(|_| such())?;
    let bare = url.path() == "/" && !text.contains(['/', '?', '#', '@']);
    // The port that https has anyway is not told apart from none, unless it is written.
    let port = if text.ends_with(":443") { Some(443) } else { url.port() };
    let bare = bare && port != Some(0);
    url.host_str().filter(|_| bare).map(|host| Some((host.to_owned(), port))).ok_or_else(such)
}

/// Whoever can reach a relay that is for this machine only has a place on it already.
fn registration(text: &str, private: bool) -> Result<Registration, String> {
    match text {
        "" if private => Ok(Registration::Open),
        "" | "invite" => Ok(Registration::Invite),
        "open" => Ok(Registration::Open),
        "closed" => Ok(Registration::Closed),
        _ => Err("it must be open, invite or closed".to_owned()),
    }
}

fn name_of(registration: Registration) -> &'static str {
    match registration {
        Registration::Open => "open",
        Registration::Invite => "invite",
        Registration::Closed => "closed",
    }
}

fn is_filter(text: &str) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::try_new(text);
    filter.map(|_| text.to_owned()).map_err(|_| "it must be error, warn, info, debug, trace or a tracing filter".into())
}

fn place(layers: &Layers, data: &Path) -> Result<Place, ConfigError> {
    let connections = number(layers, "postgres_connections", 3, 1_000)?;
    let lossless = layers.checked("postgres_failover", |text| match text {
        "lossy" => Ok(false),
        "lossless" => Ok(true),
        _ => Err("it must be lossy or lossless".to_owned()),
    })?;
    layers.checked("database", |url| match url {
        "" => Ok(Place::Sqlite(data.join("undertone.db"))),
        url if ["postgres", "postgresql"].contains(&scheme_of(url).as_str()) => {
            let mut postgres = PostgresConfig::new(url);
            (postgres.connections, postgres.lossless_failover) = (connections, lossless);
            Ok(Place::Postgres(postgres))
        }
        url => sqlite_place(url),
    })
}

/// The scheme of a URL with two slashes; nothing if it is none.
fn scheme_of(text: &str) -> String {
    let url = Url::parse(text).ok().filter(|_| text.contains("://"));
    url.map(|url| url.scheme().to_owned()).unwrap_or_default()
}

fn sqlite_place(url: &str) -> Result<Place, String> {
    match url.strip_prefix("sqlite:") {
        Some(path) if path.contains('?') || ["//", ":", "file:"].iter().any(|other| path.starts_with(other)) => Err(
            "after sqlite: comes a plain path, as in sqlite:/var/lib/undertone.db: no //, no ?, no file:, no :memory:"
                .into(),
        ),
        Some(path) if !path.is_empty() => Ok(Place::Sqlite(path.into())),
        _ => Err("it must be sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE".into()),
    }
}

/// The limits as they are given.
fn limits(layers: &Layers) -> Result<Limits, ConfigError> {
    let mut limits = Map::new();
    for (name, _) in Limits::DOCS {
        let (min, max) = range(name);
        limits.insert((*name).to_owned(), number(layers, &format!("limits.{name}"), min, max)?.into());
    }
    // Every key of it is there, as a number.
    Ok(serde_json::from_value(Value::Object(limits)).unwrap_or_default())
}

/// What a limit may be.
fn range(name: &str) -> (u64, u64) {
    let min = u64::from(!MAY_BE_ZERO.contains(&name));
    match name {
        // Between nodes it travels inside one notification of Postgres.
        "ephemeral_bytes_max" => (min, Limits::default().ephemeral_bytes_max),
        _ => (min, LIMIT_MAX),
    }
}

/// A whole number within bounds.
fn number<T>(layers: &Layers, key: &str, min: T, max: T) -> Result<T, ConfigError>
where
    T: FromStr + PartialOrd + Display,
{
    layers.checked(key, |text| {
        let number = text.parse().ok().filter(|number| (&min..=&max).contains(&number));
        number.ok_or_else(|| format!("it must be a whole number from {min} to {max}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn read(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let arguments = Arguments::parse_from([&["undertone-server"], arguments].concat());
        Settings::read(&arguments, variables.iter().map(|(name, text)| (name.into(), text.into())))
    }

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        read(arguments, &[]).map(|settings| settings.config)
    }

    /// A file with this text.
    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn without_arguments_it_is_a_relay_for_this_machine() {
        let settings = read(&[], &[]).unwrap();
        assert_eq!(settings.config.listen, "127.0.0.1:7611".parse().unwrap());
        assert_eq!(settings.config.place, Place::Sqlite("./undertone-data/undertone.db".into()));
        assert_eq!((settings.config.limits, settings.log.as_str()), (Limits::default(), "info"));
    }

    #[test]
    fn a_flag_is_stronger_than_a_variable_and_a_variable_than_the_file() {
        let file =
            file("listen = \"127.0.0.1:1\"\nlog = \"warn\"\npostgres_connections = 5\n[limits]\nretention_s = 7\n");
        let path = file.path().to_str().unwrap();
        let variables = [("UNDERTONE_CONFIG", path), ("UNDERTONE_LISTEN", "127.0.0.1:2"), ("UNDERTONE_LOG", "error")];
        let settings = read(&["--listen", "127.0.0.1:3"], &variables).unwrap();
        assert_eq!(settings.config.listen.port(), 3);
        assert_eq!(settings.log, "error");
        assert_eq!(settings.config.limits.retention_s, 7);
        let variables = [("UNDERTONE_LIMITS_RETENTION_S", "8"), ("UNDERTONE_LISTEN", "")];
        let settings = read(&["--config", path], &variables).unwrap();
        assert_eq!(settings.config.limits.retention_s, 8);
        assert_eq!(settings.config.listen.port(), 1, "a variable set to nothing is as good as none");
        let settings = read(&["--config", path, "--limit", "retention_s=9"], &variables).unwrap();
        assert_eq!(settings.config.limits.retention_s, 9);
    }

    #[test]
    fn a_variable_that_is_no_key_is_refused_and_the_clients_are_left_alone() {
        let said = read(&[], &[("UNDERTONE_REGISTATION", "closed")]).unwrap_err().to_string();
        assert!(said.starts_with("UNDERTONE_REGISTATION: ") && said.contains("UNDERTONE_REGISTRATION"), "{said}");
        assert!(read(&[], &[("UNDERTONE_PASSPHRASE", "word"), ("UNDERTON_LISTEN", "nowhere")]).is_ok());
        let arguments = Arguments::parse_from(["undertone-server"]);
        let odd = [("UNDERTONE_LOG".into(), std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]))];
        assert!(Settings::read(&arguments, odd).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn a_secret_may_stand_in_a_file_of_its_own() {
        let (secret, other) = (file("postgres://u:word@h/d\n"), file("postgres://v@h/e"));
        let [secret, other] = [&secret, &other].map(|file| file.path().to_str().unwrap());
        let place = |settings: Settings| settings.config.place;
        let postgres = |url| Place::Postgres(PostgresConfig::new(url));
        let settings = read(&[], &[("UNDERTONE_DATABASE_FILE", secret)]).unwrap();
        assert!(!settings.show().contains("word"), "{}", settings.show());
        assert_eq!(place(settings), postgres("postgres://u:word@h/d"));
        let stronger = file(&format!("database_file = {other:?}\n"));
        let given = [("UNDERTONE_CONFIG", stronger.path().to_str().unwrap()), ("UNDERTONE_DATABASE_FILE", secret)];
        assert_eq!(place(read(&[], &given).unwrap()), postgres("postgres://u:word@h/d"));
        let given = [("UNDERTONE_DATABASE_FILE", secret)];
        assert_eq!(place(read(&["--database", "sqlite:a"], &given).unwrap()), Place::Sqlite("a".into()));
        let both = read(&[], &[("UNDERTONE_DATABASE", "sqlite:a"), ("UNDERTONE_DATABASE_FILE", secret)]);
        assert_eq!(both.unwrap_err().key(), Some("database_file"));
        let empty = file("\n");
        let nothing = read(&[], &[("UNDERTONE_DATABASE_FILE", empty.path().to_str().unwrap())]).unwrap_err();
        assert!(nothing.to_string().starts_with("UNDERTONE_DATABASE_FILE: database_file: "), "{nothing}");
        assert!(nothing.to_string().ends_with(" is empty"), "{nothing}");
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_that_names_the_key_and_what_to_do() {
        let table = [
            ("listen = 5", "listen", "127.0.0.1:7611"),
            ("listen = \"localhost\"", "listen", "127.0.0.1:7611"),
            ("listen = \"0.0.0.0:7611\"\ntls = \"off\"", "tls", "trusted_proxies"),
            ("tls = \"on\"", "tls", "self-made, acme or off"),
            ("tls = \"acme\"", "tls", "a domain name"),
            ("tls = \"acme\"\naddress = \"192.0.2.1\"", "address", "a domain name"),
            ("acme_directory = \"http://a\"", "acme_directory", "https://"),
            ("address = \"a.example:0\"", "address", "a host and a port"),
            ("acme_contact = \"me\"", "acme_contact", "e-mail"),
            ("address = \"a/b\"", "address", "relay.example.org:7611"),
            ("address = \"a:b\"", "address", "relay.example.org:7611"),
            ("lissten = \"127.0.0.1:1\"", "lissten", "listen"),
            ("trusted_proxies = \"caddy\"", "trusted_proxies", "172.28.0.0/16"),
            ("registration = \"some\"", "registration", "open, invite or closed"),
            ("log = \"a=b=c\"", "log", "info"),
            ("database = \"mysql://h/d\"", "database", "postgres://"),
            ("database = \"sqlite::memory:\"", "database", "plain path"),
            ("database_file = \"/nowhere/at/all\"", "database_file", "cannot be read"),
            ("postgres_connections = 2", "postgres_connections", "from 3 to 1000"),
            ("postgres_connections = -4", "postgres_connections", "from 3 to 1000"),
            ("postgres_connections = 3.5", "postgres_connections", "from 3 to 1000"),
            ("postgres_failover = \"maybe\"", "postgres_failover", "lossless"),
            ("[limits]\nretention = 5", "limits.retention", "limits.retention_s"),
            ("[limits]\nfetch_entries_max = 0", "limits.fetch_entries_max", "from 1 to"),
            ("[limits]\nephemeral_bytes_max = 5000", "limits.ephemeral_bytes_max", "from 1 to 4096"),
            ("limits = 5", "limits", "[limits]"),
            ("[listen]\nport = 5", "listen", "not a table"),
            ("listen = [1, 2]", "listen", "not a list"),
        ];
        for (text, key, fix) in table {
            let file = file(text);
            let path = file.path().to_str().unwrap();
            let error = read(&["--config", path], &[]).unwrap_err();
            let said = error.to_string();
            assert_eq!(error.key(), Some(key), "{text}: {said}");
            assert!(said.starts_with(&format!("{path}: {key}: ")) && said.contains(fix), "{text}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
        let file = file("listen = \"127.0.0.1:1\"\nlog = \n");
        let said = read(&["--config", file.path().to_str().unwrap()], &[]).unwrap_err().to_string();
        assert!(said.contains("line 2") && !said.contains('\n'), "{said}");
        let said = read(&["--config", "/nowhere/at/all"], &[]).unwrap_err().to_string();
        assert!(said.starts_with("/nowhere/at/all: it cannot be read: "), "{said}");
    }

    #[test]
    fn what_is_wrong_names_where_it_was_given() {
        let of = |arguments: &[&str], variables: &[(&str, &str)]| read(arguments, variables).unwrap_err().to_string();
        assert!(of(&["--listen", "here"], &[]).starts_with("--listen: listen: "));
        assert!(of(&[], &[("UNDERTONE_LISTEN", "here")]).starts_with("UNDERTONE_LISTEN: listen: "));
        assert!(of(&["--limit", "retention_s=no"], &[]).starts_with("--limit: limits.retention_s: "));
        assert!(of(&["--limit", "retention_s"], &[]).starts_with("--limit: limits.retention_s: "));
        assert!(of(&["--limit", "retention=5"], &[]).contains("limits.retention_s"));
        assert!(of(&[], &[("UNDERTONE_LIMITS_RETENTION_S", "0")]).starts_with("UNDERTONE_LIMITS_RETENTION_S: "));
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        let shown = read(&["--listen", "127.0.0.1:9"], &[("UNDERTONE_LIMITS_RETENTION_S", "61")]).unwrap().show();
        assert!(shown.contains("listen = \"127.0.0.1:9\" # from --listen\n"), "{shown}");
        assert!(shown.contains("retention_s = 61 # from UNDERTONE_LIMITS_RETENTION_S\n"), "{shown}");
        let file = file(&shown);
        let again = read(&["--config", file.path().to_str().unwrap()], &[]).unwrap();
        assert_eq!((again.config.listen.port(), again.config.limits.retention_s), (9, 61));
        assert_eq!(again.config.limits, Limits { retention_s: 61, ..Limits::default() });
        for follows in ["registration = \"open\"\n", "database = \"sqlite:./undertone-data/undertone.db\"\n"] {
            assert!(shown.contains(follows), "{shown}");
        }
        let values = |shown: &str| -> Vec<_> {
            shown.lines().filter_map(|line| line.split(" # from").next()).map(str::to_owned).collect()
        };
        assert_eq!(values(&again.show()), values(&shown));
    }

    #[test]
    fn what_is_shown_of_secrets_can_be_read_back() {
        let (here, away) = (file("sqlite:here"), file("postgres://u:word@h/d"));
        let [here, away] = [&here, &away].map(|file| file.path().to_str().unwrap());
        for (arguments, variables) in [
            (vec![], [("UNDERTONE_DATABASE_FILE", here)]),
            (vec![], [("UNDERTONE_DATABASE_FILE", away)]),
            (vec!["--database", "sqlite:flag"], [("UNDERTONE_DATABASE_FILE", away)]),
        ] {
            let settings = read(&arguments, &variables).unwrap();
            let shown = file(&settings.show());
            let again = read(&["--config", shown.path().to_str().unwrap()], &[]).unwrap();
            assert_eq!(again.config.place, settings.config.place, "{}", settings.show());
        }
    }

    #[test]
    fn the_template_has_every_key_and_sets_none() {
        let template = Settings::template();
        let unset = file(&template);
        let settings = read(&["--config", unset.path().to_str().unwrap()], &[]).unwrap();
        assert_eq!(settings.show(), read(&[], &[]).unwrap().show());
        let set: String = template
            .lines()
            .map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let set = set.replace("database_file = \"\"\n", "");
        let set_too = file(&set);
        assert_eq!(
            read(&["--config", set_too.path().to_str().unwrap()], &[]).unwrap().config.limits,
            Limits::default(),
            "{set}"
        );
    }

    #[test]
    fn what_can_be_reached_from_elsewhere_is_encrypted_and_by_invite() {
        for (listen, tls, registration) in [
            ("127.0.0.1:7611", Tls::Off, Registration::Open),
            ("[::1]:7611", Tls::Off, Registration::Open),
            ("0.0.0.0:7611", Tls::SelfMade, Registration::Invite),
            ("192.0.2.1:7611", Tls::SelfMade, Registration::Invite),
        ] {
            let config = config(&["--listen", listen]).unwrap();
            assert_eq!((config.tls, config.registration), (tls, registration), "{listen}");
        }
        assert!(config(&["--listen", "0.0.0.0:7611", "--tls", "off"]).is_err());
        assert_eq!(config(&["--tls", "self-made"]).unwrap().tls, Tls::SelfMade);
    }

    #[test]
    fn what_is_behind_a_proxy_leaves_encryption_to_it_and_is_by_invite() {
        for listen in ["127.0.0.1:7611", "0.0.0.0:7611"] {
            let config = config(&["--listen", listen, "--trusted-proxies", "172.28.0.0/16"]).unwrap();
            assert_eq!((config.tls, config.registration), (Tls::Off, Registration::Invite), "{listen}");
            assert!(config.trusted_proxies.contains("172.28.0.9".parse().unwrap()));
        }
        let named = config(&["--address", "relay.example"]).unwrap();
        assert_eq!((named.tls, named.registration), (Tls::Off, Registration::Invite), "others are meant to reach it");
    }

    #[test]
    fn an_address_is_a_host_and_maybe_a_port() {
        let address = |text| config(&["--address", text]).unwrap().address;
        assert_eq!(address("relay.example"), Some(("relay.example".to_owned(), None)));
        assert_eq!(address("relay.example:443"), Some(("relay.example".to_owned(), Some(443))));
        assert_eq!(address("[2001:db8::1]:7611"), Some(("[2001:db8::1]".to_owned(), Some(7611))));
        assert_eq!(address(""), None);
    }

    #[test]
    fn the_database_is_a_file_or_postgres() {
        assert_eq!(config(&["--database", "sqlite:/tmp/a.db"]).unwrap().place, Place::Sqlite("/tmp/a.db".into()));
        for url in ["postgres://u@h/d", "postgresql://h/d"] {
            assert_eq!(config(&["--database", url]).unwrap().place, Place::Postgres(PostgresConfig::new(url)));
        }
        let more = ["--postgres-connections", "40", "--postgres-failover", "lossless"];
        let place = config(&[&["--database", "postgres://h/d"], &more[..]].concat()).unwrap().place;
        let Place::Postgres(postgres) = place else { panic!("not Postgres") };
        assert_eq!((postgres.connections, postgres.lossless_failover), (40, true));
        for url in ["sqlite::memory:", "sqlite:///tmp/a.db", "sqlite://a.db", "sqlite:a.db?mode=ro", "sqlite:file:a.db"]
        {
            assert!(config(&["--database", url]).unwrap_err().to_string().contains("plain path"), "{url}");
        }
        assert_eq!(config(&["--database", ""]).unwrap().place, config(&[]).unwrap().place);
        for url in ["mysql://h/d", "sqlite:", "a.db", "postgres:d"] {
            assert!(config(&["--database", url]).unwrap_err().to_string().contains("sqlite:PATH"), "{url}");
        }
    }

    #[test]
    fn limits_are_set_by_name() {
        let set = config(&["--limit", "queue_entries_max=7", "--limit", "retention_s=60"]).unwrap().limits;
        assert_eq!(set, Limits { queue_entries_max: 7, retention_s: 60, ..Limits::default() });
        for limit in
            ["fetch_entries_max=0", "connections_max=0", "retention_s=18446744073709551615", "ephemeral_bytes_max=5000"]
        {
            assert!(config(&["--limit", limit]).is_err(), "{limit}");
        }
        for name in MAY_BE_ZERO {
            assert!(Limits::DOCS.iter().any(|(limit, _)| *limit == name), "{name} is a limit");
            assert!(config(&["--limit", &format!("{name}=0")]).is_ok(), "{name}");
        }
    }
}
