//! Group commit: requests of one kind that come at about the same time are written in one transaction.
//!
//! There is no timer. Whoever writes takes all that waits; while that commits, the next batch comes together by itself.
//!
//! Invariant: each item is answered after the commit, and with its own answer: a refusal of one is a value that touches
//! no other. If a batch fails, each of its items is tried again alone, so that none fails for another's sake, unless the
//! store is busy; an item is such that trying it again after an unknown outcome is harmless. What would make a batch long
//! is put off to the next.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    kill,
    store::{Db, StoreError, Tx},
};

/// Most items that are written at once.
const ITEMS_MAX: usize = 128;

/// Most bytes that are written at once, but one item if it is larger.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// Something that is written in batches.
pub(crate) trait Item: Send + Sync + 'static {
    /// What it comes to.
    type Answer: Send + 'static;
    /// What two items in a batch must not have in common.
    type Key: Eq + Hash + Send;

    /// Its kind, for kill points.
    const NAME: &'static str;

    /// Its key.
    fn key(&self) -> Self::Key;

    /// About how many bytes it brings.
    fn bytes(&self) -> usize;

    /// Does what items ask for, and answers each in its place. `None`: it did nothing for this one, because the others are
    /// enough for one transaction; it comes first in the next. The first item is always answered.
    fn write<'a>(tx: &'a mut Tx, items: &'a [Arc<Self>]) -> BoxFuture<'a, Result<Answers<Self>, StoreError>>
    where
        Self: Sized;
}

/// What a batch comes to.
pub(crate) type Answers<I> = Vec<Option<<I as Item>::Answer>>;

/// Where items of one kind wait to be written.
pub(crate) struct Batch<I: Item> {
    waiting: mpsc::UnboundedSender<Waiting<I>>,
    db: Db,
}

struct Waiting<I: Item> {
    item: Arc<I>,
    answer: oneshot::Sender<Result<I::Answer, StoreError>>,
    /// Bounds how many wait.
    _slot: OwnedSemaphorePermit,
}

impl<I: Item> Batch<I> {
    /// Begins to write, until this is dropped.
    pub(crate) fn new(db: &Db) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(Mutex::new(Receiver { waiting: receiver, held_back: Vec::new() }));
        for _ in 0..db.writers() {
            tokio::spawn(work(db.clone(), Arc::clone(&receiver)));
        }
        Self { waiting: sender, db: db.clone() }
    }

    /// Writes an item, together with whatever waits as well. It is written even if nobody waits for the answer.
    pub(crate) async fn write(&self, item: I) -> Result<I::Answer, StoreError> {
        let (answer, answered) = oneshot::channel();
        let slot = self.db.slot()?;
        self.waiting
            .send(Waiting { item: Arc::new(item), answer, _slot: slot })
            .map_err(|_| StoreError::Interrupted)?;
        answered.await.map_err(|_| StoreError::Interrupted)?
    }
}

struct Receiver<I: Item> {
    waiting: mpsc::UnboundedReceiver<Waiting<I>>,
    /// What waits for the next batch, because one with its key is in this.
    held_back: Vec<Waiting<I>>,
}

impl<I: Item> Receiver<I> {
    /// All that waits, as far as one batch takes it, and first of all what was put off; nothing if nothing will ever come.
    async fn take(&mut self, put_off: Vec<Waiting<I>>) -> Vec<Waiting<I>> {
        let mut batch = Vec::new();
        let (mut keys, mut bytes) = (HashSet::new(), 0);
        let mut candidates = put_off.into_iter().chain(std::mem::take(&mut self.held_back));
        loop {
            if batch.len() >= ITEMS_MAX || bytes >= BYTES_MAX {
                self.held_back.extend(candidates);
                return batch;
            }
            let next = match candidates.next() {
                Some(next) => next,
                None if batch.is_empty() => match self.waiting.recv().await {
                    Some(next) => next,
                    None => return batch,
                },
                None => match self.waiting.try_recv() {
                    Ok(next) => next,
                    Err(_) => return batch,
                },
            };
            if keys.insert(next.item.key()) {
                bytes += next.item.bytes();
                batch.push(next);
            } else {
                self.held_back.push(next);
            }
        }
    }
}

async fn work<I: Item>(db: Db, receiver: Arc<Mutex<Receiver<I>>>) {
    let mut put_off = Vec::new();
    loop {
        let batch = if put_off.is_empty() {
            receiver.lock().await.take(Vec::new()).await
        } else {
            // Another worker holds the lock only while there is nothing to take.
            match receiver.try_lock() {
                Ok(mut receiver) => receiver.take(put_off).await,
                Err(_) => put_off,
            }
        };
        if batch.is_empty() {
            return;
        }
        put_off = write_all(&db, batch).await;
    }
}

/// Writes a batch and answers all but what it puts off.
async fn write_all<I: Item>(db: &Db, batch: Vec<Waiting<I>>) -> Vec<Waiting<I>> {
    let items: Arc<[_]> = batch.iter().map(|waiting| Arc::clone(&waiting.item)).collect();
    match write(db, items).await {
        Ok(answers) => batch.into_iter().zip(answers).filter_map(|(waiting, answer)| tell(waiting, answer)).collect(),
        Err(error) => {
            tracing::debug!(%error, "a batch failed, so its items are tried one by one");
            write_one_by_one(db, batch).await;
            Vec::new()
        }
    }
}

/// Writes each item alone. Once the store is too busy for one, the others would wait as long in vain.
async fn write_one_by_one<I: Item>(db: &Db, batch: Vec<Waiting<I>>) {
    let mut busy = false;
    for waiting in batch {
        let alone = match busy {
            true => Err(StoreError::Busy),
            false => write(db, [Arc::clone(&waiting.item)].into()).await,
        };
        busy = matches!(alone, Err(StoreError::Busy));
        let answer = alone.and_then(|mut answers| answers.pop().flatten().ok_or(StoreError::Interrupted));
        // Whoever asked may be gone; what was written stays.
        let _ = waiting.answer.send(answer);
    }
}

async fn write<I: Item>(db: &Db, items: Arc<[Arc<I>]>) -> Result<Answers<I>, StoreError> {
    let written = db.run(Vec::new(), move |tx| {
        Box::pin(async move {
            let written = I::write(tx, &items).await?;
            kill::point(I::NAME, kill::BEFORE_COMMIT);
            Ok::<_, StoreError>(written)
        })
    });
    let written = written.await?;
    kill::point(I::NAME, kill::BEFORE_ANSWER);
    Ok(written)
}

/// Answers who waits; gives back who was put off.
fn tell<I: Item>(waiting: Waiting<I>, answer: Option<I::Answer>) -> Option<Waiting<I>> {
    let Some(answer) = answer else { return Some(waiting) };
    // Whoever asked may be gone; what was written stays.
    let _ = waiting.answer.send(Ok(answer));
    None
}
