//! Checkpoints: the network's variables as safetensors, under the names of docs/spec/batches.md#network; how far training is, as JSON in the metadata.
//! Once weights are averaged, the network is the mean; the weights that training goes on from are `training.` and their names.

use super::options::Options;
use super::results::{EpochResult, Running};
use crate::escape::escaped;
use crate::spec::FeedSpec;
use crate::types::Place;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Element, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

/// Key of the metadata.
const KEY: &str = "mixd.train";

/// Prefix of the weights that training goes on from, where the network of the file is a mean.
pub const TRAINING: &str = "training.";

/// How far a training is, beside its network. The optimiser, plain SGD, has no state but its learning rate, which is in the options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// How it trains.
    pub options: Options,
    /// What it trains on.
    pub feed: FeedSpec,
    /// What it validates on.
    pub valid: FeedSpec,
    /// Hash of what decides the batches' bytes beside that.
    pub identity: u64,
    /// The epoch that it began with.
    pub first_epoch: u64,
    /// The next batch.
    pub place: Place,
    /// Sums over the batches of the epoch so far.
    pub running: Running,
    /// The results of the epochs that are done.
    pub results: Vec<EpochResult>,
    /// Ends of epochs that the network is the mean over; 0 where it is not averaged.
    #[serde(default)]
    pub averaged: u64,
}

/// Why a checkpoint could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be written.
    #[error("cannot write {}: {cause}", escaped(path))]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The file cannot be read, or is no safetensors file.
    #[error("cannot read {}: {cause}", escaped(path))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The file is of another network.
    #[error("{} is not a checkpoint of this network: {found} (use one that `mixd train --save` wrote)", escaped(path))]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        found: String,
    },
}

fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

/// Whether saving replaces `path`, as it does a file; a pipe or a device is written to in place.
fn is_replaced(path: &Path) -> bool {
    path.metadata().map_or(true, |there| there.is_file() || there.is_dir())
}

/// Finds out whether [`save`] can write there, before hours of training.
pub fn check(path: &Path) -> Result<(), CheckpointError> {
    if path.to_str().is_none() {
        let cause = "its name is not UTF-8".to_owned();
        return Err(CheckpointError::Write { path: path.to_owned(), cause });
    }
    if !is_replaced(path) {
        return Ok(());
    }
    let partial = partial(path);
    let tried = std::fs::File::create(&partial).and_then(|_| std::fs::remove_file(&partial));
    tried.map_err(|error| CheckpointError::Write { path: path.to_owned(), cause: error.to_string() })
}

/// A variable's shape and values.
fn read(tensor: &Tensor) -> (Vec<usize>, Vec<f32>) {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut values = vec![0_f32; tensor.numel()];
    tensor.copy_data(&mut values, tensor.numel());
    (tensor.size().into_iter().map(|side| side as usize).collect(), values)
}

/// Writes every variable, those of the mean where there is one, and the state; a file is there whole or not at all.
pub fn save(variables: &VarStore, mean: Option<&VarStore>, state: &State, path: &Path) -> Result<(), CheckpointError> {
    let failed = |cause: String| CheckpointError::Write { path: path.to_owned(), cause };
    let under = |prefix: &str, variables: &VarStore| -> Vec<_> {
        variables.variables().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), read(&tensor))).collect()
    };
    let variables = match mean {
        Some(mean) => [under("", mean), under(TRAINING, variables)].concat(),
        None => under("", variables),
    };
    let state = serde_json::to_string(state).map_err(|error| failed(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), state)]);
    let views = variables.iter().map(|(name, (shape, values))| {
        let view = TensorView::new(Element::F32, shape.clone(), bytemuck::cast_slice(values));
        (name.as_str(), view.expect("as many values as its shape says"))
    });
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| failed(error.to_string()))?;
    let partial = partial(path);
    let written = if is_replaced(path) {
        std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path))
    } else {
        std::fs::write(path, bytes)
    };
    written.map_err(|error| failed(error.to_string()))
}

