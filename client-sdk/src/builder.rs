//! Making a client: for a relay at its addresses, over a store, by registering or by opening what was registered before.
//!
//! Invariant: a client that could not be made leaves its store free for another.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use undertone_api::{HttpApi, RelayApi};
use undertone_wire::{InviteCode, Username};

use crate::{
    Client, Error,
    api::{Address, Addresses},
    clock::{Clock, SystemClock},
    crypto::{CryptoError, Entropy, recovery_key::RecoverySecret},
    linking::{Linking, new_device, recovered},
    registration,
    store::{self, Profile, Store, StoreKey},
    sync::{Engine, Tasks},
};

/// How many addresses a relay may have.
const RELAY_URLS_MAX: usize = 16;

/// Makes a [`Client`]. See [`Client::builder`].
pub struct ClientBuilder<S = ()> {
    relay_urls: Vec<String>,
    store: S,
    apis: Vec<Arc<dyn RelayApi>>,
    invite: Option<InviteCode>,
    clock: Arc<dyn Clock>,
    hold_changed: bool,
}

/// Where the store is, and its key.
pub struct StoreAt {
    path: PathBuf,
    key: StoreKey,
}

impl ClientBuilder {
    pub(crate) fn at(relays: Vec<String>) -> Self {
        let builder = Self {
            relay_urls: vec![],
            store: (),
            apis: vec![],
            invite: None,
            clock: Arc::new(SystemClock),
            hold_changed: false,
        };
        relays.into_iter().fold(builder, Self::also_at)
    }

    /// Where the device keeps everything: a folder, made if it is not there, encrypted with `key`.
    pub fn store(self, path: impl AsRef<Path>, key: StoreKey) -> ClientBuilder<StoreAt> {
        let store = StoreAt { path: path.as_ref().to_owned(), key };
        let Self { relay_urls, apis, invite, clock, hold_changed, .. } = self;
        ClientBuilder { relay_urls, store, apis, invite, clock, hold_changed }
    }
}

impl<S> ClientBuilder<S> {
    /// Another address of the same relay: another of its nodes, say. Up to 16 are kept in the store with the account.
    ///
    /// The client stays with the address that works and moves on when it does not, beginning with the one given to
    /// [`Client::builder`]. One that answers as another relay is passed over, with an [`Event::OtherRelay`], and looked
    /// at again when its turn comes.
    ///
    /// [`Event::OtherRelay`]: crate::Event::OtherRelay
    #[must_use]
    pub fn also_at(mut self, relay: impl Into<String>) -> Self {
        // What is none is refused when it is used.
        let given = relay.into();
        let place = undertone_api::Place::parse(&given).ok();
        self.invite = self.invite.or(place.as_ref().and_then(undertone_api::Place::invite));
        self.relay_urls.push(place.map_or(given, |place| place.text().to_owned()));
        self
    }

    /// An invite to register with, which some relays ask for.
    #[must_use]
    pub fn invite(mut self, invite: InviteCode) -> Self {
        self.invite = Some(invite);
        self
    }

    /// Messages to somebody whose identity key has changed wait until the user has said something to it: by
    /// [`Client::verify`] or [`Client::accept_identity`]. Otherwise they are sent, and the app is told.
    #[must_use]
    pub fn hold_changed_identities(mut self) -> Self {
        self.hold_changed = true;
        self
    }

    /// Tells the time instead of the system's clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Speaks to this relay instead of the one at the URL; called once for each URL, in their order.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn api(mut self, api: Arc<dyn RelayApi>) -> Self {
        self.apis.push(api);
        self
    }
}

impl ClientBuilder<StoreAt> {
    /// Registers a new account, with this device as its first, and opens it. A registration whose answer was lost is
    /// finished by calling this again.
    ///
    /// # Errors
    /// [`Error::UsernameTaken`], [`Error::InviteRequired`], [`Error::RegistrationClosed`], [`Error::AlreadyRegistered`]
    /// if the store holds an account, [`Error::Invalid`] if the addresses are of different relays, [`Error::Offline`].
    pub async fn register(self, username: impl Into<Option<&str>>) -> Result<Client, Error> {
        let username = username.into().map(str::parse::<Username>).transpose();
        let username = username.map_err(|error| Error::Invalid(error.to_string()))?;
        let addresses = self.addresses(&self.relay_urls)?;
        let store = Store::open(&self.store.path, self.store.key.clone()).await?;
        let registered = registration::register(addresses, &store, username, self.invite, Entropy::system()).await;
        begin(store, registered, self.hold_changed, self.clock).await
    }

    /// Makes this a new device of an account that has others: shows a code that one of those approves
    /// ([`Client::approve_link`]). What the user calls the device is told to the account's others alone.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`] if the store holds an account, also when an earlier attempt turns out to have been
    /// finished; [`Error::Invalid`] if the name has more than 64 bytes; [`Error::Offline`].
    pub async fn link(self, name: &str) -> Result<Linking, Error> {
        let (store, api) = self.empty_store().await?;
        let begun =
            Linking::begin(api, store.clone(), Arc::clone(&self.clock), Entropy::system(), name, self.hold_changed)
                .await;
        if begun.is_err() {
            store.close().await;
        }
        begun
    }

