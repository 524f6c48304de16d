//! The walk over an image folder, in the order of the bytes of the relative paths.
//!
//! Links are followed as if what they lead to were there, but for links to a folder that they are in: no walk is endless.

use super::detours::Detours;
use super::image_names::is_image;
use super::index::Index;
use super::layout::{Layout, Placed};
use super::remembered::Walk;
use super::split_words::VAL_FOLDERS;
use super::tally::{Ignored, Tally};
use super::{DatasetError, Splits};
use crate::escape::escaped;
use crate::types::Split;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Indexes the folder `root`, with notes on what was left out; its walk is remembered in `cache_dir`. Labels are not assigned yet.
pub fn index(root: &Path, splits: &Splits, cache_dir: &Path) -> Result<(Index, Vec<String>), DatasetError> {
    match remembered(root, splits, cache_dir) {
        Some(found) => Ok(found),
        None => {
            let (walked, notes) = walk(root, splits)?;
            walked.save(&file(root, splits, cache_dir), root, &splits.to_string(), &notes);
            Ok((walked.into_index(), notes))
        }
    }
}

/// As [`index`], where the walk is remembered and still true.
pub fn remembered(root: &Path, splits: &Splits, cache_dir: &Path) -> Option<(Index, Vec<String>)> {
    Walk::load(&file(root, splits, cache_dir), root, &splits.to_string())
}

/// Where a walk is remembered.
fn file(root: &Path, splits: &Splits, cache_dir: &Path) -> PathBuf {
    let mut key = root.as_os_str().as_bytes().to_vec();
    if *splits != Splits::default() {
        key.push(0);
        key.extend(splits.to_string().into_bytes());
    }
    cache_dir.join(format!("index-{:016x}", xxhash_rust::xxh3::xxh3_64(&key)))
}

/// Walks over the folder `root`, whose splits are where `splits` has them; with notes on what was left out.
///
/// # Errors
/// When a folder cannot be listed, there is no training image, none of a validation split that was asked for, or a second set.
pub(super) fn walk(root: &Path, splits: &Splits) -> Result<(Walk, Vec<String>), DatasetError> {
    let mut names = [Some(b"train".to_vec()), Some(b"val".to_vec())];
    let mut at = Vec::new();
    for &split in Split::ALL {
        let Some(place) = splits.of(split) else { continue };
        // Without `.` and doubled slashes, which would make other names of the same samples.
        let folder: PathBuf = Path::new(place).components().filter(|part| *part != Component::CurDir).collect();
        names[split as usize] = if root.join(&folder).is_dir() {
            at.push((split, folder));
            None
        } else if place.contains('/') {
            return Err(empty(root, split, splits));
        } else {
            Some(place.as_bytes().to_vec())
        };
    }
    let mut walker = Walker::new(root, at.iter().map(|(_, folder)| folder.clone()).collect());
    for (split, folder) in at {
        walker.layout = Layout::At { split, len: folder.as_os_str().len() };
        walker.start(&folder)?;
    }
    if names.iter().any(Option::is_some) {
        // Beside a training split that is looked for: one that was named is all that its user wants.
        walker.takes_aliases = names[Split::Train as usize].is_some() && splits.of(Split::Val).is_none();
        walker.layout = Layout::Named { names, alias: None };
        walker.start(Path::new(""))?;
        walker.finish_deferred()?;
    }
    let Walker { walked, tally, files, alias, .. } = walker;
    let is_empty = |split: Split| walked.images(split) == 0;
    if is_empty(Split::Train) && is_empty(Split::Val) && *splits == Splits::default() {
        return Err(DatasetError::NotAnImageFolder { root: root.to_owned(), found: files });
    }
    if is_empty(Split::Train) {
        return Err(empty(root, Split::Train, splits));
    }
    if is_empty(Split::Val) && splits.of(Split::Val).is_some() {
        return Err(empty(root, Split::Val, splits));
    }
    let mut notes = tally.notes();
    if let Some(alias) = alias {
        notes.push(format!("{}/ is the validation split: val/ has no image", escaped(&alias)));
    }
    Ok((walked, notes))
}

/// The error of a split without images.
fn empty(root: &Path, split: Split, splits: &Splits) -> DatasetError {
    let place = splits.of(split).unwrap_or(split.name()).to_owned();
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_shown = |entry: &std::fs::DirEntry| entry.path().is_dir() && !entry.file_name().as_bytes().starts_with(b".");
    let mut there: Vec<_> = entries.filter(is_shown).map(|entry| format!("{}/", escaped(&entry.file_name()))).collect();
    there.sort_unstable();
    there.truncate(10);
    DatasetError::EmptySplit { root: root.to_owned(), split, place, there: there.join(", ") }
}

