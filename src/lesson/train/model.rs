//! The seed's network: eight blocks of convolution, ReLU and batch norm, the mean over positions, and a linear head (docs/spec/batches.md#network).

use tch::nn::{self, Init, ModuleT, VarStore};
use tch::{Kind, Tensor};

/// Channels before the first block and after each.
const CHANNELS: [i64; 9] = [3, 16, 32, 64, 32, 64, 128, 256, 512];

struct Block {
    conv: nn::Conv2D,
    norm: nn::BatchNorm,
}

/// The network; its variables have the names of docs/spec/batches.md#network.
pub struct Cnn {
    blocks: Vec<Block>,
    head: nn::Linear,
}

impl Cnn {
    /// A fresh network in `variables`: convolutions from `N(0, 2/(1.01·9·in))` (He et al. 2015, slope 0.1, fan-in), the head from
    /// `U(−1/√512, 1/√512)`. Torch's seed decides the numbers.
    pub fn new(variables: &VarStore, classes: i64) -> Self {
        let root = variables.root();
        let block = |(nth, pair): (usize, &[i64])| {
            let path = &root / "features" / nth;
            let stdev = (2.0 / (1.01 * 9.0 * pair[0] as f64)).sqrt();
            let conv = nn::ConvConfig {
                stride: if nth == 0 { 1 } else { 2 },
                padding: 1,
                bias: false,
                ws_init: Init::Randn { mean: 0.0, stdev },
                ..Default::default()
            };
            let norm = nn::BatchNormConfig { ws_init: Init::Const(1.0), ..Default::default() };
            Block {
                conv: nn::conv2d(&path / "conv", pair[0], pair[1], 3, conv),
                norm: nn::batch_norm2d(&path / "bn", pair[1], norm),
            }
        };
        let blocks = CHANNELS.windows(2).enumerate().map(block).collect();
        let bound = 1.0 / (CHANNELS[8] as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        let head = nn::LinearConfig { ws_init: uniform, bs_init: Some(uniform), bias: true };
        Self { blocks, head: nn::linear(&root / "head", CHANNELS[8], classes, head) }
    }

    /// Logits `[B, classes]` of images `[B, 3, H, W]`. In training batch norm uses the batch's statistics and moves the
    /// running ones.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut x = x.to_kind(Kind::Float);
        for Block { conv, norm } in &self.blocks {
            x = norm.forward_t(&x.apply(conv).relu(), train);
        }
        x.mean_dim([2_i64, 3].as_slice(), false, Kind::Float).apply(&self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LabelSmoothing, MixedLoss, Reduction};
    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use std::path::Path;
    use tch::{Device, no_grad};

    type Tensors = HashMap<String, Tensor>;

    fn read(path: &Path) -> Tensors {
        Tensor::read_safetensors(path).unwrap().into_iter().collect()
    }

    /// A value of the state that the goldens of this repository begin with: docs/spec/golden.md#network.
    fn initial(name: &str, nth: u32, at: u32, shape: &[i64]) -> f32 {
        let mut x = at.wrapping_mul(0x9E37_79B1).wrapping_add((nth + 5).wrapping_mul(0x85EB_CA77));
        x = (x ^ x >> 15).wrapping_mul(0x2C1B_3C6D);
        x = (x ^ x >> 12).wrapping_mul(0x297A_2D39);
        let value = ((x ^ x >> 15) >> 21) as f32 / 1024.0 - 1.0;
        match name.rsplit_once('.').expect("a layer's") {
            (layer, "weight") if layer.ends_with("conv") => {
                let divisors = [(3, 2.0), (16, 4.0), (32, 8.0), (64, 8.0), (128, 16.0), (256, 16.0)];
                value / divisors.iter().find(|(channels, _)| *channels == shape[1]).expect("a number of channels").1
            }
            ("head", _) => value / 32.0,
            (_, "weight") => 1.0 + value / 4.0,
            (_, "running_var") => 1.0 + value / 2.0,
            _ => value / 4.0,
        }
    }

    /// The images of the evaluation and of the step.
    fn images(goldens: &Tensors, root: &Path) -> Tensor {
        match goldens.get("x_u8") {
            Some(images) => images.shallow_clone(),
            None => read(&root.join("pixels.safetensors"))["pixels"].index_select(0, &goldens["images"]),
        }
    }

    /// The network in the goldens' fresh state.
    fn fresh(goldens: &Tensors) -> (VarStore, Cnn) {
        let _random = super::super::torch_random();
        let variables = VarStore::new(Device::Cpu);
        let cnn = Cnn::new(&variables, 10);
        no_grad(|| {
            let sorted: BTreeMap<_, _> = variables.variables().into_iter().collect();
            for (nth, (name, mut tensor)) in (0..).zip(sorted) {
                let state = goldens.get(&format!("state.{name}")).map_or_else(
                    || {
                        let (len, shape) = (tensor.numel() as u32, tensor.size());
                        let values: Vec<f32> = (0..len).map(|at| initial(&name, nth, at, &shape)).collect();
                        Tensor::from_slice(&values).view(shape.as_slice())
                    },
                    Tensor::shallow_clone,
                );
                tensor.copy_(&state.to_kind(Kind::Float));
            }
        });
        (variables, cnn)
    }

    fn normalised(x: &Tensor) -> Tensor {
        let spec = crate::spec::FeedSpec::train();
        let channel = |values: &[f32]| Tensor::from_slice(values).view([1, 3, 1, 1]);
        (x.to_kind(Kind::Float) / 255.0 - channel(&spec.mean)) / channel(&spec.std)
    }

    fn mixed(x: &Tensor, lambda: &Tensor, shuffle: &Tensor) -> Tensor {
        let lambda = lambda.view([-1, 1, 1, 1]);
        x * &lambda + x.index_select(0, shuffle) * (1.0 - &lambda)
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        f64::try_from((a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max()).unwrap()
    }

    fn step(variables: &VarStore, lr: f64) {
        no_grad(|| {
            for mut parameter in variables.trainable_variables() {
                let update = parameter.grad() * lr;
                let _ = parameter.f_sub_(&update).unwrap();
                parameter.zero_grad();
            }
        });
    }

    #[test]
    fn it_has_the_parameters_of_the_seed() {
        let _random = super::super::torch_random();
        let variables = VarStore::new(Device::Cpu);
        let _cnn = Cnn::new(&variables, 10);
        let count: usize = variables.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(count, 1_615_962);
    }

    #[test]
    fn logits_and_statistics_are_the_goldens() {
        crate::fixtures::roots().for_each(|root| logits_pass(&root));
    }

    fn logits_pass(root: &Path) {
        let goldens = read(&root.join("cnn.safetensors"));
        let (variables, cnn) = fresh(&goldens);
        let x = normalised(&images(&goldens, root));
        assert!(worst(&no_grad(|| cnn.forward(&x, false)), &goldens["eval_logits"]) <= 1e-5);
        assert!(worst(&no_grad(|| cnn.forward(&x, true)), &goldens["train_logits"]) <= 2e-4);
        for (name, tensor) in variables.variables() {
            if let Some(golden) = goldens.get(&format!("forward_stats.{name}")) {
                assert!(worst(&tensor, golden) <= 1e-5, "{name}");
            }
        }
    }

    #[test]
    fn one_step_is_the_goldens() {
        crate::fixtures::roots().for_each(|root| one_step_passes(&root));
    }

    fn one_step_passes(root: &Path) {
        let goldens = read(&root.join("cnn.safetensors"));
        let (variables, cnn) = fresh(&goldens);
        let before: Tensors = variables.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let (y, lambda, shuffle) = (&goldens["y"], &goldens["lam"], &goldens["shuffle"]);
        let logits = cnn.forward(&mixed(&normalised(&images(&goldens, root)), lambda, shuffle), true);
        assert!(worst(&logits, &goldens["step.logits"]) <= 2e-4);
        let loss = MixedLoss(LabelSmoothing::new(0.1).unwrap());
        let loss = Reduction::Mean.apply(&loss.per_image(&logits, y, &y.index_select(0, shuffle), lambda));
        assert!(worst(&loss.view([1]), &goldens["step.loss"]) <= 1e-5);
        loss.backward();
        for (name, tensor) in variables.variables() {
            if let Some(golden) = goldens.get(&format!("step.grad_norm.{name}")) {
                let ratio = tensor.grad().norm().double_value(&[]) / golden.double_value(&[0]);
                assert!((ratio - 1.0).abs() <= 1e-3, "{name}: gradient's norm is {ratio} of the golden one");
            }
        }
        step(&variables, 0.4);
        for (name, tensor) in variables.variables() {
            let update = worst(&tensor, &before[&name]);
            let (ours, golden) = match goldens.get(&format!("step.after.{name}")) {
                Some(golden) => (tensor.shallow_clone(), golden),
                None => {
                    let index = &goldens[&format!("step.sample_index.{name}")];
                    (tensor.reshape([-1]).index_select(0, index), &goldens[&format!("step.sample_after.{name}")])
                }
            };
            let error = worst(&ours, golden);
            assert!(error <= 1e-5 + 2e-3 * update, "{name}: off by {error}, update {update}");
        }
    }

    #[test]
    fn five_steps_follow_the_golden_losses() {
        crate::fixtures::roots().for_each(|root| five_steps_pass(&root));
    }

    fn five_steps_pass(root: &Path) {
        let goldens = read(&root.join("cnn.safetensors"));
        let pixels = read(&root.join("pixels.safetensors"));
        let (variables, cnn) = fresh(&goldens);
        let smoothed = LabelSmoothing::new(0.1).unwrap();
        for t in 0..5 {
            let at = |name: &str| goldens[name].get(t);
            let (rows, lambda, shuffle) = (at("traj.rows"), at("traj.lam"), at("traj.shuffle"));
            let x = normalised(&pixels["pixels"].index_select(0, &rows));
            let y = pixels["labels"].index_select(0, &rows);
            let logits = cnn.forward(&mixed(&x, &lambda, &shuffle), true);
            let loss = MixedLoss(smoothed).per_image(&logits, &y, &y.index_select(0, &shuffle), &lambda);
            let loss = Reduction::Mean.apply(&loss);
            let error = (loss.double_value(&[]) - goldens["traj.loss"].double_value(&[t])).abs();
            let tolerance = [1e-5, 2e-3, 2e-2, 2e-2, 2e-2][t as usize];
            assert!(error <= tolerance, "step {t}: off by {error}");
            loss.backward();
            step(&variables, 0.002);
        }
    }
}
