//! Padding: what is sealed is followed by 0x80 and zeros, so that its size says little.

use super::PADDING_BYTES;

/// How long `bytes` bytes are once they are padded: the next multiple of 256 that has room for one more.
pub(super) fn padded_length(bytes: usize) -> usize {
    bytes.saturating_add(1).next_multiple_of(PADDING_BYTES)
}

/// The content, padded to at least so many bytes.
pub(super) fn padded(content: &[u8], bytes_min: usize) -> Vec<u8> {
    let mut padded = [content, &[0x80]].concat();
    padded.resize(padded_length(content.len()).max(bytes_min), 0);
    padded
}

/// The content of what was padded; `None` if it was not.
pub(super) fn unpadded(mut padded: Vec<u8>) -> Option<Vec<u8>> {
    let end = padded.iter().rposition(|byte| *byte != 0).filter(|at| padded.get(*at) == Some(&0x80))?;
    padded.truncate(end);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_off_and_tells_the_length_in_steps() {
        for length in [0, 1, 255, 256, 257] {
            let content = vec![0x80; length];
            let steps = (length / PADDING_BYTES + 1) * PADDING_BYTES;
            assert_eq!(padded(&content, 0).len(), steps);
            assert_eq!(unpadded(padded(&content, 0)), Some(content.clone()));
            assert_eq!(padded(&content, 1_024).len(), 1_024);
            assert_eq!(unpadded(padded(&content, 1_024)), Some(content));
        }
        for not_padded in [vec![], vec![0, 0], vec![0x80, 1, 0]] {
            assert_eq!(unpadded(not_padded), None);
        }
    }
}
