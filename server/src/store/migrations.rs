//! The migrations, oldest first, each in the words of either database; see `migrations/README.md`.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

/// Number, name, and the text for SQLite and for Postgres.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "init",
        include_str!("../../../migrations/sqlite/0001_init.sql"),
        include_str!("../../../migrations/postgres/0001_init.sql"),
    ),
    (
        2,
        "successors",
        include_str!("../../../migrations/sqlite/0002_successors.sql"),
        include_str!("../../../migrations/postgres/0002_successors.sql"),
    ),
    (
        3,
        "instances",
        include_str!("../../../migrations/sqlite/0003_instances.sql"),
        include_str!("../../../migrations/postgres/0003_instances.sql"),
    ),
    (
        4,
        "pipes",
        include_str!("../../../migrations/sqlite/0004_pipes.sql"),
        include_str!("../../../migrations/postgres/0004_pipes.sql"),
    ),
];

/// What migrates a SQLite store.
pub(super) fn sqlite() -> Migrator {
    migrator(|(_, _, sqlite, _)| sqlite)
}

/// What migrates a Postgres store, one node at a time.
pub(super) fn postgres() -> Migrator {
    migrator(|(_, _, _, postgres)| postgres)
}

fn migrator(text: impl Fn(&(i64, &'static str, &'static str, &'static str)) -> &'static str) -> Migrator {
    let migrations = MIGRATIONS.iter().map(|migration| {
        let name = Cow::Borrowed(migration.1);
        Migration::new(migration.0, name, MigrationType::Simple, text(migration).into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // What a newer version has applied already only adds to what this one knows.
    migrator.set_ignore_missing(true);
    migrator
}