/// Reads how far the training of a checkpoint is.
///
/// # Errors
/// When the file cannot be read, or was not written by `mixd train --save`.
pub fn state(path: &Path) -> Result<State, CheckpointError> {
    let unread = |cause: String| CheckpointError::Read { path: path.to_owned(), cause };
    let bytes = std::fs::read(path).map_err(|error| unread(error.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| unread(error.to_string()))?;
    let foreign = |found: String| CheckpointError::Foreign { path: path.to_owned(), found };
    let text = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let text = text.ok_or_else(|| foreign("it does not say how far its training is".to_owned()))?;
    serde_json::from_str(text).map_err(|error| foreign(format!("how far its training is cannot be read: {error}")))
}

/// Reads every variable, which stands under its name after `prefix`; nothing changes unless all of them fit.
pub fn load(variables: &VarStore, prefix: &str, path: &Path) -> Result<(), CheckpointError> {
    let foreign = |found: String| CheckpointError::Foreign { path: path.to_owned(), found };
    let mut read: std::collections::HashMap<String, Tensor> = Tensor::read_safetensors(path)
        .map_err(|error| CheckpointError::Read { path: path.to_owned(), cause: error.to_string() })?
        .into_iter()
        .collect();
    let mut pairs = Vec::new();
    for (name, ours) in variables.variables() {
        let name = format!("{prefix}{name}");
        let theirs = read.remove(&name).ok_or_else(|| foreign(format!("it has no `{name}`")))?;
        if theirs.size() != ours.size() {
            return Err(foreign(format!("`{name}` has the shape {:?}, not {:?}", theirs.size(), ours.size())));
        }
        pairs.push((ours, theirs));
    }
    no_grad(|| {
        for (mut ours, theirs) in pairs {
            ours.copy_(&theirs);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Cnn;
    use super::*;

    fn far() -> State {
        let options = Options::default();
        let place = Place { epoch: 3, index: 7 };
        let running = Running { images: 5.0, loss: 0.1 + 0.2, right: 3.0, last_losses: vec![1.0 / 3.0].into() };
        State {
            options,
            feed: FeedSpec::train(),
            valid: FeedSpec::val(),
            identity: u64::MAX,
            first_epoch: 1,
            place,
            running,
            results: Vec::new(),
            averaged: 2,
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let _random = super::super::torch_random();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let make = |seed| {
            tch::manual_seed(seed);
            let variables = VarStore::new(Device::Cpu);
            let cnn = Cnn::new(&variables, 10);
            (variables, cnn)
        };
        let ((saved, a), (other, b)) = (make(1), make(2));
        let x = Tensor::randn([2, 3, 32, 32], (tch::Kind::Float, Device::Cpu));
        let logits = |cnn: &Cnn| no_grad(|| cnn.forward(&x, false));
        assert_ne!(logits(&a), logits(&b));
        check(&path).unwrap();
        save(&saved, None, &far(), &path).unwrap();
        load(&other, "", &path).unwrap();
        assert_eq!(serde_json::to_string(&state(&path).unwrap()).unwrap(), serde_json::to_string(&far()).unwrap());
        assert_eq!(logits(&a), logits(&b));
        // Of a mean and what it is the mean of, each under its own name.
        let ((mean, c), (raw, d)) = (make(3), make(4));
        save(&saved, Some(&mean), &far(), &path).unwrap();
        load(&other, "", &path).unwrap();
        load(&raw, TRAINING, &path).unwrap();
        assert_eq!((logits(&b), logits(&d)), (logits(&c), logits(&a)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(check(&dir.path().join("none/model.safetensors")), Err(CheckpointError::Write { .. })));
    }

    #[test]
    fn a_pipe_is_written_to_and_stays_a_pipe() {
        use std::os::unix::fs::FileTypeExt;
        let _random = super::super::torch_random();
        let dir = tempfile::tempdir().unwrap();
        let [file, pipe] = ["file", "pipe"].map(|name| dir.path().join(name));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let variables = VarStore::new(Device::Cpu);
        let _cnn = Cnn::new(&variables, 10);
        save(&variables, None, &far(), &file).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe)
        });
        check(&pipe).unwrap();
        save(&variables, None, &far(), &pipe).unwrap();
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
        assert_eq!(reader.join().unwrap().unwrap(), std::fs::read(&file).unwrap());
    }

    #[test]
    fn checkpoints_of_another_network_are_refused() {
        let _random = super::super::torch_random();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let make = |classes| {
            let variables = VarStore::new(Device::Cpu);
            let _cnn = Cnn::new(&variables, classes);
            variables
        };
        save(&make(3), None, &far(), &path).unwrap();
        let error = load(&make(10), "", &path).unwrap_err();
        assert!(matches!(&error, CheckpointError::Foreign { .. }) && error.to_string().contains("head."), "{error}");
        std::fs::write(&path, "rubbish").unwrap();
        assert!(matches!(load(&make(10), "", &path), Err(CheckpointError::Read { .. })));
        assert!(matches!(state(&path), Err(CheckpointError::Read { .. })));
        Tensor::write_safetensors(&[("x", Tensor::from(1.0))], &path).unwrap();
        assert!(matches!(state(&path), Err(CheckpointError::Foreign { .. })));
    }
}
