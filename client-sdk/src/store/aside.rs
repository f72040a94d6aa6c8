//! MLS groups that are built aside: in storage of their own, kept as bytes, until they take the place of what is in the
//! store.

use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::SqliteStorageProvider;
use rusqlite::{Connection, Row, params_from_iter, types::Value};
use serde::{Deserialize, Serialize};
use undertone_wire::{Bytes, Encoding, GroupId};

use super::{
    StoreError, Tx,
    mls::{self, Cbor, MlsProvider},
    not_expected,
};

/// Storage for one group, in memory.
pub(crate) struct Aside {
    connection: Connection,
    crypto: RustCrypto,
}

/// All rows of a table.
#[derive(Serialize, Deserialize)]
struct Rows {
    table: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Serialize, Deserialize)]
enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Blob(Bytes),
}

/// The tables of openmls, but for the one in which its storage keeps its own version.
const TABLES: &str = "SELECT name FROM sqlite_master
    WHERE type = 'table' AND name GLOB 'openmls_*' AND name NOT GLOB '*migrations' ORDER BY name";

impl Aside {
    pub(crate) fn new() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        SqliteStorageProvider::<Cbor, _>::new(&mut connection)
            .run_migrations()
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Self { connection, crypto: RustCrypto::default() })
    }

    /// MLS over this storage.
    pub(crate) fn mls(&self) -> MlsProvider<'_> {
        MlsProvider::over(&self.crypto, &self.connection, None)
    }

    /// Everything in it.
    pub(crate) fn into_bytes(self) -> Result<Bytes, StoreError> {
        let mut select = self.connection.prepare(TABLES)?;
        let tables = select.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        let rows = tables.into_iter().map(|table| self.rows(table)).collect::<Result<Vec<_>, _>>()?;
        Ok(Encoding::Cbor.encode(&rows).into())
    }

    fn rows(&self, table: String) -> Result<Rows, StoreError> {
        let mut select = self.connection.prepare(&format!("SELECT * FROM {table}"))?;
        // Row numbers are the store's own.
        let kept = |(_, name): &(usize, &str)| *name != "id";
        let (places, columns): (Vec<_>, Vec<_>) = select
            .column_names()
            .into_iter()
            .enumerate()
            .filter(kept)
            .map(|(place, name)| (place, name.to_owned()))
            .unzip();
        let cells = |row: &Row<'_>| places.iter().map(|place| cell(row, *place)).collect();
        let rows = select.query_map([], cells)?.collect::<Result<_, _>>()?;
        Ok(Rows { table, columns, rows })
    }
}

impl Tx<'_> {
    /// Puts what was built aside of a group into the store, in the place of whatever is there of it.
    pub(crate) fn install(&self, group: GroupId, aside: &Bytes) -> Result<(), StoreError> {
        self.loaded.forget(group);
        for table in ["group_data", "epoch_keys_pairs", "own_leaf_nodes", "proposals"] {
            self.execute(&format!("DELETE FROM openmls_{table} WHERE group_id = ?1"), [mls::group_key(group)?])?;
        }
        let tables: Vec<Rows> =
            Encoding::Cbor.decode(aside.as_slice()).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        for Rows { table, columns, rows } in tables {
            let marks = vec!["?"; columns.len()].join(", ");
            let insert = format!("INSERT OR REPLACE INTO {table} ({}) VALUES ({marks})", columns.join(", "));
            for row in rows {
                self.execute(&insert, params_from_iter(row.into_iter().map(Value::from)))?;
            }
        }
        Ok(())
    }
}

/// A cell as it is kept.
fn cell(row: &Row<'_>, place: usize) -> rusqlite::Result<Cell> {
    match row.get(place)? {
        Value::Null => Ok(Cell::Null),
        Value::Integer(number) => Ok(Cell::Integer(number)),
        Value::Text(text) => Ok(Cell::Text(text)),
        Value::Blob(bytes) => Ok(Cell::Blob(bytes.into())),
        Value::Real(_) => Err(not_expected(place, "a number that openmls does not write")),
    }
}

impl From<Cell> for Value {
    fn from(cell: Cell) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Integer(number) => Self::Integer(number),
            Cell::Text(text) => Self::Text(text),
            Cell::Blob(bytes) => Self::Blob(bytes.as_slice().to_vec()),
        }
    }
}
