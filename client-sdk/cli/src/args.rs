//! The command line: what may be written, and the help that explains it. What it does is in `commands`.
//!
//! Invariant: what comes out of parsing has its final type; a bad id or number never reaches a command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use undertone::{DeviceId, InviteCode, MessageId, SafetyNumber, Username};

/// Encrypted messaging through an Undertone relay.
///
/// GROUP is a group's name or id, USER a username or an account id, and CONVERSATION a GROUP or @USER. Exit status: 0 done;
/// 1 refused, with the reason on stderr; 2 wrong usage; 3 the relay cannot be reached and the command needs it.
#[derive(Debug, Parser)]
#[command(name = "undertone", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Folder that holds the account, its keys and its history [default: undertone in your data folder]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print one JSON object per line on stdout, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or a tracing filter
    #[arg(long, global = true, env = "UNDERTONE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an account at a relay, with this device as its first
    ///
    /// The store is encrypted with the passphrase in UNDERTONE_PASSPHRASE, or with a key file made for it in your config
    /// folder if that is not set.
    Register(Register),
    /// Make this a new device of an account that has others, or approve one
    ///
    /// Shows a code, also as a QR code, and waits until a device of the account has approved it (`link approve`). The new
    /// device has the account's groups and conversations, but no history.
    Link(Link),
    /// Show this account's devices, and take one off
    #[command(subcommand)]
    Devices(DevicesCommand),
    /// Make this account's recovery key, to be written down; it is shown once
    ///
    /// With it you get the account back when all devices are lost (`recover`), and nobody without it, not even who has stolen a
    /// device, can replace the account's identity key.
    RecoveryKey,
    /// Make this the first device of an account whose devices are all lost
    Recover(Recover),
    /// Show what you and somebody compare to know that nobody stands between you
    SafetyNumber {
        /// With whom
        user: String,
    },
    /// Say that you have compared it; also when their identity key has changed since
    Verify {
        /// With whom
        user: String,
        /// What you have compared: refused if it is another by now
        #[arg(value_name = "SAFETY_NUMBER")]
        number: Option<SafetyNumber>,
    },
    /// Show this account and device
    Whoami,
    /// Create groups, and change who is in them
    #[command(subcommand)]
    Group(GroupCommand),
    /// Send one message; without a connection it is queued and goes out later
    Send(Send),
    /// Talk in a group, or with somebody: what you type is sent, what comes is shown
    ///
    /// Ends with Ctrl-D or /quit. With --json, or if stdin is not a terminal, every line of stdin is sent, and it ends when
    /// all of them were.
    Chat(Chat),
    /// Show what happens in all conversations, from where the last `listen` or `chat` stopped
    Listen(Listen),
    /// Show the messages of a conversation, oldest first, without a connection
    History(History),
    /// Find messages by their words, the newest first, without a connection
    Search(Search),
    /// Show nothing more of an account: not what it writes, and not the groups to which it adds you
    Block {
        /// Whom
        user: String,
    },
    /// End that
    Unblock {
        /// Whom
        user: String,
    },
    /// Receive and send what is waiting, then stop
    Sync,
}

/// `register`
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The relay's connection string or address, as it shows it; may be repeated if the relay has several
    ///
    /// All must be addresses of the same relay. They are kept in the store: every command stays with the one that works
    /// and moves on by itself when it does not.
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) relay: Vec<String>,
    /// An invite, where the relay asks for one
    #[arg(long, value_name = "CODE")]
    pub(crate) invite: Option<InviteCode>,
    /// A name by which others find this account: 2 to 32 characters of a-z, 0-9, '.', '_' and '-'
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<Username>,
}

/// `link`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Link {
    #[command(subcommand)]
    pub(crate) approve: Option<LinkCommand>,
    /// The relay's connection string or address, as it shows it; may be repeated if the relay has several
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) relay: Vec<String>,
    /// What to call this device; the account's other devices see it, and nobody else
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) name: String,
    /// Join the account with this id or fingerprint and no other, without asking; `whoami` shows both there
    #[arg(long, value_name = "ID")]
    pub(crate) account: Option<String>,
}

/// `recover`
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The recovery key that was written down; - takes it from stdin
    pub(crate) key: String,
    /// The relay's connection string or address, as it shows it; may be repeated if the relay has several
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) relay: Vec<String>,
    /// What to call this device; the account's other devices see it, and nobody else
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) name: String,
}

