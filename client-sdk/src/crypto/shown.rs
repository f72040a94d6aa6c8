//! Bytes that people copy by hand: base32 (RFC 4648) without padding, with 2 bytes by which a mistyped text is told from one that
//! is not. Spaces, hyphens and case do not matter.

use data_encoding::BASE32_NOPAD;
use undertone_wire::Hash;
use zeroize::Zeroizing;

const CHECK_BYTES: usize = 2;

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let [first, second, ..] = *Hash::of(bytes).as_bytes();
    [first, second]
}

/// As they are shown.
pub(super) fn write(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(&Zeroizing::new([bytes, &check(bytes)].concat()))
}

/// What was shown; `None` if it is no such text.
pub(super) fn read(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let letters = text.chars().filter(|one| !one.is_whitespace() && *one != '-').map(|one| one.to_ascii_uppercase());
    let letters = Zeroizing::new(letters.collect::<String>());
    let bytes = Zeroizing::new(BASE32_NOPAD.decode(letters.as_bytes()).ok()?);
    let (bytes, last) = bytes.split_last_chunk::<CHECK_BYTES>()?;
    (check(bytes) == *last).then(|| Zeroizing::new(bytes.to_vec()))
}
