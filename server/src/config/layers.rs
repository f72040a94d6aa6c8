//! Where a value comes from: the default, the file, a variable, a flag, the later one stronger.
//!
//! Invariant: values are texts until somebody says what they must be, and whoever refuses one can say where it was given.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    Arguments,
    keys::{self, Key, Kind},
};

/// Where something was given.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In a configuration file.
    File(String),
    /// In a variable of the environment.
    Variable(String),
    /// On the command line.
    Flag(String),
}

/// Something in the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// What is given there cannot be read, or belongs to no key.
    Given(Origin, String),
    /// The value of a key is not what it must be, or there is no such key.
    Key(Origin, String, String),
}

impl ConfigError {
    /// The key that is wrong; `None` if it is not known which.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Given(..) => None,
            Self::Key(_, key, _) => Some(key),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(origin, why) => write!(f, "{origin}: {why}"),
            Self::Key(origin, key, why) => write!(f, "{origin}: {key}: {why}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File(name) | Self::Variable(name) | Self::Flag(name) => name,
        })
    }
}

/// The variables that are the relay's, by name. One that is set to nothing is as good as none.
fn ours(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, ConfigError> {
    let names = variables.into_iter().filter_map(|(name, text)| Some((name.into_string().ok()?, text)));
    let ours = names.filter(|(name, text)| keys::is_ours(name) && !text.is_empty());
    let text = |(name, text): (String, OsString)| match text.into_string() {
        Ok(text) => Ok((name, text)),
        Err(_) => Err(ConfigError::Given(Origin::Variable(name), "it must be UTF-8".to_owned())),
    };
    ours.map(text).collect()
}

/// What is given for each key.
#[derive(Clone)]
pub(super) struct Layers {
    given: BTreeMap<String, (Origin, String)>,
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A value may be a secret.
        f.debug_map().entries(self.given.iter().map(|(key, (origin, _))| (key, origin))).finish()
    }
}

impl Layers {
    /// Puts all that is given on top of each other.
    pub(super) fn read(
        arguments: &Arguments,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self { given: BTreeMap::new() };
        let keys = keys::all();
        for key in &keys {
            layers.give(&key.name, Origin::Default, key.default.clone());
        }
        let mut variables = ours(variables)?;
        let file = variables.remove(keys::FILE_VARIABLE).map(PathBuf::from);
        if let Some(path) = arguments.config.clone().or(file) {
            layers.read_file(&path)?;
        }
        for key in &keys {
            if let Some(text) = variables.remove(&key.variable()) {
                layers.give(&key.name, Origin::Variable(key.variable()), text);
            }
        }
        if let Some((unknown, _)) = variables.pop_first() {
            let why = format!("there is no such variable; is it {} that is meant?", keys::variable_most_like(&unknown));
            return Err(ConfigError::Given(Origin::Variable(unknown), why));
        }
        for (flag, key, text) in arguments.given() {
            layers.give_known(Origin::Flag(flag.to_owned()), &key, text)?;
        }
        layers.read_secrets(&keys)?;
        Ok(layers)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let origin = Origin::File(path.display().to_string());
        let refused = |why: String| ConfigError::Given(origin.clone(), why);
        let text = std::fs::read_to_string(path).map_err(|error| refused(format!("it cannot be read: {error}")))?;
        let table: toml::Table = text.parse().map_err(|error| refused(not_toml(&text, &error)))?;
        for (key, value) in table {
            match value {
                toml::Value::Table(limits) if key == "limits" => {
                    for (name, value) in limits {
                        let key = format!("limits.{name}");
                        let text = text_of(&origin, &key, value)?;
                        self.give_known(origin.clone(), &key, text)?;
                    }
                }
                _ if key == "limits" => {
                    let why = "limits are a table: write [limits], and below it NAME = NUMBER";
                    return Err(ConfigError::Key(origin, key, why.to_owned()));
                }
                value => {
                    let text = text_of(&origin, &key, value)?;
                    self.give_known(origin.clone(), &key, text)?;
                }
            }
        }
        Ok(())
    }

