//! Reach: where others find this relay and by what they know it, as the connection string says.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use undertone_wire::{ConnectionString, Hash};

use crate::config::Config;

/// Addresses that nobody has (RFC 5737, RFC 3849): where they would be sent shows by which address this machine goes out.
const NOWHERE: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// The connection string of a relay that listens at `listening` and has a key with this fingerprint.
pub(crate) fn connection_string(config: &Config, listening: SocketAddr, fingerprint: Hash) -> Option<ConnectionString> {
    let (host, port) = match &config.address {
        Some((host, port)) => (host.clone(), port.unwrap_or(listening.port())),
        None => (text(outward(listening.ip())), listening.port()),
    };
    let mut connection = ConnectionString::new(&host, port).ok()?;
    connection.fingerprint = Some(fingerprint);
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
fn text(ip: IpAddr) -> String {
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
        let key = Hash::from([7; 32]);
        let said = |listen: &str, address: Option<(&str, Option<u16>)>| {
            let listen: SocketAddr = listen.parse().unwrap();
            let mut config = Config::new(Place::Sqlite("a".into()), listen);
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
}