/// A walk under way.
struct Walker<'a> {
    root: &'a Path,
    layout: Layout,
    /// Folders that are walked on their own.
    apart: Vec<PathBuf>,
    walked: Walk,
    tally: Tally,
    /// Files that were seen, images or not.
    files: usize,
    /// The folder that the splits are in, once there is an image.
    set: Option<Vec<u8>>,
    /// From the root to where the walk is: where each folder really is.
    above: Vec<PathBuf>,
    detours: Detours,
    /// Whether the validation split may have another name.
    takes_aliases: bool,
    /// Folders that may turn out to be the validation split, relative to the root.
    deferred: Vec<PathBuf>,
    /// The one that did.
    alias: Option<PathBuf>,
}

/// The entries of one folder.
#[derive(Default)]
struct Found {
    listing: Listing,
    /// Where links to folders lead.
    links: BTreeMap<Vec<u8>, PathBuf>,
}

impl<'a> Walker<'a> {
    fn new(root: &'a Path, apart: Vec<PathBuf>) -> Self {
        Self {
            root,
            layout: Layout::Named { names: [None, None], alias: None },
            apart,
            walked: Walk::new(),
            tally: Tally::default(),
            files: 0,
            set: None,
            above: Vec::new(),
            detours: Detours::default(),
            takes_aliases: false,
            deferred: Vec::new(),
            alias: None,
        }
    }

    /// Walks over `folder` and what is below it.
    fn start(&mut self, folder: &Path) -> Result<(), DatasetError> {
        let dir = self.root.join(folder);
        let real = dir.canonicalize().map_err(DatasetError::io("find", &dir))?;
        self.above.clear();
        self.folder(folder, real, false)
    }

