//! `mixd index`: the index of a data set in an object store, for other machines.

use super::options::DataArgs;
use crate::escape::escaped;
use clap::Args;
use std::path::PathBuf;

/// Write the index of shards or tables in an object store to a file: uploaded beside them as mixd.index, it spares other machines reading all
/// of them before the first batch. It is of all samples, whatever part is chosen.
#[derive(Debug, Args)]
pub struct Index {
    #[command(flatten)]
    data: DataArgs,
    /// Where to write it.
    #[arg(long, env = "MIXD_OUT", value_name = "FILE", default_value = "mixd.index")]
    out: PathBuf,
}

impl Index {
    pub fn run(self) -> anyhow::Result<()> {
        let bytes = crate::source::publish_index(&self.data.set()?, &self.out)?;
        super::print(|out| writeln!(out, "{}: {:.1} MB", escaped(&self.out), bytes as f64 / 1e6))
    }
}