/// `link ...`
#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Let the device that shows this code belong to this account
    Approve {
        /// What it shows
        code: String,
    },
}

/// `devices ...`
#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// List them
    List,
    /// Take one off: it can neither send nor receive any more
    ///
    /// It keeps what it has, and the account's identity key with it: of one that was stolen, say so.
    Remove {
        /// Its id
        id: DeviceId,
        /// Replace the account's identity key as well, so that whoever has the device cannot come back with it
        ///
        /// Contacts are told of the new one. Without a recovery key whoever has the device can do the same: who is first has
        /// the account.
        #[arg(long)]
        stolen: bool,
        /// With --stolen: the recovery key, which is needed if there is one; - takes it from stdin
        #[arg(long, value_name = "KEY", requires = "stolen")]
        recovery_key: Option<String>,
    },
}

/// `group ...`
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a group; without a connection the relay learns of it later
    Create {
        /// The group's name, which its members see and the relay does not
        name: String,
        /// Add this account at once; may be repeated
        #[arg(long = "add", value_name = "USER")]
        add: Vec<String>,
        /// Keep what is said there secret from who records it now and has a quantum computer later; for up to 100 devices
        #[arg(long)]
        post_quantum: bool,
    },
    /// Add an account with all its devices
    Add {
        /// The group
        group: String,
        /// Whom to add
        user: String,
    },
    /// Remove an account with all its devices
    Remove {
        /// The group
        group: String,
        /// Whom to remove
        user: String,
    },
    /// Give a group another name
    Rename {
        /// The group
        group: String,
        /// Its name from now on, which its members see and the relay does not
        name: String,
    },
    /// Accept that a stranger has added you to a group; to send something there says the same
    Accept {
        /// The group
        group: String,
    },
    /// Decline that, and leave the group
    Decline {
        /// The group
        group: String,
    },
    /// Leave a group; its history stays here
    Leave {
        /// The group
        group: String,
    },
    /// List all groups in the store
    List,
    /// Show a group and its members
    Show {
        /// The group
        group: String,
    },
}

/// `send`
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The group, or @ and whom
    #[arg(value_name = "CONVERSATION")]
    pub(crate) to: String,
    /// The message; - takes it from stdin
    pub(crate) text: String,
}

/// `chat`
#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// The group, or @ and with whom
    #[arg(value_name = "CONVERSATION")]
    pub(crate) with: String,
}

/// `listen`
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Stop after so many messages; other events are not counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Stop after so many seconds, counted from when everything waiting at the relay has come
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) seconds: Option<u64>,
}

/// `history`
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The group, or @ and with whom
    #[arg(value_name = "CONVERSATION")]
    pub(crate) of: String,
    /// Show at most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// Show what stands before this message
    #[arg(long, value_name = "MESSAGE_ID")]
    pub(crate) before: Option<MessageId>,
}

/// `search`
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// What they have in them: each of these words, or one that begins with it
    #[arg(required = true, value_name = "WORD")]
    pub(crate) words: Vec<String>,
    /// Only in this group, or in what was said with @USER
    #[arg(long = "in", value_name = "CONVERSATION")]
    pub(crate) within: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(crate) limit: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("undertone").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_before_and_after_the_verb() {
        for line in ["--store /s --json whoami", "whoami --json --store /s", "group list --store /s --json"] {
            let arguments = parse(line).unwrap();
            assert_eq!((arguments.json, arguments.store), (true, Some("/s".into())), "{line}");
        }
    }

    #[test]
    fn add_may_be_repeated() {
        let Command::Group(GroupCommand::Create { name, add, post_quantum: false }) =
            parse("group create team --add bob --add carol").unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!((name.as_str(), add), ("team", vec!["bob".to_owned(), "carol".to_owned()]));
    }

    #[test]
    fn a_relay_may_have_several_addresses() {
        let Command::Register(register) = parse("register --relay http://a --relay http://b").unwrap().command else {
            panic!("another command");
        };
        assert_eq!(register.relay, ["http://a", "http://b"]);
    }

    #[test]
    fn a_dash_is_a_text() {
        assert!(matches!(parse("send team -").unwrap().command, Command::Send(Send { text, .. }) if text == "-"));
    }

    #[test]
    fn what_does_not_fit_is_wrong_usage() {
        for line in [
            "",
            "register",
            "register --relay http://r --username A!",
            "listen --count 0",
            "listen --for -1",
            "history team --limit 0",
            "history team --before yesterday",
            "send team",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
