//! What is left out of a data set, counted by cause, and said in a line.

use crate::escape::escaped;
use std::fmt::Write;
use std::path::PathBuf;

/// The most class folders that a note names.
const NAMES_MAX: usize = 5;

/// Counts of what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files by cause.
    files: [u64; Ignored::ALL.len()],
    /// Folders that may not be listed.
    unreadable: u64,
    /// Links that were not followed.
    cycles: u64,
    /// Class folders without images, relative to the root.
    empty: Vec<PathBuf>,
}

/// Why a file is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Its name has no extension of an image.
    NotAnImage,
    /// An image in no class folder.
    Outside,
    /// Its name begins with a dot.
    Hidden,
    /// A link to nothing.
    Broken,
    /// A link that leaves the archive.
    Leaves,
    /// A link of an archive to nothing that is unpacked.
    NoImage,
    /// A file whose size could only be a mistake.
    TooLarge,
    /// Neither a file nor a folder.
    Special,
    /// An image without a row in a table of labels.
    Unnamed,
    /// A file of a table that is missing.
    NotThere,
    /// An image of a split that was not asked for.
    OtherSplit,
}

impl Ignored {
    const ALL: [Self; 11] = [
        Self::NotAnImage,
        Self::Outside,
        Self::Hidden,
        Self::Broken,
        Self::Leaves,
        Self::NoImage,
        Self::TooLarge,
        Self::Special,
        Self::Unnamed,
        Self::NotThere,
        Self::OtherSplit,
    ];

    /// For one file, and for several.
    const fn names(self) -> [&'static str; 2] {
        match self {
            Self::NotAnImage => ["not an image", "not images"],
            Self::Outside => ["image outside of class folders", "images outside of class folders"],
            Self::Hidden => ["image with a hidden name", "images with hidden names"],
            Self::Broken => ["broken link", "broken links"],
            Self::Leaves => ["link out of the archive", "links out of the archive"],
            Self::NoImage => ["link to no image", "links to no image"],
            Self::TooLarge => ["sparse file of more than 256 MiB", "sparse files of more than 256 MiB"],
            Self::Special => ["special file", "special files"],
            Self::Unnamed => ["image that no table names", "images that no table names"],
            Self::NotThere => ["file of a table that is not there", "files of tables that are not there"],
            Self::OtherSplit => ["image of another split", "images of other splits"],
        }
    }
}

impl Tally {
    /// Counts a file.
    pub fn file(&mut self, why: Ignored) {
        self.files[why as usize] += 1;
    }

    /// Counts a folder that may not be listed.
    pub fn unreadable(&mut self) {
        self.unreadable += 1;
    }

    /// Counts a link to a folder that contains it.
    pub fn cycle(&mut self) {
        self.cycles += 1;
    }

    /// Notes a class folder without images.
    pub fn empty(&mut self, folder: PathBuf) {
        self.empty.push(folder);
    }

    /// All that was counted, a line for files, one for folders and one for classes.
    pub fn notes(&self) -> Vec<String> {
        let files = Ignored::ALL.map(|why| (self.files[why as usize], why.names()));
        let folders = [
            (self.unreadable, ["cannot be read"; 2]),
            (self.cycles, ["link to a folder that contains it", "links to folders that contain them"]),
        ];
        let mut notes: Vec<String> =
            [line(["file", "files"], &files), line(["folder", "folders"], &folders)].into_iter().flatten().collect();
        if let [_, ..] = *self.empty {
            let mut note = String::from("class folders without images: ");
            for (nth, folder) in self.empty.iter().take(NAMES_MAX).enumerate() {
                let _ = write!(note, "{}{}", if nth == 0 { "" } else { ", " }, escaped(folder));
            }
            if self.empty.len() > NAMES_MAX {
                let _ = write!(note, " and {} more", self.empty.len() - NAMES_MAX);
            }
            notes.push(note);
        }
        notes
    }
}

/// «312 files ignored: 300 not images, 12 broken links»; nothing of nothing. All that is counted has a name for one and one for several.
pub fn line(what: [&str; 2], causes: &[(u64, [&str; 2])]) -> Option<String> {
    let causes = || causes.iter().filter(|&&(count, _)| count > 0);
    let all: u64 = causes().map(|(count, _)| count).sum();
    let counted = |count: u64, [one, several]: [&str; 2]| format!("{count} {}", if count == 1 { one } else { several });
    let by_cause = || causes().map(|&(count, names)| counted(count, names)).collect::<Vec<_>>().join(", ");
    (all > 0).then(|| format!("{} ignored: {}", counted(all, what), by_cause()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_one_line_by_cause() {
        let mut tally = Tally::default();
        assert_eq!(tally.notes(), [""; 0]);
        (0..300).for_each(|_| tally.file(Ignored::NotAnImage));
        (0..12).for_each(|_| tally.file(Ignored::Broken));
        assert_eq!(tally.notes(), ["312 files ignored: 300 not images, 12 broken links"]);
        let mut tally = Tally::default();
        tally.file(Ignored::Outside);
        tally.unreadable();
        tally.cycle();
        (0..7).for_each(|nth| tally.empty(format!("train/{nth}\n").into()));
        assert_eq!(
            tally.notes(),
            [
                "1 file ignored: 1 image outside of class folders",
                "2 folders ignored: 1 cannot be read, 1 link to a folder that contains it",
                "class folders without images: train/0\\n, train/1\\n, train/2\\n, train/3\\n, train/4\\n and 2 more",
            ]
        );
    }
}
