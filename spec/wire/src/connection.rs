//! The connection string: where a relay is, by what it is known, and maybe an invite, in one line to paste.
//!
//! `undertone://HOST:PORT/#FINGERPRINT&invite=CODE`. The port is 443 if it is not there; both parts behind the `#` may be
//! missing. Without a fingerprint the relay is known by a certificate for its host that an authority signed.
//!
//! Invariant: what stands behind the `#` is for the one who pastes it, and is sent to nobody but as what it is.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use url::{Host, Url};

use crate::{Hash, InviteCode};

const SCHEME: &str = "undertone://";
const PORT: u16 = 443;
const INVITE: &str = "invite=";

/// Where a relay is, and by what it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionString {
    host: Host,
    port: u16,
    /// SHA-256 of the public key in the relay's certificate (its `SubjectPublicKeyInfo`, RFC 5280, section 4.1), if the
    /// relay is known by that.
    pub fingerprint: Option<Hash>,
    /// What to register with.
    pub invite: Option<InviteCode>,
}

/// Text that is no connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// It does not begin as one does.
    #[error("a connection string begins with undertone://")]
    Scheme,
    /// There is no host, or more than a host and a port.
    #[error("after undertone:// comes a host, and maybe a colon and a port, and nothing else before the #")]
    Host,
    /// What is behind the `#` is not understood.
    #[error(
        "behind the # comes a fingerprint of 43 characters, or invite= and a code, or both with & between them; it may have been cut when it was copied"
    )]
    Fragment,
}

impl ConnectionString {
    /// A relay at a host and port, known by a certificate that an authority signed.
    ///
    /// # Errors
    /// [`ConnectionStringError::Host`] if that is no host.
    pub fn new(host: &str, port: u16) -> Result<Self, ConnectionStringError> {
        let host = Host::parse(host).map_err(|_| ConnectionStringError::Host)?;
        Ok(Self { host, port, fingerprint: None, invite: None })
    }

    /// The same with something to register with.
    #[must_use]
    pub fn with_invite(self, invite: InviteCode) -> Self {
        Self { invite: Some(invite), ..self }
    }

    /// The relay's URL.
    pub fn url(&self) -> String {
        match self.port {
            PORT => format!("https://{}", self.host),
            port => format!("https://{}:{port}", self.host),
        }
    }
}

impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.host)?;
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        let fingerprint = self.fingerprint.map(|hash| URL_SAFE_NO_PAD.encode(hash.as_bytes()));
        let invite = self.invite.map(|invite| format!("{INVITE}{invite}"));
        let parts: Vec<_> = fingerprint.into_iter().chain(invite).collect();
        match parts.is_empty() {
            true => f.write_str("/"),
            false => write!(f, "/#{}", parts.join("&")),
        }
    }
}

impl FromStr for ConnectionString {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, ConnectionStringError> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(ConnectionStringError::Scheme)?;
        let (place, fragment) = rest.split_once('#').map_or((rest, None), |(place, fragment)| (place, Some(fragment)));
        let url = Url::parse(&format!("https://{place}")).map_err(|_| ConnectionStringError::Host)?;
        let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty() && url.password().is_none();
        let (true, Some(host)) = (bare, url.host()) else { return Err(ConnectionStringError::Host) };
        let mut parsed =
            Self { host: host.to_owned(), port: url.port().unwrap_or(PORT), fingerprint: None, invite: None };
        for part in fragment.into_iter().flat_map(|fragment| fragment.split('&')) {
            match part.strip_prefix(INVITE) {
                Some(code) if parsed.invite.is_none() => {
                    parsed.invite = Some(code.parse().map_err(|_| ConnectionStringError::Fragment)?);
                }
                None if parsed.fingerprint.is_none() => parsed.fingerprint = Some(fingerprint(part)?),
                _ => return Err(ConnectionStringError::Fragment),
            }
        }
        Ok(parsed)
    }
}

fn fingerprint(text: &str) -> Result<Hash, ConnectionStringError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ConnectionStringError::Fragment)?;
    Hash::try_from(bytes.as_slice()).map_err(|_| ConnectionStringError::Fragment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
    const CODE: &str = "CQkJCQkJCQkJCQkJCQkJCQ";

    #[test]
    fn what_is_said_is_understood() {
        let (fingerprint, invite) = (Some(Hash::from([7; 32])), Some(InviteCode::from([9; 16])));
        for (text, url, known_by, with) in [
            ("undertone://relay.example/".to_owned(), "https://relay.example", None, None),
            ("undertone://relay.example:7611/".to_owned(), "https://relay.example:7611", None, None),
            (format!("undertone://192.0.2.1:7611/#{FINGERPRINT}"), "https://192.0.2.1:7611", fingerprint, None),
            (format!("undertone://[2001:db8::1]/#invite={CODE}"), "https://[2001:db8::1]", None, invite),
            (format!("undertone://a:1/#{FINGERPRINT}&invite={CODE}"), "https://a:1", fingerprint, invite),
        ] {
            let parsed: ConnectionString = text.parse().unwrap();
            assert_eq!((parsed.url().as_str(), parsed.fingerprint, parsed.invite), (url, known_by, with), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        let short: ConnectionString = " undertone://Relay.Example:443\n".parse().unwrap();
        assert_eq!(short, ConnectionString::new("relay.example", 443).unwrap());
    }

    #[test]
    fn what_is_not_understood_is_said() {
        use ConnectionStringError::{Fragment, Host, Scheme};
        for (text, error) in [
            ("https://relay.example/", Scheme),
            ("relay.example", Scheme),
            ("", Scheme),
            ("undertone://", Host),
            ("undertone:///", Host),
            ("undertone://a b/", Host),
            ("undertone://a:70000/", Host),
            ("undertone://somebody@a/", Host),
            ("undertone://a/b", Host),
            ("undertone://a/?b", Host),
            ("undertone://a/#", Fragment),
            ("undertone://a/#short", Fragment),
            ("undertone://a/#invite=short", Fragment),
            ("undertone://a/#other=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc", Fragment),
        ] {
            assert_eq!(text.parse::<ConnectionString>(), Err(error), "{text}");
        }
        let twice = format!("undertone://a/#{FINGERPRINT}&{FINGERPRINT}");
        assert_eq!(twice.parse::<ConnectionString>(), Err(Fragment));
    }
}
