//! Safety numbers: what two people compare to know that nobody stands between them.
//!
//! A fingerprint is 30 digits made from an account's id and its present identity key, by SHA-512 (FIPS 180-4) over and over, so
//! that looking for another key with the same digits takes as much longer. A safety number is the fingerprints of two accounts,
//! the lower one first. Devices come and go without changing it.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha512};
use undertone_wire::{AccountId, PublicKey};

const VERSION: &[u8] = b"Undertone v1 fingerprint";

/// How often it is hashed.
const ROUNDS: u32 = 5_200;

/// Each group of five digits is made from so many bytes.
const GROUP_BYTES: usize = 5;
const GROUPS: usize = 6;
const GROUP_BELOW: u64 = 100_000;

/// What an account is known by: 30 digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The digits, without spaces.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

/// In groups of five.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        grouped(f, &self.0)
    }
}

/// What two accounts are known by to each other: 60 digits, the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SafetyNumber(String);

impl SafetyNumber {
    /// Of two accounts, in whatever order.
    pub(crate) fn of(one: &Fingerprint, other: &Fingerprint) -> Self {
        let (first, second) = if one <= other { (one, other) } else { (other, one) };
        Self(format!("{}{}", first.0, second.0))
    }

    /// The digits, without spaces; also what a QR code of it has in it.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

/// Text that is no safety number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a safety number: those are 60 digits")]
pub struct SafetyNumberError;

/// Spaces do not matter.
impl FromStr for SafetyNumber {
    type Err = SafetyNumberError;

    fn from_str(text: &str) -> Result<Self, SafetyNumberError> {
        let digits: String = text.chars().filter(|one| !one.is_whitespace()).collect();
        let is_one = digits.len() == 2 * GROUPS * GROUP_BYTES && digits.chars().all(|one| one.is_ascii_digit());
        if is_one { Ok(Self(digits)) } else { Err(SafetyNumberError) }
    }
}

/// In groups of five.
impl fmt::Display for SafetyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        grouped(f, &self.0)
    }
}

fn grouped(f: &mut fmt::Formatter<'_>, digits: &str) -> fmt::Result {
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % GROUP_BYTES == 0 {
            f.write_str(" ")?;
        }
        write!(f, "{digit}")?;
    }
    Ok(())
}

/// The fingerprint of an account with this identity key.
pub(crate) fn fingerprint(account: AccountId, identity_key: &PublicKey) -> Fingerprint {
    let key = identity_key.as_bytes();
    let mut hash = Sha512::digest([VERSION, account.as_bytes(), key].concat());
    for _ in 1..ROUNDS {
        hash = Sha512::digest([hash.as_slice(), key].concat());
    }
    let groups = hash.chunks_exact(GROUP_BYTES).take(GROUPS).map(|group| {
        let number = group.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
        format!("{:05}", number % GROUP_BELOW)
    });
    Fingerprint(groups.collect())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use undertone_wire::Encoding;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        account_id: AccountId,
        identity_key: PublicKey,
        fingerprint: String,
    }

    fn vectors() -> Vec<Vector> {
        Encoding::Json.decode(include_bytes!("../../spec/vectors/fingerprint.json")).unwrap()
    }

    #[test]
    fn fingerprints_are_those_of_the_vectors() {
        assert_eq!(vectors().len(), 3);
        for vector in vectors() {
            assert_eq!(fingerprint(vector.account_id, &vector.identity_key).digits(), vector.fingerprint);
        }
    }

    #[test]
    fn a_safety_number_is_the_same_on_both_sides_and_changes_with_either_key() {
        let of = |at: usize| fingerprint(vectors()[at].account_id, &vectors()[at].identity_key);
        let number = SafetyNumber::of(&of(0), &of(1));
        assert_eq!(number, SafetyNumber::of(&of(1), &of(0)));
        assert_eq!((number.digits().len(), number.to_string().split(' ').count()), (60, 12));
        assert_ne!(number, SafetyNumber::of(&of(2), &of(1)));
        assert_eq!(number.to_string().parse(), Ok(number.clone()));
        for text in ["", "1", &number.digits()[1..], &number.digits().replace('1', "a").replace('2', "b")] {
            assert_eq!(text.parse::<SafetyNumber>(), Err(SafetyNumberError), "{text}");
        }
    }
}
