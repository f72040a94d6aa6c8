//! Where a relay is, as people give it, and by what it is known there.
//!
//! A connection string (`undertone://`), an `https://` URL, or, on this machine only, an `http://` URL.
//!
//! Invariant: what leaves the device for another machine is encrypted for whoever proves to be the relay: by the key whose
//! fingerprint the connection string has, or by a certificate for the host that this machine's authorities signed.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use undertone_wire::{ConnectionString, ConnectionStringError, Hash, InviteCode};
use url::{Host, Url};

/// Where a relay is, and by what it is known there.
#[derive(Debug, Clone)]
pub struct Place {
    text: String,
    base: Url,
    invite: Option<InviteCode>,
    fingerprint: Option<Hash>,
}

/// Why text says no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// It begins like a connection string, and is none.
    #[error(transparent)]
    Connection(#[from] ConnectionStringError),
    /// It is no address, or has more than an address has.
    #[error("the relay's address must be a connection string (undertone://...) or begin with https://")]
    NotAddress,
    /// It would send everything to another machine in clear.
    #[error(
        "http:// is for a relay on this machine only: to another, everything would cross the network in clear. Use the \
         connection string that the relay shows (undertone://...), or https://"
    )]
    InClear,
}

impl Place {
    /// Understands what people give.
    ///
    /// # Errors
    /// What is wrong with it, in words for people.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if text.trim_start().starts_with("undertone:") {
            return Self::connection(text.parse()?);
        }
        let base = Url::parse(text).map_err(|_| PlaceError::NotAddress)?;
        let somebody = !base.username().is_empty() || base.password().is_some();
        if base.query().is_some() || base.fragment().is_some() || somebody {
            return Err(PlaceError::NotAddress);
        }
        match base.scheme() {
            "https" => {}
            "http" if is_this_machine(&base) => {}
            "http" => return Err(PlaceError::InClear),
            _ => return Err(PlaceError::NotAddress),
        }
        Ok(Self { text: text.to_owned(), base, invite: None, fingerprint: None })
    }

    /// Where a connection string says.
    ///
    /// # Errors
    /// [`PlaceError::NotAddress`] if its host stands in no URL.
    pub fn connection(mut given: ConnectionString) -> Result<Self, PlaceError> {
        let base = Url::parse(&given.url()).map_err(|_| PlaceError::NotAddress)?;
        let (invite, fingerprint) = (given.invite.take(), given.fingerprint);
        Ok(Self { text: given.to_string(), base, invite, fingerprint })
    }

    /// A relay on this machine that does not speak TLS and listens at one of the machine's own addresses, which need not be
    /// a loopback one: what a machine sends to itself crosses no network. That the address is its own is the caller's word.
    ///
    /// # Errors
    /// [`PlaceError::NotAddress`] if the address stands in no URL.
    pub fn own_machine(listening: SocketAddr) -> Result<Self, PlaceError> {
        let text = format!("http://{listening}");
        let base = Url::parse(&text).map_err(|_| PlaceError::NotAddress)?;
        Ok(Self { text, base, invite: None, fingerprint: None })
    }

    /// As it is to be kept: what was given, without the invite.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What to register with, if that was given along.
    pub fn invite(&self) -> Option<InviteCode> {
        self.invite
    }

    /// Where the relay's paths begin.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// How TLS is spoken there; with nobody, if it is not.
    pub(crate) fn tls(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match self.fingerprint {
            Some(fingerprint) => {
                let pinned = Arc::new(Pinned { fingerprint, algorithms });
                builder.dangerous().with_custom_certificate_verifier(pinned)
            }
            None if self.base.scheme() == "http" => builder.with_root_certificates(RootCertStore::empty()),
            None => builder.with_platform_verifier()?,
        };
        Ok(builder.with_no_client_auth())
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Why a handshake did not prove who is there, in words for people; `None` if something else went wrong.
pub(crate) fn distrust(error: &TlsError) -> Option<&'static str> {
    match error {
        TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => Some(
            "it shows another key than the one in the connection string. Either the relay was set up anew, or somebody \
             stands between you and it: ask whoever runs it before you use another connection string",
        ),
        TlsError::InvalidCertificate(_) => Some(
            "its certificate is not one that this machine accepts for that name. If the relay made its certificate \
             itself, use the connection string that it shows",
        ),
        TlsError::InvalidMessage(_) => Some("it does not speak TLS there"),
        _ => None,
    }
}

/// Takes whoever has the key with this fingerprint, and nobody else, whatever else the certificate says.
#[derive(Debug)]
struct Pinned {
    fingerprint: Hash,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        if Hash::of(&certificate.subject_public_key_info()) != self.fingerprint {
            return Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";

    #[test]
    fn what_people_give_is_understood() {
        let given = format!("undertone://192.0.2.1:7611/#{FINGERPRINT}&invite=CQkJCQkJCQkJCQkJCQkJCQ");
        let place = Place::parse(&given).unwrap();
        assert_eq!(place.text, format!("undertone://192.0.2.1:7611/#{FINGERPRINT}"), "the invite is not kept");
        assert_eq!(place.base.as_str(), "https://192.0.2.1:7611/");
        assert_eq!((place.invite, place.fingerprint), (Some([9; 16].into()), Some(Hash::from([7; 32]))));
        for here in ["http://127.0.0.1:7611", "http://localhost:1/", "http://[::1]:7611", "https://relay.example"] {
            let place = Place::parse(here).unwrap();
            assert_eq!((place.text.as_str(), place.invite, place.fingerprint), (here, None, None));
        }
    }

    #[test]
    fn nothing_goes_to_another_machine_in_clear() {
        for there in ["http://192.0.2.1:7611", "http://relay.example", "http://[2001:db8::1]", "http://10.0.0.1"] {
            assert!(matches!(Place::parse(there), Err(PlaceError::InClear)), "{there}");
        }
        for bad in [
            "relay.example",
            "ftp://a",
            "https://a/?b",
            "https://a/#b",
            "https://you@a",
            "https://:word@a",
            "undertone://",
            "",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machines_own_addresses_are_where_they_say() {
        for (own, base) in [
            ("127.0.0.1:7611", "http://127.0.0.1:7611/"),
            ("192.0.2.1:80", "http://192.0.2.1/"),
            ("[2001:db8::1]:7611", "http://[2001:db8::1]:7611/"),
        ] {
            let place = Place::own_machine(own.parse().unwrap()).unwrap();
            assert_eq!((place.base.as_str(), place.invite, place.fingerprint), (base, None, None));
        }
        let scoped = "[fe80::1%3]:7611".parse().unwrap();
        assert_eq!(Place::own_machine(scoped).unwrap_err(), PlaceError::NotAddress, "a URL has no room for the scope");
    }
}
