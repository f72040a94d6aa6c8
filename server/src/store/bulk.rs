//! Statements that take many rows at once, and statements that lock: written once, but for the few words in which the
//! databases differ.
//!
//! Rows are handed to Postgres as arrays and to SQLite as one JSON text with byte strings in hex. Postgres locks what it
//! reads where the statement says so; on SQLite there is one writer, so there is nothing to lock.
//!
//! Invariant: rows are handed over in the order in which they were pushed, which is ascending wherever they are locked.

use std::fmt::Write as _;

use sqlx::{
    Arguments as _, FromRow, Postgres,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{Conn, StoreError, pool::bounded};

/// A statement in the words of each database; made by [`pair`].
pub(super) struct Pair {
    pub(super) sqlite: &'static str,
    pub(super) postgres: &'static str,
}

/// Puts a [`Pair`] together from parts: text for both; `ids`, a list of byte strings; `(rows a bytes, b number)`, rows
/// with these columns; `(lock "FOR UPDATE")`, said to Postgres only.
macro_rules! pair {
    ($($part:tt)+) => {
        $crate::store::bulk::Pair {
            sqlite: concat!($($crate::store::bulk::sqlite!($part)),+),
            postgres: concat!($($crate::store::bulk::postgres!($part)),+),
        }
    };
}

/// A part in SQLite's words.
macro_rules! sqlite {
    ($text:literal) => { $text };
    (ids) => { "(SELECT unhex(value ->> 0) FROM json_each($1))" };
    ((lock $text:literal)) => { "" };
    ((rows $first:ident $type:ident $(, $name:ident $types:ident)*)) => {
        $crate::store::bulk::sqlite!(@columns
            [$first $type $(, $name $types)*] ["0" "1" "2" "3" "4" "5" "6" "7"] [])
    };
    (@columns [$name:ident $type:ident $(, $($rest:tt)+)?] [$index:literal $($indices:literal)*] [$($done:expr,)*]) => {
        $crate::store::bulk::sqlite!(@columns [$($($rest)+)?] [$($indices)*]
            [$($done,)* $crate::store::bulk::sqlite!(@column $type $index), " AS ", stringify!($name), ", ",])
    };
    (@columns [] [$($indices:literal)*] [$($done:expr,)*]) => {
        concat!("(SELECT ", $($done,)* "key AS nth FROM json_each($1)) AS rows")
    };
    (@column bytes $index:literal) => { concat!("unhex(value ->> ", $index, ")") };
    (@column number $index:literal) => { concat!("(value ->> ", $index, ")") };
}

/// A part in Postgres' words.
macro_rules! postgres {
    ($text:literal) => { $text };
    (ids) => { "(SELECT unnest($1::bytea[]))" };
    ((lock $text:literal)) => { concat!(" ", $text) };
    ((rows $first:ident $type:ident $(, $name:ident $types:ident)*)) => {
        concat!(
            "unnest(", $crate::store::bulk::postgres!(@arrays [$type $($types)*] ["$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8"] []),
            ") WITH ORDINALITY AS rows (", stringify!($first), $(", ", stringify!($name),)* ", nth)"
        )
    };
    (@arrays [$type:ident $($types:ident)*] [$param:literal $($params:literal)*] []) => {
        $crate::store::bulk::postgres!(@arrays [$($types)*] [$($params)*]
            [$param, $crate::store::bulk::postgres!(@array $type),])
    };
    (@arrays [$type:ident $($types:ident)*] [$param:literal $($params:literal)*] [$($done:expr,)+]) => {
        $crate::store::bulk::postgres!(@arrays [$($types)*] [$($params)*]
            [$($done,)+ ", ", $param, $crate::store::bulk::postgres!(@array $type),])
    };
    (@arrays [] [$($params:literal)*] [$($done:expr,)+]) => { concat!($($done),+) };
    (@array bytes) => { "::bytea[]" };
    (@array number) => { "::bigint[]" };
}

pub(super) use {pair, postgres, sqlite};

/// A column of the rows that a statement takes.
enum Column {
    Bytes(Vec<Option<Vec<u8>>>),
    Numbers(Vec<i64>),
}

/// Rows that a statement takes, column by column.
#[derive(Default)]
pub(super) struct Rows {
    columns: Vec<Column>,
}

impl Rows {
    /// One column of byte strings; what `ids` stands for, too.
    pub(super) fn of<'a, B>(ids: impl IntoIterator<Item = &'a B>) -> Self
    where
        B: AsRef<[u8]> + ?Sized + 'a,
    {
        Self::default().bytes(ids)
    }

    /// A further column of byte strings.
    pub(super) fn bytes<'a, B>(self, values: impl IntoIterator<Item = &'a B>) -> Self
    where
        B: AsRef<[u8]> + ?Sized + 'a,
    {
        self.maybe_bytes(values.into_iter().map(|value| Some(value.as_ref())))
    }

    /// A further column of byte strings or nothing.
    pub(super) fn maybe_bytes<'a>(mut self, values: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        self.columns.push(Column::Bytes(values.into_iter().map(|value| value.map(<[u8]>::to_vec)).collect()));
        self
    }

    /// A further column of numbers.
    pub(super) fn numbers(mut self, values: impl IntoIterator<Item = i64>) -> Self {
        self.columns.push(Column::Numbers(values.into_iter().collect()));
        self
    }

    fn is_empty(&self) -> bool {
        self.columns.first().is_none_or(|column| column.len() == 0)
    }

    fn arrays(self) -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        for column in self.columns {
            match column {
                Column::Bytes(values) => arguments.add(values)?,
                Column::Numbers(values) => arguments.add(values)?,
            }
        }
        Ok(arguments)
    }

    fn json(&self) -> Result<SqliteArguments, BoxDynError> {
        let rows = self.columns.first().map_or(0, Column::len);
        let mut json = String::from("[");
        for row in 0..rows {
            json.push_str(if row == 0 { "[" } else { ",[" });
            for (nth, column) in self.columns.iter().enumerate() {
                json.push_str(if nth == 0 { "" } else { "," });
                column.write(row, &mut json);
            }
            json.push(']');
        }
        json.push(']');
        let mut arguments = SqliteArguments::default();
        sqlx::Arguments::add(&mut arguments, json)?;
        Ok(arguments)
    }
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Numbers(values) => values.len(),
        }
    }

    fn write(&self, row: usize, json: &mut String) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match self {
            Self::Bytes(values) => match values.get(row) {
                Some(Some(bytes)) => {
                    json.push('"');
                    for byte in bytes {
                        json.push(char::from(HEX[usize::from(byte >> 4)]));
                        json.push(char::from(HEX[usize::from(byte & 15)]));
                    }
                    json.push('"');
                }
                _ => json.push_str("null"),
            },
            Self::Numbers(values) => match values.get(row) {
                // Writing to a string does not fail.
                Some(number) => drop(write!(json, "{number}")),
                None => json.push_str("null"),
            },
        }
    }
}

