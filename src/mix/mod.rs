//! Mixers: from u8 samples, partners and λ to a finished batch.
//!
//! One convention for all of them (docs/spec/batches.md#mixing): every sample is normalised, `x = (u/255 − mean)/std`, and then mixed,
//! `x̃ = λ·x_own + (1−λ)·x_partner`, in f32. f16 and bf16 are that result rounded to nearest even. u8 is
//! `λ·u_own + (1−λ)·u_partner` rounded to nearest even, without normalisation. Samples are flipped before anything else, and
//! CutMix's box shows the partner in place of a mix: `x̃ = x_partner` inside, `x_own` outside. Erased boxes replace normalised values, of the
//! images before they are mixed or of the mixed one. `naive.rs` computes just that, slowly; the
//! other implementations are checked against it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod erase;
#[cfg(test)]
mod naive;
#[cfg(feature = "torch")]
mod torch;

use crate::format::Format;
use crate::plan::Erasure;
use crate::types::{Cut, Device, ImageSize, ParseError, named};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use cpu::{CpuMixer, Helpers, Level};
#[cfg(feature = "cuda")]
pub use cuda::{CudaMixer, Sizes};
#[cfg(feature = "torch")]
pub use torch::torch_device;

/// Which implementation mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MixerKind {
    /// One fused pass on the processor.
    #[default]
    Cpu,
    /// Torch operations, on the CPU or a CUDA device (feature `torch`).
    Torch,
    /// One fused kernel on a CUDA device (feature `cuda`).
    Cuda,
}
named!(MixerKind, "mixer", "cpu, torch or cuda", Cpu = "cpu", Torch = "torch", Cuda = "cuda");

/// A sample in main memory.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// u8 `[3, H, W]`.
    pub bytes: &'a [u8],
    /// Its row of the feed's store; `None` where it lies elsewhere.
    pub stored: Option<u32>,
    /// What is erased of it before it is mixed, in the view as it is shown, after its flip.
    pub erasure: Option<&'a Erasure>,
}

/// One row of a batch to be mixed.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The own sample.
    pub own: Sample<'a>,
    /// The partner. Need not be read where `weight` is 1 and there is no box.
    pub partner: Sample<'a>,
    /// Weight of the own sample in every pixel outside `cut`, in [0, 1].
    pub weight: f32,
    /// Row of this batch whose own sample is the partner; -1 where the partner comes from elsewhere.
    pub partner_row: i32,
    /// Where the partner is shown in place of the own sample; the weight must be 1 then.
    pub cut: Option<Cut>,
    /// Whether the own sample is flipped horizontally.
    pub flip: bool,
    /// Whether the partner is; of a row of this batch, as its own row says.
    pub partner_flip: bool,
    /// What is erased of the mixed image.
    pub erasure: Option<&'a Erasure>,
}

impl<'a> Row<'a> {
    /// A row that mixes `own` with a sample from elsewhere.
    pub fn new(own: &'a [u8], partner: &'a [u8], weight: f32) -> Self {
        let [own, partner] = [own, partner].map(|bytes| Sample { bytes, stored: None, erasure: None });
        Self { own, partner, weight, partner_row: -1, cut: None, flip: false, partner_flip: false, erasure: None }
    }
}

/// Who wants to know that a batch is nearly finished.
pub struct Notice<'a> {
    /// How long before the end.
    pub ahead: Duration,
    /// How many wait awake from then on, each on a processor.
    pub waiters: usize,
    /// Called at most once, from any thread that mixes.
    pub give: &'a (dyn Fn() + Sync),
}

/// Tells size and rows of the batch after this one, if it is there.
pub type Next<'a> = dyn FnMut(&mut dyn FnMut(ImageSize, &[Row<'_>])) + 'a;

/// Where a batch's images go.
pub enum Target<'a> {
    /// Main memory: rows × [`Format::image_bytes`] bytes of the batch's size, 64-byte aligned.
    Memory(&'a mut [u8]),
    /// This slot of the device ring that the mixer was made for.
    Slot(u32),
}

impl<'a> Target<'a> {
    /// The memory.
    ///
    /// # Panics
    /// When it is a slot on a device, which only mixers that were made for one are given.
    pub fn memory(self) -> &'a mut [u8] {
        match self {
            Self::Memory(memory) => memory,
            Self::Slot(slot) => panic!("slot {slot} lies on a device, and this mixer fills main memory"),
        }
    }
}

