//! The image: what is in the root that `docker/assemble` makes, and that a relay runs in it under the constraints of a
//! container, made by hand: a root that cannot be written, a user without rights, and no way to get any.
//!
//! Where an engine runs, the image is built from the Dockerfile as well, and started.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, UdpSocket},
    process::{Child, Command},
};
use undertone_tests::{Ids, binary, command, inside, root, said, scaled, wait_until};

use crate::packaging::dockerfile_environment;

const ASSEMBLED: &str = "image::what_is_assembled_is_the_relay_and_what_it_needs";
const CONFINED: &str = "image::a_relay_without_rights_serves_from_a_root_that_cannot_be_written";

/// How long a program may take to look up a name and to ask there.
const PATIENCE: Duration = Duration::from_secs(60);

const PROGRAM: &str = "/usr/local/bin/undertone-server";
const USER: u32 = 10_001;

/// What all files of the image may have together. Without debug information the build of the tests has half of it, though
/// it is not optimised for size.
const BYTES_MAX: u64 = 60 << 20;

/// The same for the build that ships.
const RELEASE_BYTES_MAX: u64 = 30 << 20;

/// What is in the image beside the program and its libraries.
const FILES: [&str; 4] = ["etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"];

/// The image's root, with this program in it.
async fn assemble(folder: &Path, program: &Path) -> PathBuf {
    let image = folder.join("image");
    let mut assemble = Command::new(root().join("docker/assemble"));
    assemble.arg(&image).arg(program);
    said(assemble).await;
    image
}

/// All that is in a folder, by its path from there.
fn tree(folder: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), metadata);
        }
    }
    found
}

fn assert_holds_nothing_else(image: &Path, bytes_max: u64) {
    let tree = tree(image);
    let is_library = |path: &str| path.starts_with("lib") && path.contains(".so");
    for (path, metadata) in &tree {
        let (path, mode) = (path.to_str().unwrap(), metadata.mode());
        assert!(metadata.is_dir() || metadata.is_file(), "{path} is a link or worse");
        assert_eq!(mode & 0o7022, 0, "{path} gives rights: {mode:o}");
        let owner = if path == "data" { USER } else { 0 };
        assert_eq!((metadata.uid(), metadata.gid()), (owner, owner), "{path}");
        if metadata.is_file() {
            let known = path == &PROGRAM[1..] || is_library(path) || FILES.contains(&path);
            assert!(known, "{path} is in the image");
        }
    }
    for file in FILES.into_iter().chain([&PROGRAM[1..]]) {
        assert!(tree.contains_key(Path::new(file)), "{file} is not in the image");
    }
    assert_eq!(tree[Path::new("data")].mode() & 0o777, 0o700);
    let bytes: u64 = tree.values().filter(|metadata| metadata.is_file()).map(fs::Metadata::len).sum();
    println!("the image has {bytes} bytes");
    assert!(bytes < bytes_max, "the image has {bytes} bytes");
}

#[tokio::test]
async fn what_is_assembled_is_the_relay_and_what_it_needs() {
    if !inside(ASSEMBLED, "--mount", Ids::Many).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = assemble(folder.path(), &binary("undertone-server")).await;
    assert_holds_nothing_else(&image, BYTES_MAX);
    let mut again = Command::new(root().join("docker/assemble"));
    let refused = again.arg(&image).arg(binary("undertone-server")).output().await.unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("not empty"));
    // What the look above would not find.
    fs::set_permissions(image.join("etc/group"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(std::panic::catch_unwind(|| assert_holds_nothing_else(&image, BYTES_MAX)).is_err());

    if scaled(0, 1) == 1 {
        let release = tempfile::tempdir().unwrap();
        let image = assemble(release.path(), &binary("../release/undertone-server")).await;
        assert_holds_nothing_else(&image, RELEASE_BYTES_MAX);
    }
}

/// A container made by hand: the image as a root that cannot be written, but for `/data`.
struct Container {
    root: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Container {
    /// With the names of `/etc/hosts`, and this machine as the resolver of all others, as an engine puts them there.
    async fn of(image: &Path) -> Self {
        fs::write(image.join("etc/hosts"), "127.0.0.1 localhost in-hosts.test\n").unwrap();
        fs::write(image.join("etc/resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let root = image.with_file_name("root");
        fs::create_dir(&root).unwrap();
        let mut environment = dockerfile_environment();
        environment.insert("UNDERTONE_ADDRESS".to_owned(), "relay.example.org".to_owned());
        let container = Self { root, environment };
        let (from, to) = (image.display(), container.root.display());
        for words in [
            "ip link set lo up".to_owned(),
            format!("mount --bind {from} {to}"),
            format!("mount -o remount,bind,ro {to}"),
            format!("mount --bind {from}/data {to}/data"),
        ] {
            said(command(&words)).await;
        }
        container
    }

    /// The program in it. What makes the container needs three rights to become nobody; it loses them by that, and
    /// nothing gives them back.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command("setpriv --no-new-privs --inh-caps=-all");
        command.args(["--bounding-set=-all,+sys_chroot,+setuid,+setgid", "chroot", "--groups="]);
        command.arg(format!("--userspec={USER}:{USER}")).arg(&self.root).arg(PROGRAM).args(arguments);
        let path = std::env::var_os("PATH").unwrap();
        command.env_clear().envs(&self.environment).env("PATH", path).kill_on_drop(true);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What cannot be written cannot be removed with the test's folder.
        let _ = std::process::Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.root).output();
    }
}

fn assert_has_no_rights(relay: &Child) {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id().unwrap())).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} in {status}")).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for ids in ["Uid", "Gid"] {
        assert_eq!(value(ids), vec![USER.to_string(); 4]);
    }
    assert_eq!(value("Groups"), Vec::<String>::new());
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(value(capabilities), ["0000000000000000"], "{capabilities}");
    }
    assert_eq!(value("NoNewPrivs"), ["1"]);
}

