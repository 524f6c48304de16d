//! The presets (docs/spec/recipes.md#presets).

use super::{
    Augment, Blur, ColorJitter, Crop, Erase, EraseMode, Grow, LaterViews, Mix, MixPer, Pairing, Policy, Recipe,
    Solarize, TimmRand, TrainView, ValView,
};
use crate::operation::{WarpFilter, Warping};
use crate::types::{ImageSize, Interpolation};

/// ImageNet's mean in bytes, rounded: what timm's warps show beyond the image.
const IMAGENET_FILL: [u8; 3] = [124, 116, 104];

/// Mean of ImageNet's training images in R, G, B, of values in [0, 1].
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of the same.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

impl Recipe {
    /// Every preset.
    pub fn presets() -> Vec<Self> {
        let [torchvision_v2, a1, a3, deit, deit3] = trains();
        let [dino, dino_local, simclr] = views();
        let rrc = |side, scale| random_resized(side, Interpolation::Bilinear, scale);
        let val = |side, crop| ValView { size: ImageSize::square(side), interpolation: Interpolation::Bilinear, crop };
        let short = |resize| val(224, Crop::ShortCenter { resize });
        let bicubic = |resize| ValView { interpolation: Interpolation::Bicubic, ..short(resize) };
        let imagenet = |name: &str, about: &str, train, val| Self {
            name: name.to_owned(),
            about: about.to_owned(),
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            train,
            val,
        };
        let a2 = TrainView { mix: Mix { mixup: Some(0.1), ..a1.mix }, ..a1 };
        let convnext = TrainView { repeats: 1, ..deit };
        vec![
            Self::lesson(),
            imagenet(
                "imagenette",
                "fastai's Imagenette benchmark (examples/train_imagenette.py)",
                rrc(128, [0.35, 1.0]),
                val(128, Crop::SquashCenter { resize: 152 }),
            ),
            imagenet(
                "torchvision-v1",
                "torchvision's references/classification, IMAGENET1K_V1 weights",
                rrc(224, [0.08, 1.0]),
                short(256),
            ),
            imagenet(
                "torchvision-v2",
                "torchvision's references/classification, IMAGENET1K_V2 weights (ε 0.1)",
                torchvision_v2,
                short(232),
            ),
            imagenet(
                "a1",
                "timm's ResNet strikes back, A1 (Wightman et al. 2021, table 2; binary cross-entropy, ε 0.1)",
                a1,
                bicubic(235),
            ),
            imagenet("a2", "the same, A2 (binary cross-entropy)", a2, bicubic(235)),
            imagenet("a3", "the same, A3, at 160 pixels (binary cross-entropy)", a3, bicubic(235)),
            imagenet("deit", "DeiT (main.py; ε 0.1)", deit, bicubic(256)),
            imagenet("deit3", "DeiT III (augment.py; binary cross-entropy)", deit3, bicubic(224)),
            imagenet("convnext", "ConvNeXt (main.py; ε 0.1)", convnext, bicubic(256)),
            imagenet("swin", "Swin Transformer (config.py; ε 0.1)", convnext, bicubic(256)),
            imagenet(
                "ffcv-rn18",
                "ffcv-imagenet's rn18, 16 epochs; resampled by area there, and decoded by the fast DCT",
                ffcv(11, 13),
                val(256, Crop::ShortCenter { resize: 293 }),
            ),
            imagenet(
                "ffcv-rn50",
                "ffcv-imagenet's rn50, 88 epochs; resampled by area there, and decoded by the fast DCT",
                ffcv(65, 76),
                val(256, Crop::ShortCenter { resize: 293 }),
            ),
            imagenet("dino", "DINO's two global views (main_dino.py)", dino, bicubic(256)),
            imagenet(
                "dino-local",
                "DINO's eight local views, beside a feed of the global ones",
                dino_local,
                bicubic(256),
            ),
            imagenet("simclr", "SimCLR's two views, but resized with antialiasing, and in bytes", simclr, bicubic(256)),
        ]
    }
}

