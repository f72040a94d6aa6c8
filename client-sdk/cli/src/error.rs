//! Why a command did not do what it was asked, and the exit status that says so: the one place that maps them.

use std::{io, process::ExitCode};

use undertone::{Error, ErrorKind};

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The SDK said no.
    Sdk(Error),
    /// The command line said no, with a reason for people.
    Refused(String),
    /// The relay is needed and cannot be reached.
    Unreachable(String),
    /// Whoever read stdout is gone: nothing is wrong, and nobody is there to be told.
    NobodyReads,
}

impl Failure {
    /// The exit status, as the issue states it.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::NobodyReads => ExitCode::SUCCESS,
            Self::Unreachable(_) => ExitCode::from(3),
            Self::Sdk(error) if error.kind() == ErrorKind::Offline => ExitCode::from(3),
            Self::Sdk(_) | Self::Refused(_) => ExitCode::from(1),
        }
    }

    /// The reason, if there is somebody to tell. It may hold what others wrote: clean it before printing.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::NobodyReads => None,
            Self::Sdk(Error::NotRegistered) => {
                Some("this store holds no account yet: undertone register --relay URL makes one".into())
            }
            Self::Sdk(Error::AlreadyRegistered) => {
                Some("this store holds an account already: undertone whoami shows it".into())
            }
            Self::Sdk(error) => Some(error.to_string()),
            Self::Refused(reason) | Self::Unreachable(reason) => Some(reason.clone()),
        }
    }

    /// The same kind of failure, with what it was about in front.
    pub(crate) fn about(self, what: &str) -> Self {
        match (&self, self.reason()) {
            (Self::Unreachable(_), Some(reason)) => Self::Unreachable(format!("{what}: {reason}")),
            (Self::Sdk(error), Some(reason)) if error.kind() == ErrorKind::Offline => {
                Self::Unreachable(format!("{what}: {reason}"))
            }
            (_, Some(reason)) => Self::Refused(format!("{what}: {reason}")),
            (_, None) => self,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sdk(error)
    }
}

/// Of writing to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Refused(format!("stdout cannot be written: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(failure: &Failure, status: u8) -> bool {
        // `ExitCode` has no equality; its debug form tells them apart.
        format!("{:?}", failure.exit_code()) == format!("{:?}", ExitCode::from(status))
    }

    #[test]
    fn each_failure_has_its_status() {
        assert!(is(&Failure::NobodyReads, 0));
        assert!(is(&Failure::Refused("no".into()), 1));
        assert!(is(&Failure::Sdk(Error::StoreInUse), 1));
        assert!(is(&Failure::Sdk(Error::NotRegistered), 1));
        assert!(is(&Failure::Unreachable("away".into()), 3));
    }

    #[test]
    fn what_it_was_about_changes_no_status() {
        assert!(is(&Failure::Unreachable("away".into()).about("bob"), 3));
        assert!(is(&Failure::Sdk(Error::NoSuchMember).about("bob"), 1));
        assert_eq!(Failure::Refused("no".into()).about("bob was not added").reason().unwrap(), "bob was not added: no");
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::NobodyReads));
    }
}
