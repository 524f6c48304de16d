//! The mean of the network over the last epochs: stochastic weight averaging (Izmailov et al. 2018), but for batch norm's
//! running statistics, which are averaged as well, where the paper takes them anew from the data.

use super::Cnn;
use tch::nn::VarStore;
use tch::no_grad;

/// The mean of the network's variables, running statistics included, over ends of epochs.
pub struct Average {
    /// The means, under the network's names.
    pub variables: VarStore,
    /// The network that has them.
    pub cnn: Cnn,
    /// Ends of epochs that they are taken over.
    pub epochs: u64,
}

impl Average {
    /// A mean of nothing yet. Draws from torch's generator: make it after the network.
    pub fn new(device: tch::Device, classes: i64) -> Self {
        let variables = VarStore::new(device);
        let cnn = Cnn::new(&variables, classes);
        Self { variables, cnn, epochs: 0 }
    }

    /// Takes the network as it is into the mean.
    pub fn add(&mut self, network: &VarStore) {
        self.epochs += 1;
        let now = network.variables();
        no_grad(|| {
            for (name, mut mean) in self.variables.variables() {
                let now = &now[&name];
                match self.epochs {
                    1 => mean.copy_(now),
                    epochs => mean += (now - &mean) / epochs as f64,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn it_is_the_mean_of_every_variable_and_of_one_network_that_network() {
        let _random = super::super::torch_random();
        let networks: Vec<VarStore> = (0..3)
            .map(|seed| {
                tch::manual_seed(seed);
                let variables = VarStore::new(Device::Cpu);
                let cnn = Cnn::new(&variables, 10);
                // Moves the running statistics.
                let _ = no_grad(|| cnn.forward(&Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu)), true));
                variables
            })
            .collect();
        let mut average = Average::new(Device::Cpu, 10);
        for (nth, network) in networks.iter().enumerate() {
            average.add(network);
            for (name, mean) in average.variables.variables() {
                let each: Vec<Tensor> =
                    networks[..=nth].iter().map(|network| network.variables()[&name].copy()).collect();
                let expected = Tensor::stack(&each, 0).mean_dim(0, false, Kind::Float);
                let off = (&mean - expected).abs().max().double_value(&[]);
                assert!(off <= if nth == 0 { 0.0 } else { 1e-6 }, "{name}: {off}");
            }
        }
    }
}
