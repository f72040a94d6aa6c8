//! Proxies: who may stand in front of the relay, and from which address a request comes then.
//!
//! Invariant: what a request says of its origin (`X-Forwarded-For`) is believed as far as trusted proxies said it, and no
//! further. Addresses are compared and counted, never written anywhere.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Once,
};

use http::{HeaderMap, HeaderName};
use ipnet::{IpNet, Ipv4Net};

/// Each proxy adds the address from which it was asked at the end; there may be several such headers.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose word counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl FromStr for TrustedProxies {
    type Err = String;

    /// Addresses and networks with commas between them; nothing is nobody.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().ok().map(|ip: IpAddr| IpNet::from(ip.to_canonical()));
    match text.parse().ok().or_else(address) {
        Some(network) if network.prefix_len() == 0 => {
            Err(format!("{text} is everybody; name the proxies, like 127.0.0.1 or 172.28.0.0/16"))
        }
        Some(network) => Ok(canonical(network)),
        None => Err(format!("{text} is not an address or a network; write them like 127.0.0.1, 172.28.0.0/16")),
    }
}

/// The IPv4 network, if it is one that is written as IPv6, since addresses are compared as what they are.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(written) = network else { return network };
    match (written.addr().to_ipv4_mapped(), written.prefix_len().checked_sub(96)) {
        (Some(ip), Some(prefix)) => Ipv4Net::new(ip, prefix).map_or(network, IpNet::V4),
        _ => network,
    }
}

impl TrustedProxies {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
    }

    /// Whether a connection from there, to a relay that listens at `listen`, may speak in clear: it stays on this machine, or is
    /// a trusted proxy's.
    pub(crate) fn may_speak_in_clear(&self, from: SocketAddr, listen: SocketAddr) -> bool {
        let from = from.ip().to_canonical();
        // Where the relay listens at all addresses, what comes from one of its own may have been forwarded.
        from.is_loopback() || from == listen.ip().to_canonical() || self.contains(from)
    }

    /// Where a request comes from that came over a connection from `peer`: the last address in the headers that is not a
    /// trusted proxy's, if a trusted proxy brought them; else `peer`. `None` if it is from this machine and for nobody else.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.to_canonical();
        if client.is_loopback() && !self.contains(client) && !headers.contains_key(FORWARDED_FOR) {
            return None;
        }
        let said = headers.get_all(FORWARDED_FOR).into_iter().rev();
        let mut said = said.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',').map(address));
        while self.contains(client) {
            // At a word that is no address the trail ends.
            let Some(Some(before)) = said.next() else { break };
            client = before;
        }
        Some(client)
    }

    /// Tells whoever hosts the relay, once, when requests come through a proxy that is not trusted.
    pub(crate) fn note(&self, peer: IpAddr, headers: &HeaderMap) {
        static TOLD: Once = Once::new();
        if headers.contains_key(FORWARDED_FOR) && !self.contains(peer) {
            TOLD.call_once(|| {
                tracing::warn!(
                    "a request came with X-Forwarded-For from an address that trusted_proxies does not name"
                );
            });
        }
    }
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse().ok().map(|with_port: SocketAddr| with_port.ip()))?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "203.0.113.9";

    fn proxies(text: &str) -> TrustedProxies {
        text.parse().unwrap()
    }

    fn client(proxies: &TrustedProxies, peer: &str, headers: &[&str]) -> String {
        let headers = headers.iter().map(|value| (FORWARDED_FOR, value.parse().unwrap())).collect();
        proxies.client(peer.parse().unwrap(), &headers).map_or_else(|| "nobody".to_owned(), |ip| ip.to_string())
    }

    #[test]
    fn the_word_of_a_proxy_counts_and_nobody_elses() {
        let trusted = proxies("127.0.0.1, 10.1.0.0/16,2001:db8:1::/48");
        for (peer, headers, is) in [
            ("127.0.0.1", &[CLIENT][..], CLIENT),
            ("::ffff:127.0.0.1", &[CLIENT], CLIENT),
            ("10.1.2.3", &["[2001:db8:7::9]:4711"], "2001:db8:7::9"),
            ("10.1.2.3", &["[2001:db8:7::9]"], "2001:db8:7::9"),
            ("10.1.2.3", &["203.0.113.9:4711"], CLIENT),
            // Through two proxies; what the client made up stands before.
            ("127.0.0.1", &["192.0.2.1, 203.0.113.9, 10.1.0.7"], CLIENT),
            ("127.0.0.1", &["192.0.2.1", "203.0.113.9", "2001:db8:1::1,10.1.0.7"], CLIENT),
            // From elsewhere nothing counts.
            (CLIENT, &["192.0.2.1"], CLIENT),
            ("10.2.0.1", &["192.0.2.1"], "10.2.0.1"),
            // A proxy that does not say, or not in a way that is understood, stands for its clients.
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["192.0.2.1, somebody"], "127.0.0.1"),
            ("127.0.0.1", &["192.0.2.1, unknown, 10.1.0.7"], "10.1.0.7"),
            ("127.0.0.1", &["10.1.0.7"], "10.1.0.7"),
            ("127.0.0.1", &["\u{e4}"], "127.0.0.1"),
        ] {
            assert_eq!(client(&trusted, peer, headers), is, "{peer} {headers:?}");
        }
        let none = proxies("");
        assert_eq!(client(&none, "127.0.0.1", &[]), "nobody", "it is from this machine");
        assert_eq!(client(&none, "127.0.0.1", &[CLIENT]), "127.0.0.1", "a proxy that nobody named");
        assert_eq!(client(&trusted, "::1", &[]), "nobody");
        assert_eq!(client(&proxies("::ffff:10.0.0.0/104"), "10.1.2.3", &[CLIENT]), CLIENT);
    }

    #[test]
    fn in_clear_speaks_this_machine_and_the_proxies() {
        let trusted = proxies("172.28.0.0/16");
        let to = |from: &str, listen: &str| {
            trusted.may_speak_in_clear(format!("{from}:50000").parse().unwrap(), listen.parse().unwrap())
        };
        let may = |from: &str| to(from, "192.0.2.7:7611");
        assert!(!to("192.0.2.7", "0.0.0.0:7611"), "it may have been forwarded");
        for from in ["127.0.0.1", "127.9.9.9", "192.0.2.7", "172.28.3.4", "[::1]", "[::ffff:172.28.3.4]"] {
            assert!(may(from), "{from}");
        }
        for from in ["192.0.2.8", "172.29.0.1", "[2001:db8::1]", "0.0.0.0"] {
            assert!(!may(from), "{from}");
        }
    }

    #[test]
    fn only_addresses_and_networks_are_proxies() {
        assert!(proxies("").is_empty() && proxies(" , ").is_empty());
        for bad in ["caddy", "127.0.0.1 10.0.0.1", "10.0.0.0/33", "127.0.0.1:80"] {
            let why = bad.parse::<TrustedProxies>().unwrap_err();
            assert!(why.contains(bad) && why.contains("172.28.0.0/16"), "{why}");
        }
        for everybody in ["0.0.0.0/0", "127.0.0.1,::/0"] {
            assert!(everybody.parse::<TrustedProxies>().unwrap_err().contains("is everybody"), "{everybody}");
        }
    }
}
