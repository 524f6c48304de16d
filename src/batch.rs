//! What a batch is: the fields every consumer sees, wherever the bytes lie.

use crate::columns::{COUNT_OF_VERSION_1, Columns};
use crate::types::{Dtype, ImageSize, Layout, Place};
use bytemuck::{NoUninit, cast_slice};
use std::ops::Deref;
use xxhash_rust::xxh3::Xxh3;

/// Version of everything that makes plans what they are; it changes when any plan would.
pub const PLAN_VERSION: u32 = 2;

/// A view of one finished batch, in a slot of the ring or in memory of its own. Its columns are fields of it, too ([`Columns`]).
///
/// `x = λ·norm(own) + (1−λ)·norm(partner)`; loss `= reduce(λ·L(ŷ, label_a) + (1−λ)·L(ŷ, label_b))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchView<'a> {
    /// The images: `len` × 3 × H × W elements of `dtype` in `layout`, native byte order, 64-byte aligned. Empty where they lie on a device.
    pub x: &'a [u8],
    /// The same elements in a CUDA device's memory, where the feed was asked for there.
    pub x_on_device: Option<OnDevice>,
    /// Element type of `x`.
    pub dtype: Dtype,
    /// Order of the axes of `x`.
    pub layout: Layout,
    /// Height and width of the images.
    pub image_size: ImageSize,
    /// What each row carries beside its image.
    pub columns: Columns<'a>,
    /// Place and digest.
    pub head: Head,
}

/// What a batch as a whole carries beside its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Position in the epoch, from 0.
    pub index: u64,
    /// Batches in each epoch.
    pub batches: u64,
    /// Rows at the batch's end that repeat the head of the permutation so that all ranks have equal counts.
    pub pad: u32,
    /// Which columns the digest covers: 1 those of every feed, 2 all of them, where images are rendered for each use.
    pub digest_version: u32,
    /// [`BatchView::digest_by`] the daemon's mixer; 0 when the feed makes no digests.
    pub digest: u64,
}

impl Head {
    /// The batch's place.
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, index: self.index }
    }
}

impl<'a> Deref for BatchView<'a> {
    type Target = Columns<'a>;
    fn deref(&self) -> &Columns<'a> {
        &self.columns
    }
}

/// Where a batch's images lie in the memory of a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDevice {
    /// The device's number in this process.
    pub ordinal: u32,
    /// Address of the first byte in this process, 256-byte aligned; valid as long as the batch is leased.
    pub address: u64,
    /// Bytes of the images.
    pub bytes: usize,
}

/// The bytes of numbers, as they lie.
pub fn bytes_of<T: NoUninit>(numbers: &[T]) -> &[u8] {
    cast_slice(numbers)
}