/// Bytes that a CUDA device moved for a batch; none where the processor mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// From main memory.
    pub to_device: usize,
    /// To main memory.
    pub from_device: usize,
    /// Within its memory by the kernel: each sample that the batch needs read once, each image written once. 0 where torch mixed, whose
    /// operations move more.
    pub on_device: usize,
}

/// Why a mixer could not be had or could not mix.
#[derive(Debug, thiserror::Error)]
pub enum MixError {
    /// The build has no such mixer.
    #[error("this build has no torch mixer: it was built without the feature `torch` (build it with `make build`)")]
    NoTorch,
    /// The mixer does not run on this device.
    #[error("the {mixer} mixer does not run on {device} (use --mixer {remedy})")]
    WrongDevice {
        /// Which.
        mixer: MixerKind,
        /// Where it was to run.
        device: Device,
        /// One that does.
        remedy: &'static str,
    },
    /// The build has no CUDA.
    #[error("this build has no CUDA: it was built without the feature `cuda` (build it with `make build`)")]
    NoCudaBuild,
    /// The device failed, or is not there.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// Torch refused an operation.
    #[error("torch: {0}")]
    Torch(String),
}

impl MixError {
    /// Whether memory does not suffice, the device's or main memory.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(error) => error.is_out_of_memory(),
            // Torch has no code for it: "CUDA out of memory. Tried to allocate …", "CUDA error: out of memory".
            Self::Torch(text) => text.contains("out of memory"),
            _ => false,
        }
    }
}

/// Fills batches. Implementations keep their scratch between calls, and allocate nothing in the steady state where
/// their substrate lets them.
pub trait Mixer: Send {
    /// The name that stands in statistics.
    fn name(&self) -> &'static str;

    /// Whether the samples of the batch that is mixed next are on their way, so that its rows need not be told again.
    fn has_sent(&self) -> bool {
        false
    }