    /// Makes this the first device again of an account whose devices are all lost, by the recovery key that was written down: with
    /// another identity key, which its contacts are told of. The devices of before lose everything at the relay. Groups and
    /// history are not in it: others add the account to groups again.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no recovery key, [`Error::Refused`] if it is not that of an account here,
    /// [`Error::AlreadyRegistered`] if the store holds an account, also when an earlier attempt turns out to have been
    /// finished; [`Error::Offline`].
    pub async fn recover(self, recovery_key: &str, name: &str) -> Result<Client, Error> {
        let recovery = recovery_secret(recovery_key)?;
        let (store, addresses) = self.empty_store().await?;
        let recovered = recovered::recover(addresses, &store, &recovery, name, Entropy::system()).await;
        begin(store, recovered, self.hold_changed, self.clock).await
    }

    /// A store without an account. One that was about to be a device of one when it was closed, and was not, has none.
    async fn empty_store(&self) -> Result<(Store, Addresses), Error> {
        let addresses = self.addresses(&self.relay_urls)?;
        let store = Store::open(&self.store.path, self.store.key.clone()).await?;
        let empty = async {
            let profile = store.with_tx(|tx| tx.profile().map_err(Error::from)).await?;
            let relay_id = registration::agreed(&addresses).await?;
            let api = Addresses::new(addresses, relay_id);
            if let Some(profile) = profile {
                let begun = !profile.registered && !profile.identity.is_first();
                if !begun || new_device::finish(&api, &store, profile).await?.is_some() {
                    return Err(Error::AlreadyRegistered);
                }
            }
            Ok(api)
        };
        match empty.await {
            Ok(api) => Ok((store, api)),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Opens the account in the store, at the addresses given here, which replace those in the store.
    ///
    /// # Errors
    /// [`Error::NotRegistered`] if the store holds no account, [`Error::WrongKey`], [`Error::StoreInUse`].
    pub async fn open(self) -> Result<Client, Error> {
        self.open_with(Engine::start).await
    }

    pub(crate) async fn open_with(self, tasks: impl FnOnce(&Arc<Engine>) -> Tasks) -> Result<Client, Error> {
        if !store::exists(&self.store.path) {
            return Err(Error::NotRegistered);
        }
        let store = Store::open(&self.store.path, self.store.key.clone()).await?;
        let profile = store.with_tx(|tx| tx.profile().map_err(Error::from)).await?;
        let opened = async {
            // One that was about to be linked when it was closed may have been.
            let profile = profile.filter(|profile| profile.registered || !profile.identity.is_first());
            let profile = profile.ok_or(Error::NotRegistered)?;
            let api = self.reach(&store, &profile).await?;
            if profile.registered {
                return Ok((api, profile));
            }
            let finished = new_device::finish(&api, &store, profile).await?;
            finished.map(|profile| (api, profile)).ok_or(Error::NotRegistered)
        };
        let (api, profile) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        set_hold(&store, self.hold_changed).await?;
        Ok(Client::start(api, store, profile, self.clock, Entropy::system(), tasks))
    }

    /// The relay of an account, at the addresses given or, if none are, at those in the store.
    async fn reach(&self, store: &Store, profile: &Profile) -> Result<Addresses, Error> {
        if self.relay_urls.is_empty() {
            return Ok(Addresses::new(self.addresses(&profile.relay_urls)?, profile.relay_id));
        }
        let addresses = self.addresses(&self.relay_urls)?;
        let urls = registration::urls(&addresses);
        store.with_tx(move |tx| tx.set_relay_urls(&urls).map_err(Error::from)).await?;
        Ok(Addresses::new(addresses, profile.relay_id))
    }

    /// Each address once, with the way to it.
    fn addresses(&self, urls: &[String]) -> Result<Vec<Address>, Error> {
        let once: Vec<_> = (0..).zip(urls).filter(|(at, url)| !urls.iter().take(*at).any(|one| one == *url)).collect();
        if once.len() > RELAY_URLS_MAX {
            return Err(Error::Invalid(format!("a relay may have {RELAY_URLS_MAX} addresses at most")));
        }
        let many = once.len() > 1;
        let address = |(at, url): (usize, &String)| {
            let api = match self.apis.get(at) {
                Some(api) => Arc::clone(api),
                None => self.transport(url, many)?,
            };
            Ok(Address { url: url.clone(), api })
        };
        once.into_iter().map(address).collect()
    }

    fn transport(&self, relay: &str, one_of_many: bool) -> Result<Arc<dyn RelayApi>, Error> {
        let place = undertone_api::Place::parse(relay).map_err(|error| Error::Invalid(error.to_string()))?;
        let clock = Arc::clone(&self.clock);
        let now_ms = Arc::new(move || clock.now_ms());
        let api = if one_of_many { HttpApi::among_many(&place, now_ms) } else { HttpApi::new(&place, now_ms) };
        Ok(Arc::new(api.map_err(Error::from)?))
    }
}

/// A recovery key, as it was written down.
pub(crate) fn recovery_secret(text: &str) -> Result<RecoverySecret, Error> {
    text.parse().map_err(|error: CryptoError| Error::Invalid(error.to_string()))
}

/// A client over a store in which an account was made, or its store closed if none was.
async fn begin(
    store: Store,
    made: Result<(Profile, Addresses), Error>,
    hold_changed: bool,
    clock: Arc<dyn Clock>,
) -> Result<Client, Error> {
    match made {
        Ok((profile, api)) => {
            set_hold(&store, hold_changed).await?;
            Ok(Client::begin(api, store, profile, clock, Entropy::system()).await)
        }
        Err(error) => {
            store.close().await;
            Err(error)
        }
    }
}

async fn set_hold(store: &Store, hold: bool) -> Result<(), Error> {
    store.with_tx(move |tx| tx.hold_changed(hold).map_err(Error::from)).await
}
