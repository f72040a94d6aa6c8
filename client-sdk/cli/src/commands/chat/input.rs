//! Lines of stdin, read on a thread of their own: what comes is shown while nothing is typed.
//!
//! Invariant: no line, however long, takes more memory than a message may have.

use std::{
    io::{self, BufRead, Read as _},
    thread,
};

use tokio::sync::mpsc;

/// Lines that were read and not yet taken.
pub(super) type Lines = mpsc::Receiver<Line>;

/// So many lines are read ahead.
pub(super) const AHEAD: usize = 16;

/// What is kept of a line at most; the longest message is shorter.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// What came of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Text(String),
    /// A line that cannot be a message, and why.
    Refused(String),
    /// A person wants to stop at once.
    Stop,
}

/// Reads stdin to its end.
pub(super) fn read_stdin() -> Lines {
    let (lines, taken) = mpsc::channel(AHEAD);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        while let Some(line) = next_line(&mut stdin) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    taken
}

/// The next line; `None` at the end, or when nothing more can be read.
fn next_line(input: &mut impl BufRead) -> Option<Line> {
    let mut bytes = Vec::new();
    input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).ok()?;
    if bytes.is_empty() {
        return None;
    }
    let ended = bytes.last() == Some(&b'\n');
    if !ended && bytes.len() as u64 == LINE_BYTES_MAX {
        pass_over_line(input)?;
        return Some(Line::Refused(format!("a line of more than {LINE_BYTES_MAX} bytes was not sent")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(Line::Text(text.trim_end_matches(['\n', '\r']).to_owned())),
        Err(_) => Some(Line::Refused("a line that is not text in UTF-8 was not sent".to_owned())),
    }
}

fn pass_over_line(input: &mut impl BufRead) -> Option<()> {
    loop {
        let buffer = input.fill_buf().ok()?;
        let (seen, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(seen);
        if ended {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Line> {
        std::iter::from_fn(|| next_line(&mut input)).collect()
    }

    fn text(text: &str) -> Line {
        Line::Text(text.to_owned())
    }

    #[test]
    fn lines_come_without_their_ends() {
        assert_eq!(lines(b"one\ntwo\r\n\nthree"), [text("one"), text("two"), text(""), text("three")]);
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn a_line_that_is_no_message_is_refused_and_the_next_is_read() {
        let mut input = vec![b'x'; 3 * 256 * 1024];
        input.extend(b"\n\xff\xfe\nfine\n");
        let lines = lines(&input);
        assert!(matches!(&lines[..], [Line::Refused(_), Line::Refused(_), last] if *last == text("fine")), "{lines:?}");
    }
}
