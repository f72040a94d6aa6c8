//! What a relay is hosted with: compose files, the systemd unit, Kubernetes manifests and what docs/self-hosting.md says to
//! write are taken by the programs they are for, and say nothing to the relay that it does not know.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde_json::Value;
use tokio::process::Command;
use undertone_tests::{binary, blocks, command, program, root, said};

/// The variables of a relay's environment.
type Environment = BTreeMap<String, String>;

/// How a relay is reached in all examples.
const ADDRESS: &str = "relay.example.org";

/// The sets of compose files that are used together, a service of each, and how it encrypts.
const COMPOSED: [(&[&str], &str, &str); 3] = [
    (&["compose.yaml"], "relay", "self-made"),
    (&["compose.yaml", "compose.acme.yaml"], "relay", "acme"),
    (&["compose.postgres.yaml"], "relay-2", "off"),
];

/// The manifests with a relay in them, and how it encrypts.
const MANIFESTS: [(&str, &str); 2] = [("sqlite.yaml", "self-made"), ("postgres.yaml", "off")];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The variables that the image gives to whatever runs in it.
pub(crate) fn dockerfile_environment() -> Environment {
    let dockerfile = read("docker/Dockerfile").replace("\\\n", " ");
    let lines = dockerfile.lines().filter_map(|line| line.strip_prefix("ENV "));
    let pairs = lines.flat_map(str::split_whitespace).map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The compose program: the engine's plugin, or Debian's.
async fn compose() -> Command {
    let plugin = command("docker compose version").output().await;
    command(if plugin.is_ok_and(|said| said.status.success()) { "docker compose" } else { "docker-compose" })
}

/// Compose files as compose understands them, with the one variable set.
async fn composed(folder: &Path, files: &[&str]) -> Result<Value, String> {
    let mut compose = compose().await;
    for file in files {
        compose.arg("-f").arg(folder.join(file));
    }
    let said = compose.arg("config").env("UNDERTONE_ADDRESS", ADDRESS).output().await.unwrap();
    let [stdout, stderr] = [said.stdout, said.stderr].map(|said| String::from_utf8(said).unwrap());
    if said.status.success() { Ok(yaml(&stdout).remove(0)) } else { Err(stderr) }
}

/// The documents in a YAML file.
fn yaml(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What `undertone-server config` says to this environment, or why it refuses it. The database's URL stands in a file as the
/// deployment has it, but here.
async fn config(folder: &Path, environment: Environment, arguments: &[&str]) -> Result<String, String> {
    let mut relay = Command::new(binary("undertone-server"));
    relay.env_clear().envs(environment.iter().filter(|(name, _)| name.starts_with("UNDERTONE_")));
    if environment.contains_key("UNDERTONE_DATABASE_FILE") {
        let url = folder.join("database-url");
        fs::write(&url, "postgres://undertone:secret@postgres/undertone").unwrap();
        relay.env("UNDERTONE_DATABASE_FILE", url);
    }
    let said = relay.arg("config").args(arguments).output().await.unwrap();
    let [stdout, stderr] = [said.stdout, said.stderr].map(|said| String::from_utf8(said).unwrap());
    if said.status.success() { Ok(stdout) } else { Err(stderr) }
}

/// A relay with this environment is one that others reach, that encrypts in this way, and lets in who has an invite.
async fn assert_is_taken(what: &str, environment: Environment, tls: &str) {
    let folder = tempfile::tempdir().unwrap();
    let said = config(folder.path(), environment, &[]).await.unwrap_or_else(|why| panic!("{what}: {why}"));
    for (key, value) in [("tls", tls), ("registration", "invite"), ("listen", "0.0.0.0:7611"), ("data", "/data")] {
        assert!(format!("\n{said}").contains(&format!("\n{key} = \"{value}\"")), "{what}: {key} in {said}");
    }
    assert!(said.contains(&format!("\naddress = \"{ADDRESS}")), "{what}: {said}");
}

#[tokio::test]
async fn compose_takes_the_compose_files_and_the_relay_what_they_set() {
    for (files, service, tls) in COMPOSED {
        let composed = composed(&root().join("docker"), files).await.unwrap();
        let service = &composed["services"][service];
        let mut environment = dockerfile_environment();
        for (name, value) in service["environment"].as_object().unwrap() {
            environment.insert(name.clone(), value.as_str().unwrap().to_owned());
        }
        assert_is_taken(&format!("{files:?}"), environment, tls).await;
        assert_eq!(service["read_only"], true, "{files:?}");
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{files:?}");
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{files:?}");
    }
}

#[tokio::test]
async fn compose_asks_for_the_address_and_refuses_what_it_does_not_know() {
    for (files, _, _) in COMPOSED {
        let mut compose = compose().await;
        for file in files {
            compose.arg("-f").arg(root().join("docker").join(file));
        }
        // Whoever tries this may have an address in a file beside the compose files; a variable is stronger.
        let refused = compose.arg("config").env("UNDERTONE_ADDRESS", "").output().await.unwrap();
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && stderr.contains("machine"), "{files:?}: {stderr}");
    }
    let folder = tempfile::tempdir().unwrap();
    let broken = read("docker/compose.yaml").replace("read_only:", "red_only:");
    fs::write(folder.path().join("compose.yaml"), broken).unwrap();
    let refused = composed(folder.path(), &["compose.yaml"]).await.unwrap_err();
    assert!(refused.contains("red_only"), "{refused}");
}

#[tokio::test]
async fn only_the_proxy_of_the_postgres_deployment_is_published() {
    let composed = composed(&root().join("docker"), &["compose.postgres.yaml"]).await.unwrap();
    let services = composed["services"].as_object().unwrap();
    for (name, service) in services {
        assert_eq!(service.get("ports").is_some(), name == "caddy", "{name}");
        let networks: BTreeSet<_> = service["networks"].as_object().unwrap().keys().map(String::as_str).collect();
        let known: &[&str] = match name.as_str() {
            "caddy" => &["front", "world"],
            "postgres" => &["back"],
            _ => &["back", "front"],
        };
        assert_eq!(networks, known.iter().copied().collect(), "{name}");
    }
    for network in ["front", "back"] {
        assert_eq!(composed["networks"][network]["internal"], true, "{network}");
    }
    let trusted = &services["relay-1"]["environment"]["UNDERTONE_TRUSTED_PROXIES"];
    assert_eq!(&composed["networks"]["front"]["ipam"]["config"][0]["subnet"], trusted);
    assert_eq!(services["relay-1"], services["relay-2"]);
}

#[tokio::test]
async fn secrets_are_made_once_and_kept_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("make-secrets");
    fs::copy(root().join("docker/make-secrets"), &script).unwrap();
    let secret = |name: &str| fs::read_to_string(folder.path().join("secrets").join(name)).unwrap();
    said(Command::new(&script)).await;
    let password = secret("postgres-password");
    assert!(password.len() == 64 && password.chars().all(|digit| digit.is_ascii_hexdigit()), "{password}");
    assert_eq!(secret("database-url"), format!("postgres://undertone:{password}@postgres/undertone"));
    said(Command::new(&script)).await;
    assert_eq!(secret("postgres-password"), password);
    let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("secrets"), mode("secrets/database-url"), mode("secrets/postgres-password")),
        (0o700, 0o644, 0o644)
    );
}

