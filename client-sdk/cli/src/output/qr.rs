//! QR codes (ISO/IEC 18004) in a terminal: two modules in each character, dark on light whatever the terminal's colours are.

use qrcode::{Color, EcLevel, QrCode};

/// The light margin that readers need, in modules.
const MARGIN: usize = 4;

/// A picture of a text; empty if it is too long for one.
pub(crate) fn code(text: &str) -> String {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else { return String::new() };
    let width = code.width();
    let is_light = |x: usize, y: usize| match (x.checked_sub(MARGIN), y.checked_sub(MARGIN)) {
        (Some(x), Some(y)) if x < width && y < width => code[(x, y)] == Color::Light,
        _ => true,
    };
    let side = width + 2 * MARGIN;
    let line = |y: usize| -> String {
        let modules = (0..side).map(|x| match (is_light(x, y), is_light(x, y + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        });
        format!("\u{1b}[97;40m{}\u{1b}[0m", modules.collect::<String>())
    };
    (0..side).step_by(2).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pixels wide a module is in the picture that is read.
    const SCALE: usize = 4;

    /// What a reader reads in a picture of a text.
    fn read(picture: &str) -> Option<String> {
        let lines: Vec<Vec<char>> = picture
            .lines()
            .map(|line| line.chars().filter(|one| matches!(one, ' ' | '\u{2580}' | '\u{2584}' | '\u{2588}')).collect())
            .collect();
        let is_light = |x: usize, y: usize| match lines[y / 2][x] {
            '\u{2588}' => true,
            '\u{2580}' => y.is_multiple_of(2),
            '\u{2584}' => !y.is_multiple_of(2),
            _ => false,
        };
        let (width, height) = (lines[0].len(), lines.len() * 2);
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width * SCALE, height * SCALE, |x, y| {
            if is_light(x / SCALE, y / SCALE) { 255 } else { 0 }
        });
        let (_, text) = image.detect_grids().first()?.decode().ok()?;
        Some(text)
    }

    #[test]
    fn what_is_shown_is_read_back_from_its_picture() {
        for text in ["A", &"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".repeat(3)[..80], &"0123456789".repeat(6)] {
            assert_eq!(read(&code(text)).as_deref(), Some(text));
        }
        assert_eq!(code(&"x".repeat(8_000)), "");
    }
}
