//! The command line: what to do, and the keys that are flags as well.

use std::path::PathBuf;

use clap::Parser;

/// The Undertone relay: ordered queues of opaque ciphertexts, one per device.
///
/// Without arguments it serves on 127.0.0.1:7611 with a database in ./undertone-data, made if missing. Every key of the
/// configuration file is a variable too: UNDERTONE_ and the key in capitals. A flag is stronger than a variable, and a
/// variable than the file. The command config shows all keys and what holds.
#[derive(Debug, Clone, Parser)]
#[command(name = "undertone-server", version)]
pub struct Arguments {
    /// What to do; serve if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration file, in TOML [variable: UNDERTONE_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:7611]
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub listen: Option<String>,
    /// How connections are encrypted: self-made, acme or off [default: off on loopback and behind a proxy, self-made elsewhere]
    #[arg(long, value_name = "HOW", global = true)]
    pub tls: Option<String>,
    /// Host, or host and port, by which others reach this relay; part of the connection string
    #[arg(long, value_name = "HOST", global = true)]
    pub address: Option<String>,
    /// Folder for the database and what TLS needs; made if missing [default: ./undertone-data]
    #[arg(long, value_name = "FOLDER", global = true)]
    pub data: Option<String>,
    /// Database as sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE [default: undertone.db in the data folder]
    ///
    /// A password on a command line can be read by others on this machine: give it as UNDERTONE_DATABASE, or as
    /// UNDERTONE_DATABASE_FILE, which names a file that holds it. Any number of relays may run over one Postgres database.
    /// Nothing but what TLS needs is then written to the data folder.
    #[arg(long, value_name = "URL", global = true)]
    pub database: Option<String>,
    /// Proxies in front of the relay: addresses and networks with commas between them [default: none]
    #[arg(long, value_name = "ADDRESSES", global = true)]
    pub trusted_proxies: Option<String>,
    /// Who may register: open, invite or closed [default: open for this machine only, invite otherwise]
    #[arg(long, value_name = "WHO", global = true)]
    pub registration: Option<String>,
    /// Most connections to Postgres [default: 16]
    #[arg(long, value_name = "COUNT", global = true)]
    pub postgres_connections: Option<String>,
    /// Say "lossless" if standbys of Postgres are synchronous, so that promoting one loses nothing [default: lossy]
    ///
    /// Otherwise the relay treats a promotion like a restored backup: devices publish new keys, and are told which
    /// numbers of their queues they may have missed. With "lossless" a recovery to an earlier time must be declared with
    /// the command restore.
    #[arg(long, value_name = "KIND", global = true)]
    pub postgres_failover: Option<String>,
    /// Set a limit; may be given several times. The command config shows all with their values.
    #[arg(long = "limit", value_name = "NAME=VALUE", global = true)]
    pub limits: Vec<String>,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or a tracing filter [default: info]
    ///
    /// No level names anybody.
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

/// What the binary does.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Serve (the same as no command)
    Serve,
    /// Show all keys of the configuration, what holds for each and where it was given, and end
    ///
    /// What is printed is a configuration file; secrets are left out.
    Config {
        /// Show the defaults and what each key means, with nothing set, to begin a file of your own with
        #[arg(long)]
        template: bool,
    },
    /// Make, list and revoke invites, by which others may register
    #[command(subcommand)]
    Invite(Invite),
    /// Ask the relay of this configuration, on this machine, whether it can serve, and end
    ///
    /// It exits 0 if it can, and 1 if not, within five seconds.
    Health,
    /// Let two throw-away accounts talk to each other through the running relay, remove them, and end
    ///
    /// It shows what works from here, through whatever stands in front of the relay, and how long each step takes. Where an
    /// invite is needed it makes one for two, and revokes it.
    Test {
        /// Where the relay is, as a client takes it: a connection string, with an invite for two or without, https://, or
        /// http:// on this machine [default: how others reach the relay of this configuration]
        #[arg(long, value_name = "ADDRESS")]
        relay: Option<String>,
    },
    /// Bring the database's schema up to date, and end. Serving does it too
    Migrate,
    /// Declare that the database was restored from a backup, and end
    ///
    /// The relay notices most restores by itself. It cannot notice rows that were restored into the same tables, a physical
    /// copy of a Postgres cluster that was started without recovery.signal, or a whole machine that was set back: run this
    /// before it serves again. Keys that may have been handed out before are then never handed out again, and devices are
    /// told which numbers of their queues they may have missed.
    Restore,
    /// Declare that the database was moved here whole and is not used any more where it was, and end
    Moved,
}

/// What to do with invites.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Invite {
    /// Make an invite and print it, with how to reach the relay. Its code is not kept
    Create {
        /// How many accounts may register with it
        #[arg(long, default_value_t = 1, value_name = "COUNT")]
        uses: u64,
        /// How long it holds, as in 90m, 24h or 7d
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires: std::time::Duration,
    },
    /// List the invites that hold: their ids, how many uses are left, and when they end
    List,
    /// Revoke an invite; who registered with it stays
    Revoke {
        /// Its id, as in the list
        id: String,
    },
}

impl Arguments {
    /// The keys that are given as flags: the flag, the key, the value.
    pub(super) fn given(&self) -> Vec<(&'static str, String, String)> {
        let texts = [
            ("--listen", "listen", &self.listen),
            ("--tls", "tls", &self.tls),
            ("--address", "address", &self.address),
            ("--data", "data", &self.data),
            ("--database", "database", &self.database),
            ("--trusted-proxies", "trusted_proxies", &self.trusted_proxies),
            ("--registration", "registration", &self.registration),
            ("--postgres-connections", "postgres_connections", &self.postgres_connections),
            ("--postgres-failover", "postgres_failover", &self.postgres_failover),
            ("--log", "log", &self.log),
        ];
        let texts = texts.into_iter().filter_map(|(flag, key, text)| Some((flag, key.to_owned(), text.clone()?)));
        let limits = self.limits.iter().map(|limit| {
            // Without a value it is no number, and refused as such.
            let (name, value) = limit.split_once('=').unwrap_or((limit, ""));
            ("--limit", format!("limits.{}", name.trim()), value.trim().to_owned())
        });
        texts.chain(limits).collect()
    }
}