#[tokio::test]
async fn a_relay_takes_what_the_manifests_set() {
    for (file, tls) in MANIFESTS {
        let documents = yaml(&read(&format!("packaging/kubernetes/{file}")));
        let pods = documents.iter().filter_map(|document| document["spec"]["template"]["spec"].as_object());
        let pods: Vec<_> = pods.collect();
        assert_eq!(pods.len(), 1, "{file}");
        for pod in pods {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{file}");
            let relay = &pod["containers"][0];
            let mut environment = dockerfile_environment();
            for variable in relay["env"].as_array().unwrap() {
                let [name, value] = ["name", "value"].map(|part| variable[part].as_str().unwrap().to_owned());
                environment.insert(name, value);
            }
            assert_is_taken(file, environment, tls).await;
            assert_eq!(relay["securityContext"]["readOnlyRootFilesystem"], true, "{file}");
            assert_eq!(relay["securityContext"]["capabilities"]["drop"], serde_json::json!(["ALL"]), "{file}");
            let scheme = if tls == "off" { Value::Null } else { "HTTPS".into() };
            for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
                let asked = &relay[probe]["httpGet"];
                assert_eq!((&asked["path"], &asked["scheme"]), (&path.into(), &scheme), "{file}: {probe}");
            }
        }
    }
}

#[test]
fn every_manifest_is_whole() {
    for entry in fs::read_dir(root().join("packaging/kubernetes")).unwrap() {
        let path = entry.unwrap().path();
        let documents = yaml(&fs::read_to_string(&path).unwrap());
        assert!(!documents.is_empty(), "{}", path.display());
        for document in documents {
            for part in [&document["apiVersion"], &document["kind"], &document["metadata"]["name"]] {
                assert!(part.is_string(), "{}: {document}", path.display());
            }
        }
    }
}

