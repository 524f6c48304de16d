//! The bound on walks over links: links that lead to links can make a few folders look like endlessly many.

/// The most folders behind two links or more on the way to them.
const BEHIND_LINKS_MAX: u32 = if cfg!(test) { 10_000 } else { 1_000_000 };

/// Counts the folders of a walk that lie behind two links or more.
#[derive(Debug, Default)]
pub struct Detours {
    /// From the root to where the walk is: whether a link led to the folder.
    above: Vec<bool>,
    folders: u32,
}

impl Detours {
    /// Enters a folder that is `depth` folders below the root; whether the walk may go on.
    pub fn enter(&mut self, depth: usize, by_link: bool) -> bool {
        self.above.truncate(depth);
        self.above.push(by_link);
        self.folders += u32::from(self.above.iter().filter(|by_link| **by_link).count() > 1);
        self.folders <= BEHIND_LINKS_MAX
    }
}