#[tokio::test]
async fn a_relay_without_rights_serves_from_a_root_that_cannot_be_written() {
    if !inside(CONFINED, "--mount --net", Ids::Many).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let container = Container::of(&assemble(folder.path(), &binary("undertone-server")).await).await;
    let mut relay = container.command(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let ready = BufReader::new(relay.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    assert!(ready.contains("undertone://relay.example.org:7611/#"), "{ready}");
    assert_has_no_rights(&relay);

    said(container.command(&["health"])).await;
    let invite = said(container.command(&["invite", "create"])).await;
    assert!(invite.contains("&invite="), "{invite}");

    let pid = relay.id().unwrap();
    said(command(&format!("kill -TERM {pid}"))).await;
    let status = relay.wait().await.unwrap();
    assert!(status.success(), "the relay ended with {status}");
    for file in ["undertone.db", "undertone.tls.key"] {
        let metadata = fs::metadata(container.root.join("data").join(file)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (USER, 0o600), "{file}");
    }
    assert_writes_to_data_only(&container).await;
    assert_finds_names(&container).await;
}

async fn assert_writes_to_data_only(container: &Container) {
    said(container.command(&["migrate", "--data", "/data/elsewhere"])).await;
    for elsewhere in ["/elsewhere", "/tmp/elsewhere", "/etc/elsewhere", "/usr/local/bin/elsewhere"] {
        let refused = container.command(&["migrate", "--data", elsewhere]).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("Read-only file system"), "{elsewhere}: {stderr}");
    }
    assert_eq!(fs::write(container.root.join("by-root"), "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

/// A database that is given by its name is found, whether the name is in `/etc/hosts` or a resolver knows it.
async fn assert_finds_names(container: &Container) {
    let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await.unwrap();
    let resolving = tokio::spawn(resolve(resolver));
    for name in ["in-hosts.test", "in-dns.test"] {
        let database = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("postgres://undertone@{name}:{}/undertone", database.local_addr().unwrap().port());
        let _asking = container.command(&["migrate", "--database", &url]).stderr(Stdio::null()).spawn().unwrap();
        let asked = tokio::time::timeout(PATIENCE, database.accept()).await;
        asked.unwrap_or_else(|_| panic!("nobody finds {name}")).unwrap();
    }
    resolving.abort();
}

/// Answers that every name has the address 127.0.0.1, and no other.
async fn resolve(resolver: UdpSocket) {
    const FLAGS: [u8; 2] = [0x81, 0x80];
    const TYPE_A: [u8; 2] = [0, 1];
    // The name of the question, of type A and class IN, for a minute, in four bytes.
    const RECORD: [u8; 16] = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1];
    let mut packet = [0; 512];
    loop {
        let (bytes, from) = resolver.recv_from(&mut packet).await.unwrap();
        // A header of 12 bytes; labels with their lengths, up to an empty one; type and class.
        let mut end = 12;
        while packet[end] != 0 {
            end += 1 + usize::from(packet[end]);
        }
        let question = &packet[12..bytes.min(end + 5)];
        let records = u8::from(packet[end + 1..end + 3] == TYPE_A);
        let counts = [0, 1, 0, records, 0, 0, 0, 0];
        let record = if records == 1 { &RECORD[..] } else { &[] };
        let answer = [&packet[..2], &FLAGS, &counts, question, record].concat();
        resolver.send_to(&answer, from).await.unwrap();
    }
}

/// A container or an image that an engine has, and that goes with the test.
struct Removed(&'static [&'static str], String);

impl Drop for Removed {
    fn drop(&mut self) {
        // What is not there need not be removed.
        let _ = std::process::Command::new("docker").args(self.0).arg(&self.1).output();
    }
}

#[tokio::test]
async fn an_engine_builds_and_runs_the_image() {
    let engine = command("docker info").output().await;
    if !engine.is_ok_and(|info| info.status.success()) {
        println!("no engine runs here: the image was tested without one only");
        return;
    }
    let image = Removed(&["image", "rm", "--force"], format!("undertone-test-{}", std::process::id()));
    let mut build = command("docker build --file docker/Dockerfile --tag");
    build.arg(&image.1).arg(".").current_dir(root());
    said(build).await;
    let mut run = command("docker run --detach --read-only --cap-drop ALL --security-opt no-new-privileges");
    run.args(["--env", "UNDERTONE_ADDRESS=relay.example.org", &image.1]);
    let container = Removed(&["rm", "--force", "--volumes"], said(run).await);
    let docker = async |words: &str| said(command(&format!("docker {words}"))).await;
    wait_until("the container says that it is well", async || {
        let ask = format!("exec {} {PROGRAM} health", container.1);
        let asked = command(&format!("docker {ask}")).output().await.unwrap();
        asked.status.success().then_some(())
    })
    .await;
    let invite = docker(&format!("exec {} undertone-server invite create", container.1)).await;
    assert!(invite.starts_with("undertone://relay.example.org:7611/#"), "{invite}");
    docker(&format!("stop --time 30 {}", container.1)).await;
    let ended = docker(&format!("inspect --format {{{{.State.ExitCode}}}} {}", container.1)).await;
    assert_eq!(ended, "0");
}