    /// Walks over the folders that were left for later: one of them is the validation split, where there is no other.
    fn finish_deferred(&mut self) -> Result<(), DatasetError> {
        while !self.deferred.is_empty() {
            let is_wanted = self.walked.images(Split::Val) == 0 && self.walked.images(Split::Train) > 0;
            let beside = |folder: &Path| {
                let parent = folder.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
                self.set.as_deref() == Some(parent)
            };
            let candidate = |alias: &'static str| {
                let is_it = |folder: &PathBuf| folder.file_name() == Some(OsStr::new(alias)) && beside(folder);
                self.deferred.iter().position(is_it).map(|at| (at, alias))
            };
            let found = if is_wanted { VAL_FOLDERS.into_iter().find_map(candidate) } else { None };
            let (at, name) = found.map_or((0, None), |(at, alias)| (at, Some(alias)));
            let folder = self.deferred.remove(at);
            if let Layout::Named { alias, .. } = &mut self.layout {
                *alias = name;
            }
            self.start(&folder)?;
            if name.is_some() && self.walked.images(Split::Val) > 0 {
                self.alias = Some(folder);
            }
        }
        Ok(())
    }

    /// Collects the images below `relative`, a folder that is really at `real`.
    fn folder(&mut self, relative: &Path, real: PathBuf, by_link: bool) -> Result<(), DatasetError> {
        let dir = self.root.join(relative);
        if !self.detours.enter(self.above.len(), by_link) {
            return Err(DatasetError::TooManyLinks { root: self.root.to_owned(), folder: relative.to_owned() });
        }
        self.above.push(real);
        let folder = relative.as_os_str().as_bytes();
        let placed = self.layout.place(folder);
        let before = self.images();
        self.walked.enter(self.root, relative).map_err(DatasetError::io("look at", &dir))?;
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(_) if !folder.is_empty() && !self.layout.is_in_split(folder) => {
                self.tally.unreadable();
                self.above.pop();
                return Ok(());
            }
            Err(error) => return Err(DatasetError::io("list", &dir)(error)),
        };
        let mut found = Found::default();
        for entry in entries {
            let entry = entry.map_err(|error| DatasetError::io("list", &dir)(error))?;
            self.entry(&entry, relative, placed.is_some(), &mut found)?;
        }
        self.below(relative, placed.as_ref(), found)?;
        if placed.is_some_and(|placed| placed.class.end == folder.len()) && self.images() == before {
            self.tally.empty(relative.to_owned());
        }
        self.above.pop();
        Ok(())
    }

    /// Walks what was found in a folder, in order.
    fn below(&mut self, relative: &Path, placed: Option<&Placed>, mut found: Found) -> Result<(), DatasetError> {
        let folder = relative.as_os_str().as_bytes();
        for name in found.listing.sorted() {
            if let Some(name) = name.strip_suffix(b"/") {
                let below = relative.join(OsStr::from_bytes(name));
                let (real, by_link) = match found.links.remove(name) {
                    Some(real) => (real, true),
                    None => (self.above.last().expect("its folder").join(OsStr::from_bytes(name)), false),
                };
                self.folder(&below, real, by_link)?;
            } else if let Some(Placed { split, set, class }) = placed {
                self.check_set(&folder[..*set])?;
                let full = |_| DatasetError::TooManyNames { root: self.root.to_owned(), split: *split };
                self.walked.image(*split, folder, class.clone(), name).map_err(full)?;
            }
        }
        Ok(())
    }

    /// Notes one entry of the folder `relative`, whose images belong to a class or to none.
    fn entry(
        &mut self,
        entry: &std::fs::DirEntry,
        relative: &Path,
        is_class: bool,
        found: &mut Found,
    ) -> Result<(), DatasetError> {
        // No path is made of an ordinary file: there may be millions.
        let name = entry.file_name();
        let mut kind = entry.file_type().map_err(|error| DatasetError::io("look at", &entry.path())(error))?;
        let is_link = kind.is_symlink();
        if name.as_bytes().starts_with(b".") {
            if is_class && is_image(Path::new(&name)) {
                self.tally.file(Ignored::Hidden);
            }
            return Ok(());
        }
        if is_link {
            kind = match std::fs::metadata(entry.path()) {
                Ok(meta) => meta.file_type(),
                Err(error) => return self.broken(&entry.path(), relative, error),
            };
        }
        if kind.is_dir() {
            let below = relative.join(&name);
            if self.apart.contains(&below) {
                return Ok(());
            }
            if self.is_deferred(relative, &name) {
                self.deferred.push(below);
                return Ok(());
            }
            if is_link {
                let target = entry.path().canonicalize().map_err(DatasetError::io("follow", &entry.path()))?;
                if self.above.iter().any(|above| above.starts_with(&target)) {
                    // The link may lead through others, which no stamp covers.
                    self.walked.depends();
                    self.tally.cycle();
                    return Ok(());
                }
                found.links.insert(name.as_bytes().to_vec(), target);
            }
            found.listing.push(name.as_bytes(), b"/");
            return Ok(());
        }
        if is_link {
            self.walked.depends();
        }
        if !kind.is_file() {
            self.tally.file(Ignored::Special);
            return Ok(());
        }
        self.files += 1;
        match is_image(Path::new(&name)) {
            true if is_class => found.listing.push(name.as_bytes(), b""),
            true => self.tally.file(Ignored::Outside),
            // A text beside the splits is not missed by anybody.
            false if self.layout.is_in_split(relative.as_os_str().as_bytes()) => self.tally.file(Ignored::NotAnImage),
            false => {}
        }
        Ok(())
    }

    /// A link whose end cannot be looked at.
    fn broken(&mut self, path: &Path, relative: &Path, error: io::Error) -> Result<(), DatasetError> {
        self.walked.depends();
        let leads_nowhere = matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP));
        if leads_nowhere || !self.layout.is_in_split(relative.as_os_str().as_bytes()) {
            self.tally.file(Ignored::Broken);
            return Ok(());
        }
        Err(DatasetError::io("follow the link", path)(error))
    }

    /// Whether a folder may be the validation split, which is known only when all others have been seen.
    fn is_deferred(&self, relative: &Path, name: &OsStr) -> bool {
        VAL_FOLDERS.iter().any(|folder| name == *folder)
            && self.takes_aliases
            && !self.layout.is_in_split(relative.as_os_str().as_bytes())
    }

    /// Refuses a second set below the same root.
    fn check_set(&mut self, set: &[u8]) -> Result<(), DatasetError> {
        if matches!(self.layout, Layout::At { .. }) {
            return Ok(());
        }
        let first = self.set.get_or_insert_with(|| set.to_vec());
        if first == set {
            return Ok(());
        }
        let [first, second] =
            [first, set].map(|set| OsStr::from_bytes(if set.is_empty() { b"." } else { set }).to_owned().into());
        Err(DatasetError::SecondSet { root: self.root.to_owned(), first, second })
    }

    fn images(&self) -> u64 {
        Split::ALL.iter().map(|&split| u64::from(self.walked.images(split))).sum()
    }
}

/// The entries of one folder, packed.
///
/// A subfolder's name ends with `/`, so that sorting the names and walking each subfolder in its turn visits the images in the order of
/// their whole paths: no name holds a `/`, hence an entry compares with all that is below a subfolder as it does with the subfolder itself.
#[derive(Default)]
struct Listing {
    names: Vec<u8>,
    /// Start and end of each name.
    entries: Vec<(usize, usize)>,
}

impl Listing {
    fn push(&mut self, name: &[u8], suffix: &[u8]) {
        let start = self.names.len();
        self.names.extend_from_slice(name);
        self.names.extend_from_slice(suffix);
        self.entries.push((start, self.names.len()));
    }

    fn sorted(&mut self) -> impl Iterator<Item = &[u8]> {
        let (names, entries) = (&self.names, &mut self.entries);
        entries.sort_unstable_by_key(|&(start, end)| &names[start..end]);
        entries.iter().map(|&(start, end)| &names[start..end])
    }
}