    /// Puts the contents of files in the place of the secrets that they hold.
    fn read_secrets(&mut self, keys: &[Key]) -> Result<(), ConfigError> {
        for key in keys.iter().filter(|key| key.kind == Kind::Secret) {
            let file = format!("{}_file", key.name);
            let ((origin, path), (direct, _)) = (self.get(&file), self.get(&key.name));
            if path.is_empty() {
                continue;
            }
            match rank(direct).cmp(&rank(origin)) {
                // The file counts no more, and is not shown as if it did.
                Ordering::Greater => self.give(&file, direct.clone(), String::new()),
                Ordering::Equal => {
                    return Err(self.refuse(&file, &format!("give either this or {}, not both", key.name)));
                }
                Ordering::Less => {
                    let read = std::fs::read_to_string(path);
                    let text = read.map_err(|error| self.refuse(&file, &format!("{path} cannot be read: {error}")))?;
                    if text.trim().is_empty() {
                        return Err(self.refuse(&file, &format!("{path} is empty")));
                    }
                    self.give(&key.name, origin.clone(), text.trim().to_owned());
                }
            }
        }
        Ok(())
    }

    fn give_known(&mut self, origin: Origin, key: &str, text: String) -> Result<(), ConfigError> {
        if !self.given.contains_key(key) {
            let known = keys::most_like(key).unwrap_or_default();
            let why = format!("there is no such key; is it {known} that is meant?");
            return Err(ConfigError::Key(origin, key.to_owned(), why));
        }
        self.give(key, origin, text);
        Ok(())
    }

    fn give(&mut self, key: &str, origin: Origin, text: String) {
        self.given.insert(key.to_owned(), (origin, text));
    }

    /// Notes what holds for a key for which nothing is given, as it follows from others.
    pub(super) fn follows(&mut self, key: &str, text: &str) {
        if self.get(key).1.is_empty() {
            self.give(key, Origin::Default, text.to_owned());
        }
    }

    /// What is given for a key, and where.
    pub(super) fn get(&self, key: &str) -> (&Origin, &str) {
        self.given.get(key).map_or((&Origin::Default, ""), |(origin, text)| (origin, text))
    }

    /// The value of a key, as `check` understands it, or its reason why not.
    pub(super) fn checked<T>(
        &self,
        key: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        check(self.get(key).1).map_err(|why| self.refuse(key, &why))
    }

    /// The value of a key, which must be such a thing.
    pub(super) fn parsed<T: FromStr>(&self, key: &str, such: &str) -> Result<T, ConfigError> {
        self.checked(key, |text| text.parse().map_err(|_| format!("it must be {such}")))
    }

    /// Why the value of a key cannot be.
    pub(super) fn refuse(&self, key: &str, why: &str) -> ConfigError {
        ConfigError::Key(self.get(key).0.clone(), key.to_owned(), why.to_owned())
    }
}

/// How strong an origin is: the strongest holds.
fn rank(origin: &Origin) -> u8 {
    match origin {
        Origin::Default => 0,
        Origin::File(_) => 1,
        Origin::Variable(_) => 2,
        Origin::Flag(_) => 3,
    }
}

fn text_of(origin: &Origin, key: &str, value: toml::Value) -> Result<String, ConfigError> {
    let refused = |what: &str| {
        let known = if keys::all().iter().any(|known| known.name == key) { "" } else { ", and there is no such key" };
        Err(ConfigError::Key(origin.clone(), key.to_owned(), format!("it must be one value, not {what}{known}")))
    };
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Table(_) => refused("a table"),
        toml::Value::Array(_) => refused("a list"),
        other => Ok(other.to_string()),
    }
}

/// What is wrong with a file that is no TOML, in one line.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("line {line} is not TOML: {}", error.message().replace('\n', ", "))
}
