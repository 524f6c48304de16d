//! What can be wrong with a shard.

use std::io;

/// The most files of a sample.
pub const FIELDS_MAX: usize = 1_000;
/// The most bytes of a long name, or of a list of attributes.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// The most bytes of a file's name.
pub const NAME_BYTES_MAX: usize = 4 << 10;

/// Why a shard cannot be used. The text follows the shard's path.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is compressed.
    #[error("is compressed ({kind}), and shards are read in place: unpack it to a .tar")]
    Compressed {
        /// By what.
        kind: &'static str,
    },
    /// An entry goes beyond the end of the file.
    #[error("is cut: the entry at byte {offset} goes beyond the end of the file (copy or write the shard again)")]
    Cut {
        /// The entry's header.
        offset: u64,
    },
    /// Something else than an entry.
    #[error("is no tar, or damaged: there is no valid header at byte {offset} (copy or write the shard again)")]
    NotAnEntry {
        /// Where.
        offset: u64,
    },
    /// A long name, or attributes, of more bytes than any has.
    #[error(
        "has a name or attributes of {bytes} bytes at byte {offset}, where {EXTENSION_BYTES_MAX} are read at most (write the shard without \
         extended attributes)"
    )]
    LongExtension {
        /// Their header.
        offset: u64,
        /// What it says.
        bytes: u64,
    },
    /// A name that no file system could have.
    #[error(
        "has a name of {bytes} bytes at byte {offset}, where {NAME_BYTES_MAX} are read at most (write the shard with shorter names)"
    )]
    LongName {
        /// The file's header.
        offset: u64,
        /// Bytes of the name.
        bytes: usize,
    },
    /// A file with holes.
    #[error("has a sparse file at byte {offset}, which cannot be read in place (write the shard without --sparse)")]
    Sparse {
        /// Its header.
        offset: u64,
    },
    /// Names or sizes for all entries.
    #[error("has global attributes with a name or size at byte {offset} (write the shard without them)")]
    GlobalAttributes {
        /// Their header.
        offset: u64,
    },
    /// A field that no file may be.
    #[error(
        "has a file `{name}`, whose field is webdataset's own and refused there, too (write the shard with another name)"
    )]
    TakenField {
        /// The file.
        name: String,
    },
    /// A sample has a field twice.
    #[error("has two files `{name}` in one sample, as webdataset refuses, too (write the shard with keys that differ)")]
    DuplicateField {
        /// The second.
        name: String,
    },
    /// A sample has more files than any has.
    #[error(
        "has a sample of more than {FIELDS_MAX} files, at `{name}` (the part of a name before its first dot tells samples apart)"
    )]
    TooManyFields {
        /// The file that is one too many.
        name: String,
    },
    /// A label cannot be read.
    #[error("has a label that is none in `{name}`: {cause}")]
    BadLabel {
        /// The file in the shard.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Labels lie in a pickle.
    #[error(
        "has no label but in `{name}`: reading a pickle would run the code in it, so mixd never does (write the label as `cls`, \
         an integer as text, or as `json`)"
    )]
    Pickled {
        /// The file in the shard.
        name: String,
    },
    /// Memory does not take the index.
    #[error(
        "has more samples than memory takes: the index needs {need} bytes more, and {free} are free (free some, or name fewer shards)"
    )]
    NoMemory {
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// More samples or names than the index can address.
    #[error("has too many samples, or too long names, for one split: the index takes 4 GiB of names")]
    Full,
    /// It was written to while it was indexed.
    #[error("changes while it is indexed (wait until it is written)")]
    Changing,
    /// It is no file.
    #[error("is no file")]
    NotAFile,
    /// A system call failed.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

/// Bytes of a name for people, without control characters.
pub fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}
