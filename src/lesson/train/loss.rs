//! Losses: one value an image, then a reduction; and the mix of any of them over two labels.
//!
//! With `ℓ = log softmax(z)`, C classes and smoothing ε: `L(z, y) = (1−ε)·(−ℓ_y) + (ε/C)·Σ_j(−ℓ_j)`; cross-entropy is ε = 0. Mixed:
//! `M_i = λ_i·L(z_i, a_i) + (1−λ_i)·L(z_i, b_i)`, then reduced (docs/spec/batches.md#losses). It equals cross-entropy against mixed, smoothed one-hot
//! targets. Nothing has a reduction of its own that would have to be switched off and on again.

use tch::Tensor;

/// How per-image losses become the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Their mean, `[]`.
    #[default]
    Mean,
    /// Their sum, `[]`.
    Sum,
    /// Each by itself, `[B]`.
    None,
}

impl Reduction {
    /// Reduces per-image losses `[B]`.
    pub fn apply(self, per_image: &Tensor) -> Tensor {
        match self {
            Self::Mean => per_image.mean(per_image.kind()),
            Self::Sum => per_image.sum(per_image.kind()),
            Self::None => per_image.shallow_clone(),
        }
    }
}

/// A loss of one label an image.
pub trait Loss {
    /// The loss of each image, `[B]`, from logits `[B, C]` and labels i64 `[B]`.
    fn per_image(&self, logits: &Tensor, labels: &Tensor) -> Tensor;

    /// The reduced loss.
    fn forward(&self, logits: &Tensor, labels: &Tensor, reduction: Reduction) -> Tensor {
        reduction.apply(&self.per_image(logits, labels))
    }
}

/// `−ℓ_y`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy;

impl Loss for CrossEntropy {
    fn per_image(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        let logs = logits.log_softmax(-1, logits.kind());
        -logs.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1)
    }
}

/// Cross-entropy against targets of which every class gets an equal share of ε (Szegedy et al. 2016).
#[derive(Debug, Clone, Copy)]
pub struct LabelSmoothing {
    epsilon: f64,
}

impl LabelSmoothing {
    /// Smoothing by `epsilon` in [0, 1); `None` for any other.
    pub fn new(epsilon: f64) -> Option<Self> {
        (0.0..1.0).contains(&epsilon).then_some(Self { epsilon })
    }
}

impl Loss for LabelSmoothing {
    fn per_image(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        let logs = logits.log_softmax(-1, logits.kind());
        let own = -logs.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1);
        let all = -logs.mean_dim(1, false, logits.kind());
        own * (1.0 - self.epsilon) + all * self.epsilon
    }
}

/// Any loss over two labels an image, weighted by λ.
#[derive(Debug, Clone, Copy, Default)]
pub struct MixedLoss<L>(pub L);

impl<L: Loss> MixedLoss<L> {
    /// The loss of each image, `[B]`, from logits `[B, C]`, labels i64 `[B]`, partners' labels i64 `[B]` and λ f32 `[B]`.
    pub fn per_image(&self, logits: &Tensor, label_a: &Tensor, label_b: &Tensor, lambda: &Tensor) -> Tensor {
        // Any other shape would broadcast to a loss that is none of these images'.
        assert_eq!(lambda.size(), label_a.size(), "λ has one value an image");
        let lambda = lambda.to_kind(logits.kind());
        let rest: Tensor = 1.0 - &lambda;
        self.0.per_image(logits, label_a) * lambda + self.0.per_image(logits, label_b) * rest
    }

