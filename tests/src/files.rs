//! Searching files for bytes that must not be there. Every search first proves that it would find them. And copying them.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Copies the files below a folder. One of a running process may be gone in between.
///
/// # Panics
/// If another cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else if path.is_file()
            && let Err(error) = fs::copy(&path, target)
        {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{}", path.display());
        }
    }
}

/// The files below `folder` that contain `needle`.
///
/// # Panics
/// If a file planted there with the needle in it is not found: then the search itself is broken.
pub fn containing(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    assert!(!needle.is_empty(), "an empty needle is everywhere");
    let control = folder.join("planted-control");
    let planted = [b"before ".as_slice(), needle, b" after"].concat();
    fs::write(&control, planted).expect("a control can be planted");
    let mut found = search(folder, needle);
    fs::remove_file(&control).expect("the control can be removed");
    let at = found.iter().position(|path| *path == control);
    found.remove(at.expect("the search finds the control"));
    found
}

fn search(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(search(&path, needle));
        } else {
            // A file of a running process may be gone again.
            let bytes = fs::read(&path).unwrap_or_default();
            if memchr::memmem::find(&bytes, needle).is_some() {
                found.push(path);
            }
        }
    }
    found
}

/// The fenced blocks of a language in a page.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let rests = page.split(&fence).skip(1);
    rests.filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}