impl Conn {
    /// What a statement answers for these rows. Without rows it is not asked.
    pub(super) async fn select<R>(&mut self, statement: &Pair, rows: Rows) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        Ok(match self {
            Self::Sqlite(db) => {
                sqlx::query_as_with(statement.sqlite, rows.json().map_err(encoding)?).fetch_all(&mut **db).await?
            }
            Self::Postgres(db) => {
                let arrays = rows.arrays().map_err(encoding)?;
                bounded!(db, db => sqlx::query_as_with::<Postgres, _, _>(statement.postgres, arrays).fetch_all(db).await)?
            }
        })
    }

    /// Does what a statement says with these rows; answers how many it changed.
    pub(super) async fn execute(&mut self, statement: &Pair, rows: Rows) -> Result<u64, StoreError> {
        if rows.is_empty() {
            return Ok(0);
        }
        Ok(match self {
            Self::Sqlite(db) => sqlx::query_with(statement.sqlite, rows.json().map_err(encoding)?)
                .execute(&mut **db)
                .await?
                .rows_affected(),
            Self::Postgres(db) => {
                let arrays = rows.arrays().map_err(encoding)?;
                let statement = statement.postgres;
                bounded!(db, db => sqlx::query_with::<Postgres, _>(statement, arrays).execute(db).await)?
                    .rows_affected()
            }
        })
    }

    /// The statement in the words of this database, for parameters bound one by one.
    pub(super) fn words(&self, statement: &Pair) -> &'static str {
        match self {
            Self::Sqlite(_) => statement.sqlite,
            Self::Postgres(_) => statement.postgres,
        }
    }
}

fn encoding(error: BoxDynError) -> StoreError {
    StoreError::Database(sqlx::Error::Encode(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_says_the_same_in_two_ways() {
        const SOME: Pair = pair!("SELECT a FROM t WHERE a IN " ids " ORDER BY a" (lock "FOR UPDATE"));
        assert_eq!(SOME.sqlite, "SELECT a FROM t WHERE a IN (SELECT unhex(value ->> 0) FROM json_each($1)) ORDER BY a");
        assert_eq!(SOME.postgres, "SELECT a FROM t WHERE a IN (SELECT unnest($1::bytea[])) ORDER BY a FOR UPDATE");
        const ROWS: Pair = pair!("INSERT INTO t SELECT a, b FROM " (rows a bytes, b number));
        assert_eq!(
            ROWS.sqlite,
            "INSERT INTO t SELECT a, b FROM (SELECT unhex(value ->> 0) AS a, (value ->> 1) AS b, key AS nth \
             FROM json_each($1)) AS rows"
        );
        assert_eq!(
            ROWS.postgres,
            "INSERT INTO t SELECT a, b FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS rows (a, b, nth)"
        );
    }
}