/// What `systemd-analyze` says to the unit, with the program where it is here.
async fn verified(unit: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let program = binary("undertone-server");
    let here = unit.replace("/usr/local/bin/undertone-server", program.to_str().unwrap());
    assert_ne!(here, unit);
    let file = folder.path().join("undertone.service");
    fs::write(&file, here).unwrap();
    let said = command("systemd-analyze verify --man=no").arg(&file).output().await.unwrap();
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.success() || !stderr.is_empty());
    // It looks at what else is installed as well, which is not ours.
    let ours = |line: &&str| line.contains("undertone");
    stderr.lines().filter(ours).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn systemd_takes_the_unit() {
    let unit = read("packaging/systemd/undertone.service");
    assert_eq!(verified(&unit).await, "");
    let broken = verified(&unit.replace("NoNewPrivileges=", "NoNewPrivilege=")).await;
    assert!(broken.contains("NoNewPrivilege"), "{broken}");
    let words = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    assert_eq!(words, "/usr/local/bin/undertone-server --config /etc/undertone/undertone.toml");
}

/// The fenced blocks of a language in the page on hosting.
fn documented(language: &str) -> Vec<String> {
    blocks(&read("docs/self-hosting.md"), language)
}

#[tokio::test]
async fn caddy_takes_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let settings = read("docker/Caddyfile");
    for (text, is_taken) in [(settings.clone(), true), (settings.replace("lb_try_duration", "lb_try_durations"), false)]
    {
        let file = folder.path().join("Caddyfile");
        fs::write(&file, text).unwrap();
        let mut caddy = program("caddy");
        caddy.args(["adapt", "--adapter", "caddyfile", "--config"]).arg(&file).env("UNDERTONE_ADDRESS", ADDRESS);
        let said = caddy.env("HOME", folder.path()).output().await.unwrap();
        assert_eq!(said.status.success(), is_taken, "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(String::from_utf8_lossy(&said.stdout).contains(ADDRESS), is_taken);
    }
}

#[test]
fn yaml_in_the_page_on_hosting_is_yaml() {
    let blocks = documented("yaml");
    assert!(!blocks.is_empty());
    for block in blocks {
        assert!(yaml(&block)[0].is_object(), "{block}");
    }
}

#[tokio::test]
async fn a_relay_takes_the_configurations_in_the_page_on_hosting() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = documented("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let file = folder.path().join("undertone.toml");
        let written = block.replace("/etc/undertone/database-url", folder.path().join("url").to_str().unwrap());
        fs::write(folder.path().join("url"), "postgres://undertone:secret@localhost/undertone").unwrap();
        fs::write(&file, written).unwrap();
        let said = config(folder.path(), Environment::new(), &["--config", file.to_str().unwrap()]).await;
        let said = said.unwrap_or_else(|why| panic!("{why}: {block}"));
        assert!(said.contains("registration = \"invite\""), "others are meant to reach it: {said}");
    }
}

#[test]
fn the_page_on_hosting_quotes_what_is_really_said() {
    let mut sources = String::new();
    for folder in ["server/src", "client-sdk"] {
        read_sources(&root().join(folder), &mut sources);
    }
    let page = read("docs/self-hosting.md");
    let headings: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(headings.len() > 10, "{headings:?}");
    for heading in headings {
        for part in heading.split('…').map(str::trim).filter(|part| !part.is_empty()) {
            assert!(sources.contains(part), "nobody says {part}");
        }
    }
}

/// Adds what the Rust files in a folder say, with literals that go over several lines in one.
fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut lines = text.split("\\\n");
            sources.push_str(lines.next().unwrap());
            lines.for_each(|line| sources.push_str(line.trim_start()));
        }
    }
}

/// The variables of the relay that are named in a text.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("UNDERTONE_")).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_variable_that_is_named_is_one_that_the_relay_reads() {
    let template = said({
        let mut relay = Command::new(binary("undertone-server"));
        relay.args(["config", "--template"]);
        relay
    })
    .await;
    let mut table = "";
    let mut known = BTreeSet::from(["UNDERTONE_CONFIG".to_owned()]);
    for line in template.lines() {
        if line == "[limits]" {
            table = "LIMITS_";
        } else if let Some((key, _)) = line.strip_prefix('#').and_then(|line| line.split_once(" = "))
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            known.insert(format!("UNDERTONE_{table}{}", key.to_uppercase()));
        }
    }
    assert!(known.contains("UNDERTONE_DATABASE_FILE") && known.contains("UNDERTONE_LIMITS_RETENTION_S"), "{known:?}");
    let mut texts = vec![root().join("docs/self-hosting.md"), root().join("README.md")];
    for folder in ["docker", "packaging/systemd", "packaging/kubernetes"] {
        let files = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        texts.extend(files.filter(|path| path.is_file()));
    }
    let mut named = 0;
    for path in texts {
        for variable in variables(&fs::read_to_string(&path).unwrap()) {
            // The beginning of all, where the page says how they are made.
            let is_known = known.contains(&variable) || variable == "UNDERTONE_";
            assert!(is_known, "{}: {variable} is not a variable of the relay", path.display());
            named += 1;
        }
    }
    assert!(named > 10, "{named}");
}
