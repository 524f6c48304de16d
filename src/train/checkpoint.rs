//! Checkpoints: the network's variables as safetensors, under the names of SPEC §6.

use std::path::{Path, PathBuf};
use tch::nn::VarStore;
use tch::{Device, Tensor, no_grad};

/// Why a checkpoint could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be written.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The file cannot be read, or is no safetensors file.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The file is of another network.
    #[error("{} is not a checkpoint of this network: {found} (use one that `mixd train --save` wrote)", path.display())]
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

/// Finds out whether [`save`] can write there, before hours of training.
pub fn check(path: &Path) -> Result<(), CheckpointError> {
    let partial = partial(path);
    let tried = std::fs::File::create(&partial).and_then(|_| std::fs::remove_file(&partial));
    tried.map_err(|error| CheckpointError::Write { path: path.to_owned(), cause: error.to_string() })
}

/// Writes every variable; the file is there whole or not at all.
pub fn save(variables: &VarStore, path: &Path) -> Result<(), CheckpointError> {
    let failed = |cause: String| CheckpointError::Write { path: path.to_owned(), cause };
    let mut tensors: Vec<(String, Tensor)> = variables.variables().into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let partial = partial(path);
    let tensors: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.detach().to_device(Device::Cpu).contiguous())).collect();
    Tensor::write_safetensors(&tensors, &partial).map_err(|error| failed(error.to_string()))?;
    std::fs::rename(&partial, path).map_err(|error| failed(error.to_string()))
}

/// Reads every variable; nothing changes unless all of them fit.
pub fn load(variables: &VarStore, path: &Path) -> Result<(), CheckpointError> {
    let foreign = |found: String| CheckpointError::Foreign { path: path.to_owned(), found };
    let mut read: std::collections::HashMap<String, Tensor> = Tensor::read_safetensors(path)
        .map_err(|error| CheckpointError::Read { path: path.to_owned(), cause: error.to_string() })?
        .into_iter()
        .collect();
    let mut pairs = Vec::new();
    for (name, ours) in variables.variables() {
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
        save(&saved, &path).unwrap();
        load(&other, &path).unwrap();
        assert_eq!(logits(&a), logits(&b));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(check(&dir.path().join("none/model.safetensors")), Err(CheckpointError::Write { .. })));
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
        save(&make(3), &path).unwrap();
        let error = load(&make(10), &path).unwrap_err();
        assert!(matches!(&error, CheckpointError::Foreign { .. }) && error.to_string().contains("head."), "{error}");
        std::fs::write(&path, "rubbish").unwrap();
        assert!(matches!(load(&make(10), &path), Err(CheckpointError::Read { .. })));
    }
}