    /// Writes the mixed images of `rows`, whose height and width are `size`, at most the format's, in order, to `target`; they are complete when this returns. Gives notice at most once. A mixer that
    /// can do something for the batch after this one meanwhile asks `next` for it. Returns what a device moved.
    ///
    /// # Errors
    /// When the device fails; the target then holds nothing of use.
    ///
    /// # Panics
    /// When a sample or the target has another length than the format says, or it is not a target of this mixer's kind.
    fn mix(
        &mut self,
        size: ImageSize,
        rows: &[Row<'_>],
        target: Target<'_>,
        notice: Option<&Notice<'_>>,
        next: Option<&mut Next<'_>>,
    ) -> Result<Moved, MixError>;
}

/// Makes a mixer that fills main memory, for batches of at most `batch_size_max` rows. The cpu mixer alone has use for `helpers`; the cuda
/// mixer has use for more, and is not made here.
///
/// # Errors
/// When the build or the machine lacks what `kind` and `device` need; never a silent fall-back.
pub fn mixer(
    kind: MixerKind,
    device: Device,
    format: Format,
    batch_size_max: usize,
    helpers: Arc<Helpers>,
) -> Result<Box<dyn Mixer>, MixError> {
    match kind {
        MixerKind::Cpu if device == Device::Cpu => Ok(Box::new(cpu::CpuMixer::new(format, helpers))),
        MixerKind::Cpu => Err(MixError::WrongDevice { mixer: kind, device, remedy: "cuda or torch" }),
        MixerKind::Cuda => Err(MixError::WrongDevice { mixer: kind, device, remedy: "cpu" }),
        #[cfg(feature = "torch")]
        MixerKind::Torch => Ok(Box::new(torch::TorchMixer::new(device, format, batch_size_max)?)),
        #[cfg(not(feature = "torch"))]
        MixerKind::Torch => {
            let _ = batch_size_max;
            Err(MixError::NoTorch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::EraseMode;
    use crate::types::{Dtype, Layout};
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use sha2::{Digest, Sha256};
    use std::path::Path;

    /// A batch to mix.
    #[derive(Debug, Clone)]
    pub struct Case {
        pub format: Format,
        /// Own samples, then samples from elsewhere.
        pub samples: Vec<Vec<u8>>,
        /// For each row λ, and its partner: a row, or -1 for a sample from elsewhere.
        pub plan: Vec<(f32, i32)>,
        /// The boxes of rows that are cut, of a feed that cuts.
        pub cuts: Vec<Option<Cut>>,
        /// Whether each sample is flipped, of a feed that flips.
        pub flips: Vec<bool>,
        /// What is erased of each sample, or of each mixed image, of a feed that erases.
        pub erasures: Vec<Option<Erasure>>,
        pub erases_mixed: bool,
    }

    impl Case {
        pub fn rows(&self) -> Vec<Row<'_>> {
            let len = self.plan.len();
            let row = |(at, &(lambda, partner_row)): (usize, &(f32, i32))| {
                let partner = usize::try_from(partner_row).unwrap_or(len + at);
                let flip = |at: usize| self.flips.get(at).copied().unwrap_or(false);
                let (cut, flip, partner_flip) = (self.cuts.get(at).copied().flatten(), flip(at), flip(partner));
                let weight = if cut.is_some() { 1.0 } else { lambda };
                let row = Row::new(&self.samples[at], &self.samples[partner], weight);
                let erasure = |at: usize, mixed| {
                    self.erasures.get(at).and_then(Option::as_ref).filter(|_| self.erases_mixed == mixed)
                };
                let (own, partner) = (
                    Sample { erasure: erasure(at, false), ..row.own },
                    Sample { erasure: erasure(partner, false), ..row.partner },
                );
                Row { own, partner, partner_row, cut, flip, partner_flip, erasure: erasure(at, true), ..row }
            };
            self.plan.iter().enumerate().map(row).collect()
        }

        pub fn out(&self) -> Aligned {
            Aligned::new(self.plan.len() * self.format.image_bytes())
        }
    }

    /// Bytes at an address that fits every element type.
    pub struct Aligned(Vec<u64>, usize);

    impl Aligned {
        fn new(len: usize) -> Self {
            Self(vec![0xAAAA_AAAA_AAAA_AAAA; len.div_ceil(8)], len)
        }
    }

    impl std::ops::Deref for Aligned {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &bytemuck::cast_slice(&self.0)[..self.1]
        }
    }

    impl std::ops::DerefMut for Aligned {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut bytemuck::cast_slice_mut(&mut self.0)[..self.1]
        }
    }

    /// Random batches of every type, order and pairing.
    pub fn case() -> impl Strategy<Value = Case> {
        let kinds = (prop::sample::select(Dtype::ALL), prop::sample::select(Layout::ALL), any::<[bool; 5]>());
        let sizes = (1_u32..40, 1_u32..80, 1_usize..9);
        // About the values that the tolerances of docs/spec/golden.md were measured with.
        let (mean, std) = (prop::array::uniform3(0.4_f32..0.5), prop::array::uniform3(0.3_f32..0.5));
        (kinds, sizes, mean, std, any::<u64>()).prop_map(
            |((dtype, layout, [elsewhere, cut, flip, erase, erases_mixed]), (height, width, len), mean, std, seed)| {
                let format =
                    Format { image_size: ImageSize { height, width }, dtype, layout, mean, std, device: Device::Cpu };
                let mut state = seed | 1;
                let mut random = move || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as u32
                };
                let samples = (0..2 * len).map(|_| (0..format.image_size.values()).map(|_| random() as u8).collect());
                let samples = samples.collect();
                let mut plan: Vec<(f32, i32)> = Vec::new();
                for _ in 0..len {
                    let lambda = match random() % 5 {
                        0 => 1.0,
                        1 => 0.5,
                        2 => 0.0,
                        _ => random() as f32 / (1_u64 << 31) as f32,
                    };
                    plan.push((lambda.min(1.0), if elsewhere { -1 } else { (random() % len as u32) as i32 }));
                }
                let mut span = |extent: u32| {
                    let (a, b) = (random() % (extent + 1), random() % (extent + 1));
                    (a.min(b), a.max(b))
                };
                let mut a_box = || {
                    let ((top, bottom), (left, right)) = (span(height), span(width));
                    Cut { top, bottom, left, right }
                };
                let boxes: Vec<[Cut; 4]> = (0..2 * len).map(|_| [(); 4].map(|()| a_box())).collect();
                // Of 0..4.
                let mut some = |count: usize| (0..count).map(|_| random() % 4).collect::<Vec<u32>>();
                // Rows that are cut stand beside others that are mixed up.
                let cuts = if cut { some(len) } else { Vec::new() };
                let cuts = cuts.into_iter().zip(&boxes).map(|(nth, boxes)| (nth > 0).then_some(boxes[0])).collect();
                let flips = if flip { some(2 * len) } else { Vec::new() }.into_iter().map(|nth| nth > 1).collect();
                let erasures = if erase { some(2 * len) } else { Vec::new() };
                let erasures = erasures.into_iter().zip(&boxes).map(|(nth, boxes)| {
                    let modes = [EraseMode::Const, EraseMode::Rand, EraseMode::Pixel];
                    (nth > 0).then(|| Erasure::new(&boxes[1..=nth as usize], modes[nth as usize - 1], seed as u32))
                });
                let erasures = erasures.collect();
                Case { format, samples, plan, cuts, flips, erasures, erases_mixed }
            },
        )
    }

