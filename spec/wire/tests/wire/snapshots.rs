//! The bytes of every sample against `snapshots.txt`. To renew it: `UPDATE=1 cargo test -p undertone-wire snapshots`, and
//! look hard at the difference: what changed there changed for every device in the field.

use std::fmt::Write as _;

use crate::samples;

const COMMITTED: &str = include_str!("snapshots.txt");

fn written() -> String {
    let mut text = String::new();
    for sample in samples::all() {
        let json = String::from_utf8(sample.json).unwrap();
        let cbor: String = sample.cbor.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        writeln!(text, "{}\n  json {json}\n  cbor {cbor}", sample.name).unwrap();
    }
    text
}

#[test]
fn every_body_and_frame_survives_both_encodings() {
    let samples = samples::all();
    assert!(samples.len() > 40, "there are samples");
    for sample in samples {
        assert!(sample.survives, "{}", sample.name);
    }
}

#[test]
fn names_of_samples_are_unique() {
    let mut names: Vec<_> = samples::all().into_iter().map(|sample| sample.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn the_bytes_are_those_of_the_snapshots() {
    let written = written();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/snapshots.txt"), &written).unwrap();
        return;
    }
    for (line, (now, committed)) in written.lines().zip(COMMITTED.lines()).enumerate() {
        assert_eq!(now, committed, "line {} of snapshots.txt", line + 1);
    }
    assert_eq!(written.lines().count(), COMMITTED.lines().count());
}
