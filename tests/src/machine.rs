//! Machines of a test's own, where every port is free and names lead where the test says.

use std::{fs, path::Path, process::Stdio};

use tokio::process::{Child, Command};

use crate::{Ids, command, inside, said, wait_until};

/// Runs the test of this name (`file::function`) again on a machine of its own, and answers `false`; there it answers `true`,
/// once the machine has its loopback interface, these addresses, and these names for 127.0.0.1.
///
/// # Panics
/// If there can be no such machine, or the test fails on it.
pub async fn on_a_machine_of_its_own(test: &str, addresses: &[&str], names: &[&str]) -> bool {
    if !inside(test, "--net --mount", Ids::Root).await {
        return false;
    }
    said(command("ip link set lo up")).await;
    for address in addresses {
        said(command("ip addr add dev lo").arg(address)).await;
    }
    if !names.is_empty() {
        let hosts = tempfile::NamedTempFile::new().expect("a file can be made");
        fs::write(hosts.path(), format!("127.0.0.1 localhost {}\n", names.join(" "))).expect("it can be written");
        said(command("mount --bind").arg(hosts.path()).arg("/etc/hosts")).await;
    }
    true
}

/// A second machine beside a test's own.
pub struct There {
    // It goes with its standard input.
    _holds_it: Child,
    pid: u32,
}

impl There {
    /// A machine that reaches this one, 10.77.0.1, as 10.77.0.2.
    ///
    /// # Panics
    /// If there can be none.
    pub async fn beside_here() -> Self {
        let held = command("unshare --net cat").stdin(Stdio::piped()).spawn().expect("unshare runs");
        let pid = held.id().expect("it runs");
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        wait_until("the other machine is another", async || {
            (namespace(&pid.to_string()) != namespace("self")).then_some(())
        })
        .await;
        let there = Self { _holds_it: held, pid };
        said(command("ip link add here type veth peer name there netns").arg(pid.to_string())).await;
        for on_it in ["ip addr add 10.77.0.1/24 dev here", "ip link set here up"] {
            said(command(on_it)).await;
        }
        for on_it in ["ip link set lo up", "ip addr add 10.77.0.2/24 dev there", "ip link set there up"] {
            said(there.on_it(&command(on_it))).await;
        }
        there
    }

    /// The same command on this machine.
    pub fn on_it(&self, what: &Command) -> Command {
        let what = what.as_std();
        let mut there = command("nsenter --net");
        there.args(["--target", &self.pid.to_string(), "--"]).arg(what.get_program());
        there.args(what.get_args()).stdin(Stdio::null());
        for (name, value) in what.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there
    }
}

/// A program of this machine, which `tests/run` fetches where it is missing.
///
/// # Panics
/// If it is not there.
pub fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    let found = folders.any(|folder| Path::new(&folder).join(name).exists());
    assert!(found, "{name} is missing: tests/run fetches it, or install it");
    command(name)
}