    /// Every implementation that this build has.
    fn mixers(format: Format, batch_size: usize) -> Vec<Box<dyn Mixer>> {
        let kinds = [MixerKind::Cpu, MixerKind::Torch];
        let kinds = kinds.into_iter().filter(|&kind| kind == MixerKind::Cpu || cfg!(feature = "torch"));
        let helpers = || Arc::new(Helpers::start(0).unwrap());
        let on_cpu = kinds.map(|kind| mixer(kind, Device::Cpu, format, batch_size, helpers()).unwrap());
        #[cfg(not(feature = "cuda"))]
        return on_cpu.collect();
        #[cfg(feature = "cuda")]
        {
            let sizes = Sizes { rows: batch_size, samples: 2 * batch_size, staged: 2 * batch_size };
            let cuda = CudaMixer::new(&crate::fixtures::gpu(), format, sizes, None, None);
            on_cpu.chain([Box::new(cuda.unwrap()) as Box<dyn Mixer>]).collect()
        }
    }

    proptest! {
        #[test]
        fn every_mixer_matches_naive(case in case()) {
            let oracle = naive::mix(&case.format, &case.rows());
            let mut by_cpu = Vec::new();
            // Batches may be smaller than what mixers are made for.
            let ImageSize { height, width } = case.format.image_size;
            let more = case.plan.len() as u32 % 3;
            let most = case.format.sized(ImageSize { height: height + more, width: width + 5 * more });
            for mut mixer in mixers(most, case.plan.len()) {
                let mut out = case.out();
                mixer.mix(case.format.image_size, &case.rows(), Target::Memory(&mut out), None, None).unwrap();
                match mixer.name() {
                    "cpu" => by_cpu = out.to_vec(),
                    // The same factors in the same order.
                    "cuda" => prop_assert_eq!(&out[..], &by_cpu[..]),
                    _ => {}
                }
                naive::assert_close(case.format.dtype, &out, &oracle, mixer.name());
                if mixer.name() == "torch" && case.format.dtype == Dtype::F32 {
                    // The same operations in the same order.
                    prop_assert_eq!(&out[..], &oracle[..]);
                }
            }
        }
    }

    fn numbers<const N: usize, T>(tensors: &SafeTensors<'_>, name: &str, read: fn([u8; N]) -> T) -> Vec<T> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn every_mixer_and_the_oracle_pass_the_goldens() {
        crate::fixtures::roots().for_each(|root| mixers_pass(&root));
    }