    /// The reduced loss of a batch.
    pub fn forward(&self, logits: &Tensor, batch: &super::BatchTensors<'_>, reduction: Reduction) -> Tensor {
        reduction.apply(&self.per_image(logits, &batch.label_a, &batch.label_b, &batch.lambda))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::path::Path;
    use tch::{Device, Kind};

    /// CE against `t = (1−ε)(λ·e_a + (1−λ)·e_b) + ε/C`, per image.
    fn against_targets(logits: &Tensor, a: &Tensor, b: &Tensor, lambda: &Tensor, epsilon: f64) -> Tensor {
        let classes = logits.size()[1];
        let one_hot = |labels: &Tensor| labels.one_hot(classes).to_kind(logits.kind());
        let lambda = lambda.unsqueeze(1);
        let mixed = one_hot(a) * &lambda + one_hot(b) * (1.0 - &lambda);
        let targets = mixed * (1.0 - epsilon) + epsilon / classes as f64;
        let products: Tensor = targets * logits.log_softmax(1, logits.kind());
        -products.sum_dim_intlist(1, false, logits.kind())
    }

    fn smoothing(epsilon: f64) -> LabelSmoothing {
        LabelSmoothing::new(epsilon).unwrap()
    }

    #[test]
    fn mixed_loss_is_cross_entropy_against_mixed_smoothed_targets() {
        let _random = super::super::torch_random();
        tch::manual_seed(1);
        for (batch, classes) in [(1, 1), (1, 10), (7, 2), (64, 10), (5, 1000)] {
            for epsilon in [0.0, 0.1, 0.3, 0.999] {
                let options = (Kind::Double, Device::Cpu);
                let logits = Tensor::randn([batch, classes], options) * 5.0;
                let labels = || Tensor::randint(classes, [batch], (Kind::Int64, Device::Cpu));
                let (a, b, lambda) = (labels(), labels(), Tensor::rand([batch], options));
                let ours = MixedLoss(smoothing(epsilon)).per_image(&logits, &a, &b, &lambda);
                let worst = (&ours - against_targets(&logits, &a, &b, &lambda, epsilon)).abs().max();
                assert!(f64::try_from(worst).unwrap() < 1e-12);
                assert_eq!(ours.size(), [batch]);
                if epsilon == 0.0 {
                    let plain = MixedLoss(CrossEntropy).per_image(&logits, &a, &b, &lambda);
                    assert!(f64::try_from((plain - ours).abs().max()).unwrap() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn smoothing_outside_its_range_is_refused() {
        for epsilon in [-0.1, 1.0, f64::NAN] {
            assert!(LabelSmoothing::new(epsilon).is_none());
        }
    }

    /// docs/spec/golden.md#tolerances: values within 2e-6·max(1, max|z|), times B for sums; gradients within 2e-6·max(1, |upstream|).
    #[test]
    fn values_and_gradients_are_the_goldens() {
        crate::fixtures::roots().for_each(|root| losses_pass(&root));
    }

    fn losses_pass(root: &Path) {
        let tensors: HashMap<String, Tensor> =
            Tensor::read_safetensors(root.join("loss_cases.safetensors")).unwrap().into_iter().collect();
        let list: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join("loss_cases.json")).unwrap()).unwrap();
        let cases = list["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = |key: &str| case[key].as_str().unwrap();
            let (key, set) = (text("key"), text("set"));
            let input = |name: &str| &tensors[&format!("{set}.{name}")];
            let logits = input("logits").copy().set_requires_grad(true);
            let epsilon = case["eps"].as_f64().unwrap();
            let mixed = case["mixup"].as_bool().unwrap();
            let per_image = match (text("loss"), mixed) {
                ("cross_entropy", true) => {
                    MixedLoss(CrossEntropy).per_image(&logits, input("y"), input("y1"), input("lam"))
                }
                ("cross_entropy", false) => CrossEntropy.per_image(&logits, input("y")),
                (_, true) => MixedLoss(smoothing(epsilon)).per_image(&logits, input("y"), input("y1"), input("lam")),
                (_, false) => smoothing(epsilon).per_image(&logits, input("y")),
            };
            let reduction = match text("reduction") {
                "mean" => Reduction::Mean,
                "sum" => Reduction::Sum,
                _ => Reduction::None,
            };
            let loss = reduction.apply(&per_image);
            let upstream = input("upstream");
            match reduction {
                Reduction::None => (&loss * upstream.to_kind(Kind::Float)).sum(Kind::Float).backward(),
                _ => loss.backward(),
            }
            let worst = |a: &Tensor, b: &Tensor| -> f64 {
                f64::try_from((a.to_kind(Kind::Double).reshape([-1]) - b.reshape([-1])).abs().max()).unwrap()
            };
            let z_max = f64::try_from(logits.abs().max()).unwrap().max(1.0);
            let rows = if reduction == Reduction::Sum { logits.size()[0] as f64 } else { 1.0 };
            let error = worst(&loss, &tensors[&format!("{key}.loss")]);
            assert!(error <= 2e-6 * z_max * rows, "{key}: loss off by {error}");
            let upstream_max = match reduction {
                Reduction::None => f64::try_from(upstream.abs().max()).unwrap().max(1.0),
                _ => 1.0,
            };
            let error = worst(&logits.grad(), &tensors[&format!("{key}.grad")]);
            assert!(error <= 2e-6 * upstream_max, "{key}: gradient off by {error}");
        }
    }
}
