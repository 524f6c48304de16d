//! Links of an archive: made when all its files are there, and only to what is in it.
//!
//! A link to a file becomes the same file under another name, one to a folder a link in the folder. Where a link leads is worked out from the
//! names in the archive alone, so a link that leaves it is never followed.

use super::image_names::is_image;
use super::tally::{Ignored, Tally};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

/// The most links on the way to a file, as Linux has it.
const HOPS_MAX: u32 = 40;

/// A link of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it leads to: from the folder that it is in, or, of a hard link, from the archive's.
    pub target: PathBuf,
    /// Whether it is a hard link.
    pub hard: bool,
}

/// The links of an archive by their paths in it.
pub type Links = HashMap<PathBuf, Link>;

/// Where a link ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    File(PathBuf),
    Folder(PathBuf),
    /// Outside of the archive.
    Outside,
    /// At nothing that was unpacked.
    Nothing,
}

/// Makes the links whose ends are in `root`; counts the others.
///
/// # Errors
/// When the system refuses one.
pub fn make(root: &Path, links: &Links, tally: &mut Tally) -> io::Result<()> {
    let mut ends: Vec<_> = links.keys().map(|path| (path, end(root, links, path))).collect();
    // Files first: they need folders where links to folders may come to be.
    ends.sort_unstable_by_key(|(path, end)| (matches!(end, End::Folder(_)), *path));
    for (path, end) in ends {
        let at = root.join(path);
        match end {
            End::Outside => tally.file(Ignored::Leaves),
            End::File(_) if !is_image(path) => tally.file(Ignored::NotAnImage),
            // What was unpacked at the same path stays.
            End::File(_) | End::Folder(_) if at.symlink_metadata().is_ok() => {}
            End::File(target) => {
                std::fs::create_dir_all(at.parent().expect("in the root"))?;
                let target = root.join(target);
                match std::fs::hard_link(&target, &at) {
                    // File systems bound the links to a file.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::MLINK) => {
                        std::fs::copy(&target, &at).map(drop)
                    }
                    linked => linked,
                }?;
            }
            End::Folder(target) if is_plain(root, path)? => {
                let above = path.parent().map_or(0, |parent| parent.components().count());
                let up: PathBuf = std::iter::repeat_n("..", above).collect();
                symlink(
                    if above == 0 && target == Path::new("") { Path::new(".").into() } else { up.join(target) },
                    at,
                )?;
            }
            End::Folder(_) | End::Nothing => tally.file(Ignored::NoImage),
        }
    }
    Ok(())
}

/// Whether the folder that `path` is in is one, and no link leads there; it is made where it is missing.
fn is_plain(root: &Path, path: &Path) -> io::Result<bool> {
    let mut at = root.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match at.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Ok(false),
            Err(_) => std::fs::create_dir(&at)?,
        }
    }
    Ok(true)
}

/// Where the link at `path` ends.
fn end(root: &Path, links: &Links, path: &Path) -> End {
    // Reversed: the last one is next.
    let mut rest: Vec<Component<'_>> = path.components().rev().collect();
    let (mut at, mut hops) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        match part {
            Component::Normal(name) => at.push(name),
            Component::ParentDir if !at.pop() => return End::Outside,
            Component::RootDir | Component::Prefix(_) => return End::Outside,
            Component::ParentDir | Component::CurDir => continue,
        }
        let Some(link) = links.get(&at) else { continue };
        // What was unpacked at the same path counts.
        if root.join(&at).symlink_metadata().is_ok() {
            continue;
        }
        hops += 1;
        if hops > HOPS_MAX {
            return End::Nothing;
        }
        at.pop();
        let mut target = link.target.components();
        if link.hard {
            at = PathBuf::new();
            // Absolute names lose their beginning, as those of files do.
            target = target.as_path().strip_prefix("/").unwrap_or(target.as_path()).components();
        }
        rest.extend(target.rev());
    }
    match root.join(&at).symlink_metadata() {
        Ok(meta) if meta.is_file() => End::File(at),
        Ok(meta) if meta.is_dir() && !at.as_os_str().as_bytes().is_empty() => End::Folder(at),
        Ok(meta) if meta.is_dir() => End::Folder(PathBuf::new()),
        _ => End::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(of: &[(&str, &str)]) -> Links {
        let link = |target: &str| match target.strip_prefix("hard:") {
            Some(target) => Link { target: target.into(), hard: true },
            None => Link { target: target.into(), hard: false },
        };
        of.iter().map(|(path, target)| (path.into(), link(target))).collect()
    }

    fn unpacked() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["set/train/a/1.jpg", "set/train/b/2.jpg"] {
            std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(file), file).unwrap();
        }
        dir
    }

    #[test]
    fn links_end_where_the_names_of_the_archive_lead() {
        let dir = unpacked();
        let links = links(&[
            ("set/val", "train"),
            ("set/x/1.jpg", "../val/a/1.jpg"),
            ("set/x/2.jpg", "hard:/set/train/b/2.jpg"),
            ("set/x/3.jpg", "1.jpg"),
            ("set/x/up", "../../../set"),
            ("set/x/etc", "/etc/hostname"),
            ("set/x/hard", "hard:../outside.jpg"),
            ("set/x/a", "b"),
            ("set/x/b", "a"),
            ("set/x/gone.jpg", "../train/a/gone.jpg"),
            ("set/x/top", "../.."),
        ]);
        let file = |path: &str| End::File(path.into());
        for (path, expected) in [
            ("set/val", End::Folder("set/train".into())),
            ("set/x/1.jpg", file("set/train/a/1.jpg")),
            ("set/x/2.jpg", file("set/train/b/2.jpg")),
            ("set/x/3.jpg", file("set/train/a/1.jpg")),
            ("set/x/up", End::Outside),
            ("set/x/etc", End::Outside),
            ("set/x/hard", End::Outside),
            ("set/x/a", End::Nothing),
            ("set/x/gone.jpg", End::Nothing),
            ("set/x/top", End::Folder("".into())),
        ] {
            assert_eq!(end(dir.path(), &links, Path::new(path)), expected, "{path}");
        }
        let mut tally = Tally::default();
        make(dir.path(), &links, &mut tally).unwrap();
        assert_eq!(tally.notes(), ["6 files ignored: 3 links out of the archive, 3 links to no image"]);
        for (path, target) in [("set/x/1.jpg", "set/train/a/1.jpg"), ("set/val/b/2.jpg", "set/train/b/2.jpg")] {
            assert_eq!(std::fs::read_to_string(dir.path().join(path)).unwrap(), target);
        }
        assert!(!dir.path().join("set/x/1.jpg").is_symlink(), "a link to a file is the file");
        assert_eq!(dir.path().join("set/x/top").canonicalize().unwrap(), dir.path().canonicalize().unwrap());
    }

    /// One link leads to a deep folder, another is in that by its name: its way up would begin elsewhere.
    #[test]
    fn no_link_is_made_behind_a_link() {
        let dir = unpacked();
        let links = links(&[("deep", "set/train/a"), ("deep/x", "../set"), ("set/train/a/x", "../b")]);
        make(dir.path(), &links, &mut Tally::default()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("deep/x/2.jpg")).unwrap(), "set/train/b/2.jpg");
    }

    #[test]
    fn what_was_unpacked_stays() {
        let dir = unpacked();
        let links = links(&[("set/train/a", "b"), ("set/train/a/1.jpg", "../b/2.jpg")]);
        make(dir.path(), &links, &mut Tally::default()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("set/train/a/1.jpg")).unwrap(), "set/train/a/1.jpg");
    }
}