impl BatchView<'_> {
    /// Rows in use: the last batch of an epoch may be short.
    pub fn len(&self) -> usize {
        self.label_a.len()
    }

    /// Whether the batch has no rows; no feed delivers such a batch.
    pub fn is_empty(&self) -> bool {
        self.label_a.is_empty()
    }

    /// Shape of `x`: `[B, 3, H, W]` or `[B, H, W, 3]`.
    pub fn shape(&self) -> [usize; 4] {
        let (height, width) = (self.image_size.height as usize, self.image_size.width as usize);
        match self.layout {
            Layout::Nchw => [self.len(), 3, height, width],
            Layout::Nhwc => [self.len(), height, width, 3],
        }
    }

    /// The digest of this batch as made by the mixer of this name: XXH3, 64 bits, of everything that the batch is.
    ///
    /// Hashed are, one after the other: `"mixd digest 1\0"` or `"mixd digest 2\0"` by its version; the mixer's name and a 0, for u8
    /// `"any"` since all mixers make the same bytes then, while in floating point they round differently; the plan version, `dtype`
    /// (0 f32, 1 f16, 2 bf16, 3 u8), `layout` (0 NCHW, 1 NHWC), height, width, `len` and `pad`, each as u32; `epoch`, `index` and
    /// `batches` as u64; the columns in their order, of version 1 those up to `partner_id`; and `x`, as they lie. All numbers are
    /// little-endian. A digest that would be 0, which means that there is none, is 1.
    pub fn digest_by(&self, mixer: &str) -> u64 {
        let mut hash = Xxh3::new();
        let Head { epoch, index, batches, pad, digest_version, digest: _ } = self.head;
        let is_version_1 = digest_version <= 1;
        hash.update(if is_version_1 { b"mixd digest 1\0" } else { b"mixd digest 2\0" });
        hash.update(if self.dtype == Dtype::U8 { "any" } else { mixer }.as_bytes());
        hash.update(&[0]);
        let ImageSize { height, width } = self.image_size;
        let (dtype, layout) = (self.dtype as u32, self.layout as u32);
        hash.update(cast_slice(&[PLAN_VERSION, dtype, layout, height, width, self.len() as u32, pad]));
        hash.update(cast_slice(&[epoch, index, batches]));
        let columns = self.columns.bytes();
        let covered = if is_version_1 { &columns[..COUNT_OF_VERSION_1] } else { &columns[..] };
        covered.iter().for_each(|column| hash.update(column));
        hash.update(self.x);
        hash.digest().max(1)
    }

    /// Whether this is the last batch of its epoch.
    pub fn ends_epoch(&self) -> bool {
        self.head.index + 1 == self.head.batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: Columns<'static> = Columns {
        label_a: &[1, 2],
        label_b: &[2, 1],
        lambda: &[0.5, 1.0],
        partner: &[1, 0],
        sample_id: &[7, 8],
        partner_id: &[8, 7],
        crop: &[[1, 2, 3, 4], [0; 4]],
        cut: &[[0; 4]; 2],
        flip: &[0, 1],
    };

    /// Two images of one pixel.
    fn view() -> BatchView<'static> {
        BatchView {
            x: &[1, 2, 3, 4, 5, 6],
            x_on_device: None,
            dtype: Dtype::U8,
            layout: Layout::Nchw,
            image_size: ImageSize::square(1),
            columns: COLUMNS,
            head: Head { epoch: 3, index: 4, batches: 5, pad: 1, digest_version: 1, digest: 0 },
        }
    }

    #[test]
    fn the_digest_is_what_its_definition_says() {
        let mut bytes = b"mixd digest 1\0any\0".to_vec();
        for number in [PLAN_VERSION, 3, 0, 1, 1, 2, 1] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [3_u64, 4, 5, 1, 2, 2, 1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([0.5_f32, 1.0].iter().flat_map(|lambda| lambda.to_le_bytes()));
        for number in [1_u32, 0, 7, 8, 8, 7] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([1, 2, 3, 4, 5, 6]);
        assert_eq!(view().digest_by("cpu"), xxhash_rust::xxh3::xxh3_64(&bytes));
        assert_eq!(view().digest_by("cpu"), GOLDEN);
    }
    const GOLDEN: u64 = 6_079_093_870_434_944_913;

    #[test]
    fn the_digest_tells_batches_and_floating_point_mixers_apart() {
        let base = view();
        let x = [0; 24];
        let float = BatchView { dtype: Dtype::F32, x: &x, ..base };
        assert_eq!(base.digest_by("cpu"), base.digest_by("torch"));
        assert_ne!(float.digest_by("cpu"), float.digest_by("torch"));
        let others = [
            BatchView { head: Head { epoch: 4, ..base.head }, ..base },
            BatchView { head: Head { pad: 0, ..base.head }, ..base },
            BatchView { head: Head { digest_version: 2, ..base.head }, ..base },
            BatchView { layout: Layout::Nhwc, ..base },
            BatchView { columns: Columns { lambda: &[0.5, 0.5], ..COLUMNS }, ..base },
            BatchView { columns: Columns { partner_id: &[8, 8], ..COLUMNS }, ..base },
            BatchView { x: &[1, 2, 3, 4, 5, 7], ..base },
            float,
        ];
        assert!(others.iter().all(|other| other.digest_by("cpu") != base.digest_by("cpu")));
    }

    #[test]
    fn version_2_covers_every_column_and_version_1_those_that_every_feed_has() {
        let digest = |digest_version, columns| {
            let base = view();
            BatchView { head: Head { digest_version, ..base.head }, columns, ..base }.digest_by("cpu")
        };
        let cropped = Columns { crop: &[[0; 4]; 2], ..COLUMNS };
        assert_eq!(digest(1, COLUMNS), digest(1, cropped));
        assert_ne!(digest(2, COLUMNS), digest(2, cropped));
        assert_ne!(digest(2, COLUMNS), digest(2, Columns { flip: &[0, 0], ..COLUMNS }));
    }
}