    fn hash(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What `mix_cases.json` has of a case.
    fn listed(root: &Path, name: &str) -> serde_json::Value {
        let list: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join("mix_cases.json")).unwrap()).unwrap();
        let mut named = list.as_array().unwrap().iter().filter(|case| case["name"].as_str().unwrap().starts_with(name));
        named.next().expect("a golden case").clone()
    }

    fn mixers_pass(root: &Path) {
        let bytes = std::fs::read(root.join("mix_cases.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for name in ["b1", "b2", "b7", "b64", "ramp"] {
            let x = tensors.tensor(&format!("{name}.x")).unwrap();
            let (len, height, width) = (x.shape()[0], x.shape()[2] as u32, x.shape()[3] as u32);
            let image_size = ImageSize { height, width };
            let shuffle = numbers(&tensors, &format!("{name}.shuffle"), i64::from_le_bytes);
            let lambda = numbers(&tensors, &format!("{name}.lam"), f32::from_le_bytes);
            let samples: Vec<Vec<u8>> = x.data().chunks_exact(image_size.values()).map(<[u8]>::to_vec).collect();
            let plan = lambda.into_iter().zip(shuffle.into_iter().map(|row| row as i32)).collect();
            for (dtype, golden) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
                let spec = crate::spec::FeedSpec { image_size, dtype, ..crate::spec::FeedSpec::train() };
                let (cuts, flips, erasures, erases_mixed) = Default::default();
                let case = Case {
                    format: spec.format(),
                    samples: samples.clone(),
                    plan: Vec::clone(&plan),
                    cuts,
                    flips,
                    erasures,
                    erases_mixed,
                };
                let expected = naive::mix(&case.format, &case.rows());
                match tensors.tensor(&format!("{name}.mixed_{golden}")) {
                    Ok(stored) => assert_eq!(expected, stored.data(), "{name} {dtype}"),
                    Err(_) => {
                        let stored = &listed(root, name)[format!("sha256_{golden}_le")];
                        assert_eq!(stored, &hash(&expected), "{name} {dtype}");
                    }
                }
                for mut mixer in mixers(case.format, len) {
                    let mut out = case.out();
                    mixer.mix(case.format.image_size, &case.rows(), Target::Memory(&mut out), None, None).unwrap();
                    let context = format!("{} {name} {dtype}", mixer.name());
                    naive::assert_close(dtype, &out, &expected, &context);
                    naive::assert_rarely_off(dtype, &out, &expected, &context);
                }
            }
        }
    }

    #[test]
    fn the_mix_of_real_images_has_the_golden_hash() {
        crate::fixtures::roots().for_each(|root| real_images_pass(&root));
    }

    fn real_images_pass(root: &Path) {
        let bytes = std::fs::read(root.join("mix_cases.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let golden = listed(root, "all");
        let name = golden["name"].as_str().unwrap();
        let bytes = std::fs::read(root.join("pixels.safetensors")).unwrap();
        let pixels = SafeTensors::deserialize(&bytes).unwrap();
        let format = crate::spec::FeedSpec::train().format();
        let samples = pixels.tensor("pixels").unwrap();
        let samples = samples.data().chunks_exact(format.image_size.values()).map(<[u8]>::to_vec).collect();
        let shuffle = numbers(&tensors, &format!("{name}.shuffle"), i64::from_le_bytes);
        let lambda = numbers(&tensors, &format!("{name}.lam"), f32::from_le_bytes);
        let plan = lambda.into_iter().zip(shuffle.into_iter().map(|row| row as i32)).collect();
        let case = Case {
            format,
            samples,
            plan,
            cuts: Vec::new(),
            flips: Vec::new(),
            erasures: Vec::new(),
            erases_mixed: false,
        };
        let oracle = naive::mix(&format, &case.rows());
        assert_eq!(golden["sha256_f32_le"], hash(&oracle));
        for mut mixer in mixers(format, case.plan.len()) {
            let mut out = case.out();
            mixer.mix(case.format.image_size, &case.rows(), Target::Memory(&mut out), None, None).unwrap();
            naive::assert_close(Dtype::F32, &out, &oracle, mixer.name());
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let format = crate::spec::FeedSpec::train().format();
        let refused = |kind, device| {
            mixer(kind, device, format, 1, Arc::new(Helpers::start(0).unwrap())).err().expect("refused").to_string()
        };
        assert!(refused(MixerKind::Cpu, Device::Cuda(0)).contains("use --mixer cuda or torch"));
        assert!(refused(MixerKind::Cuda, Device::Cpu).contains("use --mixer cpu"));
        if cfg!(feature = "torch") {
            assert!(refused(MixerKind::Torch, Device::Cuda(99)).contains("cuda:99"));
        } else {
            assert!(refused(MixerKind::Torch, Device::Cpu).contains("make build"));
        }
    }
}
