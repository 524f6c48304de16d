//! What a finished image looks like in memory.

use crate::types::{Device, Dtype, ImageSize, Layout};

/// Size, element type, axis order and normalisation of finished images; fixed for the life of a mixer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Height and width of every image.
    pub image_size: ImageSize,
    /// Element type of the output.
    pub dtype: Dtype,
    /// Order of the output's axes.
    pub layout: Layout,
    /// Mean of each channel, of pixel values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of pixel values in [0, 1]; not 0.
    pub std: [f32; 3],
    /// In whose memory the finished images lie.
    pub device: Device,
}

impl Format {
    /// The same of images of another size.
    pub fn sized(self, image_size: ImageSize) -> Self {
        Self { image_size, ..self }
    }

    /// Bytes of one finished image.
    pub const fn image_bytes(&self) -> usize {
        self.image_size.values() * self.dtype.bytes()
    }
}
