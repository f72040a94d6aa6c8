//! Reach: where others find this relay and by what they know it, as the connection string says.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use undertone_wire::{ConnectionString, Hash};

use crate::config::{Config, Tls};

/// Addresses that nobody has (RFC 5737, RFC 3849): where they would be sent shows by which address this machine goes out.
const NOWHERE: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// The port of `https://`.
const HTTPS: u16 = 443;

/// The connection string of a relay that listens at `listening`, with the fingerprint of the key that it made itself. `None` if
/// nobody but its own machine reaches it, as far as it is told, or nobody knows its port.
pub(crate) fn connection_string(
    config: &Config,
    listening: SocketAddr,
    fingerprint: Option<Hash>,
) -> Option<ConnectionString> {
    let (host, port) = match &config.address {
        // A certificate that an authority signed is shown at the usual port, by the relay or by a proxy.
        Some((host, port)) => {
            (host.clone(), port.unwrap_or(if fingerprint.is_some() { listening.port() } else { HTTPS }))
        }
        None if config.tls == Tls::Off => return None,
        None => (text(outward(listening.ip())), listening.port()),
    };
    let mut connection = ConnectionString::new(&host, port).ok().filter(|_| port != 0)?;
    connection.fingerprint = fingerprint;
    Some(connection)
}

/// The address itself, or if it stands for all of them, the one by which this machine goes out.
fn outward(ip: IpAddr) -> IpAddr {
    if !ip.is_unspecified() {
        return ip;
    }
    // Nothing is sent: a datagram socket that is connected only learns its own address.
    let asked = NOWHERE.iter().find_map(|(any, nowhere)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(nowhere).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    asked.or_else(an_interfaces).unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// An address by which neighbours reach this machine where no way leads further.
fn an_interfaces() -> Option<IpAddr> {
    let mut ips: Vec<_> = if_addrs::get_if_addrs().ok()?.into_iter().map(|interface| interface.ip()).collect();
    ips.retain(|ip| !ip.is_loopback() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    // IPv4 first.
    ips.sort_unstable();
    ips.first().copied()
}

/// An address as it stands in a URL.
pub(crate) fn text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;

    #[test]
    fn the_string_has_what_others_reach() {
        let key = Some(Hash::from([7; 32]));
        let said = |listen: &str, address: Option<(&str, Option<u16>)>| {
            let listen: SocketAddr = listen.parse().unwrap();
            let mut config = Config::new(Place::Sqlite("a".into()), listen);
            config.tls = Tls::SelfMade;
            config.address = address.map(|(host, port)| (host.to_owned(), port));
            let said = connection_string(&config, listen, key).unwrap().to_string();
            said.split_once('#').unwrap().0.to_owned()
        };
        assert_eq!(said("192.0.2.7:7611", None), "undertone://192.0.2.7:7611/");
        assert_eq!(said("[2001:db8::7]:443", None), "undertone://[2001:db8::7]/");
        assert_eq!(said("0.0.0.0:7611", Some(("relay.example", None))), "undertone://relay.example:7611/");
        assert_eq!(said("0.0.0.0:7611", Some(("relay.example", Some(443)))), "undertone://relay.example/");
        let somewhere = said("0.0.0.0:7611", None);
        assert!(!somewhere.contains("0.0.0.0") && somewhere.ends_with(":7611/"), "{somewhere}");
    }

    #[test]
    fn behind_a_proxy_the_string_has_what_the_proxy_is_known_by() {
        let listen: SocketAddr = "127.0.0.1:7611".parse().unwrap();
        let mut config = Config::new(Place::Sqlite("a".into()), listen);
        assert_eq!(connection_string(&config, listen, None), None, "it is for this machine");
        for (port, said) in [(None, "undertone://relay.example/"), (Some(8443), "undertone://relay.example:8443/")] {
            config.address = Some(("relay.example".to_owned(), port));
            assert_eq!(connection_string(&config, listen, None).unwrap().to_string(), said);
        }
    }
}
