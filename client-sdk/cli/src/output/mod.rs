//! Writing: results and events to stdout, for people or as JSON lines; reasons and hints to stderr.
//!
//! Invariant: with `--json` nothing but objects of [`json`] reaches stdout, and every line is out before the next step.

mod json;
pub(crate) mod people;
pub(crate) mod qr;

use std::io::{self, Write as _};

use serde_json::to_string;

pub(crate) use json::Object;

use crate::error::Failure;

/// Where a command writes, in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Writes a result: the object for scripts, or the text for people, who may be told nothing.
    pub(crate) fn tell(self, object: &Object, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let line = match self.json {
            true => to_string(object).map_err(io::Error::other)?,
            false => text(),
        };
        if line.is_empty() { Ok(()) } else { Ok(write_line(&line)?) }
    }

    /// Writes something that only people are told.
    pub(crate) fn say(self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { Ok(write_line(text)?) }
    }
}

/// Writes one line to stderr. It may hold what others wrote.
pub(crate) fn hint(text: &str) {
    // If nobody reads stderr, there is nobody to tell of it.
    drop(writeln!(io::stderr(), "undertone: {}", people::clean_line(text)));
}

fn write_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