/// A random resized crop and flips, not mixed.
fn random_resized(side: u32, interpolation: Interpolation, scale: [f64; 2]) -> TrainView {
    TrainView {
        size: ImageSize::square(side),
        grow: None,
        interpolation,
        flip: 0.5,
        repeats: 1,
        views: 1,
        crop: Crop::RandomResizedCrop { scale, ratio: [0.75, 4.0 / 3.0] },
        augment: Augment::default(),
        erase: Erase::default(),
        mix: Mix { fold: false, ..Mix::NONE },
    }
}

/// Those of `torchvision-v2`, `a1`, `a3`, `deit` and `deit3`.
fn trains() -> [TrainView; 5] {
    let both = |mixup, pairing| Mix {
        mixup: Some(mixup),
        cutmix: Some(1.0),
        per: MixPer::Batch,
        fold: false,
        pairing,
        ..Mix::NONE
    };
    let torchvision_v2 = TrainView {
        repeats: 4,
        augment: Augment {
            policy: Policy::TrivialAugmentWide,
            warping: Warping { filter: WarpFilter::Bilinear, fill: [0; 3] },
            ..Augment::default()
        },
        erase: Erase::torchvision(0.1),
        mix: both(0.2, Pairing::Roll),
        ..random_resized(176, Interpolation::Bilinear, [0.08, 1.0])
    };
    let warping = Warping { filter: WarpFilter::Bicubic, fill: IMAGENET_FILL };
    let timm = |side, magnitude, mixup| TrainView {
        augment: Augment {
            policy: Policy::Timm(TimmRand { magnitude, std: 0.5, layers: 2, prob: 0.5, increasing: true }),
            warping,
            ..Augment::default()
        },
        mix: both(mixup, Pairing::Reverse),
        ..random_resized(side, Interpolation::Bicubic, [0.08, 1.0])
    };
    let a1 = TrainView { repeats: 3, ..timm(224, 7.0, 0.2) };
    let a3 = timm(160, 6.0, 0.1);
    let deit = TrainView { repeats: 3, erase: Erase::timm(0.25, EraseMode::Pixel), ..timm(224, 9.0, 0.8) };
    let jitter = ColorJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, ..ColorJitter::default() };
    let deit3 = TrainView {
        augment: Augment { policy: Policy::ThreeAugment, jitter, ..Augment::default() },
        erase: Erase::default(),
        ..deit
    };
    [torchvision_v2, a1, a3, deit, deit3]
}

/// Those of `dino`, `dino-local` and `simclr`.
fn views() -> [TrainView; 3] {
    let color = |strength: [f64; 4], blur| Augment {
        jitter: ColorJitter {
            brightness: strength[0],
            contrast: strength[1],
            saturation: strength[2],
            hue: strength[3],
            prob: 0.8,
        },
        grayscale: 0.2,
        blur: Blur { prob: blur, ..Blur::default() },
        ..Augment::default()
    };
    let dino = |side, scale, blur| TrainView {
        augment: color([0.4, 0.4, 0.2, 0.1], blur),
        ..random_resized(side, Interpolation::Bicubic, scale)
    };
    let later = LaterViews {
        blur: Blur { prob: 0.1, ..Blur::default() },
        solarize: Solarize { prob: 0.2, ..Solarize::default() },
    };
    let global = dino(224, [0.4, 1.0], 1.0);
    [
        TrainView { views: 2, augment: Augment { later: Some(later), ..global.augment }, ..global },
        TrainView { views: 8, ..dino(96, [0.05, 0.4], 0.5) },
        TrainView {
            views: 2,
            augment: color([0.8, 0.8, 0.8, 0.2], 0.5),
            ..random_resized(224, Interpolation::Bicubic, [0.08, 1.0])
        },
    ]
}

/// Those of `ffcv-rn18` and `ffcv-rn50`: from 160 to 192 pixels between two epochs.
fn ffcv(from: u64, to: u64) -> TrainView {
    let full = random_resized(192, Interpolation::Bilinear, [0.08, 1.0]);
    TrainView { grow: Some(Grow { size: ImageSize::square(160), from, to }), ..full }
}
